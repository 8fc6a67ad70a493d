"""The drawings of a validation's page along layers and over KL: drift, flips, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.render.log_axis import log_axis
from ckpttool.render.page import number, text
from ckpttool.render.plots import Bins, Places, Rule, Series, columns, lines, spread

if TYPE_CHECKING:
    from ckpttool.validator.report import Predictions, Validation

PASSES = (
    ("candidate", "var(--l0)", "circle"),
    ("with the reference\u2019s choice of experts", "var(--l1)", "square"),
    ("each layer by itself", "var(--l2)", "diamond"),
)
"""The lines of the drift chart: words, colour, symbol."""


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
        Series(*PASSES[n], [p.values[n] for p in places]) for n in used
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
        name = f"layer {mark}" if mark.isdecimal() else mark
        keys.append(_line("var(--error)", f"first beyond noise: {name}", "dashed"))
    return (
        "<figure><figcaption>How far the candidate\u2019s residual stream is from the reference\u2019s behind each "
        "layer, relative to its size; at the head, its logits. The noise floor is the reference against itself with "
        f'every sum in the other order.</figcaption><ul class="legend">{"".join(keys)}</ul>{drawing}</figure>'
    )


def _line(colour: str, name: str, style: str = "") -> str:
    return f'<li><span class="swatch line {style}" style="border-color:{colour}"></span>{text(name)}</li>'


def _said(place: Place) -> str:
    out = [place.label if place.label == place.name else f"layer {place.label}"]
    out += [f"{words}: {number(v)}" for (words, _, _), v in zip(PASSES, place.values, strict=True) if v is not None]
    if place.noise is not None:
        out.append(f"noise floor: {number(place.noise)}")
    if place.broken:
        out.append(f"tokens that are not finite: {place.broken:,}")
    return "; ".join(out)


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
