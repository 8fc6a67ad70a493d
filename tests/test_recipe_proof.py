"""Which recipe made the candidate's MXFP4, by bits alone: every recipe, from every source, and by way of others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import builders
import numpy as np
import pytest
from builders import Model, Packed, Sizes, Tensor, Tensors
from numpy.typing import NDArray
from test_claims import judge, proofs, told

from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs import reference
from ckpttool.codecs.formats import RECIPES, Recipe, ScaleRule, TieRule
from ckpttool.validator import trials
from ckpttool.validator.claims import ValuesFound
from ckpttool.validator.recipes import Maker, makers, stated_recipe

MODEL = Model(Sizes(layers=2, experts=4, hidden=256, intermediate=320))
PARTS = [f"layer.{n}.{p}" for n in range(2) for p in ("gate", "up", "down")]
Values = Mapping[str, NDArray[np.float32]]


def drawn(seed: int = 0) -> Values:
    """Random experts by part, with blocks of zeros, zeros of both signs, and numbers below what F16 holds in full."""
    rng = np.random.default_rng(seed)
    s = MODEL.sizes
    out = {}
    for part in PARTS:
        rows, k = (s.hidden, s.intermediate) if part.endswith("down") else (s.intermediate, s.hidden)
        x = rng.normal(0, 0.02, (s.experts, rows, k)).astype(np.float32)
        x[0, 3, :32] = 0
        x[1, 4, 32:64] *= np.float32(2**-20)
        x[2, 5, 7] = -0.0
        out[part] = x
    return out


def bf16_values(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return builders.widened(builders.bf16(x))


def f16_values(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.astype(np.float16).astype(np.float32)


NARROWED: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "F32": lambda x: x, "BF16": bf16_values, "F16": f16_values,
}  # fmt: skip


def fused(values: Values, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    gate, up, down = (values[f"layer.{n}.{p}"] for p in ("gate", "up", "down"))
    return builders.interleaved(gate, up), down


def write_source(at: Path, values: Values, dtype: str) -> Path:
    """hf-bf16's names, experts transposed, in BF16, F16 or F32."""

    def change(t: Tensors) -> None:
        for n in range(2):
            for name, x in zip(("gate_up_proj", "down_proj"), fused(values, n), strict=True):
                wide = np.ascontiguousarray(x.swapaxes(1, 2))
                array = builders.bf16(wide) if dtype == "BF16" else wide.astype(builders.NUMPY[dtype])
                t[f"model.layers.{n}.mlp.experts.{name}"] = Tensor(dtype, array)

    return builders.write(MODEL, at, "hf-bf16", change=change)


def quantized(x: NDArray[np.float32], recipe: Recipe) -> Packed:
    """By the definition, in Hugging Face's packing."""
    codes, scales = reference.quantize(x, recipe)
    return Packed(codes[..., 0::2] | codes[..., 1::2] << 4, scales)


def write_made(at: Path, values: Values, recipe: Recipe, change: builders.Change = lambda t: None) -> Path:
    def made(t: Tensors) -> None:
        for n in range(2):
            for name, x in zip(("gate_up_proj", "down_proj"), fused(values, n), strict=True):
                w = quantized(x, recipe)
                t[f"model.layers.{n}.mlp.experts.{name}_blocks"] = Tensor("U8", w.blocks)
                t[f"model.layers.{n}.mlp.experts.{name}_scales"] = Tensor("U8", w.scales)
        change(t)

    return builders.write(MODEL, at, "hf", change=made)


def of_experts(found: ValuesFound) -> Counter[str | None]:
    return Counter(p.proof for p in found.parts if p.compared.part in PARTS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("sources")
    return {dtype: write_source(at / dtype, drawn(), dtype) for dtype in NARROWED}


ODD = Recipe("even/away without -0", ScaleRule.even, TieRule.away, keeps_negative_zero=False)


@pytest.mark.parametrize("dtype", NARROWED)
@pytest.mark.parametrize("recipe", [*RECIPES.values(), ODD], ids=lambda r: r.name)
def test_every_recipe_is_found(tmp_path: Path, sources: Mapping[str, Path], recipe: Recipe, dtype: str) -> None:
    """F32 has next to no ties: rules that differ for them alone then make the same, and the first of them is named."""
    values = {part: NARROWED[dtype](x) for part, x in drawn().items()}
    made = write_made(tmp_path / "x", values, recipe)
    found = judge(sources[dtype], made)
    assert found.failures == ()
    assert found.notes == ()
    alike = [
        r.name for r in (*RECIPES.values(), ODD)
        if all(np.array_equal(a, b) for p in PARTS for a, b in
               zip(quantized(values[p], r), quantized(values[p], recipe), strict=True))
    ]  # fmt: skip
    assert recipe.name in alike
    assert dtype != "BF16" or alike == [recipe.name]
    ((proof, count),) = of_experts(found).items()
    assert count == len(PARTS)
    assert proof == f"recipe {recipe.name}" or (dtype != "BF16" and proof is not None and "by way" not in proof)
    for part in found.parts:
        if part.compared.part in PARTS:
            assert part.compared.sqnr is not None
            assert len(part.compared.experts) == MODEL.sizes.experts
            assert all(e.max_abs > 0 and e.sqnr is not None for e in part.compared.experts)


@pytest.mark.parametrize(("dtype", "via"), [("F32", "BF16"), ("F32", "F16"), ("F16", "BF16"), ("BF16", "F16")])
@pytest.mark.parametrize("recipe", ["best", "transformers", "llama.cpp"])
def test_by_way_of_another_format(
    tmp_path: Path, sources: Mapping[str, Path], dtype: str, via: str, recipe: str
) -> None:
    """Weights that are cast before they are quantized: a few blocks come out otherwise, and none of them is damaged."""
    values = {part: NARROWED[via](NARROWED[dtype](x)) for part, x in drawn().items()}
    found = judge(sources[dtype], write_made(tmp_path / "x", values, RECIPES[recipe]))
    assert found.failures == ()
    assert of_experts(found) == {f"recipe {recipe} by way of {via}": len(PARTS)}


def off_by_one(t: Tensors) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj_scales"
    array = t[name].array.copy()
    array[3, 2 * 17 + 1, 6] -= 1
    t[name] = Tensor("U8", array)


@pytest.mark.parametrize("dtype", NARROWED)
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_scale_byte_off_by_one_is_named(
    tmp_path: Path, sources: Mapping[str, Path], recipe: str, dtype: str
) -> None:
    values = {part: NARROWED[dtype](x) for part, x in drawn().items()}
    found = judge(sources[dtype], write_made(tmp_path / "x", values, RECIPES[recipe], off_by_one))
    scale = int(quantized(values["layer.1.up"], RECIPES[recipe]).scales[3, 17, 6])
    ((part, what),) = told(found).items()
    assert part == "layer.1.up"
    assert what.startswith("1 of 10,240 blocks is not what recipe ")
    assert what.endswith(f"makes of the reference, at expert 3, row 17, block 6: scale byte {scale - 1}, not {scale}")
    assert Counter(proofs(found)[p] is None for p in PARTS) == {True: 1, False: 5}


def test_ties_that_the_sample_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rules that differ for one block alone, which is not looked at before all are: the second is tried then."""
    monkeypatch.setattr(trials, "SLABS", 2)
    values = {part: x.copy() for part, x in drawn().items()}
    block = np.full(32, 2.5 / 64, np.float32)  # halfway between 2 and 3: even takes 2, and so does zero; away takes 3
    block[0], block[1] = 4 / 64, 0.25 / 64  # a quarter is halfway between 0 and a half
    values["layer.0.up"][2, 9, 32:64] = block
    source = write_source(tmp_path / "a", values, "F32")
    for recipe, other in (("rceil", "transformers"), ("transformers", "rceil")):
        made = write_made(tmp_path / recipe, values, RECIPES[recipe])
        assert not np.array_equal(*(quantized(block, RECIPES[r]).blocks for r in (recipe, other)))
        found = judge(source, made)
        assert found.failures == ()
        ((proof, _),) = of_experts(found).items()
        assert proof in {"rceil": ("recipe rceil", "recipe modelopt"), "transformers": ("recipe transformers",)}[recipe]
        broken = judge(source, write_made(tmp_path / f"{recipe}-broken", values, RECIPES[recipe], off_by_one))
        assert set(told(broken)) == {"layer.1.up"}
        assert told(broken)["layer.1.up"].startswith("1 of 10,240 blocks is not what recipe ")


def clipped(x: NDArray[np.float32]) -> Packed:
    """A rule that is none of ours: the scale from the 31st largest of 32, all above it saturated."""
    blocks = np.abs(x).reshape(*x.shape[:-1], -1, 32)
    limit = np.sort(blocks, -1)[..., 28:29]
    cut = np.clip(x.reshape(*x.shape[:-1], -1, 32), -limit, limit).reshape(x.shape).astype(np.float32)
    return quantized(cut, RECIPES["best"])


def test_a_rule_that_nobody_knows_has_a_budget(tmp_path: Path, sources: Mapping[str, Path]) -> None:
    def change(t: Tensors) -> None:
        for n in range(2):
            for name, x in zip(("gate_up_proj", "down_proj"), fused(values, n), strict=True):
                w = clipped(x)
                t[f"model.layers.{n}.mlp.experts.{name}_blocks"] = Tensor("U8", w.blocks)
                t[f"model.layers.{n}.mlp.experts.{name}_scales"] = Tensor("U8", w.scales)

    values = {part: bf16_values(x) for part, x in drawn().items()}
    made = write_made(tmp_path / "x", values, RECIPES["best"], change)
    found = judge(sources["BF16"], made, min_sqnr=8.0)
    assert found.failures == ()
    assert of_experts(found) == {"budget": len(PARTS)}
    assert found.notes == (
        "no way that is known here makes the candidate's MXFP4 of BF16: 6 parts are held to a budget",
    )
    assert {f.part for f in judge(sources["BF16"], made, min_sqnr=25.0).failures} == set(PARTS)


def test_what_no_rule_makes_is_damage_even_of_a_rule_that_nobody_knows(
    tmp_path: Path, sources: Mapping[str, Path]
) -> None:
    """Two rows of an expert that have changed places hardly move its SQNR; zeros would be nearer to either."""

    def change(t: Tensors) -> None:
        for n in range(2):
            for name, x in zip(("gate_up_proj", "down_proj"), fused(values, n), strict=True):
                w = clipped(x)
                if (n, name) == (1, "down_proj"):
                    for a in w:
                        a[2, [30, 200]] = a[2, [200, 30]]
                t[f"model.layers.{n}.mlp.experts.{name}_blocks"] = Tensor("U8", w.blocks)
                t[f"model.layers.{n}.mlp.experts.{name}_scales"] = Tensor("U8", w.scales)

    values = {part: bf16_values(x) for part, x in drawn().items()}
    found = judge(sources["BF16"], write_made(tmp_path / "x", values, RECIPES["best"], change), min_sqnr=8.0)
    ((part, what),) = told(found).items()
    assert part == "layer.1.down"
    assert what.startswith(
        "20 of 10,240 blocks are not what any rule makes of the reference, the first at expert 2, row 30, block 0: "
    )


def test_what_is_spread_over_all_is_said_to_be_a_rule_or_a_fault(tmp_path: Path, sources: Mapping[str, Path]) -> None:
    """One block in 127 by another rule, in every part: it fails, and the note says what else it could be."""

    def change(t: Tensors) -> None:
        for name in (name for name in t if name.endswith("_proj_scales")):
            array = t[name].array.copy()
            array.reshape(-1)[::127] += 1
            t[name] = Tensor("U8", array)

    values = {part: bf16_values(x) for part, x in drawn().items()}
    found = judge(sources["BF16"], write_made(tmp_path / "x", values, RECIPES["ocp"], change))
    assert set(told(found)) == set(PARTS)
    assert found.notes == (
        "6 of 6 lossy parts are nearly what recipe ocp makes of BF16, and not wholly: a rule that is not known here "
        "would look like that, and a fault in all too",
    )


def test_a_receipt_is_believed_as_far_as_the_blocks_bear_it_out(tmp_path: Path, sources: Mapping[str, Path]) -> None:
    values = {part: bf16_values(x) for part, x in drawn().items()}
    made = write_made(tmp_path / "x", values, RECIPES["even"])
    for named, notes in (
        ("even", ()),
        ("ocp", ("the receipt says recipe ocp; made of the reference by recipe even",)),
    ):
        recipe = {"name": named, "scale": "even", "ties": "even", "keeps_negative_zero": True}
        (made / "ckpttool.receipt.json").write_text(json.dumps({"schema": "conversion.v1", "recipe": recipe}), "utf-8")
        assert stated_recipe(open_checkpoint(made)) == RECIPES[named]
        found = judge(sources["BF16"], made)
        assert (found.failures, found.notes) == ((), notes)
        assert of_experts(found) == {"recipe even": len(PARTS)}
    (made / "ckpttool.receipt.json").write_text("no JSON", "utf-8")
    assert stated_recipe(open_checkpoint(made)) is None
    assert of_experts(judge(sources["BF16"], made)) == {"recipe even": len(PARTS)}


def test_a_receipt_comes_first_among_equals() -> None:
    assert makers("F32", "MXFP4", RECIPES["modelopt"])[0] == Maker(RECIPES["modelopt"])
    assert [m.recipe for m in makers("BF16", "MXFP4")[:7]] == list(RECIPES.values())
    ways = makers("F32", "MXFP4")
    assert len(set(ways)) == len(ways) == 3 * 24
    assert [m.name for m in makers("F32", "BF16")] == ["rounding", "rounding by way of F16"]
    assert [m.name for m in makers("Q4_K", "BF16")] == ["rounding"]


def test_a_reference_that_holds_no_numbers_cannot_be_quantized(tmp_path: Path) -> None:
    """A NaN in it has no MXFP4: the block that holds it is another in any candidate."""
    values = {part: bf16_values(x) for part, x in drawn().items()}
    made = write_made(tmp_path / "x", values, RECIPES["best"])
    values["layer.0.down"][1, 6, 40] = np.nan
    found = judge(write_source(tmp_path / "a", values, "F32"), made)
    assert set(told(found)) == {"layer.0.down"}
    assert re.fullmatch(
        r"1 of 10,240 blocks is not what recipe best makes of the reference, at expert 1, row 6, block 1: "
        r"-?[\d.e-]+, and the reference has nan", told(found)["layer.0.down"],
    )  # fmt: skip


def test_an_expert_that_holds_no_numbers_at_all(tmp_path: Path, sources: Mapping[str, Path]) -> None:
    """All its blocks are others, and one of a neighbour is found beside them."""
    values = {part: bf16_values(x) for part, x in drawn().items()}
    made = write_made(tmp_path / "x", values, RECIPES["best"], off_by_one)
    values["layer.1.up"][1] = np.nan
    values["layer.1.up"][2, 5, 64:] = np.inf
    found = judge(write_source(tmp_path / "a", values, "BF16"), made)
    blocks = values["layer.1.up"][0].size // 32
    ((part, what),) = told(found).items()
    assert part == "layer.1.up"
    assert what.startswith(
        f"{blocks + 6 + 1:,} of 10,240 blocks are not what recipe best makes of the reference, in 3 experts, "
        "the first at expert 1, row 0, block 0: "
    )
    assert what.endswith(", and the reference has nan")
