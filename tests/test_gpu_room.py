"""What torch reserves for lanes, by its allocator's rules, against the limit on the GPU's memory."""

from __future__ import annotations

import pytest

from ckpttool.codecs.gpu_room import lanes_within, reserved_nbytes, room_nbytes

MIB = 1 << 20


class Allocator:
    """torch's allocator of GPU memory (c10/cuda/CUDACachingAllocator.cpp), as far as nothing is given back: blocks of
    whole 512 bytes; those of up to 1 MiB out of segments of 2 MiB, those below 10 MiB out of segments of 20 MiB, and
    larger ones each in a segment of its own, rounded up to 2 MiB. A segment's rest serves its own kind."""

    def __init__(self) -> None:
        self.reserved = 0
        self._rest = {2 * MIB: 0, 20 * MIB: 0}

    def malloc(self, nbytes: int) -> None:
        size = max(512, -(-nbytes // 512) * 512)
        if size >= 10 * MIB:
            self.reserved += -(-size // (2 * MIB)) * 2 * MIB
            return
        segment = 2 * MIB if size <= MIB else 20 * MIB
        if self._rest[segment] < size:
            self.reserved += segment
            self._rest[segment] = segment
        self._rest[segment] -= size


def reserved(lanes: int, buffer: int) -> int:
    """What a card's lanes make of it: room for all, and a status each; two tensors of the trial kernel."""
    allocator = Allocator()
    allocator.malloc(room_nbytes(lanes, buffer))
    for nbytes in (*(8 for _ in range(lanes)), 17, 17):
        allocator.malloc(nbytes)
    return allocator.reserved


BUFFERS = [
    4096,
    20_480,
    MIB,
    MIB + 4096,
    8 * MIB + 4096,
    10 * MIB,
    10 * MIB + 4096,
    21_000_192,
    66_356_000 // 4096 * 4096,
]


@pytest.mark.parametrize("buffer", BUFFERS)
def test_what_is_counted_is_what_is_reserved(buffer: int) -> None:
    for lanes in (1, 2, 3, 7, 18, 256):
        assert reserved(lanes, buffer) == reserved_nbytes(lanes, buffer) >= lanes * buffer


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("limit", [0, MIB, 12 * MIB - 1, 12 * MIB, 12 * MIB + 1, 64_000_000, 2_000_000_000])
def test_a_limit_holds_and_is_used(buffer: int, limit: int) -> None:
    """No lane more would fit."""
    lanes = lanes_within(limit, buffer)
    if lanes:
        assert reserved_nbytes(lanes, buffer) <= limit
    assert reserved_nbytes(lanes + 1, buffer) > limit


def test_buffers_of_their_own_would_take_more() -> None:
    """Why lanes share one allocation: 18 of a little over 10 MiB each."""
    each, buffer = Allocator(), 10 * MIB + 4096
    for _ in range(18):
        each.malloc(buffer)
    assert each.reserved == 18 * 12 * MIB > reserved_nbytes(18, buffer) + 30 * MIB
