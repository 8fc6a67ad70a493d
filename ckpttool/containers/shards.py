"""Which tensor goes into which file of a set, and what the files are called. Pure: sizes and names in and out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

SAFETENSORS_SHARD: Final = 5 * 10**9
"""The default limit, huggingface_hub's "5GB"."""

_SIZE: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?i?)(b?)\s*", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Bytes of "512MB", "5GB", "2G" (powers of 1000), "1GiB" (of 1024) or "1000000".

    ValueError says what is legal, for the user.
    """
    from decimal import Decimal

    found = _SIZE.fullmatch(text)
    unit = found[2].lower() if found else "?"
    if not found or unit == "i" or (unit.endswith("i") and not found[3]):
        raise ValueError(f"{text!r} is no size; write for example 512MB, 5GB (powers of 1000) or 1GiB (of 1024)")
    base = 1024 if unit.endswith("i") else 1000
    size = int(Decimal(found[1]) * base ** _POWERS[unit.rstrip("i")])
    if size < 1:
        raise ValueError(f"{text!r} is no size; it must be at least one byte")
    return size


def split_by_size(sizes: Sequence[int], limit: int) -> list[range]:
    """The tensors of each shard, as ranges of their indices, in order; none is empty.

    A shard ends before the tensor that would take it over `limit` bytes, so that only a tensor over the limit makes a
    shard over it, alone. GGUFWriter splits by the same rule: unpadded bytes, header not counted.
    """
    if limit < 1:
        raise ValueError("the limit must be at least one byte")
    shards = []
    first = held = 0
    for i, size in enumerate(sizes):
        if i > first and held + size > limit:
            shards.append(range(first, i))
            first, held = i, 0
        held += size
    if first < len(sizes):
        shards.append(range(first, len(sizes)))
    return shards


def shard_names(stem: str, count: int, suffix: str) -> list[str]:
    """The names of `count` files, as transformers and llama.cpp both give them; one alone has no number."""
    if count == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1)]
