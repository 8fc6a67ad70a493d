"""The safetensors container: its header, read strictly, and written as the reference writes it.

8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without holes to the end of the file. The
reference reader lets duplicate names, unknown fields and more pass; here they are errors, because two readers that
choose differently see two different checkpoints. Source: safetensors/src/tensor.rs and the format's README.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ckpttool.containers import limits
from ckpttool.containers.foreign import recognised
from ckpttool.containers.index import Index, parse_index, render_index
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.containers.safetensors_table import DTYPE_BITS, METADATA, OPEN, Entry, TableReader
from ckpttool.containers.source import ReadableFile
from ckpttool.errors import DAMAGED, InputError, LimitError
from ckpttool.tensors import StoredTensor

__all__ = ["DTYPE_BITS", "Header", "Index", "parse", "parse_index", "render", "render_index"]

_RANK: Final = {dtype: i for i, dtype in enumerate(DTYPE_BITS)}


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: `tensors` in file order, `nbytes` its length with the 8 bytes before it, `sha256` of those.

    `indent` bytes of space lie before the header's object, `padding` after it.
    """

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]
    nbytes: int
    sha256: str
    indent: int
    padding: int


def parse(file: ReadableFile, name: str | None = None) -> Header:
    """The header of `file`, every rule of the format checked against the file's size; `name` for the stored tensors.

    InputError with field and offset for whatever is wrong, LimitError for what is larger than we read.
    """
    label = file.name if name is None else name
    table = read_table(file, label)
    ordered = _in_file_order(table.entries, label, table.nbytes, file.size)
    rows = stored(ordered, label, table.nbytes)
    return Header(rows, table.metadata, table.nbytes, table.sha256, table.indent, table.padding)


@dataclass(frozen=True, slots=True)
class Table:
    """A header whose entries each are sound; whether they lie as they must has not been looked at."""

    entries: list[Entry]
    metadata: dict[str, str]
    nbytes: int
    sha256: str
    indent: int
    padding: int


def read_table(file: ReadableFile, label: str) -> Table:
    """The entries of the header of `file`, for whoever looks at damage; `parse` is for everybody else.

    InputError and LimitError as for `parse`.
    """
    head = _read_header(file, label)
    reader = TableReader(head, label)
    reader.run()
    indent, padding = head.index(b"{", 8) - 8, len(head) - reader.end
    return Table(reader.entries, reader.metadata, len(head), hashlib.sha256(head).hexdigest(), indent, padding)


def stored(entries: Iterable[Entry], label: str, start: int) -> tuple[StoredTensor, ...]:
    """Entries as stored tensors; `start` is where the data begins."""
    return tuple(StoredTensor(e.name, e.dtype, e.shape, label, start + e.begin, e.end - e.begin) for e in entries)


def _read_header(file: ReadableFile, label: str) -> bytes:
    """The 8 bytes and the JSON, whose first character is `{`."""
    if file.size < 8:
        raise InputError(
            f"the header length needs 8 bytes, the file has {file.size}", file=label, offset=0, hint="fetch it again"
        )
    n = int.from_bytes(file.read(0, 8), "little")
    if n > file.size - 8 or n > limits.SAFETENSORS_HEADER or n < 2:
        _refuse_foreign(file, label)
    if n < 2:
        raise InputError(f"the header is empty: its length is {n}", file=label, offset=0, hint=DAMAGED)
    if n > limits.SAFETENSORS_HEADER:
        raise InputError(
            f"the header length is {n}, over the format's limit of {limits.SAFETENSORS_HEADER}",
            file=label,
            offset=0,
            hint=limits.hint(limits.SAFETENSORS_HEADER, DAMAGED),
        )
    if n > file.size - 8:
        raise InputError(
            f"the header length is {n}, but only {file.size - 8} bytes follow",
            file=label,
            offset=0,
            hint="the file is cut short or no safetensors; fetch it again",
        )
    head = file.read(0, 8 + n)
    if not OPEN.match(head, 8):
        _refuse_foreign(file, label)
        _refuse_start(head, label)
    return head


def _refuse_foreign(file: ReadableFile, label: str) -> None:
    if found := recognised(file.read(0, min(file.size, 1024))):
        raise InputError(found[0], file=label, offset=0, hint=found[1])


def _refuse_start(head: bytes, label: str) -> None:
    """The header does not begin with an object: why."""
    start = head[8:16]
    if start.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"{\0" in start or b"\0{" in start:
        what = "the header is not plain UTF-8 (a byte order mark, UTF-16 or UTF-32)"
    else:
        what = f"the header must be a JSON object, but begins with {start!r}"
    raise InputError(what, file=label, offset=8, hint=DAMAGED)


def _in_file_order(entries: list[Entry], label: str, start: int, size: int) -> list[Entry]:
    """The entries sorted by place; every byte of the data belongs to exactly one of them."""
    ordered = sorted(entries, key=lambda e: (e.begin, e.end))
    reached, before = 0, "the header"
    for e in ordered:
        if e.begin != reached:
            what = "overlaps" if e.begin < reached else f"leaves a hole of {e.begin - reached} bytes after"
            raise InputError(
                f"begins at byte {e.begin} of the data and {what} {before[:100]!r}, which ends at {reached}",
                file=label,
                field=e.name,
                offset=e.at,
                hint=DAMAGED,
            )
        reached, before = e.end, e.name
    end = start + reached
    if end != size:
        what = f"{end - size} bytes are missing" if end > size else f"{size - end} bytes follow that belong to nothing"
        raise InputError(
            f"the last tensor ends at byte {end}, the file has {size}: {what}",
            file=label,
            field=before if ordered else None,
            offset=min(end, size),
            hint="the file is cut short; fetch it again" if end > size else DAMAGED,
        )
    return ordered


def render(rows: Iterable[Row], metadata: Mapping[str, str], *, name: str = "model.safetensors") -> FileLayout:
    """The file that holds `rows`, as safetensors' own serializer lays it out: by dtype descending, then by name.

    Metadata keep their order (the reference's is random). ValueError for rows that contradict themselves; LimitError
    for a header over the format's limit.
    """
    ordered = sorted(rows, key=lambda r: (-_RANK[r.dtype], r.name))
    table: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offsets = []
    at = 0
    for row in ordered:
        if row.name in table or row.name == METADATA:
            raise ValueError(f"two tensors, or metadata and a tensor, are called {row.name!r}")
        bits = DTYPE_BITS[row.dtype]
        for dim in row.shape:
            bits *= dim
        if bits != row.nbytes * 8:
            raise ValueError(f"{row.name}: {row.dtype} {row.shape} is not {row.nbytes} bytes")
        table[row.name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [at, at + row.nbytes]}
        offsets.append(at)
        at += row.nbytes
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > limits.SAFETENSORS_HEADER:
        raise LimitError(f"its header would be over {limits.SAFETENSORS_HEADER} bytes", file=name)
    header = len(text).to_bytes(8, "little") + text
    tensors = tuple(
        StoredTensor(r.name, r.dtype, r.shape, name, len(header) + o, r.nbytes)
        for r, o in zip(ordered, offsets, strict=True)
    )
    return FileLayout(name, header, tensors, len(header) + at)
