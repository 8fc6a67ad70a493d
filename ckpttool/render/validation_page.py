"""A validation as a page: verdict, failures, budget, predictions, layers, experts, parts."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from ckpttool.render.page import Section, code, facts, number, page, text, tiles, write_page
from ckpttool.render.validation_budget import budget_table
from ckpttool.render.validation_charts import drift_chart, flip_chart, kl_histogram, way
from ckpttool.render.validation_maps import sqnr_maps, usage_map
from ckpttool.render.validation_tables import (
    expert_table,
    failure_table,
    layer_table,
    metric_table,
    part_table,
    share,
    worst_experts,
)
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.validator.report import Forward, Side, Validation

SIGNS = {
    "exact": ("exact", "M7 12.5l3.4 3.4L17 9"),
    "within budget": ("within", "M6.5 10q2.7-2.6 5.5 0t5.5 0M6.5 15q2.7-2.6 5.5 0t5.5 0"),
    "failed": ("failed", "M8 8l8 8M16 8l-8 8"),
}
"""For each verdict its class in page.css and its sign, drawn: a tick, two waves, a cross."""
REASONS = 4
"""Reasons of the verdict that are seen at once."""
MOST_REASONS = 200


def validation_page(report: Validation) -> str:
    """The page of `report`.

    Raises:
        UsageError: what draws its charts is not installed.
    """
    sections = [
        Section("failures", "Failures", _failures(report)),
    ]
    if budget := budget_table(report):
        sections.append(Section("budget", "Budget", budget))
    sections.append(Section("sides", "What was compared", _sides(report)))
    if report.forward is not None:
        sections.append(Section("predictions", "Predictions", _predictions(report.forward)))
        sections.append(Section("layers", "Drift by layer", _layers(report)))
        if experts := expert_table(report):
            sections.append(Section("experts", "Use of experts", usage_map(report) + experts))
    if maps := sqnr_maps(report) + worst_experts(report):
        sections.append(Section("sqnr", "SQNR by expert", maps))
    if report.parts:
        sections.append(Section("parts", "Parts", part_table(report)))
    return page(f"Validation of {_name(report.candidate.source)}", _lede(report), sections)


def save_validation_page(report: Validation, path: str) -> None:
    """Write the page of `report` at `path`.

    Raises:
        UsageError, LocalIOError: as `page.check_place`.
    """
    write_page(path, validation_page(report))


def _name(source: str) -> str:
    return PurePath(source.rstrip("/")).name or source


def _lede(report: Validation) -> str:
    return (
        f'<p class="sub">{code(report.candidate.source)} <span class="muted">against</span> '
        f"{code(report.reference.source)}</p>{_verdict(report)}{tiles(_tiles(report))}"
    )


def _verdict(report: Validation) -> str:
    kind, sign = SIGNS[report.verdict]
    reasons = [f"<li>{text(reason, 1000)}</li>" for reason in report.decided[:MOST_REASONS]]
    rest = len(report.decided) - REASONS
    out = "".join(reasons[:REASONS])
    if rest > 0:
        out += f'<li><a href="#failures">and {rest:,} more</a></li>'
    return (
        f'<div class="verdict {kind}"><svg viewBox="0 0 24 24" role="img" aria-label="{kind}">'
        f'<circle cx="12" cy="12" r="11"/><path d="{sign}"/></svg>'
        f'<p class="word">{text(report.verdict)}</p><ul>{out}</ul></div>'
    )


def _tiles(report: Validation) -> list[tuple[str, str, str]]:
    came = Counter(p.compared.status for p in report.parts)
    words = {"bytes": "equal bytes", "values": "equal values", "lossy": "lossy"}
    counts = ", ".join(f"{came[s]:,} {word}" for s, word in words.items() if came[s])  # type: ignore[index]
    rows = [("Fidelity", report.fidelity or "not compared", counts or f"level {report.level}")]
    m, f = report.metrics, report.forward
    if m is not None and f is not None:
        floor = f"noise floor {number(f.on_text.noise.kl_mean, 2)}"
        rows.append(("Mean KL, nats", number(m.kl_mean, 3), floor))
        agreed = "\u2013" if m.top1 is None else share(m.top1)
        rows.append(("Top-1 agreement", agreed, "" if m.top1_se is None else f"\u00b1 {share(m.top1_se)}"))
        ratio = "\u2013" if m.ppl_ratio is None else f"{m.ppl_ratio:.4f}"
        error = "" if m.ppl_ratio_se is None else f"\u00b1 {number(m.ppl_ratio_se, 2)}; "
        both = "" if m.ppl_ratio is None else f"{number(m.ppl_candidate)} / {number(m.ppl_reference)}"
        rows.append(("Perplexity ratio", ratio, error + both))
        rows.append(("First beyond noise", *_first_beyond(report)))
    failures = len(report.failures)
    layers = len({x.layer for x in report.failures if x.layer is not None})
    where = f"in {layers:,} {'layer' if layers == 1 else 'layers'}" if layers else "" if failures else "nothing failed"
    rows.append(("Failures", f"{failures:,}", where))
    return rows


def _first_beyond(report: Validation) -> tuple[str, str]:
    """The first place whose drift is more than noise, and by how much."""
    assert report.forward is not None
    name = report.forward.first_diverging
    if name is None:
        return "none", "drift is noise everywhere"
    found = next((p for p in way(report) if p.name == name), None)
    drift = "" if found is None else f"drift {number(found.values[0], 2)}, floor {number(found.noise, 2)}"
    return name.replace("layer.", "layer "), drift


def _failures(report: Validation) -> str:
    out = failure_table(report) if report.failures else '<p class="good">Nothing that was looked at failed.</p>'
    return out + "".join(f'<p class="muted">Note: {text(note, 1000)}</p>' for note in report.notes)


def _sides(report: Validation) -> str:
    groups = [("Reference", _side(report.reference)), ("Candidate", _side(report.candidate)), ("Run", _run(report))]
    return facts(groups)


def _side(side: Side) -> list[tuple[str, str]]:
    formats = ", ".join(f"{n:,} {name}" for name, n in side.formats.items())
    return [
        ("source", side.source), ("architecture", side.arch or "unknown"), ("dialect", side.dialect or "unknown"),
        ("container", side.container), ("size", size(side.nbytes)), ("parts", formats or "none"),
    ]  # fmt: skip


def _run(report: Validation) -> list[tuple[str, str]]:
    f = report.forward
    rows = [("level", report.level)]
    if f is None:
        return rows
    rows += [("text", f.text), ("tokens", f"{f.tokens:,}"), ("sequences", f"{f.sequences:,}")]
    if f.prompts:
        rows.append(("prompts", f"{f.prompts:,}"))
        rows.append(("reasoning effort", f.reasoning_effort or "the template\u2019s own"))
    tf32 = " (TF32 off)" if f.numbers == "FP32" else ""
    rows += [("device", f.device), ("numbers", f"{f.numbers}{tf32}"), ("seconds", f"{f.seconds:,.1f}"),
             ("read", size(f.read_nbytes))]  # fmt: skip
    if f.peak_gpu_nbytes is not None:
        rows.append(("GPU memory, peak", size(f.peak_gpu_nbytes)))
    return rows


def _predictions(f: Forward) -> str:
    inputs = [("text", f"On the text: {'one that ships with ckpttool' if f.text == 'packaged' else f.text}", f.on_text)]
    if f.on_prompts is not None:
        prompts = f"{f.prompts:,} {'prompt' if f.prompts == 1 else 'prompts'}"
        inputs.append(("prompts", f"On the answers of {prompts}", f.on_prompts))
    out = []
    for key, title, found in inputs:
        chart = kl_histogram(found, [p for _, _, p in inputs])
        figures = metric_table(f"{key}-metrics", title, found)
        out.append(f'<h3>{text(title)}</h3><div class="beside"><div>{chart}</div>{figures}</div>')
    note = (
        '<p class="muted">Forced: the candidate with the reference\u2019s choice of experts. \u00b1 is a standard '
        "error; places are sequence:position.</p>"
    )
    return "".join(out) + note


def _layers(report: Validation) -> str:
    figures = f"<details><summary>Every layer in figures</summary>{layer_table(report)}</details>"
    return drift_chart(report) + flip_chart(report) + figures
