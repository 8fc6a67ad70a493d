"""GGUF back to Hugging Face: folders that transformers loads, side files rebuilt, changes counted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llamacpp
import numpy as np
import pytest
import torch
from independent import Array, floats, parts, same, stored
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Mxfp4Config

import ckpttool
from ckpttool.errors import CkptError, InputError
from ckpttool.reports import Conversion

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROOT = FIXTURES / "tiny-gpt-oss"
GGUF = ROOT / "gguf"
SPLIT = GGUF / "split" / "tiny-gpt-oss-auto-00001-of-00003.gguf"
sys.path.insert(0, str(FIXTURES / "make"))

import oddities  # noqa: E402

CONFIG = json.loads((ROOT / "hf" / "config.json").read_text())
TEXT = "And Jonah said, <|end|>\n\n12345 in the belly of the fish's mouth, Löwe 고래"


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return ckpttool.convert(source, target, workers=2, **options)


def variant(make: Callable[[Path, Path], None], source: Path) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(source, folder / "odd.gguf")
        return folder / "odd.gguf"

    return made


AUTO = GGUF / "tiny-gpt-oss-auto.gguf"
EXACT: dict[str, Callable[[Path], Path]] = {
    "auto": lambda _: AUTO,
    "bf16": lambda _: GGUF / "tiny-gpt-oss-bf16.gguf",
    "split": lambda _: SPLIT,
    "merged": variant(oddities.merged, SPLIT),
    "version 2": variant(oddities.version2, AUTO),
    "alignment 64": variant(oddities.aligned, AUTO),
}
"""GGUFs that hold every value of the BF16 model."""


@pytest.mark.parametrize("source", EXACT)
def test_bf16_of_an_exact_gguf_is_the_bf16_model(source: str, tmp_path: Path) -> None:
    """Byte for byte, the sign of MXFP4's -0 too, and it is said that no value has changed."""
    report = convert(EXACT[source](tmp_path), tmp_path / "out", to="bf16")
    assert stored(tmp_path / "out") == stored(ROOT / "hf-bf16")
    assert report.fidelity["lossy"] == 0
    assert not any(t.changed for t in report.tensors)
    narrow = [t for t in report.tensors if t.kind == "narrow"]
    assert narrow
    assert {t.fidelity for t in narrow} == {"values"}


@pytest.mark.parametrize("source", ["auto", "split", "merged", "version 2", "alignment 64"])
def test_mxfp4_of_an_mxfp4_gguf_is_the_model_byte_for_byte(source: str, tmp_path: Path) -> None:
    convert(EXACT[source](tmp_path), tmp_path / "out", to="mxfp4")
    assert stored(tmp_path / "out") == stored(ROOT / "hf")


# --- side files ---


@pytest.mark.parametrize("to", ["bf16", "mxfp4"])
def test_side_files_without_a_reference(to: str, tmp_path: Path) -> None:
    """tokenizer.json and the template byte for byte; config.json says the same, each assumed value is listed."""
    report = convert(AUTO, tmp_path / "out", to=to)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / "hf" / name).read_bytes(), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = dict(CONFIG)
    if to == "bf16":
        wanted.pop("quantization_config")
    assert {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")} == wanted
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    original = json.loads((ROOT / "hf" / "generation_config.json").read_text())
    assert set(generation.pop("eos_token_id")) == set(original.pop("eos_token_id"))
    assert generation == original
    assumed = {(a["file"], a["key"]) for a in report.assumed}
    expected = ("swiglu_limit", "attention_bias", "hidden_act", "tie_word_embeddings", "router_aux_loss_coef")
    assert assumed >= {("config.json", key) for key in expected}
    assert ("generation_config.json", "eos_token_id") in assumed
    for row in report.assumed:
        if row["file"] == "config.json" and not row["key"].startswith("rope"):
            assert config[row["key"]] == row["value"]


def test_a_reference_replaces_assumption_by_fact(tmp_path: Path) -> None:
    report = convert(AUTO, tmp_path / "out", to="mxfp4", reference=ROOT / "hf")
    assert report.assumed == ()
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
             "special_tokens_map.json", "chat_template.jinja", "LICENSE")  # fmt: skip
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / "hf" / name).read_bytes(), name


def test_a_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (other / name).write_bytes((ROOT / "hf" / name).read_bytes())
    config = {**CONFIG, "num_hidden_layers": 5, "rope_theta": 1000}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptError, match="num_hidden_layers") as caught:
        convert(AUTO, tmp_path / "out", to="bf16", reference=other)
    assert "rope_theta" in str(caught.value)
    assert caught.value.exit_code == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_openai_to_hf_lists_what_it_assumes(tmp_path: Path) -> None:
    """original/config.json says nothing of the window's pattern, the norm's epsilon."""
    report = convert(ROOT / "openai", tmp_path / "out", to="mxfp4")
    assumed = {a["key"] for a in report.assumed if a["file"] == "config.json"}
    assert {"rms_norm_eps", "attention_bias", "layer_types"} <= assumed
    # The published ids are beyond the fixture's vocabulary: transformers could not load a folder that names them.
    assert not [key for key in json.loads((tmp_path / "out" / "config.json").read_text()) if key.endswith("token_id")]
    for key in ("eos_token_id", "pad_token_id"):
        assert any(f"{key} is left out of config.json" in note for note in report.notes)
    assert any("tokenizer.json is missing" in note for note in report.notes)
    assert any("chat template" in note for note in report.notes)
    with_reference = convert(ROOT / "openai", tmp_path / "b", to="mxfp4", reference=ROOT / "hf")
    assert with_reference.assumed == ()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config == CONFIG
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (ROOT / "hf" / "tokenizer.json").read_bytes()


def test_a_reference_that_contradicts_original_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config = {**CONFIG, "num_attention_heads": 8, "swiglu_limit": 5.0}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptError, match="num_attention_heads") as caught:
        convert(ROOT / "openai", tmp_path / "out", to="bf16", reference=tmp_path / "other")
    assert "swiglu_limit" in str(caught.value)


def test_openai_and_back_keeps_its_side_files(tmp_path: Path) -> None:
    convert(ROOT / "openai", tmp_path / "hf", to="mxfp4", reference=ROOT / "hf")
    convert(tmp_path / "hf", tmp_path / "openai", to="openai")
    ours = json.loads((tmp_path / "openai" / "config.json").read_text())
    assert ours == json.loads((ROOT / "openai" / "config.json").read_text())
    dtypes = json.loads((tmp_path / "openai" / "dtypes.json").read_text())
    assert dtypes == json.loads((ROOT / "openai" / "dtypes.json").read_text())
    assert stored(tmp_path / "openai") == stored(ROOT / "openai")


# --- transformers ---


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    text = (FIXTURES / "heldout.txt").read_text(encoding="utf-8")
    ids: list[int] = AutoTokenizer.from_pretrained(ROOT / "hf")(text, add_special_tokens=False)["input_ids"]
    return ids[:64]


def logits(folder: Path, tokens: list[int]) -> Array:
    """In F32, MXFP4 dequantized; every weight must have come from the folder."""
    mxfp4 = "quantization_config" in json.loads((folder / "config.json").read_text())
    more = {"quantization_config": Mxfp4Config(dequantize=True)} if mxfp4 else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **more
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        out: Array = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    return out


@pytest.fixture(scope="module")
def expected(tokens: list[int]) -> Array:
    return logits(ROOT / "hf-bf16", tokens)


@pytest.mark.parametrize(("source", "to"), [
    (AUTO, "bf16"), (AUTO, "mxfp4"), (SPLIT, "bf16"), (GGUF / "tiny-gpt-oss-bf16.gguf", "bf16"),
    (ROOT / "openai", "mxfp4"), (ROOT / "openai", "bf16"), (ROOT / "unsloth", "bf16"), (ROOT / "hf", "bf16"),
], ids=lambda x: x if isinstance(x, str) else x.stem)  # fmt: skip
def test_transformers_computes_the_same_from_what_we_write(
    source: Path, to: str, expected: Array, tokens: list[int], tmp_path: Path
) -> None:
    """The weights are equal value for value, so the logits are equal bit for bit on one machine."""
    convert(source, tmp_path / "out", to=to)
    np.testing.assert_array_equal(logits(tmp_path / "out", tokens), expected)


@pytest.mark.parametrize("name", ["q8_0", "mxfp4_moe", "q4_k_m"])
def test_transformers_runs_what_came_from_quantized_ggufs(
    name: str, expected: Array, tokens: list[int], tmp_path: Path
) -> None:
    """Weights rounded to Q8_0 or Q4_K move logits of deviation 4 by a little; a wrong layout by 4 and more."""
    convert(GGUF / f"tiny-gpt-oss-{name}.gguf", tmp_path / "out", to="bf16")
    error = logits(tmp_path / "out", tokens) - expected
    assert 0 < np.sqrt((error**2).mean()) < (2.0 if name == "q4_k_m" else 0.2)
    assert expected.std() > 3


@pytest.mark.parametrize("source", [AUTO, SPLIT], ids=["one file", "split"])
def test_the_rebuilt_tokenizer_is_the_tokenizer(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="mxfp4")
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "out", ROOT / "hf"))
    for text in (TEXT, (FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:3000]):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Who art thou?"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    for role in ("bos_token", "eos_token", "pad_token"):
        assert getattr(ours, role) == getattr(theirs, role)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert set(generation.eos_token_id) == set(GenerationConfig.from_pretrained(ROOT / "hf").eos_token_id)


# --- quantized sources ---


@pytest.mark.parametrize("name", ["q8_0", "mxfp4_moe", "q4_k_m"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_quantized_ggufs_decode_as_gguf_py_and_changes_are_counted(name: str, dtype: str, tmp_path: Path) -> None:
    """In F32 nothing changes; in BF16 what changes is counted, tensor by tensor."""
    source = GGUF / f"tiny-gpt-oss-{name}.gguf"
    experts = {"experts": "f32"} if dtype == "f32" else {}
    report = convert(source, tmp_path / "out", to="bf16", dtype=dtype, **experts)
    before, after = parts(source), parts(tmp_path / "out")
    changed = {}
    for part, x in before.items():
        y = floats(after[part])
        if dtype == "f32":
            assert same(after[part], floats(x)), part
        else:
            assert np.array_equal(y, nearest_bf16(floats(x))), part
        changed[part] = int((y != floats(x)).sum())
    counted = sum(t.changed for t in report.tensors)
    assert counted == sum(changed.values())
    assert (counted > 0) == (dtype == "bf16")
    assert report.fidelity["lossy"] == sum(t.changed > 0 for t in report.tensors)
    down = {t.name: t.changed for t in report.tensors if t.name.endswith("down_proj")}
    assert down == {f"model.layers.{n}.mlp.experts.down_proj": changed[f"layer.{n}.down"] for n in range(4)}


def nearest_bf16(x: Array) -> Array:
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def test_what_the_quantizer_makes_of_our_gguf(tmp_path: Path) -> None:
    """The whole way round: HF, GGUF, llama-quantize's BF16, HF; k-quants decode too."""
    convert(ROOT / "hf", tmp_path / "a.gguf")
    llamacpp.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "BF16", allow_requantize=True)
    report = convert(tmp_path / "b.gguf", tmp_path / "b", to="bf16")
    before, after = parts(ROOT / "hf-bf16"), parts(tmp_path / "b")
    assert all(np.array_equal(floats(after[p]), floats(x)) for p, x in before.items())
    assert report.fidelity["lossy"] == 0
    llamacpp.quantize(tmp_path / "a.gguf", tmp_path / "k.gguf", "Q6_K", allow_requantize=True)
    assert "Q6_K" in {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "k.gguf").tensors}
    convert(tmp_path / "k.gguf", tmp_path / "k", to="bf16")
    decoded = parts(tmp_path / "k.gguf")
    for part, x in parts(tmp_path / "k").items():
        assert np.array_equal(floats(x), nearest_bf16(floats(decoded[part]))), part


# --- what is not taken ---


def test_a_later_shard_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert(GGUF / "split" / "tiny-gpt-oss-auto-00002-of-00003.gguf", tmp_path / "out", to="bf16")
    assert SPLIT.name in str(caught.value.hint)


def test_an_incomplete_split_set_is_refused(tmp_path: Path) -> None:
    for p in sorted(SPLIT.parent.iterdir())[:2]:
        (tmp_path / p.name).write_bytes(p.read_bytes())
    with pytest.raises(InputError, match="00003-of-00003"):
        convert(tmp_path / SPLIT.name, tmp_path / "out", to="bf16")


def test_a_renamed_shard_is_not_taken_for_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(SPLIT.read_bytes())
    with pytest.raises(CkptError) as caught:
        convert(tmp_path / "model.gguf", tmp_path / "out", to="bf16")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_big_endian_gguf_is_refused_with_the_command_that_swaps_it(tmp_path: Path) -> None:
    oddities.big_endian(AUTO, tmp_path / "big.gguf")
    with pytest.raises(InputError, match="big-endian") as caught:
        convert(tmp_path / "big.gguf", tmp_path / "out", to="bf16")
    assert "gguf-convert-endian" in str(caught.value)
