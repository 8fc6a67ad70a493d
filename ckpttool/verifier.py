"""A finished conversion held against its receipt: sizes, sha256 or CRC-32 of every file, CRC-32 of every tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
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

Types = Mapping[str, tuple[type, ...]]
FILE_ROW: Types = {"name": (str,), "nbytes": (int,), "crc32": (str,), "sha256": (str, NoneType)}
TENSOR_ROW: Types = {"name": (str,), "file": (str,), "offset": (int,), "nbytes": (int,), "crc32": (str,)}
"""What a receipt says of each file and tensor, as far as it is needed here."""


def verify(target: str | Path, *, progress: Progress = lambda nbytes: None) -> Verification:
    """Read every file of the conversion at `target` and compare it with the receipt beside it.

    `target` is the folder, the GGUF (of a split set, any shard, or the name it would have unsplit), a link to one of
    them, or the receipt.

    Raises:
        InputError: there is no receipt, or it is none of ours.
    """
    asked, path = _found(Path(target))
    receipt = read_receipt(path)
    tensors: dict[str, list[Mapping[str, Any]]] = {}
    for t in receipt["tensors"]:
        tensors.setdefault(t["file"], []).append(t)
    findings = list(_unlisted(asked, path, [row["name"] for row in receipt["files"]]))
    nbytes = 0
    for row in receipt["files"]:
        nbytes += row["nbytes"]
        findings += _file_findings(path.parent, row, tensors.get(row["name"], []), progress)
    return Verification(
        "verification.v1", str(target), not findings, len(receipt["files"]), len(receipt["tensors"]), nbytes,
        tuple(findings),
    )  # fmt: skip


def find_receipt(target: Path) -> Path:
    """The receipt of what was converted to `target`. InputError where there is none."""
    return _found(target)[1]


def receipt_nbytes(target: str | Path) -> int:
    """Bytes of all files that the receipt of `target` names. InputError as `verify` raises it."""
    return sum(row["nbytes"] for row in read_receipt(find_receipt(Path(target)))["files"])


def _found(target: Path) -> tuple[Path, Path]:
    """`target`, or what it is a link to, and the receipt that lies there."""
    links = [Path(os.path.realpath(target))] if target.is_symlink() else []
    for asked in (target, *links):
        for path in _candidates(asked):
            if path.is_file():
                return asked, path
    if target.is_dir():
        found = sorted(target.glob("*" + RECEIPT_SUFFIX))
        if len(found) == 1:
            return target, found[0]
    hint = f"convert writes {RECEIPT_NAME} into a folder, NAME.gguf{RECEIPT_SUFFIX} beside a GGUF"
    text = "has no receipt" if target.exists() else "no such file or folder"
    raise InputError(text, file=str(target), hint=hint)


def _candidates(target: Path) -> Iterator[Path]:
    yield target / RECEIPT_NAME
    if not target.name:  # "." and "/" have nothing beside them
        return
    yield target.with_name(target.name + RECEIPT_SUFFIX)
    if shard := SHARD.fullmatch(target.name):
        yield target.with_name(f"{shard['stem']}{shard['suffix']}{RECEIPT_SUFFIX}")
    if target.suffix == ".json":
        yield target


def _unlisted(asked: Path, receipt: Path, names: Sequence[str]) -> Iterator[str]:
    """A finding where the receipt says nothing of the file `asked`: it may be that of a split set of the same name."""
    if asked.name in (receipt.name, *names) or asked.is_dir():
        return
    is_set = not os.path.lexists(asked) and not SHARD.fullmatch(asked.name) and any(map(SHARD.fullmatch, names))
    if not is_set:
        yield f"{asked.name}: not among the files of {receipt.name}"


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt at `path` as it stands, its files and tensors looked through. InputError where it is none of ours."""
    receipt = read_object(path, path.name, RECEIPT_LIMIT)
    if receipt.get("schema") != "conversion.v1":
        hint = "it may be of a newer ckpttool"
        raise InputError("is no conversion.v1 receipt", file=str(path), field="schema", hint=hint)
    problem = _problem(receipt)
    if problem:
        raise InputError(problem[1], file=str(path), field=problem[0], hint="the receipt is damaged, or was edited")
    return receipt


def _problem(receipt: Mapping[str, Any]) -> tuple[str, str] | None:
    """What no receipt of ours says: the field, and what is wrong with it."""
    wrong = _wrong_row(receipt, "files", FILE_ROW) or _wrong_row(receipt, "tensors", TENSOR_ROW)
    if wrong:
        return wrong, "is missing, or not what a receipt has there"
    sizes = {row["name"]: row["nbytes"] for row in receipt["files"]}
    if not sizes or len(sizes) != len(receipt["files"]):
        return "files", "names a file twice" if sizes else "names no file"
    for name in sizes:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"files: {name}", "leaves the folder"
    ends = dict.fromkeys(sizes, 0)
    for t in sorted(receipt["tensors"], key=lambda t: (t["offset"], t["nbytes"])):
        field, file, stop = f"tensors: {t['name']}", t["file"], t["offset"] + t["nbytes"]
        if file not in sizes:
            return field, f"lies in {file}, which is not among the files"
        if stop > sizes[file]:
            return field, f"ends at byte {stop} of {file}, which has {sizes[file]}"
        if t["offset"] < ends[file]:
            return field, f"begins at byte {t['offset']} of {file}, inside another tensor"
        ends[file] = stop
    return None


def _wrong_row(receipt: Mapping[str, Any], key: str, types: Types) -> str | None:
    """The first place in the list `key` where a value is missing or of another kind; numbers are of 63 bits."""
    rows = receipt.get(key)
    if type(rows) is not list:
        return key
    for i, row in enumerate(rows):
        if type(row) is not dict:
            return f"{key}[{i}]"
        for name, kinds in types.items():
            if name not in row or type(row[name]) not in kinds:
                return f"{key}[{i}].{name}"
            if kinds == (int,) and not 0 <= row[name] < 1 << 63:
                return f"{key}[{i}].{name}"
    return None


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
    """The file's sha256 and CRC-32, and the CRC-32 of each tensor, in one pass; no tensor overlaps another."""
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
