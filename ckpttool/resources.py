"""What a conversion may use of this machine, and what it then uses: threads, memory, GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from ckpttool import devices
from ckpttool.devices import Devices
from ckpttool.errors import LimitError
from ckpttool.planner import Plan
from ckpttool.readback import CHUNK
from ckpttool.slabwork import ALIGNMENT

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
    """What a conversion may use: threads (None: as many as are of use), memory in bytes, the word of `--device`."""

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
    chosen = devices.choose(limits.device, plan, min(most, limits.workers or devices.CORES))
    sizes = [(plan.steps[s.step].io_nbytes(s), plan.steps[s.step].scratch_nbytes(s)) for s in plan.slabs]
    buffer = -(-(max((io for io, _ in sizes), default=0) + ALIGNMENT) // PAGE) * PAGE
    each = buffer + max((scratch for _, scratch in sizes), default=0)
    left = limits.max_memory - RESERVE - each - READER
    if left < 0:
        need = -(-(limits.max_memory - left) // 1_000_000)
        raise LimitError(f"the largest slab needs {need} MB", hint=f"give --max-memory {need}MB or more")
    readers = 1 + min(len(plan.files) - 1, limits.max_memory // PER_READER, left // READER)
    fits = (limits.max_memory - RESERVE - readers * READER) // each
    workers = min(most, fits, limits.workers or devices.threads(chosen))
    lanes = 0
    if chosen.are_gpus:
        lanes, workers = _lanes(limits, len(chosen.names), buffer, workers)
    return Resources(chosen, workers, buffer, readers, RESERVE + readers * READER + workers * each, lanes * buffer)


def _lanes(limits: Limits, gpus: int, buffer: int, workers: int) -> tuple[int, int]:
    """How many threads bring slabs to one GPU, as its memory allows, and to all."""
    fits = limits.max_gpu_memory // buffer
    if fits < 1:
        need = -(-buffer // 1_000_000)
        raise LimitError(f"the largest slab needs {need} MB of the GPU", hint=f"give --max-gpu-memory {need}MB or more")
    lanes = min(fits, -(-workers // gpus))
    return lanes, min(workers, lanes * gpus)
