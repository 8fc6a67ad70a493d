"""What side files say about a model: sizes, attention, rope, experts, special ids; and which key says it.

One table, `FACTS`, names for each fact the keys that may hold it: of config.json (Hugging Face's, with a nested
text_config as Llama-4 and Kimi-K2.5 have it, and OpenAI's own) and of a GGUF. The first key that holds a value of the
right type speaks. What no key says stays None, unless `_DERIVED` has the rule by which every loader fills it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ckpttool.archs import ArchTable, declared_table
from ckpttool.archs.layers import attention_kinds, compression, moe_layers, without_rope
from ckpttool.containers.gguf_values import Array, Scalar
from ckpttool.containers.strict_json import read_object

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint

MOST = 1 << 40
"""No size of a model is larger; what is, is damage."""


@dataclass(frozen=True)
class ModelFacts:
    """A model's sizes and settings, by its side files; None wherever they do not say.

    `attention` has a word for each layer: "full", "sliding", "chunked" (attends within chunks of `sliding_window`),
    "mla" (one latent vector a token), "compressed" (one entry for every `compression[layer]` tokens beside a window).
    `no_rope` are the layers without rotary positions, every `no_rope_interval`-th one where that is how they are said.
    `intermediate` is a dense layer's width, `expert_intermediate` one expert's. `eos` lists every id that ends a turn.
    `said` tells for each fact the key it came from, or the rule.
    """

    family: str | None = None
    model_type: str | None = None
    architecture: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    attention: tuple[str, ...] | None = None
    sliding_window: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    qk_nope_head_dim: int | None = None
    compression: tuple[int, ...] | None = None
    index_head_dim: int | None = None
    rope_theta: float | None = None
    rope_type: str | None = None
    rope_factor: float | None = None
    rope_beta_fast: float | None = None
    rope_beta_slow: float | None = None
    rope_truncate: bool | None = None
    no_rope_interval: int | None = None
    no_rope: tuple[int, ...] | None = None
    original_context: int | None = None
    context: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    shared_experts: int | None = None
    moe_layers: tuple[int, ...] | None = None
    intermediate: int | None = None
    expert_intermediate: int | None = None
    swiglu_limit: float | None = None
    vocab: int | None = None
    tied_embeddings: bool | None = None
    bos: int | None = None
    eos: tuple[int, ...] | None = None
    pad: int | None = None
    said: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: its type, and where it may stand, first come first served; `{arch}` is general.architecture."""

    name: str
    type: type
    config: tuple[str, ...]
    gguf: tuple[str, ...] = ()


def _rope(key: str, *more: str) -> tuple[str, ...]:
    """A rope setting: transformers 5 holds it in rope_parameters, earlier ones in rope_scaling."""
    return (f"rope_parameters.{key}", f"rope_scaling.{key}", f"rope_parameters.main.{key}", *more)


FACTS = (
    Fact("model_type", str, ("model_type",), ("general.architecture",)),
    Fact("architecture", str, ("architectures.0",), ()),
    Fact("layers", int, ("num_hidden_layers",), ("{arch}.block_count",)),
    Fact("hidden", int, ("hidden_size",), ("{arch}.embedding_length",)),
    Fact("heads", int, ("num_attention_heads",), ("{arch}.attention.head_count",)),
    Fact("kv_heads", int, ("num_key_value_heads",), ("{arch}.attention.head_count_kv",)),
    Fact("head_dim", int, ("head_dim",), ("{arch}.attention.key_length_mla", "{arch}.attention.key_length")),
    Fact("value_head_dim", int, ("v_head_dim",), ("{arch}.attention.value_length",)),
    Fact("sliding_window", int, ("attention_chunk_size", "sliding_window"), ("{arch}.attention.sliding_window",)),
    Fact("kv_lora_rank", int, ("kv_lora_rank",), ("{arch}.attention.kv_lora_rank",)),
    Fact("qk_rope_head_dim", int, ("qk_rope_head_dim",), ("{arch}.rope.dimension_count",)),
    Fact("qk_nope_head_dim", int, ("qk_nope_head_dim",), ()),
    Fact("index_head_dim", int, ("index_head_dim",), ("{arch}.attention.indexer.key_length",)),
    Fact("rope_theta", float, _rope("rope_theta", "rope_theta"), ("{arch}.rope.freq_base",)),
    Fact("rope_type", str, _rope("rope_type", "rope_scaling.type"), ("{arch}.rope.scaling.type",)),
    Fact("rope_factor", float, _rope("factor", "rope_scaling_factor"), ("{arch}.rope.scaling.factor",)),
    Fact("rope_beta_fast", float, _rope("beta_fast", "rope_ntk_beta"), ("{arch}.rope.scaling.yarn_beta_fast",)),
    Fact("rope_beta_slow", float, _rope("beta_slow", "rope_ntk_alpha"), ("{arch}.rope.scaling.yarn_beta_slow",)),
    Fact("rope_truncate", bool, _rope("truncate"), ()),
    Fact("no_rope_interval", int, ("no_rope_layer_interval",), ()),
    Fact("original_context", int, _rope("original_max_position_embeddings", "initial_context_length"),
         ("{arch}.rope.scaling.original_context_length",)),
    Fact("context", int, ("max_position_embeddings",), ("{arch}.context_length",)),
    Fact("experts", int, ("num_local_experts", "num_experts", "n_routed_experts"), ("{arch}.expert_count",)),
    Fact("experts_per_token", int, ("num_experts_per_tok", "experts_per_token"), ("{arch}.expert_used_count",)),
    Fact("shared_experts", int, ("n_shared_experts", "num_shared_experts"), ("{arch}.expert_shared_count",)),
    Fact("intermediate", int, ("intermediate_size_mlp", "intermediate_size"), ("{arch}.feed_forward_length",)),
    Fact("expert_intermediate", int, ("moe_intermediate_size", "intermediate_size"),
         ("{arch}.expert_feed_forward_length",)),
    Fact("swiglu_limit", float, ("swiglu_limit",), ()),
    Fact("vocab", int, ("vocab_size",), ("tokenizer.ggml.tokens", "{arch}.vocab_size")),
    Fact("tied_embeddings", bool, ("tie_word_embeddings",), ()),
    Fact("bos", int, ("bos_token_id",), ("tokenizer.ggml.bos_token_id",)),
    Fact("pad", int, ("pad_token_id",), ("tokenizer.ggml.padding_token_id",)),
)  # fmt: skip
"""Sources: transformers 5.23's configuration classes, OpenAI's original/config.json, gguf-py's constants.Keys."""

EOS_GGUF = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
NESTED = ("text_config", "llm_config")
GENERATION = "generation_config.json"
_MAY_BE_ZERO = frozenset({"bos", "pad", "eos", "shared_experts", "experts", "experts_per_token"})

Look = Callable[[str], object]
"""What stands under a key, None where nothing does."""


def facts_of(checkpoint: Checkpoint) -> ModelFacts:
    """What `checkpoint`'s config.json, generation_config.json or GGUF key-values say of the model."""
    table = declared_table(checkpoint)
    if checkpoint.container == "gguf":
        return _facts(table, _gguf_look(checkpoint.metadata), gguf=True)
    config = checkpoint.config or {}
    generation = _generation(checkpoint)
    return _facts(table, _config_look(config), gguf=False, generation=generation)


def facts_of_config(config: Mapping[str, Any], table: ArchTable | None = None) -> ModelFacts:
    """What a config.json says, by itself."""
    return _facts(table, _config_look(config), gguf=False)


def _facts(
    table: ArchTable | None, look: Look, *, gguf: bool, generation: Mapping[str, Any] | None = None
) -> ModelFacts:
    arch = look("general.architecture")
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    odd: set[str] = set()  # said, but as nothing that we can take: no rule may contradict it
    for fact in FACTS:
        for key in fact.gguf if gguf else fact.config:
            full = key.format(arch=arch)
            value = _as(fact.type, look(full), fact.name in _MAY_BE_ZERO)
            if value is not None:
                found[fact.name], said[fact.name] = value, full
                break
            if look(full) is not None:
                odd.add(fact.name)
    _special_ids(found, said, look, gguf, generation or {})
    if {"qk_nope_head_dim", "qk_rope_head_dim"} <= found.keys():  # config.json's head_dim is the rotated part, if any
        found["head_dim"] = found["qk_nope_head_dim"] + found["qk_rope_head_dim"]
        said["head_dim"] = "qk_nope_head_dim + qk_rope_head_dim"
    for name, (needs, rule, text) in _DERIVED.items():
        if (
            name not in {*found, *odd}
            and all(n in found for n in needs)
            and (value := rule(*(found[n] for n in needs)))
        ):
            found[name], said[name] = value, text
    if "layers" in found and not found.get("experts"):
        table = None  # all tables are of mixtures; llama.cpp gives Mixtral's name to a dense Llama too
    if table is not None:
        found["family"], said["family"] = table.shown_name(found.get("model_type")), table.file
        for name, value in table.assumed.items():
            if name not in {*found, *odd}:
                found[name], said[name] = value, table.file
    _per_layer(found, said, look, f"{arch}.", gguf, table)
    known = {f.name for f in fields(ModelFacts)}
    return ModelFacts(said=said, **{k: v for k, v in found.items() if k in known})


_Rule = tuple[tuple[str, ...], Callable[..., Any], str]
_DERIVED: Mapping[str, _Rule] = {
    "head_dim": (("hidden", "heads"), lambda h, n: h // n, "hidden size / heads"),
    "kv_heads": (("heads",), lambda n: n, "as many as heads"),
    "context": (("original_context", "rope_factor"), lambda n, f: int(n * f), "original context x rope factor"),
}
"""Facts that loaders fill in where the file has none: from these facts, so, in these words."""


def _per_layer(
    found: dict[str, Any], said: dict[str, str], look: Look, arch: str, gguf: bool, table: ArchTable | None
) -> None:
    """What differs by layer: attention, compression, where the experts are. Needs the number of layers."""
    layers = found.get("layers")
    if layers is None or layers > 1 << 16:
        return
    if gguf and isinstance(more := look(arch + "nextn_predict_layers"), int) and 0 < more < layers:
        layers = found["layers"] = layers - more  # llama.cpp counts the layers of speculation too
    if look("use_sliding_window") is False:
        found.pop("sliding_window", None)
    prefix = arch if gguf else ""
    kinds, key = attention_kinds(layers, found, look, prefix, table)
    if kinds is not None:
        found["attention"], said["attention"] = kinds, key
    if (unrotated := without_rope(layers, found, look)) is not None:
        found["no_rope"], said["no_rope"] = unrotated[0], said.get(unrotated[1], unrotated[1])
    if (rates := compression(layers, look)) is not None:
        found["compression"], said["compression"] = rates
    if found.get("experts"):
        found["moe_layers"], said["moe_layers"] = moe_layers(layers, look, prefix)
    else:
        found.pop("expert_intermediate", None)


def _special_ids(
    found: dict[str, Any], said: dict[str, str], look: Look, gguf: bool, generation: Mapping[str, Any]
) -> None:
    """The ids that end a turn, which may be several, and what only generation_config.json says."""
    if gguf:
        ids = {key: n for key in EOS_GGUF if (n := _as(int, look(key), True)) is not None}
        if ids:
            found["eos"], said["eos"] = tuple(dict.fromkeys(ids.values())), ", ".join(ids)
        return
    for file, value in ((f"{GENERATION}: ", generation.get("eos_token_id")), ("", look("eos_token_id"))):
        listed = tuple(
            n for x in (value if isinstance(value, list) else [value]) if (n := _as(int, x, True)) is not None
        )
        if listed:
            found["eos"], said["eos"] = listed, f"{file}eos_token_id"
            break
    for name, key in (("bos", "bos_token_id"), ("pad", "pad_token_id")):
        if name not in found and (n := _as(int, generation.get(key), True)) is not None:
            found[name], said[name] = n, f"{GENERATION}: {key}"


def _as(wanted: type, value: object, zero: bool) -> Any:
    """`value` as the type of a fact, or None: a size is a positive int, a JSON 150000 is a fine float."""
    if wanted is int:
        return value if type(value) is int and (0 if zero else 1) <= value < MOST else None
    if wanted is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return value if isinstance(value, wanted) else None


def _config_look(config: Mapping[str, Any]) -> Look:
    """Paths in config.json; a nested text_config speaks first, but for what the model as a whole is."""
    text: Mapping[str, Any] = next((config[k] for k in NESTED if isinstance(config.get(k), Mapping)), {})

    def look(path: str) -> object:
        whole = path.startswith(("model_type", "architectures"))
        for root in (config, text) if whole else (text, config):
            value: object = root
            for step in path.split("."):
                if isinstance(value, list) and step.isdigit() and int(step) < len(value):
                    value = value[int(step)]
                else:
                    value = value.get(step) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None

    return look


def _gguf_look(metadata: Mapping[str, Any]) -> Look:
    """GGUF keys; a list of strings counts, a list of numbers that are all alike is that number, others are tuples."""

    def look(key: str) -> object:
        value = metadata.get(key)
        if isinstance(value, Scalar):
            return value.value
        if not isinstance(value, Array):
            return None
        if key == "tokenizer.ggml.tokens":
            return len(value)
        if len(value) > 1 << 16:
            return None
        values = tuple(value)
        return values[0] if len(set(values)) == 1 and not isinstance(values[0], bool) else values

    return look


def _generation(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = checkpoint.companions.get(GENERATION)
    return read_object(path, GENERATION) if path is not None else {}
