"""Budgets: what is converted rightly keeps them, what is mixed up does not; and what decides a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

import ckpttool
from ckpttool.codecs.formats import RECIPES
from ckpttool.comparison.parts import ExpertErrors, PartComparison, Status
from ckpttool.validator.budgets import (
    BUDGETS,
    EXACT,
    FAILED,
    NO_LOSS,
    OTHER,
    WITHIN,
    Budget,
    budget_for,
    budget_of,
    part_failures,
    verdict,
)
from ckpttool.validator.failures import Failure
from ckpttool.validator.metrics import Metrics

ROOT = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
MXFP4 = budget_of("MXFP4")
GOOD = Metrics(100, 1, kl_mean=0.02, top1=0.9, top5=1.0, ppl_reference=9.0, ppl_candidate=9.1, ppl_ratio=1.01)


def lossy(**more: Any) -> PartComparison:
    made = PartComparison("layer.3.up", Status.lossy, (4, 8), (4, 8), "BF16", "MXFP4", 30, 0, 0, 0.1, 0.1, 18.5)
    return replace(made, **more)


# --- budgets by format ---


def test_the_strictest_come_first() -> None:
    for a, b in zip(BUDGETS, (*BUDGETS[1:], OTHER), strict=True):
        assert a.max_kl <= b.max_kl
        assert a.min_top1 >= b.min_top1
        assert a.max_ppl_ratio <= b.max_ppl_ratio
        assert a.min_sqnr > b.min_sqnr


def test_of_several_formats_the_most_lenient_counts() -> None:
    assert budget_of("F16+BF16").name == "BF16"
    assert budget_of("Q4_K") is budget_of("MXFP4+NVFP4") is budget_of(None) is OTHER
    parts = [lossy(format_b="F16"), lossy(format_b="MXFP4"), lossy(format_b="Q4_K", status=Status.values)]
    assert budget_for(parts).name == "MXFP4"
    assert budget_for([lossy(status=Status.bytes), lossy(status=Status.values)]) is NO_LOSS


def test_what_the_user_asks_for_goes_first() -> None:
    asked = MXFP4.overridden(max_kl=0.0, min_sqnr=30.0)
    assert asked == Budget("MXFP4", 0.0, MXFP4.min_top1, MXFP4.max_ppl_ratio, 30.0)
    assert MXFP4.overridden() is MXFP4


# --- parts ---


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_keeps_its_budget(tmp_path: Path, recipe: str) -> None:
    ckpttool.convert(ROOT / "parent", tmp_path / "x", to="mxfp4", recipe=recipe, device="cpu")
    parts = ckpttool.compare(ROOT / "parent", tmp_path / "x").parts
    assert budget_for(parts) is MXFP4
    assert part_failures(parts) == []
    lowest = min(e.sqnr for p in parts for e in p.experts)
    assert 18.0 < lowest < 19.0  # what the module's table says, and three decibels above the budget
    assert len(part_failures(parts, min_sqnr=19.0)) == 12


@pytest.mark.parametrize(("outtype", "name"), [("q8_0", "Q8_0"), ("f16", "F16")])
def test_other_formats_keep_theirs(tmp_path: Path, outtype: str, name: str) -> None:
    ckpttool.convert(ROOT / "parent", tmp_path / "x.gguf", outtype=outtype, device="cpu")
    parts = ckpttool.compare(ROOT / "parent", tmp_path / "x.gguf").parts
    assert budget_for(parts).name == name
    assert part_failures(parts) == []


def test_llama_cpps_own_formats_keep_theirs() -> None:
    made = ROOT / "gguf" / "tiny-gpt-oss-q4_k_m.gguf"
    parts = ckpttool.compare(ROOT / "hf", made).parts
    assert budget_for(parts) is OTHER
    assert part_failures(parts) == []
    # It was not made from the parent but by way of MXFP4: what is called Q8_0 in it has lost more than Q8_0 does.
    found = part_failures(ckpttool.compare(ROOT / "parent", made).parts)
    assert {f.what.split(" is ")[1] for f in found} == {"below the 35 dB of Q8_0"}


def blocks(edit: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], which: str) -> builders.Change:
    """An edit of layer 1's gate and up, blocks or scales."""

    def change(t: builders.Tensors) -> None:
        name = f"model.layers.1.mlp.experts.gate_up_proj_{which}"
        t[name] = t[name]._replace(array=edit(t[name].array.copy()))

    return change


def experts_swapped(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a[[1, 0, *range(2, len(a))]]


def gate_and_up_swapped(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a.reshape(a.shape[0], -1, 2, *a.shape[2:])[:, :, ::-1].reshape(a.shape)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [([blocks(experts_swapped, "blocks"), blocks(experts_swapped, "scales")], {"gate", "up"}),
     ([blocks(gate_and_up_swapped, "blocks"), blocks(gate_and_up_swapped, "scales")], {"gate", "up"}),
     ([blocks(lambda a: a << 4 | a >> 4, "blocks")], {"gate", "up"}),
     ([blocks(lambda a: a + (np.arange(len(a)) == 2).astype(np.uint8)[:, None, None], "scales")], {"gate", "up"}),
     ([blocks(lambda a: a - (np.arange(a.shape[1]) % 2 == 1).astype(np.uint8)[:, None], "scales")], {"up"})],
    ids=["experts", "gate and up", "nibbles", "scales of one expert doubled", "scales of up halved"],
)  # fmt: skip
def test_what_is_mixed_up_does_not(tmp_path: Path, changes: list[builders.Change], parts: set[str]) -> None:
    """Against the BF16 parent, where nothing is exact anyway."""
    tensors = builders.read(ROOT / "hf")
    for change in changes:
        change(tensors)
    builders.save(tmp_path / "model.safetensors", tensors)
    for side in ("config.json", "tokenizer.json"):
        (tmp_path / side).write_bytes((ROOT / "hf" / side).read_bytes())
    found = part_failures(ckpttool.compare(ROOT / "parent", tmp_path).parts)
    assert {(f.part, f.layer) for f in found} == {(f"layer.1.{p}", 1) for p in parts}
    for failure in found:
        assert "of expert" in failure.what
        assert float(failure.what.split(" dB")[0].split()[-1]) < 7  # doubled or halved 0 to 6 dB, mixed up below 3
        assert failure.what.endswith("is below the 15 dB of MXFP4")


def test_one_expert_of_many() -> None:
    part = lossy(sqnr=30.0, experts=(ExpertErrors(5, 3, 0, 1.0, 0.5, 6.0), ExpertErrors(9, 3, 0, 1.0, 0.5, -3.0)))
    assert part_failures([part]) == [
        Failure("layer.3.up", 3, "SQNR -3.0 dB of expert 9 is below the 15 dB of MXFP4", "values")
    ]
    assert part_failures([part], min_sqnr=-4) == []


@pytest.mark.parametrize(
    ("part", "what"),
    [(lossy(sqnr=14.9), "SQNR 14.9 dB is below the 15 dB of MXFP4"), (lossy(sqnr=15.0), None),
     (lossy(nonfinite=3), "3 of 32 values are not the reference's, and not finite on one side or both"),
     (lossy(differing=None), "differs, and its values cannot be compared (BF16, MXFP4)"),
     (lossy(sqnr=None), "SQNR without any signal is below the 15 dB of MXFP4"), (lossy(status=Status.bytes), None),
     (lossy(status=Status.only_a), None)],
)  # fmt: skip
def test_parts_one_by_one(part: PartComparison, what: str | None) -> None:
    assert [f.what for f in part_failures([part])] == ([what] if what else [])


# --- verdicts ---


@pytest.mark.parametrize("fidelity", ["bytes", "values"])
def test_exact(fidelity: str) -> None:
    assert verdict([], fidelity=fidelity).verdict == EXACT
    equal = replace(GOOD, kl_mean=0.0, top1=1.0, ppl_ratio=1.0)
    assert verdict([], fidelity=fidelity, metrics=equal).verdict == EXACT
    assert verdict([], fidelity=fidelity, metrics=replace(equal, kl_mean=9e-10)).verdict == EXACT
    assert verdict([], fidelity=fidelity, metrics=replace(equal, kl_mean=9e-4), noise_floor=1e-4).verdict == EXACT
    for metrics, floor in ((replace(equal, kl_mean=2e-9), None), (replace(equal, kl_mean=2e-3), 1e-4)):
        found = verdict([], fidelity=fidelity, metrics=metrics, noise_floor=floor)
        assert found.verdict == FAILED
        assert "values are equal, but mean KL" in found.decided[0]


def test_within_budget() -> None:
    found = verdict([], fidelity="lossy", budget=MXFP4, metrics=GOOD)
    assert found.verdict == WITHIN
    assert found.decided == (
        "every lossy part keeps its SQNR (MXFP4: 15 dB)", "mean KL 0.02 is at most 0.2 (MXFP4)",
        "top-1 0.9 is at least 0.8 (MXFP4)", "perplexity ratio 1.01 is at most 1.15 (MXFP4)",
    )  # fmt: skip
    assert verdict([], fidelity=None).verdict == WITHIN
    assert verdict([], fidelity="lossy", budget=MXFP4).verdict == WITHIN


@pytest.mark.parametrize(
    ("change", "what"),
    [({"kl_mean": 0.21}, "mean KL 0.21 is above 0.2 (MXFP4)"), ({"top1": 0.79}, "top-1 0.79 is below 0.8 (MXFP4)"),
     ({"ppl_ratio": 1.16}, "perplexity ratio 1.16 is above 1.15 (MXFP4)")],
)  # fmt: skip
def test_over_budget(change: dict[str, float], what: str) -> None:
    found = verdict([], fidelity="lossy", budget=MXFP4, metrics=replace(GOOD, **change))
    assert (found.verdict, found.decided) == (FAILED, (what,))


def test_a_limit_that_is_asked_for_holds_for_exact_ones_too() -> None:
    metrics = replace(GOOD, kl_mean=0.0, top1=0.5)
    assert verdict([], fidelity="bytes", budget=NO_LOSS.overridden(min_top1=0.9), metrics=metrics).verdict == FAILED


def test_a_failure_fails_whatever_the_figures() -> None:
    failures = [Failure("layer.3.up", 3, "is missing", "structure"), Failure(None, None, "config: x", "structure")]
    found = verdict(failures, fidelity="bytes")
    assert (found.verdict, found.decided) == (FAILED, ("layer.3.up: is missing", "config: x"))


@pytest.mark.parametrize("fidelity", ["bytes", "lossy"])
def test_no_token_is_no_proof(fidelity: str) -> None:
    found = verdict([], fidelity=fidelity, budget=MXFP4, metrics=Metrics(0, 0))
    assert (found.verdict, found.decided) == (FAILED, ("not one token could be measured",))
