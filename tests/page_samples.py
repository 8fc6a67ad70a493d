"""Inspections to make pages of: real headers, and scales that were made up by a seeded generator.

Two experts are wrong on purpose: expert 40 of layer 17 is eight times too small, expert 97 of layer 5 four times too
large (in models of fewer experts and layers: by the remainder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ckpttool.inspection.report import Histogram, Inspection, ScaleCounts, ScaleReport

WRONG = {(17, 40): -3.0, (5, 97): 2.0}
SAMPLE = 3000
"""Scales that are drawn for each expert."""


def with_scales(report: Inspection) -> Inspection:
    """The same with scales for every MXFP4 weight."""
    random = np.random.default_rng(20251122)
    scales = []
    for t in report.tensors:
        if t.format != "MXFP4" or t.layer is None:
            continue
        middle = -6.5 + 0.8 * ("down" in t.name) + 1.2 * float(np.sin(t.layer / 12))
        wrong = {(layer % 36, expert % t.shape[0]): by for (layer, expert), by in WRONG.items()}
        experts = []
        for e in range(t.shape[0]):
            mean = middle + random.normal(0, 0.25) + wrong.get((t.layer, e), 0.0)
            drawn = np.round(random.normal(mean, 0.9, SAMPLE)).astype(np.int64)
            experts.append(_counts(e, drawn, int(random.poisson(0.3))))
        total = _total(experts)
        scales.append(
            ScaleReport(
                t.name, t.part, t.layer, t.format, "E8M0", total, tuple(experts), 127, "made up for this sample"
            )
        )
    return replace(report, scales=tuple(scales))


def _counts(expert: int, exponents: NDArray[np.int64], zero: int) -> ScaleCounts:
    first = int(exponents.min())
    counts = tuple(map(int, np.bincount(exponents - first)))
    if zero:  # byte 0 counts as exponent -127
        counts, first = (zero, *(0,) * (first + 126), *counts), -127
    mean = (float(exponents.sum()) - 127 * zero) / (len(exponents) + zero)
    blocks = len(exponents) + zero
    return ScaleCounts(
        expert, blocks, first, int(exponents.max()), mean, zero, zero, 0, 0, 0, Histogram(first, counts)
    )  # fmt: skip


def _total(rows: Sequence[ScaleCounts]) -> ScaleCounts:
    sums: dict[int, int] = {}
    for row in rows:
        assert row.histogram.first is not None
        for n, count in enumerate(row.histogram.counts):
            sums[row.histogram.first + n] = sums.get(row.histogram.first + n, 0) + count
    first, last = min(sums), max(sums)
    blocks, zero = sum(r.blocks for r in rows), sum(r.zero_blocks for r in rows)
    mean = sum(e * n for e, n in sums.items()) / blocks
    counts = tuple(sums.get(e, 0) for e in range(first, last + 1))
    return ScaleCounts(None, blocks, first, last, mean, zero, zero, 0, 0, 0, Histogram(first, counts))
