"""What stands against a target before any work is done: what is there already, and too little disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ckpttool.commit import exists_error, is_empty_folder
from ckpttool.errors import InputError, LocalIOError
from ckpttool.locate import COMPANION_NAMES, INDEX_SUFFIX, LICENCE_PREFIXES, TEMPLATES
from ckpttool.order import peak_nbytes, window
from ckpttool.place import RECEIPT_NAME, Place
from ckpttool.planner import Plan
from ckpttool.reports import read_conversion
from ckpttool.units import size

OTHER = "choose another TARGET"


def check_target(plan: Plan, overwrite: bool, *, frees: bool = False, left: bool = False) -> None:
    """Refuse a target that exists, unless it may be overwritten, and a disk that is too small.

    Where files are freed nothing lies at the target in the end, and so nothing there is in the way; `left` says that
    what lies there is what an interrupted run has left.

    Raises:
        LocalIOError: what stands against it.
    """
    place = plan.place
    if not frees and not left:
        check_vacant(place, plan.digest, overwrite=overwrite)
    folder = next(p for p in place.path.parents if p.exists())
    if not folder.is_dir():
        raise LocalIOError("is a file, and TARGET would lie in it", file=str(folder), hint=OTHER)
    begun = sum(p.stat().st_blocks * 512 for p in place.staged.glob("*")) if place.staged.is_dir() else 0
    need, free = disk_nbytes(plan, frees=frees) - begun, shutil.disk_usage(folder).free
    if need > free:
        text = f"needs {size(need)} more, {folder} has {size(free)}"
        raise LocalIOError(text, file=str(place.path), hint="free some space, or choose another disk")


def disk_nbytes(plan: Plan, *, frees: bool) -> int:
    """The most bytes of the disk that the conversion takes at once."""
    return peak_nbytes(plan, window(plan)) if frees else plan.nbytes


def check_vacant(place: Place, digest: str, *, overwrite: bool) -> None:
    """Refuse what is there already, unless it may be overwritten and is of a kind that a conversion replaces.

    Raises:
        LocalIOError: it stays.
    """
    if place.is_folder:
        path = place.path
        if os.path.ismount(path):
            raise LocalIOError("is a mount point; a folder cannot take its place", file=str(path), hint=OTHER)
        if os.path.lexists(path) and not is_empty_folder(path):
            _refuse_unless(overwrite, path)
            _refuse_other_folders(path)
        return
    for path in {*place.finals, place.path}:
        if os.path.lexists(path):
            _refuse_unless(overwrite, path)
            _refuse_other_files(path)
    if os.path.lexists(place.receipt):
        _refuse_unless(overwrite or _is_of(place.receipt, digest), place.receipt)
        _refuse_other_files(place.receipt)


def _refuse_unless(allowed: bool, path: Path) -> None:
    if not allowed:
        raise exists_error(path)


def _is_of(receipt: Path, digest: str) -> bool:
    """Whether a receipt is that of the same conversion: what an interrupted one has left."""
    try:
        return read_conversion(receipt).plan == digest
    except InputError:
        return False


def _refuse_other_folders(path: Path) -> None:
    """`--overwrite` deletes the old folder, so it must be a checkpoint and nothing else."""
    if path.is_symlink() or not path.is_dir():
        what = "a link" if path.is_symlink() else "a file"
        raise LocalIOError(f"is {what}; a folder does not replace it", file=str(path), hint=OTHER)
    names = sorted(p.name for p in path.iterdir())
    others = [n for n in names if not _is_of_a_checkpoint(n)]
    if others or not any(n == RECEIPT_NAME or n.endswith(".safetensors") for n in names):
        what = f"holds {others[0]}, which is no part of a checkpoint" if others else "is not a checkpoint's folder"
        hint = "it would be deleted as a whole; remove it yourself, or choose another TARGET"
        raise LocalIOError(what, file=str(path), hint=hint)


def _is_of_a_checkpoint(name: str) -> bool:
    known = name in COMPANION_NAMES or name in (RECEIPT_NAME, TEMPLATES, "dtypes.json")
    return known or name.endswith((".safetensors", INDEX_SUFFIX)) or name.startswith(LICENCE_PREFIXES)


def _refuse_other_files(path: Path) -> None:
    """A GGUF takes the place of a file, or of a link to one; of nothing else."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise LocalIOError(f"is {what}; a GGUF does not replace it", file=str(path), hint=OTHER)
