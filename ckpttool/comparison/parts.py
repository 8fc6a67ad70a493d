"""Two checkpoints, part by part: equal bytes, equal values, or how far apart. One engine for diff, validate and verify.

Statuses of a part that both have in one shape:

* `bytes`: one format on both sides, and every stored bit equal, in whatever packing, order of rows or orientation:
  MXFP4 of Hugging Face and of a GGUF is compared as codes and scale bytes.
* `values`: every decoded value equal as float32. -0 equals 0 (how often they meet is counted), NaN equals NaN. F64 and
  integers are compared as float64.
* `lossy`: some values differ. With a of A and b of B: `max_abs` is the largest |b - a|, `relative` |b - a| / |a| as
  Euclidean norms, `sqnr` 10 log10 of the sum of a^2 over that of (b - a)^2, in dB. These are over elements finite on
  both sides; pairs that differ and are not are counted as `nonfinite`.

`only_a`, `only_b` and `shape` say the rest. Results do not depend on threads, slabs or dialects (`comparison_sums`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ckpttool.checkpoint import Checkpoint
from ckpttool.comparison.pairs import Group, Holding, groups, holdings
from ckpttool.comparison.slabs import SCRATCH_NBYTES, Files, PartFound, SlabReader, Watch
from ckpttool.comparison.sums import Tally
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile
from ckpttool.threads import CORES, share

Progress = Callable[[int], None]

MAX_MEMORY = max(512_000_000, CORES * 128_000_000)
"""Bytes that all threads' slabs may take: an expert of gpt-oss on every core, in BF16 and MXFP4. One slab is always
allowed."""


class Status(StrEnum):
    """What came of a part; None in its place: not compared."""

    bytes = "bytes"
    values = "values"
    lossy = "lossy"
    only_a = "only_a"
    only_b = "only_b"
    shape = "shape"


@dataclass(frozen=True)
class Place:
    """An element of a part: the row is counted within its expert, `expert` is None where there are none."""

    expert: int | None
    row: int
    column: int


@dataclass(frozen=True)
class ExpertErrors:
    """How far one expert of a lossy part is off; see this module for the figures."""

    expert: int
    differing: int
    nonfinite: int
    max_abs: float
    relative: float | None
    sqnr: float | None


@dataclass(frozen=True)
class PartComparison:
    """One part of two checkpoints; for parts without a canonical name, `part` is the weight's.

    The counts are None where nothing was read or nobody can decode it, and the errors unless `status` is lossy; `first`
    is the first pair that differs, be it only in the sign of zero. `experts` lists those that differ.
    """

    part: str
    status: Status | None
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    format_a: str | None = None
    format_b: str | None = None
    differing: int | None = None
    nonfinite: int | None = None
    zero_signs: int | None = None
    max_abs: float | None = None
    relative: float | None = None
    sqnr: float | None = None
    first: Place | None = None
    experts: tuple[ExpertErrors, ...] = ()


def compare_parts(
    a: Checkpoint,
    b: Checkpoint,
    *,
    headers_only: bool = False,
    workers: int | None = None,
    watch: Watch | None = None,
    progress: Progress = lambda nbytes: None,
) -> tuple[PartComparison, ...]:
    """Every part of both, in A's order, then what only B has.

    `progress` is called from any thread with the bytes just compared, of `compared_nbytes` in all. With `headers_only`
    no data is read, and what both have has no status. `watch` sees the rows that differ while they are at hand.

    Raises:
        InputError: a file that has changed since its header was read.
    """
    held = holdings(a, b)
    work = list(groups(*held))
    states = {part: _State(group) for group in work for part in group.parts}
    if not headers_only:
        with contextlib.ExitStack() as stack:
            files = [_opened(x, stack) for x in (a, b)]
            _run(_Run(work, states, files[0], files[1], progress, watch), workers)
        a.require_unchanged()
        b.require_unchanged()
    rows = [_row(name, held, states.get(name), headers_only) for name in _names(*held)]
    return (*rows, *_missing_experts(work))


def show_slabs(
    a: Checkpoint, b: Checkpoint, slabs: Sequence[tuple[Group, tuple[int, int]]], watch: Watch, workers: int | None
) -> None:
    """Compare some rows of some of the `groups`, for `watch` to see what differs in them. Errors as `compare_parts`."""
    states = {part: _State(group) for group, _ in slabs for part in group.parts}
    with contextlib.ExitStack() as stack:
        files = [_opened(x, stack) for x in (a, b)]
        run = _Run([group for group, _ in slabs], states, files[0], files[1], lambda nbytes: None, watch)
        _pass(run, [(group, slab, ()) for group, slab in slabs], workers)


def compared_nbytes(a: Checkpoint, b: Checkpoint) -> int:
    """Bytes of both sides that `compare_parts` will read, unless it has to look at some again."""
    return sum(g.slab_nbytes(*slab) for g in groups(*holdings(a, b)) for slab in g.slabs())


def _opened(checkpoint: Checkpoint, stack: contextlib.ExitStack) -> Files:
    files: dict[str, LocalFile | RemoteFile] = {}
    for name, place in checkpoint.places.items():
        files[name] = open_file(place, name)
        stack.callback(files[name].close)
    return files


@dataclass(slots=True)
class _State:
    """What is known so far of a part."""

    group: Group
    equal: bool = True
    decoded: bool = True
    experts: dict[int, Tally] = field(default_factory=dict)
    unmeasured: list[tuple[int, int]] = field(default_factory=list)

    @property
    def lossy(self) -> bool:
        return not self.decoded or any(t.differing for t in self.experts.values())

    def add(self, found: PartFound, slab: tuple[int, int]) -> None:
        self.equal = self.equal and found.equal
        self.decoded = self.decoded and found.decoded
        if found.unmeasured:
            self.unmeasured.append(slab)
        for expert, tally in found.experts.items():
            self.experts.setdefault(expert, Tally()).add(tally)


@dataclass
class _Run:
    """What threads share."""

    groups: Sequence[Group]
    states: Mapping[str, _State]
    a: Files
    b: Files
    progress: Progress
    watch: Watch | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


Work = tuple[Group, tuple[int, int], tuple[str, ...]]
"""A slab of a group, and the parts that are measured whether their bytes are equal or not."""


def _run(run: _Run, workers: int | None) -> None:
    """Compare everything; then measure what was equal in parts that are lossy elsewhere: their signal counts too."""
    _pass(run, [(g, slab, ()) for g in run.groups for slab in g.slabs()], workers)
    again: dict[tuple[int, tuple[int, int]], list[str]] = {}
    for part, state in run.states.items():
        if state.decoded and state.lossy:
            for slab in state.unmeasured:
                again.setdefault((id(state.group), slab), []).append(part)
    by_id = {id(g): g for g in run.groups}
    _pass(run, [(by_id[i], slab, tuple(parts)) for (i, slab), parts in again.items()], workers)


def _pass(run: _Run, work: Sequence[Work], workers: int | None) -> None:
    if not work:
        return
    nbytes = max(g.slab_nbytes(*slab) + g.upright_nbytes(*slab) for g, slab, _ in work)
    count = max(1, min(workers or CORES, MAX_MEMORY // (nbytes + SCRATCH_NBYTES), len(work)))
    share(work, [_Worker(run, nbytes).work for _ in range(count)])


class _Worker:
    """What one thread compares with."""

    def __init__(self, run: _Run, nbytes: int) -> None:
        self._run = run
        self._reader = SlabReader(run.a, run.b, nbytes, run.watch)

    def work(self, item: Work) -> None:
        """Compare one slab, and add what was found to what is known."""
        run, (group, slab, measured) = self._run, item
        found = self._reader.compare(group, *slab, measured)
        with run.lock:
            for part, of_part in found.items():
                run.states[part].add(of_part, slab)
        if not measured:
            run.progress(group.slab_nbytes(*slab))


def _names(a: Holding, b: Holding) -> Iterator[str]:
    yield from dict.fromkeys((*a.names(), *b.names()))


def _row(name: str, held: tuple[Holding, Holding], state: _State | None, headers_only: bool) -> PartComparison:
    """One part's result; figures only where it is lossy and could be decoded."""
    shapes = held[0].shape(name), held[1].shape(name)
    status = _status(shapes, state, headers_only)
    row = PartComparison(name, status, *shapes, held[0].format(name), held[1].format(name))
    if state is None or status is None or not state.decoded:
        return row
    total = Tally()
    for tally in state.experts.values():
        total.add(tally)
    row = replace(
        row, differing=total.differing, nonfinite=total.nonfinite, zero_signs=total.zero_signs,
        first=_place(total.first, state.group) if total.first else None,
    )  # fmt: skip
    if status is not Status.lossy:
        return row
    return replace(
        row, max_abs=total.largest, relative=total.relative, sqnr=total.sqnr, experts=_experts(state)
    )  # fmt: skip


def _status(shapes: Sequence[tuple[int, ...] | None], state: _State | None, headers_only: bool) -> Status | None:
    a, b = shapes
    if a is None or b is None:
        return Status.only_b if a is None else Status.only_a
    if state is None and a != b:
        return Status.shape
    if headers_only:
        return None
    if state is None or state.lossy:  # without a state: stored so differently that nobody here can tell
        return Status.lossy
    return Status.bytes if state.equal else Status.values


def _place(first: tuple[int, int], group: Group) -> Place:
    row, column = divmod(first[0] * group.shape.row_length + first[1], group.columns)
    return Place(*divmod(row, group.expert_rows), column) if group.has_experts else Place(None, row, column)


def _experts(state: _State) -> tuple[ExpertErrors, ...]:
    if not state.group.has_experts:
        return ()
    return tuple(
        ExpertErrors(e, t.differing, t.nonfinite, t.largest, t.relative, t.sqnr)
        for e, t in sorted(state.experts.items())
        if t.differing
    )


def _missing_experts(work: Sequence[Group]) -> Iterator[PartComparison]:
    """Experts of a part that only one side stores, where each has a tensor of its own."""
    for group in work:
        n = group.expert_rows
        for part in group.parts if group.has_experts else ():
            have = [
                {r for x in side[part] for r in range(x.start // n, -(-x.stop // n))} for side in (group.a, group.b)
            ]
            for expert in sorted(have[0] ^ have[1]):
                status = Status.only_a if expert in have[0] else Status.only_b
                shape = group.shape.shape[1:]
                shapes = (shape, None) if status is Status.only_a else (None, shape)
                yield PartComparison(f"{part}[{expert}]", status, *shapes)
