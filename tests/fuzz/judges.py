"""What holds of every file, good or bad: a judge for each parser, which raises nothing but for a defect.

A refusal is one of our errors, and says where; what is accepted keeps the format's rules, looked at from the outside.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from memory_file import NAME, MemoryFile, from_afar

from ckpttool.archs import tokenizer_json
from ckpttool.archs.tokenizer_json import read_tokenizer
from ckpttool.containers import gguf, limits, safetensors
from ckpttool.containers.ggml_types import GGML_TYPES
from ckpttool.containers.index import parse_index
from ckpttool.containers.layout import Row
from ckpttool.containers.source import LocalFile
from ckpttool.containers.strict_json import parse_object
from ckpttool.errors import CkptError, InputError, LimitError

Verdict = Any
"""A header, or whatever else was read; or the CkptError that refuses the file."""


def of_safetensors(data: bytes | bytearray) -> Verdict:
    file = MemoryFile(data)
    try:
        header = safetensors.parse(file)
    except CkptError as error:
        return _refused(error, file)
    reached = header.nbytes
    for t in header.tensors:
        assert t.offset == reached, t
        assert t.nbytes * 8 == prod(t.shape) * safetensors.DTYPE_BITS[t.dtype], t
        reached += t.nbytes
    assert reached == len(data)
    assert header.nbytes == 8 + int.from_bytes(data[:8], "little")
    assert len({t.name for t in header.tensors}) == len(header.tensors)
    assert file.taken <= len(data) + 4096, "more is read than there is"
    return header


def of_gguf(data: bytes | bytearray) -> Verdict:
    file = MemoryFile(data)
    try:
        header = gguf.parse(file)
    except CkptError as error:
        return _refused(error, file)
    a = header.alignment
    assert a & (a - 1) == 0 < a <= limits.GGUF_ALIGNMENT
    reached = header.nbytes
    end = len(data) - header.trailing
    assert reached % a == 0
    for t in header.tensors:
        kind = GGML_TYPES[t.dtype]
        assert t.offset == reached, t
        assert t.nbytes * kind.elements == prod(t.shape) * kind.nbytes, t
        end = t.offset + t.nbytes
        reached = -(-end // a) * a
        assert len(t.shape) <= 4, t
    assert end <= len(data)
    assert header.trailing == max(0, len(data) - reached)
    assert len({t.name for t in header.tensors}) == len(header.tensors)
    for value in header.metadata.values():
        if isinstance(value, gguf.Array):
            _array(value)
    assert file.taken <= 3 * len(data) + 4096, "much more is read than there is"
    return header


def _array(value: gguf.Array) -> None:
    """As many values as it says, and no other error than of text that is not UTF-8."""
    try:
        n = sum(1 for _ in value)
    except InputError as error:
        assert error.field == value.key
    else:
        assert n == len(value)
    if value.type is gguf.ValueType.string:
        assert sum(8 + len(raw) for raw in value.raw()) == len(value.data)


def _refused(error: CkptError, file: MemoryFile) -> CkptError:
    assert error.file == NAME, error
    if type(error) is InputError:
        assert error.hint, error
        assert error.offset is not None, error
        assert 0 <= error.offset <= file.size, (error, error.offset)
    else:
        assert type(error) is LimitError, error
    return error


def of_index(data: bytes) -> Verdict:
    try:
        index = parse_index(data, NAME)
    except CkptError as error:
        return error
    theirs = json.loads(data.decode())
    assert index.weight_map == theirs["weight_map"]
    for name in index.weight_map.values():
        assert name.endswith(".safetensors")
        assert not set(name) & set("/\\\0")
    total = (theirs.get("metadata") or {}).get("total_size")
    assert index.total_size == total
    return index


def of_json(data: bytes) -> Verdict:
    try:
        value = parse_object(data.decode(), NAME)
    except UnicodeDecodeError:
        return None
    except CkptError as error:
        return error
    assert value == json.loads(data)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def of_tokenizer(data: bytes) -> Verdict:
    """Read in runs, short or long, it says what Python's json says of all at once."""
    found = _verdict(lambda: read_tokenizer(data, NAME))
    run, tokenizer_json.RUN = tokenizer_json.RUN, 8
    try:
        short = _verdict(lambda: read_tokenizer(data, NAME))
    finally:
        tokenizer_json.RUN = run
    if isinstance(found, CkptError):
        assert isinstance(short, CkptError)  # of several faults it may see another first
        return found
    assert short == found
    theirs = json.loads(data.decode())
    model = theirs["model"]
    vocab, merges = model.pop("vocab"), model.pop("merges")
    assert (found.vocab, found.rest) == (vocab, theirs)
    lines = [m if type(m) is str else " ".join(part.replace(" ", "\u0120") for part in m) for m in merges]
    assert found.merge_count == len(lines)
    assert found.merges == gguf.string_array(lines).data
    return found


JUDGES: dict[str, Callable[[bytes], Verdict]] = {
    "safetensors": of_safetensors,
    "gguf": of_gguf,
    "index": of_index,
    "json": of_json,
    "tokenizer": of_tokenizer,
}


# What takes longer, of some files


def look_closer(container: str, data: bytes, verdict: Verdict) -> None:
    """The error's text, or the header rendered anew; from a disk, from afar and in small windows it is the same."""
    parse = {"safetensors": safetensors.parse, "gguf": gguf.parse}[container]
    if isinstance(verdict, CkptError):
        readable(verdict)
    else:
        assert verdict.sha256 == hashlib.sha256(data[: verdict.nbytes]).hexdigest()
        _rendered(container, verdict)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        with LocalFile(file.name, NAME) as local:
            assert _same(_verdict(lambda: parse(local)), verdict), data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "REMOTE_FIRST", 40)
        patch.setattr(limits, "REMOTE_GGUF", range(40, 1 << 15, 40))
        patch.setattr(limits, "REMOTE_REQUESTS", 1 << 20)
        assert _same(_verdict(lambda: from_afar(parse, data)), verdict), data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "READ_WINDOW", 24)
        assert _same(_verdict(lambda: parse(MemoryFile(data))), verdict), data


def readable(error: CkptError) -> None:
    """One line, neither long nor with characters that terminals obey."""
    text = str(error)
    assert len(text) <= 2048
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], ascii(text)


def _verdict(parse: Callable[[], Any]) -> Verdict:
    try:
        return parse()
    except CkptError as error:
        return error


def _same(one: Verdict, other: Verdict) -> bool:
    if isinstance(one, CkptError):
        return isinstance(other, CkptError) and str(one) == str(other)
    return bool(one == other)


def _rendered(container: str, header: Any) -> None:
    """Written from what was read, and read again, it is the same."""
    rows = [Row(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors]
    if container == "safetensors":
        layout = safetensors.render(rows, header.metadata)
        again: Any = safetensors.parse(MemoryFile(layout.header + bytes(layout.size - len(layout.header))))
        rows = sorted(rows, key=lambda r: r.name)
        found = sorted((Row(t.name, t.dtype, t.shape, t.nbytes) for t in again.tensors), key=lambda r: r.name)
    else:
        layout = gguf.render(rows, header.metadata, alignment=header.alignment)
        again = gguf.parse(MemoryFile(layout.header + bytes(layout.size - len(layout.header))))
        found = [Row(t.name, t.dtype, t.shape, t.nbytes) for t in again.tensors]
    assert found == rows
    assert repr(again.metadata) == repr(header.metadata)  # NaN is not itself
    assert list(again.metadata.values()) == list(header.metadata.values()) or "nan" in repr(header.metadata)


def place(error: CkptError) -> tuple[str, int]:
    """Where in our code the error was raised: file and line."""
    trace: TracebackType | None = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
