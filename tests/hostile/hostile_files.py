"""Builders of broken files, and the one check that every refusal must pass."""

from __future__ import annotations

import json
import struct
import tracemalloc
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpttool.errors import CkptError, InputError

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A broken file, and what the error must say."""

    id: str
    data: bytes
    says: str
    kind: type[CkptError] = InputError


def refuses(case: Case, path: Path, parse: Callable[[Path], object]) -> CkptError:
    """`parse` refuses the case with a good error, in little memory; the error."""
    path.write_bytes(case.data)
    tracemalloc.start()
    try:
        with pytest.raises(CkptError) as caught:
            parse(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    error = caught.value
    text = str(error)
    assert type(error) is case.kind, text
    assert case.says in text, text
    assert error.file == path.name, text
    assert error.hint or case.kind is not InputError, "an error without a hint"
    assert len(text) <= 2048
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], ascii(text)
    assert peak < 2 * MIB + 16 * len(case.data), f"{peak} bytes for a file of {len(case.data)}"
    return error


# safetensors


def st(header: Any, data: bytes = b"", n: int | None = None) -> bytes:
    """A file of this header (bytes as they are, anything else as JSON) and data; `n` in place of the true length."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text) if n is None else n) + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """One tensor's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(**changes: Any) -> bytes:
    """A file of one tensor `a` of four bytes, its entry changed."""
    return st({"a": entry(**changes)}, bytes(4))


def raw_entry(text: str, data: bytes = bytes(4)) -> bytes:
    """A file of one tensor `a` whose entry is this text."""
    return st(b'{"a":' + text.encode() + b"}", data)


# GGUF

STRUCTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def gstr(text: str | bytes, n: int | None = None) -> bytes:
    """A string; `n` in place of its true length."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if n is None else n) + data


def kv(key: str | bytes, kind: int, value: Any = 0) -> bytes:
    """A key-value; `value` as bytes is taken as it is, strings are packed."""
    if isinstance(value, str):
        value = gstr(value)
    packed = value if isinstance(value, bytes) else struct.pack(f"<{STRUCTS[kind]}", value)
    return gstr(key) + struct.pack("<I", kind) + packed


def arr(key: str, kind: int, count: int, data: bytes = b"") -> bytes:
    """An array."""
    return kv(key, 9, struct.pack("<IQ", kind, count) + data)


def info(name: str | bytes = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """A row of the table of tensors; `dims` in the file's order."""
    return gstr(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    kvs: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    magic: bytes = b"GGUF",
) -> bytes:
    """A file of these pieces; `n_kv`, `n_tensors` in place of the true counts."""
    head = magic + struct.pack(
        "<IQQ", version, len(infos) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv
    )
    head += b"".join(kvs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data
