"""What every codec, packing, recipe and backend owes: sizes, inverses, and the same bytes from all of them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from codec_cases import CASES, Case, padded, quantize_cases

from ckpttool.codecs import cpu, cpu_numpy, plain, reference
from ckpttool.codecs.formats import MXFP4_GGML, MXFP4_PAIR, RECIPES, Packing
from ckpttool.codecs.packing import PACK, UNPACK
from ckpttool.codecs.reference import BadBlock

BACKENDS = [cpu, cpu_numpy]
CODECS = {Packing.pair: MXFP4_PAIR, Packing.ggml: MXFP4_GGML}


@pytest.mark.parametrize("packing", PACK)
def test_unpack_after_pack_is_identity(packing: Packing) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (3, 5, 32)).astype(np.uint8)
    assert np.array_equal(UNPACK[packing](PACK[packing](codes)), codes)


@pytest.mark.parametrize("packing", PACK)
def test_pack_after_unpack_is_identity_for_every_byte_in_every_place(packing: Packing) -> None:
    blocks = (np.arange(256, dtype=np.uint8)[:, None] + np.arange(16, dtype=np.uint8) * 17).astype(np.uint8)
    assert np.array_equal(PACK[packing](UNPACK[packing](blocks)), blocks)


def test_packings_put_elements_where_their_owners_say() -> None:
    codes = np.zeros(32, np.uint8)
    codes[[3, 19]] = 7, 13
    assert PACK[Packing.ggml](codes).tolist() == [0, 0, 0, 0xD7] + [0] * 12  # gguf.md section 2.1, from llama.cpp
    assert PACK[Packing.pair](codes).tolist() == [0, 0x70] + [0] * 7 + [0xD0] + [0] * 6


def test_packings_agree_with_llama_cpps_formulas() -> None:
    """o[2k] = h[k] & 15 | h[8+k] << 4, o[2k+1] = h[k] >> 4 | h[8+k] & 0xF0: gguf.md section 2.2."""
    h = np.random.default_rng(1).integers(0, 256, (100, 16)).astype(np.uint8)
    o = np.empty_like(h)
    o[:, 0::2] = (h[:, :8] & 15) | (h[:, 8:] << np.uint8(4))
    o[:, 1::2] = (h[:, :8] >> np.uint8(4)) | (h[:, 8:] & 0xF0)
    assert np.array_equal(PACK[Packing.ggml](UNPACK[Packing.pair](h)), o)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("case", quantize_cases(), ids=lambda c: c.id)
def test_named_blocks(case: Case, packing: Packing, backend: ModuleType) -> None:
    """As rows and as columns, among ordinary blocks: 40 columns are a full tile and a part of one."""
    recipe = RECIPES[case.recipe]
    rows = np.full((40, 1, 96), plain.narrow(np.array([0x3C000000], np.uint32), case.dtype)[0])
    rows[21, 0, 32:64] = case.bits
    columns = np.ascontiguousarray(rows[:, 0].T)
    for run, source in ((backend.quantize_rows, rows), (backend.quantize_columns, columns)):
        blocks, scales = np.zeros((40, 1, 3, 16), np.uint8), np.zeros((40, 1, 3), np.uint8)
        if case.error:
            with pytest.raises(BadBlock) as caught:
                run(source, case.dtype, recipe, packing, blocks, scales)
            assert (caught.value.kind, caught.value.index) == (case.error, (21, 0, 1))
            continue
        run(source, case.dtype, recipe, packing, blocks, scales)
        assert scales[21, 0, 1] == case.scale
        assert case.codes is not None
        assert np.array_equal(UNPACK[packing](blocks[21, 0, 1]), case.codes)
        assert len(np.unique(scales.reshape(-1)[np.arange(120) != 64])) == 1


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("case", CASES["dequantize"], ids=lambda c: c["name"])
def test_named_decodings(case: dict, packing: Packing, backend: ModuleType) -> None:
    blocks = np.zeros((40, 1, 3, 16), np.uint8)
    scales = np.full((40, 1, 3), 127, np.uint8)
    blocks[21, 0, 1], scales[21, 0, 1] = PACK[packing](padded(case["codes"])), case["scale"]
    out = {
        backend.dequantize_rows: np.zeros((40, 1, 96), np.uint16),
        backend.dequantize_columns: np.zeros((96, 40), np.uint16),
    }
    for run, target in out.items():
        if "error" in case:
            with pytest.raises(BadBlock) as caught:
                run(blocks, scales, packing, target, "BF16")
            assert (caught.value.kind, caught.value.index) == (case["error"], (21, 0, 1))
            continue
        run(blocks, scales, packing, target, "BF16")
        block = target[21, 0, 32:64] if target.ndim == 3 else target[32:64, 21]
        assert [f"{b:04x}" for b in block[: len(case["bf16"])]] == case["bf16"]


@pytest.mark.parametrize("packing", PACK)
def test_sizes_promised_are_sizes_produced(packing: Packing) -> None:
    x = np.ones((4, 1, 96), np.uint16)
    whole = np.zeros((4, 1, 3, 17), np.uint8)
    blocks, scales = whole[..., 1:], whole[..., 0]
    cpu.quantize_rows(x, "BF16", RECIPES["best"], packing, blocks, scales)
    assert sum(CODECS[packing].row_nbytes(96)) * 4 == blocks.size + scales.size


def test_every_recipe_has_named_blocks() -> None:
    cases = quantize_cases()
    assert {c.recipe for c in cases} == set(RECIPES)
    for recipe in RECIPES:
        names = [c.name for c in cases if c.recipe == recipe]
        assert sorted(names) == sorted(c["name"] for c in CASES["quantize"])


def test_named_blocks_agree_with_the_namesakes() -> None:
    """The libraries on the same blocks, where they claim the same rule: maxima of 2^-124 and above, finite."""
    import codec_peers as peers

    namesakes = {
        "ocp": lambda v: peers.torchao(v, "FLOOR", bf16=False),
        "even": lambda v: peers.torchao(v, "EVEN", bf16=False),
        "rceil": lambda v: peers.torchao(v, "RCEIL", bf16=False),
        "llama.cpp": lambda v: peers.of_ggml_struct(peers.ggml_c(v, "quantize_row_mxfp4_ref", 17)),
    }
    checked = 0
    for case in quantize_cases():
        values = plain.widen(case.bits, case.dtype).view(np.float32)[None]
        if case.error or case.recipe not in namesakes or not np.abs(values).max() >= 2.0**-124:
            continue
        if (case.recipe, case.name) == ("llama.cpp", "F32 just below a power of two"):
            continue  # its logarithm rounds up: test_reference shows it
        scales, codes = namesakes[case.recipe](values)
        assert (case.id, int(scales[0, 0])) == (case.id, case.scale)
        assert case.codes is not None
        assert (case.id, codes[0, 0].tolist()) == (case.id, case.codes.tolist())
        checked += 1
    assert checked >= 40


def test_backends_have_the_same_functions() -> None:
    from ckpttool.codecs import cpu_kernels

    functions = set(cpu.__all__) - {"BadBlock", "BadValue", "backend", "load"}
    for module in (cpu_numpy, cpu_kernels):
        assert all(callable(getattr(module, name)) for name in functions)
    assert MXFP4_PAIR.format.block == reference.BLOCK
