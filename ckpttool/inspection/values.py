"""Numbers that are none: NaN and infinities in plain weights, in FP8 and in the scales of blocks; truths that are
neither 0 nor 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckpttool.inspection.reading import SLAB, U8, Job, Range
from ckpttool.tensors import StoredTensor

FLOATS: Final = {
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "BOOL": (np.uint8, 0xFF, 2),
}
"""By dtype: the bits as integers, those of the magnitude, and the smallest magnitude that is no number."""


@dataclass
class ValueTally:
    """How many numbers of a stored tensor are none, and the index of the first."""

    tensor: StoredTensor
    nonfinite: int = 0
    first: int | None = None

    def add(self, found: tuple[int, int | None]) -> None:
        """Take in what a slab came to."""
        count, first = found
        self.nonfinite += count
        if first is not None:
            self.first = first if self.first is None else min(self.first, first)


def value_jobs(tally: ValueTally) -> Iterator[Job]:
    """The slabs of one stored tensor; nothing where its dtype has only numbers."""
    t = tally.tensor
    if t.dtype not in FLOATS:
        return
    size = np.dtype(FLOATS[t.dtype][0]).itemsize
    for start in range(0, t.nbytes, SLAB):
        nbytes = min(SLAB, t.nbytes - start)
        yield Job((Range(t.file, t.offset + start, nbytes),), _counter(t.dtype, start // size), tally.add)


_PIECE: Final = 1 << 16
"""Numbers that are looked at together, so that they stay in the cache."""


def _counter(dtype: str, start: int) -> Callable[[Sequence[U8]], Any]:
    kind, magnitude, least = FLOATS[dtype]
    mask: Any = kind(magnitude)
    limit: Any = kind(least)

    def count(views: Sequence[U8]) -> tuple[int, int | None]:
        bits: Any = views[0].view(kind)
        scratch = np.empty(min(_PIECE, len(bits)), kind)
        found, first = 0, None
        for at in range(0, len(bits), _PIECE):
            piece = bits[at : at + _PIECE]
            masked = np.bitwise_and(piece, mask, out=scratch[: len(piece)])
            if masked.max() >= limit:
                where = np.flatnonzero(masked >= limit)
                found += len(where)
                first = start + at + int(where[0]) if first is None else first
        return found, first

    return count
