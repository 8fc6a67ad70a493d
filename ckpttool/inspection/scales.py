"""Scales counted by exponent, weight by weight and expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.counting import count_bytes
from ckpttool.codecs.formats import E8M0_BIAS, E8M0_NAN
from ckpttool.inspection.reading import SLAB, U8, Job, Range
from ckpttool.inspection.report import Histogram, ScaleCounts, ScaleReport, WeightReport
from ckpttool.inspection.scale_sources import NUMPY, ScaleSource
from ckpttool.recognition import bias_of

Counts = NDArray[np.int64]

LOWEST: Final = -160
"""Below the exponent of the smallest F32."""

_EXPONENTS: Final = 320
_ZERO, _NONFINITE = _EXPONENTS, _EXPONENTS + 1
SLOTS: Final = _EXPONENTS + 2
"""Exponents from LOWEST on, then zeros, then what is not finite."""


@dataclass
class ScaleTally:
    """What has been counted of one weight: int64 [experts, SLOTS], or of E8M0 its bytes, [experts, 256]."""

    source: ScaleSource
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        width = 256 if self.source.element == "E8M0" else SLOTS
        self.counts = np.zeros((self.source.experts, width), np.int64)

    def add(self, found: Sequence[tuple[int, Counts]]) -> None:
        """Take in what a slab came to."""
        for expert, counts in found:
            self.counts[expert] += counts

    def report(self, row: WeightReport) -> ScaleReport:
        """The tally as the report has it."""
        source = self.source
        element = source.element
        total = _counted(None, self.counts.sum(0), element)
        first = range(source.experts) if source.stacked else ()
        experts = tuple(_counted(e, self.counts[e], element) for e in first)
        if not source.stacked and row.expert is not None:
            experts = (_counted(row.expert, self.counts[0], element),)
        bias = reason = None
        if element == "E8M0" and source.weight.codec.name == "MXFP4" and source.weight.shape:
            found = bias_of(self.counts.sum(0).tolist(), source.weight.shape[-1])
            bias, reason = found.bias, found.reason
        return ScaleReport(row.name, row.part, row.layer, row.format, element, total, experts, bias, reason)


def scale_jobs(tally: ScaleTally, *, compiled: bool) -> Iterator[Job]:
    """The slabs of one weight's scales, in the order of the file; each is whole items, of several experts or of one."""
    source = tally.source
    size, per_expert = source.item_nbytes, source.items
    whole = source.experts * per_expert
    step = max(1, SLAB // size)
    for start in range(0, whole, step):
        count = min(step, whole - start)
        place = Range(source.tensor.file, source.tensor.offset + start * size, count * size)
        yield Job((place,), _counter(source, start, compiled), tally.add)


def _counter(source: ScaleSource, start: int, compiled: bool) -> Callable[[Sequence[U8]], Any]:
    """Counts one slab, whose first item is the source's item `start`, expert by expert."""

    def count(views: Sequence[U8]) -> list[tuple[int, Counts]]:
        items = views[0].reshape(-1, source.item_nbytes)
        out = []
        at = 0
        while at < len(items):
            expert, within = divmod(start + at, source.items)
            stop = min(len(items), at + source.items - within)
            out.append((expert, _count(items[at:stop], source, compiled)))
            at = stop
        return out

    return count


def _count(items: U8, source: ScaleSource, compiled: bool) -> Counts:
    """The counts of some items, uint8 [N, bytes of an item], of one expert."""
    if source.element == "E8M0":
        return count_bytes(items[:, source.places[0]], compiled=compiled)
    kind = np.dtype(NUMPY[source.element])
    out = np.zeros(SLOTS, np.int64)
    for place in source.places:
        bits = np.ascontiguousarray(items[:, place : place + kind.itemsize]).view(kind).reshape(-1)
        if kind.itemsize == 4:
            with np.errstate(invalid="ignore"):  # a signalling NaN is no number and no reason to warn
                values = bits.view(np.float32).astype(np.float64)
            out += np.bincount(_slots(values), minlength=SLOTS)
        else:
            by_bits = np.bincount(bits, minlength=1 << 8 * kind.itemsize)
            out += np.bincount(_slot_table(source.element), by_bits, SLOTS).astype(np.int64)
    return out


@cache
def _slot_table(element: str) -> NDArray[np.intp]:
    """The slot of every bit pattern of a scale of 8 or 16 bits."""
    return _slots(_values(element))


def _values(element: str) -> NDArray[np.float64]:
    """Every bit pattern's value."""
    with np.errstate(invalid="ignore"):  # signalling NaNs are among the patterns
        if element == "F16":
            return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
        if element == "BF16":
            return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    bits = np.arange(256)
    exponent, significand = bits >> 3 & 15, bits & 7
    values = np.where(exponent > 0, np.ldexp(8.0 + significand, exponent - 10), np.ldexp(1.0 * significand, -9))
    return np.where(bits & 127 == 127, np.nan, np.where(bits > 127, -values, values))


def _slots(values: NDArray[np.float64]) -> NDArray[np.intp]:
    with np.errstate(invalid="ignore"):
        exponents = np.frexp(np.abs(values))[1] - 1
    slots = np.where(values == 0, _ZERO, exponents - LOWEST)
    return np.where(np.isfinite(values), slots, _NONFINITE).astype(np.intp)


def _counted(expert: int | None, counts: Counts, element: str) -> ScaleCounts:
    """Counts as the report has them."""
    if element == "E8M0":
        exponents, first = counts[:E8M0_NAN], -E8M0_BIAS
        zero, nonfinite = int(counts[0]), int(counts[E8M0_NAN])
        ends = (int(counts[0]), int(counts[254]), int(counts[E8M0_NAN]))
    else:
        exponents, first = counts[:_EXPONENTS], LOWEST
        zero, nonfinite = int(counts[_ZERO]), int(counts[_NONFINITE])
        ends = (None, None, None)  # type: ignore[assignment]
    where = np.flatnonzero(exponents)
    histogram = Histogram(None, ())
    minimum = maximum = mean = None
    if len(where):
        low, high = int(where[0]), int(where[-1])
        minimum, maximum = first + low, first + high
        histogram = Histogram(minimum, tuple(exponents[low : high + 1].tolist()))
        mean = round(float(first + (exponents * np.arange(len(exponents))).sum() / exponents.sum()), 4)
    return ScaleCounts(expert, int(counts.sum()), minimum, maximum, mean, zero, *ends, nonfinite, histogram)
