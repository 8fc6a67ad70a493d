"""The fixtures are what MANIFEST.json says, agree with each other, and run in transformers and llama.cpp.

Nothing of ckpttool takes part: what is wrong here is wrong in the fixtures or their oracles.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import llamacpp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES / "make"))

import mxfp4  # noqa: E402
import oddities  # noqa: E402
import shape  # noqa: E402
from perplexity import perplexity  # noqa: E402

ROOT = FIXTURES / "tiny-gpt-oss"
GGUF = ROOT / "gguf"
AUTO = GGUF / "tiny-gpt-oss-auto.gguf"
SPLIT = GGUF / "split" / "tiny-gpt-oss-auto-00001-of-00003.gguf"
MANIFEST: dict[str, Any] = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))
MEGABYTE = 1_000_000

Array = NDArray[Any]


def read(dialect: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((ROOT / dialect).glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return tensors


def f32(tensor: torch.Tensor) -> Array:
    return tensor.float().numpy()


def gguf_values(path: Path) -> dict[str, Array]:
    """Every tensor decoded to F32, in torch's order of axes."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def master() -> dict[str, torch.Tensor]:
    return read("hf")


@pytest.fixture(scope="module")
def experts(master: dict[str, torch.Tensor]) -> dict[str, Array]:
    """The master's expert matrices [E, rows, K] by the stem of their name, decoded in numpy."""
    return {
        name.removesuffix("_blocks"): mxfp4.dequantize(
            master[name].numpy(), master[name.replace("_blocks", "_scales")].numpy()
        )
        for name in master
        if name.endswith("_blocks")
    }


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "hf")
    text = (FIXTURES / "heldout.txt").read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    return ids


# --- the manifest ---


def test_manifest_lists_exactly_the_files_that_are_there() -> None:
    found = {p.relative_to(FIXTURES).as_posix() for p in ROOT.rglob("*") if p.is_file()}
    assert set(MANIFEST["files"]) == found | {"heldout.txt"}


@pytest.mark.parametrize("path", MANIFEST["files"])
def test_file_is_the_one_of_the_manifest(path: str) -> None:
    data = (FIXTURES / path).read_bytes()
    entry = MANIFEST["files"][path]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert entry["made"]
    assert entry["licence"]


def test_fixtures_stay_small() -> None:
    sizes = {path: entry["bytes"] for path, entry in MANIFEST["files"].items()}
    for dialect in ("parent", "hf", "hf-bf16", "openai", "unsloth"):
        assert sum(n for path, n in sizes.items() if f"/{dialect}/" in path) < 8 * MEGABYTE
    assert max(n for path, n in sizes.items() if path.endswith(".gguf")) < 8 * MEGABYTE
    assert sum(sizes.values()) < 60 * MEGABYTE


# --- the HF folders ---


@pytest.mark.parametrize("dialect", ["hf", "hf-bf16"])
def test_index_agrees_with_the_headers(dialect: str) -> None:
    index = json.loads((ROOT / dialect / "model.safetensors.index.json").read_text())
    weight_map = {}
    for file in (ROOT / dialect).glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            weight_map |= dict.fromkeys(stored.keys(), file.name)
    assert index["weight_map"] == weight_map
    total = sum(t.numel() * t.element_size() for t in read(dialect).values())
    assert index["metadata"]["total_size"] == total


def test_blocks_and_their_scales_lie_in_different_files() -> None:
    weight_map = json.loads((ROOT / "hf" / "model.safetensors.index.json").read_text())["weight_map"]
    apart = [
        name
        for name, file in weight_map.items()
        if name.endswith("_blocks") and weight_map[name.replace("_blocks", "_scales")] != file
    ]
    assert apart == [
        "model.layers.1.mlp.experts.down_proj_blocks",
        "model.layers.2.mlp.experts.gate_up_proj_blocks",
    ]


def test_master_uses_every_code_and_was_rounded_by_the_ocp_rule(
    master: dict[str, torch.Tensor], experts: dict[str, Array]
) -> None:
    codes: set[int] = set()
    for stem, values in experts.items():
        blocks, scales = master[f"{stem}_blocks"].numpy(), master[f"{stem}_scales"].numpy()
        codes |= set((blocks & 15).flat) | set((blocks >> 4).flat)
        again = mxfp4.quantize(values)
        np.testing.assert_array_equal(again[0], blocks)
        np.testing.assert_array_equal(again[1], scales)
    assert codes == set(range(16))


def test_parent_is_the_master_before_quantization(master: dict[str, torch.Tensor], experts: dict[str, Array]) -> None:
    for name, tensor in read("parent").items():
        if name in experts:
            blocks, scales = mxfp4.quantize(f32(tensor).swapaxes(1, 2))
            np.testing.assert_array_equal(blocks, master[f"{name}_blocks"].numpy())
            np.testing.assert_array_equal(scales, master[f"{name}_scales"].numpy())
            assert not np.array_equal(f32(tensor).swapaxes(1, 2), experts[name])
        else:
            assert torch.equal(tensor, master[name])


# --- one model in every dialect ---


def test_hf_bf16_is_the_master_decoded_and_transposed(
    master: dict[str, torch.Tensor], experts: dict[str, Array]
) -> None:
    widened = read("hf-bf16")
    plain = {name for name in master if not name.endswith(("_blocks", "_scales"))}
    assert set(widened) == plain | set(experts)
    for name in plain:
        assert torch.equal(widened[name], master[name])
    for stem, values in experts.items():
        stored = f32(widened[stem]).swapaxes(1, 2)
        np.testing.assert_array_equal(stored, values)
        np.testing.assert_array_equal(np.signbit(stored), np.signbit(values))


def test_openai_holds_the_same_bytes(master: dict[str, torch.Tensor]) -> None:
    ours = read("openai")
    types = json.loads((ROOT / "openai" / "dtypes.json").read_text())
    assert set(types) == set(ours)
    assert Counter(types.values()) == {"BF16": 11 * shape.LAYERS + 3, "FP4": 2 * shape.LAYERS, "UE8": 2 * shape.LAYERS}
    widths = (shape.HEADS * shape.HEAD_DIM, shape.KV_HEADS * shape.HEAD_DIM, shape.KV_HEADS * shape.HEAD_DIM)
    for layer in range(shape.LAYERS):
        block, hf = f"block.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = torch.split(ours[f"{block}.attn.qkv.{kind}"], widths)
            for letter, part in zip("qkv", parts, strict=True):
                assert torch.equal(part, master[f"{hf}.self_attn.{letter}_proj.{kind}"])
        for number, stem in ((1, "gate_up_proj"), (2, "down_proj")):
            for suffix in ("blocks", "scales"):
                theirs = master[f"{hf}.mlp.experts.{stem}_{suffix}"]
                assert torch.equal(ours[f"{block}.mlp.mlp{number}_weight.{suffix}"], theirs)
            assert torch.equal(ours[f"{block}.mlp.mlp{number}_bias"], master[f"{hf}.mlp.experts.{stem}_bias"])
        assert torch.equal(ours[f"{block}.mlp.gate.weight"], master[f"{hf}.mlp.router.weight"])
    assert torch.equal(ours["unembedding.weight"], master["lm_head.weight"])


def test_unsloth_holds_the_same_values(master: dict[str, torch.Tensor], experts: dict[str, Array]) -> None:
    ours = read("unsloth")
    for stem, values in experts.items():
        for expert in range(shape.EXPERTS):
            np.testing.assert_array_equal(f32(ours.pop(f"{stem}s.{expert}.weight")), values[expert])
            assert torch.equal(ours.pop(f"{stem}s.{expert}.bias"), master[f"{stem}_bias"][expert])
    for name, tensor in ours.items():
        assert torch.equal(tensor, master[name.replace(".mlp.router.linear.", ".mlp.router.")])
    assert len(ours) == 3 + 13 * shape.LAYERS


GGUF_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}


@pytest.mark.parametrize("name", ["auto", "bf16"])
def test_exact_gguf_holds_the_same_values(
    name: str, master: dict[str, torch.Tensor], experts: dict[str, Array]
) -> None:
    ours = gguf_values(GGUF / f"tiny-gpt-oss-{name}.gguf")
    for layer in range(shape.LAYERS):
        blk, hf = f"blk.{layer}", f"model.layers.{layer}"
        for ggml_name, hf_name in GGUF_NAMES.items():
            np.testing.assert_array_equal(ours[f"{blk}.{ggml_name}"], f32(master[f"{hf}.{hf_name}"]))
        bias = f32(master[f"{hf}.mlp.experts.gate_up_proj_bias"])
        np.testing.assert_array_equal(ours[f"{blk}.ffn_gate_exps.bias"], bias[:, 0::2])
        np.testing.assert_array_equal(ours[f"{blk}.ffn_up_exps.bias"], bias[:, 1::2])
    assert_same_experts(ours, experts)
    np.testing.assert_array_equal(ours["output.weight"], f32(master["lm_head.weight"]))


def assert_same_experts(ours: dict[str, Array], experts: dict[str, Array]) -> None:
    """-0.0 equals 0.0 here: ggml decodes code 8 without its sign."""
    for layer in range(shape.LAYERS):
        blk, hf = f"blk.{layer}", f"model.layers.{layer}.mlp.experts"
        np.testing.assert_array_equal(ours[f"{blk}.ffn_gate_exps.weight"], experts[f"{hf}.gate_up_proj"][:, 0::2])
        np.testing.assert_array_equal(ours[f"{blk}.ffn_up_exps.weight"], experts[f"{hf}.gate_up_proj"][:, 1::2])
        np.testing.assert_array_equal(ours[f"{blk}.ffn_down_exps.weight"], experts[f"{hf}.down_proj"])


def test_llama_quantize_finds_the_master_again(experts: dict[str, Array]) -> None:
    """The master's scales are the OCP ones, as ggml's are, and its values lie on the grid: nothing is left to round."""
    assert_same_experts(gguf_values(GGUF / "tiny-gpt-oss-mxfp4_moe.gguf"), experts)


def test_q8_0_is_within_half_a_step(master: dict[str, torch.Tensor]) -> None:
    """Codes are round(x / d), d = F16 of max/127: half a step for the rounding, 127 * 2^-11 steps for d in F16."""
    values = f32(master["lm_head.weight"])
    decoded = gguf_values(GGUF / "tiny-gpt-oss-q8_0.gguf")["output.weight"]
    step = np.abs(values.reshape(shape.VOCAB, -1, 32)).max(-1, keepdims=True) / 127
    error = np.abs(decoded - values).reshape(shape.VOCAB, -1, 32)
    assert (error <= step * (0.5 + 127 * 2**-11) * (1 + 2**-10)).all()
    assert error.max() > 0


def test_gguf_types_and_split() -> None:
    types = {
        path.stem.removeprefix("tiny-gpt-oss-"): Counter(t.tensor_type.name for t in gguf.GGUFReader(path).tensors)
        for path in GGUF.glob("*.gguf")
    }
    assert types["auto"] == {"F32": 49, "BF16": 18, "MXFP4": 12}
    assert types["bf16"] == {"F32": 49, "BF16": 30}
    assert types["q8_0"] == {"F32": 49, "Q8_0": 30}
    assert types["mxfp4_moe"] == {"F32": 49, "Q8_0": 18, "MXFP4": 12}
    assert {"Q4_K", "Q6_K", "Q5_0", "Q8_0"} <= set(types["q4_k_m"])
    whole = {t.name: t.data.tobytes() for t in gguf.GGUFReader(AUTO).tensors}
    shards = [gguf.GGUFReader(shard) for shard in sorted(SPLIT.parent.glob("*.gguf"))]
    assert {t.name: t.data.tobytes() for shard in shards for t in shard.tensors} == whole


@pytest.mark.parametrize(("source", "outtype"), [("hf", "auto"), ("hf-bf16", "q8_0")])
def test_the_converter_writes_the_shipped_file_again(source: str, outtype: str, tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    log = llamacpp.run_converter(ROOT / source, path, outtype, model_name="tiny-gpt-oss")
    assert "Model successfully exported" in log
    assert path.read_bytes() == (GGUF / f"tiny-gpt-oss-{outtype}.gguf").read_bytes()


def test_the_quantizer_writes_the_shipped_file_again(tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    llamacpp.quantize(GGUF / "tiny-gpt-oss-bf16.gguf", path, "MXFP4_MOE")
    assert path.read_bytes() == (GGUF / "tiny-gpt-oss-mxfp4_moe.gguf").read_bytes()


def test_the_converter_does_not_know_our_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(llamacpp.LlamaCppError, match="pre-tokenizer was not recognized"):
        llamacpp.run_converter(ROOT / "hf", tmp_path / "out.gguf", pre=None)


# --- the tokenizer ---


def test_tokenizer_has_the_published_structure(tokens: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "hf")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (979, 983, 980)
    for content, id_ in shape.SPECIALS.items():
        assert tokenizer.encode(content) == [id_]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Who art thou?"}], tokenize=False)
    assert prompt.endswith("<|start|>user<|message|>Who art thou?<|end|>")
    document = json.loads((ROOT / "hf" / "tokenizer.json").read_text(encoding="utf-8"))
    assert document["model"]["ignore_merges"] is True
    assert all(len(pair) == 2 for pair in document["model"]["merges"])
    assert max(tokens) < shape.TEXT_TOKENS


def test_gguf_names_the_gap_in_the_vocabulary() -> None:
    fields = gguf.GGUFReader(AUTO).fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-4o"
    vocabulary = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    known = len(shape.SPECIALS) + shape.TEXT_TOKENS
    assert vocabulary[known:] == [f"[PAD{id_}]" for id_ in range(known, shape.VOCAB)]
    assert Counter(kinds) == {1: shape.TEXT_TOKENS, 3: len(shape.SPECIALS), 5: shape.VOCAB - known}


# --- the forward pass ---


@pytest.mark.parametrize("dialect", ["parent", "hf", "hf-bf16"])
def test_transformers_finds_the_perplexity_of_the_manifest(dialect: str, tokens: list[int]) -> None:
    """FP32 in another order of summation moves a logit by 5e-5 (see below), so the mean by no more than twice that.

    A near tie of the router that falls otherwise changes one of 10,965 scored tokens by a few nats: 3e-4 each.
    """
    figures = MANIFEST["model"]["perplexity"]
    model = AutoModelForCausalLM.from_pretrained(ROOT / dialect, dtype=torch.float32, attn_implementation="eager")
    assert perplexity(model, tokens) == pytest.approx(figures[dialect], rel=1e-3)
    assert figures["hf"] == figures["hf-bf16"]
    assert figures["hf"] < 20  # it began at 1,040


@pytest.fixture(scope="module")
def expected(tokens: list[int]) -> Array:
    """Logits [64, V] of transformers in FP32, with the corners of YaRN rounded outward, as llama.cpp always does.

    gpt-oss says truncate: false, which a GGUF cannot carry: llama.cpp runs every gpt-oss with slightly other angles.
    """
    config = AutoConfig.from_pretrained(ROOT / "hf-bf16")
    config.rope_parameters["truncate"] = True
    model = AutoModelForCausalLM.from_pretrained(
        ROOT / "hf-bf16", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: Array = model(input_ids=torch.tensor([tokens[:64]])).logits[0].numpy()
    return logits


def test_llama_cpp_computes_the_logits_of_transformers(expected: Array, tokens: list[int], tmp_path: Path) -> None:
    """All in F32: the two differed by 1.4e-5 (5e-5 over 256 tokens) where logits reach 18, whose last bit is 2e-6."""
    path = tmp_path / "f32.gguf"
    llamacpp.run_converter(ROOT / "hf-bf16", path, "f32", model_name="tiny-gpt-oss")
    np.testing.assert_allclose(llamacpp.logits(path, tokens[:64]), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("path", [AUTO, SPLIT, GGUF / "tiny-gpt-oss-mxfp4_moe.gguf"], ids=["auto", "split", "moe"])
def test_llama_cpp_runs_the_quantized_files(path: Path, expected: Array, tokens: list[int]) -> None:
    """ggml rounds activations as the weights: to BF16, or to Q8_0, by at most 1/254 of a block's maximum. The error was
    0.025 to 0.035 on logits of deviation 4.0; three times that is allowed. A wrong layout gives 4 and more."""
    error = llamacpp.logits(path, tokens[:64]) - expected
    assert np.sqrt((error**2).mean()) < 0.1
    assert expected.std() > 3


# --- what is derived at test time ---


@pytest.mark.parametrize("make", [oddities.version2, oddities.aligned], ids=["version 2", "alignment 64"])
def test_odd_gguf_computes_the_same(make: Any, tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    make(AUTO, path)
    assert path.read_bytes() != AUTO.read_bytes()
    np.testing.assert_array_equal(llamacpp.logits(path, tokens[:8]), llamacpp.logits(AUTO, tokens[:8]))


def test_merged_gguf_keeps_split_keys_and_computes_the_same(tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "merged.gguf"
    oddities.merged(SPLIT, path)
    reader = gguf.GGUFReader(path)
    assert list(reader.fields)[-3:] == ["split.no", "split.tensors.count", "split.count"]
    assert reader.fields["split.count"].contents() == 0
    assert [t.name for t in reader.tensors] == [t.name for t in gguf.GGUFReader(AUTO).tensors]
    np.testing.assert_array_equal(llamacpp.logits(path, tokens[:8]), llamacpp.logits(AUTO, tokens[:8]))


def test_big_endian_gguf_is_refused_by_llama_cpp(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    oddities.big_endian(AUTO, path)
    assert path.read_bytes()[:8] == b"GGUF\x00\x00\x00\x03"
    assert path.stat().st_size == AUTO.stat().st_size
    with pytest.raises(llamacpp.LlamaCppError, match="does not load"):
        llamacpp.logits(path, [1])


def test_scales_in_a_later_shard_defeat_llama_cpp(tmp_path: Path, master: dict[str, torch.Tensor]) -> None:
    folder = tmp_path / "apart"
    oddities.scales_apart(ROOT / "hf", folder)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == set(master)
    assert {file for name, file in weight_map.items() if name.endswith("_scales")} == {
        "model-00001-of-00001.safetensors"
    }
    with pytest.raises(llamacpp.LlamaCppError, match="Sizes of tensors must match"):
        llamacpp.run_converter(folder, tmp_path / "out.gguf")
