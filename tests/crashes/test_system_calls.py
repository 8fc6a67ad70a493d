"""Conversions that are killed, or refused by the system, at their system calls, as strace does it.

For each of seven conversions every call is met that changes what lies where the conversion works: 87 to 136 of them. It
is killed there, or the call fails with ENOSPC (from there on, where it wants room), EIO, EDQUOT or EINTR, or says that
it wrote a byte and has written none. After each the target is the old one or the new one, bit for bit, `verify` agrees,
errors are ours and name a file, and the same command goes on to the same bytes and leaves nothing beside them.

CI takes every fifth call for the kill and every twentieth for each of the others, beginning at another one for each
conversion; nightly all are taken, and every third one once more with the threads that there are in real life.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strace
from conversions import CONVERSIONS

HERE = Path(__file__).parent
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EINTR", "lost")
FAULTS = ("KILL", *ERRORS)
NUMBERS = {name: i for i, name in enumerate(CONVERSIONS)}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
TARGETS = {f"{target}{end}" for target in ("out", "out.gguf") for end in ("", ".partial", ".receipt.json")}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def tracer() -> None:
    lacking = strace.lacking()
    if lacking:
        pytest.skip(f"conversions cannot be disturbed: {lacking}")


@pytest.fixture
def disturbed(tmp_path: Path) -> Iterator[Callable[..., Rows]]:
    """Disturb a conversion. It works in memory if possible, for each run waits for the disk several times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as work:

        def run(name: str, faults: dict[str, tuple[int, int]], *, threads: bool = False) -> Rows:
            request = {"conversion": name, "folder": tmp_path, "work": Path(work) / "work", "faults": faults,
                       "threads": threads}  # fmt: skip
            command = [sys.executable, str(HERE / "disturbed.py"), json.dumps(request, default=str)]
            done = subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT)
            assert done.returncode == 0, done.stderr.decode()[-4000:]
            document = json.loads(done.stdout.splitlines()[-1])
            assert document["calls"] >= (60 if threads else 80)  # of the nth ones of several threads one counts
            return document["rows"]

        yield run


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_disturbed_conversion(name: str, disturbed: Callable[..., Rows]) -> None:
    number = NUMBERS[name]
    steps = {"KILL": (number % 5, 5)} | {fault: ((3 * number + i) % 20, 20) for i, fault in enumerate(ERRORS)}
    rows = disturbed(name, steps)
    assert len(rows) >= 30
    judge_all(name, rows)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_disturbed_at_every_call(name: str, fault: str, disturbed: Callable[..., Rows]) -> None:
    rows = disturbed(name, {fault: (0, 1)})
    assert len(rows) >= (30 if fault == "lost" else 75)
    judge_all(name, rows)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_disturbed_among_its_threads(name: str, disturbed: Callable[..., Rows]) -> None:
    """What a thread has begun when another one fails is not the same each time, so a call may not be met."""
    rows = disturbed(name, {fault: (i % 3, 3) for i, fault in enumerate(FAULTS)}, threads=True)
    assert len(rows) >= 60
    judge_all(name, rows, threads=True)


def judge_all(name: str, rows: Rows, *, threads: bool = False) -> None:
    for row in rows:
        judge(row, over=CONVERSIONS[name].over, is_file=CONVERSIONS[name].target.endswith(".gguf"), threads=threads)


def judge(row: dict[str, Any], *, over: bool, is_file: bool, threads: bool) -> None:
    """Hold what came of one disturbance against what may come of it."""
    before = "old" if over else "none"
    assert row["met"] or threads, row
    assert row["state"] in (before, "new"), row
    if row["fault"] == "KILL":
        assert row["status"] == signal.SIGKILL or (threads and row["status"] == 0), row
    else:
        assert row["status"] == 0, row
    if row["said"]:
        judge_words(row, threads=threads)
        judge_synced(row)
    judge_verified(row, before, is_file=is_file)
    judge_again(row, over=over)


def judge_words(row: dict[str, Any], *, threads: bool) -> None:
    """An exit code of 0 and a new target with nothing beside it; or of 4, one line, and a name in it. Of what befell
    several threads the first one's is told."""
    said = row["said"]
    assert said["ours"], row
    assert said["code"] in may_end_with(row["fault"], row["call"]["name"] if row["met"] else ""), row
    if said["code"] == 0:
        assert (row["state"], row["verified"], row["beside"]) == ("new", True, []), row
        return
    names = {Path(p).name for p in row["call"]["paths"]} | TARGETS
    assert threads or any(f"{n}: " in said["error"] or f"{n} at byte" in said["error"] for n in names), row
    assert "\n" not in said["error"], row
    assert len(said["error"]) < 2048, row


def may_end_with(fault: str, call: str) -> tuple[int, ...]:
    """No loss is passed over, and no interruption taken for one. What is closed, or made where it is there already, may
    be unharmed; a byte that was not written may have been zero already."""
    if fault == "EINTR":
        return (0,) if call in (*strace.WRITING, *strace.SYNCING, *strace.SIZING, *strace.OPENING) else (0, 4)
    kept = (*strace.WRITING, *strace.SYNCING, *strace.SIZING, *strace.RENAMING, *strace.OPENING)
    return (4,) if call in kept and fault != "lost" else (0, 4)


def judge_synced(row: dict[str, Any]) -> None:
    """What the system could not bring to the disk is not gone on with: it would pass for written the next time. But the
    receipt is written anew, and the journal is not believed."""
    unsynced = row["fault"] in ("ENOSPC", "EIO", "EDQUOT") and row["call"]["name"] in strace.SYNCING and row["met"]
    for path, there in zip(row["call"]["paths"], row["there"], strict=True):
        assert not (unsynced and there) or Path(path).name.endswith(("receipt.json", "journal")), row


def judge_verified(row: dict[str, Any], before: str, *, is_file: bool) -> None:
    """A GGUF's receipt comes just before it, and until then says that it is not the file that lies there."""
    if row["state"] == "new" or (before == "old" and not is_file):
        assert row["verified"], row
    elif before == "old":
        assert row["verified"] or row["call"]["name"].startswith(("rename", "fsync", "close")), row
    else:
        assert row["verified"] is None or (is_file and row["verified"] is False), row


def judge_again(row: dict[str, Any], *, over: bool) -> None:
    """The same command makes the target, or finds it made: then it says so, or that it exists where no trace is left of
    the run that made it. What the journal has of slabs that are there is not done again."""
    again = row["again"]
    assert (row["then"], row["then_verified"], row["then_beside"]) == ("new", True, []), row
    made = row["state"] == "new"
    if made and not over and again["code"] == 4:
        assert "already exists" in again["error"], row
        return
    assert (again["status"], again["code"]) == (0, 0), row
    if not made and not row["call"]["name"].startswith(("pwrite", "fsync")):
        assert again["resumed"] == row["journalled"], row
