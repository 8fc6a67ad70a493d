"""What torch reserves of a GPU for lanes, so that a limit on the GPU's memory holds for what others see of it.

torch's allocator takes segments of 2 MiB for tensors of up to 1 MiB, of 20 MiB for those below 10 MiB, and beyond that
as much as a tensor has, rounded up to 2 MiB (c10/core/AllocatorConfig.h). So all lanes of a card share one allocation
of 10 MiB or more; whatever else they hold there are a few bytes each.
"""

from __future__ import annotations

SEGMENT = 2 << 20
LEAST = 10 << 20


def room_nbytes(lanes: int, buffer: int) -> int:
    """Bytes that are allocated for `lanes` with `buffer` bytes each."""
    return max(lanes * buffer, LEAST)


def reserved_nbytes(lanes: int, buffer: int) -> int:
    """Bytes that torch reserves for them; one segment is for all that is small."""
    return -(-room_nbytes(lanes, buffer) // SEGMENT) * SEGMENT + SEGMENT


def lanes_within(limit: int, buffer: int) -> int:
    """The most lanes for which torch reserves no more than `limit`."""
    room = (limit - SEGMENT) // SEGMENT * SEGMENT
    return room // buffer if room >= LEAST else 0
