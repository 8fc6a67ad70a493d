"""A finished conversion held against its receipt: sizes, sha256 or CRC-32 of every file, CRC-32 of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ckpttool.containers.source import LocalFile
from ckpttool.containers.strict_json import read_object
from ckpttool.crc import crc32
from ckpttool.errors import InputError
from ckpttool.locate import SHARD
from ckpttool.place import RECEIPT_NAME, RECEIPT_SUFFIX
from ckpttool.reports import Verification

CHUNK = 4 << 20
RECEIPT_LIMIT = 256 << 20

Progress = Callable[[int], None]


def verify(target: str | Path, *, progress: Progress = lambda nbytes: None) -> Verification:
    """Read every file of the conversion at `target` and compare it with the receipt beside it.

    `target` is the folder, the GGUF (of a split set, any shard, or the name it would have unsplit), or the receipt.

    Raises:
        InputError: there is no receipt, or it is none of ours.
    """
    path = find_receipt(Path(target))
    receipt = _read(path)
    tensors: dict[str, list[Mapping[str, Any]]] = {}
    for t in receipt["tensors"]:
        tensors.setdefault(t["file"], []).append(t)
    findings: list[str] = []
    nbytes = 0
    for row in receipt["files"]:
        nbytes += row["nbytes"]
        findings += _file_findings(path.parent, row, tensors.get(row["name"], []), progress)
    return Verification(
        "verification.v1", str(target), not findings, len(receipt["files"]), len(receipt["tensors"]), nbytes,
        tuple(findings),
    )  # fmt: skip


def find_receipt(target: Path) -> Path:
    """The receipt of what was converted to `target`."""
    shard = SHARD.fullmatch(target.name)
    candidates = [
        target / RECEIPT_NAME,
        target.with_name(target.name + RECEIPT_SUFFIX),
        *([target.with_name(f"{shard['stem']}{shard['suffix']}{RECEIPT_SUFFIX}")] if shard else []),
        *([target] if target.suffix == ".json" else []),
    ]
    for path in candidates:
        if path.is_file():
            return path
    if target.is_dir():
        found = sorted(target.glob("*" + RECEIPT_SUFFIX))
        if len(found) == 1:
            return found[0]
    hint = f"convert writes {RECEIPT_NAME} into a folder, NAME.gguf{RECEIPT_SUFFIX} beside a GGUF"
    text = "has no receipt" if target.exists() else "no such file or folder"
    raise InputError(text, file=str(target), hint=hint)


def _read(path: Path) -> dict[str, Any]:
    receipt = read_object(path, path.name, RECEIPT_LIMIT)
    if receipt.get("schema") != "conversion.v1":
        hint = "it may be of a newer ckpttool"
        raise InputError("is no conversion.v1 receipt", file=str(path), field="schema", hint=hint)
    try:
        for row in receipt["files"]:
            _check_row(row, {"name": str, "nbytes": int, "crc32": str})
            if type(row["sha256"]) not in (str, type(None)):
                raise TypeError("sha256")
            if Path(row["name"]).is_absolute() or ".." in Path(row["name"]).parts:
                field, hint = f"files: {row['name']}", "the receipt is damaged or hostile"
                raise InputError("leaves the folder", file=path.name, field=field, hint=hint)
        for t in receipt["tensors"]:
            _check_row(t, {"name": str, "file": str, "offset": int, "nbytes": int, "crc32": str})
    except (KeyError, TypeError) as e:
        text = f"lacks {e}, or says it otherwise"
        raise InputError(text, file=str(path), hint="the receipt is damaged") from e
    return receipt


def _check_row(row: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """TypeError or KeyError, with the key's name, unless `row` has these keys; numbers are not negative."""
    for key, kind in types.items():
        if type(row[key]) is not kind or (kind is int and row[key] < 0):
            raise TypeError(key)


def _file_findings(
    folder: Path, row: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], progress: Progress
) -> Iterator[str]:
    name = row["name"]
    if not (folder / name).is_file():
        yield f"{name}: missing"
        return
    with LocalFile(folder / name, name) as f:
        if f.size != row["nbytes"]:
            yield f"{name}: {f.size} bytes, the receipt says {row['nbytes']}"
            return
        sha256, crc, crcs = _hashes(f, tensors, progress)
    bad = [t["name"] for t, found in zip(tensors, crcs, strict=True) if t["crc32"] != f"{found:08x}"]
    for tensor in bad:
        yield f"{name}: {tensor}: its bytes have changed"
    if row["sha256"] is not None and row["sha256"] != sha256 and not bad:
        yield f"{name}: sha256 differs, outside the tensors"
    elif row["sha256"] is None and row["crc32"] != f"{crc:08x}" and not bad:
        yield f"{name}: CRC-32 differs, outside the tensors"


def _hashes(file: LocalFile, tensors: Sequence[Mapping[str, Any]], progress: Progress) -> tuple[str, int, list[int]]:
    """The file's sha256 and CRC-32, and the CRC-32 of each tensor, in one pass; tensors may not overlap."""
    digest, whole = hashlib.sha256(), 0
    crcs = [0] * len(tensors)
    buffer = np.empty(CHUNK, np.uint8)
    ordered = sorted(range(len(tensors)), key=lambda i: tensors[i]["offset"])
    at = 0
    for i in [*ordered, None]:
        stop = file.size if i is None else tensors[i]["offset"] + tensors[i]["nbytes"]
        start = stop if i is None else tensors[i]["offset"]
        while at < stop:
            edge = start if at < start else stop
            view = buffer[: min(CHUNK, edge - at)].data
            file.readinto(at, view)
            digest.update(view)
            whole = crc32(view, whole)
            if i is not None and at >= start:
                crcs[i] = crc32(view, crcs[i])
            at += view.nbytes
            progress(view.nbytes)
    return digest.hexdigest(), whole, crcs


def receipt_nbytes(target: str | Path) -> int:
    """Bytes of all files that the receipt of `target` names. InputError as `verify` raises it."""
    return sum(row["nbytes"] for row in _read(find_receipt(Path(target)))["files"])
