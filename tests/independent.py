"""A checkpoint of gpt-oss read without ckpttool: official header readers, names and layouts written out by hand.

Every dialect comes out as the same parts: experts [E, rows, K], gate and up apart, q, k and v apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
from numpy.typing import NDArray

Array = NDArray[Any]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Stored:
    """A stored tensor: the container's dtype, the shape in torch order, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> Array:
        """F32, F16 and BF16 as float32, bit for bit."""
        if self.dtype == "BF16":
            wide = np.frombuffer(self.data, "<u2").astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32).reshape(self.shape)
        kind = {"F32": "<f4", "F16": "<f2"}[self.dtype]
        return np.frombuffer(self.data, kind).astype(np.float32).reshape(self.shape)

    def bytes_(self) -> Array:
        """U8 as it is."""
        assert self.dtype == "U8"
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)


@dataclass(frozen=True)
class Mxfp4:
    """Codes [..., K], one a byte and in order, and scale bytes [..., K/32]."""

    codes: Array
    scales: Array

    def floats(self) -> Array:
        """Values in float32; code 8 is -0.0, scale 255 NaN."""
        magnitude = E2M1[self.codes & 7].reshape(*self.scales.shape, 32).astype(np.float64)
        factor = np.ldexp(1.0, self.scales.astype(np.int64) - 127)
        factor = np.where(self.scales == 255, np.nan, factor)[..., None]
        signed = np.copysign(magnitude * factor, np.where(self.codes & 8, -1.0, 1.0).reshape(magnitude.shape))
        with np.errstate(over="ignore", invalid="ignore"):
            return signed.astype(np.float32).reshape(self.codes.shape)

    def __getitem__(self, index: Any) -> Mxfp4:
        return Mxfp4(self.codes[index], self.scales[index])


Part = Array | Mxfp4


def floats(part: Part) -> Array:
    return part.floats() if isinstance(part, Mxfp4) else part


def bits(part: Part) -> Array:
    """The values' bits, so that -0.0 and NaN payloads count."""
    return np.ascontiguousarray(floats(part)).view(np.uint32)


def same(a: Part, b: Part) -> bool:
    """Equal byte for byte where both are MXFP4, else value for value, sign of zero included."""
    if isinstance(a, Mxfp4) and isinstance(b, Mxfp4):
        return np.array_equal(a.codes, b.codes) and np.array_equal(a.scales, b.scales)
    return np.array_equal(bits(a), bits(b))


def stored(path: Path) -> dict[str, Stored]:
    """Every tensor of a folder of safetensors, or of one GGUF (or a split set's first)."""
    if path.suffix == ".gguf":
        return _stored_gguf(path)
    out = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, row in safetensors.deserialize(file.read_bytes()):
            assert name not in out
            out[name] = Stored(row["dtype"], tuple(row["shape"]), bytes(row["data"]))
    return out


def _stored_gguf(path: Path) -> dict[str, Stored]:
    files = [path]
    if "-00001-of-" in path.name:
        stem, _, rest = path.name.partition("-00001-of-")
        files = sorted(path.parent.glob(f"{stem}-*-of-{rest}"))
    out = {}
    for file in files:
        for t in gguf.GGUFReader(file).tensors:
            shape = tuple(int(n) for n in reversed(t.shape))
            out[t.name] = Stored(t.tensor_type.name, shape, t.data.tobytes())
    return out


def _pairs(blocks: Array, scales: Array) -> Mxfp4:
    """`_blocks` [..., G, 16] and `_scales` [..., G]: element 2i is the low nibble of byte i."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1)
    return Mxfp4(codes.reshape(*blocks.shape[:-2], -1), scales)


def _ggml(t: Stored) -> Part:
    """A GGUF tensor: MXFP4 by its codes, plain numbers as they are, the rest as the gguf package decodes it."""
    if t.dtype in ("F32", "F16", "BF16"):
        return t.floats()
    if t.dtype != "MXFP4":
        kind = gguf.GGMLQuantizationType[t.dtype]
        raw = np.frombuffer(t.data, np.uint8).reshape(*t.shape[:-1], -1)
        decoded: Array = gguf.dequantize(raw, kind).reshape(t.shape)
        return decoded
    structs = np.frombuffer(t.data, np.uint8).reshape(*t.shape[:-1], -1, 17)
    codes = np.concatenate([structs[..., 1:] & 15, structs[..., 1:] >> 4], axis=-1)
    return Mxfp4(codes.reshape(t.shape), structs[..., 0])


def dialect_of(names: Mapping[str, Any]) -> str:
    if "token_embd.weight" in names:
        return "gguf"
    if "embedding.weight" in names:
        return "openai"
    return "unsloth" if "model.layers.0.mlp.router.linear.weight" in names else "hf"


def parts(path: Path, config: Mapping[str, int] | None = None) -> dict[str, Part]:
    """Every part of the checkpoint at `path`; `config` (heads and head_dim) cuts OpenAI's qkv."""
    found = stored(path)
    dialect = dialect_of(found)
    made = {"gguf": _gguf_parts, "openai": _openai_parts, "unsloth": _hf_parts, "hf": _hf_parts}[dialect]
    return made(found, config or {})


def layer_count(names: Mapping[str, Any], prefix: str) -> int:
    return 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in names if n.startswith(prefix))


def _gguf_parts(found: dict[str, Stored], config: Mapping[str, int]) -> dict[str, Part]:
    out = {
        "embed": _ggml(found["token_embd.weight"]),
        "norm": _ggml(found["output_norm.weight"]),
        "head": _ggml(found["output.weight"]),
    }
    for n in range(layer_count(found, "blk.")):
        a, b = f"layer.{n}.", f"blk.{n}."
        out[a + "attn_norm"] = _ggml(found[b + "attn_norm.weight"])
        out[a + "mlp_norm"] = _ggml(found[b + "post_attention_norm.weight"])
        out[a + "sinks"] = _ggml(found[b + "attn_sinks.weight"])
        for ours, theirs in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"),
                             ("router", "ffn_gate_inp"), ("gate", "ffn_gate_exps"), ("up", "ffn_up_exps"),
                             ("down", "ffn_down_exps")):  # fmt: skip
            out[a + ours] = _ggml(found[f"{b}{theirs}.weight"])
            out[f"{a}{ours}.bias"] = _ggml(found[f"{b}{theirs}.bias"])
    return out


def _openai_parts(found: dict[str, Stored], config: Mapping[str, int]) -> dict[str, Part]:
    out: dict[str, Part] = {
        "embed": found["embedding.weight"].floats(),
        "norm": found["norm.scale"].floats(),
        "head": found["unembedding.weight"].floats(),
    }
    heads = [config[k] * config["head_dim"] for k in ("num_attention_heads", "num_key_value_heads")]
    cuts = [heads[0], heads[0] + heads[1]]
    for n in range(layer_count(found, "block.")):
        a, b = f"layer.{n}.", f"block.{n}."
        out[a + "attn_norm"] = found[b + "attn.norm.scale"].floats()
        out[a + "mlp_norm"] = found[b + "mlp.norm.scale"].floats()
        out[a + "sinks"] = found[b + "attn.sinks"].floats()
        for kind, end in (("weight", ""), ("bias", ".bias")):
            qkv = np.split(found[f"{b}attn.qkv.{kind}"].floats(), cuts)
            out.update({f"{a}{letter}{end}": x for letter, x in zip("qkv", qkv, strict=True)})
            out[f"{a}o{end}"] = found[f"{b}attn.out.{kind}"].floats()
            out[f"{a}router{end}"] = found[f"{b}mlp.gate.{kind}"].floats()
        for number, names in ((1, ("gate", "up")), (2, ("down",))):
            stem = f"{b}mlp.mlp{number}_weight"
            weight = _pairs(found[f"{stem}.blocks"].bytes_(), found[f"{stem}.scales"].bytes_())
            bias = found[f"{b}mlp.mlp{number}_bias"].floats()
            out |= _interleaved(a, names, weight, bias)
    return out


def _interleaved(prefix: str, names: tuple[str, ...], weight: Part, bias: Array) -> dict[str, Part]:
    """Rows of gate and up take turns on axis 1."""
    out: dict[str, Part] = {}
    for i, name in enumerate(names):
        out[prefix + name] = weight[:, i :: len(names)]
        out[f"{prefix}{name}.bias"] = bias[:, i :: len(names)]
    return out


def _hf_parts(found: dict[str, Stored], config: Mapping[str, int]) -> dict[str, Part]:
    out: dict[str, Part] = {
        "embed": found["model.embed_tokens.weight"].floats(),
        "norm": found["model.norm.weight"].floats(),
        "head": found["lm_head.weight"].floats(),
    }
    for n in range(layer_count(found, "model.layers.")):
        a, b = f"layer.{n}.", f"model.layers.{n}."
        out[a + "attn_norm"] = found[b + "input_layernorm.weight"].floats()
        out[a + "mlp_norm"] = found[b + "post_attention_layernorm.weight"].floats()
        out[a + "sinks"] = found[b + "self_attn.sinks"].floats()
        router = b + ("mlp.router.linear." if b + "mlp.router.linear.weight" in found else "mlp.router.")
        for kind, end in (("weight", ""), ("bias", ".bias")):
            for letter in ATTENTION:
                out[f"{a}{letter}{end}"] = found[f"{b}self_attn.{letter}_proj.{kind}"].floats()
            out[f"{a}router{end}"] = found[router + kind].floats()
        for stem, names in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            out |= _interleaved(a, names, *_hf_experts(found, f"{b}mlp.experts.{stem}"))
    return out


def _hf_experts(found: dict[str, Stored], stem: str) -> tuple[Part, Array]:
    if f"{stem}_blocks" in found:
        weight: Part = _pairs(found[f"{stem}_blocks"].bytes_(), found[f"{stem}_scales"].bytes_())
    elif stem in found:
        weight = found[stem].floats().swapaxes(1, 2)
    else:
        count = sum(n.startswith(f"{stem}s.") and n.endswith(".weight") for n in found)
        each = [[found[f"{stem}s.{e}.{kind}"].floats() for e in range(count)] for kind in ("weight", "bias")]
        return np.stack(each[0]), np.stack(each[1])
    return weight, found[f"{stem}_bias"].floats()
