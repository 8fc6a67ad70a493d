"""The compiled kernels behind `cpu` for plain numbers and Q8_0. See `cpu_kernels` for their manners."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import plain
from ckpttool.codecs.cpu_exact import BF16, DTYPES, F16, F32, INF_BITS, raise_found
from ckpttool.codecs.cpu_jit import inlined, kernel, place
from ckpttool.codecs.cpu_lanes import BITS8, BITS16, BITS64, peek, poke, width
from ckpttool.codecs.cpu_plain import (
    WIDTH,
    copy_f32,
    maximum_f32,
    narrow_bf16,
    narrow_f16,
    q8_0_decode,
    q8_0_encode,
    rows_of_tile,
    tile_of_rows,
    widen_bf16,
    widen_f16,
)
from ckpttool.codecs.plain import BadValue
from ckpttool.codecs.reference import U8

Bits = NDArray[Any]
Ints = tuple[int, ...]

_LOST: Final = 1 << 32
SQUARE: Final = 256
"""Columns that are transposed before the next: a cache line of each row stays in the first-level cache."""


@inlined
def _widen(source: int, dtype: int, out: int) -> None:
    """32 numbers to F32."""
    if dtype == BF16:
        widen_bf16(source, out)
    elif dtype == F16:
        widen_f16(source, out)
    else:
        copy_f32(source, out)


@inlined
def _narrow(source: int, out: int, dtype: int) -> int:
    """32 F32 to numbers; the count of changes, and `_LOST` where one became infinite."""
    if dtype == BF16:
        return narrow_bf16(source, out)
    if dtype == F16:
        return narrow_f16(source, out)
    copy_f32(source, out)
    return 0


@inlined
def _copy_bytes(source: int, out: int, count: int) -> None:
    for i in range(count):
        poke(BITS8, out + i, peek(BITS8, source + i))


@kernel
def _convert(
    unit: Any, x: Ints, dtype: int, out: Ints, out_dtype: int, rows: int, parts: int, k: int, scratch: Ints
) -> int:
    """Changes, or -1 - (flat index of the first 32 numbers in which one became infinite)."""
    wide, source_end, out_end = scratch
    size, out_size = 4 if dtype == F32 else 2, 4 if out_dtype == F32 else 2
    changed = 0
    for r in range(rows):
        for p in range(parts):
            source, target = x[0] + r * x[1] + p * x[2], out[0] + r * out[1] + p * out[2]
            for start in range(0, k, WIDTH):
                count = min(WIDTH, k - start)
                here, there = source + start * size, target + start * out_size
                if count < WIDTH:
                    _copy_bytes(here, source_end, count * size)
                    here, there = source_end, out_end
                _widen(here, dtype, wide)
                result = _narrow(wide, there, out_dtype)
                if result >= _LOST:
                    return -1 - ((r * parts + p) * k + start)
                changed += result
                if count < WIDTH:
                    _copy_bytes(out_end, target + start * out_size, count * out_size)
    return changed


def _first_lost(x: Bits, dtype: str, out_dtype: str, start: int) -> BadValue:
    """The error for numbers of which one, from flat index `start` on, becomes infinite."""
    parts, k = x.shape[1:]
    row = x[start // (parts * k), start // k % parts, start % k :]
    try:
        plain.convert(row[:WIDTH], dtype, out_dtype)
    except BadValue as error:
        return BadValue(out_dtype, start + error.index)
    raise AssertionError("a kernel and the reference disagree")


def convert(x: Bits, dtype: str, out: Bits, out_dtype: str) -> int:
    """See `cpu.convert`; both are [R, p, K]."""
    if dtype == out_dtype:
        out[...] = x
        return 0
    scratch = np.zeros(3 * WIDTH, np.uint32)
    start = scratch.ctypes.data
    result = _convert(
        BITS8, place(x, 2), DTYPES[dtype], place(out, 2), DTYPES[out_dtype], *x.shape,
        (start, start + 4 * WIDTH, start + 8 * WIDTH),
    )  # fmt: skip
    if result < 0:
        raise _first_lost(x, dtype, out_dtype, -1 - result)
    return int(result)


@kernel
def _quantize_q8_0(unit: Any, x: Ints, dtype: int, rows: int, parts: int, groups: int, out: Ints, wide: int) -> int:
    """-1, or 8 times the flat index of the first bad block and its kind (as `cpu_exact.KINDS`)."""
    size = 4 if dtype == F32 else 2
    for r in range(rows):
        for p in range(parts):
            source, target = x[0] + r * x[1] + p * x[2], out[0] + r * out[1] + p * out[2]
            for g in range(groups):
                _widen(source + g * 32 * size, dtype, wide)
                amax = maximum_f32(wide)
                kind = -1
                if amax >= INF_BITS:
                    kind = 0 if amax > INF_BITS else 1
                elif q8_0_encode(wide, amax, target + g * out[3]) >= 0x7C00:
                    kind = 2
                if kind >= 0:
                    return ((r * parts + p) * groups + g) * 8 + kind
    return -1


def quantize_q8_0(x: Bits, dtype: str, out: U8) -> None:
    """See `cpu.quantize_q8_0`."""
    rows, parts, groups, _ = out.shape
    scratch = np.empty(WIDTH, np.uint32)
    found = _quantize_q8_0(BITS8, place(x, 2), DTYPES[dtype], rows, parts, groups, place(out, 3), scratch.ctypes.data)
    raise_found(found, parts, groups)


@kernel
def _dequantize_q8_0(
    unit: Any, blocks: Ints, rows: int, parts: int, groups: int, out: Ints, out_dtype: int, wide: int
) -> int:
    """How many numbers were rounded, or -1 - (8 times the flat index of the first bad block and its kind)."""
    size = 4 if out_dtype == F32 else 2
    changed = 0
    for r in range(rows):
        for p in range(parts):
            source, target = blocks[0] + r * blocks[1] + p * blocks[2], out[0] + r * out[1] + p * out[2]
            for g in range(groups):
                here = source + g * blocks[3]
                kind = -1
                if (peek(BITS16, here) & 0x7C00) == 0x7C00:
                    kind = 3
                else:
                    q8_0_decode(here, wide)
                    result = _narrow(wide, target + g * 32 * size, out_dtype)
                    if result >= _LOST:
                        kind = 2
                    changed += result
                if kind >= 0:
                    return -1 - (((r * parts + p) * groups + g) * 8 + kind)
    return changed


def dequantize_q8_0(blocks: U8, out: Bits, out_dtype: str) -> int:
    """See `cpu.dequantize_q8_0`."""
    rows, parts, groups, _ = blocks.shape
    scratch = np.empty(WIDTH, np.uint32)
    result = int(
        _dequantize_q8_0(
            BITS8, place(blocks, 3), rows, parts, groups, place(out, 2), DTYPES[out_dtype], scratch.ctypes.data
        )
    )
    if result < 0:
        raise_found(-1 - result, parts, groups)
    return result


@inlined
def row_addresses(first: int, last: int, parts: int, rows: Ints, out: int) -> None:
    """Write the addresses of the rows that columns `first` to `last` are, as int64."""
    for n in range(first, last):
        r = n // parts
        poke(BITS64, out + 8 * (n - first), rows[0] + r * rows[1] + (n - r * parts) * rows[2])


@kernel
def _transpose(
    unit: Any, columns: Ints, rows: Ints, count: int, parts: int, k: int, to_rows: int, addresses: int
) -> None:
    """Columns [K, N] (address, stride) to a rows view [R, p, K] (address, two strides), or back."""
    bits = width(unit)
    size, tile = bits // 8, 128 // bits
    for first in range(0, count, SQUARE):
        last = min(count, first + SQUARE)
        row_addresses(first, last, parts, rows, addresses)
        for top in range(0, k, tile):
            for n in range(first, last, tile):
                of = addresses + 8 * (n - first)
                column, at = columns[0] + top * columns[1] + n * size, top * size
                if n + tile <= last and top + tile <= k:
                    if to_rows:
                        rows_of_tile(unit, column, columns[1], of, at)
                    else:
                        tile_of_rows(unit, of, at, column, columns[1])
                    continue
                for i in range(min(tile, last - n)):
                    for j in range(min(tile, k - top)):
                        here, there = column + j * columns[1] + i * size, peek(BITS64, of + 8 * i) + at + j * size
                        if to_rows:
                            poke(unit, there, peek(unit, here))
                        else:
                            poke(unit, here, peek(unit, there))


def _transposed(columns: Bits, rows: Bits, to_rows: int) -> None:
    addresses = np.empty(SQUARE, np.int64)
    unit = columns.dtype.type(0)
    parts, k = rows.shape[1:]
    _transpose(unit, place(columns, 1), place(rows, 2), columns.shape[1], parts, k, to_rows, addresses.ctypes.data)


def transpose_to_rows(x: Bits, out: Bits) -> None:
    """See `cpu.transpose_to_rows`."""
    _transposed(x, out, 1)


def transpose_to_columns(x: Bits, out: Bits) -> None:
    """See `cpu.transpose_to_columns`."""
    _transposed(out, x, 0)
