"""What the rules and the prices ask of a checkpoint: its form, and what its weights weigh as they are and as BF16."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.archs.facts import facts_of
from ckpttool.archs.purposes import purposes_of
from ckpttool.parameters import parameters_of

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint

GPT_OSS = "gpt-oss"
BF16 = 2
"""Bytes of a value."""


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint as the rules see it.

    `form` is mxfp4 (Hugging Face's names), openai, bf16, gguf-mxfp4, gguf-bf16, gguf-other or other. `nbytes` are the
    tensors' as stored, `bf16_nbytes` those of the same weights at two bytes; both without `speculation_nbytes`, of
    layers that only guess tokens ahead (MTP), which runtimes leave on the disk. `expert_nbytes` has the experts' bytes
    of each layer that has any, in order; empty where no architecture matches. `kv_nbytes` is the cache of 8,192 tokens
    (or of all that the model has), `overhead_nbytes` what vLLM takes besides on each GPU, `padding_nbytes` what its
    kernels add to the weights; 0 where no config says what they follow from.
    """

    source: str
    form: str
    arch: str | None
    parameters: int
    nbytes: int
    bf16_nbytes: int
    expert_nbytes: tuple[int, ...]
    kv_nbytes: int = 0
    overhead_nbytes: int = 0
    padding_nbytes: int = 0
    speculation_nbytes: int = 0


GPT_OSS_20B = CheckpointFacts(
    "openai/gpt-oss-20b", "mxfp4", "gpt-oss", 20_914_757_184, 13_761_264_768, 41_829_514_368, (423_014_400,) * 24
)
GPT_OSS_120B = CheckpointFacts(
    "openai/gpt-oss-120b", "mxfp4", "gpt-oss", 116_829_156_672, 65_248_815_744, 233_658_313_344, (1_692_057_600,) * 36
)
"""The published models, for a report without a checkpoint; the experts' bytes without their biases."""


def checkpoint_facts(checkpoint: Checkpoint) -> CheckpointFacts:
    """What the headers tell, and the config of how many layers there are."""
    purposes = purposes_of(checkpoint, facts_of(checkpoint).layers).by_name
    loaded = [w for w in checkpoint.weights if not purposes[w.name].speculates]
    nbytes = sum(w.nbytes for w in loaded)
    return CheckpointFacts(
        str(checkpoint.path),
        _form(checkpoint),
        checkpoint.arch.name if checkpoint.arch else None,
        sum(map(parameters_of, checkpoint.weights)),
        nbytes,
        sum(map(parameters_of, loaded)) * BF16,
        _experts(checkpoint),
        speculation_nbytes=checkpoint.nbytes - nbytes,
    )


def _form(checkpoint: Checkpoint) -> str:
    formats = {w.codec.format.name for w in checkpoint.weights}
    dialect = checkpoint.dialect.name if checkpoint.dialect else None
    if checkpoint.arch is None or checkpoint.arch.name != GPT_OSS:
        return "other"
    if checkpoint.container == "gguf":
        if "MXFP4" in formats:
            return "gguf-mxfp4"
        return "gguf-bf16" if formats <= {"F32", "F16", "BF16"} else "gguf-other"
    if dialect == "openai":
        return "openai"
    if "MXFP4" in formats:
        return "mxfp4" if dialect == "hf" else "other"
    return "bf16" if formats <= {"F32", "F16", "BF16"} else "other"


def _experts(checkpoint: Checkpoint) -> tuple[int, ...]:
    if checkpoint.arch is None:
        return ()
    layers: dict[int, int] = {}
    for w in checkpoint.weights:
        claim = checkpoint.claims.get(w.name)
        if claim is None or not checkpoint.arch.is_expert(claim.join.parts[0]):
            continue
        if found := re.match(r"layer\.(\d+)\.", claim.join.parts[0]):
            layers[int(found[1])] = layers.get(int(found[1]), 0) + w.nbytes
    return tuple(layers[n] for n in sorted(layers))
