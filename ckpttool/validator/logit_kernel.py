"""The figures of logits (`logits.Rows`) on a GPU: one program a row, which goes over it three times.

torch takes a dozen kernels in float64 for as many arrays of the vocabulary's width. Here numbers are widened when they
are in registers: 4,096 rows of 201,088 logits of two models are 6.6 GB, read three times.

A lane adds up every LANES-th term in float64, and lanes are added as a tree: of n = V / LANES + log2 LANES additions of
terms that are >= 0, each rounded by 2^-53, the sum is off by n 2^-53 at most, that is 2^-45 for V = 201,088. No row
knows of another one, so no bit depends on how rows are cut into chunks.

e^w - 1 - w is its series where |w| <= 1, 18 terms by Horner's rule. The first term left out, w^20 / 20!, is 2^-60 of
w^2 / 2, and what is added never cancels more than a bit: the result has 50 bits right however small w is, where
`expm1(w) - w` is off by 2^-52 / w.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

from ckpttool.codecs.gpu_lanes import constexpr_function, jit

Tensor = torch.Tensor

LANES: Final = 1024
WARPS: Final = 8


@jit
def finite(x):
    """Which numbers are, by their exponents."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000


@jit
def first_at(found, index, NONE: tl.constexpr):
    """The least index where something was found."""
    return tl.min(tl.where(found, index, NONE))


@constexpr_function
def inverse_factorial(n: int) -> float:
    """1 / n!."""
    return 1.0 / math.factorial(n)


@jit
def excess(w):
    """e^w - 1 - w for |w| <= 1: w^2 (1/2! + w (1/3! + w (1/4! + ... + w/19!)))."""
    total = tl.full(w.shape, inverse_factorial(19), tl.float64)
    for i in tl.static_range(17):
        total = total * w + inverse_factorial(18 - i)
    return w * w * total


@jit
def loaded(row, index, inside):
    """Logits of a row, zeros in place of those that are not finite."""
    x = tl.load(row + index, mask=inside, other=0.0)
    return tl.where(finite(x), x, 0.0)


@jit
def extremes(a, b, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """The first pass: the largest of each and where, the least of `a`, the largest difference, the first not finite."""
    lane = tl.arange(0, LANES)
    lowest = tl.full((LANES,), float("inf"), tl.float32)
    high_a = tl.full((LANES,), -float("inf"), tl.float32)
    high_b = tl.full((LANES,), -float("inf"), tl.float32)
    at_a = lane
    at_b = lane
    bad_a = tl.full((LANES,), 0x7FFFFFFF, tl.int32)
    bad_b = tl.full((LANES,), 0x7FFFFFFF, tl.int32)
    difference = tl.zeros((LANES,), tl.float64)
    for first in range(0, COLUMNS, LANES):
        index = first + lane
        inside = index < COLUMNS
        x = tl.load(a + index, mask=inside, other=0.0)
        y = tl.load(b + index, mask=inside, other=0.0)
        good_x, good_y = finite(x), finite(y)
        bad_a = tl.minimum(bad_a, tl.where(good_x, 0x7FFFFFFF, index))
        bad_b = tl.minimum(bad_b, tl.where(good_y, 0x7FFFFFFF, index))
        x, y = tl.where(good_x, x, 0.0), tl.where(good_y, y, 0.0)
        more_a, more_b = inside & (x > high_a), inside & (y > high_b)
        high_a, at_a = tl.where(more_a, x, high_a), tl.where(more_a, index, at_a)
        high_b, at_b = tl.where(more_b, y, high_b), tl.where(more_b, index, at_b)
        lowest = tl.where(inside & (x < lowest), x, lowest)
        difference = tl.maximum(difference, tl.abs(x.to(tl.float64) - y.to(tl.float64)))
    most_a, most_b = tl.max(high_a), tl.max(high_b)
    top_a = first_at(high_a == most_a, at_a, 0x7FFFFFFF)
    top_b = first_at(high_b == most_b, at_b, 0x7FFFFFFF)
    return most_a, most_b, top_a, top_b, tl.min(lowest), tl.max(difference), tl.min(bad_a), tl.min(bad_b)


@jit
def log_sums(a, b, peak_a, peak_b, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """The second pass: the logarithms of both sums of e^(x - peak)."""
    lane = tl.arange(0, LANES)
    sum_a = tl.zeros((LANES,), tl.float64)
    sum_b = tl.zeros((LANES,), tl.float64)
    for first in range(0, COLUMNS, LANES):
        inside = first + lane < COLUMNS
        x, y = loaded(a, first + lane, inside), loaded(b, first + lane, inside)
        sum_a += tl.where(inside, tl.exp(x.to(tl.float64) - peak_a), 0.0)
        sum_b += tl.where(inside, tl.exp(y.to(tl.float64) - peak_b), 0.0)
    return tl.log(tl.sum(sum_a)), tl.log(tl.sum(sum_b))


@jit
def divergence_and_rank(
    a, b, top_a, peak_a, peak_b, log_a, log_b, COLUMNS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """The third pass: KL(a || b), and how many come before token `top_a` in b; of equals the lower id comes first."""
    lane = tl.arange(0, LANES)
    own = loaded(b, top_a, True)
    divergence = tl.zeros((LANES,), tl.float64)
    before = tl.zeros((LANES,), tl.int32)
    for first in range(0, COLUMNS, LANES):
        index = first + lane
        inside = index < COLUMNS
        x, y = loaded(a, index, inside), loaded(b, index, inside)
        before += (inside & ((y > own) | ((y == own) & (index < top_a)))).to(tl.int32)
        log_p = (x.to(tl.float64) - peak_a) - log_a
        log_q = (y.to(tl.float64) - peak_b) - log_b
        w = log_q - log_p
        p = tl.exp(log_p)
        near = tl.abs(w) <= 1.0
        term = tl.where(near, p * excess(tl.where(near, w, 0.0)), tl.exp(log_q) - p - p * w)
        divergence += tl.where(inside, term, 0.0)
    return tl.sum(divergence), tl.sum(before)


@jit
def figures(
    a, b, ids, numbers, places, row_a, row_b, COLUMNS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """A row's figures: float64 in `numbers` [n, 7], int64 in `places` [n, 5], in the order of `measured`."""
    row = tl.program_id(0).to(tl.int64)
    a += row * row_a
    b += row * row_b
    most_a, most_b, top_a, top_b, lowest, difference, first_a, first_b = extremes(a, b, COLUMNS, LANES)
    peak_a, peak_b = most_a.to(tl.float64), most_b.to(tl.float64)
    log_a, log_b = log_sums(a, b, peak_a, peak_b, COLUMNS, LANES)
    divergence, before = divergence_and_rank(a, b, top_a, peak_a, peak_b, log_a, log_b, COLUMNS, LANES)
    next_id = tl.load(ids + row)
    tl.store(numbers + 7 * row, divergence)
    tl.store(numbers + 7 * row + 1, log_a - (loaded(a, next_id, True).to(tl.float64) - peak_a))
    tl.store(numbers + 7 * row + 2, log_b - (loaded(b, next_id, True).to(tl.float64) - peak_b))
    tl.store(numbers + 7 * row + 3, peak_a - loaded(a, top_b, True).to(tl.float64))
    tl.store(numbers + 7 * row + 4, difference)
    tl.store(numbers + 7 * row + 5, lowest.to(tl.float64))
    tl.store(numbers + 7 * row + 6, peak_a)
    none: tl.constexpr = 0x7FFFFFFF
    tl.store(places + 5 * row, top_a.to(tl.int64))
    tl.store(places + 5 * row + 1, top_b.to(tl.int64))
    tl.store(places + 5 * row + 2, before.to(tl.int64))
    tl.store(places + 5 * row + 3, tl.where(first_a == none, -1, first_a).to(tl.int64))
    tl.store(places + 5 * row + 4, tl.where(first_b == none, -1, first_b).to(tl.int64))


def measured(reference: Tensor, candidate: Tensor, ids: NDArray[np.int64]) -> tuple[Any, ...]:
    """The columns of `logits.Rows` for float32 logits [n, V] of both and the ids [n] that follow, all checked.

    Tensors lie on one CUDA device, or on the CPU where Triton's interpreter runs.
    """
    count, columns = reference.shape
    where = reference.device
    rows = [x if x.stride(1) == 1 else x.contiguous() for x in (reference.float(), candidate.float())]
    numbers = torch.empty((count, 7), dtype=torch.float64, device=where)
    places = torch.empty((count, 5), dtype=torch.int64, device=where)
    with torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext():
        if count:
            figures[(count,)](
                *rows, torch.from_numpy(ids).to(where), numbers, places, rows[0].stride(0), rows[1].stride(0),
                COLUMNS=columns, LANES=LANES, num_warps=WARPS,
            )  # fmt: skip
    kl, loss_a, loss_b, margin, difference, lowest, highest = np.ascontiguousarray(numbers.cpu().numpy().T)
    top_a, top_b, rank, bad_a, bad_b = np.ascontiguousarray(places.cpu().numpy().T)
    return kl, loss_a, loss_b, top_a, top_b, rank, margin, difference, lowest, highest, bad_a, bad_b
