"""The Triton codecs are the reference, bit for bit: natively where there is a GPU, otherwise in Triton's interpreter.

The interpreter must be asked for before the kernels are first imported. It runs the same kernels but for
a few operations that are single instructions, which are spelled out there; what only a GPU can show is in tests/gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_cases import CASES, hard_bits, padded, quantize_cases
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from ckpttool.codecs import arrays, cpu_numpy, gpu, plain, reference  # noqa: E402 - see above
from ckpttool.codecs.formats import RECIPES, Packing, Recipe, ScaleRule, TieRule  # noqa: E402
from ckpttool.codecs.packing import PACK  # noqa: E402

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
ALL_RECIPES = [Recipe(f"{s}-{t}", s, t, keeps) for s in ScaleRule for t in TieRule for keeps in (True, False)]
DTYPES = ("BF16", "F16", "F32")

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def on_device(x: NDArray[Any]) -> Any:
    """A tensor of the same bits and strides' order; torch knows few operations on unsigned integers, but these."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(DEVICE)


def empty(rows: int, parts: int, groups: int, packing: Packing, separate: bool, skip: int = 0) -> tuple[Any, Any]:
    """Blocks and scales on the device, filled with 0xAB; parts zipped or `separate`, `skip` bytes into their buffer."""

    def make(*tail: int) -> Any:
        shape = (parts, rows, *tail) if separate else (rows, parts, *tail)
        whole = torch.full((int(np.prod(shape)) + skip,), 0xAB, dtype=torch.uint8, device=DEVICE)
        x = whole[skip:].view(shape)
        return x.transpose(0, 1) if separate else x

    if packing is Packing.pair:
        return make(groups, 16), make(groups)
    structs = make(groups, 17)
    return structs[..., 1:], structs[..., 0]


def numpy_of(*tensors: Any) -> Any:
    return tuple(t.cpu().numpy() for t in tensors)


def reference_rows(bits: NDArray[Any], dtype: str, recipe: Recipe, packing: Packing) -> Pair:
    codes, scales = reference.quantize(plain.widen(bits, dtype).view(np.float32), recipe)
    return PACK[packing](codes), scales


def check_rows(bits: NDArray[Any], dtype: str, recipe: Recipe, packing: Packing, **how: Any) -> None:
    """Rows [R, p, K] through the kernel and through the reference."""
    rows, parts, k = bits.shape
    blocks, scales = empty(rows, parts, k // 32, packing, **{"separate": False, **how})
    gpu.quantize_rows(on_device(bits), dtype, recipe, packing, blocks, scales)
    expected = reference_rows(bits, dtype, recipe, packing)
    for made, wanted in zip(numpy_of(blocks, scales), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_it_runs_where_it_should() -> None:
    assert (DEVICE.type == "cpu") == gpu.gpu_lanes.INTERPRETED
    assert gpu.unsupported(DEVICE) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_named_blocks(dtype: str, recipe: str) -> None:
    cases = [c for c in quantize_cases() if c.dtype == dtype and c.recipe == recipe and not c.error]
    bits = np.stack([c.bits for c in cases])[:, None]
    blocks, scales = empty(len(cases), 1, 1, Packing.pair, False)
    gpu.quantize_rows(on_device(bits), dtype, RECIPES[recipe], Packing.pair, blocks, scales)
    made, bytes_ = numpy_of(blocks, scales)
    codes = np.stack([made & 15, made >> 4], -1).reshape(len(cases), 32)
    for case, code, scale in zip(cases, codes, bytes_.ravel(), strict=True):
        assert (int(scale), code.tolist()) == (case.scale, case.codes.tolist()), case.id


@pytest.mark.parametrize("case", [c for c in quantize_cases() if c.error and c.recipe in ("best", "even", "modelopt")],
                         ids=lambda c: c.id)  # fmt: skip
def test_named_blocks_that_are_refused(case: Any) -> None:
    bits = np.zeros((3, 2, 96), case.bits.dtype)
    bits[1, 1, 32:64] = case.bits
    blocks, scales = empty(3, 2, 3, Packing.ggml, True)
    with pytest.raises(gpu.BadBlock) as caught:
        gpu.quantize_rows(on_device(bits), case.dtype, RECIPES[case.recipe], Packing.ggml, blocks, scales)
    assert (caught.value.kind, caught.value.index) == (case.error, (1, 1, 1))


@pytest.mark.parametrize("recipe", ["best", "ocp", "even", "rceil", "transformers", "modelopt", "llama.cpp"])
def test_every_bf16_as_a_maximum(recipe: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 65,536, at any place in a block, among smaller numbers; those that are refused, one for each kind."""
    if DEVICE.type == "cpu":
        monkeypatch.setitem(gpu.QUANTIZE_ROWS, Packing.pair, (16384, 4))
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    magnitude = (every & 0x7FFF)[:, None].astype(np.int64)
    bits = np.maximum(magnitude - rng.integers(0, 600, (65536, 32)), 0) | (rng.integers(0, 2, (65536, 32)) << 15)
    bits[np.arange(65536), rng.integers(0, 32, 65536)] = every
    limit = 0x7F60 if RECIPES[recipe].scale in (ScaleRule.even, ScaleRule.rceil) else 0x7F80
    if recipe == "modelopt":
        limit = 0x7F61
    good = bits[magnitude[:, 0] < limit].astype(np.uint16)
    check_rows(good[:, None], "BF16", RECIPES[recipe], Packing.pair)
    for first, kind in ((limit, "overflow" if limit < 0x7F80 else "inf"), (0xFF80, "inf"), (0x7F81, "nan")):
        block = np.full((1, 1, 32), first, np.uint16)
        with pytest.raises(gpu.BadBlock, match=reference.BAD_KINDS[kind]):
            check_rows(block, "BF16", RECIPES[recipe], Packing.pair)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ALL_RECIPES, ids=lambda r: f"{r.name}-{r.keeps_negative_zero}")
def test_rows_of_every_recipe(recipe: Recipe, dtype: str, rng: np.random.Generator) -> None:
    """Magnitudes over the whole range, ties, zeros of both signs; blocks that do not fill the last program."""
    bits = hard_bits(rng, 171, dtype)
    wide = np.abs(plain.widen(bits, dtype).view(np.float32)).max(-1)
    bits[wide > 2.0**126] = 0
    check_rows(bits.reshape(19, 1, 9 * 32), dtype, recipe, Packing.pair)


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zipped_parts(packing: Packing, separate: bool, dtype: str, rng: np.random.Generator) -> None:
    bits = hard_bits(rng, 5 * 2 * 7, dtype).reshape(5, 2, 7 * 32)
    check_rows(bits, dtype, RECIPES["best"], packing, separate=separate)


def test_one_row_of_two_parts(rng: np.random.Generator) -> None:
    """The stride between rows means nothing then."""
    bits = hard_bits(rng, 2, "BF16").reshape(1, 2, 32)
    for separate in (False, True):
        check_rows(bits, "BF16", RECIPES["best"], Packing.pair, separate=separate)


@pytest.mark.parametrize("blocks", [1, 3, 4, 5, 129])
@pytest.mark.parametrize("skip", [0, 1, 4])
def test_structs_wherever_they_start(blocks: int, skip: int, rng: np.random.Generator) -> None:
    """17 bytes are written in words where they may be, and whatever remains byte by byte; nothing beside them."""
    bits = hard_bits(rng, blocks, "BF16").reshape(1, 1, -1)
    made, scales = empty(1, 1, blocks, Packing.ggml, False, skip)
    whole = made._base
    gpu.quantize_rows(on_device(bits), "BF16", RECIPES["ocp"], Packing.ggml, made, scales)
    codes, expected = reference_rows(bits, "BF16", RECIPES["ocp"], Packing.ggml)
    structs = np.concatenate([expected[..., None], codes], -1).ravel()
    np.testing.assert_array_equal(whole.cpu().numpy(), np.concatenate([np.full(skip, 0xAB, np.uint8), structs]))
    values = torch.zeros((1, 1, blocks * 32), dtype=torch.int16, device=DEVICE)
    gpu.dequantize_rows(made, scales, Packing.ggml, values, "BF16")
    again, again_scales = empty(1, 1, blocks, Packing.pair, False)
    gpu.repack(made, scales, Packing.ggml, again, again_scales, Packing.pair)
    wanted = reference_rows(bits, "BF16", RECIPES["ocp"], Packing.pair)
    for a, b in zip(numpy_of(again, again_scales), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    decoded = np.zeros((1, 1, blocks * 32), np.uint16)
    cpu_numpy.dequantize_rows(*wanted, Packing.pair, decoded, "BF16")
    np.testing.assert_array_equal(values.cpu().numpy().view(np.uint16), decoded)


def check_columns(
    bits: NDArray[Any], dtype: str, recipe: str, packing: Packing, experts: int, separate: bool = True, spare: int = 0
) -> None:
    """Rows [R, p, K] as columns of `experts`, in a matrix with `spare` columns more, through the kernel."""
    rows, parts, k = bits.shape
    n = rows * parts // experts
    columns = np.zeros((experts, k, n + spare), bits.dtype)
    columns[:, :, :n] = bits.reshape(experts, n, k).swapaxes(1, 2)
    blocks, scales = empty(rows, parts, k // 32, packing, separate)
    gpu.quantize_columns(on_device(columns)[:, :, :n], dtype, RECIPES[recipe], packing, blocks, scales)
    expected = reference_rows(bits, dtype, RECIPES[recipe], packing)
    for made, wanted in zip(numpy_of(blocks, scales), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns(dtype: str, parts: int, packing: Packing, rng: np.random.Generator) -> None:
    """Experts at once, programs that are not full or share blocks, gate and up in turn; part of a larger matrix."""
    experts, groups, rows = 2, 5, 34 // parts
    bits = hard_bits(rng, experts * rows * parts * groups, dtype).reshape(experts * rows, parts, groups * 32)
    recipe = "llama.cpp" if packing is Packing.ggml else "ocp" if dtype == "BF16" else "best"
    check_columns(bits, dtype, recipe, packing, experts, spare=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_columns_by_every_recipe(recipe: str, dtype: str, rng: np.random.Generator) -> None:
    """Magnitudes over the whole range, to either packing by turns."""
    bits = hard_bits(rng, 4 * 4, dtype)
    bits[np.abs(plain.widen(bits, dtype).view(np.float32)).max(-1) > 2.0**126] = 0
    packing = (Packing.pair, Packing.ggml)[(list(RECIPES).index(recipe) + DTYPES.index(dtype)) % 2]
    check_columns(bits.reshape(4, 1, 4 * 32), dtype, recipe, packing, 1)


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize(("groups", "rows"), [(3, 2), (4, 128)])
def test_columns_that_fill_programs(packing: Packing, groups: int, rows: int, rng: np.random.Generator) -> None:
    """And fewer than four blocks along K."""
    bits = hard_bits(rng, rows * 2 * groups, "BF16").reshape(rows, 2, groups * 32)
    check_columns(bits, "BF16", "best", packing, 1, separate=False)


@pytest.mark.parametrize("row", [68, 71])
def test_columns_write_only_their_structs(row: int, rng: np.random.Generator) -> None:
    """From any byte of a word on, with bytes of others before, between and behind."""
    bits = hard_bits(rng, 6 * 4, "BF16").reshape(6, 1, 128)
    for skip in range(4):
        whole = torch.full((skip + 6 * row,), 0xAB, dtype=torch.uint8, device=DEVICE)
        structs = whole[skip:].view(6, 1, row)[..., :68].unflatten(-1, (4, 17))
        source = on_device(bits[:, 0].T.copy())
        gpu.quantize_columns(source, "BF16", RECIPES["ocp"], Packing.ggml, structs[..., 1:], structs[..., 0])
        codes, scales = reference_rows(bits, "BF16", RECIPES["ocp"], Packing.ggml)
        wanted = np.full((6, row), 0xAB, np.uint8)
        wanted[:, :68] = np.concatenate([scales[..., None], codes], -1).reshape(6, 68)
        made = whole.cpu().numpy()
        np.testing.assert_array_equal(made[:skip], 0xAB)
        np.testing.assert_array_equal(made[skip:].reshape(6, row), wanted)


@pytest.mark.parametrize(("n", "width", "skip"), [(3, 3, 0), (4, 5, 0), (4, 4, 1)])
def test_lines_that_are_no_whole_words(n: int, width: int, skip: int, rng: np.random.Generator) -> None:
    """An odd number of columns, of a matrix or of its slab, and lines that start between words."""
    rows = hard_bits(rng, n * 2, "BF16").reshape(n, 1, 64)
    buffer = torch.zeros(64 * width + skip, dtype=torch.bfloat16, device=DEVICE)
    columns = buffer[skip:].view(64, width)[:, :n]
    columns.view(torch.int16).copy_(on_device(rows[:, 0].T.copy().view(np.int16)))
    blocks, scales = empty(n, 1, 2, Packing.pair, False)
    gpu.quantize_columns(columns, "BF16", RECIPES["best"], Packing.pair, blocks, scales)
    expected = reference_rows(rows, "BF16", RECIPES["best"], Packing.pair)
    for made, wanted in zip(numpy_of(blocks, scales), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)
    gpu.dequantize_columns(blocks, scales, Packing.pair, columns, "BF16")
    values = np.zeros((n, 1, 64), np.uint16)
    cpu_numpy.dequantize_rows(*expected, Packing.pair, values, "BF16")
    np.testing.assert_array_equal(columns.view(torch.int16).cpu().numpy().view(np.uint16), values[:, 0].T)


def decodable(rng: np.random.Generator, shape: tuple[int, ...]) -> Pair:
    """Random bytes with every scale byte that BF16 can hold, 253 and 254 among them."""
    blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
    scales = np.resize(np.arange(255, dtype=np.uint8), shape)
    blocks[scales == 254] &= 0x33
    blocks[scales == 253] &= 0xDD
    return blocks, scales


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_dequantize(dtype: str, packing: Packing, separate: bool, rng: np.random.Generator) -> None:
    """Rows and columns of every scale byte."""
    experts, rows, parts, groups = 2, 9, 2, 9
    bytes_, scale = decodable(rng, (experts * rows, parts, groups))
    blocks, scales = empty(experts * rows, parts, groups, packing, separate)
    blocks.copy_(on_device(bytes_))
    scales.copy_(on_device(scale))
    expected = np.zeros((experts * rows, parts, groups * 32), plain.UINT[dtype])
    cpu_numpy.dequantize_rows(bytes_, scale, packing, expected, dtype)
    out = on_device(np.full_like(expected, 0xABAB))
    gpu.dequantize_rows(blocks, scales, packing, out, dtype)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    columns = on_device(np.full((experts, groups * 32, rows * parts), 0xABAB, expected.dtype))
    gpu.dequantize_columns(blocks, scales, packing, columns, dtype)
    wanted = expected.reshape(experts, rows * parts, groups * 32).swapaxes(1, 2)
    np.testing.assert_array_equal(columns.cpu().numpy(), wanted)


@pytest.mark.parametrize("case", CASES["dequantize"], ids=lambda c: c["name"])
@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
def test_named_scales(case: dict[str, Any], packing: Packing) -> None:
    blocks, scales = empty(2, 2, 3, packing, True)
    blocks.zero_()
    scales.zero_()
    blocks[1, 1, 2] = on_device(PACK[packing](padded(case["codes"])))
    scales[1, 1, 2] = case["scale"]
    out = torch.zeros((2, 2, 96), dtype=torch.int16, device=DEVICE)
    columns = torch.zeros((96, 4), dtype=torch.int16, device=DEVICE)
    if "error" in case:
        for function, target in ((gpu.dequantize_rows, out), (gpu.dequantize_columns, columns)):
            with pytest.raises(gpu.BadBlock) as caught:
                function(blocks, scales, packing, target, "BF16")
            assert (caught.value.kind, caught.value.index) == (case["error"], (1, 1, 2))
        return
    gpu.dequantize_rows(blocks, scales, packing, out, "BF16")
    gpu.dequantize_columns(blocks, scales, packing, columns, "BF16")
    values = [int(v, 16) for v in case["bf16"]]
    for made in (out[1, 1, 64:], columns[64:, 3]):
        assert made.cpu().numpy().view(np.uint16)[: len(values)].tolist() == values


@pytest.mark.parametrize("separate", [False, True])
def test_repack_there_and_back(separate: bool, rng: np.random.Generator) -> None:
    """All 256 scale bytes and any nibbles."""
    shape = (33, 2, 5)
    bytes_ = rng.integers(0, 256, (*shape, 16), np.uint8)
    scale = np.resize(np.arange(256, dtype=np.uint8), shape)
    pair = on_device(bytes_), on_device(scale)
    ggml = empty(*shape, Packing.ggml, separate)
    gpu.repack(*pair, Packing.pair, *ggml, Packing.ggml)
    expected = np.empty_like(bytes_), np.empty_like(scale)
    cpu_numpy.repack(bytes_, scale, Packing.pair, *expected, Packing.ggml)
    for made, wanted in zip(numpy_of(*ggml), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)
    for packing in (Packing.pair, Packing.ggml):
        again = empty(*shape, packing, not separate)
        gpu.repack(*ggml, Packing.ggml, *again, packing)
        cpu_numpy.repack(bytes_, scale, Packing.pair, *expected, packing)
        for made, wanted in zip(numpy_of(*again), expected, strict=True):
            np.testing.assert_array_equal(made, wanted)


def test_the_first_bad_block_is_named_whatever_its_kind() -> None:
    """In row-major order of [R, p, G], also where parts lie apart; as the compiled CPU kernels do."""
    bits = np.zeros((4, 2, 160), np.uint16)
    bits[3, 0, 5], bits[2, 1, 40], bits[2, 1, 63] = 0x7FC0, 0x7F80, 0xFFC0
    blocks, scales = empty(4, 2, 5, Packing.pair, True)
    with pytest.raises(gpu.BadBlock) as caught:
        gpu.quantize_rows(on_device(bits), "BF16", RECIPES["ocp"], Packing.pair, blocks, scales)
    assert (caught.value.kind, caught.value.index) == ("nan", (2, 1, 1))
    columns = on_device(bits.reshape(2, 4, 160).swapaxes(1, 2))
    with pytest.raises(gpu.BadBlock) as caught:
        gpu.quantize_columns(columns, "BF16", RECIPES["ocp"], Packing.pair, blocks, scales)
    assert (caught.value.kind, caught.value.index) == ("nan", (2, 1, 1))


def test_a_status_is_looked_at_when_asked() -> None:
    status = gpu.new_status(DEVICE)
    blocks, scales = empty(2, 1, 1, Packing.pair, False)
    x = torch.zeros((2, 1, 32), device=DEVICE)
    gpu.quantize_rows(x, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    gpu.raise_bad(status, 1, 1)
    x[1, 0, 31] = -torch.inf
    gpu.quantize_rows(x, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    x.zero_()
    gpu.quantize_rows(x, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    with pytest.raises(gpu.BadBlock, match="an infinite value in block 0 of row 1"):
        gpu.raise_bad(status, 1, 1)


def test_a_status_of_columns_is_looked_at_when_asked() -> None:
    status = gpu.new_status(DEVICE)
    blocks, scales = empty(4, 1, 4, Packing.pair, False)
    x = torch.zeros((1, 128, 4), device=DEVICE)
    x[0, 100, 2] = torch.inf
    gpu.quantize_columns(x, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    with pytest.raises(gpu.BadBlock, match="an infinite value in block 3 of row 2"):
        gpu.raise_bad(status, 1, 4)


def test_nothing_is_nothing() -> None:
    """No rows at all: no kernel is launched (an empty grid is an error), and nothing is noted."""
    status = gpu.new_status(DEVICE)
    blocks, scales = empty(0, 2, 3, Packing.pair, False)
    x, columns = torch.zeros((0, 2, 96), device=DEVICE), torch.zeros((1, 96, 0), device=DEVICE)
    gpu.quantize_rows(x, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    gpu.dequantize_columns(blocks, scales, Packing.pair, columns, "F32", status)
    blocks, scales = empty(0, 1, 4, Packing.pair, False)
    no_experts = torch.zeros((0, 128, 4), device=DEVICE)
    gpu.quantize_columns(no_experts, "F32", RECIPES["best"], Packing.pair, blocks, scales, status)
    assert torch.equal(status, gpu.new_status(DEVICE))


@pytest.mark.parametrize("mode", ["FLOOR", "EVEN"])
@pytest.mark.parametrize("bf16", [True, False])
def test_torchao(mode: str, bf16: bool, rng: np.random.Generator) -> None:
    """Bit for bit from block maxima of 2^-124 on, up to where EVEN overflows."""
    pytest.importorskip("torchao")
    import codec_peers

    dtype = "BF16" if bf16 else "F32"
    bits = hard_bits(rng, 400, dtype)
    values = plain.widen(bits, dtype).view(np.float32)
    highest = np.abs(values).max(-1)
    kept = (highest >= 2.0**-124) & (highest < 2.0**127)
    scales, codes = codec_peers.torchao(values[kept], mode, bf16=bf16)
    recipe = RECIPES["ocp" if mode == "FLOOR" else "even"]
    blocks, made = empty(int(kept.sum()), 1, 1, Packing.pair, False)
    gpu.quantize_rows(on_device(bits[kept][:, None]), dtype, recipe, Packing.pair, blocks, made)
    np.testing.assert_array_equal(made.cpu().numpy()[:, 0], scales)
    np.testing.assert_array_equal(blocks.cpu().numpy()[:, 0], PACK[Packing.pair](codes))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_public_functions_take_tensors(dtype: str, rng: np.random.Generator) -> None:
    """On the CPU: the same as for arrays, whatever the strides, and gradients do not matter. On a GPU: tests/gpu."""
    values = rng.standard_normal((3, 64, 2)).astype(np.float32)
    x = torch.from_numpy(values).to(getattr(torch, dtype)).requires_grad_().transpose(1, 2)
    blocks, scales = arrays.quantize(x, "ocp")
    assert (blocks.shape, scales.shape) == ((3, 2, 2, 16), (3, 2, 2))
    expected = arrays.quantize(x.detach().float().numpy(), "ocp")
    for made, wanted in zip(numpy_of(blocks, scales), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)
    decoded = arrays.dequantize(blocks, scales)
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy(), arrays.dequantize(*expected))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0)])
def test_tensors_of_nothing(shape: tuple[int, int]) -> None:
    blocks, scales = arrays.quantize(torch.zeros(shape))
    assert (blocks.shape, scales.shape) == ((shape[0], shape[1] // 32, 16), (shape[0], shape[1] // 32))
    assert arrays.dequantize(blocks, scales).shape == shape


def test_tensors_start_at_words() -> None:
    """As they are, or copied; numpy's alignment of a whole buffer is that of words at least."""
    x = torch.arange(9, dtype=torch.int16)
    assert arrays._aligned(x[2:]).data_ptr() == x[2:].data_ptr()
    moved = arrays._aligned(x[1:])
    assert moved.data_ptr() % 4 == 0
    assert torch.equal(moved, x[1:])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda x, b, s: arrays.quantize(x.double()), r"not torch.float64; x.to\(torch.float32\)"),
        (lambda x, b, s: arrays.quantize(x[..., :33]), r"last axis of \(2, 33\)"),
        (lambda x, b, s: arrays.dequantize(b, s.numpy()), "blocks are a Tensor, scales a ndarray"),
        (lambda x, b, s: arrays.dequantize(b.int(), s), "must be uint8, not torch.int32"),
        (lambda x, b, s: arrays.dequantize(b.to("meta"), s), "blocks lie on meta, scales on cpu"),
    ],
)
def test_tensors_that_the_public_functions_refuse(work: Any, message: str) -> None:
    x = torch.ones((2, 64))
    with pytest.raises(ValueError, match=message):
        work(x, *arrays.quantize(x))


def good_arguments() -> dict[str, Any]:
    blocks, scales = empty(2, 1, 1, Packing.pair, False)
    x = torch.zeros((2, 1, 32), dtype=torch.bfloat16, device=DEVICE)
    return {"x": x, "dtype": "BF16", "recipe": RECIPES["ocp"], "packing": Packing.pair, "blocks": blocks,
            "scales": scales}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x.float(), "expected 2 bytes an element for BF16"),
        ("x", lambda x: x[..., :16], "no whole number of blocks"),
        ("x", lambda x: x[0], r"expected \[R, p, K\]"),
        ("x", lambda x: torch.zeros(65, dtype=x.dtype, device=x.device)[1:].view(2, 1, 32), "not aligned to 4 bytes"),
        ("x", lambda x: x.repeat(1, 1, 2)[..., ::2], "last axis of x is not contiguous"),
        ("blocks", lambda b: b[:1], "blocks have shape"),
        ("blocks", lambda b: b.to(torch.int32), "expected torch.uint8"),
        ("scales", lambda s: s[..., None], "scales have shape"),
        ("packing", lambda _: Packing.flat, "MXFP4 has no packing flat"),
        ("packing", lambda _: Packing.ggml, "not views of one tensor of structs"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: Any, message: str) -> None:
    arguments = good_arguments()
    gpu.quantize_rows(**arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        gpu.quantize_rows(**arguments)


def test_dtypes_that_are_not_exact_are_refused() -> None:
    blocks, scales = empty(2, 1, 1, Packing.pair, False)
    with pytest.raises(ValueError, match="not to F16"):
        gpu.dequantize_rows(blocks, scales, Packing.pair, torch.zeros((2, 1, 32), dtype=torch.float16), "F16")


def test_what_a_gpu_is_needed_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.gpu_lanes, "INTERPRETED", False)
    assert "not on cpu" in str(gpu.unsupported(torch.device("cpu")))
    blocks, scales = empty(1, 1, 1, Packing.pair, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in str(gpu.unsupported(torch.device("cuda:0")))
    with pytest.raises(ValueError, match=r"run on NVIDIA GPUs|compute capability"):
        gpu.quantize_rows(torch.zeros((1, 1, 32), device=DEVICE), "F32", RECIPES["ocp"], Packing.pair, blocks, scales)


PTX = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from ckpttool.codecs import gpu_rows
kernel = gpu_rows.quantize_rows
known = dict(SOURCE=SOURCE, RULE=3, TIES=0, KEEPS=True, GGML=False, PARTS=1, X_DENSE=True, OUT_DENSE=True,
             ALIGNED=False, BLOCKS=128, GROUPS=0)
types, constants, places = {}, {}, {}
for i, p in enumerate(kernel.params):
    pointer = {"x": "*u8", "blocks": "*u8", "scales": "*u8", "status": "*i64"}.get(p.name)
    types[p.name] = "constexpr" if p.is_constexpr else pointer or "i32"
    if p.is_constexpr:
        constants[(i,)] = known[p.name]
    elif p.name not in ("start", "count", "groups"):
        places[(i,)] = [["tt.divisibility", 16]]
print(compile(ASTSource(kernel, types, constants, places), target=GPUTarget("cuda", 90, 32)).asm["ptx"])
"""


@pytest.mark.parametrize("source", [0, 2])
def test_what_is_compiled_for_a_gpu(source: int) -> None:
    """Subnormals are not flushed, nothing is spilled, and memory is read and written 16 bytes at a time."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = PTX.replace("SOURCE=SOURCE", f"SOURCE={source}")
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert ".visible .entry quantize_rows" in run.stdout
    assert "ftz" not in run.stdout
    assert ".local" not in run.stdout
    assert run.stdout.count("ld.global.v4.b32") == (8 if source else 4)
    assert "st.global.v4.b32" in run.stdout
    assert ("fma.rn.bf16x2" in run.stdout) == (source == 0)
