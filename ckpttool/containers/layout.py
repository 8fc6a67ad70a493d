"""What a file will look like before it exists: its header, and where each tensor's bytes go."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckpttool.tensors import StoredTensor


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor that a file is to hold: `shape` in torch order, `dtype` the container's own word."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A whole file: `header` lies at byte 0, `tensors` at their absolute offsets, in file order; `size` is the file's.

    Whatever lies between tensors, and after the last, is padding and must be zero bytes.
    """

    name: str
    header: bytes = field(repr=False)
    tensors: tuple[StoredTensor, ...]
    size: int
