"""How much a header may ask of us before it is believed: budgets, each above every honest file seen.

A file over a budget is refused before the memory is spent. Source: the formats' own limits where they have one
(safetensors' 100 MB, GGUF's 63-byte names), otherwise several times the largest published checkpoint.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

INT64_MAX: Final = (1 << 63) - 1

READ_WINDOW: Final = 4 * MIB
"""Bytes of one positional read while a header is scanned."""

SAFETENSORS_HEADER: Final = 100_000_000
SAFETENSORS_NAME: Final = 4_096
SAFETENSORS_DIMS: Final = 64
SAFETENSORS_ENTRY: Final = 64 * KIB
"""Bytes of the JSON of one tensor; 64 dimensions of 20 digits fit forty times."""
SAFETENSORS_METADATA: Final = 100_000
"""Entries of `__metadata__`."""

TENSORS: Final = 1_000_000
"""Tensors in one file."""

GGUF_KEYS: Final = 100_000
GGUF_KEY: Final = 65_535
GGUF_NAME: Final = 63
GGUF_DIMS: Final = 4
GGUF_ALIGNMENT: Final = 65_536
GGUF_VALUES: Final = 256 * MIB
"""Bytes of all key-values of a file together; gpt-oss' vocabulary needs 13 MB."""

INDEX_FILE: Final = 64 * MIB
"""Bytes of an index; DeepSeek-V3's is 9 MB."""
INDEX_FILES: Final = 100_000

SIDE_FILE: Final = 16 * MIB
"""Bytes of config.json, tokenizer_config.json, a chat template and the like; Gemma's tokenizer_config.json is 1 MB."""
TOKENIZER_FILE: Final = 256 * MIB
"""Bytes of tokenizer.json; gpt-oss' is 28 MB. Without vocabulary and merges it may have SIDE_FILE."""
TOKENIZER_RUN: Final = MIB
"""Bytes of tokenizer.json's vocabulary or merges that are parsed at once."""
VOCABULARY: Final = 1 << 22
"""Tokens of a vocabulary, since a list of them is made; the largest published have a quarter of a million."""

JSON_DEPTH: Final = 64
JSON_TOKEN: Final = 64
"""A JSON file may hold one comma or bracket in so many bytes of its limit, 262,144 in SIDE_FILE."""

REMOTE_FIRST: Final = 128 * KIB
"""Bytes of the first range of a remote header: 97 % of safetensors headers on the Hub are below 100 KB, by what
huggingface_hub's authors counted, and so is every later shard of a GGUF."""
REMOTE_GGUF: Final = (REMOTE_FIRST, 16 * MIB, 64 * MIB)
"""Where the three ranges of a remote GGUF's header end; with gpt-oss' vocabulary it is 13 MB long."""
REMOTE_REQUESTS: Final = 3
"""Ranges of one remote header."""
REMOTE_FILES: Final = 1_000
"""Files of one remote checkpoint; Kimi-K2 has 61, DeepSeek-V3 163."""
HUB_LIST: Final = 16 * MIB
"""Bytes of the Hub's list of a repo's files, some 250 for each file."""
REMOTE_PARALLEL: Final = 8
"""Remote headers read at once."""
