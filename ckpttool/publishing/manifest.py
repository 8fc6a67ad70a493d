"""What of a finished conversion may be published: an allow-list from its receipt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ckpttool.containers import limits
from ckpttool.containers.strict_json import read_bytes
from ckpttool.errors import InputError, LimitError, LocalIOError, UsageError, raise_all
from ckpttool.locate import LICENCE_PREFIXES
from ckpttool.place import RECEIPT_NAME, RECEIPT_SUFFIX
from ckpttool.publishing.held import WEIGHTS, Item, checked, content, opened
from ckpttool.receipt_file import RECEIPT_LIMIT, find_receipt, read_receipt

__all__ = ["CARD", "Item", "Manifest", "checked", "content", "opened", "read"]

CARD: Final = "README.md"
SIDE_FILES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""What else a conversion writes, beside licences: none of it is ever executed."""
LICENCES: Final = ("", ".txt", ".md", ".rst", ".html", ".pdf")
FILES: Final = 10_000
"""Files that the Hub takes in one folder."""


@dataclass(frozen=True)
class Manifest:
    """The receipt, the files that go with it, and what else lies in the folder and stays here.

    `folder` is None where one GGUF was named: what lies beside it is none of ours, then.
    """

    receipt: Mapping[str, Any]
    receipt_path: Path
    items: tuple[Item, ...]
    left_out: tuple[str, ...]
    folder: Path | None

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(i.nbytes for i in self.items)

    @property
    def own_card(self) -> Path | None:
        """The user's own README.md, if there is one."""
        path = None if self.folder is None else self.folder / CARD
        return path if path is not None and path.is_file() and not path.is_symlink() else None


def read(target: str | Path) -> Manifest:
    """The manifest of the conversion at `target`: a folder, a GGUF, or the receipt. No file of it is opened yet.

    Raises:
        InputError: no receipt; one that names what no conversion writes, or that holds no sha256.
        LocalIOError: a conversion is being written there.
        LimitError: more files than the Hub takes.
    """
    target = Path(target)
    path = _receipt(target)
    _refuse_running(path)
    data = read_bytes(path, path.name, RECEIPT_LIMIT)
    receipt = read_receipt(data, str(path))
    folder = path.parent if target.is_dir() or path.name == RECEIPT_NAME else None
    items = _named(path, receipt)
    names = {i.name for i in items}
    if folder is not None:
        items += [_found(folder, n) for n in _licences(folder) if n not in names]
    items.append(Item(path.name, path, len(data), hashlib.sha256(data).hexdigest(), len(data)))
    left_out = () if folder is None else _left_out(folder, {i.name for i in items} | {CARD})
    return Manifest(receipt, path, tuple(items), left_out, folder)


def _receipt(target: Path) -> Path:
    if _is_unfinished(target):
        hint = "give the command of the conversion again; it goes on where it was stopped"
        raise InputError("is an unfinished conversion", file=str(target), hint=hint)
    try:
        return find_receipt(target)
    except InputError as error:
        if not target.exists():
            raise
        several = len(list(target.glob("*" + RECEIPT_SUFFIX))) if target.is_dir() else 0
        if several:
            raise UsageError(f"holds {several} conversions", file=str(target), hint="give one of its GGUFs") from error
        hint = "give what convert has made; `hf upload` takes folders of any kind"
        raise InputError("has no receipt, so nothing says what may be uploaded", file=str(target), hint=hint) from error


def _is_unfinished(target: Path) -> bool:
    """Whether this is the folder that a conversion works in, or a file there."""
    staged = any(p.name == "files" and p.parent.name.endswith(".partial") for p in (target, target.parent))
    working = target.name.endswith(".partial") and not (target / RECEIPT_NAME).exists()
    return (staged or working) and target.exists()


def _refuse_running(receipt: Path) -> None:
    """LocalIOError while a conversion is about to replace what `receipt` is of."""
    if os.name == "nt":
        return
    import fcntl

    target = receipt.parent if receipt.name == RECEIPT_NAME else receipt.with_name(receipt.name[: -len(RECEIPT_SUFFIX)])
    target = target.absolute()
    try:
        fd = os.open(target.with_name(target.name + ".partial") / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "wait for its end; the same command then uploads what it has made"
        raise LocalIOError("a conversion is being written here", file=str(target), hint=hint) from error
    finally:
        os.close(fd)


def _named(path: Path, receipt: Mapping[str, Any]) -> list[Item]:
    """The files that the receipt names."""
    rows = receipt["files"]
    if len(rows) > FILES:
        what = f"names {len(rows):,} files; the Hub takes {FILES:,} in a folder"
        raise LimitError(what, file=str(path), hint="convert with a larger --max-shard-size")
    raise_all([_strange(path, row["name"], why) for row in rows if (why := _why_not(row["name"], path.name))])
    if unread := [row["name"] for row in rows if row["sha256"] is None]:
        hint = "convert again without --no-verify"
        what = "holds no sha256: what was written was not read back"
        raise InputError(what, file=str(path), field=f"files: {unread[0]}", hint=hint)
    headers: dict[str, int] = {}
    for t in receipt["tensors"]:
        headers[t["file"]] = min(t["offset"], headers.get(t["file"], t["offset"]))
    return [
        Item(row["name"], path.parent / row["name"], row["nbytes"], row["sha256"],
             headers.get(row["name"], 0 if row["name"].endswith(WEIGHTS) else row["nbytes"]))
        for row in rows
    ]  # fmt: skip


def _strange(path: Path, name: str, why: str) -> InputError:
    hint = "the receipt is damaged, or was edited; convert again"
    return InputError(why, file=str(path), field=f"files: {name}", hint=hint)


def _why_not(name: str, receipt: str) -> str | None:
    """Why no conversion writes a file of this name; None where one does."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(p in ("", ".", "..") for p in parts) or PurePosixPath(name).drive:
        return "is no name inside the folder"
    if not name.isprintable():
        return "holds characters that no name has"
    if any(p.startswith(".") for p in parts):
        return "is a hidden file"
    if name.endswith((RECEIPT_SUFFIX, RECEIPT_NAME)) or name in (CARD, receipt):
        return "is not the receipt's to name"
    if is_licence(name) or name.endswith((*WEIGHTS, *SIDE_FILES)):
        return None
    return "is of a kind that no conversion writes"


def is_licence(name: str) -> bool:
    """Whether a file of this name is a licence."""
    return "/" not in name and name.startswith(LICENCE_PREFIXES) and Path(name).suffix in LICENCES


def _licences(folder: Path) -> list[str]:
    """Those that somebody put there; a link may lead anywhere."""
    return sorted(p.name for p in folder.iterdir() if is_licence(p.name) and p.is_file() and not p.is_symlink())


def _found(folder: Path, name: str) -> Item:
    data = read_bytes(folder / name, name, limits.SIDE_FILE)
    return Item(name, folder / name, len(data), hashlib.sha256(data).hexdigest(), len(data))


def _left_out(folder: Path, names: set[str]) -> tuple[str, ...]:
    """What else lies in the folder; of a folder in it, only its name where nothing of it goes along."""
    shared = {n.rpartition("/")[0] for n in names if "/" in n}
    found = []
    for place in ("", *shared):
        with os.scandir(folder / place) as entries:
            for e in entries:
                name = f"{place}/{e.name}" if place else e.name
                if name not in names and not any(f"{s}/".startswith(f"{name}/") for s in shared):
                    found.append(f"{name}/" if e.is_dir(follow_symlinks=False) else name)
    return tuple(sorted(found))
