"""The documents that commands give: frozen dataclasses, each with a schema in `schemas/`, and their JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool.errors import InputError, os_error

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


UNUSABLE = "the GPU cannot be used"
"""What `devices_why` begins with where a GPU would have been the better choice."""


@dataclass(frozen=True)
class PlannedFile:
    """A file to write."""

    name: str
    nbytes: int
    tensors: int


@dataclass(frozen=True)
class StepCount:
    """How many steps of one kind and fidelity, and the bytes they write."""

    kind: str
    fidelity: str
    source_format: str
    target_format: str
    steps: int
    nbytes: int


@dataclass(frozen=True)
class PlanReport:
    """What a conversion would do, where, and why there.

    `peak_memory` is in bytes, above that of the interpreter (with torch, where GPUs compute); `gpu_memory` of each GPU.
    """

    schema: str
    source: str
    target: str
    source_dialect: str
    target_dialect: str
    recipe: Mapping[str, Any] | None
    files: tuple[PlannedFile, ...]
    sidecars: tuple[PlannedFile, ...]
    nbytes: int
    steps: tuple[StepCount, ...]
    fidelity: Mapping[str, int]
    devices: tuple[str, ...]
    devices_why: str
    workers: int
    slabs: int
    peak_memory: int
    gpu_memory: int
    assumed: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class TensorReceipt:
    """A stored tensor that was written: its CRC-32 and what came of its values."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    crc32: str
    kind: str
    fidelity: str
    changed: int


@dataclass(frozen=True)
class FileReceipt:
    """A file that was written; `sha256` is None where the read-back was left out."""

    name: str
    nbytes: int
    crc32: str
    sha256: str | None


@dataclass(frozen=True)
class Conversion:
    """The receipt of a finished conversion."""

    schema: str
    tool: Mapping[str, str]
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    recipe: Mapping[str, Any] | None
    files: tuple[FileReceipt, ...]
    tensors: tuple[TensorReceipt, ...]
    fidelity: Mapping[str, int]
    assumed: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    verified: bool
    run: Mapping[str, Any]
    plan: str


_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def read_conversion(path: Path) -> Conversion:
    """The receipt at `path`.

    Raises:
        InputError: there is none, or it is not as `dump` writes it.
        LocalIOError: what the system refuses.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
        files = tuple(FileReceipt(**row) for row in value.pop("files"))
        tensors = tuple(TensorReceipt(**{**row, "shape": tuple(row["shape"])}) for row in value.pop("tensors"))
        assumed, notes = tuple(value.pop("assumed")), tuple(value.pop("notes"))
        return Conversion(files=files, tensors=tensors, assumed=assumed, notes=notes, **value)
    except (*_NO_FILE, ValueError, TypeError, KeyError, AttributeError) as e:
        raise InputError("is no receipt", file=str(path), hint="give the checkpoint that was converted") from e
    except OSError as e:
        raise os_error(e) from e


@dataclass(frozen=True)
class CheckedFile:
    """A file that was held against the receipt, and `by` what: "hub", the sha256 by which the Hub lists it; "sha256" or
    "crc32" of what was read. None where it was not compared: it is missing, of another size, or has no hash.
    """

    name: str
    nbytes: int
    by: str | None
    ok: bool


@dataclass(frozen=True)
class Derivation:
    """What of a conversion was held against its source, beside the layout and header of every file.

    `slabs` are all there are, `compared` those that were converted again, `nbytes` what they write, `steps` how many
    of them by kind of step.
    """

    source: str
    side_files: int
    slabs: int
    compared: int
    nbytes: int
    steps: Mapping[str, int]


@dataclass(frozen=True)
class Verification:
    """Whether a finished conversion still is what its receipt says, and where its source was given, what that gives.

    `commit` is a repo's; `unlisted` are files beside it that the receipt does not name and no loader reads.
    `derivation` is None where no source was given, or it was not come to.
    """

    schema: str
    target: str
    ok: bool
    files: int
    tensors: int
    nbytes: int
    findings: tuple[str, ...]
    commit: str | None = None
    checked: tuple[CheckedFile, ...] = ()
    unlisted: tuple[str, ...] = ()
    derivation: Derivation | None = None
    notes: tuple[str, ...] = ()


def document(report: DataclassInstance) -> dict[str, Any]:
    """A report, which is a frozen dataclass with a `schema`, as plain JSON values under that schema's id."""
    out: dict[str, Any] = _plain(report)
    return {"schema": out.pop("schema"), **out}


def _plain(value: Any) -> Any:
    """What `dataclasses.asdict` gives, in a third of the time: leaves are numbers and texts, which need no copies."""
    if isinstance(value, _LEAVES):
        return value
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    if isinstance(value, Mapping):
        return {k: _plain(x) for k, x in value.items()}
    cls: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in _names(cls)}


_LEAVES = (str, int, float, type(None))


@cache
def _names(report: Any) -> tuple[str, ...]:
    """The fields of a dataclass, in order."""
    return tuple(f.name for f in fields(report))


def dump(report: DataclassInstance) -> str:
    """The report as JSON text."""
    return json_text(document(report))


def json_text(value: Mapping[str, Any], encoding: str = "utf-8", *, rows: bool = False) -> str:
    """Indented JSON that `encoding` can write; what it cannot stands escaped, and so does what terminals obey.

    With `rows` each item of a list at the top is one line, which is half as long where there are thousands.
    """
    text = _rows(value) if rows else json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    text = _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        whole = _whole(value)
        return _rows(whole, ensure_ascii=True) if rows else json.dumps(whole, indent=1) + "\n"
    return text


_OBEYED = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Control and bidi characters that JSON lets stand; they lie in strings, since nowhere else may there be any."""


def _rows(value: Mapping[str, Any], *, ensure_ascii: bool = False) -> str:
    encode = json.JSONEncoder(ensure_ascii=ensure_ascii, separators=(",", ":")).encode
    lines = []
    for key, item in value.items():
        text = encode(item)
        if isinstance(item, list) and item:
            text = "[\n  " + ",\n  ".join(map(encode, item)) + "\n ]"
        lines.append(f" {encode(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _whole(value: Any) -> Any:
    """`value` without the halves of surrogate pairs by which Python stands for a path's bytes that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_whole(k): _whole(v) for k, v in value.items()}
    return [_whole(v) for v in value] if isinstance(value, list | tuple) else value


def error_document(error: BaseException) -> dict[str, Any]:
    """`error.v1`: every problem with its place, its hint and the exit code."""
    problems = getattr(error, "problems", (error,))
    rows = [
        {
            "kind": getattr(e, "kind", "internal"),
            "message": getattr(e, "message", f"{type(e).__name__}: {e}"),
            "file": getattr(e, "file", None),
            "field": getattr(e, "field", None),
            "offset": getattr(e, "offset", None),
            "hint": getattr(e, "hint", None),
        }
        for e in problems
    ]
    return {"schema": "error.v1", "exit_code": getattr(error, "exit_code", 70), "errors": rows}
