"""The key-values of a GGUF against llama.cpp's own converter: every key, type and byte, in order."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metadata_cases as cases
import pytest
import realtokenizer

from ckpttool.archs import general
from ckpttool.archs import gguf_metadata as metadata
from ckpttool.containers.gguf_values import Array, string_array
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError, InputError, Problems

CARD = """---
license: apache-2.0
license_name: apache
pipeline_tag: text-generation
tags:
- vllm
- no
language:
- en
- 한국어
base_model:
- openai/gpt-oss-20b
- https://huggingface.co/unsloth/gpt-oss-20b-BF16
datasets: HuggingFaceH4/Multilingual-Thinking
model_creator: Someone
description: "a tiny\\tmodel"
---
# text
"""
TEMPLATE = "{%- for m in messages %}\n  <|start|>{{ m }}\r\n{%- endfor %}\n"
V5_ROPE = {
    **cases.CONFIG["rope_scaling"],
    "rope_theta": 150000.0,
    "attention_factor": 1.25,
    "extrapolation_factor": 1.0,
}


def _config(*without: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**cases.CONFIG, **changes}.items() if k not in without}


def _strings(t: dict[str, Any]) -> None:
    t["model"]["merges"] = cases.MERGES


def _odd_tokens(t: dict[str, Any]) -> None:
    """Added tokens that are in the vocabulary, not special, normalized, or spelled in byte characters."""
    start = len(t["model"]["vocab"]) + len(t["added_tokens"])
    flags = {**t["added_tokens"][0]}
    words = [
        ("Ġbytes", False, True),
        ("x y", False, True),
        ("\u2581under", False, False),
        ("plain", False, False),
        ("Ġnorm", True, False),
        ("<|pipe|>", False, False),
        ("日本", False, False),
    ]
    t["added_tokens"] += [
        {**flags, "id": start + n, "content": text, "normalized": normalized, "special": special}
        for n, (text, normalized, special) in enumerate(words)
    ]
    t["added_tokens"].insert(0, {**flags, "id": t["model"]["vocab"]["Ġthe"], "content": "Ġthe", "special": False})


def _post(first: str | None, last: str | None, between: list[str], roberta: bool = False) -> cases.Change:
    """A post-processor that adds tokens, which llama.cpp's flags are guessed from."""

    def special(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    def change(t: dict[str, Any]) -> None:
        ids = {e["content"]: e["id"] for e in t["added_tokens"]}
        head, tail = [special(first)] if first else [], [special(last)] if last else []
        words = [w for w in (first, last, *between) if w]
        t["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*head, sequence("A"), *tail],
            "pair": [*head, sequence("A"), *map(special, between), sequence("B"), *tail],
            "special_tokens": {w: {"id": w, "ids": [ids[w]], "tokens": [w]} for w in words},
        }
        if roberta:
            pair = {"sep": ["<|call|>", ids["<|call|>"]], "cls": ["<|endoftext|>", ids["<|endoftext|>"]]}
            more = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False, **pair}
            t["post_processor"] = {"type": "Sequence", "processors": [t["post_processor"], more]}

    return change


CASES: dict[str, dict[str, Any]] = {
    "gpt-oss-tiny": {
        "files": {
            "README.md": CARD,
            "chat_template.jinja": TEMPLATE,
            "generation_config.json": '{"temperature": 0.7, "top_k": 40, "top_p": 0.95, "do_sample": true}',
        },
    },
    "gpt-oss-20b-chat-v2": {
        "config": _config(
            "rope_scaling", "rope_theta", "quantization_config", rope_parameters=V5_ROPE, dtype="bfloat16"
        ),
        "settings": {
            **cases.SETTINGS,
            "add_bos_token": False,
            "chat_template": TEMPLATE.replace("\r", ""),
            "unk_token": None,
        },
        "change": _strings,
        "compact": True,
        "files": {"chat_template.jinja": "not this one"},
        "options": ["--outtype", "q8_0", "--model-name", "한국 Model 中文"],
        "file_type": 7,
    },
    "odd tokens": {"change": _odd_tokens, "settings": None, "config": _config(_name_or_path="org/base-7B-instruct")},
    "bos and another eos": {"change": _post("<|startoftext|>", "<|call|>", ["<|endoftext|>", "<|call|>"])},
    "only a separator": {
        "change": _post(None, None, ["<|call|>"], roberta=True),
        "settings": {"eos_token": "<|call|>", "add_eos_token": False},
    },
    "no settings": {"change": _post("<|startoftext|>", "<|return|>", ["<|return|>"]), "settings": None},
    "another bos": {"change": _post("<|endoftext|>", None, ["<|endoftext|>", "<|return|>"])},
    "x": {
        "change": _odd_tokens,
        "config": _config(rope_scaling={"rope_type": "linear", "factor": 2}, bos_token_id=268, mask_token_id=3),
        "settings": {
            "eos_token": {"__type": "AddedToken", "content": "<|call|>", "special": True},
            "cls_token": "<|startoftext|>",
            "added_tokens_decoder": {
                "272": {"content": "<|reserved_9|>", "special": False, "normalized": False},
                "271": {"content": "<|call|>", "special": True, "normalized": False},
                "274": {"content": "x y", "special": False, "normalized": False},
                "276": {"content": "plain", "special": True, "normalized": False},
            },
            "chat_template": [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}],
        },
        "options": ["--outtype", "f32"],
    },
}


@pytest.fixture(scope="module")
def arch() -> dict[str, Any]:
    return cases.ARCH


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, arch: dict[str, Any]) -> dict[str, Path]:
    """Folders by case, with llama.cpp's GGUF inside each; `real` has the published tokenizer and look-up."""
    root = tmp_path_factory.mktemp("converted")
    keys = ("config", "settings", "change", "compact", "files")
    folders = {
        name: cases.folder(root / name, arch, **{k: v for k, v in case.items() if k in keys})
        for name, case in CASES.items()
    }
    jobs = [(folder, CASES[name].get("options", []), False) for name, folder in folders.items()]
    cases.convert_all(jobs)
    return folders


def _ours(folder: Path, arch: dict[str, Any], model_name: str | None, file_type: int, vocab: int) -> metadata.Metadata:
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".json", ".jinja", ".md")]
    made, _ = metadata.to_gguf(
        arch,
        read_object(folder / "config.json", "config.json"),
        {n: folder / n for n in names},
        model_name=model_name,
        source_dir=folder,
        counts=metadata.parameter_counts(cases.gguf_shapes(vocab)),
        file_type=file_type,
    )
    return made


def _packed(values: metadata.Metadata) -> Iterator[tuple[str, bytes]]:
    for key, value in values.items():
        name = key.encode()
        kind, payload = (9, value.packed() + value.data) if isinstance(value, Array) else (value.type, value.packed())
        yield key, struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + payload


def _assert_equal(folder: Path, made: metadata.Metadata) -> None:
    (written,) = folder.glob("*.gguf")
    rows = list(_packed(made))
    count, theirs = cases.key_values(written, sum(len(row) for _, row in rows))
    at = 0
    for key, row in rows:
        assert theirs[at : at + len(row)] == row, key
        at += len(row)
    assert count == len(rows)
    assert written.name == metadata.default_name(made)


@pytest.mark.parametrize("name", CASES)
def test_every_byte_is_llama_cpps(converted: dict[str, Path], arch: dict[str, Any], name: str) -> None:
    options = CASES[name].get("options", [])
    model_name = options[options.index("--model-name") + 1] if "--model-name" in options else None
    made = _ours(converted[name], arch, model_name, CASES[name].get("file_type", 38), cases.V)
    _assert_equal(converted[name], made)


def test_the_real_tokenizer_through_the_unmodified_converter(tmp_path: Path, arch: dict[str, Any]) -> None:
    """Its pre-tokenizer too: here the converter encodes its text and looks the digest up."""
    source = realtokenizer.folder()
    config = _config(vocab_size=201088, eos_token_id=200002, pad_token_id=199999)
    folder = cases.folder(tmp_path / "gpt-oss-20b", arch, config=config)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)
    cases.convert_all([(folder, [], True)])
    _assert_equal(folder, _ours(folder, arch, None, 38, 201088))


def test_all_that_config_lacks_is_named_at_once(tmp_path: Path, arch: dict[str, Any]) -> None:
    config = _config("head_dim", "sliding_window", "vocab_size", rope_scaling={"rope_type": "yarn", "beta_fast": "a"})
    with pytest.raises(Problems) as caught:
        metadata.model_keys(arch, config, {"file_type": 38})
    text = str(caught.value)
    for name in ("head_dim", "sliding_window", "vocab_size", "rope_scaling.factor", "rope_scaling.beta_fast"):
        assert f"config.json: {name}: " in text
    assert "original_max_position_embeddings" in text
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vocab_size", "400"),
        ("vocab_size", 1 << 40),
        ("vocab_size", 0),
        ("hidden_size", -1),
        ("hidden_size", 1 << 32),
        ("hidden_size", True),
        ("rms_norm_eps", 1e300),
        ("rope_theta", "x"),
    ],
)
def test_values_that_a_gguf_cannot_hold(arch: dict[str, Any], path: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        metadata.model_keys(arch, _config(**{path: value}), {"file_type": 38})
    assert caught.value.field == path


def test_no_tokenizer_is_an_error_that_says_what_to_do(arch: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: is missing.*--reference DIR"):
        metadata.to_gguf(
            arch, cases.CONFIG, {}, source_dir=Path("x"), counts=metadata.ParameterCounts(1, 1, 0, 0), file_type=38
        )


@pytest.mark.parametrize(
    "card",
    ["---\ntags: [1, a]\n---\n", "---\nlicense: {a: 1}\n---\n", "---\na: [\n---\n", "---\nmodel_name: 3\n---\n"],
)
def test_a_model_card_with_values_of_other_types(tmp_path: Path, arch: dict[str, Any], card: str) -> None:
    folder = cases.folder(tmp_path / "m", arch, files={"README.md": card})
    with pytest.raises(CkptError) as caught:
        _ours(folder, arch, None, 38, cases.V)
    assert caught.value.file == "README.md" and caught.value.hint


def test_words_that_begin_like_a_boolean_are_words(arch: dict[str, Any]) -> None:
    files = {"README.md": b"---\ntags: [true-base, Falsehood, on, yes]\n---\n"}
    counts = metadata.ParameterCounts(1, 1, 0, 0)
    found = general.to_gguf("gpt-oss", {}, files, model_name=None, source_dir=Path("x"), counts=counts)
    assert found["general.tags"] == string_array(["true-base", "Falsehood", "on", "yes"])


def test_norwegian_is_a_language_however_the_card_lists_it(arch: dict[str, Any]) -> None:
    """llama.cpp's converter takes `no` for False in the second form, and fails."""
    for listed in ("\n- en\n- no", " [en, no]"):
        files = {"README.md": f"---\nlanguage:{listed}\n---\n".encode()}
        counts = metadata.ParameterCounts(1, 1, 0, 0)
        found = general.to_gguf("gpt-oss", {}, files, model_name=None, source_dir=Path("x"), counts=counts)
        assert found["general.languages"] == string_array(["en", "no"])


def test_parameter_counts_are_the_writers() -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path=None, arch="gpt-oss")
    for name, shape in cases.gguf_shapes():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    assert metadata.parameter_counts(cases.gguf_shapes()) == writer.get_total_parameter_count()


def test_generation_config_must_hold_numbers(tmp_path: Path, arch: dict[str, Any]) -> None:
    folder = cases.folder(tmp_path / "m", arch, files={"generation_config.json": json.dumps({"top_k": "many"})})
    with pytest.raises(InputError, match=r"generation_config\.json: top_k"):
        _ours(folder, arch, None, 38, cases.V)
