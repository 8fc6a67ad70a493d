"""The way back: config.json and the tokenizer's files from a GGUF's key-values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import metadata_cases as cases
import pytest
from test_gguf_metadata import CASES

from ckpttool.archs import config as configs
from ckpttool.archs import gguf_metadata
from ckpttool.archs.companions import Companions, from_gguf, shortest
from ckpttool.containers.gguf_values import (
    Array,
    Scalar,
    ValueType,
    f32,
    i32_array,
    string,
    string_array,
    u32,
)
from ckpttool.containers.strict_json import Source
from ckpttool.errors import InputError, Problems

ARCH = cases.ARCH
Keys = dict[str, Scalar | Array]
TEXT = "Hello  there's 12345 <|start|>x<|return|>\n\n  새 모델 don't 日本語 🙂\t!!\r\n"


def _folder(path: Path, **case: Any) -> dict[str, Source]:
    """A tiny folder as files by name."""
    cases.folder(path, ARCH, **case)
    return {p.name: p for p in path.iterdir() if p.suffix != ".safetensors"}


def _keys(files: dict[str, Source], **changes: Scalar | Array | None) -> Keys:
    """The key-values of a GGUF of these files; `changes` replace some, or remove them where they are None."""
    config = files["config.json"]
    made, _ = gguf_metadata.to_gguf(
        ARCH,
        json.loads(config if isinstance(config, bytes) else config.read_text("utf-8")),
        files,
        source_dir=Path("m"),
        counts=gguf_metadata.parameter_counts(cases.gguf_shapes()),
        file_type=38,
    )
    edited = {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in {**made, **edited}.items() if v is not None}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    case = {"files": {"chat_template.jinja": "{{ messages }}\n"}}
    return _folder(tmp_path_factory.mktemp("companions") / "gpt-oss-tiny", **case)


def _write(made: Companions, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes(made.config_text)
    for name, content in made.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        data = (
            content.read_bytes()
            if isinstance(content, Path)
            else b"".join([content] if isinstance(content, bytes) else content)
        )
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_of_the_rebuilt_files_is_the_same_gguf(tmp_path: Path, name: str) -> None:
    case = {k: v for k, v in CASES[name].items() if k not in ("options", "file_type")}
    before = _keys(_folder(tmp_path / "m", **case))
    folder = _write(from_gguf(ARCH, before), tmp_path / "back")
    after = _keys({p.name: p for p in folder.iterdir() if p.is_file()})
    model = re.compile(r"gpt-oss\.|tokenizer\.(?!chat_template[.s]|ggml\.eot_)|general\.sampling")
    assert {k: v for k, v in before.items() if model.match(k)} == {k: v for k, v in after.items() if model.match(k)}
    assert from_gguf(ARCH, after).config_text == (folder / "config.json").read_bytes()


def test_transformers_loads_what_was_rebuilt_and_encodes_alike(files: dict[str, Source], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    original = files["config.json"]
    assert isinstance(original, Path)
    folder = _write(from_gguf(ARCH, _keys(files)), tmp_path / "back")
    theirs, ours = (AutoTokenizer.from_pretrained(p) for p in (original.parent, folder))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert ours.decode(ours(TEXT).input_ids) == theirs.decode(theirs(TEXT).input_ids)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)
    assert ours.chat_template == theirs.chat_template
    assert (folder / "tokenizer.json").read_bytes() == (original.parent / "tokenizer.json").read_bytes()
    a, b = (AutoConfig.from_pretrained(p).to_dict() for p in (original.parent, folder))
    stated = ("router_aux_loss_coef", "_name_or_path", "quantization_config", *ARCH["config"]["copies"])
    assert {k: v for k, v in a.items() if k not in stated} == {k: v for k, v in b.items() if k not in stated}
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [270, 269, 271]


def test_every_value_that_a_gguf_does_not_carry_is_listed(files: dict[str, Source]) -> None:
    made = from_gguf(ARCH, _keys(files))
    assumed = {(file, key): value for file, key, value in made.assumed}
    assert len(assumed) == len(made.assumed)
    carried = {row["config"].partition(".")[2] or row["config"] for row in ARCH["gguf"]["keys"] if "config" in row}
    carried |= {"vocab_size", "eos_token_id", "pad_token_id", "architectures", "model_type", *ARCH["config"]["copies"]}
    for key, value in made.config.items():
        for inner, it in value.items() if key == "rope_scaling" else [(key, value)]:
            name = f"rope_scaling.{inner}" if key == "rope_scaling" else inner
            assert inner in carried or assumed[configs.FILE, name] == it
    assert {key for file, key in assumed if file == "tokenizer.json"} >= {"pre_tokenizer", "model.ignore_merges"}
    assert ("generation_config.json", "eos_token_id") in assumed
    assert ("tokenizer_config.json", "model_max_length") in assumed


def test_a_reference_replaces_what_would_be_assumed(files: dict[str, Source]) -> None:
    config = {**cases.CONFIG, "swiglu_limit": 9.5, "my_key": [1]}
    reference = {
        **files,
        "config.json": json.dumps(config, indent=1).encode(),
        "generation_config.json": b'{"top_k": 3}',
    }
    made = from_gguf(ARCH, _keys(files), reference=reference)
    assert made.config_text == reference["config.json"]
    assert made.files["tokenizer.json"] == files["tokenizer.json"]
    assert made.files["tokenizer_config.json"] == files["tokenizer_config.json"]
    assert made.files["generation_config.json"] == b'{"top_k": 3}'
    assert made.assumed == [] and made.warnings == []


def test_a_reference_of_another_model_is_refused_for_all_reasons(files: dict[str, Source]) -> None:
    config = {**cases.CONFIG, "hidden_size": 128, "rms_norm_eps": 1e-6, "vocab_size": 401, "head_dim": 32}
    with pytest.raises(Problems) as caught:
        from_gguf(ARCH, _keys(files), reference={"config.json": json.dumps(config).encode()})
    assert [p.field for p in caught.value.problems] == ["hidden_size", "rms_norm_eps", "vocab_size"]


@pytest.mark.parametrize("what", ["token", "kind", "merge"])
def test_a_reference_with_another_tokenizer_is_refused(files: dict[str, Source], what: str) -> None:
    other = cases.tokenizer(ARCH)
    if what == "token":
        other["model"]["vocab"] = {("zz" if i == 260 else t): i for t, i in other["model"]["vocab"].items()}
    elif what == "kind":
        (token,) = (t for t, i in other["model"]["vocab"].items() if i == 3)
        flags = {**other["added_tokens"][0], "id": 3, "content": token}
        other["added_tokens"].insert(0, flags)
    else:
        other["model"]["merges"].reverse()
    with pytest.raises(InputError, match="own folder") as caught:
        from_gguf(ARCH, _keys(files), reference={"tokenizer.json": json.dumps(other).encode()})
    assert caught.value.file == "tokenizer.json"


def test_where_tastes_differ_the_gguf_is_followed_and_it_is_said(files: dict[str, Source]) -> None:
    keys = _keys(files, tokenizer__chat_template=string("mine"), tokenizer__ggml__padding_token_id=u32(272))
    made = from_gguf(ARCH, keys, reference=files)
    assert made.files["chat_template.jinja"] == b"mine"
    assert made.config["pad_token_id"] == 272 == json.loads(made.config_text)["pad_token_id"]
    assert len(made.warnings) >= 3
    text = "\n".join(made.warnings)
    assert "pad_token_id is 272" in text and "pad_token is" in text and "template" in text


BAD: dict[str, tuple[dict[str, Scalar | Array | None], str]] = {
    "no model": ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model"),
    "sentencepiece": ({"tokenizer__ggml__model": string("llama")}, "tokenizer.ggml.model"),
    "other split": ({"tokenizer__ggml__pre": string("llama-bpe")}, "tokenizer.ggml.pre"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens"),
    "tokens are numbers": ({"tokenizer__ggml__tokens": i32_array([1])}, "tokenizer.ggml.tokens"),
    "too few types": ({"tokenizer__ggml__token_type": i32_array([1])}, "tokenizer.ggml.token_type"),
    "byte type": ({"tokenizer__ggml__token_type": i32_array([6] * cases.V)}, "tokenizer.ggml.token_type"),
    "unused": ({"tokenizer__ggml__token_type": i32_array([5] * cases.V)}, "tokenizer.ggml.token_type"),
    "twice": ({"tokenizer__ggml__tokens": string_array(["a"] * cases.V)}, "tokenizer.ggml.tokens"),
    "merges": ({"tokenizer__ggml__merges": u32(3)}, "tokenizer.ggml.merges"),
    "merge of one": ({"tokenizer__ggml__merges": string_array(["a b", "ab"])}, "tokenizer.ggml.merges"),
    "merge of three": ({"tokenizer__ggml__merges": string_array(["a b c", "ab"])}, "tokenizer.ggml.merges"),
    "merge of nothing": ({"tokenizer__ggml__merges": string_array(["a ", "a b"])}, "tokenizer.ggml.merges"),
    "merge with a line end": ({"tokenizer__ggml__merges": string_array(["a\nb c"])}, "tokenizer.ggml.merges"),
    "merge not utf-8": ({"tokenizer__ggml__merges": string_array([b"a \xff"])}, "tokenizer.ggml.merges"),
    "size is a word": ({"gpt-oss__embedding_length": string("big")}, "gpt-oss.embedding_length"),
    "size is a list": ({"gpt-oss__attention__head_count_kv": i32_array([1])}, "gpt-oss.attention.head_count_kv"),
    "theta is an integer": ({"gpt-oss__rope__freq_base": u32(5)}, "gpt-oss.rope.freq_base"),
    "twins differ": ({"gpt-oss__attention__value_length": u32(5)}, "gpt-oss.attention.value_length"),
    "not finite": ({"gpt-oss__rope__freq_base": f32(float("inf"))}, "gpt-oss.rope.freq_base"),
    "lacks": ({"gpt-oss__rope__freq_base": None}, "gpt-oss.rope.freq_base"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_ggufs_are_refused_by_key(files: dict[str, Source], name: str) -> None:
    changes, field = BAD[name]
    keys = _keys(files, **changes)
    with pytest.raises(InputError) as caught:
        from_gguf(ARCH, keys)
    assert caught.value.field == field
    assert caught.value.hint


def test_an_absurd_number_of_layers_is_not_believed(files: dict[str, Source]) -> None:
    with pytest.raises(InputError, match="no number of layers"):
        from_gguf(ARCH, _keys(files, **{"gpt-oss__block_count": u32(0xFFFFFFFF)}))


def test_a_reference_stands_in_for_a_tokenizer_of_another_kind(files: dict[str, Source]) -> None:
    keys = _keys(files, tokenizer__ggml__pre=string("default"))
    made = from_gguf(ARCH, keys, reference=files)
    assert made.files["tokenizer.json"] == files["tokenizer.json"]
    assert any("tokenizer.ggml.pre" in w and "not compared" in w for w in made.warnings)


def test_a_key_that_has_a_twin_may_be_missing(files: dict[str, Source]) -> None:
    """Files of 2025-08 and of other writers."""
    made = from_gguf(ARCH, _keys(files, **{"gpt-oss__attention__value_length": None}))
    assert made.config["head_dim"] == cases.D


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (u32(2), "sf"),
        (u32(3), "ss"),
        (Array(ValueType.bool, 2, b"\0\1"), "fs"),
        (Array(ValueType.bool, 1, b"\1"), "sf"),
    ],
)
def test_a_sliding_pattern_is_followed(files: dict[str, Source], value: Scalar | Array, pattern: str) -> None:
    keys = _keys(files, **{"gpt-oss__attention__sliding_window_pattern": value, "gpt-oss__block_count": u32(2)})
    words = {"s": "sliding_attention", "f": "full_attention"}
    assert from_gguf(ARCH, keys).config["layer_types"] == [words[c] for c in pattern]


def _f32(value: float) -> float:
    packed = f32(value).packed()
    return memoryview(packed).cast("f")[0]


@pytest.mark.parametrize(
    "text", ["1e-05", "150000.0", "32.0", "0.1", "1.0", "1.3465735", "16777216.0", "3.4028235e+38", "1e-45"]
)
def test_floats_are_printed_as_short_as_they_are(text: str) -> None:
    assert repr(shortest(_f32(float(text)))) == text


def test_without_a_template_or_end_of_text_it_is_said(files: dict[str, Source]) -> None:
    made = from_gguf(ARCH, _keys(files, tokenizer__chat_template=None))
    assert "chat_template.jinja" not in made.files
    assert any("chat template" in w for w in made.warnings)


def test_sampling_defaults_come_back(files: dict[str, Source]) -> None:
    keys = _keys({**files, "generation_config.json": b'{"temperature": 0.7, "top_k": 40, "min_p": 0.05}'})
    made = json.loads(_bytes(from_gguf(ARCH, keys).files["generation_config.json"]))
    assert (made["temperature"], made["top_k"], made["min_p"]) == (0.7, 40, 0.05)


def _bytes(content: Any) -> bytes:
    assert isinstance(content, bytes)
    return content


def test_added_tokens_inside_the_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    def change(t: dict[str, Any]) -> None:
        """Special tokens in the middle, and a gap behind: readers would number them otherwise without an entry."""
        for entry in t["added_tokens"]:
            entry["id"] += 10
            t["model"]["vocab"][entry["content"]] = entry["id"]

    from transformers import AutoTokenizer

    files = _folder(tmp_path / "m", change=change, config={**cases.CONFIG, "eos_token_id": 280})
    folder = _write(from_gguf(ARCH, _keys(files)), tmp_path / "back")
    theirs, ours = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "m", folder))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
