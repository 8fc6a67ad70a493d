"""What stands against a target before any work is done: what is there already, and too little disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ckpttool.commit import exists_error
from ckpttool.errors import LocalIOError
from ckpttool.place import RECEIPT_NAME
from ckpttool.planner import Plan

OTHER = "choose another TARGET"


def check_target(plan: Plan, overwrite: bool) -> None:
    """Refuse a target that exists, unless it may be overwritten, and a disk that is too small.

    Raises:
        LocalIOError: either.
    """
    place = plan.place
    for path in place.finals:
        if os.path.lexists(path) and not (place.is_folder and _is_empty_folder(path)):
            if not overwrite:
                raise exists_error(path)
            (_refuse_other_folders if place.is_folder else _refuse_other_files)(path)
    folder = next(p for p in place.path.parents if p.exists())
    if not folder.is_dir():
        raise LocalIOError("is a file, and TARGET would lie in it", file=str(folder), hint=OTHER)
    begun = sum(p.stat().st_blocks * 512 for p in place.staged.glob("*")) if place.staged.exists() else 0
    need, free = plan.nbytes - begun, shutil.disk_usage(folder).free
    if need > free:
        text = f"needs {need:,} bytes more, {folder} has {free:,}"
        raise LocalIOError(text, file=str(place.path), hint="free some space, or choose another disk")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _refuse_other_folders(path: Path) -> None:
    """`--overwrite` deletes the old folder, so it must be a checkpoint and nothing else."""
    if path.is_symlink() or not path.is_dir():
        what = "a link" if path.is_symlink() else "a file"
        raise LocalIOError(f"is {what}; a folder does not replace it", file=str(path), hint=OTHER)
    names = {p.name for p in path.iterdir()}
    if ".git" in names or not (RECEIPT_NAME in names or any(n.endswith(".safetensors") for n in names)):
        hint = "it would be deleted as a whole; remove it yourself, or choose another TARGET"
        raise LocalIOError("is not a checkpoint's folder", file=str(path), hint=hint)


def _refuse_other_files(path: Path) -> None:
    """A GGUF takes the place of a file, or of a link to one; of nothing else."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise LocalIOError(f"is {what}; a GGUF does not replace it", file=str(path), hint=OTHER)
