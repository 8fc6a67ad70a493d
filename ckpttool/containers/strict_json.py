"""JSON as the standard means it, from files that nobody vouches for.

Python's own reader takes UTF-16, byte order marks, NaN, -0, duplicate keys (the last wins) and unpaired surrogates;
two readers that differ on any of these see two different checkpoints in one file.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Never

from ckpttool.errors import InputError, LimitError

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,19}")
_NESTING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{\]}]', re.DOTALL)
_AGAIN: Final = "the file is damaged; fetch it again"


class UntrustedError(ValueError):
    """What is wrong, without a place: raised inside the decoder, where the file is not known."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; UntrustedError on duplicate keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise UntrustedError(f"duplicate key {key!r}")
            seen.add(key)
    return found


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        shown = text if len(text) <= 24 else f"of {len(text)} characters"
        raise UntrustedError(f"the number {shown} is no plain integer of at most 20 digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise UntrustedError(f"the number {text[:24]} is too large for a float")
    return value


def _constant(text: str) -> Never:
    raise UntrustedError(f"{text} is no JSON")


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
"""Refuses duplicate keys, NaN, Infinity, -0 and numbers that are no number; raises ValueError, RecursionError."""


def has_surrogate(text: str) -> bool:
    """Whether `text` holds an unpaired surrogate: no UTF-8 can hold it, and printing it fails."""
    return any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else False


def utf8(data: bytes, file: str, start: int = 0) -> str:
    """`data` as text; `start` is its offset in `file`, for the error."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("the JSON is not UTF-8", file=file, offset=start + error.start, hint=_AGAIN) from error


def nests_deeper(data: bytes, limit: int) -> bool:
    """Whether the brackets of a JSON text nest deeper than `limit`, found without building anything."""
    depth = 0
    for token in _NESTING.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def loads(data: bytes, file: str, *, max_bytes: int, max_tokens: int, max_depth: int = 64) -> Any:
    """The value of a JSON file, InputError with its offset where it is none, LimitError where it asks for too much.

    `max_tokens` bounds commas and brackets, those in strings too: 100 MB of `[],` would take gigabytes.
    """
    tokens = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > max_bytes or tokens > max_tokens:
        raise LimitError(
            f"{len(data)} bytes of JSON with {tokens} commas and brackets; the limits are {max_bytes} and {max_tokens}",
            file=file,
        )
    text = utf8(data, file)
    if text.startswith("\ufeff"):
        raise InputError("the JSON begins with a byte order mark", file=file, offset=0, hint="save it as plain UTF-8")
    try:
        if nests_deeper(data, max_depth):
            raise UntrustedError(f"nested deeper than {max_depth}")
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        at = len(text[: error.pos].encode())
        what = f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise InputError(what, file=file, offset=at, hint=_AGAIN) from error
    except (UntrustedError, RecursionError) as error:
        raise InputError(f"not JSON that can be trusted: {error}", file=file, hint=_AGAIN) from error
