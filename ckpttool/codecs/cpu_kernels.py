"""The compiled kernels behind `cpu` for MXFP4: loops over rows, columns and blocks, around lane operations.

The functions without an underscore have `cpu`'s names and arguments (arrays, already checked) and turn them into the
integers that a kernel takes: addresses with their strides in bytes. A kernel returns -1, or 8 times the flat index of
the first bad block plus its kind. Kernels are compiled by `cpu_jit`; what they do to a block is in `cpu_mxfp4`, and in
`cpu_exact` for the odd ones.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import reference
from ckpttool.codecs.cpu_exact import (
    BEST,
    BF16,
    DTYPES,
    EVEN,
    F16,
    F32,
    FLOOR,
    RCEIL,
    dequantize_exactly,
    quantize_exactly,
    raise_found,
)
from ckpttool.codecs.cpu_jit import inlined, kernel, place
from ckpttool.codecs.cpu_lanes import BITS8, BITS64, VECTOR_BITS, lowest_bit, peek, poke, width
from ckpttool.codecs.cpu_mxfp4 import (
    block_gain,
    block_maximum,
    copy_block,
    decode_ggml,
    decode_pair,
    encode_ggml,
    encode_pair,
    ggml_of_pair,
    pair_of_ggml,
    tile_decode,
    tile_encode,
    tile_ordinary,
    tile_raise,
    tile_scales,
)
from ckpttool.codecs.cpu_plain import widen_f16, widen_f16_half
from ckpttool.codecs.cpu_plain_kernels import (
    convert,
    dequantize_q8_0,
    quantize_q8_0,
    row_addresses,
    transpose_to_columns,
    transpose_to_rows,
)
from ckpttool.codecs.formats import Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.reference import U8

__all__ = [
    "convert",
    "dequantize_columns",
    "dequantize_q8_0",
    "dequantize_rows",
    "quantize_columns",
    "quantize_q8_0",
    "quantize_rows",
    "repack",
    "transpose_to_columns",
    "transpose_to_rows",
]

Bits = NDArray[Any]
Ints = tuple[int, ...]

_RULES: Final = {ScaleRule.floor: FLOOR, ScaleRule.even: EVEN, ScaleRule.rceil: RCEIL, ScaleRule.best: BEST}
_TIES: Final = {TieRule.even: 0, TieRule.away: 1, TieRule.zero: 2}
_UNITS: Final = {"BF16": np.uint16(0), "F16": np.uint32(0), "F32": np.uint32(0)}
_LEVELS: Final = (8, 20, 26, 30, 34, 38, 42)
"""The seven thresholds as `cpu_mxfp4` levels: four to a doubling, twice that with the values between."""
CHUNK: Final = 64
"""Blocks of a row whose candidates for a higher scale are bits of one int64; F16 is widened by as many."""
WIDE: Final = 256
"""Columns worked on before the next block of rows, so that output lines stay in the second-level cache."""
_TABLE: Final = np.ascontiguousarray(reference.decode_table()).view(np.uint32)


def _how(recipe: Recipe, packing: Packing, unit: Any) -> tuple[Ints, Ints]:
    """(rule, bump, ties, dropped code, ggml) and the seven limits of `cpu_mxfp4`, for a unit's bits.

    `bump` carries a maximum to the next exponent: from a significand of 1.75 (even), above 1.5 (rceil, whose F32
    quotient max / 6 exceeds a power of two exactly there). A limit is the highest level that does not get its code: the
    threshold's own, or the one below where ties go up.
    """
    mantissa = unit.dtype.itemsize * 8 - 9
    rule, ties = _RULES[recipe.scale], _TIES[recipe.ties]
    bump = {EVEN: 1 << (mantissa - 2), RCEIL: (1 << (mantissa - 1)) - 1}.get(rule, 0)
    limits = tuple(level - (not (ties == 2 or (ties == 0 and k % 2 == 0))) for k, level in enumerate(_LEVELS))
    dropped = 16 if recipe.keeps_negative_zero else 8
    return (rule, bump, ties, dropped, int(packing is Packing.ggml)), limits


@inlined
def _quantize_chunk(
    unit: Any, x: int, count: int, how: Ints, limits: Ints, blocks: int, b: int, scales: int, s: int
) -> int:
    """Up to 64 neighbouring blocks; first all by the rule, then those again that a higher scale may suit better.

    Only a block whose maximum has a significand above 1.75 can gain by the higher scale: up to 6 its grid is a subset
    of the other. Two passes spare the branch in the first.
    """
    rule, bump, ties, dropped, ggml = how
    bits = width(unit)
    mantissa, size = bits - 9, bits // 8
    candidates = 0
    for g in range(count):
        at = x + g * 32 * size
        amax = block_maximum(unit, at)
        scale = ((amax + bump) >> mantissa) - 2
        if scale < 3 or scale > 252:
            dtype = F32 if size == 4 else BF16
            bad = quantize_exactly(at, size, dtype, rule, ties, dropped, ggml != 0, blocks + g * b, scales + g * s)
            if bad >= 0:
                return g * 8 + bad
            continue
        if ggml:
            encode_ggml(unit, at, scale, limits, dropped, blocks + g * b)
        else:
            encode_pair(unit, at, scale, limits, dropped, blocks + g * b)
        poke(BITS8, scales + g * s, scale)
        above = (amax & ((1 << mantissa) - 1)) > (3 << (mantissa - 2)) and scale < 252
        candidates |= int(above) << g
    if rule != BEST:
        return -1
    while candidates:
        g = lowest_bit(candidates)
        candidates &= candidates - 1
        at = x + g * 32 * size
        scale = peek(BITS8, scales + g * s)
        scale += block_gain(unit, at, scale) > 0
        if ggml:
            encode_ggml(unit, at, scale, limits, dropped, blocks + g * b)
        else:
            encode_pair(unit, at, scale, limits, dropped, blocks + g * b)
        poke(BITS8, scales + g * s, scale)
    return -1


@kernel
def _quantize_rows(
    unit: Any, x: Ints, dtype: int, rows: int, parts: int, groups: int, how: Ints, limits: Ints,
    blocks: Ints, scales: Ints, scratch: int,
) -> int:  # fmt: skip
    size = 2 if dtype == F16 else width(unit) // 8
    for r in range(rows):
        for p in range(parts):
            row = x[0] + r * x[1] + p * x[2]
            block, scale = blocks[0] + r * blocks[1] + p * blocks[2], scales[0] + r * scales[1] + p * scales[2]
            for start in range(0, groups, CHUNK):
                count = min(CHUNK, groups - start)
                at = row + start * 32 * size
                if dtype == F16:
                    for g in range(count):
                        widen_f16(at + g * 64, scratch + g * 128)
                    at = scratch
                bad = _quantize_chunk(
                    unit, at, count, how, limits,
                    block + start * blocks[3], blocks[3], scale + start * scales[3], scales[3],
                )  # fmt: skip
                if bad >= 0:
                    return ((r * parts + p) * groups + start) * 8 + bad
    return -1


def quantize_rows(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """See `cpu.quantize_rows`."""
    rows, parts, groups = scales.shape
    unit = _UNITS[dtype]
    scratch = np.empty(CHUNK * 32, np.uint32)
    found = _quantize_rows(
        unit, place(x, 2), DTYPES[dtype], rows, parts, groups, *_how(recipe, packing, unit),
        place(blocks, 3), place(scales, 3), scratch.ctypes.data,
    )  # fmt: skip
    raise_found(found, parts, groups)


@inlined
def _quantize_tile(
    unit: Any, x: int, stride: int, how: Ints, limits: Ints, blocks: int, at: int, scales: int, s_at: int, byte: int
) -> int:
    """One block of each column of a tile; returns the mask of the columns that are done."""
    rule, bump, _, dropped, ggml = how
    bits = width(unit)
    ordinary = tile_scales(unit, x, stride, bump, byte)
    if rule == BEST:
        tile_raise(unit, x, stride, byte)
    tile_encode(unit, x, stride, byte, limits, dropped, 1 if ggml else 2, 16 if ggml else 1, blocks, at)
    for i in range(VECTOR_BITS // bits):
        poke(BITS8, peek(BITS64, scales + 8 * i) + s_at, peek(unit, byte + i * (bits // 8)))
    return ordinary


@kernel
def _quantize_columns(
    unit: Any, x: Ints, dtype: int, columns: int, parts: int, groups: int, how: Ints, limits: Ints,
    blocks: Ints, scales: Ints, scratch: Ints,
) -> int:  # fmt: skip
    block_of, scale_of, byte, wide = scratch
    rule, _, ties, dropped, ggml = how
    bits = width(unit)
    lanes = VECTOR_BITS // bits
    size = 2 if dtype == F16 else bits // 8
    every = (1 << lanes) - 1
    worst = -1
    for first in range(0, columns, WIDE):
        last = min(columns, first + WIDE)
        row_addresses(first, last, parts, blocks, block_of)
        row_addresses(first, last, parts, scales, scale_of)
        for g in range(groups):
            for n in range(first, last, lanes):
                tile, stride = x[0] + g * 32 * x[1] + n * size, x[1]
                of, scale = block_of + 8 * (n - first), scale_of + 8 * (n - first)
                at, s_at = g * blocks[3], g * scales[3]
                done = 0
                if n + lanes <= last:
                    here, step = tile, stride
                    if dtype == F16:
                        here, step = wide, lanes * 4
                        for k in range(32):
                            widen_f16_half(tile + k * stride, wide + k * step)
                    done = _quantize_tile(unit, here, step, how, limits, of, at, scale, s_at, byte)
                if done == every:
                    continue
                for i in range(min(lanes, last - n)):
                    if not (done >> i) & 1:
                        block_at, scale_at = peek(BITS64, of + 8 * i) + at, peek(BITS64, scale + 8 * i) + s_at
                        bad = quantize_exactly(
                            tile + i * size, stride, dtype, rule, ties, dropped, ggml != 0, block_at, scale_at
                        )
                        index = ((n + i) * groups + g) * 8 + bad
                        if bad >= 0 and (worst < 0 or index < worst):
                            worst = index
    return worst


def quantize_columns(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """See `cpu.quantize_columns`."""
    _, parts, groups = scales.shape
    unit = _UNITS[dtype]
    scratch = np.empty(2 * WIDE + 8 + 32 * 8, np.int64)
    start = scratch.ctypes.data
    found = _quantize_columns(
        unit, place(x, 1), DTYPES[dtype], x.shape[1], parts, groups, *_how(recipe, packing, unit),
        place(blocks, 3), place(scales, 3),
        (start, start + 8 * WIDE, start + 16 * WIDE, start + 16 * WIDE + 64),
    )  # fmt: skip
    raise_found(found, parts, groups)


@kernel
def _dequantize_rows(
    unit: Any, blocks: Ints, scales: Ints, ggml: int, rows: int, parts: int, groups: int, out: Ints, table: int
) -> int:
    size = width(unit) // 8
    for r in range(rows):
        for p in range(parts):
            block, scale = blocks[0] + r * blocks[1] + p * blocks[2], scales[0] + r * scales[1] + p * scales[2]
            row = out[0] + r * out[1] + p * out[2]
            for g in range(groups):
                s = peek(BITS8, scale + g * scales[3])
                here, at = block + g * blocks[3], row + g * 32 * size
                if s < 3 or s > 252:
                    bad = dequantize_exactly(here, s, table, ggml != 0, F32 if size == 4 else BF16, at, size)
                    if bad >= 0:
                        return ((r * parts + p) * groups + g) * 8 + bad
                elif ggml:
                    decode_ggml(unit, here, s, at)
                else:
                    decode_pair(unit, here, s, at)
    return -1


def dequantize_rows(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """See `cpu.dequantize_rows`."""
    rows, parts, groups = scales.shape
    found = _dequantize_rows(
        _UNITS[out_dtype], place(blocks, 3), place(scales, 3), int(packing is Packing.ggml), rows, parts, groups,
        place(out, 2), _TABLE.ctypes.data,
    )  # fmt: skip
    raise_found(found, parts, groups)


@kernel
def _dequantize_columns(
    unit: Any, blocks: Ints, scales: Ints, ggml: int, columns: int, parts: int, groups: int, out: Ints,
    scratch: Ints, table: int,
) -> int:  # fmt: skip
    block_of, scale_of, byte = scratch
    bits = width(unit)
    lanes, size = VECTOR_BITS // bits, bits // 8
    dtype = F32 if size == 4 else BF16
    every = (1 << lanes) - 1
    worst = -1
    for first in range(0, columns, WIDE):
        last = min(columns, first + WIDE)
        row_addresses(first, last, parts, blocks, block_of)
        row_addresses(first, last, parts, scales, scale_of)
        for g in range(groups):
            for n in range(first, last, lanes):
                tile = out[0] + g * 32 * out[1] + n * size
                of, at = block_of + 8 * (n - first), g * blocks[3]
                count = min(lanes, last - n)
                for i in range(count):
                    poke(BITS8, byte + i, peek(BITS8, peek(BITS64, scale_of + 8 * (n - first + i)) + g * scales[3]))
                done = 0
                if count == lanes:
                    done = tile_ordinary(unit, byte)
                    step, distance = (1, 16) if ggml else (2, 1)
                    tile_decode(unit, of, at, byte, step, distance, tile, out[1])
                if done == every:
                    continue
                for i in range(count):
                    if not (done >> i) & 1:
                        here, s = peek(BITS64, of + 8 * i) + at, peek(BITS8, byte + i)
                        bad = dequantize_exactly(here, s, table, ggml != 0, dtype, tile + i * size, out[1])
                        index = ((n + i) * groups + g) * 8 + bad
                        if bad >= 0 and (worst < 0 or index < worst):
                            worst = index
    return worst


def dequantize_columns(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """See `cpu.dequantize_columns`."""
    _, parts, groups = scales.shape
    scratch = np.empty(2 * WIDE + 8, np.int64)
    start = scratch.ctypes.data
    found = _dequantize_columns(
        _UNITS[out_dtype], place(blocks, 3), place(scales, 3), int(packing is Packing.ggml),
        out.shape[1], parts, groups, place(out, 1),
        (start, start + 8 * WIDE, start + 16 * WIDE), _TABLE.ctypes.data,
    )  # fmt: skip
    raise_found(found, parts, groups)


@kernel
def _repack(
    unit: Any, blocks: Ints, scales: Ints, ggml: int, out: Ints, out_scales: Ints, out_ggml: int,
    rows: int, parts: int, groups: int,
) -> None:  # fmt: skip
    for r in range(rows):
        for p in range(parts):
            block, scale = blocks[0] + r * blocks[1] + p * blocks[2], scales[0] + r * scales[1] + p * scales[2]
            to, to_scale = out[0] + r * out[1] + p * out[2], out_scales[0] + r * out_scales[1] + p * out_scales[2]
            for g in range(groups):
                here, there = block + g * blocks[3], to + g * out[3]
                if ggml == out_ggml:
                    copy_block(here, there)
                elif ggml:
                    pair_of_ggml(here, there)
                else:
                    ggml_of_pair(here, there)
                poke(unit, to_scale + g * out_scales[3], peek(unit, scale + g * scales[3]))


def repack(blocks: U8, scales: U8, packing: Packing, out_blocks: U8, out_scales: U8, out_packing: Packing) -> None:
    """See `cpu.repack`."""
    ggml, out_ggml = int(packing is Packing.ggml), int(out_packing is Packing.ggml)
    _repack(
        BITS8, place(blocks, 3), place(scales, 3), ggml, place(out_blocks, 3), place(out_scales, 3), out_ggml,
        *scales.shape,
    )  # fmt: skip
