"""MXFP4 of arrays in memory, numpy's or torch's: the two functions of the public API.

A torch tensor stays where it is: on the CPU it is worked on as the numpy array that shares its memory, on a CUDA device
by `gpu`. torch is imported only where an argument is a torch tensor, and has been imported then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import cpu
from ckpttool.codecs.formats import RECIPES, Packing, Recipe
from ckpttool.codecs.plain import UINT
from ckpttool.codecs.reference import U8, BadBlock, F32Array

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPES", "BadBlock", "Recipe", "dequantize", "quantize"]

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor; where torch was never imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _require_arrays(what: str, dtype: str, *given: object) -> None:
    for x in given:
        if not (isinstance(x, np.ndarray) or _is_tensor(x)):
            made = f"np.asarray(…, np.{dtype}) makes one"
            raise ValueError(f"{what} takes numpy arrays or torch tensors, not a {type(x).__name__}; {made}")


@contextmanager
def _bad_rows_and_blocks() -> Iterator[None]:
    """Have `BadBlock` name row and block alone: the zip of parts between them is the kernels', of one part here."""
    try:
        yield
    except BadBlock as bad:
        raise BadBlock(bad.kind, (bad.row, bad.block)) from None


def _source_name(x: Any) -> str:
    """BF16, F16 or F32; ValueError for another type, and for a length that blocks do not divide."""
    name = _NAMES.get(str(x.dtype).removeprefix("torch.") if _is_tensor(x) else x.dtype.name)
    if name is None:
        hint = "x.to(torch.float32)" if _is_tensor(x) else "x.astype(np.float32)"
        raise ValueError(
            f"quantize takes float32, float16 or bfloat16, not {x.dtype}; {hint} rounds to the nearest float32"
        )
    if x.ndim == 0 or x.shape[-1] % 32:
        raise ValueError(f"the last axis of {tuple(x.shape)} is no multiple of 32, a block; pad it, or transpose x")
    return name


@overload
def quantize(x: NDArray[Any], recipe: str | Recipe = "best") -> tuple[U8, U8]: ...
@overload
def quantize(x: torch.Tensor, recipe: str | Recipe = "best") -> tuple[torch.Tensor, torch.Tensor]: ...
def quantize(x: Any, recipe: str | Recipe = "best") -> Any:
    """MXFP4 of an array or a torch tensor, as Hugging Face stores it.

    `x`: [..., K], float32, float16 or bfloat16 (for arrays ml_dtypes') of any byte order; K a multiple of 32, the axis
    that the weight is multiplied along. `recipe`: a name of `RECIPES`, or a `Recipe`.

    Returns blocks uint8 [..., K/32, 16] (byte j: element 2j low, 2j+1 high) and scales uint8 [..., K/32] (E8M0): arrays
    of an array, tensors on its device of a tensor.

    ValueError for another type, length or device; `BadBlock` (a ValueError) where a block holds NaN or Inf, or where
    the recipe's rule would make it infinite: its `index` is (row, block), rows counted over the flattened leading axes.
    """
    chosen = _recipe(recipe)
    _require_arrays("quantize", "float32", x)
    name = _source_name(x)
    with _bad_rows_and_blocks():
        return _quantize_tensor(x, name, chosen) if _is_tensor(x) else _quantize_array(x, name, chosen)


def _quantize_array(x: NDArray[Any], name: str, recipe: Recipe) -> tuple[U8, U8]:
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    k = x.shape[-1]
    rows = np.ascontiguousarray(x).view(UINT[name]).reshape(-1, 1, k) if x.size else np.empty((0, 1, k), UINT[name])
    blocks = np.empty((rows.shape[0], 1, k // 32, 16), np.uint8)
    scales = np.empty(blocks.shape[:-1], np.uint8)
    cpu.quantize_rows(rows, name, recipe, Packing.pair, blocks, scales)
    lead = x.shape[:-1]
    return blocks.reshape(*lead, k // 32, 16), scales.reshape(*lead, k // 32)


@overload
def dequantize(blocks: U8, scales: U8) -> F32Array: ...
@overload
def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor: ...
def dequantize(blocks: Any, scales: Any) -> Any:
    """float32 [..., K] of blocks uint8 [..., K/32, 16] and scales uint8 [..., K/32] in Hugging Face's packing; exact.

    An array of arrays, a tensor on their device of tensors.

    ValueError for other types and shapes; `BadBlock`, as `quantize` has it, for scale byte 255 and for values that
    float32 cannot hold.
    """
    _require_arrays("dequantize", "uint8", blocks, scales)
    types = {str(a.dtype).removeprefix("torch.") for a in (blocks, scales)}
    if types != {"uint8"}:
        raise ValueError(f"blocks and scales must be uint8, not {blocks.dtype} and {scales.dtype}")
    if blocks.ndim < 2 or blocks.shape[-1] != 16 or blocks.shape[:-1] != scales.shape:
        shapes = f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)}"
        raise ValueError(f"{shapes} do not fit [..., G, 16] and [..., G]")
    if _is_tensor(blocks) != _is_tensor(scales):
        raise ValueError(f"blocks are a {type(blocks).__name__}, scales a {type(scales).__name__}")
    with _bad_rows_and_blocks():
        return _dequantize_tensors(blocks, scales) if _is_tensor(blocks) else _dequantize_arrays(blocks, scales)


def _dequantize_arrays(blocks: U8, scales: U8) -> F32Array:
    lead, groups = scales.shape[:-1], scales.shape[-1]
    count = int(np.prod(lead, dtype=np.int64))
    out = np.empty((count, 1, groups * 32), np.uint32)
    shape = (count, 1, groups)
    cpu.dequantize_rows(
        np.ascontiguousarray(blocks).reshape(*shape, 16),
        np.ascontiguousarray(scales).reshape(shape),
        Packing.pair,
        out,
        "F32",
    )
    return out.view(np.float32).reshape(*lead, groups * 32)


def _quantize_tensor(x: torch.Tensor, name: str, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    k = x.shape[-1]
    rows = x.detach().contiguous().view(x.numel() // k if k else 0, 1, k)
    blocks = torch.empty((rows.shape[0], 1, k // 32, 16), dtype=torch.uint8, device=x.device)
    scales = torch.empty(blocks.shape[:-1], dtype=torch.uint8, device=x.device)
    if not rows.numel():
        pass
    elif x.device.type == "cpu":
        bits = rows.view(torch.int32 if name == "F32" else torch.int16).numpy().view(UINT[name])
        cpu.quantize_rows(bits, name, recipe, Packing.pair, blocks.numpy(), scales.numpy())
    else:  # pragma: no cover - needs a GPU: tests/gpu/test_native.py
        from ckpttool.codecs import gpu

        gpu.quantize_rows(_aligned(rows), name, recipe, Packing.pair, blocks, scales)
    lead = x.shape[:-1]
    return blocks.view(*lead, k // 32, 16), scales.view(*lead, k // 32)


def _dequantize_tensors(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    import torch

    if blocks.device != scales.device:
        raise ValueError(f"blocks lie on {blocks.device}, scales on {scales.device}")
    lead, groups = scales.shape[:-1], scales.shape[-1]
    shape = (lead.numel(), 1, groups)
    rows, bytes_ = blocks.contiguous().view(*shape, 16), scales.contiguous().view(shape)
    out = torch.empty((shape[0], 1, groups * 32), dtype=torch.float32, device=blocks.device)
    if not out.numel():
        pass
    elif blocks.device.type == "cpu":
        cpu.dequantize_rows(rows.numpy(), bytes_.numpy(), Packing.pair, out.numpy().view(np.uint32), "F32")
    else:  # pragma: no cover - needs a GPU: tests/gpu/test_native.py
        from ckpttool.codecs import gpu

        gpu.dequantize_rows(_aligned(rows), bytes_, Packing.pair, out, "F32")
    return out.view(*lead, groups * 32)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where it starts between two words of 4 bytes, as a slice of a larger tensor may."""
    return x.clone() if x.data_ptr() % 4 else x
