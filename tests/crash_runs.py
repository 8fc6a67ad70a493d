"""Conversions that die: a process that forks one child for each death, and one for each resumption.

    python crash_runs.py SCENARIO REQUEST-AS-JSON

prints one JSON document. The package has no hooks for this: a child replaces functions of its own copy before it
converts, and ends itself with SIGKILL, as a power cut or the kernel's OOM killer would.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

import ckpttool
from ckpttool import cli, commit, execute, journal, steps, workplace
from ckpttool.containers.source import LocalTarget

RECEIPTS = ("ckpttool.receipt.json", ".receipt.json")


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder` but receipts, which hold times."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(RECEIPTS)
    }


def in_child(body: Callable[[], object]) -> int:
    """The wait status of a child that runs `body`: 0, 256 * exit code, or the number of the signal that ended it."""
    pid = os.fork()
    if not pid:
        run_and_exit(body)
    return os.waitpid(pid, 0)[1]


def run_and_exit(body: Callable[[], object]) -> NoReturn:
    """Run `body` and end this process: with 0, or with the exit code that the command line has for the error."""
    try:
        body()
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}\n".encode())
        os._exit(getattr(e, "exit_code", 70))
    os._exit(0)


def die_at(owner: Any, name: str, count: int, *, before: bool) -> None:
    """Kill this process at the `count`-th call of `owner.name`, before or after its work."""
    original, calls = getattr(owner, name), itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)  # one step even where threads call: none may slip past the count
        if before and call == count:
            os.kill(os.getpid(), signal.SIGKILL)
        out = original(*args, **kwargs)
        if call == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    setattr(owner, name, wrapped)


POINTS: dict[str, tuple[Any, str]] = {
    "journal": (journal.Journal, "add"),
    "create": (LocalTarget, "create"),
    "sidecar": (execute, "write_sidecar"),
    "sync": (execute, "_sync"),
    "receipt": (execute, "_write_durably"),
    "rename": (workplace, "move_in"),
    "exchange": (commit, "_exchange"),
}


def convert(request: dict[str, Any], target: Path, **more: Any) -> Any:
    return ckpttool.convert(request["source"], target, **{**request["options"], **more})


def crash(request: dict[str, Any], target: Path, point: str, count: int, before: bool, **more: Any) -> int:
    def body() -> None:
        die_at(*POINTS[point], count, before=before)
        convert(request, target, **more)

    return in_child(body)


def resume(request: dict[str, Any], target: Path, **more: Any) -> dict[str, Any]:
    """Convert again in a child; its exit status, and what it reported."""
    report = target.parent / "report.json"
    report.unlink(missing_ok=True)

    def body() -> None:
        run = convert(request, target, **more).run
        report.write_text(json.dumps({"resumed": run["slabs_resumed"], "slabs": run["slabs"]}))

    status = in_child(body)
    found = json.loads(report.read_text()) if report.exists() else {}
    report.unlink(missing_ok=True)
    return {"status": status, **found}


def target_in(work: Path, request: dict[str, Any]) -> Path:
    """A new folder with nothing in it but an old target, if there shall be one, and the target's path there."""
    shutil.rmtree(work, ignore_errors=True)
    if old := request.get("old"):
        shutil.copytree(old, work)
    else:
        work.mkdir(parents=True)
    return work / request["target"]


def kill_everywhere(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Die at every call of every point, before and after; then resume. One row for each death."""
    work, rows = Path(request["work"]), []
    for point in request["points"]:
        for before in (True, False):
            count = 0
            while True:
                count += 1
                target = target_in(work, request)
                status = crash(request, target, point, count, before)
                if status == 0:  # there is no such call any more
                    break
                left = tree(work)
                finals = {n: s for n, s in left.items() if ".partial/" not in n}
                again = resume(request, target)
                rows.append({"point": point, "before": before, "count": count, "status": status, "finals": finals,
                             "again": again, "tree": tree(work)})  # fmt: skip
    return rows


def verdict(target: Path) -> str:
    """What `ckpttool verify` says of the target: "ok", what it finds, or why it cannot tell."""
    try:
        found = ckpttool.verify(target)
    except ckpttool.CkptError as e:
        return f"{type(e).__name__}: {e}"
    return "ok" if found.ok else "; ".join(found.findings)


def state(target: Path) -> dict[str, Any]:
    """What a reader finds beside the unfinished conversion, if that one is left, and how many of its slabs are written
    down.
    """
    beside = {n: s for n, s in tree(target.parent).items() if not n.startswith(f"{target.name}.partial/")}
    journal = target.with_name(f"{target.name}.partial") / "journal"
    lines = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
    return {"finals": beside, "verdict": verdict(target), "lines": lines, "left": journal.parent.exists()}


def nothing_to_do(request: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the same command would say that the target exists: its run was over when it died."""
    return bool(found["finals"]) and not found["left"] and not request["options"]["overwrite"]


def killed_after(seconds: float, body: Callable[[], object], begun: Path | None = None) -> int:
    """The wait status of a child that runs `body`, and is killed after so many seconds, or that long after a file
    has come to be.
    """
    pid = os.fork()
    if not pid:
        run_and_exit(body)
    while begun and not begun.exists() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # it may have ended: until it is waited for, its number is still its own
    return os.waitpid(pid, 0)[1]


def killed_at_random(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Kill conversions at random moments, half of them again as they go on, and then let them end. A row for each
    that ended, with the state after each of its deaths; `kills` deaths in all. Half of the moments are any from the
    start on, half lie in the work, which is shorter than what goes before.
    """
    chance, work, rows, kills = random.Random(request["seed"]), Path(request["work"]), [], 0

    def once() -> float:
        target, begun = target_in(work, request), time.perf_counter()
        in_child(lambda: convert(request, target))
        return time.perf_counter() - begun

    span = sorted(once() for _ in range(5))[2]
    while kills < request["kills"]:
        target, deaths, again = target_in(work, request), [], {}
        while not deaths or chance.random() < 0.5:
            begun, most = chance.choice(
                [(None, span), (target.with_name(f"{target.name}.partial") / "journal", span / 3)]
            )
            status = killed_after(chance.uniform(0, most), lambda t=target: convert(request, t), begun)
            if status != signal.SIGKILL:  # it was faster
                again = {"status": status}
                break
            deaths.append(state(target))
            if nothing_to_do(request, deaths[-1]):
                again = {"status": 0}
                break
        kills += len(deaths)
        again = again or resume(request, target)
        rows.append({"deaths": deaths, "again": again, "tree": tree(work), "end": verdict(target)})
    return rows


def torn(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Die after journal line `lines`, tear the last line at every byte (and change each byte), resume."""
    work, rows = Path(request["work"]), []
    target = target_in(work, request)
    crash(request, target, "journal", request["lines"], False, workers=1)
    kept = work.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(work, kept)
    text = (kept / f"{target.name}.partial" / "journal").read_bytes()
    last = text.rstrip(b"\n").rfind(b"\n") + 1
    damaged = [text[:n] for n in range(last, len(text) + 1)]
    damaged += [text[:n] + bytes([text[n] ^ 0x11]) + text[n + 1 :] for n in range(last, len(text), 3)]
    for data in damaged:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(kept, work)
        (work / f"{target.name}.partial" / "journal").write_bytes(data)
        rows.append({"journal": data.decode("latin-1"), "again": resume(request, target), "tree": tree(work)})
    return rows


def damaged_partial(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Die late, flip one byte in each of many places of the unfinished files, resume."""
    work, rows = Path(request["work"]), []
    target = target_in(work, request)
    crash(request, target, "receipt", 1, True)
    kept = work.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(work, kept)
    for file in sorted((kept / f"{target.name}.partial" / "files").iterdir()):
        size = file.stat().st_size
        for at in sorted({0, 1, 9, size - 1, *range(5, size, max(1, size // request["places"]))}):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(kept, work)
            with (work / file.relative_to(kept)).open("r+b") as f:
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes([byte ^ 0x40]))
            rows.append({"file": file.name, "at": at, "again": resume(request, target), "tree": tree(work)})
    return rows


def limited(request: dict[str, Any]) -> dict[str, Any]:
    """Convert under RLIMIT_FSIZE."""
    work = Path(request["work"])
    target = target_in(work, request)

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        convert(request, target)

    return {"status": in_child(body), "tree": tree(work), "names": sorted(p.name for p in work.iterdir())}


def signalled(request: dict[str, Any]) -> None:
    """The command line, which sends itself a signal as it writes journal line `line`, and then pauses at each line."""
    original, calls = journal.Journal.add, itertools.count(1)

    def add(self: journal.Journal, entry: journal.Entry) -> None:
        original(self, entry)
        call = next(calls)  # one step even where threads call: none may slip past the line
        if call == request["line"]:
            os.kill(os.getpid(), request["signal"])
        if call >= request["line"]:
            time.sleep(request.get("pause", 0.2))

    journal.Journal.add = add  # type: ignore[method-assign]
    sys.argv = ["ckpttool", *request["arguments"]]
    cli.main()


def resident(word: str) -> int:
    """VmRSS or VmHWM of this process in bytes. (getrusage's maximum begins with the parent's.)"""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{word}:") + 1]) * 1024


def peak(request: dict[str, Any]) -> dict[str, int]:
    """Resident memory after the package and its kernels are loaded, and the peak of a conversion after that."""
    small = Path(request["work"]) / ("small" + Path(request["target"]).suffix)
    ckpttool.convert(request["small"], small, **request["options"])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    report = convert(request, Path(request["work"]) / request["target"])
    return {"before": before, "after": resident("VmHWM"), "reported": report.run["peak_memory"]}


SCENARIOS: dict[str, Callable[[dict[str, Any]], Any]] = {
    f.__name__: f for f in (kill_everywhere, killed_at_random, torn, damaged_partial, limited, signalled, peak)
}


def main() -> None:
    scenario, request = sys.argv[1], json.loads(sys.argv[2])
    steps.SLAB_NBYTES = request.get("slab_nbytes", steps.SLAB_NBYTES)
    if warm := request.get("warm"):  # kernels are loaded once, and its threads have ended before any fork
        convert(request, Path(warm))
    print(json.dumps(SCENARIOS[scenario](request)))


if __name__ == "__main__":
    main()
