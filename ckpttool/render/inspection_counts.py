"""Counted scales and codes, and the experts of each layer, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ckpttool.expert_layout import matrix_of
from ckpttool.inspection.report import CodeReport, ExpertLayerReport, Histogram, ScaleReport, SpreadReport
from ckpttool.render.fold import folded, ranges, short
from ckpttool.render.inspection_sheet import made_by, percent
from ckpttool.render.terminal import NARROW, columns, many, paragraph, say, table, writable

BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"
BAR_WIDTH = 24


def show_scales(scales: Sequence[ScaleReport], every: bool) -> None:
    """A row for each kind of weight, or with `every` for each weight: exponents, and what is at the ends."""
    say()
    say("scales, by exponent (log2)")
    if not scales:
        say("  none of these weights has block scales")
        return
    narrow = columns() < NARROW
    groups = folded(scales, lambda s: s.tensor, lambda s: s.tensor if every else (s.format, s.element))
    rows = []
    for g in groups:
        totals = [s.total for s in g.rows]
        blocks = sum(t.blocks for t in totals)
        known = [t for t in totals if t.mean is not None]
        low = min((t.minimum for t in known if t.minimum is not None), default=None)
        high = max((t.maximum for t in known if t.maximum is not None), default=None)
        mean = sum((t.mean or 0.0) * t.blocks for t in known) / max(1, sum(t.blocks for t in known))
        row = [
            _signed(low), f"{mean:.2f}" if known else "-", _signed(high), f"{sum(t.zero_blocks for t in totals):,}",
            _ends([t.bytes_254 for t in totals]), f"{sum(t.nonfinite for t in totals):,}",
            bars([t.histogram for t in totals], low, high, BAR_WIDTH // 2 if narrow else BAR_WIDTH),
        ]  # fmt: skip
        rows.append([short(g.name), *row] if narrow else [g.name, g.rows[0].element, f"{blocks:,}", *row])
    head = ["min", "mean", "max", "zero", "254", "NaN", "histogram"]
    head = ["weight", *head] if narrow else ["weight", "scale", "blocks", *head]
    table(head, rows, right=["blocks", *head[-7:-1]], keep=0)


def _signed(n: int | None) -> str:
    return "-" if n is None else str(n)


def _ends(counts: Sequence[int | None]) -> str:
    return "-" if None in counts else f"{sum(n or 0 for n in counts):,}"


def bars(histograms: Sequence[Histogram], low: int | None, high: int | None, width: int = BAR_WIDTH) -> str:
    """The histograms together, from the lowest exponent to the highest, as a row of bars; several a bar where many."""
    if low is None or high is None:
        return ""
    step = -(-(high - low + 1) // width)
    sums = [0] * (-(-(high - low + 1) // step))
    for h in histograms:
        for i, n in enumerate(h.counts):
            sums[((h.first or 0) + i - low) // step] += n
    marks = BARS if writable(BARS) else ASCII_BARS
    top = max(sums) or 1
    return "".join(marks[0 if not n else max(1, round(n / top * (len(marks) - 1)))] for n in sums)


def show_codes(codes: Sequence[CodeReport], every: bool) -> None:
    """A row for each kind of weight, or with `every` for each weight: what is saturated, -0, zero; then who made it."""
    say()
    say("MXFP4 codes")
    if not codes:
        say("  none of these weights is MXFP4")
        return
    groups = folded(codes, lambda c: c.tensor, lambda c: (c.fingerprint.recipes, c.tensor if every else None))
    narrow = columns() < NARROW
    rows = []
    for g in groups:
        elements = sum(c.elements for c in g.rows)
        largest = [sum(c.largest[i] for c in g.rows) for i in range(8)]
        blocks = max(1, sum(largest))
        tops = " ".join(f"{i}:{percent(n / blocks).replace(' ', '')}" for i, n in enumerate(largest) if i and n)
        row = [
            short(g.name) if narrow else g.name, f"{elements:,}",
            percent(sum(c.saturated for c in g.rows) / elements if elements else 0.0),
            percent(sum(c.negative_zeros for c in g.rows) / elements if elements else 0.0),
            f"{sum(c.zero_blocks for c in g.rows):,}", f"{sum(c.overflow for c in g.rows):,}",
        ]  # fmt: skip
        rows.append(row if narrow else [*row, tops])
    head = ("weight", "elements", "+-6", "-0", "zero blocks", "overflow", "blocks by largest code")
    table(head[: 6 if narrow else 7], rows, right=range(1, 6), keep=0)
    for recipes in dict.fromkeys(c.fingerprint.recipes for c in codes):
        held = [c for c in codes if c.fingerprint.recipes == recipes]
        paragraph("  quantized by ", f"{made_by(held[0].fingerprint)}{_others(len(held) - 1)}")


def _others(n: int) -> str:
    return f"; and {many(n, 'more weight')} alike" if n else ""


def show_experts(layers: Sequence[ExpertLayerReport]) -> None:
    """How each layer's experts are stored, and how their scales spread; who stands out."""
    say()
    say("experts")
    if not layers:
        say("  none that a table knows")
        return
    for g in folded(layers, lambda x: "layers", lambda x: (x.layout.words, x.layout.formats)):
        numbers = ranges([x.layer for x in g.rows])
        first = g.rows[0]
        top = f", {first.top_k} a token" if first.top_k else ""
        formats = ", ".join(first.layout.formats)
        text = f"{first.layout.words}{top}, {formats}; {first.parameters:,} parameters a layer"
        paragraph(f"  layer{'s' if len(g.rows) > 1 else ''} {numbers}: ", text, style="yellow" if g.odd else "")
    if any(x.spread for x in layers):
        _spreads(layers)


def _spreads(layers: Sequence[ExpertLayerReport]) -> None:
    """A row a layer: the mean exponents of its experts' scales, least, median and most, matrix by matrix.

    Why an expert stands out is among the findings.
    """
    names = list(dict.fromkeys(matrix_of(s.tensor) for x in layers for s in x.spread))
    say()
    say("mean exponent of each expert's scales: least, median, most")
    rows, styles = [], []
    for layer in layers:
        by_name = {matrix_of(s.tensor): s for s in layer.spread}
        rows.append([str(layer.layer), *(_range(by_name.get(n)) for n in names)])
        styles.append("yellow" if any(e.odd for s in layer.spread for e in s.experts) else "")
    table(["layer", *names], rows, right=range(len(names) + 1), styles=styles)


def _range(s: SpreadReport | None) -> str:
    means = [e.mean for e in s.experts if e.mean is not None] if s else []
    if s is None or not means or s.median is None:
        return "-"
    return f"{min(means):.2f}  {s.median:.2f}  {max(means):.2f}"
