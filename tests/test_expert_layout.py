"""How experts are stored, from headers alone: every dialect of gpt-oss, what transformers saves, what is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import model_families
import numpy as np
import pytest
from builders import Tensor
from commandline import run
from header_checkpoints import write_headers, write_safetensors

from ckpttool.archs import arch_tables, arches
from ckpttool.archs.facts import facts_of
from ckpttool.checkpoint import open_checkpoint
from ckpttool.expert_layout import ExpertLayouts, expert_layouts

MODEL = builders.Model(builders.Sizes(layers=3, experts=3))


def layouts(path: Path) -> ExpertLayouts | None:
    checkpoint = open_checkpoint(path)
    return expert_layouts(checkpoint, facts_of(checkpoint))


def only(path: Path) -> tuple[Any, ...]:
    """Dialect, layers and the layout's fields of a checkpoint whose layers are all alike."""
    found = layouts(path)
    assert found is not None and found.findings == () and len(found.groups) == 1
    x = found.groups[0].layout
    assert (x.hidden, x.intermediate) != (None, None)
    return found.dialect, found.layers, x.experts, x.gate_up, x.order, x.storage, x.orientation, x.bias, x.shared


GPT_OSS = {
    "hf": ("fused", "interleaved", "stacked", "[out, in]"),
    "hf-bf16": ("fused", "interleaved", "stacked", "[in, out]"),
    "unsloth": ("fused", "interleaved", "per-expert", "[out, in]"),
    "openai": ("fused", "interleaved", "stacked", "[out, in]"),
    "gguf": ("separate", None, "stacked", "[out, in]"),
}


@pytest.mark.parametrize("dialect", GPT_OSS)
def test_gpt_oss(dialect: str, tmp_path: Path) -> None:
    if dialect == "gguf":
        path = builders.write_gguf(MODEL, tmp_path / "m.gguf")
    else:
        path = builders.write(MODEL, tmp_path / "x", dialect)
    assert only(path) == (dialect, (0, 1, 2), 3, *GPT_OSS[dialect], True, 0)
    found = layouts(path)
    assert found is not None
    assert (found.groups[0].layout.hidden, found.groups[0].layout.intermediate) == (64, 96)


TRANSFORMERS = {
    "qwen3_moe": ("hf", (1,), 4, "separate", None, "per-expert", "[out, in]", False, 0),
    "mixtral": ("hf", (0, 1), 4, "separate", None, "per-expert", "[out, in]", False, 0),
    "deepseek_v3": ("hf", (1, 2), 4, "separate", None, "per-expert", "[out, in]", False, 2),
    "glm4_moe": ("hf", (1, 2), 4, "separate", None, "per-expert", "[out, in]", False, 1),
    "llama4_text": ("hf", (1, 3), 4, "fused", "concatenated", "stacked", "[in, out]", False, 1),
    "deepseek_v4": ("hf", (0, 1, 2, 3), 4, "separate", None, "per-expert", "[out, in]", False, 1),
    "gpt_oss": ("hf-bf16", (0, 1), 4, "fused", "interleaved", "stacked", "[in, out]", True, 0),
}


@pytest.mark.parametrize("model_type", TRANSFORMERS)
def test_what_transformers_saves(model_type: str, tmp_path: Path) -> None:
    model_families.save(model_type, tmp_path / "x")
    assert only(tmp_path / "x") == TRANSFORMERS[model_type]


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe", "deepseek_v4"])
def test_what_transformers_holds_in_memory(model_type: str, tmp_path: Path) -> None:
    model_families.save(model_type, tmp_path / "x", save_original_format=False)
    usual = TRANSFORMERS[model_type]
    wanted = ("hf-fused", *usual[1:3], "fused", "concatenated", "stacked", "[out, in]", False, usual[-1])
    assert only(tmp_path / "x") == wanted


def test_a_nested_config_and_its_prefix(tmp_path: Path) -> None:
    model_families.save_pictures(tmp_path / "x")
    assert only(tmp_path / "x")[:3] == ("hf", (0, 1, 2, 3), 4)
    config = model_families.DEEPSEEK_V3 | {
        "num_hidden_layers": 2, "n_routed_experts": 3, "first_k_dense_replace": 1, "model_type": "kimi_k2",
    }  # fmt: skip
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "config.json").write_text(json.dumps({"model_type": "kimi_k25", "text_config": config}))
    rows = model_families.deepseek_v3_tensors(config, "language_model.model.")
    write_safetensors(tmp_path / "k" / "model.safetensors", rows)
    assert only(tmp_path / "k") == ("hf", (1,), 3, "separate", None, "per-expert", "[out, in]", False, 1)
    assert facts_of(open_checkpoint(tmp_path / "k")).family == "Kimi-K2.5"


GGUF_ARCHES = {"qwen3moe": 0, "llama": 0, "deepseek2": 1, "glm4moe": 1, "llama4": 1}


@pytest.mark.parametrize("arch", GGUF_ARCHES)
@pytest.mark.parametrize("fused", [False, True])
def test_other_ggufs(arch: str, fused: bool, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", arch)
    writer.add_block_count(2)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_leading_dense_block_count(1)
    names = {"ffn_gate_up_exps": (4, 64, 64)} if fused else {"ffn_gate_exps": (4, 32, 64), "ffn_up_exps": (4, 32, 64)}
    names |= {"ffn_down_exps": (4, 64, 32)}
    if GGUF_ARCHES[arch]:
        names |= {"ffn_down_shexp": (64, 32)}  # type: ignore[dict-item]
    for name, shape in names.items():
        writer.add_tensor(f"blk.1.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gate_up = ("fused", "concatenated") if fused else ("separate", None)
    assert only(tmp_path / "x.gguf") == ("gguf", (1,), 4, *gate_up, "stacked", "[out, in]", False, GGUF_ARCHES[arch])


LINEAR = [("gate_proj", (96, 64)), ("up_proj", (96, 64)), ("down_proj", (64, 96))]
QUARK = [("gate_up_proj", (192, 64)), ("down_proj", (64, 96))]


@pytest.mark.parametrize(
    ("name", "matrices", "gate_up"),
    [("hf-linear", LINEAR, ("separate", None)), ("quark", QUARK, ("fused", "interleaved"))],
)
def test_gpt_oss_with_its_experts_apart(
    name: str, matrices: list[tuple[str, tuple[int, ...]]], gate_up: tuple[Any, ...], tmp_path: Path
) -> None:
    config = MODEL.sizes.config | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    at = "model.layers.0.mlp.experts"
    rows = [(f"{at}.{e}.{m}.weight", "BF16", shape) for e in range(3) for m, shape in matrices]
    rows += [(f"{at}.{e}.{m}.bias", "BF16", shape[:1]) for e in range(3) for m, shape in matrices]
    write_safetensors(tmp_path / "model.safetensors", rows)
    assert only(tmp_path) == (name, (0,), 3, *gate_up, "per-expert", "[out, in]", True, 0)


def test_a_layer_that_differs_is_found(tmp_path: Path) -> None:
    def widen(tensors: builders.Tensors) -> None:
        at = "model.layers.1.mlp.experts.down_proj"
        del tensors[f"{at}_blocks"], tensors[f"{at}_scales"]
        tensors[at] = Tensor("BF16", np.zeros((3, 64, 96), np.uint16))

    found = layouts(builders.write(MODEL, tmp_path / "x", "hf", change=widen))
    assert found is not None
    assert [g.layers for g in found.groups] == [(0, 2), (1,)]
    assert found.findings == ("layer 1: formats BF16, MXFP4, elsewhere MXFP4",)
    assert found.of(1) == found.groups[1].layout != found.of(0)


def test_missing_and_misshapen_experts_are_found(tmp_path: Path) -> None:
    def damage(tensors: builders.Tensors) -> None:
        del tensors["model.layers.2.mlp.experts.gate_up_projs.1.weight"]
        odd = Tensor("BF16", np.zeros((64, 95), np.uint16))
        tensors["model.layers.0.mlp.experts.down_projs.2.weight"] = odd

    found = layouts(builders.write(MODEL, tmp_path / "x", "unsloth", change=damage))
    assert found is not None
    assert found.findings == (
        "layer 0: model.layers.0.mlp.experts.down_projs.2.weight has shape [64, 95], "
        "which does not fit hidden 64, intermediate 96",
        "layer 2: gate and up: 1 of 3 experts are missing: 1",
    )


def test_what_the_config_says_is_held_against_the_headers(tmp_path: Path) -> None:
    model_families.save("qwen3_moe", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config |= {"num_local_experts": 5, "mlp_only_layers": [], "decoder_sparse_step": 2}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    found = layouts(tmp_path / "x")
    assert found is not None
    assert found.findings == (
        "layer 3: no experts, though decoder_sparse_step says so",
        "layer 1: 4 experts, but num_local_experts is 5",
    )


def test_an_unknown_architecture_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    rows = [("model.layers.0.mlp.experts.0.gate_proj.weight", "BF16", (8, 4))]
    write_safetensors(tmp_path / "model.safetensors", rows)
    assert layouts(tmp_path) is None
    assert run("inspect", tmp_path).code == 0


def test_at_full_size(tmp_path: Path) -> None:
    assert only(write_headers(tmp_path / "x", "120b"))[:3] == ("hf", tuple(range(36)), 128)


def test_a_layout_that_extends_another_has_its_rows_and_its_own() -> None:
    tables = {t.file: t.layouts for t in arch_tables()}
    below, above = tables["archs/qwen3_moe.toml"]["gguf"], tables["archs/deepseek_v3.toml"]["gguf"]
    assert above.container == "gguf"
    assert set(above.rows) - set(below.rows) == {
        "blk.{l}.exp_probs_b.bias", *(f"blk.{{l}}.ffn_{n}_shexp.weight" for n in ("gate", "up", "down")),
    }  # fmt: skip
    assert {t: above.rows[t] for t in below.rows} == below.rows
    assert tables["archs/glm4_moe.toml"]["gguf"].rows == above.rows
    hf = tables["archs/deepseek_v3.toml"]["hf"].rows  # whose prefixes are its own
    assert "language_model.model.layers.{l}.mlp.experts.{e}.up_proj.weight" in hf
    assert "language_model.model.embed_tokens.weight" not in tables["archs/qwen3_moe.toml"]["hf"].rows


def test_convert_refuses_what_is_only_looked_at(tmp_path: Path) -> None:
    assert [a.name for a in arches()] == ["gpt-oss"]
    assert len(arch_tables()) == 7
    model_families.save("mixtral", tmp_path / "x")
    result = run("convert", tmp_path / "x", tmp_path / "y.gguf")
    assert (result.code, "'mixtral'" in result.err, (tmp_path / "y.gguf").exists()) == (3, True, False)
