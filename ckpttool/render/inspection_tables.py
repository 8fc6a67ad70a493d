"""The tables of an inspection's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ckpttool.render.inspection_charts import NUMBER, colours
from ckpttool.render.page import Cell, Column, code, more, table, text, whole
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.inspection.report import Inspection, StoredReport, WeightReport

MOST_ROWS = 4000
"""Rows of a table; past that the experts of a layer are one row."""


MOST_FIGURES = 1000
"""Rows of the tables of scales and of odd experts; heat maps and histograms have them all."""


def short(number: int | None) -> str:
    """A count in four digits: "116.8 B"; "unknown" for None."""
    if number is None:
        return "unknown"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{number:,}"


def exact(number: int | None) -> str:
    """The same in full, nothing for None."""
    return "" if number is None else f"{number:,}"


def layers(numbers: Sequence[int]) -> str:
    """Layers in few words: "0-35 (36)", "0, 2, 4 ... 34 (18)", "3, 7"."""
    found = sorted(numbers)
    if len(found) < 4:
        return ", ".join(map(str, found))
    steps = {b - a for a, b in pairwise(found)}
    if steps == {1}:
        return f"{found[0]}\u2013{found[-1]} ({len(found)})"
    if len(steps) == 1:
        return f"{found[0]}, {found[1]} \u2026 {found[-1]} ({len(found)})"
    runs: list[list[int]] = []
    for n in found:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    words = ", ".join(str(a) if a == b else f"{a}\u2013{b}" for a, b in runs[:12])
    return words + (" \u2026" if len(runs) > 12 else "") + f" ({len(found)})"


def format_table(report: Inspection) -> str:
    """What each format holds, in the treemap's colours."""
    colour = colours(report)
    columns = (Column("format"), Column("packing"), Column("weights", True), Column("parameters", True),
               Column("share", True), Column("bytes", True), Column("bits per weight", True))  # fmt: skip
    rows = [
        (
            Cell(f'<span class="swatch" style="background:{colour.get(f.format, "none")}"></span>{text(f.format)}'),
            Cell(text(f.packing)), whole(f.weights), whole(f.parameters), Cell(f"{100 * f.share:.2f} %", f.share),
            whole(f.nbytes), Cell(f"{f.bits_per_weight:.3f}", f.bits_per_weight),
        )
        for f in report.summary.formats
    ]  # fmt: skip
    return table("formats", "Formats by share of the parameters", columns, rows)


def expert_table(report: Inspection) -> str:
    """How experts are stored, a row for layers alike; and where --experts looked, those that stand out."""
    names = ("layers", "experts", "gate and up", "order", "storage", "orientation", "bias", "shared", "formats")
    columns = tuple(map(Column, names))
    rows = [
        tuple(map(Cell, (
            text(layers(g.layers)), f"{g.experts:,}", text(g.gate_up), text(g.order or ""), text(g.storage),
            text(g.orientation), "yes" if g.bias else "no", str(g.shared or "none"), text(", ".join(g.formats)),
        )))
        for g in report.summary.expert_layout
    ]  # fmt: skip
    out = table("layouts", "Expert layouts", columns, rows)
    for layer in report.experts or ():
        if layer.differs:
            out += f"<p>Layer {layer.layer} differs: {text(layer.differs)}</p>"
    return out + _odd_experts(report)


def _odd_experts(report: Inspection) -> str:
    if report.experts is None:
        return ""
    rows = [
        (Cell(str(x.layer), x.layer), Cell(str(e.expert), e.expert), Cell(code(s.tensor)), _figure(e.mean),
         _figure(e.deviation), Cell(text(e.odd)))
        for x in report.experts for s in x.spread for e in s.experts if e.odd
    ]  # fmt: skip
    if not rows:
        return "<p>No expert's scales stand out from those of its layer.</p>"
    columns = (Column("layer"), Column("expert"), Column("weight"), Column("mean exponent", True),
               Column("from the median", True), Column("what"))  # fmt: skip
    shown = table("odd-experts", "Experts that stand out", columns, rows[:MOST_FIGURES])
    return "<h3>Experts that stand out</h3>" + shown + more(len(rows) - MOST_FIGURES)


def scale_table(report: Inspection) -> str:
    """The scales of each weight in figures."""
    columns = (Column("weight"), Column("scale"), Column("blocks", True), Column("mean exponent", True),
               Column("smallest", True), Column("largest", True), Column("zero blocks", True),
               Column("byte 254", True), Column("byte 255", True), Column("bias", True))  # fmt: skip
    rows = []
    scales = report.scales or ()
    for s in scales[:MOST_FIGURES]:
        t = s.total
        counts = (t.zero_blocks, t.bytes_254, t.bytes_255, s.bias)
        rows.append((Cell(code(s.tensor)), Cell(text(s.element)), whole(t.blocks), _figure(t.mean), whole(t.minimum),
                     whole(t.maximum), *map(whole, counts)))  # fmt: skip
    figures = table("scale-figures", "Scales of weights", columns, rows) + more(len(scales) - MOST_FIGURES)
    return f"<details><summary>Every weight's scales</summary>{figures}</details>"


def weight_table(report: Inspection) -> str:
    """Every weight; experts that are stored one by one are folded where they would be too many rows."""
    rows: Sequence[WeightReport] = report.tensors
    folded = ""
    if len(rows) > MOST_ROWS:
        rows = _folded(rows)
        folded = f"<p>{len(report.tensors):,} weights; a layer's experts are one row, with a * for the expert.</p>"
    columns = (Column("weight"), Column("format"), Column("shape"), Column("parameters", True),
               Column("bytes", True), Column("bits", True), Column("stored as"))  # fmt: skip
    return folded + _capped("weight-table", "Weights", columns, [_weight(t) for t in rows], search=True)


def _weight(t: WeightReport) -> tuple[Cell, ...]:
    part = f'<div class="sub">{text(t.part)}</div>' if t.part else ""
    if t.global_scale not in ("none", ""):
        part += f'<div class="sub">global scale {text(t.global_scale)}</div>'
    shape = "\u2009\u00d7\u2009".join(f"{n}" for n in t.shape) or "scalar"
    return (
        Cell(f'<div class="name">{code(t.name)}{part}</div>'),
        Cell(f'{text(t.format)}<div class="sub">{text(t.packing)}</div>'),
        Cell(f'<span class="nowrap">{shape}</span>', float(t.parameters)), whole(t.parameters), whole(t.nbytes),
        Cell(f"{t.bits_per_weight:.2f}", t.bits_per_weight), Cell("".join(_stored(s, t.name) for s in t.stored)),
    )  # fmt: skip


def _stored(s: StoredReport, weight: str) -> str:
    own = (
        s.name.removeprefix(weight) if s.name.startswith(weight) else s.name.removeprefix(weight.removesuffix("weight"))
    )
    name = f"{code(own)} " if own else ""
    file = f'<span class="nowrap">{text(s.file)}</span>'
    return f'<div class="sub stored">{name}{text(s.dtype)}<br>{file} at {s.offset:,}</div>'


def _folded(tensors: Sequence[WeightReport]) -> list[WeightReport]:
    groups: dict[tuple[object, ...], list[WeightReport]] = {}
    for t in tensors:
        name = t.name if t.expert is None else _any_expert(t.name, t.layer)
        groups.setdefault((name, t.layer, t.format, t.packing, t.shape), []).append(t)
    return [rows[0] if len(rows) == 1 else _fold(str(key[0]), rows) for key, rows in groups.items()]


def _any_expert(name: str, layer: int | None) -> str:
    """`name` with a * for every number but that of its layer, which comes first."""
    first = iter((True,))
    return NUMBER.sub(lambda m: m[0] if layer is not None and next(first, False) else "*", name)


def _fold(name: str, rows: Sequence[WeightReport]) -> WeightReport:
    first = rows[0]
    return replace(
        first, name=name, part=f"{len(rows):,} experts", stored=(), shape=(len(rows), *first.shape),
        parameters=sum(t.parameters for t in rows), nbytes=sum(t.nbytes for t in rows),
    )  # fmt: skip


def file_table(report: Inspection) -> str:
    """The files, and how each header is known again."""
    columns = (Column("file"), Column("size", True), Column("bytes", True), Column("sha256 of the header"))
    rows = [
        (Cell(code(f.name)), Cell(size(f.nbytes), f.nbytes), whole(f.nbytes), Cell(code((f.header_sha256 or "")[:16])))
        for f in report.files
    ]
    return _capped("file-table", "Files", columns, rows)


def _capped(
    key: str, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, search: bool = False
) -> str:
    return table(key, caption, columns, rows[:MOST_ROWS], search=search) + more(len(rows) - MOST_ROWS)


def _figure(number: float | None) -> Cell:
    return Cell("\u2013") if number is None else Cell(f"{number:.2f}".replace("-", "\u2212"), number)
