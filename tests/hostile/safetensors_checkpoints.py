"""Safetensors files that are odd, large or wrong beyond one header, by their numbers in the catalogue.

Sound oddities are put into a whole gpt-oss checkpoint, so that every front end has to accept them; others stand alone.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
from builders import Model, Sizes, Tensor
from front_ends import ACCEPTED, FOREIGN, LIMIT, REFUSED, SHOWN, Codes, Hostile
from hostile_files import entry, st

MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
FILE = "model.safetensors"
EXPERTS = "model.layers.0.mlp.experts."
N = 99_999_992
"""The largest header that is a multiple of eight."""
Edit = Callable[[bytes, bytes], bytes]
VALUES = Codes(0, 1, 0, 0)
"""What values alone show: --check reads them, a conversion does as it comes to them, its dry run does not."""


def whole(
    what: str,
    edit: Edit,
    *says: str,
    codes: Codes = ACCEPTED,
    change: builders.Change = lambda t: None,
    unsaid: str | None = None,
) -> Hostile:
    """A whole checkpoint of one file, made anew from its header's JSON and its data."""

    def make(at: Path) -> Path:
        folder = builders.write(MODEL, at / "source", "hf", change=change)
        data = (folder / FILE).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        (folder / FILE).write_bytes(edit(data[8:start].rstrip(b" "), data[start:]))
        return folder

    unheard = unsaid or ("check verify" if codes is ACCEPTED else "check")  # verify has no notes
    return Hostile("", what, make, says, codes, unsaid=tuple(unheard.split()))


def alone(
    what: str, write: Callable[[Path], object], *says: str, codes: Codes = REFUSED, unsaid: str = "check"
) -> Hostile:
    """One file, written by `write`."""

    def make(at: Path) -> Path:
        write(at / FILE)
        return at / FILE

    return Hostile("", what, make, says, codes, unsaid=tuple(unsaid.split()))


def named(what: str, *names: str, says: str = "") -> Hostile:
    """A checkpoint with tensors of these names beside its own: shown with what they hold escaped, and never a path."""

    def change(t: builders.Tensors) -> None:
        for i, name in enumerate(names):
            t[name] = Tensor("U8", np.full(4, i, np.uint8))

    words = says or f"{FILE}: {names[0]}: not a name of the hf dialect"
    return whole(what, lambda head, data: st(head, data), words, codes=SHOWN, change=change)


def changed(what: str, change: builders.Change, *says: str, codes: Codes = SHOWN, unsaid: str = "check") -> Hostile:
    """A checkpoint whose tensors are changed before they are written."""
    return whole(what, lambda head, data: st(head, data), *says, codes=codes, change=change, unsaid=unsaid)


def cut(share: float) -> Edit:
    """The file's end is missing, from a place inside the header."""
    return lambda head, data: st(head)[: 8 + int(len(head) * share)]


def behind(tail: bytes) -> Edit:
    return lambda head, data: st(head, data + tail)


def sparse(length: int) -> Callable[[Path], object]:
    """A header of so many zeros, which take no disk."""

    def write(path: Path) -> None:
        path.write_bytes(length.to_bytes(8, "little"))
        os.truncate(path, 8 + length)

    return write


def text(header: Callable[[], bytes], data: bytes = b"") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(st(header(), data))


def rows(count: int, row: str) -> Callable[[], bytes]:
    """A header of so many tensors."""
    return lambda: ("{" + ",".join(f'"t{i}":{row}' for i in range(count)) + "}").encode()


def spoiled(name: str, at: tuple[int, ...], bits: int) -> builders.Change:
    def change(t: builders.Tensors) -> None:
        array = t[name].array.copy()
        array[at] = bits
        t[name] = Tensor(t[name].dtype, array)

    return change


def reshaped(name: str, f: Callable[[Tensor], Tensor]) -> builders.Change:
    return lambda t: t.update({name: f(t[name])})


def gguf_in_a_folder(at: Path) -> Path:
    folder = builders.write(MODEL, at / "source", "hf", shards=2)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8))
    return folder


BLOCKS, SCALES = f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales"
ZERO_SIZED = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
SHARED = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
FOREIGN_SAYS = "no known architecture has these tensor names"
KNOWN = "inspect check verify"
"""Who has nothing against a file of another architecture, or says so otherwise."""
CHECKED = "inspect convert verify"
"""Who does not look at values."""
PAIR = json.dumps({"a": entry(shape=[1], offsets=(0, 1)), "b": entry("F64", [1], (1, 9))}).encode()

CHECKPOINTS = [
    alone("ST012 a sparse header of 100,000,001 bytes", sparse(N + 9), "over the format's limit of 100000000"),
    alone(
        "ST013 a sparse header of 99,999,992 zeros", sparse(N), f"{FILE} at byte 8: the header must be a JSON object"
    ),
    *(
        whole(
            f"ST{15 + i:03} a header of {n} bytes", lambda head, data, n=n: st(head.ljust(n), data), "bytes of padding"
        )
        for i, n in enumerate((99_992, 99_994, 100_000, 100_001))
    ),
    *(
        whole(f"ST019 cut at {share:.0%} of the header", cut(share), f"{FILE} at byte 0", codes=REFUSED)
        for share in (0, 0.01, 0.5, 0.999)
    ),
    whole("ST023 a zip's directory behind", behind(b"PK\5\6" + bytes(18)), "22 bytes follow that", codes=REFUSED),
    whole("ST024 a PDF behind", behind(b"%PDF-1.4\n%%EOF\n"), "15 bytes follow that belong to nothing", codes=REFUSED),
    whole("ST024 an ELF behind", behind(b"\x7fELF" + bytes(60)), "64 bytes follow that", codes=REFUSED),
    whole(
        "ST040 space before the header", lambda h, d: st(b"  \n\t" + h, d), "begins its header with 4 bytes of space"
    ),
    alone(
        "ST076 9 dimensions",
        text(lambda: json.dumps({"a": entry(shape=[1] * 9, offsets=(0, 1))}).encode(), b"x"),
        f"{FILE}: a: has 9 dimensions, more than 8",
        codes=FOREIGN,
        unsaid="convert verify",
    ),
    alone("ST092 empty tensors at one place", text(rows(500, ZERO_SIZED)), FOREIGN_SAYS, codes=FOREIGN, unsaid=KNOWN),
    named("ST102 an empty name", "", says="not a name of the hf dialect"),
    named("ST102 NUL", "a\0b", says=r"a\u{0}b: not a name"),
    named("ST102 terminal escapes", "\x1b]52;c;cm0K\x07", says=r"\u{1b}]52;c;cm0K\u{7}: not a name"),
    named("ST102 bidi override", "a\u202etxt.b", says=r"a\u{202e}txt.b: not a name"),
    named("ST102 a path", "../../etc/passwd"),
    named("ST102 an absolute path", "/etc/passwd"),
    named("ST102 a path of Windows", "C:\\x"),
    named("ST102 NFC and NFD", "\u00e9", "e\u0301"),
    named("ST102 case twins", "Model.Norm.Weight", "MODEL.NORM.WEIGHT", says="Model.Norm.Weight"),
    alone(
        "ST102 half a surrogate pair",
        text(lambda: b'{"\\ud800":' + SHARED.encode() + b"}", bytes(4)),
        f"{FILE} at byte 9: ",
    ),
    alone(
        "ST102 a name of a megabyte",
        text(lambda: json.dumps({"x" * (1 << 20): entry()}).encode(), bytes(4)),
        "a name longer than 4096 bytes",
    ),
    alone(
        "ST103 a truth of 2",
        text(lambda: b'{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}', b"\0\1\2\xff"),
        "a: 2 of 4 values are neither 0 nor 1, the first at [2]",
        codes=Codes(0, 1, 3, 1),
        unsaid=CHECKED,
    ),
    alone("ST104 a misaligned F64", text(lambda: PAIR, bytes(9)), FOREIGN_SAYS, codes=FOREIGN, unsaid=KNOWN),
    Hostile(
        "",
        "ST109 a GGUF for a shard",
        gguf_in_a_folder,
        ("model-00001-of-00002.safetensors at byte 0: this is a GGUF",),
    ),
    changed("ST110 blocks without scales", lambda t: t.pop(SCALES), f"{BLOCKS}: has no scales"),
    changed("ST110 scales without blocks", lambda t: t.pop(BLOCKS), f"{SCALES}: has no {BLOCKS}"),
    changed(
        "ST110 scales of another shape",
        reshaped(SCALES, lambda t: Tensor("U8", t.array[:, :-1])),
        f"{BLOCKS}: U8 [2, 32, 2, 16] with scales U8 [2, 31, 2]",
    ),
    changed(
        "ST110 blocks of 8 bytes",
        reshaped(BLOCKS, lambda t: Tensor("U8", t.array[..., :8])),
        f"{BLOCKS}: U8 [2, 32, 2, 8] with scales",
    ),
    changed(
        "ST110 blocks of BF16",
        reshaped(BLOCKS, lambda t: Tensor("BF16", t.array.astype(np.uint16))),
        f"{BLOCKS}: BF16 [2, 32, 2, 16] with scales U8",
    ),
    changed(
        "ST110 a scale of 255",
        spoiled(SCALES, (1, 5, 1), 255),
        f"{SCALES}: 1 of 128 scales are byte 255",
        codes=VALUES,
        unsaid=CHECKED,
    ),
    changed(
        "ST110 a NaN",
        spoiled("model.norm.weight", (7,), 0x7FC0),
        "model.norm.weight: 1 of 32 values are NaN or infinite, the first at [7]",
        codes=VALUES,
        unsaid=CHECKED,
    ),
    changed(
        "ST110 an infinity",
        spoiled("lm_head.weight", (7, 3), 0xFF80),
        "values are NaN or infinite, the first at [7, 3]",
        codes=VALUES,
        unsaid=CHECKED,
    ),
]

LARGE = [
    whole("ST014 99.9 MB of padding", lambda h, d: st(h.ljust(N), d), "bytes of padding in its header"),
    alone("ST088 100,000 tensors on one range", text(rows(100_000, SHARED), bytes(4)), "overlaps"),
    alone("ST088 10^6 tensors on one range", text(rows(10**6, SHARED), bytes(4)), "tensors in one header", codes=LIMIT),
    alone(
        "ST097 metadata of 95 MB",
        text(lambda: b'{"__metadata__":{"a":"' + b"x" * 95_000_000 + b'"}}'),
        FOREIGN_SAYS,
        codes=FOREIGN,
        unsaid=KNOWN,
    ),
    alone("ST098 1.7 million empty tensors", text(rows(1_700_000, ZERO_SIZED)), "tensors in one header", codes=LIMIT),
    alone(
        "ST099 a shape of 95 MB",
        text(lambda: b'{"a":{"dtype":"U8","shape":[' + b"1," * 47_000_000 + b'1],"data_offsets":[0,1]}}', b"x"),
        "too long an entry",
    ),
    alone("ST100 95 MB of lists", text(lambda: b'{"a":[' + b"[]," * 31_000_000 + b"1]}"), "too long an entry"),
    alone("ST101 10^7 lists in each other", text(lambda: b'{"a":' + b"[" * 10**7), "recursion"),
]
"""Headers of a hundred megabytes."""
