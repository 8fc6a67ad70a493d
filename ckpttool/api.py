"""What the command line calls, and what a program may, to plan and to convert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs.formats import Recipe
from ckpttool.containers.shards import parse_size
from ckpttool.devices import check_asked
from ckpttool.errors import UsageError
from ckpttool.execute import execute
from ckpttool.planner import Plan, make_plan
from ckpttool.preview import preview
from ckpttool.reports import Conversion
from ckpttool.resources import Limits
from ckpttool.target import MAX_GPU_MEMORY, MAX_MEMORY, target

__all__ = ["convert", "execute", "limit", "plan", "preview"]

Size = int | str
"""Bytes, or text such as "512MB", "5GB", "1GiB"."""


def plan(
    source: str | Path,
    target_path: str | Path,
    *,
    to: str | None = None,
    experts: str | None = None,
    outtype: str | None = None,
    dtype: str | None = None,
    recipe: str | Recipe = "best",
    scale_rule: str | None = None,
    ties: str | None = None,
    lossless: bool = False,
    max_shard_size: Size | None = None,
    reference: str | Path | None = None,
    model_name: str | None = None,
) -> Plan:
    """Plan the conversion of `source` to `target_path`: every file, size and step; nothing is written.

    `source` and `reference` are here or remote, as `open_checkpoint` takes them; of a repo of the Hub the commit
    that is found now is the one that will be read.

    Options mean what the command line's mean; None is "not given". `recipe` may be a `Recipe`.

    Raises:
        UsageError: a combination of options that is not legal, with the legal choice named.
        InputError: whatever headers, index, config and tokenizer show to be wrong, all of it at once.
        NetworkError: a remote end refuses, or breaks off too often.
    """
    asked = target(
        target_path,
        to=to,
        experts=experts,
        outtype=outtype,
        dtype=dtype,
        recipe=recipe,
        scale_rule=scale_rule,
        ties=ties,
        lossless=lossless,
        max_shard_size=_bytes(max_shard_size, "max_shard_size"),
        model_name=model_name,
    )
    return make_plan(open_checkpoint(source, reference=reference), asked)


def convert(
    source: str | Path,
    target_path: str | Path,
    *,
    workers: int | None = None,
    max_memory: Size = MAX_MEMORY,
    max_gpu_memory: Size = MAX_GPU_MEMORY,
    overwrite: bool = False,
    verify: bool = True,
    device: str = "auto",
    progress: Callable[[int], None] = lambda nbytes: None,
    **options: object,
) -> Conversion:
    """Convert `source` to `target_path` and return the receipt; `options` are those of `plan`.

    `workers` threads (where not given, one for each core, and two more for each GPU; 8 or more for a remote source)
    work in at most `max_memory` beside the interpreter, and beside torch where a GPU computes. `device` is "auto",
    "cpu", "cuda", "cuda:1" or "cuda:0,cuda:1"; torch reserves up to `max_gpu_memory` on each GPU. `verify` reads back
    what was written. `progress` is called with the number of bytes just written, from any thread.

    Raises:
        UsageError, InputError: as `plan` does; UsageError also for a device that is not there, InputError for a value
            that the target cannot hold.
        LocalIOError: TARGET exists, the disk is full, another conversion writes there.
        NetworkError: a remote source refuses, breaks off too often, or changes meanwhile.
        LimitError: `max_memory` or `max_gpu_memory` is too small for one slab, or the GPU has too little.
    """
    limits = limit(device=device, workers=workers, max_memory=max_memory, max_gpu_memory=max_gpu_memory)
    made = plan(source, target_path, **options)  # type: ignore[arg-type]
    return execute(made, limits, overwrite=overwrite, verify=verify, progress=progress)


def limit(
    *,
    device: str = "auto",
    workers: int | None = None,
    max_memory: Size = MAX_MEMORY,
    max_gpu_memory: Size = MAX_GPU_MEMORY,
) -> Limits:
    """What a conversion may use of this machine.

    Raises:
        UsageError: no word for a device, no sensible size.
    """
    check_asked(device)
    memory = _bytes(max_memory, "max_memory") or MAX_MEMORY
    return Limits(workers, memory, device, _bytes(max_gpu_memory, "max_gpu_memory") or MAX_GPU_MEMORY)


def _bytes(size: Size | None, option: str) -> int | None:
    if isinstance(size, str):
        try:
            size = parse_size(size)
        except ValueError as e:
            said, _, hint = str(e).partition("; ")
            raise UsageError(f"--{option.replace('_', '-')}: {said}", hint=hint) from e
    if size is not None and size <= 0:
        raise UsageError(f"--{option.replace('_', '-')}: {size} is no size", hint="write 512MB, 5GB or 1GiB")
    return size
