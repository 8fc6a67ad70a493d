"""From an opened checkpoint to a layer's weights on a device: positional reads, the next layer's while one computes.

Bytes stay as they are stored: MXFP4 packed, BF16 as is; an expert is decoded when it is used (`stored`). So what a walk
through one or several checkpoints holds of their weights is two buffers of the largest thing that it takes (a layer, or
the head; gpt-oss-20b: 1.7 GB in BF16, 0.45 GB in MXFP4), and one expert decoded. On a CUDA device the buffers lie
there, and what this machine holds is a staging buffer for each reader.

Where a checkpoint is remote, the same reads are requests for ranges.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Final, Self

import torch

from ckpttool.archs.joins import Extent
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers.remote import RemoteFile, open_file
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError
from ckpttool.tensors import StoredTensor
from ckpttool.validator.model import Head, Layer
from ckpttool.validator.settings import settings_of
from ckpttool.validator.stored import StoredPart, piece_of

Tensor = torch.Tensor
Take = int | str
"""What is taken from a checkpoint at a time: a layer by its number, or HEAD."""

HEAD: Final = "head"
READERS: Final = 8
"""Threads that read: one copies some 8 GB/s out of the page cache, and a GPU's link takes 55."""

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
    """Layers and heads of some sources on a device, in an order known before: while one computes, the next is read.

    What `take` returned is gone with the next but one: its buffer is filled again. Used as a context; leaving it waits
    for the reads that are under way.
    """

    def __init__(
        self, order: Sequence[tuple[ModelSource, Take]], device: torch.device, *, staged: bool | None = None
    ) -> None:
        """`staged`: bytes go through a buffer of each reader, which a GPU needs."""
        self._order = tuple(order)
        self.device = device
        self._cuda = device.type == "cuda"
        self._staged = self._cuda if staged is None else staged
        self._placed = [_Placed.of(source.stored(take)) for source, take in order]
        nbytes = max(p.nbytes for p in self._placed)
        count = min(2, len(self._placed))
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(count)]
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self._local = threading.local()
        self._next = 0
        self._reads: list[Future[None]] = []
        self.nbytes = sum(t.nbytes for p in self._placed for t, _ in p.rows)
        self._begin(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)

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
        wait(self._reads)
        for read in self._reads:
            read.result()
        if self._cuda:
            # What was enqueued on the buffer before this one still reads it.
            torch.cuda.current_stream(self.device).synchronize()
        self._next += 1
        if self._next < len(self._order):
            self._begin(self._next)
        buffer = self._buffers[at % 2]
        views = {t.name: buffer[place : place + t.nbytes] for t, place in self._placed[at].rows}
        return {field: source.part(name, views) for field, name in source.parts(take).items()}

    def _begin(self, at: int) -> None:
        """Have all of one thing read into its buffer."""
        source, buffer = self._order[at][0], self._buffers[at % 2]
        self._reads = [
            self._readers.submit(
                self._read,
                source.files[t.file],
                t.offset + begin,
                buffer[place + begin : place + min(begin + PIECE_NBYTES, t.nbytes)],
            )
            for t, place in self._placed[at].rows
            for begin in range(0, t.nbytes, PIECE_NBYTES)
        ]

    def _read(self, file: LocalFile | RemoteFile, offset: int, room: Tensor) -> None:
        if not self._staged:
            file.readinto(offset, room.numpy().data)
            return
        if not hasattr(self._local, "room"):
            self._local.room = torch.empty(PIECE_NBYTES, dtype=torch.uint8, pin_memory=self._cuda)
            self._local.stream = torch.cuda.Stream(self.device) if self._cuda else None  # type: ignore[no-untyped-call]
        staging: Tensor = self._local.room[: len(room)]
        file.readinto(offset, staging.numpy().data)
        # A mode is a thread's own, and outside of it nothing writes to what was made inside.
        with torch.inference_mode(), torch.cuda.stream(self._local.stream):
            room.copy_(staging, non_blocking=True)
        if self._cuda:
            self._local.stream.synchronize()
