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
    """Takes in rows of both, and sums squares in float64. On a GPU nothing waits for it but `drift`."""

    def __init__(self) -> None:
        self._error: list[Tensor] = []
        self._size: list[Tensor] = []
        self._broken: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        """Rows [n, H] of both, on one device."""
        for at in range(0, len(a), ROWS_AT_ONCE):
            x, y = a[at : at + ROWS_AT_ONCE], b[at : at + ROWS_AT_ONCE]
            error, size, broken = _by_kernel(x, y) if x.is_cuda else _squares(x, y)
            self._error.append(error)
            self._size.append(size)
            self._broken.append(broken)

    def drift(self) -> Drift:
        """Over all rows so far; of none it is nothing."""
        if not self._error:
            return Drift(0.0, 0.0, 0)
        error, size, broken = (torch.cat(x).cpu() for x in (self._error, self._size, self._broken))
        # A row that is equal has no error, even where it is all zeros.
        each = torch.where(error == 0, 0.0, (error / size).sqrt())
        total = float(error.sum())
        whole = 0.0 if total == 0 else math.sqrt(total / float(size.sum())) if float(size.sum()) else math.inf
        return Drift(_finite(whole), _finite(float(each.median())), int(broken.sum()))


def _squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the squares of y - x and of x, float64, and whether y is not finite."""
    wide = x.double()
    return (y.double() - wide).square_().sum(-1), wide.square_().sum(-1), (~y.isfinite()).any(-1)


def _by_kernel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_squares` in one pass over float32 rows."""
    from ckpttool.validator.fused_kernels import row_squares

    return row_squares(x, y)


def drift_sum(a: Tensor, b: Tensor) -> DriftSum:
    """Of all rows at once."""
    out = DriftSum()
    out.add(a, b)
    return out


def drift(a: Tensor, b: Tensor) -> Drift:
    """Of all rows at once."""
    return drift_sum(a, b).drift()


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
