"""The heat maps of a validation's page: layers by experts, how much each lost and how often each is chosen."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.render.heat_map import Grid, HeatMap, View, heat_map
from ckpttool.render.page import code, text
from ckpttool.render.terminal import many

if TYPE_CHECKING:
    from ckpttool.comparison.parts import ExpertErrors
    from ckpttool.validator.report import PartResult, Validation

MOST_MAPS = 6
"""Heat maps of SQNR that are drawn: those of the worst kinds of parts."""
MOST_CELLS = 30_000
"""Cells of a heat map; Kimi-K2 has 60 layers of 384 experts."""

STACKED = re.compile(r"layer\.(\d+)\.(.+)")
"""A part of a layer, and its kind."""
EXPERTS = re.compile(r"experts \d+(, \d+)*( and \d+)?")
EXPERT = re.compile(r"\bexpert \d+")
"""How a failure names those that have changed places, or the first that is wrong."""


@dataclass(frozen=True)
class Wrong:
    """An expert of a lossy part; `why` it is wrong, "" where it is not."""

    part: PartResult
    layer: int
    kind: str
    error: ExpertErrors
    why: str


def experts(report: Validation) -> Iterator[Wrong]:
    """Every expert that differs."""
    from ckpttool.validator.budgets import budget_of

    told = {f.part: f.what for f in report.failures if f.level == "values"}
    for p in report.parts:
        place = STACKED.fullmatch(p.compared.part)
        if place is None or not p.compared.experts:
            continue
        layer, kind = int(place[1]), place[2]
        limit = report.asked.get("min_sqnr", budget_of(p.compared.format_b).min_sqnr)
        for e in p.compared.experts:
            why = "" if p.proof is not None else _why(p, e, limit) or _said_of(e, told.get(p.compared.part, ""))
            yield Wrong(p, layer, kind, e, why)


def _why(p: PartResult, e: ExpertErrors, limit: float | None) -> str:
    """What is wrong with an expert of a part whose claim was not met."""
    if e.nonfinite:
        return f"{many(e.nonfinite, 'value')} not finite on one side"
    if p.claim in ("bytes", "values"):
        return "differs where every value should be equal"
    if e.sqnr is None:
        return "has no signal left"
    return f"SQNR below {limit:g} dB" if limit is not None and e.sqnr < limit else ""


def _said_of(e: ExpertErrors, what: str) -> str:
    """What a failure says of its part, where it names this expert: damage that no SQNR shows."""
    found = EXPERTS.match(what) or EXPERT.search(what)
    return what if found and str(e.expert) in re.findall(r"\d+", found[0]) else ""


def sqnr_maps(report: Validation) -> str:
    """A heat map of SQNR, layer by expert, for each kind of part whose experts differ."""
    kinds: dict[str, list[Wrong]] = {}
    for found in experts(report):
        kinds.setdefault(found.kind, []).append(found)
    ranked = sorted(kinds, key=lambda k: (-sum(bool(w.why) for w in kinds[k]), min(map(_decibels, kinds[k]))))
    maps: list[tuple[str, str]] = []
    for kind in ranked:
        chart = _sqnr_map(report, kind, kinds[kind])
        if chart and len(maps) < MOST_MAPS:
            caption = f"SQNR of {code(kind)} by layer and expert, in dB"
            maps.append((kind, heat_map(f"sqnr-{len(maps)}", caption, chart, "sqnr")))
    left = len(kinds) - len(maps)
    out = "".join(drawn for _, drawn in maps)
    if len(maps) > 1:
        options = "".join(f"<option>{text(kind)}{_wrong(kinds[kind])}</option>" for kind, _ in maps)
        out = (
            f'<div class="controls js-only" data-tabs="sqnr"><label>Parts <select>{options}</select></label></div>{out}'
        )
    return out + (f'<p class="muted">Not drawn: {left:,} more of the kinds of parts.</p>' if left else "")


def _wrong(found: Sequence[Wrong]) -> str:
    count = sum(bool(w.why) for w in found)
    return f": {count:,} wrong" if count else ""


def _decibels(found: Wrong) -> float:
    return -math.inf if found.error.sqnr is None else found.error.sqnr


def _sqnr_map(report: Validation, kind: str, found: Sequence[Wrong]) -> HeatMap | None:
    """None: it would be too large."""
    rows = {}
    for p in report.parts:
        place = STACKED.fullmatch(p.compared.part)
        if place and place[2] == kind and p.compared.status in ("bytes", "values", "lossy") and p.compared.shape_a:
            rows[int(place[1])] = p.compared.shape_a[0]
    layers, count = sorted(rows), max(rows.values(), default=0)
    if not 0 < len(layers) * count <= MOST_CELLS:
        return None
    cells = {(layers.index(w.layer), w.error.expert): w for w in found if w.layer in rows}

    def grid(of: str) -> Grid:
        figures = {at: getattr(w.error, of) for at, w in cells.items()}
        return [[_whole(figures.get((r, c))) for c in range(count)] for r in range(len(layers))]

    sqnr = grid("sqnr")
    views = (
        View("SQNR, dB", sqnr, 2, falling=True),
        View("SQNR against the layer\u2019s median, dB", [_against_median(row) for row in sqnr], 2, True, True),
        View("relative error", grid("relative"), 4),
        View("differing values", grid("differing"), 0),
    )
    flagged = {at: w.why for at, w in cells.items() if w.why}
    names = tuple(map(str, range(count)))
    return HeatMap("layer", list(map(str, layers)), "expert", names, views, None, flagged, "wrong",
                   ("var(--floor)", "equal"))  # fmt: skip


def _whole(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _against_median(row: Sequence[float | None]) -> list[float | None]:
    known = [v for v in row if v is not None]
    middle = statistics.median(known) if known else 0.0
    return [None if v is None else v - middle for v in row]


def usage_map(report: Validation) -> str:
    """How often each expert is chosen, layer by layer."""
    rows = [x for x in report.layers if x.reference.tokens and len(x.candidate.tokens) == len(x.reference.tokens)]
    if not rows or len({len(x.reference.tokens) for x in rows}) != 1:
        return ""
    count = len(rows[0].reference.tokens)
    if len(rows) * count > MOST_CELLS:
        return ""

    def load(tokens: Sequence[int]) -> list[float | None]:
        total = max(1, sum(tokens))
        return [n * len(tokens) / total for n in tokens]

    change: list[list[float | None]] = [
        [b - a for a, b in zip(x.reference.tokens, x.candidate.tokens, strict=True)] for x in rows
    ]
    views = (
        View("reference, times an even share", [load(x.reference.tokens) for x in rows]),
        View("candidate, times an even share", [load(x.candidate.tokens) for x in rows]),
        View("candidate\u2019s choices more than the reference\u2019s", change, 0, True),
    )
    chart = HeatMap("layer", [str(x.layer) for x in rows], "expert", tuple(map(str, range(count))), views)
    return heat_map("usage", "How often each expert is chosen; 1 is an even share", chart)
