"""The nouns that every other module shares: what a file holds, and what it means.

A `StoredTensor` is one row of a file's header. A `Weight` is one module parameter in this checkpoint: one stored
tensor, or two (codes and scales), read through a codec.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Weight:
    """One module parameter as this checkpoint stores it.

    `shape` is logical (two MXFP4 elements a byte are two elements), in the orientation in which it is stored.
    """

    name: str
    codec: Codec
    shape: tuple[int, ...]
    stored: tuple[StoredTensor, ...]

    @property
    def parameters(self) -> int:
        """Logical elements; scales count none."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, scales included."""
        return sum(t.nbytes for t in self.stored)
