"""How far two residual streams, or two lots of logits, are apart.

Shapes: T tokens, H numbers of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Tensor = torch.Tensor

ROWS_AT_ONCE = 1024
"""Rows that are widened to float64 at a time."""

DIVERGES = 4.0
"""Where drift is beyond this many times the noise floor of its place, the candidate has diverged there.

The noise floor is what the reference drifts from itself when every sum over a contraction axis runs from its other end:
another machine, batch or library would do as much. Both are norms over all tokens, so two lots of noise alone are
rarely a factor of two apart; a factor of four needs another cause: a weight, a setting, a choice of experts. A
candidate whose values are all equal, whatever its dialect, has no drift at all.
"""


@dataclass(frozen=True)
class Drift:
    """The relative error of b against a: `whole` is ||b - a|| / ||a|| over all tokens, `median` that of single tokens.

    None: not finite. `broken` counts tokens with a number in b that is not finite.
    """

    whole: float | None
    median: float | None
    broken: int

    def beyond(self, noise: Drift) -> bool:
        """Whether this is more than noise can be."""
        if self.whole is None or noise.whole is None:
            return self.broken > noise.broken
        return self.whole > DIVERGES * noise.whole


class DriftSum:
    """Takes in rows of both, and sums squares in float64."""

    def __init__(self) -> None:
        self._error: list[Tensor] = []
        self._size: list[Tensor] = []
        self._broken = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Rows [n, H] of both, on one device."""
        for at in range(0, len(a), ROWS_AT_ONCE):
            x, y = a[at : at + ROWS_AT_ONCE].double(), b[at : at + ROWS_AT_ONCE].double()
            self._error.append((y - x).square_().sum(-1).cpu())
            self._size.append(x.square().sum(-1).cpu())
            self._broken += int((~y.isfinite()).any(-1).sum())

    def drift(self) -> Drift:
        """Over all rows so far; of none it is nothing."""
        if not self._error:
            return Drift(0.0, 0.0, 0)
        error, size = torch.cat(self._error), torch.cat(self._size)
        # A row that is equal has no error, even where it is all zeros.
        each = torch.where(error == 0, 0.0, (error / size).sqrt())
        total = float(error.sum())
        whole = 0.0 if total == 0 else math.sqrt(total / float(size.sum())) if float(size.sum()) else math.inf
        return Drift(_finite(whole), _finite(float(each.median())), self._broken)


def drift(a: Tensor, b: Tensor) -> Drift:
    """Of all rows at once."""
    out = DriftSum()
    out.add(a, b)
    return out.drift()


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
