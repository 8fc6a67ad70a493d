"""Plots over places, such as layers, and over powers of ten.

Every plot is drawn for wide and for narrow windows; page.css shows the one that fits. Marks say their figures in parts
that "; " divides, which page.js shows as lines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.render.charts import FONT, MUTED, TEXT, svg
from ckpttool.render.log_axis import LogAxis, log_axis

WIDE, HALF, NARROW = 1180, 580, 366
"""Widths of a drawing: across the page, beside something else, and in a narrow window."""
LEFT, NEAR, RIGHT, TOP = 74, 50, 20, 8
"""Room around a plot: those along places have the same, so that what lies above each other is the same place."""
FEWEST = 4
"""The height of an axis of counts at least, so that its steps are whole."""
UNSEEN = {"fill": {"value": TEXT}, "fillOpacity": {"value": 0}}
"""Of a mark that only answers the pointer."""
DASHED, DOTTED = [5, 4], [1, 4]
WORD = 2.1 * FONT
"""Pixels that a word below an axis has to its next number."""


@dataclass(frozen=True)
class Series:
    """A line: a value for each place, None where there is none, infinity where it is not finite. `shape` is Vega's."""

    name: str
    colour: str
    shape: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Places:
    """What lies along a plot: `labels` are their own words, `says` what each tells, `apart` those joined to none."""

    title: str
    labels: Sequence[str]
    says: Sequence[str]
    apart: frozenset[str] = frozenset()


def _both(draw: Callable[[int], str], wide: int = WIDE) -> str:
    """The drawing at both widths."""
    return f'<div class="chart fluid wide">{draw(wide)}</div><div class="chart fluid narrow">{draw(NARROW)}</div>'


def lines(places: Places, series: Sequence[Series], floor: Sequence[float | None], says: str, mark: str | None) -> str:
    """Lines over a floor, which is drawn as steps; `mark` is the place that a dashed line points out.

    The first of `series` lies above the others.
    """
    given = [v for s in (*[s.values for s in series], floor) for v in s if v is not None]
    axis = log_axis(given)
    points = [
        {"x": label, "y": axis.at(v), "s": n, "run": label if label in places.apart else "",
         "fill": s.colour if math.isfinite(v) else "var(--error)", "shape": s.shape if math.isfinite(v) else "cross"}
        for n, s in reversed([*enumerate(series)])
        for label, v in zip(places.labels, s.values, strict=True) if v is not None
    ]  # fmt: skip
    steps = [
        {"x": label, "y": axis.at(v)} for label, v in zip(places.labels, floor, strict=True) if v is not None and v > 0
    ]

    def draw(width: int) -> str:
        size = 44 if width == WIDE else 16
        top = {"scale": "y", "field": "y"}
        bottom = {"scale": "y", "value": axis.domain[0]}
        band = {"x": {"scale": "x", "field": "x"}, "width": {"scale": "x", "band": 1}}
        middle = {"scale": "x", "field": "x", "band": 0.5}
        marks = [
            _rect("floor", "steps", band | {"y": top, "y2": bottom, "fill": {"value": "var(--floor)"}}),
            *_breaks(axis, across=True),
            *_pointer(mark, middle),
            {"type": "group", "from": {"facet": {"name": "run", "data": "finite", "groupby": ["s", "run"]}}, "marks": [
                {"type": "line", "from": {"data": "run"}, "aria": False, "encode": {"enter": {
                    "x": middle, "y": top, "stroke": {"field": "fill"}, "strokeWidth": {"value": 1.8}}}}]},
            {"type": "symbol", "name": "points", "from": {"data": "dots"}, "aria": False, "encode": {"enter": {
                "x": middle, "y": top, "fill": {"field": "fill"}, "shape": {"field": "shape"},
                "size": {"value": size}}}},
            _hover(places, band),
        ]  # fmt: skip
        data = [
            {"name": "dots", "values": points}, {"name": "steps", "values": steps},
            {"name": "finite", "values": [p for p in points if p["shape"] != "cross"]},
            {"name": "pointed", "values": [{"x": mark}] if mark is not None else []},
            *_data(places, axis),
        ]  # fmt: skip
        return svg(_spec(places, width, 300, "relative error", data, marks, axis), says)

    return _both(draw)


def columns(places: Places, heights: Sequence[float], floor: Sequence[float], title: str, says: str) -> str:
    """A column for each place, and a stroke across it at its floor."""
    rows = [
        {"x": label, "h": h, "f": f} for label, h, f in zip(places.labels, heights, floor, strict=True)
        if label not in places.apart
    ]  # fmt: skip
    most = max((FEWEST, *heights, *floor))

    def draw(width: int) -> str:
        band = {"x": {"scale": "x", "field": "x", "band": 0.14}, "width": {"scale": "x", "band": 0.72}}
        marks = [
            _rect("columns", "rows", band | {
                "y": {"scale": "y", "field": "h"}, "y2": {"scale": "y", "value": 0}, "fill": {"value": "var(--l0)"}}),
            _rect("floor", "floors", {
                "x": {"scale": "x", "field": "x"}, "width": {"scale": "x", "band": 1}, "height": {"value": 2},
                "y": {"scale": "y", "field": "f", "offset": -1}, "fill": {"value": MUTED}}),
            _hover(places, {"x": {"scale": "x", "field": "x"}, "width": {"scale": "x", "band": 1}}),
        ]  # fmt: skip
        data = [
            {"name": "rows", "values": rows}, {"name": "floors", "values": [r for r in rows if r["f"]]},
            *_data(places, None),
        ]  # fmt: skip
        spec = _spec(places, width, 130, title, data, marks, None)
        spec["scales"].append({"name": "y", "type": "linear", "domain": [0, most], "range": "height", "nice": True})
        spec["axes"].insert(0, {**_left(title), "tickCount": 3})
        return svg(spec, says)

    return _both(draw)


@dataclass(frozen=True)
class Bins:
    """A histogram of numbers from 0 on: `edges` are one more than `counts`, `zeros` are those that are 0."""

    edges: Sequence[float]
    counts: Sequence[int]
    zeros: int


@dataclass(frozen=True)
class Rule:
    """A value pointed out in a histogram."""

    name: str
    colour: str
    value: float
    dashed: bool = False


def spread(bins: Bins, rules: Sequence[Rule], axis: LogAxis, x_title: str, y_title: str, says: str) -> str:
    """A histogram over powers of ten, zeros in a bar of their own; heights are shares of all, in %."""
    total = max(1, bins.zeros + sum(bins.counts))
    rows = [
        {"a": axis.at(a), "b": axis.at(b), "h": 100 * n / total, "says": _share(f"{a:.2g} to {b:.2g}", n, total)}
        for a, b, n in zip(bins.edges[:-1], bins.edges[1:], bins.counts, strict=True)
    ]
    if bins.zeros:
        at = axis.at(0.0)
        rows.insert(0, {"a": at - 0.3, "b": at + 0.3, "h": 100 * bins.zeros / total,
                        "says": _share("0", bins.zeros, total)})  # fmt: skip
    marked = [{"x": axis.at(r.value), "colour": r.colour, "dash": DASHED if r.dashed else []} for r in rules]

    def draw(width: int) -> str:
        inner = width - NEAR - RIGHT
        upright = {"y": {"value": 0}, "y2": {"signal": "height"}}
        height = {"y": {"scale": "y", "field": "h"}, "y2": {"scale": "y", "value": 0}}
        marks = [
            *_breaks(axis, across=False),
            _rect("columns", "rows", height | {
                "x": {"scale": "x", "field": "a"}, "x2": {"scale": "x", "field": "b", "offset": -1},
                "fill": {"value": "var(--l0)"}}),
            {"type": "rule", "name": "rules", "from": {"data": "ruled"}, "aria": False, "encode": {"enter": upright | {
                "x": {"scale": "x", "field": "x"}, "stroke": {"field": "colour"}, "strokeWidth": {"value": 2},
                "strokeDash": {"field": "dash"}}}},
            {"type": "rect", "name": "places", "from": {"data": "rows"}, "encode": {"enter": upright | {
                "x": {"scale": "x", "field": "a"}, "x2": {"scale": "x", "field": "b"},
                "description": {"field": "says"}, **UNSEEN}}},
        ]  # fmt: skip
        data = [
            {"name": "rows", "values": rows}, {"name": "ruled", "values": marked},
            {"name": "breaks", "values": axis.breaks},
        ]  # fmt: skip
        most = 100 * max((1, bins.zeros, *bins.counts)) / total
        scales = [_decades("x", axis), {"name": "y", "type": "linear", "domain": [0, most], "range": "height",
                                        "nice": True}]  # fmt: skip
        axes = [
            {**_left(y_title, NEAR), "tickCount": 4},
            {"orient": "bottom", "scale": "x", "title": x_title, "labelOverlap": True, **_labelled(axis)},
        ]
        padding = {"left": NEAR, "right": RIGHT, "top": TOP, "bottom": 42}
        spec = {"width": inner, "height": 250, "padding": padding, "autosize": "none", "data": data,
                "scales": scales, "axes": axes, "marks": marks}  # fmt: skip
        return svg(spec, says)

    return _both(draw, HALF)


def _share(what: str, n: int, total: int) -> str:
    return f"{what}; {n:,} of {total:,} ({100 * n / total:.3g} %)"


def _data(places: Places, axis: LogAxis | None) -> list[dict[str, Any]]:
    tips = [{"x": label, "says": says} for label, says in zip(places.labels, places.says, strict=True)]
    return [{"name": "tips", "values": tips}, {"name": "breaks", "values": axis.breaks if axis else []}]


def _rect(name: str, data: str, enter: dict[str, Any]) -> dict[str, Any]:
    return {"type": "rect", "name": name, "from": {"data": data}, "aria": False, "encode": {"enter": enter}}


def _hover(places: Places, band: dict[str, Any]) -> dict[str, Any]:
    """Over each place what it says, wherever in it the pointer is."""
    enter = band | {
        "y": {"value": 0}, "y2": {"signal": "height"}, "description": {"field": "says"}, **UNSEEN,
    }  # fmt: skip
    return {"type": "rect", "name": "places", "from": {"data": "tips"}, "encode": {"enter": enter}}


def _breaks(axis: LogAxis, *, across: bool) -> Iterator[dict[str, Any]]:
    """Where the powers of ten end, a dashed line."""
    if axis.breaks:
        scale = "y" if across else "x"
        other = "x" if across else "y"
        place = {"scale": scale, "field": "data"}
        span = {other: {"value": 0}, f"{other}2": {"signal": "width" if across else "height"}}
        enter = {scale: place, **span, "stroke": {"value": MUTED}, "strokeDash": {"value": DOTTED}}
        yield {"type": "rule", "from": {"data": "breaks"}, "aria": False, "encode": {"enter": enter}}


def _pointer(mark: str | None, middle: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if mark is not None:
        enter = {
            "x": middle, "y": {"value": 0}, "y2": {"signal": "height"}, "stroke": {"value": "var(--error)"},
            "strokeDash": {"value": DASHED}, "strokeWidth": {"value": 1.5},
        }  # fmt: skip
        yield {"type": "rule", "name": "mark", "from": {"data": "pointed"}, "aria": False, "encode": {"enter": enter}}


def _left(title: str, room: int = LEFT) -> dict[str, Any]:
    return {"orient": "left", "scale": "y", "title": title, "grid": True, "domain": False, "ticks": False,
            "titleX": 14 - room}  # fmt: skip


def _labelled(axis: LogAxis) -> dict[str, Any]:
    """The labels of an axis whose scale counts decades."""
    ticks = axis.ticks()
    words = json.dumps({str(at): label for at, label in ticks.items()}, ensure_ascii=False)
    return {"values": list(ticks), "encode": {"labels": {"update": {"text": {"signal": f"({words})[datum.value]"}}}}}


def _decades(name: str, axis: LogAxis) -> dict[str, Any]:
    reach = "height" if name == "y" else "width"
    return {"name": name, "type": "linear", "domain": list(axis.domain), "range": reach, "zero": False}


def _spec(
    places: Places, width: int, height: int, title: str, data: list[dict[str, Any]], marks: list[dict[str, Any]],
    axis: LogAxis | None,
) -> dict[str, Any]:  # fmt: skip
    inner = width - LEFT - RIGHT
    scales: list[dict[str, Any]] = [{"name": "x", "type": "band", "domain": list(places.labels), "range": [0, inner]}]
    axes: list[dict[str, Any]] = [{
        "orient": "bottom", "scale": "x", "title": places.title, "ticks": False, "labelPadding": 5,
        "values": _sparse(places.labels, inner / max(1, len(places.labels))), "labelOverlap": False,
    }]  # fmt: skip
    if axis is not None:
        scales.append(_decades("y", axis))
        axes.insert(0, {**_left(title), **_labelled(axis)})
    return {
        "width": inner, "height": height, "padding": {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": 42},
        "autosize": "none", "data": data, "scales": scales, "axes": axes, "marks": marks,
    }  # fmt: skip


def _sparse(labels: Sequence[str], size: float) -> list[str]:
    """Words always; of the numbers every one, or every second, fourth ... so that each has room, none beside a word."""
    every = 1
    while every * size < 2 * FONT:
        every *= 2
    words = [n for n, label in enumerate(labels) if not label.isdecimal()]
    first = next((n for n, label in enumerate(labels) if label.isdecimal()), 0)
    return [
        label for n, label in enumerate(labels)
        if n in words or ((n - first) % every == 0 and all(abs(n - w) * size >= WORD for w in words))
    ]  # fmt: skip
