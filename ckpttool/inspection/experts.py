"""Every layer with experts in detail, and the experts of a layer against each other by their scales.

Experts of one matrix were trained together, and their scales are alike: in the small model of the fixtures their mean
exponents lie within a tenth of an octave. So one whose mean lies far from the others' was scaled, swapped in from
elsewhere, or never trained; and two with the same histogram are, in all likelihood, one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Final

from ckpttool.expert_layout import matrix_of, ranges_of
from ckpttool.inspection.report import (
    ExpertLayerReport,
    ExpertSpread,
    Finding,
    LayoutReport,
    ScaleCounts,
    ScaleReport,
    Severity,
    SpreadReport,
    WeightReport,
)

if TYPE_CHECKING:
    from ckpttool.expert_layout import ExpertLayouts

FAR: Final = 1.0
"""Octaves from the median at the least: half or twice the size of the others."""

TIMES: Final = 8.0
"""And so many times the median deviation, so that layers whose experts differ much are not full of odd ones."""

DEAD: Final = "dead: all its scales are 0"

ALIKE_BLOCKS: Final = 4096
"""Fewer blocks than this may have equal histograms by accident."""


def expert_layers(
    rows: Sequence[WeightReport],
    layouts: ExpertLayouts | None,
    reports: Sequence[LayoutReport],
    top_k: int | None,
    scales: Sequence[ScaleReport],
) -> tuple[ExpertLayerReport, ...]:
    """Each layer with experts, in order; `reports` are the layouts' groups, `scales` whatever was read."""
    if layouts is None:
        return ()
    spreads: dict[int, list[SpreadReport]] = {}
    for spread, layer in spreads_of(scales):
        spreads.setdefault(layer, []).append(spread)
    by_layer: dict[int, list[WeightReport]] = {}
    for row in rows:
        if row.layer is not None and _is_expert(row):
            by_layer.setdefault(row.layer, []).append(row)
    usual = reports[0]
    out = []
    for layer, held in sorted(by_layer.items()):
        layout = next((r for r in reports if layer in r.layers), None)
        if layout is None:
            continue
        out.append(
            ExpertLayerReport(
                layer, top_k, layout, sum(w.parameters for w in held), sum(w.nbytes for w in held),
                None if layout is usual else _differs(layout, usual), tuple(spreads.get(layer, ())),
            )
        )  # fmt: skip
    return tuple(out)


def _is_expert(row: WeightReport) -> bool:
    return any(kind.removesuffix(".bias") in ("gate", "up", "down") for kind in (row.purpose or "").split("+"))


def _differs(layout: LayoutReport, usual: LayoutReport) -> str:
    names = [n for n in LayoutReport.__dataclass_fields__ if n not in ("layers", "words")]
    return "; ".join(
        f"{n} {getattr(layout, n)}, elsewhere {getattr(usual, n)}"
        for n in names
        if getattr(layout, n) != getattr(usual, n)
    )


def spreads_of(scales: Sequence[ScaleReport]) -> Iterator[tuple[SpreadReport, int]]:
    """The experts of each matrix with its layer; experts that are stored one by one are put together by name."""
    groups: dict[str, list[ScaleReport]] = {}
    for report in scales:
        if report.layer is None or not report.experts:
            continue
        one_by_one = len(report.experts) == 1
        number = f".{report.experts[0].expert}."
        name = report.tensor.replace(number, ".*.") if one_by_one else report.tensor
        groups.setdefault(f"{report.layer} {name}", []).append(report)
    for key, held in groups.items():
        counts = sorted((c for r in held for c in r.experts), key=lambda c: c.expert or 0)
        layer = held[0].layer
        if layer is not None and len(counts) > 1:
            part = held[0].part if len(held) == 1 else None
            yield _spread(key.partition(" ")[2], part, counts), layer


def _spread(tensor: str, part: str | None, counts: Sequence[ScaleCounts]) -> SpreadReport:
    means = [c.mean for c in counts if c.mean is not None and not _is_dead(c)]
    middle = median(means) if means else None
    usual = median(abs(m - middle) for m in means) if middle is not None else 0.0
    twins = Counter((c.histogram.first, c.histogram.counts) for c in counts if c.blocks >= ALIKE_BLOCKS)
    first: dict[object, int] = {}
    out = []
    for c in counts:
        number = c.expert or 0
        deviation = None if c.mean is None or middle is None else round(c.mean - middle, 4)
        key = (c.histogram.first, c.histogram.counts)
        twin = first.setdefault(key, number) if twins[key] > 1 else number
        out.append(ExpertSpread(number, c.mean, c.minimum, c.maximum, deviation, _odd(c, deviation, usual, twin)))
    return SpreadReport(tensor, part, None if middle is None else round(middle, 4), tuple(out))


def _is_dead(c: ScaleCounts) -> bool:
    return c.zero_blocks == c.blocks


def _odd(c: ScaleCounts, deviation: float | None, usual: float, twin: int) -> str | None:
    """Why an expert stands out among those of its matrix."""
    if _is_dead(c):
        return DEAD
    if deviation is not None and abs(deviation) >= max(FAR, TIMES * usual):
        way = "larger" if deviation > 0 else "smaller"
        return f"its scales are 2^{abs(deviation):.1f} times {way} than those of the others"
    if twin != (c.expert or 0):
        return f"its scales are those of expert {twin}, one for one in number: a copy?"
    return None


def spread_findings(layers: Sequence[ExpertLayerReport], places: Mapping[str, str]) -> Iterator[Finding]:
    """Experts that stand out: the dead ones of a layer in one finding, the others of a matrix in one."""
    hint = "compare it with the original: ckpttool diff; was it pruned, merged, or written to the wrong place?"
    for layer in layers:
        where: dict[int, tuple[str, ...]] = {}
        for spread in layer.spread:
            for e in spread.experts:
                if e.odd == DEAD:
                    where[e.expert] = (*where.get(e.expert, ()), spread.tensor)
        if where:
            only = {tensors for tensors in where.values() if len(tensors) == 1}
            tensor = next(iter(only))[0] if len(only) == len(set(where.values())) == 1 else None
            place = places.get(tensor) if tensor else None
            yield Finding(Severity.warning, "dead-experts", tensor, place, _dead(layer.layer, where), hint)
        for spread in layer.spread:
            odd = [f"expert {e.expert}: {e.odd}" for e in spread.experts if e.odd not in (None, DEAD)]
            if odd:
                text = f"layer {layer.layer}, {'; '.join(odd)}"
                yield Finding(Severity.warning, "expert-spread", spread.tensor, places.get(spread.tensor), text, hint)


def _dead(layer: int, where: Mapping[int, tuple[str, ...]]) -> str:
    """ "layer 3: experts 5, 9-11 are dead: all scales of their down_proj are 0"; by matrices where those differ."""
    by_matrices: dict[tuple[str, ...], list[int]] = {}
    for expert, tensors in sorted(where.items()):
        by_matrices.setdefault(tensors, []).append(expert)
    said = []
    for tensors, experts in by_matrices.items():
        one = len(experts) == 1
        matrices = " and ".join(matrix_of(t) for t in tensors)
        verb, whose = ("is", "its") if one else ("are", "their")
        said.append(f"{ranges_of(experts, 'expert')} {verb} dead: all scales of {whose} {matrices} are 0")
    return f"layer {layer}: {'; '.join(said)}"
