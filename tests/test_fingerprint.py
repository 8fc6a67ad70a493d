"""What MXFP4 scales betray, asked of our own quantizers: every recipe, on weights of several kinds and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs import reference
from ckpttool.codecs.formats import RECIPES, ScaleRule
from ckpttool.codecs.packing import unpack_pair
from ckpttool.recognition import bias_of, fingerprint
from ckpttool.tensors import Role, Weight

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss" / "hf"
ROWS, K = 100, 2880
Floats = NDArray[np.float32]


def bf16(x: NDArray[np.float64]) -> Floats:
    """Rounded to the nearest BF16, as checkpoints hold them: ties of the code thresholds occur."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def of_differing_size(rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian rows whose sizes differ, as those of trained layers do."""
    return rng.standard_normal((ROWS, K)) * np.exp(0.4 * rng.standard_normal((ROWS, 1)))


KINDS: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "rows of differing size": of_differing_size,
    "Gaussian": lambda rng: rng.standard_normal((ROWS, K)),
    "Laplace": lambda rng: rng.laplace(size=(ROWS, K)),
    "Student": lambda rng: rng.standard_t(4, size=(ROWS, K)),
}
SIZES = (1.0, 2**0.25, 2**0.5, 2**0.75)


def counted(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> tuple[list[list[int]], int]:
    """Blocks by scale byte and largest code, and how many codes are -0."""
    largest = (codes & 7).max(-1)
    table = np.zeros((256, 8), np.int64)
    np.add.at(table, (scales.ravel(), largest.ravel()), 1)
    return table.tolist(), int((codes == 8).sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_is_among_those_named(recipe: str, kind: str, size: float) -> None:
    weights = bf16(KINDS[kind](np.random.default_rng(1)) * 0.02 * size)
    table, negative_zeros = counted(*reference.quantize(weights, RECIPES[recipe]))
    found = fingerprint(table, negative_zeros)
    assert recipe in found.recipes
    assert found.blocks == ROWS * K // 32
    rule = RECIPES[recipe].scale
    if rule is ScaleRule.rceil:
        assert {RECIPES[r].scale for r in found.recipes} == {rule}
    elif recipe == "llama.cpp":
        assert found.recipes == ("llama.cpp",)
    else:
        assert "llama.cpp" not in found.recipes
        assert ScaleRule.rceil not in {RECIPES[r].scale for r in found.recipes}
    if kind == "rows of differing size":
        told = {"ocp": {"ocp"}, "even": {"even", "best"}, "best": {"even", "best"}}
        assert set(found.recipes) == told.get(recipe, set(found.recipes))


def test_without_negative_zeros_counted_llama_cpp_is_one_of_several() -> None:
    weights = bf16(of_differing_size(np.random.default_rng(2)) * 0.02)
    table, _ = counted(*reference.quantize(weights, RECIPES["llama.cpp"]))
    assert set(fingerprint(table).recipes) == {"ocp", "llama.cpp"}


def test_blocks_of_no_recipe() -> None:
    """Scaled twice, or searched for: largest codes of 1.5 and less."""
    table = [[0] * 8 for _ in range(256)]
    table[120] = [0, 0, 0, 50, 0, 0, 400, 600]
    found = fingerprint(table)
    assert (found.recipes, found.blocks) == ((), 1050)
    assert "4.8% of the blocks have a largest code under 5" in found.reason


def test_too_few_blocks_and_blocks_that_do_not_count() -> None:
    """Zero blocks, clamped blocks (scale 0) and scale 255 are no evidence."""
    table = [[0] * 8 for _ in range(256)]
    table[0] = [9999, 5000, 0, 0, 0, 0, 0, 0]
    table[255] = [0, 9999, 0, 0, 0, 0, 0, 0]
    table[120] = [7777, 0, 0, 0, 0, 0, 0, 255]
    assert fingerprint(table).recipes == tuple(RECIPES)
    assert fingerprint(table).blocks == 255


def held(weight: Weight, role: Role) -> NDArray[np.uint8]:
    t = weight.stored_as(role)
    assert t is not None
    data = np.fromfile(FIXTURE / t.file, np.uint8)
    return data[t.offset : t.offset + t.nbytes].reshape(t.shape)


def test_a_trained_model_quantized_by_ocp_says_ocp() -> None:
    """The fixture's experts: fixtures/make quantized them by the OCP rule, all layers alike."""
    table, zeros, blocks = np.zeros((256, 8), np.int64), 0, 0
    for weight in open_checkpoint(FIXTURE).weights:
        if weight.codec.name != "MXFP4":
            continue
        codes, scales = unpack_pair(held(weight, Role.codes)), held(weight, Role.scales)
        more, more_zeros = counted(codes, scales)
        table += np.array(more)
        zeros, blocks = zeros + more_zeros, blocks + scales.size
        bias = bias_of(np.bincount(scales.ravel(), minlength=256).tolist(), weight.shape[-1])
        assert bias.bias in (127, None), bias
    assert blocks > 10_000
    assert "ocp" in fingerprint(table.tolist(), zeros).recipes
    assert "llama.cpp" not in fingerprint(table.tolist(), zeros).recipes


# --- bias ---


def scales_of(gain: float, recipe: str) -> NDArray[np.uint8]:
    weights = bf16(np.random.default_rng(3).standard_normal((ROWS, K)) * gain / K**0.5)
    return reference.quantize(weights, RECIPES[recipe])[1]


def histogram(scales: NDArray[np.uint8]) -> list[int]:
    counts: list[int] = np.bincount(scales.ravel(), minlength=256).tolist()
    return counts


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("gain", [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0])
def test_bias(gain: float, recipe: str) -> None:
    """Never the wrong one, where weights keep the size of what they multiply within a factor of three."""
    scales = scales_of(gain, recipe)
    good, shifted = bias_of(histogram(scales), K), bias_of(histogram(scales - 2), K)
    assert good.bias in (127, None)
    assert shifted.bias in (125, None)
    assert good.gain == pytest.approx(gain, rel=0.25)
    assert shifted.gain == pytest.approx(good.gain / 4)
    if gain >= 1.5:
        assert good.bias == 127
    if gain <= 0.75:
        assert shifted.bias == 125


def test_bias_of_what_compressed_tensors_wrote() -> None:
    """Its 0.13.0 stored `127 + floor(log2(scale)) - 2`; today's bytes, two lower, are those."""
    import torch
    from compressed_tensors.compressors.mx_utils import compress_mx_scale

    weights = torch.from_numpy(bf16(np.random.default_rng(4).standard_normal((ROWS, K)) * 0.7 / K**0.5))
    scale = 2.0 ** (weights.reshape(ROWS, -1, 32).abs().amax(-1).log2().floor() - 2)
    now = compress_mx_scale(scale, torch.uint8).numpy()
    assert bias_of(histogram(now), K).bias != 125
    found = bias_of(histogram(now - 2), K)
    assert found.bias == 125
    assert "if the bias is 125" in found.reason


def test_bias_of_what_says_nothing() -> None:
    zeros = [10_000] + [0] * 255
    assert bias_of(zeros, K).bias is None
    assert bias_of([0] * 255 + [10_000], K).bias is None
    few = [0] * 256
    few[120] = 255
    assert "too few" in bias_of(few, K).reason
    tiny = [0] * 256
    tiny[1] = 10_000
    assert bias_of(tiny, K).bias == 125  # a likelihood, and it says of what
    with pytest.raises(ValueError, match="256"):
        bias_of([1] * 255, K)
    with pytest.raises(ValueError, match="rows"):
        bias_of([1] * 256, 0)
