"""How much a file may ask of us before it is believed: budgets, each above every honest file seen.

A file over a budget is refused before the memory is spent. Source: the formats' own limits where they have one
(safetensors' 100 MB, GGUF's 63-byte names), otherwise several times the largest published checkpoint.

Whoever knows the file sets another budget in the environment: `CKPTTOOL_LIMIT_TENSORS=2000000`, read when this module
is imported. Over a format's own limit a file can then be read here, and nowhere else.
"""

from __future__ import annotations

import os
from typing import Final, Self

from ckpttool.containers.shards import parse_size
from ckpttool.errors import UsageError

KIB: Final = 1 << 10
MIB: Final = 1 << 20

INT64_MAX: Final = (1 << 63) - 1

PREFIX: Final = "CKPTTOOL_LIMIT_"


class Limit(int):
    """A number that knows what it is called, so that whoever is over it is told how to allow more."""

    name: str

    def __new__(cls, name: str, default: int, most: int = INT64_MAX) -> Self:
        """`default`, or what the environment says. UsageError where that is no number up to `most`."""
        limit = super().__new__(cls, _given(PREFIX + name, default, most))
        limit.name = name
        return limit


def _given(variable: str, default: int, most: int) -> int:
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        value = parse_size(text)
    except ValueError as error:
        what = f"{text!r} is no number of one or more"
        raise UsageError(what, field=variable, hint="write for example 5000 or 64MiB") from error
    if value > most:
        raise UsageError(f"{text!r} is more than {most}, which is the most there can be", field=variable)
    return value


def hint(limit: int, first: str) -> str:
    """The hint `first`, and how to allow more than `limit`, where that is one of those below."""
    return f"{first} ({PREFIX}{limit.name}=N allows more)" if isinstance(limit, Limit) else first


READ_WINDOW: Final = 4 * MIB
"""Bytes of one positional read while a header is scanned."""

SAFETENSORS_HEADER: Final = Limit("SAFETENSORS_HEADER", 100_000_000)
"""Bytes; the format's own limit."""
SAFETENSORS_NAME: Final = Limit("SAFETENSORS_NAME", 4_096)
"""Bytes of a tensor's name."""
SAFETENSORS_DIMS: Final = Limit("SAFETENSORS_DIMS", 64)
"""Dimensions; numpy's limit."""
SAFETENSORS_ENTRY: Final = Limit("SAFETENSORS_ENTRY", 64 * KIB)
"""Bytes of the JSON of one tensor; 64 dimensions of 20 digits fit forty times."""
SAFETENSORS_METADATA: Final = Limit("SAFETENSORS_METADATA", 100_000)
"""Entries of `__metadata__`."""

TENSORS: Final = Limit("TENSORS", 250_000)
"""Tensors in one file: as many as `inspect` tells of in 512 MiB. DeepSeek-V3 has 92,000 in 163 files."""
CHECKPOINT_TENSORS: Final = Limit("CHECKPOINT_TENSORS", 1_000_000)
"""Tensors in all files of a checkpoint."""

GGUF_KEYS: Final = Limit("GGUF_KEYS", 100_000)
"""Key-values of a file."""
GGUF_KEY: Final = Limit("GGUF_KEY", 65_535)
"""Bytes of a key; the format's own limit."""
GGUF_NAME: Final = Limit("GGUF_NAME", 63)
"""Bytes of a tensor's name; ggml's limit."""
GGUF_DIMS: Final = Limit("GGUF_DIMS", 4, most=64)
"""Dimensions; ggml's limit."""
GGUF_ALIGNMENT: Final = Limit("GGUF_ALIGNMENT", 65_536)
"""Bytes."""
GGUF_VALUES: Final = Limit("GGUF_VALUES", 256 * MIB)
"""Bytes of all key-values of a file together; gpt-oss' vocabulary needs 13 MB."""

INDEX_FILE: Final = Limit("INDEX_FILE", 64 * MIB)
"""Bytes of an index; DeepSeek-V3's is 9 MB."""
INDEX_FILES: Final = Limit("INDEX_FILES", 100_000)
"""Files that an index names."""

SIDE_FILE: Final = Limit("SIDE_FILE", 16 * MIB)
"""Bytes of config.json, tokenizer_config.json, a chat template and the like; Gemma's tokenizer_config.json is 1 MB."""
TOKENIZER_FILE: Final = Limit("TOKENIZER_FILE", 256 * MIB)
"""Bytes of tokenizer.json; gpt-oss' is 28 MB. Without vocabulary and merges it may have SIDE_FILE."""
TOKENIZER_RUN: Final = MIB
"""Bytes of tokenizer.json's vocabulary or merges that are parsed at once."""
VOCABULARY: Final = Limit("VOCABULARY", 1 << 22)
"""Tokens of a vocabulary, since a list of them is made; the largest published have a quarter of a million."""

JSON_DEPTH: Final = Limit("JSON_DEPTH", 64, most=500)
"""Brackets in brackets of a JSON file; Python's reader itself goes no deeper than a thousand."""
JSON_TOKEN: Final = 64
"""A JSON file may hold one comma or bracket in so many bytes of its limit, 262,144 in SIDE_FILE."""

REMOTE_FIRST: Final = 128 * KIB
"""Bytes of the first range of a remote header: 97 % of safetensors headers on the Hub are below 100 KB, by what
huggingface_hub's authors counted, and so is every later shard of a GGUF."""
REMOTE_SAFETENSORS_HEADER: Final = Limit("REMOTE_SAFETENSORS_HEADER", 25_000_000)
"""Bytes; huggingface_hub's limit."""
REMOTE_GGUF_HEADER: Final = Limit("REMOTE_GGUF_HEADER", 64 * MIB)
"""Bytes."""
REMOTE_GGUF: Final = (*(mark for mark in (REMOTE_FIRST, 16 * MIB) if mark < REMOTE_GGUF_HEADER), REMOTE_GGUF_HEADER)
"""Where the ranges of a remote GGUF's header end; with gpt-oss' vocabulary it is 13 MB long."""
REMOTE_REQUESTS: Final = 3
"""Ranges of one remote header."""
REMOTE_FILES: Final = Limit("REMOTE_FILES", 1_000)
"""Files of one remote checkpoint; Kimi-K2 has 61, DeepSeek-V3 163."""
HUB_LIST: Final = Limit("HUB_LIST", 16 * MIB)
"""Bytes of the Hub's list of a repo's files, some 250 for each file."""
HUB_ANSWER: Final = Limit("HUB_ANSWER", 64 * MIB)
"""Bytes of any other answer of the Hub's, while something is published."""
REMOTE_PARALLEL: Final = 8
"""Remote headers read at once."""

LIMITS: Final = {found.name: found for found in list(globals().values()) if isinstance(found, Limit)}
"""All of them, by name."""


def _require_known() -> None:
    """UsageError where the environment sets a limit that there is not."""
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX) not in LIMITS:
            raise UsageError("there is no such limit", field=variable, hint=f"there are {', '.join(LIMITS)}")


_require_known()
