"""MXFP4 of numpy arrays, in memory: the two functions of the public API."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import cpu
from ckpttool.codecs.formats import RECIPES, Packing, Recipe
from ckpttool.codecs.plain import UINT
from ckpttool.codecs.reference import U8, F32Array

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    return RECIPES[recipe]


def quantize(x: NDArray[Any], recipe: str | Recipe = "best") -> tuple[U8, U8]:
    """MXFP4 of an array, as Hugging Face stores it.

    `x`: [..., K], float32, float16 or ml_dtypes' bfloat16; K a multiple of 32, the axis that the weight is multiplied
    along. `recipe`: a name of `RECIPES`, or a `Recipe`.

    Returns blocks uint8 [..., K/32, 16] (byte j: element 2j low, 2j+1 high) and scales uint8 [..., K/32] (E8M0).

    ValueError for another type or length; `BadBlock` (a ValueError) where a block holds NaN or Inf, or where the
    recipe's rule would make it infinite: its row counts the leading axes flattened.
    """
    chosen = _recipe(recipe)
    name = _NAMES.get(x.dtype.name)
    if name is None:
        hint = "x.astype(np.float32) rounds to the nearest float32"
        raise ValueError(f"quantize takes float32, float16 or bfloat16, not {x.dtype}; {hint}")
    if x.ndim == 0 or x.shape[-1] % 32:
        raise ValueError(f"the last axis of {x.shape} is no multiple of 32, a block; pad it, or transpose x")
    k = x.shape[-1]
    rows = np.ascontiguousarray(x).view(UINT[name]).reshape(-1, 1, k) if x.size else np.empty((0, 1, k), UINT[name])
    blocks = np.empty((rows.shape[0], 1, k // 32, 16), np.uint8)
    scales = np.empty(blocks.shape[:-1], np.uint8)
    cpu.quantize_rows(rows, name, chosen, Packing.pair, blocks, scales)
    lead = x.shape[:-1]
    return blocks.reshape(*lead, k // 32, 16), scales.reshape(*lead, k // 32)


def dequantize(blocks: U8, scales: U8) -> F32Array:
    """float32 [..., K] of blocks uint8 [..., K/32, 16] and scales uint8 [..., K/32] in Hugging Face's packing; exact.

    ValueError for other types and shapes; `BadBlock` for scale byte 255 and for values that float32 cannot hold.
    """
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
        raise ValueError(f"blocks and scales must be uint8, not {blocks.dtype} and {scales.dtype}")
    if blocks.ndim < 2 or blocks.shape[-1] != 16 or blocks.shape[:-1] != scales.shape:
        raise ValueError(f"blocks {blocks.shape} and scales {scales.shape} do not fit [..., G, 16] and [..., G]")
    lead, groups = scales.shape[:-1], scales.shape[-1]
    count = int(np.prod(lead, dtype=np.int64))
    out = np.empty((count, 1, groups * 32), np.uint32)
    shape = (count, 1, groups)
    cpu.dequantize_rows(
        np.ascontiguousarray(blocks).reshape(*shape, 16),
        np.ascontiguousarray(scales).reshape(shape),
        Packing.pair,
        out,
        "F32",
    )
    return out.view(np.float32).reshape(*lead, groups * 32)
