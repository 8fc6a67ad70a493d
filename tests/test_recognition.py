"""Every stored format, recognised in files that its own library made: fixtures/formats, or made here.

The fixtures are made by fixtures/make/formats.py; where a library runs in the tests (compressed-tensors, torchao,
gguf), it makes its file here. DeepSeek's, Mistral's and Meta's files have no library: they are written by the layout
that their loaders read (DeepSeek-V3's inference/, transformers' finegrained_fp8 and its DeepSeek-V4; vLLM's
compressed-tensors for stacked experts), and their tests say so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builders
import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from builders import Tensor
from safetensors.torch import load_file, save_file

from ckpttool import inspect
from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs import reference
from ckpttool.codecs.formats import GlobalScale
from ckpttool.codecs.packing import unpack_pair
from ckpttool.tensors import Role, Weight

FIXTURES = Path(__file__).parents[1] / "fixtures"
MANIFEST: dict[str, Any] = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))["formats"]
MODULE = "model.layers.0.mlp.down_proj."
OUT, IN = 64, 192


@dataclass(frozen=True)
class Is:
    """What a weight must be found to be; `roles` beside codes and scales."""

    format: str
    packing: str
    rows: int
    block: int
    scale: str
    roles: str = ""
    global_scale: str = "none"
    shape: tuple[int, ...] = (OUT, IN)


def check(weight: Weight, expected: Is) -> None:
    f = weight.codec.format
    roles = {r.value for r in weight.roles} - {"codes", "scales"}
    found = Is(
        f.name, weight.codec.packing.value, f.rows, f.block, f.scale.name if f.scale else "",
        ", ".join(sorted(roles)), weight.codec.global_scale.value, weight.shape,
    )  # fmt: skip
    assert found == expected


def only(folder: Path) -> Weight:
    """The one weight of a checkpoint that has no problems and loses no tensor."""
    checkpoint = open_checkpoint(folder)
    assert checkpoint.problems == ()
    (weight,) = checkpoint.weights
    assert weight.nbytes == sum(t.nbytes for w in checkpoint.weights for t in w.stored)
    return weight


# --- files of libraries that are not installed for the tests ---

_ZEROS, _INPUT = "zero points", "scale of the input"
_GPTQ = "group of each column, zero points"
_HQQ = "shape, state, zero points"
_BNB = "state, values of the codes"
LIBRARIES = {
    "bitsandbytes-nf4": Is("NF4", "bitsandbytes", 1, 64, "F32", _BNB),
    "bitsandbytes-nf4-in-bf16": Is("NF4", "bitsandbytes", 1, 64, "F32", _BNB),
    "bitsandbytes-nf4-nested": Is(
        "NF4", "bitsandbytes", 1, 64, "INT8",
        "scales of the scales, state, values of the codes, values of the scales' codes",
    ),
    "bitsandbytes-fp4": Is("FP4", "bitsandbytes", 1, 64, "F32", _BNB),
    "bitsandbytes-int8": Is("INT8", "bitsandbytes", 1, 0, "F32", "state"),
    "hqq-4": Is("INT4", "hqq", 1, 64, "F16", _HQQ),
    "hqq-4-axis-0": Is("INT4", "hqq", 1, 64, "F16", _HQQ),
    "hqq-3": Is("INT3", "hqq", 1, 64, "F16", _HQQ),
    "hqq-8": Is("INT8", "hqq", 1, 64, "F16", _HQQ),
    "awq-gemm": Is("INT4", "awq", 1, 32, "F16", _ZEROS),
    "awq-gemv": Is("INT4", "awq-gemv", 1, 32, "F16", _ZEROS),
    "gptq-4": Is("INT4", "gptq", 1, 64, "F16", _GPTQ),
    "gptq-3": Is("INT3", "gptq", 1, 64, "F16", _GPTQ),
    "gptq-8": Is("INT8", "gptq", 1, 64, "F16", _GPTQ),
    "modelopt-nvfp4": Is("NVFP4", "modelopt", 1, 16, "E4M3", f"global scale, {_INPUT}", "multiplies"),
    "modelopt-mxfp4": Is("MXFP4", "modelopt", 1, 32, "E8M0"),
    "modelopt-mxfp8": Is("MXFP8_E4M3", "scaled", 1, 32, "E8M0"),
    "modelopt-fp8": Is("FP8_E4M3", "scaled", 0, 0, "F32", _INPUT),
    "modelopt-fp8-block": Is("FP8_E4M3", "scaled", 128, 128, "F32"),
    "modelopt-int8": Is("INT8", "scaled", 1, 0, "F32", _INPUT),
    "modelopt-int4-awq": Is("INT4", "modelopt", 1, 128, "F32", "factors of the input", shape=(128, 256)),
    "quark-mxfp4": Is("MXFP4", "quark", 1, 32, "E8M0"),
    "quark-mxfp6-e2m3": Is("MXFP6_E2M3", "quark", 1, 32, "E8M0"),
    "quark-mxfp6-e3m2": Is("MXFP6_E3M2", "quark", 1, 32, "E8M0"),
    "quark-fp8": Is("FP8_E4M3", "scaled", 0, 0, "BF16"),
    "quark-int4": Is("INT4", "quark", 1, 32, "BF16", _ZEROS),
    "quark-uint4": Is("INT4", "quark", 1, 32, "BF16", _ZEROS),
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_file_of_a_library(name: str) -> None:
    weight = only(FIXTURES / "formats" / name)
    assert weight.name == MODULE + "weight"
    check(weight, LIBRARIES[name])


def test_every_fixture_is_tested_and_is_the_one_of_the_manifest() -> None:
    folder = FIXTURES / "formats"
    assert {p.name for p in folder.iterdir()} == set(LIBRARIES)
    files = {p.relative_to(FIXTURES).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files.keys() == MANIFEST.keys()
    for path, data in files.items():
        entry = MANIFEST[path]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert entry["made"]
    assert sum(map(len, files.values())) < 600_000


def test_without_a_config_only_what_the_shapes_leave_open_is_open(tmp_path: Path) -> None:
    """Quark's FP6 says its element, and its INT4 that it is one, only in config.json; nothing else needs it."""
    for name, expected in LIBRARIES.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(FIXTURES / "formats" / name / "model.safetensors", folder)
        weights = open_checkpoint(folder).weights
        found = weights[0].codec
        if name in ("quark-int4", "quark-uint4"):
            assert [(w.codec.name, w.codec.packing) for w in weights] == [
                ("I32", "flat"),
                ("BF16", "flat"),
                ("I32", "flat"),
            ]
        elif name.startswith("quark-mxfp6"):
            assert (found.name, found.format.element, len(weights)) == ("MXFP6", None, 1)
        elif name == "modelopt-mxfp4":
            assert (found.name, found.packing) == ("MXFP4", "quark")  # the same bytes under the same names
        else:
            assert (found.name, found.packing, weights[0].shape) == (expected.format, expected.packing, expected.shape)


def test_global_scale_of_modelopt_multiplies() -> None:
    """Its weights are a fresh Llama's, of standard deviation 0.02; multiplied, the codes are, divided, far from it."""
    folder = FIXTURES / "formats" / "modelopt-nvfp4"
    weight = only(folder)
    assert weight.codec.global_scale is GlobalScale.multiplies
    t = load_file(folder / "model.safetensors")
    values = e2m1(t[weight.stored[0].name]) * t[weight.stored[1].name].float().repeat_interleave(16, -1)
    whole = t[weight.stored[2].name]
    assert float((values * whole).std()) == pytest.approx(0.02, rel=0.05)
    assert float((values / whole).std()) > 1e3


def e2m1(packed: torch.Tensor) -> torch.Tensor:
    """The values of two codes a byte, low first."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat([table, -table])
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return table[codes.int()]


# --- compressed-tensors ---


def compressed(folder: Path, form: str, **weights: Any) -> torch.Tensor:
    """A folder with one linear layer in a format of compressed-tensors; returned is what the library decodes it to."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    torch.manual_seed(0)
    args = QuantizationArgs(**weights)
    dense = torch.randn(OUT, IN, dtype=torch.bfloat16) * 0.02
    state = {"weight": dense}
    low, high = extremes(dense, args)
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(dense.min(), dense.max())
    scale, zero = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(state, scheme)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, ignore=["lm_head"])
    folder.mkdir()
    save_file({MODULE + k: t.contiguous() for k, t in made.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": config.model_dump(mode="json")})
    )
    decoded: torch.Tensor = compressor.decompress(made, scheme)["weight"]
    assert float((decoded.float() - dense.float()).norm() / dense.float().norm()) < 0.3
    return decoded


def extremes(dense: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of each set of elements that shares a scale."""
    if args.strategy == "tensor":
        return dense.amin().reshape(1), dense.amax().reshape(1)
    if args.strategy == "channel":
        return dense.amin(-1, keepdim=True), dense.amax(-1, keepdim=True)
    if args.strategy == "block":
        rows, columns = args.block_structure
        padded = torch.nn.functional.pad(dense, (0, -IN % columns, 0, -OUT % rows))
        blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = dense.reshape(OUT, -1, args.group_size)
    return groups.amin(-1), groups.amax(-1)


_MX: dict[str, Any] = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
COMPRESSED: dict[str, tuple[str, dict[str, Any], Is]] = {
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
         "scale_dtype": torch.float8_e4m3fn},
        Is("NVFP4", "compressed-tensors", 1, 16, "E4M3", "global scale", "divides"),
    ),
    "mxfp4": (
        "mxfp4-pack-quantized", {"num_bits": 4, **_MX}, Is("MXFP4", "compressed-tensors", 1, 32, "E8M0"),
    ),
    "mxfp6": (
        "mxfp6-pack-quantized", {"num_bits": 6, **_MX}, Is("MXFP6_E2M3", "compressed-tensors", 1, 32, "E8M0"),
    ),
    "mxfp8": ("mxfp8-quantized", {"num_bits": 8, **_MX}, Is("MXFP8_E4M3", "scaled", 1, 32, "E8M0")),
    "fp8 tensor": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"},
        Is("FP8_E4M3", "scaled", 0, 0, "BF16"),
    ),
    "fp8 channel": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"},
        Is("FP8_E4M3", "scaled", 1, 0, "BF16"),
    ),
    "fp8 block": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 64]},
        Is("FP8_E4M3", "scaled", 32, 64, "BF16"),
    ),
    "int8 channel": (
        "int-quantized", {"num_bits": 8, "strategy": "channel"}, Is("INT8", "scaled", 1, 0, "BF16"),
    ),
    "int8 asymmetric": (
        "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False},
        Is("INT8", "scaled", 1, 0, "BF16", _ZEROS),
    ),
    "int4 group": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32},
        Is("INT4", "compressed-tensors", 1, 32, "BF16", "shape"),
    ),
    "int4 asymmetric": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False},
        Is("INT4", "compressed-tensors", 1, 64, "BF16", "shape, zero points"),
    ),
    "int4 channel": (
        "pack-quantized", {"num_bits": 4, "strategy": "channel"},
        Is("INT4", "compressed-tensors", 1, 0, "BF16", "shape"),
    ),
    "int3 group": (
        "pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 64},
        Is("INT3", "compressed-tensors", 1, 64, "BF16", "shape"),
    ),
    "int8 packed": (
        "pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32},
        Is("INT8", "compressed-tensors", 1, 32, "BF16", "shape"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", ["config.json", "none"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors(name: str, config: str, tmp_path: Path) -> None:
    form, how, expected = COMPRESSED[name]
    compressed(tmp_path / "model", form, **how)
    if config == "none":  # what is stored says enough
        (tmp_path / "model" / "config.json").unlink()
    check(only(tmp_path / "model"), expected)


def test_codes_of_compressed_tensors_are_those_of_a_pair(tmp_path: Path) -> None:
    """Only names and shapes differ: reshaped, its MXFP4 decodes as gpt-oss' does, to what the library says."""
    decoded = compressed(tmp_path / "model", "mxfp4-pack-quantized", num_bits=4, **_MX)
    t = load_file(tmp_path / "model" / "model.safetensors")
    blocks = t[MODULE + "weight_packed"].numpy().reshape(OUT, IN // 32, 16)
    values = reference.dequantize(unpack_pair(blocks), t[MODULE + "weight_scale"].numpy())
    np.testing.assert_array_equal(np.asarray(values, np.float32).reshape(OUT, IN), decoded.float().numpy())


def test_global_scale_of_compressed_tensors_divides(tmp_path: Path) -> None:
    form, how, _ = COMPRESSED["nvfp4"]
    decoded = compressed(tmp_path / "model", form, **how)
    weight = only(tmp_path / "model")
    assert weight.codec.global_scale is GlobalScale.divides
    t = load_file(tmp_path / "model" / "model.safetensors")
    values = e2m1(t[weight.stored[0].name]) * t[weight.stored[1].name].float().repeat_interleave(16, -1)
    np.testing.assert_allclose(values / t[weight.stored[2].name], decoded.float(), rtol=2**-7)  # it rounds to BF16


# --- torchao ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mxfp4", Is("MXFP4", "torchao", 1, 32, "E8M0")),
        ("mxfp8", Is("MXFP8_E4M3", "scaled", 1, 32, "E8M0")),
        ("nvfp4", Is("NVFP4", "torchao", 1, 16, "E4M3", "global scale", "multiplies")),
        ("nvfp4 without a global scale", Is("NVFP4", "torchao", 1, 16, "E4M3")),
        ("fp8", Is("FP8_E4M3", "scaled", 1, 0, "F32")),
        ("int8", Is("INT8", "torchao", 1, 0, "F32", _ZEROS)),
    ],
)
def test_torchao(name: str, expected: Is, tmp_path: Path) -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    layer = torch.nn.Linear(IN, OUT, bias=False)
    if name.startswith("mx"):
        element = torch.float8_e4m3fn if name == "mxfp8" else torch.float4_e2m1fn_x2
        made = {MODULE + "weight": MXTensor.to_mx(layer.weight.data.bfloat16(), element, 32)}
    elif name.startswith("nv"):
        dense = layer.weight.data.bfloat16()
        whole = per_tensor_amax_to_scale(dense.abs().max()) if name == "nvfp4" else None
        made = {MODULE + "weight": NVFP4Tensor.to_nvfp4(dense, per_tensor_scale=whole)}
    else:
        quantize_(layer, Float8WeightOnlyConfig() if name == "fp8" else Int8WeightOnlyConfig(version=2))
        made = {MODULE + "weight": layer.weight.data}
    tensors, metadata = flatten_tensor_state_dict(made)
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "model.safetensors", metadata)
    weight = only(tmp_path)
    assert weight.name == MODULE + "weight"
    check(weight, expected)


# --- layouts without a library ---


def saved(folder: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any] | None = None) -> Path:
    """A folder with zeros of these dtypes and shapes."""
    folder.mkdir(exist_ok=True)
    made = {n: Tensor(dtype, np.zeros(shape, NUMPY[dtype])) for n, (dtype, shape) in tensors.items()}
    builders.save(folder / "model.safetensors", made)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


NUMPY: dict[str, Any] = {
    "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F16": np.float16,
    "BF16": np.uint16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "U32": np.uint32,
}  # fmt: skip

W, S, INV = MODULE + "weight", MODULE + "weight_scale", MODULE + "weight_scale_inv"
EXPERTS = "model.layers.0.mlp.experts."
LAYOUTS: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]]], str, Is]] = {
    "DeepSeek-V3": (
        {W: ("F8_E4M3", (512, 7168)), INV: ("F32", (4, 56))},
        W, Is("FP8_E4M3", "scaled", 128, 128, "F32", shape=(512, 7168)),
    ),
    "DeepSeek-V3, blocks that are not full": (
        {W: ("F8_E4M3", (576, 7168)), INV: ("F32", (5, 56))},
        W, Is("FP8_E4M3", "scaled", 128, 128, "F32", shape=(576, 7168)),
    ),
    "Qwen3's FP8": (
        {W: ("F8_E4M3", (96, 256)), INV: ("BF16", (1, 2))},
        W, Is("FP8_E4M3", "scaled", 128, 128, "BF16", shape=(96, 256)),
    ),
    "FP8 E5M2 by row": (
        {W: ("F8_E5M2", (96, 256)), S: ("F32", (96, 1))}, W, Is("FP8_E5M2", "scaled", 1, 0, "F32", shape=(96, 256)),
    ),
    "DeepSeek-V4's experts": (
        {EXPERTS + "3.w1.weight": ("I8", (96, 128)), EXPERTS + "3.w1.scale": ("F8_E8M0", (96, 8))},
        EXPERTS + "3.w1.weight", Is("MXFP4", "deepseek", 1, 32, "E8M0", shape=(96, 256)),
    ),
    "DeepSeek-V4's FP8": (
        {W: ("F8_E4M3", (256, 384)), MODULE + "scale": ("F8_E8M0", (2, 3))},
        W, Is("FP8_E4M3", "scaled", 128, 128, "E8M0", shape=(256, 384)),
    ),
    "DeepSeek-V4 in transformers": (
        {EXPERTS + "gate_up_proj": ("I8", (3, 96, 128)), EXPERTS + "gate_up_proj_scale_inv": ("F8_E8M0", (3, 96, 8))},
        EXPERTS + "gate_up_proj", Is("MXFP4", "deepseek", 1, 32, "E8M0", shape=(3, 96, 256)),
    ),
    "FP8 of stacked experts": (
        {EXPERTS + "gate_up_proj": ("F8_E4M3", (3, 256, 384)),
         EXPERTS + "gate_up_proj_scale_inv": ("F32", (3, 2, 3))},
        EXPERTS + "gate_up_proj", Is("FP8_E4M3", "scaled", 128, 128, "F32", shape=(3, 256, 384)),
    ),
    "Llama-4's FP8, a scale a column": (
        {EXPERTS + "gate_up_proj": ("F8_E4M3", (3, 64, 192)), EXPERTS + "gate_up_proj_scale": ("BF16", (3, 1, 192))},
        EXPERTS + "gate_up_proj", Is("FP8_E4M3", "scaled", 0, 1, "BF16", shape=(3, 64, 192)),
    ),
    "FP8, a scale an expert": (
        {EXPERTS + "w13": ("F8_E4M3", (3, 64, 192)), EXPERTS + "w13_scale": ("F32", (3,))},
        EXPERTS + "w13", Is("FP8_E4M3", "scaled", 0, 0, "F32", shape=(3, 64, 192)),
    ),
    "Mistral's FP8": (
        {MODULE + "weight": ("F8_E4M3", (64, 192)), MODULE + "qscale_weight": ("F32", ()),
         MODULE + "qscale_act": ("F32", ())},
        W, Is("FP8_E4M3", "scaled", 0, 0, "F32", _INPUT),
    ),
    "ModelOpt's NVFP4 of stacked experts": (
        {EXPERTS + "down_proj": ("U8", (3, 96, 64)), EXPERTS + "down_proj_weight_scale": ("F8_E4M3", (3, 12, 64)),
         EXPERTS + "down_proj_weight_scale_2": ("F32", (3, 1, 1)), EXPERTS + "down_proj_input_scale": ("F32", ())},
        EXPERTS + "down_proj",
        Is("NVFP4", "modelopt", 1, 16, "E4M3", f"global scale, {_INPUT}", "multiplies", (3, 192, 64)),
    ),
    "OpenAI's dots": (
        {"block.0.mlp.mlp1_weight.blocks": ("U8", (3, 64, 6, 16)),
         "block.0.mlp.mlp1_weight.scales": ("U8", (3, 64, 6))},
        "block.0.mlp.mlp1_weight", Is("MXFP4", "pair", 1, 32, "E8M0", shape=(3, 64, 192)),
    ),
    "gpt-oss of Quark": (
        {EXPERTS + "0.gate_up_proj.weight": ("U8", (192, 32)),
         EXPERTS + "0.gate_up_proj.weight_scale": ("U8", (192, 2)),
         EXPERTS + "0.gate_up_proj.input_scale": ("F32", ())},
        EXPERTS + "0.gate_up_proj.weight", Is("MXFP4", "quark", 1, 32, "E8M0", _INPUT, shape=(192, 64)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_that_its_loaders_read(name: str, tmp_path: Path) -> None:
    tensors, weight, expected = LAYOUTS[name]
    found = only(saved(tmp_path / "model", tensors))
    assert found.name == weight
    check(found, expected)
    assert {t.name for t in found.stored} == set(tensors)


def test_block_that_only_the_config_knows(tmp_path: Path) -> None:
    """[200, 96] with scales [2, 1] may be in squares of 100 or of 128; where config.json says, it counts."""
    tensors = {W: ("F8_E4M3", (200, 96)), INV: ("F32", (2, 1))}
    check(only(saved(tmp_path / "a", tensors)), Is("FP8_E4M3", "scaled", 128, 128, "F32", shape=(200, 96)))
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [100, 96]}}
    check(only(saved(tmp_path / "b", tensors, config)), Is("FP8_E4M3", "scaled", 100, 96, "F32", shape=(200, 96)))


def test_own_dtypes_of_safetensors(tmp_path: Path) -> None:
    """F4 and F8_E8M0, as torch saves them: the header's shape counts elements."""
    codes = torch.zeros(OUT, IN // 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    scales = torch.zeros(OUT, IN // 32, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    save_file({W: codes, S: scales}, tmp_path / "model.safetensors")
    weight = only(tmp_path)
    assert weight.stored[0].dtype == "F4"
    check(weight, Is("MXFP4", "scaled", 1, 32, "E8M0"))


# --- GGUF ---


def test_nvfp4_of_a_gguf(tmp_path: Path) -> None:
    """llama.cpp keeps the scales of whole tensors in F32 tensors beside; they belong to the weight."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    blocks = np.zeros((3, OUT, IN // 64 * 36), np.uint8)
    writer.add_tensor("blk.0.ffn_up_exps.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor("blk.0.ffn_up_exps.scale", np.ones(3, np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.input_scale", np.ones(3, np.float32))
    writer.add_tensor("blk.0.ffn_norm.weight", np.ones(OUT, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    four, norm = open_checkpoint(tmp_path / "m.gguf").weights
    assert (four.codec.name, four.codec.packing, four.shape) == ("NVFP4", "ggml", (3, OUT, IN))
    assert four.codec.global_scale is GlobalScale.multiplies
    assert four.roles == (Role.codes, Role.global_scale, Role.input_scale)
    assert (norm.codec.name, norm.shape) == ("F32", (OUT,))


# --- the inspector's report ---


def test_report_counts_elements_not_bytes() -> None:
    report = inspect(FIXTURES / "formats" / "modelopt-nvfp4")
    (row,) = report.tensors
    assert (row.format, row.packing, row.shape, row.parameters) == ("NVFP4", "modelopt", (OUT, IN), OUT * IN)
    assert len(row.stored) == 4
    assert row.nbytes == OUT * IN // 2 + OUT * IN // 16 + 4 + 4
