"""What a validation's candidate was held to, limit by limit, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.render.page import Cell, Column, figure, number, table, text

if TYPE_CHECKING:
    from ckpttool.comparison.parts import PartComparison
    from ckpttool.validator.metrics import Metrics
    from ckpttool.validator.report import PartResult, Validation


@dataclass(frozen=True)
class Limit:
    """One line of the budget: `measured` is None where nothing was; `kept` None where it does not decide."""

    name: str
    limit: str
    whose: str
    measured: float | None
    where: str
    kept: bool | None


def limits(report: Validation) -> list[Limit]:
    """What was asked of the candidate, what came of it."""
    inputs = [] if report.metrics is None else [("on the text", report.metrics)]
    prompts = report.forward.on_prompts if report.forward else None
    if prompts is not None:
        inputs.append(("on prompts", prompts.metrics))
    found = [row for where, m in inputs for row in _predicted(report, m, where)]
    return [*found, *_of_equal_values(report), *_signal(report)]


def _predicted(report: Validation, m: Metrics, where: str) -> Iterator[Limit]:
    """Limits of the figures of one kind of input."""
    from ckpttool.validator.decision import held_to

    b = report.budget
    held = held_to(b, m.tokens, report.asked)
    figures = (
        ("mean KL", "max_kl", b.max_kl, m.kl_mean, "at most"),
        ("top-1 agreement", "min_top1", b.min_top1, m.top1, "at least"),
        ("perplexity ratio", "max_ppl_ratio", b.max_ppl_ratio, m.ppl_ratio, "at most"),
    )
    for name, key, limit, value, word in figures:
        if limit is not None:
            kept = None if value is None else value <= limit if word == "at most" else value >= limit
            deciding = getattr(held, key) is not None
            place = where if deciding else f"{where}; too few tokens to decide"
            yield Limit(name, f"{word} {limit:g}", _whose(report, key), value, place, kept if deciding else None)


def _whose(report: Validation, key: str) -> str:
    return "asked for" if key in report.asked else f"default for {report.budget.name}"


def _of_equal_values(report: Validation) -> Iterator[Limit]:
    """Where every value is equal, predictions may differ by what rounding explains."""
    from ckpttool.validator.budgets import FLOOR_FACTOR, SMALLEST_FLOOR

    if report.forward is None or report.metrics is None or report.fidelity not in ("bytes", "values"):
        return
    value, floor = report.metrics.kl_mean, report.forward.on_text.noise.kl_mean or 0.0
    limit = max(SMALLEST_FLOOR, FLOOR_FACTOR * floor)
    kept = None if value is None else value <= limit
    whose = "what rounding explains"
    yield Limit("mean KL of equal values", f"at most {number(limit, 2)}", whose, value, "on the text", kept)


def _signal(report: Validation) -> Iterator[Limit]:
    """The worst SQNR of the lossy parts in each format, and of their experts."""
    from ckpttool.validator.budgets import budget_of

    held: dict[str, list[PartResult]] = {}
    asked = report.asked.get("min_sqnr")
    for p in report.parts:
        proved = asked is None and p.proof not in (None, "budget")
        decoded = p.compared.differing is not None
        if p.compared.status == "lossy" and p.claim not in ("bytes", "values") and decoded and not proved:
            held.setdefault(p.compared.format_b or "?", []).append(p)
    for name, parts in held.items():
        limit = asked if asked is not None else budget_of(name).min_sqnr
        if limit is None:
            continue
        value, where = min((found for p in parts for found in _decibels(p.compared)), default=(None, ""))
        if value is not None and not math.isfinite(value):
            value, where = None, f"{where} has no signal left"
        kept = value is not None and value >= limit
        whose = "asked for" if asked is not None else f"default for {budget_of(name).name}"
        yield Limit(f"SQNR of {name} parts", f"at least {limit:g} dB", whose, value, where, kept)


def _decibels(p: PartComparison) -> Iterator[tuple[float, str]]:
    """SQNR of a part and of each expert, and where that is."""
    for sqnr, where in ((p.sqnr, p.part), *((e.sqnr, f"{p.part}, expert {e.expert}") for e in p.experts)):
        yield (-math.inf if sqnr is None else sqnr), where


def budget_table(report: Validation) -> str:
    """Each limit, whose it is, and whether it was kept."""
    rows = [
        (Cell(text(x.name)), _short(x.limit), _short(x.whose), figure(x.measured), Cell(text(x.where)),
         Cell(_kept(x.kept)))
        for x in limits(report)
    ]  # fmt: skip
    if not rows:
        return "<p>Nothing may be lost: every part\u2019s conversion keeps its values.</p>" if report.fidelity else ""
    columns = (Column("limit"), Column("allowed"), Column("whose"), Column("measured", True), Column("where"),
               Column("kept"))  # fmt: skip
    return table("budget-table", "Budget", columns, rows, sort=False)


def _kept(kept: bool | None) -> str:
    if kept is None:
        return '<span class="muted nowrap">not decided</span>'
    return '<span class="good nowrap">\u2713 kept</span>' if kept else '<span class="bad nowrap">\u2717 not kept</span>'


def _short(words: str) -> Cell:
    return Cell(f'<span class="nowrap">{text(words)}</span>')
