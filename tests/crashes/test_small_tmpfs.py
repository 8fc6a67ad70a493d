"""Conversions onto a tmpfs of each of 25 sizes, from 0.1 to 1.1 of what the conversion takes there: a real ENOSPC.

Three ways for a disk to turn out too small: it is when we look; another program has taken the room since; the file
system reserves nothing, so that the disk fills up under the writes. Whichever it is: exit code 4 with one line, the
target is as it was, what was done is kept for the next run if there is any, and nothing else is. With more room the
same command takes that over, and ends with the bytes of an undisturbed conversion. 125 runs on too small disks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commandline
import pytest
from conversions import CONVERSIONS, SLAB_NBYTES
from crash_runs import state, target_in, tree
from prepared import prepare

from ckpttool import preflight, steps
from ckpttool.containers import source

SIZES = 25
PAGE = 4096
PLENTY = 64 << 20


class Disk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, nbytes: int) -> None:
        """Let it hold so many bytes."""
        subprocess.run(["mount", "-o", f"remount,size={nbytes}", str(self.path)], check=True)

    @property
    def used(self) -> int:
        """Bytes that are taken, in whole pages."""
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system: {done.stderr.decode().strip() or 'mount needs root'}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLAB_NBYTES", SLAB_NBYTES)


@pytest.fixture
def room_taken_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has is plenty whenever we look."""
    much = preflight.shutil.disk_usage("/")._replace(free=1 << 40)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: much)


@pytest.fixture
def nothing_reserved(room_taken_since: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without fallocate."""
    monkeypatch.setattr(source, "_fallocate", lambda fd, size: False)


@pytest.mark.parametrize("name", ["MXFP4 to BF16", "over an old GGUF"])
def test_it_is_when_we_look(name: str, tmp_path: Path, disk: Disk) -> None:
    """Nearly all of it is refused before the first byte; the pages of the receipt are not counted beforehand."""
    ends = at_every_size(name, tmp_path, disk)
    assert sum(" more, " in end["said"] for end in ends) > SIZES // 2


@pytest.mark.usefixtures("room_taken_since")
def test_another_program_has_taken_the_room_since(tmp_path: Path, disk: Disk) -> None:
    """Files are reserved before the work: nothing is begun where there is no room for all."""
    ends = at_every_size("in shards", tmp_path, disk)
    assert sum("cannot reserve" in end["said"] for end in ends) > SIZES // 2


@pytest.mark.usefixtures("nothing_reserved")
@pytest.mark.parametrize("name", ["over an old folder", "MXFP4 to GGUF"])
def test_it_fills_up_under_the_writes(name: str, tmp_path: Path, disk: Disk) -> None:
    """Slabs that were done before are kept, and count."""
    ends = at_every_size(name, tmp_path, disk)
    assert sum("No space left" in end["said"] for end in ends) > SIZES // 2
    assert sum(end["lines"] > 0 for end in ends) > SIZES // 4


def at_every_size(name: str, folder: Path, disk: Disk) -> list[dict[str, Any]]:
    """Convert at every size, with what is asserted of all; how each ended that found too little room."""
    asked = CONVERSIONS[name]
    made = prepare(asked, folder, disk.path / "work")
    options = [f"--{k.replace('_', '-')}={v}" for k, v in asked.options.items()]
    command = ["convert", made.request["source"], disk.path / "work" / asked.target, *options]
    command += ["--overwrite"] if asked.over else []
    need = sum(-(-p.stat().st_size // PAGE) * PAGE for p in (folder / "new").rglob("*") if p.is_file())
    ends = []
    for n in range(SIZES):
        disk.resize(PLENTY)
        target = target_in(disk.path / "work", made.request)
        disk.resize(disk.used + int(need * (0.1 + n / (SIZES - 1))) // PAGE * PAGE)
        done = commandline.run(*command)
        found = state(target) | {"said": done.err, "code": done.code}
        assert found["code"] in (0, 4), found
        assert found["finals"] == (made.old if done.code else made.new), found
        if done.code:
            assert done.err.startswith("error: "), found
            assert done.err.count("\n") == 1, found
            assert target.with_name(f"{asked.target}.partial").exists() == (found["lines"] > 0), found
            ends.append(found)
            disk.resize(PLENTY)
            again = commandline.run(*command, "--json")
            assert again.code == 0, again
            assert again.document["run"]["slabs_resumed"] == found["lines"], found
        assert tree(disk.path / "work") == made.new
    assert SIZES > len(ends) > SIZES // 2
    return ends
