"""The GGUF container: its header, read as strictly as llama.cpp reads it, and written as gguf-py writes it.

Magic, version, counts, key-values, table of tensors, zeros to the alignment, then the tensors, each padded. Source:
ggml/src/gguf.cpp for what a file may be, gguf-py's GGUFWriter for the bytes we write.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ckpttool.containers import limits
from ckpttool.containers.foreign import recognised
from ckpttool.containers.ggml_types import GGML_TYPES
from ckpttool.containers.gguf_reader import CUT, HeaderReader, Info
from ckpttool.containers.gguf_values import (
    U32,
    U64,
    Array,
    Scalar,
    Value,
    ValueType,
    bool_,
    f32,
    f32_array,
    i32,
    i32_array,
    string,
    string_array,
    u16,
    u32,
)
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.containers.source import ReadableFile
from ckpttool.errors import DAMAGED, InputError
from ckpttool.tensors import StoredTensor

__all__ = [
    "Array",
    "Header",
    "Scalar",
    "Value",
    "ValueType",
    "bool_",
    "f32",
    "f32_array",
    "i32",
    "i32_array",
    "parse",
    "render",
    "string",
    "string_array",
    "u16",
    "u32",
]

MAGIC: Final = b"GGUF"
VERSION: Final = 3
ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = "general.alignment"
_PREAMBLE: Final = struct.Struct("<4sIQQ")


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: `nbytes` up to the data's start, `sha256` of those bytes; `trailing` bytes after the data."""

    version: int
    alignment: int
    metadata: dict[str, Value]
    tensors: tuple[StoredTensor, ...]
    nbytes: int
    sha256: str
    trailing: int


def parse(file: ReadableFile, name: str | None = None) -> Header:
    """The header of `file`, every rule checked against the file's size; `name` for the stored tensors.

    The last tensor's padding may be missing. InputError with field and offset for whatever is wrong, LimitError for
    what is larger than we read.
    """
    label = file.name if name is None else name
    table = read_table(file, label)
    start, alignment = table.nbytes, table.alignment
    tensors, end = _placed(table.infos, start, alignment, label, file.size)
    trailing = max(0, file.size - padded(end, alignment))
    sha256 = _sha256(file, min(start, file.size))
    return Header(table.version, alignment, table.metadata, tensors, start, sha256, trailing)


@dataclass(frozen=True, slots=True)
class Table:
    """A header whose rows each are sound; whether they lie as they must has not been looked at."""

    version: int
    alignment: int
    metadata: dict[str, Value]
    infos: list[Info]
    nbytes: int


def read_table(file: ReadableFile, label: str) -> Table:
    """The key-values and rows of the header of `file`, for whoever looks at damage; `parse` is for everybody else.

    InputError and LimitError as for `parse`.
    """
    version = _version(file, label)
    reader = HeaderReader(file, label)
    _, _, n_tensors, n_kv = reader.take(_PREAMBLE)
    metadata = reader.key_values(n_kv)
    alignment = _alignment(metadata, label, reader.places.get(ALIGNMENT_KEY))
    infos = reader.tensors(n_tensors)
    return Table(version, alignment, metadata, infos, padded(reader.at, alignment))


def padded(n: int, alignment: int) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def _version(file: ReadableFile, label: str) -> int:
    """The version, once magic and version are ones that we read."""
    head = file.read(0, min(file.size, 1024))
    if head[:4] == b"FUGG" or (head[:4] == MAGIC and len(head) >= 8 and head[4:6] == b"\0\0" and any(head[6:8])):
        raise InputError(
            "is big-endian",
            file=label,
            offset=4,
            hint="swap a copy of it with the gguf package: gguf-convert-endian FILE little",
        )
    if head[:4] != MAGIC:
        what, hint = f"is no GGUF: it begins with {head[:4]!r}", "give a GGUF file"
        if found := recognised(head):
            what, hint = found
        elif head[8:9] == b"{" and not any(head[5:8]):
            what, hint = "this is a safetensors file", "give it a name that ends in .safetensors"
        raise InputError(what, file=label, offset=0, hint=hint)
    if len(head) < _PREAMBLE.size:
        raise InputError(
            f"the header needs {_PREAMBLE.size} bytes, the file has {file.size}", file=label, offset=len(head), hint=CUT
        )
    version = int.from_bytes(head[4:8], "little")
    if version not in (2, 3):
        hint = "make the file again with today's llama.cpp" if version == 1 else DAMAGED
        raise InputError(f"is GGUF version {version}; 2 and 3 are read", file=label, offset=4, hint=hint)
    return version


def _alignment(metadata: Mapping[str, Value], label: str, at: int | None) -> int:
    """The alignment that the key-values declare, `at` this place of the file; ggml's own where they do not."""
    value = metadata.get(ALIGNMENT_KEY)
    if value is None:
        return ALIGNMENT
    n = int(value.value) if isinstance(value, Scalar) and value.type is ValueType.u32 else 0
    is_power = n >= 1 and not n & (n - 1)
    if not is_power or n > limits.GGUF_ALIGNMENT:
        raise InputError(
            f"must be a power of two from 1 to {limits.GGUF_ALIGNMENT}, as u32",
            file=label,
            field=ALIGNMENT_KEY,
            offset=at,
            hint=limits.hint(limits.GGUF_ALIGNMENT, DAMAGED) if is_power else DAMAGED,
        )
    return n


def _placed(
    infos: list[Info], start: int, alignment: int, label: str, size: int
) -> tuple[tuple[StoredTensor, ...], int]:
    """The tensors at their absolute offsets, and where the last ends: without gap, overlap or another order."""
    expected = 0
    end = start
    found = []
    for info in infos:
        if info.offset != expected:
            raise InputError(
                f"offset {info.offset} must be {expected}: tensors lie one after the other",
                file=label,
                field=info.name,
                offset=info.at,
                hint="llama.cpp refuses such a file too; make it again",
            )
        end = start + expected + info.nbytes
        if end > size:
            raise InputError(
                f"ends at byte {end}, the file at {size}: {end - size} bytes are missing",
                file=label,
                field=info.name,
                offset=info.at,
                hint=CUT,
            )
        shape = tuple(reversed(info.dims))
        found.append(StoredTensor(info.name, info.type.name, shape, label, start + expected, info.nbytes))
        expected = padded(expected + info.nbytes, alignment)
    return tuple(found), end


def _sha256(file: ReadableFile, n: int) -> str:
    """Of the first `n` bytes, read in windows, so that a header is never held twice."""
    digest = hashlib.sha256()
    for at in range(0, n, limits.READ_WINDOW):
        digest.update(file.read(at, min(limits.READ_WINDOW, n - at)))
    return digest.hexdigest()


def render(
    rows: Iterable[Row], metadata: Mapping[str, Value], *, name: str = "model.gguf", alignment: int = ALIGNMENT
) -> FileLayout:
    """The file that holds `rows` and `metadata`, in their order, as gguf-py's GGUFWriter lays it out (version 3).

    Every dimension is kept, the last tensor is padded. (GGUFWriter leaves out empty strings and arrays; that is the
    caller's business.) ValueError for rows that contradict themselves and for an `alignment` that `metadata` denies.
    """
    rows = tuple(rows)
    declared = metadata.get(ALIGNMENT_KEY, u32(ALIGNMENT))
    if declared != u32(alignment):
        raise ValueError(f"alignment {alignment}, but {ALIGNMENT_KEY} says {declared}")
    if len({r.name for r in rows}) != len(rows):
        raise ValueError("two tensors share a name")
    pieces = [_PREAMBLE.pack(MAGIC, VERSION, len(rows), len(metadata))]
    for key, value in metadata.items():
        pieces.append(_string(key))
        if isinstance(value, Array):
            pieces += [U32.pack(ValueType.array), value.packed(), value.data]
        else:
            pieces += [U32.pack(value.type), value.packed()]
    offsets = []
    at = 0
    for row in rows:
        pieces.append(_info(row, at))
        offsets.append(at)
        at += padded(row.nbytes, alignment)
    n = sum(map(len, pieces))
    start = padded(n, alignment)
    pieces.append(bytes(start - n))
    tensors = tuple(
        StoredTensor(r.name, r.dtype, r.shape, name, start + o, r.nbytes) for r, o in zip(rows, offsets, strict=True)
    )
    return FileLayout(name, b"".join(pieces), tensors, start + at)


def _string(text: str) -> bytes:
    data = text.encode()
    return U64.pack(len(data)) + data


def _info(row: Row, offset: int) -> bytes:
    """One row of the table of tensors. ValueError for a shape or size that the type does not allow."""
    kind = GGML_TYPES[row.dtype]
    elements = 1
    for dim in row.shape:
        elements *= dim
    last = row.shape[-1] if row.shape else 1
    if last % kind.elements or elements // kind.elements * kind.nbytes != row.nbytes:
        raise ValueError(f"{row.name}: {row.dtype} {row.shape} is not {row.nbytes} bytes")
    if len(row.shape) > limits.GGUF_DIMS or not 1 <= len(row.name.encode()) <= limits.GGUF_NAME:
        raise ValueError(f"{row.name}: more dimensions or a longer name than GGUF allows")
    dims = struct.pack(f"<I{len(row.shape)}Q", len(row.shape), *reversed(row.shape))
    return _string(row.name) + dims + struct.pack("<IQ", kind.id, offset)
