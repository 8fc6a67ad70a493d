"""One block at a time, by integers alone: the blocks that the lanes leave out, and everything that is odd.

These are the blocks with a scale byte below 3 (where thresholds are subnormal), above 252 (where values overflow), with
NaN or Inf, and the columns that do not fill a tile. Compiled by numba as part of `cpu_kernels`; addresses and strides
are bytes. Comparing bits, not numbers, keeps this exact even where a thread has denormals switched off.
"""

from __future__ import annotations

from typing import Final

from ckpttool.codecs.cpu_jit import inlined
from ckpttool.codecs.cpu_lanes import BITS8, BITS16, BITS32, peek, poke
from ckpttool.codecs.reference import BadBlock

BF16: Final = 0
F16: Final = 1
F32: Final = 2
DTYPES: Final = {"BF16": BF16, "F16": F16, "F32": F32}

NAN: Final = 0
INF: Final = 1
OVERFLOW: Final = 2
SCALE: Final = 3
KINDS: Final = ("nan", "inf", "overflow", "scale")

INF_BITS: Final = 0x7F800000
_THRESHOLD_BITS = (0x3E800000, 0x3F400000, 0x3FA00000, 0x3FE00000, 0x40200000, 0x40600000, 0x40A00000)
_HALVES = (0, 1, 2, 3, 4, 6, 8, 12)

FLOOR: Final = 0
EVEN: Final = 1
RCEIL: Final = 2
BEST: Final = 3


def raise_found(found: int, parts: int, groups: int) -> None:
    """Raise the `BadBlock` that a kernel's result stands for: -1, or 8 times a flat block index plus the kind."""
    if found >= 0:
        index, kind = divmod(found, 8)
        row, rest = divmod(index, parts * groups)
        raise BadBlock(KINDS[kind], (row, *divmod(rest, groups)))


@inlined
def f32_bits(address: int, dtype: int) -> int:
    """F32 bits of one number at an address."""
    if dtype == F32:
        return peek(BITS32, address)
    raw = peek(BITS16, address)
    if dtype == BF16:
        return raw << 16
    sign, exponent, fraction = (raw & 0x8000) << 16, (raw >> 10) & 31, raw & 0x3FF
    if exponent == 31:
        return sign | INF_BITS | (fraction << 13)
    if exponent == 0:
        if fraction == 0:
            return sign
        exponent = 1
        while fraction < 0x400:
            fraction <<= 1
            exponent -= 1
        fraction &= 0x3FF
    return sign | ((exponent + 112) << 23) | (fraction << 13)


@inlined
def _threshold(k: int, scale: int) -> int:
    """F32 bits of threshold k at a scale; one that is too large for F32 is Inf, which no number reaches."""
    bits = _THRESHOLD_BITS[k]
    exponent = (bits >> 23) + scale - 127
    fraction = bits & 0x7FFFFF
    if exponent >= 255:
        return INF_BITS
    if exponent >= 1:
        return (exponent << 23) | fraction
    return (0x800000 | fraction) >> (1 - exponent)


@inlined
def _code(magnitude: int, scale: int, ties: int) -> int:
    """Code 0..7 of F32 magnitude bits; `ties` 0 even, 1 away, 2 zero."""
    code = 0
    for k in range(7):
        past = ties == 2 or (ties == 0 and k % 2 == 0)
        code += magnitude >= _threshold(k, scale) + past
    return code


@inlined
def _saved(x: int, step: int, dtype: int, scale: int, ties: int) -> int:
    """The sum that `reference.prefers_next_scale` defines, in its units; below a quarter both codes are 0."""
    total = 0
    for i in range(32):
        magnitude = f32_bits(x + i * step, dtype) & 0x7FFFFFFF
        if magnitude > _threshold(0, scale):
            q0 = _HALVES[_code(magnitude, scale, ties)]
            q1 = 2 * _HALVES[_code(magnitude, scale + 1, ties)]
            exponent = magnitude >> 23
            significand = magnitude & 0x7FFFFF
            if exponent:
                significand |= 0x800000
            else:
                exponent = 1
            m = significand << (exponent - scale + 2)
            total += (q1 - q0) * (4 * m - ((q0 + q1) << 25))
    return total


@inlined
def _scale(amax: int, rule: int) -> int:
    """`reference.scale_bytes` for F32 bits. Divided by 6, a maximum of up to three units of 2^-149 is zero."""
    bump = 0
    if rule == EVEN:
        bump = 0x200000
    if rule == RCEIL:
        bump = 0x3FFFFF
    scale = ((amax + bump) >> 23) - 2
    if rule == RCEIL and amax > 3:
        return max(scale, 1)
    return max(scale, 0)


@inlined
def quantize_exactly(
    x: int, step: int, dtype: int, rule: int, ties: int, dropped: int, ggml: bool, out: int, out_scale: int
) -> int:
    """One block of 32 numbers, `step` bytes apart, to 16 bytes and a scale byte; returns -1 or the kind of badness."""
    amax = 0
    for i in range(32):
        amax = max(amax, f32_bits(x + i * step, dtype) & 0x7FFFFFFF)
    if amax >= INF_BITS:
        return NAN if amax > INF_BITS else INF
    scale = _scale(amax, rule)
    if rule == BEST and scale < 252 and _saved(x, step, dtype, scale, ties) > 0:
        scale += 1
    if scale == 253 and _code(amax, scale, ties) >= 6:
        return OVERFLOW
    poke(BITS8, out_scale, scale)
    for j in range(16):
        byte = 0
        for half in range(2):
            i = j + 16 * half if ggml else 2 * j + half
            bits = f32_bits(x + i * step, dtype)
            code = _code(bits & 0x7FFFFFFF, scale, ties) | ((bits >> 28) & 8)
            if code != dropped:
                byte |= code << (4 * half)
        poke(BITS8, out + j, byte)
    return -1


@inlined
def dequantize_exactly(blocks: int, scale: int, table: int, ggml: bool, dtype: int, out: int, step: int) -> int:
    """One block by `table` (uint32 [256, 16] at an address) to 32 numbers `step` bytes apart; -1 or the badness."""
    for j in range(16):
        byte = peek(BITS8, blocks + j)
        for half in range(2):
            code = (byte >> (4 * half)) & 15
            bits = peek(BITS32, table + 4 * (16 * scale + code))
            if (bits & INF_BITS) == INF_BITS:
                return SCALE if scale == 255 else OVERFLOW
            i = j + 16 * half if ggml else 2 * j + half
            if dtype == F32:
                poke(BITS32, out + i * step, bits)
            else:
                poke(BITS16, out + i * step, bits >> 16)
    return -1
