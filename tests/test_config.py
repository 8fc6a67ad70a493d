"""config.json: both shapes, sizes, OpenAI's file both ways, what a conversion changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import metadata_cases as cases
import pytest
from header_checkpoints import published_config

from ckpttool.archs import config as configs
from ckpttool.errors import InputError, Problems, UsageError
from ckpttool.tensors import StoredTensor

ARCH = cases.ARCH
PUBLISHED = (
    '{"num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880, '
    '"intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64, '
    '"num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, '
    '"rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32}'
)
"""original/config.json of gpt-oss-20b, 376 bytes."""

PUBLISHED_HF = published_config("20b")
V5: dict[str, Any] = {
    **{k: v for k, v in PUBLISHED_HF.items() if k not in ("rope_scaling", "rope_theta", "quantization_config")},
    "rope_parameters": {**PUBLISHED_HF["rope_scaling"], "rope_theta": 150000},
    "dtype": "bfloat16",
}
TEXT = (json.dumps(PUBLISHED_HF, indent=2) + "\n").encode()


def _without(*names: str) -> dict[str, Any]:
    return {k: v for k, v in PUBLISHED_HF.items() if k not in names}


def test_openais_config_as_published_both_ways() -> None:
    assert len(PUBLISHED) == 376
    config, assumed, notes = configs.openai_to_hf(ARCH, json.loads(PUBLISHED))
    assert notes == []
    assert json.dumps(config) == json.dumps(_without("quantization_config"))
    assert configs.hf_to_openai(ARCH, PUBLISHED_HF).decode() == PUBLISHED
    assert configs.hf_to_openai(ARCH, V5).decode() == PUBLISHED
    assert configs.with_quantization(configs.render(config), ARCH, "mxfp4", "bf16") == TEXT
    carried = {
        key.rpartition(".")[2]
        for row in ARCH["openai"]["keys"]
        for key in (row["config"], row["config"].replace("rope.", "rope_scaling."))
    }
    stated = carried | {"architectures", "model_type", "experts_per_token", "initial_context_length"}
    listed = {key for _, key, _ in assumed}
    assert listed == (set(config) - stated - {"rope_scaling"}) | {"rope_scaling.rope_type", "rope_scaling.truncate"}


def test_special_ids_that_are_stated_are_not_assumed_and_absurd_ones_left_out() -> None:
    openai = json.loads(PUBLISHED)
    config, assumed, _ = configs.openai_to_hf(ARCH, openai, {"eos_token_id": 5})
    assert config["eos_token_id"] == 5 and list(config) == list(_without("quantization_config"))
    assert {"pad_token_id"} == {key for _, key, _ in assumed if key.endswith("_token_id")}
    config, assumed, notes = configs.openai_to_hf(ARCH, {**openai, "vocab_size": 200_002}, {})
    assert "eos_token_id" not in config and config["pad_token_id"] == 199_999
    assert notes == ["eos_token_id is left out of config.json: the published 200002 is beyond the vocabulary"]
    assert "eos_token_id" not in {key for _, key, _ in assumed}


def test_what_openais_config_lacks_is_named_at_once() -> None:
    found = {**json.loads(PUBLISHED), "hidden_size": "big", "rope_theta": True}
    del found["num_experts"], found["swiglu_limit"]
    with pytest.raises(Problems) as caught:
        configs.openai_to_hf(ARCH, found)
    assert [p.field for p in caught.value.problems] == ["num_experts", "hidden_size", "rope_theta"]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("num_hidden_layers", 1 << 30, "num_hidden_layers"),
        ("num_hidden_layers", 2.5, "num_hidden_layers"),
        ("hidden_size", -1, "hidden_size"),
        ("rope_scaling_factor", 1e308, "max_position_embeddings"),
        ("initial_context_length", 0, "max_position_embeddings"),
    ],
)
def test_absurd_numbers_are_not_believed(key: str, value: float, field: str) -> None:
    with pytest.raises(InputError) as caught:
        configs.openai_to_hf(ARCH, {**json.loads(PUBLISHED), key: value})
    assert caught.value.field == field and caught.value.hint


def test_what_config_lacks_for_openai_is_named_at_once() -> None:
    config = {**_without("head_dim", "swiglu_limit"), "rope_scaling": {"rope_type": "linear", "factor": "x"}}
    with pytest.raises(Problems) as caught:
        configs.hf_to_openai(ARCH, config)
    fields = [p.field for p in caught.value.problems]
    assert fields == ["head_dim", *(f"rope_scaling.{k}" for k in ORDER)]
    assert isinstance(caught.value.problems[-1], UsageError)


ORDER = ("original_max_position_embeddings", "factor", "beta_slow", "beta_fast", "rope_type")


def test_dtypes_json_says_what_u8_stands_for() -> None:
    rows = [("embedding.weight", "BF16"), ("b.mlp1_weight.blocks", "U8"), ("b.mlp1_weight.scales", "U8"), ("n", "F32")]
    tensors = [StoredTensor(name, dtype, (1,), "f", 0, 1) for name, dtype in rows]
    found = configs.dtypes(ARCH, tensors).decode()
    assert (
        found
        == '{"embedding.weight": "BF16", "b.mlp1_weight.blocks": "FP4", "b.mlp1_weight.scales": "UE8", "n": "F32"}'
    )


@pytest.mark.parametrize(
    ("source", "experts", "dtype", "changes"),
    [
        (PUBLISHED_HF, "mxfp4", "bf16", {}),
        (PUBLISHED_HF, "mxfp4", "f32", {"torch_dtype": "float32"}),
        (PUBLISHED_HF, None, "bf16", {"quantization_config": None, "torch_dtype": "bfloat16"}),
        (PUBLISHED_HF, None, "f32", {"quantization_config": None, "torch_dtype": "float32"}),
        (V5, None, "bf16", {}),
        (V5, None, "f32", {"dtype": "float32"}),
        (V5, "mxfp4", "bf16", {"quantization_config": PUBLISHED_HF["quantization_config"]}),
        ({**V5, "torch_dtype": "float16"}, None, "bf16", {"torch_dtype": "bfloat16"}),
        (
            {**PUBLISHED_HF, "quantization_config": {"quant_method": "bitsandbytes"}},
            "mxfp4",
            "bf16",
            {"quantization_config": PUBLISHED_HF["quantization_config"]},
        ),
        ({**PUBLISHED_HF, "quantization_config": {"quant_method": "mxfp4", "mine": 1}}, "mxfp4", "bf16", {}),
    ],
)
def test_a_target_changes_only_what_it_must(
    source: dict[str, Any], experts: str | None, dtype: str, changes: dict[str, Any]
) -> None:
    text = (json.dumps(source, indent=2) + "\n").encode()
    found = configs.with_quantization(text, ARCH, experts, dtype)
    wanted = {k: v for k, v in {**source, **changes}.items() if v is not None}
    assert json.loads(found) == wanted
    if not changes:
        assert found == text
    elif list(source) == sorted(source):
        assert list(json.loads(found)) == sorted(wanted)
    else:
        assert [k for k in json.loads(found) if k in source] == [k for k in source if k in wanted]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'{"z": 1, "a": "\\u00e9"}', b'{"z": 1, "a": "\\u00e9", "torch_dtype": "bfloat16"}'),
        ('{\n    "a": "é"\n}\n'.encode(), '{\n    "a": "é",\n    "torch_dtype": "bfloat16"\n}\n'.encode()),
        (b'{\n\t"rope_parameters": {}\n}', b'{\n\t"dtype": "bfloat16",\n\t"rope_parameters": {}\n}'),
        (b'{"a": 1e-05, "b": 7.0, "c": 100000000000000000000}', b'{"a": 1e-05, "b": 7.0, "c": 100000000000000000000, '),
    ],
)
def test_the_source_s_style_is_kept(text: bytes, wanted: bytes) -> None:
    assert configs.with_quantization(text, ARCH, None, "bf16").startswith(wanted)


def test_sizes_come_from_either_shape_and_say_all_that_is_wrong() -> None:
    wanted = {"L": 24, "E": 32, "H": 2880, "I": 2880, "V": 201088, "N": 64, "K": 8, "D": 64}
    assert configs.sizes(ARCH, PUBLISHED_HF) == configs.sizes(ARCH, V5) == wanted
    broken = {**_without("head_dim"), "hidden_size": "2880", "vocab_size": -1, "num_hidden_layers": 1 << 40}
    broken |= {"num_attention_heads": True, "num_key_value_heads": None}
    with pytest.raises(Problems) as caught:
        configs.sizes(ARCH, broken)
    fields = {p.field for p in caught.value.problems}
    assert fields == {*broken.keys() & {"hidden_size", "vocab_size", "num_hidden_layers"}, "head_dim"} | {
        "num_attention_heads",
        "num_key_value_heads",
    }
    assert all(p.hint and p.file == "config.json" for p in caught.value.problems)


def test_rope_scaling_stands_above_rope_parameters_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    other = {"rope_type": "yarn", "factor": 16.0, "rope_theta": 5, "original_max_position_embeddings": 4096}
    for config in ({**PUBLISHED_HF, "rope_parameters": other}, V5, PUBLISHED_HF):
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
        assert configs.rope(config) == AutoConfig.from_pretrained(tmp_path).to_dict()["rope_parameters"]
