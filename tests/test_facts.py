"""Facts of a model from its side files: config.json of every spelling, OpenAI's, a GGUF's; and nothing invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import header_checkpoints
import model_families
import pytest
from header_checkpoints import write_headers
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.archs import arch_tables
from ckpttool.archs.facts import FACTS, ModelFacts, facts_of, facts_of_config
from ckpttool.checkpoint import open_checkpoint
from ckpttool.errors import InputError
from ckpttool.serving import kvcache

ALTERNATING = ("sliding", "full") * 12


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFacts]:
    at = tmp_path_factory.mktemp("facts")
    hf = facts_of(open_checkpoint(write_headers(at / "hf", "20b")))
    return {"hf": hf, "gguf": facts_of(open_checkpoint(write_headers(at / "gguf", "20b", "gguf")))}


@pytest.mark.parametrize("source", ["hf", "gguf"])
def test_gpt_oss_as_published(published: dict[str, ModelFacts], source: str) -> None:
    f = published[source]
    assert (f.family, f.layers, f.hidden, f.heads, f.kv_heads, f.head_dim) == ("gpt-oss", 24, 2880, 64, 8, 64)
    assert (f.attention, f.sliding_window, f.context) == (ALTERNATING, 128, 131072)
    assert (f.rope_type, f.rope_theta, f.rope_factor, f.original_context) == ("yarn", 150000.0, 32.0, 4096)
    assert (f.rope_beta_fast, f.rope_beta_slow) == (32.0, 1.0)
    assert (f.experts, f.experts_per_token, f.moe_layers) == (32, 4, tuple(range(24)))
    assert (f.expert_intermediate, f.vocab, f.bos, f.pad) == (2880, 201088, 199998, 199999)
    assert (f.kv_lora_rank, f.shared_experts, f.compression) == (None, None, None)


def test_what_only_config_json_says(published: dict[str, ModelFacts]) -> None:
    hf, gguf = published["hf"], published["gguf"]
    assert (hf.swiglu_limit, hf.rope_truncate, hf.tied_embeddings) == (7.0, False, False)
    assert (gguf.swiglu_limit, gguf.rope_truncate, gguf.tied_embeddings) == (None, None, None)
    assert (hf.eos, gguf.eos) == ((200002, 199999, 200012), (200002,))


def test_each_fact_names_its_key(published: dict[str, ModelFacts]) -> None:
    for source, f in published.items():
        known = {n for n, v in vars(f).items() if v is not None and n != "said"}
        assert known == set(f.said), source
    assert published["hf"].said["eos"] == "generation_config.json: eos_token_id"
    assert published["hf"].said["rope_factor"] == "rope_scaling.factor"
    assert published["gguf"].said["kv_heads"] == "gpt-oss.attention.head_count_kv"
    assert published["gguf"].said["attention"] == "archs/gpt_oss.toml"  # llama.cpp has the pattern in its code


def test_openai_s_own_config(tmp_path: Path) -> None:
    model = builders.Model(builders.Sizes(layers=2))
    f = facts_of(open_checkpoint(builders.write(model, tmp_path / "original", "openai")))
    assert (f.family, f.model_type, f.layers, f.experts, f.experts_per_token) == ("gpt-oss", None, 2, 3, 2)
    assert (f.rope_factor, f.rope_beta_fast, f.rope_beta_slow, f.original_context) == (32.0, 32.0, 1.0, 4096)
    assert (f.context, f.said["context"]) == (131072, "original context x rope factor")
    assert (f.attention, f.bos, f.tied_embeddings) == (("sliding", "full"), None, None)


def test_transformers_5_spells_rope_another_way() -> None:
    config = header_checkpoints.published_config("20b")
    old = facts_of_config(config)
    config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    new = facts_of_config(config)
    told = ("rope_theta", "rope_type", "rope_factor", "rope_beta_fast", "rope_truncate", "original_context")
    assert [getattr(new, n) for n in told] == [getattr(old, n) for n in told]
    assert new.said["rope_theta"] == "rope_parameters.rope_theta"


def test_a_nested_config_speaks_for_the_text() -> None:
    text = {"model_type": "kimi_k2", "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    config = {"model_type": "kimi_k25", "architectures": ["KimiK25ForConditionalGeneration"], "text_config": text}
    config |= {"num_hidden_layers": 27, "tie_word_embeddings": False}
    f = facts_of_config(config)
    assert (f.model_type, f.layers, f.kv_lora_rank, f.tied_embeddings) == ("kimi_k25", 61, 512, False)
    assert f.attention == ("mla",) * 61


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a window that is switched off": (
        {"num_hidden_layers": 2, "sliding_window": 4096, "use_sliding_window": False},
        {"attention": ("full", "full"), "sliding_window": None},
    ),
    "a window on every layer": (
        {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 4096},
        {"attention": ("sliding", "sliding"), "sliding_window": 4096},
    ),
    "a window that no layer is named to have": (
        {"model_type": "unheard_of", "num_hidden_layers": 2, "sliding_window": 4096},
        {"attention": ("full", "full"), "sliding_window": 4096},
    ),
    "Gemma 2, whose config names no layer": (
        {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 4096},
        {"attention": ("sliding", "full", "sliding", "full")},
    ),
    "Gemma 3 within a model that sees": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 7,
                                                 "sliding_window": 1024}},
        {"attention": ("sliding",) * 5 + ("full", "sliding")},
    ),
    "Qwen 3's window, which is off unless it is on": (
        {"model_type": "qwen3", "num_hidden_layers": 3, "sliding_window": 4096, "max_window_layers": 1},
        {"attention": ("full",) * 3},
    ),
    "Qwen 3's window on its later layers": (
        {"model_type": "qwen3", "num_hidden_layers": 3, "sliding_window": 4096, "max_window_layers": 1,
         "use_sliding_window": True},
        {"attention": ("full", "sliding", "sliding")},
    ),
    "Llama-4's layers without rope": (
        {"num_hidden_layers": 4, "attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0]},
        {"attention": ("chunked", "chunked", "chunked", "full"), "sliding_window": 8192, "no_rope": (3,)},
    ),
    "SmolLM 3's layers without rope, which see no less": (
        {"num_hidden_layers": 5, "no_rope_layer_interval": 2},
        {"attention": ("full",) * 5, "no_rope": (1, 3)},
    ),
    "every layer has rope where nothing speaks of any without": ({"num_hidden_layers": 2}, {"no_rope": None}),
    "DeepSeek-V4's compression": (
        {"num_hidden_layers": 3, "compress_ratios": [0, 4, 128, 0], "sliding_window": 128, "num_attention_heads": 2},
        {"attention": ("sliding", "compressed", "compressed"), "compression": (0, 4, 128)},
    ),
    "a kind of attention that we have no word for": (
        {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
        {"attention": ("linear_attention", "full")},
    ),
    "dense layers first": (
        {"num_hidden_layers": 4, "n_routed_experts": 8, "first_k_dense_replace": 3},
        {"moe_layers": (3,), "experts": 8},
    ),
    "every other layer": (
        {"num_hidden_layers": 4, "num_experts": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        {"moe_layers": (1,)},
    ),
    "a list of layers": (
        {"num_hidden_layers": 4, "num_local_experts": 8, "moe_layers": [1, 3]},
        {"moe_layers": (1, 3)},
    ),
    "dense": ({"num_hidden_layers": 4, "intermediate_size": 9}, {"moe_layers": None, "expert_intermediate": None}),
    "no head size": ({"hidden_size": 64, "num_attention_heads": 4}, {"head_dim": 16, "kv_heads": 4}),
    "numbers that are none": (
        {"num_hidden_layers": "24", "hidden_size": True, "num_attention_heads": -1, "vocab_size": 1 << 50,
         "layer_types": [3], "text_config": 7, "rope_scaling": [1], "eos_token_id": ["x", 5]},
        {"layers": None, "hidden": None, "heads": None, "vocab": None, "attention": None, "eos": (5,)},
    ),
    "nothing": ({}, dict.fromkeys(("layers", "attention", "experts", "context", "bos", "eos"))),
}  # fmt: skip


@pytest.mark.parametrize(("config", "wanted"), CASES.values(), ids=CASES)
def test_cases(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    f = facts_of_config(config)
    assert {name: getattr(f, name) for name in wanted} == wanted


KEYS = sorted({key.split(".")[0] for fact in FACTS for key in fact.config} | {
    "layer_types", "compress_ratios", "compress_rates", "no_rope_layers", "moe_layers", "mlp_layer_types",
    "mlp_only_layers", "first_k_dense_replace", "moe_layer_freq", "eos_token_id", "use_sliding_window", "text_config",
})  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from(["full_attention", "heavily_compressed_attention", "yarn", "llama4"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from([*KEYS, "factor", "main"]), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), JUNK))
@settings(max_examples=300, deadline=None)
def test_whatever_a_config_holds_facts_are_of_their_types(config: dict[str, Any]) -> None:
    f = facts_of_config(config)
    types = {fact.name: fact.type for fact in FACTS}
    assert all(getattr(f, name) is None or type(getattr(f, name)) is kind for name, kind in types.items())
    for per_layer in (f.attention, f.compression):
        assert per_layer is None or len(per_layer) == f.layers
    if f.layers and not kvcache_problem(f):
        assert kvcache.kv_bytes(f, 100, "fp16") >= 0


def kvcache_problem(f: ModelFacts) -> bool:
    try:
        kvcache.require(f, "x")
    except InputError:
        return True
    return False


WINDOWED = ("mistral", "mixtral", "phi3", "starcoder2", "gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3")


@pytest.mark.parametrize("model_type", [*WINDOWED, "qwen2", "qwen3", "qwen3_moe"])
def test_families_that_name_no_layer_are_windowed_as_transformers_has_them(model_type: str) -> None:
    import transformers

    switch = {"use_sliding_window": True, "max_window_layers": 5} if model_type.startswith("qwen") else {}
    said: dict[str, Any] = {"num_hidden_layers": 14, "sliding_window": 77, **switch}
    config = transformers.AutoConfig.for_model(model_type, **said)
    theirs = getattr(config, "layer_types", None) or ["sliding_attention"] * 14  # no types: all have the window
    kinds = {"sliding_attention": "sliding", "full_attention": "full"}
    found = facts_of_config({"model_type": model_type, **said})
    assert found.attention == tuple(kinds[t] for t in theirs)


def test_layer_types_shorter_than_the_model_are_not_believed() -> None:
    f = facts_of_config({"num_hidden_layers": 3, "layer_types": ["full_attention"]})
    assert f.attention == ("full",) * 3 and f.said["attention"] == "no sliding window"


def test_facts_are_fields() -> None:
    names = {fact.name for fact in FACTS}
    assert names <= set(ModelFacts.__dataclass_fields__)
    for table in arch_tables():
        assert set(table.assumed) <= set(ModelFacts.__dataclass_fields__), table.file


EXPECTED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"family": "Qwen3-MoE", "moe_layers": (1,), "expert_intermediate": 32, "head_dim": 16},
    "mixtral": {"family": "Mixtral", "moe_layers": (0, 1), "expert_intermediate": 96, "head_dim": 16, "bos": 1},
    "deepseek_v3": {"family": "DeepSeek-V3", "moe_layers": (1, 2), "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                    "attention": ("mla",) * 3, "shared_experts": 2, "head_dim": 24},
    "glm4_moe": {"family": "GLM-4.5", "moe_layers": (1, 2), "attention": ("full",) * 3, "shared_experts": 1},
    "llama4_text": {"family": "Llama-4", "moe_layers": (1, 3), "expert_intermediate": 32, "intermediate": 96,
                    "attention": ("chunked", "chunked", "chunked", "full"), "shared_experts": 1, "no_rope": (3,)},
    "deepseek_v4": {"family": "DeepSeek-V4", "moe_layers": (0, 1, 2, 3), "swiglu_limit": 10.0,
                    "compression": (128, 128, 128, 4), "attention": ("compressed",) * 4},
    "gpt_oss": {"family": "gpt-oss", "moe_layers": (0, 1), "attention": ("sliding", "full")},
}  # fmt: skip


@pytest.mark.parametrize("model_type", EXPECTED)
def test_what_transformers_saves(model_type: str, tmp_path: Path) -> None:
    model = model_families.save(model_type, tmp_path / model_type)
    f = facts_of(open_checkpoint(tmp_path / model_type))
    assert {name: getattr(f, name) for name in EXPECTED[model_type]} == EXPECTED[model_type]
    text = model.config
    assert (f.layers, f.hidden, f.heads) == (text.num_hidden_layers, text.hidden_size, text.num_attention_heads)
    assert (f.kv_heads, f.vocab, f.context) == (text.num_key_value_heads, 128, 256)
    assert (f.experts, f.experts_per_token) == (4, text.num_experts_per_tok)


def test_damaged_generation_config_is_an_error(tmp_path: Path) -> None:
    source = write_headers(tmp_path / "x", "20b")
    (source / "generation_config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="generation_config"):
        facts_of(open_checkpoint(source))


def gguf_of(path: Path, arch: str, numbers: dict[str, Any]) -> ModelFacts:
    """The facts of a GGUF with these key-values, `arch` before each."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, arch)
    for key, value in numbers.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        else:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return facts_of(open_checkpoint(path))


MIXTURE = {"block_count": 4, "expert_count": 8, "expert_used_count": 2}
GGUFS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Mixtral is a llama with experts": (
        "llama", MIXTURE, {"family": "Mixtral", "moe_layers": (0, 1, 2, 3), "attention": ("full",) * 4},
    ),
    "a dense llama is none": ("llama", {"block_count": 4}, {"family": None, "moe_layers": None, "experts": None}),
    "DeepSeek-V3's latents": (
        "deepseek2",
        MIXTURE | {"attention.kv_lora_rank": 512, "rope.dimension_count": 64, "leading_dense_block_count": 3,
                   "attention.head_count": 128, "attention.head_count_kv": 1, "attention.key_length": 576,
                   "attention.key_length_mla": 192, "expert_shared_count": 1},
        {"family": "DeepSeek-V3", "attention": ("mla",) * 4, "moe_layers": (3,), "qk_rope_head_dim": 64,
         "kv_lora_rank": 512, "head_dim": 192, "shared_experts": 1},
    ),
    "GLM-4.5's layers of speculation": (
        "glm4moe", MIXTURE | {"nextn_predict_layers": 1, "leading_dense_block_count": 1},
        {"family": "GLM-4.5", "layers": 3, "moe_layers": (1, 2)},
    ),
    "Llama-4's chunks": (
        "llama4", MIXTURE | {"interleave_moe_layer_step": 2},
        {"family": "Llama-4", "attention": ("chunked", "chunked", "chunked", "full"), "moe_layers": (1, 3),
         "sliding_window": 8192, "shared_experts": 1, "no_rope": (3,)},
    ),
    "Gemma 3's period is in llama.cpp's code": (
        "gemma3", {"block_count": 7, "attention.sliding_window": 1024},
        {"attention": ("sliding",) * 5 + ("full", "sliding")},
    ),
    "a window that no layer is named to have": (
        "other", {"block_count": 2, "attention.sliding_window": 128}, {"attention": ("full", "full")},
    ),
    "a pattern as a period": (
        "other", {"block_count": 4, "attention.sliding_window": 128, "attention.sliding_window_pattern": 2},
        {"family": None, "attention": ("sliding", "full", "sliding", "full")},
    ),
    "a pattern by layer": (
        "other",
        {"block_count": 3, "attention.sliding_window": 128, "attention.sliding_window_pattern": [True, False, True]},
        {"attention": ("sliding", "full", "sliding")},
    ),
    "heads that differ by layer are no number": (
        "other", {"block_count": 2, "attention.head_count_kv": [8, 4], "attention.head_count": [8, 8]},
        {"kv_heads": None, "heads": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arch", "numbers", "wanted"), GGUFS.values(), ids=GGUFS)
def test_ggufs(arch: str, numbers: dict[str, Any], wanted: dict[str, Any], tmp_path: Path) -> None:
    f = gguf_of(tmp_path / "x.gguf", arch, numbers)
    assert {name: getattr(f, name) for name in wanted} == wanted
