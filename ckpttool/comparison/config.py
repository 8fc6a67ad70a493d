"""What two checkpoints say of their model: config.json's fields by meaning, and a GGUF's key-values.

Whatever the container, a side is brought to config.json's keys: a GGUF's key-values and OpenAI's own config through
the architecture's tables, rope's values named `rope.factor` in both of transformers' shapes. Where a side says nothing,
what its readers then take stands in for it, so that an absent field only shows where it means something else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ckpttool.archs import companions, config
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers.gguf_values import Array, Value
from ckpttool.errors import CkptError

FORWARD: Final = frozenset({
    # sizes
    "num_hidden_layers", "hidden_size", "intermediate_size", "intermediate_size_mlp", "moe_intermediate_size",
    "shared_expert_intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    # attention and norms
    "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size",
    "attention_bias", "rms_norm_eps", "use_qk_norm", "attn_temperature_tuning", "attn_scale", "floor_scale",
    # positions; over the original context, max_position_embeddings was YaRN's factor in transformers before 5
    "max_position_embeddings", "partial_rotary_factor", "no_rope_layers", "no_rope_layer_interval",
    # experts and router
    "num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
    "first_k_dense_replace", "decoder_sparse_step", "mlp_only_layers", "moe_layers", "interleave_moe_layer_step",
    "n_group", "topk_group", "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor",
    # activation and head
    "hidden_act", "swiglu_alpha", "swiglu_limit", "tie_word_embeddings", "model_type",
})  # fmt: skip
"""Keys that change the forward pass, and `rope.*` beside them; the last word of a nested key counts.

By the configuration and modeling files of transformers 5.23 for gpt_oss, qwen3_moe, mixtral, deepseek_v3, glm4_moe and
llama4. A key that is not here may change how a checkpoint is loaded or sampled from, not what it computes.
"""

DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt_oss": {
        "attention_bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "rope.beta_fast": 32,
        "rope.beta_slow": 1,
        "rope.rope_theta": 150000.0,
        "rope.truncate": True,
    },
}
"""What transformers 5.23 takes where config.json of a model_type says nothing (GptOssConfig; truncate and the betas:
_compute_yarn_parameters, where rope is given without them)."""

_RENAMED: Final = {"torch_dtype": "dtype"}
"""The same key in transformers 4 and 5."""

_WRITERS: Final = frozenset({"transformers_version", "_name_or_path", "_from_model_config"})
"""What a file says of who wrote it, not of the model."""

_ROPE: Final = ("rope_scaling", "rope_parameters", "rope_theta")
_SHOWN: Final = 80
"""Characters of a text value that a report carries."""


@dataclass(frozen=True)
class FieldDifference:
    """A field that two checkpoints state differently; None: not stated. `forward`: it changes the forward pass."""

    key: str
    a: Any
    b: Any
    forward: bool


@dataclass(frozen=True)
class Said:
    """A side's fields by path. `derived`: from a GGUF or OpenAI's config, which hold only some; `assumed` are not its.

    `defaults` are what its readers take for what is not said; `note` says why nothing could be derived.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    derived: bool = False
    assumed: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


def said(checkpoint: Checkpoint) -> Said:
    """What a checkpoint says of its model, by config.json's keys."""
    table = checkpoint.arch.table if checkpoint.arch else {}
    try:
        if checkpoint.container == "gguf":
            if "keys" not in table.get("gguf", {}) or "config" not in table:
                return Said()
            made, assumed = companions.config_from_gguf(table, checkpoint.metadata)
            return Said(flat(made), True, _paths(assumed), _defaults(made))
        if checkpoint.config is None:
            return Said()
        stated: Mapping[str, Any] = checkpoint.config
        if stated.get("model_type") is None and checkpoint.dialect and checkpoint.dialect.name == "openai":
            made, assumed, _ = config.openai_to_hf(table, stated)
            return Said(flat(made), True, _paths(assumed), _defaults(made))
        return Said(flat(stated), defaults=_defaults(stated))
    except CkptError as e:
        return Said(note=f"{checkpoint.path}: its config cannot be compared: {e}")


def _defaults(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    return DEFAULTS.get(str(stated.get("model_type")), {})


def _paths(assumed: list[tuple[str, str, Any]]) -> frozenset[str]:
    """The keys of config.json that were assumed, as paths."""
    keys = (key.partition(".") for file, key, _ in assumed if file == config.FILE)
    return frozenset(f"rope.{inner or top}" if top in _ROPE else top for top, _, inner in keys)


def flat(stated: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by path, nested objects taken apart and rope's values under `rope`; null is absent."""
    out: dict[str, Any] = {}
    rope = config.rope(stated)
    rope.pop("type", None)
    for key, value in {**{k: v for k, v in stated.items() if k not in _ROPE}, "rope": rope}.items():
        path = prefix + _RENAMED.get(key, key)
        if isinstance(value, Mapping):
            inner = flat(value, f"{path}.") if key != "rope" else {f"{path}.{k}": v for k, v in value.items()}
            out |= {k: v for k, v in inner.items() if v is not None}
        elif value is not None:
            out[path] = value
    return out


def config_differences(a: Said, b: Said) -> Iterator[FieldDifference]:
    """The fields that differ, those that change the forward pass first."""
    if not a.fields or not b.fields:
        return
    found = [d for key in sorted({*a.fields, *b.fields} - _WRITERS) if (d := _difference(key, a, b))]
    yield from sorted(found, key=lambda d: not d.forward)


def changes_forward(key: str) -> bool:
    """Whether a field changes what the model computes."""
    return "rope" in key.split(".")[:-1] or key.split(".")[-1] in FORWARD


def _difference(key: str, a: Said, b: Said) -> FieldDifference | None:
    forward = changes_forward(key)
    x, y = (side.fields.get(key, side.defaults.get(key) if forward else None) for side in (a, b))
    if same(x, y, narrow=a.derived or b.derived):
        return None
    if not forward and any(s.derived and (key not in s.fields or key in s.assumed) for s in (a, b)):
        return None  # a GGUF has no word for it
    if not forward and any(s.derived for s in (a, b)) and (x is None or y is None):
        return None  # a field of the published config that was filled in
    return FieldDifference(key, a.fields.get(key), b.fields.get(key), forward)


def same(x: Any, y: Any, *, narrow: bool) -> bool:
    """Whether two values mean the same; numbers of a GGUF are of 32 bits (`narrow`)."""
    if isinstance(x, bool) or isinstance(y, bool):
        return x is y
    if narrow and isinstance(x, int | float) and isinstance(y, int | float) and x != y:
        try:
            return struct.pack("<f", x) == struct.pack("<f", y)
        except OverflowError:
            return False
    return bool(x == y)


def metadata_differences(a: Checkpoint, b: Checkpoint) -> Iterator[FieldDifference]:
    """The key-values in which two GGUFs differ, but for the tokenizer's and those that config.json has a word for."""
    if a.container != "gguf" or b.container != "gguf":
        return
    told = _config_keys(a) & _config_keys(b)
    for key in sorted({*a.metadata, *b.metadata} - told):
        x, y = a.metadata.get(key), b.metadata.get(key)
        if x != y and not key.startswith(("tokenizer.", "split.")):
            yield FieldDifference(key, _shown(x), _shown(y), False)


def _config_keys(checkpoint: Checkpoint) -> set[str]:
    table = checkpoint.arch.table if checkpoint.arch else {}
    rows = table.get("gguf", {}).get("keys", ())
    return {row["key"].format(arch=table["arch"]["gguf"]) for row in rows if "config" in row}


def _shown(value: Value | None) -> Any:
    """A key-value as JSON; of an array its type and length."""
    if value is None:
        return None
    if isinstance(value, Array):
        return f"[{value.type.name} x {value.count}]"
    text = value.value
    return text[: _SHOWN - 1] + "…" if isinstance(text, str) and len(text) > _SHOWN else text
