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
    ("IX05 number", 1, "must be a file name"),
    ("IX05 null", None, "must be a file name"),
    ("IX05 object", {}, "must be a file name"),
    ("IX06 empty", "", "is no file name"),
    ("IX07 dot", ".", "is no file name"),
    ("IX08 dots", "..", "is no file name"),
    ("IX09 parent", "../x.safetensors", "leaves the folder"),
    ("IX10 absolute", "/etc/x.safetensors", "leaves the folder"),
    ("IX11 through a folder", "a/../../x.safetensors", "leaves the folder"),
    ("IX12 double slash", "a//b.safetensors", "leaves the folder"),
    ("IX12 folder", "a/b.safetensors", "leaves the folder"),
    ("IX13 backslash", "..\\x.safetensors", "leaves the folder"),
    ("IX14 drive", "C:x.safetensors", "leaves the folder"),
    ("IX14 server", "\\\\srv\\s.safetensors", "leaves the folder"),
    ("IX15 NUL", "x\0.safetensors", "control character"),
    ("IX16 newline", "x\n.safetensors", "control character"),
    ("IX16 escape", "\x1b[2J.safetensors", "control character"),
    ("IX16 C1 control", "\x9b2J.safetensors", "control character"),
    ("IX17 URL", "http://169.254.169.254/x.safetensors", "leaves the folder"),
    ("IX17 file URL", "file:///x.safetensors", "leaves the folder"),
    ("IX20 long", "x" * 256 + ".safetensors", "longer than 255 bytes"),
    ("IX20 long, not ASCII", "한" * 82 + ".safetensors", "longer than 255 bytes"),
    ("IX26 pickle .bin", "pytorch_model.bin", "is a pickle"),
    ("IX26 pickle .PT", "x.PT", "is a pickle"),
    ("no suffix", "model", "is no .safetensors file"),
    ("a GGUF", "model.gguf", "is no .safetensors file"),
    ("IX25 itself", "m.safetensors.index.json", "is no .safetensors file"),
    ("surrogate in a name", "\ud800.safetensors", "half a surrogate pair"),
    ("bidi and traversal", "\u202e/x.safetensors", "leaves the folder"),
]

INDEXES = {
    case.id: case
    for case in (
        Case("IX01 empty file", b"", "is not valid JSON"),
        Case("IX01 not JSON", b"weights", "is not valid JSON: Expecting value (line 1, column 1)"),
        Case("IX01 cut", _map("m.safetensors")[:-4], "is not valid JSON"),
        Case("IX02 list", b"[]", "is not a JSON object"),
        Case("IX02 null", b"null", "is not a JSON object"),
        Case("IX03 empty", b"{}", "weight_map: is missing"),
        Case("IX04 map null", b'{"weight_map":null}', "must be an object that names a file"),
        Case("IX04 map list", b'{"weight_map":[]}', "must be an object that names a file"),
        Case("IX04 map string", b'{"weight_map":"x"}', "must be an object that names a file"),
        Case("IX03 map empty", b'{"weight_map":{}}', "must be an object that names a file"),
        *(Case(what, _map(name), says) for what, name, says in _NAMES),
        Case("IX33 duplicate tensor", b'{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}', "a: duplicate key"),
        Case(
            "IX33 duplicate map", b'{"weight_map":{"a":"m.safetensors"},"weight_map":{}}', "weight_map: duplicate key"
        ),
        Case("surrogate tensor", b'{"weight_map":{"\\ud800":"m.safetensors"}}', "half a surrogate pair"),
        Case("not UTF-8", b'{"weight_map":{"\xff":1}}', "at byte 16: is not valid UTF-8"),
        Case("UTF-16", _map("m.safetensors").decode().encode("utf-16"), "is not valid UTF-8"),
        Case("byte order mark", b"\xef\xbb\xbf" + _map("m.safetensors"), "byte order mark"),
        Case("NaN", _size("NaN"), "NaN is no JSON"),
        Case("IX34 total negative", _size("-4"), "must be a number of bytes, not -4"),
        Case("IX34 total string", _size('"4"'), "must be a number of bytes"),
        Case("IX34 total true", _size("true"), "must be a number of bytes"),
        Case("IX34 total broken", _size("4.5"), "must be a number of bytes"),
        Case("IX34 total huge", _size("1e300"), "must be a number of bytes"),
        Case("IX34 total infinite", _size("1e400"), "too large for a float"),
        Case("total of 5,000 digits", _size("1" * 5000), "no plain integer"),
        Case("metadata list", b'{"metadata":[],"weight_map":{"a":"m.safetensors"}}', "metadata: must be an object"),
        Case("IX37 10^5 lists", b"[" * 100_000, "nested deeper"),
        Case("IX37 10^5 objects", b'{"a":' * 100_000, "nested deeper"),
        Case("a million quotes in a string", b'{"a": "' + b'\\"' * 1_000_000, "is not valid JSON: Unterminated string"),
        Case("IX36 a million lists", b"[" + b"[]," * 1_000_000 + b"1]", "commas and brackets", LimitError),
        Case(
            "IX35 10^5 files",
            json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(100_001)}}).encode(),
            "names more than 100000 files",
            LimitError,
        ),
    )
}
