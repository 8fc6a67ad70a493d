"""Errors of rows: the kernel against the numpy definition bit for bit, both against float64, sums against fractions."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from math import isqrt, log10, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ckpttool.codecs import cpu, measure, plain
from ckpttool.codecs.measure import RowErrors, measure_floats
from ckpttool.comparison.sums import Tally, exact_sum

UINT = {"BF16": np.uint16, "F32": np.uint32}
SPECIALS = {
    "BF16": (0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 1, 0x8001, 0x7F7F),
    "F32": (0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 1, (1 << 31) + 1, 0x7F7FFFFF),
}
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 75))


def wide(bits: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return plain.widen(bits, dtype).view(np.float32).astype(np.float64)


def equal(a: RowErrors, b: RowErrors) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(RowErrors)]
    return all(np.array_equal(x.view(np.int64), np.ascontiguousarray(y).view(np.int64)) for x, y in pairs)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], str]:
    """Two arrays that mostly agree, of any bits."""
    dtype = draw(st.sampled_from(("BF16", "F32")))
    shape = draw(SHAPES)
    words = st.one_of(st.sampled_from(SPECIALS[dtype]), st.integers(0, np.iinfo(UINT[dtype]).max))
    a = draw(hnp.arrays(UINT[dtype], shape, elements=words))
    b = draw(hnp.arrays(UINT[dtype], shape, elements=words))
    return a, np.where(draw(hnp.arrays(np.bool_, shape)), a, b), dtype


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_the_kernel_is_the_definition_bit_for_bit(case: tuple[NDArray[Any], NDArray[Any], str]) -> None:
    a, b, dtype = case
    assert cpu.backend() == "numba"
    assert equal(measure.measure(a, b, dtype), measure_floats(wide(a, dtype), wide(b, dtype)))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_rows_may_lie_anywhere(dtype: str) -> None:
    rng = np.random.default_rng(1)
    room = rng.integers(0, 1 << 14, (9, 3, 101), UINT[dtype])
    other = rng.integers(0, 1 << 14, (9, 101), UINT[dtype])
    a, b = room[:, 1], other[::-1]
    found = measure.measure(a, b, dtype)
    assert equal(found, measure.measure(a.copy(), b.copy(), dtype))


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.randoms(use_true_random=False),
)
def test_the_figures_are_those_of_float64(a: NDArray[np.float32], random: Any) -> None:
    b = (a + np.float32(random.uniform(-1, 1))).astype(np.float32)
    found = measure.measure(a.view(np.uint32), b.view(np.uint32), "F32")
    d, s = b.astype(np.float64) - a.astype(np.float64), a.astype(np.float64)
    np.testing.assert_allclose(found.noise, (d * d).sum(-1), rtol=1e-14)
    np.testing.assert_allclose(found.signal, (s * s).sum(-1), rtol=1e-14)
    assert np.array_equal(found.largest, np.abs(d).max(-1))
    assert np.array_equal(found.differing, (a != b).sum(-1))
    tally = Tally.of(found, 0, len(a))
    if (d != 0).any() and s.any():
        assert tally.relative == pytest.approx(sqrt((d * d).sum() / (s * s).sum()), rel=1e-12)
        assert tally.sqnr == pytest.approx(10 * log10((s * s).sum() / (d * d).sum()), rel=1e-12, abs=1e-10)


def test_what_equals_what() -> None:
    nan, inf = np.nan, np.inf
    a = np.array([[0.0, -0.0, nan, inf, inf, 1.0, nan, 2.0]], np.float32)
    b = np.array([[-0.0, -0.0, nan, inf, -inf, nan, 3.0, 2.5]], np.float32)
    b.view(np.uint32)[0, 2] = 0x7F800001  # another NaN
    found = measure.measure(a.view(np.uint32), b.view(np.uint32), "F32")
    assert (found.differing[0], found.nonfinite[0], found.zero_signs[0]) == (4, 3, 1)
    assert (found.largest[0], found.noise[0], found.signal[0]) == (0.5, 0.25, 4.0)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_the_same_without_numba(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(2).integers(0, np.iinfo(UINT[dtype]).max, (2, 3, 101), UINT[dtype])
    found = measure.measure(a, b, dtype)
    monkeypatch.setattr(cpu, "backend", lambda: "numpy")
    assert equal(measure.measure(a, b, dtype), found)


def test_float64_is_measured_as_it_is() -> None:
    found = measure.measure(np.array([[1.0, 1e300]]), np.array([[1.0, 2e300]]), "F64")
    assert (found.differing[0], found.largest[0]) == (1, 1e300)


def test_rows_are_joined_in_order() -> None:
    a = np.arange(12, dtype=np.float64).reshape(4, 3)
    pieces = [measure.measure(a[i : i + 2], a[i : i + 2] * 2, "F64") for i in (0, 2)]
    assert equal(measure.joined(pieces), measure.measure(a, a * 2, "F64"))


def test_arrays_that_do_not_fit_are_refused() -> None:
    x = np.zeros((2, 4), np.uint32)
    for a, b, dtype in ((x, x[:1], "F32"), (x, x, "BF16"), (x[:, ::2], x[:, ::2], "F32"), (x[0], x[0], "F32")):
        with pytest.raises(ValueError, match=r"shapes|strides"):
            measure.measure(a, b, dtype)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 50), elements=st.floats(0, 1e300, allow_subnormal=True)))
def test_sums_are_exact(values: NDArray[np.float64]) -> None:
    assert Fraction(exact_sum(values), 1 << 1200) == sum(map(Fraction, values.tolist()), Fraction())


def test_sums_of_many_do_not_overflow() -> None:
    values = np.full(1 << 21, np.nextafter(2.0, 0))
    assert Fraction(exact_sum(values), 1 << 1200) == Fraction(float(values[0])) * len(values)


def test_figures_where_a_side_is_zero() -> None:
    one = exact_sum(np.ones(1))
    assert (Tally(noise=one).relative, Tally(noise=one).sqnr) == (None, None)
    assert (Tally(signal=one).relative, Tally(signal=one).sqnr) == (0.0, None)
    assert (Tally(one, one).relative, Tally(one, one).sqnr) == (1.0, 0.0)


@given(st.integers(1, 1 << 900), st.integers(1, 1 << 900))
def test_relative_errors_are_right_to_the_last_bits(noise: int, signal: int) -> None:
    shift = 1 << 600
    exact = Fraction(isqrt((noise << 1200) // signal), shift)
    if exact < Fraction(1, 1 << 200):
        return
    relative = Tally(noise, signal).relative
    assert relative is not None
    assert abs(Fraction(relative) / exact - 1) < Fraction(1, 1 << 50)
