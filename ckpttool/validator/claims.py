"""Level `values`: what came of each part's numbers, held against what a conversion between its formats promises.

Where the plan of such a conversion would promise bytes or values, one that differs fails, whatever the tolerance. Where
it may lose something, that is proven too if possible: remade from the reference, a part has to come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Final

from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import Codec
from ckpttool.comparison.pairs import Holding, holdings
from ckpttool.comparison.parts import PartComparison, Status, compared_nbytes
from ckpttool.steps import Fidelity, kind_of
from ckpttool.validator.budgets import part_failures
from ckpttool.validator.failures import Failure, part_failure, so_many
from ckpttool.validator.faults import faults_by_part, notes_on, proven_by
from ckpttool.validator.proofs import Proofs, prove
from ckpttool.validator.report import PartResult

LEVEL: Final = "values"
COMPARED: Final = (Status.bytes, Status.values, Status.lossy)
"""The best first."""


@dataclass(frozen=True)
class ValuesFound:
    """What is wrong, and how each part's claim was met; `fidelity` is the lowest of all parts that both have."""

    parts: tuple[PartResult, ...]
    failures: tuple[Failure, ...]
    fidelity: str
    notes: tuple[str, ...]


def values_nbytes(reference: Checkpoint, candidate: Checkpoint) -> int:
    """Bytes that `judge_values` tells its `progress` of; what has to be read again, it does not count again."""
    return compared_nbytes(reference, candidate)


def judge_values(
    reference: Checkpoint,
    candidate: Checkpoint,
    *,
    min_sqnr: float | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> ValuesFound:
    """Compare every part, and prove or judge what came of it.

    `min_sqnr` (dB) is what every lossy part and each of its experts has to keep, however it was made. `progress` is
    called from any thread with the bytes just compared.

    Raises:
        InputError: a file that has shrunk since its header was read.
    """
    held = holdings(reference, candidate)
    proofs = prove(reference, candidate, workers, progress)
    faults = faults_by_part(proofs)
    results, failures = [], []
    for row in proofs.rows:
        claim = claim_of(*held, row.part) if row.status in COMPARED else None
        proof, failure = _judged(row, claim, proofs, faults.get(row.part), min_sqnr)
        results.append(PartResult(row, claim and claim.value, proof))
        failures += [failure] if failure else []
    return ValuesFound(tuple(results), tuple(failures), fidelity_of(proofs.rows), tuple(notes_on(proofs, results)))


def claim_of(reference: Holding, candidate: Holding, part: str) -> Fidelity | None:
    """What the plan of a conversion would promise for a part, by how both sides store it; None where none leads there.

    Where a part's experts are stored in several ways, it is the lowest of an expert's.
    """
    ways = [kind_of(x, y) for x, y in _pairs(reference, candidate, part)]
    if not ways or None in ways:
        return None
    return max((way[1] for way in ways if way), key=[*Fidelity].index)


def _pairs(reference: Holding, candidate: Holding, part: str) -> set[tuple[Codec, Codec]]:
    """How each row of a part is stored on both sides."""
    found = set(product(_codecs(reference, part), _codecs(candidate, part)))
    if len(found) > 1 and part in reference.extents and part in candidate.extents:
        sides = product(reference.extents[part], candidate.extents[part])
        return {(x.weight.codec, y.weight.codec) for x, y in sides if x.start < y.stop and y.start < x.stop}
    return found


def _codecs(holding: Holding, part: str) -> Iterator[Codec]:
    """How a part's or a loose weight's tensors are stored."""
    if part in holding.extents:
        found = [x.weight for x in holding.extents[part]]
    elif part in holding.misfits:
        found = list(holding.misfits[part].weights)
    else:
        found = [holding.loose[part]] if part in holding.loose else []
    yield from dict.fromkeys(w.codec for w in found)


def fidelity_of(rows: tuple[PartComparison, ...]) -> str:
    """The lowest status of what both sides have; without any such part nothing is known to be kept."""
    found = [row.status for row in rows if row.status in COMPARED]
    return max(found, key=COMPARED.index).value if found else Status.lossy.value


def _judged(
    row: PartComparison, claim: Fidelity | None, proofs: Proofs, fault: str | None, min_sqnr: float | None
) -> tuple[str | None, Failure | None]:
    """How a part's claim was met; or that it was not."""
    if row.status not in COMPARED:
        return None, None
    if fault is not None:
        return None, part_failure(row.part, fault, LEVEL)
    if claim is Fidelity.bytes and row.status is not Status.bytes:
        return None, part_failure(row.part, "is stored otherwise, and nobody here can read it", LEVEL)
    if claim is Fidelity.values and row.status is Status.lossy:
        counted = so_many(row.differing or 0, prod(row.shape_a or ()), "value")
        return None, part_failure(row.part, f"{counted} not the reference's", LEVEL)
    maker = proven_by(row, proofs)
    found = part_failures([row], min_sqnr=min_sqnr) if maker is None or min_sqnr is not None else []
    if found:
        return None, found[0]
    return maker or ("budget" if row.status is Status.lossy else row.status.value), None
