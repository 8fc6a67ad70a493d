"""What was made of the reference, held against the candidate: which blocks or numbers are others, and in what.

A unit is a block of the candidate's format, or a number where it has none. All rows are upright and of one part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.measure import differing, measure
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Operand
from ckpttool.codecs.values import OTHERS, Numbers, values
from ckpttool.validator.recipes import Maker, remake

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Misses:
    """Where the candidate is not what was made of the reference.

    `rows` are their numbers, `units` bool [len(rows), G] which of their units are others, `needless` those of these
    whose values the candidate's format could have held, and `gross` those that no rule whatever makes (`_gross`).
    `made` is what was made of these rows; None where some cannot be made.
    """

    rows: NDArray[np.intp]
    units: Flags
    needless: Flags
    gross: Flags
    made: Operand | None

    @property
    def flags(self) -> tuple[Flags, Flags, Flags]:
        """`units`, `needless` and `gross`."""
        return self.units, self.needless, self.gross


def misses(x: Operand, y: Operand, maker: Maker, *, literal: bool) -> Misses | None:
    """Where `y` is not what `maker` makes of `x`; None where it is.

    A unit that holds the reference's values in other bits is no miss, unless it is meant `literal`ly.
    """
    try:
        made = remake(x, y.codec, maker)
    except BadBlock:
        odd = _any(~np.isfinite(numbers(x)), unit_count(x) * x.codec.format.block // _step(x, y))
        return _apart(x, y, maker, odd, literal) if odd.any() else _halved(x, y, maker, literal)
    if all(np.array_equal(f, g) for f, g in zip(made.fields, y.fields, strict=True)):
        return None
    other = unlike(made, y)
    rows = np.flatnonzero(other.any(-1))
    return _judged(rows_of(x, rows), rows_of(y, rows), rows_of(made, rows), rows, other[rows], literal)


def _step(x: Operand, y: Operand) -> int:
    """Elements that are whole blocks on both sides."""
    return max(x.codec.format.block, y.codec.format.block)


def _apart(x: Operand, y: Operand, maker: Maker, odd: Flags, literal: bool) -> Misses | None:
    """As `misses`; `odd` steps hold what is not finite, of which few formats can be made: the rest is without them."""
    step = _step(x, y)
    gone = np.repeat(odd, step // x.codec.format.block, 1)
    sizes = zip(x.fields, x.codec.block_nbytes, strict=True)
    clean = tuple(np.where(np.repeat(gone, n, 1)[:, None], np.uint8(0), f) for f, n in sizes)
    rest = misses(Operand(x.codec, clean, 1), y, maker, literal=literal)
    apart = np.repeat(odd, step // y.codec.format.block, 1)
    units, needless, gross = (np.zeros(apart.shape, np.bool_) for _ in range(3))
    if rest is not None:
        for flags, found in zip((units, needless, gross), rest.flags, strict=True):
            flags[rest.rows] = found & ~apart[rest.rows]
    units |= apart & other_values(x, y)
    rows = np.flatnonzero(units.any(-1))
    return Misses(rows, units[rows], needless[rows], gross[rows], None) if rows.size else None


def _halved(x: Operand, y: Operand, maker: Maker, literal: bool) -> Misses | None:
    """Where something cannot be made at all: what that is, by halves of rows, and then of one row."""
    count = x.fields[0].shape[0]
    if count > 1:
        half = count // 2
        found = [
            (start, misses(_slice(x, start, stop), _slice(y, start, stop), maker, literal=literal))
            for start, stop in ((0, half), (half, count))
        ]
        some = [(start, of) for start, of in found if of is not None]
        if not some:
            return None
        rows = np.concatenate([start + of.rows for start, of in some])
        units, needless, gross = (np.concatenate(flags) for flags in zip(*(of.flags for _, of in some), strict=True))
        return Misses(rows, units, needless, gross, None)
    step = _step(x, y)
    whole = unit_count(x) * x.codec.format.block // step
    if whole == 1:
        return _judged(x, y, None, np.zeros(1, np.intp), np.ones((1, unit_count(y)), np.bool_), literal)
    half = whole // 2 * step
    parts = [(0, half), (half, whole * step)]
    sides = [misses(_columns(x, *part), _columns(y, *part), maker, literal=literal) for part in parts]
    if sides == [None, None]:
        return None
    none = [np.zeros((1, (stop - start) // y.codec.format.block), np.bool_) for start, stop in parts]
    each = [of.flags if of else (n, n, n) for of, n in zip(sides, none, strict=True)]
    units, needless, gross = (np.concatenate(flags, 1) for flags in zip(*each, strict=True))
    return Misses(np.zeros(1, np.intp), units, needless, gross, None)


def _judged(
    x: Operand, y: Operand, made: Operand | None, rows: NDArray[np.intp], units: Flags, literal: bool
) -> Misses | None:
    """Of rows with other bits: those units that count, and of these the ones that nothing excuses."""
    none = np.zeros_like(units)
    if literal:
        return Misses(rows, units, units, none, made)
    wanted, held = numbers(x), numbers(y)
    units = units & _differ(wanted, held, units.shape[1])
    kept = units.any(-1)
    if not kept.any():
        return None
    rows, units, wanted, held, none = rows[kept], units[kept], wanted[kept], held[kept], none[kept]
    if made is None:
        return Misses(rows, units, none, none, None)
    made = rows_of(made, np.flatnonzero(kept))
    nearest = numbers(made)
    needless = units & ~_differ(wanted, nearest, units.shape[1])
    return Misses(
        rows, units, needless, units & ~needless & _gross(wanted, rows_of(y, np.flatnonzero(kept)), made), made
    )


def _gross(wanted: Numbers, y: Operand, made: Operand) -> Flags:
    """What no rule makes of `wanted`, whichever it is, as flags that broadcast to the units of `y`.

    A plain number is one of the two that enclose what is wanted. A row of blocks is nearer to it than zeros are, where
    a rule that is known makes it so.
    """
    held, nearest = numbers(y), numbers(made)
    if y.codec.is_plain:
        beside = np.abs(_ranks(y) - _ranks(made)) <= 1
        across = (held > wanted) != (nearest > wanted)
        return np.asarray(~(beside & across))
    theirs, ours = (measure(wanted.view(np.uint32), x.view(np.uint32), "F32") for x in (held, nearest))
    return np.asarray((theirs.noise >= theirs.signal) & (ours.noise < ours.signal))[:, None]


def _ranks(rows: Operand) -> NDArray[np.int64]:
    """Plain numbers counted from 0 on, up and down: neighbours are one apart."""
    bits = rows.elements[:, 0].astype(np.int64)
    sign = 1 << (8 * rows.codec.block_nbytes[0] - 1)
    return np.where(bits & sign, sign - bits, bits)


def unlike(made: Operand, y: Operand) -> Flags:
    """bool [R, G]: units whose bits differ, of two operands in one codec."""
    count = unit_count(y)
    out: Flags = np.zeros((y.fields[0].shape[0], count), np.bool_)
    for a, b in zip(made.fields, y.fields, strict=True):
        out |= _any(a[:, 0] != b[:, 0], count)
    return out


def _any(flags: Flags, units: int) -> Flags:
    """bool [R, G]: units of which any of the flags [R, N] is set."""
    each = flags.shape[1] // units
    wide = flags.view(np.uint64) if each % 8 == 0 else flags
    return np.asarray(wide.reshape(len(flags), units, -1).any(-1))


def unit_count(rows: Operand) -> int:
    """Units of one row."""
    return int(rows.fields[0].shape[-1]) // rows.codec.block_nbytes[0]


def rows_of(rows: Operand, which: NDArray[np.intp]) -> Operand:
    """Some of the rows."""
    return Operand(rows.codec, tuple(f[which] for f in rows.fields), 1)


def _slice(rows: Operand, start: int, stop: int) -> Operand:
    return Operand(rows.codec, tuple(f[start:stop] for f in rows.fields), 1)


def _columns(rows: Operand, start: int, stop: int) -> Operand:
    """Some columns of each row, in whole blocks."""
    block = rows.codec.format.block
    sizes = zip(rows.fields, rows.codec.block_nbytes, strict=True)
    return Operand(rows.codec, tuple(f[..., start // block * n : stop // block * n] for f, n in sizes), 1)


def numbers(rows: Operand) -> Numbers:
    """[R, K], float32; float64 of what that may not hold."""
    if rows.codec.name in OTHERS:
        return values(rows, "F64")
    out: Numbers = np.ascontiguousarray(values(rows, "F32")).view(np.float32)
    return out


def other_values(x: Operand, y: Operand) -> Flags:
    """bool [R, G]: units of `y` that hold other values than `x` does."""
    return _differ(numbers(x), numbers(y), unit_count(y))


def _differ(a: Numbers, b: Numbers, units: int) -> Flags:
    return _any(differing(a, b), units)
