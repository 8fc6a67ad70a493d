"""Level `structure`: no dialect of one model differs from another, and each thing that is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import builders
import pytest

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.validator.failures import Failure, part_failure
from ckpttool.validator.structure import Structure, check_structure

ROOT = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
DIALECTS = (
    "hf", "parent", "hf-bf16", "openai", "unsloth", "gguf/split/tiny-gpt-oss-auto-00001-of-00003.gguf",
    *(f"gguf/tiny-gpt-oss-{name}.gguf" for name in ("auto", "bf16", "q8_0", "mxfp4_moe", "q4_k_m")),
)  # fmt: skip
NO_FILES = "has no tokenizer, special tokens, chat template, generation_config: not compared"

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def opened() -> dict[str, Checkpoint]:
    return {name: open_checkpoint(ROOT / name) for name in DIALECTS}


def changed(folder: Path, edit: Edit, dialect: str = "parent") -> Checkpoint:
    """The fixture after `edit` of its folder."""
    shutil.copytree(ROOT / dialect, folder)
    edit(folder)
    return open_checkpoint(folder)


def document(name: str, edit: Callable[[Any], None]) -> Edit:
    """An edit of a JSON file."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8"))
        edit(value)
        (folder / name).write_text(json.dumps(value), "utf-8")

    return apply


def tensors(edit: Callable[[builders.Tensors], None]) -> Edit:
    """An edit of the tensors."""

    def apply(folder: Path) -> None:
        found = builders.read(folder / "model.safetensors")
        edit(found)
        builders.save(folder / "model.safetensors", found)

    return apply


def only(structure: Structure) -> Failure:
    (failure,) = structure.failures
    return failure


def test_no_dialect_differs_from_another(opened: dict[str, Checkpoint]) -> None:
    for a, b in permutations(DIALECTS, 2):
        found = check_structure(opened[a], opened[b])
        wanted = (
            [f"the reference {NO_FILES}"] if a == "openai" else [f"the candidate {NO_FILES}"] if b == "openai" else []
        )
        if a == "openai" and b.endswith(".gguf"):  # which has no generation_config either
            wanted = [wanted[0].replace(", generation_config", "")]
        if b == "openai" and a.endswith(".gguf"):
            wanted = [wanted[0].replace(", generation_config", "")]
        assert found == Structure((), tuple(wanted), 79), (a, b)
    for name in DIALECTS:
        assert not check_structure(opened[name], opened[name]).failures


def test_layers_are_in_the_names() -> None:
    assert part_failure("layer.12.q.bias", "x", "values") == Failure("layer.12.q.bias", 12, "x", "values")
    assert part_failure("head", "x", "values") == Failure("head", None, "x", "values")
    assert part_failure("model.layers.3.q_proj", "x", "values").layer is None


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("rope_theta", 10_000, "config: rope.rope_theta is 10000 in the candidate, 150000 in the reference"),
     ("sliding_window", 64, "config: sliding_window is 64 in the candidate, 32 in the reference"),
     ("rms_norm_eps", 1e-6, "config: rms_norm_eps is 1e-06 in the candidate, 1e-05 in the reference"),
     ("num_experts_per_tok", 1, "config: num_experts_per_tok is 1 in the candidate, 2 in the reference"),
     ("layer_types", ["full_attention"] * 4, "config: layer_types is "),
     ("swiglu_limit", 6.0, "config: swiglu_limit is 6.0 in the candidate, 7.0 in the reference"),
     ("eos_token_id", 5, "config: eos_token_id is 5 in the candidate, 983 in the reference"),
     ("rope_scaling.factor", 32.0, "config: rope.factor is 32.0 in the candidate, 16.0 in the reference"),
     ("rope_scaling.truncate", True, "config: rope.truncate is True in the candidate, False in the reference"),
     ("rope_scaling.beta_slow", 2.0, "config: rope.beta_slow is 2.0 in the candidate, 1.0 in the reference")],
)  # fmt: skip
@pytest.mark.parametrize("reference", ["parent", "gguf/tiny-gpt-oss-bf16.gguf"])
def test_a_field_of_the_config(tmp_path: Path, reference: str, key: str, value: Any, what: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        *outer, last = key.split(".")
        (config[outer[0]] if outer else config)[last] = value

    candidate = changed(tmp_path / "x", document("config.json", edit))
    found = check_structure(open_checkpoint(ROOT / reference), candidate).failures
    assert [f for f in found if f.what.startswith(what)], found
    assert all((f.part, f.layer) == (None, None) for f in found)
    assert len(found) <= 2  # the end token is a special token too


def test_what_readers_take_anyway_is_no_difference(tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        for key in ("swiglu_limit", "rms_norm_eps", "attention_bias", "tie_word_embeddings"):
            del config[key]

    candidate = changed(tmp_path / "x", document("config.json", edit))
    assert check_structure(open_checkpoint(ROOT / "parent"), candidate).failures == ()


# --- tensors ---


def test_a_missing_bias(tmp_path: Path) -> None:
    candidate = changed(tmp_path / "x", tensors(lambda t: t.pop("model.layers.2.self_attn.k_proj.bias")))
    failure = only(check_structure(open_checkpoint(ROOT / "parent"), candidate))
    assert failure == Failure("layer.2.k.bias", 2, "is missing in the candidate", "structure")
    # It is the other's loss where it is the reference that lacks it; and a damaged reference proves nothing.
    failure = only(check_structure(candidate, open_checkpoint(ROOT / "parent")))
    assert failure == Failure("layer.2.k.bias", 2, "is in the candidate, and not in the reference", "structure")


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    def edit(t: builders.Tensors) -> None:
        name = "model.layers.1.mlp.experts.gate_up_proj"  # as if nobody had transposed it
        t[name] = t[name]._replace(array=t[name].array.swapaxes(1, 2))

    found = check_structure(open_checkpoint(ROOT / "parent"), changed(tmp_path / "x", tensors(edit)))
    assert {(f.part, f.layer) for f in found.failures} == {("layer.1.gate", 1), ("layer.1.up", 1)}
    assert found.failures[0].what == "is 4x384x256 in the candidate, 4x192x256 in the reference"


def test_a_tensor_too_many(tmp_path: Path) -> None:
    def edit(t: builders.Tensors) -> None:
        t["model.layers.0.self_attn.q_norm.weight"] = t["model.norm.weight"]

    found = check_structure(open_checkpoint(ROOT / "parent"), changed(tmp_path / "x", tensors(edit)))
    assert any("q_norm" in f"{f.part} {f.what}" for f in found.failures)


def test_another_architecture(tmp_path: Path) -> None:
    candidate = changed(tmp_path / "x", document("config.json", lambda c: c.update(model_type="mixtral")))
    found = check_structure(open_checkpoint(ROOT / "parent"), candidate)
    assert "the candidate is of no known architecture, the reference gpt-oss" in [f.what for f in found.failures]


# --- tokenizer and companions ---


def swapped(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    a, b = (next(t for t, i in vocab.items() if i == n) for n in (300, 301))
    vocab[a], vocab[b] = vocab[b], vocab[a]


@pytest.mark.parametrize("reference", ["parent", "gguf/tiny-gpt-oss-auto.gguf"])
def test_two_ids_swapped(tmp_path: Path, reference: str) -> None:
    vocab = json.loads((ROOT / "parent" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    a, b = (next(t for t, i in vocab.items() if i == n) for n in (300, 301))
    candidate = changed(tmp_path / "x", document("tokenizer.json", swapped))
    failure = only(check_structure(open_checkpoint(ROOT / reference), candidate))
    assert failure.what.startswith("tokenizer differs: ")
    assert "entry 300 is" in failure.what
    assert all(json.dumps(t, ensure_ascii=False) in failure.what for t in (a, b))
    assert "in the reference" in failure.what
    assert "in the candidate" in failure.what


@pytest.mark.parametrize(
    ("name", "edit", "what"),
    [("generation_config.json", lambda g: g["eos_token_id"].pop(), "generation_config differs: eos_token_id: entry 2"),
     ("generation_config.json", lambda g: g.update(temperature=0.2), "generation_config differs: temperature: nothing"),
     ("tokenizer_config.json", lambda c: c.update(eos_token="<|call|>"), "special tokens differ: "),
     ("tokenizer.json", lambda t: t["model"]["merges"].pop(100), "tokenizer differs: merges: "),
     ("tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0), "tokenizer differs: pre_tokenizer: ")],
)  # fmt: skip
def test_a_companion_that_differs(tmp_path: Path, name: str, edit: Callable[[Any], None], what: str) -> None:
    candidate = changed(tmp_path / "x", document(name, edit))
    found = check_structure(open_checkpoint(ROOT / "parent"), candidate).failures
    assert any(f.what.startswith(what) for f in found), found


def test_another_chat_template(tmp_path: Path) -> None:
    def edit(folder: Path) -> None:
        text = (folder / "chat_template.jinja").read_text("utf-8")
        (folder / "chat_template.jinja").write_text(text.replace("old stories", "new stories"), "utf-8")

    candidate = changed(tmp_path / "x", edit)
    for reference in ("parent", "gguf/tiny-gpt-oss-auto.gguf"):
        failure = only(check_structure(open_checkpoint(ROOT / reference), candidate))
        assert failure.what.startswith("chat template differs: tokenizer.chat_template: from character ")


@pytest.mark.parametrize(
    ("name", "what"),
    [("tokenizer.json", "tokenizer is missing in the candidate"),
     ("chat_template.jinja", "chat template is missing in the candidate"),
     ("generation_config.json", "generation_config is missing in the candidate")],
)  # fmt: skip
def test_a_companion_that_is_missing(tmp_path: Path, name: str, what: str) -> None:
    candidate = changed(tmp_path / "x", lambda folder: (folder / name).unlink())
    found = check_structure(open_checkpoint(ROOT / "parent"), candidate)
    assert what in [f.what for f in found.failures]
    back = check_structure(candidate, open_checkpoint(ROOT / "parent"))
    assert back.failures == ()
    assert back.notes[0].startswith("the reference has no ")


def test_a_companion_that_cannot_be_read(tmp_path: Path) -> None:
    candidate = changed(tmp_path / "x", lambda folder: (folder / "generation_config.json").write_text("{"))
    failure = only(check_structure(open_checkpoint(ROOT / "parent"), candidate))
    assert failure.what.startswith("generation_config cannot be read: ")


def test_a_lone_file_is_compared_by_its_parts(tmp_path: Path) -> None:
    shutil.copy(ROOT / "parent" / "model.safetensors", tmp_path)
    found = check_structure(open_checkpoint(ROOT / "parent"), open_checkpoint(tmp_path / "model.safetensors"))
    missing = ("config.json is", "tokenizer is", "special tokens are", "chat template is", "generation_config is")
    assert {f.what for f in found.failures} == {f"{name} missing in the candidate" for name in missing}
    assert found.parts == 79
    back = check_structure(open_checkpoint(tmp_path / "model.safetensors"), open_checkpoint(ROOT / "parent"))
    assert not back.failures
    assert any(n.startswith("the reference has no config") for n in back.notes)
