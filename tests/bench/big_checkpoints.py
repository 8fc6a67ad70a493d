"""Synthetic gpt-oss folders with the layers of gpt-oss-20b, written as fast as memory takes them.

Experts hold what trained ones look like to a converter: Gaussian BF16 weights of scale 0.02, or random MXFP4 codes with
the scale bytes of such weights. Values repeat every 16 million, which no converter notices.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "tiny-gpt-oss" / "hf"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
POOL = 1 << 24
"""Bytes of random data that tensors are cut from, over and over."""


@dataclass(frozen=True)
class Size:
    """What is asked for; everything else is gpt-oss-20b's."""

    layers: int = 2
    experts: int = 32
    vocab: int = 4096
    hidden: int = 2880
    intermediate: int = 2880
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64


Tensor = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype, shape."""


def tensors(size: Size, experts_format: str) -> list[Tensor]:
    """Every tensor of an HF folder; `experts_format` is "mxfp4" or "bf16"."""
    h, q, kv = size.hidden, size.heads * size.head_dim, size.kv_heads * size.head_dim
    out: list[Tensor] = [("model.embed_tokens.weight", "BF16", (size.vocab, h)), ("model.norm.weight", "BF16", (h,))]
    for layer in range(size.layers):
        at = f"model.layers.{layer}."
        shapes = {
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
            "self_attn.q_proj.weight": (q, h),
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, h),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (h, q),
            "self_attn.o_proj.bias": (h,),
            "self_attn.sinks": (size.heads,),
            "mlp.router.weight": (size.experts, h),
            "mlp.router.bias": (size.experts,),
            "mlp.experts.gate_up_proj_bias": (size.experts, 2 * size.intermediate),
            "mlp.experts.down_proj_bias": (size.experts, h),
        }
        out += [(at + name, "BF16", shape) for name, shape in shapes.items()]
        for name, rows, k in (("gate_up_proj", 2 * size.intermediate, h), ("down_proj", h, size.intermediate)):
            out += _expert_tensors(f"{at}mlp.experts.{name}", size.experts, rows, k, experts_format)
    out.append(("lm_head.weight", "BF16", (size.vocab, h)))
    return out


def _expert_tensors(name: str, experts: int, rows: int, k: int, experts_format: str) -> list[Tensor]:
    if experts_format == "bf16":
        return [(name, "BF16", (experts, k, rows))]  # transposed, as transformers holds them
    return [
        (name + "_blocks", "U8", (experts, rows, k // 32, 16)),
        (name + "_scales", "U8", (experts, rows, k // 32)),
    ]


def write_folder(folder: Path, size: Size, experts_format: str, tokenizer: Path = FIXTURE) -> int:
    """Write an HF folder of one safetensors file and return the bytes of its tensors."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    shutil.copyfile(FIXTURE / "generation_config.json", folder / "generation_config.json")
    shutil.copyfile(FIXTURE / "chat_template.jinja", folder / "chat_template.jinja")
    (folder / "config.json").write_text(json.dumps(config(size, experts_format), indent=2, sort_keys=True), "utf-8")
    return _write_safetensors(folder / "model.safetensors", tensors(size, experts_format))


def config(size: Size, experts_format: str) -> dict[str, object]:
    """The fixture's config.json with gpt-oss-20b's sizes."""
    out = json.loads((FIXTURE / "config.json").read_text("utf-8"))
    out |= {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_local_experts": size.experts,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "vocab_size": size.vocab,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "sliding_window": 128,
        "initial_context_length": 4096,
        "max_position_embeddings": 131072,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(size.layers)],
    }
    out["rope_scaling"] |= {"factor": 32.0, "original_max_position_embeddings": 4096}
    if experts_format == "bf16":
        del out["quantization_config"]
        out["dtype"] = "bfloat16"
    return out


def _write_safetensors(path: Path, rows: list[Tensor]) -> int:
    header, at = {}, 0
    for name, dtype, shape in rows:
        nbytes = math.prod(shape) * {"BF16": 2, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pools = _pools()
    with path.open("wb", buffering=0) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in rows:
            kind = "scales" if name.endswith("_scales") else dtype
            left = math.prod(shape) * pools[kind].itemsize
            while left:
                left -= f.write(memoryview(pools[kind]).cast("B")[:left])
    return at


def _pools() -> dict[str, NDArray[np.generic]]:
    """Random data for each kind of tensor: whole elements, a length that shares no factor with a row."""
    rng = np.random.default_rng(20)
    floats = (rng.standard_normal(POOL // 2 - 1, np.float32) * np.float32(0.02)).view(np.uint32)
    return {
        "BF16": ((floats + 0x8000) >> 16).astype(np.uint16),
        "U8": rng.integers(0, 256, POOL - 1, np.uint8),
        "scales": rng.integers(117, 123, POOL - 1, np.uint8),
    }


def main() -> None:
    """What the benchmarks call, in a process of its own: FOLDER {mxfp4,bf16} --layers 2 ..."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("experts_format", choices=("mxfp4", "bf16"))
    parser.add_argument("--tokenizer", type=Path, default=FIXTURE)
    for name in ("layers", "experts", "vocab"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    asked = parser.parse_args()
    size = Size(asked.layers, asked.experts, asked.vocab)
    write_folder(asked.folder, size, asked.experts_format, asked.tokenizer)


if __name__ == "__main__":
    main()
