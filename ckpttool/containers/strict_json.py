"""JSON and text as their standards mean them, from files that nobody vouches for: size and depth before parsing.

Python's own reader takes UTF-16, byte order marks, NaN, duplicate keys (the last wins), unpaired surrogates and any
nesting; two readers that differ on any of these see two different checkpoints in one file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, Final, Never

from ckpttool.containers import limits
from ckpttool.containers.source import LocalFile
from ckpttool.errors import DAMAGED, InputError, LimitError

Source = Path | bytes
"""A file, or the bytes that would be in it."""

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,19}")
_NESTING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
"""A string, closed or not (or every quote in an unclosed one would be searched to the end anew), or a bracket."""
_SURROGATE: Final = re.compile(r"\\u[dD][89abcdefABCDEF]")
_OTHER_FILE: Final = "is it really this file?"


class UntrustedError(ValueError):
    """What is wrong, without a place: raised inside the decoder, where the file is not known. `field`: the key."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message if field is None else f"{message} {field!r}")
        self.message = message
        self.field = field


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; UntrustedError on duplicate keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        times = Counter(key for key, _ in pairs)
        raise UntrustedError("duplicate key", next(key for key, n in times.items() if n > 1))
    return found


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        shown = text if len(text) <= 24 else f"of {len(text)} characters"
        raise UntrustedError(f"the number {shown} is no plain integer of at most 20 digits")
    return int(text)


def _any_integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # more digits than Python converts
        raise UntrustedError(f"a number of {len(text)} characters is too large") from error


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise UntrustedError(f"the number {text[:24]} is too large for a float")
    return value


def _constant(text: str) -> Never:
    raise UntrustedError(f"{text} is no JSON")


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
"""Refuses duplicate keys, NaN, Infinity, -0 and numbers that are no number; raises ValueError, RecursionError."""

_WIDE: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_any_integer, parse_float=_float, parse_constant=_constant
)
"""The same, but for integers: transformers writes 1000000000000000019884624838656 for a tokenizer without a limit."""


def has_surrogate(text: str) -> bool:
    """Whether `text` holds an unpaired surrogate: no UTF-8 can hold it, and printing it fails."""
    return any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else False


def utf8(data: bytes, file: str, start: int = 0) -> str:
    """`data` as text; `start` is its offset in `file`, for the error."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("is not valid UTF-8", file=file, offset=start + error.start, hint=DAMAGED) from error


def read_bytes(source: Source, file: str, max_bytes: int) -> bytes:
    """The bytes of a side file, as many as it has when it is opened.

    InputError where it is no plain file, LimitError where it is larger than `max_bytes`.
    """
    if isinstance(source, bytes):
        _require_size(len(source), max_bytes, file)
        return source
    with LocalFile(source, file) as opened:
        _require_size(opened.size, max_bytes, file)
        return opened.read(0, opened.size)


def _require_size(size: int, limit: int, file: str) -> None:
    if size > limit:
        what = f"is {size:,} bytes, more than the {limit:,} that such a file may have"
        raise LimitError(what, file=file, hint=limits.hint(limit, _OTHER_FILE))


def read_text(source: Source, file: str, max_bytes: int = limits.SIDE_FILE) -> str:
    """A text file as it is, line ends included. InputError where it is not UTF-8."""
    return utf8(read_bytes(source, file, max_bytes), file)


def read_object(
    source: Source, file: str, max_bytes: int = limits.SIDE_FILE, *, any_integer: bool = True
) -> dict[str, Any]:
    """The object in a JSON file; refused as by `parse_object`, and as by `read_bytes`."""
    return parse_object(read_text(source, file, max_bytes), file, max_bytes, any_integer=any_integer)


def parse_object(
    text: str, file: str, max_bytes: int = limits.SIDE_FILE, *, any_integer: bool = True
) -> dict[str, Any]:
    """The object that `text` holds, of at most `max_bytes` characters; `file` is the name for errors.

    Integers may have any number of digits, or with `any_integer=False` twenty. InputError with the offset where it is
    no JSON. LimitError where it asks for too much: a comma or bracket, those in strings too, makes an object of up to
    250 bytes, so there may be one in `limits.JSON_TOKEN` bytes of the limit.
    """
    _require_size(len(text), max_bytes, file)
    tokens, most = sum(map(text.count, ",[{")), max_bytes // limits.JSON_TOKEN
    if tokens > most:
        what = f"holds {tokens:,} commas and brackets, more than the {most:,} that such a file may have"
        raise LimitError(what, file=file, hint=limits.hint(max_bytes, _OTHER_FILE))
    value = _parsed(text, file, _WIDE if any_integer else DECODER)
    if type(value) is not dict:
        raise InputError("is not a JSON object", file=file, hint="its text should start with {")
    return value


def _parsed(text: str, file: str, decoder: json.JSONDecoder) -> Any:
    """`text` as strict JSON, within its budgets."""
    if text.startswith("\ufeff"):
        raise InputError("begins with a byte order mark", file=file, offset=0, hint="save it as plain UTF-8")
    if nests_deeper(text, limits.JSON_DEPTH):
        more = limits.hint(limits.JSON_DEPTH, _OTHER_FILE)
        raise InputError(f"is nested deeper than {limits.JSON_DEPTH}", file=file, hint=more)
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        at = len(text[: error.pos].encode())
        what = f"is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise InputError(what, file=file, offset=at, hint=DAMAGED) from error
    except UntrustedError as error:
        raise InputError(error.message, file=file, field=error.field, hint=DAMAGED) from error
    if _SURROGATE.search(text):  # written as escapes; most are whole pairs
        _refuse_surrogates(value, file)
    return value


def _refuse_surrogates(value: Any, file: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("holds half a surrogate pair", file=file, hint=DAMAGED) from error


def nests_deeper(text: str, limit: int) -> bool:
    """Whether the brackets of a JSON text nest deeper than `limit`, found without building anything."""
    depth = 0
    for token in _NESTING.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > limit:
                return True
        elif first in "]}":
            depth -= 1
    return False
