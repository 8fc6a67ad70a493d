"""An axis of powers of ten, where 0 and what is not finite have a place of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
MOST_TICKS = 8
BAND = 1
"""How far from the powers of ten the other places are, in decades."""


@dataclass(frozen=True)
class LogAxis:
    """Decades `first` to `last` (10^first, ...); with `zero` 0 lies below them, with `beyond` infinity above."""

    first: int
    last: int
    zero: bool = False
    beyond: bool = False

    def at(self, value: float) -> float:
        """Where `value`, which is not negative, lies, in decades."""
        if value == 0:
            return self.first - BAND
        return math.log10(value) if math.isfinite(value) else self.last + BAND

    @property
    def domain(self) -> tuple[float, float]:
        """Both ends, in decades."""
        more = 1.5 * BAND
        return self.first - (more if self.zero else 0), self.last + (more if self.beyond else 0)

    @property
    def breaks(self) -> list[float]:
        """Where the powers of ten end and something else begins."""
        ends = ((self.first - BAND / 2, self.zero), (self.last + BAND / 2, self.beyond))
        return [at for at, there in ends if there]

    def ticks(self) -> dict[int, str]:
        """Labels by place."""
        step = max(1, math.ceil((self.last - self.first) / MOST_TICKS))
        out = {n: power(n) for n in range(self.first, self.last + 1, step)}
        if self.zero:
            out[self.first - BAND] = "0"
        if self.beyond:
            out[self.last + BAND] = "not finite"
        return out


def power(n: int) -> str:
    """10 to the n-th, as it is written."""
    return {0: "1", 1: "10"}.get(n, f"10{str(n).translate(SUPERSCRIPTS)}")


def log_axis(values: Iterable[float]) -> LogAxis:
    """The axis that has room for all of `values`: at least one decade."""
    found = list(values)
    logs = [math.log10(v) for v in found if v > 0 and math.isfinite(v)]
    first = math.floor(min(logs)) if logs else -1
    last = max(first + 1, math.ceil(max(logs)) if logs else 0)
    return LogAxis(first, last, 0.0 in found, not all(map(math.isfinite, found)))
