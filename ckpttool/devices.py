"""Where steps are computed, and why there: on this machine's cores, or on GPUs that the user names or `auto` finds.

A GPU computes faster than its link brings bytes, and starts slowly: where the cores are done before torch is imported,
or faster than the link, `auto` stays on them. It knows because it measures: the cores' kernels on one slab, and the
link with one copy.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ckpttool.codecs.formats import Codec
from ckpttool.codecs.gpu_room import lanes_within
from ckpttool.codecs.transcode import Bytes, transcode
from ckpttool.errors import UsageError, first_line
from ckpttool.planner import Plan
from ckpttool.reports import UNUSABLE
from ckpttool.slabwork import ALIGNMENT, behind, lay
from ckpttool.steps import Slab, Step, for_gpu
from ckpttool.threads import CORES

if TYPE_CHECKING:
    import torch

CPU = "cpu"
CARD = r"cuda:(0|[1-9]\d?)"
ASKED = re.compile(f"auto|cpu|cuda|{CARD}(,{CARD})*")
INSTALL = "pip install 'ckpttool[torch]'"

START_SECONDS = 5.0
"""From nothing to a GPU that computes: torch imported (4.1 s on a machine with an H200), a context, the kernels."""


@dataclass(frozen=True)
class Devices:
    """The names, ("cpu",) or ("cuda:0", ...), and the reason in words; `by_choice` if nobody asked for these GPUs."""

    names: tuple[str, ...]
    why: str
    by_choice: bool = False

    @property
    def are_gpus(self) -> bool:
        """Whether slabs go over a link."""
        return self.names != (CPU,)


def check_asked(asked: str) -> None:
    """UsageError unless `asked` is a word of `--device`."""
    if not ASKED.fullmatch(asked):
        raise UsageError(f"--device {asked}: unknown", hint="use auto, cpu, cuda, cuda:1 or cuda:0,cuda:1")
    names = asked.split(",")
    if len(set(names)) < len(names):
        raise UsageError(f"--device {asked}: names one device twice", hint="name each once")


def choose(asked: str, plan: Plan, workers: int, gpu_memory: int) -> Devices:
    """The devices for `plan`, as `asked` (a word of `--device`); `workers` threads would compute on the cores, and
    torch may reserve `gpu_memory` bytes of a GPU.

    Raises:
        UsageError: devices that were named and cannot be used, with what would help.
    """
    if asked == CPU:
        return Devices((CPU,), "asked for")
    if asked != "auto":
        cards(asked)
    if not any(for_gpu(step) for step in plan.steps):
        return Devices((CPU,), "no step makes, reads or permutes MXFP4, and a GPU does nothing else")
    if asked != "auto":
        return Devices(_names(asked), "asked for")
    if not _has_gpu():
        return Devices((CPU,), "no NVIDIA GPU here")
    if lacking := _lacking():
        return Devices((CPU,), f"there is a GPU, but {lacking} is not installed: {INSTALL}")
    return _faster(plan, workers, gpu_memory)


def _faster(plan: Plan, workers: int, gpu_memory: int) -> Devices:
    """Cores or the first GPU, by what both were measured to take."""
    on_cores = _core_seconds(plan) / workers
    threads = "1 thread computes" if workers == 1 else f"{workers} threads compute"
    start = 0.0 if "torch" in sys.modules else START_SECONDS
    if on_cores < start:
        return Devices((CPU,), f"{threads} it in {on_cores:.1f} s, and a GPU takes {start:.0f} s to start")
    try:
        (card,) = cards("cuda")
    except UsageError as e:
        return Devices((CPU,), e.message)
    if _is_stand_in(card):
        return Devices((CPU,), "there is a GPU, but Triton interprets (TRITON_INTERPRET=1)")
    room = lanes_within(gpu_memory, 1)
    if not room:
        return Devices((CPU,), f"there is a GPU, but torch takes more than {gpu_memory:,} bytes of its memory")
    from ckpttool.codecs.gpu_link import link_rate

    try:
        rate = link_rate(card, room)
    except RuntimeError as e:  # a GPU that others have filled, or that takes no second process
        return Devices((CPU,), f"{UNUSABLE}: {first_line(e)}")
    over_link = max(_traffic(plan)) / rate
    said = f"{threads} it in {on_cores:.1f} s, the GPU's link takes {over_link:.1f} s at {rate / 1e9:.0f} GB/s"
    return Devices(_names("cuda"), said, by_choice=True) if over_link < on_cores else Devices((CPU,), said)


def _is_stand_in(card: torch.device) -> bool:
    """Whether the CPU stands for a GPU, which is no way to be fast."""
    return card.type == "cpu"


def _names(asked: str) -> tuple[str, ...]:
    return ("cuda:0",) if asked == "cuda" else tuple(asked.split(","))


def cards(asked: str) -> list[torch.device]:
    """The GPUs of `cuda`, `cuda:1` or `cuda:0,cuda:1`, each found fit for the kernels.

    Where Triton interprets (TRITON_INTERPRET=1), the CPU stands for every one of them.

    Raises:
        UsageError: torch or triton is missing, cannot be loaded or sees no GPU; a number that is not there; too old a
            GPU.
    """
    if lacking := _lacking():
        raise UsageError(f"--device {asked} needs {lacking}, which is not installed", hint=INSTALL)
    try:
        import torch

        from ckpttool.codecs import gpu
    except (ImportError, OSError) as e:  # it is there, but a library that it needs is not
        raise UsageError(f"--device {asked}: torch cannot be loaded: {first_line(e)}", hint="--device cpu") from e
    if gpu.unsupported(torch.device("cpu")) is None:
        return [torch.device("cpu") for _ in asked.split(",")]
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "finds no GPU that its driver can use"
        raise UsageError(f"--device {asked}: torch {torch.__version__} {built}", hint="nvidia-smi tells; --device cpu")
    count = torch.cuda.device_count()
    found = [torch.device(name) for name in _names(asked)]
    for device in found:
        if (device.index or 0) >= count:
            there = ", ".join(f"cuda:{i}" for i in range(count))
            raise UsageError(f"--device {device}: there is no such GPU", hint=f"choose of {there}")
        reason = gpu.unsupported(device)
        if reason is not None:
            raise UsageError(f"--device {device}: {reason}", hint="--device cpu")
    return found


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _lacking() -> str | None:
    return next((name for name in ("torch", "triton") if importlib.util.find_spec(name) is None), None)


def _traffic(plan: Plan) -> tuple[int, int]:
    """Bytes that would go to a GPU, and come back."""
    steps = [s for s in plan.steps if for_gpu(s)]
    return sum(s.source_nbytes for s in steps), sum(s.target_nbytes for s in steps)


def _core_seconds(plan: Plan) -> float:
    """What one core takes for the steps that a GPU could do: a slab of each kind of them is timed."""
    kinds: dict[object, list[tuple[Step, Slab]]] = {}
    for slab in plan.slabs:
        step = plan.steps[slab.step]
        if for_gpu(step):
            key = (step.source.codec, step.source.transposed, step.target.codec, step.target.transposed)
            kinds.setdefault(key, []).append((step, slab))
    return sum(_seconds_per_byte(*found[0]) * sum(s.io_nbytes(x) for s, x in found) for found in kinds.values())


def _seconds_per_byte(step: Step, slab: Slab) -> float:
    """The second of two runs on one slab of plausible weights: the first one loads the kernels."""
    buffer = np.zeros(step.io_nbytes(slab) + ALIGNMENT, np.uint8)
    source = lay(step.source, slab, step, buffer)
    target = lay(step.target, slab, step, buffer[behind(source) :])
    _fill(step.source.codec, (view for _, view in source.pieces))
    seconds = 0.0
    for _ in range(2):
        begun = perf_counter()
        transcode(source.operand, target.operand, step.recipe)
        seconds = perf_counter() - begun
    return seconds / step.io_nbytes(slab)


def _fill(codec: Codec, views: Iterable[Bytes]) -> None:
    """Gaussian weights where elements are plain; any MXFP4 code, with scales near those of such weights."""
    rng = np.random.default_rng(0)
    for view in views:
        if codec.is_plain:
            floats = rng.standard_normal(1 << 12, np.float32) * np.float32(0.02)
            bits = {"F32": floats, "F16": floats.astype(np.float16), "BF16": floats.view(np.uint16)[1::2]}[codec.name]
            view[:] = np.resize(np.ascontiguousarray(bits).view(np.uint8), view.nbytes)
        else:
            view[:] = np.resize(rng.integers(110, 126, 1 << 12, np.uint8), view.nbytes)


def threads(devices: Devices) -> int:
    """How many threads to work with: one for each core, and two more for each GPU, which wait for it."""
    return CORES + (2 * len(devices.names) if devices.are_gpus else 0)
