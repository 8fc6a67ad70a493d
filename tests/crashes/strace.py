"""strace, attached to a child of this process: which of its system calls change a disk, and what befalls one of them.

strace counts the calls of each thread and name for itself, so a child that shall meet every call does all in one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

OPENING = ("open", "openat")
WRITING = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
COPYING = ("copy_file_range", "sendfile")
SIZING = ("fallocate", "ftruncate", "truncate")
SYNCING = ("fsync", "fdatasync", "sync_file_range", "syncfs")
RENAMING = ("rename", "renameat", "renameat2")
MAKING = ("creat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat")
REMOVING = ("unlink", "unlinkat", "rmdir")
MARKING = ("chmod", "fchmod", "fchmodat", "utimensat")
CLOSING = ("close",)
MUTATING = (
    *OPENING, *WRITING, *COPYING, *SIZING, *SYNCING, *RENAMING, *MAKING, *REMOVING, *MARKING, *CLOSING,
)  # fmt: skip
"""What changes a disk, or may say that an earlier change is lost. Not every machine has all of them."""

LINE = re.compile(r"(?P<thread>\d* *)(?P<name>\w+)\(")
PLACE = re.compile(r'"(?P<named>[^"]*)"|<(?P<open>[^>]*)>')
FOR_WRITING = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC)")


@dataclass(frozen=True)
class Call:
    """The `nth` call of this name (from 1) of a thread, and the paths that it names or has open."""

    name: str
    nth: int
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.nth}: {' '.join(self.paths)}"


@dataclass(frozen=True)
class Ended:
    """How a child ended: its wait status, what it wrote to its pipe, and the lines of its trace."""

    status: int
    said: bytes
    trace: tuple[str, ...]


def lacking() -> str | None:
    """Why nothing can be traced here; None where it can."""
    if not sys.platform.startswith("linux") or shutil.which("strace") is None:
        return "needs strace"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return f"strace may not trace here: {done.stderr.decode().strip()}" if done.returncode else None


def traced(body: Callable[[int], None], log: Path, *, inject: str | None = None, follow: bool = False) -> Ended:
    """Fork, attach strace, and let the child run `body`, which is given a pipe to write to; see strace's `inject`.

    Its other threads are traced as well if we `follow` them.
    """
    go, may_go = os.pipe()
    said, say = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(may_go)
        os.write(say, b".")  # what comes from here on is counted
        os.read(go, 1)
        try:
            body(say)
        finally:
            os._exit(0)
    os.close(go)
    os.close(say)
    os.read(said, 1)
    command = ["strace", "-y", "-s", "0", "-o", str(log), "-p", str(pid)]
    command += ["-e", "trace=" + ",".join(f"?{c}" for c in MUTATING), "-e", "signal=none"]
    command += ["-f"] if follow else []
    command += ["-e", f"inject={inject}"] if inject else []
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer, open(said, "rb") as pipe:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        os.write(may_go, b".")
        os.close(may_go)
        status = os.waitpid(pid, 0)[1]
        words = pipe.read()
        tracer.stderr.read()
    if b"attached" not in first:
        raise RuntimeError(first.decode())
    return Ended(status, words, tuple(log.read_text(errors="replace").splitlines()))


def calls_in(trace: Sequence[str], folder: Path) -> list[Call]:
    """The calls of a trace that change what lies in `folder`, in order; of the nth ones of several threads one."""
    seen: Counter[tuple[str, str]] = Counter()
    out: dict[tuple[str, int], Call] = {}
    for line in trace:
        begun = LINE.match(line)
        if begun is None:
            continue
        name = begun["name"]
        seen[begun["thread"], name] += 1
        paths = paths_in(line, folder)
        if paths and (name not in OPENING or FOR_WRITING.search(line)):
            nth = seen[begun["thread"], name]
            out.setdefault((name, nth), Call(name, nth, paths))
    return list(out.values())


def paths_in(line: str, folder: Path) -> tuple[str, ...]:
    """Names and open files in a line of a trace, as soon as one of them lies in `folder`."""
    found = [m["named"] or m["open"] for m in PLACE.finditer(line)]
    within = [p for p in found if p and (f"{p}/".startswith(f"{folder}/") or not p.startswith("/"))]
    return tuple(dict.fromkeys(within)) if any(p.startswith("/") for p in within) else ()
