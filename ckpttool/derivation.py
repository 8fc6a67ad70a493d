"""Whether a conversion is what its source gives: planned again, then held against what was made, byte for byte.

All headers, layouts and side files are compared, and of the tensors sampled slabs, converted again in memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpttool.codecs import cpu
from ckpttool.codecs.transcode import Bytes
from ckpttool.containers import limits
from ckpttool.containers.layout import FileLayout
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile, ReadableFile
from ckpttool.header_keys import differing_keys
from ckpttool.journal import Entry
from ckpttool.receipt import changed_values
from ckpttool.replanned import differences, replanned
from ckpttool.reports import Derivation
from ckpttool.resources import Limits, resources
from ckpttool.samples import chosen
from ckpttool.slabwork import Worker
from ckpttool.steps import ByteRange, target_ranges
from ckpttool.target import MAX_GPU_MEMORY, MAX_MEMORY
from ckpttool.threads import share

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK = 4 << 20
"""Bytes of what was made that one thread reads at a time."""

Progress = Callable[[int], None]


class Derived:
    """What should have been made, and the slabs of it that will be looked at. `nbytes` is what is compared by bytes."""

    def __init__(
        self,
        receipt: Mapping[str, Any],
        label: str,
        source: str | Path,
        samples: int | None,
        reference: str | Path | None,
    ) -> None:
        """As `replanned` takes and raises them; `samples` is how many slabs."""
        self._receipt = receipt
        self._plan, self.notes = replanned(receipt, label, source, reference)
        hashes = sorted(f"{row['name']} {row['sha256'] or row['crc32']}" for row in receipt["files"])
        self._samples = chosen(self._plan, "\n".join(hashes), samples)
        self.nbytes = sum(map(self._plan.written_nbytes, self._samples)) + sum(map(_head_nbytes, self._plan.files))

    def compare(
        self, opened: Callable[[str], LocalFile | RemoteFile], progress: Progress
    ) -> tuple[Derivation, list[str]]:
        """Compare with the files that are `opened` by their names, and have the sizes that the receipt says.

        Raises:
            InputError: the source holds a value that cannot be converted so, or ends early.
            NetworkError, LocalIOError: one side cannot be read.
        """
        plan = self._plan
        findings = list(differences(plan, self._receipt))
        sizes = {row["name"]: row["nbytes"] for row in self._receipt["files"]}
        with contextlib.ExitStack() as stack:
            made: dict[str, ReadableFile] = {}
            for layout in plan.files:
                if layout.name not in sizes:
                    continue
                file = _kept(opened(layout.name), stack)
                if sizes[layout.name] == layout.size:
                    made[layout.name] = file
                    findings += _header_findings(layout, file)
                else:
                    findings += differing_keys(layout, file)
                progress(_head_nbytes(layout))
            sources = {f.name: _kept(open_file(f.place, f.name), stack) for f in plan.source.files}
            sampled = [i for i in self._samples if all(at.file in made for at in self._ranges(i))]
            findings += self._slab_findings(sampled, sources, made, progress)
        plan.source.require_unchanged()
        steps = Counter(str(plan.steps[plan.slabs[i].step].kind) for i in sampled)
        nbytes = sum(map(plan.written_nbytes, sampled))
        counts = (len(plan.sidecars), len(plan.slabs), len(sampled), nbytes)
        return Derivation(str(plan.source.path), *counts, dict(sorted(steps.items()))), findings

    def _ranges(self, index: int) -> list[ByteRange]:
        slab = self._plan.slabs[index]
        return target_ranges(self._plan.steps[slab.step], slab)

    def _slab_findings(
        self,
        sampled: Sequence[int],
        sources: Mapping[str, ReadableFile],
        made: Mapping[str, ReadableFile],
        progress: Progress,
    ) -> Iterator[str]:
        """Convert the slabs again, several at once; then what differs, tensor by tensor."""
        plan = self._plan
        remote = any(isinstance(f, RemoteFile) for f in (*sources.values(), *made.values()))
        using = resources(plan, Limits(limits.REMOTE_PARALLEL if remote else None, MAX_MEMORY, "cpu", MAX_GPU_MEMORY))
        cpu.load()
        gaps = {f.name: _gaps(f) for f in plan.files}
        differ: dict[tuple[str, int], int] = {}
        entries: dict[int, Entry] = {}

        def work(worker: Worker, index: int) -> None:
            slab = plan.slabs[index]
            entries[index] = worker.work(index, slab, plan.steps[slab.step])
            progress(plan.written_nbytes(index))

        def worker() -> Callable[[int], None]:
            there = np.empty(CHUNK + max((n for found in gaps.values() for n in found.values()), default=0), np.uint8)
            targets = {name: _Held(f, gaps[name], there, differ) for name, f in made.items()}
            return partial(work, Worker(sources, targets, False, np.empty(using.buffer_nbytes, np.uint8)))

        share(sampled, [worker() for _ in range(min(using.workers, len(sampled)))])
        first: dict[tuple[str, str], int] = {}
        changed: Counter[str] = Counter()
        for i in sampled:
            changed.update(changed_values(plan.steps[plan.slabs[i].step], self._ranges(i), entries[i]))
            for at in self._ranges(i):
                if (at.file, at.offset) in differ:
                    first.setdefault((at.file, at.tensor), differ[at.file, at.offset])
        for (file, tensor), offset in first.items():
            yield f"{file}: {tensor}: is not what comes of the source, from byte {offset} of the file on"
        for t in self._receipt["tensors"]:
            if changed[t["name"]] > t["changed"]:
                text = f"the receipt says that {t['changed']:,} values changed; {changed[t['name']]:,} do in the sample"
                yield f"{t['file']}: {t['name']}: {text}"


def _kept(file: LocalFile | RemoteFile, stack: contextlib.ExitStack) -> ReadableFile:
    """`file`, which `stack` closes."""
    stack.callback(file.close)
    return file


class _Held:
    """Stands where a slab would write a file, and holds what it writes, and zeros behind, against the file that is."""

    def __init__(
        self, file: ReadableFile, gaps: Mapping[int, int], there: Bytes, differ: dict[tuple[str, int], int]
    ) -> None:
        """`gaps` are as `_gaps` gives them, `there` is room to read to; `differ` gets, by name and offset of a range,
        its first byte that differs."""
        self._file = file
        self._gaps = gaps
        self._there = there
        self._differ = differ

    def writeall(self, offset: int, buffer: ReadableBuffer) -> None:
        """Compare `buffer` with the file's bytes from `offset` on."""
        whole = np.frombuffer(memoryview(buffer), np.uint8)
        gap = self._gaps.get(offset + whole.size, 0)
        for at in range(0, whole.size, CHUNK):
            piece = whole[at : at + CHUNK]
            behind = gap if at + piece.size == whole.size else 0
            there = self._there[: piece.size + behind]
            self._file.readinto(offset + at, there.data)
            bad = np.flatnonzero(there[: piece.size] != piece)
            bad = bad if bad.size else np.flatnonzero(there[piece.size :]) + piece.size
            if bad.size:
                self._differ[self._file.name, offset] = offset + at + int(bad[0])
                return


def _gaps(layout: FileLayout) -> dict[int, int]:
    """Where zeros lie behind a tensor, and how many."""
    ordered = sorted(layout.tensors, key=lambda t: t.offset)
    ends = [t.offset + t.nbytes for t in ordered]
    starts = [*(t.offset for t in ordered[1:]), layout.size]
    return {end: start - end for end, start in zip(ends, starts, strict=True) if start > end}


def _head_nbytes(layout: FileLayout) -> int:
    """Bytes before the first tensor: the header, and zeros."""
    return min((t.offset for t in layout.tensors), default=layout.size)


def _header_findings(layout: FileLayout, made: ReadableFile) -> Iterator[str]:
    """A finding where a file begins otherwise than it would be made."""
    wanted = layout.header.ljust(_head_nbytes(layout), b"\0")
    there = made.read(0, len(wanted))
    if there != wanted:
        at = next(i for i, (a, b) in enumerate(zip(there, wanted, strict=True)) if a != b)
        yield f"{layout.name}: its header is not what comes of the source, from byte {at} on"
        yield from differing_keys(layout, made)
