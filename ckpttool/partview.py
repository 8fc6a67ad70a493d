"""A canonical part as something that can be indexed: each expert is read and decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from ckpttool.archs.joins import Extent
from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import F32_FLAT
from ckpttool.codecs.transcode import Operand, transcode
from ckpttool.containers.remote import open_file
from ckpttool.errors import InputError, raise_all
from ckpttool.slabwork import lay
from ckpttool.steps import Fidelity, Kind, Side, Slab, Step

Floats = npt.NDArray[np.float32]


class PartView:
    """One part of a checkpoint: `shape` is canonical, `view[i]` decodes to float32.

    An expert part is indexed by expert; any other has the single index 0, and `array()` decodes all of either.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        if name not in checkpoint.extents:
            raise_all(checkpoint.problems)
            known = ", ".join(list(checkpoint.extents)[:3])
            hint = f"parts are named {known}, ..."
            raise InputError("no such part", file=str(checkpoint.path), field=name, hint=hint)
        weight = next((x.weight for x in checkpoint.extents[name] if not x.weight.codec.readable), None)
        if weight is not None:
            text = f"is {weight.codec.name} in {weight.codec.packing} packing, which cannot be decoded"
            hint = "take the checkpoint that it was made from: BF16 or MXFP4"
            raise InputError(text, file=weight.stored[0].file, field=weight.name, hint=hint)
        self._checkpoint = checkpoint
        self.name = name
        self._shape = checkpoint.shapes[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical logical shape, experts first, the contraction axis last."""
        return self._shape.shape

    def __len__(self) -> int:
        rows = self._shape.rows
        return rows[0] if len(rows) > 1 else 1

    def __iter__(self) -> Iterator[Floats]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Floats:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self.name} has {count} experts, not {index}")
        rows = self._shape.row_count // count
        found = self._decoded(index % count * rows, rows)
        return found.reshape(self.shape[1:] if count > 1 or len(self._shape.rows) > 1 else self.shape)

    def array(self) -> Floats:
        """The whole part."""
        return np.stack(list(self)) if len(self._shape.rows) > 1 else self[0]

    def _decoded(self, start: int, rows: int) -> Floats:
        extents = self._checkpoint.extents[self.name]
        extent = next(x for x in extents if x.start <= start and start + rows <= x.stop)
        step = self._step(extent)
        slab = Slab(0, start, start + rows)
        k, parts = self._shape.row_length, len(extent.parts)
        buffer = np.empty(rows * parts * sum(step.source.codec.row_nbytes(k)), np.uint8)
        source = lay(step.source, slab, step, buffer)
        for at, view in source.pieces:
            with open_file(self._checkpoint.places[at.file], at.file) as f:
                f.readinto(at.offset, view.data)
        read = {at.file for at, _ in source.pieces}
        for file in self._checkpoint.files:
            if file.name in read:
                file.require_unchanged()
        out = np.empty((rows, parts, 4 * k), np.uint8)
        transcode(source.operand, Operand(F32_FLAT, (out,), parts), None)
        floats: Floats = out.view(np.float32)
        return np.ascontiguousarray(floats[:, extent.parts.index(self.name)])

    def _step(self, extent: Extent) -> Step:
        side = Side(extent.weight.codec, extent.transposed, len(extent.parts) > 1, ((extent,),))
        wide = Side(F32_FLAT, False, side.zipped, side.extents)
        count = prod(self._shape.rows[1:]) if len(self._shape.rows) > 1 else self._shape.row_count
        return Step(extent.parts, self._shape.row_count, self._shape.row_length, count, side, wide,
                    Kind.dequantize, Fidelity.values, None)  # fmt: skip
