"""Rows of any codec as numbers to compute with: BF16 or F32 bits where these hold every value, else float64.

What `transcode` refuses to convert has a value here all the same: a block of scale byte 255 is NaN, and what float32
cannot hold is Inf.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import reference
from ckpttool.codecs.formats import BF16_FLAT, F32_FLAT, MXFP4, Codec, Packing
from ckpttool.codecs.packing import UNPACK
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Operand, transcode

Numbers = NDArray[Any]

OTHERS: Final = {
    "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2",
    "U8": "<u1", "BOOL": "<u1", "F8_E4M3": "e4m3", "F8_E5M2": "e5m2", "F8_E8M0": "e8m0",
}  # fmt: skip
"""Plain numbers that no kernel reads, by dtype: numpy's type of them, or which 256 values a byte stands for."""

_WIDTHS: Final = {"BF16": np.uint16, "F32": np.uint32}


def decodable(codec: Codec) -> bool:
    """Whether a row of this codec has values here."""
    return codec.readable or (codec.packing is Packing.flat and codec.name in OTHERS)


def meeting(a: Codec, b: Codec) -> str:
    """The numbers in which rows of `a` and of `b` meet without loss: "BF16", "F32" or "F64"."""
    if a.name in OTHERS or b.name in OTHERS:
        return "F64"
    narrow = ("BF16", "MXFP4")
    return "BF16" if a.name in narrow and b.name in narrow else "F32"


def values(rows: Operand, numbers: str) -> Numbers:
    """[R, K] of one part's rows, which are not transposed: a view where they are such numbers already.

    `numbers` as `meeting` says; `BadBlock` where BF16 cannot hold a value, which F32 then does as NaN or Inf.
    """
    if numbers == "F64":
        return _doubles(rows)
    if rows.codec.name == numbers:
        out: Numbers = rows.elements[:, 0]
        return out
    target = Operand(BF16_FLAT if numbers == "BF16" else F32_FLAT, (_room(rows, numbers),), 1)
    try:
        transcode(rows, target, None)
    except BadBlock:
        if numbers == "BF16":
            raise
        return _whatever(rows)
    return target.elements[:, 0]


def _row_length(rows: Operand) -> int:
    blocks: int = rows.fields[0].shape[-1] // rows.codec.block_nbytes[0]
    return blocks * rows.codec.format.block


def _room(rows: Operand, numbers: str) -> NDArray[np.uint8]:
    count = rows.fields[0].shape[0]
    return np.empty((count, 1, _row_length(rows) * np.dtype(_WIDTHS[numbers]).itemsize), np.uint8)


def _whatever(rows: Operand) -> Numbers:
    """F32 bits of blocks that may hold NaN and Inf."""
    if rows.codec.format == MXFP4:
        blocks, scales = rows.blocks_and_scales
        found = reference.dequantize(UNPACK[rows.codec.packing](blocks[:, 0]), np.ascontiguousarray(scales[:, 0]))
    else:  # Q8_0: every other codec has a value for every code
        structs = rows.structs[:, 0]
        d = np.ascontiguousarray(structs[..., :2]).view(np.float16).astype(np.float32)
        with np.errstate(invalid="ignore"):
            found = d * np.ascontiguousarray(structs[..., 2:]).view(np.int8).astype(np.float32)
    return np.ascontiguousarray(found).view(np.uint32).reshape(len(found), -1)


def _doubles(rows: Operand) -> Numbers:
    """float64 of any codec."""
    kind = OTHERS.get(rows.codec.name)
    if kind is None:
        with np.errstate(invalid="ignore"):
            wide: Numbers = np.ascontiguousarray(values(rows, "F32")).view(np.float32).astype(np.float64)
        return wide
    raw = np.ascontiguousarray(rows.fields[0][:, 0])
    if not kind.startswith("e"):
        out: Numbers = raw.view(kind).astype(np.float64)
        return out
    return _byte_values(kind)[raw]


def _byte_values(kind: str) -> Numbers:
    """What each of the 256 bytes means, as float64 (OCP 8-bit floating point v1.0, MX v1.0)."""
    byte = np.arange(256)
    if kind == "e8m0":
        return np.where(byte == 255, np.nan, np.ldexp(1.0, byte - 127))
    if kind == "e5m2":  # the upper half of an F16
        return (byte.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = np.ldexp(
        np.where(exponent == 0, mantissa, mantissa + 8).astype(np.float64), np.maximum(exponent, 1) - 10
    )
    return np.where(byte & 127 == 127, np.nan, np.where(byte & 128, -magnitude, magnitude))
