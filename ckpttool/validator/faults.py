"""What is wrong with a part, in words: how much of it, where it begins, what stands there; and why, if that is sure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpttool.comparison.pairs import OPAQUE
from ckpttool.comparison.parts import PartComparison
from ckpttool.validator.failures import so_many
from ckpttool.validator.originals import Sums, places
from ckpttool.validator.proofs import Made, Proofs
from ckpttool.validator.proving import Faults, Spot, Wrong
from ckpttool.validator.report import PartResult
from ckpttool.validator.trials import ALIKE, MOST


def faults_by_part(proofs: Proofs) -> dict[str, str]:
    """The parts that are not what they were to be, and in which way.

    Where it is not sure how a lossy part was made, it has to keep what its format could have held, and the rest has to
    be what some rule makes.
    """
    known: dict[str, dict[int, Sums]] = {}
    for experts in proofs.wrong.values():
        known |= {
            part: {e: w.sums for e, w in found.items() if w.sums}
            for part, found in experts.items()
            if all(w.sums for w in found.values())
        }
    causes = dict(places(known))
    out: dict[str, str] = {}
    for pair, faults in proofs.wrong.items():
        made = proofs.made.get(pair)
        for part, found in faults.items():
            said = _fault(found, made, pair[1])
            if said is not None:
                cause = causes.get(part) or next(iter(_shared(found)), None)
                out[part] = f"{cause}: {said}" if cause else said
    return out


def _shared(found: Mapping[int, Wrong]) -> list[str]:
    """The causes that explain all experts."""
    return sorted(frozenset.intersection(*(w.causes for w in found.values())))


def _fault(found: Mapping[int, Wrong], made: Made | None, target: str) -> str | None:
    """What is wrong with one part; None where that is within what may be lost."""
    one = next(iter(found.values()))
    doubtful = made is not None and not made.surely
    spots = [s for w in found.values() if (s := w.sure_spot if doubtful else w.spot)]
    if not spots:
        return None
    units, needless, gross = (sum(getattr(w, f) for w in found.values()) for f in ("units", "needless", "gross"))
    units = needless + gross if doubtful else units
    wrong = "not the reference's"
    if made is not None and units == needless:
        wrong = f"{wrong}, which {target} could hold"
    elif made is not None:
        wrong = f"not what {'any rule' if doubtful else made.maker.name} makes of the reference"
    total = one.group.shape.row_count * one.group.shape.row_length // one.format.block
    noun = "byte" if one.format == OPAQUE.format else "block" if one.format.block > 1 else "value"
    counted = f"{so_many(units, total, noun)} {wrong}"
    first = min(spots)
    many = f", in {len(spots)} experts" if len(spots) > 1 else ""
    begin = "the first at" if units > 1 else "at"
    return f"{counted}{many}, {begin} {_place(first, one)}: {first.what}"


def _place(spot: Spot, wrong: Wrong) -> str:
    """Expert, row within it, and block or column, in a part of which something is wrong."""
    group, block = wrong.group, wrong.format.block
    row, column = divmod(spot.row * group.shape.row_length + spot.unit * block, group.columns)
    expert, row = divmod(row, group.expert_rows) if group.has_experts else (None, row)
    within = f"block {column // block}" if block > 1 else f"column {column}"
    where = (
        f"{'byte' if wrong.format == OPAQUE.format else 'element'} {row}"
        if group.columns == 1
        else f"row {row}, {within}"
    )
    return where if expert is None else f"expert {expert}, {where}"


def proven_by(row: PartComparison, proofs: Proofs) -> str | None:
    """The name of what made a lossy part, where it makes all of it; None where nothing does.

    A part whose experts are stored in several ways may be made in several.
    """
    pairs = proofs.pairs.get(row.part, frozenset())
    if not pairs <= proofs.made.keys() or any(row.part in proofs.wrong.get(pair, {}) for pair in pairs):
        return None
    return " and ".join(sorted({proofs.made[pair].maker.name for pair in pairs})) or None


def notes_on(proofs: Proofs, results: Sequence[PartResult]) -> Iterator[str]:
    """How lossy parts were made, and where nobody can tell."""
    for (source, target), made in proofs.made.items():
        lossy = [r for r in results if (source, target) in proofs.pairs.get(r.compared.part, ())]
        if not lossy:
            continue
        if not made.surely:
            held = sum(r.proof == "budget" for r in lossy)
            if held:
                told = f"no way that is known here makes the candidate's {target} of {source}"
                yield f"{told}: {'1 part is' if held == 1 else f'{held:,} parts are'} held to a budget"
            continue
        if proofs.stated and made.maker.recipe and made.maker.recipe != proofs.stated:
            yield f"the receipt says recipe {proofs.stated.name}; made of the reference by {made.maker.name}"
        nearly = _nearly(proofs.wrong.get((source, target), {}))
        if nearly > max(1, MOST * len(lossy)):
            told = f"{nearly:,} of {len(lossy):,} lossy parts are nearly what {made.maker.name} makes of {source}"
            yield f"{told}, and not wholly: a rule that is not known here would look like that, and a fault in all too"


def _nearly(faults: Faults) -> int:
    """Parts of which so little is wrong as where a rule is nearly the right one."""
    return sum(
        sum(w.units for w in found.values()) <= (1 - ALIKE) * sum(w.whole for w in found.values())
        for found in faults.values()
    )
