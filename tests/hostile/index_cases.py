"""Broken index files, each with the words that the error must hold."""

from __future__ import annotations

import json
from typing import Any

from hostile_files import Case

from ckpttool.errors import LimitError


def _map(name: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 4}, "weight_map": {"a.weight": name}}).encode()


def _size(text: str) -> bytes:
    return f'{{"metadata":{{"total_size":{text}}},"weight_map":{{"a":"m.safetensors"}}}}'.encode()


_NAMES = [
    ("number", 1, "must be a file name"),
    ("null", None, "must be a file name"),
    ("object", {}, "must be a file name"),
    ("empty", "", "is no file name"),
    ("dot", ".", "is no file name"),
    ("dots", "..", "is no file name"),
    ("parent", "../x.safetensors", "leaves the folder"),
    ("absolute", "/etc/x.safetensors", "leaves the folder"),
    ("through a folder", "a/../../x.safetensors", "leaves the folder"),
    ("double slash", "a//b.safetensors", "leaves the folder"),
    ("folder", "a/b.safetensors", "leaves the folder"),
    ("backslash", "..\\x.safetensors", "leaves the folder"),
    ("drive", "C:x.safetensors", "leaves the folder"),
    ("server", "\\\\srv\\s.safetensors", "leaves the folder"),
    ("NUL", "x\0.safetensors", "control character"),
    ("newline", "x\n.safetensors", "control character"),
    ("escape", "\x1b[2J.safetensors", "control character"),
    ("C1 control", "\x9b2J.safetensors", "control character"),
    ("URL", "http://169.254.169.254/x.safetensors", "leaves the folder"),
    ("file URL", "file:///x.safetensors", "leaves the folder"),
    ("long", "x" * 256 + ".safetensors", "longer than 255 bytes"),
    ("long, not ASCII", "한" * 82 + ".safetensors", "longer than 255 bytes"),
    ("pickle .bin", "pytorch_model.bin", "is a pickle"),
    ("pickle .PT", "x.PT", "is a pickle"),
    ("no suffix", "model", "is no .safetensors file"),
    ("GGUF", "model.gguf", "is no .safetensors file"),
    ("itself", "m.safetensors.index.json", "is no .safetensors file"),
    ("surrogate", "\ud800.safetensors", "half a surrogate pair"),
    ("bidi and traversal", "\u202e/x.safetensors", "leaves the folder"),
]

INDEXES = {
    case.id: case
    for case in (
        Case("empty file", b"", "is not valid JSON"),
        Case("not JSON", b"weights", "is not valid JSON: Expecting value (line 1, column 1)"),
        Case("cut", _map("m.safetensors")[:-4], "is not valid JSON"),
        Case("list", b"[]", "is not a JSON object"),
        Case("null", b"null", "is not a JSON object"),
        Case("empty", b"{}", "weight_map: is missing"),
        Case("map null", b'{"weight_map":null}', "must be an object that names a file"),
        Case("map list", b'{"weight_map":[]}', "must be an object that names a file"),
        Case("map string", b'{"weight_map":"x"}', "must be an object that names a file"),
        Case("map empty", b'{"weight_map":{}}', "must be an object that names a file"),
        *(Case(f"name: {what}", _map(name), says) for what, name, says in _NAMES),
        Case("duplicate tensor", b'{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}', "a: duplicate key"),
        Case("duplicate map", b'{"weight_map":{"a":"m.safetensors"},"weight_map":{}}', "weight_map: duplicate key"),
        Case("surrogate tensor", b'{"weight_map":{"\\ud800":"m.safetensors"}}', "half a surrogate pair"),
        Case("not UTF-8", b'{"weight_map":{"\xff":1}}', "at byte 16: is not valid UTF-8"),
        Case("UTF-16", _map("m.safetensors").decode().encode("utf-16"), "is not valid UTF-8"),
        Case("byte order mark", b"\xef\xbb\xbf" + _map("m.safetensors"), "byte order mark"),
        Case("NaN", _size("NaN"), "NaN is no JSON"),
        Case("total negative", _size("-4"), "must be a number of bytes, not -4"),
        Case("total string", _size('"4"'), "must be a number of bytes"),
        Case("total true", _size("true"), "must be a number of bytes"),
        Case("total broken", _size("4.5"), "must be a number of bytes"),
        Case("total huge", _size("1e300"), "must be a number of bytes"),
        Case("total infinite", _size("1e400"), "too large for a float"),
        Case("total of 5,000 digits", _size("1" * 5000), "no plain integer"),
        Case("metadata list", b'{"metadata":[],"weight_map":{"a":"m.safetensors"}}', "metadata: must be an object"),
        Case("10^5 lists", b"[" * 100_000, "nested deeper"),
        Case("10^5 objects", b'{"a":' * 100_000, "nested deeper"),
        Case("a million quotes in a string", b'{"a": "' + b'\\"' * 1_000_000, "is not valid JSON: Unterminated string"),
        Case("a million lists", b"[" + b"[]," * 1_000_000 + b"1]", "commas and brackets", LimitError),
        Case(
            "10^5 files",
            json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(100_001)}}).encode(),
            "names more than 100000 files",
            LimitError,
        ),
    )
}
