"""Side files (config.json, tokenizer_config.json ...) as inert data: strict, within a budget, a place in every error.

Stricter than `json`: UTF-8 only, no duplicate keys, no NaN or Infinity, no lone surrogates (they cannot be written
back), no nesting beyond what the interpreter parses safely. Unlike a container's header such a file may hold integers
of any size: transformers writes 1000000000000000019884624838656 for a tokenizer without a limit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ckpttool.errors import InputError, LocalIOError

MIB = 1 << 20
CONFIG_LIMIT = 16 * MIB
TOKENIZER_LIMIT = 256 * MIB
TEXT_LIMIT = 16 * MIB

_REPAIR = "repair or replace the file"
_SURROGATE = re.compile(r"\\u[dD][89abcdefABCDEF]")

Source = Path | bytes


def read_bytes(source: Source, file: str, limit: int) -> bytes:
    """The bytes of a side file. Raises InputError where it is larger than `limit` bytes or not a plain file."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            if not source.is_file():
                raise InputError("is not a file", file=file, hint="give a folder that holds it with --reference DIR")
            size = source.stat().st_size
        except OSError as e:
            raise LocalIOError(f"cannot be read: {e.strerror}", file=file) from e
    if size > limit:
        raise InputError(
            f"is {size:,} bytes, more than the {limit:,} that such a file may have",
            file=file,
            hint="is it really this file?",
        )
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as e:
        raise LocalIOError(f"cannot be read: {e.strerror}", file=file) from e


def read_text(source: Source, file: str, limit: int = TEXT_LIMIT) -> str:
    """A text file as it is, line ends included. Raises InputError where it is not UTF-8."""
    return decode(read_bytes(source, file, limit), file)


def decode(data: bytes, file: str, at: int = 0) -> str:
    """`data` as strict UTF-8; `at` is its offset in the file, for the error."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError("is not valid UTF-8", file=file, offset=at + e.start, hint="download the file again") from None


def read_object(source: Source, file: str, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    return parse_object(read_text(source, file, limit), file)


def parse_object(text: str, file: str) -> dict[str, Any]:
    """`text` as a JSON object. Raises InputError with the byte offset where the JSON breaks."""
    value = parse(text, file)
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", file=file, hint="its text should start with {")
    return value


def parse(text: str, file: str) -> Any:
    """`text` as strict JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
    except json.JSONDecodeError as e:
        at = len(text[: e.pos].encode("utf-8", "surrogatepass"))
        raise InputError(f"is not valid JSON: {e.msg}", file=file, offset=at, hint=_REPAIR) from None
    except _RefusedError as e:
        raise InputError(e.message, file=file, field=e.field, hint=_REPAIR) from None
    except RecursionError:
        raise InputError("is nested too deeply", file=file, hint="no such file is; replace it") from None
    except ValueError as e:  # an integer of more than 4300 digits
        raise InputError(f"holds a number that cannot be read: {e}", file=file, hint="replace the file") from None
    if _SURROGATE.search(text):
        _refuse_surrogates(value, file)
    return value


class _RefusedError(Exception):
    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _RefusedError("this key is given twice", Counter(k for k, _ in pairs).most_common(1)[0][0])
    return out


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise _RefusedError(f"holds {text[:24]}, which no float can hold")
    return value


def _constant(word: str) -> Any:
    raise _RefusedError(f"holds {word}, which is not JSON")


def _refuse_surrogates(value: Any, file: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("holds half of a surrogate pair", file=file, hint=_REPAIR) from None


def dumps(value: Mapping[str, Any] | list[Any], *, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """JSON as transformers writes it: two spaces of indent, non-ASCII escaped in configs but not in tokenizer files."""
    return json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
