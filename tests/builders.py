"""Random gpt-oss checkpoints of any size in any dialect, written with numpy, safetensors and gguf alone.

    model = Model(Sizes(layers=11), seed=1)
    write(model, tmp_path / "a", "hf", shards=3)
    write(model, tmp_path / "b", "hf-bf16")            # the same weights: MXFP4's values are BF16's too
    write_gguf(model, tmp_path / "c.gguf", experts="MXFP4")

Experts are random MXFP4 bytes whose values BF16 holds, so that every dialect of a model says the same. Nothing of
ckpttool takes part but the arch's table, from which `metadata_cases` makes the tokenizer. `change` edits the tensors
(a dict of `Tensor` by name) before they are written, to make a checkpoint that is wrong in one place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import metadata_cases
import ml_dtypes
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U8": np.uint8}


class Tensor(NamedTuple):
    """A stored tensor: BF16 as the uint16 of its bits, the others as numpy has them."""

    dtype: str
    array: NDArray[Any]


class Packed(NamedTuple):
    """MXFP4 in Hugging Face's packing: blocks uint8 [..., G, 16], scales uint8 [..., G]."""

    blocks: NDArray[np.uint8]
    scales: NDArray[np.uint8]


Tensors = dict[str, Tensor]
Change = Callable[[Tensors], object]


@dataclass(frozen=True)
class Sizes:
    """gpt-oss' sizes; hidden and intermediate differ, so that no transposed tensor passes unseen."""

    layers: int = 2
    experts: int = 3
    hidden: int = 64
    intermediate: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 400

    @property
    def config(self) -> dict[str, Any]:
        """config.json as published, for MXFP4 experts."""
        return metadata_cases.CONFIG | {
            "head_dim": self.head_dim,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "layer_types": [("sliding_attention", "full_attention")[n % 2] for n in range(self.layers)],
            "num_attention_heads": self.heads,
            "num_experts_per_tok": min(2, self.experts),
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "swiglu_limit": 7.0,
            "vocab_size": self.vocab,
        }

    @property
    def openai_config(self) -> dict[str, Any]:
        """original/config.json."""
        return {
            "num_hidden_layers": self.layers,
            "num_experts": self.experts,
            "experts_per_token": min(2, self.experts),
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "swiglu_limit": 7.0,
            "head_dim": self.head_dim,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "sliding_window": 128,
            "initial_context_length": 4096,
            "rope_theta": 150000,
            "rope_scaling_factor": 32.0,
            "rope_ntk_alpha": 1,
            "rope_ntk_beta": 32,
        }


@dataclass(frozen=True)
class Model:
    """A random model: `plain` parts as BF16 bits, expert matrices `packed`, by canonical part name."""

    sizes: Sizes = Sizes()
    seed: int = 0

    @cached_property
    def plain(self) -> dict[str, NDArray[np.uint16]]:
        """Every part but the experts' matrices."""
        s, rng = self.sizes, np.random.default_rng(self.seed)
        shapes: dict[str, tuple[int, ...]] = {
            "embed": (s.vocab, s.hidden), "norm": (s.hidden,), "head": (s.vocab, s.hidden),
        }  # fmt: skip
        for n in range(s.layers):
            shapes |= {f"layer.{n}.{name}": shape for name, shape in self._layer_shapes().items()}
        return {name: bf16(rng.normal(0, 0.02, shape).astype(np.float32)) for name, shape in shapes.items()}

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        s = self.sizes
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        return {
            "attn_norm": (s.hidden,), "mlp_norm": (s.hidden,), "sinks": (s.heads,),
            "q": (q, s.hidden), "q.bias": (q,), "k": (kv, s.hidden), "k.bias": (kv,),
            "v": (kv, s.hidden), "v.bias": (kv,), "o": (s.hidden, q), "o.bias": (s.hidden,),
            "router": (s.experts, s.hidden), "router.bias": (s.experts,),
            "gate.bias": (s.experts, s.intermediate), "up.bias": (s.experts, s.intermediate),
            "down.bias": (s.experts, s.hidden),
        }  # fmt: skip

    @cached_property
    def packed(self) -> dict[str, Packed]:
        """gate, up [E, I, H] and down [E, H, I]."""
        s, rng = self.sizes, np.random.default_rng([self.seed, 1])
        fan_in = (s.intermediate, s.hidden)
        shapes = {"gate": fan_in, "up": fan_in, "down": (s.hidden, s.intermediate)}
        out = {}
        for n in range(s.layers):
            for name, (rows, k) in shapes.items():
                shape = (s.experts, rows, k // 32)
                blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
                out[f"layer.{n}.{name}"] = Packed(blocks, rng.integers(112, 126, shape, np.uint8))
        return out

    def values(self, part: str) -> NDArray[np.float32]:
        """A part decoded, in its canonical shape."""
        return decoded(self.packed[part]) if part in self.packed else widened(self.plain[part])


def bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of BF16, rounded to nearest even; for finite values."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """BF16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def decoded(w: Packed) -> NDArray[np.float32]:
    """[..., K] float32 of MXFP4."""
    codes = np.stack([w.blocks & 15, w.blocks >> 4], -1).reshape(*w.scales.shape, 32)
    values = E2M1[codes] * np.exp2(w.scales.astype(np.float32) - 127)[..., None]
    return values.reshape(*w.scales.shape[:-1], -1).astype(np.float32)


def ggml_blocks(w: Packed) -> NDArray[np.uint8]:
    """MXFP4 as ggml's structs, uint8 [..., G, 17]: the scale, then byte j holds element j low and j+16 high."""
    codes = np.stack([w.blocks & 15, w.blocks >> 4], -1).reshape(*w.scales.shape, 32)
    return np.concatenate([w.scales[..., None], codes[..., :16] | codes[..., 16:] << 4], -1).astype(np.uint8)


def interleaved(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """[E, R, ...] twice as [E, 2R, ...], rows taking turns."""
    return np.stack([a, b], 2).reshape(a.shape[0], 2 * a.shape[1], *a.shape[2:])


# Names, by hand: the tests hold ckpttool's own tables against these.

HF_LAYER = {
    "attn_norm": "input_layernorm.weight", "q": "self_attn.q_proj.weight", "q.bias": "self_attn.q_proj.bias",
    "k": "self_attn.k_proj.weight", "k.bias": "self_attn.k_proj.bias", "v": "self_attn.v_proj.weight",
    "v.bias": "self_attn.v_proj.bias", "o": "self_attn.o_proj.weight", "o.bias": "self_attn.o_proj.bias",
    "sinks": "self_attn.sinks", "mlp_norm": "post_attention_layernorm.weight", "router": "mlp.router.weight",
    "router.bias": "mlp.router.bias",
}  # fmt: skip
OPENAI_LAYER = {
    "attn_norm": "attn.norm.scale", "sinks": "attn.sinks", "o": "attn.out.weight", "o.bias": "attn.out.bias",
    "mlp_norm": "mlp.norm.scale", "router": "mlp.gate.weight", "router.bias": "mlp.gate.bias",
}  # fmt: skip
GGUF_LAYER = {
    "attn_norm": "attn_norm.weight", "q": "attn_q.weight", "q.bias": "attn_q.bias", "k": "attn_k.weight",
    "k.bias": "attn_k.bias", "v": "attn_v.weight", "v.bias": "attn_v.bias", "o": "attn_output.weight",
    "o.bias": "attn_output.bias", "sinks": "attn_sinks.weight", "mlp_norm": "post_attention_norm.weight",
    "router": "ffn_gate_inp.weight", "router.bias": "ffn_gate_inp.bias", "gate": "ffn_gate_exps.weight",
    "gate.bias": "ffn_gate_exps.bias", "up": "ffn_up_exps.weight", "up.bias": "ffn_up_exps.bias",
    "down": "ffn_down_exps.weight", "down.bias": "ffn_down_exps.bias",
}  # fmt: skip


def tensors(model: Model, dialect: str, dtype: str = "BF16") -> Tensors:
    """The stored tensors of a safetensors dialect ("hf", "hf-bf16", "unsloth", "openai"), plain ones in `dtype`."""
    p = model.plain
    out = {}
    top = ("embedding.weight", "norm.scale", "unembedding.weight")
    if dialect != "openai":
        top = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for part, name in zip(("embed", "norm", "head"), top, strict=True):
        out[name] = _plain(p[part], dtype)
    for n in range(model.sizes.layers):
        for part, name in (OPENAI_LAYER if dialect == "openai" else HF_LAYER).items():
            prefix = f"block.{n}." if dialect == "openai" else f"model.layers.{n}."
            if dialect == "unsloth":
                name = name.replace("router.", "router.linear.")
            out[prefix + name] = _plain(p[f"layer.{n}.{part}"], dtype)
        out |= {"openai": _openai, "hf": _hf, "hf-bf16": _hf_bf16, "unsloth": _unsloth}[dialect](model, n, dtype)
    return out


def _plain(bits: NDArray[np.uint16], dtype: str) -> Tensor:
    return Tensor(dtype, bits if dtype == "BF16" else widened(bits).astype(NUMPY[dtype]))


def _fused(model: Model, n: int) -> tuple[Packed, Packed]:
    gate, up, down = (model.packed[f"layer.{n}.{name}"] for name in ("gate", "up", "down"))
    return Packed(interleaved(gate.blocks, up.blocks), interleaved(gate.scales, up.scales)), down


def _biases(model: Model, n: int, first: str, second: str, dtype: str) -> Tensors:
    p = model.plain
    fused = interleaved(p[f"layer.{n}.gate.bias"], p[f"layer.{n}.up.bias"])
    return {first: _plain(fused, dtype), second: _plain(p[f"layer.{n}.down.bias"], dtype)}


def _hf(model: Model, n: int, dtype: str) -> Tensors:
    at = f"model.layers.{n}.mlp.experts."
    out = _biases(model, n, at + "gate_up_proj_bias", at + "down_proj_bias", dtype)
    for name, w in zip(("gate_up_proj", "down_proj"), _fused(model, n), strict=True):
        out |= {f"{at}{name}_blocks": Tensor("U8", w.blocks), f"{at}{name}_scales": Tensor("U8", w.scales)}
    return out


def _hf_bf16(model: Model, n: int, dtype: str) -> Tensors:
    at = f"model.layers.{n}.mlp.experts."
    out = _biases(model, n, at + "gate_up_proj_bias", at + "down_proj_bias", dtype)
    for name, w in zip(("gate_up_proj", "down_proj"), _fused(model, n), strict=True):
        out[at + name] = _plain(bf16(decoded(w).swapaxes(1, 2)), dtype)
    return out


def _unsloth(model: Model, n: int, dtype: str) -> Tensors:
    at = f"model.layers.{n}.mlp.experts."
    whole = _biases(model, n, "gate_up_projs", "down_projs", dtype)
    out = {}
    for (name, bias), w in zip(whole.items(), _fused(model, n), strict=True):
        for e in range(model.sizes.experts):
            out[f"{at}{name}.{e}.weight"] = _plain(bf16(decoded(Packed(w.blocks[e], w.scales[e]))), dtype)
            out[f"{at}{name}.{e}.bias"] = Tensor(dtype, bias.array[e])
    return out


def _openai(model: Model, n: int, dtype: str) -> Tensors:
    p, at = model.plain, f"block.{n}."
    out = _biases(model, n, at + "mlp.mlp1_bias", at + "mlp.mlp2_bias", dtype)
    for kind, end in (("weight", ""), ("bias", ".bias")):
        qkv = np.concatenate([p[f"layer.{n}.{x}{end}"] for x in "qkv"])
        out[f"{at}attn.qkv.{kind}"] = _plain(qkv, dtype)
    for name, w in zip(("mlp1_weight", "mlp2_weight"), _fused(model, n), strict=True):
        out |= {f"{at}mlp.{name}.blocks": Tensor("U8", w.blocks), f"{at}mlp.{name}.scales": Tensor("U8", w.scales)}
    return out


def write(
    model: Model,
    folder: Path,
    dialect: str,
    *,
    dtype: str = "BF16",
    shards: int = 1,
    change: Change = lambda t: None,
    config: Mapping[str, Any] | None = None,
    side_files: bool = True,
) -> Path:
    """Write a folder. Tensors are dealt out in turn to `shards` files with an index, so that pairs lie in two of them.

    `config` replaces config.json's keys (None removes one); `side_files` are tokenizer, template, generation_config.
    """
    folder.mkdir(parents=True)
    made = {name: Tensor(t.dtype, t.array.copy()) for name, t in tensors(model, dialect, dtype).items()}
    change(made)  # copies, since the model is written again
    write_shards(folder, made, shards)
    base = model.sizes.openai_config if dialect == "openai" else model.sizes.config
    if dialect in ("hf-bf16", "unsloth"):
        base = {k: v for k, v in base.items() if k != "quantization_config"} | {"torch_dtype": "bfloat16"}
    merged = {k: v for k, v in {**base, **(config or {})}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(merged, indent=2) + "\n", "utf-8")
    if side_files and dialect != "openai":
        write_side_files(folder)
    return folder


def as_nf4(t: Tensors) -> None:
    """Unsloth's experts as bitsandbytes stores them: codes, scales, and a state that says their shape."""
    rng = np.random.default_rng(5)
    for name in [n for n in t if "_projs." in n and n.endswith(".weight")]:
        shape = t.pop(name).array.shape
        state = json.dumps({"blocksize": 64, "shape": list(shape), "quant_type": "nf4"}).encode()
        count = shape[0] * shape[1]
        t[name] = Tensor("U8", rng.integers(0, 256, (count // 2, 1), np.uint8))
        t[f"{name}.absmax"] = Tensor("F32", np.ones(count // 64, np.float32))
        t[f"{name}.quant_map"] = Tensor("F32", np.zeros(16, np.float32))
        t[f"{name}.quant_state.bitsandbytes__nf4"] = Tensor("U8", np.frombuffer(state, np.uint8))


def write_side_files(folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, chat template and generation_config.json of `metadata_cases`' model."""
    tokenizer = metadata_cases.tokenizer(metadata_cases.ARCH)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(metadata_cases.SETTINGS), "utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": [271]}), "utf-8")


def write_shards(folder: Path, made: Tensors, shards: int) -> None:
    """The tensors in `shards` files, dealt out in turn by name, with their index; one file has none."""
    if shards == 1:
        save(folder / "model.safetensors", made)
        return
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: made[n] for n in sorted(made)[i::shards]}
        save(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map, sum(t.array.nbytes for t in made.values()))


def write_index(folder: Path, weight_map: Mapping[str, object], total: object) -> None:
    """model.safetensors.index.json."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def save(path: Path, made: Tensors) -> None:
    """One safetensors file, by the reference's own serializer."""
    arrays = {n: np.ascontiguousarray(t.array) for n, t in made.items()}
    words = {n: a.view(ml_dtypes.bfloat16) if made[n].dtype == "BF16" else a for n, a in arrays.items()}
    safetensors.numpy.save_file(words, path, {"format": "pt"})


def read(path: Path) -> Tensors:
    """The tensors of a safetensors file, or of all of a folder's."""
    out: Tensors = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        data = file.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, row in json.loads(data[8:begin]).items():
            if name != "__metadata__":
                start, stop = (begin + n for n in row["data_offsets"])
                array = np.frombuffer(data[start:stop], NUMPY[row["dtype"]]).reshape(row["shape"])
                out[name] = Tensor(row["dtype"], array)
    return out


def write_gguf(
    model: Model,
    path: Path,
    *,
    experts: str = "MXFP4",
    plain: str = "BF16",
    keys: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, tuple[str, NDArray[Any]]]], object] = lambda t: None,
) -> Path:
    """A GGUF by gguf-py: `experts` "MXFP4", "BF16" or "F32", other matrices `plain` ("BF16", "F16", "F32").

    Vectors are F32. `keys` are further key-values, as text, bool, int (u32), float (f32) or list; None leaves one
    of ours out. `change` edits (ggml type, array) by name; MXFP4's and BF16's arrays are uint8 [..., bytes of a row].
    """
    import gguf

    writer = gguf.GGUFWriter(path, "gpt-oss")
    _key_values(writer, model, dict(keys or {}))
    rows: dict[str, tuple[str, NDArray[Any]]] = {}
    for part, name in {"embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}.items():
        rows[name] = _gguf_plain(model.plain[part], plain, name)
    for n in range(model.sizes.layers):
        for part, suffix in GGUF_LAYER.items():
            name, key = f"blk.{n}.{suffix}", f"layer.{n}.{part}"
            if key in model.packed:
                rows[name] = _gguf_expert(model.packed[key], experts)
            else:
                rows[name] = _gguf_plain(model.plain[key], plain, name)
    rows = {name: (kind, array.copy()) for name, (kind, array) in rows.items()}
    change(rows)  # copies, since the model is written again
    for name, (kind, array) in rows.items():
        raw = gguf.GGMLQuantizationType[kind] if kind not in ("F32", "F16") else None
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_plain(bits: NDArray[np.uint16], plain: str, name: str) -> tuple[str, NDArray[Any]]:
    if bits.ndim == 1 or "bias" in name or "ffn_gate_inp" in name:
        return "F32", widened(bits)
    return (plain, bits.view(np.uint8)) if plain == "BF16" else (plain, widened(bits).astype(NUMPY[plain]))


def _gguf_expert(w: Packed, experts: str) -> tuple[str, NDArray[Any]]:
    if experts == "MXFP4":
        blocks = ggml_blocks(w)
        return "MXFP4", blocks.reshape(*blocks.shape[:-2], -1)
    values = decoded(w)
    return ("BF16", bf16(values).view(np.uint8)) if experts == "BF16" else ("F32", values)


def _key_values(writer: Any, model: Model, more: dict[str, Any]) -> None:
    s, config = model.sizes, model.sizes.config
    rope = config["rope_scaling"]
    ours: dict[str, Any] = {
        "general.name": "Tiny",
        "gpt-oss.block_count": s.layers,
        "gpt-oss.context_length": config["max_position_embeddings"],
        "gpt-oss.embedding_length": s.hidden,
        "gpt-oss.feed_forward_length": s.intermediate,
        "gpt-oss.attention.head_count": s.heads,
        "gpt-oss.attention.head_count_kv": s.kv_heads,
        "gpt-oss.rope.scaling.type": rope["rope_type"],
        "gpt-oss.rope.scaling.factor": rope["factor"],
        "gpt-oss.rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "gpt-oss.rope.scaling.yarn_beta_fast": rope["beta_fast"],
        "gpt-oss.rope.scaling.yarn_beta_slow": rope["beta_slow"],
        "gpt-oss.rope.freq_base": float(config["rope_theta"]),
        "gpt-oss.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "gpt-oss.expert_count": s.experts,
        "gpt-oss.expert_used_count": config["num_experts_per_tok"],
        "gpt-oss.attention.key_length": s.head_dim,
        "gpt-oss.attention.value_length": s.head_dim,
        "gpt-oss.attention.sliding_window": config["sliding_window"],
        "gpt-oss.expert_feed_forward_length": s.intermediate,
        "general.file_type": 38,
        "general.quantization_version": 2,
        "tokenizer.ggml.bos_token_id": 268,
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        "tokenizer.chat_template": "{{ messages[0].content }}",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
    }
    add = {
        str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        list: writer.add_array,
    }  # fmt: skip
    for key, value in {**ours, **more}.items():
        if value is not None:
            add[type(value)](key, value)
    specials = metadata_cases.SPECIAL
    vocab = metadata_cases.tokenizer(metadata_cases.ARCH)["model"]["vocab"]
    texts = [*vocab, *specials]
    types = [1] * len(vocab) + [3] * len(specials) + [5] * (s.vocab - len(texts))
    texts += [f"[PAD{i}]" for i in range(len(texts), s.vocab)]
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(metadata_cases.MERGES)
