"""How many bytes of keys and values a context takes, layer by layer, and by the formula that published tables use."""

from __future__ import annotations

from collections import Counter

from ckpttool.archs.facts import ModelFacts
from ckpttool.errors import InputError

ELEMENT_NBYTES = {"fp16": 2, "fp8": 1}
"""Bytes of one cached number; fp16 stands for BF16 too."""

NEEDED = ("layers", "kv_heads", "head_dim", "attention")


def require(facts: ModelFacts, source: str) -> None:
    """InputError unless `facts` say all that a cache's size follows from."""
    lacking = [name for name in NEEDED if getattr(facts, name) is None]
    if "attention" in lacking and "layers" in lacking:
        lacking.remove("attention")
    if lacking:
        words = ", ".join(name.replace("_", " ") for name in lacking)
        hint = "put the model's config.json beside the weights"
        raise InputError(f"does not say {words}, from which the KV cache follows", file=source, hint=hint)


def kv_bytes(facts: ModelFacts, context: int, dtype: str) -> int:
    """Bytes of one sequence of `context` tokens, as its architecture needs them.

    A full layer keeps every token, one with a sliding window or in chunks the last `sliding_window` of them; MLA one
    latent vector and one rotated key a token instead of all heads'; DeepSeek-V4 one shared head in a window, an entry
    for every so many tokens, and an index key beside each where the indexer picks them.
    """
    kinds = Counter(zip(facts.attention or (), facts.compression or (0,) * len(facts.attention or ()), strict=True))
    return ELEMENT_NBYTES[dtype] * sum(n * layer_elements(facts, *kind, context) for kind, n in kinds.items())


def layer_elements(facts: ModelFacts, kind: str, rate: int, context: int) -> int:
    """Cached numbers of one layer that attends as `kind`, with one entry for `rate` tokens where it compresses."""
    token = (facts.kv_heads or 0) * ((facts.head_dim or 0) + (facts.value_head_dim or facts.head_dim or 0))
    window = min(context, facts.sliding_window or context)
    if kind == "mla":
        return context * ((facts.kv_lora_rank or 0) + (facts.qk_rope_head_dim or 0))
    if facts.compression is not None:
        head, entries = facts.head_dim or 0, context // rate if rate else 0
        return window * head + entries * (head + (facts.index_head_dim or 0 if rate == INDEXED else 0))
    return token * (window if kind in ("sliding", "chunked") else context)


INDEXED = 4
"""DeepSeek-V4: layers of this compression have an indexer (modeling_deepseek_v4.py, DeepseekV4CSACompressor)."""


def naive_kv_bytes(facts: ModelFacts, context: int, dtype: str) -> int:
    """2 x layers x KV heads x head size x bytes x context: every layer full, as published tables have it."""
    token = 2 * (facts.layers or 0) * (facts.kv_heads or 0) * (facts.head_dim or 0)
    return token * ELEMENT_NBYTES[dtype] * context


def largest_context(facts: ModelFacts, room: int, batch: int, dtype: str, share: float) -> int:
    """The most tokens a sequence for which the caches of `batch` fit `room` bytes; 0 where none do.

    `share` is the part of a cache that lies on one GPU. Not more than the model's own context, where that is known.
    """

    def fits(tokens: int) -> bool:
        return batch * share * kv_bytes(facts, tokens, dtype) <= room

    low, high = 0, facts.context or 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if room > 0 else 0


def replicated(facts: ModelFacts) -> bool:
    """Whether every GPU of a tensor-parallel group keeps the whole cache: one latent vector has no heads to split."""
    return facts.compression is not None or "mla" in (facts.attention or ())


def gpu_share(facts: ModelFacts, tp: int) -> float:
    """The part of the cache on each of `tp` GPUs: whole heads, at least one."""
    heads = facts.kv_heads or 1
    return 1.0 if replicated(facts) else -(-heads // tp) / heads
