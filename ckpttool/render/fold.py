"""Names that differ in numbers alone as one: `model.layers.{0-35}.self_attn.q_proj.weight`, 36 times."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")

NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""A layer's or expert's number: all between two dots."""

MOST_RANGES = 6


@dataclass(frozen=True)
class Folded(Generic[T]):
    """Rows whose names differ in numbers alone, and whose `key` is the same.

    `odd` where others of the same name have another key, and more of them have it than have this one.
    """

    name: str
    key: Hashable
    rows: tuple[T, ...]
    odd: bool


def folded(rows: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> list[Folded[T]]:
    """`rows` in groups, in the order in which the first of each comes."""
    groups: dict[tuple[str, Hashable], list[T]] = {}
    for row in rows:
        groups.setdefault((NUMBER.sub("#", name(row)), key(row)), []).append(row)
    most: dict[str, int] = {}
    for (pattern, _), held in groups.items():
        most[pattern] = max(most.get(pattern, 0), len(held))
    out = []
    chosen: set[str] = set()
    for (pattern, k), held in groups.items():
        usual = len(held) == most[pattern] and pattern not in chosen
        if usual:
            chosen.add(pattern)
        out.append(Folded(_name([name(r) for r in held]), k, tuple(held), not usual))
    return out


def _name(names: Sequence[str]) -> str:
    """One name for all: where their numbers differ, the numbers as ranges."""
    if len(names) == 1:
        return names[0]
    numbers = [list(map(int, NUMBER.findall(n))) for n in names]
    texts = iter([_numbers(sorted(set(column))) for column in zip(*numbers, strict=True)])
    return NUMBER.sub(lambda _: next(texts), names[0])


def short(name: str) -> str:
    """Without what comes before the layers' numbers, which is the same in all of them: for narrow terminals."""
    at = name.find("{")
    return name[at:] if 0 < at < 20 else name


def _numbers(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else "{" + ranges(numbers) + "}"


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges, "0-3,7"; in even steps as "0,2..34" or "3,7..47"; many ranges are cut."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]},{numbers[1]}..{numbers[-1]}"
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in found]
    if len(parts) > MOST_RANGES:
        parts = [*parts[: MOST_RANGES - 2], "..", parts[-1]]
    return ",".join(parts)
