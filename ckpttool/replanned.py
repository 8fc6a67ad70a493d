"""A conversion planned again, from its receipt and its source: what it should be, and where the receipt differs.

A receipt comes from whoever published it. Nothing in it is believed but what was asked for; the rest has to come out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType
from typing import Any

from ckpttool import __version__
from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.codecs.formats import RECIPES, Recipe, ScaleRule, TieRule
from ckpttool.containers.remote import RemoteFolder
from ckpttool.crc import crc32
from ckpttool.errors import InputError, UsageError, raise_all
from ckpttool.locate import SHARD
from ckpttool.places import is_url
from ckpttool.planner import Plan, make_plan
from ckpttool.receipt import fidelity_of
from ckpttool.receipt_file import EDITED, NOT_THERE, Types, wrong_field, wrong_row
from ckpttool.sidecars import Sidecar
from ckpttool.steps import Kind, Step, target_ranges
from ckpttool.target import Target, is_gguf, target

TEXT_OR_NONE = (str, NoneType)
OPTIONS: Types = {
    "to": (str,), "experts": (str,), "outtype": TEXT_OR_NONE, "dtype": TEXT_OR_NONE, "lossless": (bool,),
    "max_shard_size": (int, NoneType), "reference": TEXT_OR_NONE, "model_name": TEXT_OR_NONE,
}  # fmt: skip
RECIPE: Types = {"name": (str,), "scale": (str,), "ties": (str,), "keeps_negative_zero": (bool,)}
SOURCE: Types = {"path": (str,), "files": (list,)}
SOURCE_FILE: Types = {"name": (str,), "nbytes": (int,), "header_sha256": (str,)}
TENSOR: Types = {"dtype": (str,), "shape": (list,), "kind": (str,), "fidelity": (str,), "changed": (int,)}
"""What a receipt says of how it was made, beyond what every reader needs."""

NOWHERE = Path(os.devnull)
"""Where nothing can lie: a plan needs a place, and this one's is never made."""


def replanned(
    receipt: Mapping[str, Any], label: str, source: str | Path, reference: str | Path | None
) -> tuple[Plan, list[str]]:
    """The plan of what `receipt` says was asked for, with `source` as it is now; and notes.

    Raises:
        InputError: `source` is not what was read, or cannot be converted so; the receipt says what none says.
        NetworkError, UsageError: as `open_checkpoint` raises them.
    """
    _look_through(receipt, label)
    stated = receipt["source"]
    lender = reference if reference is not None else _lender(receipt["options"]["reference"], label)
    found = open_checkpoint(source, reference=lender)
    _require_same(found, stated)
    asked = _target(receipt, label)
    try:
        plan = make_plan(replace(found, name=stated.get("name")), asked)
    except UsageError as e:
        text = f"says what cannot be made of the source: {e}"
        raise InputError(text, file=label, field="options", hint=EDITED) from e
    notes = []
    if str(found.path) != stated["path"]:
        notes.append(f"{found.path} has the sizes and headers of {stated['path']}, which the receipt names")
    version = receipt.get("tool", {}).get("version")
    if version != __version__:
        notes.append(f"the receipt is of ckpttool {version}; planned again by {__version__}")
    return plan, notes


def _look_through(receipt: Mapping[str, Any], label: str) -> None:
    """InputError for the first field that planning needs and no receipt has so."""
    wrong = None
    for key, types in (("options", OPTIONS), ("source", SOURCE)):
        field = wrong_field(receipt.get(key), types)
        wrong = wrong or (None if field is None else f"{key}.{field}")
    if wrong is None and receipt.get("recipe") is not None:
        field = wrong_field(receipt["recipe"], RECIPE)
        wrong = None if field is None else f"recipe.{field}"
    wrong = wrong or wrong_row(receipt["source"], "files", SOURCE_FILE) or wrong_row(receipt, "tensors", TENSOR)
    if wrong is None and (type(receipt["source"].get("name", "")) is not str or not receipt["source"]["files"]):
        wrong = "source"
    if wrong is None and receipt["options"]["max_shard_size"] is not None and receipt["options"]["max_shard_size"] < 1:
        wrong = "options.max_shard_size"
    if wrong is None and type(receipt.get("tool")) is not dict:
        wrong = "tool"
    if wrong is not None:
        raise InputError(NOT_THERE, file=label, field=wrong.rstrip("."), hint=EDITED)


def _lender(stated: str | None, label: str) -> str | None:
    """The receipt's reference, where it may be read unasked: on the Hub, or here. InputError where it may not."""
    if stated is None or stated.startswith("hf://") or (not is_url(stated) and Path(stated).exists()):
        return stated
    text = f"says --reference {stated}, which is not here"
    raise InputError(text, file=label, field="options.reference", hint="say where it lies now: --reference DIR")


def _require_same(found: Checkpoint, stated: Mapping[str, Any]) -> None:
    """InputError where the checkpoint is not the one of the receipt: its commit, names, sizes, headers, hashes."""
    where, hint = str(found.path), f"give what was converted: {stated['path']}"
    commit, said = found.folder.commit if isinstance(found.folder, RemoteFolder) else None, stated.get("commit")
    if commit and said and commit != said:
        text = f"is of commit {commit[:12]}, the receipt says that {str(said)[:12]} was converted"
        raise InputError(text, file=where, hint=hint)
    rows = {row["name"]: row for row in stated["files"]}
    files = {f.name: f for f in found.files}
    if set(rows) != set(files):
        odd = sorted(set(rows) ^ set(files))[0]
        text = f"has no {odd}, which was converted" if odd in rows else f"has {odd}, which was not converted"
        raise InputError(text, file=where, hint=hint)
    problems = []
    for name, row in rows.items():
        file = files[name]
        for what, here, there in (
            ("bytes", file.size, row["nbytes"]),
            ("header", file.header_sha256, row["header_sha256"]),
            ("sha256", file.sha256, row.get("sha256")),
        ):
            if here is not None and there is not None and here != there:
                text = f"is not the file that was converted: the receipt says another {what}"
                text = f"has {here:,} bytes, what was converted had {there:,}" if what == "bytes" else text
                problems.append(InputError(text, file=f"{where}: {name}", hint=hint))
                break
    raise_all(problems)


def _target(receipt: Mapping[str, Any], label: str) -> Target:
    """What was asked for, but for `lossless`: whether values were lost is to be found, not to stop at."""
    options, stated = receipt["options"], receipt["recipe"]
    names = [row["name"] for row in receipt["files"]]
    place = NOWHERE / _unsplit(names[0]) if is_gguf(Path(names[0])) else NOWHERE / "folder"
    kept = {k: options[k] for k in ("to", "experts", "outtype", "dtype", "max_shard_size", "model_name")}
    try:
        return target(place, recipe=_recipe(stated) if stated else "best", **kept)
    except (UsageError, ValueError) as e:
        text = f"says what no conversion is asked for: {e}"
        raise InputError(text, file=label, field="options", hint=EDITED) from e


def _unsplit(name: str) -> str:
    """The name of a GGUF as it was asked for."""
    shard = SHARD.fullmatch(name)
    return f"{shard['stem']}{shard['suffix']}" if shard else name


def _recipe(stated: Mapping[str, Any]) -> Recipe:
    made = Recipe(stated["name"], ScaleRule(stated["scale"]), TieRule(stated["ties"]), stated["keeps_negative_zero"])
    if RECIPES.get(made.name, made) != made:
        raise ValueError(f"recipe {made.name} has other rules")
    return made


def differences(plan: Plan, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Findings where `receipt` says other than what comes of `plan`, before any tensor is read; side files are made."""
    rows = {row["name"]: row for row in receipt["files"]}
    sizes = {f.name: f.size for f in plan.files} | {s.name: s.nbytes for s in plan.sidecars}
    for name in rows:
        if name not in sizes:
            yield f"{name}: does not come of the source"
    for name, nbytes in sizes.items():
        if name not in rows:
            yield f"{name}: comes of the source, but the receipt does not name it"
        elif rows[name]["nbytes"] != nbytes:
            yield f"{name}: {rows[name]['nbytes']:,} bytes, from the source come {nbytes:,}"
    for side in plan.sidecars:
        if side.name in rows and rows[side.name]["nbytes"] == side.nbytes and not _is_made(side, rows[side.name]):
            yield f"{side.name}: is not what comes of the source"
    yield from _tensor_differences(plan, receipt)
    yield from _claims(plan, receipt)


def _is_made(side: Sidecar, row: Mapping[str, Any]) -> bool:
    """Whether a side file comes out as the receipt says."""
    digest, crc = hashlib.sha256(), 0
    for piece in side.chunks():
        digest.update(piece)
        crc = crc32(piece, crc)
    return row["sha256"] in (None, digest.hexdigest()) and row["crc32"] == f"{crc:08x}"


def _tensor_differences(plan: Plan, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Where each tensor lies, in which form, and what is claimed to have come of its values."""
    stated = {(t["file"], t["name"]): t for t in receipt["tensors"]}
    steps = step_of(plan)
    for f in plan.files:
        for t in f.tensors:
            row, step = stated.pop((t.file, t.name), None), steps[t.file, t.name]
            if row is None:
                yield f"{t.file}: {t.name}: comes of the source, but the receipt does not name it"
                continue
            ours: dict[str, Any] = {"dtype": t.dtype, "shape": list(t.shape), "offset": t.offset, "nbytes": t.nbytes}
            ours |= {"kind": step.kind, "fidelity": fidelity_of(step, row["changed"])}
            for key, value in ours.items():
                if row[key] != value:
                    yield f"{t.file}: {t.name}: the receipt says {key} {row[key]}, from the source comes {value}"
    for file, name in stated:
        yield f"{file}: {name}: does not come of the source"


def step_of(plan: Plan) -> dict[tuple[str, str], Step]:
    """The step that writes each tensor, by file and name."""
    found = {}
    for slab in plan.slabs:
        step = plan.steps[slab.step]
        found.update({(at.file, at.tensor): step for at in target_ranges(step, slab)})
    return found


def _claims(plan: Plan, receipt: Mapping[str, Any]) -> Iterator[str]:
    """What the receipt says of the whole conversion."""
    used = next((s.recipe for s in plan.steps if s.recipe), None)
    if (asdict(used) if used else None) != receipt["recipe"]:
        says = receipt["recipe"]["name"] if receipt["recipe"] else "none"
        yield f"the receipt says recipe {says}, what is made from the source takes {used.name if used else 'none'}"
    lossy = sum(s.kind is Kind.quantize for s in plan.steps)
    if receipt["options"]["lossless"] and (lossy or any(t["changed"] for t in receipt["tensors"])):
        yield "the receipt says --lossless, but values are lost"
