"""Parameters and what a token uses of them: the published figures, and models counted by their own framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import model_families
import pytest
from commandline import run
from header_checkpoints import write_headers, write_safetensors

from ckpttool.archs.facts import facts_of
from ckpttool.archs.purposes import purposes_of
from ckpttool.checkpoint import open_checkpoint
from ckpttool.parameters import ParameterCounts, count_parameters

PUBLISHED = {
    "20b": (20_914_757_184, 3_608_307_264, 19_110_297_600, 13_761_264_768, 91.4),
    "120b": (116_829_156_672, 5_132_849_472, 114_661_785_600, 65_248_815_744, 98.1),
}


def counted(path: Path) -> ParameterCounts:
    checkpoint = open_checkpoint(path)
    return count_parameters(checkpoint, facts_of(checkpoint))


@pytest.mark.parametrize("size", PUBLISHED)
def test_gpt_oss_as_published(size: str, tmp_path: Path) -> None:
    total, active, experts, nbytes, share = PUBLISHED[size]
    found = counted(write_headers(tmp_path / size, size))
    assert (found.total, found.active, found.experts, found.nbytes) == (total, active, experts, nbytes)
    assert round(100 * found.expert_share, 1) == share
    assert found.by_format == {"MXFP4": experts, "BF16": total - experts}
    met = experts * 4 // (32 if size == "20b" else 128)
    assert found.bytes_per_token == met * 17 // 32 + 2 * (active - met)


@pytest.mark.parametrize(("container", "format"), [("gguf", "mxfp4"), ("safetensors", "bf16"), ("gguf", "bf16")])
def test_the_same_in_every_container_and_format(container: str, format: str, tmp_path: Path) -> None:
    found = counted(write_headers(tmp_path / "x", "20b", container, format))
    assert (found.total, found.active, found.experts) == PUBLISHED["20b"][:3]


def test_every_dialect_counts_alike(tmp_path: Path) -> None:
    model = builders.Model(builders.Sizes(layers=2, experts=3))
    found = {counted(builders.write(model, tmp_path / d, d)).active for d in ("hf", "hf-bf16", "unsloth", "openai")}
    found.add(counted(builders.write_gguf(model, tmp_path / "m.gguf")).active)
    s = model.sizes
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = q * s.hidden + q + 2 * (kv * s.hidden + kv) + s.hidden * q + s.hidden + s.heads
    experts = 2 * (3 * s.intermediate * s.hidden + 2 * s.intermediate + s.hidden)
    layer = 2 * s.hidden + attention + s.experts * s.hidden + s.experts + experts
    assert found == {s.vocab * s.hidden + s.hidden + s.layers * layer}


@pytest.mark.parametrize("model_type", model_families.CONFIGS)
def test_other_families_as_their_framework_counts(model_type: str, tmp_path: Path) -> None:
    model = model_families.save(model_type, tmp_path / "x")
    found = counted(tmp_path / "x")
    parameters: dict[str, Any] = dict(model.named_parameters())
    buffers = {n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    sizes = {n: p.numel() for n, p in (parameters | buffers).items()}
    experts = {n: k for n, k in sizes.items() if ".experts." in n}
    top = model.config.num_experts_per_tok
    assert found.total == sum(sizes.values())
    assert found.experts == sum(k for n, k in experts.items() if not n.endswith("_bias"))
    used = sum(k for n, k in sizes.items() if n not in experts and "embed_tokens" not in n)
    assert found.active == used + sum(k * top // 4 for k in experts.values())


def test_pictures_are_counted_and_not_used(tmp_path: Path) -> None:
    model = model_families.save_pictures(tmp_path / "x")
    found = counted(tmp_path / "x")
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    text = {n: k for n, k in sizes.items() if n.startswith("language_model.")}
    assert found.total == sum(sizes.values()) > sum(text.values())
    experts = sum(k for n, k in text.items() if ".experts." in n)
    embed = next(k for n, k in text.items() if "embed_tokens" in n)
    assert found.active == sum(text.values()) - embed - experts * 3 // 4


def big(folder: Path, config: dict[str, Any], prefix: str = "model.", *, speculation: bool = True) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rows = model_families.deepseek_v3_tensors(config, prefix, speculation=speculation)
    write_safetensors(folder / "model.safetensors", rows)
    return folder


def test_deepseek_v3_as_published(tmp_path: Path) -> None:
    """Its weights' README: 671B, 36.6B activated "including 0.9B for the output Head", and 11.5B of speculation."""
    whole = counted(big(tmp_path / "whole", model_families.DEEPSEEK_V3))
    main = counted(big(tmp_path / "main", model_families.DEEPSEEK_V3, speculation=False))
    assert (round(main.total / 1e9), round((main.active or 0) / 1e9, 1)) == (671, 36.6)
    assert (round((whole.total - main.total) / 1e9, 1), whole.active) == (11.5, main.active)


def test_kimi_k2_as_published(tmp_path: Path) -> None:
    """A trillion parameters, 32 billion activated."""
    config = model_families.DEEPSEEK_V3 | {
        "model_type": "kimi_k2", "n_routed_experts": 384, "first_k_dense_replace": 1, "num_attention_heads": 64,
        "num_key_value_heads": 64, "vocab_size": 163840,
    }  # fmt: skip
    found = counted(big(tmp_path / "k2", config, speculation=False))
    assert (round(found.total / 1e12, 2), round((found.active or 0) / 1e9)) == (1.03, 32)


def test_a_tied_table_counts_once_and_is_used(tmp_path: Path) -> None:
    config = {"model_type": "dense", "num_hidden_layers": 1, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [("model.embed_tokens.weight", "BF16", (10, 4)), ("model.layers.0.mlp.up_proj.weight", "BF16", (8, 4))]
    write_safetensors(tmp_path / "model.safetensors", rows)
    found = counted(tmp_path)
    assert (found.total, found.active, found.experts) == (72, 72, 0)
    write_safetensors(tmp_path / "model.safetensors", [*rows, ("lm_head.weight", "BF16", (10, 4))])
    assert (counted(tmp_path).total, counted(tmp_path).active) == (112, 72)


CACHE = ("self_attn.k_scale", "self_attn.v_proj.v_scale", "self_attn.attn.kv_scale", "self_attn.k_proj.output_scale")


@pytest.mark.parametrize("name", CACHE)
def test_scales_of_a_cache_are_no_parameters(name: str, tmp_path: Path) -> None:
    config = {"model_type": "dense", "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [("model.embed_tokens.weight", "BF16", (10, 4)), ("model.layers.0.self_attn.k_proj.weight", "BF16", (8, 4))]
    write_safetensors(tmp_path / "model.safetensors", [*rows, (f"model.layers.0.{name}", "F32", ())])
    found = counted(tmp_path)
    assert (found.total, found.active, found.by_format) == (72, 72, {"BF16": 72})
    document = json.loads(run("inspect", tmp_path, "--json").out)
    assert document["parameters"] == 72
    assert {f["format"]: (f["weights"], f["parameters"]) for f in document["summary"]["formats"]} == {
        "BF16": (2, 72), "F32": (1, 0),
    }  # fmt: skip


def test_unknown_experts_are_not_guessed(tmp_path: Path) -> None:
    config = {"model_type": "unheard_of", "num_hidden_layers": 1, "num_experts": 8, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [("model.embed_tokens.weight", "BF16", (10, 4)), ("model.layers.0.moe.bank", "BF16", (8, 4, 4))]
    write_safetensors(tmp_path / "model.safetensors", rows)
    found = counted(tmp_path)
    assert (found.total, found.active, found.bytes_per_token, found.experts) == (168, None, None, 0)


def test_without_a_config_nothing_is_active(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", [("embed_tokens.weight", "BF16", (10, 4))])
    assert counted(tmp_path / "x.safetensors").active is None


def test_roles_of_thousands_of_experts_are_quick_to_tell(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(big(tmp_path / "v3", model_families.DEEPSEEK_V3))
    purposes = purposes_of(checkpoint, 61)
    assert sum(r.is_expert for r in purposes.by_name.values()) == 59 * 256 * 3
    assert sum(r.is_expert and not r.idle for r in purposes.by_name.values()) == 58 * 256 * 3
