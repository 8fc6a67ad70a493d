"""The Triton kernels of `gpu` for columns [K, N]: blocks across the contiguous axis, as in Hugging Face's BF16 experts.

A word is 32 bits of one line of a matrix: two neighbouring columns, or one of float32. A lane is a block of those
columns, in 32 tensors, one for each line, so that maxima and packing are arithmetic between registers, for two columns
at once. Column n is row n // PARTS of part n % PARTS; `line`, the distance of lines, is in words, other strides are
bytes.
"""

from __future__ import annotations

import triton.language as tl

from ckpttool.codecs.gpu_blocks import (
    codes_of_pairs,
    codes_of_singles,
    element_of,
    highest_pair,
    next_scale,
    report_bad,
    report_undecodable,
    saved_by_pairs,
    scale_byte,
    single_of,
    words_of_columns,
    words_of_singles,
)
from ckpttool.codecs.gpu_lanes import BEST, BF16, F32, TO_EVEN, bytes_of, decoded, jit, scale_value


@jit
def load_lines(x, g0, groups, w0, n_words, line, GROUPS: tl.constexpr, WORDS: tl.constexpr):
    """The 32 lines of a tile of GROUPS blocks by WORDS words, as tensors [GROUPS, WORDS]; zeros outside."""
    g = g0 + tl.arange(0, GROUPS)
    w = w0 + tl.arange(0, WORDS)
    at = x.to(tl.pointer_type(tl.uint32)) + g.to(tl.int64)[:, None] * (line * 32) + w[None, :]
    inside = (g < groups)[:, None] & (w < n_words)[None, :]
    lines = ()
    for k in tl.static_range(32):
        lines = lines + (tl.load(at + k * line, mask=inside, other=0),)
    return lines


@jit
def row_places(base, n0, columns, expert, row, part, step: tl.constexpr, PARTS: tl.constexpr, WORDS: tl.constexpr):
    """Addresses of the rows of columns n0, n0 + step ..., and the flat numbers of these rows in [R, p].

    Where all of them are of one part, what differs between lanes fits 32 bits.
    """
    lane = tl.arange(0, WORDS)
    if step % PARTS == 0:
        first = expert * (columns // PARTS) + n0 // PARTS
        at = base + first.to(tl.int64) * row + (n0 % PARTS).to(tl.int64) * part
        return at + lane * (step // PARTS * row), expert * columns + n0 + lane * step
    n = n0 + lane * step
    rows = expert * (columns // PARTS) + n // PARTS
    return base + rows.to(tl.int64) * row + (n % PARTS).to(tl.int64) * part, expert * columns + n


@jit
def row_runs(words):
    """Four words [GROUPS, WORDS] of blocks as [WORDS, GROUPS * 4]: what a row has in one piece."""
    a, b, c, d = words
    both = tl.join(tl.join(a, c), tl.join(b, d)).permute(1, 0, 2, 3)
    return both.reshape(a.shape[1], a.shape[0] * 4)


@jit
def store_columns(
    blocks, scales, status, words, scale, amax, g0, groups, n0, step: tl.constexpr, columns, expert, block_row,
    block_part, scale_row, scale_part, RULE: tl.constexpr, TIES: tl.constexpr, GGML: tl.constexpr,
    PARTS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Write blocks of columns n0, n0 + step ...; four words, scale bytes and maxima are [GROUPS, WORDS]."""
    n = n0 + tl.arange(0, WORDS) * step
    g = g0 + tl.arange(0, GROUPS)
    inside = (n < columns)[:, None] & (g < groups)[None, :]
    to_scale, flat = row_places(scales, n0, columns, expert, scale_row, scale_part, step, PARTS, WORDS)
    report_bad(status, flat[None, :] * groups + g[:, None], amax, tl.trans(inside), RULE, TIES)
    unit: tl.constexpr = 17 if GGML else 1
    tl.store(to_scale[:, None] + g[None, :] * unit, tl.trans(scale).to(tl.uint8), mask=inside)
    runs = row_runs(words)
    if GGML:
        byte = tl.arange(0, GROUPS * 16)
        group = g0 + byte // 16
        spread = tl.join(tl.join(runs, runs >> 16), tl.join(runs >> 8, runs >> 24)).reshape(WORDS, GROUPS * 16)
        at = to_scale[:, None] + (group * 17 + 1 + byte % 16)[None, :]
        tl.store(at, spread.to(tl.uint8), mask=(n < columns)[:, None] & (group < groups)[None, :])
    else:
        word = tl.arange(0, GROUPS * 4)
        to_block, _ = row_places(blocks, n0, columns, expert, block_row, block_part, step, PARTS, WORDS)
        at = to_block.to(tl.pointer_type(tl.uint32))[:, None] + (g0 * 4 + word)[None, :]
        tl.store(at, runs, mask=(n < columns)[:, None] & (g0 + word // 4 < groups)[None, :])


@jit
def quantize_columns(
    x, blocks, scales, status, groups, columns, x_expert, line, block_row, block_part, scale_row, scale_part,
    SOURCE: tl.constexpr, RULE: tl.constexpr, TIES: tl.constexpr, KEEPS: tl.constexpr, GGML: tl.constexpr,
    PARTS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """A tile of one expert; see `gpu.quantize_columns`. Packed bytes change places, so that rows get runs of blocks."""
    g0 = tl.program_id(0) * GROUPS
    w0 = tl.program_id(1) * WORDS
    expert = tl.program_id(2)
    per_word: tl.constexpr = 1 if SOURCE == F32 else 2
    n0 = w0 * per_word
    lines = load_lines(x + expert.to(tl.int64) * x_expert, g0, groups, w0, columns // per_word, line, GROUPS, WORDS)
    if SOURCE == BF16 and TIES == TO_EVEN:
        highest = highest_pair(lines, 32)
        low_scale, high_scale = scale_byte(highest << 16, RULE), scale_byte(highest & 0x7FFF0000, RULE)
        if RULE == BEST:
            low_saved, high_saved = saved_by_pairs(lines, 32, low_scale, high_scale)
            low_scale, high_scale = next_scale(low_scale, low_saved), next_scale(high_scale, high_saved)
        low, high = words_of_columns(codes_of_pairs(lines, 32, low_scale, high_scale, KEEPS), GGML)
        store_columns(
            blocks, scales, status, low, low_scale, highest << 16, g0, groups, n0, 2, columns, expert, block_row,
            block_part, scale_row, scale_part, RULE, TIES, GGML, PARTS, GROUPS, WORDS,
        )  # fmt: skip
        store_columns(
            blocks, scales, status, high, high_scale, highest & 0x7FFF0000, g0, groups, n0 + 1, 2, columns, expert,
            block_row, block_part, scale_row, scale_part, RULE, TIES, GGML, PARTS, GROUPS, WORDS,
        )  # fmt: skip
    else:
        for half in tl.static_range(per_word):
            singles = ()
            for k in tl.static_range(32):
                singles = singles + (single_of(lines[k], SOURCE, half),)
            codes, scale, amax = codes_of_singles(singles, RULE, TIES, KEEPS)
            store_columns(
                blocks, scales, status, words_of_singles(codes, GGML), scale, amax, g0, groups, n0 + half, per_word,
                columns, expert, block_row, block_part, scale_row, scale_part, RULE, TIES, GGML, PARTS, GROUPS, WORDS,
            )  # fmt: skip


@jit
def load_struct(at, inside):
    """Words and scale byte of structs of 17 bytes at any addresses.

    Each lies in five words of 32 bits, all of which have some of its bytes; `skip` bits of the first are not its own.
    """
    address = at.to(tl.int64)
    skip = ((address & 3) * 8).to(tl.uint32)
    word = (address & -4).to(tl.pointer_type(tl.uint32))
    left = 24 - skip
    words = ()
    before = tl.load(word, mask=inside, other=0)
    scale = tl.where(inside, (before >> skip) & 0xFF, 0).to(tl.int32)
    for j in tl.static_range(4):
        after = tl.load(word + j + 1, mask=inside, other=0)
        words = words + ((before >> skip >> 8) | (after << left),)
        before = after
    return words, scale


@jit
def load_columns(
    blocks, scales, status, g0, groups, n0, columns, expert, block_row, block_part, scale_row, scale_part,
    GGML: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Four words [GROUPS, WORDS] of each block of columns n0, n0 + 2 ..., and the BF16 bits of the scales."""
    g = g0 + tl.arange(0, GROUPS)
    inside = (g < groups)[:, None] & (n0 + tl.arange(0, WORDS) * 2 < columns)[None, :]
    to_scale, flat = row_places(scales, n0, columns, expert, scale_row, scale_part, 2, PARTS, WORDS)
    if GGML:
        words, scale = load_struct(to_scale[None, :] + g[:, None] * 17, inside)
    else:
        scale = tl.load(to_scale[None, :] + g[:, None], mask=inside, other=0).to(tl.int32)
        to_block, _ = row_places(blocks, n0, columns, expert, block_row, block_part, 2, PARTS, WORDS)
        at = (to_block[None, :] + g[:, None] * 16).to(tl.pointer_type(tl.uint32))
        four = tl.load(at[:, :, None] + tl.arange(0, 4)[None, None, :], mask=inside[:, :, None], other=0)
        even, odd = tl.split(four.reshape(GROUPS, WORDS, 2, 2))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        words = (a, b, c, d)
    report_undecodable(status, flat[None, :] * groups + g[:, None], scale, words, inside)
    return words, scale_value(scale)


@jit
def store_lines(at, low, high, factor, line, inside, TARGET: tl.constexpr, GGML: tl.constexpr):
    """Write the 32 lines of a block of two columns, from their words and a pair of scales."""
    for half in tl.static_range(8):
        nibbles = bytes_of(low[half // 2], high[half // 2], 0x7632 if half % 2 else 0x5410)
        for i in tl.static_range(4):
            to = at + element_of(half * 4 + i, GGML) * line
            values = decoded(nibbles >> (4 * i), factor)
            if TARGET == F32:
                tl.store(to, values << 16, mask=inside)
                tl.store(to + 1, values & 0xFFFF0000, mask=inside)
            else:
                tl.store(to, values, mask=inside)


@jit
def dequantize_columns(
    blocks, scales, out, status, groups, columns, out_expert, line, block_row, block_part, scale_row, scale_part,
    TARGET: tl.constexpr, GGML: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """A tile of GROUPS blocks by WORDS pairs of columns of one expert; see `gpu.dequantize_columns`."""
    g0 = tl.program_id(0) * GROUPS
    w0 = tl.program_id(1) * WORDS
    expert = tl.program_id(2)
    low, low_scale = load_columns(
        blocks, scales, status, g0, groups, w0 * 2, columns, expert, block_row, block_part, scale_row, scale_part,
        GGML, PARTS, GROUPS, WORDS,
    )  # fmt: skip
    high, high_scale = load_columns(
        blocks, scales, status, g0, groups, w0 * 2 + 1, columns, expert, block_row, block_part, scale_row, scale_part,
        GGML, PARTS, GROUPS, WORDS,
    )  # fmt: skip
    g = g0 + tl.arange(0, GROUPS)
    w = w0 + tl.arange(0, WORDS)
    per_pair: tl.constexpr = 2 if TARGET == F32 else 1
    at = (out + expert.to(tl.int64) * out_expert).to(tl.pointer_type(tl.uint32))
    at = at + g.to(tl.int64)[:, None] * (line * 32) + w[None, :] * per_pair
    inside = (g < groups)[:, None] & (w < columns // 2)[None, :]
    store_lines(at, low, high, low_scale | (high_scale << 16), line, inside, TARGET, GGML)
