"""`ckpttool.validate`: the levels together, what is said before anything is read, and how the verdict comes about."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forward_runs import TINY
from range_server import serving

import ckpttool
from ckpttool.checkpoint import open_checkpoint
from ckpttool.errors import InputError, UsageError
from ckpttool.validator import claims, decision
from ckpttool.validator.budgets import Budget
from ckpttool.validator.drift import Drift
from ckpttool.validator.failures import Failure
from ckpttool.validator.metrics import Metrics
from ckpttool.validator.report import Forward, Histogram, Predictions, Validation
from ckpttool.validator.validation import Asked, Validator

pytestmark = pytest.mark.usefixtures("one_thread")


def copied(folder: Path, dialect: str = "hf", **config: Any) -> Path:
    shutil.copytree(TINY / dialect, folder)
    if config:
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, **config}))
    return folder


def validate(a: str | Path, b: str | Path, **how: Any) -> Validation:
    how = {"tokens": 40, **how} if how.get("level", "forward") == "forward" else how
    sides = (x if "://" in str(x) else TINY / x for x in (a, b))
    return ckpttool.validate(*sides, **how)


# --- the levels ---


def test_each_level_adds_to_the_one_before() -> None:
    for level in ("structure", "values", "forward"):
        report = validate("hf-bf16", "hf", level=level)
        assert (report.level, report.ok, report.failures) == (level, True, ())
        assert bool(report.parts) is (report.fidelity is not None) is (level != "structure")
        assert bool(report.layers) is (report.forward is not None) is (report.metrics is not None)
        assert (report.forward is not None) is (level == "forward")
        assert report.verdict == ("within budget" if level == "structure" else "exact")
    assert report.fidelity == "values"
    assert report.metrics is report.forward.on_text.metrics  # type: ignore[union-attr]
    assert [p.compared.part for p in report.parts] == list(open_checkpoint(TINY / "hf").shapes)


def test_sides_are_named_by_their_parts() -> None:
    report = validate("parent", "gguf/tiny-gpt-oss-auto.gguf", level="structure")
    assert (report.reference.dialect, report.reference.container) == ("hf-bf16", "safetensors")
    assert report.reference.formats == {"BF16": 79}
    assert report.candidate.arch == "gpt-oss"
    assert sum(report.candidate.formats.values()) == 79
    assert report.candidate.formats["MXFP4"] == 12
    assert list(report.candidate.formats.values()) == sorted(report.candidate.formats.values(), reverse=True)


def test_paths_and_opened_checkpoints_alike() -> None:
    opened = [open_checkpoint(TINY / x) for x in ("hf-bf16", "hf")]
    a = ckpttool.validate(opened[0], opened[1], level="values")
    assert a == ckpttool.validate(str(TINY / "hf-bf16"), TINY / "hf", level="values")


def test_progress_is_of_the_bytes_that_were_announced() -> None:
    for level in ("structure", "values", "forward"):
        told: list[int] = []
        validator = Validator(TINY / "parent", TINY / "hf", Asked(level, tokens=8))
        validator.run(workers=1, progress=told.append)
        assert sum(told) == validator.nbytes
        assert (validator.nbytes > 0) is (level != "structure")


def test_a_side_may_be_remote() -> None:
    file = TINY / "gguf" / "tiny-gpt-oss-auto.gguf"
    with serving({"/a.gguf": file}) as server:
        report = validate("hf", server.url("/a.gguf"))
    assert (report.verdict, report.fidelity) == ("exact", "values")
    assert report.candidate.source == server.url("/a.gguf")


# --- a level that fails does not stop the others ---


def test_a_missing_part_leaves_the_forward_pass_out(tmp_path: Path) -> None:
    folder = copied(tmp_path / "x", num_hidden_layers=5)
    report = validate("hf", folder)
    assert report.verdict == "failed"
    assert {f.level for f in report.failures} == {"structure"}
    assert {f.layer for f in report.failures if f.part} == {4}
    assert (report.forward, report.metrics, report.layers) == (None, None, ())
    assert report.fidelity == "bytes"
    (note,) = report.notes
    assert note.startswith("the forward pass was not run: ")


def test_a_wrong_setting_is_found_by_what_it_does_too(tmp_path: Path) -> None:
    report = validate("hf", copied(tmp_path / "x", rope_theta=10_000), tokens=100)
    stated, seen = report.failures
    assert stated.what == "config: rope.rope_theta is 10000 in the candidate, 150000 in the reference"
    assert (seen.level, seen.layer) == ("verdict", 0)
    assert seen.what.startswith("values are equal, but mean KL ")
    assert report.decided == (stated.what, seen.what)
    assert report.fidelity == "bytes"
    assert report.forward is not None
    assert report.forward.first_diverging == "layer.0"


def test_a_wrong_window_shows_behind_it(tmp_path: Path) -> None:
    report = validate("hf", copied(tmp_path / "x", sliding_window=16), tokens=16)
    assert [f.level for f in report.failures] == ["structure"]  # sixteen tokens cannot tell
    longer = validate("hf", copied(tmp_path / "y", sliding_window=16), tokens=60)
    assert [f.level for f in longer.failures] == ["structure", "verdict"]


def test_what_both_agree_on_and_cannot_be_run_is_an_error_and_no_note(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 256}
    a, b = (copied(tmp_path / name, rope_scaling=rope) for name in "ab")
    with pytest.raises(InputError, match=r"rope_type: is 'dynamic'; .*; --level values compares without"):
        validate(a, b)
    assert validate(a, b, level="values").verdict == "exact"


# --- said before anything is read ---


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr(claims, "judge_values", never)


@pytest.mark.usefixtures("unread")
def test_a_tokenizer_that_is_missing_or_broken(tmp_path: Path) -> None:
    folder = copied(tmp_path / "x")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer"):
        validate(folder, "hf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json is missing; .*--level values"):
        validate(folder, "openai")


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("library", ["torch", "tokenizers"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'ckpttool\[torch\]'; --level values needs none"):
        validate("hf", "hf")


def test_values_need_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torch", "tokenizers", "jinja2"):
        monkeypatch.setitem(sys.modules, library, None)
    assert validate("hf", "openai", level="values").verdict == "exact"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"level": "bytes"}, "--level bytes: unknown; use structure, values, forward"),
    ({"max_kl": -1.0}, "--max-kl -1 is no limit"),
    ({"max_kl": float("nan")}, "--max-kl nan is no limit"),
    ({"min_top1": 1.5}, "--min-top1 1.5 is no limit; give a share from 0 to 1"),
    ({"max_ppl_ratio": float("inf")}, "--max-ppl-ratio inf is no limit"),
    ({"min_sqnr": float("inf")}, "--min-sqnr inf is no limit"),
    ({"tokens": 1}, "1 token leaves nothing to predict"),
    ({"reasoning_effort": "low"}, "--reasoning-effort says nothing without --prompts"),
    ({"device": "tpu"}, "--device tpu: unknown"),
    ({"device": "cuda:0,cuda:1"}, "--device cuda:0,cuda:1: one device computes"),
]


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("how", "what"), BAD, ids=[next(iter(how)) for how, _ in BAD])
def test_options_that_cannot_be_met(how: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate("hf", "hf", **how)
    assert what in str(caught.value)


@pytest.mark.usefixtures("unread")
def test_files_that_are_not_there(tmp_path: Path) -> None:
    for how in ({"text": tmp_path / "no"}, {"prompts": tmp_path / "no"}):
        with pytest.raises((InputError, OSError, ckpttool.CkptError)):
            validate("hf", "hf", **how)


def test_options_of_another_level_are_noted() -> None:
    report = validate("hf", "hf", level="structure", max_kl=1.0, text="x", min_sqnr=3.0)
    assert report.notes == ("--min-sqnr, --text, --max-kl: without effect at level structure",)
    assert report.asked == {"max_kl": 1.0, "min_sqnr": 3.0}


# --- the verdict ---


def test_limits_that_were_asked_for_decide() -> None:
    kept = validate("parent", "hf", tokens=300)
    assert (kept.verdict, kept.budget.name, kept.asked) == ("within budget", "MXFP4", {})
    missed = validate("parent", "hf", tokens=300, max_kl=1e-6, min_top1=0.999)
    assert missed.verdict == "failed"
    assert (missed.budget.max_kl, missed.budget.min_top1, missed.budget.max_ppl_ratio) == (1e-6, 0.999, 1.15)
    assert {f.level for f in missed.failures} == {"verdict"}
    assert [f.what for f in missed.failures] == list(missed.decided)
    assert missed.decided[0].endswith("is above 1e-06 (MXFP4; --max-kl 1e-06 --min-top1 0.999)")
    strict = validate("parent", "hf", level="values", min_sqnr=40.0)
    assert len(strict.failures) == 12
    assert {(f.level, f.layer) for f in strict.failures} == {("values", n) for n in range(4)}


def figures(tokens: int = 1000, kl: float = 0.01, top1: float = 0.95, noise: float = 1e-12) -> Predictions:
    m = Metrics(tokens, 1, kl_mean=kl, top1=top1, ppl_ratio=1.0)
    return Predictions(m, replace(m, kl_mean=noise), None, Histogram((), (), 0))


def forward(on_text: Predictions, on_prompts: Predictions | None = None) -> Forward:
    none = Drift(0.0, 0.0, 0)
    return Forward(
        "packaged", 1, 1, "cpu", "FP32", 0.0, 0, None, none, none, none, None, None, on_text, on_prompts, 0, None
    )


BUDGET = Budget("MXFP4", 0.2, 0.8, 1.15, 15.0)


def decided(found: Forward, asked: dict[str, float] | None = None, fidelity: str = "lossy") -> tuple[str, str]:
    got = decision.decide([], fidelity, BUDGET, found, asked or {})
    return got.verdict, "; ".join(got.decided)


def test_prompts_are_held_to_the_budget_where_they_are_enough() -> None:
    assert decided(forward(figures(), figures(top1=0.9)))[0] == "within budget"
    verdict, why = decided(forward(figures(), figures(top1=0.5)))
    assert (verdict, why) == ("failed", "on prompts, top-1 0.5 is below 0.8 (MXFP4)")
    assert decided(forward(figures(), figures(decision.ENOUGH_TOKENS - 1, top1=0.5)))[0] == "within budget"
    assert decided(forward(figures(decision.ENOUGH_TOKENS - 1, top1=0.5)))[0] == "within budget"
    assert decided(forward(figures(decision.ENOUGH_TOKENS, top1=0.5)))[0] == "failed"
    verdict, why = decided(forward(figures(), figures(3, top1=0.5)), {"min_top1": 0.8})
    assert (verdict, why) == ("failed", "on prompts, top-1 0.5 is below 0.8 (MXFP4; --min-top1 0.8)")


def test_both_kinds_are_told_of() -> None:
    verdict, why = decided(forward(figures(), figures(kl=0.02)))
    assert verdict == "within budget"
    assert "; mean KL 0.01 is at most 0.2 (MXFP4); " in why
    assert "; on prompts, mean KL 0.02 is at most 0.2 (MXFP4); " in why
    assert why.count("SQNR") == 1
    verdict, why = decided(forward(figures(kl=1.0), figures(kl=2.0)))
    assert (verdict, why) == (
        "failed", "mean KL 1 is above 0.2 (MXFP4); on prompts, mean KL 2 is above 0.2 (MXFP4)",
    )  # fmt: skip


def test_text_that_fails_is_not_saved_by_prompts() -> None:
    verdict, why = decided(forward(figures(kl=1.0), figures()))
    assert (verdict, why) == ("failed", "mean KL 1 is above 0.2 (MXFP4)")


def test_equal_values_are_exact_by_prompts_too() -> None:
    same = figures(kl=0.0, top1=1.0)
    assert decided(forward(same, same), fidelity="values")[0] == "exact"
    verdict, why = decided(forward(same, figures(kl=1e-3, top1=1.0)), fidelity="values")
    assert (verdict, why) == (
        "failed", "on prompts, values are equal, but mean KL 0.001 is above the 1e-09 that rounding explains",
    )  # fmt: skip


def test_a_failure_has_a_layer_where_values_are_equal() -> None:
    told = decision.Verdict("failed", ("head: is missing", "values are equal, but mean KL 1 is above", "top-1 is low"))
    known = [Failure("head", None, "is missing", "structure")]
    more = list(decision.own_failures(told, known, "layer.3"))
    assert [(f.layer, f.level, f.what) for f in more] == [
        (3, "verdict", told.decided[1]), (None, "verdict", told.decided[2]),
    ]  # fmt: skip
    assert [f.layer for f in decision.own_failures(told, known, "head")] == [None, None]
    assert not list(decision.own_failures(replace(told, verdict="within budget"), known, "head"))


def test_few_answers_are_noted(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hello"}], "answer": "good morning"}\n')
    report = validate("parent", "hf", tokens=300, prompts=prompts)
    assert report.forward is not None
    assert report.forward.on_prompts is not None
    n = report.forward.on_prompts.metrics.tokens
    assert report.notes == (f"{n} tokens of answers are too few to be held to the budget of MXFP4; 256 decide",)
    more = validate("parent", "hf", tokens=2, prompts=prompts)
    assert more.notes == (
        "1 token of the text are too few to be held to the budget of MXFP4; 256 decide",
        *report.notes,
    )
    limits = {"min_top1": 0.0, "max_kl": 9.0, "max_ppl_ratio": 9.0}
    assert not validate("parent", "hf", tokens=300, prompts=prompts, **limits).notes
    assert not validate("hf-bf16", "hf", tokens=9, prompts=prompts).notes
