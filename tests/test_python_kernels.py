"""The CPU kernels run as plain Python give the reference's bytes: what numba compiles is what is written.

The cases are those of test_cpu that are small: each of its functions asserts bit equality by itself. Python's integers
have no width, so a sum that leaves int64 would differ here. Coverage sees the kernels in this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import test_cpu
import test_measure
from codec_cases import Case, quantize_cases
from python_kernels import python_kernels

from ckpttool.codecs import counting, cpu, cpu_jit, measure, plain
from ckpttool.codecs.formats import RECIPES, Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.reference import BadBlock

RULES = [Recipe(f"{s}/{t}", s, t, t is TieRule.even) for s in ScaleRule for t in TieRule]
DTYPES = test_cpu.DTYPES


@pytest.fixture(scope="module", autouse=True)
def python() -> Iterator[None]:
    with python_kernels():
        yield


def test_nothing_is_compiled_but_lane_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are functions of Python, and none goes through the compiler's door."""
    monkeypatch.setattr(cpu_jit, "_compile", None)
    monkeypatch.setattr(cpu_jit, "_compiled", {})
    out = np.zeros(40, np.uint32)
    assert cpu.convert(np.full(40, 0x3F80, np.uint16), "BF16", out, "F32") == 0
    assert (out == 0x3F800000).all()
    assert cpu.backend() == "numba"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RULES, ids=lambda r: r.name)
def test_hard_and_ordinary_blocks(recipe: Recipe, dtype: str) -> None:
    """38 rows of three blocks, a tile of columns and a part of one: every tenth block is hard."""
    rng = np.random.default_rng(40)
    hard = test_cpu.makeable(test_cpu.hard_bits(rng, 24, dtype), dtype, recipe)
    values = (rng.standard_normal((19, 2, 96)) * 0.02).astype(np.float32)
    bits = plain.narrow(values.view(np.uint32), dtype)
    flat = bits.reshape(-1, 32)
    flat[:: len(flat) // len(hard)][: len(hard)] = hard
    for packing in test_cpu.MX:
        want_blocks, want_scales = test_cpu.wanted(bits, dtype, recipe, packing)
        for run, source in ((cpu.quantize_rows, bits), (cpu.quantize_columns, test_cpu.columns_of(bits))):
            blocks, scales = test_cpu.outputs(19, 2, 3, packing)
            run(source, dtype, recipe, packing, blocks, scales)
            assert np.array_equal(scales, want_scales)
            assert np.array_equal(blocks, want_blocks)


@pytest.mark.parametrize("packing", test_cpu.MX)
@pytest.mark.parametrize("case", quantize_cases(), ids=lambda c: c.id)
def test_named_blocks(case: Case, packing: Packing) -> None:
    rows = case.bits.reshape(1, 1, 32)
    for run, source in ((cpu.quantize_rows, rows), (cpu.quantize_columns, test_cpu.columns_of(rows))):
        blocks, scales = test_cpu.outputs(1, 1, 1, packing)
        if case.error:
            with pytest.raises(BadBlock) as caught:
                run(source, case.dtype, RECIPES[case.recipe], packing, blocks, scales)
            assert caught.value.kind == case.error
        else:
            run(source, case.dtype, RECIPES[case.recipe], packing, blocks, scales)
            assert scales.tolist() == [[[case.scale]]]
            assert np.array_equal(test_cpu.PACK[packing](case.codes), blocks[0, 0, 0])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("packing", test_cpu.MX)
def test_every_scale_decodes(packing: Packing, dtype: str) -> None:
    """Scale bytes 0..252 with random codes, 506 rows: most of them tiles, the rest columns of their own."""
    scales = np.repeat(np.arange(253, dtype=np.uint8), 2).reshape(253, 2, 1)
    codes = np.random.default_rng(41).integers(0, 16, (253, 2, 1, 32)).astype(np.uint8)
    blocks = test_cpu.PACK[packing](codes)
    values = test_cpu.reference.dequantize(codes, scales)
    want = plain.narrow(values.view(np.uint32), dtype).reshape(253, 2, 32)
    out, columns = np.zeros_like(want), np.zeros((32, 506), want.dtype)
    cpu.dequantize_rows(blocks, scales, packing, out, dtype)
    cpu.dequantize_columns(blocks, scales, packing, columns, dtype)
    assert np.array_equal(out, want)
    assert np.array_equal(columns, test_cpu.columns_of(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_numbers_convert(dtype: str, out_dtype: str) -> None:
    """45 to a row: 32 and a rest of 13. What becomes infinite is named."""
    rng = np.random.default_rng(42)
    bits = plain.narrow(rng.standard_normal((3, 2, 45)).astype(np.float32).view(np.uint32), dtype)
    out = np.zeros(bits.shape, plain.UINT[out_dtype])
    want, changed = plain.convert(bits, dtype, out_dtype)
    assert cpu.convert(bits, dtype, out, out_dtype) == changed
    assert np.array_equal(out, want)


SMALL_CASES: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    *((test_cpu.test_odd_shapes, shape) for shape in ((1, 1, 32, "F16"), (33, 2, 160, "BF16"), (300, 1, 32, "F32"))),
    *((test_cpu.test_repack_moves_every_bit, (a, b)) for a in test_cpu.MX for b in test_cpu.MX),
    *(
        (test_cpu.test_what_no_plain_number_holds_is_named, (*bad, columns))
        for bad in ((255, 0, "scale"), (253, 6, "overflow"))
        for columns in (False, True)
    ),
    *(
        (test_cpu.test_blocks_without_an_honest_result_are_named, (*bad, columns))
        for bad in (("nan", np.nan, "BF16"), ("inf", -np.inf, "F16"), ("overflow", 3.3e38, "F32"))
        for columns in (False, True)
    ),
    (test_cpu.test_convert_names_the_element_in_strided_rows, ()),
    (test_cpu.test_windows_are_all_that_is_written, ()),
    *((test_cpu.test_q8_0_equals_the_reference, (dtype,)) for dtype in DTYPES),
    (test_cpu.test_q8_0_names_bad_blocks, (cpu,)),
    (test_cpu.test_nothing_of_nothing, ()),
    *((test_measure.test_rows_may_lie_anywhere, (dtype,)) for dtype in ("BF16", "F32")),
    (test_measure.test_what_equals_what, ()),
]


@pytest.mark.parametrize(
    ("case", "arguments"), SMALL_CASES, ids=[f"{c.__name__[5:]}-{i}" for i, (c, _) in enumerate(SMALL_CASES)]
)
def test_the_same_as_compiled(case: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    case(*arguments)


@pytest.mark.parametrize("step", [1, 3])
def test_bytes_are_counted(step: int) -> None:
    """Pieces of few values and of many, runs that end within a piece, bytes that lie apart."""
    rng = np.random.default_rng(43)
    few, many = rng.integers(100, 120, 4200 * step, np.uint8), rng.integers(0, 256, 4201 * step, np.uint8)
    data = np.concatenate([few, np.zeros(2048 * step, np.uint8), many])[::step]
    for first, run in ((len(data), len(data)), (2100, 3000), (5, 9000)):
        by_numpy = counting.count_runs(data, first, run, compiled=False)
        assert np.array_equal(counting.count_runs(data, first, run), by_numpy)
    found = counting.count_bytes(data)
    assert np.array_equal(found, np.bincount(data, minlength=256))
    assert np.array_equal(counting.count_codes(found), np.bincount(data & 15) + np.bincount(data >> 4))


def test_blocks_are_counted() -> None:
    rng = np.random.default_rng(44)
    codes, scales = rng.integers(0, 256, (50, 17), np.uint8), rng.integers(0, 256, 50, np.uint8)
    for blocks in (codes[:, 1:], codes[:0, 1:]):
        found = counting.count_blocks(blocks, scales[: len(blocks)])
        by_numpy = counting.count_blocks(blocks, scales[: len(blocks)], compiled=False)
        assert all(np.array_equal(a, b) for a, b in zip(found, by_numpy, strict=True))


@pytest.mark.parametrize("k", [0, 64, 75])
def test_errors_of_rows_are_those_of_the_definition(k: int) -> None:
    rng = np.random.default_rng(45)
    a, b = (rng.standard_normal((3, k)).astype(np.float32).view(np.uint32) for _ in range(2))
    floats = (x.view(np.float32).astype(np.float64) for x in (a, b))
    assert test_measure.equal(measure.measure(a, b, "F32"), measure.measure_floats(*floats))
