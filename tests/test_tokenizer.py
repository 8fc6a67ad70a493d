"""tokenizer.json read in runs, its checks, and the rebuilt one held against the published bytes."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metadata_cases as cases
import pytest
import realtokenizer

from ckpttool.archs import companions, tokenizer, tokenizer_json
from ckpttool.archs.tokenizer_json import read_tokenizer
from ckpttool.containers import limits
from ckpttool.containers.gguf_values import Array
from ckpttool.errors import CkptError, InputError, LimitError, Problems

ARCH = cases.ARCH
NASTY = [
    "],[",
    "1,",
    '","',
    '"',
    "\\",
    '\\"',
    '{"a":1}',
    "]",
    "}",
    "}}",
    "],",
    ',"x',
    '"vocab": {',
    '"merges": [',
    "é日🙂",
]


def _nasty(strings: bool) -> dict[str, Any]:
    out = cases.tokenizer(ARCH)
    for token in NASTY:
        out["model"]["vocab"].setdefault(token, len(out["model"]["vocab"]))
    words = [w for w in NASTY if " " not in w]
    pairs = [[a, b] for a in words for b in words[:4]]
    out["model"]["merges"] = [f"{a} {b}" for a, b in pairs] if strings else pairs
    return out


def _lines(payload: bytes) -> list[str]:
    out, at = [], 0
    while at < len(payload):
        (n,) = struct.unpack_from("<Q", payload, at)
        out.append(payload[at + 8 : at + 8 + n].decode())
        at += 8 + n
    return out


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("style", [{"indent": 2}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
@pytest.mark.parametrize("swapped", [False, True])
def test_reading_in_runs_is_reading_at_once(
    monkeypatch: pytest.MonkeyPatch, strings: bool, style: dict[str, Any], swapped: bool
) -> None:
    """Whatever the length of a run: a cut inside a string must be found out."""
    full = _nasty(strings)
    if swapped:
        full["model"] = dict(reversed(full["model"].items()))
    data = json.dumps(full, **style).encode()
    for run in (*range(1, 40), 97, 1000, 1 << 18):
        monkeypatch.setattr(tokenizer_json, "RUN", run)
        found = read_tokenizer(data)
        assert found.vocab == full["model"]["vocab"]
        wanted = full["model"]["merges"]
        assert _lines(found.merges) == (wanted if strings else [f"{a} {b}" for a, b in wanted])
        assert found.merge_count == len(wanted)
        rest = json.loads(json.dumps(full))
        del rest["model"]["vocab"], rest["model"]["merges"]
        assert found.rest == rest


def test_spaces_inside_merges_are_encoded() -> None:
    full = cases.tokenizer(ARCH)
    full["model"]["merges"] = [["a b", "c"], ["d", "e"]]
    assert _lines(read_tokenizer(json.dumps(full).encode()).merges) == ["aĠb c", "d e"]


def _text(change: Callable[[dict[str, Any]], None]) -> bytes:
    full = cases.tokenizer(ARCH)
    change(full)
    return json.dumps(full).encode()


def _set(*path: str | int) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def of(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(full: dict[str, Any]) -> None:
            for step in path[:-1]:
                full = full[step]  # type: ignore[index]
            full[path[-1]] = value  # type: ignore[index]

        return change

    return of


_VOCAB = _set("model", "vocab")
_MERGES = _set("model", "merges")
_SMALL = _text(lambda t: None)
DAMAGED = {
    "no vocab": (_text(_VOCAB([["a", 0.5]])), "not a BPE tokenizer"),
    "no merges": (_text(_MERGES({})), "not a BPE tokenizer"),
    "id twice": (_text(_VOCAB({"a": 0, "b": 0})), "two tokens have the same id"),
    "negative id": (_text(_VOCAB({"a": -1})), "not a whole number"),
    "bool id": (_text(_VOCAB({"a": True})), "not a whole number"),
    "token twice": (_SMALL.replace(b'"!": 0', b'"\\"": 0'), "stands twice"),
    "triple": (_text(_MERGES([["a", "b", "c"]])), "pairs of strings"),
    "a string for a pair": (_text(_MERGES([["a", "b"], "ab"])), "pairs of strings"),
    "a pair for a string": (_text(_MERGES(["a b", ["a", "b"]])), "pairs of strings"),
    "numbers": (_text(_MERGES([[1, 2]])), "pairs of strings"),
    "half a surrogate pair": (_text(_MERGES([["\ud800", "b"]])), "pairs of strings"),
    "truncated": (_SMALL[:-40], "not valid JSON"),
    "truncated in the vocab": (_SMALL[: _SMALL.index(b'"z"')], "no model.merges"),
    "trailing": (_SMALL + b"}", "not valid JSON"),
    "nan": (_SMALL.replace(b'"dropout": null', b'"dropout": NaN'), "NaN"),
    "key twice": (_SMALL.replace(b'"dropout": null', b'"dropout": null, "dropout": 1'), "duplicate key"),
    "elsewhere": (_SMALL.replace(b'"model": {', b'"mode1": {'), "where they should be"),
    "deep": (_SMALL.replace(b'"padding": null', b'"padding": ' + b"[" * 10**5 + b"]" * 10**5), "nested deeper than 64"),
    "not text": (_SMALL.replace(b'"version"', b'"vers\xff"'), "UTF-8"),
    "not text in the vocab": (_SMALL.replace(b'"z"', b'"\xff"'), "UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_with_a_place(name: str) -> None:
    data, message = DAMAGED[name]
    assert data != _SMALL
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_tokenizer(data)
    assert caught.value.file == "tokenizer.json" and caught.value.hint
    if message == "UTF-8":
        assert caught.value.offset == data.index(b"\xff")


def test_a_tokenizer_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as f:
        f.truncate((256 << 20) + 1)
    with pytest.raises(LimitError, match="268,435,457 bytes"):
        read_tokenizer(path)


_LISTS = b'{"a": [' + b"[]," * 700_000 + b"[]]}"
GREEDY: dict[str, tuple[bytes, str, type[CkptError]]] = {
    "lists in the rest": (_SMALL.replace(b'"padding": null', b'"padding": ' + _LISTS), "commas", LimitError),
    "text in the rest": (
        _SMALL.replace(b'"padding": null', b'"padding": "' + b"x" * (16 << 20) + b'"'),
        "beside its vocabulary and merges",
        LimitError,
    ),
    "lists for an id": (_SMALL.replace(b'"!": 0', b'"!": ' + _LISTS), "is not valid JSON from here", InputError),
    "lists for ids": (
        _SMALL.replace(
            b'"!": 0', b", ".join(b'"x%d": [%s], "y%d": %d' % (i, b"[]," * 9 + b"[]", i, i) for i in range(10**5))
        ),
        "the id of 'x0' is not a whole number",
        InputError,
    ),
    "lists for a merge": (
        _text(_MERGES([["a", "b"]])).replace(b'["a", "b"]', _LISTS),
        "valid JSON from here",
        InputError,
    ),
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_files_are_refused_in_little_memory(name: str) -> None:
    data, message, kind = GREEDY[name]
    assert data != _SMALL
    tracemalloc.start()
    try:
        with pytest.raises(CkptError, match=re.escape(message)) as caught:
            read_tokenizer(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (type(caught.value), caught.value.file) == (kind, "tokenizer.json")
    assert peak < 64 << 20


def test_a_vocabulary_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VOCABULARY", 200)
    with pytest.raises(LimitError, match="more than 200 tokens"):
        read_tokenizer(_SMALL)


def _to_gguf(
    change: Callable[[dict[str, Any]], None] = lambda t: None, settings: Any = None, vocab_size: int = cases.V
) -> dict[str, Any]:
    files = {"tokenizer.json": _text(change), "tokenizer_config.json": json.dumps(settings or cases.SETTINGS).encode()}
    return tokenizer.to_gguf(ARCH, {"vocab_size": vocab_size}, files)[0]


_SPLIT = _set("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")
OTHERS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "regex": (_SPLIT(r"\w+|\s+"), "pre_tokenizer"),
    "normalizer": (_set("normalizer")({"type": "NFC"}), "pre_tokenizer"),
    "prefix space": (_set("pre_tokenizer", "pretokenizers", 1, "add_prefix_space")(True), "pre_tokenizer"),
    "no sequence": (_set("pre_tokenizer")({"type": "ByteLevel"}), "pre_tokenizer"),
    "post-processor": (_set("post_processor")({"type": "TemplateProcessing", "single": [1, 2]}), "post_processor"),
    "post-processor a list": (_set("post_processor")([1]), "post_processor"),
    "stated id": (_set("added_tokens", 1, "id")(5), "added_tokens[1]"),
    "no content": (_set("added_tokens", 2)({"id": 270}), "added_tokens[2]"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokenizers_are_refused_by_field(name: str) -> None:
    change, field = OTHERS[name]
    with pytest.raises(InputError) as caught:
        _to_gguf(change)
    assert (caught.value.file, caught.value.field) == ("tokenizer.json", field)
    assert caught.value.hint


def test_an_unknown_regex_is_shown() -> None:
    with pytest.raises(InputError, match=re.escape(r"'\\w+'")):
        _to_gguf(_SPLIT(r"\w+"))


def test_tokens_beyond_vocab_size_and_unlisted_names_come_together() -> None:
    with pytest.raises(Problems) as caught:
        _to_gguf(settings={"eos_token": "<eos>", "pad_token": "<pad>"}, vocab_size=271)
    text = str(caught.value)
    assert "has id 271 for '<|call|>'" in text and "has id 272" in text
    assert "'<eos>'" in text and "'<pad>'" in text


def test_several_templates_by_name() -> None:
    template = [{"name": "b", "template": "B"}, {"name": "a", "template": "A"}, {"name": "default", "template": "D"}]
    made = _to_gguf(settings={**cases.SETTINGS, "chat_template": template})
    assert list(made)[-4:] == [
        "tokenizer.chat_template.a",
        "tokenizer.chat_template.b",
        "tokenizer.chat_templates",
        "tokenizer.chat_template",
    ]
    names = made["tokenizer.chat_templates"]
    assert isinstance(names, Array) and list(names) == ["a", "b"]


def test_what_is_missing_is_said() -> None:
    files = {"tokenizer.json": _SMALL}
    _, warnings = tokenizer.to_gguf(ARCH, {"vocab_size": cases.V}, files)
    assert [w.split(" ")[0] for w in warnings] == ["tokenizer_config.json", "no"]
    with pytest.raises(CkptError, match="eos_token_id: is 400"):
        tokenizer.to_gguf(ARCH, {"vocab_size": cases.V, "eos_token_id": 400}, files)


_MEASURE = """
import resource, sys, tomllib
from pathlib import Path
import numpy
from ckpttool.archs import companions, tokenizer
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
folder, table = map(Path, sys.argv[1:])
arch = tomllib.loads(table.read_text("utf-8"))
files = {n: folder / n for n in ("tokenizer.json", "tokenizer_config.json")}
before = peak()
keys, _ = tokenizer.to_gguf(arch, {"vocab_size": 201088}, files)
there = peak()
tokens = companions.tokenizer_files.read_tokens(arch, keys)
made = companions.TokenizerStream(arch, tokens)
data = (folder / "tokenizer.json").read_bytes()
at = 0
for chunk in made:
    assert data[at : at + len(chunk)] == chunk, at
    at += len(chunk)
assert at == made.nbytes == len(data)
config, _ = companions.tokenizer_files.config_files(arch, keys, tokens)
assert config["tokenizer_config.json"] == (folder / "tokenizer_config.json").read_bytes()
print(there - before, peak() - there)
"""


def test_the_published_tokenizer_there_and_back_byte_for_byte_and_in_little_memory() -> None:
    """27,868,174 bytes; the issue allows 256 MB for the real vocabulary, in either direction."""
    table = Path(companions.__file__).parent / "gpt_oss.toml"
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(realtokenizer.folder()), str(table)],
        capture_output=True,
        text=True,
        check=False,
        cwd=table.parents[2],
    )
    assert done.returncode == 0, done.stderr
    there, back = map(int, done.stdout.split())
    assert there < 256 and back < 256, (there, back)
