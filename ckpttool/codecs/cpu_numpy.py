"""The kernels of `cpu` without a compiler: the reference and numpy, slowly, in bounded pieces of rows.

Same arguments as `cpu`'s kernels; see there. Nothing here is validated again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import plain, q8_0, reference
from ckpttool.codecs.formats import Packing, Recipe
from ckpttool.codecs.packing import PACK, UNPACK
from ckpttool.codecs.reference import U8, BadBlock

Bits = NDArray[Any]

PIECE_ELEMENTS = 1 << 20


def _pieces(rows: int, row_elements: int) -> Iterator[slice]:
    """Slices of rows of about `PIECE_ELEMENTS` elements each."""
    step = max(1, PIECE_ELEMENTS // max(1, row_elements))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _shifted(error: BadBlock, piece: slice) -> BadBlock:
    return BadBlock(error.kind, (error.index[0] + piece.start, *error.index[1:]))


def _values(bits: Bits, dtype: str) -> NDArray[np.float32]:
    return plain.widen(np.ascontiguousarray(bits), dtype).view(np.float32)


def rows_of_columns(x: Bits, parts: int) -> Bits:
    """The rows view [R, p, K] of columns [K, N]: strides only."""
    return x.T.reshape(x.shape[1] // parts, parts, x.shape[0])


def quantize_rows(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """See `cpu.quantize_rows`."""
    for piece in _pieces(x.shape[0], x.shape[1] * x.shape[2]):
        try:
            codes, scales[piece] = reference.quantize(_values(x[piece], dtype), recipe)
        except BadBlock as error:
            raise _shifted(error, piece) from None
        blocks[piece] = PACK[packing](codes)


def dequantize_rows(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """See `cpu.dequantize_rows`."""
    for piece in _pieces(out.shape[0], out.shape[1] * out.shape[2]):
        codes = UNPACK[packing](blocks[piece])
        try:
            reference.require_decodable(codes, scales[piece])
        except BadBlock as error:
            raise _shifted(error, piece) from None
        wide = reference.dequantize(codes, scales[piece]).view(np.uint32)
        out[piece] = plain.narrow(wide, out_dtype)


def quantize_columns(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """See `cpu.quantize_columns`."""
    quantize_rows(rows_of_columns(x, blocks.shape[1]), dtype, recipe, packing, blocks, scales)


def dequantize_columns(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """See `cpu.dequantize_columns`."""
    dequantize_rows(blocks, scales, packing, rows_of_columns(out, blocks.shape[1]), out_dtype)


def repack(blocks: U8, scales: U8, packing: Packing, out_blocks: U8, out_scales: U8, out_packing: Packing) -> None:
    """See `cpu.repack`."""
    out_scales[...] = scales
    if packing is out_packing:
        out_blocks[...] = blocks
        return
    for piece in _pieces(blocks.shape[0], blocks.shape[1] * blocks.shape[2] * 32):
        out_blocks[piece] = PACK[out_packing](UNPACK[packing](blocks[piece]))


def quantize_q8_0(x: Bits, dtype: str, out: U8) -> None:
    """See `cpu.quantize_q8_0`."""
    for piece in _pieces(x.shape[0], x.shape[1] * x.shape[2]):
        try:
            out[piece] = q8_0.quantize(_values(x[piece], dtype))
        except BadBlock as error:
            raise _shifted(error, piece) from None


def dequantize_q8_0(blocks: U8, out: Bits, out_dtype: str) -> int:
    """See `cpu.dequantize_q8_0`."""
    changed = 0
    for piece in _pieces(out.shape[0], out.shape[1] * out.shape[2]):
        try:
            wide = q8_0.dequantize(blocks[piece]).view(np.uint32)
        except BadBlock as error:
            raise _shifted(error, piece) from None
        out[piece] = plain.narrow(wide, out_dtype)
        back = plain.widen(out[piece], out_dtype)
        infinite = (back & np.uint32(0x7FFFFFFF)) == plain.INFINITY["F32"]
        bad = infinite.reshape(*wide.shape[:-1], -1, 32).any(-1)
        if bad.any():
            raise _shifted(BadBlock("overflow", tuple(int(i) for i in np.argwhere(bad)[0])), piece)
        changed += int(np.count_nonzero(back != wide))
    return changed


def transpose_to_rows(x: Bits, out: Bits) -> None:
    """See `cpu.transpose_to_rows`."""
    out[...] = rows_of_columns(x, out.shape[1])


def transpose_to_columns(x: Bits, out: Bits) -> None:
    """See `cpu.transpose_to_columns`."""
    rows_of_columns(out, x.shape[1])[...] = x


def convert(x: Bits, dtype: str, out: Bits, out_dtype: str) -> int:
    """See `cpu.convert`; both are [R, p, K]."""
    changed = 0
    row_elements = x.shape[1] * x.shape[2]
    for piece in _pieces(x.shape[0], row_elements):
        try:
            out[piece], n = plain.convert(np.ascontiguousarray(x[piece]), dtype, out_dtype)
        except plain.BadValue as error:
            raise plain.BadValue(out_dtype, error.index + piece.start * row_elements) from None
        changed += n
    return changed
