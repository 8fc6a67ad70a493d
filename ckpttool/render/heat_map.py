"""A heat map of rows by columns, such as layers by experts: one value drawn, the others a choice away."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckpttool.render.charts import FONT, STEPS, svg
from ckpttool.render.page import data_block, text

LEFT, TOP, RIGHT = 48, 6, 16
"""Room around the cells for the axes."""

WIDEST, HIGHEST = 1120, 480

Grid = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class View:
    """One value of every cell, rows first; None where there is none.

    A `diverging` one is coloured around 0; a `falling` one has the strong colours where it is small.
    """

    name: str
    values: Grid
    digits: int = 2
    diverging: bool = False
    falling: bool = False

    @property
    def ramp(self) -> list[str]:
        """The CSS colours from the lowest value to the highest."""
        steps = range(STEPS)[::-1] if self.falling else range(STEPS)
        return [f"var(--{'d' if self.diverging else 's'}{n})" for n in steps]


@dataclass(frozen=True)
class Spreads:
    """A small histogram for every cell: its bars, each a digit 0 to 8 for its height; "" where there is none."""

    title: str
    bars: Sequence[Sequence[str]]


@dataclass(frozen=True)
class HeatMap:
    """`rows` and `columns` are labels, called `row` and `column`: "layer", "expert". The first view is drawn.

    Cells that are `flagged` are `wrong` whatever their value, which the ramp leaves out, and say why. `blank` is the
    colour and the word of those without a value.
    """

    row: str
    rows: Sequence[str]
    column: str
    columns: Sequence[str]
    views: Sequence[View]
    spreads: Spreads | None = None
    flagged: Mapping[tuple[int, int], str] = field(default_factory=dict)
    wrong: str = "wrong"
    blank: tuple[str, str] = ("none", "none")


def _on_ramp(view: View, flagged: Container[tuple[int, int]]) -> list[float]:
    """The values that have a colour of the ramp."""
    return [
        v for r, row in enumerate(view.values) for c, v in enumerate(row) if v is not None and (r, c) not in flagged
    ]


def ends(view: View, flagged: Container[tuple[int, int]] = ()) -> tuple[float, float]:
    """The values at both ends of the ramp."""
    known = _on_ramp(view, flagged)
    if not known:
        return 0.0, 0.0
    most = max(abs(min(known)), abs(max(known)))
    return (-most, most) if view.diverging else (min(known), max(known))


def colour(value: float | None, view: View, low: float, high: float) -> str:
    """The CSS colour of a value; page.js does the same for the other views."""
    if value is None:
        return "none"
    step = (STEPS - 1) // 2 if high <= low else min(STEPS - 1, int((value - low) / (high - low) * STEPS))
    return view.ramp[step]


def heat_map(key: str, caption: str, chart: HeatMap, tab: str | None = None) -> str:
    """The figure: `key` is its own in the page, `caption` is HTML, `tab` the name of figures shown one at a time."""
    chart = replace(chart, views=tuple(map(_rounded, chart.views)))  # so that page.js colours by the same numbers
    wide, high = _cell_size(chart)
    view = chart.views[0]
    low, top = ends(view, chart.flagged)
    data: dict[str, Any] = {
        "grid": [LEFT, TOP, wide, high], "row": chart.row, "column": chart.column,
        "rows": list(chart.rows), "columns": list(chart.columns),
        "views": [
            {"name": v.name, "digits": v.digits, "diverging": v.diverging, "ramp": v.ramp, "values": v.values}
            for v in chart.views
        ],
        "flagged": {f"{r},{c}": why for (r, c), why in chart.flagged.items()}, "blank": chart.blank,
    }  # fmt: skip
    if chart.spreads:
        data |= {"spread": chart.spreads.title, "bars": chart.spreads.bars}
    says = (
        f"Heat map of {len(chart.rows)} rows ({chart.row}) by {len(chart.columns)} columns ({chart.column}); "
        f"{view.name} from {low:.{view.digits}f} to {top:.{view.digits}f}"
    )
    drawing = svg(_spec(chart, wide, high), says)
    legend = f'<ul class="legend ramp" aria-label="Colours">{_ramp(chart, view)}</ul>{_apart(chart)}'
    choice = ""
    if len(chart.views) > 1:
        options = "".join(f"<option>{text(v.name)}</option>" for v in chart.views)
        choice = f'<label class="js-only">Show <select>{options}</select></label>'
    shown_with = f' data-tab="{tab}"' if tab else ""
    return (
        f'<figure id="{key}"{shown_with}><figcaption>{caption}</figcaption>'
        f'<div class="controls">{choice}<noscript class="sub">{text(view.name)}</noscript>{legend}</div>'
        f'<div class="chart map" data-map="{key}-data" tabindex="0" role="group" '
        f'aria-label="Cells; the arrow keys move between them">{drawing}</div>'
        f"{data_block(f'{key}-data', data)}</figure>"
    )


def _ramp(chart: HeatMap, view: View) -> str:
    """The ramp between the values at its ends; nothing where there are none."""
    low, top = ends(view, chart.flagged)
    if not _on_ramp(view, chart.flagged):
        return ""
    swatches = "".join(f'<span class="swatch" style="background:{c}"></span>' for c in view.ramp)
    return f"<li>{_number(low, view)}</li><li>{swatches}</li><li>{_number(top, view)}</li>"


def _apart(chart: HeatMap) -> str:
    """The legend of cells that the ramp leaves out."""
    empty = any(v is None for row in chart.views[0].values for v in row)
    rows = [("var(--error)", chart.wrong)] * bool(chart.flagged) + [chart.blank] * (empty and chart.blank[0] != "none")
    items = "".join(f'<li><span class="swatch" style="background:{c}"></span>{text(word)}</li>' for c, word in rows)
    return f'<ul class="legend">{items}</ul>' if rows else ""


def _number(value: float, view: View) -> str:
    sign = "+" if view.diverging and value > 0 else ""
    return f"{sign}{value:.{view.digits}f}".replace("-", "\u2212")


def _rounded(view: View) -> View:
    digits = view.digits or None  # None: to an int
    return replace(view, values=[[None if v is None else round(v, digits) for v in row] for row in view.values])


def _cell_size(chart: HeatMap) -> tuple[int, int]:
    wide = (WIDEST - LEFT - RIGHT) // len(chart.columns)
    high = HIGHEST // len(chart.rows)
    return max(3, min(64, wide)), max(6, min(28, high))


def _spec(chart: HeatMap, wide: int, high: int) -> dict[str, Any]:
    """Cells at whole pixels, so that page.js finds them by arithmetic."""
    width, height = wide * len(chart.columns), high * len(chart.rows)
    view = chart.views[0]
    low, top = ends(view, chart.flagged)

    def fill(at: tuple[int, int], value: float | None) -> str:
        if at in chart.flagged:
            return "var(--error)"
        return chart.blank[0] if value is None else colour(value, view, low, top)

    cells = [
        {"x": c * wide, "y": r * high, "c": fill((r, c), value)}
        for r, row in enumerate(view.values)
        for c, value in enumerate(row)
    ]
    gap = 1 if wide > 5 and high > 6 else 0
    enter = {
        "x": {"field": "x"}, "y": {"field": "y"}, "width": {"value": wide - gap}, "height": {"value": high - gap},
        "fill": {"field": "c"},
    }  # fmt: skip
    marks = [{"type": "rect", "name": "cells", "aria": False, "from": {"data": "values"}, "encode": {"enter": enter}}]
    scales = [
        {"name": "x", "type": "band", "domain": list(chart.columns), "range": [0, width]},
        {"name": "y", "type": "band", "domain": list(chart.rows), "range": [0, height]},
    ]
    plain: dict[str, Any] = {"domain": False, "ticks": False, "labelOverlap": False, "aria": False}
    axes = [
        {**plain, "orient": "left", "scale": "y", "title": chart.row, "values": _spread(chart.rows, high, FONT + 2),
         "titleX": 14 - LEFT},
        {**plain, "orient": "bottom", "scale": "x", "title": chart.column, **_columns(chart, wide)},
    ]  # fmt: skip
    padding = {"left": LEFT, "top": TOP, "right": RIGHT, "bottom": _bottom(chart, wide)}
    return {
        "width": width, "height": height, "padding": padding, "autosize": "none",
        "data": [{"name": "values", "values": cells}], "scales": scales, "axes": axes, "marks": marks,
    }  # fmt: skip


def _spread(labels: Sequence[str], size: int, room: int) -> list[str]:
    """Every label, or every second, fourth, eighth ... so that each has `room`."""
    every = 1
    while every * size < room:
        every *= 2
    return list(labels)[::every]


def _slanted(chart: HeatMap, wide: int) -> bool:
    return max(map(len, chart.columns)) * 7 > max(wide, 28)


def _columns(chart: HeatMap, wide: int) -> dict[str, Any]:
    if _slanted(chart, wide):
        return {"values": _spread(chart.columns, wide, FONT + 4), "labelAngle": -40, "labelAlign": "right"}
    return {"values": _spread(chart.columns, wide, 28)}


def _bottom(chart: HeatMap, wide: int) -> int:
    return 40 + (min(20, max(map(len, chart.columns))) * 5 if _slanted(chart, wide) else 0)
