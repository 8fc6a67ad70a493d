"""Checkpoints that are wrong in one thing: what a good candidate is spoilt with, and what has to be named for it.

A `Mutation` is held against a reference that its `base` was made of, which the same candidate passes while it is whole
(`BASES`). How each is done is in `spoils`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import builders
import numpy as np
import spoils as do
from spoils import B, G, H, Spoil, X

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
AUTO = "gguf/tiny-gpt-oss-auto.gguf"


@dataclass(frozen=True)
class Base:
    """A candidate that is right: of the fixture `reference`, whose every part it holds by `claim` or better.

    `made`: by `ckpttool.convert` with these options; otherwise it is the fixture `candidate`, which others wrote.
    """

    reference: str
    candidate: str
    claim: str
    made: tuple[tuple[str, str], ...] | None = None


BASES = {
    "hf": Base("hf-bf16", "hf", "values"),
    "hf-bf16": Base("hf", "hf-bf16", "values"),
    "gguf": Base("hf", AUTO, "values"),
    "openai": Base(AUTO, "openai", "values"),
    "mxfp4": Base("parent", "mxfp4", "lossy", (("to", "mxfp4"),)),
    "mxfp4 of others": Base("parent", "hf", "lossy"),
    "mxfp4 gguf": Base("parent", "mxfp4.gguf", "lossy", (("experts", "mxfp4"),)),
    "q8_0": Base("parent", "q8_0.gguf", "lossy", (("outtype", "q8_0"), ("experts", "q8_0"))),
}


@dataclass(frozen=True)
class Mutation:
    """One thing that is wrong in a candidate.

    `parts` are those that must be named, and no other may be; `what` has to be said of one of them, or, where it is no
    part's fault, said first.
    `level` is the one that has to find it. `diverges` is where the forward pass leaves the reference's, "" where it
    does not: "embed", "layer.2", "head"; None where no pass can be made of what is left.
    """

    name: str
    base: str
    spoil: Spoil
    parts: tuple[str, ...] = ()
    what: str = ""
    level: str = "values"
    diverges: str | None = None


LAYER_PARTS = tuple(builders.GGUF_LAYER)
"""All parts of a layer."""


def layer(n: int, *names: str) -> tuple[str, ...]:
    return tuple(f"layer.{n}.{name}" for name in names)


BF16_NAN, BF16_INF = 0x7FC0, 0x7F80
EXPERT_MATRICES = ("gate", "up", "down")
EXPERT_BIASES = tuple(f"{name}.bias" for name in EXPERT_MATRICES)
FULL, WINDOWED = "full_attention", "sliding_attention"
Q8 = 34
"""Bytes of a block of Q8_0: an F16 scale and 32 codes."""
FIRST_TOKEN = 49
"""The first of the held-out text; entry 7 is not in its beginning."""

WEIGHTS = (
    # Scales and codes, where every value must be equal.
    Mutation("the first scale, one more", "hf", do.off_by(X(0, "gate_up_proj_scales"), (0, 0, 0), 1),
             layer(0, "gate"), diverges="layer.0"),
    Mutation("the last scale, one less", "hf", do.off_by(X(3, "down_proj_scales"), (-1, -1, -1), -1),
             layer(3, "down"), diverges="layer.3"),
    Mutation("a scale of an expert between", "hf", do.off_by(X(2, "gate_up_proj_scales"), (1, 77, 3), 1),
             layer(2, "up"), "expert 1, row 38, block 3: scale byte", diverges="layer.2"),
    Mutation("a scale in a struct", "gguf", do.off_by(G(1, "ffn_down_exps.weight"), (2, 100, 17 * 3), -1),
             layer(1, "down"), "expert 2, row 100, block 3: scale byte", diverges="layer.1"),
    Mutation("a scale of OpenAI's", "openai", do.off_by(B(2, "mlp.mlp1_weight.scales"), (3, 380, 7), 1),
             layer(2, "gate"), "expert 3, row 190, block 7: scale byte", diverges="layer.2"),
    Mutation("-0 has become 0", "gguf", do.tensors(do.positive_zero), layer(2, "up"), diverges=""),
    Mutation("a scale that is no number", "hf", do.at(X(1, "gate_up_proj_scales"), (2, 10, 1), 255),
             layer(1, "gate"), diverges="layer.1"),
    Mutation("nibbles of one tensor", "hf", do.of(X(1, "down_proj_blocks"), do.nibbles),
             layer(1, "down"), "the two codes of each byte have changed places", diverges="layer.1"),
    Mutation("nibbles as safetensors has them", "gguf", do.of(G(2, "ffn_gate_exps.weight"), do.as_pairs_lie),
             layer(2, "gate"), diverges="layer.2"),
    Mutation("scales of another tensor", "hf",
             do.exchange((X(0, "down_proj_scales"), ..., X(3, "down_proj_scales"), ...)),
             layer(0, "down") + layer(3, "down"), diverges="layer.0"),
    Mutation("scales with another bias", "openai", do.of(B(1, "mlp.mlp2_weight.scales"), lambda x: x + 1),
             layer(1, "down"), diverges="layer.1"),
    Mutation("rows one too far", "hf", do.of(X(2, "down_proj_blocks"), lambda x: np.roll(x, 1, 1)),
             layer(2, "down"), diverges="layer.2"),
    # Experts.
    Mutation("two experts of one matrix", "hf",
             do.among(f"{X(1, 'down_proj_blocks')} {X(1, 'down_proj_scales')}", 0, 2),
             layer(1, "down"), "experts 0 and 2 have changed places", diverges="layer.1"),
    Mutation("two experts, whole", "hf", do.expert_swap(2, 1, 3),
             layer(2, *EXPERT_MATRICES, *EXPERT_BIASES), diverges="layer.2"),
    Mutation("two experts in a GGUF", "gguf", do.among(G(0, "ffn_up_exps.weight"), 2, 3),
             layer(0, "up"), "experts 2 and 3 have changed places", diverges="layer.0"),
    Mutation("gate and up", "hf", do.turned(3, "gate_up_proj_blocks", "gate_up_proj_scales"),
             layer(3, "gate", "up"), "gate and up have changed places", diverges="layer.3"),
    Mutation("gate's and up's biases", "openai",
             do.exchange((B(0, "mlp.mlp1_bias"), np.s_[:, 0::2], B(0, "mlp.mlp1_bias"), np.s_[:, 1::2])),
             layer(0, "gate.bias", "up.bias"), diverges="layer.0"),
    Mutation("gate and up in a GGUF", "gguf",
             do.exchange((G(1, "ffn_gate_exps.weight"), ..., G(1, "ffn_up_exps.weight"), ...)),
             layer(1, "gate", "up"), diverges="layer.1"),
    Mutation("gate and up concatenated", "openai",
             do.of(f"{B(1, 'mlp.mlp1_weight.blocks')} {B(1, 'mlp.mlp1_weight.scales')}", do.in_halves),
             layer(1, "gate", "up"), diverges="layer.1"),
    Mutation("experts not transposed", "hf-bf16", do.flat(X(2, "down_proj")), layer(2, "down"), diverges="layer.2"),
    Mutation("experts not transposed, as their shape says", "hf-bf16", do.reshaped(X(1, "gate_up_proj")),
             layer(1, "gate", "up"), "is 4x384x256", level="structure"),
    # Biases, sinks, routers, norms.
    Mutation("a bias is missing", "hf", do.without(H(2, "self_attn.k_proj.bias")),
             layer(2, "k.bias"), "is missing in the candidate", level="structure"),
    Mutation("experts' biases are missing", "hf-bf16", do.without(X(0, "gate_up_proj_bias")),
             layer(0, "gate.bias", "up.bias"), level="structure"),
    Mutation("a bias is missing in a GGUF", "gguf", do.gguf_without(G(3, "attn_output.bias")),
             layer(3, "o.bias"), level="structure"),
    Mutation("a bias is zero", "hf", do.at(H(1, "self_attn.v_proj.bias"), ..., 0), layer(1, "v.bias"),
             diverges="layer.1"),
    Mutation("a bias is zero in a GGUF", "gguf", do.at(G(2, "ffn_down_exps.bias"), ..., 0),
             layer(2, "down.bias"), diverges="layer.2"),
    Mutation("a bias is shifted", "hf-bf16", do.of(H(0, "self_attn.q_proj.bias"), do.rolled),
             layer(0, "q.bias"), diverges="layer.0"),
    Mutation("sinks are zero", "gguf", do.at(G(1, "attn_sinks.weight"), ..., 0), layer(1, "sinks"), "zeros",
             diverges="layer.1"),
    Mutation("sinks permuted", "hf", do.of(H(3, "self_attn.sinks"), do.rolled), layer(3, "sinks"), diverges="layer.3"),
    Mutation("a router's rows", "hf-bf16", do.among(H(1, "mlp.router.weight"), 0, 3), layer(1, "router"),
             diverges="layer.1"),
    Mutation("a norm's weight is twice itself", "openai", do.of(B(2, "mlp.norm.scale"), lambda x: x + 0x80),
             layer(2, "mlp_norm"), diverges="layer.2"),
    Mutation("the last norm's weight", "hf", do.of("model.norm.weight", lambda x: x + 0x80), ("norm",),
             diverges="head"),
    # Attention's matrices.
    Mutation("two of q's heads", "hf", do.among(H(0, "self_attn.q_proj.weight"), np.s_[0:64], np.s_[64:128]),
             layer(0, "q"), diverges="layer.0"),
    Mutation("two of k's heads", "gguf", do.among(G(2, "attn_k.weight"), np.s_[0:64], np.s_[64:128]),
             layer(2, "k"), diverges="layer.2"),
    Mutation("q rotated in pairs", "hf-bf16", do.of(H(1, "self_attn.q_proj.weight"), do.in_pairs(4)),
             layer(1, "q"), diverges="layer.1"),
    Mutation("k and v", "openai",
             do.exchange((B(0, "attn.qkv.weight"), np.s_[256:384], B(0, "attn.qkv.weight"), np.s_[384:512])),
             layer(0, "k", "v"), "k and v have changed places", diverges="layer.0"),
    # Single numbers of BF16.
    Mutation("a NaN", "hf-bf16", do.at(H(1, "self_attn.o_proj.weight"), (17, 200), BF16_NAN),
             layer(1, "o"), "row 17, column 200: nan", diverges="layer.1"),
    Mutation("a NaN in a GGUF", "gguf", do.at(G(0, "attn_norm.weight"), 100, np.nan),
             layer(0, "attn_norm"), diverges="layer.0"),
    Mutation("an infinity", "hf-bf16", do.at(X(3, "down_proj"), (2, 100, 200), BF16_INF),
             layer(3, "down"), diverges="layer.3"),
    Mutation("the lowest bit of one number", "hf-bf16", do.of(H(2, "self_attn.v_proj.weight"),
             lambda x: x ^ (np.arange(x.size).reshape(x.shape) == 1234)), layer(2, "v"), diverges="layer.2"),
    # Embedding and head.
    Mutation("a row of the embedding is zero", "hf", do.at("model.embed_tokens.weight", FIRST_TOKEN, 0), ("embed",),
             diverges="embed"),
    Mutation("a row that no token of the text takes", "hf", do.at("model.embed_tokens.weight", 7, 0), ("embed",),
             diverges=""),
    Mutation("the head is the embedding", "hf-bf16", do.tensors(do.head_is_embed), ("head",), diverges="head"),
    Mutation("two layers", "hf", do.whole_layers(1, 2), layer(1, *LAYER_PARTS) + layer(2, *LAYER_PARTS),
             diverges="layer.1"),
    # Where values may differ, but not these.
    Mutation("lossy: a scale, one more", "mxfp4", do.off_by(X(1, "down_proj_scales"), (2, 30, 4), 1),
             layer(1, "down")),
    Mutation("lossy: the last scale, one less", "mxfp4", do.off_by(X(3, "gate_up_proj_scales"), (-1, -1, -1), -1),
             layer(3, "up")),
    Mutation("lossy: a scale in a struct", "mxfp4 gguf", do.off_by(G(2, "ffn_gate_exps.weight"), (1, 90, 17 * 5), 1),
             layer(2, "gate")),
    Mutation("lossy: a scale of others", "mxfp4 of others", do.off_by(X(0, "gate_up_proj_scales"), (0, 0, 0), 1),
             layer(0, "gate")),
    Mutation("lossy: a code", "mxfp4", do.of(X(2, "down_proj_blocks"),
             lambda x: x ^ (np.arange(x.size).reshape(x.shape) == 4321)), layer(2, "down")),
    Mutation("lossy: two experts", "mxfp4",
             do.among(f"{X(2, 'gate_up_proj_blocks')} {X(2, 'gate_up_proj_scales')}", 0, 1), layer(2, "gate", "up")),
    Mutation("lossy: gate and up", "mxfp4 gguf",
             do.exchange((G(3, "ffn_gate_exps.weight"), ..., G(3, "ffn_up_exps.weight"), ...)), layer(3, "gate", "up")),
    Mutation("lossy: nibbles", "mxfp4 of others", do.of(X(0, "down_proj_blocks"), do.nibbles), layer(0, "down")),
    Mutation("lossy: a bias is zero", "mxfp4", do.at(H(1, "self_attn.k_proj.bias"), ..., 0), layer(1, "k.bias")),
    Mutation("lossy: sinks are zero", "mxfp4 gguf", do.at(G(0, "attn_sinks.weight"), ..., 0), layer(0, "sinks")),
    Mutation("lossy: a scale that is no number", "mxfp4", do.at(X(0, "down_proj_scales"), (1, 5, 2), 255),
             layer(0, "down")),
    Mutation("lossy: a code of Q8_0", "q8_0", do.off_by(G(1, "attn_q.weight"), (40, Q8 * 2 + 9), 1), layer(1, "q")),
    Mutation("lossy: rows of Q8_0", "q8_0", do.among(G(2, "attn_output.weight"), 3, 4), layer(2, "o")),
    Mutation("lossy: two experts of Q8_0", "q8_0", do.among(G(0, "ffn_down_exps.weight"), 0, 3), layer(0, "down")),
)  # fmt: skip

SIDE = tuple(
    Mutation(name, base, spoil, (), what, "structure", diverges)
    for name, base, spoil, what, diverges in (
        ("rope's theta", "hf", do.config(rope_theta=10_000), "config: rope.rope_theta is 10000", "layer.0"),
        ("rope's theta in a GGUF", "gguf", do.key_value("gpt-oss.rope.freq_base", 10_000.0),
         "config: rope.rope_theta is 10000", "layer.0"),
        ("rope's theta of OpenAI's", "openai", do.config(rope_theta=140_000),
         "config: rope.rope_theta is 140000", "layer.0"),
        ("the window", "hf", do.config(sliding_window=31), "config: sliding_window is 31", "layer.0"),
        ("the window in a GGUF", "gguf", do.key_value("gpt-oss.attention.sliding_window", 64),
         "config: sliding_window is 64", "layer.0"),
        ("the pattern of windows", "hf-bf16", do.config(layer_types=[FULL, WINDOWED, FULL, WINDOWED]),
         "config: layer_types is", "layer.0"),
        ("one layer without its window", "hf", do.config(layer_types=[WINDOWED, FULL, FULL, FULL]),
         "config: layer_types is", "layer.2"),
        ("YaRN's factor", "hf-bf16", do.rope(factor=32.0), "config: rope.factor is 32.0", "layer.0"),
        ("YaRN's context", "gguf", do.key_value("gpt-oss.rope.scaling.original_context_length", 512),
         "config: rope.original_max_position_embeddings is 512", "layer.0"),
        ("YaRN's corners", "hf-bf16", do.rope(truncate=True), "config: rope.truncate is True", "layer.0"),
        ("YaRN's beta", "openai", do.config(rope_ntk_beta=16), "config: rope.beta_fast is 16", "layer.0"),
        ("the clamp", "hf", do.config(swiglu_limit=2.0), "config: swiglu_limit is 2.0", "layer.0"),
        ("alpha", "hf", do.config(swiglu_alpha=1.6), "config: swiglu_alpha is 1.6", "layer.0"),
        ("how many experts", "hf-bf16", do.config(num_experts_per_tok=1),
         "config: num_experts_per_tok is 1", "layer.0"),
        ("how many experts in a GGUF", "gguf", do.key_value("gpt-oss.expert_used_count", 3),
         "config: num_experts_per_tok is 3", "layer.0"),
        ("epsilon", "gguf", do.key_value("gpt-oss.attention.layer_norm_rms_epsilon", 1e-3),
         "config: rms_norm_eps is", "layer.0"),
        ("the end token", "hf", do.config(eos_token_id=5), "config: eos_token_id is 5", ""),
        ("end tokens", "hf", do.document("generation_config.json", lambda g: g["eos_token_id"].pop()),
         "generation_config differs: eos_token_id", ""),
        ("temperature", "hf-bf16", do.document("generation_config.json", lambda g: g.update(temperature=0.2)),
         "generation_config differs: temperature", ""),
        ("two of the tokenizer's ids", "hf", do.document("tokenizer.json", do.two_ids), "tokenizer differs: ", ""),
        ("two of the tokenizer's ids in a GGUF", "gguf", do.two_tokens, "tokenizer differs: ", ""),
        ("the chat template", "hf", do.text("chat_template.jinja", "old stories", "new stories"),
         "chat template differs: ", ""),
        ("the chat template is missing", "hf-bf16", do.lost("chat_template.jinja"),
         "chat template is missing in the candidate", ""),
    )
)  # fmt: skip

ALL = WEIGHTS + SIDE
BROKEN = Mutation("a shard is missing", "hf", do.lost("model-00001-of-00002.safetensors"))
"""No difference between two checkpoints, but none that could be read."""


def spoilt(mutation: Mutation, candidate: Path, folder: Path) -> Path:
    """A copy of the candidate in `folder`, with the one thing wrong."""
    folder.mkdir(exist_ok=True)
    path = folder / candidate.name
    (shutil.copyfile if candidate.is_file() else shutil.copytree)(candidate, path)
    mutation.spoil(path)
    return path
