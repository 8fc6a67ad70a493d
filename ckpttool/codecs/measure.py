"""How far two arrays of numbers are apart, row by row: the definition in numpy, and the choice of what computes it.

Equality is that of IEEE 754, with two rules stated: -0 equals 0, and NaN equals NaN. An infinity equals itself. Errors
are summed over elements that are finite on both sides; a pair that differs and is not finite on both is counted apart.

Sums are float64 in an order that is part of the definition, so that every backend and machine gives the same bits: lane
j of eight adds elements j, j + 8, j + 16 ... one after the other, and the lanes are added in pairs
((0+4) + (2+6)) + ((1+5) + (3+7)).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import cpu, plain

Bits = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

LANES = 8


@dataclass(frozen=True, slots=True)
class RowErrors:
    """Of each row, with a the reference and d = b - a: sum of d * d, sum of a * a, largest |d|, and three counts.

    `differing` elements are unequal, `nonfinite` of them not finite on one side or both; `zero_signs` are pairs of 0
    and -0, which are equal.
    """

    noise: Floats
    signal: Floats
    largest: Floats
    differing: Counts
    nonfinite: Counts
    zero_signs: Counts


def measure(a: Bits, b: Bits, dtype: str) -> RowErrors:
    """The errors of `b` against `a`, both [R, K] with any stride of rows, the last axis contiguous.

    `dtype` BF16 and F32 are unsigned integers of the bits; F64 is float64 itself.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"shapes {a.shape} and {b.shape}: expected the same [R, K]")
    if dtype == "F64":
        return measure_floats(a, b)
    for x in (a, b):
        if x.dtype != plain.UINT[dtype] or (x.size and x.shape[1] > 1 and x.strides[1] != x.itemsize):
            raise ValueError(f"{x.dtype} with strides {x.strides} is no {dtype} with a contiguous last axis")
    if cpu.backend() == "numba":
        found: RowErrors = importlib.import_module("ckpttool.codecs.cpu_measure").measure(a, b)
        return found
    return measure_floats(_wide(a, dtype), _wide(b, dtype))


def joined(pieces: Sequence[RowErrors]) -> RowErrors:
    """The rows of several, one after the other."""
    columns = ([getattr(p, f.name) for p in pieces] for f in fields(RowErrors))
    return RowErrors(*(np.concatenate(c) for c in columns))


def _wide(bits: Bits, dtype: str) -> Floats:
    # Out of place: a signalling NaN may not raise, and astype keeps every other value exactly.
    with np.errstate(invalid="ignore"):
        return plain.widen(np.ascontiguousarray(bits), dtype).view(np.float32).astype(np.float64)


def differing(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Where two arrays hold different values: NaN equals NaN, -0 equals 0."""
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = (a != b) & ((a == a) | (b == b))
    return found


def measure_floats(a: Floats, b: Floats) -> RowErrors:
    """The definition, on float64 [R, K]."""
    finite = np.isfinite(a) & np.isfinite(b)
    unequal = differing(a, b)
    zeros = (a == 0) & (b == 0) & (np.signbit(a) != np.signbit(b))
    with np.errstate(over="ignore", invalid="ignore"):
        d = np.where(finite, b - a, 0.0)
        s = np.where(finite, a, 0.0)
        return RowErrors(
            _lane_sums(d * d), _lane_sums(s * s), np.abs(d).max(-1, initial=0.0),
            unequal.sum(-1), (unequal & ~finite).sum(-1), zeros.sum(-1),
        )  # fmt: skip


def _lane_sums(x: Floats) -> Floats:
    """Each row's sum in the order of this module; `x` [R, K]."""
    rows, k = x.shape
    lanes = np.zeros((rows, LANES))
    for start in range(0, k, LANES):
        piece = x[:, start : start + LANES]
        lanes[:, : piece.shape[1]] += piece
    four = lanes[:, :4] + lanes[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return two[:, 0] + two[:, 1]
