"""Conversions on file systems whose power is cut: a process that forks a child for each, and one for each resumption.

    unshare --mount python power_cuts.py REQUEST-AS-JSON

prints one JSON document. A request is one of `crash_runs`, and says which file system, how many cuts, and whether
nothing is synced. The file system lies in a file that is mounted by a loop device. What that file holds at one moment
is what a disk holds whose power is cut then: all that the system has written out, and nothing of what it still has in
memory. So it is read all the time; twice the same is one moment. Beside half of the conversions another program syncs
a file of its own all the time, which brings renames to the disk before the contents of what is renamed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from crash_runs import convert, nothing_to_do, resume, run_and_exit, state, target_in, tree, verdict

from ckpttool import steps

MIB = 1 << 20
FILE_SYSTEMS = {
    "ext4": ("mkfs.ext4 -q -F", 32 * MIB, "loop"),
    "ext4, data=writeback": ("mkfs.ext4 -q -F", 32 * MIB, "loop,data=writeback"),
    "xfs": ("mkfs.xfs -q -f", 320 * MIB, "loop"),
}
"""What makes it, in how many bytes, and how it is mounted."""
CUTS_OF_A_RUN = 5
PIECE = 1 << 16
Moment = list[tuple[int, bytes]]
"""What a file holds: offset and bytes of all that is no hole."""


def held(path: Path) -> Moment:
    out, at = [], 0
    with path.open("rb", buffering=0) as f, contextlib.suppress(OSError):  # ENXIO: nothing comes any more
        while True:
            start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            for piece in range(start, at, PIECE):
                out.append((piece, os.pread(f.fileno(), min(PIECE, at - piece), piece)))
    return out


def moment(path: Path) -> Moment | None:
    """What the file holds at one moment: what it held twice in a row. None where it is written to all the time."""
    before = held(path)
    for _ in range(20):
        after = held(path)
        if after == before:
            return after
        before = after
    return None


class Disk:
    """A file with a file system, and where it is mounted."""

    def __init__(self, file_system: str, folder: Path) -> None:
        make, self.nbytes, self.options = FILE_SYSTEMS[file_system]
        self.image, self.at = folder / "image", folder / "mounted"
        self.at.mkdir()
        with self.image.open("wb") as f:
            f.truncate(self.nbytes)
        subprocess.run([*make.split(), str(self.image)], check=True)
        self.fresh = [(at, data) for at, data in held(self.image) if data.count(0) < len(data)]

    @contextlib.contextmanager
    def mounted(self, content: Moment) -> Iterator[None]:
        """Mounted with this content."""
        with self.image.open("wb") as f:
            f.truncate(self.nbytes)
            for at, data in content:
                os.pwrite(f.fileno(), data, at)
        subprocess.run(["mount", "-o", self.options, str(self.image), str(self.at)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", str(self.at)], check=True)


def sync_something(folder: Path) -> None:
    """Sync a file of no importance, for ever."""
    with (folder / "other").open("wb", buffering=0) as f:
        for n in itertools.count():
            f.write(bytes([n & 255]))
            os.fsync(f.fileno())
            time.sleep(0.001)


@contextlib.contextmanager
def beside(body: Callable[[], object]) -> Iterator[int]:
    """A child that runs `body` until it is killed; its process id."""
    pid = os.fork()
    if not pid:
        run_and_exit(body)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def moments(request: dict[str, Any], disk: Disk, syncing: bool) -> tuple[list[Moment], int]:
    """What the disk holds while a conversion goes on, the last when it has ended; and its wait status."""
    target, found, status = disk.at / "work" / request["target"], [], None

    def body() -> None:
        if request["unsynced"]:
            os.fsync = lambda fd: None  # type: ignore[assignment]
        convert(request, target)

    with disk.mounted(disk.fresh):
        target_in(target.parent, request)
        subprocess.run(["sync", "-f", str(target.parent)], check=True)
        with beside(lambda: sync_something(disk.at) if syncing else signal.pause()) as other:
            pid = os.fork()
            if not pid:
                run_and_exit(body)
            while status is None:
                os.kill(other, signal.SIGSTOP)  # else the disk is never still
                done, ended = os.waitpid(pid, os.WNOHANG)
                status = ended if done else None
                now = moment(disk.image)
                os.kill(other, signal.SIGCONT)
                if now is not None and now not in found[-1:]:
                    found.append(now)
                time.sleep(0.001)
        last = moment(disk.image)
        if last is None:
            raise RuntimeError("the disk is written to though nobody writes")
    return [*found, last], status


def main() -> None:
    request = json.loads(sys.argv[1])
    steps.SLAB_NBYTES = request["slab_nbytes"]
    convert(request, Path(request["warm"]))
    chance, folder = random.Random(request["seed"]), Path(request["work"])
    folder.mkdir()
    disk = Disk(request["file_system"], folder)
    target = disk.at / "work" / request["target"]
    rows: list[dict[str, Any]] = []
    while len(rows) < request["cuts"]:
        (*during, end), status = moments(request, disk, chance.random() < 0.5)
        some = chance.sample(during, min(len(during), CUTS_OF_A_RUN - 1))
        for content in [*some, end][: request["cuts"] - len(rows)]:
            with disk.mounted(content):
                row = {"ended": status if content is end else None, **state(target)}
                row["again"] = {"status": 0} if nothing_to_do(request, row) else resume(request, target)
                rows.append(row | {"tree": tree(target.parent), "end": verdict(target)})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
