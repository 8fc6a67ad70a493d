"""SIMD for the CPU kernels: whole blocks and tiles as vectors of integers, written once as LLVM vector code.

`Lanes` is a vector value under construction; its operators read like numpy's and emit instructions that LLVM maps to
whatever the machine has (AVX-512, AVX2, NEON). A loop left to the auto-vectoriser would do so only sometimes. The
operations that kernels call are made of them by `lane_op`; they take addresses as int64 and check nothing: `cpu` has
checked the arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

Builder = Any
Value = Any

VECTOR_BITS: Final = 512
"""The width of a tile of columns; LLVM splits it where registers are shorter."""

BITS8: Final = np.uint8(0)
BITS16: Final = np.uint16(0)
BITS32: Final = np.uint32(0)
BITS64: Final = np.int64(0)
"""Units: the type alone says how wide a number is."""


def mantissa_bits(bits: int) -> int:
    """Mantissa bits of the plain number that is `bits` wide and has an exponent of 8: BF16 or F32."""
    return bits - 9


class Lanes:
    """A vector of integers. `>>` is logical; comparisons are signed and give a mask, a vector of bits."""

    __slots__ = ("b", "bits", "n", "value")

    def __init__(self, b: Builder, value: Value) -> None:
        self.b = b
        self.value = value
        self.n: int = value.type.count
        self.bits: int = value.type.element.width

    def _of(self, other: Lanes | int) -> Value:
        return other.value if isinstance(other, Lanes) else constant(self.b, other, self.bits, self.n).value

    def _make(self, value: Value) -> Lanes:
        return Lanes(self.b, value)

    def __add__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.add(self.value, self._of(other)))

    def __sub__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.sub(self.value, self._of(other)))

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.and_(self.value, self._of(other)))

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.or_(self.value, self._of(other)))

    def __lshift__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.shl(self.value, self._of(other)))

    def __rshift__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.lshr(self.value, self._of(other)))

    def __ge__(self, other: Lanes | int) -> Lanes:
        return self._make(self.b.icmp_signed(">=", self.value, self._of(other)))

    def exceeds(self, other: Lanes | int) -> Lanes:
        """Mask of signed >; cheaper than >= where registers hold no masks."""
        return self._make(self.b.icmp_signed(">", self.value, self._of(other)))

    def equals(self, other: Lanes | int) -> Lanes:
        """Mask of equality."""
        return self._make(self.b.icmp_signed("==", self.value, self._of(other)))

    def differs(self, other: Lanes | int) -> Lanes:
        """Mask of inequality."""
        return self._make(self.b.icmp_signed("!=", self.value, self._of(other)))

    def where(self, mask: Lanes, other: Lanes | int) -> Lanes:
        """These lanes where `mask` is set, `other` elsewhere."""
        return self._make(self.b.select(mask.value, self.value, self._of(other)))

    def _call(self, name: str, *others: Lanes | int) -> Lanes:
        operands = [self.value, *map(self._of, others)]
        return self._make(call(self.b, f"llvm.{name}.v{self.n}i{self.bits}", self.value.type, operands))

    def minus_or_zero(self, other: Lanes | int) -> Lanes:
        """Unsigned difference, 0 where it would be negative."""
        return self._call("usub.sat", other)

    def larger(self, other: Lanes | int) -> Lanes:
        """Unsigned maximum, lane by lane."""
        return self._call("umax", other)

    def smaller(self, other: Lanes | int) -> Lanes:
        """Unsigned minimum, lane by lane."""
        return self._call("umin", other)

    def reduce(self, operation: str) -> Value:
        """One scalar of all lanes, by `umax` or `add`."""
        name = f"llvm.vector.reduce.{operation}.v{self.n}i{self.bits}"
        return call(self.b, name, ir.IntType(self.bits), [self.value])

    def resize(self, bits: int, *, signed: bool = False) -> Lanes:
        """Lanes of another width: cut, or extended by zeros or the sign."""
        to = ir.VectorType(ir.IntType(bits), self.n)
        if bits < self.bits:
            return self._make(self.b.trunc(self.value, to))
        return self._make(self.b.sext(self.value, to) if signed else self.b.zext(self.value, to))

    def recast(self, bits: int) -> Lanes:
        """The same bits, cut into lanes of another width (little-endian: the low half is the first lane)."""
        to = ir.VectorType(ir.IntType(bits), self.n * self.bits // bits)
        return self._make(self.b.bitcast(self.value, to))

    def shuffle(self, other: Lanes, order: Sequence[int]) -> Lanes:
        """Lanes by index; `other`'s count on from `n`."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
        return self._make(self.b.shuffle_vector(self.value, other.value, mask))

    def lane(self, i: int) -> Value:
        """One lane as a scalar."""
        return self.b.extract_element(self.value, ir.Constant(ir.IntType(32), i))

    def mask_bits(self) -> Value:
        """A mask as an int64, lane i in bit i."""
        return self.b.zext(self.b.bitcast(self.value, ir.IntType(self.n)), ir.IntType(64))


def call(b: Builder, name: str, result: Any, operands: list[Value]) -> Value:
    """Call an LLVM intrinsic by its full name."""
    module = b.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [o.type for o in operands]), name)
    return b.call(function, operands)


def constant(b: Builder, value: int, bits: int, n: int) -> Lanes:
    """`n` lanes of a number known now."""
    return Lanes(b, ir.Constant(ir.VectorType(ir.IntType(bits), n), [value & ((1 << bits) - 1)] * n))


def repeated(b: Builder, scalar: Value, n: int) -> Value:
    """A vector of `n` times a scalar of any type."""
    i32 = ir.IntType(32)
    nothing = ir.Constant(ir.VectorType(scalar.type, n), ir.Undefined)
    first = b.insert_element(nothing, scalar, ir.Constant(i32, 0))
    return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(i32, n), [0] * n))


def splat(b: Builder, scalar: Value, bits: int, n: int) -> Lanes:
    """`n` lanes of an int64 scalar, cut to `bits`."""
    one = b.trunc(scalar, ir.IntType(bits)) if bits < 64 else scalar
    return Lanes(b, repeated(b, one, n))


def load(b: Builder, address: Value, bits: int, n: int) -> Lanes:
    """`n` lanes from an address of any alignment."""
    pointer = b.inttoptr(address, ir.VectorType(ir.IntType(bits), n).as_pointer())
    return Lanes(b, b.load(pointer, align=1))


def store(lanes: Lanes, address: Value) -> None:
    """All lanes to an address of any alignment."""
    lanes.b.store(lanes.value, lanes.b.inttoptr(address, lanes.value.type.as_pointer()), align=1)


def transposed(rows: list[Lanes], width: int) -> list[Lanes]:
    """Transpose `width` vectors in pieces of `width` lanes: lane w*width+j of result i is lane w*width+i of row j.

    log2(width) rounds of interleaving row i with row i + width/2; each is a single instruction where a piece fills a
    128-bit register.
    """
    n, half = rows[0].n, width // 2
    low = [p + i // 2 + (i % 2) * n for p in range(0, n, width) for i in range(width)]
    high = [i + half for i in low]
    for _ in range(width.bit_length() - 1):
        zipped = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [a.shuffle(c, order) for a, c in zipped for order in (low, high)]
    return rows


def lane_op(result: Any) -> Callable[[Callable[..., Any]], Callable[..., int]]:
    """Make a function that kernels can call of one that emits code.

    The emitter gets the builder, the width in bits of the first argument's type (the `unit`, where it has one), and the
    arguments' values. It returns a value of type `result`, or nothing for `types.void`.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., int]:
        def typed(typingctx: Any, *args: Any) -> Any:
            def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
                value = emit(builder, getattr(args[0], "bitwidth", 0), *values)
                return context.get_dummy_value() if result is types.void else value

            return result(*args), generate

        typed.__name__ = emit.__name__
        names = ["typingctx", *list(inspect.signature(emit).parameters)[2:]]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # numba wants no *args
        made: Callable[..., int] = intrinsic(typed)
        return made

    return decorate


def offset(b: Builder, address: Value, index: Value, stride: Value | int) -> Value:
    """`address` + `index` * `stride`."""
    step = ir.Constant(ir.IntType(64), stride) if isinstance(stride, int) else stride
    return b.add(address, b.mul(index, step))


def prefetch(b: Builder, address: Value, *, write: bool = False) -> None:
    """Ask for the cache line of an address, which need not exist."""
    i32 = ir.IntType(32)
    pointer = b.inttoptr(address, ir.IntType(8).as_pointer())
    name = "llvm.prefetch.p0" if ir.IntType(8).as_pointer().is_opaque else "llvm.prefetch.p0i8"
    call(b, name, ir.VoidType(), [pointer, *(ir.Constant(i32, v) for v in (int(write), 3, 1))])


def element(b: Builder, array: Value, i: int) -> Value:
    """Element `i` of an array of int64 at an address."""
    i64 = ir.IntType(64)
    return b.load(b.inttoptr(b.add(array, ir.Constant(i64, 8 * i)), i64.as_pointer()))


@lane_op(types.int64)
def peek(b: Builder, bits: int, unit: Value, address: Value) -> Value:
    """One number of the unit's width, zero-extended."""
    scalar = b.load(b.inttoptr(address, ir.IntType(bits).as_pointer()), align=1)
    return b.zext(scalar, ir.IntType(64)) if bits < 64 else scalar


@lane_op(types.void)
def poke(b: Builder, bits: int, unit: Value, address: Value, value: Value) -> None:
    """Write the low bits of an int64 as one number of the unit's width."""
    low = b.trunc(value, ir.IntType(bits)) if bits < 64 else value
    b.store(low, b.inttoptr(address, ir.IntType(bits).as_pointer()), align=1)


@lane_op(types.int64)
def width(b: Builder, bits: int, unit: Value) -> Value:
    """The unit's width in bits, known when the kernel is compiled."""
    return ir.Constant(ir.IntType(64), bits)


@lane_op(types.int64)
def lowest_bit(b: Builder, bits: int, mask: Value) -> Value:
    """The index of the lowest set bit of an int64 that is not 0."""
    i64 = ir.IntType(64)
    return call(b, "llvm.cttz.i64", i64, [mask, ir.Constant(ir.IntType(1), 1)])
