"""The codecs at speed on any CPU: what `reference` defines, fused with packing, transposition and gate/up interleave.

Every function reads and writes the caller's arrays, allocates nothing that grows with them, holds no lock and releases
the GIL, so that threads may work on disjoint slabs. Results are bit-equal to `reference` on every machine.

Geometry. A **rows view** is [R, p, ...]: R rows of each of p parts that are zipped (gate and up: 2; otherwise 1), with
any strides on these axes, so that interleaved [2R, ...] and separate [p, R, ...] storage are the same thing.
**Columns** [K, N] are the transposed storage of Hugging Face's BF16 experts: column n is row n // p of part n % p.
Plain numbers are the unsigned integers of their bits (uint16 for BF16 and F16, uint32 for F32), MXFP4 is blocks
[R, p, G, 16] and scales [R, p, G] of uint8, Q8_0 is [R, p, G, 34]; G = K / 32. The innermost axis is contiguous, but
for that of scales, which lies anywhere.

Errors: `BadBlock` names row, part and block, `BadValue` the element; what `out` then holds is undefined. ValueError for
arrays that do not fit together. Where numba cannot be imported or may not compile (NUMBA_DISABLE_JIT), the same
functions run on numpy, some hundred times slower, and a warning says so once.
"""

from __future__ import annotations

import importlib
import logging
import threading
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.formats import Packing, Recipe
from ckpttool.codecs.plain import UINT, BadValue
from ckpttool.codecs.reference import U8, BadBlock

__all__ = [
    "BadBlock",
    "BadValue",
    "backend",
    "convert",
    "dequantize_columns",
    "dequantize_q8_0",
    "dequantize_rows",
    "load",
    "quantize_columns",
    "quantize_q8_0",
    "quantize_rows",
    "repack",
    "transpose_to_columns",
    "transpose_to_rows",
]

Bits = NDArray[Any]

_BYTES = np.dtype(np.uint8)

_lock = threading.Lock()
_module: ModuleType | None = None


def _kernels() -> ModuleType:
    """The compiled kernels, or the numpy ones with one warning; both modules have the same functions."""
    global _module
    with _lock:
        if _module is None:
            try:
                if importlib.import_module("numba").config.DISABLE_JIT:
                    raise ImportError("NUMBA_DISABLE_JIT is set")
                _module = importlib.import_module("ckpttool.codecs.cpu_kernels")
            except ImportError as error:
                logging.getLogger("ckpttool").warning(
                    "no compiled kernels (%s): the codecs run slowly, on numpy", error
                )
                _module = importlib.import_module("ckpttool.codecs.cpu_numpy")
    return _module


def backend() -> str:
    """`numba` or `numpy`: what the functions of this module run on."""
    return "numba" if _kernels().__name__.endswith("cpu_kernels") else "numpy"


def load() -> None:
    """Pay now, by a call on one number, for what a first call costs: numba's import, its registries set up."""
    convert(np.zeros(1, np.uint16), "BF16", np.empty(1, np.uint32), "F32")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(name: str, a: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...], *, out: bool = False) -> None:
    """Type, shape, contiguous innermost axis; an output must be writable."""
    # Words only where they are needed: a type's name takes as long to find as a small piece takes to compute.
    if a.dtype != dtype:
        raise ValueError(f"{name} is {a.dtype}, expected {dtype}")
    if a.shape != shape:
        raise ValueError(f"{name} has shape {a.shape}, expected {shape}")
    _require(a.size == 0 or shape[-1] == 1 or a.strides[-1] == a.itemsize, f"the last axis of {name} is not contiguous")
    _require(not out or a.flags.writeable, f"{name} is read-only")


def _check_mxfp4(blocks: U8, scales: U8, shape: tuple[int, ...], *, out: bool = False) -> None:
    """`shape` is [R, p, K] of the elements."""
    rows, parts, k = shape
    _require(k % 32 == 0, f"rows of {k} elements are no whole number of blocks of 32")
    _check("blocks", blocks, _BYTES, (rows, parts, k // 32, 16), out=out)
    if scales.dtype != _BYTES:
        raise ValueError(f"scales are {scales.dtype}, expected uint8")
    if scales.shape != blocks.shape[:-1]:
        raise ValueError(f"scales have shape {scales.shape}, expected {blocks.shape[:-1]}")
    _require(not out or scales.flags.writeable, "scales are read-only")


def _mx_packing(packing: Packing) -> Packing:
    _require(packing in (Packing.pair, Packing.ggml), f"MXFP4 has no packing {packing}")
    return packing


def _columns_shape(columns: Bits, parts: int) -> tuple[int, int, int]:
    """[R, p, K] of columns [K, N]."""
    _require(columns.ndim == 2, f"columns have shape {columns.shape}, expected two axes")
    k, n = columns.shape
    _require(parts > 0 and n % parts == 0, f"{n} columns do not divide among {parts} parts")
    return n // max(1, parts), parts, k


def _rows_shape(name: str, rows: Bits) -> tuple[int, int, int]:
    _require(rows.ndim == 3, f"{name} has shape {rows.shape}, expected [R, p, K]")
    return rows.shape[0], rows.shape[1], rows.shape[2]


def quantize_rows(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """MXFP4 by `recipe` of rows `x` [R, p, K] of `dtype` (BF16, F16, F32), blocks along K.

    `BadBlock` for NaN, Inf and blocks that the recipe's rule would make infinite: the first in row-major order.
    """
    shape = _rows_shape("x", x)
    _check("x", x, UINT[dtype], shape)
    _check_mxfp4(blocks, scales, shape, out=True)
    if x.size:
        _kernels().quantize_rows(x, dtype, recipe, _mx_packing(packing), blocks, scales)


def quantize_columns(x: Bits, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, scales: U8) -> None:
    """MXFP4 by `recipe` of columns `x` [K, N]: transposed and de-interleaved on the way. Errors as `quantize_rows`."""
    shape = _columns_shape(x, blocks.shape[1] if blocks.ndim == 4 else 0)
    _check("x", x, UINT[dtype], x.shape)
    _check_mxfp4(blocks, scales, shape, out=True)
    if x.size:
        _kernels().quantize_columns(x, dtype, recipe, _mx_packing(packing), blocks, scales)


def _require_exact(out_dtype: str) -> None:
    _require(out_dtype in ("BF16", "F32"), f"MXFP4 decodes to BF16 or F32, value for value, not to {out_dtype}")


def dequantize_rows(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """The values of MXFP4 as rows `out` [R, p, K] of BF16 or F32, exactly.

    `BadBlock` for scale byte 255 and for 253 and 254 where a value is 2^128 or more.
    """
    shape = _rows_shape("out", out)
    _require_exact(out_dtype)
    _check("out", out, UINT[out_dtype], shape, out=True)
    _check_mxfp4(blocks, scales, shape)
    if out.size:
        _kernels().dequantize_rows(blocks, scales, _mx_packing(packing), out, out_dtype)


def dequantize_columns(blocks: U8, scales: U8, packing: Packing, out: Bits, out_dtype: str) -> None:
    """The values of MXFP4 as columns `out` [K, N] of BF16 or F32: interleaved and transposed. See `dequantize_rows`."""
    shape = _columns_shape(out, blocks.shape[1] if blocks.ndim == 4 else 0)
    _require_exact(out_dtype)
    _check("out", out, UINT[out_dtype], out.shape, out=True)
    _check_mxfp4(blocks, scales, shape)
    if out.size:
        _kernels().dequantize_columns(blocks, scales, _mx_packing(packing), out, out_dtype)


def repack(blocks: U8, scales: U8, packing: Packing, out_blocks: U8, out_scales: U8, out_packing: Packing) -> None:
    """Move nibbles from one packing to another, and every scale byte as it is. Same packing: a copy."""
    _require(blocks.ndim == 4, f"blocks have shape {blocks.shape}, expected [R, p, G, 16]")
    shape = (blocks.shape[0], blocks.shape[1], blocks.shape[2] * 32)
    _check_mxfp4(blocks, scales, shape)
    _check_mxfp4(out_blocks, out_scales, shape, out=True)
    if blocks.size:
        _kernels().repack(blocks, scales, _mx_packing(packing), out_blocks, out_scales, _mx_packing(out_packing))


def _check_q8_0(blocks: U8, shape: tuple[int, int, int], *, out: bool = False) -> None:
    rows, parts, k = shape
    _require(k % 32 == 0, f"rows of {k} elements are no whole number of blocks of 32")
    _check("blocks", blocks, np.dtype(np.uint8), (rows, parts, k // 32, 34), out=out)


def quantize_q8_0(x: Bits, dtype: str, out: U8) -> None:
    """Q8_0 [R, p, G, 34] of rows `x` [R, p, K], as ggml does it. `BadBlock` for NaN, Inf, and a scale above F16's."""
    shape = _rows_shape("x", x)
    _check("x", x, UINT[dtype], shape)
    _check_q8_0(out, shape, out=True)
    if x.size:
        _kernels().quantize_q8_0(x, dtype, out)


def dequantize_q8_0(blocks: U8, out: Bits, out_dtype: str) -> int:
    """The values of Q8_0 as rows `out` [R, p, K]; returns how many `out_dtype` had to round (F32: none).

    `BadBlock` for a scale that is NaN or Inf, and for a value that `out_dtype` can only hold as Inf.
    """
    shape = _rows_shape("out", out)
    _check("out", out, UINT[out_dtype], shape, out=True)
    _check_q8_0(blocks, shape)
    return int(_kernels().dequantize_q8_0(blocks, out, out_dtype)) if out.size else 0


def transpose_to_rows(x: Bits, out: Bits) -> None:
    """Columns `x` [K, N] as rows `out` [R, p, K], of uint16 or uint32."""
    shape = _rows_shape("out", out)
    _require(out.dtype in (np.uint16, np.uint32), f"out is {out.dtype}, expected uint16 or uint32")
    _check("out", out, out.dtype, shape, out=True)
    _check("x", x, out.dtype, (shape[2], shape[0] * shape[1]))
    if x.size:
        _kernels().transpose_to_rows(x, out)


def transpose_to_columns(x: Bits, out: Bits) -> None:
    """Rows `x` [R, p, K] as columns `out` [K, N], of uint16 or uint32."""
    shape = _rows_shape("x", x)
    _require(x.dtype in (np.uint16, np.uint32), f"x is {x.dtype}, expected uint16 or uint32")
    _check("x", x, x.dtype, shape)
    _check("out", out, x.dtype, (shape[2], shape[0] * shape[1]), out=True)
    if x.size:
        _kernels().transpose_to_columns(x, out)


def _three_axes(x: Bits) -> Bits:
    """A view with three axes: more are refused, missing ones are put in front."""
    _require(x.ndim <= 3, f"{x.shape} has more than three axes")
    return x.reshape((1,) * (3 - x.ndim) + x.shape) if x.ndim < 3 else x


def convert(x: Bits, dtype: str, out: Bits, out_dtype: str) -> int:
    """`out_dtype` numbers of `dtype` numbers `x`, of the same shape (at most three axes), to nearest, ties to even.

    Returns how many values changed, that is, do not widen back to the same bits. `BadValue` where a finite value would
    become Inf. NaN and Inf pass through; a NaN's payload is cut where it must be, and counts as changed then.
    """
    _require(x.ndim > 0, "x is a scalar, expected an array")
    _check("x", x, UINT[dtype], x.shape)
    _check("out", out, UINT[out_dtype], x.shape, out=True)
    if not x.size:
        return 0
    if x.flags.c_contiguous and out.flags.c_contiguous:
        x, out = x.reshape(1, 1, -1), out.reshape(1, 1, -1)
    return int(_kernels().convert(_three_axes(x), dtype, _three_axes(out), out_dtype))
