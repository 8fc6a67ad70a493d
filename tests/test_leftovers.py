"""What a conversion leaves when the system refuses at a bad moment, and what the next run makes of it."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import Model, Sizes
from crash_runs import die_at, in_child, tree

import ckpttool
from ckpttool import api, commit, execute, verifier, workplace
from ckpttool.containers.source import LocalTarget
from ckpttool.errors import InputError, LocalIOError
from ckpttool.preview import preview
from ckpttool.reports import Conversion
from ckpttool.staged import Staged
from ckpttool.threads import Crew

SMALL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return builders.write(SMALL, tmp_path / "source", "hf")


@pytest.fixture
def old(small: Path, tmp_path: Path) -> Path:
    """A conversion of another model, which lies where this one shall be made."""
    other = builders.write(Model(SMALL.sizes, seed=9), tmp_path / "other", "hf")
    ckpttool.convert(other, tmp_path / "out", to="bf16")
    return tmp_path / "out"


def refused(*_: object, **__: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def name_of(fd: int) -> str:
    """The file that is open there."""
    link = Path(f"/proc/self/fd/{fd}")
    if not link.is_symlink():
        pytest.skip("needs /proc, which says what is open")
    return link.readlink().name


def slabs_worked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the slabs that are worked from now on."""
    worked: list[int] = []
    original = execute.Worker.work

    def work(worker: execute.Worker, index: int, *rest: Any) -> Any:
        worked.append(index)
        return original(worker, index, *rest)

    monkeypatch.setattr(execute.Worker, "work", work)
    return worked


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize(("name", "options"), [("out", {"to": "bf16"}), ("x.gguf", {"model_name": "x"})])
def test_the_last_traces_of_a_run_are_cleared_away(
    lock: bool, name: str, options: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    """Its target is there, and all but the lock is deleted."""
    ckpttool.convert(small, tmp_path / name, **options)
    made, partial = tree(tmp_path), tmp_path / f"{name}.partial"
    partial.mkdir()
    if lock:
        (partial / "lock").touch()
    assert ckpttool.convert(small, tmp_path / name, **options).verified
    assert tree(tmp_path) == made
    assert not partial.exists()


def test_an_old_folder_that_is_half_deleted_is_no_unfinished_work(
    small: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says what is left over; the next one deletes it, and works nothing."""

    def one_file(folder: Path) -> None:
        next(iter(sorted(Path(folder).iterdir()))).unlink()
        refused()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", one_file)
        with pytest.raises(LocalIOError, match="is left over, and cannot be removed") as caught:
            ckpttool.convert(small, old, to="bf16", overwrite=True)
    assert "out is complete" in str(caught.value.hint)
    assert ckpttool.verify(old).ok
    assert sorted(p.name for p in (old.parent / "out.partial").iterdir()) == ["files.replaced", "journal", "lock"]
    made, worked = tree(old), slabs_worked(monkeypatch)
    ckpttool.convert(small, old, to="bf16", overwrite=True)
    assert not worked
    assert tree(old) == made
    assert not (old.parent / "out.partial").exists()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_killed_where_folders_cannot_be_exchanged(
    count: int, before: bool, small: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder is out of the way when the new one takes its place; a run that fails then gives it back first."""
    was, partial = tree(old), tmp_path / "out.partial"
    ckpttool.convert(small, tmp_path / "new", to="bf16")

    def body() -> None:
        commit._system_rename = lambda: None  # type: ignore[assignment]
        die_at(Path, "rename", count, before=before)
        ckpttool.convert(small, old, to="bf16", overwrite=True)

    assert in_child(body) == signal.SIGKILL
    gone = (count, before) in ((1, False), (2, True))
    assert old.exists() is not gone
    if gone:
        assert tree(partial / "files.old") == was
        with monkeypatch.context() as patch:
            patch.setattr(execute, "_Run", refused)
            with pytest.raises(LocalIOError):
                ckpttool.convert(small, old, to="bf16", overwrite=True)
        assert tree(old) == was
    assert tree(old) in (was, tree(tmp_path / "new"))
    assert ckpttool.verify(old).ok
    ckpttool.convert(small, old, to="bf16", overwrite=True)
    assert tree(old) == tree(tmp_path / "new")
    assert not partial.exists()


def test_nobody_reads_shards_of_two_sets(small: Path, tmp_path: Path) -> None:
    """Killed around every rename of a split GGUF over an old one: no first shard lies beside those of the other."""
    options: dict[str, Any] = {"model_name": "x", "max_shard_size": 30_000, "workers": 1}
    ckpttool.convert(
        builders.write(Model(SMALL.sizes, seed=9), tmp_path / "other", "hf"), tmp_path / "x.gguf", **options
    )
    was = {p.name: p.read_bytes() for p in tmp_path.glob("x-*")}
    (tmp_path / "new").mkdir()
    ckpttool.convert(small, tmp_path / "new" / "x.gguf", **options)
    new = {p.name: p.read_bytes() for p in (tmp_path / "new").glob("x-*")}
    assert len(was) >= 3
    assert all(was[name] != data for name, data in new.items())
    first = min(was)
    seen = set()
    for count, before in itertools.product(range(1, len(was) + 2), (True, False)):
        for name, data in was.items():
            (tmp_path / name).write_bytes(data)

        def body(count: int = count, before: bool = before) -> None:
            die_at(workplace, "move_in", count, before=before)
            ckpttool.convert(small, tmp_path / "x.gguf", overwrite=True, **options)

        assert in_child(body) == signal.SIGKILL
        left = {p.name: p.read_bytes() for p in tmp_path.glob("x-*")}
        if first in left:
            assert left in (was, new)
        seen.add((first in left, left == new))
        ckpttool.convert(small, tmp_path / "x.gguf", overwrite=True, **options)
        assert {p.name: p.read_bytes() for p in tmp_path.glob("x-*")} == new
        assert not list(tmp_path.glob("*.partial"))
    assert seen == {(True, False), (False, False), (True, True)}


def test_a_file_that_cannot_be_synced_is_made_anew(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync its pages pass for written, and may be lost: none of its slabs is taken over."""
    ckpttool.convert(small, tmp_path / "whole", to="bf16")
    fsync = os.fsync
    for count in (1, 2):  # by the descriptor that wrote it, and by the one that finds it again
        calls = [count]

        def failing_once(fd: int, calls: list[int] = calls) -> None:
            if name_of(fd) == "model.safetensors":
                calls[0] -= 1
                if not calls[0]:
                    refused()
            fsync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_once)
            with pytest.raises(LocalIOError, match="Input/output error") as caught:
                ckpttool.convert(small, tmp_path / "out", to="bf16")
        assert Path(str(caught.value.file)).name == "model.safetensors"
        assert (tmp_path / "out.partial" / "files" / "model.safetensors").stat().st_size == 0
        assert (tmp_path / "out.partial" / "journal").exists()
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_file_that_cannot_be_synced_is_not_taken_for_moved_in(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a damaged target of the same plan: the next run makes it anew, and does not call the damaged one done."""
    target, fsync = tmp_path / "x.gguf", os.fsync

    def failing(fd: int) -> None:
        if name_of(fd) == "x.gguf":
            refused()
        fsync(fd)

    ckpttool.convert(small, target, model_name="x")
    whole = target.read_bytes()
    target.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(LocalIOError, match="Input/output error"):
            ckpttool.convert(small, target, model_name="x", overwrite=True)
    ckpttool.convert(small, target, model_name="x", overwrite=True)
    assert target.read_bytes() == whole
    assert ckpttool.verify(target).ok


def test_the_receipt_is_read_back(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a byte of it is found out before anything is renamed."""
    read_bytes = Path.read_bytes

    def lossy(path: Path) -> bytes:
        data = read_bytes(path)
        return data[1:] if path.name == "ckpttool.receipt.json" else data

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lossy)
        with pytest.raises(LocalIOError, match="read back differs") as caught:
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert caught.value.file == "ckpttool.receipt.json"
    assert not (tmp_path / "out").exists()
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] > 0


@pytest.mark.parametrize(("owner", "name"), [(Path, "mkdir"), (os, "open")])
def test_what_the_system_refuses_is_an_error_of_ours(
    owner: Any, name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = api.plan(small, tmp_path / "out", to="bf16")
    limits = api.limit(device="cpu")
    monkeypatch.setattr(owner, name, refused)
    with pytest.raises(LocalIOError, match="Input/output error"):
        execute.execute(plan, limits)


def test_after_a_failure_no_file_is_begun(small: Path, tmp_path: Path) -> None:
    plan, crew = api.plan(small, tmp_path / "out", to="bf16"), Crew()
    plan.place.staged.mkdir(parents=True)
    staged = Staged(plan, {f.name: () for f in plan.files}, crew, len(plan.files), ())
    crew.fail(InputError("is spoilt"))
    assert [staged.open(f.name) for f in plan.files] == [None] * len(plan.files)
    assert not list(plan.place.staged.iterdir())


class FailsAtTheEnd:
    """A delivery that takes every file, and cannot finish."""

    frees = False

    def begin(self) -> None: ...

    def holds(self, name: str, sha256: str, nbytes: int) -> bool:
        return False

    def deliver(self, name: str, file: LocalTarget, sha256: str) -> None: ...

    def finish(self, conversion: Conversion, folder: Path, worked: Sequence[int]) -> None:
        refused()


def test_a_delivery_that_cannot_finish_is_gone_on_with(small: Path, tmp_path: Path) -> None:
    plan = api.plan(small, tmp_path / "out", to="bf16")
    with pytest.raises(LocalIOError, match="Input/output error") as caught:
        execute.execute(plan, api.limit(device="cpu"), delivery=FailsAtTheEnd())
    assert str(caught.value.hint).endswith("the same command then goes on where this one stopped")
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] == len(plan.slabs)


def test_the_error_of_a_run_is_told_though_its_wreck_stays(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both fail: the work, and the deletion of what was made."""

    def spoilt(*_: object) -> Any:
        raise InputError("is spoilt")

    with monkeypatch.context() as patch:
        patch.setattr(execute.Worker, "work", spoilt)
        patch.setattr(workplace.shutil, "rmtree", refused)
        with pytest.raises(InputError, match="is spoilt"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert not (tmp_path / "out.partial").exists()


def test_a_lock_that_cannot_be_closed_spoils_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was written by it, and all is done."""
    close = os.close
    met: list[int] = []

    def failing(fd: int) -> None:
        name = name_of(fd)
        close(fd)
        if name.startswith("lock"):  # and then " (deleted)"
            met.append(fd)
            refused()

    monkeypatch.setattr(os, "close", failing)
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").verified
    assert met


@pytest.mark.parametrize("broken", ["add", "head"])
def test_a_journal_that_cannot_be_written_is_named(
    broken: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*(os, "write", refused) if broken == "add" else (Path, "write_bytes", refused))
        with pytest.raises(LocalIOError, match="Input/output error") as caught:
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert Path(str(caught.value.file)).name == ("journal" if broken == "add" else "journal.new")


@pytest.mark.parametrize(
    "front", [ckpttool.open_checkpoint, ckpttool.verify, lambda path: ckpttool.upload(path, "ada/model")]
)
def test_a_folder_that_cannot_be_listed(
    front: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(LocalIOError, match="Input/output error"):
        front(tmp_path / "out")


def test_a_plan_that_the_system_stands_against(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "make_plan", refused)
    with pytest.raises(LocalIOError, match="Input/output error"):
        api.plan(small, tmp_path / "out", to="bf16")


def test_a_system_that_fails_is_no_damage(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run was killed while it cleared up; the next one cannot look at the target, and the one after that can."""
    made = ckpttool.convert(small, tmp_path / "out", to="bf16")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(verifier.Verifier, "run", refused)
        with pytest.raises(LocalIOError, match="Input/output error"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert (tmp_path / "out.partial" / "lock").exists()
    again = ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert [f.crc32 for f in again.files] == [f.crc32 for f in made.files]
    assert not (tmp_path / "out.partial").exists()


def test_a_dry_run_beside_what_was_interrupted(small: Path, tmp_path: Path) -> None:
    """Killed between the renames of a split set: nothing that is there stands against the command, and it stays."""
    options: dict[str, Any] = {"model_name": "x", "max_shard_size": 30_000}

    def body() -> None:
        die_at(workplace, "move_in", 2, before=False)
        ckpttool.convert(small, tmp_path / "x.gguf", workers=1, **options)

    assert in_child(body) == signal.SIGKILL
    plan, was = api.plan(small, tmp_path / "x.gguf", **options), tree(tmp_path)
    assert any(os.path.lexists(p) for p in plan.place.finals)
    assert preview(plan, api.limit()).digest == plan.digest
    assert tree(tmp_path) == was
    assert ckpttool.convert(small, tmp_path / "x.gguf", **options).run["slabs_resumed"] == len(plan.slabs)
    with pytest.raises(LocalIOError, match="already exists"):
        preview(plan, api.limit())


def test_a_dry_run_beside_another_target(old: Path, small: Path, tmp_path: Path) -> None:
    """Traces of a run lie there, but the target is of another plan."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lock").touch()
    with pytest.raises(LocalIOError, match="already exists"):
        preview(api.plan(small, old, to="bf16"), api.limit())
