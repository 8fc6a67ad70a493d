"""What a conversion has finished, one JSON line a slab, so that it can go on where it stopped.

The first line names the plan. A line is written after the slab's bytes; a torn last line is dropped. Nothing here is
believed on resume: the bytes that a line claims are read again and compared with its CRCs.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished slab: the CRC-32 of each target range, and how many values changed, of all parts or of each."""

    slab: int
    crcs: tuple[int, ...]
    changed: tuple[int, ...]


def read_entries(path: Path, digest: str) -> list[Entry] | None:
    """The entries of the journal at `path`, or None where it is missing or belongs to another plan."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    head = _parsed(lines[0])
    if head is None or head.get("plan") != digest:
        return None
    entries = []
    for line in lines[1:]:
        entry = _entry(_parsed(line))
        if entry is None:
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
        return Entry(row["slab"], tuple(row["crcs"]), tuple(row["changed"])) if row else None
    except (KeyError, TypeError):
        return None


class Journal:
    """Appends entries; each is one write, so that threads and a kill leave whole lines."""

    def __init__(self, path: Path, digest: str, entries: Sequence[Entry]) -> None:
        """Write the journal anew with what is still believed, and keep it open."""
        fresh = path.with_suffix(".new")
        lines = [json.dumps({"plan": digest}), *map(_line, entries)]
        fresh.write_text("".join(line + "\n" for line in lines), "utf-8")
        fresh.replace(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))

    def add(self, entry: Entry) -> None:
        """Append one entry. OSError where the disk does not take all of it."""
        line = (_line(entry) + "\n").encode()
        if os.write(self._fd, line) != len(line):  # the rest of a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _line(entry: Entry) -> str:
    return json.dumps({"slab": entry.slab, "crcs": entry.crcs, "changed": entry.changed})
