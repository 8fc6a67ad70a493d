"""Plain numbers and Q8_0 as lane operations: widening, narrowing, transposing, int8 blocks."""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from ckpttool.codecs.cpu_lanes import (
    Builder,
    Lanes,
    Value,
    call,
    constant,
    element,
    lane_op,
    load,
    offset,
    repeated,
    store,
    transposed,
)

I64 = ir.IntType(64)
F32_INF = 0x7F800000
WIDTH = 32
"""Numbers that the plain operations take at a time."""


def _floats(x: Lanes) -> Value:
    return x.b.bitcast(x.value, ir.VectorType(ir.FloatType(), x.n))


def _bits(b: Builder, value: Value) -> Lanes:
    return Lanes(b, b.bitcast(value, ir.VectorType(ir.IntType(32), value.type.count)))


def _float_constant(value: float, n: int) -> Value:
    return ir.Constant(ir.VectorType(ir.FloatType(), n), [value] * n)


def f32_of_bf16(x: Lanes) -> Lanes:
    """F32 bits of BF16 bits."""
    return x.resize(32) << 16


def f32_of_f16(x: Lanes) -> Lanes:
    """F32 bits of F16 bits; subnormals through an integer, so that no denormal is ever an operand."""
    wide = x.resize(32)
    magnitude = wide & 0x7FFF
    normal = (magnitude << 13) + (112 << 23)
    normal = (normal + (112 << 23)).where(magnitude >= 0x7C00, normal)
    whole = x.b.uitofp(magnitude.value, ir.VectorType(ir.FloatType(), x.n))
    small = _bits(x.b, x.b.fmul(whole, _float_constant(2**-24, x.n)))
    return normal.where(magnitude >= 0x400, small) | ((wide & 0x8000) << 16)


def _rounded(x: Lanes, drop: int) -> Lanes:
    """Without its low `drop` bits, to nearest, ties to even."""
    return (x + ((1 << (drop - 1)) - 1) + ((x >> drop) & 1)) >> drop


def _nan(magnitude: Lanes, drop: int, infinity: int) -> Lanes:
    payload = (magnitude & 0x7FFFFF) >> drop
    quiet = constant(magnitude.b, 1 << (22 - drop), 32, magnitude.n)
    return quiet.where(payload.equals(0), payload) | infinity


def bf16_of_f32(x: Lanes) -> Lanes:
    """BF16 bits, in 32-bit lanes, of F32 bits."""
    magnitude = x & 0x7FFFFFFF
    result = _nan(magnitude, 16, 0x7F80).where(magnitude >= F32_INF + 1, _rounded(magnitude, 16))
    return result | ((x >> 16) & 0x8000)


def f16_of_f32(x: Lanes) -> Lanes:
    """F16 bits, in 32-bit lanes, of F32 bits. Below 2^-14, adding 0.5 rounds to multiples of 2^-24."""
    b, magnitude = x.b, x & 0x7FFFFFFF
    normal = _rounded(magnitude - (112 << 23), 13)
    tiny = magnitude.where(constant(b, (113 << 23) - 1, 32, x.n) >= magnitude, 0)
    small = _bits(b, b.fadd(_floats(tiny), _float_constant(0.5, x.n))) - 0x3F000000
    result = normal.where(magnitude >= 113 << 23, small)
    result = constant(b, 0x7C00, 32, x.n).where(result >= 0x7C00, result)
    result = constant(b, 0x7C00, 32, x.n).where(magnitude >= 0x47800000, result)
    result = _nan(magnitude, 13, 0x7C00).where(magnitude >= F32_INF + 1, result)
    return result | ((x >> 16) & 0x8000)


@lane_op(types.void)
def widen_bf16(b: Builder, bits: int, source: Value, out: Value) -> None:
    """32 F32 of 32 BF16."""
    store(f32_of_bf16(load(b, source, 16, WIDTH)), out)


@lane_op(types.void)
def widen_f16(b: Builder, bits: int, source: Value, out: Value) -> None:
    """32 F32 of 32 F16."""
    store(f32_of_f16(load(b, source, 16, WIDTH)), out)


@lane_op(types.void)
def widen_f16_half(b: Builder, bits: int, source: Value, out: Value) -> None:
    """16 F32 of 16 F16."""
    store(f32_of_f16(load(b, source, 16, 16)), out)


@lane_op(types.void)
def copy_f32(b: Builder, bits: int, source: Value, out: Value) -> None:
    """32 F32 as they are."""
    store(load(b, source, 32, WIDTH), out)


def _changes(x: Lanes, back: Lanes) -> Value:
    """How many lanes differ; bit 32 is set where a finite number became infinite."""
    b = x.b
    differs = x.differs(back)
    infinite = (back & 0x7FFFFFFF).equals(F32_INF)
    lost = b.icmp_unsigned("!=", (infinite & differs).mask_bits(), ir.Constant(I64, 0))
    changed = call(b, "llvm.ctpop.i64", I64, [differs.mask_bits()])
    return b.or_(changed, b.shl(b.zext(lost, I64), ir.Constant(I64, 32)))


@lane_op(types.int64)
def narrow_bf16(b: Builder, bits: int, source: Value, out: Value) -> Value:
    """32 BF16 of 32 F32; returns `_changes`."""
    x = load(b, source, 32, WIDTH)
    narrow = bf16_of_f32(x)
    store(narrow.resize(16), out)
    return _changes(x, narrow << 16)


@lane_op(types.int64)
def narrow_f16(b: Builder, bits: int, source: Value, out: Value) -> Value:
    """32 F16 of 32 F32; returns `_changes`."""
    x = load(b, source, 32, WIDTH)
    narrow = f16_of_f32(x).resize(16)
    store(narrow, out)
    return _changes(x, f32_of_f16(narrow))


@lane_op(types.void)
def rows_of_tile(b: Builder, bits: int, unit: Value, x: Value, stride: Value, rows: Value, at: Value) -> None:
    """Columns of a square of 128-bit lines, 8 x 8 uint16 or 4 x 4 uint32, to `at` past the addresses in `rows`."""
    n = 128 // bits
    lines = [load(b, offset(b, x, ir.Constant(I64, i), stride), bits, n) for i in range(n)]
    for i, row in enumerate(transposed(lines, n)):
        store(row, b.add(element(b, rows, i), at))


@lane_op(types.void)
def tile_of_rows(b: Builder, bits: int, unit: Value, rows: Value, at: Value, out: Value, stride: Value) -> None:
    """The same square from `at` past the addresses in `rows` to columns."""
    n = 128 // bits
    lines = [load(b, b.add(element(b, rows, i), at), bits, n) for i in range(n)]
    for i, line in enumerate(transposed(lines, n)):
        store(line, offset(b, out, ir.Constant(I64, i), stride))


@lane_op(types.int64)
def maximum_f32(b: Builder, bits: int, source: Value) -> Value:
    """The largest magnitude of 32 F32, as bits."""
    return b.zext((load(b, source, 32, WIDTH) & 0x7FFFFFFF).reduce("umax"), I64)


def _scalar_float(b: Builder, bits64: Value) -> Value:
    return b.bitcast(b.trunc(bits64, ir.IntType(32)), ir.FloatType())


@lane_op(types.int64)
def q8_0_encode(b: Builder, bits: int, source: Value, amax: Value, out: Value) -> Value:
    """34 bytes of 32 F32 whose largest magnitude has bits `amax`; returns the F16 bits of the scale.

    ggml's quantize_row_q8_0_ref: d = amax / 127, elements x * (1 / d) rounded half away from zero.
    """
    float_ = ir.FloatType()
    d = b.fdiv(_scalar_float(b, amax), ir.Constant(float_, 127.0))
    inverse = b.fdiv(ir.Constant(float_, 1.0), d)
    finite = b.fcmp_ordered("<", inverse, ir.Constant(float_, float("inf")))
    inverse = b.select(finite, inverse, ir.Constant(float_, 0.0))
    x = load(b, source, 32, WIDTH)
    scaled = b.fmul(_floats(x & 0x7FFFFFFF), repeated(b, inverse, WIDTH))
    integers = ir.VectorType(ir.IntType(32), WIDTH)
    whole = b.fptosi(scaled, integers)
    rest = b.fsub(scaled, b.sitofp(whole, scaled.type))
    up = b.zext(b.fcmp_ordered(">=", rest, _float_constant(0.5, WIDTH)), integers)
    rounded = Lanes(b, b.add(whole, up))
    negative = constant(b, 0, 32, WIDTH) - rounded
    store(rounded.where(x >= 0, negative).resize(8), b.add(out, ir.Constant(I64, 2)))
    one = Lanes(b, b.bitcast(d, ir.VectorType(ir.IntType(32), 1)))
    stored = f16_of_f32(one).resize(16)
    store(stored, out)
    return b.zext(stored.lane(0), I64)


@lane_op(types.void)
def q8_0_decode(b: Builder, bits: int, source: Value, out: Value) -> None:
    """32 F32 of 34 bytes: exact."""
    scale = b.bitcast(f32_of_f16(load(b, source, 16, 1)).lane(0), ir.FloatType())
    elements = load(b, b.add(source, ir.Constant(I64, 2)), 8, WIDTH).resize(32, signed=True)
    values = b.sitofp(elements.value, ir.VectorType(ir.FloatType(), WIDTH))
    store(_bits(b, b.fmul(values, repeated(b, scale, WIDTH))), out)
