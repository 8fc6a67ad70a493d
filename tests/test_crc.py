"""CRC-32 of a whole from its pieces, against zlib over the whole."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpttool.crc import combine, crc32


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combining_is_the_crc_of_both(a: bytes, b: bytes) -> None:
    assert combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_many_pieces_in_order(pieces: list[bytes]) -> None:
    crc = 0
    for piece in pieces:
        crc = combine(crc, crc32(piece), len(piece))
    assert crc == zlib.crc32(b"".join(pieces))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31, 255, 256, 65_535, 65_536, 1 << 20, (1 << 20) + 7])
def test_lengths_on_either_side_of_powers_of_two(n: int) -> None:
    data = random.Random(n).randbytes(n)
    assert combine(zlib.crc32(b"head"), zlib.crc32(data), n) == zlib.crc32(b"head" + data)
    assert combine(zlib.crc32(data), zlib.crc32(b"tail"), 4) == zlib.crc32(data + b"tail")


@pytest.mark.parametrize("n", [(1 << 32) - 1, 1 << 32, (1 << 35) + 11])
def test_lengths_beyond_32_bits(n: int) -> None:
    """n zero bytes are too many to hash; n of them and m more are n + m, by whichever way."""
    first, zeros = zlib.crc32(b"some bytes"), crc_of_zeros(n)
    m = 12_345
    assert combine(combine(first, zeros, n), crc_of_zeros(m), m) == combine(first, crc_of_zeros(n + m), n + m)
    assert combine(zeros, crc_of_zeros(m), m) == crc_of_zeros(n + m)


def crc_of_zeros(n: int) -> int:
    """By halves, from zlib's CRC of one zero byte."""
    if n == 0:
        return 0
    if n == 1:
        return zlib.crc32(b"\0")
    half = crc_of_zeros(n // 2)
    even = combine(half, half, n // 2)
    return combine(even, zlib.crc32(b"\0"), 1) if n % 2 else even


def test_nothing_changes_nothing() -> None:
    assert combine(0x12345678, 0, 0) == 0x12345678
    assert combine(0, 0x12345678, 99) == 0x12345678


def test_the_faster_crc_is_zlibs() -> None:
    for n in (0, 1, 15, 16, 17, 63, 64, 65, 4096, 100_003):
        data = random.Random(n).randbytes(n)
        assert crc32(data) == zlib.crc32(data)
        assert crc32(data, 0xDEADBEEF) == zlib.crc32(data, 0xDEADBEEF)
        assert crc32(memoryview(data)[1:]) == zlib.crc32(data[1:])
