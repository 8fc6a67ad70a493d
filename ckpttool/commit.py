"""Putting finished files under their names: atomically, and never over something that is not ours to replace."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ckpttool.errors import LocalIOError

_NO_REPLACE, _EXCHANGE = 0, 1
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM})


def move_in(finished: Path, target: Path, *, overwrite: bool) -> None:
    """Rename `finished` (a folder or a file) to `target`; with `overwrite` an old folder then lies at `finished`.

    Raises:
        LocalIOError: `target` exists and may not be replaced, or the file system refuses.
    """
    try:
        if overwrite and target.is_dir() and finished.is_dir():
            _exchange(finished, target)
        elif (overwrite and target.is_file()) or is_empty_folder(target):
            finished.replace(target)
        else:
            _rename_without_replacing(finished, target)
        sync_folder(target.parent)
    except FileExistsError as e:
        raise exists_error(target) from e
    except OSError as e:
        hint = "all is made; the same command puts it in place once that is mended"
        raise LocalIOError(f"cannot be put in place: {e.strerror}", file=str(target), hint=hint) from e


def exists_error(target: Path) -> LocalIOError:
    """What to say where the target is already there."""
    return LocalIOError("already exists", file=str(target), hint="choose another TARGET, or add --overwrite")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    if os.name == "nt":  # Windows cannot open folders, and needs no sync for a rename
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):  # nothing was written by it
            os.close(fd)


def is_empty_folder(path: Path) -> bool:
    """Whether it is a folder itself, no link to one, and holds nothing."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _rename_without_replacing(source: Path, target: Path) -> None:
    if _renamed(source, target, _NO_REPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _exchange(source: Path, target: Path) -> None:
    if _renamed(source, target, _EXCHANGE):
        return
    aside = source.with_name(source.name + ".old")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(source)


def _renamed(source: Path, target: Path, mode: int) -> bool:
    """Whether the system renamed in this mode; False where it or the file system cannot."""
    call = _system_rename()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(os.fsencode(source), os.fsencode(target), mode) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def _system_rename() -> Callable[[bytes, bytes, int], int] | None:
    """Linux: renameat2 (RENAME_NOREPLACE 1, RENAME_EXCHANGE 2). macOS: renamex_np (RENAME_EXCL 4, RENAME_SWAP 2)."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "renameat2"):
            return None
        here = -100  # AT_FDCWD
        return lambda a, b, mode: int(libc.renameat2(here, a, here, b, (1, 2)[mode]))
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None, use_errno=True)
        return lambda a, b, mode: int(libc.renamex_np(a, b, (4, 2)[mode]))
    return None
