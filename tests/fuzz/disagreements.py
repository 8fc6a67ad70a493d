"""What is known to differ between our parsers and the formats' own, and why.

Where both accept a file they read the same table; where only one does, the reason is in a list here. An entry of the
list that no mutant shows any more is an error too, so that the list stays true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ckpttool.containers import gguf as our_gguf
from ckpttool.containers.ggml_types import GGML_TYPES

STRING = 8


@dataclass(frozen=True)
class Known:
    """A known disagreement: what we say of such files, and what the other does; "" is to accept it."""

    ours: str
    theirs: str
    why: str
    rare: bool = False
    """Too rare in the shorter run of CI to be asked for."""


TWICE = "a name stands twice"

SAFETENSORS = (
    Known("duplicate name", "", "the README disallows them; the reference keeps the last, others the first"),
    Known(TWICE, "", "the same, and what stands first is wrong besides: the reference never looks at it"),
    Known("unknown field", "", "the reference skips fields of a tensor that no version of the format has"),
    Known("must be an object of strings", "", "the reference takes __metadata__: null for none"),
    Known("only spaces may follow", "", "the README pads with spaces; the reference takes any white space of JSON"),
    Known("overflows", "", "0 elements, but a product on the way is over 63 bits: [0, 2**63 - 1]. torch fails later"),
    Known("dimensions, over 64", "", "numpy has 64 at most; the reference has no limit"),
    Known("duplicate key", "", "of a field that the format has not, whose value the reference skips", rare=True),
    Known("is no plain integer of at most", "", "the same: there the reference takes any number", rare=True),
)

LLAMA_CPP = (
    Known("bytes are missing", "", "gguf.cpp reads the header alone; llama.cpp's loader refuses what ends too early"),
    Known("is empty or holds a NUL", "", "gguf.cpp cuts names at a NUL, so that another name is seen than stored"),
    Known("is not UTF-8", "", "docs/gguf.md wants UTF-8; gguf.cpp never looks, and Python readers fail"),
    Known("the header announces", "", "a tensor without a name, which gguf.cpp takes, has a byte less", rare=True),
    Known("readers keep for themselves", "", "gguf-py cannot open a file with a key GGUF.version"),
    Known("a bool must be 0 or 1", "", "docs/gguf.md says so; gguf.cpp takes any other byte for true"),
    Known("overflows", "", "0 elements, but a product on the way is over 63 bits; gguf.cpp stops at the zero"),
    Known("must be a power of two", "", "over 65,536; gguf.cpp takes any power of two up to 2**31"),
    Known("", "text with a NUL", "gguf.cpp gives texts to C, where they end at the first NUL"),
)

GGUF_PY = (
    Known("tensors lie one after the other", "", "gguf-py believes any offset: header bytes become a tensor"),
    Known("is empty or holds a NUL", "", "gguf-py takes any name; gguf.cpp refuses an empty key"),
    Known("a bool must be 0 or 1", "", "gguf-py takes any other byte for true"),
    Known("over the limit of 63", "", "gguf-py has no limit for names; gguf.cpp has"),
    Known("are left", "", "gguf-py cuts texts and arrays at the end of the file, silently"),
    Known("ends too early", "", "a scalar cut off at the end of the file is empty to gguf-py", rare=True),
    Known("bytes left hold at most", "", "the same, where the count alone shows it", rare=True),
    Known("ends behind the file", "", "the same, for a string of an array"),
    Known("bytes are missing", "", "gguf-py reads 0 bytes of a tensor without elements wherever it is said to lie"),
    Known("dimensions, more than 4", "", "gguf-py takes any number; gguf.cpp refuses"),
    Known("unknown value type", "", "of an empty array: gguf-py never looks at its elements' type"),
    Known("must be a power of two", "", "over 65,536; gguf-py takes any power of two"),
    Known("is not UTF-8", "", "gguf-py keeps texts as bytes until they are asked for, and fails then"),
    Known("is big-endian", "", "gguf-py swaps it on reading; llama.cpp does not read it either"),
    Known("overflows", "", "gguf-py multiplies in 64 bits, and wraps"),
    Known("arrays of arrays", "", "gguf-py flattens them; gguf.cpp refuses", rare=True),
    Known("an array of arrays", "", "gguf-py flattens them; gguf.cpp refuses"),
    Known("no whole number of", "", "of a tensor without elements: gguf-py looks at their number alone", rare=True),
    Known("", "is not a valid GGMLQuantizationType", "Q1_0 and Q2_0, which llama.cpp has and gguf-py 0.19 has not"),
    Known("", "Q8_1", "gguf-py says 40 bytes for a block; ggml-common.h says 36"),
    Known("", "cannot reshape array", "quantized, with a dimension of 0: gguf-py fails; llama.cpp reads it", rare=True),
    Known("", "tuple index out of range", "a scalar of a type that numpy has not: gguf-py fails; llama.cpp reads it"),
)


class Comparison:
    """Our verdicts beside another's, one by one; whatever is not on the list is an error, with the file."""

    def __init__(self, known: tuple[Known, ...]) -> None:
        self.known = known
        self.agreed = 0
        self.met: set[Known] = set()

    def add(self, data: bytes, ours: str, theirs: str) -> None:
        """What each says of `data`: a refusal, or "" where the file is accepted and read as the other reads it.

        That both refuse it is to agree, whatever they say of why.
        """
        if bool(ours) == bool(theirs):
            self.agreed += 1
            return
        found = {k for k in self.known if k.ours in ours and k.theirs in theirs and bool(k.ours) == bool(ours)}
        assert found, f"we say {ours!r}, they {theirs!r} of {data!r}"
        self.met |= found

    def done(self) -> None:
        assert self.agreed
        assert not {k for k in self.known if not k.rare} - self.met, "no file shows this any more"


# Tables of GGUF


def table(header: our_gguf.Header) -> dict[str, Any]:
    """A header as `gguf_peers` gives it."""
    metadata = []
    for key, value in header.metadata.items():
        array = isinstance(value, our_gguf.Array)
        data = value.data if isinstance(value, our_gguf.Array) else value.packed()
        metadata.append([key.encode().hex(), int(value.type), len(value) if array else None, data.hex()])
    tensors = [[t.name.encode().hex(), GGML_TYPES[t.dtype].id, t.offset, t.nbytes] for t in header.tensors]
    return {"version": header.version, "alignment": header.alignment, "metadata": metadata, "tensors": tensors}


def unlike(header: our_gguf.Header, theirs: dict[str, Any]) -> str:
    """Why a table differs from ours, where that is known; "" where it does not. Anything else is an error."""
    mine = table(header)
    if mine == theirs:
        return ""
    if any(t.dtype == "Q8_1" for t in header.tensors) and mine["metadata"] == theirs["metadata"]:
        return "Q8_1"
    cut = [[key, t, n, _cut(data) if t == STRING else data] for key, t, n, data in mine["metadata"]]
    assert mine | {"metadata": cut} == theirs
    return "text with a NUL"


def _cut(data: str) -> str:
    """Strings as they lie in a file, in hex; each ends at its first NUL."""
    texts = [text.split(b"\0")[0] for text in _strings(data)]
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts).hex()


def _strings(data: str) -> Iterator[bytes]:
    raw = bytes.fromhex(data)
    while raw:
        n = 8 + int.from_bytes(raw[:8], "little")
        yield raw[8:n]
        raw = raw[n:]
