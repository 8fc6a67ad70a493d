"""Both checkpoints compared and the candidate remade, in one reading of each: how parts were made, and what is wrong.

Another reading is only needed where rules that differ for ties alone could not be told apart on the sample: then each
is tried that makes something which the first does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import Recipe
from ckpttool.comparison.pairs import Group, groups, holdings
from ckpttool.comparison.parts import PartComparison, Status, compare_parts, show_slabs
from ckpttool.steps import Fidelity, kind_of
from ckpttool.validator.proving import Faults, Prover
from ckpttool.validator.recipes import Maker, stated_recipe
from ckpttool.validator.trials import ALIKE, MOST, Choice, Pair, choose, codecs_at, lossy_slabs


@dataclass(frozen=True)
class Made:
    """How one format was made of another, where that loses something.

    `maker` is the likeliest, and `surely` whether it makes most of what was lost, so that the rest is damage.
    """

    maker: Maker
    surely: bool


@dataclass(frozen=True)
class Proofs:
    """`rows` are the comparison's; `wrong` is by pair of formats, part and expert. `stated` is the receipt's recipe.

    `pairs` holds by part in which pairs of formats something may have been lost, be it that nobody here can make them.
    """

    rows: tuple[PartComparison, ...]
    pairs: Mapping[str, frozenset[Pair]]
    made: Mapping[Pair, Made]
    wrong: Mapping[Pair, Faults]
    stated: Recipe | None


def prove(reference: Checkpoint, candidate: Checkpoint, workers: int | None, progress: Callable[[int], None]) -> Proofs:
    """Compare every part, and remake those that can be. Errors as `compare_parts`."""
    stated = stated_recipe(candidate)
    choices = choose(reference, candidate, stated, workers)
    prover = Prover(choices)
    rows = compare_parts(reference, candidate, workers=workers, watch=prover.see, progress=progress)
    by_part = {part: group for group in groups(*holdings(reference, candidate)) for part in group.parts}
    lossy = {row.part: by_part[row.part] for row in rows if row.status is Status.lossy and row.part in by_part}
    made, wrong = {}, dict(prover.found)
    for pair, choice in choices.items():
        maker, wrong[pair] = _rematch(reference, candidate, pair, choice.maker, prover, workers)
        made[pair] = Made(maker, _makes_most(_experts(lossy, pair, wrong[pair])))
    return Proofs(rows, {part: _pairs(group, part) for part, group in lossy.items()}, made, wrong, stated)


def _pairs(group: Group, part: str) -> frozenset[Pair]:
    """The pairs of formats of a part in which no conversion promises that all is kept."""
    found = {codecs_at(group, part, start) for start, _ in group.slabs()}
    ways = {(x.name, y.name): kind_of(x, y) for x, y in found}
    return frozenset(pair for pair, way in ways.items() if way is None or way[1] is Fidelity.lossy)


def _rematch(
    reference: Checkpoint, candidate: Checkpoint, pair: Pair, maker: Maker, prover: Prover, workers: int | None
) -> tuple[Maker, Faults]:
    """The first choice and what is wrong by it; or a rival by which less is."""
    rivals = list(prover.choices[pair].rivals)
    while rivals:
        found = prover.found.get(pair, {})
        rival = max(rivals, key=lambda m: prover.explained[pair, m])
        if not prover.explained[pair, rival]:
            break
        rivals.remove(rival)
        again = Prover({pair: Choice(rival, tuple(rivals))})
        show_slabs(reference, candidate, lossy_slabs(reference, candidate)[pair], again.see, workers)
        if _count(again.found.get(pair, {})) < _count(found):
            maker, prover = rival, again
    return maker, prover.found.get(pair, {})


def _count(found: Faults) -> int:
    return sum(w.units for experts in found.values() for w in experts.values())


def _experts(lossy: Mapping[str, Group], pair: Pair, found: Faults) -> Iterator[tuple[int, float]]:
    """Of each expert of lossy parts in a pair of formats: its elements, and the share of its units that is right."""
    for part, group in lossy.items():
        starts = {start for start, _ in group.slabs() if tuple(c.name for c in codecs_at(group, part, start)) == pair}
        for expert in sorted({start // group.expert_rows for start in starts}):
            w = found.get(part, {}).get(expert)
            yield group.expert_rows * group.shape.row_length, 1 - w.units / w.whole if w else 1.0


def _makes_most(experts: Iterator[tuple[int, float]]) -> bool:
    listed = list(experts)
    return sum(n for n, share in listed if share >= ALIKE) >= MOST * sum(n for n, _ in listed)
