"""In which key-values a GGUF differs from the one that was planned: names for what else were a byte's offset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.containers import gguf
from ckpttool.containers.gguf_values import Scalar, Value
from ckpttool.containers.layout import FileLayout
from ckpttool.containers.remote import RemoteFile, RemoteHead
from ckpttool.containers.source import ReadableFile
from ckpttool.errors import CkptError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WORDS = 60


def differing_keys(layout: FileLayout, made: ReadableFile) -> Iterator[str]:
    """A finding for each key-value that `made` has otherwise; none where it is no GGUF, or its header is damaged."""
    if not layout.header.startswith(gguf.MAGIC):
        return
    planned = gguf.read_table(_Planned(layout.name, layout.header, layout.size), layout.name).metadata
    try:
        head = RemoteHead(made.name, made.ranges) if isinstance(made, RemoteFile) else made
        there = gguf.read_table(head, layout.name).metadata
    except CkptError:  # then its first byte that differs is all that can be told
        return
    for key in {**planned, **there}:
        if planned.get(key) != there.get(key):
            here, wanted = _word(there.get(key), "missing"), _word(planned.get(key), "nothing")
            yield f"{layout.name}: {key} is {here}, from the source comes {wanted}"


def _word(value: Value | None, absent: str) -> str:
    if value is None:
        return absent
    text = repr(value.value) if isinstance(value, Scalar) else f"an array of {value.count:,} values"
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


@dataclass(frozen=True)
class _Planned:
    """A file of which only the header is there."""

    name: str
    header: bytes
    size: int

    def read(self, offset: int, n: int) -> bytes:
        return self.header[offset : offset + n]

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        return self.read(offset, most)

    def readinto(self, offset: int, buffer: WriteableBuffer) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))
