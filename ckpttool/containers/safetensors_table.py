"""The JSON of a safetensors header, one tensor at a time.

Each entry is decoded alone, so that neither nesting nor size can grow; one regular expression reads what every known
writer writes, and the decoder takes any other legal JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

from ckpttool.containers import limits
from ckpttool.containers.strict_json import DECODER, UntrustedError, has_surrogate, utf8
from ckpttool.errors import DAMAGED, InputError, LimitError

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, in the reference's order, by which it sorts a file."""

METADATA: Final = "__metadata__"

_STRING = rb'"((?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+)"'
_WS = rb"[ \t\n\r]*+"
_KEY: Final = re.compile(_WS + _STRING + _WS + rb":" + _WS)
_VALUE: Final = re.compile(_STRING + _WS + rb"([,}])")
_NEXT: Final = re.compile(_WS + rb"([,}])")
OPEN: Final = re.compile(_WS + rb"\{")
_SPACE: Final = re.compile(_WS)
_PADDING: Final = re.compile(rb" *+")
_N = rb"(?:0|[1-9][0-9]{0,19}+)"
_ENTRY: Final = re.compile(
    rb'\{"dtype": ?+"(\w+)", ?+"shape": ?+\[(|N(?:, ?+N){0,63}+)\], ?+"data_offsets": ?+\[(N), ?+(N)\]\}'.replace(
        b"N", _N
    )
    + _WS
    + rb"([,}])"
)
"""A tensor as the reference writes it, or Python's json: the fast way. Any other JSON goes through the decoder."""


class Entry(NamedTuple):
    """One tensor of the table, not yet believed: `begin`, `end` from the data's start; `at` is where it says so."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    at: int


class TableReader:
    """One pass over the header's bytes; each tensor is decoded alone, so that no nesting and no size can grow."""

    def __init__(self, head: bytes, label: str) -> None:
        self.head = head
        self.label = label
        self.entries: list[Entry] = []
        self.metadata: dict[str, str] = {}
        self.keys: dict[str, int] = {}
        self.end = 0

    def run(self) -> None:
        """Fill `entries` and `metadata`, and say where the object ends."""
        _require_utf8(self.head, self.label)
        pos = self.head.index(b"{", 8) + 1
        empty = _NEXT.match(self.head, pos)
        if empty and empty[1] == b"}":
            return self._finish(empty.end())
        separator = b","
        while separator == b",":
            key, pos = self._key(pos, self.keys, limits.TENSORS, "tensors")
            if key == METADATA:
                separator, pos = self._metadata(pos)
            else:
                separator, pos = self._tensor(key, pos)
        return self._finish(pos)

    def _fault(self, message: str, at: int, name: str | None = None, hint: str = DAMAGED) -> InputError:
        return InputError(message, file=self.label, field=name, offset=at, hint=hint)

    def _over(self, limit: int, message: str, at: int, name: str) -> InputError:
        return self._fault(message, at, name, limits.hint(limit, DAMAGED))

    def _finish(self, pos: int) -> None:
        """Only spaces may follow the object."""
        self.end = pos
        padding = _PADDING.match(self.head, pos)
        at = padding.end() if padding else pos
        if at < len(self.head):
            raise self._fault(f"only spaces may follow the header's object, not {self.head[at : at + 1]!r}", at)

    def _key(self, pos: int, seen: dict[str, int], limit: int, what: str) -> tuple[str, int]:
        """The key at `pos`, new in `seen`, and where its value begins."""
        found = _KEY.match(self.head, pos)
        if not found:
            raise self._json_fault(pos, "expected a name in double quotes and a colon")
        key = self._text(found[1], found.start(1) - 1)
        at = found.start(1) - 1
        if key in seen:
            raise self._fault(f"duplicate name (first at byte {seen[key]})", at, key)
        if len(seen) >= limit:
            more = limits.hint(limit, "is it really a checkpoint?")
            raise LimitError(f"more than {limit} {what} in one header", file=self.label, offset=at, hint=more)
        seen[key] = at
        return key, found.end()

    def _text(self, raw: bytes, at: int) -> str:
        """What a JSON string between its quotes says."""
        text = raw.decode()
        if "\\" in text:
            text = scanstring(text + '"', 0)[0]
            if has_surrogate(text):
                raise self._fault("a string holds half a surrogate pair", at)
        return text

    def _metadata(self, pos: int) -> tuple[bytes, int]:
        """`__metadata__`: an object of strings."""
        opening = OPEN.match(self.head, pos)
        if not opening:
            raise self._fault("must be an object of strings", pos, METADATA)
        pos = opening.end()
        seen: dict[str, int] = {}
        empty = _NEXT.match(self.head, pos)
        separator, pos = (b"}", empty.end()) if empty and empty[1] == b"}" else (b",", pos)
        while separator == b",":
            key, pos = self._key(pos, seen, limits.SAFETENSORS_METADATA, "metadata entries")
            value = _VALUE.match(self.head, pos)
            if not value:
                raise self._fault("the value must be a string", pos, f"{METADATA}.{key}")
            self.metadata[key] = self._text(value[1], pos)
            separator, pos = value[2], value.end()
        return self._separator(pos)

    def _separator(self, pos: int) -> tuple[bytes, int]:
        found = _NEXT.match(self.head, pos)
        if not found:
            raise self._json_fault(pos, "expected a comma or the closing brace")
        return found[1], found.end()

    def _json_fault(self, pos: int, expected: str) -> InputError:
        space = _SPACE.match(self.head, pos)
        at = space.end() if space else pos
        if at >= len(self.head):
            return self._fault(f"the header's JSON ends too early: {expected}", at)
        return self._fault(f"not JSON: {expected}, found {self.head[at : at + 1]!r}", at)

    def _tensor(self, name: str, pos: int) -> tuple[bytes, int]:
        """The entry of one tensor."""
        if len(name) * 4 > limits.SAFETENSORS_NAME and len(name.encode()) > limits.SAFETENSORS_NAME:
            what = f"a name longer than {limits.SAFETENSORS_NAME} bytes"
            raise self._over(limits.SAFETENSORS_NAME, what, self.keys[name], name)
        if found := _ENTRY.match(self.head, pos):
            shape = tuple(map(int, found[2].split(b","))) if found[2] else ()
            entry = Entry(name, found[1].decode(), shape, int(found[3]), int(found[4]), pos)
            separator, after = found[5], found.end()
        else:
            entry, after = self._decoded(name, pos)
            separator, after = self._separator(after)
        self._check(entry)
        self.entries.append(entry)
        return separator, after

    def _decoded(self, name: str, pos: int) -> tuple[Entry, int]:
        """The entry in whatever legal JSON, through the decoder: up to the next brace, or as far as entries may go."""
        limit = min(pos + limits.SAFETENSORS_ENTRY, len(self.head))
        near = self.head.find(b"}", pos, limit) + 1
        try:
            return self._decode(name, pos, near or limit)
        except json.JSONDecodeError:
            # Braces inside the entry, in a string or as an object: look again, for the true error.
            try:
                return self._decode(name, pos, limit)
            except json.JSONDecodeError as error:
                at = pos + len(error.doc[: error.pos].encode())
                if limit == len(self.head):
                    raise self._fault(f"not JSON: {error.msg}", at, name) from error
                what = f"not JSON, or too long an entry: {error.msg}"
                raise self._over(limits.SAFETENSORS_ENTRY, what, at, name) from error

    def _decode(self, name: str, pos: int, end: int) -> tuple[Entry, int]:
        """The entry between `pos` and `end`, and where it ends. JSONDecodeError where there is none."""
        text = self.head[pos:end].decode("utf-8", "ignore")
        try:
            value, used = DECODER.raw_decode(text)
        except (UntrustedError, RecursionError) as error:
            raise self._fault(f"not JSON that can be trusted: {error}", pos, name) from error
        return self._fields(name, value, pos), pos + len(text[:used].encode())

    def _fields(self, name: str, value: Any, at: int) -> Entry:
        """The three fields of an entry, their types checked."""
        if type(value) is not dict:
            raise self._fault("the entry must be an object", at, name)
        for key in sorted(value.keys() ^ {"dtype", "shape", "data_offsets"}):
            raise self._fault(f"{'unknown' if key in value else 'missing'} field {key!r}"[:100], at, name)
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if type(dtype) is not str:
            raise self._fault(f"dtype must be a string, one of {', '.join(DTYPE_BITS)}", at, name)
        if type(shape) is not list:
            raise self._fault("shape must be a list of integers", at, name)
        if type(offsets) is not list or len(offsets) != 2:
            raise self._fault("data_offsets must be two integers", at, name)
        for label, numbers in (("shape", shape), ("data_offsets", offsets)):
            for i, number in enumerate(numbers):
                if type(number) is not int or number < 0:
                    raise self._fault(f"{label}[{i}] must be an integer from 0", at, name)
        return Entry(name, dtype, tuple(shape), offsets[0], offsets[1], at)

    def _check(self, entry: Entry) -> None:
        """Dtype, shape and offsets agree, without overflow."""
        bits = DTYPE_BITS.get(entry.dtype)
        if bits is None:
            known = ", ".join(DTYPE_BITS)
            raise self._fault(f"unknown dtype {entry.dtype[:40]!r}; known are {known}", entry.at, entry.name)
        if len(entry.shape) > limits.SAFETENSORS_DIMS:
            what = f"{len(entry.shape)} dimensions, over {limits.SAFETENSORS_DIMS}"
            raise self._over(limits.SAFETENSORS_DIMS, what, entry.at, entry.name)
        total = size = bits
        for dim in entry.shape:
            total *= dim
            # The product without the zeros is checked too: other readers multiply in order and overflow.
            size *= dim or 1
        if size > limits.INT64_MAX:
            raise self._fault(f"the size of shape {list(entry.shape)[:8]} overflows", entry.at, entry.name)
        begin, end = entry.begin, entry.end
        if begin > end or end > limits.INT64_MAX:
            raise self._fault(f"data_offsets [{begin}, {end}] are reversed or overflow", entry.at, entry.name)
        if total % 8 or total // 8 != end - begin:
            needs = f"{total // 8} bytes" if total % 8 == 0 else f"{total} bits, no whole number of bytes"
            raise self._fault(
                f"data_offsets [{begin}, {end}] hold {end - begin} bytes, but {entry.dtype} "
                f"{list(entry.shape)[:8]} needs {needs}",
                entry.at,
                entry.name,
            )


def _require_utf8(head: bytes, label: str) -> None:
    """InputError unless the header is UTF-8; decoded in windows, so that no second copy of it is made."""
    pos, window = 8, limits.READ_WINDOW
    while pos < len(head):
        end = min(pos + window, len(head))
        # A window must not end inside a character.
        while end < len(head) and head[end] & 0xC0 == 0x80 and end > pos + window - 4:
            end -= 1
        utf8(head[pos:end], label, pos)
        pos = end
