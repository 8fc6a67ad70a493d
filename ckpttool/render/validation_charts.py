"""The drawings of a validation's page: drift and flips by layer, KL as histograms, experts as heat maps."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.render.heat_map import Grid, HeatMap, View, heat_map
from ckpttool.render.log_axis import log_axis
from ckpttool.render.page import code, number, text
from ckpttool.render.plots import Bins, Places, Rule, Series, columns, lines, spread

if TYPE_CHECKING:
    from ckpttool.comparison.parts import ExpertErrors
    from ckpttool.validator.report import PartResult, Predictions, Validation

MOST_MAPS = 6
"""Heat maps of SQNR that are drawn: those of the worst kinds of parts."""
MOST_CELLS = 30_000
"""Cells of a heat map; Kimi-K2 has 60 layers of 384 experts."""

PASSES = (
    ("drift", "candidate", "var(--l0)", "circle"),
    ("forced", "with the reference\u2019s choice of experts", "var(--l1)", "square"),
    ("own", "each layer by itself", "var(--l2)", "diamond"),
)
"""The lines of the drift chart: field of a layer, words, colour, symbol."""

STACKED = re.compile(r"layer\.(\d+)\.(.+)")
"""A part of a layer, and its kind."""


@dataclass(frozen=True)
class Place:
    """A place on the way through the model, and how far the candidate is off behind it.

    `values` has one for each of `PASSES`, `noise` is the floor: None where there is none, infinity: not finite.
    """

    name: str
    label: str
    values: tuple[float | None, ...]
    noise: float | None
    broken: int


def way(report: Validation) -> list[Place]:
    """Embedding, layers, head."""
    if report.forward is None:
        return []
    f = report.forward
    forced = f.logits_forced is not None or any(x.forced is not None for x in report.layers)
    own = any(x.own is not None for x in report.layers)
    places = [Place("embed", "embed", (_finite(f.embed.whole), None, None), None, f.embed.broken)]
    for x in report.layers:
        values = (_finite(x.drift), _finite(x.forced) if forced else None, _finite(x.own) if own else None)
        places.append(Place(f"layer.{x.layer}", str(x.layer), values, _finite(x.noise), x.broken))
    at_head = None if f.logits_forced is None else _finite(f.logits_forced.whole)
    values = (_finite(f.logits.whole), at_head, None)
    return [*places, Place("head", "head", values, _finite(f.logits_noise.whole), f.logits.broken)]


def _finite(value: float | None) -> float:
    """Infinity for what is not finite."""
    return value if value is not None and math.isfinite(value) else math.inf


def drift_chart(report: Validation) -> str:
    """Relative error of the residual stream, place by place, over the noise floor."""
    places = way(report)
    if report.forward is None or not places:
        return ""
    used = [n for n in range(len(PASSES)) if any(p.values[n] is not None for p in places)]
    series = [
        Series(PASSES[n][1], PASSES[n][2], PASSES[n][3], [p.values[n] for p in places]) for n in used
    ]  # fmt: skip
    first = report.forward.first_diverging
    mark = next((p.label for p in places if p.name == first), None)
    along = Places("layer", [p.label for p in places], list(map(_said, places)), frozenset(("embed", "head")))
    says = "Drift of the residual stream by layer, on a logarithmic axis; the table below has the figures"
    drawing = lines(along, series, [p.noise for p in places], says, mark)
    keys = [_line(s.colour, s.name) for s in series] + [
        '<li><span class="swatch" style="background:var(--floor)"></span>noise floor</li>'
    ]
    if mark is not None:
        keys.append(_line("var(--error)", f"first beyond noise: {first}", "dashed"))
    return (
        "<figure><figcaption>How far the candidate\u2019s residual stream is from the reference\u2019s behind each "
        "layer, relative to its size; at the head, its logits. The noise floor is the reference against itself with "
        f'every sum in the other order.</figcaption><ul class="legend">{"".join(keys)}</ul>{drawing}</figure>'
    )


def _line(colour: str, name: str, style: str = "") -> str:
    return f'<li><span class="swatch line {style}" style="border-color:{colour}"></span>{text(name)}</li>'


def _said(place: Place) -> str:
    words = [place.label if place.label == place.name else f"layer {place.label}"]
    words += [f"{p[1]}: {number(v)}" for p, v in zip(PASSES, place.values, strict=True) if v is not None]
    if place.noise is not None:
        words.append(f"noise floor: {number(place.noise)}")
    if place.broken:
        words.append(f"tokens that are not finite: {place.broken:,}")
    return "; ".join(words)


def flip_chart(report: Validation) -> str:
    """Tokens that go to other experts, layer by layer; as wide as the drift chart, so that places are the same."""
    if report.forward is None or not any(x.reference.tokens for x in report.layers):
        return ""
    tokens = report.forward.tokens
    places = way(report)
    by_name = {f"layer.{x.layer}": x for x in report.layers}
    rows = [by_name.get(p.name) for p in places]
    says = [
        p.label if x is None else
        f"layer {p.label}; tokens that go to other experts: {x.flips:,}; choices that differ: {x.choices:,}; "
        f"noise floor: {x.noise_flips:,} tokens"
        for p, x in zip(places, rows, strict=True)
    ]  # fmt: skip
    along = Places("layer", [p.label for p in places], says, frozenset(("embed", "head")))
    drawing = columns(
        along, [x.flips if x else 0 for x in rows], [x.noise_flips if x else 0 for x in rows], "tokens",
        "Tokens whose experts differ, by layer; the table below has the figures",
    )  # fmt: skip
    keys = '<li><span class="swatch" style="background:var(--l0)"></span>candidate</li>' + _line(
        "var(--muted)", "noise floor"
    )
    return (
        f"<figure><figcaption>Tokens, of {tokens:,}, that a layer\u2019s router sends to other experts than the "
        f'reference\u2019s does.</figcaption><ul class="legend">{keys}</ul>{drawing}</figure>'
    )


def kl_histogram(found: Predictions, others: Iterable[Predictions]) -> str:
    """How the KL divergence of single tokens spreads; on one axis with `others`."""
    bins = _bins(found)
    if not bins.zeros and not sum(bins.counts):
        return '<p class="muted">No token was measured.</p>'
    rules = _rules(found)
    span = [v for p in (found, *others) for v in (*_bins(p).edges, *(r.value for r in _rules(p)))]
    if any(_bins(p).zeros for p in (found, *others)):
        span.append(0.0)
    says = "Histogram of the KL divergence of single tokens, on a logarithmic axis"
    drawing = spread(bins, rules, log_axis(span), "KL divergence of a token, nats", "% of tokens", says)
    keys = "".join(_line(r.colour, f"{r.name} {number(r.value)}", "dashed" if r.dashed else "") for r in rules)
    return (
        "<figure><figcaption>KL divergence of the candidate\u2019s predictions, token by token</figcaption>"
        f'<ul class="legend">{keys}</ul>{drawing}</figure>'
    )


def _bins(found: Predictions) -> Bins:
    return Bins(found.kl.edges, found.kl.counts, found.kl.zeros)


def _rules(found: Predictions) -> list[Rule]:
    rows = (
        Rule("mean", "var(--text)", _finite(found.metrics.kl_mean)),
        Rule("99 %", "var(--l1)", _finite(found.metrics.kl_p99)),
        Rule("noise floor\u2019s mean", "var(--muted)", _finite(found.noise.kl_mean), True),
    )
    return [r for r in rows if math.isfinite(r.value) and r.value >= 0]


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
    for p in report.parts:
        place = STACKED.fullmatch(p.compared.part)
        for e in p.compared.experts if place else ():
            assert place is not None
            yield Wrong(p, int(place[1]), place[2], e, _why(report, p, e))


def _why(report: Validation, p: PartResult, e: ExpertErrors) -> str:
    from ckpttool.validator.budgets import budget_of

    if p.proof is not None:
        return ""
    if e.nonfinite:
        return f"{e.nonfinite:,} values are not finite on one side"
    if p.claim in ("bytes", "values"):
        return "differs where every value should be equal"
    if e.sqnr is None:
        return "has no signal left"
    limit = report.asked.get("min_sqnr", budget_of(p.compared.format_b).min_sqnr)
    return f"SQNR below {limit:g} dB" if limit is not None and e.sqnr < limit else ""


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
        options = "".join(f"<option>{text(kind)}</option>" for kind, _ in maps)
        out = (
            f'<div class="controls js-only" data-tabs="sqnr"><label>Parts <select>{options}</select></label></div>{out}'
        )
    return out + (f'<p class="muted">Not drawn: {left:,} more of the kinds of parts.</p>' if left else "")


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
