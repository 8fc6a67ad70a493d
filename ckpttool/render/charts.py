"""Charts as SVG, drawn by Vega through vl-convert: a page of 0.1 to 2 MB holds finished drawings, which a browser
shows without any script, in the colours of the reader's theme and on paper (plotly alone would add 4.7 MB of script).

Colours are CSS variables of page.css, never values. Text that comes from a file must have gone through `label`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.errors import shown
from ckpttool.render.page import no_drawing

TEXT, MUTED, LINE = "var(--text)", "var(--muted)", "var(--line)"
FONT = 12
MOST_LABELS = 10
"""Labels below a histogram, where none are asked for."""
STEPS = 9
"""Colours of a heat map's ramp."""

CONFIG = {
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "domainColor": LINE, "tickColor": LINE, "gridColor": LINE,
        "labelFontSize": FONT, "titleFontSize": FONT, "titleFontWeight": "normal", "gridOpacity": 0.6,
    }
}  # fmt: skip

_SVG = "{http://www.w3.org/2000/svg}"
_TAGS = frozenset(_SVG + name for name in ("svg", "g", "path", "line", "rect", "text", "tspan", "title"))
_FORBIDDEN = re.compile(r"^(on.*|.*href|style|src|xmlns.*)$")
_NEEDLESS = frozenset(
    ("role", "aria-roledescription", "aria-hidden", "stroke-miterlimit", "pointer-events", "font-family")
)


@dataclass(frozen=True)
class Tile:
    """A leaf of a treemap: `group` is the box it lies in, `label` stands in it, `says` is its tooltip."""

    group: str
    label: str
    says: str
    size: int
    colour: str


def label(name: str, limit: int = 60) -> str:
    """`name` as it may stand in a drawing: what neither a terminal nor XML takes is spelt out."""
    return re.sub("[\ufffe\uffff]", lambda m: f"\\u{{{ord(m[0]):x}}}", shown(name, limit))


def svg(spec: Mapping[str, Any], says: str) -> str:
    """The drawing of a Vega specification, checked, as an SVG element that is an image called `says`.

    Raises:
        UsageError: vl-convert is not installed.
        ValueError: Vega drew what no chart of ours holds.
    """
    try:
        import vl_convert
    except ImportError as e:
        raise no_drawing() from e
    drawn = vl_convert.vega_to_svg({"config": CONFIG, "padding": 2, **spec}, allowed_base_urls=[])
    return _checked(drawn, says)


def _checked(drawn: str, says: str) -> str:
    """`drawn` written anew from its elements, each of which is a plain mark."""
    root = ET.fromstring(drawn)
    for element in root.iter():
        if element.tag not in _TAGS or any(_FORBIDDEN.match(name.split("}")[-1]) for name in element.attrib):
            raise ValueError(f"a chart holds {element.tag} {sorted(element.attrib)}")
        for name in _NEEDLESS & element.attrib.keys():
            del element.attrib[name]
    root.attrib |= {"role": "img", "aria-label": says}
    ET.register_namespace("", _SVG[1:-1])
    return re.sub(r' xmlns="[^"]*"', "", ET.tostring(root, encoding="unicode"), count=1)


def treemap(tiles: Sequence[Tile], width: int, height: int, says: str) -> str:
    """Nested boxes, their area by size: a box for each group, tiles in it."""
    sizes: dict[str, int] = {}
    for tile in tiles:
        sizes[tile.group] = sizes.get(tile.group, 0) + tile.size
    rows: list[dict[str, Any]] = [{"id": "all", "parent": None}]
    rows += [{"id": f"g{n}", "parent": "all", "label": name} for n, name in enumerate(sizes)]
    number = {name: f"g{n}" for n, name in enumerate(sizes)}
    rows += [
        {"id": f"t{n}", "parent": number[t.group], "label": t.label, "says": t.says, "size": t.size, "colour": t.colour}
        for n, t in enumerate(tiles)
    ]
    box = {
        "x": {"field": "x0"}, "y": {"field": "y0"}, "x2": {"field": "x1"}, "y2": {"field": "y1"},
    }  # fmt: skip
    wide = "datum.x1 - datum.x0"
    tall = "datum.y1 - datum.y0"
    transform = [
        {"type": "stratify", "key": "id", "parentKey": "parent"},
        {"type": "treemap", "field": "size", "sort": {"field": "value", "order": "descending"}, "round": True,
         "method": "squarify", "ratio": 1.3, "paddingInner": 1, "paddingTop": 19, "paddingOuter": 2,
         "size": [{"signal": "width"}, {"signal": "height"}]},
    ]  # fmt: skip
    leaves = {"name": "leaves", "source": "tree", "transform": [{"type": "filter", "expr": "!datum.children"}]}
    groups = {"name": "groups", "source": "tree", "transform": [{"type": "filter", "expr": "datum.depth === 1"}]}
    marks = [
        {"type": "rect", "name": "boxes", "from": {"data": "groups"}, "aria": False, "encode": {"enter": box | {
            "fill": {"value": "var(--card)"}, "stroke": {"value": LINE}}}},
        {"type": "rect", "name": "tiles", "from": {"data": "leaves"}, "encode": {"enter": box | {
            "fill": {"field": "colour"}, "description": {"field": "says"}}}},
        _label("leaves", "datum.x0 + 5", f"datum.y0 + min(15, ({tall}) / 2 + 4)", f"{wide} - 8",
               f"{wide} > 8 + 6.5 * min(4, length(datum.label)) && {tall} > 13", "#ffffff"),
        _label("groups", "datum.x0 + 5", "datum.y0 + 14", f"{wide} - 8", f"{wide} > 44 && {tall} > 19", TEXT),
    ]  # fmt: skip
    data = [{"name": "tree", "values": rows, "transform": transform}, leaves, groups]
    return svg({"width": width, "height": height, "data": data, "marks": marks}, says)


def _label(data: str, x: str, y: str, limit: str, where: str, colour: str) -> dict[str, Any]:
    fill = [{"test": where, "value": colour}, {"value": "none"}]
    enter = {
        "x": {"signal": x}, "y": {"signal": y}, "limit": {"signal": f"max(1, 0.88 * ({limit}))"}, "fill": fill,
        "text": {"signal": f"{where} ? datum.label : ''"}, "fontSize": {"value": FONT},
    }  # fmt: skip
    return {"type": "text", "from": {"data": data}, "aria": False, "interactive": False, "encode": {"enter": enter}}


def bars(
    values: Sequence[tuple[str, float, str]], x_title: str, y_title: str, says: str, labels: Sequence[str] = ()
) -> str:
    """A histogram: for each bar its label below, its height, and what it says. `labels` are shown, else every n-th."""
    rows = [{"n": n, "label": label, "height": height, "says": tip} for n, (label, height, tip) in enumerate(values)]
    labels = labels or [label for label, _, _ in values][:: max(1, -(-len(rows) // MOST_LABELS))]
    scales = [
        {"name": "x", "type": "band", "domain": [r["label"] for r in rows], "range": "width", "paddingInner": 0.12},
        {
            "name": "y",
            "type": "linear",
            "domain": {"data": "counts", "field": "height"},
            "range": "height",
            "nice": True,
        },
    ]
    axes = [
        {"orient": "left", "scale": "y", "title": y_title, "grid": True, "domain": False, "ticks": False,
         "tickCount": 4},
        {"orient": "bottom", "scale": "x", "title": x_title, "values": list(labels), "labelFlush": False},
    ]  # fmt: skip
    enter = {
        "x": {"scale": "x", "field": "label"}, "width": {"scale": "x", "band": 1},
        "y": {"scale": "y", "field": "height"}, "y2": {"scale": "y", "value": 0},
        "fill": {"value": "var(--mark)"}, "description": {"field": "says"},
    }  # fmt: skip
    marks = [{"type": "rect", "name": "bars", "from": {"data": "counts"}, "encode": {"enter": enter}}]
    data = [{"name": "counts", "values": rows}]
    spec = {"width": 290, "height": 150, "data": data, "scales": scales, "axes": axes, "marks": marks}
    return svg({**spec, "autosize": "pad"}, says)
