"""From one codec to another, whichever way the rows lie: picks the kernel.

An `Operand` is one side of the work in memory. Rows lie as views [R, p, row bytes], p parts zipped row by row; a
transposed operand is [experts, K, N * itemsize], its N columns being the zipped rows of one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpttool.codecs import cpu
from ckpttool.codecs.formats import F32_FLAT, MXFP4, Q8_0, Codec, Packing, Recipe
from ckpttool.codecs.plain import BadValue
from ckpttool.codecs.reference import BadBlock

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

Counts = tuple[int, ...]
"""Values that changed, of each part; a single number is of all parts together."""

UINTS: dict[int, npt.DTypeLike] = {2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True)
class Operand:
    """One side: `fields` holds the bytes of each stored tensor, last axis contiguous; `parts` are zipped."""

    codec: Codec
    fields: tuple[Bytes, ...]
    parts: int
    transposed: bool = False

    @property
    def elements(self) -> Array:
        """The elements of a plain operand as unsigned integers of their bits: [R, p, K] or [experts, K, N]."""
        return self.fields[0].view(UINTS[self.codec.block_nbytes[0]])

    @property
    def blocks_and_scales(self) -> tuple[Bytes, Bytes]:
        """MXFP4 as codes [R, p, G, 16] and scales [R, p, G], views into whichever packing."""
        if self.codec.packing is Packing.pair:
            codes, scales = self.fields
            return codes.reshape(*codes.shape[:-1], -1, 16), scales
        structs = self.structs
        return structs[..., 1:], structs[..., 0]

    @property
    def structs(self) -> Bytes:
        """Blocks of a ggml packing: [R, p, G, bytes of one]."""
        f = self.fields[0]
        n = self.codec.block_nbytes[0]
        shape = (*f.shape[:-1], f.shape[-1] // n, n)
        return np.lib.stride_tricks.as_strided(f, shape, (*f.strides[:-1], n, 1))


def transcode(source: Operand, target: Operand, recipe: Recipe | None) -> Counts:
    """Fill `target` from `source`; returns how many values changed where the target's format is the narrower one.

    They are counted by part, but where both sides are transposed, and so zipped.

    `recipe` says how MXFP4 is made, and is needed only where it is.

    Raises:
        BadBlock: a value that the target cannot hold, or that may not be quantized; rows are counted from the slab's.
    """
    if source.transposed and target.transposed:
        return (_convert_columns(source, target),)
    if not (source.transposed or target.transposed):
        return _rows(source, target, recipe)
    changed: list[Counts] = []
    experts = (source if source.transposed else target).fields[0].shape[0]
    for e in range(experts):
        a, b = _expert(source, e, experts), _expert(target, e, experts)
        try:
            changed.append(_from_columns(a, b, recipe) if source.transposed else _to_columns(a, b))
        except BadBlock as bad:
            rows = (b if source.transposed else a).fields[0].shape[0]
            raise BadBlock(bad.kind, (bad.index[0] + e * rows, *bad.index[1:])) from None
    return tuple(sum(column) for column in zip(*changed, strict=True))


def _expert(operand: Operand, e: int, experts: int) -> Operand:
    """Expert `e` of an operand that holds `experts` of them."""
    if operand.transposed:
        return Operand(operand.codec, tuple(f[e] for f in operand.fields), operand.parts, True)
    rows = operand.fields[0].shape[0] // experts
    return Operand(operand.codec, tuple(f[e * rows : (e + 1) * rows] for f in operand.fields), operand.parts)


def _from_columns(source: Operand, target: Operand, recipe: Recipe | None) -> Counts:
    """One expert, columns [K, N] to rows [R, p, ...]."""
    if target.codec.format == MXFP4:
        assert recipe is not None
        cpu.quantize_columns(
            source.elements, source.codec.name, recipe, target.codec.packing, *target.blocks_and_scales
        )
        return (0,)
    if source.codec == target.codec:
        cpu.transpose_to_rows(source.elements, target.elements)
        return (0,)
    upright = _upright(source)
    cpu.transpose_to_rows(source.elements, upright.elements)
    return _rows(upright, target, recipe)


def _to_columns(source: Operand, target: Operand) -> Counts:
    """One expert, rows [R, p, ...] to columns [K, N]."""
    if source.codec.format == MXFP4 and target.codec.name in ("BF16", "F32"):
        cpu.dequantize_columns(*source.blocks_and_scales, source.codec.packing, target.elements, target.codec.name)
        return (0,)
    if source.codec == target.codec:
        cpu.transpose_to_columns(source.elements, target.elements)
        return (0,)
    upright = _upright(target)
    changed = _rows(source, upright, None)
    cpu.transpose_to_columns(upright.elements, target.elements)
    return changed


def _upright(columns: Operand) -> Operand:
    """Room for one expert's columns [K, N] as rows [R, p, K]."""
    k, n = columns.elements.shape
    room = np.empty((n // columns.parts, columns.parts, k * columns.elements.itemsize), np.uint8)
    return Operand(columns.codec, (room,), columns.parts)


def _rows(source: Operand, target: Operand, recipe: Recipe | None) -> Counts:
    a, b = source.codec, target.codec
    if a == b:
        for x, y in zip(source.fields, target.fields, strict=True):
            np.copyto(y, x)
    elif a.format == b.format:
        cpu.repack(*source.blocks_and_scales, a.packing, *target.blocks_and_scales, b.packing)
    elif b.is_plain:
        return _decode(source, target)
    elif a.is_plain and b.format == MXFP4:
        assert recipe is not None
        cpu.quantize_rows(source.elements, a.name, recipe, b.packing, *target.blocks_and_scales)
    elif a.is_plain and b.format == Q8_0:
        cpu.quantize_q8_0(source.elements, a.name, target.structs)
    else:
        raise ValueError(f"nothing leads from {a.name} to {b.name}")
    return (0,)


def _decode(source: Operand, target: Operand) -> Counts:
    if source.codec.format == MXFP4 and target.codec.name in ("BF16", "F32"):
        cpu.dequantize_rows(*source.blocks_and_scales, source.codec.packing, target.elements, target.codec.name)
        return (0,)
    changed = []
    for part in range(source.parts):
        try:
            changed.append(_decode_part(_part(source, part), _part(target, part)))
        except BadBlock as bad:
            raise BadBlock(bad.kind, (bad.row, part, bad.block)) from None
    return tuple(changed)


def _part(rows: Operand, part: int) -> Operand:
    """One part of those that are zipped."""
    return Operand(rows.codec, tuple(f[:, part : part + 1] for f in rows.fields), 1)


def _decode_part(source: Operand, target: Operand) -> int:
    a, b = source.codec, target.codec
    if a.is_plain:
        return _convert(source.elements, a, target.elements, b)
    if a.format == Q8_0:
        return cpu.dequantize_q8_0(source.structs, target.elements, b.name)
    if a.format != MXFP4:
        values = _dequantize_other(source.fields[0], a).view(np.uint32)
        return _convert(values, F32_FLAT, target.elements, b)
    wide = np.empty(target.elements.shape, np.uint32)
    cpu.dequantize_rows(*source.blocks_and_scales, a.packing, wide, "F32")
    return _convert(wide, F32_FLAT, target.elements, b)


def _dequantize_other(rows: Bytes, codec: Codec) -> npt.NDArray[np.float32]:
    """A ggml type that we only decode, through the gguf package, which is the reference for it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    out: npt.NDArray[np.float32] = dequantize(np.ascontiguousarray(rows), GGMLQuantizationType[codec.name])
    return out


def _convert(x: Array, a: Codec, out: Array, b: Codec) -> int:
    """Rows [R, p, K] of plain numbers, rounded where `b` is the narrower."""
    try:
        return cpu.convert(x, a.name, out, b.name)
    except BadValue as bad:
        row, part, k = np.unravel_index(bad.index, x.shape)
        raise BadBlock("overflow", (int(row), int(part), int(k) // 32)) from bad


def _convert_columns(source: Operand, target: Operand) -> int:
    """Columns [experts, K, N] of plain numbers on both sides."""
    x = source.elements
    try:
        return cpu.convert(x, source.codec.name, target.elements, target.codec.name)
    except BadValue as bad:
        e, k, n = (int(i) for i in np.unravel_index(bad.index, x.shape))
        row = (e * x.shape[2] + n) // source.parts
        raise BadBlock("overflow", (row, n % source.parts, k // 32)) from bad
