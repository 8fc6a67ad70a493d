"""Q8_0 in plain numpy: 32 elements in 34 bytes, an F16 scale d and 32 int8, as ggml's quantize_row_q8_0_ref does it.

ggml-quants.c: d = max|x| / 127 and 1/d in F32, each element x * (1/d) rounded half away from zero, d stored as F16.
The elements follow the F32 d, not the stored one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.reference import U8, F32Array, blocks_of, raise_first, require_finite

NBYTES = 34


def quantize(x: NDArray[Any]) -> U8:
    """Blocks uint8 [..., G, 34] of float32 or float16 `x` [..., K].

    `BadBlock` for NaN, Inf and a d that F16 cannot hold (a maximum above 65,519 * 127). A maximum so small that 1/d is
    not finite (below 2^-121) gives zeros; there ggml's conversion to int8 is undefined.
    """
    values = blocks_of(x)
    require_finite(values.view(np.uint32) & np.uint32(0x7FFFFFFF))
    d = np.abs(values).max(-1) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(1) / d
        stored = d.astype(np.float16)
    raise_first("overflow", np.isinf(stored))
    scaled = np.abs(values * np.where(np.isfinite(inverse), inverse, np.float32(0))[..., None])
    whole = np.floor(scaled)
    rounded = (whole + (scaled - whole >= np.float32(0.5))).astype(np.int16)
    elements = np.where(np.signbit(values), -rounded, rounded).astype(np.int8)
    out = np.empty((*d.shape, NBYTES), np.uint8)
    out[..., :2] = stored[..., None].view(np.uint8)
    out[..., 2:] = elements.view(np.uint8)
    return out


def dequantize(blocks: U8) -> F32Array:
    """float32 [..., K] of blocks [..., G, 34]: d times each element, exact in F32. `BadBlock` where d is not finite."""
    d = np.ascontiguousarray(blocks[..., :2]).view(np.float16)
    raise_first("scale", ~np.isfinite(d[..., 0]))
    elements = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    values: F32Array = d.astype(np.float32) * elements.astype(np.float32)
    return values.reshape(*blocks.shape[:-2], blocks.shape[-2] * 32)
