"""MXFP4 blocks and tiles as lane operations: what the kernels' inner loops do.

BF16 and F32 differ only in the width of the mantissa, so each operation is written once for the `unit` (uint16 or
uint32 lanes) whose bits it gets. Rounding works on those bits, which order magnitudes as integers: how far one lies
above an eighth of the scale is cut to a byte that keeps what matters (`_levels`), and the code is the number of limits
that this byte exceeds. It holds for scale bytes 3 to 252, where no threshold is subnormal and no value overflows;
kernels send all other blocks to `cpu_exact`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils as _cgutils

from ckpttool.codecs.cpu_lanes import (
    VECTOR_BITS,
    Builder,
    Lanes,
    Value,
    constant,
    element,
    lane_op,
    load,
    mantissa_bits,
    offset,
    prefetch,
    splat,
    store,
    transposed,
)

I64 = ir.IntType(64)
cgutils: Any = _cgutils


def _limits(b: Builder, limits: Value, n: int) -> list[Lanes]:
    return [splat(b, b.extract_value(limits, k), 8, n) for k in range(7)]


def _magnitude(x: Lanes) -> Lanes:
    return x & ((1 << (x.bits - 1)) - 1)


def _above_eighth(x: Lanes, base: Lanes) -> Lanes:
    """r: how far |x| lies above an eighth of the scale, in bits; 128 steps (BF16) to each doubling, 0 below."""
    return _magnitude(x).minus_or_zero(base)


def _levels(r: Lanes) -> Lanes:
    """r as bytes that still tell apart all that thresholds and ties do: twice r / 32 (BF16), plus 1 between these."""
    drop = mantissa_bits(r.bits) - 2
    return ((r >> drop) + ((r + ((1 << drop) - 1)) >> drop)).resize(8)


def _codes(levels: Lanes, limits: list[Lanes]) -> Lanes:
    """0..7: how many limits the levels exceed."""
    code = constant(levels.b, 0, 8, levels.n)
    for limit in limits:
        code = code - levels.exceeds(limit).resize(8, signed=True)
    return code


def _signed_codes(x: Lanes, base: Lanes, limits: list[Lanes], dropped: Lanes) -> Lanes:
    """Codes 0..15, as bytes; the code `dropped` becomes 0."""
    sign = (x >> (x.bits - 4)).resize(8) & 8
    code = _codes(_levels(_above_eighth(x, base)), limits) | sign
    return constant(x.b, 0, 8, x.n).where(code.equals(dropped), code)


def _gain(x: Lanes, base: Lanes) -> Lanes:
    """(q1-q0)(2m-q0-q1) of each number: what scale+1 saves in squared error, in units that make it whole.

    Drawn over m, in units of the scale, it is 0 but for a tent down to -1/4 between 1/4 and 3/4, another between 5/4
    and 7/4, and 4(m-7) above 7: elsewhere both grids hold the same nearest value. It has no steps, so ties do not
    matter. On r each piece is a line; a unit is 1/512 for BF16. Sixteen terms fit the lanes.
    """
    r = _above_eighth(x, base)
    finer = mantissa_bits(x.bits) - 7

    def at(level: int) -> Lanes:
        return constant(x.b, level << finer, x.bits, x.n)

    about_half = r.minus_or_zero(at(128)).smaller(at(640).minus_or_zero(r + r))
    about_one_and_half = r.minus_or_zero(at(416)).smaller(at(480).minus_or_zero(r))
    above_seven = r.minus_or_zero(at(736))
    return (above_seven << 6) - about_half - (about_one_and_half << 2)


def _base(b: Builder, bits: int, scale: Value) -> Lanes:
    """Bits of an eighth of the scale."""
    less = b.sub(scale, ir.Constant(I64, 3))
    return splat(b, b.shl(less, ir.Constant(I64, mantissa_bits(bits))), bits, 32)


@lane_op(types.int64)
def block_maximum(b: Builder, bits: int, unit: Value, x: Value) -> Value:
    """The largest magnitude of 32 numbers, as bits."""
    return b.zext(_magnitude(load(b, x, bits, 32)).reduce("umax"), I64)


@lane_op(types.int64)
def block_gain(b: Builder, bits: int, unit: Value, x: Value, scale: Value) -> Value:
    """What scale+1 saves in a block; positive: take it."""
    terms = _gain(load(b, x, bits, 32), _base(b, bits, scale))
    wide = terms.resize(2 * bits, signed=True).reduce("add")
    return b.sext(wide, I64) if bits == 16 else wide


def _encode(b: Builder, bits: int, x: Value, scale: Value, limits: Value, dropped: Value) -> Lanes:
    drop = splat(b, dropped, 8, 32)
    return _signed_codes(load(b, x, bits, 32), _base(b, bits, scale), _limits(b, limits, 32), drop)


@lane_op(types.void)
def encode_pair(b: Builder, bits: int, unit: Value, x: Value, s: Value, t: Value, dropped: Value, out: Value) -> None:
    """16 bytes of 32 numbers at scale byte `s`: neighbours share a byte."""
    both = _encode(b, bits, x, s, t, dropped).recast(16)
    store((both | (both >> 4)).resize(8), out)


@lane_op(types.void)
def encode_ggml(b: Builder, bits: int, unit: Value, x: Value, s: Value, t: Value, dropped: Value, out: Value) -> None:
    """16 bytes of 32 numbers at scale byte `s`: the halves share a byte."""
    codes = _encode(b, bits, x, s, t, dropped)
    low, high = codes.shuffle(codes, range(16)), codes.shuffle(codes, range(16, 32))
    store(low | (high << 4), out)


def _decoded(codes: Lanes, base: Lanes) -> Lanes:
    """Bits of the values of codes 0..15 (bytes): 0, and then 1, 3, 4 ... 8 quarters of a doubling above `base`."""
    magnitude = codes & 7
    step = (magnitude - magnitude.exceeds(1).resize(8, signed=True)) | ((codes & 8) << 4)
    wide = step.resize(base.bits)
    quarters = wide & 15
    value = (quarters << (mantissa_bits(base.bits) - 1)) + base
    value = constant(codes.b, 0, base.bits, codes.n).where(quarters.equals(0), value)
    return value | ((wide & 128) << (base.bits - 8))


def _below_half(scale: Lanes) -> Lanes:
    """The base of `_decoded`: half the scale's bits, less half a doubling."""
    mantissa = mantissa_bits(scale.bits)
    return ((scale - 1) << mantissa) - (1 << (mantissa - 1))


@lane_op(types.void)
def decode_pair(b: Builder, bits: int, unit: Value, blocks: Value, scale: Value, out: Value) -> None:
    """32 numbers of 16 bytes at a scale byte."""
    byte = load(b, blocks, 8, 16).resize(16)
    codes = ((byte & 15) | ((byte >> 4) << 8)).recast(8)
    store(_decoded(codes, _below_half(splat(b, scale, bits, 32))), out)


@lane_op(types.void)
def decode_ggml(b: Builder, bits: int, unit: Value, blocks: Value, scale: Value, out: Value) -> None:
    """32 numbers of 16 bytes at a scale byte."""
    byte = load(b, blocks, 8, 16)
    codes = (byte & 15).shuffle(byte >> 4, range(32))
    store(_decoded(codes, _below_half(splat(b, scale, bits, 32))), out)


@lane_op(types.void)
def ggml_of_pair(b: Builder, bits: int, source: Value, out: Value) -> None:
    """16 bytes from pair to ggml packing."""
    byte = load(b, source, 8, 16)
    low, high = byte.shuffle(byte, range(8)), byte.shuffle(byte, range(8, 16))
    even, odd = (low & 15) | (high << 4), (low >> 4) | (high & 0xF0)
    store(even.shuffle(odd, [i // 2 + 8 * (i % 2) for i in range(16)]), out)


@lane_op(types.void)
def pair_of_ggml(b: Builder, bits: int, source: Value, out: Value) -> None:
    """16 bytes from ggml to pair packing."""
    byte = load(b, source, 8, 16)
    even, odd = byte.shuffle(byte, range(0, 16, 2)), byte.shuffle(byte, range(1, 16, 2))
    low, high = (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
    store(low.shuffle(high, range(16)), out)


@lane_op(types.void)
def copy_block(b: Builder, bits: int, source: Value, out: Value) -> None:
    """16 bytes as they are."""
    store(load(b, source, 8, 16), out)


def _ordinary(scale: Lanes) -> Lanes:
    """Mask of scale bytes 3..252."""
    return (scale - 3).minus_or_zero(249).equals(0)


@lane_op(types.int64)
def tile_scales(b: Builder, bits: int, unit: Value, x: Value, stride: Value, bump: Value, scales: Value) -> Value:
    """Scales of a tile's columns, to `scales` as numbers of the unit; the mask of columns in which all is ordinary."""
    n = VECTOR_BITS // bits
    below = b.mul(stride, ir.Constant(I64, 32))
    highest = cgutils.alloca_once_value(b, constant(b, 0, bits, n).value)
    with cgutils.for_range(b, ir.Constant(I64, 32)) as loop:
        at = offset(b, x, loop.index, stride)
        prefetch(b, b.add(at, below))
        row = _magnitude(load(b, at, bits, n))
        b.store(row.larger(Lanes(b, b.load(highest))).value, highest)
    amax = Lanes(b, b.load(highest))
    scale = ((amax + splat(b, bump, bits, n)) >> mantissa_bits(bits)) - 2
    store(scale, scales)
    return _ordinary(scale).mask_bits()


@lane_op(types.void)
def tile_raise(b: Builder, bits: int, unit: Value, x: Value, stride: Value, scales: Value) -> None:
    """Add 1 to the scales of those columns whose squared error it lowers, below 252."""
    n = VECTOR_BITS // bits
    zero = constant(b, 0, bits, n)
    scale = load(b, scales, bits, n)
    base = (scale - 3) << mantissa_bits(bits)
    total = constant(b, 0, 2 * bits, n)
    terms = cgutils.alloca_once(b, zero.value.type)
    for half in range(2):
        b.store(zero.value, terms)
        with cgutils.for_range(b, ir.Constant(I64, 16 * half + 16), ir.Constant(I64, 16 * half)) as loop:
            row = _gain(load(b, offset(b, x, loop.index, stride), bits, n), base)
            b.store((Lanes(b, b.load(terms)) + row).value, terms)
        total = total + Lanes(b, b.load(terms)).resize(2 * bits, signed=True)
    gains = (total >= 1).resize(bits)
    store(scale + gains.where(constant(b, 251, bits, n) >= scale, 0), scales)


@lane_op(types.void)
def tile_encode(
    b: Builder, bits: int, unit: Value, x: Value, stride: Value, scales: Value, limits: Value, dropped: Value,
    step: Value, distance: Value, blocks: Value, at: Value,
) -> None:  # fmt: skip
    """Codes of a tile's columns: 16 bytes each to `at` past the addresses in `blocks`.

    Byte j joins rows j * step and j * step + distance.
    """
    n = VECTOR_BITS // bits
    base = (load(b, scales, bits, n) - 3) << mantissa_bits(bits)
    over, drop = _limits(b, limits, n), splat(b, dropped, 8, n)
    byte_type = ir.VectorType(ir.IntType(8), n)
    rows = cgutils.alloca_once(b, byte_type, size=16)
    with cgutils.for_range(b, ir.Constant(I64, 16)) as loop:
        first = offset(b, x, b.mul(loop.index, step), stride)
        low = _signed_codes(load(b, first, bits, n), base, over, drop)
        high = _signed_codes(load(b, offset(b, first, distance, stride), bits, n), base, over, drop)
        b.store((low | (high << 4)).value, b.gep(rows, [loop.index]))
    bytes_by_row = [Lanes(b, b.load(b.gep(rows, [ir.Constant(I64, j)]))) for j in range(16)]
    for i, bytes_of in enumerate(transposed(bytes_by_row, 16)):
        for piece in range(n // 16):
            target = element(b, blocks, piece * 16 + i)
            here = b.add(target, at)
            store(bytes_of.shuffle(bytes_of, range(piece * 16, piece * 16 + 16)), here)
            prefetch(b, b.add(here, ir.Constant(I64, 64)), write=True)


@lane_op(types.int64)
def tile_ordinary(b: Builder, bits: int, unit: Value, scales: Value) -> Value:
    """The mask of columns whose scale bytes (an array of them) are 3..252."""
    n = VECTOR_BITS // bits
    return _ordinary(load(b, scales, 8, n).resize(16)).mask_bits()


@lane_op(types.void)
def tile_decode(
    b: Builder, bits: int, unit: Value, blocks: Value, at: Value, scales: Value,
    step: Value, distance: Value, out: Value, stride: Value,
) -> None:  # fmt: skip
    """A tile's columns of 32 numbers from 16 bytes each, `at` past the addresses in `blocks`; see `tile_encode`."""
    n = VECTOR_BITS // bits
    below = b.mul(stride, ir.Constant(I64, 32))
    base = _below_half(load(b, scales, 8, n).resize(bits))
    byte_type = ir.VectorType(ir.IntType(8), n)
    rows = cgutils.alloca_once(b, byte_type, size=16)
    sources = []
    for i in range(16):
        starts = [b.add(element(b, blocks, p * 16 + i), at) for p in range(n // 16)]
        for start in starts:
            prefetch(b, b.add(start, ir.Constant(I64, 128)))
        pieces = [load(b, start, 8, 16) for start in starts]
        sources.append(pieces[0] if len(pieces) == 1 else pieces[0].shuffle(pieces[1], range(32)))
    for j, row in enumerate(transposed(sources, 16)):
        b.store(row.value, b.gep(rows, [ir.Constant(I64, j)]))
    with cgutils.for_range(b, ir.Constant(I64, 16)) as loop:
        byte = Lanes(b, b.load(b.gep(rows, [loop.index])))
        first = offset(b, out, b.mul(loop.index, step), stride)
        second = offset(b, first, distance, stride)
        prefetch(b, b.add(first, below), write=True)
        prefetch(b, b.add(second, below), write=True)
        store(_decoded(byte & 15, base), first)
        store(_decoded(byte >> 4, base), second)
