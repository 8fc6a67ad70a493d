"""What has to be done to each part, and in which slabs: pure arithmetic on extents.

A step is one zip of parts (gate and up where either side interleaves them; else one part) that goes from its source
weights to its target weights. Steps are independent. A slab is a range of a step's rows: one byte range in each stored
tensor on either side, known before anything is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import prod

from ckpttool.archs.joins import Extent, PartShape
from ckpttool.codecs.formats import MXFP4, Codec, Recipe
from ckpttool.tensors import StoredTensor

SLAB_NBYTES = 8 << 20
"""What a slab reads and writes together, where rows allow it: small enough to stay in the cache between stages."""

REMOTE_SLABS = 4
"""As many times that from a remote end: a request costs a round trip whatever it brings."""

HOLDS = {"F32": ("F32",), "F16": ("F16", "F32"), "BF16": ("BF16", "F32"), "MXFP4": ("BF16", "F32"), "Q8_0": ("F32",)}
"""Which plain formats hold every value of a format (MXFP4's few exceptions stop the run)."""


class Kind(StrEnum):
    """What a step does to the bits."""

    copy = "copy"
    widen = "widen"
    narrow = "narrow"
    repack = "repack"
    dequantize = "dequantize"
    quantize = "quantize"


class Fidelity(StrEnum):
    """What survives: every byte, every decoded value, or neither."""

    bytes = "bytes"
    values = "values"
    lossy = "lossy"


def kind_of(source: Codec, target: Codec) -> tuple[Kind, Fidelity] | None:
    """What leads from one codec to the other and what it promises; None where nothing may.

    That is: quantizing what is quantized already, and reading a format that nobody here can decode.
    """
    if source == target:
        return Kind.copy, Fidelity.bytes
    if source.format == target.format:
        return Kind.repack, Fidelity.bytes
    if not source.readable:
        return None
    if target.is_plain:
        held = target.name in HOLDS.get(source.name, ("F32",))
        fidelity = Fidelity.values if held else Fidelity.lossy
        if not source.is_plain:
            return Kind.dequantize, fidelity
        return (Kind.widen if held else Kind.narrow), fidelity
    return (Kind.quantize, Fidelity.lossy) if source.is_plain else None


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`nbytes` bytes from `offset` on in `file`, all of one stored tensor."""

    file: str
    offset: int
    nbytes: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Side:
    """How one checkpoint lays a step's parts: one list of extents if they are zipped in it, else one for each part."""

    codec: Codec
    transposed: bool
    zipped: bool
    extents: tuple[tuple[Extent, ...], ...]

    def ranges(self, start: int, stop: int, row_length: int) -> list[list[ByteRange]]:
        """The bytes of rows [start, stop): for each list of extents, one range in each stored tensor."""
        return [_range(found, start, stop, self.codec, row_length) for found in self.extents]


def _range(extents: tuple[Extent, ...], start: int, stop: int, codec: Codec, row_length: int) -> list[ByteRange]:
    extent = next(x for x in extents if x.start <= start and stop <= x.stop)
    parts = len(extent.parts)
    first = extent.row + (start - extent.start) * parts
    rows = (stop - start) * parts
    return [
        ByteRange(t.file, t.offset + first * nbytes, rows * nbytes, t.name)
        for t, nbytes in zip(extent.weight.stored, codec.row_nbytes(row_length), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows [start, stop) of step number `step`."""

    step: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Step:
    """One zip of `parts`, from `source` to `target`.

    Each part is `rows` x `row_length`; `expert_rows` rows make one expert (all of them where there are none).
    """

    parts: tuple[str, ...]
    rows: int
    row_length: int
    expert_rows: int
    source: Side
    target: Side
    kind: Kind
    fidelity: Fidelity
    recipe: Recipe | None

    @property
    def elements(self) -> int:
        """Logical elements that the step moves."""
        return len(self.parts) * self.rows * self.row_length

    @property
    def target_nbytes(self) -> int:
        """Bytes that the step writes."""
        return len(self.parts) * self.rows * sum(self.target.codec.row_nbytes(self.row_length))

    @property
    def source_nbytes(self) -> int:
        """Bytes that the step reads."""
        return len(self.parts) * self.rows * sum(self.source.codec.row_nbytes(self.row_length))

    @property
    def same_layout(self) -> bool:
        """Whether both sides lie alike, so that bytes or elements may be taken one after the other."""
        return (self.source.transposed, self.source.zipped) == (self.target.transposed, self.target.zipped)

    @property
    def _unit(self) -> int:
        """The fewest rows a slab may hold: transposed experts only have contiguous bytes as a whole."""
        return self.expert_rows if self.source.transposed or self.target.transposed else 1

    def _row_nbytes(self) -> int:
        sides = (self.source, self.target)
        return len(self.parts) * sum(sum(s.codec.row_nbytes(self.row_length)) for s in sides)

    def scratch_nbytes(self, slab: Slab) -> int:
        """What transcoding needs beside input and output: one decoded form where there is no direct way."""
        if self.kind is Kind.copy or self.kind is Kind.repack or _direct(self):
            return 0
        return (slab.stop - slab.start) * len(self.parts) * self.row_length * 8

    def slabs(self, index: int, nbytes: int) -> Iterator[Slab]:
        """The step's slabs in order, each of about `nbytes` read and written, or of the fewest rows it may hold."""
        unit = self._unit
        size = max(unit, nbytes // max(1, self._row_nbytes()) // unit * unit)
        cuts = sorted({0, self.rows} | {x.stop for s in (self.source, self.target) for e in s.extents for x in e})
        for start, stop in pairwise(cuts):
            for row in range(start, stop, size):
                yield Slab(index, row, min(row + size, stop))

    def io_nbytes(self, slab: Slab) -> int:
        """Bytes that `slab` reads and writes."""
        return (slab.stop - slab.start) * self._row_nbytes()


def slab_nbytes(*, remote: bool) -> int:
    """What a slab of a source here, or at a remote end, reads and writes together."""
    return SLAB_NBYTES * REMOTE_SLABS if remote else SLAB_NBYTES


def for_gpu(step: Step) -> bool:
    """Whether a GPU does the step: it makes, reads or permutes MXFP4. What only moves or widens stays on the host."""
    source, target = step.source.codec, step.target.codec
    if step.kind is Kind.dequantize:
        return source.format == MXFP4 and target.name in ("BF16", "F32")
    return target.format == MXFP4 and step.kind in (Kind.quantize, Kind.repack)


def target_ranges(step: Step, slab: Slab) -> list[ByteRange]:
    """Where a slab's bytes go, in the order of its CRCs: stored tensor by stored tensor, part by part."""
    ranges = step.target.ranges(slab.start, slab.stop, step.row_length)
    return [found[j] for j in range(len(ranges[0])) for found in ranges]


def _direct(step: Step) -> bool:
    """Whether one kernel leads from source to target, without a decoded form between."""
    source, target = step.source, step.target
    if source.transposed and target.transposed:
        return source.zipped == target.zipped
    if step.kind in (Kind.widen, Kind.narrow):
        return source.transposed == target.transposed
    if step.kind is Kind.dequantize:
        return source.codec.format == MXFP4 and target.codec.name in ("BF16", "F32")
    return target.codec.format == MXFP4 or not source.transposed


def make_steps(
    shapes: Mapping[str, PartShape],
    source: Mapping[str, tuple[Extent, ...]],
    target: Mapping[str, tuple[Extent, ...]],
    recipe: Recipe,
) -> list[Step]:
    """One step for each zip of parts, ordered by where the target puts it.

    Raises:
        ValueError: source and target formats that nothing leads between; the plan has ruled them out.
    """
    steps, done = [], set[str]()
    for part in target:
        if part in done:
            continue
        zips = {x.parts for x in (*source[part], *target[part])}
        parts = max(zips, key=len)
        done.update(parts)
        shape = shapes[part]
        a, b = _side(parts, source), _side(parts, target)
        way = kind_of(a.codec, b.codec)
        if way is None:
            raise ValueError(f"{part}: nothing leads from {a.codec.name} to {b.codec.name}")
        expert_rows = prod(shape.rows[1:]) if len(shape.rows) > 1 else shape.row_count
        made_by = recipe if way[0] is Kind.quantize and b.codec.format == MXFP4 else None
        steps.append(Step(parts, shape.row_count, shape.row_length, expert_rows, a, b, *way, made_by))
    return sorted(steps, key=lambda s: _first(s.target))


def _first(side: Side) -> tuple[str, int]:
    stored: StoredTensor = min(
        (x.weight.stored[0] for found in side.extents for x in found), key=lambda t: (t.file, t.offset)
    )
    row = min(x.row for found in side.extents for x in found)
    return stored.file, stored.offset + row


def _side(parts: tuple[str, ...], extents: Mapping[str, tuple[Extent, ...]]) -> Side:
    first = extents[parts[0]]
    zipped = first[0].parts == parts and len(parts) > 1
    found = (first,) if zipped else tuple(extents[p] for p in parts)
    alike = {(x.weight.codec, x.transposed) for each in found for x in each}
    if len(alike) > 1:
        raise ValueError(f"{', '.join(parts)}: stored in several ways; the plan has ruled that out")
    return Side(first[0].weight.codec, first[0].transposed, zipped, found)
