"""What a lossy conversion may cost, by the format it went to, and the verdict.

A conversion that keeps bytes or values has no budget: one value that differs fails it. For the others the defaults
stand well above what a right conversion costs and well below what a wrong one does. Where they come from:

| format | the trained fixture, by `tests/bench/recipe_quality.py`; SQNR of its lossy parts |
|---|---|
| F16 | KL 4e-13; 1e-7 of weights that F16 does not hold, whose SQNR is 74 dB |
| BF16 | KL 9e-5, top-1 99.8 % of weights that BF16 does not hold, whose SQNR is 56 dB |
| Q8_0 | KL 2.7e-4, top-1 99.3 %, ratio 1.0000, SQNR 45 dB |
| MXFP4, all recipes | KL 0.016 to 0.018, top-1 91.3 to 92.1 %, ratio 0.995 to 1.003, SQNR 18.2 to 18.8 dB |

Published, by llama-perplexity: F16 of Mistral-Nemo below 5e-6 (ggml-org/llama.cpp pull 10714); Q8_0 of Llama-3-8B KL
0.0014, ratio 1.0004, and its q4_0 0.072 (tools/perplexity/README.md, pull 6936); experts of a 35B in NVFP4 0.068, top-1
89.3 %, ratio 1.037 (a comment on pull 25153). The fixture was trained with MXFP4's rounding in the loop, as gpt-oss
was; models that were not lose more, so MXFP4's budget is not far below thrice what q4_0 costs. Of random weights MXFP4
keeps 19.1 dB (normal, `best`) to 16.4 dB (Student's t with 3 degrees of freedom, `rceil`; maxima just below a power of
two, `ocp`); where experts, rows, nibbles or gate and up are mixed up, less than 3 dB are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from ckpttool.comparison.parts import PartComparison, Status
from ckpttool.validator.failures import Failure, part_failure, so_many
from ckpttool.validator.metrics import Metrics

EXACT, WITHIN, FAILED = "exact", "within budget", "failed"


@dataclass(frozen=True)
class Budget:
    """The most that a conversion may cost; None: not asked for. `name` says whose it is.

    `max_kl` is the mean KL divergence in nats, `min_top1` a share of tokens, `max_ppl_ratio` the candidate's perplexity
    over the reference's, `min_sqnr` that of each lossy part and each of its experts, in dB.
    """

    name: str
    max_kl: float | None = None
    min_top1: float | None = None
    max_ppl_ratio: float | None = None
    min_sqnr: float | None = None

    def overridden(
        self,
        *,
        max_kl: float | None = None,
        min_top1: float | None = None,
        max_ppl_ratio: float | None = None,
        min_sqnr: float | None = None,
    ) -> Budget:
        """The same with what the user asked for."""
        asked = {"max_kl": max_kl, "min_top1": min_top1, "max_ppl_ratio": max_ppl_ratio, "min_sqnr": min_sqnr}
        given = {key: value for key, value in asked.items() if value is not None}
        return replace(self, **given) if given else self  # type: ignore[arg-type]


NO_LOSS: Final = Budget("no loss")
"""Of what keeps every value: those are compared one by one, and `verdict` holds predictions against the noise floor."""

BUDGETS: Final = (
    Budget("F16", 1e-3, 0.99, 1.005, 60.0),
    Budget("BF16", 5e-3, 0.98, 1.01, 45.0),
    Budget("Q8_0", 0.01, 0.97, 1.02, 35.0),
    Budget("MXFP4", 0.2, 0.80, 1.15, 15.0),
)
"""The defaults, the strictest first."""

OTHER: Final = Budget("another format", 0.2, 0.80, 1.15, 12.0)
"""Of formats that are decoded but not made here: llama.cpp's of two to six bits, at what its q4_0 costs."""

FLOOR_FACTOR: Final = 10.0
SMALLEST_FLOOR: Final = 1e-9
"""Equal values may give a mean KL of so many times the noise floor's, and of this much where there is none: in FP32 two
orders of summation differ by some 1e-12, and whatever is wrong with a model by more than 1e-6."""


def budget_of(format_name: str | None) -> Budget:
    """The default of a lossy part by its format in the candidate; of several ("F16+BF16") the most lenient."""
    known = {b.name: b for b in BUDGETS}
    found = [known.get(name, OTHER) for name in (format_name or "").split("+")]
    return max(found, key=[*BUDGETS, OTHER].index)


def budget_for(parts: Iterable[PartComparison]) -> Budget:
    """The default of a whole conversion: of its most lenient lossy part, or where there is none `NO_LOSS`."""
    found = [budget_of(p.format_b) for p in parts if p.status is Status.lossy]
    return max(found, key=[*BUDGETS, OTHER].index) if found else NO_LOSS


def part_failures(parts: Iterable[PartComparison], *, min_sqnr: float | None = None) -> list[Failure]:
    """Lossy parts that lost more than their format's budget, or than `min_sqnr`; and those that cannot be judged.

    An expert counts by itself: two of 128 that have changed places hardly move the SQNR of the whole part.
    """
    out = []
    for part in parts:
        if part.status is not Status.lossy:
            continue
        limit = budget_of(part.format_b).min_sqnr if min_sqnr is None else min_sqnr
        assert limit is not None
        what = _lost(part, limit)
        if what is not None:
            whose = "" if min_sqnr is not None else f" of {budget_of(part.format_b).name}"
            out.append(part_failure(part.part, what.format(limit=f"the {limit:g} dB{whose}"), "values"))
    return out


def _lost(part: PartComparison, limit: float) -> str | None:
    """What is too much in a lossy part; None where nothing is."""
    if part.differing is None:
        return f"differs, and its values cannot be compared ({part.format_a}, {part.format_b})"
    if part.nonfinite:
        counted = so_many(part.nonfinite, prod(part.shape_a or ()), "value")
        return f"{counted} not the reference's, and not finite on one side or both"
    worst = min(part.experts, key=lambda e: _decibels(e.sqnr, e.differing), default=None)
    if worst is not None and _decibels(worst.sqnr, worst.differing) < limit:
        return f"SQNR {_shown(worst.sqnr)} of expert {worst.expert} is below {{limit}}"
    if _decibels(part.sqnr, part.differing) < limit:
        return f"SQNR {_shown(part.sqnr)} is below {{limit}}"
    return None


def _decibels(sqnr: float | None, differing: int) -> float:
    """None is said of an SQNR without signal, which is as bad as it gets, and without noise, which is no loss."""
    if sqnr is not None:
        return sqnr
    return float("-inf") if differing else float("inf")


def _shown(sqnr: float | None) -> str:
    return "without any signal" if sqnr is None else f"{sqnr:.1f} dB"


@dataclass(frozen=True)
class Verdict:
    """`verdict` is "exact", "within budget" or "failed"; `decided` says by what, the most telling first."""

    verdict: str
    decided: tuple[str, ...]


def verdict(
    failures: Sequence[Failure],
    *,
    fidelity: str | None,
    budget: Budget = NO_LOSS,
    metrics: Metrics | None = None,
    noise_floor: float | None = None,
) -> Verdict:
    """The verdict on all that was found.

    `failures` are those of all levels, `fidelity` the lowest of all parts ("bytes", "values", "lossy"; None: values
    were not compared), `metrics` the forward pass's, `noise_floor` the mean KL of the reference against itself.
    """
    over = [] if metrics is None else list(_over(metrics, budget))
    if metrics is not None and fidelity in ("bytes", "values"):
        over += _above_floor(metrics, noise_floor)
    if failures or over:
        return Verdict(FAILED, (*(_told(f) for f in failures), *over))
    if fidelity in ("bytes", "values"):
        predicted = "" if metrics is None else ", and predictions differ by no more than rounding does"
        return Verdict(EXACT, (f"every {'byte' if fidelity == 'bytes' else 'value'} is equal{predicted}",))
    if fidelity is None:
        return Verdict(WITHIN, ("headers and side files agree; no values were compared",))
    return Verdict(WITHIN, tuple(_kept(metrics, budget)))


def _told(failure: Failure) -> str:
    return f"{failure.part}: {failure.what}" if failure.part else failure.what


def _over(m: Metrics, budget: Budget) -> Iterable[str]:
    """Each limit that is not kept. Without a single token nothing is kept."""
    if not m.tokens:
        yield "not one token could be measured"
        return
    for name, value, limit, kept in _limits(m, budget):
        if not kept:
            yield f"{name} {value:.4g} is {'below' if name == 'top-1' else 'above'} {limit:g} ({budget.name})"


def _kept(m: Metrics | None, budget: Budget) -> Iterable[str]:
    if budget.min_sqnr is not None:
        yield f"every lossy part keeps its SQNR ({budget.name}: {budget.min_sqnr:g} dB)"
    for name, value, limit, _ in _limits(m, budget) if m is not None else ():
        yield f"{name} {value:.4g} is {'at least' if name == 'top-1' else 'at most'} {limit:g} ({budget.name})"


def _limits(m: Metrics, budget: Budget) -> Iterable[tuple[str, float, float, bool]]:
    """Name, value, limit, and whether it is kept, of what the budget asks for."""
    if budget.max_kl is not None and m.kl_mean is not None:
        yield "mean KL", m.kl_mean, budget.max_kl, m.kl_mean <= budget.max_kl
    if budget.min_top1 is not None and m.top1 is not None:
        yield "top-1", m.top1, budget.min_top1, m.top1 >= budget.min_top1
    if budget.max_ppl_ratio is not None and m.ppl_ratio is not None:
        yield "perplexity ratio", m.ppl_ratio, budget.max_ppl_ratio, m.ppl_ratio <= budget.max_ppl_ratio


def _above_floor(m: Metrics, noise_floor: float | None) -> Iterable[str]:
    """Predictions that differ although the values do not: then something else does."""
    limit = max(SMALLEST_FLOOR, FLOOR_FACTOR * (noise_floor or 0.0))
    if m.kl_mean is not None and m.kl_mean > limit:
        yield f"values are equal, but mean KL {m.kl_mean:.3g} is above the {limit:.1g} that rounding explains"
