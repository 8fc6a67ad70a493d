"""A file that changes while it is read is an error that names it: no crash, no report on a mixture, no target.

Eight commands that read values, and a part of the Python API, each with a file that is cut, emptied, edited in its
place, replaced, grown or deleted, before the first of its values is read and after: 108 changes. Files are never
mapped, so none of them ends in a signal.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
from commandline import run

import ckpttool
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError

MODEL = builders.Model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source`, what it converts to, and the same once more as BF16."""
    folder = tmp_path_factory.mktemp("whole")
    builders.write(MODEL, folder / "source", "hf")
    ckpttool.convert(folder / "source", folder / "made", to="bf16")
    return folder


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def edited(path: Path) -> None:
    """Its last byte; a moment later, as far as its times tell."""
    before = path.stat()
    with path.open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        (last,) = f.read(1)
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """By another of the same size and time."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    before = path.stat()
    edited(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def grown(path: Path) -> None:
    with path.open("ab") as f:
        f.write(bytes(100))


def gone(path: Path) -> None:
    path.unlink()


CHANGES = (cut, emptied, edited, replaced, grown, gone)
SOURCE, MADE = "source/model.safetensors", "made/model.safetensors"
READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inspect": (SOURCE, ("inspect", "source", "--scales", "--codes")),
    "inspect --check": (SOURCE, ("inspect", "source", "--check")),
    "convert": (SOURCE, ("convert", "source", "target", "--to", "bf16")),
    "verify": (MADE, ("verify", "made")),
    "verify --source": (SOURCE, ("verify", "made", "--source", "source")),
    "diff": (SOURCE, ("diff", "made", "source")),
    "validate": (SOURCE, ("validate", "source", "made", "--level", "values")),
    "validate, candidate": (MADE, ("validate", "source", "made", "--level", "values")),
}
"""The file that changes, and the command that reads it."""


def during(monkeypatch: pytest.MonkeyPatch, victim: Path, when: str, change: Callable[[Path], None]) -> list[Path]:
    """`change` the victim once, before or after its first values are read; the list says whether that has been."""
    changed: list[Path] = []
    lock = threading.Lock()
    readinto = LocalFile.readinto

    def once(path: Path) -> None:
        with lock:
            if path == victim and not changed:
                changed.append(path)
                change(path)

    def watched(self: LocalFile, offset: int, buffer: Any) -> None:
        if when == "before":
            once(self.path)
        readinto(self, offset, buffer)
        if when == "after":
            once(self.path)

    monkeypatch.setattr(LocalFile, "readinto", watched)
    return changed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
@pytest.mark.parametrize("reader", READERS)
def test_a_change_is_an_error(
    reader: str,
    change: Callable[[Path], None],
    when: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, argv = READERS[reader]
    for name in ("source", "made"):
        shutil.copytree(whole / name, tmp_path / name)
    changed = during(monkeypatch, tmp_path / file, when, change)
    command, *rest = argv
    done = run(command, *(tmp_path / a if a in ("source", "made", "target") else a for a in rest))
    assert changed, "nothing was read"
    assert done.code == 3, (done.out, done.err)
    assert done.out == ""
    assert re.fullmatch(r"error: model\.safetensors[^\n]*: [^\n]*(has changed|has gone|ends at byte)[^\n]*\n", done.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_a_part_is_of_one_version(
    change: Callable[[Path], None], when: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(whole / "source", tmp_path / "source")
    part = ckpttool.open_checkpoint(source).part("layer.0.gate")
    part[0]
    assert during(monkeypatch, source / "model.safetensors", when, change) == []
    with pytest.raises(InputError, match=r"has changed|has gone|ends at byte|cannot open: No such file"):
        part[0]


def test_what_is_only_touched_by_readers_is_no_change(whole: Path, tmp_path: Path) -> None:
    """Times of access and links to a file say nothing of its content."""
    source = shutil.copytree(whole / "source", tmp_path / "source")
    opened = ckpttool.open_checkpoint(source)
    path = source / "model.safetensors"
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    os.link(path, tmp_path / "a link")
    path.chmod(0o600)
    opened.require_unchanged()
    opened.part("layer.0.gate")[0]
