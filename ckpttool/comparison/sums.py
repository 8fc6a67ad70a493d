"""Errors added up so that no order shows: rows come as float64, and are added as integers.

A row's sums are float64 in the order of `codecs.measure`. Everything above a row is exact: numbers, dialects, slabs and
threads being whatever they are, the same values give the same bits of every figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.measure import RowErrors

_POINT: Final = 1200
"""Bits behind the point of a sum: below the last bit of the smallest float64."""

_HALF: Final = 26
_LARGEST: Final = float(np.finfo(np.float64).max)


def exact_sum(values: NDArray[np.float64]) -> int:
    """The sum of non-negative float64, exactly, in units of 2^-1200; an infinite one counts as the largest."""
    fraction, exponent = np.frexp(np.minimum(values, _LARGEST))
    whole = np.ldexp(fraction, 53).astype(np.int64)
    total = 0
    for e in np.unique(exponent):
        of = whole[exponent == e]
        # In halves of 27 and 26 bits, so that 2^36 of them fit into an int64.
        found = (int((of >> _HALF).sum()) << _HALF) + int((of & ((1 << _HALF) - 1)).sum())
        total += found << (int(e) - 53 + _POINT)
    return total


@dataclass(slots=True)
class Tally:
    """The errors of b against a over some rows.

    `noise` is the sum of (b - a)^2 and `signal` that of a^2, over elements finite on both sides, in units of 2^-1200;
    `first` is the row and column of the first pair that differs, be it only in the sign of zero.
    """

    noise: int = 0
    signal: int = 0
    largest: float = 0.0
    differing: int = 0
    nonfinite: int = 0
    zero_signs: int = 0
    first: tuple[int, int] | None = None

    @classmethod
    def of(cls, rows: RowErrors, start: int, stop: int) -> Tally:
        """Of rows [start, stop) of what was measured; `first` is left to the caller, who has the values."""
        at = slice(start, stop)
        return cls(
            exact_sum(rows.noise[at]), exact_sum(rows.signal[at]), float(rows.largest[at].max(initial=0.0)),
            int(rows.differing[at].sum()), int(rows.nonfinite[at].sum()), int(rows.zero_signs[at].sum()),
        )  # fmt: skip

    def add(self, other: Tally) -> None:
        """Take in the errors of other rows."""
        self.noise += other.noise
        self.signal += other.signal
        self.largest = max(self.largest, other.largest)
        self.differing += other.differing
        self.nonfinite += other.nonfinite
        self.zero_signs += other.zero_signs
        if other.first is not None:
            self.first = other.first if self.first is None else min(self.first, other.first)

    @property
    def relative(self) -> float | None:
        """|b - a| / |a|, both as Euclidean norms over all elements; None where a is zero and b is not."""
        if not self.noise:
            return 0.0
        # Square roots apart: the ratio of the squares may leave float64 where that of the norms does not.
        return _root(self.noise) / _root(self.signal) if self.signal else None

    @property
    def sqnr(self) -> float | None:
        """10 log10 of signal over noise, in dB; None where either is zero."""
        return 10 * (math.log10(self.signal) - math.log10(self.noise)) if self.noise and self.signal else None


def _root(total: int) -> float:
    """The square root of a sum, to the last bit of float64 or the one before."""
    return math.ldexp(math.isqrt(total << 240), -(_POINT + 240) // 2)
