"""A receipt as it lies beside what was made: found, read, and looked through before anything in it is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from ckpttool.containers.strict_json import Source, read_object
from ckpttool.errors import InputError
from ckpttool.locate import SHARD
from ckpttool.place import RECEIPT_NAME, RECEIPT_SUFFIX

RECEIPT_LIMIT = 256 << 20
EDITED = "the receipt is damaged, or was edited"
"""The hint where a receipt says what no conversion writes."""

Types = Mapping[str, tuple[type, ...]]
FILE_ROW: Types = {"name": (str,), "nbytes": (int,), "crc32": (str,), "sha256": (str, NoneType)}
TENSOR_ROW: Types = {"name": (str,), "file": (str,), "offset": (int,), "nbytes": (int,), "crc32": (str,)}
"""What a receipt says of each file and tensor, as far as every reader needs it."""


def find_receipt(target: Path) -> Path:
    """The receipt of what was converted to `target`. InputError where there is none."""
    return found_receipt(target)[1]


def receipt_nbytes(target: str | Path) -> int:
    """Bytes of all files that the receipt of `target` names. InputError as `verify` raises it."""
    return sum(row["nbytes"] for row in read_receipt(find_receipt(Path(target)))["files"])


def found_receipt(target: Path) -> tuple[Path, Path]:
    """`target`, or what it is a link to, and the receipt that lies there. InputError where there is none."""
    links = [Path(os.path.realpath(target))] if target.is_symlink() else []
    for asked in (target, *links):
        for path in _candidates(asked):
            if path.is_file():
                return asked, path
    if target.is_dir():
        found = sorted(target.glob("*" + RECEIPT_SUFFIX))
        if len(found) == 1:
            return target, found[0]
    text = "has no receipt" if target.exists() else "no such file or folder"
    raise InputError(text, file=str(target), hint=WRITTEN)


WRITTEN = f"convert writes {RECEIPT_NAME} into a folder, NAME.gguf{RECEIPT_SUFFIX} beside a GGUF"


def _candidates(target: Path) -> Iterator[Path]:
    yield target / RECEIPT_NAME
    if not target.name:  # "." and "/" have nothing beside them
        return
    for name in names_beside(target.name):
        yield target.with_name(name)


def names_beside(name: str) -> Iterator[str]:
    """What the receipt of the file `name` may be called; that of a split set has its unsplit name."""
    yield name + RECEIPT_SUFFIX
    if shard := SHARD.fullmatch(name):
        yield f"{shard['stem']}{shard['suffix']}{RECEIPT_SUFFIX}"
    if name.lower().endswith(".json"):
        yield name


def read_receipt(source: Source, name: str | None = None) -> dict[str, Any]:
    """The receipt at a path, or of these bytes, as it stands; its files and tensors are looked through.

    `name` is what errors call it: its path where there is one.

    Raises:
        InputError: it is none of ours, or no conversion writes what it says.
    """
    label = name or str(source)
    receipt = read_object(source, label.rpartition("/")[2], RECEIPT_LIMIT)
    if receipt.get("schema") != "conversion.v1":
        hint = "it may be of a newer ckpttool"
        raise InputError("is no conversion.v1 receipt", file=label, field="schema", hint=hint)
    problem = _problem(receipt)
    if problem:
        raise InputError(problem[1], file=label, field=problem[0], hint=EDITED)
    return receipt


def _problem(receipt: Mapping[str, Any]) -> tuple[str, str] | None:
    """What no receipt of ours says: the field, and what is wrong with it."""
    wrong = wrong_row(receipt, "files", FILE_ROW) or wrong_row(receipt, "tensors", TENSOR_ROW)
    if wrong:
        return wrong, NOT_THERE
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


NOT_THERE = "is missing, or not what a receipt has there"


def wrong_row(table: Mapping[str, Any], key: str, types: Types) -> str | None:
    """The first place in the list `key` where a value is missing or of another kind; numbers are of 63 bits."""
    rows = table.get(key)
    if type(rows) is not list:
        return key
    for i, row in enumerate(rows):
        wrong = wrong_field(row, types)
        if wrong is not None:
            return f"{key}[{i}]{wrong and '.'}{wrong}"
    return None


def wrong_field(row: object, types: Types) -> str | None:
    """The first field of an object that is missing or of another kind, "" where it is none; None where all is well."""
    if type(row) is not dict:
        return ""
    for name, kinds in types.items():
        if name not in row or type(row[name]) not in kinds:
            return name
        if kinds == (int,) and not 0 <= row[name] < 1 << 63:
            return name
    return None
