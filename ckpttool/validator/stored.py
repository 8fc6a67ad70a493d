"""A part's rows in memory as they are stored, on any device, decoded when they are used.

Shapes: E experts (1 for a part without), R rows of one, K elements of a row, G = K / 32 blocks.

Whatever the dialect, what comes out is a fresh contiguous [R, K]: equal values then make equal bits in every product
that follows, and two checkpoints that say the same compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
import torch

from ckpttool.archs.joins import Extent, PartShape
from ckpttool.codecs import cpu
from ckpttool.codecs.formats import E2M1_VALUES, F32_FLAT, MXFP4, Q8_0, Codec, Packing
from ckpttool.codecs.transcode import Operand, transcode

Tensor = torch.Tensor

PLAIN: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_UINTS: Final = {torch.bfloat16: torch.uint16, torch.float32: torch.uint32}
_NAMES: Final = {torch.bfloat16: "BF16", torch.float32: "F32"}

OVERFLOWS: Final = 253
"""Scale bytes from here on may decode to what BF16 and F32 hold as Inf or NaN alone, which no kernel returns."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of one part from one weight. `fields` are views of stored bytes, experts first.

    Plain: numbers [E, R, K], with any strides. MXFP4: blocks [E, R, G, 16] and scales [E, R, G]. Others: [E, R, bytes].
    """

    codec: Codec
    fields: tuple[Tensor, ...]

    @property
    def experts(self) -> int:
        """How many it holds."""
        return self.fields[0].shape[0]

    def decode(self, expert: int, rows: slice, dtype: torch.dtype) -> Tensor:
        """Rows of an expert as `dtype` (BF16 or F32), [R, K]; exact where `dtype` holds the value."""
        fields = tuple(f[expert, rows] for f in self.fields)
        if self.codec.name in PLAIN:
            return _copied(fields[0], dtype)
        if self.codec.format == MXFP4:
            # The GPU's kernel gives Inf and NaN where they are; to ask for them would wait for the GPU.
            if not fields[0].is_cuda and self._overflows:
                return _mxfp4_as_it_comes(fields[0], fields[1], self.codec.packing).to(dtype)
            return _mxfp4(fields[0], fields[1], self.codec.packing, dtype)
        if self.codec.format == Q8_0:
            return _q8_0(fields[0]).to(dtype)
        return _other(fields[0], self.codec).to(dtype)

    def fill(self, experts: slice, out: Tensor) -> None:
        """Decode some experts at once into `out` [n, R, K] of BF16, whose experts and rows are evenly spaced.

        On a GPU, or where Triton's interpreter runs. The same bits as `decode`'s.
        """
        fields = tuple(f[experts] for f in self.fields)
        if self.codec.format == MXFP4:
            blocks, scales = (f.flatten(0, 1)[:, None] for f in fields)
            by_triton(blocks, scales, self.codec.packing, out.view(-1, 1, out.shape[-1]))
        elif self.codec.name in PLAIN and fields[0].stride(-1) != 1:
            from ckpttool.validator.fused_kernels import lay_rows

            lay_rows(fields[0], out)
        elif self.codec.name in PLAIN:
            out.copy_(fields[0])
        else:
            for n in range(len(out)):
                out[n].copy_(self.decode(n + experts.start, slice(None), out.dtype))

    def zipped(self, other: Piece) -> Piece | None:
        """Both as one, row by row in turns, where they lie so in memory: as gate and up of Hugging Face's dialects."""
        fields = tuple(_zipped(a, b) for a, b in zip(self.fields, other.fields, strict=False))
        if self.codec != other.codec or None in fields:
            return None
        return Piece(self.codec, tuple(f for f in fields if f is not None))

    @cached_property
    def _overflows(self) -> bool:
        return bool((self.fields[1] >= OVERFLOWS).any())


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A canonical part: its shape, and the pieces that hold its experts in order."""

    shape: PartShape
    pieces: tuple[Piece, ...]

    def matrix(self, dtype: torch.dtype, expert: int = 0, rows: slice = slice(None)) -> Tensor:
        """An expert's rows, or those of a part without experts, as `dtype` [R, K]."""
        for piece in self.pieces:
            if expert < piece.experts:
                return piece.decode(expert, rows, dtype)
            expert -= piece.experts
        raise ValueError(f"there is no expert {expert} more")

    def vectors(self) -> Tensor:
        """A part that is no matrix, in its canonical shape, float32: a norm's weights, biases by expert."""
        found = [
            _copied(p.fields[0], torch.float32).flatten(0, 1)
            if p.codec.name in PLAIN
            else torch.cat([p.decode(e, slice(None), torch.float32) for e in range(p.experts)])
            for p in self.pieces
        ]
        return torch.cat(found).view(self.shape.shape)

    def fill(self, first: int, out: Tensor) -> None:
        """Decode experts from number `first` on into `out` [n, R, K]; see `Piece.fill`."""
        at = 0
        for piece in self.pieces:
            begin, end = max(first, at), min(first + len(out), at + piece.experts)
            if begin < end:
                piece.fill(slice(begin - at, end - at), out[begin - first : end - first])
            at += piece.experts

    def lies_as(self, dtype: torch.dtype, rows: slice) -> Tensor:
        """Rows as `dtype` [R, K], as `matrix`, but where they are stored so it is themselves, and not a copy."""
        (piece, *more) = self.pieces
        if not more and PLAIN.get(piece.codec.name) is dtype and piece.fields[0].is_contiguous():
            return piece.fields[0][0, rows]
        return self.matrix(dtype, rows=rows)


def fill_in_turns(a: StoredPart, b: StoredPart, first: int, out: Tensor) -> None:
    """Decode experts of two parts, from number `first` on, row by row in turns into `out` [n, R, 2, K]."""
    pairs = [x.zipped(y) for x, y in zip(a.pieces, b.pieces, strict=False)]
    if len(a.pieces) == len(b.pieces) and None not in pairs:
        both = PartShape((a.shape.rows[0], 2 * a.shape.rows[-1]), a.shape.k)
        StoredPart(both, tuple(p for p in pairs if p is not None)).fill(first, out.flatten(1, 2))
        return
    a.fill(first, out[:, :, 0])
    b.fill(first, out[:, :, 1])


def _zipped(a: Tensor, b: Tensor) -> Tensor | None:
    """[E, 2 R, ...] of a and b [E, R, ...] whose rows take turns in one memory; else None."""
    away = b.storage_offset() - a.storage_offset()
    same = (
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )
    if not same or 2 * away != a.stride(1):
        return None
    return a.as_strided(
        (a.shape[0], 2 * a.shape[1], *a.shape[2:]), (a.stride(0), away, *a.stride()[2:]), a.storage_offset()
    )


def piece_of(extent: Extent, part: str, shape: PartShape, fields: Sequence[Tensor]) -> Piece:
    """The rows of `part` that `extent` says are in a weight, whose stored tensors are `fields`, flat uint8."""
    codec, k, zipped = extent.weight.codec, shape.row_length, len(extent.parts)
    rows = shape.rows[-1]
    experts = (extent.stop - extent.start) // rows
    place = extent.parts.index(part)
    if extent.transposed:
        if extent.row or codec.name not in PLAIN:
            raise ValueError(f"{extent.weight.name}: only whole matrices of plain numbers are transposed")
        columns = fields[0].view(PLAIN[codec.name]).view(experts, k, rows * zipped)
        return Piece(codec, (columns[:, :, place::zipped].transpose(1, 2),))
    mine = []
    for field, nbytes in zip(fields, codec.row_nbytes(k), strict=True):
        lines = field.view(-1, nbytes)[extent.row + place :: zipped][: extent.stop - extent.start]
        mine.append(lines.view(experts, rows, nbytes))
    if codec.name in PLAIN:
        return Piece(codec, (mine[0].view(PLAIN[codec.name]),))
    if codec.format == MXFP4:
        if codec.packing is Packing.pair:
            return Piece(codec, (mine[0].view(experts, rows, -1, 16), mine[1]))
        structs = mine[0].view(experts, rows, -1, 17)
        return Piece(codec, (structs[..., 1:], structs[..., 0]))
    return Piece(codec, (mine[0],))


def _copied(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows.shape, dtype=dtype, device=rows.device).copy_(rows)


def _mxfp4(blocks: Tensor, scales: Tensor, packing: Packing, dtype: torch.dtype) -> Tensor:
    """By the compiled kernels. Both sides are of one part, and no scale overflows."""
    out = torch.empty((blocks.shape[0], 1, blocks.shape[1] * 32), dtype=dtype, device=blocks.device)
    b, s = blocks[:, None], scales[:, None]
    if out.is_cuda:
        by_triton(b, s, packing, out)
    else:
        cpu.dequantize_rows(b.numpy(), s.numpy(), packing, out.view(_UINTS[dtype]).numpy(), _NAMES[dtype])
    return out[:, 0]


def by_triton(blocks: Tensor, scales: Tensor, packing: Packing, out: Tensor) -> None:
    """Fill `out` [R, 1, K]; what the kernel would note cannot occur, and asking for it would wait for the GPU."""
    from ckpttool.codecs import gpu

    gpu.dequantize_rows(blocks, scales, packing, out, _NAMES[out.dtype], _unread_status(out.device))


@cache
def _unread_status(device: torch.device) -> Tensor:
    from ckpttool.codecs import gpu

    return gpu.new_status(device)


def _mxfp4_as_it_comes(blocks: Tensor, scales: Tensor, packing: Packing) -> Tensor:
    """float32 of any MXFP4: NaN for scale byte 255, Inf where F32 ends."""
    low, high = blocks & 15, blocks >> 4
    codes = torch.stack((low, high), -1).flatten(-2) if packing is Packing.pair else torch.cat((low, high), -1)
    values = torch.tensor([*E2M1_VALUES, *(-x for x in E2M1_VALUES)], device=blocks.device)
    # By bits: 2^-127 is subnormal, and a power function may flush it.
    bits = torch.where(scales == 0, 0x400000, scales.to(torch.int32) << 23)
    factor = torch.where(scales == 255, torch.nan, bits.view(torch.float32))
    return (values[codes.long()] * factor[..., None]).flatten(-2)


def _q8_0(rows: Tensor) -> Tensor:
    """float32 of blocks of an F16 scale and 32 signed bytes."""
    structs = rows.contiguous().view(len(rows), -1, 34)
    scale = structs[..., :2].contiguous().view(torch.float16).float()
    return (scale * structs[..., 2:].contiguous().view(torch.int8).float()).flatten(-2)


def _other(rows: Tensor, codec: Codec) -> Tensor:
    """float32 of a format that the gguf package decodes, on the CPU, wherever the bytes are."""
    source = rows.cpu().contiguous().numpy()[:, None]
    out = np.empty((len(source), 1, source.shape[-1] // codec.block_nbytes[0] * codec.format.block * 4), np.uint8)
    transcode(Operand(codec, (source,), 1), Operand(F32_FLAT, (out,), 1), None)
    return torch.from_numpy(out.view(np.float32)[:, 0]).to(rows.device)
