"""One conversion, disturbed at its system calls: a process that forks a child for each disturbance, and one to go on.

    python disturbed.py REQUEST-AS-JSON

prints a JSON document. A request names a conversion of `conversions`, a folder to work in, and which faults befall
which calls: `{"KILL": [1, 3]}` is every third call, from the second on. The package has no hooks for this: strace does
it, and all that a child changes of its own copy is that everything happens in one thread, so that each call has its
number. With `threads` nothing is changed, and strace counts in each thread.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import strace
from conversions import CONVERSIONS, SLAB_NBYTES, convert, source
from crash_runs import in_child, tree

import ckpttool
from ckpttool import execute, readback, steps, threads
from ckpttool.errors import CkptError, InputError
from ckpttool.reports import Conversion as Receipt

SECONDS = 60
"""What hangs is ended after this time, by SIGALRM."""
TRIES = 3
"""A file that Python closes when it comes to it gives the calls after it other numbers, once in thousands of times."""


@dataclass(frozen=True)
class Fault:
    """What befalls a call, in strace's words; on from there it befalls all calls of that name if it `lasts`."""

    inject: str
    calls: frozenset[str]
    lasts: frozenset[str] = frozenset()


ROOM = frozenset({*strace.WRITING, *strace.SIZING, *strace.COPYING})
FAILING = frozenset(strace.MUTATING) - {*strace.MARKING}
FAULTS = {
    "KILL": Fault("signal=KILL", frozenset(strace.MUTATING)),
    "ENOSPC": Fault("error=ENOSPC", FAILING - {*strace.REMOVING}, ROOM),
    "EIO": Fault("error=EIO", FAILING),
    "EDQUOT": Fault("error=EDQUOT", FAILING - {*strace.REMOVING}),
    "EINTR": Fault("error=EINTR", FAILING - {*strace.REMOVING}),
    "lost": Fault("retval=1", frozenset(strace.WRITING)),
}
"""`lost`: the system says that it took one byte, and took none. A disk that stays full fails all that wants room."""


class InTurn:
    """A thread pool that does at once what it is given."""

    def __init__(self, workers: int) -> None: ...

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, call: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(call(*args))
        except BaseException as e:
            future.set_exception(e)
        return future


def in_one_thread() -> None:
    """Let this process do in one thread what it has several for: first all slabs, then the reading back."""

    def run(crew: threads.Crew) -> None:
        for thread in crew._threads:
            thread._body()
        if crew.failure is not None:
            raise crew.failure

    threads.Crew.run = run  # type: ignore[method-assign]
    execute.ThreadPoolExecutor = readback.ThreadPoolExecutor = InTurn  # type: ignore[assignment,misc,attr-defined]


def told(body: Callable[[], Any]) -> dict[str, Any]:
    """What came of `body`: its exit code, its error, whether that is one of ours, and what it resumed."""
    try:
        run = body().run
    except BaseException as e:
        ours = isinstance(e, CkptError)
        return {"code": getattr(e, "exit_code", 70), "ours": ours, "error": f"{type(e).__name__}: {e}"}
    return {"code": 0, "ours": True, "error": "", "resumed": run["slabs_resumed"], "slabs": run["slabs"]}


def going_on(body: Callable[[], Any]) -> dict[str, Any]:
    """What came of `body` in a child that nothing disturbs."""
    said, say = os.pipe()
    status = in_child(lambda: os.write(say, json.dumps(told(body)).encode()) and None)
    os.close(say)
    with open(said, "rb") as pipe:
        return {"status": status, **json.loads(pipe.read())}


class Disturbed:
    """A conversion in `work`, its source and old target, and what it comes to when nothing disturbs it."""

    def __init__(self, name: str, folder: Path, work: Path, threads: bool) -> None:
        self.conversion = CONVERSIONS[name]
        self.threads = threads
        self.folder, self.work, self.log = folder, work, folder / "trace"
        self.source = source(self.conversion, folder / "source")
        self.old_folder = folder / "old"
        self.old_folder.mkdir()
        if self.conversion.over:
            convert(self.conversion, source(self.conversion, folder / "other", seed=9), self.old_folder)
        shutil.copytree(self.old_folder, folder / "new")
        self.run(folder / "new")  # modules and kernels are loaded, so that a child makes the same calls each time
        self.old, self.new = tree(self.old_folder), tree(folder / "new")
        self.target = work / self.conversion.target
        self.partial = work / f"{self.conversion.target}.partial"

    def run(self, work: Path) -> Receipt:
        workers = 2 if self.threads else 1
        return convert(self.conversion, self.source, work, overwrite=self.conversion.over, workers=workers)

    def afresh(self) -> None:
        """Nothing in `work` but the old target."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.old_folder, self.work)

    def traced(self, inject: str | None = None) -> strace.Ended:
        """Run in one thread under strace. The child speaks by `writev`, which nothing else does."""

        def body(say: int) -> None:
            signal.alarm(SECONDS)
            if not self.threads:
                in_one_thread()
            os.writev(say, [json.dumps(told(lambda: self.run(self.work))).encode()])

        self.afresh()
        return strace.traced(body, self.log, inject=inject, follow=self.threads)

    def calls(self) -> list[strace.Call]:
        """All calls that change something in `work`, in their order."""
        ended = self.traced()
        assert json.loads(ended.said)["code"] == 0, ended.said
        return strace.calls_in(ended.trace, self.work)

    def state(self) -> str:
        """Whether the target is the old one, the new one, none, or something else."""
        finals = {n: s for n, s in tree(self.work).items() if ".partial/" not in n}
        known = {"none": {}, "old": self.old, "new": self.new}
        return next((name for name, files in known.items() if files == finals), f"other: {sorted(finals)}")

    def verified(self) -> bool | None:
        """What `verify` says of the target; None where it finds no receipt."""
        try:
            return ckpttool.verify(self.target).ok
        except InputError:
            return None

    def beside(self) -> list[str]:
        """What lies in `work` that is no part of the target, its receipt or those of the old one."""
        known = {self.conversion.target, f"{self.conversion.target}.receipt.json"}
        return sorted(p.name for p in self.work.iterdir() if p.name not in known)

    def journalled(self) -> int:
        """Slabs in the journal that a run has left."""
        with contextlib.suppress(FileNotFoundError):
            return max(0, (self.partial / "journal").read_bytes().count(b"\n") - 1)
        return 0

    def disturb(self, name: str, call: strace.Call) -> dict[str, Any]:
        """Let the fault befall the call, look at what is there, and give the same command again."""
        fault = FAULTS[name]
        on = "+" if call.name in fault.lasts else ""
        for _ in range(1 if self.threads else TRIES):
            ended = self.traced(f"{call.name}:{fault.inject}:when={call.nth}{on}")
            met = self._met(ended, call)
            if met:
                break
        row = {"fault": name, "call": asdict(call), "met": met, "status": ended.status,
               "said": json.loads(ended.said) if ended.said else None, "state": self.state(),
               "there": [Path(p).is_file() and Path(p).stat().st_size > 0 for p in call.paths],
               "verified": self.verified(),
               "beside": self.beside(), "journalled": self.journalled()}  # fmt: skip
        row["again"] = going_on(lambda: self.run(self.work))
        return row | {"then": self.state(), "then_verified": self.verified(), "then_beside": self.beside()}

    def _met(self, ended: strace.Ended, call: strace.Call) -> bool:
        """Whether the fault befell the very call that was meant."""
        same = [c for c in strace.calls_in(ended.trace, self.work) if (c.name, c.nth) == (call.name, call.nth)]
        return [c.paths for c in same] == [call.paths]


def main() -> None:
    request = json.loads(sys.argv[1])
    steps.SLAB_NBYTES = SLAB_NBYTES
    folder, work = Path(request["folder"]), Path(request["work"])
    disturbed = Disturbed(request["conversion"], folder, work, request["threads"])
    calls = disturbed.calls()
    rows = []
    for fault, (first, every) in request["faults"].items():
        reached = [c for c in calls if c.name in FAULTS[fault].calls]
        rows += [disturbed.disturb(fault, c) for c in reached[first::every]]
    print(json.dumps({"calls": len(calls), "rows": rows}))


if __name__ == "__main__":
    main()
