"""One slab, from its source bytes to its target bytes, in buffers that are used again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from ckpttool.codecs.reference import BAD_KINDS, BadBlock
from ckpttool.codecs.transcode import Bytes, Counts, Operand, transcode
from ckpttool.containers.source import ReadableFile
from ckpttool.crc import crc32
from ckpttool.errors import CheckFailed, InputError
from ckpttool.journal import Entry
from ckpttool.steps import ByteRange, Kind, Side, Slab, Step, for_gpu, target_ranges

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from ckpttool.codecs.gpu_link import Lane

ALIGNMENT = 64
"""Where a slab's output begins in the buffer: kernels view bytes as wider numbers."""


@dataclass(slots=True)
class Phases:
    """Seconds spent in each phase, summed over threads."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class Laid:
    """A slab's side in a buffer: the operand, and which bytes of the buffer belong where in the files."""

    operand: Operand
    pieces: tuple[tuple[ByteRange, Bytes], ...]


def lay(side: Side, slab: Slab, step: Step, buffer: Bytes) -> Laid:
    """Views into `buffer` for one side of `slab`.

    Zipped parts lie row by row, separate ones one after the other; either way the operand sees [rows, parts, bytes].
    """
    rows, parts = slab.stop - slab.start, len(step.parts)
    ranges = side.ranges(slab.start, slab.stop, step.row_length)
    pieces, fields, at = [], [], 0
    for j, row_nbytes in enumerate(side.codec.row_nbytes(step.row_length)):
        whole = buffer[at : at + rows * parts * row_nbytes]
        at += whole.nbytes
        each = whole.nbytes // len(ranges)
        pieces += [(found[j], whole[i * each : (i + 1) * each]) for i, found in enumerate(ranges)]
        if side.transposed:
            fields.append(whole.reshape(rows // step.expert_rows, step.row_length, -1))
        elif side.zipped:
            fields.append(whole.reshape(rows, parts, row_nbytes))
        else:
            fields.append(whole.reshape(parts, rows, row_nbytes).swapaxes(0, 1))
    return Laid(Operand(side.codec, tuple(fields), parts, side.transposed), tuple(pieces))


class Writable(Protocol):
    """Where a slab's bytes go: a `LocalTarget`, or what takes its place."""

    def writeall(self, offset: int, buffer: ReadableBuffer, /) -> None:
        """Write all of `buffer` at `offset`."""


class Worker:
    """Works slabs one after the other; one for each thread. While it waits for a GPU, others read and write."""

    def __init__(
        self,
        sources: Mapping[str, ReadableFile],
        targets: Mapping[str, Writable],
        lossless: bool,
        buffer: Bytes,
        lane: Lane | None = None,
    ) -> None:
        """`buffer` holds the input and output of any slab; a `lane` to a GPU is one for slabs that lie in it."""
        self._sources = sources
        self._targets = targets
        self._lossless = lossless
        self._buffer = buffer
        self._lane = lane
        self.phases = Phases()

    def work(self, index: int, slab: Slab, step: Step) -> Entry:
        """Read, transcode and write slab number `index`.

        Raises:
            InputError: a value that the target cannot hold, with tensor, expert and row.
            LocalIOError, LimitError: a file or the GPU failed.
        """
        begun = perf_counter()
        source = lay(step.source, slab, step, self._buffer)
        for at, view in source.pieces:
            self._sources[at.file].readinto(at.offset, view.data)
        read = perf_counter()
        target = source
        changed: Counts = (0,)
        if not (step.kind is Kind.copy and step.same_layout):
            target = lay(step.target, slab, step, self._buffer[behind(source) :])
            with _naming(slab, step):
                changed = self._transcoded(source.operand, target.operand, step)
        if any(changed) and self._lossless:
            raise _lossless_error(step, sum(changed))
        computed = perf_counter()
        crcs = []
        for at, (_, view) in zip(target_ranges(step, slab), target.pieces, strict=True):
            # First the CRC, which brings the bytes into the cache: while one thread writes to a file, others wait.
            crcs.append(crc32(view.data))
            self._targets[at.file].writeall(at.offset, view.data)
        self.phases.read += read - begun
        self.phases.compute += computed - read
        self.phases.write += perf_counter() - computed
        return Entry(index, tuple(crcs), changed)

    def _transcoded(self, source: Operand, target: Operand, step: Step) -> Counts:
        if self._lane is None or not for_gpu(step):
            return transcode(source, target, step.recipe)
        self._lane.transcode(source, target, step.recipe)
        return (0,)


def behind(source: Laid) -> int:
    """Where in its buffer a slab's output begins: behind the input, aligned."""
    return -(-sum(view.nbytes for _, view in source.pieces) // ALIGNMENT) * ALIGNMENT


@contextlib.contextmanager
def _naming(slab: Slab, step: Step) -> Iterator[None]:
    """A bad block in `slab` as an error with its tensor, expert and row."""
    try:
        yield
    except BadBlock as bad:
        expert, row = divmod(slab.start + bad.row, step.expert_rows)
        part = step.parts[bad.part]
        extents = (x for found in step.source.extents for x in found if part in x.parts)
        extent = next(x for x in extents if x.start <= slab.start < x.stop)
        place = f"{part}, " if len(step.parts) > 1 else ""
        place += f"expert {expert}, row {row}" if step.rows > step.expert_rows else f"row {row}"
        text = f"{place}, block {bad.block}: holds {BAD_KINDS[bad.kind]}; {step.target.codec.name} cannot hold it"
        stored = extent.weight.stored[0]
        raise InputError(text, file=stored.file, field=extent.weight.name, hint=VALUE_HINTS[bad.kind]) from bad


VALUE_HINTS = {
    "nan": "the weights are damaged, or training diverged",
    "inf": "the weights are damaged, or training diverged",
    "overflow": "choose a wider format, or another recipe",
    "scale": "the weights are damaged; a target that keeps their format carries the block as it is",
}


def _lossless_error(step: Step, changed: int) -> CheckFailed:
    name = step.source.extents[0][0].weight.name
    text = f"{changed} values would change as {step.target.codec.name}"
    return CheckFailed(text, field=name, hint="leave out --lossless, or choose a format that holds them")
