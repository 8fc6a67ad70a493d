"""The Triton kernels of `gpu` for columns [K, N]: blocks across the contiguous axis, as in Hugging Face's BF16 experts.

A word is 32 bits of one line of a matrix: two neighbouring columns, or one of float32. A lane is a block of those
columns, in 32 tensors, one for each line, so that maxima and packing are arithmetic between registers, for two columns
at once. Column n is row n // PARTS of part n % PARTS. LINE, the distance of lines, is in words, other strides are in
bytes. Distances within a tile are known when a kernel is compiled: they become offsets in instructions.
"""

from __future__ import annotations

import triton.language as tl

from ckpttool.codecs.gpu_blocks import (
    codes_of_pairs,
    codes_of_singles,
    element_of,
    first_bad,
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
from ckpttool.codecs.gpu_lanes import (
    BEST,
    BF16,
    F32,
    TO_EVEN,
    bytes_by,
    bytes_of,
    constexpr_function,
    decoded,
    jit,
    scale_value,
)


@jit
def row_places(base, n0, lane, columns, expert, row, part, step: tl.constexpr, PARTS: tl.constexpr):
    """Addresses of the rows of columns n0 + lane * step.

    Where all of them are of one part, what differs between lanes fits 32 bits.
    """
    if step % PARTS == 0:
        first = expert * (columns // PARTS) + n0 // PARTS
        at = base + first.to(tl.int64) * row + (n0 % PARTS).to(tl.int64) * part
        return at + lane * (step // PARTS * row)
    n = n0 + lane * step
    rows = expert * (columns // PARTS) + n // PARTS
    return base + rows.to(tl.int64) * row + (n % PARTS).to(tl.int64) * part


@jit
def quantized(lines, SOURCE: tl.constexpr, RULE: tl.constexpr, TIES: tl.constexpr, KEEPS: tl.constexpr,
              GGML: tl.constexpr):  # fmt: skip
    """The blocks of the columns of a word, from its 32 lines: words, scale bytes, F32 bits of maxima."""
    if SOURCE == BF16 and TIES == TO_EVEN:
        highest = highest_pair(lines, 32)
        low_max, high_max = highest << 16, highest & 0x7FFF0000
        low_scale, high_scale = scale_byte(low_max, RULE), scale_byte(high_max, RULE)
        if RULE == BEST:
            low_saved, high_saved = saved_by_pairs(lines, 32, low_scale, high_scale)
            low_scale, high_scale = next_scale(low_scale, low_saved), next_scale(high_scale, high_saved)
        low, high = words_of_columns(codes_of_pairs(lines, 32, low_scale, high_scale, KEEPS), GGML)
        return (low, high), (low_scale, high_scale), (low_max, high_max)
    words = ()
    scales = ()
    maxima = ()
    for half in tl.static_range(1 if SOURCE == F32 else 2):
        singles = ()
        for k in tl.static_range(32):
            singles = singles + (single_of(lines[k], SOURCE, half),)
        codes, scale, amax = codes_of_singles(singles, RULE, TIES, KEEPS)
        words = words + (words_of_singles(codes, GGML),)
        scales = scales + (scale,)
        maxima = maxima + (amax,)
    return words, scales, maxima


@constexpr_function
def end_and_scale(b: int) -> int:
    """For `bytes_of`: the last `b` bytes of the first word, then byte `b` of the second."""
    return sum((4 - b + i if i < b else 4 + b) << (4 * i) for i in range(4))


@constexpr_function
def start_and_more(b: int) -> int:
    """For `bytes_of`: the first `b` + 1 bytes of the first word, then those of the second."""
    return sum((i if i <= b else 3 - b + i) << (4 * i) for i in range(4))


@jit
def four_structs(words, scales):
    """The 17 words that four structs fill, from the 16 words of their blocks and a word of scale bytes.

    Struct b starts b bytes into word 4 b, behind the end of the one before; each of its words, b + 1 bytes into a word.
    """
    run = ()
    for b in tl.static_range(4):
        end = bytes_of(words[max(4 * b - 1, 0)], scales, end_and_scale(b))
        run = run + (bytes_of(end, words[4 * b], start_and_more(b)),)
        for j in tl.static_range(1, 4):
            run = run + (bytes_of(words[4 * b + j - 1], words[4 * b + j], 0x6543 - 0x1111 * b),)
    return run + (words[15],)


@jit
def sixteen(v):
    """16 tensors as [.., 16]."""
    rows = ()
    for i in tl.static_range(4):
        rows = rows + (tl.join(tl.join(v[i], v[i + 8]), tl.join(v[i + 4], v[i + 12])),)
    return tl.join(tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3])).reshape(v[0].shape[0], 16)


@jit
def store_words(at, words):
    """Write 16 words from each address on. Here words change threads, so that neighbours write what is contiguous."""
    tl.store(at.to(tl.pointer_type(tl.uint32))[:, None] + tl.arange(0, 16)[None, :], sixteen(words))


@jit
def store_structs(structs, words, scales):
    """Write four structs from each address on, which is anywhere in a word: they fill 68 bytes.

    If that is `skip` bytes in, 16 words are filled by 17, each by the end of one and the start of the next; and what
    the last one and the first one have left are the bytes of a 17th, 4 - skip of them before the 16, the others behind.
    """
    skip = (structs.to(tl.int64) & 3).to(tl.int32)
    order = (0x7654 - 0x1111 * skip).to(tl.uint32)
    first = structs - skip
    run = four_structs(words, scales)
    moved = ()
    for i in tl.static_range(16):
        moved = moved + (bytes_by(run[i], run[i + 1], order),)
    store_words(first + 4, moved)
    byte = tl.arange(0, 4)[None, :]
    rest = (bytes_by(run[16], run[0], order)[:, None] >> (8 * byte)).to(tl.uint8)
    tl.store(first[:, None] + byte, rest, mask=byte >= skip[:, None])
    tl.store(first[:, None] + 68 + byte, rest, mask=byte < skip[:, None])


@jit
def store_pairs(blocks, scales, words, bytes4):
    """Write four blocks of pair packing from each address on, and their scale bytes."""
    store_words(blocks, words)
    byte = tl.arange(0, 4)[None, :]
    tl.store(scales[:, None] + byte, (bytes4[:, None] >> (8 * byte)).to(tl.uint8))


@jit
def quantize_columns(
    x, blocks, scales, status, groups, columns, x_expert, block_part, scale_part,
    SOURCE: tl.constexpr, RULE: tl.constexpr, TIES: tl.constexpr, KEEPS: tl.constexpr, GGML: tl.constexpr,
    PARTS: tl.constexpr, LINE: tl.constexpr, BLOCK_ROW: tl.constexpr, SCALE_ROW: tl.constexpr, WORDS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Four blocks, one after the other, of the columns of WORDS words of one expert; see `gpu.quantize_columns`.

    WHOLE: words divide among programs. Nothing is masked: otherwise lanes past the last word work on that one too, and
    the last program along K on the last four blocks, whichever others have. All write the same there.
    """
    g0 = tl.minimum(tl.program_id(0) * 4, groups - 4)
    w0 = tl.program_id(1) * WORDS
    expert = tl.program_id(2)
    per_word: tl.constexpr = 1 if SOURCE == F32 else 2
    lane = tl.arange(0, WORDS)
    if not WHOLE:
        lane = tl.minimum(lane, columns // per_word - 1 - w0)
    at = (x + expert.to(tl.int64) * x_expert).to(tl.pointer_type(tl.uint32)) + g0.to(tl.int64) * (32 * LINE)
    at += w0 + lane
    flat = (expert * columns + (w0 + lane) * per_word) * groups + g0
    none = lane.to(tl.uint32) * 0
    four = none, none, none, none
    first = four + four + four + four
    second = first
    first_scales = none
    second_scales = none
    for g in range(4):
        lines = ()
        for k in tl.static_range(32):
            lines = lines + (tl.load(at + k * LINE),)
        at += 32 * LINE
        words, scale, amax = quantized(lines, SOURCE, RULE, TIES, KEEPS, GGML)
        first = first[4:] + words[0]
        second = second[4:] + words[per_word - 1]
        first_scales = (first_scales >> 8) | (scale[0].to(tl.uint32) << 24)
        second_scales = (second_scales >> 8) | (scale[per_word - 1].to(tl.uint32) << 24)
        if tl.max(tl.maximum(amax[0], amax[per_word - 1])) >= first_bad(RULE, TIES):
            for half in tl.static_range(per_word):
                report_bad(status, flat + half * groups + g, amax[half], lane >= 0, RULE, TIES)
    for half in tl.static_range(per_word):
        run, bytes4 = (second, second_scales) if half else (first, first_scales)
        n0 = w0 * per_word + half
        to_scales = row_places(scales, n0, lane, columns, expert, SCALE_ROW, scale_part, per_word, PARTS)
        if GGML:
            store_structs(to_scales + g0 * 17, run, bytes4)
        else:
            to_blocks = row_places(blocks, n0, lane, columns, expert, BLOCK_ROW, block_part, per_word, PARTS)
            store_pairs(to_blocks + g0 * 16, to_scales + g0, run, bytes4)


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
    lane = tl.arange(0, WORDS)
    inside = (g < groups)[:, None] & (n0 + lane * 2 < columns)[None, :]
    to_scale = row_places(scales, n0, lane, columns, expert, scale_row, scale_part, 2, PARTS)
    if GGML:
        words, scale = load_struct(to_scale[None, :] + g[:, None] * 17, inside)
    else:
        scale = tl.load(to_scale[None, :] + g[:, None], mask=inside, other=0).to(tl.int32)
        to_block = row_places(blocks, n0, lane, columns, expert, block_row, block_part, 2, PARTS)
        at = (to_block[None, :] + g[:, None] * 16).to(tl.pointer_type(tl.uint32))
        four = tl.load(at[:, :, None] + tl.arange(0, 4)[None, None, :], mask=inside[:, :, None], other=0)
        even, odd = tl.split(four.reshape(GROUPS, WORDS, 2, 2))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        words = (a, b, c, d)
    flat = expert * columns + n0 + lane * 2
    report_undecodable(status, flat[None, :] * groups + g[:, None], scale, words, inside)
    return words, scale_value(scale)


@jit
def store_lines(at, low, high, factor, inside, TARGET: tl.constexpr, GGML: tl.constexpr, LINE: tl.constexpr):
    """Write the 32 lines of a block of two columns, from their words and a pair of scales."""
    for half in tl.static_range(8):
        nibbles = bytes_of(low[half // 2], high[half // 2], 0x7632 if half % 2 else 0x5410)
        for i in tl.static_range(4):
            to = at + element_of(half * 4 + i, GGML) * LINE
            values = decoded(nibbles >> (4 * i), factor)
            if TARGET == F32:
                tl.store(to, values << 16, mask=inside)
                tl.store(to + 1, values & 0xFFFF0000, mask=inside)
            else:
                tl.store(to, values, mask=inside)


@jit
def dequantize_columns(
    blocks, scales, out, status, groups, columns, out_expert, block_row, block_part, scale_row, scale_part,
    TARGET: tl.constexpr, GGML: tl.constexpr, PARTS: tl.constexpr, LINE: tl.constexpr,
    GROUPS: tl.constexpr, WORDS: tl.constexpr,
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
    at = at + g.to(tl.int64)[:, None] * (32 * LINE) + w[None, :] * per_pair
    inside = (g < groups)[:, None] & (w < columns // 2)[None, :]
    store_lines(at, low, high, low_scale | (high_scale << 16), inside, TARGET, GGML, LINE)
