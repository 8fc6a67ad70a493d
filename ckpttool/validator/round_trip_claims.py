"""Level `values` of a round trip: what came of each part, held against what the whole way promises.

The conversion there and the one back are each judged by what its plan claims: MXFP4 is remade from the source, block by
block, by its recipe (`claims`). For source and result `claims` would expect a copy where their formats are the same.
What was to come back follows from all formats on the way instead (`vias.promise`), and what is lost is held to the
budget of the format that lost it.

Values that come back are proof enough where values are promised: see `vias` on what MXFP4 may change without a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpttool.comparison.parts import PartComparison, Status
from ckpttool.steps import Fidelity
from ckpttool.validator.budgets import part_failures
from ckpttool.validator.claims import COMPARED, LEVEL, ValuesFound, fidelity_of
from ckpttool.validator.failures import Failure, part_failure
from ckpttool.validator.report import PartResult
from ckpttool.validator.vias import promise


def judge_round_trip(
    rows: Sequence[PartComparison], there: ValuesFound, back: ValuesFound, *, min_sqnr: float | None = None
) -> ValuesFound:
    """What both conversions failed in, and then what else did not come back.

    `rows` compare the result with the source; lossy ones are returned in the name of the formats that lost values.
    """
    hops = {"there": there, "back": back}
    failures = [replace(f, what=f"{f.what} (on the way {way})") for way, found in hops.items() for f in found.failures]
    failed = {f.part for f in failures}
    between = {p.compared.part: p.compared.format_b for p in there.parts}
    lossy = _lost_by(hops.values())
    results = []
    for row in rows:
        told = replace(row, format_b=lossy.get(row.part, row.format_b)) if row.status is Status.lossy else row
        claim = _claim(row, between.get(row.part))
        found = _unmet(told, claim, min_sqnr)
        failures += [] if row.part in failed else found
        results.append(PartResult(told, claim, None if found or row.part in failed else _proof(row)))
    return ValuesFound(tuple(results), tuple(failures), fidelity_of(tuple(rows)), (*there.notes, *back.notes))


def _claim(row: PartComparison, between: str | None) -> Fidelity | None:
    if row.status not in COMPARED or not (row.format_a and between and row.format_b):
        return None
    return promise(row.format_a, between, row.format_b)


def _unmet(row: PartComparison, claim: Fidelity | None, min_sqnr: float | None) -> list[Failure]:
    if claim is Fidelity.bytes and row.status is Status.values:
        return [part_failure(row.part, "came back with the same values in other bytes", LEVEL)]
    if claim in (Fidelity.bytes, Fidelity.values) and row.status is Status.lossy:
        return [part_failure(row.part, f"{row.differing or 0:,} values did not come back", LEVEL)]
    return part_failures([row], min_sqnr=min_sqnr)


def _proof(row: PartComparison) -> str | None:
    if row.status not in COMPARED:
        return None
    return "budget" if row.status is Status.lossy else str(row.status)


def _lost_by(hops: Iterable[ValuesFound]) -> Mapping[str, str]:
    """The formats in which a part lost values, as `budgets` takes several."""
    out: dict[str, str] = {}
    for hop in hops:
        for row in (p.compared for p in hop.parts):
            if row.status is Status.lossy and row.format_b:
                out[row.part] = f"{out[row.part]}+{row.format_b}" if row.part in out else row.format_b
    return out
