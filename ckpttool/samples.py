"""Which slabs of a conversion stand for all of it: of every file and kind of step, and the same ones each time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from ckpttool.planner import Plan
from ckpttool.steps import target_ranges

T = TypeVar("T")

LEAST = 32
"""Slabs where nobody says how many; more where files and kinds of steps are more than that."""


def chosen(plan: Plan, seed: str, count: int | None) -> list[int]:
    """Numbers of `count` slabs, of all where there are no more: one of each file first, its kinds of steps in turns.

    `seed` is what the files hash to: who changes one of them changes the choice.
    """

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed} {index}".encode()).digest()

    groups: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for i, slab in enumerate(plan.slabs):
        step = plan.steps[slab.step]
        kind = (step.kind, step.source.codec.name, step.target.codec.name)
        groups.setdefault(target_ranges(step, slab)[0].file, {}).setdefault(kind, []).append(i)
    of_file = [
        _turned([sorted(kinds[k], key=place) for k in sorted(kinds)], n)
        for n, (_, kinds) in enumerate(sorted(groups.items()))
    ]
    ordered = _in_turns(_in_turns(of_file))
    least = max(LEAST, sum(map(len, of_file)))
    return sorted(ordered[: least if count is None else count])


def _turned(items: Sequence[T], n: int) -> list[T]:
    """`items` from number `n` on, and the ones before it at the end."""
    n %= len(items)
    return [*items[n:], *items[:n]]


def _in_turns(rows: Sequence[Sequence[T]]) -> list[T]:
    """The first of each row, then the second of each, and so on."""
    most = max(map(len, rows), default=0)
    return [row[i] for i in range(most) for row in rows if i < len(row)]
