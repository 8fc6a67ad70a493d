"""The compiled kernels behind `counting`: tables of counts, four of them, so that a byte need not wait for the last."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.counting import BLOCK, MASKS, TOPS, U8, Counts
from ckpttool.codecs.cpu_jit import inlined, kernel
from ckpttool.codecs.cpu_lanes import BITS8, BITS64, peek, poke

TABLES: Final = 4
_TABLE: Final = 256 * 8
"""Bytes of a table."""


@inlined
def _bump(table: int, index: int) -> None:
    at = table + 8 * index
    poke(BITS64, at, peek(BITS64, at) + 1)


@kernel
def _count_bytes(unit: Any, source: int, stride: int, count: int, tables: int) -> None:
    """`count` bytes, `stride` apart, into four tables of 256 int64."""
    whole = count // 4 * 4
    for i in range(0, whole, 4):
        at = source + i * stride
        _bump(tables, peek(unit, at))
        _bump(tables + _TABLE, peek(unit, at + stride))
        _bump(tables + 2 * _TABLE, peek(unit, at + 2 * stride))
        _bump(tables + 3 * _TABLE, peek(unit, at + 3 * stride))
    for i in range(whole, count):
        _bump(tables, peek(unit, source + i * stride))


@kernel
def _count_blocks(
    unit: Any, codes: int, step: int, scales: int, stride: int, blocks: int, tables: int, luts: int, largest: int
) -> None:
    """Blocks of 16 bytes; `luts` are MASKS and TOPS, `largest` is [256, 8] of int64."""
    for i in range(blocks):
        at = codes + i * step
        seen = 0
        for j in range(0, BLOCK, 4):
            a, b = peek(unit, at + j), peek(unit, at + j + 1)
            c, d = peek(unit, at + j + 2), peek(unit, at + j + 3)
            seen |= peek(unit, luts + a) | peek(unit, luts + b) | peek(unit, luts + c) | peek(unit, luts + d)
            _bump(tables, a)
            _bump(tables + _TABLE, b)
            _bump(tables + 2 * _TABLE, c)
            _bump(tables + 3 * _TABLE, d)
        _bump(largest, peek(unit, scales + i * stride) * 8 + peek(unit, luts + 256 + seen))


def _address(a: NDArray[Any]) -> int:
    return int(a.__array_interface__["data"][0])


def count_bytes(data: U8) -> Counts:
    """See `counting.count_bytes`."""
    tables = np.zeros((TABLES, 256), np.int64)
    if data.size:
        _count_bytes(BITS8, _address(data), data.strides[0], len(data), _address(tables))
    total: Counts = tables.sum(0)
    return total


_LUTS: Final = np.concatenate([MASKS, TOPS])


def count_blocks(codes: U8, scales: U8) -> tuple[Counts, Counts]:
    """See `counting.count_blocks`."""
    tables, largest = np.zeros((TABLES, 256), np.int64), np.zeros((256, 8), np.int64)
    if codes.size:
        _count_blocks(
            BITS8, _address(codes), codes.strides[0], _address(scales), scales.strides[0], len(scales),
            _address(tables), _address(_LUTS), _address(largest),
        )  # fmt: skip
    return tables.sum(0), largest
