"""The folder of an unfinished conversion: locked, taken up again, and put in place as a whole.

Nothing that an interrupted run has left is believed: slabs are held against their CRCs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from ckpttool.commit import move_in
from ckpttool.containers.source import LocalTarget
from ckpttool.crc import crc32
from ckpttool.errors import LocalIOError
from ckpttool.journal import Entry, Freed, read_entries, read_freed
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.preflight import check_vacant
from ckpttool.steps import target_ranges

OURS = frozenset({"files", "files.old", "files.replaced", "journal", "journal.new", "lock"})
"""What the folder of an unfinished conversion may hold; it is deleted at the end."""


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """The folder of the unfinished conversion, made if need be, and ours alone while we work in it.

    Raises:
        LocalIOError: another run works there, or it holds what no conversion has made.
    """
    _refuse_strangers(place.partial)
    place.partial.mkdir(parents=True, exist_ok=True)
    path = place.partial / "lock"
    hint = "wait for it, or choose another TARGET"
    busy = LocalIOError("another conversion is writing here", file=str(place.partial), hint=hint)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except FileNotFoundError as e:  # it has ended since, and taken the folder along
        raise busy from e
    try:
        if not _lock(fd) or not _is_at(fd, path):
            raise busy
        yield
    finally:
        with contextlib.suppress(OSError):  # nothing was written by it
            os.close(fd)


def _refuse_strangers(partial: Path) -> None:
    """A folder of this name that somebody else made is neither written into nor deleted."""
    if not os.path.lexists(partial):
        return
    hint = "conversions are made there; move it away, or choose another TARGET"
    if partial.is_symlink() or not partial.is_dir():
        raise LocalIOError("is no folder of ours", file=str(partial), hint=hint)
    held = names(partial)
    strangers = sorted(held - OURS) or sorted(held if "lock" not in held else ())
    strangers += sorted(n for n in held if (partial / n).is_symlink())
    if strangers:
        raise LocalIOError(f"holds {strangers[0]}, which is not ours", file=str(partial), hint=hint)


def names(folder: Path) -> set[str]:
    """What a folder holds; nothing where there is none, or it has just been deleted."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return {p.name for p in folder.iterdir()}
    return set()


def _is_at(fd: int, path: Path) -> bool:
    """Whether the file we hold still has its name: a run that ends takes its lock along, and the next makes another."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


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


def freed(plan: Plan) -> list[Freed]:
    """The files that an earlier run has delivered and deleted, as it says."""
    pinned = all(f.version is not None for f in plan.source.files)
    return read_freed(plan.place.partial / "journal", plan.digest) if pinned else []


def resumed(plan: Plan, freed: Collection[str] = ()) -> dict[int, Entry]:
    """The slabs of an earlier run that are still there, byte for byte; everything else of it is removed.

    Of `freed` files all is done, and nothing lies here.
    """
    place = plan.place
    entries = read_entries(place.partial / "journal", plan.digest)
    if entries is not None and any(f.version is None for f in plan.source.files):
        entries = None  # nothing says that the source still is what it was
    if entries is None and place.staged.exists():
        shutil.rmtree(place.staged)
    place.staged.mkdir(exist_ok=True)
    if entries is None:
        return {}
    sizes = {layout.name: layout.size for layout in plan.files}
    held: dict[str, LocalTarget] = {}
    with contextlib.ExitStack() as stack:
        for path in place.staged.iterdir():
            whole = path.is_file() and not path.is_symlink() and path.stat().st_size == sizes.get(path.name)
            if whole and path.name not in freed:
                held[path.name] = stack.enter_context(LocalTarget.open(path, path.name))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return {e.slab: e for e in entries if 0 <= e.slab < len(plan.slabs) and _is_there(plan, e, held, freed)}


def _is_there(plan: Plan, entry: Entry, held: Mapping[str, LocalTarget], freed: Collection[str]) -> bool:
    slab = plan.slabs[entry.slab]
    ranges = target_ranges(plan.steps[slab.step], slab)
    if not entry.fits(len(ranges), len(plan.steps[slab.step].parts)):
        return False
    for at, crc in zip(ranges, entry.crcs, strict=True):
        if at.file in freed:
            continue
        if at.file not in held:
            return False
        buffer = np.empty(at.nbytes, np.uint8).data
        held[at.file].readinto(at.offset, buffer)
        if crc32(buffer) != crc:
            return False
    return True


def counterpart(place: Place, final: Path) -> Path:
    """Where what belongs at `final` is made."""
    return place.staged if place.is_folder else place.staged / final.name


def commit(plan: Plan, *, overwrite: bool) -> None:
    """Rename what is made to where it belongs; a split set's first shard, which makes it loadable, last.

    Raises:
        LocalIOError: a target has come into being meanwhile and may not be replaced, or the file system refuses.
    """
    place = plan.place
    check_vacant(place, plan.digest, overwrite=overwrite)
    if not place.is_folder:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        move_in(place.staged / place.receipt_name, place.receipt, overwrite=True)
    if overwrite and len(place.finals) > 1:  # without its first shard nobody reads what is half the old set
        place.finals[-1].unlink(missing_ok=True)
    for final in place.finals:
        move_in(counterpart(place, final), final, overwrite=overwrite)
    clear(place)


def clear(place: Place) -> None:
    """`discard` where the target is in place. An old folder that lies here is renamed first: whoever comes when a part
    of it is deleted must not take it for unfinished work."""
    replaced = place.partial / "files.replaced"
    try:
        if place.is_folder and place.staged.exists():
            _delete(replaced)
            place.staged.replace(replaced)
        discard(place)
    except OSError as e:
        text = f"is left over, and cannot be removed: {e.strerror or e}"
        raise LocalIOError(text, file=str(place.partial), hint=f"{place.path.name} is complete; remove this") from e


def discard(place: Place) -> None:
    """Delete the folder of the conversion: the journal after all that it tells of, so that a deletion that stops goes
    on; the lock last: whoever gets it then finds nothing that is being deleted.
    """
    for path in place.partial.iterdir():
        if path.name not in ("journal", "lock"):
            _delete(path)
    for name in ("journal", "lock"):
        (place.partial / name).unlink(missing_ok=True)
    try:
        place.partial.rmdir()
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # the next one is here already
            raise


def _delete(path: Path) -> None:
    """Delete a folder with all that is in it, or a file; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
