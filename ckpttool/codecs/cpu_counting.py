"""The compiled kernels behind `counting`.

Where a piece of bytes has few values between its least and its largest, as scales have, zeros aside, it is compared
with each of them, a register at a time. Other bytes go to tables of counts, four by turns, so that none need wait for
the last.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numpy.typing import NDArray

from ckpttool.codecs.counting import BLOCK, MASKS, TOPS, U8, Counts
from ckpttool.codecs.cpu_jit import inlined, kernel
from ckpttool.codecs.cpu_lanes import BITS8, BITS64, Builder, Value, constant, lane_op, load, peek, poke, splat

TABLES: Final = 4
_TABLE: Final = 256 * 8
"""Bytes of a table."""


@inlined
def _bump(table: int, index: int) -> None:
    at = table + 8 * index
    poke(BITS64, at, peek(BITS64, at) + 1)


VECTOR: Final = 64
PIECE: Final = 32 * VECTOR
"""Bytes that are looked at together; a lane of their count stays below 256."""
NARROW: Final = 40
"""Values for which comparing takes less than the tables do: twice that break even with AVX-512, as many with AVX2."""


def _vectors(b: Builder, address: Value) -> list[Any]:
    at = [b.add(address, ir.Constant(ir.IntType(64), i)) for i in range(0, PIECE, VECTOR)]
    return [load(b, a, 8, VECTOR) for a in at]


@lane_op(types.int64)
def _extent(b: Builder, bits: int, address: Value) -> Value:
    """Of a piece the least byte but 0, less 1, and 256 times the largest; 255 and 0 where all are 0."""
    first, *others = _vectors(b, address)
    least, most = first - 1, first
    for v in others:
        least, most = least.smaller(v - 1), most.larger(v)
    i64 = ir.IntType(64)
    low, high = (b.zext(x, i64) for x in (least.reduce("umin"), most.reduce("umax")))
    return b.or_(low, b.shl(high, ir.Constant(i64, 8)))


@lane_op(types.int64)
def _times(b: Builder, bits: int, address: Value, byte: Value) -> Value:
    """How often a byte occurs in a piece."""
    wanted, count = splat(b, byte, 8, VECTOR), constant(b, 0, 8, VECTOR)
    for v in _vectors(b, address):
        count = (count + 1).where(v.equals(wanted), count)
    return count.resize(64).reduce("add")


@inlined
def _count_some(unit: Any, source: int, stride: int, count: int, tables: int) -> None:
    """`count` bytes, `stride` apart, into four tables of 256 int64."""
    whole = count // 4 * 4
    for i in range(0, whole, 4):
        at = source + i * stride
        _bump(tables, peek(unit, at))
        _bump(tables + _TABLE, peek(unit, at + stride))
        _bump(tables + 2 * _TABLE, peek(unit, at + 2 * stride))
        _bump(tables + 3 * _TABLE, peek(unit, at + 3 * stride))
    for i in range(whole, count):
        _bump(tables, peek(unit, source + i * stride))


@inlined
def _count_piece(unit: Any, source: int, tables: int) -> None:
    """A piece of bytes that lie one after the other."""
    extent = _extent(source)
    low, high = (extent & 255) + 1, extent >> 8
    if high - low >= NARROW:
        _count_some(unit, source, 1, PIECE, tables)
        return
    zeros = PIECE
    for byte in range(low, high + 1):
        found = _times(source, byte)
        zeros -= found
        poke(BITS64, tables + 8 * byte, peek(BITS64, tables + 8 * byte) + found)
    poke(BITS64, tables, peek(BITS64, tables) + zeros)


@inlined
def _take(tables: int, counts: int) -> None:
    """The four tables' sum into `counts`; they are 0 again."""
    for i in range(0, _TABLE, 8):
        total = 0
        for at in range(tables + i, tables + TABLES * _TABLE, _TABLE):
            total += peek(BITS64, at)
            poke(BITS64, at, 0)
        poke(BITS64, counts + i, total)


@kernel
def _count_runs(
    unit: Any, source: int, stride: int, count: int, first: int, run: int, tables: int, counts: int
) -> None:
    """`count` bytes, `stride` apart, in runs, `first` of the first and then `run` each: 256 int64 for each run.

    `tables` are four of 256 int64, all 0, and left so.
    """
    left, length = count, first
    while left > 0:
        length = min(length, left)
        done = 0
        if stride == 1:
            while done + PIECE <= length:
                _count_piece(unit, source + done, tables)
                done += PIECE
        _count_some(unit, source + done * stride, stride, length - done, tables)
        _take(tables, counts)
        source += length * stride
        left -= length
        length = run
        counts += _TABLE


@kernel
def _count_blocks(
    unit: Any, codes: int, step: int, scales: int, stride: int, blocks: int, tables: int, luts: int, largest: int
) -> None:
    """Blocks of 16 bytes; `luts` are MASKS and TOPS, `largest` is [256, 8] of int64."""
    for i in range(blocks):
        at = codes + i * step
        seen = 0
        for j in range(0, BLOCK, 4):
            a, b = peek(unit, at + j), peek(unit, at + j + 1)
            c, d = peek(unit, at + j + 2), peek(unit, at + j + 3)
            seen |= peek(unit, luts + a) | peek(unit, luts + b) | peek(unit, luts + c) | peek(unit, luts + d)
            _bump(tables, a)
            _bump(tables + _TABLE, b)
            _bump(tables + 2 * _TABLE, c)
            _bump(tables + 3 * _TABLE, d)
        _bump(largest, peek(unit, scales + i * stride) * 8 + peek(unit, luts + 256 + seen))


def _address(a: NDArray[Any]) -> int:
    return int(a.__array_interface__["data"][0])


def count_runs(data: U8, first: int, run: int) -> Counts:
    """See `counting.count_runs`."""
    counts = np.zeros((1 + -(-max(0, len(data) - first) // run), 256), np.int64)
    tables = np.zeros((TABLES, 256), np.int64)
    place = (_address(data), data.strides[0], len(data))
    _count_runs(BITS8, *place, first, run, _address(tables), _address(counts))
    return counts


_LUTS: Final = np.concatenate([MASKS, TOPS])


def count_blocks(codes: U8, scales: U8) -> tuple[Counts, Counts]:
    """See `counting.count_blocks`."""
    tables, largest = np.zeros((TABLES, 256), np.int64), np.zeros((256, 8), np.int64)
    if codes.size:
        _count_blocks(
            BITS8, _address(codes), codes.strides[0], _address(scales), scales.strides[0], len(scales),
            _address(tables), _address(_LUTS), _address(largest),
        )  # fmt: skip
    return tables.sum(0), largest
