"""What stands against a target: what lies there already stays, unless it may be overwritten and is of its kind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpttool.errors import LocalIOError
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.preflight import check_target, check_vacant


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("")
    return path


def refused(place: Place, *, overwrite: bool) -> str:
    with pytest.raises(LocalIOError) as caught:
        check_vacant(place, "plan", overwrite=overwrite)
    assert caught.value.hint is not None
    return caught.value.message


FOLDERS = {
    "a checkpoint": (("model.safetensors", "config.json", "LICENSE.md", "model.safetensors.index.json"), None),
    "a receipt alone": (("ckpttool.receipt.json",), None),
    "something else beside": (
        ("model.safetensors", "thesis.tex"),
        "holds thesis.tex, which is no part of a checkpoint",
    ),
    "something else": (("thesis.tex",), "holds thesis.tex, which is no part of a checkpoint"),
    "no weights": (("config.json", "README.md"), "is not a checkpoint's folder"),
}


@pytest.mark.parametrize(("names", "says"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_in_a_folders_place(names: tuple[str, ...], says: str | None, tmp_path: Path) -> None:
    place = Place(folder(tmp_path / "out", *names), True, ())
    assert refused(place, overwrite=False) == "already exists"
    if says:
        assert refused(place, overwrite=True) == says
    else:
        check_vacant(place, "plan", overwrite=True)
    assert {p.name for p in place.path.iterdir()} == set(names)


def test_what_is_no_folder_in_a_folders_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "out", True, ())
    check_vacant(place, "plan", overwrite=False)
    for target in (folder(tmp_path / "empty"), folder(tmp_path / "full", "model.safetensors"), tmp_path / "gone"):
        place.path.symlink_to(target)
        assert refused(place, overwrite=False) == "already exists"
        assert refused(place, overwrite=True) == "is a link; a folder does not replace it"
        place.path.unlink()
    place.path.write_text("")
    assert refused(place, overwrite=False) == "already exists"
    assert refused(place, overwrite=True) == "is a file; a folder does not replace it"
    place.path.unlink()
    place.path.mkdir()
    check_vacant(place, "plan", overwrite=False)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == place.path)
    assert refused(place, overwrite=True) == "is a mount point; a folder cannot take its place"


@pytest.mark.parametrize("at", ["x.gguf", "x-00002-of-00002.gguf", "x.gguf.receipt.json"])
def test_in_the_place_of_a_split_set(at: str, tmp_path: Path) -> None:
    """Of each of its files, of the one that it would be whole, and of its receipt."""
    place = Place(tmp_path / "x.gguf", False, ("x-00001-of-00002.gguf", "x-00002-of-00002.gguf"))
    check_vacant(place, "plan", overwrite=False)
    path = tmp_path / at
    path.write_text("{}")
    assert refused(place, overwrite=False) == "already exists"
    check_vacant(place, "plan", overwrite=True)
    path.unlink()
    path.symlink_to(folder(tmp_path / "folder"))
    assert refused(place, overwrite=False) == "already exists"
    assert refused(place, overwrite=True) == "is a folder; a GGUF does not replace it"
    path.unlink()
    os.mkfifo(path)
    assert refused(place, overwrite=True) == "is no file; a GGUF does not replace it"


def plan(path: Path, nbytes: int) -> Plan:
    """As much of one as is looked at."""
    return SimpleNamespace(place=Place(path, True, ()), digest="plan", nbytes=nbytes)  # type: ignore[return-value]


def test_room_for_what_is_not_written_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last byte that is free may be used; what an earlier run has written counts."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    check_target(plan(tmp_path / "new" / "out", 100_000), False)
    with pytest.raises(LocalIOError, match=r"out: needs .* more, .* has .*; free some space"):
        check_target(plan(tmp_path / "new" / "out", 100_001), False)
    staged = tmp_path / "out.partial" / "files"
    staged.mkdir(parents=True)
    (staged / "begun").write_bytes(bytes(1 << 16))
    check_target(plan(tmp_path / "out", 100_000 + (1 << 16)), False)


def test_a_file_where_a_folder_would_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalIOError, match="file: is a file, and TARGET would lie in it"):
        check_target(plan(tmp_path / "file" / "deep" / "out", 1), False)


def test_what_lies_there_is_looked_at_before_the_disk_is(tmp_path: Path) -> None:
    with pytest.raises(LocalIOError, match="out: already exists"):
        check_target(plan(folder(tmp_path / "out", "model.safetensors"), 1 << 80), False)
