"""What a checkpoint holds, for a terminal: a spec sheet, the tensors by kind, what was counted, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.inspection.document import inspection_document
from ckpttool.inspection.report import Finding, Inspection, Severity, WeightReport
from ckpttool.render.fold import folded, short
from ckpttool.render.inspection_counts import show_codes, show_experts, show_scales
from ckpttool.render.inspection_sheet import percent, sheet
from ckpttool.render.terminal import MOST_PROBLEMS, NARROW, columns, many, more, paragraph, print_json, say, table
from ckpttool.units import size

MOST_ROWS = 60
"""Rows of tensors that are shown; more of them come from models with many odd layers."""

WORD = 15
"""Columns of the sheet's words."""

COLOURS = {Severity.error: "bold red", Severity.warning: "yellow", Severity.info: "cyan"}
FEW = 4
"""So many findings that differ in their tensor alone are told as one."""


def show_inspection(report: Inspection, as_json: bool, *, every: bool = False) -> None:
    """The report; `every`: each tensor by itself, with file and offset, in place of sheet and kinds of tensors."""
    if as_json:
        print_json(inspection_document(report), rows=True)
        return
    say(shown(report.source, MESSAGE_LIMIT))
    say()
    if every:
        _each(report.tensors)
    else:
        for word, text in sheet(report):
            paragraph(f"{word:{WORD}}", shown(text, MESSAGE_LIMIT))
        say()
        _by_kind(report)
    if report.scales is not None:
        show_scales(report.scales, every)
    if report.codes is not None:
        show_codes(report.codes, every)
    if report.experts is not None:
        show_experts(report.experts)
    _findings(report)


def _order(row: WeightReport) -> int:
    """The embedding before the layers, what follows them after."""
    return 0 if row.purpose == "embed" else 2 if row.layer is None else 1


def _by_kind(report: Inspection) -> None:
    rows = sorted(report.tensors, key=_order)
    groups = folded(rows, lambda r: r.name, lambda r: (r.format, r.packing, r.shape))
    narrow = columns() < NARROW
    head = ["tensor", "", "shape", "format", "size"]
    head = head if narrow else [*head[:4], "bits", "size", "share"]
    cells = []
    for g in groups[:MOST_ROWS]:
        first = g.rows[0]
        nbytes = sum(r.nbytes for r in g.rows)
        times = f"x{len(g.rows):,}" if len(g.rows) > 1 else ""
        shape = ("x" if narrow else " x ").join(f"{n}" if narrow else f"{n:,}" for n in first.shape) or "scalar"
        format_ = first.format if first.packing in ("flat", "ggml") else f"{first.format} {first.packing}"
        if narrow:
            cells.append([short(g.name), times, shape, format_, size(nbytes)])
        else:
            share = percent(nbytes / report.nbytes) if report.nbytes else ""
            cells.append([g.name, times, shape, format_, f"{first.bits_per_weight:.4g}", size(nbytes), share])
    styles = ["yellow" if g.odd else "" for g in groups]
    right = [i for i, name in enumerate(head) if name in ("", "bits", "size", "share")]
    table(head, cells, right=right, styles=styles, keep=0)
    if len(groups) > MOST_ROWS:
        say(f"and {many(len(groups) - MOST_ROWS, 'more kind')} of tensors (--tensors '*' shows each)")


def _each(rows: Sequence[WeightReport]) -> None:
    """Each weight with all that is known of it, its stored tensors beneath."""
    for row in rows:
        shape = " x ".join(f"{n:,}" for n in row.shape) or "scalar"
        packing = "" if row.packing == "flat" else f" ({row.packing})"
        say(shown(row.name, MESSAGE_LIMIT))
        part = f", part {shown(row.part)}" if row.part else ""
        bits = f"{row.bits_per_weight:.4g} bits"
        paragraph("  ", f"{row.format}{packing}  {shape}  {bits} each, {many(row.nbytes, 'byte')}{part}")
        for t in row.stored:
            name = f"{t.role} " if len(row.stored) > 1 else ""
            stored = " x ".join(f"{n:,}" for n in t.shape) or "scalar"
            what = f"{name}{t.dtype}  {stored}" if len(row.stored) > 1 else f"{t.dtype}"
            paragraph("    ", f"{what}  {shown(t.file)} at byte {t.offset:,}, {many(t.nbytes, 'byte')}")
    say()
    say(f"{many(len(rows), 'weight')}, {size(sum(r.nbytes for r in rows))}")


def _findings(report: Inspection) -> None:
    """Errors first; many alike are one."""
    groups: dict[object, list[Finding]] = {}
    for i, f in enumerate(report.findings):
        alike = (f.severity, f.check, f.message, f.hint, f.place) if f.tensor is not None else i
        groups.setdefault(alike, []).append(f)
    lines: list[tuple[Finding, str]] = []
    for group in groups.values():
        if len(group) < FEW:
            lines += [(f, f.tensor or "") for f in group]
        else:
            lines.append((group[0], f"{group[0].tensor} and {len(group) - 1} more (--json lists them)"))
    if lines or report.checked:
        say()
    for f, tensor in lines[:MOST_PROBLEMS]:
        where = ": ".join(shown(x, MESSAGE_LIMIT) for x in (f.place, tensor) if x)
        text = f"{where}: {f.message}" if where else f.message
        tail = f"; {f.hint}" if f.hint else ""
        paragraph(f"{f.severity}: ", shown(text + tail, MESSAGE_LIMIT), style=COLOURS[Severity(f.severity)])
    more(len(lines))
    if report.checked:
        totals = [(s, sum(f.severity == s for f in report.findings)) for s in Severity]
        say(", ".join(many(n, s.value) for s, n in totals if n and s != Severity.info) or "nothing is wrong")
