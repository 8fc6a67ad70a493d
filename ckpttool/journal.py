"""What a conversion has finished, one JSON line a slab, so that it can go on where it stopped.

The first line names the plan. A line is written after the slab's bytes, and ends with a CRC-32 of its own: from a line
on that is torn or damaged, nothing counts. What a line says of bytes is not believed on resume: they are read again and
compared with its CRCs. A file that was delivered and removed has a line too; whoever got it is asked again.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.crc import crc32
from ckpttool.errors import os_errors


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished slab: the CRC-32 of each target range, and how many values changed, of all parts or of each."""

    slab: int
    crcs: tuple[int, ...]
    changed: tuple[int, ...]

    def fits(self, ranges: int, parts: int) -> bool:
        """Whether it can be of a slab of so many target ranges and parts."""
        return len(self.crcs) == ranges and len(self.changed) in (1, parts)


@dataclass(frozen=True, slots=True)
class Freed:
    """A file that somebody else has, and that lies here no more."""

    file: str
    nbytes: int
    sha256: str


def read_entries(path: Path, digest: str) -> list[Entry] | None:
    """The slabs in the journal at `path`, or None where it is missing or belongs to another plan."""
    lines = _read(path, digest)
    return None if lines is None else [line for line in lines if isinstance(line, Entry)]


def read_freed(path: Path, digest: str) -> list[Freed]:
    """The files that are freed by the journal at `path`; none where it is missing or belongs to another plan."""
    return [line for line in _read(path, digest) or () if isinstance(line, Freed)]


def _read(path: Path, digest: str) -> list[Entry | Freed] | None:
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    head = _parsed(lines[0])
    if head is None or head.get("plan") != digest:
        return None
    entries: list[Entry | Freed] = []
    for line in lines[1:]:
        row = _parsed(line)
        entry = _freed(row) if row and "file" in row else _entry(row)
        if entry is None or _line(entry) != line:  # which tells its CRC too
            break
        entries.append(entry)
    return entries


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _entry(row: dict[str, Any] | None) -> Entry | None:
    """A line's entry, or None where the line is torn or none of ours."""
    try:
        entry = Entry(row["slab"], tuple(row["crcs"]), tuple(row["changed"])) if row else None
    except (KeyError, TypeError):
        return None
    if entry is None or any(type(n) is not int or n < 0 for n in (entry.slab, *entry.crcs, *entry.changed)):
        return None
    return entry


def _freed(row: dict[str, Any]) -> Freed | None:
    found = Freed(row["file"], row.get("nbytes", -1), row.get("sha256", ""))
    texts = all(type(text) is str for text in (found.file, found.sha256))
    return found if texts and type(found.nbytes) is int and found.nbytes >= 0 else None


class Journal:
    """Appends entries; each is one write, so that threads and a kill leave whole lines."""

    def __init__(self, path: Path, digest: str, entries: Sequence[Entry | Freed]) -> None:
        """Write the journal anew with what is still believed, and keep it open."""
        fresh = path.with_suffix(".new")
        lines = [json.dumps({"plan": digest}).encode(), *map(_line, entries)]
        with os_errors(fresh):
            fresh.write_bytes(b"".join(line + b"\n" for line in lines))
            fresh.replace(path)
        self._lock = threading.Lock()
        self._path = path
        with os_errors(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))

    def add(self, entry: Entry | Freed) -> None:
        """Append one entry. LocalIOError where the disk does not take all of it, ValueError once it is closed."""
        line = _line(entry) + b"\n"
        with self._lock, os_errors(self._path):
            if self._fd < 0:
                raise ValueError("the journal is closed")
            if os.write(self._fd, line) != len(line):  # the rest of a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Bring to the disk what was added."""
        with self._lock, os_errors(self._path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; again is fine. A thread that is late then cannot write into another file of that number."""
        with self._lock, os_errors(self._path):
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _line(entry: Entry | Freed) -> bytes:
    """The entry's line, without its end."""
    row: dict[str, Any]
    if isinstance(entry, Freed):
        row = {"file": entry.file, "nbytes": entry.nbytes, "sha256": entry.sha256}
    else:
        row = {"slab": entry.slab, "crcs": entry.crcs, "changed": entry.changed}
    return json.dumps(row | {"check": crc32(json.dumps(row).encode())}).encode()
