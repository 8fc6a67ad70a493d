"""Which layers attend how, and which hold experts: the rules of config.json and GGUF keys, each tied to its key.

Sources: transformers 5.23's configuration and modeling files (named beside each rule), llama.cpp's llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpttool.archs import ArchTable

Look = Callable[[str], object]

KINDS = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "compressed_sparse_attention": "compressed",
    "heavily_compressed_attention": "compressed",
}
"""transformers' layer_types, in our words; another word (linear_attention ...) stands as it is."""

PERIODS = {
    "mistral": 0, "ministral3": 0, "mixtral": 0, "phi3": 0, "phimoe": 0, "starcoder2": 0, "qwen3_moe": 0,
    "gemma2": 2, "vaultgemma": 2, "cohere2": 4, "exaone4": 4, "olmo3": 4, "gemma3": 6, "gemma3_text": 6,
}  # fmt: skip
"""config.json's model_type: every so many layers one is full, the others have the window; 0: all have it."""

GGUF_PERIODS = {"gemma2": 2, "cohere2": 4, "exaone4": 4, "olmo2": 4, "gemma3n": 5, "gemma3": 6}
"""The same by general.architecture, as llama.cpp's models/*.cpp have it in code."""

LATER_LAYERS = frozenset({"qwen2", "qwen3", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "dots1"})
"""model_types whose layers from max_window_layers on have the window."""

SWITCHED = LATER_LAYERS | {"qwen2_moe", "qwen3_moe"}
"""model_types that use the window where use_sliding_window says so, which it does not by default."""

UNNAMED = "a window, but no layer that has it"
"""What `said` has for attention where a window is stated and nothing names its layers: all count as full."""

COMPRESS_RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
"""DeepSeek-V4: tokens for each compressed entry (configuration_deepseek_v4.py)."""


def attention_kinds(
    layers: int, found: dict[str, Any], look: Look, arch: str, table: ArchTable | None
) -> tuple[tuple[str, ...] | None, str]:
    """How each layer attends, and by which key; None where lists contradict the number of layers.

    `arch` is "" for config.json and "NAME." for GGUF keys.
    """
    types = look("layer_types")
    if isinstance(types, list) and len(types) >= layers and all(isinstance(t, str) for t in types):
        full = "mla" if found.get("kv_lora_rank") else "full"
        return tuple(full if t == "full_attention" else KINDS.get(t) or t for t in types[:layers]), "layer_types"
    ratios = look("compress_ratios")  # DeepSeek-V4 as published
    if isinstance(ratios, list) and len(ratios) >= layers:
        return tuple("compressed" if n else "sliding" for n in ratios[:layers]), "compress_ratios"
    ropes = look("no_rope_layers")  # Llama-4: a layer without rope sees everything, the others a chunk
    chunked = look("attention_chunk_size") is not None or (table is not None and "chunked_attention" in table.cycle)
    if isinstance(ropes, list) and len(ropes) >= layers and chunked and found.get("sliding_window"):
        return tuple("chunked" if n else "full" for n in ropes[:layers]), "no_rope_layers"
    if found.get("kv_lora_rank"):
        return ("mla",) * layers, f"{arch}attention.kv_lora_rank" if arch else "kv_lora_rank"
    if not found.get("sliding_window"):
        return ("full",) * layers, "no sliding window"
    return _windowed(layers, found, look, arch, table)


def _windowed(
    layers: int, found: dict[str, Any], look: Look, arch: str, table: ArchTable | None
) -> tuple[tuple[str, ...], str]:
    """Which layers have the window that is stated: by its pattern, by a table, by the family; else none."""
    pattern = look(f"{arch}attention.sliding_window_pattern" if arch else "sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) >= layers:
        return tuple("sliding" if n else "full" for n in pattern[:layers]), "attention.sliding_window_pattern"
    if isinstance(pattern, int) and pattern > 0:  # llama.cpp, Gemma 3, Cohere 2: every pattern-th layer is full
        return _periodic(layers, pattern), "sliding_window_pattern"
    if table is not None and table.cycle:
        return tuple(KINDS.get(k, k) for k in (table.cycle * layers)[:layers]), table.file
    family = str(look("text_config.model_type") or found.get("model_type"))
    if not arch and family in SWITCHED and look("use_sliding_window") is not True:
        return ("full",) * layers, "use_sliding_window"
    period = (GGUF_PERIODS if arch else PERIODS).get(family)
    if period is not None:
        return _periodic(layers, period), f"how {family} is built"
    first = look("max_window_layers")
    if not arch and family in LATER_LAYERS and type(first) is int:
        return tuple("sliding" if n >= first else "full" for n in range(layers)), "max_window_layers"
    return ("full",) * layers, UNNAMED


def _periodic(layers: int, period: int) -> tuple[str, ...]:
    return tuple("full" if period and (n + 1) % period == 0 else "sliding" for n in range(layers))


def without_rope(layers: int, found: dict[str, Any], look: Look) -> tuple[tuple[int, ...], str] | None:
    """The layers whose queries and keys are not rotated, and by which key; None where nothing speaks of any."""
    ropes = look("no_rope_layers")  # Llama-4, SmolLM3: 1 for a layer that rotates
    if isinstance(ropes, list) and len(ropes) >= layers:
        return tuple(n for n in range(layers) if not ropes[n]), "no_rope_layers"
    every = found.get("no_rope_interval")
    if every:
        return tuple(range(every - 1, layers, every)), "no_rope_interval"
    return None


def compression(layers: int, look: Look) -> tuple[tuple[int, ...], str] | None:
    """DeepSeek-V4: for each layer how many tokens share a compressed entry, 0 for none."""
    ratios = look("compress_ratios")
    if isinstance(ratios, list) and len(ratios) >= layers and all(type(n) is int and n >= 0 for n in ratios):
        return tuple(ratios[:layers]), "compress_ratios"
    types = look("layer_types")
    if not isinstance(types, list) or len(types) < layers or not any(t in COMPRESS_RATES for t in map(str, types)):
        return None
    rates = look("compress_rates")
    said = rates.items() if isinstance(rates, dict) else ()
    told = COMPRESS_RATES | {kind: n for kind, n in said if type(n) is int and n > 0}
    return tuple(told.get(str(t), 0) for t in types[:layers]), "layer_types, compress_rates"


def moe_layers(layers: int, look: Look, arch: str) -> tuple[tuple[int, ...], str]:
    """The layers that hold experts, and the keys that say so; every layer where none does."""
    listed = look("moe_layers")  # Llama-4
    if isinstance(listed, list):
        return tuple(n for n in listed if type(n) is int and 0 <= n < layers), "moe_layers"
    types = look("mlp_layer_types")  # GLM-4.5-Air's successors, DeepSeek-V4
    if isinstance(types, list) and len(types) >= layers:
        return tuple(n for n in range(layers) if types[n] != "dense"), "mlp_layer_types"
    found = set(range(layers))
    keys = []
    for key, rule in _RULES.items():
        value = look(arch + key) if arch else look(key)
        if isinstance(value, int) and value > 0:
            found &= {n for n in range(layers) if rule(n, value)}
            keys.append(key)
    dense = look("mlp_only_layers")  # Qwen3-MoE
    if isinstance(dense, list) and dense:
        found -= {n for n in dense if type(n) is int}
        keys.append("mlp_only_layers")
    return tuple(sorted(found)), ", ".join(keys) or "every layer"


_RULES: dict[str, Callable[[int, int], bool]] = {
    "first_k_dense_replace": lambda n, k: n >= k,  # DeepSeek, Kimi, GLM
    "leading_dense_block_count": lambda n, k: n >= k,  # the same in GGUF
    "moe_layer_freq": lambda n, k: n % k == 0,  # DeepSeek, Kimi
    "decoder_sparse_step": lambda n, k: (n + 1) % k == 0,  # Qwen
    "interleave_moe_layer_step": lambda n, k: (n + 1) % k == 0,  # Llama-4
}
"""Whether layer n holds experts, by the value k of a key."""
