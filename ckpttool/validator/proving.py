"""Every part of the candidate remade from the reference while the two are compared: what is not as it was to be.

What a conversion copies, repacks or widens has one right outcome. What it quantizes or rounds has one for each way in
which that may be done.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.formats import BlockFormat
from ckpttool.codecs.transcode import Operand
from ckpttool.comparison.pairs import Group
from ckpttool.steps import kind_of
from ckpttool.validator.differences import described
from ckpttool.validator.originals import Sums, causes, sums
from ckpttool.validator.recipes import DIRECTLY, Maker, makes
from ckpttool.validator.remade import Flags, Misses, misses, rows_of
from ckpttool.validator.trials import Choice, Pair, is_lossy

TRIED: Final = 16
"""Wrong rows of a piece on which rivals are tried. More are wrong where all is, and no rival mends that."""


@dataclass(frozen=True, slots=True, order=True)
class Spot:
    """A unit by its row of the part and its place in that; `what` says how it differs."""

    row: int
    unit: int
    what: str


@dataclass(slots=True)
class Wrong:
    """What is wrong with one expert of a part (with number 0, where it has none).

    Units are blocks of the candidate's `format`, or numbers; `spot` is the first that is wrong. `needless` ones were
    lost though the format holds their values, and `gross` ones are what no rule makes; `sure_spot` is the first of
    both. `sums` are of all rows in which something is wrong (None: some cannot be made), and `causes` hold for all.
    """

    group: Group
    format: BlockFormat
    units: int
    needless: int
    gross: int
    spot: Spot
    sure_spot: Spot | None
    sums: Sums | None
    causes: frozenset[str]

    @property
    def whole(self) -> int:
        """Units of the expert."""
        return self.group.expert_rows * self.group.shape.row_length // self.format.block

    def add(self, other: Wrong) -> None:
        """Take in what another piece of the same expert found."""
        self.units += other.units
        self.needless += other.needless
        self.gross += other.gross
        self.sums = self.sums + other.sums if self.sums and other.sums else None
        self.causes &= other.causes
        self.spot = min(self.spot, other.spot)
        self.sure_spot = min((s for s in (self.sure_spot, other.sure_spot) if s), default=None)


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
        choice = self.choices.get(pair) if lossy else Choice(DIRECTLY) if _can(x, y) else None
        if choice is None:
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
    """How many of the missed units another maker makes, in up to `TRIED` rows: what made the rest shows in any."""
    at = np.arange(0, len(missed.rows), -(-len(missed.rows) // TRIED))
    rows, units = missed.rows[at], missed.units[at]
    still = misses(rows_of(x, rows), rows_of(y, rows), rival, literal=False)
    left = 0 if still is None else np.count_nonzero(units[still.rows] & still.units)
    return int(np.count_nonzero(units) - left)


def _by_expert(group: Group, x: Operand, y: Operand, first_row: int, missed: Misses) -> dict[int, Wrong]:
    """What is wrong in a piece, expert by expert."""
    out = {}
    experts = (first_row + missed.rows) // group.expert_rows
    for expert in np.unique(experts):
        at = np.flatnonzero(experts == expert)
        rows = missed.rows[at]
        units, needless, gross = (flags[at] for flags in missed.flags)
        reference, held = rows_of(x, rows), rows_of(y, rows)
        made = rows_of(missed.made, at) if missed.made else None
        spot = _spot(reference, held, made, first_row + rows, units)
        assert spot is not None
        out[int(expert)] = Wrong(
            group, y.codec.format,
            int(np.count_nonzero(units)), int(np.count_nonzero(needless)), int(np.count_nonzero(gross)),
            spot, _spot(reference, held, made, first_row + rows, needless | gross),
            sums(made, held, first_row + rows, group.expert_rows) if made else None,
            causes(made, held) if made else frozenset(),
        )  # fmt: skip
    return out


def _spot(x: Operand, y: Operand, made: Operand | None, rows: NDArray[np.intp], units: Flags) -> Spot | None:
    """The first of some units, [R, G] of these rows; None where there is none."""
    found = np.flatnonzero(units)
    if not found.size:
        return None
    row, unit = divmod(int(found[0]), units.shape[1])
    one = np.array([row])
    what = described(rows_of(x, one), rows_of(y, one), rows_of(made, one) if made else None, unit)
    return Spot(int(rows[row]), unit, what)
