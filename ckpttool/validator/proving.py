"""Every part of the candidate remade from the reference while the two are compared: what is not as it was to be.

What a conversion copies, repacks or widens has one right outcome. What it quantizes or rounds has one for each way in
which that may be done.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ckpttool.codecs.transcode import Operand
from ckpttool.comparison.pairs import Group
from ckpttool.steps import kind_of
from ckpttool.validator.originals import Sums, causes, sums
from ckpttool.validator.recipes import DIRECTLY, Maker, makes
from ckpttool.validator.remade import Misses, described, misses, rows_of
from ckpttool.validator.trials import Choice, Pair, is_lossy


@dataclass(slots=True)
class Wrong:
    """What is wrong with one expert of a part (with number 0, where it has none).

    Units are blocks of the candidate's format, or numbers. `needless` ones were lost though the format holds their
    values. `first` is the row of the part and the unit in it, `what` how that differs. `sums` are of all rows in which
    something is wrong (None: some cannot be made), and `causes` hold for all that is.
    """

    group: Group
    block: int
    units: int
    needless: int
    first: tuple[int, int]
    what: str
    sums: Sums | None
    causes: frozenset[str]

    @property
    def whole(self) -> int:
        """Units of the expert."""
        return self.group.expert_rows * self.group.shape.row_length // self.block

    def add(self, other: Wrong) -> None:
        """Take in what another piece of the same expert found."""
        self.units += other.units
        self.needless += other.needless
        self.sums = self.sums + other.sums if self.sums and other.sums else None
        self.causes &= other.causes
        if other.first < self.first:
            self.first, self.what = other.first, other.what


Faults = dict[str, dict[int, Wrong]]
"""By part and expert."""


@dataclass
class Prover:
    """Watches a comparison.

    `choices` says how each pair of formats was made, where that loses something. `found` holds by pair what is wrong,
    `explained` how much of that each rival would make right.
    """

    choices: Mapping[Pair, Choice]
    found: dict[Pair, Faults] = field(default_factory=dict)
    explained: Counter[tuple[Pair, Maker]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, group: Group, part: str, x: Operand, y: Operand, first_row: int) -> None:
        """Remake some rows, and note where the candidate holds others."""
        pair = x.codec.name, y.codec.name
        lossy = is_lossy(x.codec, y.codec)
        choice = self.choices.get(pair, Choice(None)) if lossy else Choice(DIRECTLY)
        if choice.maker is None or not (lossy or _can(x, y)):
            return
        literal = not lossy and x.codec.format == y.codec.format
        missed = misses(x, y, choice.maker, literal=literal)
        if missed is None:
            return
        rivals = {m: _explained(x, y, missed, m) for m in choice.rivals}
        wrong = _by_expert(group, x, y, first_row, missed)
        with self.lock:
            held = self.found.setdefault(pair, {}).setdefault(part, {})
            for expert, of in wrong.items():
                held[expert].add(of) if expert in held else held.setdefault(expert, of)
            for maker, count in rivals.items():
                self.explained[pair, maker] += count


def _can(x: Operand, y: Operand) -> bool:
    """Whether the one outcome that there is can be made here."""
    if x.codec == y.codec:
        return True
    return kind_of(x.codec, y.codec) is not None and makes(x.codec, y.codec)


def _explained(x: Operand, y: Operand, missed: Misses, rival: Maker) -> int:
    """How many of the missed units another maker makes."""
    still = misses(rows_of(x, missed.rows), rows_of(y, missed.rows), rival, literal=False)
    if still is None:
        return missed.count
    return missed.count - int(np.count_nonzero(missed.units[still.rows] & still.units))


def _by_expert(group: Group, x: Operand, y: Operand, first_row: int, missed: Misses) -> dict[int, Wrong]:
    """What is wrong in a piece, expert by expert."""
    out = {}
    experts = (first_row + missed.rows) // group.expert_rows
    for expert in np.unique(experts):
        at = np.flatnonzero(experts == expert)
        rows, units, made = missed.rows[at], missed.units[at], rows_of(missed.made, at) if missed.made else None
        held = rows_of(y, rows)
        unit = int(np.flatnonzero(units[0])[0])
        one = np.zeros(1, np.intp)
        what = described(rows_of(x, rows[:1]), rows_of(held, one), rows_of(made, one) if made else None, unit)
        out[int(expert)] = Wrong(
            group, y.codec.format.block, int(np.count_nonzero(units)),
            int(np.count_nonzero(missed.needless[at])), (first_row + int(rows[0]), unit), what,
            sums(made, held, first_row + rows, group.expert_rows) if made else None,
            causes(made, held) if made else frozenset(),
        )  # fmt: skip
    return out
