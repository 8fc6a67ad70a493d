"""What lies between a layer's products, in Triton: one kernel where torch takes a dozen, each over all numbers.

Numbers are float32 and every operation is the definition's (`model`, `attention`), in its order; multiplications and
additions are not contracted (`enable_fp_fusion`), so that what has no sum over an axis and no exponential is equal to
it bit for bit. What has: `normed` sums squares in another order, and `activated` takes an exponential.

REVERSE is the noise's: sums over an axis run from its other end, and what a product takes comes out flipped, as the
product's other side is.

Shapes: T tokens, H hidden, I intermediate, E experts, k a token's experts, n = T * k places sorted by expert.
"""

from __future__ import annotations

from typing import Any, Final

import triton.language as tl
from torch import float64, int32

from ckpttool.codecs.gpu_lanes import NATIVE, jit

TILE: Final = 64


def lanes_for(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()


@jit
def narrowed(x):
    """float32 as BF16: nearest, ties to even; Triton's interpreter cuts, so there it is spelled out."""
    if NATIVE:
        result = x.to(tl.bfloat16)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        near = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        result = (near >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return result


@jit
def normed(
    x, added, bias, weight, out, wide, narrow, eps, H: tl.constexpr, LANES: tl.constexpr, ADDS: tl.constexpr,
    WIDE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """A row of x [T, H] over its root mean square, times `weight`: float32 in `wide`, BF16 in `narrow`.

    ADDS: `added`, BF16, and `bias` are added before, and `out` is the sum.
    """
    lane = tl.arange(0, LANES)
    inside = lane < H
    column = H - 1 - lane if REVERSE else lane
    at = tl.program_id(0).to(tl.int64) * H
    numbers = tl.load(x + at + column, mask=inside, other=0.0)
    if ADDS:
        more = tl.load(added + at + column, mask=inside, other=0.0).to(tl.float32)
        numbers = numbers + (more + tl.load(bias + column, mask=inside, other=0.0))
        tl.store(out + at + column, numbers, mask=inside)
    mean = tl.div_rn(tl.sum(numbers * numbers), H * 1.0)
    scaled = numbers * tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
    result = tl.load(weight + column, mask=inside, other=0.0) * scaled
    if WIDE:
        tl.store(wide + at + column, result, mask=inside)
    tl.store(narrow + at + lane, narrowed(result), mask=inside)


@jit
def turned(
    h, bias, cos, sin, out, rotated, HEADS: tl.constexpr, HALF: tl.constexpr, HEAD_LANES: tl.constexpr,
    HALF_LANES: tl.constexpr,
):  # fmt: skip
    """A token's heads h [T, HEADS * 2 HALF] of BF16 with their bias, as float32; the first `rotated` are rotated."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD_LANES)[:, None]
    i = tl.arange(0, HALF_LANES)[None, :]
    inside = (head < HEADS) & (i < HALF)
    first = head * (2 * HALF) + i
    at = token * (HEADS * 2 * HALF) + first
    a = tl.load(h + at, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + first, mask=inside, other=0.0)
    b = tl.load(h + at + HALF, mask=inside, other=0.0).to(tl.float32)
    b = b + tl.load(bias + first + HALF, mask=inside, other=0.0)
    c = tl.load(cos + token * HALF + i, mask=i < HALF, other=0.0)
    s = tl.load(sin + token * HALF + i, mask=i < HALF, other=0.0)
    turns = head < rotated
    tl.store(out + at, tl.where(turns, a * c - b * s, a), mask=inside)
    tl.store(out + at + HALF, tl.where(turns, b * c + a * s, b), mask=inside)


@jit
def activated(
    x, gate_bias, up_bias, experts, out, alpha, limit, WIDTH: tl.constexpr, LANES: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """SwiGLU of a row x [n, 2 I] of BF16, gate and up in turns, with the biases of its expert: BF16 [n, I].

    The sigmoid's exponential e^y is 2^(y log2(e)), whose exponent is rounded: it is off by (|y| + 2) 2^-23 of itself,
    that is by 2^-16 at most before it overflows, and by 2^-19 where gates are within 7. The BF16 behind it is by 2^-8.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * LANES
    column = first + tl.arange(0, LANES)
    inside = column < WIDTH
    both = 2 * first + tl.arange(0, 2 * LANES)
    numbers = tl.load(x + row * (2 * WIDTH) + both, mask=both < 2 * WIDTH, other=0.0).to(tl.float32)
    gate, up = tl.split(numbers.reshape(LANES, 2))
    at = tl.load(experts + row).to(tl.int64) * WIDTH + column
    gate = gate + tl.load(gate_bias + at, mask=inside, other=0.0)
    up = up + tl.load(up_bias + at, mask=inside, other=0.0)
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
    sigmoid = tl.div_rn(1.0, 1.0 + tl.exp(-(alpha * gate)))
    result = gate * sigmoid * (up + 1.0)
    to = WIDTH - 1 - column if REVERSE else column
    tl.store(out + row * WIDTH + to, narrowed(result), mask=inside)


@jit
def mixed(x, down, bias, places, experts, weights, out, K: tl.constexpr, H: tl.constexpr, LANES: tl.constexpr):
    """x [T, H] with what a token's K experts add: rows `places` [T, K] of `down` [n, H], BF16, with bias, weighted.

    They are added in the order of `places`; the definition's is that of expert numbers.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = column < H
    total = tl.zeros((LANES,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(places + token * K + j).to(tl.int64)
        expert = tl.load(experts + token * K + j).to(tl.int64)
        more = tl.load(down + row * H + column, mask=inside, other=0.0).to(tl.float32)
        more = more + tl.load(bias + expert * H + column, mask=inside, other=0.0)
        total = total + more * tl.load(weights + token * K + j)
    tl.store(out + token * H + column, tl.load(x + token * H + column, mask=inside, other=0.0) + total, mask=inside)


@jit
def laid(
    source, out, rows, columns, source_expert, source_row, source_column, out_expert, out_row, TILE: tl.constexpr
):  # fmt: skip
    """Matrices [E, rows, columns] whose rows lie across lines of memory, as BF16 with rows along them."""
    expert = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * TILE + tl.arange(0, TILE)
    at = source + expert * source_expert + k.to(tl.int64)[:, None] * source_column + (r * source_row)[None, :]
    tile = tl.load(at, mask=(k < columns)[:, None] & (r < rows)[None, :], other=0.0)
    to = out + expert * out_expert + r.to(tl.int64)[:, None] * out_row + k[None, :]
    tl.store(to, tl.trans(narrowed(tile.to(tl.float32))), mask=(r < rows)[:, None] & (k < columns)[None, :])


def lay_rows(source: Any, out: Any) -> None:
    """Copy a tensor [E, R, K] of any strides into `out` [E, R, K] of BF16 whose last axis is contiguous."""
    experts, rows, columns = source.shape
    grid = -(-rows // TILE), -(-columns // TILE), experts
    laid[grid](source, out, rows, columns, *source.stride(), *out.stride()[:2], TILE=TILE)


@jit
def squares(a, b, error, size, broken, row_a, row_b, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Of a row of a and b [n, COLUMNS], float32: the sums of (b - a)^2 and of a^2, in float64; whether b is finite."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    away = tl.zeros((LANES,), tl.float64)
    whole = tl.zeros((LANES,), tl.float64)
    bad = tl.zeros((LANES,), tl.int32)
    for first in range(0, COLUMNS, LANES):
        inside = first + lane < COLUMNS
        x = tl.load(a + row * row_a + first + lane, mask=inside, other=0.0)
        y = tl.load(b + row * row_b + first + lane, mask=inside, other=0.0)
        bad |= ((y.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000).to(tl.int32)
        wide = x.to(tl.float64)
        between = y.to(tl.float64) - wide
        away += between * between
        whole += wide * wide
    tl.store(error + row, tl.sum(away))
    tl.store(size + row, tl.sum(whole))
    tl.store(broken + row, tl.max(bad))


def row_squares(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """`drift`'s figures of rows of float32 a and b [n, H]: two of float64 [n] each, and int32 [n].

    In another order than torch's: they may differ by H 2^-53 of themselves.
    """
    count, columns = a.shape
    error, size = a.new_empty(count, dtype=float64), a.new_empty(count, dtype=float64)
    broken = a.new_empty(count, dtype=int32)
    if count:
        squares[(count,)](
            a, b, error, size, broken, a.stride(0), b.stride(0), COLUMNS=columns, LANES=min(1024, lanes_for(columns))
        )  # fmt: skip
    return error, size, broken
