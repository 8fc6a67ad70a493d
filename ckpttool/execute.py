"""Plan -> files: the only code that writes checkpoints.

Everything is made in `TARGET.partial/`: files preallocated, slabs worked by threads in any order and journalled,
finished stretches read back and hashed while later slabs are written. The commit is a rename. A run that stops goes on
from its journal; a run that fails leaves TARGET as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

from ckpttool import workplace
from ckpttool.buffers import buffers_for
from ckpttool.codecs import cpu
from ckpttool.commit import sync_folder
from ckpttool.containers.layout import FileLayout
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile, LocalTarget
from ckpttool.errors import (
    CheckFailed,
    CkptError,
    InputError,
    LimitError,
    LocalIOError,
    NetworkError,
    UsageError,
    os_error,
)
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
from ckpttool.threads import Crew

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
            conversion = _convert(plan, limits, done, using, verify, progress, begun)
        except (InputError, CheckFailed):
            workplace.discard(place)  # the same source and options would fail the same way again
            raise
        except (LocalIOError, LimitError, NetworkError, UsageError, OSError) as e:
            error = e if isinstance(e, CkptError) else os_error(e)
            if done:
                more = "the same command then goes on where this one stopped"
                error.hint = f"{error.hint}; {more}" if error.hint else more
            else:  # nothing to go on from: a full disk is not kept full
                workplace.discard(place)
            raise error from e
        workplace.commit(plan, overwrite=overwrite)
    return conversion


@dataclass
class _Run:
    """What threads share: what is done, and who waits for it."""

    plan: Plan
    done: dict[int, Entry]
    journal: Journal
    progress: Progress
    crew: Crew = field(default_factory=Crew)

    def todo(self) -> list[int]:
        """The slabs that are not done yet, in the order in which they are begun."""
        return [i for i in _in_turns(self.plan) if i not in self.done]

    def work(self, worker: Worker, index: int) -> None:
        """Work slab number `index`, and write it down."""
        slab = self.plan.slabs[index]
        entry = worker.work(index, slab, self.plan.steps[slab.step])
        self.journal.add(entry)
        with self.crew.changed:
            self.done[index] = entry
            self.crew.changed.notify_all()
        self.progress(self.plan.written_nbytes(index))

    def crc(self, slab: int, index: int) -> int | None:
        """The CRC of range `index` of a slab once it is done; None when the run has failed."""
        crew = self.crew
        with crew.changed:
            crew.changed.wait_for(lambda: crew.failure is not None or slab in self.done)
            return None if crew.failure else self.done[slab].crcs[index]


def _convert(
    plan: Plan, limits: Limits, done: dict[int, Entry], using: Resources, verify: bool, progress: Progress, begun: float
) -> Conversion:
    """Make all files, receipt included, in the folder of the unfinished conversion; `begun` is when the run did."""
    place = plan.place
    journal = Journal(place.partial / "journal", plan.digest, list(done.values()))
    resumed = len(done)
    with contextlib.ExitStack() as stack:
        stack.callback(journal.close)
        sources: dict[str, LocalFile | RemoteFile] = {}
        for f in plan.source.files:
            sources[f.name] = open_file(f.place, f.name)
            stack.callback(sources[f.name].close)
        checks = _checks(plan)
        targets, using, workers = _prepared(plan, limits, checks, using, sources, stack)
        prepared = perf_counter()
        run = _Run(plan, done, journal, progress)
        for entry in done.values():
            progress(plan.written_nbytes(entry.slab))
        run.crew.add(run.todo(), [partial(run.work, worker) for worker in workers])
        hashes: dict[str, str] = {}
        if verify:
            run.crew.add(checks.items(), [partial(_read_back, run, targets, hashes)] * using.readers)
        run.crew.run()
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
    """InputError where a source file is no longer the one of the plan: what was read may be of two versions. Of remote
    files each answer was held against the first one."""
    for f in plan.source.files:
        if not isinstance(f.place, Path):
            continue
        try:
            status = f.place.stat()
        except OSError as e:
            raise InputError("has gone while it was converted", file=f.name, hint="put it back, and start again") from e
        found = (status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))
        if found != (f.size, f.mtime_ns, f.identity):
            raise InputError("has changed while it was converted", file=f.name, hint="give the same command again")


def _prepared(
    plan: Plan,
    limits: Limits,
    checks: dict[str, list[Stretch]],
    using: Resources,
    sources: Mapping[str, LocalFile | RemoteFile],
    stack: contextlib.ExitStack,
) -> tuple[dict[str, LocalTarget], Resources, list[Worker]]:
    """All target files, preallocated, while kernels and GPUs are made ready: only the files wait for the disk."""
    with ThreadPoolExecutor(PREALLOCATED_AT_ONCE) as pool:
        made = {f.name: pool.submit(_made, plan.place.staged / f.name, f, checks[f.name]) for f in plan.files}
        try:
            cpu.load()
            using, buffers = buffers_for(plan, limits, using, stack)
        finally:
            for file in made.values():
                stack.callback(_close, file)
    targets = {name: file.result() for name, file in made.items()}
    return targets, using, [Worker(sources, targets, plan.target.lossless, *buffer) for buffer in buffers]


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


def _checks(plan: Plan) -> dict[str, list[Stretch]]:
    """Every file as stretches: which slab wrote what, and what lies between."""
    ranges: dict[str, list[tuple[int, int, int, int]]] = {f.name: [] for f in plan.files}
    for i, slab in enumerate(plan.slabs):
        for j, at in enumerate(target_ranges(plan.steps[slab.step], slab)):
            ranges[at.file].append((at.offset, at.nbytes, i, j))
    return {f.name: stretches(f, ranges[f.name]) for f in plan.files}


def _read_back(
    run: _Run, targets: dict[str, LocalTarget], hashes: dict[str, str], unread: tuple[str, list[Stretch]]
) -> None:
    """Read back one file, as far as it is written; what it hashes to goes into `hashes`."""
    name, found = unread
    sha256 = read_back(targets[name], found, run.crc)
    if sha256 is not None:
        hashes[name] = sha256


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
