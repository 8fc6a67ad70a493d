"""The tables of a validation's page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpttool.render.page import Cell, Column, code, figure, more, number, table, text, whole
from ckpttool.render.validation_charts import way
from ckpttool.render.validation_maps import Wrong, experts

if TYPE_CHECKING:
    from ckpttool.comparison.parts import PartComparison
    from ckpttool.validator.metrics import FirstDifference, Metrics, Spot
    from ckpttool.validator.report import PartResult, Predictions, Validation

MOST_ROWS = 4000
"""Rows of a table."""
SEARCHED = 12
"""Rows from which failures can be searched."""
WORST = 12
"""Experts that are listed where none is wrong."""
MOST_WRONG = 500
"""Wrong experts that are listed."""


def failure_table(report: Validation) -> str:
    """What failed, and where."""
    columns = (Column("level"), Column("layer", True), Column("part"), Column("what"))
    rows = [
        (Cell(text(f.level)), whole(f.layer), _named(f.part) if f.part else Cell("\u2013"), _what(f.what))
        for f in report.failures
    ]  # fmt: skip
    shown = table("failure-table", "Failures", columns, rows[:MOST_ROWS], search=len(rows) > SEARCHED)
    return shown + more(len(rows) - MOST_ROWS)


def _named(part: str) -> Cell:
    """A part's name, with room for the usual ones."""
    return Cell(f'<div class="part">{code(part)}</div>')


def _what(words: str) -> Cell:
    return Cell(f'<div class="what">{text(words, 1000)}</div>')


METRICS = (
    ("tokens", "tokens"), ("mean KL", "kl_mean"), ("median", "kl_median"), ("90 %", "kl_p90"), ("99 %", "kl_p99"),
    ("99.9 %", "kl_p999"), ("largest", "kl_max"), ("top-1 agreement", "top1"), ("top-5", "top5"),
    ("perplexity", "ppl_candidate"), ("reference\u2019s", "ppl_reference"), ("ratio", "ppl_ratio"),
    ("largest logit difference", "logit_difference"), ("widest range of logits", "logit_range"),
    ("first other token", "first_difference"),
)  # fmt: skip
"""Rows of a table of predictions: words, and the field of `Metrics`."""


def metric_table(key: str, caption: str, found: Predictions) -> str:
    """Every figure of one kind of input, with its standard error or its place."""
    passes = [("candidate", found.metrics), ("forced", found.forced), ("noise floor", found.noise)]
    given = [(name, m) for name, m in passes if m is not None]
    columns = (Column(""), *(Column(name, True) for name, _ in given))
    rows = [(Cell(text(words)), *(_metric(m, name) for _, m in given)) for words, name in METRICS]
    return table(key, caption, columns, rows, sort=False)


def _metric(m: Metrics, name: str) -> Cell:
    if name == "tokens":
        return whole(m.tokens)
    if name == "first_difference":
        return Cell(_first(m.first_difference))
    value: float | None = getattr(m, name)
    error: float | None = getattr(m, f"{name}_se", None)
    spot: Spot | None = getattr(m, f"{name}_at", None)
    if name in ("top1", "top5"):
        cell = Cell(_percent(value), value)
        aside = None if error is None else f"\u00b1 {100 * error:.2f}"
    else:
        cell = figure(value, 6 if name.startswith("ppl_") else 4)
        aside = None if error is None else f"\u00b1 {number(error, 2)}"
    if spot is not None:
        aside = f"at {spot.sequence}:{spot.position}"
    return Cell(f'{cell.body}<div class="sub">{aside}</div>', cell.value) if aside else cell


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else share(value)


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.2f} %"


def _first(found: FirstDifference | None) -> str:
    if found is None:
        return "\u2013"
    words = f"{found.reference} \u2192 {found.candidate}"
    return f'at {found.sequence}:{found.position}<div class="sub">{text(words)}</div>'


def layer_table(report: Validation) -> str:
    """Drift and flips of every place."""
    by_name = {f"layer.{x.layer}": x for x in report.layers}
    columns = (Column("place"), Column("drift", True), Column("median token", True),
               Column("reference\u2019s experts", True), Column("by itself", True), Column("noise floor", True),
               Column("not finite", True), Column("tokens flipped", True), Column("choices", True),
               Column("noise flips", True))  # fmt: skip
    rows = []
    for n, p in enumerate(way(report)):
        x = by_name.get(p.name)
        name = f"layer {p.label}" if x else p.label
        flips = (x.flips, x.choices, x.noise_flips) if x else (None, None, None)
        rows.append((
            Cell(text(name), n), figure(p.values[0]), figure(x.drift_median if x else None), figure(p.values[1]),
            figure(p.values[2]), figure(p.noise), whole(p.broken), *map(whole, flips),
        ))  # fmt: skip
    return table("layer-table", "Drift and flips by layer", columns, rows)


MOST_UNUSED = 16
"""Experts that are named."""


def expert_table(report: Validation) -> str:
    """How even the experts' use is, layer by layer, on both sides."""
    names = ("entropy", "router\u2019s entropy", "busiest", "never chosen")
    columns = (Column("layer"), *(c for n in names for c in (Column(n, True), Column("candidate\u2019s", True))))
    rows = [
        (Cell(str(x.layer), x.layer), *(figure(v) for v in (
            x.reference.entropy, x.candidate.entropy, x.reference.router_entropy, x.candidate.router_entropy,
            x.reference.balance, x.candidate.balance)), _unused(x.reference.unused), _unused(x.candidate.unused))
        for x in report.layers if x.reference.tokens
    ]  # fmt: skip
    if not rows:
        return ""
    words = (
        '<p class="muted">Entropies in bits: of how the choices spread over the experts, and of the router\u2019s '
        "softmax. The busiest expert\u2019s share is in units of an even one. Beside each the candidate\u2019s.</p>"
    )
    figures = table("expert-table", "Use of experts by layer", columns, rows)
    return f"<details><summary>Every layer in figures</summary>{words}{figures}</details>"


def _unused(unused: Sequence[int]) -> Cell:
    """How many, and which while they are few."""
    names = f'<div class="sub">{", ".join(map(str, unused))}</div>' if 0 < len(unused) <= MOST_UNUSED else ""
    return Cell(f"{len(unused):,}{names}", len(unused))


def worst_experts(report: Validation) -> str:
    """The experts that are wrong, or where none is, those of the smallest SQNR."""
    found = sorted(experts(report), key=_rank)
    wrong = [w for w in found if w.why]
    rows = [_expert(w) for w in (wrong[:MOST_WRONG] or found[:WORST])]
    if not rows:
        return ""
    columns = (Column("part"), Column("expert", True), Column("SQNR, dB", True), Column("relative error", True),
               Column("max abs", True), Column("differing", True), Column("what"))  # fmt: skip
    title = "Experts that are wrong" if wrong else f"The {len(rows)} experts of the smallest SQNR"
    return f"<h3>{title}</h3>{table('worst-experts', title, columns, rows)}{more(len(wrong) - MOST_WRONG)}"


PROOFS = {"budget": "within its budget", "rounding": "every value is the nearest one"}
"""What a proof says of an expert; the others are recipes."""


def _rank(w: Wrong) -> tuple[bool, float]:
    return not w.why, -math.inf if w.error.sqnr is None else w.error.sqnr


def _expert(w: Wrong) -> tuple[Cell, ...]:
    e = w.error
    return (
        _named(w.part.compared.part), whole(e.expert), figure(e.sqnr), figure(e.relative), figure(e.max_abs),
        whole(e.differing), _what(w.why or PROOFS.get(w.part.proof or "", w.part.proof or "")),
    )  # fmt: skip


def part_table(report: Validation) -> str:
    """Every part, and how its claim was met."""
    columns = (Column("part"), Column("formats"), Column("claim"), Column("came of it"), Column("proof"),
               Column("differing", True), Column("max abs", True), Column("relative", True), Column("SQNR, dB", True),
               Column("first at"))  # fmt: skip
    rows = [_part(p) for p in report.parts[:MOST_ROWS]]
    proofs = Counter(p.proof or "none" for p in report.parts if p.compared.status is not None)
    words = (
        f"<p>Proofs: {', '.join(f'{n:,} {text(proof)}' for proof, n in proofs.most_common())}.</p>" if proofs else ""
    )
    shown = table("part-table", "Parts", columns, rows, search=True)
    return words + shown + more(len(report.parts) - MOST_ROWS)


STATUS = {
    "bytes": "equal bytes", "values": "equal values", "lossy": "differs", "only_a": "only in the reference",
    "only_b": "only in the candidate", "shape": "another shape",
}  # fmt: skip


def _part(p: PartResult) -> tuple[Cell, ...]:
    c = p.compared
    came = STATUS[c.status] if c.status is not None else "not compared"
    if c.status == "shape":
        came += f'<div class="sub">{_shape(c.shape_a)} / {_shape(c.shape_b)}</div>'
    proof = text(p.proof) if p.proof else '<span class="bad">none</span>' if c.status is not None else "\u2013"
    odd = f'<div class="sub">{c.nonfinite:,} not finite</div>' if c.nonfinite else ""
    differing = Cell("\u2013") if c.differing is None else Cell(f"{c.differing:,}{odd}", c.differing)
    return (
        _named(c.part), Cell(_formats(c)), Cell(text(p.claim or "\u2013")), Cell(came), Cell(proof), differing,
        figure(c.max_abs), figure(c.relative), figure(c.sqnr), Cell(_place(c)),
    )  # fmt: skip


def _formats(c: PartComparison) -> str:
    a, b = text(c.format_a or "\u2013"), text(c.format_b or "\u2013")
    return a if a == b else f"{a} \u2192 {b}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "\u2009\u00d7\u2009".join(map(str, shape or ())) or "scalar"


def _place(c: PartComparison) -> str:
    if c.first is None:
        return "\u2013"
    expert = "" if c.first.expert is None else f"expert {c.first.expert}, "
    return f'<span class="nowrap">{expert}row {c.first.row}, column {c.first.column}</span>'
