"""Plan -> files: the only code that writes checkpoints.

Everything is made in `TARGET.partial/`: files preallocated, slabs worked by threads in any order and journalled,
finished stretches read back and hashed while later slabs are written. The commit is a rename. A run that stops goes on
from its journal; a run that fails leaves TARGET as it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ckpttool import devices, workplace
from ckpttool.codecs import cpu
from ckpttool.codecs.transcode import Bytes
from ckpttool.commit import sync_folder
from ckpttool.containers.layout import FileLayout
from ckpttool.containers.source import LocalFile, LocalTarget
from ckpttool.errors import CheckFailed, CkptError, InputError, LimitError, LocalIOError, first_line, os_error
from ckpttool.journal import Entry, Journal
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.preflight import check_target
from ckpttool.readback import Stretch, read_back, stretches
from ckpttool.receipt import Outcome, receipt
from ckpttool.reports import Conversion, dump
from ckpttool.resources import Limits, Resources, resources
from ckpttool.sidecars import write_sidecar
from ckpttool.slabwork import Phases, Worker
from ckpttool.steps import target_ranges

if TYPE_CHECKING:
    from ckpttool.codecs.gpu_link import Lane

T = TypeVar("T")

PREALLOCATED_AT_ONCE = 16
"""Files: file systems in memory clear the pages, which takes them as long as writing does."""

Progress = Callable[[int], None]
"""Called with the bytes that have just been written, from any thread."""


def execute(
    plan: Plan,
    limits: Limits,
    *,
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress = lambda nbytes: None,
) -> Conversion:
    """Carry out `plan` and return the receipt.

    Raises:
        InputError: a value in the source that the target cannot hold; TARGET is as it was.
        LocalIOError: TARGET exists, the disk is full, another run works on it, what was read back differs.
        LimitError: not even one slab fits into the memory allowed, or the GPU has not as much.
    """
    begun = perf_counter()
    place = plan.place
    settled = workplace.settle(plan, verify=verify)
    if settled is not None:
        return settled
    check_target(plan, overwrite)
    using = resources(plan, limits)  # last, since it may measure for seconds
    with workplace.locked(place):
        done = workplace.resumed(plan)
        try:
            conversion = _convert(plan, done, using, verify, progress, begun)
        except (InputError, CheckFailed):
            workplace.discard(place)  # the same source and options would fail the same way again
            raise
        except (LocalIOError, LimitError, OSError) as e:
            error = e if isinstance(e, CkptError) else os_error(e)
            if done:
                error.hint = f"{error.hint}; the same command then goes on where this one stopped"
            else:  # nothing to go on from: a full disk is not kept full
                workplace.discard(place)
            raise error from e
        workplace.commit(plan, overwrite=overwrite)
    return conversion


@dataclass
class _Run:
    """What threads share: what is done, what failed, which slab comes next."""

    plan: Plan
    done: dict[int, Entry]
    journal: Journal
    progress: Progress
    todo: Iterator[int] = field(init=False)
    failure: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.todo = iter([i for i in _in_turns(self.plan) if i not in self.done])

    def next_slab(self) -> int | None:
        """The next slab for a thread; None when there is none, or the run has failed."""
        return self.taken(self.todo)

    def taken(self, items: Iterator[T]) -> T | None:
        """The next of `items`, which threads share; None when there is none, or the run has failed."""
        with self.changed:
            return None if self.failure else next(items, None)

    def finish(self, entry: Entry) -> None:
        """Write down a slab that is done."""
        self.journal.add(entry)
        with self.changed:
            self.done[entry.slab] = entry
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Stop all threads at their next slab; the first failure is the one that is reported."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def crc(self, slab: int, index: int) -> int | None:
        """The CRC of range `index` of a slab once it is done; None when the run has failed."""
        with self.changed:
            self.changed.wait_for(lambda: self.failure is not None or slab in self.done)
            return None if self.failure else self.done[slab].crcs[index]

    def guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` as a thread's body, its errors kept for the main thread."""

        def body() -> None:
            try:
                work()
            except BaseException as e:
                self.fail(e)

        return body


def _convert(
    plan: Plan, done: dict[int, Entry], using: Resources, verify: bool, progress: Progress, begun: float
) -> Conversion:
    """Make all files, receipt included, in the folder of the unfinished conversion; `begun` is when the run did."""
    place = plan.place
    journal = Journal(place.partial / "journal", plan.digest, list(done.values()))
    resumed = len(done)
    with contextlib.ExitStack() as stack:
        stack.callback(journal.close)
        sources = {f.name: stack.enter_context(LocalFile(f.path, f.name)) for f in plan.source.files}
        checks = _checks(plan)
        targets, buffers = _prepared(plan, checks, using, stack)
        prepared = perf_counter()
        run = _Run(plan, done, journal, progress)
        for entry in done.values():
            progress(plan.written_nbytes(entry.slab))
        workers = [Worker(sources, targets, plan.target.lossless, *buffer) for buffer in buffers]
        hashes: dict[str, str] = {}
        bodies = [run.guarded(lambda w=w: _work(run, w)) for w in workers]  # type: ignore[misc]
        if verify:
            unread = iter(checks.items())
            bodies += [run.guarded(lambda: _read_back(run, targets, unread, hashes))] * using.readers
        _in_threads(run, bodies)
        _require_unchanged(plan)
        worked = perf_counter()
        sidecars = {s.name: write_sidecar(s, place.staged, verify=verify) for s in plan.sidecars}
        outcome = Outcome(run.done, checks, hashes if verify else None, sidecars, resumed, using)
        _sync(place, targets.values())
        ended = perf_counter()
        outcome.seconds = {
            "total": ended - begun,
            "prepare": prepared - begun,
            "slabs": worked - prepared,
            "finish": ended - worked,
            **{f"threads_{name}": seconds for name, seconds in _summed(workers).items()},
        }
        conversion = receipt(plan, outcome)
        _write_durably(place.staged / place.receipt_name, dump(conversion))
        sync_folder(place.staged)
    return conversion


def _require_unchanged(plan: Plan) -> None:
    """InputError where a source file is no longer the one of the plan: what was read may be of two versions."""
    for f in plan.source.files:
        try:
            status = f.path.stat()
        except OSError as e:
            raise InputError("has gone while it was converted", file=f.name, hint="put it back, and start again") from e
        found = (status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))
        if found != (f.size, f.mtime_ns, f.identity):
            raise InputError("has changed while it was converted", file=f.name, hint="give the same command again")


def _prepared(
    plan: Plan, checks: dict[str, list[Stretch]], using: Resources, stack: contextlib.ExitStack
) -> tuple[dict[str, LocalTarget], list[tuple[Bytes, Lane | None]]]:
    """All target files, preallocated, while kernels and GPUs are made ready: only the files wait for the disk."""
    with ThreadPoolExecutor(PREALLOCATED_AT_ONCE) as pool:
        made = {f.name: pool.submit(_made, plan.place.staged / f.name, f, checks[f.name]) for f in plan.files}
        try:
            cpu.load()
            buffers = _buffers(using, stack)
        finally:
            for file in made.values():
                stack.callback(_close, file)
    return {name: file.result() for name, file in made.items()}, buffers


def _buffers(using: Resources, stack: contextlib.ExitStack) -> list[tuple[Bytes, Lane | None]]:
    """What each thread works with: a buffer, and where GPUs compute, for which it is then pinned, a lane to one."""
    whole = np.empty((using.workers, using.buffer_nbytes), np.uint8)
    if not using.devices.are_gpus:
        return [(buffer, None) for buffer in whole]
    from ckpttool.codecs.gpu_link import Lane, pinned

    found = devices.cards(",".join(using.devices.names))
    try:
        stack.enter_context(pinned(whole, found[0]))
        return [(buffer, Lane(found[i % len(found)], buffer)) for i, buffer in enumerate(whole)]
    except RuntimeError as e:  # torch's own word for memory that is not to be had, of the GPU or to be locked
        hint = "give a smaller --max-memory or --max-gpu-memory, or --device cpu"
        raise LimitError(f"{', '.join(using.devices.names)}: {first_line(e)}", hint=hint) from e


def _close(file: Future[LocalTarget]) -> None:
    if file.exception() is None:
        file.result().close()


def _made(path: Path, layout: FileLayout, checks: Iterable[Stretch]) -> LocalTarget:
    """The target file: made whole, or the one of the earlier run; what no slab writes is written either way."""
    if not path.exists():
        file = LocalTarget.create(path, layout.size, path.name)
    else:
        file = LocalTarget.open(path, path.name)
        for gap in checks:
            if gap.slab is None:
                file.writeall(gap.offset, bytes(gap.nbytes))
    file.writeall(0, layout.header)
    return file


def _in_turns(plan: Plan) -> Iterable[int]:
    """Slabs of one target file after the other, in turns.

    Linux lets one thread at a time write to a file, so several files take several times the bytes; and a file's sha256
    has to go from its begin to its end, so several are hashed in a fraction of the time.
    """
    of_file: dict[str, list[int]] = {f.name: [] for f in plan.files}
    for i, slab in enumerate(plan.slabs):
        of_file[target_ranges(plan.steps[slab.step], slab)[0].file].append(i)
    return (i for turn in zip_longest(*of_file.values()) for i in turn if i is not None)


def _work(run: _Run, worker: Worker) -> None:
    while (index := run.next_slab()) is not None:
        slab = run.plan.slabs[index]
        run.finish(worker.work(index, slab, run.plan.steps[slab.step]))
        run.progress(run.plan.written_nbytes(index))


def _checks(plan: Plan) -> dict[str, list[Stretch]]:
    """Every file as stretches: which slab wrote what, and what lies between."""
    ranges: dict[str, list[tuple[int, int, int, int]]] = {f.name: [] for f in plan.files}
    for i, slab in enumerate(plan.slabs):
        for j, at in enumerate(target_ranges(plan.steps[slab.step], slab)):
            ranges[at.file].append((at.offset, at.nbytes, i, j))
    return {f.name: stretches(f, ranges[f.name]) for f in plan.files}


def _read_back(
    run: _Run,
    targets: dict[str, LocalTarget],
    unread: Iterator[tuple[str, list[Stretch]]],
    hashes: dict[str, str],
) -> None:
    """Read back one file after the other of those that no other thread has taken."""
    while (taken := run.taken(unread)) is not None:
        name, found = taken
        sha256 = read_back(targets[name], found, run.crc)
        if sha256 is None:
            return
        hashes[name] = sha256


def _in_threads(run: _Run, bodies: Iterable[Callable[[], None]]) -> None:
    """Run all bodies to their end; an interrupt stops them at their next slab, the journal intact."""
    threads = [_Thread(body) for body in bodies]
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.ended.wait()
    except BaseException as e:
        run.fail(e)
        for t in threads:
            t.wait()
    if run.failure is not None:
        raise run.failure


class _Thread(threading.Thread):
    """A thread that can be waited for again after an interrupt: Python 3.11 and 3.12 take it for dead if that came in
    the middle of `join`."""

    def __init__(self, body: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._body()
        finally:
            self.ended.set()

    def wait(self) -> None:
        """Wait for its end if it was started, whatever else arrives: it works on files that are closed after that."""
        while self.ident is not None and not self.ended.is_set():
            with contextlib.suppress(BaseException):  # one more Ctrl-C, or SIGTERM
                self.ended.wait()


def _summed(workers: Iterable[Worker]) -> dict[str, float]:
    phases = [w.phases for w in workers]
    return {name: sum(getattr(p, name) for p in phases) for name in Phases.__slots__}


def _sync(place: Place, targets: Iterable[LocalTarget]) -> None:
    for file in targets:
        file.sync()
    for path in place.staged.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as f:
                os.fsync(f.fileno())


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
