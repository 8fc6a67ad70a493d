"""What `validate` finds, as one document: `validation.v1`.

Figures of predictions are those of `metrics`, of layers those of `lockstep` laid flat. All are plain numbers and names,
so that a report needs no torch to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.validator.failures import Failure

if TYPE_CHECKING:
    from ckpttool.comparison.parts import PartComparison
    from ckpttool.validator.budgets import Budget
    from ckpttool.validator.drift import Drift
    from ckpttool.validator.metrics import Metrics
    from ckpttool.validator.routing import ExpertUse

LEVELS: Final = ("structure", "values", "forward")
"""Each includes those before it."""

STEPS_A_DECADE: Final = 2
"""Bins of a histogram for each factor of ten: two make a bin a factor of the square root of ten wide."""


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints; `formats` counts its parts by format. `arch` is None where no table of ours fits."""

    source: str
    arch: str | None
    dialect: str | None
    container: str
    nbytes: int
    formats: dict[str, int]


@dataclass(frozen=True)
class PartResult:
    """A part and what was to come of it.

    `claim` is the fidelity that a conversion between its formats promises (None: nobody here decodes it); `proof` how
    it was met: "bytes", "values", "recipe best" (remade from the reference, equal in every block), "rounding" (every
    value is the nearest one), "budget" (its SQNR is enough), or None where it was not met or nothing was read.
    """

    compared: PartComparison
    claim: str | None
    proof: str | None


@dataclass(frozen=True)
class Histogram:
    """Counts of positive numbers by size: `edges` are one more than `counts`; `zeros` are those that are 0."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int


@dataclass(frozen=True)
class Predictions:
    """The figures of one kind of input.

    `noise` is the reference against itself with another order of summation, `forced` the candidate with the reference's
    choice of experts (None where that pass was left out).
    """

    metrics: Metrics
    noise: Metrics
    forced: Metrics | None
    kl: Histogram


@dataclass(frozen=True)
class LayerResult:
    """What one layer says, over all tokens of text and prompts.

    `drift` is the relative error of the candidate's residual stream behind the layer (`drift_median` that of single
    tokens), `noise` the same of the reference against itself, `forced` with the reference's choice of experts, `own` of
    this layer alone, given the reference's stream; None: not finite, or not asked for. `broken` counts tokens with a
    number that is not finite. `flips` counts tokens whose set of experts differs, `choices` the choices not shared, and
    `noise_flips` the flips of the reference against itself.
    """

    layer: int
    drift: float | None
    drift_median: float | None
    broken: int
    noise: float | None
    forced: float | None
    own: float | None
    flips: int
    choices: int
    noise_flips: int
    reference: ExpertUse
    candidate: ExpertUse


@dataclass(frozen=True)
class Forward:
    """How the forward passes were run, and what of them is of no single layer.

    `text` says which text ("packaged", or its path). `numbers`: "FP32" (TF32 off) or "BF16". `seconds` of both passes;
    `peak_gpu_nbytes` is None on a CPU. `first_diverging` is the first of embed, layer.0, ..., head beyond noise.
    """

    text: str
    tokens: int
    sequences: int
    device: str
    numbers: str
    seconds: float
    read_nbytes: int
    peak_gpu_nbytes: int | None
    embed: Drift
    logits: Drift
    logits_noise: Drift
    logits_forced: Drift | None
    first_diverging: str | None
    on_text: Predictions
    on_prompts: Predictions | None
    prompts: int
    reasoning_effort: str | None


@dataclass(frozen=True)
class Validation:
    """The report. `fidelity` is the lowest of all parts ("bytes", "values", "lossy"; None: no values were compared).

    `metrics` are those on the text, `layers` the forward passes'; None and none below level `forward`. `decided` says
    by what the verdict came about, the most telling first. `budget` is what lossy parts were held to.
    """

    schema: str
    reference: Side
    candidate: Side
    level: str
    verdict: str
    decided: tuple[str, ...]
    fidelity: str | None
    failures: tuple[Failure, ...]
    budget: Budget
    asked: dict[str, float]
    parts: tuple[PartResult, ...]
    metrics: Metrics | None
    layers: tuple[LayerResult, ...]
    forward: Forward | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the candidate is right: exact, or within its budget."""
        return self.verdict != "failed"


def histogram(values: NDArray[np.float64] | Sequence[float]) -> Histogram:
    """Of numbers that are finite and not negative, by factors of the square root of ten over what they span."""
    found = np.asarray(values, np.float64)
    positive = found[found > 0]
    zeros = int(found.size - positive.size)
    if not positive.size:
        return Histogram((), (), zeros)
    low, high = (float(np.log10(x)) for x in (positive.min(), positive.max()))
    first, last = int(np.floor(low * STEPS_A_DECADE)), int(np.floor(high * STEPS_A_DECADE)) + 1
    edges = 10.0 ** (np.arange(first, last + 1) / STEPS_A_DECADE)
    # What lies on the outermost edges by rounding belongs inside.
    counts = np.histogram(np.clip(positive, edges[0], edges[-1]), edges)[0]
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), zeros)
