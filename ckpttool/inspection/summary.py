"""The model in one view: what headers and side files say of it, each fact with the key it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool.containers.gguf_values import Array, Scalar
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError
from ckpttool.inspection.report import (
    AttentionReport,
    FingerprintReport,
    FormatShare,
    LayoutReport,
    RopeReport,
    RouterReport,
    Summary,
    VocabularyReport,
)
from ckpttool.parameters import parameters_of

if TYPE_CHECKING:
    from ckpttool.archs.facts import ModelFacts
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.expert_layout import ExpertLayouts, LayoutGroup
    from ckpttool.parameters import ParameterCounts

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt")
"""What holds a vocabulary, the first that is there speaks: Hugging Face, SentencePiece, Mistral, Kimi, GPT-2, BERT."""

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TEMPLATE_KEY = "tokenizer.chat_template"
TOKENS_KEY = "tokenizer.ggml.tokens"
FILE_TYPE_KEY = "general.file_type"

FILE_TYPES: Mapping[int, str] = {
    0: "ALL_F32", 1: "MOSTLY_F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "MOSTLY_BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""llama_ftype by number (llama.h); 4 to 6 and 33 to 35 were removed."""


def summarised(
    checkpoint: Checkpoint,
    facts: ModelFacts,
    counts: ParameterCounts,
    layouts: ExpertLayouts | None,
    fingerprint: FingerprintReport | None,
) -> Summary:
    """The summary of `checkpoint`."""
    return Summary(
        family=facts.family,
        model_type=facts.model_type,
        architecture=facts.architecture,
        declared=_declared(checkpoint),
        active_parameters=counts.active,
        active_nbytes=counts.bytes_per_token,
        expert_parameters=counts.experts,
        expert_share=round(counts.expert_share, 6),
        bf16_nbytes=2 * counts.total,
        size_against_bf16=round(counts.nbytes / (2 * counts.total), 6) if counts.total else 0.0,
        formats=_formats(checkpoint),
        expert_layout=tuple(layout_report(g) for g in layouts.groups) if layouts else (),
        layers=facts.layers,
        hidden=facts.hidden,
        intermediate=facts.expert_intermediate or facts.intermediate,
        context=facts.context,
        attention=_attention(facts),
        rope=RopeReport(
            facts.rope_theta, facts.rope_type, facts.rope_factor, facts.rope_beta_fast, facts.rope_beta_slow,
            facts.original_context, facts.rope_truncate, facts.no_rope,
        ),
        router=RouterReport(
            facts.experts, facts.experts_per_token, facts.shared_experts, len(layouts.layers) if layouts else 0
        ),
        swiglu_limit=facts.swiglu_limit,
        vocabulary=VocabularyReport(
            facts.vocab, facts.bos, facts.eos or (), facts.pad, facts.tied_embeddings, tokenizer(checkpoint)
        ),
        chat_template=chat_template(checkpoint),
        file_type=_file_type(checkpoint),
        shards=len(checkpoint.files),
        stored_tensors=sum(len(w.stored) for w in checkpoint.weights),
        fingerprint=fingerprint,
        said=dict(facts.said),
    )  # fmt: skip


def layout_report(group: LayoutGroup) -> LayoutReport:
    """A group of layers whose experts are stored alike."""
    x = group.layout
    return LayoutReport(
        group.layers, x.experts, x.gate_up, x.order, x.storage, x.orientation, x.bias, x.hidden, x.intermediate,
        x.shared, x.formats, x.words,
    )  # fmt: skip


def _formats(checkpoint: Checkpoint) -> tuple[FormatShare, ...]:
    sums: dict[tuple[str, str], list[int]] = {}
    for w in checkpoint.weights:
        row = sums.setdefault((w.codec.name, str(w.codec.packing)), [0, 0, 0])
        for i, n in enumerate((1, parameters_of(w), w.nbytes)):
            row[i] += n
    total = max(1, sum(n for _, n, _ in sums.values()))
    order = sorted(sums.items(), key=lambda item: -item[1][1])
    return tuple(
        FormatShare(name, packing, weights, n, nbytes, bits_per_weight(nbytes, n), round(n / total, 6))
        for (name, packing), (weights, n, nbytes) in order
    )


def bits_per_weight(nbytes: int, parameters: int) -> float:
    """Bits of storage for each parameter, 0 where there is none."""
    return round(8 * nbytes / parameters, 4) if parameters else 0.0


def _attention(facts: ModelFacts) -> AttentionReport:
    kinds: dict[str, tuple[int, ...]] = {}
    for layer, kind in enumerate(facts.attention or ()):
        kinds[kind] = (*kinds.get(kind, ()), layer)
    return AttentionReport(
        facts.heads, facts.kv_heads, facts.head_dim, facts.value_head_dim, facts.sliding_window, facts.kv_lora_rank,
        kinds,
    )  # fmt: skip


def _declared(checkpoint: Checkpoint) -> str | None:
    """The quantization that config.json names, in its own word."""
    config: Mapping[str, Any] = checkpoint.config or {}
    for holder in (config, config.get("text_config")):
        section = holder.get("quantization_config") if isinstance(holder, Mapping) else None
        if isinstance(section, Mapping):
            word = section.get("quant_method") or section.get("quant_algo")
            return word if isinstance(word, str) else None
    return None


def tokenizer(checkpoint: Checkpoint) -> str | None:
    """Where the vocabulary is, None where there is none."""
    if checkpoint.container == "gguf":
        found = checkpoint.metadata.get(TOKENS_KEY)
        if not isinstance(found, Array):
            return None
        kinds = [text_of(checkpoint.metadata, f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        return f"{TOKENS_KEY} ({', '.join(k for k in kinds if k)})"
    names = set(beside(checkpoint))
    return next((name for name in TOKENIZER_FILES if name in names), None)


def beside(checkpoint: Checkpoint) -> Iterable[str]:
    """The names of the files beside the weights, as far as they are known without asking."""
    return {*checkpoint.companions, *checkpoint.folder.names()}


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """A GGUF key that holds text."""
    value = metadata.get(key)
    return value.value if isinstance(value, Scalar) and isinstance(value.value, str) else None


def chat_template(checkpoint: Checkpoint) -> str | None:
    """Where the chat template is and how long, None where there is none; remote files are named and not read."""
    if checkpoint.container == "gguf":
        text = text_of(checkpoint.metadata, TEMPLATE_KEY)
        return f"{TEMPLATE_KEY}, {len(text):,} characters" if text else None
    names = set(beside(checkpoint))
    for name in TEMPLATE_FILES:
        if name in names:
            place = checkpoint.companions.get(name) if is_local(checkpoint) else None
            return f"{name}, {place.stat().st_size:,} bytes" if isinstance(place, Path) else name
    if TOKENIZER_CONFIG in names and is_local(checkpoint):
        text = _template_key(checkpoint)
        return f"{TOKENIZER_CONFIG}, {len(text):,} characters" if text else None
    return None


def is_local(checkpoint: Checkpoint) -> bool:
    """Whether all of it lies on this machine."""
    return all(isinstance(f.place, Path) for f in checkpoint.files)


def _template_key(checkpoint: Checkpoint) -> str | None:
    """`chat_template` of tokenizer_config.json; one that cannot be read is for the findings to say."""
    source = checkpoint.companions.get(TOKENIZER_CONFIG)
    try:
        value = read_object(source, TOKENIZER_CONFIG).get("chat_template") if source is not None else None
    except CkptError:
        return None
    if isinstance(value, list):  # several, by name
        value = next((x.get("template") for x in value if isinstance(x, Mapping)), None)
    return value if isinstance(value, str) else None


def _file_type(checkpoint: Checkpoint) -> str | None:
    number = file_type(checkpoint)
    return None if number is None else f"{number} {FILE_TYPES.get(number, 'unknown')}"


def file_type(checkpoint: Checkpoint) -> int | None:
    """`general.file_type`, None where it is no number."""
    value = checkpoint.metadata.get(FILE_TYPE_KEY)
    return value.value if isinstance(value, Scalar) and type(value.value) is int else None
