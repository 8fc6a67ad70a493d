"""From all that was found to the verdict: which budget holds, on which input, and what it does not allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ckpttool.validator.budgets import EXACT, FAILED, Budget, Verdict, verdict
from ckpttool.validator.failures import Failure

if TYPE_CHECKING:
    from ckpttool.validator.report import Forward, Predictions

ENOUGH_TOKENS: Final = 256
"""Fewer tokens of answers decide nothing, unless limits were asked for: their top-1 is off by too much."""


def option(name: str) -> str:
    """An option of the command by its name in Python."""
    return "--" + name.replace("_", "-")


def decide(
    failures: Sequence[Failure],
    fidelity: str | None,
    budget: Budget,
    forward: Forward | None,
    asked: Mapping[str, float],
) -> Verdict:
    """The verdict on the text, and on the prompts where they are enough to decide; `asked` are limits of the user's."""
    named = replace(budget, name="; ".join([budget.name, *(f"{option(k)} {v:g}" for k, v in asked.items())]))
    judged = _judged(failures, fidelity, named, forward.on_text if forward else None)
    if forward is None or forward.on_prompts is None or not decides(forward.on_prompts, asked):
        return judged
    more = _judged((), fidelity, replace(named, min_sqnr=None), forward.on_prompts)
    told = tuple(f"on prompts, {what}" for what in more.decided)
    if (judged.verdict == FAILED) != (more.verdict == FAILED):
        return judged if judged.verdict == FAILED else Verdict(FAILED, told)
    return judged if judged.verdict == EXACT else Verdict(judged.verdict, (*judged.decided, *told))


def _judged(failures: Sequence[Failure], fidelity: str | None, budget: Budget, found: Predictions | None) -> Verdict:
    if found is None:
        return verdict(failures, fidelity=fidelity, budget=budget)
    return verdict(
        failures, fidelity=fidelity, budget=budget, metrics=found.metrics, noise_floor=found.noise.kl_mean
    )  # fmt: skip


def decides(on_prompts: Predictions, asked: Mapping[str, float]) -> bool:
    """Whether the figures on prompts are held to the budget."""
    return bool(asked) or on_prompts.metrics.tokens >= ENOUGH_TOKENS


def own_failures(judged: Verdict, failures: Sequence[Failure], first_diverging: str | None) -> Iterator[Failure]:
    """What the verdict itself found beyond `failures`: a budget that is not kept, or predictions above the noise.

    Where values are equal, the first layer that diverges is where to look for what is not.
    """
    if judged.verdict != FAILED:
        return
    place = first_diverging or ""
    layer = int(place.removeprefix("layer.")) if place.startswith("layer.") else None
    for what in judged.decided[len(failures) :]:
        yield Failure(None, layer if "values are equal" in what else None, what, "verdict")
