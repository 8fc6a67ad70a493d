"""The compiled kernel behind `measure`: eight lanes of float64, in the order that `measure` defines."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numpy.typing import NDArray

from ckpttool.codecs.cpu_jit import inlined, kernel, place
from ckpttool.codecs.cpu_lanes import BITS8, BITS64, Builder, Lanes, Value, lane_op, load, peek, poke, width
from ckpttool.codecs.measure import LANES, RowErrors

Bits = NDArray[Any]
Ints = tuple[int, ...]

WIDTH: Final = 32
"""Numbers that are taken at a time: four turns of the lanes."""

FIELDS: Final = 6
"""noise, signal, largest (float64), differing, nonfinite, zero signs (int64): vectors of eight, 64 bytes each."""

_I64: Final = ir.IntType(64)
_DOUBLES: Final = ir.VectorType(ir.DoubleType(), LANES)
_F32_INF: Final = 0x7F800000


def _field(b: Builder, state: Value, i: int) -> Value:
    """The address of one vector of the state."""
    return b.add(state, ir.Constant(_I64, 64 * i))


def _load_doubles(b: Builder, address: Value) -> Value:
    return b.load(b.inttoptr(address, _DOUBLES.as_pointer()), align=8)


def _store_doubles(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, _DOUBLES.as_pointer()), align=8)


def _doubles(x: Lanes) -> Value:
    """F32 bits as float64, exactly."""
    return x.b.fpext(x.b.bitcast(x.value, ir.VectorType(ir.FloatType(), x.n)), _DOUBLES)


def _masked(mask: Lanes, other: Lanes) -> Lanes:
    return Lanes(mask.b, mask.b.and_(mask.value, other.value))


def _not(mask: Lanes) -> Lanes:
    return Lanes(mask.b, mask.b.not_(mask.value))


@lane_op(types.void)
def accumulate(b: Builder, bits: int, unit: Value, first: Value, second: Value, state: Value) -> None:
    """Add 32 pairs of numbers, F32 or BF16 by the unit, to the lanes of `state`."""
    noise, signal, largest = (_load_doubles(b, _field(b, state, i)) for i in range(3))
    counts = [load(b, _field(b, state, i), 64, LANES) for i in range(3, FIELDS)]
    nothing = ir.Constant(_DOUBLES, [0.0] * LANES)
    for turn in range(WIDTH // LANES):
        step = ir.Constant(_I64, turn * LANES * bits // 8)
        x, y = (_f32_bits(load(b, b.add(at, step), bits, LANES), bits) for at in (first, second))
        p, q = x & 0x7FFFFFFF, y & 0x7FFFFFFF
        p_top, q_top = p.exceeds(_F32_INF - 1), q.exceeds(_F32_INF - 1)
        infinite = Lanes(b, b.or_(p_top.value, q_top.value))
        nans = _masked(p.exceeds(_F32_INF), q.exceeds(_F32_INF))
        other_bits = x.differs(y)
        zeros = _masked((p | q).equals(0), other_bits)
        differ = _masked(other_bits, _masked(_not(zeros), _not(nans)))
        a = b.select(infinite.value, nothing, _doubles(x))
        d = b.select(infinite.value, nothing, b.fsub(_doubles(y), _doubles(x)))
        noise, signal = b.fadd(noise, b.fmul(d, d)), b.fadd(signal, b.fmul(a, a))
        size = _absolute(b, d)
        largest = b.select(b.fcmp_ordered(">", size, largest), size, largest)
        for i, mask in enumerate((differ, _masked(differ, infinite), zeros)):
            counts[i] = counts[i] - Lanes(b, b.sext(mask.value, counts[i].value.type))
    for i, value in enumerate((noise, signal, largest)):
        _store_doubles(b, value, _field(b, state, i))
    for i, count in enumerate(counts):
        b.store(count.value, b.inttoptr(_field(b, state, 3 + i), count.value.type.as_pointer()), align=8)


def _f32_bits(x: Lanes, bits: int) -> Lanes:
    return x if bits == 32 else x.resize(32) << 16


def _absolute(b: Builder, value: Value) -> Value:
    to = ir.VectorType(_I64, LANES)
    cleared = b.and_(b.bitcast(value, to), ir.Constant(to, [(1 << 63) - 1] * LANES))
    return b.bitcast(cleared, _DOUBLES)


@lane_op(types.void)
def settle(b: Builder, bits: int, state: Value, out: Value) -> None:
    """One row's six numbers from the lanes: added in pairs, or the largest."""
    to = ir.DoubleType().as_pointer()
    for i in range(FIELDS):
        floats = i < 3
        kind = _DOUBLES if floats else ir.VectorType(_I64, LANES)
        value = b.load(b.inttoptr(_field(b, state, i), kind.as_pointer()), align=8)
        lanes = [b.extract_element(value, ir.Constant(ir.IntType(32), n)) for n in range(LANES)]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [_joined(b, lanes[n], lanes[n + half], i) for n in range(half)]
        pointer = to if floats else _I64.as_pointer()
        b.store(lanes[0], b.inttoptr(b.add(out, ir.Constant(_I64, 8 * i)), pointer), align=8)


def _joined(b: Builder, one: Value, other: Value, field: int) -> Value:
    if field == 2:
        return b.select(b.fcmp_ordered(">", one, other), one, other)
    return b.fadd(one, other) if field < 2 else b.add(one, other)


@inlined
def _copy_bytes(source: int, out: int, count: int) -> None:
    for i in range(count):
        poke(BITS8, out + i, peek(BITS8, source + i))


@kernel
def _measure(unit: Any, a: Ints, b: Ints, rows: int, k: int, out: int, state: int, ends: int) -> None:
    """Rows of K numbers from two addresses with strides; `ends` is room for the last numbers of both, zeroed."""
    size = width(unit) // 8
    whole = k // WIDTH * WIDTH
    rest = (k - whole) * size
    for r in range(rows):
        first, second = a[0] + r * a[1], b[0] + r * b[1]
        for i in range(FIELDS * LANES):
            poke(BITS64, state + 8 * i, 0)
        for start in range(0, whole, WIDTH):
            accumulate(unit, first + start * size, second + start * size, state)
        if rest:
            _copy_bytes(first + whole * size, ends, rest)
            _copy_bytes(second + whole * size, ends + WIDTH * size, rest)
            accumulate(unit, ends, ends + WIDTH * size, state)
        settle(state, out + r * FIELDS * 8)


def measure(a: Bits, b: Bits) -> RowErrors:
    """See `measure.measure`; both are [R, K] of uint16 (BF16) or uint32 (F32)."""
    rows, k = a.shape
    out = np.zeros((rows, FIELDS), np.int64)
    state = np.empty(FIELDS * LANES, np.int64)
    ends = np.zeros(2 * WIDTH, a.dtype)
    if a.size:
        _measure(
            a.dtype.type(0), place(a, 1), place(b, 1), rows, k, out.ctypes.data, state.ctypes.data, ends.ctypes.data
        )
    floats = out.view(np.float64)
    return RowErrors(floats[:, 0], floats[:, 1], floats[:, 2], out[:, 3], out[:, 4], out[:, 5])
