"""Bytes as the parsers' source file: here, and at a remote end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpttool.containers.remote import RemoteHead

NAME = "mutant"


class MemoryFile:
    """Bytes as an open local file. A read beyond the end is a defect; `taken` counts what is read."""

    __slots__ = ("data", "name", "size", "taken")

    def __init__(self, data: bytes | bytearray) -> None:
        self.name = NAME
        self.data = data
        self.size = len(data)
        self.taken = 0

    def read(self, offset: int, n: int) -> bytes:
        assert 0 <= offset <= offset + n <= self.size, f"{n} bytes at {offset} of {self.size} are asked for"
        self.taken += n
        return bytes(self.data[offset : offset + n])

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        assert least <= most, f"at least {least} and at most {most} bytes are asked for"
        return self.read(offset, most)


class MemoryRanges:
    """Bytes at a remote end."""

    etag = sha256 = None

    def __init__(self, data: bytes) -> None:
        self.label = NAME
        self.size: int | None = len(data)
        self.data = data

    def fetch(self, start: int, stop: int, onto: bytearray | None = None) -> bytearray:
        out = bytearray() if onto is None else onto
        out += self.data[start:stop]
        return out

    def fill(self, start: int, view: memoryview) -> int:
        part = self.data[start : start + len(view)]
        view[: len(part)] = part
        return len(part)


def from_afar(parse: Callable[[Any], Any], data: bytes) -> Any:
    """What `parse` makes of a remote file of these bytes."""
    with RemoteHead(NAME, MemoryRanges(data)) as file:
        return parse(file)
