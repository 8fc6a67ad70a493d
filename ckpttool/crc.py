"""CRC-32, and that of a whole from those of its pieces, so that slabs may be written in any order.

Arithmetic of polynomials over GF(2) modulo zlib's polynomial, bits reversed: appending n zero bytes multiplies a CRC by
x^(8n). Source: zlib's crc32_combine.
"""

from __future__ import annotations

from functools import cache

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # the same function, a tenth as fast; no wheel exists for every platform
    from zlib import crc32

__all__ = ["combine", "crc32"]

POLYNOMIAL = 0xEDB88320
ONE = 1 << 31


def combine(first: int, second: int, second_nbytes: int) -> int:
    """The CRC-32 of two byte strings, one after the other, from theirs and the second one's length."""
    return _multiply(_power_of_x(8 * second_nbytes), first) ^ second


def _multiply(a: int, b: int) -> int:
    product, bit = 0, ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


def _power_of_x(n: int) -> int:
    result, k = ONE, 0
    while n:
        if n & 1:
            result = _multiply(_square(k), result)
        n >>= 1
        k += 1
    return result


@cache
def _square(k: int) -> int:
    """x^(2^k)."""
    if k == 0:
        return ONE >> 1
    half = _square(k - 1)
    return _multiply(half, half)
