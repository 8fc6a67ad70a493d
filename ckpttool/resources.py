"""What a conversion may use of this machine, and what it then uses: threads, memory, GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpttool import devices
from ckpttool.codecs.gpu_room import lanes_within, reserved_nbytes
from ckpttool.containers.limits import REMOTE_PARALLEL
from ckpttool.devices import CPU, Devices
from ckpttool.errors import LimitError
from ckpttool.planner import Plan
from ckpttool.readback import CHUNK
from ckpttool.reports import UNUSABLE
from ckpttool.slabwork import ALIGNMENT
from ckpttool.threads import CORES

MOST_WORKERS = 256
"""More threads than any disk or memory has use for."""

RESERVE = 16_000_000
"""Memory kept beside slabs and read-back: threads, the journal."""

READER = 2 * CHUNK
"""What reading back one file takes."""

PER_READER = 64_000_000
"""One more file is read back at a time for each of these bytes that are allowed."""

PAGE = 4096


@dataclass(frozen=True)
class Limits:
    """What a conversion may use: threads (None: as many as are of use), memory in bytes, the word of `--device`.

    `max_gpu_memory` is what torch may reserve on each GPU; CUDA's context and kernels come beside it.
    """

    workers: int | None
    max_memory: int
    device: str
    max_gpu_memory: int


@dataclass(frozen=True)
class Resources:
    """What it uses: `workers` threads with `buffer_nbytes` each, and as much on their GPU; `readers` read files back.

    `memory` and `gpu_memory` (of each GPU) are what all this comes to.
    """

    devices: Devices
    workers: int
    buffer_nbytes: int
    readers: int
    memory: int
    gpu_memory: int


def resources(plan: Plan, limits: Limits) -> Resources:
    """What carrying out `plan` uses within `limits`.

    Raises:
        LimitError: not even one slab fits into the memory, or into that of the GPU.
        UsageError: a device that cannot be used.
    """
    most = max(1, min(len(plan.slabs), MOST_WORKERS))
    threads = min(most, limits.workers or CORES)
    return _with(plan, limits, devices.choose(limits.device, plan, threads, limits.max_gpu_memory))


def on_cores(plan: Plan, limits: Limits, lacks: str) -> Resources:
    """What it uses where `auto` chose a GPU of which `lacks` says why it is of no use. LimitError as `resources`."""
    return _with(plan, limits, Devices((CPU,), f"{UNUSABLE}: {lacks}"))


def _with(plan: Plan, limits: Limits, chosen: Devices) -> Resources:
    most = max(1, min(len(plan.slabs), MOST_WORKERS))
    sizes = [(plan.steps[s.step].io_nbytes(s), plan.steps[s.step].scratch_nbytes(s)) for s in plan.slabs]
    buffer = -(-(max((io for io, _ in sizes), default=0) + ALIGNMENT) // PAGE) * PAGE
    each = buffer + max((scratch for _, scratch in sizes), default=0)
    left = limits.max_memory - RESERVE - each - READER
    if left < 0:
        need = -(-(limits.max_memory - left) // 1_000_000)
        raise LimitError(f"the largest slab needs {need} MB", hint=f"give --max-memory {need}MB or more")
    readers = 1 + min(len(plan.files) - 1, limits.max_memory // PER_READER, left // READER)
    fits = (limits.max_memory - RESERVE - readers * READER) // each
    workers = min(most, fits, limits.workers or _threads(plan, chosen))
    gpu_memory = 0
    if chosen.are_gpus:
        try:
            lanes, workers = _lanes(limits, len(chosen.names), buffer, workers)
        except LimitError as e:
            if not chosen.by_choice:
                raise
            return on_cores(plan, limits, e.message)
        gpu_memory = reserved_nbytes(lanes, buffer)
    return Resources(chosen, workers, buffer, readers, RESERVE + readers * READER + workers * each, gpu_memory)


def _threads(plan: Plan, chosen: Devices) -> int:
    """As many as compute; at least as many as wait for a remote end at once."""
    remote = any(not isinstance(f.place, Path) for f in plan.source.files)
    return max(devices.threads(chosen), REMOTE_PARALLEL if remote else 0)


def _lanes(limits: Limits, gpus: int, buffer: int, workers: int) -> tuple[int, int]:
    """How many threads bring slabs to one GPU, as its memory allows, and to all."""
    fits = lanes_within(limits.max_gpu_memory, buffer)
    if fits < 1:
        need = -(-reserved_nbytes(1, buffer) // 1_000_000)
        raise LimitError(f"the largest slab needs {need} MB of the GPU", hint=f"give --max-gpu-memory {need}MB or more")
    lanes = min(fits, -(-workers // gpus))
    return lanes, min(workers, lanes * gpus)
