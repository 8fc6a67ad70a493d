"""Our forward pass is gpt-oss: against transformers, OpenAI's reference and llama.cpp, in every dialect and container.

FP32 on both sides, so that nothing but the order of summation differs: 4e-7 of the logits' range was measured, 1e-4 is
the bar; a wrong rope, window, clamp or layout gives 1e-2 and more (`test_the_bar_sees_each_setting`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import builders
import gguf
import llamacpp
import numpy as np
import pytest
import torch
from forward_runs import FP32, TINY, forward, heldout, relative
from transformers import AutoConfig, AutoModelForCausalLM, GptOssForCausalLM

from ckpttool import convert
from ckpttool.checkpoint import open_checkpoint
from ckpttool.errors import CkptError, InputError, UsageError
from ckpttool.validator import attention, model
from ckpttool.validator.attention import Batch, attend, frequencies
from ckpttool.validator.model import Arithmetic, exact_products
from ckpttool.validator.settings import Rope, Settings, settings_of

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = 1e-4
BF16 = Arithmetic(torch.bfloat16)
DIALECTS = ["hf", "hf-bf16", "openai", "unsloth", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-bf16.gguf",
            "gguf/split"]  # fmt: skip


def by_transformers(folder: Path, sequences: list[list[int]], config: Any = None) -> torch.Tensor:
    """Logits [T, V] of GptOssForCausalLM in FP32."""
    oracle = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return torch.cat([oracle(torch.tensor([ids])).logits[0] for ids in sequences])


# --- the trained fixture: a window of 32 tokens, an original context of 256 ---


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Beyond the window, and beyond two of YaRN's periods."""
    return heldout(600)


@pytest.fixture(scope="module")
def expected(text: list[int]) -> torch.Tensor:
    return by_transformers(TINY / "hf-bf16", [text])


@pytest.fixture(scope="module")
def ours(text: list[int]) -> torch.Tensor:
    return forward(TINY / "hf", [text])[0]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_computes_the_logits_of_transformers(
    dialect: str, text: list[int], expected: torch.Tensor, ours: torch.Tensor
) -> None:
    """And all of them the same bits: equal values meet in the same order."""
    got, _ = forward(TINY / dialect, [text])
    assert relative(got, expected) < BAR
    assert torch.equal(got, ours)


@pytest.mark.parametrize("name", ["q8_0", "mxfp4_moe", "q4_k_m"])
def test_other_formats_are_decoded_as_gguf_decodes_them(name: str, text: list[int]) -> None:
    """transformers' model with the weights that the gguf package makes of the file."""
    path = TINY / "gguf" / f"tiny-gpt-oss-{name}.gguf"
    config = AutoConfig.from_pretrained(TINY / "hf-bf16")
    oracle = GptOssForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="eager")
    oracle.load_state_dict(hf_state(path, config.num_hidden_layers))
    with torch.no_grad():
        want = oracle.eval()(torch.tensor([text])).logits[0]
    assert relative(forward(path, [text])[0], want) < BAR


def hf_state(path: Path, layers: int) -> dict[str, torch.Tensor]:
    """A GGUF's tensors under transformers' names, by hand."""
    found = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in gguf.GGUFReader(path).tensors}
    out = {"model.embed_tokens.weight": found["token_embd.weight"], "model.norm.weight": found["output_norm.weight"],
           "lm_head.weight": found["output.weight"]}  # fmt: skip
    for n in range(layers):
        at = f"model.layers.{n}."
        mine = {part: found[f"blk.{n}.{suffix}"] for part, suffix in builders.GGUF_LAYER.items()}
        out |= {at + name: mine[part] for part, name in builders.HF_LAYER.items()}
        experts = at + "mlp.experts."
        out[experts + "gate_up_proj"] = builders.interleaved(mine["gate"], mine["up"]).swapaxes(1, 2)
        out[experts + "gate_up_proj_bias"] = builders.interleaved(mine["gate.bias"], mine["up.bias"])
        out[experts + "down_proj"] = mine["down"].swapaxes(1, 2)
        out[experts + "down_proj_bias"] = mine["down.bias"]
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in out.items()}


def test_openais_reference(text: list[int]) -> None:
    """gpt_oss/torch/model.py in FP32; the package wants Python 3.12."""
    reference = pytest.importorskip("gpt_oss.torch.model", reason="OpenAI's package gpt-oss is not installed")
    oracle = reference.Transformer.from_checkpoint(str(TINY / "openai"), device=torch.device("cpu")).float()
    with torch.no_grad():
        assert relative(forward(TINY / "openai", [text])[0], oracle(torch.tensor(text))) < BAR


# --- llama.cpp ---


def rounded_outward(settings: Settings) -> Settings:
    """YaRN's corners at whole dimensions, as llama.cpp has them whatever the model: a GGUF cannot say."""
    return dataclasses.replace(settings, rope=dataclasses.replace(settings.rope, truncate=True))


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each row, in nats."""
    a, b = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def by_llama_cpp(path: Path, text: list[int]) -> torch.Tensor:
    return torch.from_numpy(llamacpp.logits(path, text).copy())


def test_llama_cpp_in_f32(text: list[int], tmp_path: Path) -> None:
    """Our GGUF of F32, which llama.cpp computes in F32: 8e-6 measured."""
    convert(TINY / "hf", tmp_path / "f32.gguf", experts="f32", outtype="f32")
    got, _ = forward(TINY / "hf", [text], change=rounded_outward)
    assert relative(by_llama_cpp(tmp_path / "f32.gguf", text), got) < BAR


def test_llama_cpp_in_bf16(text: list[int]) -> None:
    """ggml rounds what meets BF16 weights to BF16, and sums in F32; our BF16 mode rounds the sums too. So the
    divergence of our BF16 mode is what BF16 allows: llama.cpp must be nearer to our FP32 on the mean and at 99 %."""
    exact, _ = forward(TINY / "hf", [text], change=rounded_outward)
    allowed = divergence(exact, forward(TINY / "hf", [text], BF16, change=rounded_outward)[0])
    got = divergence(exact, by_llama_cpp(TINY / "gguf" / "tiny-gpt-oss-bf16.gguf", text))
    assert got.mean() < allowed.mean()
    assert got.quantile(0.99) < allowed.quantile(0.99)


def test_llama_cpp_in_mxfp4(text: list[int]) -> None:
    """What meets MXFP4 is rounded to Q8_0: steps of 1/127 of the largest of 32, some 2.5 deviations: an error of
    2.5 / 127 / sqrt(12) = 5.7e-3 of the deviation, where BF16's is 2^-8 / sqrt(12) = 1.1e-3 of the value, five times
    less. Divergence goes with the square: 25 times what BF16 allows."""
    exact, _ = forward(TINY / "hf", [text], change=rounded_outward)
    allowed = divergence(exact, forward(TINY / "hf", [text], BF16, change=rounded_outward)[0])
    got = divergence(exact, by_llama_cpp(TINY / "gguf" / "tiny-gpt-oss-auto.gguf", text))
    assert got.mean() < 25 * allowed.mean()


# --- random models: sizes, windows, ropes ---


def strong(tensors: builders.Tensors) -> None:
    """Norms around one, wide sinks, biases and routers: with the builders' small ones hardly anything would matter."""
    rng = np.random.default_rng(7)
    for name, (dtype, array) in tensors.items():
        shape = array.shape
        if name.endswith(("layernorm.weight", "norm.weight")):
            wide = 1 + 0.3 * rng.standard_normal(shape)
        elif "sinks" in name or "bias" in name or "router" in name:
            wide = rng.standard_normal(shape)
        elif "proj.weight" in name or "embed" in name:
            wide = 0.2 * rng.standard_normal(shape)
        else:
            continue
        tensors[name] = builders.Tensor(dtype, builders.bf16(wide.astype(np.float32)))


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 4.0,
        "beta_slow": 1.0, "truncate": False}  # fmt: skip
KINDS = ("sliding_attention", "full_attention")
CONFIGS: dict[str, tuple[builders.Sizes, dict[str, Any]]] = {
    "odd sizes": (
        builders.Sizes(3, experts=7, hidden=96, intermediate=32, heads=6, kv_heads=2, head_dim=10, vocab=401),
        {"layer_types": [*KINDS, KINDS[0]], "sliding_window": 5, "rope_scaling": YARN, "num_experts_per_tok": 3},
    ),
    "corners rounded": (builders.Sizes(), {"rope_scaling": YARN | {"truncate": True}}),
    "corners unsaid": (builders.Sizes(), {"rope_scaling": {k: v for k, v in YARN.items() if k != "truncate"}}),
    "other betas": (builders.Sizes(), {"rope_scaling": YARN | {"beta_fast": 16.0, "beta_slow": 2.5}}),
    "concentration stated": (builders.Sizes(), {"rope_scaling": YARN | {"attention_factor": 1.7}}),
    "rope as published": (builders.Sizes(), {}),
    "no rope scaling": (builders.Sizes(), {"rope_scaling": {"rope_type": "default"}, "rope_theta": 10000.0}),
    "linear rope": (builders.Sizes(), {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "transformers 5's rope": (
        builders.Sizes(), {"rope_scaling": None, "rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 5e3}},
    ),
    "full first": (builders.Sizes(), {"layer_types": [KINDS[1], KINDS[0]], "sliding_window": 20}),
    "no window": (builders.Sizes(), {"layer_types": [KINDS[1]] * 2}),
    "one expert, tight clamp": (
        builders.Sizes(experts=2),
        {"num_experts_per_tok": 1, "swiglu_limit": 0.5, "swiglu_alpha": 0.9, "rms_norm_eps": 0.01},
    ),
    "heads alone": (builders.Sizes(heads=3, kv_heads=3, head_dim=64), {"sliding_window": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_any_size_and_setting(name: str, tmp_path: Path) -> None:
    sizes, config = CONFIGS[name]
    random = builders.Model(sizes, seed=3)
    folder = builders.write(random, tmp_path / "m", "hf-bf16", config=config, change=strong, side_files=False)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, sizes.vocab, n).tolist() for n in (150, 1, 4)]
    want = by_transformers(folder, sequences)
    assert relative(forward(folder, sequences)[0], want) < BAR


CHANGES: dict[str, dict[str, Any]] = {
    "window": {"windows": (31, None, 31, None)},
    "eps": {"eps": 1e-2},
    "alpha": {"swiglu_alpha": 1.6},
    "limit": {"swiglu_limit": 3.0},
    "choice": {"experts_per_token": 1},
    "corners": {"truncate": True},
    "theta": {"theta": 149000.0},
    "factor": {"factor": 15.0},
    "context": {"original_context": 255},
    "concentration": {"concentration": 1.27},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_bar_sees_each_setting(name: str, text: list[int], ours: torch.Tensor) -> None:
    def change(settings: Settings) -> Settings:
        values = CHANGES[name]
        if values.keys() <= {f.name for f in dataclasses.fields(Settings)}:
            return dataclasses.replace(settings, **values)
        return dataclasses.replace(settings, rope=dataclasses.replace(settings.rope, **values))

    assert relative(forward(TINY / "hf", [text], change=change)[0], ours) > 5 * BAR


def test_published_rope() -> None:
    """gpt-oss' own frequencies, as the reference lists them."""
    rope = Rope(150000.0, "yarn", 32.0, 4096, 32.0, 1.0, False)
    found, concentration = frequencies(rope, 64)
    assert concentration == pytest.approx(1.3465735902799727, rel=1e-15)
    known = {0: 1, 1: 0.689044, 2: 0.474782, 8: 0.0508133, 9: 0.0317057, 10: 0.019335, 16: 4.56484e-4, 31: 3.02351e-7}
    for i, value in known.items():
        assert float(found[i]) == pytest.approx(value, rel=2e-6)


# --- what must not matter ---


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("at_once", [1, 100, 5000, 1 << 22])
def test_blocks_of_any_size_attend_alike(window: int | None, at_once: int) -> None:
    """Against the whole matrix of scores at once, in float64."""
    rng = torch.Generator().manual_seed(5)
    q = torch.randn(130, 6, 8, generator=rng)
    k, v = (torch.randn(130, 2, 8, generator=rng) for _ in range(2))
    sinks = torch.randn(6, generator=rng)
    spans = ((0, 1), (1, 100), (100, 130))
    got = attend(q, k, v, sinks, spans, window, at_once=at_once)
    assert torch.allclose(got.double(), whole_attention(q, k, v, sinks, spans, window), atol=1e-6, rtol=1e-5)
    other_end = attend(q, k, v, sinks, spans, window, at_once=at_once, reverse=True)
    assert torch.allclose(other_end, got, atol=1e-6, rtol=1e-5)


def whole_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, spans: Any, window: int | None
) -> torch.Tensor:
    n, heads, dim = q.shape
    wide_k, wide_v = (x.double().repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q.double(), wide_k) / math.sqrt(dim)
    of = torch.zeros(n, dtype=torch.int64)
    for number, (start, stop) in enumerate(spans):
        of[start:stop] = number
    age = torch.arange(n)[:, None] - torch.arange(n)
    seen = (age >= 0) & (age < (window or n)) & (of[:, None] == of)
    scores = scores.masked_fill(~seen, -math.inf)
    p = torch.cat([scores, sinks.double().view(-1, 1, 1).expand(-1, n, 1)], -1).softmax(-1)[..., :-1]
    return torch.einsum("hij,jhd->ihd", p, wide_v).flatten(1)


def test_what_is_held_of_scores_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block has more scores than allowed, but for one of a single query."""
    sizes: list[tuple[int, int]] = []
    real = attention._block

    def seen(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append((len(q), len(q) * len(k) * q.shape[1]))
        return real(q, k, *rest)

    monkeypatch.setattr(attention, "_block", seen)
    q, k = torch.randn(3000, 4, 8), torch.randn(3000, 2, 8)
    for window in (None, 64, 3000):
        sizes.clear()
        attend(q, k, k, torch.zeros(4), ((0, 3000),), window, at_once=50_000)
        assert sum(n for n, _ in sizes) == 3000
        assert max(scores for _, scores in sizes) <= 50_000


def test_a_batch_is_its_sequences(text: list[int]) -> None:
    sequences = [text[:300], text[300:301], text[301:410]]
    together, _ = forward(TINY / "hf", sequences)
    apart = torch.cat([forward(TINY / "hf", [s])[0] for s in sequences])
    assert relative(together, apart) < 1e-5


def test_forcing_ones_own_routing_changes_nothing(text: list[int], ours: torch.Tensor) -> None:
    _, taken = forward(TINY / "hf", [text])
    again, forced = forward(TINY / "hf-bf16", [text], forced=taken)
    assert torch.equal(again, ours)
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(taken, forced, strict=True))


def test_forced_experts_are_taken(text: list[int], ours: torch.Tensor) -> None:
    _, taken = forward(TINY / "hf", [text])
    other = [dataclasses.replace(r, experts=(r.experts + 1) % 4) for r in taken]
    got, forced = forward(TINY / "hf", [text], forced=other)
    assert all(torch.equal(a.experts, b.experts) for a, b in zip(other, forced, strict=True))
    assert relative(got, ours) > 0.05


@pytest.mark.parametrize("at_once", [5, 8192])
def test_grouped_experts_are_a_loop_over_tokens(at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "TOKENS_AT_ONCE", at_once)
    sizes = builders.Sizes(1, experts=5)
    folder = builders.write(builders.Model(sizes), tmp_path / "m", "hf", side_files=False)
    from ckpttool.validator.weights import Feed, ModelSource

    rng = torch.Generator().manual_seed(2)
    h = torch.randn(37, 64, generator=rng)
    with ModelSource(open_checkpoint(folder)) as source, Feed([(source, 0)], torch.device("cpu")) as feed:
        layer, settings = feed.layer(source, 0), source.settings
        chosen = model.route(torch.randn(37, 5, generator=rng), 2)
        (got,) = model.mixture([h], [chosen], layer, settings, [FP32])
        parts = {name: source.checkpoint.part(f"layer.0.{name}").array() for name in ("gate", "up", "down")}
        biases = {name: source.checkpoint.part(f"layer.0.{name}.bias").array() for name in parts}
    for t in range(37):
        y = np.zeros(64)
        for e, w in zip(chosen.experts[t].tolist(), chosen.weights[t].tolist(), strict=True):
            gate, up = (parts[n][e].astype(np.float64) @ h[t].numpy() + biases[n][e] for n in ("gate", "up"))
            gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
            y += w * (parts["down"][e] @ (gate / (1 + np.exp(-1.702 * gate)) * (up + 1)) + biases["down"][e])
        np.testing.assert_allclose(got[t].numpy(), y, atol=1e-4 * np.abs(y).max())


def test_another_order_of_summation_is_noise(text: list[int], ours: torch.Tensor) -> None:
    got, _ = forward(TINY / "hf", [text], Arithmetic(torch.float32, reverse=True))
    assert 0 < relative(got, ours) < 1e-5


def test_bf16_mode_is_near(text: list[int], ours: torch.Tensor) -> None:
    """Results of products have 8 bits: 2^-9 of each; far from FP32's noise, and no other model."""
    got, _ = forward(TINY / "hf", [text], BF16)
    assert 1e-4 < float(divergence(ours, got).mean() ** 0.5) < 0.05


def test_the_programs_own_precision_is_restored() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.is_inference_mode_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_that_cannot_be_turned_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UsageError, match="TF32"), exact_products(torch.device("cuda")):
        pass


# --- configs that no forward pass can be made with ---


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"sliding_window": "wide"}, "sliding_window"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_experts_per_tok": None, "experts_per_token": None}, "num_experts_per_tok"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": True}, "rms_norm_eps"),
        ({"rope_theta": [1]}, "rope.rope_theta"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope.original_max_position_embeddings"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 2}, "layer_types"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3, "head_dim": 16}, None),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], field: str | None, tmp_path: Path) -> None:
    folder = builders.write(builders.Model(builders.Sizes()), tmp_path / "m", "hf", config=config, side_files=False)
    with pytest.raises(CkptError) as caught:
        settings_of(open_checkpoint(folder))
    if field is not None:
        assert isinstance(caught.value, InputError)
        assert caught.value.field == field


def test_settings_are_equal_in_every_dialect() -> None:
    assert len({settings_of(open_checkpoint(TINY / d)) for d in DIALECTS}) == 1


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    builders.save(tmp_path / "m" / "model.safetensors", {"a": builders.Tensor("F32", np.zeros(4, np.float32))})
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="knows gpt-oss"):
        settings_of(open_checkpoint(tmp_path / "m"))


def test_an_empty_sequence_is_refused() -> None:
    for sequences in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="sequence"):
            Batch.of(sequences)
