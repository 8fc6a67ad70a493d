"""The codes of MXFP4 counted: how often each occurs, what is saturated, who made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.counting import count_blocks, count_codes
from ckpttool.codecs.formats import E2M1_VALUES
from ckpttool.inspection.reading import SLAB, U8, Job, Range
from ckpttool.inspection.report import CodeReport, FingerprintReport, WeightReport
from ckpttool.inspection.sample import BLOCK_NBYTES, STRUCT_NBYTES, Lie
from ckpttool.recognition import fingerprint

Counts = NDArray[np.int64]

FIRST_OVER: Final = 253
"""The smallest scale byte with which a code decodes to more than BF16 holds: 4 * 2^126 is 2^128."""

_LEAST = {253: 4.0, 254: 2.0}
"""By scale byte the smallest magnitude that does."""


@dataclass
class CodeTally:
    """What has been counted of one weight."""

    lie: Lie
    by_byte: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    largest: Counts = field(default_factory=lambda: np.zeros((256, 8), np.int64))
    overflow: int = 0

    def add(self, found: tuple[Counts, Counts, int]) -> None:
        """Take in what a slab came to."""
        self.by_byte += found[0]
        self.largest += found[1]
        self.overflow += found[2]

    def report(self, row: WeightReport) -> CodeReport:
        """The tally as the report has it."""
        codes = count_codes(self.by_byte).tolist()
        said = fingerprint(self.largest.tolist(), codes[8])
        largest = self.largest.sum(0).tolist()
        made_by = FingerprintReport(said.recipes, said.reason, said.blocks, 1, False)
        return CodeReport(
            row.name, row.part, row.layer, sum(codes), tuple(codes), codes[7] + codes[15], codes[8], largest[0],
            self.overflow, tuple(largest), made_by,
        )  # fmt: skip


def code_jobs(tally: CodeTally, *, compiled: bool) -> Iterator[Job]:
    """The slabs of one weight's blocks, in the order of the file."""
    lie = tally.lie
    size = BLOCK_NBYTES if lie.scales else STRUCT_NBYTES
    step = SLAB // STRUCT_NBYTES
    for start in range(0, lie.blocks, step):
        count = min(step, lie.blocks - start)
        ranges = [Range(lie.codes.file, lie.codes.offset + start * size, count * size)]
        if lie.scales is not None:
            ranges.append(Range(lie.scales.file, lie.scales.offset + start, count))
        yield Job(tuple(ranges), _counter(compiled), tally.add)


def _counter(compiled: bool) -> Callable[[Sequence[U8]], Any]:
    def count(views: Sequence[U8]) -> tuple[Counts, Counts, int]:
        if len(views) == 2:
            codes, scales = views[0].reshape(-1, BLOCK_NBYTES), views[1]
        else:
            structs = views[0].reshape(-1, STRUCT_NBYTES)
            codes, scales = structs[:, 1:], structs[:, 0]
        by_byte, largest = count_blocks(codes, scales, compiled=compiled)
        over = _overflow(codes, scales) if largest[FIRST_OVER:255].any() else 0
        return by_byte, largest, over

    return count


def _overflow(codes: U8, scales: U8) -> int:
    """Elements beyond BF16; those of scale byte 255 are no numbers at all."""
    found = 0
    for scale, least in _LEAST.items():
        blocks = codes[scales == scale]
        for code, value in enumerate(E2M1_VALUES):
            if value >= least:
                found += int((blocks & 7 == code).sum()) + int((blocks >> 4 & 7 == code).sum())
    return found
