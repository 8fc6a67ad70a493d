"""Putting what is finished in place: with the system's own renames, where it has none, and where the file system does
not know them; nothing that was not to be replaced is touched, and a failure leaves the old target."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpttool import commit
from ckpttool.commit import move_in
from ckpttool.errors import LocalIOError


def refusing(number: int) -> object:
    """A system whose renames fail so."""

    def call(source: bytes, target: bytes, mode: int) -> int:
        ctypes.set_errno(number)
        return -1

    return call


SYSTEMS = {
    "as it is": commit._system_rename,
    "without the call": lambda: None,
    "not on this file system": lambda: refusing(errno.EINVAL),
    "an old kernel": lambda: refusing(errno.ENOSYS),
}


@pytest.fixture(params=SYSTEMS)
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_system_rename", SYSTEMS[request.param])


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def said(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("make", [folder, file])
@pytest.mark.parametrize("overwrite", [False, True])
def test_where_nothing_is(make: object, overwrite: bool, tmp_path: Path) -> None:
    move_in(make(tmp_path / "new", "new"), tmp_path / "out", overwrite=overwrite)  # type: ignore[operator]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert said(tmp_path / "out") == "new"


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("make", [folder, file])
def test_what_exists_is_not_touched(make: object, tmp_path: Path) -> None:
    new = make(tmp_path / "new", "new")  # type: ignore[operator]
    there = {"folder": folder(tmp_path / "a", "old"), "file": file(tmp_path / "b", "old")}
    (tmp_path / "c").symlink_to("nowhere")
    for target in (*there.values(), tmp_path / "c"):
        with pytest.raises(LocalIOError, match=f"{target.name}: already exists; choose another TARGET, or add"):
            move_in(new, target, overwrite=False)
        assert said(new) == "new"
    assert {said(path) for path in there.values()} == {"old"}
    assert (tmp_path / "c").readlink() == Path("nowhere")


@pytest.mark.usefixtures("any_system")
def test_overwrite(tmp_path: Path) -> None:
    """A folder changes places with the old one; a file takes the old one's place, and neither that of the other."""
    move_in(folder(tmp_path / "new", "new"), folder(tmp_path / "out", "old"), overwrite=True)
    assert (said(tmp_path / "out"), said(tmp_path / "new")) == ("new", "old")
    move_in(file(tmp_path / "x", "new"), file(tmp_path / "x.gguf", "old"), overwrite=True)
    assert said(tmp_path / "x.gguf") == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out", "x.gguf"]
    with pytest.raises(LocalIOError, match="out: already exists"):
        move_in(tmp_path / "x.gguf", tmp_path / "out", overwrite=True)
    with pytest.raises(LocalIOError, match=r"x.gguf: cannot be put in place: Not a directory"):
        move_in(tmp_path / "out", tmp_path / "x.gguf", overwrite=True)
    assert (said(tmp_path / "out"), said(tmp_path / "x.gguf")) == ("new", "new")


@pytest.mark.usefixtures("any_system")
def test_an_empty_folder_gives_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    move_in(folder(tmp_path / "new", "new"), tmp_path / "out", overwrite=False)
    assert said(tmp_path / "out") == "new"


def test_a_system_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_system_rename", lambda: refusing(errno.EIO))
    new, old = folder(tmp_path / "new", "new"), folder(tmp_path / "old", "old")
    for target in (tmp_path / "out", old):
        text = f"{target.name}: cannot be put in place: Input/output error; all is made; the same command"
        with pytest.raises(LocalIOError, match=text):
            move_in(new, target, overwrite=True)
    assert (said(new), said(old)) == ("new", "old")


def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = folder(tmp_path / "new", "new"), folder(tmp_path / "old", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(commit, "_system_rename", lambda: None)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(LocalIOError, match="old: cannot be put in place: Input/output error"):
        move_in(new, old, overwrite=True)
    assert (said(new), said(old)) == ("new", "old")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_library_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As glibc before 2.28."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    assert commit._system_rename() is None
