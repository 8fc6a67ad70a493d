"""The Triton kernels of `gpu` for rows: blocks that lie along the contiguous axis. `gpu` has checked everything.

A program works on `BLOCKS` blocks of one part, n = first ... of the R * G blocks of that part. Parts take turns, so
that rows that lie between each other's, and share sectors of memory, are worked on at the same time. An operand whose
rows follow each other without gaps is `DENSE`: block n lies n blocks from its start. `GROUPS` is G where something has
to be divided by it (a division by a known number is a multiplication), otherwise 0. Strides are bytes. A lane is a
block: it loads four words at a time, that is 16 bytes, and nothing but bytes on their way to or from memory changes
places between threads.
"""

from __future__ import annotations

import triton.language as tl

from ckpttool.codecs.gpu_blocks import (
    codes_of_pairs,
    codes_of_singles,
    highest_pair,
    next_scale,
    other_packing,
    report_bad,
    report_undecodable,
    row_of_words,
    saved_by_pairs,
    scale_byte,
    single_of,
    words_of_row,
    words_of_singles,
)
from ckpttool.codecs.gpu_lanes import BEST, BF16, F32, TO_EVEN, decoded, jit, scale_value


@jit
def place(base, first, lane, row, unit: tl.constexpr, DENSE: tl.constexpr, GROUPS: tl.constexpr):
    """Addresses of blocks first + lane of a part, which are `unit` bytes long."""
    if DENSE:
        at = base + first.to(tl.int64) * unit + lane * unit
    else:
        n = first + lane
        at = base + (n // GROUPS).to(tl.int64) * row + (n % GROUPS) * unit
    return at


@jit
def index_of(n, part, PARTS: tl.constexpr, GROUPS: tl.constexpr):
    """Flat index of block `n` of a part, in row-major order of [R, p, G]."""
    return n if PARTS == 1 else (n // GROUPS * PARTS + part) * GROUPS + n % GROUPS


@jit
def words_at(at, n: tl.constexpr):
    """Addresses of the `n` words of 32 bits from each address on: [B, n]."""
    return at.to(tl.pointer_type(tl.uint32))[:, None] + tl.arange(0, n)[None, :]


@jit
def four(x):
    """[B, 4] as four tensors [B]."""
    even, odd = tl.split(x.reshape(x.shape[0], 2, 2))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@jit
def one_of_four(a, b, c, d):
    """Undo `four`."""
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(a.shape[0], 4)


@jit
def load_words(at, inside, N: tl.constexpr):
    """`N` words from each address on, as tensors [B]; zeros outside."""
    words = ()
    for i in tl.static_range(0, N, 4):
        words = words + four(tl.load(words_at(at + 4 * i, 4), mask=inside[:, None], other=0))
    return words


@jit
def store_words(at, words, inside, N: tl.constexpr):
    """`N` tensors [B] as words from each address on."""
    for i in tl.static_range(0, N, 4):
        both = one_of_four(words[i], words[i + 1], words[i + 2], words[i + 3])
        tl.store(words_at(at + 4 * i, 4), both, mask=inside[:, None])


@jit
def struct_words(words, scale, BLOCKS: tl.constexpr):
    """The 17 words that four structs fill: [B / 4, 16], and the last one.

    Struct b of a four starts b bytes into word 4 b. So word 4 b + j is the end of the block's word j - 1 and the start
    of its word j, b + 1 bytes in; for j = 0 there are the end of the block before and the scale byte instead. Shifts by
    a whole word, of which there are some, are made of two.
    """
    d0, d1, d2, d3 = words
    b = (tl.arange(0, BLOCKS) % 4).to(tl.uint32) * 8
    rest = 24 - b
    last0, last1, last2, last3 = four(d3.reshape(BLOCKS // 4, 4))
    before = one_of_four(last0 * 0, last0, last1, last2).reshape(BLOCKS)
    out = one_of_four(
        (before >> 8 >> rest) | (scale.to(tl.uint32) << b) | (d0 << b << 8),
        (d0 >> rest) | (d1 << b << 8),
        (d1 >> rest) | (d2 << b << 8),
        (d2 >> rest) | (d3 << b << 8),
    )
    return out.reshape(BLOCKS // 4, 16), last3


@jit
def store_structs(
    structs, first, words, scale, count, row, BLOCKS: tl.constexpr, DENSE: tl.constexpr, ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Write blocks as structs of 17 bytes, which are aligned to nothing.

    ALIGNED: structs are dense, start at a multiple of 4 bytes, and whole fours of them are written.
    """
    lane = tl.arange(0, BLOCKS)
    if ALIGNED:
        most, last = struct_words(words, scale, BLOCKS)
        fours = tl.arange(0, BLOCKS // 4)
        at = (structs + first.to(tl.int64) * 17).to(tl.pointer_type(tl.uint32)) + fours * 17
        inside = first + fours * 4 < count
        tl.store(at[:, None] + tl.arange(0, 16)[None, :], most, mask=inside[:, None])
        tl.store(at + 16, last, mask=inside)
    else:
        at = place(structs, first, lane, row, 17, DENSE, GROUPS)
        inside = first + lane < count
        tl.store(at, scale.to(tl.uint8), mask=inside)
        for j in tl.static_range(4):
            byte = one_of_four(words[j], words[j] >> 8, words[j] >> 16, words[j] >> 24).to(tl.uint8)
            tl.store(at[:, None] + 1 + 4 * j + tl.arange(0, 4)[None, :], byte, mask=inside[:, None])


@jit
def load_structs(
    structs, first, count, row, BLOCKS: tl.constexpr, DENSE: tl.constexpr, ALIGNED: tl.constexpr, GROUPS: tl.constexpr
):
    """Words and scale bytes of structs; see `store_structs`. Each word is the ends of two neighbours."""
    lane = tl.arange(0, BLOCKS)
    at = place(structs, first, lane, row, 17, DENSE, GROUPS)
    inside = first + lane < count
    scale = tl.load(at, mask=inside, other=0).to(tl.int32)
    if ALIGNED:
        fours = tl.arange(0, BLOCKS // 4)
        word = tl.arange(0, 16)[None, :]
        at4 = ((structs + first.to(tl.int64) * 17).to(tl.pointer_type(tl.uint32)) + fours * 17)[:, None] + word
        whole = (first + fours * 4 < count)[:, None]
        b = (word // 4).to(tl.uint32) * 8
        low = tl.load(at4, mask=whole, other=0) >> b >> 8
        high = tl.load(at4 + 1, mask=whole, other=0) << (24 - b)
        words = four((low | high).reshape(BLOCKS, 4))
    else:
        words = ()
        for j in tl.static_range(4):
            byte = tl.load(at[:, None] + 1 + 4 * j + tl.arange(0, 4)[None, :], mask=inside[:, None], other=0)
            a, b, c, d = four(byte.to(tl.uint32))
            words = words + (a | (b << 8) | (c << 16) | (d << 24),)
    return words, scale


@jit
def load_blocks(
    blocks, scales, first, count, block_row, scale_row, GGML: tl.constexpr, BLOCKS: tl.constexpr,
    DENSE: tl.constexpr, ALIGNED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Four words and the scale byte, as int32, of blocks in either packing; zeros past the end."""
    if GGML:
        words, scale = load_structs(scales, first, count, scale_row, BLOCKS, DENSE, ALIGNED, GROUPS)
    else:
        lane = tl.arange(0, BLOCKS)
        inside = first + lane < count
        words = load_words(place(blocks, first, lane, block_row, 16, DENSE, GROUPS), inside, 4)
        byte = tl.load(place(scales, first, lane, scale_row, 1, DENSE, GROUPS), mask=inside, other=0)
        scale = byte.to(tl.int32)
    return words, scale


@jit
def store_blocks(
    blocks, scales, first, words, scale, count, block_row, scale_row, GGML: tl.constexpr, BLOCKS: tl.constexpr,
    DENSE: tl.constexpr, ALIGNED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Write four words and the scale byte of blocks in either packing."""
    if GGML:
        store_structs(scales, first, words, scale, count, scale_row, BLOCKS, DENSE, ALIGNED, GROUPS)
    else:
        lane = tl.arange(0, BLOCKS)
        inside = first + lane < count
        store_words(place(blocks, first, lane, block_row, 16, DENSE, GROUPS), words, inside, 4)
        tl.store(place(scales, first, lane, scale_row, 1, DENSE, GROUPS), scale.to(tl.uint8), mask=inside)


@jit
def singles_of_row(words, SOURCE: tl.constexpr):
    """F32 bits of the 32 numbers of a block."""
    singles = ()
    per_word: tl.constexpr = 1 if SOURCE == F32 else 2
    for i in tl.static_range(32):
        singles = singles + (single_of(words[i // per_word], SOURCE, i % per_word),)
    return singles


@jit
def quantize_rows(
    x, blocks, scales, status, start, count, x_row, x_part, block_row, block_part, scale_row, scale_part,
    SOURCE: tl.constexpr, RULE: tl.constexpr, TIES: tl.constexpr, KEEPS: tl.constexpr, GGML: tl.constexpr,
    PARTS: tl.constexpr, X_DENSE: tl.constexpr, OUT_DENSE: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Blocks start ... count - 1 of each part; see `gpu.quantize_rows`."""
    part = tl.program_id(0) % PARTS
    first = start + tl.program_id(0) // PARTS * BLOCKS
    lane = tl.arange(0, BLOCKS)
    inside = first + lane < count
    n_words: tl.constexpr = 32 if SOURCE == F32 else 16
    at = place(x + part.to(tl.int64) * x_part, first, lane, x_row, n_words * 4, X_DENSE, GROUPS)
    words = load_words(at, inside, n_words)
    if SOURCE == BF16 and TIES == TO_EVEN:
        highest = highest_pair(words, 16)
        amax = tl.maximum(highest << 16, highest & 0x7FFF0000)
        scale = scale_byte(amax, RULE)
        if RULE == BEST:
            even, odd = saved_by_pairs(words, 16, scale, scale)
            scale = next_scale(scale, even + odd)
        packed = words_of_row(codes_of_pairs(words, 16, scale, scale, KEEPS), GGML)
    else:
        codes, scale, amax = codes_of_singles(singles_of_row(words, SOURCE), RULE, TIES, KEEPS)
        packed = words_of_singles(codes, GGML)
    report_bad(status, index_of(first + lane, part, PARTS, GROUPS), amax, inside, RULE, TIES)
    store_blocks(
        blocks + part.to(tl.int64) * block_part, scales + part.to(tl.int64) * scale_part, first, packed, scale, count,
        block_row, scale_row, GGML, BLOCKS, OUT_DENSE, ALIGNED, GROUPS,
    )  # fmt: skip


@jit
def values_of_row(v, factor):
    """The 16 words of BF16 values of a block: [B, 16]."""
    rows = ()
    for i in tl.static_range(4):
        four_apart = one_of_four(v[i], v[i + 4], v[i + 8], v[i + 12])
        rows = rows + (decoded(four_apart, factor[:, None]),)
    even, odd = tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3])
    return tl.join(even, odd).reshape(factor.shape[0], 16)


@jit
def dequantize_rows(
    blocks, scales, out, status, start, count, block_row, block_part, scale_row, scale_part, out_row, out_part,
    TARGET: tl.constexpr, GGML: tl.constexpr, PARTS: tl.constexpr, IN_DENSE: tl.constexpr, OUT_DENSE: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Blocks start ... count - 1 of each part; see `gpu.dequantize_rows`."""
    part = tl.program_id(0) % PARTS
    first = start + tl.program_id(0) // PARTS * BLOCKS
    lane = tl.arange(0, BLOCKS)
    inside = first + lane < count
    words, scale = load_blocks(
        blocks + part.to(tl.int64) * block_part, scales + part.to(tl.int64) * scale_part, first, count,
        block_row, scale_row, GGML, BLOCKS, IN_DENSE, ALIGNED, GROUPS,
    )  # fmt: skip
    report_undecodable(status, index_of(first + lane, part, PARTS, GROUPS), scale, words, inside)
    values = values_of_row(row_of_words(words, GGML), scale_value(scale) * 0x10001)
    n_words: tl.constexpr = 32 if TARGET == F32 else 16
    if TARGET == F32:
        values = tl.join(values << 16, values & 0xFFFF0000).reshape(BLOCKS, 32)
    at = place(out + part.to(tl.int64) * out_part, first, lane, out_row, n_words * 4, OUT_DENSE, GROUPS)
    tl.store(words_at(at, n_words), values, mask=inside[:, None])


@jit
def repack(
    blocks, scales, out_blocks, out_scales, start, count, block_row, block_part, scale_row, scale_part,
    out_block_row, out_block_part, out_scale_row, out_scale_part, GGML: tl.constexpr, OUT_GGML: tl.constexpr,
    PARTS: tl.constexpr, IN_DENSE: tl.constexpr, OUT_DENSE: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Blocks start ... count - 1 of each part; see `gpu.repack`."""
    part = (tl.program_id(0) % PARTS).to(tl.int64)
    first = start + tl.program_id(0) // PARTS * BLOCKS
    words, scale = load_blocks(
        blocks + part * block_part, scales + part * scale_part, first, count, block_row, scale_row, GGML,
        BLOCKS, IN_DENSE, ALIGNED, GROUPS,
    )  # fmt: skip
    if GGML != OUT_GGML:
        words = other_packing(words, OUT_GGML)
    store_blocks(
        out_blocks + part * out_block_part, out_scales + part * out_scale_part, first, words, scale, count,
        out_block_row, out_scale_row, OUT_GGML, BLOCKS, OUT_DENSE, ALIGNED, GROUPS,
    )  # fmt: skip
