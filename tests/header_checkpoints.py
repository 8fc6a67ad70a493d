"""gpt-oss-20b and gpt-oss-120b at full size, as real headers over holes: 14 and 65 GB that take a few MB of disk.

    write_headers(tmp_path / "120b", "120b")                                   # 15 shards, an index, config.json ...
    write_headers(tmp_path / "20b", "20b", container="gguf")                   # 20b/gpt-oss-20b.gguf
    write_headers(tmp_path / "wide", "20b", format="bf16")                     # as a dequantized one is saved

Names, shapes, dtypes and file names are the published ones; every value reads as zero. A GGUF carries a vocabulary of
the real size. Written with json and struct alone, so that nothing of ckpttool takes part.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_SHARD = 4_800_000_000
"""OpenAI's limit for a shard."""
H, I, V, HEADS, KV, D = 2880, 2880, 201_088, 64, 8, 64  # noqa: E741
LAYERS = {"20b": 24, "120b": 36}
EXPERTS = {"20b": 32, "120b": 128}
NBYTES = {"BF16": 2, "U8": 1, "F32": 4}
MERGES = 446_189

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, dtype, shape in torch's order."""


def write_headers(folder: Path, size: str = "20b", container: str = "safetensors", format: str = "mxfp4") -> Path:
    """Write the checkpoint into `folder`, which is made, and return what commands take as SOURCE.

    `size`: "20b" or "120b". `container`: "safetensors" or "gguf". `format`, the experts': "mxfp4" or "bf16".
    """
    folder.mkdir(parents=True)
    if container == "gguf":
        path = folder / f"gpt-oss-{size}.gguf"
        _write_gguf(path, size, format)
        return path
    config = published_config(size)
    if format == "bf16":
        del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    generation = {"bos_token_id": 199998, "do_sample": True, "eos_token_id": [200002, 199999, 200012]}
    generation |= {"pad_token_id": 199999, "transformers_version": "4.55.0.dev0"}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), "utf-8")
    shards = list(_shards(sorted(hf_tensors(size, format))))
    first, last = (0, len(shards) - 1) if format == "mxfp4" else (1, len(shards))  # OpenAI counts from 0
    weight_map = {}
    for number, rows in enumerate(shards, first):
        name = f"model-{number:05d}-of-{last:05d}.safetensors"
        write_safetensors(folder / name, rows)
        weight_map |= {row[0]: name for row in rows}
    total = sum(map(_nbytes, hf_tensors(size, format)))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return folder


def published_config(size: str) -> dict[str, Any]:
    """config.json of openai/gpt-oss-20b or -120b."""
    layers = LAYERS[size]
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": D,
        "hidden_act": "silu",
        "hidden_size": H,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": I,
        "layer_types": [("sliding_attention", "full_attention")[n % 2] for n in range(layers)],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV,
        "num_local_experts": EXPERTS[size],
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {"modules_to_not_convert": kept, "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": V,
    }


def hf_tensors(size: str, format: str) -> Iterator[Tensor]:
    """Every tensor of the Hugging Face folder: 459 (20b) and 687 (120b), or 411 and 615 in BF16."""
    experts = EXPERTS[size]
    for name, shape in (("model.embed_tokens", (V, H)), ("model.norm", (H,)), ("lm_head", (V, H))):
        yield f"{name}.weight", "BF16", shape
    plain: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (H,), "post_attention_layernorm.weight": (H,)}
    for name, out, k in (("q", HEADS * D, H), ("k", KV * D, H), ("v", KV * D, H), ("o", H, HEADS * D)):
        plain |= {f"self_attn.{name}_proj.weight": (out, k), f"self_attn.{name}_proj.bias": (out,)}
    plain |= {"self_attn.sinks": (HEADS,), "mlp.router.weight": (experts, H), "mlp.router.bias": (experts,)}
    plain |= {"mlp.experts.gate_up_proj_bias": (experts, 2 * I), "mlp.experts.down_proj_bias": (experts, H)}
    for layer in range(LAYERS[size]):
        for name, shape in plain.items():
            yield f"model.layers.{layer}.{name}", "BF16", shape
        for name, rows, k in (("gate_up_proj", 2 * I, H), ("down_proj", H, I)):
            full = f"model.layers.{layer}.mlp.experts.{name}"
            if format == "bf16":
                yield full, "BF16", (experts, k, rows)  # transposed, as transformers holds them
            else:
                yield full + "_blocks", "U8", (experts, rows, k // 32, 16)
                yield full + "_scales", "U8", (experts, rows, k // 32)


def _nbytes(row: Tensor) -> int:
    _, dtype, shape = row
    return math.prod(shape) // 32 * 17 if dtype == "MXFP4" else math.prod(shape) * NBYTES[dtype]


def _shards(rows: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    at = 0
    for row in rows:
        if at + _nbytes(row) > MAX_SHARD:
            yield shard
            shard, at = [], 0
        shard.append(row)
        at += _nbytes(row)
    yield shard


def write_safetensors(path: Path, rows: Iterable[Tensor]) -> None:
    """A safetensors file of these tensors, whose data is one hole; dtypes by their size in `NBYTES`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for row in sorted(rows, key=lambda r: (-NBYTES[r[1]], r[0])):  # as the safetensors package orders them
        header[row[0]] = {"dtype": row[1], "shape": row[2], "data_offsets": [at, at + _nbytes(row)]}
        at += _nbytes(row)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(path, struct.pack("<Q", len(text)) + text, at)


def _write(path: Path, header: bytes, nbytes: int) -> None:
    with path.open("wb") as f:
        f.write(header)
        f.truncate(len(header) + nbytes)


GGML = {"F32": 0, "MXFP4": 39, "BF16": 30}
"""Types' numbers in the file."""


def gguf_tensors(size: str, format: str) -> Iterator[Tensor]:
    """Every tensor as llama.cpp's converter makes it with --outtype auto, in its order: MXFP4 first."""
    experts, wide = EXPERTS[size], format.upper()
    names = [f"blk.{n}." for n in sorted(range(LAYERS[size]), key=str)]
    stacks = [("down", H, I), ("gate", I, H), ("up", I, H)]
    big = [(f"{at}ffn_{name}_exps.weight", wide, (experts, r, k)) for at in names for name, r, k in stacks]
    yield from big
    yield from (("output.weight", "BF16", (V, H)), ("token_embd.weight", "BF16", (V, H)))
    for at in names:
        for name in ("attn_norm", "post_attention_norm"):
            yield f"{at}{name}.weight", "F32", (H,)
        for name, rows, _ in stacks:
            yield f"{at}ffn_{name}_exps.bias", "F32", (experts, rows)
        yield f"{at}ffn_gate_inp.weight", "F32", (experts, H)
        yield f"{at}ffn_gate_inp.bias", "F32", (experts,)
        for name, out, k in (("q", HEADS * D, H), ("k", KV * D, H), ("v", KV * D, H), ("output", H, HEADS * D)):
            yield f"{at}attn_{name}.weight", "BF16", (out, k)
            yield f"{at}attn_{name}.bias", "F32", (out,)
        yield f"{at}attn_sinks.weight", "F32", (HEADS,)
    yield "output_norm.weight", "F32", (H,)


def _write_gguf(path: Path, size: str, format: str) -> None:
    rows, values = list(gguf_tensors(size, format)), list(_key_values(size, format))
    pieces = [struct.pack("<4sIQQ", b"GGUF", 3, len(rows), len(values)), *values]
    at = 0
    for row in rows:
        name, dtype, shape = row
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        pieces.append(_text(name) + dims + struct.pack("<IQ", GGML[dtype], at))
        at += -(-_nbytes(row) // 32) * 32
    header = b"".join(pieces)
    _write(path, header + bytes(-len(header) % 32), at)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _key_values(size: str, format: str) -> Iterator[bytes]:
    """The key-values of llama.cpp's converter, in its order, each as its bytes."""
    arch = "gpt-oss."
    numbers: dict[str, int | float | str] = {
        "general.architecture": "gpt-oss", "general.type": "model", "general.name": f"Gpt Oss {size}",
        "general.basename": "gpt-oss", "general.size_label": size.upper(),
        arch + "block_count": LAYERS[size], arch + "context_length": 131072, arch + "embedding_length": H,
        arch + "feed_forward_length": I, arch + "attention.head_count": HEADS, arch + "attention.head_count_kv": KV,
        arch + "rope.scaling.type": "yarn", arch + "rope.scaling.factor": 32.0,
        arch + "rope.scaling.original_context_length": 4096, arch + "rope.scaling.yarn_beta_fast": 32.0,
        arch + "rope.scaling.yarn_beta_slow": 1.0, arch + "rope.freq_base": 150000.0,
        arch + "attention.layer_norm_rms_epsilon": 1e-5, arch + "expert_count": EXPERTS[size],
        arch + "expert_used_count": 4, arch + "attention.key_length": D, arch + "attention.value_length": D,
        "general.file_type": 38 if format == "mxfp4" else 32, arch + "attention.sliding_window": 128,
        arch + "expert_feed_forward_length": I, "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-4o",
    }  # fmt: skip
    yield from (_text(key) + _scalar(value) for key, value in numbers.items())
    types = [1] * 199_998 + [3] * 21 + [5] * 1_069
    strings = struct.pack("<II", 9, 8)
    tokens = b"".join(_text(f"Ġword{n}") for n in range(V))
    yield _text("tokenizer.ggml.tokens") + strings + struct.pack("<Q", V) + tokens
    yield _text("tokenizer.ggml.token_type") + struct.pack(f"<IIQ{V}i", 9, 5, V, *types)
    merges = b"".join(_text(f"Ġw{n} ord{n}") for n in range(MERGES))
    yield _text("tokenizer.ggml.merges") + strings + struct.pack("<Q", MERGES) + merges
    ids = {"bos": 199998, "eos": 200002, "padding": 199999}
    yield from (_text(f"tokenizer.ggml.{name}_token_id") + _scalar(n) for name, n in ids.items())
    yield _text("tokenizer.chat_template") + _scalar("{{ messages }}")


def _scalar(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
