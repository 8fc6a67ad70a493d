"""The diff command and its report: verdicts, exit codes, the document, config by meaning, tokenizer and templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import safetensors.numpy
from builders import Model, Sizes, Tensors
from commandline import run
from jsonschema import Draft202012Validator

import ckpttool
from ckpttool.comparison.config import FieldDifference, Said, changes_forward, config_differences, flat
from ckpttool.diff import Diff, compare

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "fixtures" / "tiny-gpt-oss"
AUTO = FIXTURE / "gguf" / "tiny-gpt-oss-auto.gguf"
SCHEMA = json.loads((ROOT / "schemas" / "diff.v1.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at, model = tmp_path_factory.mktemp("small"), Model(Sizes(layers=1))
    out = {d: builders.write(model, at / d, d) for d in ("hf", "hf-bf16", "unsloth", "openai")}
    return out | {"gguf": builders.write_gguf(model, at / "m.gguf")}


def document(*argv: str | Path) -> dict[str, Any]:
    result = run("diff", *argv, "--json")
    found = result.document
    Draft202012Validator(SCHEMA).validate(found)
    assert result.code == (1 if found["identical"] is False else 0)
    assert result.err == ""
    return found


VERDICTS = [
    ("hf", "hf", "identical bytes, all parts (79)", 0),
    ("hf", "openai", "identical bytes, all parts (79)", 0),
    ("hf-bf16", "unsloth", "identical bytes, all parts (79)", 0),
    ("hf", "gguf/tiny-gpt-oss-auto.gguf", "identical values, all parts (79)", 0),
    ("hf-bf16", "gguf/tiny-gpt-oss-auto.gguf", "identical values, all parts (79)", 0),
    ("gguf/split/tiny-gpt-oss-auto-00001-of-00003.gguf", "hf", "identical values, all parts (79)", 0),
    ("parent", "hf", "12 of 79 parts differ", 1),
    ("parent", "gguf/tiny-gpt-oss-q4_k_m.gguf", "30 of 79 parts differ", 1),
]


@pytest.mark.parametrize(("a", "b", "verdict", "code"), VERDICTS)
def test_the_verdict_comes_first(a: str, b: str, verdict: str, code: int) -> None:
    result = run("diff", FIXTURE / a, FIXTURE / b)
    assert (result.out.splitlines()[0], result.code, result.err) == (verdict, code, "")
    found = document(FIXTURE / a, FIXTURE / b)
    assert (found["verdict"], found["identical"], found["compared"]) == (verdict, code == 0, "values")
    assert sum(found["counts"].values()) == len(found["parts"]) == 79


def test_the_worst_ten_are_shown_worst_first() -> None:
    out = run("diff", FIXTURE / "parent", FIXTURE / "hf").out
    assert "(the 10 worst of 12)" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("layer.")]
    assert len(rows) == 10
    relative = [float(row[5]) for row in rows]
    assert relative == sorted(relative, reverse=True)
    found = document(FIXTURE / "parent", FIXTURE / "hf")
    worst = max((p for p in found["parts"] if p["status"] == "lossy"), key=lambda p: p["relative"])
    assert rows[0][0] == worst["part"]
    assert rows[0][5:7] == [f"{worst['relative']:.4g}", f"{worst['sqnr']:.2f}"]


def test_errors_are_null_where_nothing_differs() -> None:
    for p in document(FIXTURE / "hf", AUTO)["parts"]:
        assert (p["max_abs"], p["relative"], p["sqnr"], p["experts"]) == (None, None, None, [])
        assert (p["differing"], p["nonfinite"]) == (0, 0)
    lossy = [p for p in document(FIXTURE / "parent", AUTO)["parts"] if p["status"] == "lossy"]
    assert len(lossy) == 12
    for p in lossy:
        assert p["max_abs"] > 0
        assert 0 < p["relative"] < 1
        assert p["sqnr"] > 0
        assert [e["expert"] for e in p["experts"]] == [0, 1, 2, 3]


def test_one_changed_scale_is_named_with_its_expert_and_row(small: dict[str, Path], tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        t["model.layers.0.mlp.experts.gate_up_proj_scales"].array[2, 11, 1] += 1  # row 5 of up

    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf", change=change)
    for other in ("hf", "gguf", "hf-bf16"):
        result = run("diff", small[other], b)
        assert result.out.startswith("1 of 22 parts differ\n")
        row = next(line for line in result.out.splitlines() if line.startswith("layer.0.up"))
        assert "expert 2, row 5, column" in row
        assert "1 of 3" in row
    found = document(small["hf"], b)
    part = next(p for p in found["parts"] if p["status"] == "lossy")
    assert part["part"] == "layer.0.up"
    assert (part["first"]["expert"], part["first"]["row"]) == (2, 5)


def test_what_is_missing_or_misshapen_is_listed_and_exits_1(small: dict[str, Path], tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        del t["model.layers.0.self_attn.q_proj.bias"]
        t["stray"] = builders.Tensor("F32", np.ones((2, 3), np.float32))
        t["model.norm.weight"] = builders.Tensor("BF16", t["model.norm.weight"].array[1:])

    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf", change=change)
    out = run("diff", small["gguf"], b).out
    assert out.startswith("3 of 23 parts differ\n")
    for line in ("only in A:\n  layer.0.q.bias  128  F32", "only in B:\n  stray  2 x 3  F32", "  norm  64 / 63"):
        assert line in out
    found = document(small["gguf"], b)
    assert {p["part"]: p["status"] for p in found["parts"] if p["status"] not in ("bytes", "values")} == {
        "layer.0.q.bias": "only_a", "stray": "only_b", "norm": "shape",
    }  # fmt: skip
    assert any(n.startswith("B: ") and "q_proj.bias: is missing" in n for n in found["notes"])


def test_layers_that_are_alike_share_a_line(tmp_path: Path) -> None:
    a = builders.write(Model(Sizes(layers=4)), tmp_path / "a", "hf")
    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf")
    out = run("diff", a, b).out
    assert "  layer.*.gate  3 x 96 x 64  MXFP4  (3)" in out
    assert out.splitlines()[0] == "57 of 79 parts differ"


def test_headers_only(small: dict[str, Path], tmp_path: Path) -> None:
    found = document(small["hf"], small["hf-bf16"], "--headers-only")
    assert (found["compared"], found["identical"], found["counts"]["unread"]) == ("headers", None, 22)
    assert {p["status"] for p in found["parts"]} == {None}
    assert found["verdict"] == "headers agree on all 22 parts, but for the formats of 3; no values compared"
    assert {f["status"] for f in found["side_files"]} == {"equal"}
    out = run("diff", small["hf"], small["hf-bf16"], "--headers-only").out
    assert "formats, A / B: MXFP4 / BF16 3 parts" in out
    other = builders.write(Model(Sizes(layers=2)), tmp_path / "b", "hf")
    result = run("diff", small["hf"], other, "--headers-only")
    assert (result.out.splitlines()[0], result.code) == ("19 of 41 parts differ", 1)
    assert document(small["hf"], other, "--headers-only")["identical"] is False


def test_the_data_of_headers_only_may_be_gone(small: dict[str, Path], tmp_path: Path) -> None:
    """What differs in data alone does not show, and nothing is said of it."""
    shutil.copytree(small["hf"], tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: 8 + int.from_bytes(raw[:8], "little")].ljust(len(raw), b"\0"))
    assert document(small["hf"], tmp_path / "b", "--headers-only")["identical"] is None
    assert document(small["hf"], tmp_path / "b")["identical"] is False


def test_python_gives_the_same_report(small: dict[str, Path]) -> None:
    report = ckpttool.compare(small["hf"], small["gguf"])
    assert isinstance(report, Diff)
    assert (report.identical, report.a.dialect, report.b.dialect) == (True, "hf", "gguf")
    assert report.worst == []


def test_what_nothing_decodes_is_the_worst_then_what_is_not_finite(tmp_path: Path) -> None:
    ours: dict[str, Any] = {"far": np.ones((2, 4), np.float32), "near": np.ones((2, 4), np.float32)}
    ours |= {"nan": np.ones((2, 4), np.float32), "zero": np.zeros((2, 4), np.float32)}
    ours |= {"q.qweight": np.zeros((4, 8), np.int32), "q.scales": np.ones((1, 8), np.float16)}
    ours |= {"q.qzeros": np.zeros((1, 1), np.int32), "q.g_idx": np.zeros(32, np.int32)}
    theirs = {name: array.copy() for name, array in ours.items()}
    theirs["far"][0, 0], theirs["near"][0, 0], theirs["nan"][1, 1], theirs["zero"][1, 1] = 3, 1.5, np.nan, 1e-9
    theirs["q.qweight"][1, 1] = 7
    for name, arrays in (("a", ours), ("b", theirs)):
        safetensors.numpy.save_file(arrays, tmp_path / f"{name}.safetensors")
    result = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    worst = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors").worst
    assert [p.part for p in worst[1:]] == ["nan", "zero", "far", "near"]
    assert worst[0].part.startswith("q")
    assert (worst[0].differing, worst[0].max_abs) == (None, None)
    assert "bytes differ; nothing here decodes them" in result.out
    assert "1 (1 not finite)" in result.out
    document(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_errors_have_their_exit_codes(small: dict[str, Path], tmp_path: Path) -> None:
    assert run("diff", small["hf"], tmp_path / "nothing").code == 3
    assert run("diff", small["hf"]).code == 2
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 20)
    assert run("diff", tmp_path / "x.safetensors", small["hf"], "--json").document["errors"]


# Config ---------------------------------------------------------------------------------------------------------------


def fields(a: Path, b: Path) -> dict[str, tuple[Any, Any, bool]]:
    return {d.key: (d.a, d.b, d.forward) for d in compare(a, b, headers_only=True).config}


STORAGE = {"dtype", "quantization_config.modules_to_not_convert", "quantization_config.quant_method"}


@pytest.mark.parametrize("dialect", ["hf", "hf-bf16", "unsloth", "openai", "gguf"])
@pytest.mark.parametrize("other", ["hf", "hf-bf16", "unsloth", "openai", "gguf"])
def test_dialects_of_one_model_say_the_same(dialect: str, other: str, small: dict[str, Path]) -> None:
    assert set(fields(small[dialect], small[other])) <= STORAGE


@pytest.mark.parametrize("other", ["hf", "openai", "hf-bf16", "gguf"])
def test_a_changed_field_is_found_in_any_dialect(other: str, small: dict[str, Path], tmp_path: Path) -> None:
    scaling = builders.Sizes().config["rope_scaling"] | {"factor": 16.0}
    change = {"rope_theta": 10000, "sliding_window": 64, "num_experts_per_tok": 3, "rope_scaling": scaling}
    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf", config=change)
    found = {k: v for k, v in fields(small[other], b).items() if v[2]}
    assert found == {
        "num_experts_per_tok": (2, 3, True),
        "rope.factor": (32.0, 16.0, True),
        "rope.rope_theta": (150000, 10000, True),
        "sliding_window": (128, 64, True),
    }


def test_fields_that_change_nothing_in_the_forward_pass(small: dict[str, Path], tmp_path: Path) -> None:
    change = {"eos_token_id": 5, "initializer_range": 0.5, "transformers_version": "9", "use_cache": False}
    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf", config=change)
    found = fields(small["hf"], b)
    assert set(found) == {"eos_token_id", "initializer_range", "use_cache"}
    assert not any(forward for _, _, forward in found.values())
    assert set(fields(small["gguf"], b)) == {"eos_token_id"}  # a GGUF has no word for the others


def test_an_absent_field_means_what_its_readers_take(small: dict[str, Path], tmp_path: Path) -> None:
    model = Model(Sizes(layers=1))
    silent = builders.write(model, tmp_path / "b", "hf", config={"swiglu_limit": None, "attention_bias": None})
    assert fields(small["hf"], silent) == {}
    other = builders.write(model, tmp_path / "c", "hf", config={"swiglu_limit": 3.5})
    assert fields(silent, other)["swiglu_limit"] == (None, 3.5, True)
    scaling = {k: v for k, v in builders.Sizes().config["rope_scaling"].items() if k != "truncate"}
    truncating = builders.write(model, tmp_path / "d", "hf", config={"rope_scaling": scaling})
    assert fields(small["hf"], truncating) == {"rope.truncate": (False, None, True)}
    assert fields(small["gguf"], other)["swiglu_limit"] == (7.0, 3.5, True)  # llama.cpp knows no other


def test_both_shapes_of_rope_are_one() -> None:
    old = {
        "rope_scaling": {"type": "yarn", "factor": 2.0},
        "rope_theta": 5,
        "text_config": {"rope_theta": 7, "a": None},
    }
    new = {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5}, "text_config": {"rope_theta": 7}}
    assert flat(old) == flat(new) | {}
    assert flat(old)["text_config.rope.rope_theta"] == 7
    assert changes_forward("text_config.rope.rope_theta")
    assert changes_forward("text_config.hidden_size")
    assert not changes_forward("text_config.eos_token_id")
    assert not changes_forward("rope")


def test_numbers_of_a_gguf_are_of_32_bits() -> None:
    one, other = Said({"rms_norm_eps": 1e-5}), Said({"rms_norm_eps": float(np.float32(1e-5))}, derived=True)
    assert list(config_differences(one, other)) == []
    assert list(config_differences(one, Said(other.fields))) == [
        FieldDifference("rms_norm_eps", 1e-5, float(np.float32(1e-5)), forward=True)
    ]
    assert list(config_differences(Said({"use_cache": True}), Said({"use_cache": 1}))) != []
    assert list(config_differences(Said({"rope.factor": 32}), Said({"rope.factor": 32.0}))) == []


def test_fields_that_change_the_forward_pass_come_first_and_say_so(small: dict[str, Path], tmp_path: Path) -> None:
    change = {"eos_token_id": 5, "sliding_window": 64, "attention_dropout": 0.5}
    b = builders.write(Model(Sizes(layers=1)), tmp_path / "b", "hf", config=change)
    out = run("diff", small["hf"], b).out
    assert out.startswith("identical bytes, all parts (22)\n")
    lines = out[out.index("config, 3 fields:") :].splitlines()[1:4]
    assert lines[0] == "  sliding_window: 128 in A, 64 in B; changes the forward pass"
    assert "forward" not in lines[1] + lines[2]


def test_key_values_of_two_ggufs(small: dict[str, Path], tmp_path: Path) -> None:
    keys = {"general.name": "Other", "my.list": [1, 2], "gpt-oss.attention.sliding_window": 64}
    b = builders.write_gguf(Model(Sizes(layers=1)), tmp_path / "b.gguf", keys=keys)
    report = compare(small["gguf"], b)
    assert report.identical
    assert {d.key: (d.a, d.b) for d in report.metadata} == {
        "general.name": ("Tiny", "Other"), "my.list": (None, "[i32 x 2]"),
    }  # fmt: skip
    assert [(d.key, d.forward) for d in report.config] == [("sliding_window", True)]
    assert compare(small["gguf"], small["hf"]).metadata == ()


def test_a_config_that_cannot_be_derived_is_a_note(small: dict[str, Path], tmp_path: Path) -> None:
    keys = {"gpt-oss.rope.freq_base": None}
    b = builders.write_gguf(Model(Sizes(layers=1)), tmp_path / "b.gguf", keys=keys)
    report = compare(small["hf"], b)
    assert report.identical
    assert report.config == ()
    assert any("its config cannot be compared" in n and "rope.freq_base" in n for n in report.notes)


# Beside the weights ---------------------------------------------------------------------------------------------------


def beside(a: Path, b: Path) -> dict[str, str]:
    return {f.name: f.status for f in compare(a, b, headers_only=True).side_files}


def what(a: Path, b: Path, name: str) -> str | None:
    return next(f.what for f in compare(a, b, headers_only=True).side_files if f.name == name)


def test_a_folder_and_its_gguf_have_one_tokenizer() -> None:
    assert beside(FIXTURE / "hf", AUTO) == {
        "tokenizer": "equal", "special_tokens": "equal", "chat_template": "equal", "generation_config": "only_a",
    }  # fmt: skip
    assert set(beside(FIXTURE / "hf", FIXTURE / "hf-bf16").values()) == {"equal"}
    assert set(beside(FIXTURE / "hf", FIXTURE / "openai").values()) == {"only_a"}
    assert set(beside(FIXTURE / "openai", FIXTURE / "openai").values()) == {"absent"}
    assert "generation_config: only in A" in run("diff", FIXTURE / "hf", AUTO).out


def changed(source: Path, at: Path, file: str, change: Callable[[Any], Any]) -> Path:
    """A copy of a folder with one JSON file edited in place."""
    shutil.copytree(source, at)
    value = json.loads((at / file).read_text("utf-8"))
    (at / file).write_text(json.dumps(change(value) or value, indent=3, ensure_ascii=False), "utf-8")
    return at


def swap_ids(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def swap_merges(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]


@pytest.mark.parametrize("against", ["hf", "gguf"])
def test_two_swapped_ids_and_two_swapped_merges(against: str, tmp_path: Path) -> None:
    a = {"hf": FIXTURE / "hf", "gguf": AUTO}[against]
    ids = changed(FIXTURE / "hf", tmp_path / "ids", "tokenizer.json", swap_ids)
    assert beside(a, ids)["tokenizer"] == "differs"
    found = what(a, ids, "tokenizer")
    assert found is not None
    assert "entry 40 is" in found
    merges = changed(FIXTURE / "hf", tmp_path / "merges", "tokenizer.json", swap_merges)
    found = what(a, merges, "tokenizer")
    assert found is not None
    assert "merges: entry 3 is" in found


def test_the_style_of_a_file_is_no_difference(tmp_path: Path) -> None:
    for file in ("tokenizer.json", "generation_config.json", "tokenizer_config.json"):
        b = changed(FIXTURE / "hf", tmp_path / file, file, lambda value: None)
        assert (b / file).read_bytes() != (FIXTURE / "hf" / file).read_bytes()
        assert set(beside(FIXTURE / "hf", b).values()) == {"equal"}


def test_generation_config_and_special_tokens(tmp_path: Path) -> None:
    b = changed(FIXTURE / "hf", tmp_path / "a", "generation_config.json", lambda c: c | {"eos_token_id": [983]})
    assert beside(FIXTURE / "hf", b)["generation_config"] == "differs"
    assert what(FIXTURE / "hf", b, "generation_config") == "eos_token_id: entry 1 is 980 in A, nothing in B"
    b = changed(FIXTURE / "hf", tmp_path / "b", "generation_config.json", lambda c: c | {"transformers_version": "9"})
    assert beside(FIXTURE / "hf", b)["generation_config"] == "equal"
    b = changed(FIXTURE / "hf", tmp_path / "c", "tokenizer_config.json", lambda c: c | {"eos_token": "<|endoftext|>"})
    assert beside(FIXTURE / "hf", b)["special_tokens"] == beside(AUTO, b)["special_tokens"] == "differs"
    assert "eos_token_id" in str(what(AUTO, b, "special_tokens"))


def test_chat_templates(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "hf", tmp_path / "b")
    file = tmp_path / "b" / "chat_template.jinja"
    text = file.read_bytes()
    file.write_bytes(text.replace(b"\n", b"\r\n"))
    assert beside(FIXTURE / "hf", tmp_path / "b")["chat_template"] == "equal"
    file.write_bytes(text + b"{# more #}")
    assert beside(AUTO, tmp_path / "b")["chat_template"] == "differs"
    assert 'in A, "{# more #}" in B' in str(what(AUTO, tmp_path / "b", "chat_template"))
    file.unlink()
    assert beside(FIXTURE / "hf", tmp_path / "b")["chat_template"] == "only_a"


def test_a_tokenizer_of_another_kind_is_compared_as_json(small: dict[str, Path], tmp_path: Path) -> None:
    other = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}
    a = changed(small["hf"], tmp_path / "a", "tokenizer.json", lambda _: other)
    assert beside(a, a)["tokenizer"] == "equal"
    b = changed(a, tmp_path / "b", "tokenizer.json", lambda t: t["model"]["vocab"].reverse())
    assert beside(a, b)["tokenizer"] == "differs"
    assert beside(a, small["gguf"])["tokenizer"] == "unread"  # llama.cpp's converter would refuse it as well


def test_what_a_damaged_file_says_is_no_crash(small: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(small["hf"], tmp_path / "b")
    (tmp_path / "b" / "generation_config.json").write_text("{", "utf-8")
    found = document(small["hf"], tmp_path / "b")
    assert found["identical"] is True
    row = next(f for f in found["side_files"] if f["name"] == "generation_config")
    assert row["status"] == "unread"
    assert "generation_config.json" in row["what"]
