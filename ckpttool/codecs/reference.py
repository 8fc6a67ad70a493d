"""MXFP4 in plain numpy: the definition that every other implementation equals bit for bit.

OCP Microscaling Formats v1.0: a block is 32 E2M1 elements and one E8M0 scale X; an element decodes to its value times
X. Section 6.3 of it computes X as the largest power of two in the block's maximum, divided by the largest power of two
in E2M1 (4), then rounds each V/X to nearest, ties to even, saturating at 6. The spec leaves the rule open and libraries
use it: `Recipe` names ours.

Everything here is exact: float64 holds every F32 times any power of two that occurs, exponents come from bits, and
`best` compares whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.formats import E2M1_VALUES, E8M0_BIAS, E8M0_NAN, Recipe, ScaleRule, TieRule

U8 = NDArray[np.uint8]
F32Array = NDArray[np.float32]

BLOCK = 32
SCALE_MAX = 254
THRESHOLDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Midway between neighbours of `E2M1_VALUES`: a magnitude's code is the number of thresholds that it passes."""

_F32_INF = 0x7F800000
_BUMP = {ScaleRule.floor: 0, ScaleRule.best: 0, ScaleRule.even: 0x200000}


class BadBlock(ValueError):
    """A block that has no honest result.

    `kind` is `nan` or `inf` (a source value), `overflow` (a result that the target type cannot hold) or `scale` (the
    E8M0 byte 255, or an F16 scale that is not finite). `index` is (row, part of the zip, block), or
    (*leading axes, block) from the functions of this module.
    """

    def __init__(self, kind: str, index: tuple[int, ...]) -> None:
        self.kind = kind
        self.index = index
        super().__init__(f"{BAD_KINDS[kind]} in block {index[-1]} of row {', '.join(map(str, index[:-1])) or 0}")

    @property
    def row(self) -> int:
        """Index on the first axis."""
        return self.index[0]

    @property
    def part(self) -> int:
        """Which part of the zip."""
        return self.index[1]

    @property
    def block(self) -> int:
        """Block within the row."""
        return self.index[-1]


BAD_KINDS = {
    "nan": "a NaN",
    "inf": "an infinite value",
    "overflow": "a value too large for the target type",
    "scale": "a scale that is no number",
}


def raise_first(kind: str, bad: NDArray[np.bool_]) -> None:
    """Raise `BadBlock` for the first true entry of `bad` [..., G], in row-major order; return where there is none."""
    if bad.any():
        raise BadBlock(kind, tuple(int(i) for i in np.argwhere(bad)[0]))


def blocks_of(x: NDArray[Any]) -> F32Array:
    """float32 or float16 [..., K] as float32 [..., G, 32]; `bf16_values` makes float32 of BF16 bits.

    ValueError for another type, and for a K that is no multiple of 32.
    """
    if x.dtype not in (np.float32, np.float16):
        raise ValueError(f"expected float32 or float16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"the last axis of {x.shape} is no multiple of {BLOCK}")
    wide = np.ascontiguousarray(x, dtype=np.float32)
    return wide.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)


def bf16_values(bits: NDArray[np.uint16]) -> F32Array:
    """The float32 values of BF16 bits; exact, NaN payloads included."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def require_finite(magnitude_bits: NDArray[np.uint32]) -> None:
    """Raise `BadBlock` where a block [..., G, 32] of F32 magnitude bits holds NaN or Inf."""
    highest = magnitude_bits.max(-1)
    raise_first("nan", highest > _F32_INF)
    raise_first("inf", highest == _F32_INF)


def scale_bytes(amax_bits: NDArray[np.uint32], rule: ScaleRule) -> U8:
    """E8M0 bytes for F32 bits of block maxima, clamped to 0..254; `best` starts from `floor`.

    * floor: the maximum's exponent minus E2M1's (2).
    * even: the same after rounding the maximum to a significand of one bit and a half, so that 1.75 carries.
    * rceil: ceil(log2(max / 6)), by bits of the F32 quotient, as triton_kernels and torchao do.
    """
    if rule is ScaleRule.rceil:
        quotient = (amax_bits.view(np.float32) / np.float32(6)).view(np.uint32).astype(np.int64)
        raw = (quotient + 0x7FFFFF) >> 23
    else:
        raw = ((amax_bits.astype(np.int64) + _BUMP[rule]) >> 23) - 2
    clamped: U8 = np.clip(raw, 0, SCALE_MAX).astype(np.uint8)
    return clamped


def magnitude_codes(magnitudes: F32Array, scales: U8, ties: TieRule) -> U8:
    """Codes 0..7 of magnitudes [..., G, 32] at scales [..., G]: rounded to nearest, saturating at 6."""
    exponent = E8M0_BIAS - scales[..., None].astype(np.int32)
    scaled = np.ldexp(magnitudes.astype(np.float64), exponent)
    codes = np.zeros(scaled.shape, np.uint8)
    for k, threshold in enumerate(THRESHOLDS):
        up_at_tie = ties is TieRule.away or (ties is TieRule.even and k % 2 == 1)
        codes += scaled >= threshold if up_at_tie else scaled > threshold
    return codes


def overflows(codes: U8, scales: U8) -> NDArray[np.bool_]:
    """Which blocks [..., G] hold a value of 2^128 and above, which neither BF16 nor F32 holds."""
    largest = (codes & 7).max(-1)
    bad: NDArray[np.bool_] = (
        ((scales == 253) & (largest >= 6)) | ((scales == 254) & (largest >= 4)) | (scales == E8M0_NAN)
    )
    return bad


def prefers_next_scale(magnitudes: F32Array, scales: U8, ties: TieRule) -> NDArray[np.bool_]:
    """Whether scale+1 has the smaller squared error: sum of (q1-q0)(2m-q0-q1) > 0, in exact integers.

    In units of the scale. m counts 2^-25, of which every F32 of a quarter and above is a multiple; below a quarter
    both roundings are 0. The codes' values are halves. A tie keeps the smaller scale.
    """
    halves = np.array([2 * v for v in E2M1_VALUES], np.int64)
    q0 = halves[magnitude_codes(magnitudes, scales, ties)]
    q1 = 2 * halves[magnitude_codes(magnitudes, scales + np.uint8(1), ties)]
    exponent = E8M0_BIAS + 25 - scales[..., None].astype(np.int32)
    m = np.ldexp(magnitudes.astype(np.float64), exponent).astype(np.int64)
    total: NDArray[np.int64] = ((q1 - q0) * (4 * m - (q0 + q1) * 2**25)).sum(-1)
    return total > 0


def quantize(x: NDArray[Any], recipe: Recipe) -> tuple[U8, U8]:
    """Codes uint8 [..., G, 32] and scale bytes uint8 [..., G] of float32 or float16 `x` [..., K].

    Bit 3 of a code is the sign; -0 keeps it unless the recipe says otherwise. A block of zeros has scale 0. The scale
    byte is never 255, and every result decodes to a finite BF16: `BadBlock` for a NaN, an Inf, and a block that the
    recipe's rule would make infinite (`best` and the floor rule have none).
    """
    values = blocks_of(x)
    bits = values.view(np.uint32)
    magnitude_bits = bits & np.uint32(0x7FFFFFFF)
    require_finite(magnitude_bits)
    magnitudes = magnitude_bits.view(np.float32)
    scales = scale_bytes(magnitude_bits.max(-1), recipe.scale)
    codes = magnitude_codes(magnitudes, scales, recipe.ties)
    if recipe.scale is ScaleRule.best:
        raised = scales + np.uint8(1)
        raised_codes = magnitude_codes(magnitudes, raised, recipe.ties)
        take = prefers_next_scale(magnitudes, scales, recipe.ties) & ~overflows(raised_codes, raised)
        scales = np.where(take, raised, scales)
        codes = np.where(take[..., None], raised_codes, codes)
    raise_first("overflow", overflows(codes, scales))
    signs = (bits >> np.uint32(28)).astype(np.uint8) & np.uint8(8)
    if not recipe.keeps_negative_zero:
        signs = np.where(codes == 0, np.uint8(0), signs)
    return codes | signs, scales


def decode_table() -> F32Array:
    """The float32 value of every scale byte and code [256, 16].

    Scale 255 is NaN for every code (OCP); at 253 and 254 the codes of 2^128 and above are Inf. Bytes 0 and 1 give
    subnormals, exactly.
    """
    magnitudes = np.array(E2M1_VALUES, np.float64)
    codes = np.concatenate([magnitudes, -magnitudes])
    table = np.ldexp(codes[None, :], np.arange(256)[:, None] - E8M0_BIAS)
    table[E8M0_NAN] = np.nan
    with np.errstate(over="ignore"):
        narrow: F32Array = table.astype(np.float32)
    return narrow


def dequantize(codes: U8, scales: U8) -> F32Array:
    """float32 [..., K] of codes [..., G, 32] and scale bytes [..., G]; exact wherever the result is finite."""
    values = decode_table()[scales[..., None], codes]
    return values.reshape(*codes.shape[:-2], codes.shape[-2] * BLOCK)


def require_decodable(codes: U8, scales: U8) -> None:
    """Raise `BadBlock` for scale byte 255 and for values of 2^128 and above: what no BF16 and no F32 holds."""
    raise_first("scale", scales == E8M0_NAN)
    raise_first("overflow", overflows(codes, scales))
