"""An inspection as a page: summary, findings, where the bytes are, the model, experts, scales, every weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from ckpttool.render.inspection_charts import bytes_by_module, code_histograms, percent, scale_histograms, scale_maps
from ckpttool.render.inspection_tables import (
    exact,
    expert_table,
    file_table,
    format_table,
    layers,
    scale_table,
    short,
    weight_table,
)
from ckpttool.render.page import Section, code, facts, page, text, tiles, write_page
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.inspection.report import Finding, Inspection

FIRST_FINDINGS = 12
"""Findings that are seen at once; the rest unfolds."""
MOST_FINDINGS = 200
SEVERITIES = ("error", "warning", "info")
WORDS = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("remark", "remarks")}


def inspection_page(report: Inspection) -> str:
    """The page of `report`.

    Raises:
        UsageError: what draws its charts is not installed.
    """
    sections = [
        Section("findings", "Findings", _findings(report)),
        Section("bytes", "Where the bytes are", bytes_by_module(report) + format_table(report)),
        Section("model", "The model", _model(report)),
    ]
    if report.summary.expert_layout or report.experts:
        sections.append(Section("experts", "Experts", expert_table(report)))
    if report.scales is not None:
        sections.append(Section("scales", "Scales", _scales(report)))
    if report.codes is not None:
        sections.append(Section("codes", "Codes", _codes(report)))
    sections.append(Section("weights", "Weights", weight_table(report)))
    sections.append(Section("files", "Files", file_table(report)))
    name = PurePath(report.source.rstrip("/")).name or report.source
    return page(name, _lede(report), sections)


def save_inspection_page(report: Inspection, path: str) -> None:
    """Write the page of `report` at `path`.

    Raises:
        UsageError, LocalIOError: as `page.check_place`.
    """
    write_page(path, inspection_page(report))


def _lede(report: Inspection) -> str:
    s = report.summary
    arch = report.arch or s.architecture or s.model_type or "unknown architecture"
    dialect = f"{text(report.dialect)} dialect" if report.dialect else "names of no known dialect"
    where = f'<p class="sub">{code(report.source)}</p>'
    what = f'<p class="muted">{text(arch)}, {dialect}, {text(report.container)}</p>'
    experts = s.router.experts
    rows = [
        ("Parameters", short(report.parameters), exact(report.parameters)),
        ("Active per token", short(report.active_parameters), exact(report.active_parameters)),
        ("Size", size(report.nbytes), f"{report.nbytes:,} bytes"),
        ("Bits per weight", f"{report.bits_per_weight:.2f}", f"{100 * s.size_against_bf16:.1f} % of BF16"),
    ]
    if experts:
        top = f"top {s.router.top_k}, " if s.router.top_k else ""
        rows.append(("Experts", f"{experts:,}", f"{top}{100 * s.expert_share:.1f} % of weights"))
    if s.context:
        rows.append(("Context", f"{s.context:,}", "tokens"))
    found = Counter(f.severity for f in report.findings)
    rows.append(("Findings", f"{len(report.findings):,}", _counted(found) or "nothing found"))
    return where + what + tiles(rows)


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{found[s]:,} {WORDS[s][found[s] != 1]}" for s in SEVERITIES if found[s])


def _findings(report: Inspection) -> str:
    ranked = sorted(report.findings, key=lambda f: SEVERITIES.index(f.severity))
    items = list(map(_finding, ranked[:MOST_FINDINGS]))
    out = '<p class="good">Nothing is wrong with what was looked at.</p>'
    if items:
        out = f'<ul class="findings">{"".join(items[:FIRST_FINDINGS])}</ul>'
    if len(items) > FIRST_FINDINGS:
        rest = "".join(items[FIRST_FINDINGS:])
        summary = f"<summary>{len(items) - FIRST_FINDINGS:,} more</summary>"
        out += f'<details>{summary}<ul class="findings">{rest}</ul></details>'
    if len(ranked) > MOST_FINDINGS:
        out += f"<p>And {len(ranked) - MOST_FINDINGS:,} more; <code>--json</code> lists them all.</p>"
    if not report.checked:
        out += '<p class="muted">Headers and side files were looked at; <code>--check</code> looks at values too.</p>'
    out += "".join(f'<p class="muted">Note: {text(note, 1000)}</p>' for note in report.notes)
    return out


def _finding(finding: Finding) -> str:
    where = "".join(f"{code(w)}: " for w in (finding.place, finding.tensor) if w)
    hint = f'<div class="muted">{text(finding.hint, 1000)}</div>' if finding.hint else ""
    severity = finding.severity if finding.severity in SEVERITIES else "info"
    return f'<li class="{severity}"><b>{severity}</b>{where}{text(finding.message, 1000)}{hint}</li>'


def _model(report: Inspection) -> str:
    s = report.summary
    a, r, v = s.attention, s.rope, s.vocabulary
    rows: list[tuple[str, list[tuple[str, object]]]] = [
        ("Shape", [("layers", s.layers), ("hidden size", s.hidden), ("intermediate size", s.intermediate),
                   ("context", s.context), ("SwiGLU limit", s.swiglu_limit), ("declared as", s.declared),
                   ("model type", s.model_type), ("GGUF file type", s.file_type)]),
        ("Attention", [("heads", a.heads), ("KV heads", a.kv_heads), ("head size", a.head_dim),
                       ("value head size", a.value_head_dim), ("window", a.window), ("KV LoRA rank", a.kv_lora_rank),
                       *((f"{name} in layers", layers(found)) for name, found in a.kinds.items() if found)]),
        ("Rotary positions", [("theta", r.theta), ("type", r.type), ("factor", r.factor), ("beta fast", r.beta_fast),
                              ("beta slow", r.beta_slow), ("original context", r.original_context),
                              ("truncate", r.truncate), ("none in layers", layers(r.layers_without or ()) or None)]),
        ("Tokens", [("vocabulary", v.size), ("begin", _id(v.bos)), ("end", ", ".join(map(str, v.eos)) or None),
                    ("padding", _id(v.pad)), ("tied embeddings", v.tied_embeddings), ("tokenizer", v.tokenizer),
                    ("chat template", s.chat_template)]),
    ]  # fmt: skip
    if s.fingerprint:
        recipes = ", ".join(s.fingerprint.recipes) or "none known"
        rows.append(("Quantizer, by its scales", [("recipes that fit", recipes), ("because", s.fingerprint.reason)]))
    known = [(title, [(name, _value(value)) for name, value in group if value is not None]) for title, group in rows]
    return facts(known)


def _id(token: int | None) -> str | None:
    return None if token is None else str(token)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.10g}" if isinstance(value, float) else str(value)


def _scales(report: Inspection) -> str:
    scales = report.scales or ()
    if not scales:
        return '<p class="muted">No weight is in a format whose scales are read.</p>'
    zero, blocks = sum(s.total.zero_blocks for s in scales), sum(s.total.blocks for s in scales)
    odd = sum(s.total.nonfinite for s in scales)
    words = [f"{blocks:,} blocks", f"{zero:,} of them zero ({percent(100 * zero / max(1, blocks))})"]
    words.append(f"{odd:,} scales that are no number" if odd else "every scale a number")
    return (
        f"<p>{', '.join(words)}. An exponent e means a scale of 2<sup>e</sup>; blocks of zeros are left out of means, "
        f"limits and histograms.</p>{scale_maps(report)}{scale_histograms(scales)}{scale_table(report)}"
    )


def _codes(report: Inspection) -> str:
    codes = report.codes or ()
    if not codes:
        return '<p class="muted">No weight is MXFP4.</p>'
    elements = max(1, sum(c.elements for c in codes))
    rows: Sequence[tuple[str, int]] = (
        ("saturated", sum(c.saturated for c in codes)),
        ("negative zeros", sum(c.negative_zeros for c in codes)),
        ("beyond BF16", sum(c.overflow for c in codes)),
    )
    words = ", ".join(f"{n:,} {name} ({percent(100 * n / elements)})" for name, n in rows)
    return f"<p>{elements:,} elements: {words}.</p>{code_histograms(codes)}"
