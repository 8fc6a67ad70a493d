"""How often each byte, and each code of MXFP4, occurs: for whoever looks at weights without decoding them.

Compiled where numba can be had (three to ten times as fast), by numpy elsewhere; the counts are the same.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import cpu

U8 = NDArray[np.uint8]
Counts = NDArray[np.int64]

BLOCK: Final = 16
"""Bytes of codes in a block."""

MASKS: Final = np.array([1 << (b & 7) | 1 << (b >> 4 & 7) for b in range(256)], np.uint8)
"""Which codes without their signs a byte holds, a bit each."""

TOPS: Final = np.array([max(0, m.bit_length() - 1) for m in range(256)], np.uint8)
"""The largest of them."""

_LARGEST: Final = TOPS[MASKS]


def count_bytes(data: U8, *, compiled: bool = True) -> Counts:
    """int64 [256]: how often each byte occurs in `data` [N], whose stride may be any.

    Without `compiled` by numpy in any case, which saves half a second where there is little to count.
    """
    run = max(1, len(data))
    found: Counts = count_runs(data, run, run, compiled=compiled)[0]
    return found


def count_runs(data: U8, first: int, run: int, *, compiled: bool = True) -> Counts:
    """int64 [runs, 256]: the same of each run of `data` [N], of which the first has `first` bytes, the others `run`."""
    if data.ndim != 1 or data.dtype != np.uint8 or not 0 < first <= run:
        raise ValueError(f"{data.dtype} {data.shape} in runs of {first} and {run} is no uint8 [N]")
    if compiled and cpu.backend() == "numba":
        found: Counts = importlib.import_module("ckpttool.codecs.cpu_counting").count_runs(data, first, run)
        return found
    starts = [0, *range(first, len(data), run), len(data)]
    return np.stack([_folded(data[a:b]) for a, b in pairwise(starts)])


def count_blocks(codes: U8, scales: U8, *, compiled: bool = True) -> tuple[Counts, Counts]:
    """Of `codes` [N, 16], two a byte, and `scales` [N], with any stride of blocks: int64 [256] and [256, 8].

    The first counts the bytes of the codes, the second blocks by scale byte and largest code without its sign.
    """
    if codes.shape != (len(scales), BLOCK) or codes.dtype != np.uint8 or scales.dtype != np.uint8:
        raise ValueError(f"{codes.dtype} {codes.shape} with scales {scales.dtype} {scales.shape}")
    if codes.size and codes.strides[1] != 1:
        raise ValueError("the bytes of a block must lie one after the other")
    if compiled and cpu.backend() == "numba":
        found: tuple[Counts, Counts] = importlib.import_module("ckpttool.codecs.cpu_counting").count_blocks(
            codes, scales
        )
        return found
    largest = _LARGEST[codes].max(1, initial=0).astype(np.intp)
    table = np.bincount(scales.astype(np.intp) * 8 + largest, minlength=2048).reshape(256, 8)
    return _folded(np.ascontiguousarray(codes).reshape(-1)), table


def count_codes(byte_counts: Counts) -> Counts:
    """int64 [16]: how often each code occurs in bytes that hold two, by how often each byte does."""
    grid = byte_counts.reshape(16, 16)
    found: Counts = grid.sum(0) + grid.sum(1)
    return found


def _folded(data: U8) -> Counts:
    """Pairs of bytes at a time, which is what `bincount` is fast at."""
    flat: NDArray[Any] = np.ascontiguousarray(data)
    even = len(flat) // 2 * 2
    pairs = np.bincount(flat[:even].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    out: Counts = pairs.sum(0) + pairs.sum(1)
    if even < len(flat):
        out[flat[-1]] += 1
    return out
