"""The kernels of the CPU and of a GPU as `tensor_digests.Codec`: rows or columns, in either packing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from number_cases import Rows
from numpy.typing import NDArray
from tensor_digests import U8, Codec
from test_cpu import columns_of, outputs

from ckpttool.codecs import plain
from ckpttool.codecs.formats import Packing, Recipe
from ckpttool.codecs.packing import PACK, UNPACK, pack_pair, unpack_pair

PACKINGS = [Packing.pair, Packing.ggml]
_TORCH = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}


def _rows_of(columns: NDArray[Any], parts: int) -> NDArray[Any]:
    """Columns [K, N] as rows [R, p, K]."""
    return np.ascontiguousarray(columns.T).reshape(-1, parts, len(columns))


def on_cpu(module: ModuleType, packing: Packing, columns: bool) -> Codec:
    """`cpu`, or a module with the same functions."""

    def quantize(rows: Rows, recipe: Recipe) -> tuple[U8, U8]:
        r, p, k = rows.bits.shape
        blocks, scales = outputs(r, p, k // 32, packing)
        run = module.quantize_columns if columns else module.quantize_rows
        run(columns_of(rows.bits) if columns else rows.bits, rows.dtype, recipe, packing, blocks, scales)
        return pack_pair(UNPACK[packing](blocks)), scales

    def dequantize(blocks: U8, scales: U8, dtype: str) -> NDArray[Any]:
        r, p, g = scales.shape
        out = np.zeros((32 * g, r * p) if columns else (r, p, 32 * g), plain.UINT[dtype])
        run = module.dequantize_columns if columns else module.dequantize_rows
        run(PACK[packing](unpack_pair(blocks)), scales, packing, out, dtype)
        return _rows_of(out, p) if columns else out

    return Codec(quantize, dequantize)


def on_device(packing: Packing, columns: bool) -> Codec:
    """Triton's kernels: on the card, or in the interpreter where conftest has chosen it."""
    import torch

    from ckpttool.codecs import gpu

    device = torch.device("cpu" if gpu.gpu_lanes.INTERPRETED else "cuda")

    def moved(x: NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x).view(_TORCH.get(x.dtype, x.dtype))).to(device)

    def room(r: int, p: int, g: int) -> tuple[Any, Any]:
        if packing is Packing.pair:
            shapes = (r, p, g, 16), (r, p, g)
            return tuple(torch.zeros(s, dtype=torch.uint8, device=device) for s in shapes)
        structs = torch.zeros((r, p, g, 17), dtype=torch.uint8, device=device)
        return structs[..., 1:], structs[..., 0]

    def quantize(rows: Rows, recipe: Recipe) -> tuple[U8, U8]:
        r, p, k = rows.bits.shape
        blocks, scales = room(r, p, k // 32)
        source = moved(columns_of(rows.bits)[None]) if columns else moved(rows.bits)
        run = gpu.quantize_columns if columns else gpu.quantize_rows
        run(source, rows.dtype, recipe, packing, blocks, scales)
        return pack_pair(UNPACK[packing](blocks.cpu().numpy())), scales.cpu().numpy()

    def dequantize(blocks: U8, scales: U8, dtype: str) -> NDArray[Any]:
        r, p, g = scales.shape
        stored = room(r, p, g)
        stored[0].copy_(moved(PACK[packing](unpack_pair(blocks))))
        stored[1].copy_(moved(scales))
        word = torch.int16 if dtype == "BF16" else torch.int32
        out = torch.zeros((1, 32 * g, r * p) if columns else (r, p, 32 * g), dtype=word, device=device)
        run = gpu.dequantize_columns if columns else gpu.dequantize_rows
        run(*stored, packing, out, dtype)
        made = out.cpu().numpy().view(plain.UINT[dtype])
        return _rows_of(made[0], p) if columns else made

    return Codec(quantize, dequantize)
