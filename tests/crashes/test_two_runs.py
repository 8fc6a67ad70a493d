"""Two conversions at one target: the second is refused with one line and touches nothing; the first goes on to its end.

The first is a process that stops itself in the middle of its work; six other commands come meanwhile, and then it goes
on. Also readers while it writes, a target that another command has made since, and two runs with one staging folder on
their way to a repo of the Hub.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from commandline import run
from conversions import CONVERSIONS, SLAB_NBYTES, Conversion, convert, source
from crash_runs import tree
from fake_hub import FakeHub
from fake_repos import User
from prepared import TESTS

import ckpttool
from ckpttool import steps, workplace
from ckpttool.errors import InputError, LocalIOError
from ckpttool.journal import Entry, Journal
from ckpttool.verifier import Verifier

SPLIT = Conversion("hf", "out.gguf", {"model_name": "x", "max_shard_size": 60_000})
FOLDER = CONVERSIONS["MXFP4 to BF16"]
BUSY = "another conversion is writing here; wait for it, or choose another TARGET\n"


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLAB_NBYTES", SLAB_NBYTES)


def options(asked: Conversion) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in asked.options.items()]


@contextlib.contextmanager
def first_run(*arguments: str | Path) -> Iterator[Callable[[], int]]:
    """`ckpttool ARGUMENTS` in a process that has stopped at its seventh slab. The call lets it go on: its exit code."""
    request = {"slab_nbytes": SLAB_NBYTES, "line": 7, "signal": int(signal.SIGSTOP), "pause": 0,
               "arguments": [*map(str, arguments), "--workers=1"]}  # fmt: skip
    command = [sys.executable, str(TESTS / "crash_runs.py"), "signalled", json.dumps(request)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            how = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert how is not None
            assert how.si_code == os.CLD_STOPPED, process.stderr and process.stderr.read()

            def go_on() -> int:
                os.kill(process.pid, signal.SIGCONT)
                process.communicate(timeout=120)
                return process.returncode

            yield go_on
        finally:
            process.kill()


@pytest.mark.parametrize("asked", [FOLDER, SPLIT], ids=["folder", "split GGUF"])
def test_the_second_is_refused_whatever_it_asks(asked: Conversion, tmp_path: Path) -> None:
    """The same once more, with another dtype or shard size, another source, --overwrite, by a link to the folder, and
    by a path with dots: exit code 4. A dry run writes nothing and is welcome."""
    checkpoint, other = source(asked, tmp_path / "source"), source(asked, tmp_path / "other", seed=9)
    (tmp_path / "whole").mkdir()
    convert(asked, checkpoint, tmp_path / "whole")
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "link").symlink_to(work)
    target, more = work / asked.target, options(asked)
    with first_run("convert", checkpoint, target, *more) as go_on:
        before = tree(work)
        seconds: list[list[str | Path]] = [
            [checkpoint, target, *more],
            [checkpoint, target, *more, "--max-shard-size=50000"],
            [other, target, *more],
            [checkpoint, target, *more, "--overwrite"],
            [checkpoint, tmp_path / "link" / asked.target, *more],
            [checkpoint, work / ".." / "work" / asked.target, *more],
        ]
        for second in seconds:
            refused = run("convert", *second)
            assert (refused.code, refused.out) == (4, ""), (second, refused)
            assert refused.err == f"error: {second[1]}.partial: {BUSY}", (second, refused)
            assert tree(work) == before, second
        assert run("convert", checkpoint, target, *more, "--dry-run").code == 0
        assert tree(work) == before
        assert go_on() == 0
    assert tree(work) == tree(tmp_path / "whole")
    assert ckpttool.verify(target).ok


def test_readers_see_none_or_the_old_one_until_it_is_done(tmp_path: Path) -> None:
    """inspect and verify while a folder is made: there is none; while it is made anew: the old one, whole."""
    checkpoint, other = source(FOLDER, tmp_path / "source"), source(FOLDER, tmp_path / "other", seed=9)
    target = tmp_path / "out"
    with first_run("convert", checkpoint, target, *options(FOLDER)) as go_on:
        assert (run("verify", target).code, run("inspect", target).code) == (3, 3)
        assert go_on() == 0
    old = tree(target)
    with first_run("convert", other, target, *options(FOLDER), "--overwrite") as go_on:
        assert (run("verify", target).code, run("inspect", target).code) == (0, 0)
        assert tree(target) == old
        assert go_on() == 0
    assert run("verify", target, "--source", other).code == 0
    assert tree(target) != old


def test_a_target_that_has_come_to_be_meanwhile_stays(tmp_path: Path) -> None:
    """A GGUF of the very name of a shard: the run that comes later finds it, keeps what it made, and says so."""
    checkpoint = source(SPLIT, tmp_path / "source")
    (tmp_path / "whole").mkdir()
    convert(SPLIT, checkpoint, tmp_path / "whole")
    shards = sorted(p.name for p in (tmp_path / "whole").glob("*.gguf"))
    assert len(shards) > 1
    work = tmp_path / "work"
    work.mkdir()
    command: list[str | Path] = ["convert", checkpoint, work / "out.gguf", *options(SPLIT)]
    with first_run(*command) as go_on:
        assert run("convert", checkpoint, work / shards[1], "--model-name=x").code == 0
        one = (work / shards[1]).read_bytes()
        assert go_on() == 4
    assert (work / shards[1]).read_bytes() == one
    assert not (work / shards[0]).exists()
    refused = run(*command)
    assert refused.code == 4
    assert "already exists" in refused.err
    for path in (work / shards[1], work / f"{shards[1]}.receipt.json"):
        path.unlink()
    again = run(*command, "--json")
    assert again.code == 0, again.err
    assert again.document["run"]["slabs_resumed"] == again.document["run"]["slabs"]
    assert tree(work) == tree(tmp_path / "whole")


def test_verify_while_another_conversion_is_put_in_place(tmp_path: Path) -> None:
    """Between its reading the receipt and the files, --overwrite has put another conversion in place."""
    checkpoint, other = source(FOLDER, tmp_path / "source"), source(FOLDER, tmp_path / "other", seed=9)
    convert(FOLDER, checkpoint, tmp_path)
    verifier = Verifier(tmp_path / "out")
    convert(FOLDER, other, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="out: has changed while it was read; give the same command again"):
        verifier.run()
    assert ckpttool.verify(tmp_path / "out").ok


# Moments that are too short for a process to meet


def test_the_next_run_is_there_before_the_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the deletion of our lock and that of its folder another run has made a lock of its own there."""
    original = Path.rmdir

    def rmdir(path: Path) -> None:
        if path.name == "out.partial":
            (path / "lock").touch()
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", rmdir)
        convert(FOLDER, source(FOLDER, tmp_path / "source"), tmp_path)
    assert ckpttool.verify(tmp_path / "out").ok
    assert [p.name for p in (tmp_path / "out.partial").iterdir()] == ["lock"]


def test_the_run_before_takes_the_folder_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our making the folder and our making a lock in it another run has ended."""
    original = os.open

    def opened(path: Any, *more: Any, **keys: Any) -> int:
        if isinstance(path, Path) and path.name == "lock":
            path.parent.rmdir()
        return original(path, *more, **keys)

    checkpoint = source(FOLDER, tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(workplace.os, "open", opened)
        with pytest.raises(LocalIOError, match="another conversion is writing here"):
            convert(FOLDER, checkpoint, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# On the way to a repo


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        token = "hf_" + "w" * 34
        hub.users |= {token: User("ada")}
        monkeypatch.setenv("HF_TOKEN", token)
        yield hub


@pytest.mark.usefixtures("hasty")
def test_two_runs_with_one_staging_folder(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second, to the same repo or by a local command to the folder where files are staged, is refused and sends
    nothing; the first shows its commit."""
    checkpoint, staging = source(FOLDER, tmp_path / "source"), tmp_path / "staging"
    staging.mkdir()
    reached, go_on = threading.Event(), threading.Event()
    original = Journal.add

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        reached.set()
        assert go_on.wait(60)

    def to_hub() -> Any:
        return ckpttool.convert_to_hub(checkpoint, "hf://ada/out", workdir=staging, to="bf16", device="cpu")

    monkeypatch.setattr(Journal, "add", add)
    done: list[Any] = []
    first = threading.Thread(target=lambda: done.append(to_hub()))
    first.start()
    try:
        assert reached.wait(60)
        monkeypatch.setattr(Journal, "add", original)
        sent = len(hub.asked("commit"))
        with pytest.raises(LocalIOError, match="another conversion is writing here"):
            to_hub()
        partial = next(staging.glob("*.partial"))
        with pytest.raises(LocalIOError, match="another conversion is writing here"):
            ckpttool.convert(checkpoint, partial.with_suffix(""), to="bf16")
        assert len(hub.asked("commit")) == sent
    finally:
        go_on.set()
        first.join()
    assert len(done) == 1
    assert "model.safetensors" in hub.repos["ada/out"].files("main")
