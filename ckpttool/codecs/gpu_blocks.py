"""MXFP4 in Triton, block by block: a thread holds a block (or those of two columns) in a tuple of registers.

Tuples hold 32 **singles** (F32 bits, one number each) or 16 or 32 **words** of BF16 pairs; `gpu_rows` and `gpu_columns`
differ in how they load and store, not in what lies between. The four words of a packed block are a tuple as well.

How `best` decides (`reference.prefers_next_scale`): let a be a magnitude in units of the scale, below 8. The next
scale's grid lacks 0.5 and 1.5, and has 8 beyond 6. Around the former it loses what a is away from the nearest integer,
less a quarter (`loss`); above 7 it gains 4 (a - 7) (`gain`); elsewhere both round alike. A float counts these exactly:
the bits of max(x, c), less those of c, are x - c in units of the last bit that floats have there, as long as x is no
more than twice c. Sums of integers are exact in any order, and so is the comparison. It does not depend on the tie
rule, since both roundings of a tie are as wrong. The next scale is never taken at 252, where 8 would be 2^128.
"""

from __future__ import annotations

import triton.language as tl

from ckpttool.codecs.gpu_lanes import (
    BEST,
    BF16,
    EVEN,
    F32,
    RCEIL,
    TO_ZERO,
    bytes_of,
    chosen,
    constant,
    constexpr_function,
    halves,
    jit,
    pair_code,
    pair_fma,
    pair_fma_or_zero,
    pair_magnitude,
    pair_max_signed,
    pair_min_signed,
    pair_of,
    pair_scaled,
    single_code,
    single_scaled,
    single_signed,
)

_INF = constant(0x7F800000)
_TOO_LARGE = constant(0x7F600000)
"""1.75 * 2^127, which rounds to 4 at scale byte 253, and 4 * 2^126 is infinite. Only rules that look up get there."""


@constexpr_function
def element_of(nibble: int, ggml: bool) -> int:
    """Which element of a block lies in nibble 0..31 of its 16 bytes."""
    return nibble // 2 + 16 * (nibble % 2) if ggml else nibble


@constexpr_function
def first_bad(rule: int, ties: int) -> int:
    """F32 bits of the smallest block maximum that may not be encoded."""
    looks_up = rule in (EVEN.value, RCEIL.value)
    return int(_TOO_LARGE.value + (ties == TO_ZERO.value) if looks_up else _INF.value)


@jit
def report_bad(status, index, amax, inside, RULE: tl.constexpr, TIES: tl.constexpr):
    """Note in `status` the lowest 8 * index + kind of blocks that may not be encoded: 0 NaN, 1 Inf, 2 overflow."""
    kind = tl.where(amax > _INF, 0, tl.where(amax == _INF, 1, 2))
    bad = inside & (amax >= first_bad(RULE, TIES))
    tl.atomic_min(status + index * 0, index.to(tl.int64) * 8 + kind, mask=bad, sem="relaxed")


@jit
def report_undecodable(status, index, scale, words, inside):
    """Note blocks that BF16 cannot hold: 3 for scale byte 255, 2 for a value of 2^128 and above.

    That is a code of 4 and above (bit 2) at scale byte 254, and of 6 and above (bits 2 and 1) at 253.
    """
    a, b, c, d = words
    large = ((a | b | c | d) & 0x44444444) != 0
    larger = ((a & (a << 1)) | (b & (b << 1)) | (c & (c << 1)) | (d & (d << 1))) & 0x44444444 != 0
    bad = (scale == 255) | ((scale == 254) & large) | ((scale == 253) & larger)
    kind = tl.where(scale == 255, 3, 2)
    tl.atomic_min(status + index * 0, index.to(tl.int64) * 8 + kind, mask=inside & bad, sem="relaxed")


@jit
def single_of(word, SOURCE: tl.constexpr, HALF: tl.constexpr):
    """F32 bits of the first (0) or second (1) number of a word, or of its only one."""
    if SOURCE == F32:
        bits = word
    elif SOURCE == BF16:
        bits = (word & 0xFFFF0000) if HALF else (word << 16)
    else:
        half = (word >> (16 * HALF)).to(tl.uint16)
        bits = half.to(tl.float16, bitcast=True).to(tl.float32).to(tl.uint32, bitcast=True)
    return bits


@jit
def pair_loss(a):
    """max(distance to the nearest integer, 1/4) of a capped at 2: adding 192, where pairs count ones, rounds to it."""
    one = pair_of(0x3F80)
    capped = pair_min_signed(a, pair_of(0x4000))
    moved = pair_fma(capped, one, pair_of(0x4340))
    nearest = pair_fma(moved, one, pair_of(0xC340))
    distance = pair_fma(nearest, pair_of(0xBF80), capped)
    over = pair_fma_or_zero(pair_of(0xBE80), one, pair_magnitude(distance))
    return pair_fma(over, one, pair_of(0x3E80))


@jit
def saved_by_pairs(words, N: tl.constexpr, low_scale, high_scale):
    """What the next scale saves in the `N` words of blocks, in units of 2^-9: of the low halves, of the high halves.

    Losses are added as integers of 2^-9, both halves at once: the sum starts N constants below zero, modulo 2^32, and
    ends non-negative in either half. Gains are numbers, at most 31 times 2^-5; pairs add eight of them exactly.
    """
    loss = words[0] * 0 + (-0x3E803E80 * N) % 2**32
    low_gain, high_gain = halves(words[0] * 0)
    for i in tl.static_range(0, N, 8):
        gain = words[0] * 0
        for j in tl.static_range(8):
            a = pair_scaled(words[i + j], low_scale, high_scale)
            loss += pair_loss(a)
            more = pair_fma_or_zero(pair_of(0xC0E0), pair_of(0x3F80), pair_magnitude(a))
            gain = pair_fma(more, pair_of(0x3F80), gain)
        low, high = halves(gain)
        low_gain += low
        high_gain += high
    low = (low_gain * 2048.0).to(tl.int32) - (loss & 0xFFFF).to(tl.int32)
    high = (high_gain * 2048.0).to(tl.int32) - (loss >> 16).to(tl.int32)
    return low, high


@jit
def saved_by_singles(singles, scale):
    """What the next scale saves, in units of 2^-19; losses, which count 2^-25, are rounded down: only the sign counts.

    64 gain > loss is gain > floor(loss / 64). Both sums stay below 2^29. Adding 1.5 * 2^23 rounds to an integer.
    """
    loss = scale * 0
    gain = scale * 0
    for i in tl.static_range(32):
        a = single_scaled(singles[i], scale)
        capped = tl.minimum(a, 2.0)
        distance = tl.abs(capped - ((capped + 12582912.0) - 12582912.0))
        loss += tl.maximum(distance, 0.25).to(tl.int32, bitcast=True) - 0x3E800000
        gain += tl.maximum(a, 7.0).to(tl.int32, bitcast=True) - 0x40E00000
    return gain - (loss >> 6)


@jit
def next_scale(scale, saved):
    """The scale byte, or the next where that saves something."""
    return scale + ((saved > 0) & (scale < 252)).to(tl.int32)


@jit
def highest_pair(words, N: tl.constexpr):
    """The larger magnitudes of the halves of `N` words."""
    highest = words[0]
    for i in tl.static_range(1, N):
        highest = pair_max_signed(highest, words[i])
    return highest & 0x7FFF7FFF


@jit
def codes_of_pairs(words, N: tl.constexpr, low_scale, high_scale, KEEPS: tl.constexpr):
    """Codes of `N` words at bits 12 and 28, ties to even; other bits are anything."""
    codes = ()
    for i in tl.static_range(N):
        codes = codes + (pair_code(pair_scaled(words[i], low_scale, high_scale), KEEPS),)
    return codes


@jit
def codes_of_singles(singles, RULE: tl.constexpr, TIES: tl.constexpr, KEEPS: tl.constexpr):
    """32 codes of a block, its scale byte and its largest magnitude."""
    amax = singles[0] & 0x7FFFFFFF
    for i in tl.static_range(1, 32):
        amax = tl.maximum(amax, singles[i] & 0x7FFFFFFF)
    scale = scale_byte(amax, RULE)
    if RULE == BEST:
        scale = next_scale(scale, saved_by_singles(singles, scale))
    codes = ()
    for i in tl.static_range(32):
        code = single_code(single_scaled(singles[i], scale), TIES)
        codes = codes + (single_signed(code, singles[i], KEEPS),)
    return codes, scale, amax


@jit
def scale_byte(amax, RULE: tl.constexpr):
    """`reference.scale_bytes` of F32 bits of block maxima, as int32.

    A bump carries the maximum to the next exponent: from a significand of 1.75 (even), above 1.5 (rceil, whose F32
    quotient max / 6 exceeds a power of two exactly there, and is zero up to three units of 2^-149).
    """
    bits = amax.to(tl.int32)
    if RULE == EVEN:
        scale = tl.maximum(((bits + 0x200000) >> 23) - 2, 0)
    elif RULE == RCEIL:
        scale = tl.maximum(((bits + 0x3FFFFF) >> 23) - 2, (bits > 3).to(tl.int32))
    else:
        scale = tl.maximum((bits >> 23) - 2, 0)
    return scale


@jit
def two_nibbles(low, high):
    """The nibbles at bits 12 and 28 of two words as bytes at bits 8 and 24; what is below them means nothing."""
    return chosen(high, low >> 4, 0xF000F000)


@jit
def words_of_columns(codes, GGML: tl.constexpr):
    """Packed words of the blocks of two columns, from the 32 codes of both at bits 12 and at bits 28."""
    pairs = ()
    for i in tl.static_range(16):
        pairs = pairs + (two_nibbles(codes[element_of(2 * i, GGML)], codes[element_of(2 * i + 1, GGML)]),)
    low = ()
    high = ()
    for j in tl.static_range(4):
        even = bytes_of(pairs[4 * j], pairs[4 * j + 1], 0x7351)
        odd = bytes_of(pairs[4 * j + 2], pairs[4 * j + 3], 0x7351)
        low = low + (bytes_of(even, odd, 0x5410),)
        high = high + (bytes_of(even, odd, 0x7632),)
    return low, high


@jit
def words_of_singles(codes, GGML: tl.constexpr):
    """Packed words of 32 codes at bit 0."""
    words = ()
    for j in tl.static_range(4):
        word = codes[element_of(8 * j, GGML)]
        for i in tl.static_range(1, 8):
            word |= codes[element_of(8 * j + i, GGML)] << (4 * i)
        words = words + (word,)
    return words


@jit
def words_of_row(codes, GGML: tl.constexpr):
    """Packed words of 16 words with the codes of elements 2w at bit 12 and 2w + 1 at bit 28."""
    words = ()
    for j in tl.static_range(4):
        if GGML:
            first = two_nibbles(codes[2 * j], codes[2 * j + 8])
            second = two_nibbles(codes[2 * j + 1], codes[2 * j + 9])
            word = bytes_of(first, second, 0x7531)
        else:
            first = bytes_of(codes[4 * j], codes[4 * j + 1], 0x7351)
            second = bytes_of(codes[4 * j + 2], codes[4 * j + 3], 0x7351)
            even = bytes_of(first, second, 0x5410)
            odd = bytes_of(first, second, 0x7632)
            word = chosen(odd, even >> 4, 0xF0F0F0F0)
        words = words + (word,)
    return words


@jit
def row_of_words(words, GGML: tl.constexpr):
    """Words with the codes of elements 2w at bit 0 and 2w + 1 at bit 16, and others between: of a packed block."""
    v = ()
    for w in tl.static_range(16):
        if GGML:
            both = bytes_of(words[w % 8 // 2], words[w % 8 // 2], 0x3322 if w % 2 else 0x1100)
            pair = both >> (w // 8 * 4)
        else:
            pair = bytes_of(words[w // 4], words[w // 4] >> 4, 0x4400 + 0x1111 * (w % 4))
        v = v + (pair,)
    return v


@jit
def inner_nibbles_swapped(z):
    """Of the four nibbles of each 16 bits the second and the third, exchanged."""
    return (z & 0xF00FF00F) | ((z >> 4) & 0x00F000F0) | ((z << 4) & 0x0F000F00)


@jit
def other_packing(words, TO_GGML: tl.constexpr):
    """Words of pair packing as those of ggml's, or back.

    Bytes of a block's halves are zipped (unzipped), and of each two bytes the inner nibbles change places.
    """
    a, b, c, d = words
    if TO_GGML:
        w = inner_nibbles_swapped(bytes_of(a, c, 0x5140))
        x = inner_nibbles_swapped(bytes_of(a, c, 0x7362))
        y = inner_nibbles_swapped(bytes_of(b, d, 0x5140))
        z = inner_nibbles_swapped(bytes_of(b, d, 0x7362))
    else:
        a, b, c, d = (
            inner_nibbles_swapped(a),
            inner_nibbles_swapped(b),
            inner_nibbles_swapped(c),
            inner_nibbles_swapped(d),
        )
        w, x, y, z = (
            bytes_of(a, b, 0x6420),
            bytes_of(c, d, 0x6420),
            bytes_of(a, b, 0x7531),
            bytes_of(c, d, 0x7531),
        )
    return w, x, y, z
