"""`validate` passes every conversion of ours between all dialects, and says of each what its plan claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forward_runs import FIXTURES, TINY

import ckpttool
from ckpttool.reports import Conversion
from ckpttool.validator.budgets import EXACT, WITHIN
from ckpttool.validator.report import Validation

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO = "gguf/tiny-gpt-oss-auto.gguf"
Q8_0 = "gguf/tiny-gpt-oss-q8_0.gguf"
SPLIT = "gguf/split/tiny-gpt-oss-auto-00001-of-00003.gguf"
SOURCES = ("parent", "hf", "hf-bf16", "openai", "unsloth", AUTO,
           "gguf/tiny-gpt-oss-bf16.gguf", Q8_0, SPLIT)  # fmt: skip
"""`parent` is what the model was trained in, BF16; all but it and Q8_0 hold MXFP4's values, in BF16 or as they are."""

TARGETS: dict[str, dict[str, Any]] = {
    "hf-bf16": {"to": "bf16"},
    "hf-bf16 in f32": {"to": "bf16", "dtype": "f32", "experts": "f32"},
    "hf-bf16 in shards": {"to": "bf16", "max_shard_size": "2MB"},
    "hf": {"to": "mxfp4"},
    "hf in f32": {"to": "mxfp4", "dtype": "f32"},
    "openai": {"to": "openai"},
    "auto.gguf": {"experts": "mxfp4"},
    "split.gguf": {"experts": "mxfp4", "max_shard_size": "1500KB"},
    "bf16.gguf": {"outtype": "bf16", "experts": "bf16"},
    "f16.gguf": {"outtype": "f16", "experts": "f16"},
    "f32.gguf": {"outtype": "f32", "experts": "f32"},
    "q8_0.gguf": {"outtype": "q8_0"},
    "mxfp4_moe.gguf": {"outtype": "mxfp4_moe"},
}  # fmt: skip

F32 = {"hf-bf16 in f32", "f32.gguf"}
BF16 = F32 | {"hf-bf16", "hf-bf16 in shards", "bf16.gguf"}
MXFP4 = {"hf", "hf in f32", "openai", "auto.gguf", "split.gguf"}
NO_LOSS = {"parent": BF16, Q8_0: F32 | {"q8_0.gguf"}}
"""Targets that keep every value of these; of the other sources, whose experts are MXFP4's values, BF16 and MXFP4 do."""

PAIRS = [(s, t) for s in SOURCES for t in TARGETS if s != Q8_0 or t not in MXFP4 | {"mxfp4_moe.gguf"}]
"""All but those that would quantize again what is quantized, which `convert` refuses."""

FORWARD = (("hf", "auto.gguf"), (AUTO, "hf-bf16"), ("parent", "hf"), ("parent", "q8_0.gguf"),
           ("parent", "f16.gguf"), ("openai", "split.gguf"))  # fmt: skip
"""Pairs that go through the forward pass too: one of each fidelity, dialect and container."""


def converted(source: str, target: str, folder: Path) -> tuple[Path, Conversion]:
    """What is there to be validated, and its receipt."""
    path = folder / target.replace(" ", "-")
    beside = {"reference": TINY / "hf"} if source == "openai" else {}  # it has no tokenizer
    receipt = ckpttool.convert(TINY / source, path, workers=1, device="cpu", **beside, **TARGETS[target])
    return next(iter(sorted(folder.glob("*-00001-of-*.gguf"))), path), receipt


def claimed(receipt: Conversion) -> str:
    """The lowest fidelity of all that was written."""
    return next(f for f in ("lossy", "values", "bytes") if receipt.fidelity[f])


def passes(report: Validation, source: str, target: str, receipt: Conversion) -> None:
    """The fidelity is the plan's claim, or where quantizing changed no value, better."""
    without_loss = target in NO_LOSS.get(source, BF16 | MXFP4)
    promised = claimed(receipt)
    assert report.failures == ()
    assert report.ok
    assert report.fidelity == ("values" if promised == "lossy" and without_loss else promised)
    assert report.verdict == (EXACT if without_loss else WITHIN)
    assert len(report.parts) == 79
    assert all(part.proof is not None for part in report.parts)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_conversion_of_ours(source: str, target: str, tmp_path: Path) -> None:
    path, receipt = converted(source, target, tmp_path)
    passes(ckpttool.validate(TINY / source, path, level="values", workers=1), source, target, receipt)


@pytest.mark.parametrize(("source", "target"), FORWARD)
def test_and_its_forward_pass(source: str, target: str, tmp_path: Path) -> None:
    path, receipt = converted(source, target, tmp_path)
    report = ckpttool.validate(TINY / source, path, text=FIXTURES / "heldout.txt", tokens=256, device="cpu", workers=1)
    passes(report, source, target, receipt)
    assert report.forward is not None and report.metrics is not None and report.metrics.kl_mean is not None
    if report.fidelity == "lossy":
        assert report.metrics.kl_mean > 0
        assert report.forward.first_diverging is not None
    else:
        assert report.metrics.kl_mean == 0
        assert report.metrics.ppl_ratio == 1
        assert all(layer.drift == layer.flips == 0 for layer in report.layers)


@pytest.mark.parametrize("dialect", SOURCES)
def test_a_checkpoint_is_itself(dialect: str) -> None:
    report = ckpttool.validate(TINY / dialect, TINY / dialect, level="values", workers=1)
    assert (report.verdict, report.fidelity, report.failures) == (EXACT, "bytes", ())


@pytest.mark.parametrize("candidate", [s for s in SOURCES if s not in NO_LOSS])
def test_what_others_have_converted_without_loss(candidate: str) -> None:
    """transformers, llama.cpp and OpenAI's layout by hand: all of one model."""
    for reference in ("hf", "hf-bf16"):
        report = ckpttool.validate(TINY / reference, TINY / candidate, level="values", workers=1)
        assert (report.verdict, report.failures) == (EXACT, ())
        assert report.fidelity in ("bytes", "values")


@pytest.mark.parametrize("name", ["q8_0", "mxfp4_moe"])
def test_what_llama_cpp_has_quantized(name: str) -> None:
    path = TINY / "gguf" / f"tiny-gpt-oss-{name}.gguf"
    report = ckpttool.validate(TINY / "hf-bf16", path, level="values", workers=1)
    assert (report.verdict, report.fidelity, report.failures) == (WITHIN, "lossy", ())
