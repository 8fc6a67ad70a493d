"""The tokenizer key-values of a GGUF as the tokenizer's files: the way back from `tokenizer`.

A GGUF carries tokens, types, merges and the special ids. What it lacks (the split regex behind its name, the flags of
the model and of the added tokens) comes from `[tokenizer]` of the arch's table and is reported as assumed.
tokenizer.json is written as a stream: the published one is 28 MB, and never stands in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from json.encoder import encode_basestring  # serde_json, which writes the published files, escapes the same characters
from typing import Any

from ckpttool.archs.config import dumps
from ckpttool.archs.special_tokens import ADD_KEYS, CONFIG, FILE, ID_KEYS
from ckpttool.archs.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, byte_alphabet, decoded
from ckpttool.containers.gguf_values import Array, Scalar, ValueType
from ckpttool.errors import InputError

Metadata = Mapping[str, Scalar | Array]
Assumed = tuple[str, str, Any]

_RUN = 4096
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_TWO_TOKENS = re.compile(rb"[^ \x00-\x1f]+ [^ \x00-\x1f]+")
_USE_REFERENCE = "take the tokenizer's files from the model's own folder with --reference DIR"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a GGUF, sorted into what tokenizer.json tells apart.

    `added` are id, text and type; `in_vocab` says whether they stand in `model.vocab` too (they need not where readers
    number them so anyway).
    """

    tokens: Array
    merges: Array
    pre: str
    normal: bytes = field(repr=False)
    added: tuple[tuple[int, str, int], ...]
    in_vocab: frozenset[int]

    def ids(self) -> dict[str, int]:
        """The ids of the added tokens by their text."""
        return {text: i for i, text, _ in self.added}


def read_tokens(arch: Mapping[str, Any], metadata: Metadata) -> Tokens:
    """The tokenizer of a GGUF. Raises InputError where it is not of the arch's kind."""
    model, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    wanted = arch["gguf"]["tokenizer_model"]
    for key, entry, known in (("model", model, [wanted]), ("pre", pre, list(arch["tokenizer"]["pre"]))):
        value = entry.value if isinstance(entry, Scalar) else None
        if value not in known:
            found = "is missing" if value is None else f"is {value!r}"
            raise InputError(
                f"{found}, and tokenizer.json can be rebuilt for {', '.join(known)} only",
                field=f"tokenizer.ggml.{key}",
                hint=_USE_REFERENCE,
            )
    assert isinstance(pre, Scalar)
    tokens = _array(metadata, "tokens", ValueType.string)
    types = _array(metadata, "token_type", ValueType.i32)
    if tokens.count != types.count:
        raise InputError(
            f"has {types.count} entries for {tokens.count} tokens",
            field="tokenizer.ggml.token_type",
            hint=_USE_REFERENCE,
        )
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None:
        merges = Array(ValueType.string, 0, b"")
    elif not isinstance(merges, Array) or merges.type is not ValueType.string:
        raise InputError("is no list of strings", field="tokenizer.ggml.merges", hint=_USE_REFERENCE)
    normal, added = _sorted(tokens, types)
    return Tokens(tokens, merges, str(pre.value), normal, added, _in_vocab(normal, added))


def _array(metadata: Metadata, key: str, kind: ValueType) -> Array:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(value, Array) and value.type is kind:
        return value
    what = "is missing" if value is None else f"is no list of {kind.name}"
    raise InputError(what, field=f"tokenizer.ggml.{key}", hint=_USE_REFERENCE)


def _sorted(tokens: Array, types: Array) -> tuple[bytes, tuple[tuple[int, str, int], ...]]:
    """One byte a token (1: normal) and the added tokens. Raises InputError for types that this kind does not have."""
    normal = bytearray(tokens.count)
    added = []
    seen: set[str] = set()
    for i, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == UNUSED and text == f"[PAD{i}]":
            continue
        if kind == NORMAL:
            normal[i] = 1
        elif kind in (CONTROL, USER_DEFINED):
            added.append((i, text, kind))
        else:
            raise InputError(
                f"token {i} ({text!r}) has type {kind}, which a byte-level BPE tokenizer does not have",
                field="tokenizer.ggml.token_type",
                hint=_USE_REFERENCE,
            )
        if text in seen:
            raise InputError(
                f"token {i} ({text!r}) stands twice in it", field="tokenizer.ggml.tokens", hint=_USE_REFERENCE
            )
        seen.add(text)
    return bytes(normal), tuple(added)


def _in_vocab(normal: bytes, added: tuple[tuple[int, str, int], ...]) -> frozenset[int]:
    """The added tokens that `model.vocab` must hold for readers to give them their ids.

    Readers number added tokens on from the size of the vocab; so those that follow a vocab without gaps need no entry.
    """
    size = normal.rfind(1) + 1
    inside = frozenset(i for i, _, _ in added if i < size)
    behind = [i for i, _, _ in added if i >= size]
    if normal.count(1) + len(inside) == size and behind == list(range(size, size + len(behind))):
        return inside
    return frozenset(i for i, _, _ in added)


class TokenizerStream:
    """tokenizer.json in chunks, made anew each time it is iterated over; `nbytes` is its length."""

    def __init__(self, arch: Mapping[str, Any], tokens: Tokens) -> None:
        self.arch = arch
        self.tokens = tokens
        self.nbytes = sum(map(len, self))

    def __iter__(self) -> Iterator[bytes]:
        """The chunks. Raises InputError where a merge is not two tokens."""
        table = self.arch["tokenizer"]
        fill = {
            "added": lambda: iter([_indented(_added(table, self.tokens), 2).encode()]),
            "regex": lambda: iter([encode_basestring(table["pre"][self.tokens.pre]).encode()]),
            "vocab": lambda: _joined(_vocab(self.tokens), b"{", b"}"),
            "merges": lambda: _joined(_merges(self.tokens.merges), b"[", b"]"),
        }
        for n, piece in enumerate(table["json"].split("@")):
            yield from fill[piece]() if n % 2 else iter([piece.encode()])


def _added(table: Mapping[str, Any], tokens: Tokens) -> list[dict[str, Any]]:
    """The added tokens with the arch's flags, but for what the GGUF says otherwise.

    A text that the decoder would change was not decoded on the way into the GGUF, as happens to normalized tokens.
    """
    alphabet = byte_alphabet()
    out = []
    for i, text, kind in tokens.added:
        flags = dict(table["added"])
        if kind != CONTROL:
            flags["special"] = False
        if decoded(text, alphabet) != text:
            flags["normalized"] = True
        out.append({"id": i, "content": text, **flags})
    return out


def _indented(value: list[Any], by: int) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n" + " " * by)


def _vocab(tokens: Tokens) -> Iterator[bytes]:
    """The entries of `model.vocab`, a run at a time."""
    entries = enumerate(tokens.tokens)
    normal, inside, quote = tokens.normal, tokens.in_vocab, encode_basestring
    while run := list(islice(entries, _RUN)):
        rows = [f"\n      {quote(text)}: {i}" for i, text in run if normal[i] or i in inside]
        if rows:
            yield ",".join(rows).encode()


_MERGE = (b'\n      [\n        "', b'",\n        "', b'"\n      ]')


def _merges(merges: Array) -> Iterator[bytes]:
    """The entries of `model.merges`, a run at a time: whole runs are quoted at once, which is four times as fast."""
    lines = merges.raw()
    open_, between, close = _MERGE
    for first in range(0, merges.count, _RUN):
        run = list(islice(lines, _RUN))
        _check_merges(run, first)
        text = b"\n".join(run).replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        text = text.replace(b" ", b"\0").replace(b"\n", close + b"," + open_).replace(b"\0", between)
        yield open_ + text + close


def _check_merges(run: list[bytes], first: int) -> None:
    """Raise InputError where a merge is not two tokens of a byte-level alphabet, which has no control characters."""
    text = b"\n".join(run)
    try:
        text.decode()
        if (
            text.count(b" ") == len(run)
            and text.count(b"\n") == len(run) - 1
            and all(b" " in line for line in run)
            and not (b" \n" in text or b"\n " in text or text.startswith(b" ") or text.endswith(b" "))
            and not _CONTROL.search(text)
        ):
            return
    except UnicodeDecodeError:
        pass
    n, line = next((n, x) for n, x in enumerate(run, first) if not _TWO_TOKENS.fullmatch(x) or not _is_utf8(x))
    raise InputError(
        f"merge {n} ({line.decode(errors='replace')!r}) is not two tokens",
        field="tokenizer.ggml.merges",
        hint=_USE_REFERENCE,
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _joined(runs: Iterator[bytes], open_: bytes, close: bytes) -> Iterator[bytes]:
    """Runs of entries as one JSON container at an indent of four."""
    before = open_
    for run in runs:
        yield before
        yield run
        before = b","
    yield open_ + close if before == open_ else b"\n    " + close


def role_texts(arch: Mapping[str, Any], metadata: Metadata, tokens: Tokens) -> dict[str, str]:
    """The tokens in the roles of tokenizer_config.json (bos, eos, pad) that the GGUF names."""
    texts = {i: text for i, text, _ in tokens.added}
    out = {}
    for role in arch["tokenizer"]["roles"]["names"]:
        entry = metadata.get(ID_KEYS[role])
        if isinstance(entry, Scalar) and entry.value in texts:
            out[role] = texts[int(entry.value)]
    return out


def config_files(arch: Mapping[str, Any], metadata: Metadata, tokens: Tokens) -> tuple[dict[str, bytes], list[Assumed]]:
    """tokenizer_config.json and special_tokens_map.json as transformers writes them, and what is assumed in them."""
    table = arch["tokenizer"]
    names = {f"{role}_token": text for role, text in role_texts(arch, metadata, tokens).items()}
    entries = {str(e.pop("id")): e for e in _added(table, tokens)}
    config = {**table["config"], "added_tokens_decoder": entries, **names}
    for role, key in ADD_KEYS.items():
        entry = metadata.get(key)
        if isinstance(entry, Scalar) and entry.type is ValueType.bool:
            config[f"add_{role}_token"] = bool(entry.value)
    assumed: list[Assumed] = [(CONFIG, key, value) for key, value in sorted(table["config"].items())]
    files = {CONFIG: config, "special_tokens_map.json": names}
    return {n: dumps(v, sort_keys=True, ensure_ascii=False) for n, v in files.items()}, assumed


def assumed_scheme(arch: Mapping[str, Any], pre: str) -> list[Assumed]:
    """What tokenizer.json says that no GGUF carries: everything in the arch's template, and the added tokens' flags."""
    table = arch["tokenizer"]
    regex = encode_basestring(table["pre"][pre])
    pieces = table["json"].split("@")
    template = json.loads("".join((regex if p == "regex" else "null") if n % 2 else p for n, p in enumerate(pieces)))
    model = template.pop("model")
    del template["added_tokens"]
    rows = {**template, **{f"model.{k}": v for k, v in model.items() if k not in ("vocab", "merges")}}
    return [(FILE, key, value) for key, value in rows.items()] + [(FILE, "added_tokens[*]", dict(table["added"]))]
