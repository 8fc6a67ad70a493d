"""Slabs over the link to a GPU and back, as many at once as threads bring.

A thread has pinned memory of its own, a stream, and room on the card that mirrors its memory byte for byte: a view of
the one is a view of the other, and each way is one copy. Streams of several threads share the card's two copy engines
and its multiprocessors, so that slabs come, are computed and go at the same time.

What a slab of one shape takes, copies and kernels, is recorded as a CUDA graph when the shape comes for the second
time; one that comes once would cost more to record than to run. Playing it is a single call, where each of its parts
would be several that let another thread have the interpreter, and wait to get it back.

The room of all lanes of a card is one allocation, and the limit on the GPU's memory is held against what torch reserves
for it (`gpu_room`). CUDA's own context, kernels and graphs come beside it.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ckpttool.codecs import gpu
from ckpttool.codecs.formats import Packing, Recipe
from ckpttool.codecs.gpu_room import room_nbytes
from ckpttool.codecs.transcode import Bytes, Operand
from ckpttool.errors import CkptError, LimitError, LocalIOError, UsageError, first_line

PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every card, not only for the current one."""

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Tensor types by width: kernels go by bits, and take these for any plain format."""

LAUNCHING = threading.Lock()
"""Held while kernels are launched, recorded or played, on whichever card: each is compiled once, and torch plays no
graph while another thread records one."""

SAMPLE_NBYTES = 64 << 20
"""What `link_rate` sends: long enough for the link's full speed."""


@contextlib.contextmanager
def pinned(buffer: Bytes, device: torch.device) -> Iterator[None]:
    """`buffer` as memory that a GPU copies from and to by itself, while the block lasts.

    Registered as it is: torch's own pinned allocator rounds up to a power of two.

    Raises:
        RuntimeError: the system does not allow so much locked memory.
    """
    if device.type != "cuda":
        yield
        return
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = buffer.ctypes.data
    with torch.cuda.device(device):  # otherwise it is the first GPU that makes a context, which others may have filled
        torch.cuda.check_error(int(runtime.cudaHostRegister(address, buffer.nbytes, PORTABLE)))
    try:
        yield
    finally:
        runtime.cudaHostUnregister(address)  # a GPU that has failed says so again here: the first word is the right one


def link_rate(device: torch.device, most: int = SAMPLE_NBYTES) -> float:  # pragma: no cover - times a GPU
    """Bytes a second from pinned memory to `device`: the best of three copies, of at most `most` bytes."""
    nbytes = min(most, SAMPLE_NBYTES)
    host = np.zeros(nbytes, np.uint8)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    with pinned(host, device), torch.cuda.device(device):
        milliseconds: list[float] = []
        for _ in range(4):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begun.record()
            target.copy_(torch.from_numpy(host), non_blocking=True)
            ended.record()
            ended.synchronize()
            milliseconds.append(begun.elapsed_time(ended))
    return nbytes / min(milliseconds[1:]) * 1e3


FAILURES = (RuntimeError, subprocess.CalledProcessError)
"""What means that the GPU has failed: torch has one word for whatever happens to it, and Triton a second one, where the
C compiler does not build its launcher."""

NO_MEMORY = 2
"""cudaErrorMemoryAllocation."""


@contextlib.contextmanager
def starting(cards: Sequence[torch.device], names: Sequence[str]) -> Iterator[None]:
    """Start CUDA, and say of what fails in the block, where lanes are made, what kind of failure it is.

    Raises:
        UsageError: CUDA does not start.
        LimitError: there is too little memory on a card, or too little of this machine's may be locked.
        LocalIOError: a card fails.
    """
    said = ", ".join(names)
    try:
        if any(card.type == "cuda" for card in cards):
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as e:  # no driver, too old a one, torch without CUDA
        raise UsageError(f"{said}: {first_line(e)}", hint="nvidia-smi tells; --device cpu does without it") from e
    try:
        yield
    except FAILURES as e:
        raise failed(e, said) from e


def failed(error: BaseException, name: str) -> CkptError:
    """What torch or Triton raised as an error of ours: a LimitError where it is memory that lacks."""
    said = f"{name}: {first_line(error)}"
    # torch says so by its allocator's own kind of error, by a code, or behind the text of a call of CUDA's runtime.
    coded = getattr(error, "error_code", None) == NO_MEMORY or str(error).endswith(f"({NO_MEMORY})")
    if isinstance(error, torch.OutOfMemoryError) or coded:
        return LimitError(said, hint="give a smaller --max-memory or --max-gpu-memory, or --device cpu")
    return LocalIOError(said, hint="--device cpu does without it")


def lanes(cards: Sequence[torch.device], buffers: Sequence[Bytes], limit: int) -> list[Lane]:
    """A lane for each of the pinned `buffers`, all of one size, to the cards in turns.

    `limit` is what torch may reserve on each of them.

    Raises:
        LimitError: torch reserves more than that.
        `FAILURES`: a card has too little memory, or fails.
    """
    of_card = [_lanes_to(card, buffers[i :: len(cards)], limit) for i, card in enumerate(cards)]
    return [lane for turn in zip_longest(*of_card) for lane in turn if lane is not None]


def _lanes_to(card: torch.device, buffers: Sequence[Bytes], limit: int) -> list[Lane]:
    if not buffers:
        return []
    before = _reserved(card)
    nbytes = buffers[0].nbytes
    room = torch.empty(room_nbytes(len(buffers), nbytes), dtype=torch.uint8, device=card)
    made = [Lane(card, buffer, room[i * nbytes : (i + 1) * nbytes]) for i, buffer in enumerate(buffers)]
    _try(card)
    if (taken := _reserved(card) - before) > limit:
        text = f"{card}: torch reserves {taken:,} bytes for what should take {limit:,}"
        raise LimitError(text, hint="unset PYTORCH_CUDA_ALLOC_CONF, or give --device cpu")
    return made


def _reserved(card: torch.device) -> int:
    """Bytes of the GPU that torch holds now, without what nobody uses any more."""
    if card.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(card)


def _try(card: torch.device) -> None:
    """Repack one block, so that a kernel that cannot be built or loaded shows before the first slab."""
    pair = torch.zeros((1, 1, 1, 17), dtype=torch.uint8, device=card)
    structs = torch.zeros_like(pair)
    blocks, scales = pair[..., :16], pair[..., 16]
    gpu.repack(blocks, scales, Packing.pair, structs[..., 1:], structs[..., 0], Packing.ggml)
    if card.type == "cuda":
        torch.cuda.synchronize(card)  # pragma: no cover - needs a GPU


class Lane:
    """One thread's way to a GPU and back."""

    def __init__(self, device: torch.device, host: Bytes, room: torch.Tensor) -> None:
        """`host` is pinned: slabs are laid out in it, from its begin on. `room` is as many bytes on the GPU.

        Raises:
            torch.OutOfMemoryError: the GPU has too little memory.
        """
        self.device = device
        self._host = host
        cuda = device.type == "cuda"
        # Where Triton interprets, the CPU's streams and events do nothing, and all is done at once.
        self._module: Any = torch.cuda if cuda else torch.cpu
        self._stream: Any = torch.cuda.Stream(device) if cuda else torch.cpu.Stream()  # type: ignore[no-untyped-call]
        # An event that waits asleep leaves the core to the threads that read and write.
        self._done: Any = self._module.Event(**({"blocking": True} if cuda else {}))
        self._room = room
        self._status = gpu.new_status(device)
        self._noted = torch.empty(1, dtype=torch.int64, pin_memory=cuda)
        self._met: set[object] = set()
        self._graphs: dict[object, torch.cuda.CUDAGraph] = {}
        if cuda:
            torch.cuda.synchronize(device)  # pragma: no cover - needs a GPU

    def transcode(self, source: Operand, target: Operand, recipe: Recipe | None) -> None:
        """Fill `target` from `source`, both of them views of the pinned memory, on the GPU.

        Raises:
            BadBlock: as `transcode.transcode` does.
            LimitError, LocalIOError: the GPU has failed.
        """
        try:
            self._run(source, target, recipe)
        except FAILURES as e:
            raise failed(e, f"{self.device} failed") from e
        scales = (target if source.codec.is_plain else source).blocks_and_scales[1]
        gpu.raise_bad(self._noted, *scales.shape[1:])

    def _run(self, source: Operand, target: Operand, recipe: Recipe | None) -> None:
        shape = (_shape(source), _shape(target), recipe)
        with self._module.stream(self._stream):
            with LAUNCHING:
                if shape in self._met and shape not in self._graphs and self.device.type == "cuda":
                    self._graphs[shape] = self._recorded(source, target, recipe)
                if shape in self._graphs:
                    self._graphs[shape].replay()
                else:
                    self._enqueue(source, target, recipe)
            self._done.record(self._stream)
            self._done.synchronize()
        self._met.add(shape)

    def _recorded(  # pragma: no cover - needs a GPU: tests/test_gpu_link.py on one
        self, source: Operand, target: Operand, recipe: Recipe | None
    ) -> torch.cuda.CUDAGraph:
        """A graph of `_enqueue`, whose kernels are compiled by now."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")  # other threads go on using the GPU
        try:
            self._enqueue(source, target, recipe)
        finally:
            graph.capture_end()
        return graph

    def _enqueue(self, source: Operand, target: Operand, recipe: Recipe | None) -> None:
        begin, end = self._span(source)
        self._room[begin:end].copy_(torch.from_numpy(self._host[begin:end]), non_blocking=True)
        self._launch(source, target, recipe)
        begin, end = self._span(target)
        torch.from_numpy(self._host[begin:end]).copy_(self._room[begin:end], non_blocking=True)
        self._noted.copy_(self._status, non_blocking=True)

    def _span(self, operand: Operand) -> tuple[int, int]:
        """Where the operand's bytes begin and end in the memory: its fields lie one after the other."""
        starts = [f.ctypes.data - self._host.ctypes.data for f in operand.fields]
        return min(starts), max(start + f.nbytes for start, f in zip(starts, operand.fields, strict=True))

    def _launch(self, source: Operand, target: Operand, recipe: Recipe | None) -> None:
        a, b = source.codec, target.codec
        if a.is_plain:
            assert recipe is not None
            quantize = gpu.quantize_columns if source.transposed else gpu.quantize_rows
            x, (blocks, scales) = self._there(source.elements), map(self._there, target.blocks_and_scales)
            quantize(x, a.name, recipe, b.packing, blocks, scales, self._status)
            return
        blocks, scales = map(self._there, source.blocks_and_scales)
        if b.is_plain:
            dequantize = gpu.dequantize_columns if target.transposed else gpu.dequantize_rows
            dequantize(blocks, scales, a.packing, self._there(target.elements), b.name, self._status)
        else:
            out_blocks, out_scales = map(self._there, target.blocks_and_scales)
            gpu.repack(blocks, scales, a.packing, out_blocks, out_scales, b.packing)

    def _there(self, view: NDArray[Any]) -> torch.Tensor:
        """The same bytes of the room on the GPU as `view` has of the pinned memory, in the same shape."""
        n = view.itemsize
        room = self._room.view(WORDS[n])
        offset = room.storage_offset() + (view.ctypes.data - self._host.ctypes.data) // n
        return room.as_strided(view.shape, [s // n for s in view.strides], offset)


def _shape(operand: Operand) -> object:
    """What makes two operands alike to the kernels: codec, shapes and strides."""
    return operand.codec, operand.transposed, tuple((f.shape, f.strides) for f in operand.fields)
