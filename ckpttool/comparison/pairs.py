"""What of two checkpoints belongs together: by canonical part where both are of one architecture, else by weight name.

A damaged checkpoint is matched as far as it goes: what fits its architecture by part, what does not by its shape, and
what nobody knows by its name. Headers only; no tensor data is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import lcm, prod

from ckpttool.archs import Claim, Sizes
from ckpttool.archs.joins import Extent, PartShape
from ckpttool.checkpoint import Checkpoint, extents_of
from ckpttool.codecs.formats import MXFP4, MXFP4_PAIR, READ_PACKINGS, BlockFormat, Codec, Packing
from ckpttool.tensors import Weight

Extents = Mapping[str, tuple[Extent, ...]]

SLAB_NBYTES = 8 << 20
"""What a slab reads of both sides together, where rows allow it."""

LONGEST_ROW = 1 << 18
"""Elements of a row that is read as one; a vector of all parameters is longer."""

LOW_FIRST = frozenset({Packing.compressed_tensors, Packing.quark, Packing.torchao, Packing.deepseek})
"""Packings in which two neighbouring codes of four bits share a byte, the first low."""

OPAQUE = Codec(BlockFormat("opaque", None), Packing.flat, (1,))
"""Bytes of which nothing is known but that they may be equal."""


@dataclass(frozen=True)
class Group:
    """Parts of one shape that are read together, because one side zips their rows.

    `columns` is the row length that a user knows; rows that are too long for memory are read as several.
    """

    parts: tuple[str, ...]
    shape: PartShape
    a: Extents
    b: Extents
    columns: int

    @property
    def expert_rows(self) -> int:
        """Rows of one expert; all rows where there are no experts."""
        rows = self.shape.rows
        return prod(rows[1:]) if len(rows) > 1 else self.shape.row_count

    @property
    def has_experts(self) -> bool:
        """Whether the first axis counts experts."""
        return len(self.shape.rows) > 1

    @cached_property
    def _extents(self) -> tuple[Extent, ...]:
        """Each extent once, of both sides."""
        found = {(id(x.weight), x.start, x.row): x for side in (self.a, self.b) for p in self.parts for x in side[p]}
        return tuple(found.values())

    @cached_property
    def _row_nbytes(self) -> int:
        """The most bytes that a row of all parts takes on both sides."""
        return sum(sum(_largest_rows(side, self.shape.row_length).values()) for side in (self.a, self.b))

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that both sides hold, each within one extent of either; transposed experts are whole."""
        unit = self.expert_rows if any(x.transposed for x in self._extents) else 1
        size = max(unit, SLAB_NBYTES // max(1, self._row_nbytes) // unit * unit)
        cuts = sorted({n for x in self._extents for n in (x.start, x.stop)})
        for start, stop in pairwise(cuts):
            if all(_holds(side[p], start) for side in (self.a, self.b) for p in self.parts):
                for row in range(start, stop, size):
                    yield row, min(row + size, stop)

    def slab_nbytes(self, start: int, stop: int) -> int:
        """Bytes that a slab reads."""
        return (stop - start) * self._row_nbytes

    def upright_nbytes(self, start: int, stop: int) -> int:
        """Bytes of the transposed extents of a slab, once they stand as rows."""
        k = self.shape.row_length
        found = [x for x in self._extents if x.transposed and x.start <= start < x.stop]
        return (stop - start) * sum(len(x.parts) * sum(x.weight.codec.row_nbytes(k)) for x in found)


def _largest_rows(side: Extents, k: int) -> dict[tuple[str, ...], int]:
    """Bytes of the largest row of each zip of parts; the extents of one may differ in format."""
    out: dict[tuple[str, ...], int] = {}
    for x in (x for found in side.values() for x in found):
        out[x.parts] = max(out.get(x.parts, 0), len(x.parts) * sum(x.weight.codec.row_nbytes(k)))
    return out


def _holds(extents: tuple[Extent, ...], row: int) -> bool:
    return any(x.start <= row < x.stop for x in extents)


@dataclass(frozen=True)
class Misfit:
    """The weights that claim a part and cannot be read as it, by their format or their shape.

    `shape` is the part's where only the format is in the way, else that of the first weight of another one.
    """

    weights: tuple[Weight, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Holding:
    """What one checkpoint holds: parts by their extents, what does not fit its part, and all other weights."""

    shapes: Mapping[str, PartShape]
    extents: Extents
    misfits: Mapping[str, Misfit] = field(default_factory=dict)
    loose: Mapping[str, Weight] = field(default_factory=dict)

    def format(self, name: str) -> str | None:
        """The formats of a part or loose weight, or None where it is not here."""
        if name in self.extents:
            weights = [x.weight for x in self.extents[name]]
        elif name in self.misfits:
            weights = list(self.misfits[name].weights)
        else:
            weights = [self.loose[name]] if name in self.loose else []
        return "+".join(dict.fromkeys(w.codec.name for w in weights)) or None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The canonical shape of a part; the stored one of a wrong or a loose weight; None where it is not here."""
        if name in self.extents:
            return self.shapes[name].shape
        found = self.misfits.get(name) or self.loose.get(name)
        return found.shape if found else None

    def names(self) -> Iterator[str]:
        """Parts in the architecture's order, then loose weights in theirs."""
        yield from (p for p in self.shapes if p in self.extents or p in self.misfits)
        yield from self.loose


def holdings(a: Checkpoint, b: Checkpoint) -> tuple[Holding, Holding]:
    """Both checkpoints, in the same terms; sizes that one does not state are the other's."""
    if not by_part(a, b):
        return _by_name(a), _by_name(b)
    return _by_part(a, a.sizes or b.sizes or {}), _by_part(b, b.sizes or a.sizes or {})


def by_part(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether both are of one architecture whose parts are known."""
    same = a.arch is not None and b.arch is not None and a.arch.name == b.arch.name
    return bool(same and a.dialect and b.dialect and (a.sizes or b.sizes))


def _by_name(checkpoint: Checkpoint) -> Holding:
    loose: dict[str, Weight] = {}
    for w in checkpoint.weights:
        loose.setdefault(w.name, w)
    return Holding({}, {}, {}, loose)


def _by_part(checkpoint: Checkpoint, sizes: Sizes) -> Holding:
    if checkpoint.extents:
        return Holding(checkpoint.shapes, checkpoint.extents)
    arch, dialect = checkpoint.arch, checkpoint.dialect
    assert arch is not None and dialect is not None
    shapes = arch.shapes(sizes)
    claims = {c.name: c for c in dialect.expand(sizes)}
    good: dict[str, Weight] = {}
    wrong: dict[str, list[Weight]] = {}
    loose: dict[str, Weight] = {}
    for w in checkpoint.weights:
        claim = claims.get(w.name)
        if claim is None:
            loose.setdefault(w.name, w)
        elif _fits(w, claim, shapes):
            good.setdefault(w.name, w)
        else:
            for part in claim.join.parts:
                wrong.setdefault(part, []).append(w)
    extents = extents_of(good.values(), claims.values(), shapes)
    misfits = {p: _misfit(p, found, claims, shapes) for p, found in wrong.items() if p not in extents}
    return Holding(shapes, extents, misfits, loose)


def _misfit(part: str, found: list[Weight], claims: Mapping[str, Claim], shapes: Mapping[str, PartShape]) -> Misfit:
    odd = next((w for w in found if not _is_shaped(w, claims[w.name], shapes)), None)
    return Misfit(tuple(found), odd.shape if odd else shapes[part].shape)


def _is_shaped(w: Weight, claim: Claim, shapes: Mapping[str, PartShape]) -> bool:
    """Whether a weight has the shape of the parts that its name claims; ggml drops axes of length 1."""
    wanted = claim.join.stored_shape(shapes)
    return tuple(n for n in w.shape if n != 1) == tuple(n for n in wanted if n != 1)


def _fits(w: Weight, claim: Claim, shapes: Mapping[str, PartShape]) -> bool:
    """Whether a weight can be read as the parts that its name claims."""
    if not _is_shaped(w, claim, shapes):
        return False
    k = shapes[claim.join.parts[0]].row_length
    return is_rows(w, k) and not (claim.join.transposed and not w.codec.is_plain)


def is_rows(w: Weight, k: int) -> bool:
    """Whether the stored tensors are whole rows of `k` elements in this codec and nothing else."""
    block = w.codec.format.block
    if w.codec.packing not in READ_PACKINGS or not k or not block or k % block:
        return False
    each, rows = w.codec.row_nbytes(k), w.parameters // k
    return [rows * n for n in each] == [t.nbytes for t in w.stored]


def groups(a: Holding, b: Holding) -> Iterator[Group]:
    """What can be compared by its data, in groups that are read once."""
    done = set[str]()
    for part in a.extents:
        if part in done or not _comparable(a, b, part):
            continue
        zips = {x.parts for side in (a, b) for x in side.extents[part]}
        parts = tuple(p for p in max(zips, key=len) if _comparable(a, b, p))
        done.update(parts)
        ours, theirs = ({p: x.extents[p] for p in parts} for x in (a, b))
        yield Group(parts, a.shapes[part], ours, theirs, a.shapes[part].row_length)
    for part, misfit in a.misfits.items():
        if part in b.misfits:
            yield from _opaque_group(part, misfit.weights, b.misfits[part].weights)
    for name, w in a.loose.items():
        other = b.loose.get(name)
        if other is not None and other.shape == w.shape:
            yield from _loose_groups(name, w, other)


def _comparable(a: Holding, b: Holding, part: str) -> bool:
    return part in a.extents and part in b.extents and a.shapes[part].shape == b.shapes[part].shape


def _loose_groups(name: str, a: Weight, b: Weight) -> Iterator[Group]:
    """One group of rows along the last axis, or where the bytes are no rows, of bytes."""
    columns = a.shape[-1] if a.shape else 1
    a, b = _as_pair(a), _as_pair(b)
    if is_rows(a, columns) and is_rows(b, columns):
        k = _short(columns, lcm(a.codec.format.block, b.codec.format.block))
        yield _rows_group(name, PartShape((a.parameters // k,), k), a, b, columns)
    else:
        yield from _opaque_group(name, (a,), (b,))


def _opaque_group(name: str, a: tuple[Weight, ...], b: tuple[Weight, ...]) -> Iterator[Group]:
    """The bytes of weights that are stored alike, one after the other: equal, or nobody here can tell how far apart."""
    if [w.name for w in a] == [w.name for w in b] and all(map(alike, a, b)):
        nbytes = sum(w.nbytes for w in a)
        ours, theirs = ({name: _opaque(name, weights)} for weights in (a, b))
        yield Group((name,), PartShape((nbytes,), 1), ours, theirs, 1)


def _opaque(name: str, weights: tuple[Weight, ...]) -> tuple[Extent, ...]:
    out: list[Extent] = []
    for t in (t for w in weights for t in w.stored if t.nbytes):
        start = out[-1].stop if out else 0
        weight = Weight(name, OPAQUE, (t.nbytes, 1), (t,))
        out.append(Extent(weight, (name,), start, start + t.nbytes, 0, False))
    return tuple(out)


def _as_pair(w: Weight) -> Weight:
    """MXFP4 of compressed-tensors, Quark, torchao and DeepSeek as a pair, whose bytes it has under other names."""
    if w.codec.format == MXFP4 and w.codec.packing in LOW_FIRST and len(w.stored) == len(MXFP4_PAIR.block_nbytes):
        return replace(w, codec=MXFP4_PAIR)
    return w


def _short(columns: int, block: int) -> int:
    """`columns`, or where a row of them is too long for memory, the longest piece that divides it into whole blocks."""
    if columns <= LONGEST_ROW:
        return columns
    return next(n for n in range(LONGEST_ROW // block * block, 0, -block) if columns % n == 0)


def _rows_group(name: str, shape: PartShape, a: Weight, b: Weight, columns: int) -> Group:
    ours, theirs = ({name: (Extent(w, (name,), 0, shape.row_count, 0, False),)} for w in (a, b))
    return Group((name,), shape, ours, theirs, columns)


def alike(a: Weight, b: Weight) -> bool:
    """Whether two weights are stored in tensors of the same kinds, so that equal bytes mean equal weights."""
    rows = ([(t.name.removeprefix(w.name), t.dtype, t.shape) for t in w.stored] for w in (a, b))
    return a.codec == b.codec and next(rows) == next(rows)
