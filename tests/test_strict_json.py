"""JSON from strangers: what is refused, in how much memory, and what is read as it stands."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ckpttool.containers import limits, strict_json
from ckpttool.containers.source import LocalFile
from ckpttool.containers.strict_json import parse_object, read_bytes, read_object, read_text
from ckpttool.errors import CkptError, InputError, LimitError

BAD: dict[str, tuple[bytes, str, int | None]] = {
    "list": (b"[]", "is not a JSON object", None),
    "open": (b'{"a": ', "is not valid JSON", 6),
    "empty": (b"", "is not valid JSON", 0),
    "offset in bytes": ('{"é": x}'.encode(), "is not valid JSON", 7),
    "twice": (b'{"a": {"b": 1, "b": 2}}', "x.json: b: duplicate key", None),
    "nan": (b'{"a": NaN}', "NaN is no JSON", None),
    "infinity": (b'{"a": -Infinity}', "-Infinity is no JSON", None),
    "too large": (b'{"a": 1e999}', "1e999 is too large", None),
    "too long": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 characters is too large", None),
    "surrogate": (b'{"a": "\\ud83d"}', "half a surrogate pair", None),
    "surrogate in a key": (b'{"\\uDE00": 1}', "half a surrogate pair", None),
    "latin-1": (b'{"a": "\xe9"}', "is not valid UTF-8", 7),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not valid UTF-8", 0),
    "byte order mark": (b"\xef\xbb\xbf{}", "begins with a byte order mark", 0),
    "deep": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "is nested deeper than 64", None),
    "deep and open": (b'{"a": ' * 10**5, "is nested deeper than 64", None),
    "half a million quotes": (b'{"a": "' + b'\\"' * 500_000, "is not valid JSON: Unterminated string", 6),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_json_is_refused_with_a_place(name: str) -> None:
    data, message, offset = BAD[name]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_object(data, "x.json")
    assert caught.value.file == "x.json" and caught.value.hint
    assert offset is None or caught.value.offset == offset


GREEDY = {
    "lists": (b'{"a": [' + b"[]," * 5_000_000 + b"1]}", "holds 10,000,002 commas and brackets, more than the 262,144"),
    "objects": (b"[" + b"{}," * 5_000_000, "commas and brackets"),
    "numbers": (b'{"a": [' + b"1," * 8_000_000 + b"1]}", "commas and brackets"),
    "size": (b" " * (limits.SIDE_FILE + 1), "is 16,777,217 bytes, more than the 16,777,216"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_would_take_much_memory_is_refused_in_little(name: str, tmp_path: Path) -> None:
    data, message = GREEDY[name]
    path = tmp_path / "x.json"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match=re.escape(message)) as caught:
            read_object(path, "x.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.file == "x.json" and caught.value.hint
    assert peak < 3 * limits.SIDE_FILE


def test_the_most_that_may_be_asked_for_takes_a_few_times_the_limit() -> None:
    """Objects of one key take the most memory for a comma or bracket."""
    chain = '{"":' * 60 + "1" + "}" * 60
    limit = 4 << 20
    count = limit // limits.JSON_TOKEN // 61 - 1
    text = '{"a":[' + ",".join([chain] * count) + "]}"
    tracemalloc.start()
    try:
        value = parse_object(text, "x.json", limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(value["a"]) == count
    assert peak < 5 * limit


def test_each_door_looks_at_the_size(tmp_path: Path) -> None:
    """Bytes, a file, and text that came from elsewhere: as large as is allowed, and one more."""
    text = '{"a": 1}'
    path = tmp_path / "x.json"
    path.write_text(text)
    for source in (path, text.encode()):
        assert read_bytes(source, "x.json", 8) == text.encode()
        with pytest.raises(LimitError, match=r"x\.json: is 8 bytes, more than the 7"):
            read_bytes(source, "x.json", 7)
    assert parse_object('{"a":' + " " * 300 + "1}", "x.json", 307) == {"a": 1}
    with pytest.raises(LimitError, match=r"x\.json: is 307 bytes, more than the 306"):
        parse_object('{"a":' + " " * 300 + "1}", "x.json", 306)


def test_depth_is_counted_outside_strings() -> None:
    def nested(depth: int) -> bytes:
        return b'{"[[{": ' + b"[" * (depth - 1) + b'"]\\"[["' + b"]" * (depth - 1) + b"}"

    assert read_object(nested(limits.JSON_DEPTH), "x.json")
    with pytest.raises(InputError, match="nested deeper than 64"):
        read_object(nested(limits.JSON_DEPTH + 1), "x.json")
    assert read_object(b'{"a": "' + b"[" * 1000 + b'"}', "x.json")


def test_integers_have_as_many_digits_as_the_file_may_hold() -> None:
    text = '{"model_max_length": 1000000000000000019884624838656}'
    assert parse_object(text, "x.json") == {"model_max_length": 1000000000000000019884624838656}
    with pytest.raises(InputError, match="no plain integer of at most 20 digits"):
        parse_object(text, "x.json", any_integer=False)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert read_object(b'{"a": "\\ud83d\\ude00"}', "x.json") == {"a": "\U0001f600"}


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "x.jinja", "x.jinja") == "a\r\nb\rc\n"


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("", "is a folder"), ("fifo", "is a FIFO"), ("gone", "cannot open")):
        with pytest.raises(CkptError, match=f"x.json: {says}"):
            read_object(tmp_path / name, "x.json")


def test_a_file_that_grows_is_not_read_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}')

    class Growing(LocalFile):
        def read(self, offset: int, n: int) -> bytes:
            with path.open("ab") as f:
                f.write(b" " * (limits.SIDE_FILE + 1))
            return super().read(offset, n)

    monkeypatch.setattr(strict_json, "LocalFile", Growing)
    value: dict[str, Any] = read_object(path, "x.json")
    assert value == {"a": 1}
    assert path.stat().st_size > limits.SIDE_FILE
