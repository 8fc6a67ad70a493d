"""Mutants of GGUF files: their fields are found first, and changed by what they are; counts and padding follow, or not.

The walker knows the format on its own, and takes any bytes: what it does not understand is one field to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from struct import unpack_from

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type."""

NUMBERS = "VTKLtcndgo"
"""The kinds of fields that are numbers: version, tensors, key-values, length, type of value, count of an array, number
of dimensions, dimension, type of tensor, offset. The others: m magic, s string, v values, p padding, D data."""

INTERESTING = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 39, 63, 64, 65, 96, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, 1 << 40, 1 << 59, 1 << 62, (1 << 63) - 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 32),
    *((1 << 64) - 1, 100_000, 100_001, 1_000_000, 1_000_001),
)
WORDS = (
    *(
        b"",
        b"a",
        b"b",
        b"\0",
        b"a\0b",
        b"\xff",
        b"\xed\xa0\x80",
        b"\x1b]0;x\x07",
        "\u202e".encode(),
        b"x" * 63,
        b"x" * 64,
    ),
    *(b"general.alignment", b"general.architecture", b"GGUF.version", b"GGUF.kv_count", b"k", b"tokenizer.ggml.tokens"),
)


@dataclass(frozen=True)
class Fields:
    """A file as fields: their bytes, a letter of kind for each; `groups` are the runs of a key-value or a tensor."""

    fields: tuple[bytes, ...]
    kinds: str
    groups: tuple[tuple[int, int, str], ...]


class _Walker:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0
        self.fields: list[bytes] = []
        self.kinds: list[str] = []
        self.groups: list[tuple[int, int, str]] = []

    def field(self, n: int, kind: str) -> int:
        """The next `n` bytes; their number, if they are one. EOFError where there are fewer."""
        part = self.data[self.pos : self.pos + n]
        if len(part) < n:
            raise EOFError
        self.fields.append(part)
        self.kinds.append(kind)
        self.pos += n
        return int.from_bytes(part, "little") if n <= 8 else 0

    def string(self) -> None:
        self.field(self.field(8, "L"), "s")

    def value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            inner, count = self.field(4, "t"), self.field(8, "c")
            if inner == 8:
                for _ in range(count):
                    self.string()
            elif inner in WIDTHS:
                self.field(count * WIDTHS[inner], "v")
            else:
                raise EOFError
        elif kind in WIDTHS:
            self.field(WIDTHS[kind], "v")
        else:
            raise EOFError

    def key_value(self) -> None:
        self.string()
        self.value(self.field(4, "t"))

    def tensor(self) -> None:
        self.string()
        for _ in range(min(self.field(4, "n"), 8)):
            self.field(8, "d")
        self.field(4, "g")
        self.field(8, "o")

    def run(self) -> Fields:
        try:
            self.field(4, "m")
            self.field(4, "V")
            tensors, keys = self.field(8, "T"), self.field(8, "K")
            for count, read, kind in ((keys, self.key_value, "K"), (tensors, self.tensor, "T")):
                for _ in range(min(count, 1000)):
                    start = len(self.fields)
                    read()
                    self.groups.append((start, len(self.fields), kind))
            self.field(min(-self.pos % 32, len(self.data) - self.pos), "p")
        except EOFError:
            pass
        self.field(len(self.data) - self.pos, "D")
        return Fields(tuple(self.fields), "".join(self.kinds), tuple(self.groups))


def fields(data: bytes) -> Fields:
    """The fields of any bytes; together they are the file."""
    return _Walker(data).run()


Draw = Callable[[], float]
_TYPES = tuple(range(15))
_TENSOR_TYPES = tuple(range(45))


def _number(draw: Draw, f: list[bytes], kinds: str, i: int) -> None:
    width = len(f[i])
    n = int.from_bytes(f[i], "little")
    how = draw()
    if how < 0.35:
        n = INTERESTING[int(draw() * len(INTERESTING))]
    elif how < 0.55:
        n += (1, -1, 32, -32, n)[int(draw() * 5)]
    elif how < 0.7:
        n ^= 1 << int(draw() * 8 * width)
    elif kinds[i] in "tg":
        choices = _TYPES if kinds[i] == "t" else _TENSOR_TYPES
        n = choices[int(draw() * len(choices))]
    else:
        n = int.from_bytes(f[int(draw() * len(f))][:8], "little")
    f[i] = (n & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _bytes(draw: Draw, f: list[bytes], kinds: str, i: int) -> None:
    """Another text, with its length in four of five; of other bytes one is another, or their number."""
    how = draw()
    if kinds[i] == "s":
        f[i] = WORDS[int(draw() * len(WORDS))] if how < 0.6 else f[int(draw() * len(f))]
        if draw() < 0.8:
            f[i - 1] = len(f[i]).to_bytes(8, "little")
    elif how < 0.5 and f[i]:
        at = int(draw() * len(f[i]))
        f[i] = f[i][:at] + bytes([int(draw() * 256)]) + f[i][at + 1 :]
    elif how < 0.8:
        f[i] = f[i][: int(draw() * len(f[i]))]
    else:
        f[i] += bytes(1 + int(draw() * 40))


def _group(draw: Draw, f: list[bytes], groups: Sequence[tuple[int, int, str]]) -> None:
    """A key-value or tensor left out, doubled, or put in another's place; the count follows in three of four."""
    start, stop, kind = groups[int(draw() * len(groups))]
    how, more = draw(), 0
    if how < 0.4:
        f[start:stop] = []
        more = -1
    elif how < 0.7:
        f[stop:stop] = f[start:stop]
        more = 1
    else:
        other = groups[int(draw() * len(groups))]
        f[start:stop] = f[other[0] : other[1]]
    if draw() < 0.75:
        at = 2 if kind == "T" else 3
        f[at] = (int.from_bytes(f[at], "little") + more & (1 << 64) - 1).to_bytes(8, "little")


def gguf_mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` files, each a seed with one to three changes; in four of five the data begins where it must."""
    split = [fields(s) for s in seeds]
    aligned = [_alignment(s) for s in seeds]
    draw = Random(seed).random
    for _ in range(count):
        which = int(draw() * len(split))
        seed_fields = split[which]
        f, kinds = list(seed_fields.fields), seed_fields.kinds
        for _ in range(1 + int(draw() * draw() * 3)):
            i = int(draw() * len(f))
            if i < 4 and draw() < 0.8:  # magic, version and counts hide the rest
                i = int(draw() * len(f))
            (_number if kinds[i] in NUMBERS else _bytes)(draw, f, kinds, i)
        if seed_fields.groups and draw() < 0.12:
            _group(draw, f, seed_fields.groups)
        if kinds[-2:-1] == "p" and draw() < 0.8:
            tail = f.pop()
            f[-1] = b""
            head = b"".join(f)
            whole = head + bytes(-len(head) % aligned[which]) + tail
        else:
            whole = b"".join(f)
        yield whole[: int(draw() * len(whole))] if draw() < 0.02 else whole


def _alignment(data: bytes) -> int:
    """That which a good seed declares, found by its key."""
    at = data.find(b"general.alignment\x04\0\0\0")
    return max(unpack_from("<I", data, at + 21)[0] % 65537, 1) if 0 <= at <= len(data) - 25 else 32
