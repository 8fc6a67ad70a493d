"""Tensor data for whoever counts: ranges of files, several at a time, each in a buffer that is used again.

Memory is bounded by threads times a slab. What a slab comes to is added up under a lock, so that counts may be plain.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.containers import limits
from ckpttool.containers.remote import FilePath, RemoteFile, open_file
from ckpttool.containers.source import LocalFile
from ckpttool.threads import CORES, share

U8 = NDArray[np.uint8]

SLAB: Final = 4 << 20
"""Bytes that are read at a time: some experts' scales, or a piece of one expert's blocks."""

MOST_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file; `offset` is absolute."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """One slab: `ranges` are read together, `count` is called on their bytes on any thread, `add` under a lock."""

    ranges: tuple[Range, ...]
    count: Callable[[Sequence[U8]], Any]
    add: Callable[[Any], None]

    @property
    def nbytes(self) -> int:
        """What is read."""
        return sum(r.nbytes for r in self.ranges)


class _Files:
    """Every file opened once, for all threads."""

    def __init__(self, places: Mapping[str, FilePath]) -> None:
        self._places = places
        self._open: dict[str, LocalFile | RemoteFile] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> LocalFile | RemoteFile:
        with self._lock:
            if name not in self._open:
                self._open[name] = open_file(self._places[name], name)
            return self._open[name]

    def close(self) -> None:
        for f in self._open.values():
            f.close()


class _Reader:
    """One thread's part: a buffer for slab after slab."""

    def __init__(self, files: _Files, total: _Total, progress: Callable[[int], None]) -> None:
        self._files = files
        self._total = total
        self._progress = progress
        self._buffer: U8 = np.empty(0, np.uint8)

    def work(self, job: Job) -> None:
        """Read the slab, count, and add what was counted."""
        if job.nbytes > len(self._buffer):
            self._buffer = np.empty(max(job.nbytes, SLAB), np.uint8)
        views, at = [], 0
        for r in job.ranges:
            view = self._buffer[at : at + r.nbytes]
            self._files.get(r.file).readinto(r.offset, view.data)
            views.append(view)
            at += r.nbytes
        found = job.count(views)
        with self._total.lock:
            job.add(found)
            self._total.nbytes += job.nbytes
        self._progress(job.nbytes)


@dataclass
class _Total:
    """What all threads add to."""

    nbytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def read_all(
    jobs: Iterable[Job], places: Mapping[str, FilePath], progress: Callable[[int], None], workers: int | None = None
) -> int:
    """Do all `jobs`; the bytes that were read. `places` are the files by name, `workers` threads (None: by cores).

    Raises:
        InputError, LocalIOError, NetworkError: a file ends early, or cannot be read.
    """
    files, total = _Files(places), _Total()
    remote = any(not isinstance(p, os.PathLike) for p in places.values())
    count = workers or (limits.REMOTE_PARALLEL if remote else min(MOST_THREADS, CORES))
    try:
        share(jobs, [_Reader(files, total, progress).work for _ in range(count)])
    finally:
        files.close()
    return total.nbytes
