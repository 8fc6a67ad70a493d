"""Which way a candidate's lossy parts were made, found on a sample: some rows, remade in every way that is known."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import Codec, Recipe
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Operand
from ckpttool.comparison.pairs import Group, groups, holdings
from ckpttool.comparison.parts import show_slabs
from ckpttool.comparison.slabs import distinct
from ckpttool.steps import Fidelity, kind_of
from ckpttool.validator.recipes import Maker, makers, makes, remake
from ckpttool.validator.remade import Flags, other_values, unlike

ALIKE: Final = 0.98
"""The share of an expert's blocks that its maker makes, damage aside.

Of random weights two ways that are known here make the same of 0.95 of the blocks at most (BF16) or 0.987 (F32 by way
of F16, ties apart), unless they differ in what is rare alone. A fault in a block of each row of gpt-oss leaves 0.989.
"""

MOST: Final = 0.5
"""The share of experts that their maker makes so: where a fault has more of them, the budget has to find it."""

SLABS: Final = 12
"""How many are looked at for each pair of formats, far apart."""

ELEMENTS: Final = 1 << 15
"""How many are remade of each piece."""

RIVALS: Final = 6
"""As many ways that do as well on the sample are kept: rules that differ for ties alone, in numbers that have few."""

Pair = tuple[str, str]
"""The formats of reference and candidate."""

Slab = tuple[Group, tuple[int, int]]
"""Rows [start, stop) of a group."""


@dataclass(frozen=True)
class Choice:
    """The likeliest maker, and others that did as well."""

    maker: Maker
    rivals: tuple[Maker, ...] = ()


def is_lossy(source: Codec, target: Codec) -> bool:
    """Whether making the one of the other may lose something, be it that no conversion of ours would."""
    way = kind_of(source, target)
    return makes(source, target) and (way is None or way[1] is Fidelity.lossy)


def lossy_slabs(reference: Checkpoint, candidate: Checkpoint) -> dict[Pair, list[Slab]]:
    """The slabs in which one format was made of the other with some loss."""
    out: dict[Pair, dict[tuple[str, int], Slab]] = {}
    for group in groups(*holdings(reference, candidate)):
        for start, stop in group.slabs():
            for part in group.parts:
                x, y = codecs_at(group, part, start)
                if is_lossy(x, y):
                    out.setdefault((x.name, y.name), {})[group.parts[0], start] = (group, (start, stop))
    return {pair: list(found.values()) for pair, found in out.items()}


def codecs_at(group: Group, part: str, row: int) -> tuple[Codec, Codec]:
    """How both sides store a row, which both have."""
    x, y = (distinct(side, (part,), row)[0].weight.codec for side in (group.a, group.b))
    return x, y


def choose(
    reference: Checkpoint, candidate: Checkpoint, hint: Recipe | None, workers: int | None
) -> dict[Pair, Choice]:
    """The likeliest maker for each pair of formats that loses something. Errors as `compare_parts`."""
    trial = _Trial(hint)
    out = {}
    for pair, slabs in lossy_slabs(reference, candidate).items():
        some = [(group, (start, _short(group, start, stop))) for group, (start, stop) in _spread(slabs, SLABS)]
        trial.begins = {(group.parts, start) for group, (start, _) in some}
        show_slabs(reference, candidate, some, trial.see, workers)
        pieces = sum(len(group.parts) for group, _ in some)
        out[pair] = _choice(makers(*pair, hint), trial.shares.get(pair, []), pieces)
    return out


def _short(group: Group, start: int, stop: int) -> int:
    """Where the sample of a slab ends; a transposed expert is read whole."""
    sides = (distinct(side, group.parts, start) for side in (group.a, group.b))
    if any(x.transposed for found in sides for x in found):
        return stop
    return min(stop, start + max(1, ELEMENTS // group.shape.row_length))


def _spread(slabs: Sequence[Slab], most: int) -> list[Slab]:
    """Up to `most` of them, evenly from the first to the last."""
    return [slabs[i] for i in sorted({round(i * (len(slabs) - 1) / (most - 1)) for i in range(most)})]


@dataclass
class _Trial:
    """Watches a sample; `shares` holds of the piece where each slab `begins` which share of it each maker makes."""

    hint: Recipe | None
    begins: set[tuple[tuple[str, ...], int]] = field(default_factory=set)
    shares: dict[Pair, list[Mapping[Maker, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, group: Group, part: str, x: Operand, y: Operand, first_row: int) -> None:
        """Try every maker on some rows."""
        if (group.parts, first_row) not in self.begins or not is_lossy(x.codec, y.codec):
            return
        step = -(-x.fields[0].shape[0] * group.shape.row_length // ELEMENTS)
        p, q = (Operand(side.codec, tuple(f[::step] for f in side.fields), 1) for side in (x, y))
        same = ~other_values(p, q)
        found = {m: _share(p, q, same, m) for m in makers(x.codec.name, y.codec.name, self.hint)}
        with self.lock:
            self.shares.setdefault((x.codec.name, y.codec.name), []).append(found)


def _share(x: Operand, y: Operand, same: Flags, maker: Maker) -> float:
    """The share of units that a maker makes; those that hold the `same` values count as made."""
    try:
        made = remake(x, y.codec, maker)
    except BadBlock:
        return 0.0
    return float(np.mean(same | ~unlike(made, y)))


def _choice(ways: Sequence[Maker], shares: Sequence[Mapping[Maker, float]], pieces: int) -> Choice:
    """By how many pieces a maker makes nearly whole; among equals by how much it makes, then by their order.

    Pieces in which nothing was lost were not shown, and every maker makes them. Where none makes enough, the first of
    `ways` is tried on all: what need not have lost anything is to be the same, however the rest was made.
    """
    made = {m: (sum(of[m] >= ALIKE for of in shares), sum(of[m] for of in shares)) for m in ways}
    best, *others = sorted(ways, key=lambda m: made[m], reverse=True)
    if made[best][0] + pieces - len(shares) < MOST * pieces:
        return Choice(ways[0])
    return Choice(best, tuple(m for m in others[:RIVALS] if made[m][0] == made[best][0]))
