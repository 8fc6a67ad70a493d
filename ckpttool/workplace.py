"""The folder of an unfinished conversion: locked, taken up again, and put in place as a whole.

The commit may be interrupted too, between the renames of a split set: a marker says that everything is made, and the
same command then only finishes the renames.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ckpttool.commit import exists_error, move_in, sync_folder
from ckpttool.containers.source import LocalTarget
from ckpttool.crc import crc32
from ckpttool.errors import LocalIOError
from ckpttool.journal import Entry, read_entries
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.reports import Conversion, load_conversion
from ckpttool.steps import target_ranges

OURS = frozenset({"files", "journal", "journal.new", "lock", "complete"})
"""What the folder of an unfinished conversion may hold; it is deleted at the end."""


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """The folder of the unfinished conversion, made if need be, and ours alone while we work in it."""
    place.staged.mkdir(parents=True, exist_ok=True)
    strangers = sorted({p.name for p in place.partial.iterdir()} - OURS)
    if strangers:
        hint = "conversions are made there; move it away, or choose another TARGET"
        raise LocalIOError(f"holds {strangers[0]}, which is not ours", file=str(place.partial), hint=hint)
    fd = os.open(place.partial / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        # A run that ends takes its lock file along: what we then hold is no lock.
        if not _lock(fd) or not (place.partial / "lock").exists():
            hint = "wait for it, or choose another TARGET"
            raise LocalIOError("another conversion is writing here", file=str(place.partial), hint=hint)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def resumed(plan: Plan) -> dict[int, Entry]:
    """The slabs of an earlier run that are still there, byte for byte; everything else of it is removed."""
    place = plan.place
    entries = read_entries(place.partial / "journal", plan.digest)
    if entries is None:
        shutil.rmtree(place.staged)
        place.staged.mkdir()
        return {}
    sizes = {layout.name: layout.size for layout in plan.files}
    held: dict[str, LocalTarget] = {}
    with contextlib.ExitStack() as stack:
        for path in place.staged.iterdir():
            if path.is_file() and not path.is_symlink() and path.stat().st_size == sizes.get(path.name):
                held[path.name] = stack.enter_context(LocalTarget.open(path, path.name))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return {e.slab: e for e in entries if 0 <= e.slab < len(plan.slabs) and _is_there(plan, e, held)}


def _is_there(plan: Plan, entry: Entry, held: dict[str, LocalTarget]) -> bool:
    slab = plan.slabs[entry.slab]
    ranges = target_ranges(plan.steps[slab.step], slab)
    if len(ranges) != len(entry.crcs):
        return False
    for at, crc in zip(ranges, entry.crcs, strict=True):
        if at.file not in held:
            return False
        buffer = np.empty(at.nbytes, np.uint8).data
        held[at.file].readinto(at.offset, buffer)
        if crc32(buffer) != crc:
            return False
    return True


def is_complete(place: Place, digest: str) -> bool:
    """Whether all files of this plan are made, so that only renames are left."""
    try:
        return (place.partial / "complete").read_text("ascii") == digest
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return False


def complete(place: Place, digest: str) -> None:
    """Say so, durably."""
    write_durably(place.partial / "complete", digest)
    sync_folder(place.partial)


def write_durably(path: Path, text: str) -> None:
    """Write a small file and have it on the disk."""
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def commit(place: Place, digest: str, overwrite: bool) -> Conversion:
    """Rename what is made to where it belongs, or what an interrupted commit left of it; returns the receipt.

    Raises:
        LocalIOError: a target exists and may not be replaced, or the file system refuses.
    """
    if place.is_folder:
        # After an exchange the old target lies there, under another receipt; it is only to be deleted.
        if _is_of(place.staged / place.receipt_name, digest):
            move_in(place.staged, place.path, overwrite=overwrite)
    else:
        left = [path for path in place.finals if os.path.lexists(place.staged / path.name)]
        place.path.parent.mkdir(parents=True, exist_ok=True)
        for path in left:
            if os.path.lexists(path) and not overwrite:
                raise exists_error(path)
        if (place.staged / place.receipt_name).exists():
            move_in(place.staged / place.receipt_name, place.receipt, overwrite=True)
        for path in left:
            move_in(place.staged / path.name, path, overwrite=overwrite)
    conversion = load_conversion(place.receipt.read_text("utf-8"))
    shutil.rmtree(place.partial)
    return conversion


def _is_of(receipt: Path, digest: str) -> bool:
    return receipt.is_file() and load_conversion(receipt.read_text("utf-8")).plan == digest
