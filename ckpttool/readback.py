"""Reading back what was written, while later slabs are still being worked: compared with their CRCs, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ckpttool.containers.layout import FileLayout
from ckpttool.containers.source import LocalTarget
from ckpttool.crc import crc32
from ckpttool.errors import LocalIOError

CHUNK = 4 << 20

DIFFERS = "what was read back differs from what was written"
DIFFERS_HINT = "check the disk and the memory"


@dataclass(frozen=True, slots=True)
class Stretch:
    """`nbytes` of a file with a CRC-32: `crc` where it is known already, else that of range `index` of slab `slab`."""

    offset: int
    nbytes: int
    slab: int | None
    index: int
    crc: int | None


def stretches(layout: FileLayout, ranges: Sequence[tuple[int, int, int, int]]) -> list[Stretch]:
    """A file in order: header, ranges (offset, nbytes, slab, index) as slabs write them, zero padding between."""
    out = [Stretch(0, len(layout.header), None, 0, crc32(layout.header))]
    at = len(layout.header)
    for offset, nbytes, slab, index in sorted(ranges):
        if offset > at:
            out.append(_padding(at, offset))
        out.append(Stretch(offset, nbytes, slab, index, None))
        at = offset + nbytes
    if layout.size > at:
        out.append(_padding(at, layout.size))
    return out


def _padding(start: int, stop: int) -> Stretch:
    return Stretch(start, stop - start, None, 0, crc32(bytes(stop - start)))


def read_back(file: LocalTarget, found: Sequence[Stretch], crc_of: Callable[[int, int], int | None]) -> str | None:
    """The sha256 of the file as the disk gives it back, or None where the run has failed meanwhile.

    `crc_of(slab, index)` waits for the slab.

    Raises:
        LocalIOError: what comes back differs from what was written.
    """
    digest = hashlib.sha256()
    buffers = [np.empty(CHUNK, np.uint8).data for _ in range(2)]
    # sha256 is the slowest of the three, so it has a thread of its own: while it takes one chunk, the next is read.
    with ThreadPoolExecutor(1) as hasher:
        hashed = [hasher.submit(digest.update, b"") for _ in buffers]
        turn = 0
        for stretch in found:
            expected = stretch.crc if stretch.slab is None else crc_of(stretch.slab, stretch.index)
            if expected is None:
                return None
            crc = 0
            for at in range(stretch.offset, stretch.offset + stretch.nbytes, CHUNK):
                hashed[turn].result()
                view = buffers[turn][: min(CHUNK, stretch.offset + stretch.nbytes - at)]
                file.readinto(at, view)
                hashed[turn] = hasher.submit(digest.update, view)
                crc = crc32(view, crc)
                turn = 1 - turn
            if crc != expected:
                raise LocalIOError(DIFFERS, file=file.name, offset=stretch.offset, hint=DIFFERS_HINT)
    return digest.hexdigest()
