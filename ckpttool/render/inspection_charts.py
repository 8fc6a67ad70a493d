"""The drawings of an inspection's page: bytes as a treemap, scales as heat maps and histograms, codes as histograms."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ckpttool.render.charts import Tile, bars, label, treemap
from ckpttool.render.heat_map import HeatMap, Spreads, View, heat_map
from ckpttool.render.page import code, text
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.inspection.report import CodeReport, Inspection, ScaleCounts, ScaleReport, WeightReport

USUAL = ("BF16", "MXFP4", "F32", "Q8_0", "F16", "FP8", "NVFP4")
"""Formats that have the same colour in every page, if they are among the first; the others take what is free."""
COLOURS = 8
SMALL = 0.004
"""The share of all bytes under which a module has no box of its own."""
SPLIT = 0.01
"""The share from which a module's box shows its layers."""
MOST_LAYERS = 400
"""Layers that have a tile of their own."""
MOST_MAPS = 12
"""Heat maps and histograms of a kind that are drawn, in the order of the file."""
MOST_CELLS = 60_000
"""Cells of a heat map; Kimi-K2 has 60 layers of 384 experts."""
FEWEST_BARS = 9
MOST_BARS = 40
"""Bars of a cell's histogram."""
ZERO = -127
"""The exponent of E8M0's byte 0, which stands for a block of zeros."""
E2M1 = ("0", "0.5", "1", "1.5", "2", "3", "4", "6")

WHOLE = ("\u22126", "\u22124", "\u22123", "\u22122", "\u22121", "0", "1", "2", "3", "4", "6")
"""Values below a histogram of codes; all 16 have no room."""

NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""A layer's or expert's number in a name."""


@lru_cache(1 << 18)
def kind(name: str) -> str:
    """What a weight is, in words of its name alone: "mlp.experts.gate_up_proj" for that of every layer."""
    pattern = NUMBER.sub("*", name)
    head, star, tail = pattern.partition("*.")
    return label((tail if star and tail else head).removesuffix(".weight"))


def colours(report: Inspection) -> dict[str, str]:
    """A CSS colour for each format, the largest first; from the eighth on they share one."""
    nbytes = Counter[str]()
    for t in report.tensors:
        nbytes[t.format] += t.nbytes
    first = [name for name, _ in nbytes.most_common(COLOURS - 1)]
    found = {name: USUAL.index(name) for name in first if name in USUAL}
    free = iter(sorted(set(range(COLOURS - 1)) - set(found.values())))
    found |= {name: next(free) for name in first if name not in found}
    return {name: f"var(--t{found.get(name, COLOURS - 1)})" for name, _ in nbytes.most_common()}


def bytes_by_module(report: Inspection) -> str:
    """The treemap, for wide and for narrow windows, and its legend."""
    colour = colours(report)
    tiles = _tiles(report.tensors, colour)
    if not tiles:
        return '<p class="muted">There are no bytes to show.</p>'
    says = "Treemap of bytes by module, layer and format; the table of formats below has the figures"
    legend = "".join(
        f'<li><span class="swatch" style="background:{c}"></span>{text(name)}</li>' for name, c in colour.items()
    )
    return (
        "<figure><figcaption>Each box is a module, its area the bytes stored; the tiles in it are its layers, by "
        f'number, in the colour of their format.</figcaption><ul class="legend">{legend}</ul>'
        f'<div class="chart fluid wide">{treemap(tiles, 1180, 460, says)}</div>'
        f'<div class="chart fluid narrow">{treemap(tiles, 370, 520, says)}</div></figure>'
    )


def _tiles(tensors: Sequence[WeightReport], colour: Mapping[str, str]) -> list[Tile]:
    total = max(1, sum(t.nbytes for t in tensors))
    modules = Counter[str]()
    for t in tensors:
        modules[kind(t.name)] += t.nbytes
    sums = Counter[tuple[str, str, str]]()
    for t in sorted(tensors, key=lambda t: -1 if t.layer is None else t.layer):
        module, share = kind(t.name), modules[kind(t.name)] / total
        if share < SMALL:
            sums["small modules", "", t.format] += t.nbytes
        else:
            layer = "" if t.layer is None or share < SPLIT or t.layer > MOST_LAYERS else str(t.layer)
            sums[module, layer, t.format] += t.nbytes
    out = []
    for (module, layer, format), nbytes in sums.items():
        if nbytes:
            where = f"{module}, layer {layer}" if layer else module
            says = f"{where}: {label(format)}, {size(nbytes)} ({100 * nbytes / total:.2f} %)"
            out.append(Tile(f"{module}  {size(modules.get(module, nbytes))}", layer, says, nbytes, colour[format]))
    return out


def scale_maps(report: Inspection) -> str:
    """A heat map of scale exponents, layer by expert, for each kind of weight with experts; one for all others."""
    expert = {t.name: t.expert for t in report.tensors}
    stacks: dict[str, dict[tuple[int, int], ScaleCounts]] = {}
    dense: dict[tuple[int, str], ScaleCounts] = {}
    for s in report.scales or ():
        if s.layer is None:
            continue
        rows = s.experts or (s.total,)
        for counts in rows:
            number = counts.expert if counts.expert is not None else expert.get(s.tensor)
            if number is None:
                dense[s.layer, kind(s.tensor)] = counts
            else:
                stacks.setdefault(kind(s.tensor), {})[s.layer, number] = counts
    kinds = len(stacks) + (len(dense) > 1)
    stacks = {name: cells for name, cells in stacks.items() if _fits(cells) and any(map(exponents, cells.values()))}
    names = list(stacks)[:MOST_MAPS]
    maps = [
        heat_map(f"scales-{n}", f"Scale exponents of {code(name)} by layer and expert", _map(cells, "expert"), "scales")
        for n, (name, cells) in enumerate(list(stacks.items())[:MOST_MAPS])
    ]
    if len(dense) > 1 and _fits(dense) and any(map(exponents, dense.values())):
        names.append("other weights")
        words = "Scale exponents of weights without experts, by layer"
        maps.append(heat_map("scales-dense", words, _map(dense, "weight"), "scales"))
    left_out = _left_out(kinds - len(maps))
    if len(maps) < 2:
        return "".join(maps) + left_out
    options = "".join(f"<option>{text(name)}</option>" for name in names)
    choice = f'<div class="controls js-only" data-tabs="scales"><label>Weights <select>{options}</select></label></div>'
    return choice + "".join(maps) + left_out


def _left_out(kinds: int) -> str:
    return (
        f'<p class="muted">Not drawn: {kinds:,} more of the kinds of weights: too many, too large, or all zero.</p>'
        if kinds
        else ""
    )


def _fits(cells: Collection[tuple[int, object]]) -> bool:
    return len({row for row, _ in cells}) * len({column for _, column in cells}) <= MOST_CELLS


def _map(cells: Mapping[tuple[int, int], ScaleCounts] | Mapping[tuple[int, str], ScaleCounts], column: str) -> HeatMap:
    found = {(str(row), str(name)): counts for (row, name), counts in cells.items()}
    rows = [str(n) for n in sorted({row for row, _ in cells})]
    columns = list(dict.fromkeys(str(name) for _, name in cells))
    if column == "expert":
        columns.sort(key=int)
    figures = [[_figures(found.get((row, name))) for name in columns] for row in rows]
    means = [[f[0] for f in row] for row in figures]
    views = [
        View("mean exponent", means),
        View("smallest exponent", [[f[1] for f in row] for row in figures], 0),
        View("largest exponent", [[f[2] for f in row] for row in figures], 0),
        View("zero blocks, %", [[f[3] for f in row] for row in figures]),
    ]
    if column == "expert":
        views.insert(1, View("mean against the layer's median", [_against_median(row) for row in means], 2, True))
    return HeatMap("layer", rows, column, columns, views, _spreads(found, rows, columns))


def _spreads(
    found: Mapping[tuple[str, str], ScaleCounts], rows: Sequence[str], columns: Sequence[str]
) -> Spreads | None:
    """Every cell's histogram in steps of an eighth of its tallest bar, over the exponents that the map has."""
    known = {at: exponents(counts) for at, counts in found.items()}
    if not any(known.values()):
        return None
    last = max(max(e) for e in known.values() if e)
    first = max(min(min(e) for e in known.values() if e), last - MOST_BARS + 1)  # the first bar has all that is below

    def steps(row: str, column: str) -> str:
        bars = [0] * (last - first + 1)
        for e, n in known.get((row, column), {}).items():
            bars[max(0, e - first)] += n
        most = max(bars)
        return "".join(str(-(-8 * n // most)) for n in bars) if most else ""

    title = f"exponents {_signed(first)} to {_signed(last)}"
    return Spreads(title, [[steps(row, column) for column in columns] for row in rows])


def _figures(counts: ScaleCounts | None) -> tuple[float | None, int | None, int | None, float | None]:
    """Mean, smallest, largest exponent of the blocks that are not zero; and how many per cent are."""
    if counts is None:
        return None, None, None, None
    known = exponents(counts)
    zero = 100 * counts.zero_blocks / max(1, counts.blocks)
    if not known:
        return None, None, None, zero
    total = sum(known.values())
    return sum(e * n for e, n in known.items()) / total, min(known), max(known), zero


def _against_median(row: Sequence[float | None]) -> list[float | None]:
    known = [v for v in row if v is not None]
    middle = statistics.median(known) if known else 0.0
    return [None if v is None else v - middle for v in row]


def exponents(counts: ScaleCounts) -> dict[int, int]:
    """How many scales have which exponent; blocks of zeros, whose scale says nothing, are left out."""
    first = counts.histogram.first
    if first is None:
        return {}
    found = {first + n: count for n, count in enumerate(counts.histogram.counts) if count}
    if counts.bytes_0 and counts.zero_blocks:
        found.pop(ZERO, None)
    return found


def scale_histograms(scales: Iterable[ScaleReport]) -> str:
    """For each kind of weight how its scales spread over the exponents."""
    sums: dict[str, Counter[int]] = {}
    for s in scales:
        sums.setdefault(kind(s.tensor), Counter()).update(exponents(s.total))
    return _multiples([_scale_bars(name, found) for name, found in list(sums.items())[:MOST_MAPS] if found], len(sums))


def _multiples(figures: Sequence[str], kinds: int) -> str:
    return f'<div class="multiples">{"".join(figures)}</div>{_left_out(max(0, kinds - MOST_MAPS))}'


def _scale_bars(name: str, found: Counter[int]) -> str:
    total = found.total()
    values = []
    for e in _wide(min(found), max(found)):
        share = 100 * found[e] / total
        values.append((_signed(e), share, f"2^{_signed(e)}: {found[e]:,} blocks ({percent(share)})"))
    drawing = bars(values, "exponent of the scale", "% of blocks", f"Histogram of the scale exponents of {name}")
    return f'<figure><figcaption>{code(name)}</figcaption><div class="chart fluid">{drawing}</div></figure>'


def _wide(first: int, last: int) -> range:
    """At least `FEWEST_BARS`, those in question in the middle: one bar alone says less than one among empty ones."""
    more = max(0, FEWEST_BARS - (last - first + 1))
    return range(first - more // 2, last + more - more // 2 + 1)


def code_histograms(codes: Iterable[CodeReport]) -> str:
    """For each kind of weight how often each code occurs, in the order of the values."""
    sums: dict[str, list[int]] = {}
    for report in codes:
        sums[kind(report.tensor)] = [
            a + b for a, b in zip(sums.get(kind(report.tensor), [0] * 16), report.histogram, strict=True)
        ]
    return _multiples(
        [_code_bars(name, found) for name, found in list(sums.items())[:MOST_MAPS] if sum(found)], len(sums)
    )


def _code_bars(name: str, found: Sequence[int]) -> str:
    total = sum(found)
    order = [(f"\u2212{E2M1[n]}", found[8 + n]) for n in range(7, -1, -1)] + [(E2M1[n], found[n]) for n in range(8)]
    shares = [(label, count, 100 * count / total) for label, count in order]
    values = [(label, share, f"{label}: {n:,} elements ({percent(share)})") for label, n, share in shares]
    drawing = bars(
        values, "element, in units of its scale", "% of elements", f"Histogram of the codes of {name}", WHOLE
    )
    return f'<figure><figcaption>{code(name)}</figcaption><div class="chart fluid">{drawing}</div></figure>'


def _signed(number: int) -> str:
    return str(number).replace("-", "\u2212")


def percent(share: float) -> str:
    """A share with two digits that count."""
    if share == 0:
        return "0 %"
    digits = 2 if share >= 0.01 else 1 - math.floor(math.log10(share))
    return f"{share:.{digits}f} %"
