"""The folder of an unfinished conversion: whose it is, and what may lie there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpttool import settling, workplace
from ckpttool.containers.source import LocalTarget
from ckpttool.crc import crc32
from ckpttool.errors import LocalIOError
from ckpttool.journal import Entry, Journal
from ckpttool.place import Place
from ckpttool.steps import ByteRange, Slab
from ckpttool.workplace import locked


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "out", True, ())


def refused(place: Place) -> str:
    with pytest.raises(LocalIOError) as caught, locked(place):
        raise AssertionError("it is ours")
    assert caught.value.file == str(place.partial)
    return caught.value.message


def test_one_at_a_time(place: Place) -> None:
    with locked(place):
        (place.partial / "files").mkdir()
        (place.partial / "journal").write_text("")
        assert refused(place) == "another conversion is writing here"
    with locked(place):
        assert sorted(p.name for p in place.partial.iterdir()) == ["files", "journal", "lock"]


def test_what_is_no_folder_of_ours(place: Place, tmp_path: Path) -> None:
    place.partial.write_text("mine")
    assert refused(place) == "is no folder of ours"
    assert place.partial.read_text() == "mine"
    place.partial.unlink()
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "gone"):
        place.partial.symlink_to(target)
        assert refused(place) == "is no folder of ours"
        place.partial.unlink()
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("names", [("thesis.tex",), ("lock", "thesis.tex"), ("files",), ("journal", "files")])
def test_a_folder_that_somebody_else_has_made(names: tuple[str, ...], place: Place) -> None:
    """It holds another name, or ours and no lock."""
    for name in names:
        (place.partial / name).mkdir(parents=True)
    shown = "thesis.tex" if "thesis.tex" in names else min(names)
    assert refused(place) == f"holds {shown}, which is not ours"
    assert {p.name for p in place.partial.iterdir()} == set(names)


@pytest.mark.parametrize("name", ["files", "lock", "journal"])
def test_a_link_of_a_name_of_ours(name: str, place: Place, tmp_path: Path) -> None:
    place.partial.mkdir()
    (place.partial / "lock").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (place.partial / name).unlink(missing_ok=True)
    (place.partial / name).symlink_to(tmp_path / "elsewhere")
    if name != "lock":
        assert (place.partial / "lock").exists()
    assert refused(place) == f"holds {name}, which is not ours"


def test_a_lock_whose_folder_goes_while_it_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that had it has ended, and has deleted the folder that was just seen there."""
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    assert refused(place) == "another conversion is writing here"


def test_what_is_believed_of_a_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many CRCs and counts as it has ranges and parts, a file that is here, and its bytes; nothing of a file that
    somebody else has."""
    data, crc = b"four", crc32(b"four")
    (tmp_path / "m").write_bytes(b"...." + data)
    step = SimpleNamespace(parts=("a",))
    plan: Any = SimpleNamespace(slabs=[Slab(0, 0, 1)], steps=[step])
    monkeypatch.setattr(workplace, "target_ranges", lambda step, slab: [ByteRange("m", 4, 4, "t")])
    with LocalTarget.open(tmp_path / "m") as file:
        held = {"m": file}
        assert workplace._is_there(plan, Entry(0, (crc,), (0,)), held, ())
        for crcs, changed in (((), (0,)), ((crc, crc), (0,)), ((crc,), ()), ((crc,), (0, 0)), ((crc ^ 1,), (0,))):
            assert not workplace._is_there(plan, Entry(0, crcs, changed), held, ())
        assert not workplace._is_there(plan, Entry(0, (crc,), (0,)), {}, ())
        assert workplace._is_there(plan, Entry(0, (crc ^ 1,), (0,)), {}, {"m"})


@pytest.mark.parametrize("receipt", [None, False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_traces_with_no_journal(
    receipt: bool | None, whole: bool, overwrite: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go; what lies at the target is the result where it is of this plan, verified, whole and to be kept."""
    found = None if receipt is None else SimpleNamespace(verified=receipt)
    monkeypatch.setattr(settling, "_receipt_of", lambda path, digest: found)
    monkeypatch.setattr(settling, "_is_whole", lambda place: whole)
    plan: Any = SimpleNamespace(place=place, digest="plan", slabs=[Slab(0, 0, 1)])
    place.path.mkdir()
    place.partial.mkdir()
    (place.partial / "lock").touch()
    done = settling.settle(plan, verify=True, overwrite=overwrite)
    assert done is (found if receipt and whole and not overwrite else None)
    assert not place.partial.exists()


def test_what_is_left_to_go_on_with(place: Place) -> None:
    """Files of a run without its journal, and a whole journal beside a target that is not of this plan."""
    plan: Any = SimpleNamespace(place=place, digest="plan", slabs=[Slab(0, 0, 1)])
    place.path.mkdir()
    place.staged.mkdir(parents=True)
    (place.partial / "lock").touch()
    (place.staged / "begun").touch()
    assert settling.settle(plan, verify=True) is None
    assert (place.staged / "begun").exists()
    Journal(place.partial / "journal", "plan", [Entry(0, (1,), (0,))]).close()
    (place.staged / "begun").unlink()
    place.staged.rmdir()
    assert settling.settle(plan, verify=True) is None
    assert (place.partial / "journal").exists()


def test_when_a_target_is_in_place_and_only_traces_are_left(place: Place) -> None:
    place.partial.mkdir()
    (place.partial / "lock").touch()
    assert not settling._is_cleared(place)
    place.path.mkdir()
    assert settling._is_cleared(place)
    place.staged.mkdir()
    assert settling._is_cleared(place)
    (place.staged / "begun").touch()
    assert not settling._is_cleared(place)
    (place.staged / "begun").unlink()
    (place.partial / "thesis.tex").touch()
    assert not settling._is_cleared(place)


def test_a_receipt_of_another_plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(plan="plan")
    monkeypatch.setattr(settling, "read_conversion", lambda path: found)
    assert settling._receipt_of(place.receipt, "plan") is found
    assert settling._receipt_of(place.receipt, "another") is None


def test_what_has_come_to_the_target_meanwhile_stays(place: Place) -> None:
    plan: Any = SimpleNamespace(place=place, digest="plan")
    place.staged.mkdir(parents=True)
    place.path.mkdir()
    (place.path / "thesis.tex").touch()
    with pytest.raises(LocalIOError, match="which is no part of a checkpoint"):
        workplace.commit(plan, overwrite=True)
    assert (place.path / "thesis.tex").exists()


def test_a_folder_that_cannot_be_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the next run is there already, or has taken it along."""
    for number in (errno.ENOTEMPTY, errno.ENOENT, errno.EIO):
        place.partial.mkdir(exist_ok=True)

        def refused(path: Path, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rmdir", refused)
            if number == errno.EIO:
                with pytest.raises(OSError, match="Input/output error"):
                    workplace.discard(place)
            else:
                workplace.discard(place)
