"""Scales counted by exponent, weight by weight and expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.counting import count_runs
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

    def add(self, found: tuple[int, Counts]) -> None:
        """Take in what a slab came to: its first expert, and the counts of that one and those after it."""
        expert, counts = found
        self.counts[expert : expert + len(counts)] += counts

    def report(self, row: WeightReport) -> ScaleReport:
        """The tally as the report has it."""
        source = self.source
        element = source.element
        whole = self.counts.sum(0)
        (total,) = _counted([None], whole[None], element)
        numbers: Sequence[int | None] = range(source.experts) if source.stacked else ()
        if not source.stacked and row.expert is not None:
            numbers = (row.expert,)
        experts = tuple(_counted(numbers, self.counts[: len(numbers)], element))
        bias = reason = None
        if element == "E8M0" and source.weight.codec.name == "MXFP4" and source.weight.shape:
            found = bias_of(whole.tolist(), source.weight.shape[-1])
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
    expert, within = divmod(start, source.items)

    def count(views: Sequence[U8]) -> tuple[int, Counts]:
        items = views[0].reshape(-1, source.item_nbytes)
        if source.element == "E8M0":
            scales = items[:, source.places[0]]
            return expert, count_runs(scales, source.items - within, source.items, compiled=compiled)
        edges = [0, *range(source.items - within, len(items), source.items), len(items)]
        return expert, np.stack([_count(items[a:b], source) for a, b in pairwise(edges)])

    return count


def _count(items: U8, source: ScaleSource) -> Counts:
    """The counts of some items, uint8 [N, bytes of an item], of one expert."""
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


def _counted(numbers: Sequence[int | None], counts: Counts, element: str) -> Iterator[ScaleCounts]:
    """Counts as the report has them, a row for each of the experts by their `numbers`."""
    nothing: list[int | None] = [None] * len(counts)
    ends = [nothing] * 3
    if element == "E8M0":
        exponents, first, zero, nonfinite = counts[:, :E8M0_NAN], -E8M0_BIAS, counts[:, 0], counts[:, E8M0_NAN]
        ends = [counts[:, byte].tolist() for byte in (0, 254, E8M0_NAN)]
    else:
        exponents, first, zero, nonfinite = counts[:, :_EXPONENTS], LOWEST, counts[:, _ZERO], counts[:, _NONFINITE]
    there, known = exponents > 0, exponents.sum(1)
    lows, highs = there.argmax(1).tolist(), (exponents.shape[1] - there[:, ::-1].argmax(1)).tolist()
    means = first + (exponents @ np.arange(exponents.shape[1])) / np.maximum(known, 1)
    columns = (counts.sum(1).tolist(), lows, highs, means.tolist(), zero.tolist(), *ends, nonfinite.tolist())
    for row, number, blocks, low, high, mean, *rest in zip(exponents, numbers, *columns, strict=True):
        histogram, spread = Histogram(None, ()), (None, None, None)
        if row[low]:
            histogram = Histogram(first + low, tuple(row[low:high].tolist()))
            spread = (first + low, first + high - 1, round(mean, 4))
        zeros, byte_0, byte_254, byte_255, odd = rest
        yield ScaleCounts(number, blocks, *spread, zeros, byte_0, byte_254, byte_255, odd, histogram)
