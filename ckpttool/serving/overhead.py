"""What a runtime takes beside weights and cache: one rule, stated wherever it is used.

The rule is vLLM's, whose own logs it was held against: gpt-oss-120b on an H100 in vllm-project/vllm issues 23278 (8192
tokens a step, 1024 sequences, 0.9 of 79.2 GiB: 65.97 GiB of weights after padding, -2.14 GiB left for the cache, so
7.4 GiB of overhead; the rule says 7.8) and 27508 (1024 tokens, 0.95: 1.71 GiB left, so 7.6; the rule says 7.2).
Padding is as vLLM 0.33 rounds MXFP4 experts for Marlin and TensorRT-LLM kernels (fused_moe/oracle/mxfp4.py): hidden
sizes to 256, intermediate sizes to 128, which explains 65.97 GiB to the second digit.
"""

from __future__ import annotations

from ckpttool.archs.facts import ModelFacts
from ckpttool.units import size

RUNTIME = 5 << 29
"""Bytes a GPU: 2.5 GiB of CUDA context, kernels and their workspaces, CUDA graphs, NCCL."""
STEP_TOKENS = 8192
"""Tokens in one step of prefill: vLLM's default for serving on large GPUs (--max-num-batched-tokens)."""
SAMPLER_NBYTES = 24
"""Bytes for each sequence and entry of the vocabulary: logits in BF16 and F32, sorted, their 64-bit places, sums."""
HIDDEN_MULTIPLE, INTERMEDIATE_MULTIPLE = 256, 128
LLAMA_CPP = 1 << 30
"""Bytes: llama.cpp's compute buffers and CUDA context; it pads nothing and uses the whole card."""


def nbytes(facts: ModelFacts, mxfp4_expert_bytes: int, batch: int, tp: int) -> int:
    """Overhead of all `tp` GPUs together, in bytes; weights that are padded are padded once."""
    return padding(facts, mxfp4_expert_bytes) + tp * (RUNTIME + activations(facts) + sampler(facts, batch))


def activations(facts: ModelFacts) -> int:
    """Bytes of one step's activations in BF16: residual, norm, attention; gate, up and product of a token's experts."""
    width = facts.expert_intermediate or facts.intermediate or 0
    routed = (facts.experts_per_token or 1) if facts.experts else 1
    return STEP_TOKENS * 2 * (4 * (facts.hidden or 0) + 3 * routed * width)


def sampler(facts: ModelFacts, batch: int) -> int:
    """Bytes of choosing the next token of `batch` sequences."""
    return SAMPLER_NBYTES * batch * (facts.vocab or 0)


def padding(facts: ModelFacts, mxfp4_expert_bytes: int) -> int:
    """Bytes by which kernels widen MXFP4 experts."""
    h, i = facts.hidden, facts.expert_intermediate
    if not mxfp4_expert_bytes or not h or not i:
        return 0
    padded = -(-h // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE * (-(-i // INTERMEDIATE_MULTIPLE) * INTERMEDIATE_MULTIPLE)
    return mxfp4_expert_bytes * padded // (h * i) - mxfp4_expert_bytes


def rule(facts: ModelFacts, mxfp4_expert_bytes: int, batch: int) -> tuple[str, ...]:
    """The rule with this model's numbers, a line for each term."""
    lines = [
        f"{size(RUNTIME)} a GPU for CUDA context, kernels, CUDA graphs",
        f"{size(activations(facts))} a GPU for activations of {STEP_TOKENS:,} tokens a step",
        f"{size(sampler(facts, batch))} a GPU for the sampler: {SAMPLER_NBYTES} bytes x {batch:,} x vocabulary",
    ]
    if more := padding(facts, mxfp4_expert_bytes):
        lines.append(
            f"{size(more)} for vLLM's padding of MXFP4 experts, hidden to {HIDDEN_MULTIPLE}s, "
            f"intermediate to {INTERMEDIATE_MULTIPLE}s"
        )
    return tuple(lines)
