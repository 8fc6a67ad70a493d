"""Attention in Triton: scores live in registers only, and no block of keys is looked at that no query sees.

The definition is `attention.attend`. For 4,096 tokens of 64 heads that writes and reads 2 GB of scores a dozen times
over; this reads queries once and keys and values once a block of queries.

Products are made of three in TF32 on tensor cores (`tf32x3`): each operand is split into a number of 11 bits and the
rest, whose own 11 bits are kept, and what falls away is at most 2^-20 of a term. Adding up a row's D = 64 terms in
float32 may lose 64 * 2^-24 = 2^-18, so float32 is no better; but it is what FP32 mode stands for, which takes the
definition itself. An exponential e^-y is off by (y + 2) 2^-23 of itself: by 2^-19 down to weights of e^-14. What comes
out is rounded to BF16, by 2^-8, since the next product takes it so.
"""

from __future__ import annotations

import triton.language as tl

from ckpttool.codecs.gpu_lanes import NATIVE, jit
from ckpttool.validator.fused_kernels import narrowed


@jit
def known(n):
    """`n` as the end of a range, which Triton's interpreter takes as a Python number alone."""
    return n if NATIVE else n.handle.data.item()


@jit
def attended(
    heads, sinks, blocks, out, scale, window, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, LINES: tl.constexpr, WINDOWED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What one head takes for a block of queries: BF16 [T, QUERIES * D], flipped with REVERSE.

    `heads` [T, (QUERIES + 2 KEYS) * D] float32 are queries, keys and values; `blocks` [.., 3] int32 say of each block
    where its queries begin and end, at most ROWS of them, and where their sequence begins. The softmax is computed as
    keys come, LINES at a time, and begins with the sink. REVERSE: keys come from the last one on, and so do the numbers
    of a head.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(blocks + 3 * block), tl.load(blocks + 3 * block + 1)
    first = tl.load(blocks + 3 * block + 2)
    if WINDOWED:
        first = tl.maximum(first, begin - window + 1)
    width: tl.constexpr = (QUERIES + 2 * KEYS) * D
    d = tl.arange(0, D)
    number = D - 1 - d if REVERSE else d
    row = begin + tl.arange(0, ROWS)
    asked = heads + row.to(tl.int64)[:, None] * width + head * D + number[None, :]
    q = tl.load(asked, mask=(row < end)[:, None], other=0.0)
    shared = QUERIES * D + head // (QUERIES // KEYS) * D
    most = tl.zeros((ROWS,), tl.float32) + tl.load(sinks + head)
    total = tl.zeros((ROWS,), tl.float32) + 1.0
    taken = tl.zeros((ROWS, D), tl.float32)
    for at in range(0, known(end - first), LINES):
        line = at + tl.arange(0, LINES)
        key = end - 1 - line if REVERSE else first + line
        there = line < end - first
        k = tl.load(
            heads + key.to(tl.int64)[:, None] * width + shared + number[None, :], mask=there[:, None], other=0.0
        )
        values = heads + key.to(tl.int64)[:, None] * width + shared + KEYS * D + d[None, :]
        v = tl.load(values, mask=there[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        age = row[:, None] - key[None, :]
        seen = there[None, :] & (age >= 0)
        if WINDOWED:
            seen = seen & (age < window)
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        # What is equal has no distance, even at minus infinity.
        kept = tl.where(most == higher, 1.0, tl.exp(most - higher))
        weights = tl.where(seen, tl.exp(scores - higher[:, None]), 0.0)
        total = total * kept + tl.sum(weights, 1)
        taken = taken * kept[:, None] + tl.dot(weights, v, input_precision="tf32x3")
        most = higher
    result = tl.div_rn(taken, tl.zeros((ROWS, D), tl.float32) + total[:, None])
    column = head * D + d
    if REVERSE:
        column = QUERIES * D - 1 - column
    to = out + row.to(tl.int64)[:, None] * (QUERIES * D) + column[None, :]
    tl.store(to, narrowed(result), mask=(row < end)[:, None])
