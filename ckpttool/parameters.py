"""How many parameters a checkpoint has, how many a token uses, and how many bytes that reads.

"Active" is counted as OpenAI and DeepSeek publish it: gpt-oss' model card (3.61 B of 20.9 B, 5.13 B of 116.8 B) and
the README of DeepSeek-V3's weights (36.6 B, "including 0.9B for the output Head"). All counts but the embedding table,
of which a token reads one row; the routed experts, their biases included, count as experts-per-token of all. The output
head counts; where it is the embedding table itself (tied), that table counts once. Layers that only speculate (MTP) and
towers for pictures are in the total, and not in what a token of text uses. (Mixtral's 12.9 B and Qwen3's 3.3 B have the
embedding table in them: there this rule says 0.13 and 0.31 B less.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.archs.purposes import Purpose, Purposes, purposes_of

if TYPE_CHECKING:
    from ckpttool.archs.facts import ModelFacts
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.tensors import Weight

TABLES = frozenset({"I64", "I32", "I16", "U64", "U32", "U16", "BOOL"})
"""Plain integer formats: look-up tables and counters, which are no parameters."""

CACHE_SCALES = re.compile(
    r"(?:^|\.)(?:(?:[qkv]|kv|prob|[kv]_cache|kv_cache)_(?:scale|zero_point)|[qkv]_proj\.output_scale"
    r"|kv_cache_(?:rcp_)?scaling_factor)$"
)
"""How the scales of a quantized KV cache are called: vLLM, compressed-tensors, ModelOpt, Quark, TensorRT-LLM."""


def parameters_of(w: Weight) -> int:
    """How many parameters `w` is: its logical elements, but none of a table, or of a KV cache's scales."""
    is_scale = len(w.shape) < 2 and w.codec.is_plain and CACHE_SCALES.search(w.name) is not None
    return 0 if w.codec.name in TABLES or is_scale else w.parameters


@dataclass(frozen=True)
class ParameterCounts:
    """Logical elements: two MXFP4 codes a byte are two, scales are none, nor are those of a KV cache.

    `experts` are those of the routed experts' matrices, without biases. `active` is what a token of text uses, by this
    module's rule, None where it is not known which weights are experts, or how many of them a token meets.
    `bytes_per_token` are the stored bytes of those. `by_format` has elements for each format.
    """

    total: int
    active: int | None
    experts: int
    nbytes: int
    bytes_per_token: int | None
    by_format: Mapping[str, int]

    @property
    def expert_share(self) -> float:
        """The experts' share of all parameters, 0 to 1."""
        return self.experts / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """One weight and the share of it that a token uses: `top` of `of` (4 of 32 experts, 1 of 1, 0 of 1)."""

    weight: Weight
    purpose: Purpose
    top: int
    of: int


def used(uses: Iterable[Use], amounts: Iterable[int]) -> int:
    """What a token uses of `amounts`, one for each use; shares are added up first, so that it is rounded once."""
    sums: Counter[tuple[int, int]] = Counter()
    for use, amount in zip(uses, amounts, strict=True):
        sums[use.top, use.of] += amount
    return sum(amount * top // of for (top, of), amount in sums.items())


def count_parameters(checkpoint: Checkpoint, facts: ModelFacts, purposes: Purposes | None = None) -> ParameterCounts:
    """Count what `checkpoint` holds; `facts` say how many experts a token meets."""
    purposes = purposes or purposes_of(checkpoint, facts.layers)
    counted = [w for w in checkpoint.weights if parameters_of(w)]
    by_format: Counter[str] = Counter()
    for w in counted:
        by_format[w.codec.name] += w.parameters
    uses = uses_of(counted, facts, purposes)
    active = None if uses is None else used(uses, [u.weight.parameters for u in uses])
    read = None if uses is None else used(uses, [u.weight.nbytes for u in uses])
    experts = sum(w.parameters for w in counted if is_expert_matrix(purposes.by_name[w.name]))
    total, nbytes = sum(w.parameters for w in counted), checkpoint.nbytes
    return ParameterCounts(total, active, experts, nbytes, read, dict(by_format.most_common()))


def is_expert_matrix(purpose: Purpose) -> bool:
    """Whether a weight is a matrix of routed experts, and not their biases."""
    return purpose.is_expert and not purpose.kinds[0].endswith(".bias")


def uses_of(weights: Iterable[Weight], facts: ModelFacts, purposes: Purposes) -> tuple[Use, ...] | None:
    """What a token of text uses of each weight, None where that is not known."""
    weights = list(weights)
    named = {kind for w in weights for kind in purposes.by_name[w.name].kinds}
    dense = not facts.experts
    if facts.layers is None or "embed" not in named or not (dense or (named & {"gate", "up"} and _top(facts))):
        return None
    out = []
    for w in weights:
        purpose = purposes.by_name[w.name]
        share = (1, 1)
        if purpose.idle or (purpose.kinds == ("embed",) and "head" in named):
            share = (0, 1)
        elif purpose.is_expert:
            share = _top(facts) or share
        out.append(Use(w, purpose, *share))
    return tuple(out)


def _top(facts: ModelFacts) -> tuple[int, int] | None:
    """Experts a token meets, of how many."""
    k, e = facts.experts_per_token, facts.experts
    return (k, e) if k and e and k <= e else None
