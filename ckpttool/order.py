"""In which order slabs are begun, and how many files lie on the disk meanwhile: pure arithmetic on a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from ckpttool.planner import Plan
from ckpttool.steps import target_ranges

WINDOW = 2
"""Files that lie here at once where they are freed: one goes out while the next is made."""


def in_turns(plan: Plan) -> Iterable[int]:
    """Slabs of one target file after the other, in turns.

    Linux lets one thread at a time write to a file, so several files take several times the bytes; and a file's sha256
    has to go from its begin to its end, so several are hashed in a fraction of the time.
    """
    of_file: dict[str, list[int]] = {f.name: [] for f in plan.files}
    for i, slab in enumerate(plan.slabs):
        of_file[target_ranges(plan.steps[slab.step], slab)[0].file].append(i)
    return (i for turn in zip_longest(*of_file.values()) for i in turn if i is not None)


def in_file_order(plan: Plan) -> Iterable[int]:
    """Slabs by the last file that they write to, so that one file after the other is complete and can go out."""
    return sorted(range(len(plan.slabs)), key=[last for _, last in _spans(plan)].__getitem__)


def window(plan: Plan) -> int:
    """How many files in a row have to lie here at once, at least `WINDOW`.

    More only where a slab writes to files that are further apart; so it is by no layout that there is.
    """
    return max([WINDOW, *(last - first + 1 for first, last in _spans(plan))])


def peak_nbytes(plan: Plan, window: int) -> int:
    """The most bytes of target files that lie on the disk at once, where so many files in a row do."""
    sizes = [f.size for f in plan.files]
    return max(sum(sizes[i : i + window]) for i in range(len(sizes))) + sum(s.nbytes for s in plan.sidecars)


def _spans(plan: Plan) -> Sequence[tuple[int, int]]:
    """The first and the last file that each slab writes to, by their numbers."""
    number = {f.name: i for i, f in enumerate(plan.files)}
    spans = []
    for slab in plan.slabs:
        files = [number[at.file] for at in target_ranges(plan.steps[slab.step], slab)]
        spans.append((min(files), max(files)))
    return spans
