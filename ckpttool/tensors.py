"""The nouns that every other module shares: what a file holds, and what it means.

A `StoredTensor` is one row of a file's header. A `Weight` is one module parameter in this checkpoint: one stored
tensor, two (codes and scales) or more, read through a codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpttool.codecs.formats import Codec


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One row of a file header.

    `shape` is in torch order (GGUF's reversed), `dtype` is the container's own word ("BF16", "U8", "MXFP4", "Q8_0"),
    `file` is the file's name inside the checkpoint, `offset` is absolute in that file, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


class Role(StrEnum):
    """What a stored tensor is to its weight."""

    codes = "codes"
    scales = "scales"
    global_scale = "global scale"
    zero_points = "zero points"
    group_order = "group of each column"
    shape = "shape"
    values = "values of the codes"
    state = "state"
    nested_scales = "scales of the scales"
    nested_values = "values of the scales' codes"
    input_scale = "scale of the input"
    input_zero_point = "zero point of the input"
    input_smoothing = "factors of the input"


@dataclass(frozen=True, slots=True)
class Weight:
    """One module parameter as this checkpoint stores it.

    `shape` is logical (two MXFP4 elements a byte are two elements), in the orientation in which it is stored; where a
    packing transposes (gptq, awq, hqq), that of the module's own parameter. `roles` says what each stored tensor is;
    empty, it is codes, and scales if there are two.
    """

    name: str
    codec: Codec
    shape: tuple[int, ...]
    stored: tuple[StoredTensor, ...]
    roles: tuple[Role, ...] = ()

    def stored_as(self, role: Role) -> StoredTensor | None:
        """The stored tensor of that role, or None; scales inside blocks (GGUF) are part of the codes."""
        roles = self.roles or (Role.codes, Role.scales)
        return next((t for t, r in zip(self.stored, roles, strict=False) if r is role), None)

    @property
    def parameters(self) -> int:
        """Logical elements; scales count none."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, scales included."""
        return sum(t.nbytes for t in self.stored)
