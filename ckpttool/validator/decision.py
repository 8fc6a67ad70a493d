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
"""Fewer tokens are not held to a format's default: the trained fixture's top-1 in MXFP4 is 85 %, and of 64 tokens 78 to
84 %, by recipe, where the default is 80 %. Limits that were asked for hold for any number."""

PREDICTED: Final = ("max_kl", "min_top1", "max_ppl_ratio")
"""The limits that predictions are held to."""


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
    """The verdict on text and prompts; `asked` are limits of the user's."""
    told_limits = " ".join(f"{option(name)} {limit:g}" for name, limit in asked.items())
    named = replace(budget, name=f"{budget.name}; {told_limits}") if asked else budget
    if forward is None:
        return verdict(failures, fidelity=fidelity, budget=named)
    judged = _judged(failures, fidelity, named, forward.on_text, asked)
    if forward.on_prompts is None:
        return judged
    more = _judged((), fidelity, replace(named, min_sqnr=None), forward.on_prompts, asked)
    told = tuple(f"on prompts, {what}" for what in more.decided)
    if (judged.verdict == FAILED) != (more.verdict == FAILED):
        return judged if judged.verdict == FAILED else Verdict(FAILED, told)
    return judged if judged.verdict == EXACT else Verdict(judged.verdict, (*judged.decided, *told))


def _judged(
    failures: Sequence[Failure], fidelity: str | None, budget: Budget, found: Predictions, asked: Mapping[str, float]
) -> Verdict:
    limits = held_to(budget, found.metrics.tokens, asked)
    return verdict(failures, fidelity=fidelity, budget=limits, metrics=found.metrics, noise_floor=found.noise.kl_mean)


def held_to(budget: Budget, tokens: int, asked: Mapping[str, float]) -> Budget:
    """What of a budget so many tokens are held to."""
    if tokens >= ENOUGH_TOKENS:
        return budget
    left = {name: None for name in PREDICTED if name not in asked}
    return replace(budget, **left)  # type: ignore[arg-type]


def too_few(budget: Budget, forward: Forward, asked: Mapping[str, float]) -> Iterator[str]:
    """Of each kind of input that is not held to all of the budget, why."""
    for found, where in ((forward.on_text, "the text"), (forward.on_prompts, "answers")):
        if found and found.metrics.tokens > 0 and held_to(budget, found.metrics.tokens, asked) != budget:
            n = "1 token" if found.metrics.tokens == 1 else f"{found.metrics.tokens} tokens"
            yield f"{n} of {where} are too few to be held to the budget of {budget.name}; {ENOUGH_TOKENS} decide"


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
