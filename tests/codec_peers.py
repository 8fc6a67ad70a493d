"""Other people's MXFP4 and Q8_0, as functions of float32 or of BF16 bits: (scale bytes [R, G], codes [R, G, 32])."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.packing import pack_ggml, pack_pair, unpack_ggml, unpack_pair

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _tensor(values: NDArray[np.float32], bf16: bool) -> Any:
    import torch

    tensor = torch.from_numpy(values)
    return tensor.to(torch.bfloat16) if bf16 else tensor


def torchao(values: NDArray[np.float32], mode: str, *, bf16: bool) -> Pair:
    """torchao.prototype.mx_formats.to_mx, by FLOOR, EVEN or RCEIL."""
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    scale, data = to_mx(_tensor(values, bf16), torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode])
    groups = values.shape[-1] // 32
    blocks = data.view(torch.uint8).numpy().reshape(-1, groups, 16)
    return scale.view(torch.uint8).numpy().reshape(-1, groups), unpack_pair(blocks)


def compressed_tensors(values: NDArray[np.float32], *, bf16: bool) -> Pair:
    """generate_mx_scales and quantize_and_pack_fp4, as its MXFP4 compressor calls them; rows of one block."""
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    x = _tensor(values, bf16)
    byte = generate_mx_scales(x.abs().reshape(len(x), -1, 32).amax(-1)).to(torch.uint8)
    scale = torch.pow(2.0, byte.to(torch.float32) - 127).to(x.dtype)
    blocks = quantize_and_pack_fp4(x, scale, group_size=32).numpy()
    return byte.numpy(), unpack_pair(blocks.reshape(len(x), -1, 16))


def gguf_py(values: NDArray[np.float32], type_name: str = "MXFP4") -> NDArray[np.uint8]:
    """gguf.quants.quantize: the bytes."""
    import gguf

    with np.errstate(all="ignore"):
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name])


@cache
def ggml() -> ctypes.CDLL:
    """ggml's C functions, in the extension module of xllamacpp."""
    import xllamacpp

    library = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so")))
    for name in (
        "quantize_row_mxfp4_ref", "dequantize_row_mxfp4", "quantize_row_q8_0_ref", "dequantize_row_q8_0",
        "ggml_bf16_to_fp32_row", "ggml_fp32_to_bf16_row",
    ):  # fmt: skip
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return library


def ggml_c(values: NDArray[np.float32], name: str, block_nbytes: int) -> NDArray[np.uint8]:
    """A quantize_row function of ggml: the bytes [R, G, n]."""
    rows, k = values.shape
    out = np.zeros((rows, k // 32, block_nbytes), np.uint8)
    contiguous = np.ascontiguousarray(values)
    getattr(ggml(), name)(contiguous.ctypes.data, out.ctypes.data, contiguous.size)
    return out


def ggml_decoded(blocks: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """A dequantize_row function of ggml."""
    out = np.zeros((blocks.shape[0], blocks.shape[1] * 32), np.float32)
    contiguous = np.ascontiguousarray(blocks)
    getattr(ggml(), name)(contiguous.ctypes.data, out.ctypes.data, out.size)
    return out


def of_ggml_struct(blocks: NDArray[np.uint8]) -> Pair:
    """Scales and codes of 17-byte blocks [R, G, 17]."""
    return blocks[..., 0], unpack_ggml(blocks[..., 1:])


def hub_kernel_codes(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rounding of triton_kernels' downcast_to_mxfp before its PR 8110, as in the hub kernel that transformers uses.

    Its integer chain on F32 bits of the scaled values, retold: exponent and mantissa in one number, one rounding bit
    kept, (x + 1) >> 1, at most 7. That is half away from zero. It needs a GPU to run itself.
    """
    bits = scaled.view(np.uint32).astype(np.int64)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    denormal = np.minimum(127 - (exponent + 1), 31)
    mantissa = np.where(exponent < 127, (0x400000 | (mantissa >> 1)) >> np.maximum(denormal, 0), mantissa)
    exponent = np.maximum(exponent, 126) - 126
    magnitude = np.minimum((((exponent << 2) | (mantissa >> 21)) + 1) >> 1, 7)
    return (((bits >> 28) & 8) | magnitude).astype(np.uint8)


def transformers_dequantized(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """transformers' convert_moe_packed_tensors: BF16 bits [E, K, N] of blocks [E, N, G, 16]."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    out = convert_moe_packed_tensors(torch.from_numpy(blocks.copy()), torch.from_numpy(scales.copy()))
    return out.contiguous().view(torch.uint16).numpy()


def gguf_py_decoded(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """gguf.quants.dequantize of 17-byte blocks [R, G, 17]."""
    import gguf

    with np.errstate(over="ignore"):
        return gguf.quants.dequantize(blocks.reshape(len(blocks), -1), gguf.GGMLQuantizationType.MXFP4)


def torchao_decoded(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """torchao's to_dtype of blocks [R, G, 16] and scales [R, G]."""
    import torch
    from torchao.prototype.mx_formats.mx_tensor import to_dtype

    data = torch.from_numpy(blocks.reshape(len(blocks), -1).copy())
    scale = torch.from_numpy(scales.copy()).view(torch.float8_e8m0fnu)
    return to_dtype(data, scale, torch.float4_e2m1fn_x2, 32, torch.float32).numpy()


def torch_scales() -> NDArray[np.float32]:
    """What torch takes the 256 bytes of float8_e8m0fnu for."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).to(torch.float32).numpy()


class Decoder(NamedTuple):
    """Somebody's MXFP4 decoder: F32 bits [R, K] of codes [R, G, 32] and scales [R, G], and where it is known to differ.

    `minus_zero`: code 8 is -0, as OCP has it; otherwise 0. `nan`: scale 255 is NaN, as OCP has it; otherwise 2^128.
    """

    bits: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint32]]
    minus_zero: bool
    nan: bool


def _structs(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([scales[..., None], pack_ggml(codes)], -1)


def _transformers(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint32]:
    bits = transformers_dequantized(pack_pair(codes)[None], scales[None])[0].T
    return bits.astype(np.uint32) << np.uint32(16)


DECODERS = {
    "ggml": Decoder(
        lambda c, s: ggml_decoded(_structs(c, s), "dequantize_row_mxfp4").view(np.uint32), minus_zero=False, nan=False
    ),
    "gguf-py": Decoder(lambda c, s: gguf_py_decoded(_structs(c, s)).view(np.uint32), minus_zero=False, nan=False),
    "transformers": Decoder(_transformers, minus_zero=True, nan=False),
    "torchao": Decoder(lambda c, s: torchao_decoded(pack_pair(c), s).view(np.uint32), minus_zero=True, nan=True),
}
"""transformers' is gpt-oss' own unpacking (gpt_oss/torch/weights.py), line for line; torchao's scales are torch's."""


def expected_of(decoder: Decoder, codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [R, K] that a decoder must give, by the definition and its known differences; beyond F32 it is Inf."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7]
    values = np.ldexp(np.where(codes & 8, -magnitudes, magnitudes), scales[..., None].astype(int) - 127)
    values = np.where(np.abs(values) >= 2.0**128, np.copysign(np.inf, values), values)
    if decoder.nan:
        values = np.where(scales[..., None] == 255, np.nan, values)
    if not decoder.minus_zero:
        values = values + 0.0
    return values.reshape(len(codes), -1)
