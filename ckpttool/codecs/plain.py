"""F32, F16 and BF16 as bits, in plain numpy: widening, and narrowing by round to nearest, ties to even.

Widening is exact. Narrowing keeps signs, infinities and NaNs: a NaN's payload is cut, and its quiet bit set only where
nothing else would be left, so that BF16 -> F32 -> BF16 returns all 65,536 codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
"""uint16 for BF16 and F16, uint32 for F32."""

UINT: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.uint16),
    "F32": np.dtype(np.uint32),
}
INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


class BadValue(ValueError):
    """A finite value that the narrower type can only hold as Inf; `index` counts elements in row-major order."""

    def __init__(self, dtype: str, index: int) -> None:
        super().__init__(f"element {index} is too large for {dtype}")
        self.dtype = dtype
        self.index = index


def widen(bits: Bits, dtype: str) -> NDArray[np.uint32]:
    """F32 bits of `dtype` bits; exact. A signalling F16 NaN stays one."""
    if dtype == "F32":
        return bits
    wide: NDArray[np.uint32] = bits.astype(np.uint32)
    if dtype == "BF16":
        return wide << np.uint32(16)
    magnitude = wide & np.uint32(0x7FFF)
    normal = (magnitude << np.uint32(13)) + np.uint32(112 << 23)
    normal += np.where(magnitude >= 0x7C00, np.uint32(112 << 23), np.uint32(0))
    subnormal = (magnitude.astype(np.float32) * np.float32(2**-24)).view(np.uint32)
    result = np.where(magnitude < 0x400, subnormal, normal)
    signed: NDArray[np.uint32] = result | ((wide & np.uint32(0x8000)) << np.uint32(16))
    return signed


def narrow(bits: NDArray[np.uint32], dtype: str) -> Bits:
    """`dtype` bits of F32 bits, to nearest, ties to even; values too large become Inf."""
    if dtype == "F32":
        return bits
    magnitude = bits & np.uint32(0x7FFFFFFF)
    drop = 16 if dtype == "BF16" else 13
    base = magnitude if dtype == "BF16" else magnitude - np.uint32(112 << 23)
    rounded = (base + np.uint32((1 << (drop - 1)) - 1) + ((base >> np.uint32(drop)) & np.uint32(1))) >> np.uint32(drop)
    infinity = np.uint32(INFINITY[dtype])
    if dtype == "F16":
        small = magnitude < np.uint32(113 << 23)
        half = np.where(small, magnitude, np.uint32(0)).view(np.float32) + np.float32(0.5)
        rounded = np.where(small, half.view(np.uint32) - np.uint32(0x3F000000), np.minimum(rounded, infinity))
        rounded = np.where(magnitude >= np.uint32(0x47800000), infinity, rounded)
    payload = (magnitude & np.uint32(0x7FFFFF)) >> np.uint32(drop)
    quiet = np.uint32(1 << (22 - drop))
    nan = infinity | np.where(payload == 0, quiet, payload)
    result = np.where(magnitude > INFINITY["F32"], nan, rounded)
    signed: Bits = (result | ((bits >> np.uint32(16)) & np.uint32(0x8000))).astype(np.uint16)
    return signed


def convert(bits: Bits, dtype: str, out_dtype: str) -> tuple[Bits, int]:
    """`out_dtype` bits, and how many do not widen back to the source's value (for a NaN: to its payload).

    `BadValue` where a finite value would become Inf. NaN and Inf pass: they are the source's own.
    """
    wide = widen(bits, dtype)
    out = narrow(wide, out_dtype)
    if dtype == out_dtype:
        return out, 0
    back = widen(out, out_dtype)
    lost = ((back & np.uint32(0x7FFFFFFF)) == INFINITY["F32"]) & (back != wide)
    if lost.any():
        raise BadValue(out_dtype, int(np.flatnonzero(lost)[0]))
    return out, int(np.count_nonzero(back != wide))
