"""What a wrong part was made of, where that can be told for certain: of another expert, another part, other nibbles.

The wrong rows of an expert are known by two sums, of what was made of the reference and of what the candidate holds.
They do not depend on the order in which pieces come, and equal sums are equal bytes in equal rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.formats import MXFP4
from ckpttool.codecs.transcode import Operand
from ckpttool.codecs.values import decodable
from ckpttool.validator.remade import numbers

_LAYER: Final = re.compile(r"layer\.\d+\.")
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sums:
    """Of rows of one expert: what was made of the reference, and what the candidate holds."""

    made: int
    held: int

    def __add__(self, other: Sums) -> Sums:
        """Those of other rows of the same expert taken in."""
        return Sums((self.made + other.made) & _MASK, (self.held + other.held) & _MASK)


def sums(made: Operand, held: Operand, rows: NDArray[np.intp], expert_rows: int) -> Sums:
    """Of rows of one expert, by their numbers in the part."""
    weights = 2 * (rows % expert_rows).astype(np.uint64) + np.uint64(1)
    return Sums(*(int((_row_sums(side) * weights).sum(dtype=np.uint64)) for side in (made, held)))


def _row_sums(rows: Operand) -> NDArray[np.uint64]:
    """A number of each row's bytes: they as 64-bit words, each times an odd number of its own, modulo 2^64."""
    total = np.zeros(rows.fields[0].shape[0], np.uint64)
    for j, f in enumerate(rows.fields):
        flat = np.ascontiguousarray(f[:, 0])
        nbytes = flat.shape[1]
        words = np.zeros((len(flat), -(-nbytes // 8) * 8), np.uint8)
        words[:, :nbytes] = flat
        total += (words.view(np.uint64) * _odd(words.shape[1] // 8, j)).sum(-1, dtype=np.uint64)
    return total


@cache
def _odd(count: int, seed: int) -> NDArray[np.uint64]:
    drawn = np.random.default_rng(seed).integers(0, 1 << 63, count, np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)


def causes(made: Operand, held: Operand) -> frozenset[str]:
    """What would explain every one of these rows, in words."""
    found = []
    if held.codec.format == MXFP4:
        (codes, scales), (others, other_scales) = made.blocks_and_scales, held.blocks_and_scales
        if np.array_equal(scales, other_scales) and np.array_equal(codes, others << 4 | others >> 4):
            found.append("the two codes of each byte have changed places")
    if decodable(held.codec) and (numbers(held) == 0).all():
        found.append("zeros stand in their place")
    return frozenset(found)


def places(wrong: Mapping[str, Mapping[int, Sums]]) -> Iterator[tuple[str, str]]:
    """Parts whose wrong experts are those of another part, or of each other, in their order: the part, and in words."""
    by_made = {tuple((e, s.made) for e, s in sorted(found.items())): part for part, found in wrong.items()}
    by_held = {part: tuple((e, s.held) for e, s in sorted(found.items())) for part, found in wrong.items()}
    for part, found in wrong.items():
        other = by_made.get(by_held[part])
        if other is not None and other != part and by_made.get(by_held[other]) == part:
            yield part, f"{_joined(_short_names(*sorted((part, other))))} have changed places"
        elif len(found) > 1 and sorted(s.made for s in found.values()) == sorted(s.held for s in found.values()):
            yield part, f"experts {_joined(map(str, sorted(found)))} have changed places"


def _short_names(a: str, b: str) -> tuple[str, str]:
    """Without the layer, where that is the same."""
    found = _LAYER.match(a)
    return (a[found.end() :], b[found.end() :]) if found and b.startswith(found[0]) else (a, b)


def _joined(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"
