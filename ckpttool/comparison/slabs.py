"""One slab of a group: the rows of both sides read, held against each other as bytes, and measured where these differ.

Bytes are compared before anything is decoded, so that what is stored alike goes at the speed of reading. What is stored
otherwise is decoded a piece at a time, small enough for the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.archs.joins import Extent
from ckpttool.codecs.formats import MXFP4
from ckpttool.codecs.measure import RowErrors, differing, joined, measure
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Bytes, Operand, transcode
from ckpttool.codecs.values import decodable, meeting, values
from ckpttool.comparison.pairs import Extents, Group
from ckpttool.comparison.sums import Tally
from ckpttool.containers.remote import RemoteFile
from ckpttool.containers.source import LocalFile
from ckpttool.slabwork import ALIGNMENT, Laid, lay
from ckpttool.steps import Fidelity, Kind, Side, Slab, Step

Files = Mapping[str, LocalFile | RemoteFile]

Watch = Callable[[Group, str, Operand, Operand, int], None]
"""Shown some rows of a part, upright and of this part alone, A's and B's, from the row of that number on.

All rows in whose slab the two differ come, in pieces and from any thread: in their bits where both sides have one
format, else in their values.
"""

PIECE_ELEMENTS: Final = 1 << 20
"""Elements that are decoded at a time: 4 MB a side as F32. Of less, many cores would wait for the interpreter."""

PIECE_NBYTES: Final = 1 << 20
"""Bytes that are compared at a time."""

MOST_EXTENTS: Final = 64
"""Weights that one group is read from at a time, both sides and what stands upright together; 4 a zip of two parts."""

SCRATCH_NBYTES: Final = 48 << 20
"""What decoding and measuring a piece take at most by compiled kernels; numpy's take twice as much."""


@dataclass(slots=True)
class PartFound:
    """What a slab says of a part: equal bytes, or else its errors by expert (none where all numbers are equal).

    `decoded` is false where bytes differ and nobody here knows their values.
    """

    equal: bool
    decoded: bool = True
    experts: dict[int, Tally] = field(default_factory=dict)

    @property
    def unmeasured(self) -> bool:
        """Whether the part's numbers are equal and their signal is not known."""
        return self.decoded and not self.experts


class SlabReader:
    """Compares slabs one after the other, in a buffer that is used again; one for each thread."""

    def __init__(self, a: Files, b: Files, nbytes: int, watch: Watch | None = None) -> None:
        """`nbytes` is what the largest slab reads, and what of it stands upright beside that."""
        self._files = (a, b)
        self._watch = watch
        self._buffer = np.empty(nbytes + MOST_EXTENTS * ALIGNMENT, np.uint8)

    def compare(self, group: Group, start: int, stop: int, measured: Collection[str] = ()) -> dict[str, PartFound]:
        """Rows [start, stop) of a group.

        Parts in `measured`, and no others, are measured even where their bytes are equal; nobody watches that.
        """
        a, used = self._read(group, group.a, start, stop, 0)
        b, used = self._read(group, group.b, start, stop, used)
        if not measured and _laid_alike(a, b) and _same_laid(a, b):
            return {part: PartFound(True) for part in group.parts}
        upright: list[list[tuple[Extent, Operand]]] = [[], []]
        for side, standing in zip((a, b), upright, strict=True):
            for extent, laid in side:
                operand, used = self._upright(laid.operand, used)
                standing.append((extent, operand))
        out = {}
        for part in measured or group.parts:
            x, y = (_of_part(side, part) for side in upright)
            if not measured and _same_bits(x, y):
                out[part] = PartFound(True)
            elif not (decodable(x.codec) and decodable(y.codec)):
                self._show(group, part, x, y, start)
                out[part] = PartFound(False, False)
            elif not measured and _same_numbers(x, y, group.shape.row_length):
                self._show(group, part, x, y, start)
                out[part] = PartFound(False)
            else:
                out[part] = PartFound(False, True, self._measured(x, y, group, start, None if measured else part))
        return out

    def _show(self, group: Group, part: str, x: Operand, y: Operand, first_row: int) -> None:
        """Let others see rows of one format whose bits differ, and whose values do not, or nobody knows them."""
        if self._watch is not None and x.codec.format == y.codec.format:
            for start, stop in _pieces(x, group.shape.row_length):
                self._watch(group, part, _rows(x, start, stop), _rows(y, start, stop), first_row + start)

    def _measured(self, x: Operand, y: Operand, group: Group, first_row: int, shown: str | None) -> dict[int, Tally]:
        """The errors of `y` against `x` by expert, whose first row is `first_row`; the part `shown` is watched."""
        pieces = []
        for start, stop in _pieces(x, group.shape.row_length):
            p, q = _rows(x, start, stop), _rows(y, start, stop)
            pieces.append(measure(*_numbers(p, q)))
            if self._watch is not None and shown is not None:
                self._watch(group, shown, p, q, first_row + start)
        return _by_expert(joined(pieces), x, y, group, first_row)

    def _upright(self, operand: Operand, used: int) -> tuple[Operand, int]:
        """The same numbers as rows, in the buffer from `used` on where they are transposed."""
        if not operand.transposed:
            return operand, used
        experts, k, width = operand.fields[0].shape
        size = operand.codec.block_nbytes[0]
        rows = experts * width // size // operand.parts
        nbytes = operand.fields[0].nbytes
        room = self._buffer[used : used + nbytes].reshape(rows, operand.parts, k * size)
        target = Operand(operand.codec, (room,), operand.parts)
        transcode(operand, target, None)
        return target, used + _aligned(nbytes)

    def _read(
        self, group: Group, extents: Extents, start: int, stop: int, used: int
    ) -> tuple[list[tuple[Extent, Laid]], int]:
        """One side: each extent that holds these rows, once, read into the buffer from `used` on."""
        out = []
        files = self._files[extents is group.b]
        for extent in distinct(extents, group.parts, start):
            laid = lay_extent(extent, group, start, stop, self._buffer[used:])
            for at, view in laid.pieces:
                files[at.file].readinto(at.offset, view.data)
            used += _aligned(sum(view.nbytes for _, view in laid.pieces))
            out.append((extent, laid))
        return out, used


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def distinct(extents: Extents, parts: Collection[str], row: int) -> list[Extent]:
    """The extents that hold `row` of some parts, in their order; one that zips several parts comes once."""
    found = (next(x for x in extents[p] if x.start <= row < x.stop) for p in parts)
    return list({id(x): x for x in found}.values())


def lay_extent(extent: Extent, group: Group, start: int, stop: int, buffer: Bytes) -> Laid:
    """Views into `buffer` for rows [start, stop) of one extent."""
    side = Side(extent.weight.codec, extent.transposed, len(extent.parts) > 1, ((extent,),))
    rows, k = group.shape.row_count, group.shape.row_length
    step = Step(extent.parts, rows, k, group.expert_rows, side, side, Kind.copy, Fidelity.bytes, None)
    return lay(side, Slab(0, start, stop), step, buffer)


def _laid_alike(a: list[tuple[Extent, Laid]], b: list[tuple[Extent, Laid]]) -> bool:
    """Whether both sides' bytes lie in the same order."""
    layouts = [[(x.parts, x.weight.codec, x.transposed) for x, _ in side] for side in (a, b)]
    return layouts[0] == layouts[1]


def _same_laid(a: list[tuple[Extent, Laid]], b: list[tuple[Extent, Laid]]) -> bool:
    views = ([view for _, laid in side for _, view in laid.pieces] for side in (a, b))
    return all(same_bytes(x, y) for x, y in zip(*views, strict=True))


def same_bytes(x: Bytes, y: Bytes) -> bool:
    """Whether two flat contiguous arrays of one size hold the same bytes; leaves at the first piece that differs."""
    for at in range(0, x.nbytes, PIECE_NBYTES):
        p, q = x[at : at + PIECE_NBYTES], y[at : at + PIECE_NBYTES]
        if p.nbytes % 8 == 0:
            p, q = p.view(np.uint64), q.view(np.uint64)
        if not np.array_equal(p, q):
            return False
    return True


def _of_part(side: list[tuple[Extent, Operand]], part: str) -> Operand:
    """One part's rows of one side."""
    extent, operand = next(found for found in side if part in found[0].parts)
    return _cut(operand, extent.parts.index(part))


def _cut(operand: Operand, part: int) -> Operand:
    return Operand(operand.codec, tuple(f[:, part : part + 1] for f in operand.fields), 1)


def _rows(operand: Operand, start: int, stop: int) -> Operand:
    return Operand(operand.codec, tuple(f[start:stop] for f in operand.fields), 1)


def _pieces(x: Operand, k: int) -> Iterator[tuple[int, int]]:
    count = x.fields[0].shape[0]
    step = max(1, PIECE_ELEMENTS // max(1, k))
    return ((at, min(at + step, count)) for at in range(0, count, step))


def _same_bits(x: Operand, y: Operand) -> bool:
    """Whether two operands hold the same codes and scales, in whichever packing."""
    if x.codec.format != y.codec.format:
        return False
    nbytes = sum(f.shape[-1] for f in x.fields)
    for start, stop in _pieces(x, nbytes):
        p, q = _rows(x, start, stop), _rows(y, start, stop)
        if p.codec != q.codec:
            q = _repacked(q, p)
        if not all(np.array_equal(f, g) for f, g in zip(p.fields, q.fields, strict=True)):
            return False
    return True


def _repacked(y: Operand, like: Operand) -> Operand:
    """MXFP4 rows in the packing of `like`; the nibbles move, and every scale byte stays."""
    room = tuple(np.empty(f.shape, np.uint8) for f in like.fields)
    target = Operand(like.codec, room, 1)
    if y.codec.format != MXFP4:
        raise ValueError(f"{y.codec.name} has one packing only")
    transcode(y, target, None)
    return target


def _same_numbers(x: Operand, y: Operand, k: int) -> bool:
    """Whether both decode to the same bits; leaves at the first piece that does not."""
    for start, stop in _pieces(x, k):
        p, q, _ = _numbers(_rows(x, start, stop), _rows(y, start, stop))
        if not np.array_equal(p, q):
            return False
    return True


def _by_expert(found: RowErrors, x: Operand, y: Operand, group: Group, first_row: int) -> dict[int, Tally]:
    """Rows' errors added up by expert, with the first pair that differs."""
    count, n = len(found.noise), group.expert_rows
    out = {}
    for expert in range(first_row // n, (first_row + count - 1) // n + 1):
        out[expert] = Tally.of(found, max(0, expert * n - first_row), min(count, (expert + 1) * n - first_row))
    other = np.flatnonzero(found.differing + found.zero_signs)
    if other.size:
        row = int(other[0])
        p, q, numbers = _numbers(_rows(x, row, row + 1), _rows(y, row, row + 1))
        out[(first_row + row) // n].first = (first_row + row, _first_column(p[0], q[0], numbers))
    return out


def _numbers(x: Operand, y: Operand) -> tuple[NDArray[Any], NDArray[Any], str]:
    numbers = meeting(x.codec, y.codec)
    try:
        return values(x, numbers), values(y, numbers), numbers
    except BadBlock:
        return values(x, "F32"), values(y, "F32"), "F32"


def _first_column(p: NDArray[Any], q: NDArray[Any], numbers: str) -> int:
    """Of the first pair in a row that differs, zero signs included."""
    u, v = (_floats(x, numbers) for x in (p, q))
    other = differing(u, v) | ((u == 0) & (v == 0) & (np.signbit(u) != np.signbit(v)))
    return int(np.flatnonzero(other)[0])


def _floats(x: NDArray[Any], numbers: str) -> NDArray[np.float64]:
    if numbers == "F64":
        return x
    wide = np.ascontiguousarray(x).astype(np.uint32) << np.uint32(16 if numbers == "BF16" else 0)
    with np.errstate(invalid="ignore"):
        return wide.view(np.float32).astype(np.float64)
