"""What the command line calls, and what a program may, to plan and to convert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs.formats import Recipe
from ckpttool.containers.shards import parse_size
from ckpttool.devices import check_asked
from ckpttool.errors import UsageError, os_errors
from ckpttool.execute import execute
from ckpttool.planner import Plan, make_plan
from ckpttool.preview import preview
from ckpttool.publishing.repos import is_repo_url
from ckpttool.reports import Conversion
from ckpttool.resources import Limits
from ckpttool.target import MAX_GPU_MEMORY, MAX_MEMORY, target

if TYPE_CHECKING:
    from ckpttool.publishing.report import Publication
    from ckpttool.publishing.streaming import HubConversion

__all__ = ["convert", "convert_to_hub", "execute", "hub_conversion", "limit", "plan", "preview"]

Size = int | str
"""Bytes, or text such as "512MB", "5GB", "1GiB"."""


@os_errors()
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
        LocalIOError: what the system refuses.
        NetworkError: a remote end refuses, or breaks off too often.
    """
    if is_repo_url(str(target_path)):
        raise UsageError("is a repo, not a path", file=str(target_path), hint="use convert_to_hub")
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


def convert_to_hub(
    source: str | Path,
    repo: str,
    *,
    workers: int | None = None,
    max_memory: Size = MAX_MEMORY,
    max_gpu_memory: Size = MAX_GPU_MEMORY,
    device: str = "auto",
    progress: Callable[[int], None] = lambda nbytes: None,
    sent: Callable[[int], None] = lambda nbytes: None,
    **options: Any,
) -> Publication:
    """Convert `source` and publish it in `repo` (hf://org/repo[@branch][/x.gguf]), each file as it is made.

    `sent` is called with bytes that the Hub has, `progress` with those that were written here. `options` are those of
    `hub_conversion`, everything else as in `convert`.

    Raises:
        NetworkError: the Hub refuses, breaks off, or the branch has moved. Nothing is visible then, unless it says so.
        UsageError, InputError, LocalIOError, LimitError: as `convert` does; InputError also for what looks like a
            secret in a text file.
    """
    limits = limit(device=device, workers=workers, max_memory=max_memory, max_gpu_memory=max_gpu_memory)
    return hub_conversion(source, repo, limits, **options).run(progress, sent)


@os_errors()
def hub_conversion(
    source: str | Path,
    repo: str,
    limits: Limits,
    *,
    private: bool | None = None,
    revision: str | None = None,
    pr: bool = False,
    free_disk: bool = False,
    force: bool = False,
    overwrite: bool = False,
    workdir: str | Path | None = None,
    validation: str | Path | None = None,
    quantized_by: str | None = None,
    allow_endpoint: bool = False,
    to: str | None = None,
    max_shard_size: Size | None = None,
    reference: str | Path | None = None,
    **options: Any,
) -> HubConversion:
    """A conversion to a repo of the Hub, planned: what `run` and `preview` of it do. Other options are `plan`'s.

    Files are made in `workdir`, by default the current folder, and stay there, unless `free_disk` deletes each once the
    Hub has it. `force` converts though the repo is up to date.
    """
    from ckpttool.publishing import destination, streaming
    from ckpttool.publishing.repos import repo_target

    where = repo_target(repo, revision=revision, pr=pr, allow_endpoint=allow_endpoint)
    path = destination.local_path(where, to, workdir)
    address = destination.address(where, path)
    wanted = target(path, to=to, max_shard_size=_bytes(max_shard_size, "max_shard_size"), address=address, **options)
    asked = streaming.Asked(private, free_disk, force, overwrite, validation, quantized_by)
    return streaming.HubConversion(source, where, wanted, limits, asked, reference)


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
