"""The compiled kernels against the reference, bit for bit: every recipe, type, packing, layout and odd shape."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from codec_cases import hard_bits, hard_values
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool
from ckpttool.codecs import arrays, cpu, cpu_numpy, plain, reference
from ckpttool.codecs.formats import RECIPES, Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.packing import PACK
from ckpttool.codecs.plain import BadValue
from ckpttool.codecs.reference import BadBlock

ROOT = Path(__file__).parents[1]
EVERY_RULE = [Recipe(f"{s}/{t}/{k}", s, t, k) for s in ScaleRule for t in TieRule for k in (True, False)]
MX = [Packing.pair, Packing.ggml]
DTYPES = ["BF16", "F16", "F32"]


def test_numba_is_what_runs_here() -> None:
    assert cpu.backend() == "numba"


def makeable(bits: np.ndarray, dtype: str, recipe: Recipe) -> np.ndarray:
    """Blocks [n, 32] that the recipe can make, so that one bad block does not end a comparison."""
    keep = []
    for i in range(len(bits)):
        try:
            reference.quantize(plain.widen(bits[i : i + 1], dtype).view(np.float32), recipe)
            keep.append(i)
        except BadBlock:
            continue
    return bits[keep]


def weights(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Gaussian weights, with blocks of hard values sprinkled in."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 0.02).astype(np.float32)
    bits = plain.narrow(values.view(np.uint32), dtype)
    hard = makeable(hard_bits(rng, 60, dtype), dtype, RECIPES["transformers"])
    flat = bits.reshape(-1, 32)
    flat[rng.choice(len(flat), len(hard), replace=False)] = hard
    return flat.reshape(shape)


def outputs(rows: int, parts: int, groups: int, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales as the packing stores them: two arrays, or views of one of 17-byte structs."""
    if packing is Packing.pair:
        return np.zeros((rows, parts, groups, 16), np.uint8), np.zeros((rows, parts, groups), np.uint8)
    whole = np.zeros((rows, parts, groups, 17), np.uint8)
    return whole[..., 1:], whole[..., 0]


def wanted(bits: np.ndarray, dtype: str, recipe: Recipe, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = reference.quantize(plain.widen(bits, dtype).view(np.float32), recipe)
    return PACK[packing](codes), scales


def columns_of(rows: np.ndarray) -> np.ndarray:
    """[R, p, K] as columns [K, N]."""
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[2]).T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", EVERY_RULE, ids=lambda r: r.name)
def test_quantize_equals_the_reference(dtype: str, recipe: Recipe) -> None:
    rng = np.random.default_rng(20)
    hard = makeable(hard_bits(rng, 400, dtype), dtype, recipe)
    n = len(hard) // 16 * 16
    bits = hard[:n].reshape(n // 8, 2, 128)
    for packing in MX:
        blocks, scales = outputs(*bits.shape[:2], 4, packing)
        cpu.quantize_rows(bits, dtype, recipe, packing, blocks, scales)
        want_blocks, want_scales = wanted(bits, dtype, recipe, packing)
        assert np.array_equal(scales, want_scales)
        assert np.array_equal(blocks, want_blocks)
        blocks[...], scales[...] = 0, 0
        cpu.quantize_columns(columns_of(bits), dtype, recipe, packing, blocks, scales)
        assert np.array_equal(scales, want_scales)
        assert np.array_equal(blocks, want_blocks)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_bf16_as_the_maximum(recipe: str) -> None:
    """All finite codes alone in a block, rows and columns; the reference is proven on them in test_reference."""
    rule = RECIPES[recipe]
    bits = np.zeros((65536, 32), np.uint16)
    bits[np.arange(65536), np.arange(65536) % 32] = np.arange(65536)
    magnitude = np.arange(65536) & 0x7FFF
    limit = {"even": 0x7F60, "transformers": 0x7F60, "rceil": 0x7F60, "modelopt": 0x7F61}.get(recipe, 0x7F80)
    bits = bits[magnitude < limit][:, None, :]
    for run, source in ((cpu.quantize_rows, bits), (cpu.quantize_columns, columns_of(bits))):
        blocks, scales = outputs(len(bits), 1, 1, Packing.pair)
        run(source, "BF16", rule, Packing.pair, blocks, scales)
        want_blocks, want_scales = wanted(bits, "BF16", rule, Packing.pair)
        assert np.array_equal(scales, want_scales)
        assert np.array_equal(blocks, want_blocks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ["best", "transformers", "llama.cpp"])
def test_every_distance_between_element_and_scale(dtype: str, recipe: str) -> None:
    """Every mantissa (the top 10 bits, with and without something below) in 6 binades under a fixed maximum."""
    top = {"BF16": 7, "F16": 10, "F32": 10}[dtype]
    exponents = 2.0 ** np.arange(-4, 3)
    fractions = 1 + np.arange(1 << top) / (1 << top)
    values = (exponents[:, None] * fractions).ravel()
    values = values[values <= 7.25]
    if dtype == "F32":
        values = np.concatenate(
            [values, np.nextafter(values.astype(np.float32), np.float32(9)), values * (1 - 2.0**-24)]
        )
    values = np.concatenate([values, -values])
    values = np.concatenate([values, np.zeros(-len(values) % 31)])
    blocks_of = np.concatenate([np.full((len(values) // 31, 1), 7.25), values.reshape(-1, 31)], 1).astype(np.float32)
    bits = plain.narrow(blocks_of.view(np.uint32), dtype)[:, None, :]
    blocks, scales = outputs(len(bits), 1, 1, Packing.ggml)
    cpu.quantize_rows(bits, dtype, RECIPES[recipe], Packing.ggml, blocks, scales)
    want_blocks, want_scales = wanted(bits, dtype, RECIPES[recipe], Packing.ggml)
    assert np.array_equal(scales, want_scales)
    assert np.array_equal(blocks, want_blocks)


@pytest.mark.parametrize("out_dtype", ["BF16", "F32"])
@pytest.mark.parametrize("packing", MX)
def test_every_scale_and_code_decodes(packing: Packing, out_dtype: str) -> None:
    codes = np.arange(16, dtype=np.uint8)
    grid = np.stack(np.meshgrid(codes, codes, indexing="ij"), -1).reshape(8, 2, 32).reshape(16, 32)
    scales = np.repeat(np.arange(253, dtype=np.uint8), 16).reshape(-1, 1, 1)
    all_codes = np.tile(grid, (253, 1))[:, None, None, :]
    values = reference.dequantize(all_codes, scales)
    want = plain.narrow(values.view(np.uint32), out_dtype)
    blocks = PACK[packing](all_codes)
    out = np.zeros(want.shape, plain.UINT[out_dtype])
    cpu.dequantize_rows(blocks, scales, packing, out, out_dtype)
    assert np.array_equal(out, want)
    columns = np.zeros((32, len(want)), out.dtype)
    cpu.dequantize_columns(blocks, scales, packing, columns, out_dtype)
    assert np.array_equal(columns, columns_of(want))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("scale", "code", "kind"), [(255, 0, "scale"), (253, 6, "overflow"), (254, 12, "overflow")])
def test_what_no_plain_number_holds_is_named(scale: int, code: int, kind: str, columns: bool) -> None:
    scales = np.full((40, 2, 3), 120, np.uint8)
    blocks = np.zeros((40, 2, 3, 16), np.uint8)
    for at in ((33, 1, 2), (39, 1, 0)):
        scales[at] = scale
        blocks[(*at, 15)] = code << 4
    shape = (96, 80) if columns else (40, 2, 96)
    run = cpu.dequantize_columns if columns else cpu.dequantize_rows
    with pytest.raises(BadBlock) as caught:
        run(blocks, scales, Packing.pair, np.zeros(shape, np.uint16), "BF16")
    assert (caught.value.kind, caught.value.index) == (kind, (33, 1, 2))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kind", "bad"),
    [(d, k, v) for d in DTYPES for k, v in (("nan", np.nan), ("inf", -np.inf))]
    + [(d, "overflow", 3.3e38) for d in ("BF16", "F32")],
)
def test_blocks_without_an_honest_result_are_named(kind: str, bad: float, dtype: str, columns: bool) -> None:
    values = np.ones((40, 2, 96), np.float32)
    values[33, 1, 95] = values[35, 0, 0] = bad
    bits = plain.narrow(values.view(np.uint32), dtype)
    run, source = (cpu.quantize_columns, columns_of(bits)) if columns else (cpu.quantize_rows, bits)
    with pytest.raises(BadBlock) as caught:
        run(source, dtype, RECIPES["even"], Packing.pair, *outputs(40, 2, 3, Packing.pair))
    assert (caught.value.kind, caught.value.index) == (kind, (33, 1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "parts", "k"), [(1, 1, 32), (3, 2, 96), (17, 1, 64), (33, 2, 160), (300, 1, 32), (7, 3, 2208)]
)
def test_odd_shapes(rows: int, parts: int, k: int, dtype: str) -> None:
    """Columns that fill no tile, more than a chunk of blocks in a row, more columns than one pass takes."""
    rng = np.random.default_rng(rows)
    bits = plain.narrow((rng.standard_normal((rows, parts, k)) * 0.02).astype(np.float32).view(np.uint32), dtype)
    want_blocks, want_scales = wanted(bits, dtype, RECIPES["best"], Packing.pair)
    for run, source in ((cpu.quantize_rows, bits), (cpu.quantize_columns, columns_of(bits))):
        blocks, scales = outputs(rows, parts, k // 32, Packing.pair)
        run(source, dtype, RECIPES["best"], Packing.pair, blocks, scales)
        assert np.array_equal(scales, want_scales)
        assert np.array_equal(blocks, want_blocks)
    back = np.zeros_like(bits)
    cpu.transpose_to_rows(columns_of(bits), back)
    assert np.array_equal(back, bits)
    columns = np.zeros((k, rows * parts), bits.dtype)
    cpu.transpose_to_columns(bits, columns)
    assert np.array_equal(columns, columns_of(bits))


def interleaved_and_separate(bits: np.ndarray) -> list[np.ndarray]:
    """The same rows view over interleaved storage, separate storage, and a window of a larger array."""
    separate = np.ascontiguousarray(bits.swapaxes(0, 1)).swapaxes(0, 1)
    window = np.zeros((bits.shape[0] + 2, bits.shape[1], bits.shape[2] + 5), bits.dtype)[1:-1, :, 3:-2]
    window[...] = bits
    return [bits, separate, window]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_of_the_leading_axes(dtype: str) -> None:
    bits = weights(dtype, (70, 2, 96))
    recipe = RECIPES["best"]
    want_blocks, want_scales = wanted(bits, dtype, recipe, Packing.ggml)
    for source in interleaved_and_separate(bits):
        whole = np.zeros((2, 70, 3, 17), np.uint8).swapaxes(0, 1)
        cpu.quantize_rows(source, dtype, recipe, Packing.ggml, whole[..., 1:], whole[..., 0])
        assert np.array_equal(whole[..., 1:], want_blocks)
        assert np.array_equal(whole[..., 0], want_scales)
    columns = columns_of(bits)
    whole = np.zeros((2, 70, 3, 17), np.uint8).swapaxes(0, 1)
    cpu.quantize_columns(columns, dtype, recipe, Packing.ggml, whole[..., 1:], whole[..., 0])
    assert np.array_equal(whole[..., 1:], want_blocks)
    if dtype == "F16":
        return
    decoded = np.zeros_like(bits)
    cpu.dequantize_rows(want_blocks, want_scales, Packing.ggml, decoded, dtype)
    for target in interleaved_and_separate(np.zeros_like(bits)):
        cpu.dequantize_rows(whole[..., 1:], whole[..., 0], Packing.ggml, target, dtype)
        assert np.array_equal(target, decoded)
    out = np.zeros_like(columns)
    cpu.dequantize_columns(whole[..., 1:], whole[..., 0], Packing.ggml, out, dtype)
    assert np.array_equal(out, columns_of(decoded))
    for target in interleaved_and_separate(np.zeros_like(bits)):
        cpu.transpose_to_rows(columns, target)
        assert np.array_equal(target, bits)
        again = np.zeros_like(columns)
        cpu.transpose_to_columns(target, again)
        assert np.array_equal(again, columns)


def test_windows_are_all_that_is_written() -> None:
    """Bytes around the outputs stay as they were."""
    bits = weights("BF16", (40, 1, 96))
    frame = np.full((42, 1, 5, 17), 0xAA, np.uint8)
    inner = frame[1:-1, :, 1:-1]
    cpu.quantize_rows(bits, "BF16", RECIPES["ocp"], Packing.ggml, inner[..., 1:], inner[..., 0])
    decoded = np.full((42, 1, 100), 0xAAAA, np.uint16)
    cpu.dequantize_rows(inner[..., 1:], inner[..., 0], Packing.ggml, decoded[1:-1, :, 2:-2], "BF16")
    columns = np.full((98, 44), 0xAAAA, np.uint16)
    cpu.dequantize_columns(inner[..., 1:], inner[..., 0], Packing.ggml, columns[1:-1, 2:-2], "BF16")
    for whole, window in ((frame, inner), (decoded, decoded[1:-1, :, 2:-2]), (columns, columns[1:-1, 2:-2])):
        outside = np.ones(whole.shape, bool)
        view = np.lib.stride_tricks.as_strided(
            outside.reshape(-1)[(window.ctypes.data - whole.ctypes.data) // whole.itemsize :],
            window.shape,
            tuple(s // whole.itemsize for s in window.strides),
        )
        view[...] = False
        assert (whole[outside] == whole.dtype.type(0xAAAA if whole.itemsize == 2 else 0xAA)).all()


@pytest.mark.parametrize("source", MX)
@pytest.mark.parametrize("target", MX)
def test_repack_moves_every_bit(source: Packing, target: Packing) -> None:
    rng = np.random.default_rng(30)
    blocks, scales = outputs(64, 2, 4, source)
    blocks[...] = rng.integers(0, 256, blocks.shape, np.uint8)
    scales[...] = np.arange(512).reshape(scales.shape) % 256
    out_blocks, out_scales = outputs(64, 2, 4, target)
    cpu.repack(blocks, scales, source, out_blocks, out_scales, target)
    want_blocks, want_scales = outputs(64, 2, 4, target)
    cpu_numpy.repack(blocks, scales, source, want_blocks, want_scales, target)
    assert np.array_equal(out_blocks, want_blocks)
    assert np.array_equal(out_scales, scales)
    back_blocks, back_scales = outputs(64, 2, 4, source)
    cpu.repack(out_blocks, out_scales, target, back_blocks, back_scales, source)
    assert np.array_equal(back_blocks, blocks)
    assert np.array_equal(back_scales, scales)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_convert_equals_the_reference(dtype: str, out_dtype: str) -> None:
    """All codes of 16 bits; for F32 random bits, F16's and BF16's ties and their neighbours."""
    if dtype == "F32":
        rng = np.random.default_rng(31)
        every = np.arange(65536, dtype=np.uint16)
        bits = np.concatenate(
            [
                plain.widen(every, d) + np.uint32(o)
                for d in ("BF16", "F16")
                for o in (0, 1, 0xFFF, 0x1000, 0x7FFF, 0x8000)
            ]
        )
        bits = np.concatenate([bits, rng.integers(0, 2**32, 50001, np.uint32)])
    else:
        bits = np.arange(65536, dtype=np.uint16)
    wide = plain.narrow(plain.widen(bits, dtype), out_dtype)
    lost = (plain.widen(wide, out_dtype) & 0x7FFFFFFF == 0x7F800000) & (
        plain.widen(bits, dtype) & 0x7FFFFFFF != 0x7F800000
    )
    kept = bits[~lost]
    want, changed = plain.convert(kept, dtype, out_dtype)
    out = np.zeros(kept.shape, plain.UINT[out_dtype])
    assert cpu.convert(kept, dtype, out, out_dtype) == changed
    assert np.array_equal(out, want)
    if lost.any():
        with pytest.raises(BadValue) as caught:
            cpu.convert(bits, dtype, np.zeros(bits.shape, out.dtype), out_dtype)
        assert caught.value.index == np.flatnonzero(lost)[0]


def test_convert_names_the_element_in_strided_rows() -> None:
    bits = np.zeros((5, 2, 70), np.uint32)
    bits[3, 1, 69] = 0x47800000
    source = interleaved_and_separate(bits)[1]
    with pytest.raises(BadValue) as caught:
        cpu.convert(source, "F32", np.zeros(bits.shape, np.uint16), "F16")
    assert caught.value.index == (3 * 2 + 1) * 70 + 69


def test_a_kernel_that_is_wrong_is_not_believed() -> None:
    """It says that a number became infinite, and the reference finds none."""
    from ckpttool.codecs.cpu_plain_kernels import _first_lost

    with pytest.raises(AssertionError, match="disagree"):
        _first_lost(np.zeros((1, 1, 32), np.uint32), "F32", "F16", 0)


@pytest.mark.parametrize("shape", [(7,), (3, 1), (5, 2, 1), (4, 2, 45)])
def test_convert_takes_vectors_and_biases(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(32).standard_normal(shape).astype(np.float32)
    spread = np.repeat(values.view(np.uint32), 2, 0)[::2]
    for source in (values.view(np.uint32), spread if len(shape) > 1 else spread.copy()):
        out = np.zeros(shape, np.uint16)
        changed = cpu.convert(source, "F32", out, "BF16")
        want, count = plain.convert(values.view(np.uint32), "F32", "BF16")
        assert np.array_equal(out, want)
        assert changed == count > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_q8_0_equals_the_reference(dtype: str) -> None:
    bits = hard_bits(np.random.default_rng(33), 3000, dtype)
    amax = np.abs(plain.widen(bits, dtype).view(np.float32)).max(-1)
    bits = bits[amax < 65500 * 127][: 1500 // 6 * 6].reshape(-1, 2, 96)
    for source in interleaved_and_separate(bits):
        out, want = np.zeros((*bits.shape[:2], 3, 34), np.uint8), np.zeros((*bits.shape[:2], 3, 34), np.uint8)
        cpu.quantize_q8_0(source, dtype, out)
        cpu_numpy.quantize_q8_0(source, dtype, want)
        assert np.array_equal(out, want)
    for out_dtype in DTYPES:
        small = np.where((out[..., 1:2] & 0x7C) > 0x40, np.uint8(0), out)
        decoded, expected = np.zeros(bits.shape, plain.UINT[out_dtype]), np.zeros(bits.shape, plain.UINT[out_dtype])
        changed = cpu.dequantize_q8_0(small, decoded, out_dtype)
        assert changed == cpu_numpy.dequantize_q8_0(small, expected, out_dtype)
        assert np.array_equal(decoded, expected)
        assert (changed == 0) == (out_dtype == "F32")


@pytest.mark.parametrize("module", [cpu, cpu_numpy])
def test_q8_0_names_bad_blocks(module: object) -> None:
    values = np.zeros((4, 2, 96), np.float32)
    for value, kind in ((np.nan, "nan"), (np.inf, "inf"), (9e6, "overflow")):
        values[2, 1, 64] = value
        with pytest.raises(BadBlock) as caught:
            module.quantize_q8_0(values.view(np.uint32), "F32", np.zeros((4, 2, 3, 34), np.uint8))
        assert (caught.value.kind, caught.value.index) == (kind, (2, 1, 2))
    blocks = np.zeros((4, 2, 3, 34), np.uint8)
    for scale, kind in ((0x7C00, "scale"), (0xFE01, "scale"), (0x7BFF, "overflow")):
        blocks[3, 0, 1, :2] = scale & 255, scale >> 8
        blocks[3, 0, 1, 2] = 2
        with pytest.raises(BadBlock) as caught:
            module.dequantize_q8_0(blocks, np.zeros((4, 2, 96), np.uint16), "F16")
        assert (caught.value.kind, caught.value.index) == (kind, (3, 0, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(EVERY_RULE), st.sampled_from(DTYPES), st.sampled_from(MX))
def test_random_blocks_and_recipes(seed: int, recipe: Recipe, dtype: str, packing: Packing) -> None:
    rng = np.random.default_rng(seed)
    bits = makeable(hard_bits(rng, 40, dtype), dtype, recipe)[:, None, :]
    blocks, scales = outputs(len(bits), 1, 1, packing)
    cpu.quantize_columns(columns_of(bits), dtype, recipe, packing, blocks, scales)
    want_blocks, want_scales = wanted(bits, dtype, recipe, packing)
    assert np.array_equal(scales, want_scales)
    assert np.array_equal(blocks, want_blocks)


@pytest.mark.parametrize("setting", [{}, {"NUMBA_DISABLE_JIT": "1"}], ids=["absent", "disabled"])
def test_numpy_stands_in_for_numba(setting: dict[str, str]) -> None:
    """A process that cannot import numba, or must not compile with it: one warning, the same bytes."""
    code = "" if setting else 'import sys; sys.modules["numba"] = None'
    code += """
import numpy as np
from ckpttool.codecs import arrays, cpu
x = (np.random.default_rng(1).standard_normal((6, 96)) * 0.02).astype(np.float32)
for _ in range(2): blocks, scales = arrays.quantize(x)
print(cpu.backend(), blocks.tobytes().hex(), scales.tobytes().hex())
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | setting, capture_output=True, text=True, check=True)
    x = (np.random.default_rng(1).standard_normal((6, 96)) * 0.02).astype(np.float32)
    blocks, scales = arrays.quantize(x)
    assert done.stdout.split() == ["numpy", blocks.tobytes().hex(), scales.tobytes().hex()]
    assert done.stderr.count("the codecs run slowly, on numpy") == 1
    assert "".join(setting) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_plain_processor_gets_the_same_bytes(tmp_path: Path) -> None:
    """Compiled without any vector extension, as for the oldest x86-64: other instructions, the same results."""
    code = """
import sys; sys.path.insert(0, "tests")
import numpy as np
from test_cpu import PACK, Packing, RECIPES, columns_of, cpu, outputs, reference, wanted, weights
bits = weights("BF16", (48, 2, 96))
for recipe in ("best", "transformers", "llama.cpp"):
    blocks, scales = outputs(48, 2, 3, Packing.ggml)
    cpu.quantize_columns(columns_of(bits), "BF16", RECIPES[recipe], Packing.ggml, blocks, scales)
    want = wanted(bits, "BF16", RECIPES[recipe], Packing.ggml)
    assert np.array_equal(blocks, want[0]) and np.array_equal(scales, want[1])
out = np.zeros((96, 96), np.uint16)
cpu.dequantize_columns(blocks, scales, Packing.ggml, out, "BF16")
codes = reference.quantize(reference.bf16_values(bits), RECIPES["llama.cpp"])[0]
assert np.array_equal(reference.bf16_values(out).T.reshape(48, 2, 96), reference.dequantize(codes, scales))
"""
    plain_processor = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | plain_processor, check=True, timeout=300)
    assert any(tmp_path.rglob("*.nbc"))


def test_numpy_kernels_equal_compiled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in through the same entry points, in pieces of a few rows."""
    bits = weights("BF16", (40, 2, 96))
    bits[30, 1, 70] = 0x7FC0
    monkeypatch.setattr(cpu, "_module", cpu_numpy)
    monkeypatch.setattr(cpu_numpy, "PIECE_ELEMENTS", 1000)
    assert cpu.backend() == "numpy"
    for run, source in ((cpu.quantize_rows, bits), (cpu.quantize_columns, columns_of(bits))):
        with pytest.raises(BadBlock) as caught:
            run(source, "BF16", RECIPES["best"], Packing.pair, *outputs(40, 2, 3, Packing.pair))
        assert (caught.value.kind, caught.value.index) == ("nan", (30, 1, 2))
    bits[30, 1, 70] = 0
    blocks, scales = outputs(40, 2, 3, Packing.pair)
    cpu.quantize_columns(columns_of(bits), "BF16", RECIPES["best"], Packing.pair, blocks, scales)
    want_blocks, want_scales = wanted(bits, "BF16", RECIPES["best"], Packing.pair)
    assert np.array_equal(blocks, want_blocks)
    assert np.array_equal(scales, want_scales)
    columns, rows = np.zeros((96, 80), np.uint16), np.zeros((40, 2, 96), np.uint16)
    cpu.dequantize_columns(blocks, scales, Packing.pair, columns, "BF16")
    cpu.transpose_to_rows(columns, rows)
    again = np.zeros_like(columns)
    cpu.transpose_to_columns(rows, again)
    assert np.array_equal(again, columns)
    want = reference.dequantize(
        reference.quantize(plain.widen(bits, "BF16").view(np.float32), RECIPES["best"])[0], scales
    )
    assert np.array_equal(plain.widen(rows, "BF16"), want.view(np.uint32))
    wide = np.full((40, 2, 96), 0x3F800001, np.uint32)
    wide[35, 0, 3] = 0x7F7FFFFF
    with pytest.raises(BadValue) as caught_value:
        cpu.convert(wide.swapaxes(0, 1), "F32", np.zeros((2, 40, 96), np.uint16), "BF16")
    assert caught_value.value.index == 35 * 96 + 3
    wide[35, 0, 3] = 0
    narrow = np.zeros((40, 2, 96), np.uint16)
    assert cpu.convert(wide, "F32", narrow, "BF16") == wide.size - 1
    assert (narrow.reshape(-1)[[0, -1, 35 * 192 + 3]] == [0x3F80, 0x3F80, 0]).all()


def test_threads_work_on_disjoint_slabs() -> None:
    bits = weights("BF16", (400, 1, 960))
    blocks, scales = outputs(400, 1, 30, Packing.pair)
    slices = [slice(i * 100, i * 100 + 100) for i in range(4)]
    threads = [
        threading.Thread(
            target=cpu.quantize_rows, args=(bits[s], "BF16", RECIPES["best"], Packing.pair, blocks[s], scales[s])
        )
        for s in slices
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    want_blocks, want_scales = wanted(bits, "BF16", RECIPES["best"], Packing.pair)
    assert np.array_equal(blocks, want_blocks)
    assert np.array_equal(scales, want_scales)


U16 = np.zeros((4, 1, 64), np.uint16)
PAIR = (np.zeros((4, 1, 2, 16), np.uint8), np.zeros((4, 1, 2), np.uint8))


def read_only(a: np.ndarray) -> np.ndarray:
    b = a.copy()
    b.flags.writeable = False
    return b


def quantizing(x=U16, dtype="BF16", packing=Packing.pair, blocks=PAIR[0], scales=PAIR[1]):
    return lambda: cpu.quantize_rows(x, dtype, RECIPES["best"], packing, blocks, scales)


def seven_columns():
    blocks, scales = np.zeros((3, 2, 2, 16), np.uint8), np.zeros((3, 2, 2), np.uint8)
    cpu.quantize_columns(np.zeros((64, 7), np.uint16), "BF16", RECIPES["best"], Packing.pair, blocks, scales)


def four_axes():
    strided = np.zeros((4, 2, 2, 3), np.uint16)[::2]
    cpu.convert(strided, "BF16", np.zeros(strided.shape, np.uint32), "F32")


REFUSED = {
    "x is uint16, expected uint32": quantizing(dtype="F32"),
    "expected \\(4, 1, 2, 16\\)": quantizing(blocks=PAIR[0][:, :, :1]),
    "scales have shape": quantizing(scales=PAIR[1][:3]),
    "scales are int8": quantizing(scales=PAIR[1].astype(np.int8)),
    "not contiguous": quantizing(x=np.zeros((4, 1, 128), np.uint16)[..., ::2]),
    "no packing flat": quantizing(packing=Packing.flat),
    "blocks is read-only": quantizing(blocks=read_only(PAIR[0])),
    "scales are read-only": quantizing(scales=read_only(PAIR[1])),
    "no whole number of blocks": quantizing(x=U16[..., :40]),
    "expected \\[R, p, K\\]": quantizing(x=U16[0]),
    "do not divide among 2": seven_columns,
    "not to F16": lambda: cpu.dequantize_rows(*PAIR, Packing.pair, U16, "F16"),
    "expected two axes": lambda: cpu.dequantize_columns(*PAIR, Packing.pair, U16, "BF16"),
    "expected \\[R, p, G, 16\\]": lambda: cpu.repack(PAIR[0][0], PAIR[1], Packing.pair, *PAIR, Packing.ggml),
    "blocks has shape": lambda: cpu.quantize_q8_0(U16, "BF16", PAIR[0]),
    "x has shape": lambda: cpu.transpose_to_rows(np.zeros((64, 5), np.uint16), U16),
    "expected uint16 or uint32": lambda: cpu.transpose_to_columns(U16.astype(np.uint8), np.zeros((64, 4), np.uint8)),
    "out has shape": lambda: cpu.convert(U16, "BF16", np.zeros((4, 1, 63), np.uint32), "F32"),
    "more than three axes": four_axes,
    "scalar": lambda: cpu.convert(np.zeros((), np.uint16), "BF16", np.zeros((), np.uint32), "F32"),
}


@pytest.mark.parametrize("says", REFUSED)
def test_arrays_that_do_not_fit_are_refused(says: str) -> None:
    with pytest.raises(ValueError, match=says):
        REFUSED[says]()


def test_nothing_of_nothing() -> None:
    blocks, scales = np.zeros((0, 1, 2, 16), np.uint8), np.zeros((0, 1, 2), np.uint8)
    empty = np.zeros((0, 1, 64), np.uint16)
    cpu.quantize_rows(empty, "BF16", RECIPES["best"], Packing.pair, blocks, scales)
    cpu.dequantize_rows(blocks, scales, Packing.pair, empty, "BF16")
    assert cpu.convert(empty, "BF16", np.zeros((0, 1, 64), np.uint32), "F32") == 0
    columns = np.zeros((64, 0), np.uint16)
    cpu.quantize_columns(columns, "BF16", RECIPES["best"], Packing.pair, blocks, scales)
    cpu.dequantize_columns(blocks, scales, Packing.pair, columns, "BF16")
    cpu.repack(blocks, scales, Packing.pair, *outputs(0, 1, 2, Packing.ggml), Packing.ggml)
    cpu.transpose_to_rows(columns, empty)
    cpu.transpose_to_columns(empty, columns)
    eights = np.zeros((0, 1, 2, 34), np.uint8)
    cpu.quantize_q8_0(empty, "BF16", eights)
    assert cpu.dequantize_q8_0(eights, empty, "BF16") == 0


def test_only_named_modules_import_numba() -> None:
    """So that `import ckpttool` and --help stay fast; and no kernel is parallel, which aborts under threads."""
    for path in (ROOT / "ckpttool").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        if names & {"numba", "llvmlite"}:
            assert path.stem in ("cpu_jit", "cpu_lanes", "cpu_mxfp4", "cpu_plain", "cpu_measure", "cpu_counting")
        assert not any(isinstance(n, ast.keyword) and n.arg == "parallel" for n in ast.walk(tree))


def test_cache_keys_carry_every_source() -> None:
    """A kernel is rebuilt when any module compiled into it changes; numba by itself looks at one file."""
    from ckpttool.codecs import cpu_jit

    with_code = {"cpu_jit", "cpu_lanes", "cpu_mxfp4", "cpu_plain", "cpu_exact", "cpu_kernels", "cpu_plain_kernels"}
    with_code |= {"cpu_measure", "cpu_counting"}
    assert set(cpu_jit._SOURCES) == with_code
    on_disk = {p.stem for p in (ROOT / "ckpttool/codecs").glob("cpu_*.py")}
    assert on_disk - with_code == {"cpu_numpy"}


class TestArrays:
    """The public functions on numpy arrays."""

    @pytest.mark.parametrize("recipe", sorted(RECIPES))
    @pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
    def test_round_trip(self, recipe: str, name: str) -> None:
        import ml_dtypes

        dtype = {"bfloat16": ml_dtypes.bfloat16}.get(name, name)
        x = (np.random.default_rng(40).standard_normal((3, 5, 96)) * 0.02).astype(dtype)
        blocks, scales = arrays.quantize(x, recipe)
        codes, want = reference.quantize(x.astype(np.float32), RECIPES[recipe])
        assert np.array_equal(blocks, PACK[Packing.pair](codes))
        assert np.array_equal(scales, want)
        assert np.array_equal(arrays.dequantize(blocks, scales), reference.dequantize(codes, want))
        strided = arrays.quantize(np.moveaxis(np.moveaxis(x, 0, 1).copy(), 0, 1), RECIPES[recipe])
        assert np.array_equal(strided[0], blocks)

    def test_shapes(self) -> None:
        for shape in ((32,), (0, 64), (2, 0), (1, 2, 3, 64)):
            blocks, scales = arrays.quantize(np.ones(shape, np.float32))
            assert blocks.shape == (*shape[:-1], shape[-1] // 32, 16)
            assert scales.shape == blocks.shape[:-1]
            assert arrays.dequantize(blocks, scales).shape == shape

    @pytest.mark.parametrize("name", ["float32", "float16"])
    def test_any_byte_order(self, name: str) -> None:
        x = (np.random.default_rng(42).standard_normal((2, 64)) * 0.02).astype(name)
        for made, wanted in zip(arrays.quantize(x.astype(x.dtype.newbyteorder())), arrays.quantize(x), strict=True):
            assert np.array_equal(made, wanted)

    def test_bad_blocks_have_a_row_and_a_block(self) -> None:
        """Rows of any leading axes, and no word of the parts that kernels zip."""
        x = np.zeros((2, 3, 96), np.float32)
        x[1, 2, 40] = np.nan
        with pytest.raises(ckpttool.BadBlock, match=r"^a NaN in block 1 of row 5$") as caught:
            arrays.quantize(x)
        assert (caught.value.index, caught.value.row, caught.value.block) == ((5, 1), 5, 1)
        scales = np.zeros((2, 3, 3), np.uint8)
        scales[0, 1, 2] = 255
        with pytest.raises(ckpttool.BadBlock, match=r"^a scale that is no number in block 2 of row 1$"):
            arrays.dequantize(np.zeros((2, 3, 3, 16), np.uint8), scales)

    def test_what_docstrings_name_is_there(self) -> None:
        assert (ckpttool.RECIPES, ckpttool.Recipe, ckpttool.BadBlock) == (RECIPES, Recipe, BadBlock)
        assert set(arrays.__all__) <= set(ckpttool.__all__)

    @pytest.mark.parametrize(
        ("x", "says"),
        [
            (np.zeros((2, 32)), "not float64; x.astype"),
            (np.zeros((2, 32), np.int32), "not int32"),
            (np.zeros((2, 33), np.float32), "no multiple of 32"),
            (np.zeros((), np.float32), "no multiple of 32"),
            (np.float32(1), "arrays or torch tensors, not a float32; np.asarray"),
            (1.0, "not a float; "),
            ([0.0] * 32, r"not a list; np.asarray\(…, np.float32\) makes one"),
            (None, "not a NoneType"),
        ],
    )
    def test_refusals(self, x: np.ndarray, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            arrays.quantize(x)

    @pytest.mark.parametrize("recipe", ["ceil", ["best"], None])
    def test_unknown_recipe(self, recipe: object) -> None:
        with pytest.raises(ValueError, match=f"no recipe {re.escape(repr(recipe))}; there are best, ocp"):
            arrays.quantize(np.zeros((1, 32), np.float32), recipe)

    def test_dequantize_refusals(self) -> None:
        with pytest.raises(ValueError, match="must be uint8"):
            arrays.dequantize(np.zeros((1, 1, 16), np.int8), np.zeros((1, 1), np.uint8))
        with pytest.raises(ValueError, match="do not fit"):
            arrays.dequantize(np.zeros((1, 1, 17), np.uint8), np.zeros((1, 1), np.uint8))
        for pair in ([[[0] * 16]], np.zeros((1, 1), np.uint8)), (np.zeros((1, 1, 16), np.uint8), 0):
            with pytest.raises(ValueError, match=r"dequantize takes .*; np.asarray\(…, np.uint8\) makes one"):
                arrays.dequantize(*pair)
        with pytest.raises(BadBlock):
            arrays.dequantize(np.zeros((1, 1, 16), np.uint8), np.full((1, 1), 255, np.uint8))


def test_hard_values_reach_the_odd_paths() -> None:
    """The data above would prove little if no block took the exact path: many do, by each end."""
    scales = reference.quantize(hard_values(np.random.default_rng(41), 4000), RECIPES["best"])[1]
    assert (scales < 3).sum() > 30
    assert (scales >= 250).sum() > 30
    assert ((scales > 3) & (scales < 250)).sum() > 2000
