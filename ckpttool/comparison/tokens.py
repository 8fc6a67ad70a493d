"""Tokenizer, special tokens, chat template and generation_config of two checkpoints: there or not, the same or not.

Each is brought to a canonical form, whose sha256 is reported: two folders by their files' meaning, a GGUF and a folder
as the key-values that llama.cpp's converter would make of the folder.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from ckpttool.archs import special_tokens, tokenizer
from ckpttool.archs.general import GENERATION
from ckpttool.archs.tokenizer_json import TokenizerJson, read_tokenizer
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers import limits
from ckpttool.containers.gguf_values import Array, Scalar, ValueType
from ckpttool.containers.strict_json import Source, read_bytes, read_object
from ckpttool.errors import CkptError, shown

NAMES: Final = ("tokenizer", "special_tokens", "chat_template", "generation_config")
VOCABULARY: Final = tuple(f"tokenizer.ggml.{key}" for key in ("tokens", "merges", "model", "pre", "token_type"))
"""The key-values that make a tokenizer, the most telling first."""

_IDS: Final = (*special_tokens.ID_KEYS.values(), *special_tokens.ADD_KEYS.values())
_UNHEEDED: Final = ("transformers_version", "_from_model_config")
"""What generation_config.json says of who wrote it."""

Form = Mapping[str, Any]
"""A canonical form: key to value, compared key by key."""


@dataclass(frozen=True)
class SideFile:
    """One of `NAMES`: equal, differs, only_a, only_b, absent (on both sides) or unread; `what` is what differs first.

    The sha256 are of the canonical forms, so that equal ones mean equal meaning, and None where there is none.
    """

    name: str
    status: str
    sha256_a: str | None
    sha256_b: str | None
    what: str | None


def side_files(
    a: Checkpoint, b: Checkpoint, *, read: bool = True, sides: tuple[str, str] = ("A", "B")
) -> Iterator[SideFile]:
    """One row for each of `NAMES`; without `read` only which are there. `sides` is what `what` calls the two."""
    both_folders = "gguf" not in (a.container, b.container)
    files = _TokenizerFiles()
    forms: dict[str, Callable[[Checkpoint], Form | None]] = {
        "tokenizer": files.form if both_folders else _vocabulary,
        "special_tokens": lambda x: _special(x, files),
        "chat_template": _template,
        "generation_config": _generation,
    }
    for name in NAMES:
        if not read:
            there = [_is_there(x, name) for x in (a, b)]
            status = {(1, 1): "unread", (1, 0): "only_a", (0, 1): "only_b", (0, 0): "absent"}
            yield SideFile(name, status[there[0], there[1]], None, None, None)
            continue
        try:
            yield _compared(name, forms[name](a), forms[name](b), sides)
        except CkptError as e:
            yield SideFile(name, "unread", None, None, str(e))


def _is_there(checkpoint: Checkpoint, name: str) -> bool:
    if checkpoint.container == "gguf":
        key = {"chat_template": special_tokens.TEMPLATE_KEY, "generation_config": ""}.get(name, VOCABULARY[0])
        return key in checkpoint.metadata
    file = {"chat_template": "chat_template.jinja", "generation_config": GENERATION}.get(name, special_tokens.FILE)
    return file in checkpoint.companions


def _compared(name: str, a: Form | None, b: Form | None, sides: tuple[str, str]) -> SideFile:
    first = None if a is None else _sha256(a)
    hashes = [first, first if a is b else None if b is None else _sha256(b)]
    if a is None or b is None:
        status = "absent" if a is b else "only_b" if a is None else "only_a"
        return SideFile(name, status, hashes[0], hashes[1], None)
    if hashes[0] == hashes[1]:
        return SideFile(name, "equal", hashes[0], hashes[1], None)
    key = next(k for k in (*a, *b) if a.get(k) != b.get(k))
    return SideFile(name, "differs", hashes[0], hashes[1], _what(key, a.get(key), b.get(key), sides))


def _sha256(form: Form) -> str:
    digest = hashlib.sha256()
    for key in sorted(form):
        for piece in (key.encode(), _bytes(form[key])):
            digest.update(struct.pack("<Q", len(piece)) + piece)
    return digest.hexdigest()


def _bytes(value: Any) -> bytes:
    if isinstance(value, Array):
        return value.packed() + value.data
    if isinstance(value, bytes):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _what(key: str, a: Any, b: Any, sides: tuple[str, str]) -> str:
    """The first thing in which two values of a key differ."""
    in_a, in_b = (f"in {side}" for side in sides)
    if isinstance(a, Array) and isinstance(b, Array):
        if a.count != b.count:
            return f"{key}: {a.count:,} {in_a}, {b.count:,} {in_b}"
        i, x, y = next((i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return f"{key}: entry {i} is {_quoted(x)} {in_a}, {_quoted(y)} {in_b}"
    if isinstance(a, list) and isinstance(b, list):
        i, x, y = next((i, x, y) for i, (x, y) in enumerate(zip_longest(a, b)) if x != y)
        return f"{key}: entry {i} is {_quoted(x)} {in_a}, {_quoted(y)} {in_b}"
    if isinstance(a, str) and isinstance(b, str):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return f"{key}: from character {at} on, {_quoted(a[at:])} {in_a}, {_quoted(b[at:])} {in_b}"
    return f"{key}: {_quoted(a)} {in_a}, {_quoted(b)} {in_b}"


def _quoted(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return shown(text, 60)


class _TokenizerFiles:
    """tokenizer.json of folders; the same bytes are parsed once, which takes a second for gpt-oss' 28 MB."""

    def __init__(self) -> None:
        self._read: dict[bytes, TokenizerJson | CkptError] = {}
        self._forms: dict[bytes, Form] = {}

    def read(self, source: Source) -> tuple[bytes, TokenizerJson | CkptError]:
        """The file's digest, and what it holds or why that is no BPE tokenizer."""
        data = read_bytes(source, special_tokens.FILE, limits.TOKENIZER_FILE)
        digest = hashlib.sha256(data).digest()
        if digest not in self._read:
            try:
                self._read[digest] = read_tokenizer(data)
            except CkptError as e:
                self._read[digest] = e
        return digest, self._read[digest]

    def form(self, checkpoint: Checkpoint) -> Form | None:
        """The vocabulary by id, the merges, and all else; of another kind than BPE, all as JSON."""
        source = checkpoint.companions.get(special_tokens.FILE)
        if source is None:
            return None
        digest, found = self.read(source)
        if digest not in self._forms:
            if isinstance(found, CkptError):
                form: Form = read_object(source, special_tokens.FILE, limits.TOKENIZER_FILE)
            else:
                tokens = [[token, i] for token, i in sorted(found.vocab.items(), key=lambda item: (item[1], item[0]))]
                merges = Array(ValueType.string, found.merge_count, found.merges)
                form = {"vocab": tokens, "merges": merges, **found.rest}
            self._forms[digest] = form
        return self._forms[digest]


def _key_values(checkpoint: Checkpoint) -> Mapping[str, Scalar | Array] | None:
    """A GGUF's key-values; of a folder those of the tokenizer that a converter would write."""
    if checkpoint.container == "gguf":
        return checkpoint.metadata
    table = checkpoint.arch.table if checkpoint.arch else {}
    config, files = checkpoint.config or {}, checkpoint.companions
    if special_tokens.FILE not in files or "tokenizer" not in table or type(config.get("vocab_size")) is not int:
        return None
    return tokenizer.to_gguf(table, config, files)[0]


def _vocabulary(checkpoint: Checkpoint) -> Form | None:
    values = _key_values(checkpoint)
    if values is None or VOCABULARY[0] not in values:
        return None
    found = {key: values[key] for key in VOCABULARY if key in values}
    return {key: v.value if isinstance(v, Scalar) else v for key, v in found.items()}


def _special(checkpoint: Checkpoint, tokenizers: _TokenizerFiles) -> Form | None:
    """Special ids and flags by their GGUF keys."""
    if checkpoint.container == "gguf":
        values = {key: v.value for key in _IDS if isinstance(v := checkpoint.metadata.get(key), Scalar)}
        return values if VOCABULARY[0] in checkpoint.metadata else None
    files, config = checkpoint.companions, checkpoint.config or {}
    if special_tokens.FILE not in files or type(config.get("vocab_size")) is not int:
        return None
    found = tokenizers.read(files[special_tokens.FILE])[1]
    if isinstance(found, CkptError):
        raise found
    made = special_tokens.special_tokens(found.rest, _settings(checkpoint), config, files)
    ids = {special_tokens.ID_KEYS[role]: i for role, i in made.ids.items() if role in special_tokens.ID_KEYS}
    return ids | {special_tokens.ADD_KEYS[r]: flag for r, flag in made.add.items() if r in special_tokens.ADD_KEYS}


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    files = checkpoint.companions
    return read_object(files[special_tokens.CONFIG], special_tokens.CONFIG) if special_tokens.CONFIG in files else None


def _template(checkpoint: Checkpoint) -> Form | None:
    """The chat templates by name; line ends are newlines."""
    if checkpoint.container == "gguf":
        values: Mapping[str, Scalar | Array] = checkpoint.metadata
    else:
        settings = _settings(checkpoint) or {}
        template = settings.get("chat_template") or special_tokens.chat_template(checkpoint.companions)
        values = special_tokens.template_keys(template)
    found = {
        k: v.value for k, v in values.items() if k.startswith(special_tokens.TEMPLATE_KEY) and isinstance(v, Scalar)
    }
    return {k: str(v).replace("\r\n", "\n") for k, v in found.items()} or None


def _generation(checkpoint: Checkpoint) -> Form | None:
    source = checkpoint.companions.get(GENERATION) if checkpoint.container != "gguf" else None
    if source is None:
        return None
    stated = read_object(source, GENERATION)
    return {key: value for key, value in stated.items() if key not in _UNHEEDED and value is not None}
