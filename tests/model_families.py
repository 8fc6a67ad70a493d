"""Other mixtures of experts: tiny ones saved by transformers itself, and big ones as headers over holes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from header_checkpoints import Tensor

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 256, "num_experts_per_tok": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
GROUPS = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_routed_experts": 4, "moe_intermediate_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": SIZES | {"num_hidden_layers": 4, "intermediate_size": 96, "moe_intermediate_size": 32,
                          "num_experts": 4, "head_dim": 16, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "mixtral": SIZES | {"num_hidden_layers": 2, "intermediate_size": 96, "num_local_experts": 4},
    "deepseek_v3": SIZES | LATENT | GROUPS | {"num_key_value_heads": 4, "num_hidden_layers": 3, "v_head_dim": 16,
                                              "intermediate_size": 96, "n_shared_experts": 2},
    "glm4_moe": SIZES | GROUPS | {"num_hidden_layers": 3, "intermediate_size": 96, "head_dim": 16},
    "llama4_text": SIZES | {"num_hidden_layers": 4, "intermediate_size": 32, "intermediate_size_mlp": 96,
                            "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16,
                            "interleave_moe_layer_step": 2},
    "deepseek_v4": SIZES | {"num_key_value_heads": 1, "num_hidden_layers": 4, "moe_intermediate_size": 32,
                            "n_routed_experts": 4, "head_dim": 32, "q_lora_rank": 24, "o_groups": 2,
                            "o_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4},
    "gpt_oss": SIZES | {"num_hidden_layers": 2, "intermediate_size": 96, "num_local_experts": 4, "head_dim": 16},
}  # fmt: skip
"""transformers' arguments by model_type: hidden and intermediate differ, dense layers among those with experts."""


def save(model_type: str, folder: Path, **save_arguments: Any) -> Any:
    """Save a tiny random model of this type as transformers does, and return it."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder, **save_arguments)
    return model


def save_pictures(folder: Path) -> Any:
    """Save a tiny Llama-4 with its tower for pictures, its config nested."""
    import torch
    import transformers

    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"vision_output_dim": 64, "image_size": 56, "patch_size": 14}
    vision |= {"projector_input_dim": 64, "projector_output_dim": 64}
    text = CONFIGS["llama4_text"] | {"interleave_moe_layer_step": 1}
    config = transformers.Llama4Config(text_config=text, vision_config=vision)
    model = transformers.Llama4ForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return model


DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840, "rope_theta": 10000, "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                     "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
"""deepseek-ai/DeepSeek-V3's config.json, less what says nothing of sizes."""


def deepseek_v3_tensors(c: dict[str, Any], prefix: str = "model.", *, speculation: bool = True) -> Iterator[Tensor]:
    """Every weight of a DeepSeek-V3 of this config, in BF16; its layer of speculation behind the last."""
    h, heads = c["hidden_size"], c["num_attention_heads"]
    q, kv, rope, nope = (c[k] for k in ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"))
    yield prefix + "embed_tokens.weight", "BF16", (c["vocab_size"], h)
    yield prefix.removesuffix("model.") + "lm_head.weight", "BF16", (c["vocab_size"], h)
    yield prefix + "norm.weight", "BF16", (h,)
    for layer in range(c["num_hidden_layers"] + speculation):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (h,), "post_attention_layernorm": (h,), "self_attn.q_a_proj": (q, h),
            "self_attn.q_a_layernorm": (q,), "self_attn.q_b_proj": (heads * (rope + nope), q),
            "self_attn.kv_a_proj_with_mqa": (kv + rope, h), "self_attn.kv_a_layernorm": (kv,),
            "self_attn.kv_b_proj": (heads * (nope + c["v_head_dim"]), kv),
            "self_attn.o_proj": (h, heads * c["v_head_dim"]),
        }  # fmt: skip
        if layer < c["first_k_dense_replace"]:
            shapes |= _mlp("mlp", h, c["intermediate_size"])
        else:
            shapes["mlp.gate"] = (c["n_routed_experts"], h)
            shapes |= _mlp("mlp.shared_experts", h, c["moe_intermediate_size"] * c["n_shared_experts"])
            for e in range(c["n_routed_experts"]):
                shapes |= _mlp(f"mlp.experts.{e}", h, c["moe_intermediate_size"])
            yield f"{prefix}layers.{layer}.mlp.gate.e_score_correction_bias", "F32", (c["n_routed_experts"],)
        for name, shape in shapes.items():
            yield f"{prefix}layers.{layer}.{name}.weight", "BF16", shape


def _mlp(at: str, h: int, i: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}.gate_proj": (i, h), f"{at}.up_proj": (i, h), f"{at}.down_proj": (h, i)}
