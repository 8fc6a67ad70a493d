"""From an opened checkpoint to a layer's weights on a device: positional reads, the next layer's while one computes.

Bytes stay as they are stored: MXFP4 packed, BF16 as is; an expert is decoded when it is used (`stored`). So what a walk
through one or several checkpoints holds of their weights is two buffers of the largest thing that it takes (a layer, or
the head; gpt-oss-20b: 1.7 GB in BF16, 0.45 GB in MXFP4), and one expert decoded. On a CUDA device the buffers lie
there, two for each checkpoint (20b against its MXFP4: 3.3 and 2.3 GB), and what this machine holds is two staging
buffers for each reader.

The link's speed takes reads that never stop: a thread reads a piece while its last one is copied, and does nothing in
Python for a piece but to ask for it.

Where a checkpoint is remote, the same reads are requests for ranges.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self

import torch

from ckpttool.archs.joins import Extent
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError
from ckpttool.tensors import StoredTensor
from ckpttool.validator.model import Head, Layer
from ckpttool.validator.settings import settings_of
from ckpttool.validator.staging import Staging
from ckpttool.validator.stored import StoredPart, piece_of

Tensor = torch.Tensor
Take = int | str
"""What is taken from a checkpoint at a time: a layer by its number, or HEAD."""

HEAD: Final = "head"
READERS: Final = 16
"""Threads that read: on an H200's host 8 copy 25 GB/s out of the page cache, and 16 copy 35; its link takes 55."""

PIECE_NBYTES: Final = 16 << 20
"""The most that one read asks for, and a staging buffer holds."""

NEAR_NBYTES: Final = 16 << 10
"""Rows of the embedding that lie no farther apart are read at once."""

ALIGNMENT: Final = 64


class ModelSource:
    """One checkpoint's files, opened, and where each layer lies in them. Close it, or use it as a context.

    Raises:
        InputError: it is no undamaged gpt-oss checkpoint, or stores a part in a format that is not read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.settings = settings_of(checkpoint)
        for extent in {x.weight.name: x for found in checkpoint.extents.values() for x in found}.values():
            if not extent.weight.codec.readable:
                codec = extent.weight.codec
                text = f"is {codec.name} in {codec.packing} packing, which is not read"
                raise InputError(text, file=extent.weight.stored[0].file, field=extent.weight.name)
        self.files: dict[str, LocalFile | RemoteFile] = {}
        with contextlib.ExitStack() as opening:
            for name, place in checkpoint.places.items():
                file = open_file(place, name)
                opening.callback(file.close)
                self.files[name] = file
            self._open = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def parts(self, take: Take) -> Mapping[str, str]:
        """The parts of a layer or of the head: the field of `Layer` or `Head` for each of them."""
        if take == HEAD:
            return {f.name: f.name for f in fields(Head)}
        return {f.name: f"layer.{take}.{f.name.replace('_bias', '.bias')}" for f in fields(Layer)}

    def stored(self, take: Take) -> list[StoredTensor]:
        """Every stored tensor that these parts are in, once."""
        parts = self.parts(take).values()
        found = {t.name: t for part in parts for x in self.checkpoint.extents[part] for t in x.weight.stored}
        return list(found.values())

    def part(self, name: str, views: Mapping[str, Tensor]) -> StoredPart:
        """The part `name`, whose stored tensors' bytes are `views`."""
        shape = self.checkpoint.shapes[name]
        extents = self.checkpoint.extents[name]
        return StoredPart(
            shape, tuple(piece_of(x, name, shape, [views[t.name] for t in x.weight.stored]) for x in extents)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedding's rows of `tokens` [T], float32 [T, H], on the CPU; each row is read once.

        Raises:
            InputError: a token that the embedding has no row for.
        """
        ids, places = torch.unique(tokens.cpu(), return_inverse=True)
        if not 0 <= int(ids[0]) <= int(ids[-1]) < self.settings.vocab:
            bad = int(ids[0]) if int(ids[0]) < 0 else int(ids[-1])
            text = f"token {bad} has no row among {self.settings.vocab}"
            raise InputError(text, file=str(self.checkpoint.path), field="embed", hint="is it this model's tokenizer?")
        (extent,) = self.checkpoint.extents["embed"]
        shape = self.checkpoint.shapes["embed"]
        fields = self._rows(extent, shape.row_length, ids.tolist())
        rows = type(shape)((len(ids),), shape.k)
        lines = Extent(extent.weight, ("embed",), 0, len(ids), 0, False)
        return StoredPart(rows, (piece_of(lines, "embed", rows, fields),)).matrix(torch.float32)[places]

    def _rows(self, extent: Extent, k: int, rows: list[int]) -> list[Tensor]:
        """The bytes of some of a weight's rows, in ascending order, from each of its stored tensors."""
        out = []
        for stored, nbytes in zip(extent.weight.stored, extent.weight.codec.row_nbytes(k), strict=True):
            room = torch.empty(len(rows) * nbytes, dtype=torch.uint8)
            for begin, end in _runs(rows, max(1, NEAR_NBYTES // nbytes)):
                first = rows[begin]
                data = self.files[stored.file].read(
                    stored.offset + first * nbytes, (rows[end - 1] + 1 - first) * nbytes
                )
                lines = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, nbytes)
                room.view(-1, nbytes)[begin:end] = lines[torch.tensor(rows[begin:end]) - first]
            out.append(room)
        return out


def _runs(rows: list[int], near: int) -> Iterator[tuple[int, int]]:
    """Ranges of indices in `rows`, which ascend: within one, neighbours are at most `near` apart."""
    begin = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] - rows[i - 1] > near:
            yield begin, i
            begin = i


@dataclass(frozen=True, eq=False)
class _Placed:
    """Where each stored tensor goes in a buffer, and how many bytes that makes."""

    rows: tuple[tuple[StoredTensor, int], ...]
    nbytes: int

    @classmethod
    def of(cls, stored: Sequence[StoredTensor]) -> _Placed:
        rows, at = [], 0
        for t in stored:
            rows.append((t, at))
            at += -(-t.nbytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(rows), at)


class Feed:
    """Layers and heads of some sources on a device, in an order known before: while one computes, the next are read.

    What `take` returned is gone with the next, but for the last two. On a GPU nothing waits for it: reads run ahead as
    far as buffers go, of which each source has two there, and copies wait for the work that still needs what they
    overwrite, as work waits for copies, in the GPU's own queues. Used as a context; leaving it waits for the reads that
    are under way.
    """

    def __init__(
        self, order: Sequence[tuple[ModelSource, Take]], device: torch.device, *, staged: bool | None = None
    ) -> None:
        """`staged`: bytes go through buffers of each reader, which a GPU needs."""
        self._order = tuple(order)
        self.device = device
        self._cuda = device.type == "cuda"
        self._staged = self._cuda if staged is None else staged
        self._placed = [_Placed.of(source.stored(take)) for source, take in order]
        self._slots = _slots([source if self._staged else None for source, _ in order])
        sizes: dict[int, int] = {}
        for slot, placed in zip(self._slots, self._placed, strict=True):
            sizes[slot] = max(sizes.get(slot, 0), placed.nbytes)
        if not self._staged:
            sizes = dict.fromkeys(sizes, max(sizes.values()))
        self._buffers = [torch.empty(sizes[n], dtype=torch.uint8, device=device) for n in range(len(sizes))]
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self._local = threading.local()
        self._made: list[Staging] = []
        self._closed = False
        self._next = 0
        self._reads: list[list[Future[Any]]] = []
        self.nbytes = sum(t.nbytes for p in self._placed for t, _ in p.rows)
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        for staging in self._made:
            staging.mark().synchronize()

    def layer(self, source: ModelSource, index: int) -> Layer:
        """Layer `index` of `source`, which must be what the order says is next. Errors of reading are raised here."""
        return Layer(**self._take(source, index))

    def head(self, source: ModelSource) -> Head:
        """The head of `source`; as `layer`."""
        return Head(**self._take(source, HEAD))

    def _take(self, source: ModelSource, take: Take) -> dict[str, StoredPart]:
        if self._order[self._next] != (source, take):
            raise ValueError(f"{take} is not what comes next")
        at = self._next
        self._next += 1
        self._begin()
        for read in self._reads[at]:
            sent = read.result()
            if self._cuda:
                torch.cuda.current_stream(self.device).wait_event(sent)
        self._reads[at] = []
        buffer = self._buffers[self._slots[at]]
        views = {t.name: buffer[place : place + t.nbytes] for t, place in self._placed[at].rows}
        return {field: source.part(name, views) for field, name in source.parts(take).items()}

    def _begin(self) -> None:
        """Have all that follows read, as far as there are buffers that nothing to come needs as they are."""
        free = torch.cuda.current_stream(self.device).record_event() if self._cuda else None
        while len(self._reads) < len(self._order):
            at = len(self._reads)
            before = [n for n in range(at) if self._slots[n] == self._slots[at]]
            # What was taken last but one is done with, or enqueued.
            if before and before[-1] >= self._next - 1:
                return
            buffer, files = self._buffers[self._slots[at]], self._order[at][0].files
            pieces = iter(
                [
                    (files[t.file], t.offset + begin, buffer[place + begin :][: min(PIECE_NBYTES, t.nbytes - begin)])
                    for t, place in self._placed[at].rows
                    for begin in range(0, t.nbytes, PIECE_NBYTES)
                ]
            )
            self._reads.append([self._readers.submit(self._read, pieces, free) for _ in range(READERS)])

    def _read(self, pieces: Iterator[tuple[LocalFile | RemoteFile, int, Tensor]], free: Any) -> Any:
        """Read pieces until there are none, which several threads take from. Returns an event behind their copies.

        Copies wait for `free`, behind the last work on what they overwrite.
        """
        # A mode is a thread's own, and outside of it nothing writes to what was made inside.
        with torch.inference_mode():
            if not self._staged:
                for file, offset, room in pieces:
                    if self._closed:
                        break
                    file.readinto(offset, room.numpy().data)
                return None
            staging = self._staging()
            if free is not None:
                staging.stream.wait_event(free)
            for file, offset, room in pieces:
                if self._closed:
                    break
                staging.send(file, offset, room)
            return staging.mark()

    def _staging(self) -> Staging:
        """This thread's."""
        if not hasattr(self._local, "staging"):
            self._local.staging = Staging(self.device, PIECE_NBYTES)
            self._made.append(self._local.staging)
        staging: Staging = self._local.staging
        return staging


def _slots(sources: Sequence[object]) -> list[int]:
    """For each take the number of its buffer: those of one source have two of them in turns."""
    taken: dict[object, int] = {}
    numbers: dict[tuple[object, int], int] = {}
    out = []
    for source in sources:
        turn = taken[source] = taken.get(source, 0) + 1
        out.append(numbers.setdefault((source, turn % 2), len(numbers)))
    return out
