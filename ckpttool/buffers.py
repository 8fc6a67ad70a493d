"""What each thread of a conversion works with: memory of its own and, where GPUs compute, a lane to one of them.

A GPU that `auto` chose, and that then has no room or does not start, is done without: the cores compute, and the
receipt says why. One that was asked for is an error.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from ckpttool import devices
from ckpttool.codecs.transcode import Bytes
from ckpttool.errors import CkptError
from ckpttool.planner import Plan
from ckpttool.resources import Limits, Resources, on_cores

if TYPE_CHECKING:
    from ckpttool.codecs.gpu_link import Lane


def buffers_for(
    plan: Plan, limits: Limits, using: Resources, stack: contextlib.ExitStack
) -> tuple[Resources, list[tuple[Bytes, Lane | None]]]:
    """A buffer for each thread, with its lane; and what is used in the end, `using` unless it is the cores instead.

    `stack` gives back what a GPU holds of this machine's memory.

    Raises:
        LimitError: the GPU has too little memory, or no more of this machine's may be locked.
        UsageError, LocalIOError: a GPU that was asked for cannot be used, or fails.
    """
    if using.devices.are_gpus:
        try:
            return using, _with_lanes(using, stack)
        except CkptError as e:
            if not using.devices.by_choice:
                raise
            using = on_cores(plan, limits, e.message)
    return using, [(buffer, None) for buffer in _memory(using)]


def _memory(using: Resources) -> Bytes:
    return np.empty((using.workers, using.buffer_nbytes), np.uint8)


def _with_lanes(using: Resources, stack: contextlib.ExitStack) -> list[tuple[Bytes, Lane | None]]:
    from ckpttool.codecs import gpu_link

    found = devices.cards(",".join(using.devices.names))
    whole = _memory(using)
    with contextlib.ExitStack() as started, gpu_link.starting(found, using.devices.names):
        started.enter_context(gpu_link.pinned(whole, found[0]))
        lanes = gpu_link.lanes(found, list(whole), using.gpu_memory)
        stack.push(started.pop_all())
    return list(zip(whole, lanes, strict=True))
