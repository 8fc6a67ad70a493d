"""Small gpt-oss folders with differing companions, and llama.cpp's converter run over all of them in one process."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llamacpp
import numpy as np
import safetensors.numpy

import ckpttool.archs

ARCH: dict[str, Any] = tomllib.loads((Path(ckpttool.archs.__file__).parent / "gpt_oss.toml").read_text("utf-8"))
H, I, E, L, N, K, D, V = 64, 32, 2, 1, 2, 1, 32, 400  # noqa: E741
MERGES = ["Ġ t", "h e", "Ġ a", "i n", "Ġt he", "r e", "o n", '" "', "\\ n", "] ,", '" :', "Ġ Ġ"]
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>", "<|reserved_9|>"]
Change = Callable[[dict[str, Any]], None]

CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "eos_token_id": 270,
    "head_dim": D,
    "hidden_size": H,
    "intermediate_size": I,
    "layer_types": ["sliding_attention"],
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": N,
    "num_experts_per_tok": 1,
    "num_hidden_layers": L,
    "num_key_value_heads": K,
    "num_local_experts": E,
    "pad_token_id": 269,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
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
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "vocab_size": V,
}
SETTINGS = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "pad_token": SPECIAL[1]}


def alphabet() -> list[str]:
    """GPT-2's byte characters in gpt-oss' order of ids."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def tokenizer(arch: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json of gpt-oss' scheme with 256 bytes, some merges, and special tokens behind them."""
    out: dict[str, Any] = json.loads(re.sub(r"@\w+@", "null", arch["tokenizer"]["json"]))
    vocab = {c: i for i, c in enumerate(alphabet())}
    pairs = [m.split(" ") for m in MERGES]
    for a, b in pairs:
        vocab[a + b] = len(vocab)
    out["model"] |= {"vocab": vocab, "merges": [list(p) for p in pairs]}
    out["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = arch["tokenizer"]["pre"]["gpt-4o"]
    flags = arch["tokenizer"]["added"]
    out["added_tokens"] = [{"id": len(vocab) + i, "content": t, **flags} for i, t in enumerate(SPECIAL)]
    return out


def weights(mxfp4: bool, vocab: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random tensors of the hf (MXFP4) or hf-bf16 dialect; F16 stands for BF16, which numpy lacks."""
    rng = np.random.default_rng(7)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, H),
        "lm_head.weight": (vocab, H),
        "model.norm.weight": (H,),
        layer + "input_layernorm.weight": (H,),
        layer + "post_attention_layernorm.weight": (H,),
        layer + "self_attn.sinks": (N,),
        layer + "mlp.router.weight": (E, H),
        layer + "mlp.router.bias": (E,),
        layer + "mlp.experts.gate_up_proj_bias": (E, 2 * I),
        layer + "mlp.experts.down_proj_bias": (E, H),
    }
    for name, rows, columns in (("q", N * D, H), ("k", K * D, H), ("v", K * D, H), ("o", H, N * D)):
        shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, columns)
        shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
    if not mxfp4:
        shapes[layer + "mlp.experts.gate_up_proj"] = (E, H, 2 * I)
        shapes[layer + "mlp.experts.down_proj"] = (E, I, H)
    out = {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}
    if mxfp4:
        for name, rows, columns in (("gate_up", 2 * I, H), ("down", H, I)):
            blocks = (E, rows, columns // 32, 16)
            out[f"{layer}mlp.experts.{name}_proj_blocks"] = rng.integers(0, 256, blocks).astype(np.uint8)
            out[f"{layer}mlp.experts.{name}_proj_scales"] = rng.integers(90, 130, blocks[:3]).astype(np.uint8)
    return out


def folder(
    path: Path,
    arch: dict[str, Any],
    *,
    config: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = SETTINGS,
    change: Change = lambda t: None,
    compact: bool = False,
    files: dict[str, str] | None = None,
) -> Path:
    """A tiny HF folder; `change` edits its tokenizer.json, `files` are further texts."""
    path.mkdir(parents=True)
    config = CONFIG if config is None else config
    (path / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    made = tokenizer(arch)
    change(made)
    style: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    (path / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False, **style), "utf-8")
    if settings is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    for name, text in (files or {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(text.encode())
    tensors = weights("quantization_config" in config, config["vocab_size"])
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


def gguf_shapes(vocab: int = V) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of the GGUF, as far as they are counted."""
    blk = "blk.0."
    rows: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (vocab, H)), ("output.weight", (vocab, H))]
    rows += [("output_norm.weight", (H,)), (blk + "attn_norm.weight", (H,)), (blk + "post_attention_norm.weight", (H,))]
    for name, out, columns in (("q", N * D, H), ("k", K * D, H), ("v", K * D, H), ("output", H, N * D)):
        rows += [(f"{blk}attn_{name}.weight", (out, columns)), (f"{blk}attn_{name}.bias", (out,))]
    rows += [
        (blk + "attn_sinks.weight", (N,)),
        (blk + "ffn_gate_inp.weight", (E, H)),
        (blk + "ffn_gate_inp.bias", (E,)),
    ]
    for name, out, columns in (("gate", I, H), ("up", I, H), ("down", H, I)):
        rows += [(f"{blk}ffn_{name}_exps.weight", (E, out, columns)), (f"{blk}ffn_{name}_exps.bias", (E, out))]
    return rows


_DRIVER = """
import json, sys
root, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [root, root + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import TextModel
look_up = TextModel.get_vocab_base_pre
for folder, options, published in jobs:
    TextModel.get_vocab_base_pre = look_up if published else lambda self, tokenizer: "gpt-4o"
    sys.argv = ["convert_hf_to_gguf.py", folder, *options]
    convert_hf_to_gguf.main()
"""


def convert_all(jobs: list[tuple[Path, list[str], bool]]) -> None:
    """Run the converter over folders with options, in one process; each GGUF gets its default name in its folder.

    The last field says whether the tokenizer is published; else the converter's look-up of its name is answered for it.
    """
    words = json.dumps([(str(folder), options, published) for folder, options, published in jobs])
    environment = {**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(llamacpp.source_root()), words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def key_values(path: Path, nbytes: int) -> tuple[int, bytes]:
    """How many key-values a GGUF has, and the first `nbytes` of them."""
    with path.open("rb") as f:
        magic, version, _, count = struct.unpack("<4sIQQ", f.read(24))
        assert (magic, version) == (b"GGUF", 3)
        return count, f.read(nbytes)
