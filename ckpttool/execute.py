"""Plan -> files: the only code that writes checkpoints.

Everything is made in `TARGET.partial/`: files preallocated, slabs worked by threads in any order and journalled,
finished stretches read back and hashed while later slabs are written. The commit is a rename. A run that stops goes on
from its journal; a run that fails leaves TARGET as it was. Where there is a `Delivery`, each file goes out as soon as
its hash is known, and may then be freed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

from ckpttool import workplace
from ckpttool.buffers import buffers_for
from ckpttool.codecs import cpu
from ckpttool.commit import sync_folder
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile
from ckpttool.delivery import Delivery
from ckpttool.errors import (
    CheckFailed,
    CkptError,
    InputError,
    LimitError,
    LocalIOError,
    NetworkError,
    UsageError,
    os_error,
    os_errors,
)
from ckpttool.journal import Entry, Freed, Journal
from ckpttool.order import in_file_order, in_turns, window
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.preflight import check_target
from ckpttool.readback import DIFFERS, DIFFERS_HINT, Stretch, read_back, stretches
from ckpttool.receipt import Outcome, receipt
from ckpttool.reports import Conversion, dump
from ckpttool.resources import Limits, Resources, resources
from ckpttool.settling import settle
from ckpttool.sidecars import write_sidecar
from ckpttool.slabwork import Phases, Worker
from ckpttool.staged import Staged
from ckpttool.steps import target_ranges
from ckpttool.threads import Crew

PREALLOCATED_AT_ONCE = 16
"""Files: file systems in memory clear the pages, which takes them as long as writing does."""

Progress = Callable[[int], None]
"""Called with the bytes that have just been written, from any thread."""


@os_errors()
def execute(
    plan: Plan,
    limits: Limits,
    *,
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress = lambda nbytes: None,
    delivery: Delivery | None = None,
) -> Conversion:
    """Carry out `plan` and return the receipt. What is delivered is read back, whatever `verify` says.

    Raises:
        InputError: a value in the source that the target cannot hold; TARGET is as it was.
        LocalIOError: TARGET exists, the disk is full, another run works on it, what was read back differs.
        LimitError: not even one slab fits into the memory allowed, or the GPU has not as much.
        NetworkError: a remote end refuses or breaks off; so does whoever it is delivered to.
    """
    begun = perf_counter()
    place = plan.place
    verify = verify or delivery is not None
    frees = delivery is not None and delivery.frees
    settled = settle(plan, verify=verify, overwrite=overwrite)
    if settled is not None and delivery is None:
        return settled
    check_target(plan, overwrite, frees=frees)
    using = resources(plan, limits)  # last, since it may measure for seconds
    if delivery is not None:
        delivery.begin()
    with workplace.locked(place):
        freed = _freed(plan, delivery)
        done = workplace.resumed(plan, freed)
        try:
            run = _Run(plan, done, freed, progress, delivery)
            conversion = _convert(run, limits, using, verify, begun)
        except (InputError, CheckFailed):
            _give_up(place)  # the same source and options would fail the same way again
            raise
        except (LocalIOError, LimitError, NetworkError, UsageError, OSError) as e:
            if done:
                raise _resumable(e) from e
            _give_up(place)  # nothing to go on from: a full disk is not kept full
            raise
        if delivery is not None:
            try:
                delivery.finish(conversion, place.staged, [i for i in run.done if i not in run.resumed])
            except (CkptError, OSError) as e:
                raise _resumable(e) from e
        if frees:
            workplace.discard(place)
        else:
            workplace.commit(plan, overwrite=overwrite)
    return conversion


def _give_up(place: Place) -> None:
    """Delete what was made. What cannot be deleted stays, for what the run failed of is what is to be told."""
    with contextlib.suppress(OSError):
        workplace.discard(place)


def _freed(plan: Plan, delivery: Delivery | None) -> dict[str, Freed]:
    """The files of an earlier run that lie where they were delivered to, and need not be made again."""
    if delivery is None or not delivery.frees:
        return {}
    return {f.file: f for f in workplace.freed(plan) if delivery.holds(f.file, f.sha256, f.nbytes)}


def _resumable(error: CkptError | OSError) -> CkptError:
    """`error` with the hint that nothing is lost."""
    out = error if isinstance(error, CkptError) else os_error(error)
    more = "the same command then goes on where this one stopped"
    out.hint = f"{out.hint}; {more}" if out.hint else more
    return out


class _Run:
    """What threads share: what is done, and who waits for it."""

    def __init__(
        self,
        plan: Plan,
        done: dict[int, Entry],
        freed: Mapping[str, Freed],
        progress: Progress,
        delivery: Delivery | None,
    ) -> None:
        self.plan = plan
        self.done = done
        self.progress = progress
        self.delivery = delivery
        self.crew = Crew()
        self.checks = _checks(plan)
        self.hashes = {name: f.sha256 for name, f in freed.items()}
        self.resumed = frozenset(done)
        self.journal = Journal(plan.place.partial / "journal", plan.digest, [*done.values(), *freed.values()])
        frees = delivery is not None and delivery.frees
        self.staged = Staged(plan, self.checks, self.crew, window(plan) if frees else len(plan.files), freed)

    def todo(self) -> list[int]:
        """The slabs that are not done yet, in the order in which they are begun."""
        order = in_turns(self.plan) if self.delivery is None else in_file_order(self.plan)
        return [i for i in order if i not in self.done]

    def work(self, worker: Worker, index: int) -> None:
        """Work slab number `index`, and write it down."""
        slab = self.plan.slabs[index]
        step = self.plan.steps[slab.step]
        if not self.staged.reach(at.file for at in target_ranges(step, slab)):
            return
        entry = worker.work(index, slab, step)
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

    def unread(self) -> list[str]:
        """The files that are to be read back, in order."""
        return [name for name in self.checks if name not in self.hashes]

    def read_back(self, name: str) -> None:
        """Read back one file, as far as it is written; note what it hashes to, and deliver it."""
        file = self.staged.open(name)
        sha256 = read_back(file, self.checks[name], self.crc) if file is not None else None
        if file is None or sha256 is None:
            return
        if self.delivery is not None:
            self.delivery.deliver(name, file, sha256)
            if self.delivery.frees:
                self.journal.add(Freed(name, file.size, sha256))
                self.staged.free(name)
        self.hashes[name] = sha256


def _convert(run: _Run, limits: Limits, using: Resources, verify: bool, begun: float) -> Conversion:
    """Make all files, receipt included, in the folder of the unfinished conversion; `begun` is when the run did."""
    plan, place, staged = run.plan, run.plan.place, run.staged
    with contextlib.ExitStack() as stack:
        stack.callback(run.journal.close)
        stack.callback(staged.close)
        sources: dict[str, LocalFile | RemoteFile] = {}
        for f in plan.source.files:
            sources[f.name] = open_file(f.place, f.name)
            stack.callback(sources[f.name].close)
        using, workers = _prepared(run, limits, using, sources, stack)
        prepared = perf_counter()
        for entry in run.done.values():
            run.progress(plan.written_nbytes(entry.slab))
        run.crew.add(run.todo(), [partial(run.work, worker) for worker in workers])
        if verify:
            run.crew.add(run.unread(), [run.read_back] * using.readers)
        run.crew.run()
        plan.source.require_unchanged("converted")
        worked = perf_counter()
        sidecars = {s.name: write_sidecar(s, place.staged, verify=verify) for s in plan.sidecars}
        outcome = Outcome(run.done, run.checks, run.hashes if verify else None, sidecars, len(run.resumed), using)
        _sync(place, staged)
        run.journal.sync()
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
        with os_errors(place.staged):
            sync_folder(place.staged)
    return conversion


def _prepared(
    run: _Run,
    limits: Limits,
    using: Resources,
    sources: Mapping[str, LocalFile | RemoteFile],
    stack: contextlib.ExitStack,
) -> tuple[Resources, list[Worker]]:
    """The target files that may lie there, preallocated, while kernels and GPUs are made ready: only the files wait
    for the disk."""
    staged = run.staged
    with ThreadPoolExecutor(PREALLOCATED_AT_ONCE) as pool:
        made = [pool.submit(staged.open, name) for name in staged.reached]
        cpu.load()
        using, buffers = buffers_for(run.plan, limits, using, stack)
    for file in made:
        file.result()
    return using, [Worker(sources, staged.files, run.plan.target.lossless, *buffer) for buffer in buffers]


def _checks(plan: Plan) -> dict[str, list[Stretch]]:
    """Every file as stretches: which slab wrote what, and what lies between."""
    ranges: dict[str, list[tuple[int, int, int, int]]] = {f.name: [] for f in plan.files}
    for i, slab in enumerate(plan.slabs):
        for j, at in enumerate(target_ranges(plan.steps[slab.step], slab)):
            ranges[at.file].append((at.offset, at.nbytes, i, j))
    return {f.name: stretches(f, ranges[f.name]) for f in plan.files}


def _summed(workers: Iterable[Worker]) -> dict[str, float]:
    phases = [w.phases for w in workers]
    return {name: sum(getattr(p, name) for p in phases) for name in Phases.__slots__}


def _sync(place: Place, staged: Staged) -> None:
    """Bring all files to the disk. One that does not get there is emptied: its lost pages pass for written now, and the
    next run would find them whole in memory. Its name stays: without it the next run would take it for moved in."""
    staged.sync()
    for path in place.staged.rglob("*"):
        with os_errors(path):
            if path.is_dir():
                sync_folder(path)
                continue
            with path.open("rb") as f:
                try:
                    os.fsync(f.fileno())
                except OSError:
                    os.truncate(path, 0)
                    raise


def _write_durably(path: Path, text: str) -> None:
    data = text.encode()
    with os_errors(path):
        with path.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if path.read_bytes() != data:
            raise LocalIOError(DIFFERS, file=path.name, hint=DIFFERS_HINT)
