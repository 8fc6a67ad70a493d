"""The receipt of a conversion: what was read, how, what was written, and what came of each tensor's values."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ckpttool import __version__
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers.remote import RemoteFolder
from ckpttool.crc import combine
from ckpttool.journal import Entry
from ckpttool.memory import peak_rss
from ckpttool.planner import Plan
from ckpttool.readback import Stretch
from ckpttool.reports import Conversion, FileReceipt, TensorReceipt
from ckpttool.resources import Resources
from ckpttool.sidecars import Written, named_after
from ckpttool.steps import ByteRange, Fidelity, Kind, Step, target_ranges


@dataclass
class Outcome:
    """What a run knows at its end. `hashes` is None where nothing was read back."""

    entries: Mapping[int, Entry]
    checks: Mapping[str, Sequence[Stretch]]
    hashes: Mapping[str, str] | None
    sidecars: Mapping[str, Written]
    resumed: int
    using: Resources
    seconds: dict[str, float] = field(default_factory=dict)


def receipt(plan: Plan, outcome: Outcome) -> Conversion:
    """The receipt. Its `run` differs from run to run; everything else follows from source and options."""
    tensors = _tensors(plan, outcome)
    files = [
        FileReceipt(
            f.name, f.size, _hex(_file_crc(outcome, f.name)), None if outcome.hashes is None else outcome.hashes[f.name]
        )
        for f in plan.files
    ]
    files += [FileReceipt(n, w.nbytes, _hex(w.crc32), w.sha256) for n, w in sorted(outcome.sidecars.items())]
    t = plan.target
    recipes = {s.recipe for s in plan.steps if s.recipe}
    return Conversion(
        "conversion.v1",
        {"name": "ckpttool", "version": __version__},
        _source(plan.source),
        {"path": t.address or str(t.path), "dialect": t.dialect},
        {
            "to": t.to,
            "experts": t.experts,
            "outtype": t.outtype if t.to == "gguf" else None,
            "dtype": t.dtype if t.to in ("bf16", "mxfp4") else None,
            "lossless": t.lossless,
            "max_shard_size": t.max_shard_size,
            "reference": str(plan.source.lender) if plan.source.lender else None,
            "model_name": t.model_name,
        },
        asdict(recipes.pop()) if recipes else None,
        tuple(files),
        tuple(tensors),
        _counted(x.fidelity for x in tensors),
        tuple(asdict(a) for a in plan.assumed),
        plan.notes,
        outcome.hashes is not None,
        _run(plan, outcome),
        plan.digest,
    )


def _source(source: Checkpoint) -> dict[str, Any]:
    """What was read: of a repo its commit, of remote files what pins their content."""
    assert source.dialect is not None
    files: list[dict[str, Any]] = []
    for f in source.files:
        pinned = {} if isinstance(f.place, Path) else {"etag": f.etag, "sha256": f.sha256}
        files.append({"name": f.name, "nbytes": f.size, "header_sha256": f.header_sha256, **pinned})
    repo = {}
    if isinstance(source.folder, RemoteFolder) and source.folder.commit:
        repo = {"revision": source.folder.revision, "commit": source.folder.commit}
    folder = named_after(source)
    name = folder.name or folder.resolve().name
    return {"path": str(source.path), "name": name, "dialect": source.dialect.name, **repo, "files": files}


def _run(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    return {
        "seconds": {k: round(v, 3) for k, v in outcome.seconds.items()},
        "nbytes": {
            "read": sum(w.nbytes for w in plan.source.weights),
            "written": plan.nbytes,
            "read_back": sum(f.size for f in plan.files) if outcome.hashes is not None else 0,
        },
        "workers": outcome.using.workers,
        "devices": list(outcome.using.devices.names),
        "devices_why": outcome.using.devices.why,
        "slabs": len(plan.slabs),
        "slabs_resumed": outcome.resumed,
        "peak_memory": peak_rss(),
        "versions": _versions(["numpy", "numba", *(["torch", "triton"] if outcome.using.devices.are_gpus else [])]),
    }


def _tensors(plan: Plan, outcome: Outcome) -> list[TensorReceipt]:
    pieces: dict[str, list[tuple[int, int, int]]] = {}
    step_of: dict[str, int] = {}
    changed: Counter[str] = Counter()
    for i, slab in enumerate(plan.slabs):
        entry = outcome.entries[i]
        ranges = target_ranges(plan.steps[slab.step], slab)
        for at, crc in zip(ranges, entry.crcs, strict=True):
            pieces.setdefault(at.tensor, []).append((at.offset, at.nbytes, crc))
            step_of[at.tensor] = slab.step
        changed.update(changed_values(plan.steps[slab.step], ranges, entry))
    out = []
    for f in plan.files:
        for t in f.tensors:
            step = plan.steps[step_of[t.name]]
            crc32 = _hex(_combined(sorted(pieces[t.name])))
            place = (t.name, t.file, t.dtype, t.shape, t.offset, t.nbytes)
            fidelity = fidelity_of(step, changed[t.name])
            out.append(TensorReceipt(*place, crc32, step.kind, fidelity, changed[t.name]))
    return out


def fidelity_of(step: Step, changed: int) -> Fidelity:
    """What survives of a tensor of which `changed` values did: what narrowing promises is the least, not the most."""
    if step.kind in (Kind.narrow, Kind.dequantize) and step.fidelity is Fidelity.lossy and not changed:
        return Fidelity.values
    return step.fidelity


def changed_values(step: Step, ranges: Sequence[ByteRange], entry: Entry) -> dict[str, int]:
    """How many values of each tensor one slab changed; a tensor that zips parts has those of all."""
    if step.target.zipped or len(entry.changed) == 1:
        return {ranges[0].tensor: sum(entry.changed)}
    return {at.tensor: n for at, n in zip(ranges, entry.changed, strict=True)}


def _combined(pieces: Iterable[tuple[int, int, int]]) -> int:
    crc = 0
    for _, nbytes, piece in pieces:
        crc = combine(crc, piece, nbytes)
    return crc


def _file_crc(outcome: Outcome, name: str) -> int:
    crc = 0
    for s in outcome.checks[name]:
        piece = outcome.entries[s.slab].crcs[s.index] if s.slab is not None else s.crc or 0
        crc = combine(crc, piece, s.nbytes)
    return crc


def _hex(crc: int) -> str:
    return f"{crc:08x}"


def _counted(items: Iterable[str]) -> dict[str, int]:
    found = Counter(items)
    return {str(f): found[f] for f in Fidelity}


def _versions(libraries: Iterable[str]) -> dict[str, str]:
    """What took part: the interpreter, and those of `libraries` that were loaded and say who they are."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in libraries}
    return {"python": platform.python_version()} | {name: str(v) for name, v in loaded.items() if v}
