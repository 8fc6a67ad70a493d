"""What round trips find, as one document: `round_trips.v1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpttool.validator.failures import Failure
    from ckpttool.validator.report import Side


@dataclass(frozen=True)
class RoundTrip:
    """One way there and back.

    `recipe` made MXFP4 of other numbers (None: nothing did). `back_to` is the result's dialect. `fidelity` is what came
    back; `there` and `back` are what each of the two conversions kept (None: values were not compared). `proofs` counts
    parts by how the conversion there was proven. `nbytes` are those of the tensors there, `bits` for each of the
    model's parameters; `seconds` of both conversions. `sqnr` is the lowest of a lossy part, in dB.

    Below come the figures of `metrics`, result against source; `noise_kl_mean` is the floor under the mean KL. They are
    None below level `forward`.
    """

    via: str
    recipe: str | None
    back_to: str | None
    verdict: str
    decided: tuple[str, ...]
    fidelity: str | None
    there: str | None
    back: str | None
    proofs: dict[str, int]
    nbytes: int
    bits: float
    seconds: float
    sqnr: float | None
    tokens: int | None
    kl_mean: float | None
    kl_mean_se: float | None
    kl_median: float | None
    kl_p99: float | None
    kl_max: float | None
    noise_kl_mean: float | None
    top1: float | None
    top1_se: float | None
    top5: float | None
    ppl_reference: float | None
    ppl_candidate: float | None
    ppl_ratio: float | None
    ppl_ratio_se: float | None
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RoundTrips:
    """The report. `then` is what was asked for (None: the form of the source); `verdict` is the worst of all trips'."""

    schema: str
    source: Side
    then: str | None
    level: str
    verdict: str
    trips: tuple[RoundTrip, ...]

    @property
    def ok(self) -> bool:
        """Whether every round trip is exact, or within its budget."""
        return self.verdict != "failed"
