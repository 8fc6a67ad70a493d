"""MXFP4 in Triton, element by element: scales, codes and values, as arithmetic on whole tensors of lanes.

A **pair** is a uint32 that holds two BF16 numbers (or two codes, at bits 0 and 16), the first one low, as they lie in
memory. NVIDIA GPUs from sm_80 work on both halves with one instruction, which is what makes these kernels as fast as
memory; under Triton's interpreter, which knows no assembly, the same operations are spelled out. Everything else is
written once. A **single** is a float32, one number a lane, for sources and tie rules that pairs cannot serve.

Rounding is done by the float adder. Adding 192 p / 2, where p = 1, 2 or 4 is the binade of the scaled magnitude `a`,
leaves a sum whose last bit is worth p/2, the step of E2M1 there, and the adder rounds to nearest, ties to even. Nothing
is flushed to zero (BF16 instructions have no such mode, and Triton emits none for float32), and no exponent is ever
computed by a logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

INTERPRETED: Final = bool(triton.knobs.runtime.interpret)


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, with types."""
    return triton.jit(function)


def constexpr_function(function: Callable[..., Any]) -> Any:
    """`triton.constexpr_function`, with types: Python that runs while a kernel is compiled."""
    return triton.constexpr_function(function)


def constant(value: Any) -> Any:
    """A number that kernels know while they are compiled."""
    return tl.constexpr(value)


NATIVE: Final = constant(not INTERPRETED)

BF16: Final = constant(0)
F16: Final = constant(1)
F32: Final = constant(2)

FLOOR: Final = constant(0)
EVEN: Final = constant(1)
RCEIL: Final = constant(2)
BEST: Final = constant(3)

TO_EVEN: Final = constant(0)
AWAY: Final = constant(1)
TO_ZERO: Final = constant(2)


@jit
def halves(w):
    """The two BF16 numbers of a pair as float32."""
    low = (w << 16).to(tl.float32, bitcast=True)
    high = (w & 0xFFFF0000).to(tl.float32, bitcast=True)
    return low, high


@jit
def _rounded(x):
    """BF16 bits of a float32: nearest, ties to even."""
    bits = x.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@jit
def pair_fma(a, b, c):
    """a * b + c of pairs, rounded once. c = -0 multiplies: x + -0 is x, and -0 + -0 is -0.

    Spelled out, float32 may round before BF16 does; in every use here it has room for all bits that matter.
    """
    if NATIVE:
        result = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        a0, a1 = halves(a)
        b0, b1 = halves(b)
        c0, c1 = halves(c)
        result = _rounded(a0 * b0 + c0) | (_rounded(a1 * b1 + c1) << 16)
    return result


@jit
def pair_fma_or_zero(a, b, c):
    """a * b + c of pairs, rounded once, and zero where that is negative."""
    if NATIVE:
        result = tl.inline_asm_elementwise(
            "fma.rn.relu.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        a0, a1 = halves(a)
        b0, b1 = halves(b)
        c0, c1 = halves(c)
        result = _rounded(tl.maximum(a0 * b0 + c0, 0.0)) | (_rounded(tl.maximum(a1 * b1 + c1, 0.0)) << 16)
    return result


@jit
def pair_max(a, b):
    """The larger of each half, of magnitudes; NaN wins."""
    if NATIVE:
        result = tl.inline_asm_elementwise(
            "max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        result = tl.maximum(a & 0xFFFF, b & 0xFFFF) | tl.maximum(a & 0xFFFF0000, b & 0xFFFF0000)
    return result


@jit
def pair_min(a, b):
    """The smaller of each half, of magnitudes."""
    if NATIVE:
        result = tl.inline_asm_elementwise(
            "min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        result = tl.minimum(a & 0xFFFF, b & 0xFFFF) | tl.minimum(a & 0xFFFF0000, b & 0xFFFF0000)
    return result


@jit
def pair_magnitude(a):
    """Without signs, by the units that multiply."""
    if NATIVE:
        result = tl.inline_asm_elementwise("abs.bf16x2 $0, $1;", "=r,r", [a], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        result = a & 0x7FFF7FFF
    return result


@jit
def pair_min_signed(a, b):
    """The smaller magnitude of each half, with the sign of a; b has none."""
    if NATIVE and cuda_capability_geq(8, 6):
        result = tl.inline_asm_elementwise(
            "min.xorsign.abs.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        result = pair_min(a & 0x7FFF7FFF, b) | (a & 0x80008000)
    return result


@jit
def pair_max_signed(a, b):
    """The larger magnitude of each half, with the product of the signs; NaN wins."""
    if NATIVE and cuda_capability_geq(8, 6):
        result = tl.inline_asm_elementwise(
            "max.NaN.xorsign.abs.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        result = pair_max(a & 0x7FFF7FFF, b & 0x7FFF7FFF) | ((a ^ b) & 0x80008000)
    return result


@jit
def pair_of(bits: tl.constexpr):
    """A pair of two times the same BF16 bits."""
    return tl.full((), bits * 0x10001, tl.uint32)


@jit
def bytes_by(a, b, order):
    """Four bytes of a (0 to 3) and b (4 to 7), the lowest first: nibble i of `order` says which."""
    if NATIVE:
        result = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, order], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        both = a.to(tl.uint64) | (b.to(tl.uint64) << 32)
        result = a & 0
        for i in tl.static_range(4):
            which = (order >> (4 * i)) & 7
            result |= ((both >> (8 * which)).to(tl.uint32) & 0xFF) << (8 * i)
    return result


@jit
def bytes_of(a, b, ORDER: tl.constexpr):
    """`bytes_by` an order that is known."""
    return bytes_by(a, b, tl.full((), ORDER, tl.uint32))


@jit
def chosen(a, b, MASK: tl.constexpr):
    """Bits of a where `MASK` has ones, and of b elsewhere: one instruction, whatever becomes of the result."""
    if NATIVE:
        mask = tl.full((), MASK, tl.uint32)
        result = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xE4;", "=r,r,r,r", [a, b, mask], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        result = (a & MASK) | (b & (MASK ^ 0xFFFFFFFF))
    return result


@jit
def pair_scaled(words, low_scale, high_scale):
    """Numbers in units of their scales: times 2^(127 - scale), exactly, or so small that the code is 0 anyway."""
    factor = ((254 - low_scale) << 7) | ((254 - high_scale) << 23)
    return pair_fma(words, factor.to(tl.uint32), pair_of(0x8000))


@jit
def pair_code(a, KEEPS: tl.constexpr):
    """Codes 0..15 at bits 12 and 28 of scaled numbers, ties to even, saturating at 6; bits below mean nothing.

    Of magnitudes: p = 1, 2, 4 for a below 2, below 4, and above. t = 96 p + a, with a last bit of p/2, has the
    significand 1 + (32 p + a) / 64 p, that is mantissa bits 64 + m, m = 2 a/p, and the exponent 133 + l, l = log2 p: it
    is 0x42C0 + m + 2^7 l. The code is m + 2 l. 0x1040 is 2^12 + 2^6, and takes m + 2^7 l to 2^12 (m + 2 l), plus 2^6 m,
    plus 2^19 l. A sign, 2^15, goes with p and a to t, and from there to 2^27 and 2^21. All of them lie apart, and what
    the low half adds to the high one lies below its code.
    """
    capped = pair_min_signed(a, pair_of(0x40C0))
    binade = pair_max_signed(capped & 0xFF80FF80, pair_of(0x3F80))
    t = pair_fma(binade, pair_of(0x42C0), capped)
    code = t * 0x1040 + (-0x42C042C0 * 0x1040) % 2**32
    sign = t
    if not KEEPS:
        sign &= (code & 0x70007000) + 0x70007000
    return chosen(code, sign, 0x70007000)


@jit
def single_code(a, TIES: tl.constexpr):
    """Code 0..7 of a scaled magnitude (float32), saturating at 6. The sum is as in `pair_code`, with 23 bits for 7."""
    capped = tl.minimum(a, 6.0)
    bits = tl.maximum(capped.to(tl.uint32, bitcast=True) & 0x7F800000, 0x3F800000)
    binade = bits.to(tl.float32, bitcast=True)
    moved = binade * 6291456.0 + capped
    t = moved.to(tl.uint32, bitcast=True)
    code = (t + (t >> 22) + 5) & 7
    if TIES != TO_EVEN:
        rest = (capped - (moved - binade * 6291456.0)) * 4.0
        if TIES == AWAY:
            code += (rest == binade).to(tl.uint32)
        else:
            code -= (rest == -binade).to(tl.uint32)
    return code


@jit
def single_scaled(bits, scale):
    """The magnitude of F32 bits in units of the scale; exact but where it is far too small to matter."""
    factor = ((254 - scale) << 23).to(tl.float32, bitcast=True)
    return (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True) * factor


@jit
def single_signed(code, bits, KEEPS: tl.constexpr):
    """Code 0..15 of a code and the F32 bits of its number."""
    sign = bits >> 28
    if not KEEPS:
        sign &= code + 7
    return code | (sign & 8)


@jit
def decoded(q, factor):
    """BF16 pairs of codes 0..15 at bits 0 and 16, whatever the other bits, by pairs of scales.

    A code's magnitude bits, put where BF16 has its last exponent bit and its first mantissa bit, mean the code's value
    times 2^-126, the subnormal 0.5 included.
    """
    tiny = ((q & 0x00070007) << 6) | ((q & 0x00080008) << 12)
    return pair_fma(pair_fma(tiny, pair_of(0x7E80), pair_of(0x8000)), factor, pair_of(0x8000))


@jit
def scale_value(scale):
    """BF16 bits of 2^(scale - 127): the byte is the exponent; 2^-127 is subnormal, and 255 is NaN."""
    bits = tl.where(scale == 255, 0x7FC0, scale.to(tl.uint32) << 7)
    return tl.where(scale == 0, 0x40, bits)
