"""Where the files of a conversion to a repo are made on this machine, and what their receipt calls the repo."""

from __future__ import annotations

from pathlib import Path

from ckpttool.checkpoint import Checkpoint
from ckpttool.containers.remote import RemoteFolder
from ckpttool.errors import UsageError
from ckpttool.publishing.repos import RepoTarget
from ckpttool.target import Target, is_gguf


def local_path(where: RepoTarget, to: str | None, workdir: str | Path | None) -> Path:
    """Where the files are made: a folder, or a GGUF, of the repo's name in `workdir`, by default the current folder.

    Raises:
        UsageError: the repo's path is that of no GGUF.
    """
    folder = Path(workdir) if workdir is not None else Path()
    name = where.path.rpartition("/")[2]
    if not where.path:
        gguf = where.name.removesuffix(".gguf").removesuffix("-GGUF").removesuffix("-gguf")
        return folder / (f"{gguf}.gguf" if to == "gguf" else where.name)
    if name != where.path or not name.lower().endswith(".gguf"):
        hint = f"give hf://{where.id}, or hf://{where.id}/NAME.gguf"
        raise UsageError("a conversion goes to a repo, or to a GGUF at its top", file=where.path, hint=hint)
    return folder / name


def address(where: RepoTarget, path: Path) -> str:
    """What a receipt calls the target: the repo, or the GGUF in it."""
    return f"hf://{where.id}" + (f"/{path.name}" if is_gguf(path) else "")


def refuse_itself(source: Checkpoint, where: RepoTarget, wanted: Target) -> None:
    """UsageError where a folder would replace the very branch that is read, whose own shards would stay beside; and
    where it would be made in the place of the source, which only lies in the current folder."""
    folder = source.folder
    if wanted.to == "gguf":
        return
    if not isinstance(folder, RemoteFolder):
        if wanted.path.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
            raise UsageError("SOURCE lies where the files would be made", file=str(wanted.path), hint="give --workdir")
        return
    if folder.label.removeprefix("hf://").partition("@")[0] == where.id and (folder.revision or "main") == where.branch:
        raise UsageError("TARGET is SOURCE", file=str(where), hint="give another repo, or --revision BRANCH")
