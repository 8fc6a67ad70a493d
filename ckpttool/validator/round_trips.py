"""Round trips: there and back in a temporary place, and what is left of the source at the end.

On disk are at a time what was made there and what was made of that; the former goes before the forward passes come.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.comparison.parts import compare_parts
from ckpttool.errors import CkptError, LocalIOError, Problems, UsageError, os_errors
from ckpttool.execute import execute
from ckpttool.planner import Plan, make_plan
from ckpttool.resources import Limits
from ckpttool.target import MAX_GPU_MEMORY, MAX_MEMORY, Target, target
from ckpttool.units import size
from ckpttool.validator.budgets import EXACT, FAILED, WITHIN
from ckpttool.validator.claims import ValuesFound, judge_values
from ckpttool.validator.round_trip_claims import judge_round_trip
from ckpttool.validator.round_trip_report import RoundTrip, RoundTrips
from ckpttool.validator.validation import Asked, Validator
from ckpttool.validator.vias import Options, Via, parse_via, way_back

if TYPE_CHECKING:
    from ckpttool.validator.report import Side, Validation

Progress = Callable[[str], None]
"""Told what is done next."""

LACKS: Final = "convert it with --reference DIR first, and send what that makes on the round trip"
"""Where a source lacks side files that another folder has."""

FIGURES: Final = (
    "tokens", "kl_mean", "kl_mean_se", "kl_median", "kl_p99", "kl_max", "top1", "top1_se", "top5", "ppl_reference",
    "ppl_candidate", "ppl_ratio", "ppl_ratio_se",
)  # fmt: skip
"""Of `Metrics`, those that a row has."""


@os_errors()
def round_trips(
    source: str | Path,
    vias: Sequence[str],
    *,
    then: str | None = None,
    level: str = "forward",
    text: str | Path | None = None,
    tokens: int | None = None,
    prompts: str | Path | None = None,
    reasoning_effort: str | None = None,
    device: str = "auto",
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_ppl_ratio: float | None = None,
    min_sqnr: float | None = None,
    workers: int | None = None,
    progress: Progress = lambda doing: None,
) -> RoundTrips:
    """Convert `source` to each of `vias` and back, in the system's temporary folder, and judge what comes back.

    `vias` are words of `vias.FORMS`, with a recipe after a colon where MXFP4 is made; `then` is "bf16" or "gguf", None:
    the form of the source. Other options are those of `validate`. Whatever is made is removed, come what may.

    Raises:
        UsageError: an unknown word, a conversion that is not legal; as `validate`.
        InputError: a source that cannot be converted that way, or is remote: it is read several times; as `validate`.
        LocalIOError: the temporary folder has too little room; it is said how much is needed, and where.
    """
    asked = Asked(level, text, tokens, prompts, reasoning_effort, device, max_kl, min_top1, max_ppl_ratio, min_sqnr)
    ways = [parse_via(v) for v in dict.fromkeys(vias)]
    if not ways:
        raise UsageError("no way was given", hint="name one: --via mxfp4")
    checkpoint = open_checkpoint(source, remote=False)
    Validator(checkpoint, checkpoint, asked)  # what cannot be met is said before anything is made
    with tempfile.TemporaryDirectory(prefix="ckpttool-") as folder:
        trips = [_trip(checkpoint, via, then, Path(folder) / str(i)) for i, via in enumerate(ways)]
        _require_room(trips, Path(folder))
        found = [_travelled(trip, asked, workers, progress) for trip in trips]
    verdicts = {row.verdict for _, row in found}
    worst = next(v for v in (FAILED, WITHIN, EXACT) if v in verdicts)
    return RoundTrips("round_trips.v1", found[0][0], then, level, worst, tuple(row for _, row in found))


@dataclass(frozen=True)
class _Trip:
    """One way, planned: `there` and what comes back are made in `folder`; `back` are the options of the way back."""

    source: Checkpoint
    via: Via
    folder: Path
    there: Plan
    back: Options
    nbytes: int


def _trip(source: Checkpoint, via: Via, then: str | None, folder: Path) -> _Trip:
    there = _planned(source, target(folder / "there", **via.options))
    back = way_back(source, then, there)
    # What is there does not exist yet; made of the source, the result has the same size.
    result = _planned(source, target(folder / "back", **back))
    return _Trip(source, via, folder, there, back, there.nbytes + result.nbytes)


def _planned(source: Checkpoint, wanted: Target) -> Plan:
    """The conversion; where `convert` would ask for --reference, which is not here, the errors say the way round."""
    try:
        return make_plan(source, wanted)
    except CkptError as e:
        for problem in e.problems if isinstance(e, Problems) else (e,):
            if isinstance(problem, CkptError) and "--reference" in (problem.hint or ""):
                problem.hint = LACKS
        raise


def _require_room(trips: Sequence[_Trip], folder: Path) -> None:
    most = max(trips, key=lambda trip: trip.nbytes)
    free = shutil.disk_usage(folder).free
    if most.nbytes > free:
        text = f"has {size(free)} left, and a round trip by {most.via.text} needs {size(most.nbytes)}"
        raise LocalIOError(text, file=str(folder.parent), hint="set TMPDIR to a folder with more room")


def _travelled(trip: _Trip, asked: Asked, workers: int | None, progress: Progress) -> tuple[Side, RoundTrip]:
    """There, back, and compared."""
    limits = Limits(workers, MAX_MEMORY, asked.device, MAX_GPU_MEMORY)
    progress(f"{trip.via.text}: converting there and back")
    begun = perf_counter()
    middle = _made(trip.there, limits)
    result = _made(make_plan(middle, target(trip.folder / "back", **trip.back)), limits)
    seconds = perf_counter() - begun
    there, back = None, None
    if asked.level != "structure":
        progress(f"{trip.via.text}: proving both conversions")
        there = judge_values(trip.source, middle, min_sqnr=asked.min_sqnr, workers=workers)
        back = judge_values(middle, result, min_sqnr=asked.min_sqnr, workers=workers)
    shutil.rmtree(trip.folder / "there")
    progress(f"{trip.via.text}: comparing with the source")
    judge = partial(_judged, there=there, back=back) if there and back else None
    whole = Validator(trip.source, result, asked).run(workers=workers, judge=judge)
    shutil.rmtree(trip.folder)
    return whole.reference, _row(trip, middle, whole, there, back, seconds)


def _made(plan: Plan, limits: Limits) -> Checkpoint:
    """What a plan makes. Nothing is read back as it is written: all of it is compared afterwards."""
    execute(plan, limits, verify=False)
    return open_checkpoint(plan.place.path, remote=False)


def _judged(
    source: Checkpoint,
    result: Checkpoint,
    *,
    there: ValuesFound,
    back: ValuesFound,
    min_sqnr: float | None,
    workers: int | None,
    progress: Callable[[int], None],
) -> ValuesFound:
    """The values of what came back, by the way that they took."""
    rows = compare_parts(source, result, workers=workers, progress=progress)
    return judge_round_trip(rows, there, back, min_sqnr=min_sqnr)


def _row(
    trip: _Trip, middle: Checkpoint, whole: Validation, there: ValuesFound | None, back: ValuesFound | None,
    seconds: float,
) -> RoundTrip:  # fmt: skip
    recipes = {s.recipe.name for s in trip.there.steps if s.recipe}
    figures = {name: getattr(whole.metrics, name) if whole.metrics else None for name in FIGURES}
    sqnrs = [p.compared.sqnr for p in whole.parts if p.compared.sqnr is not None]
    return RoundTrip(
        via=trip.via.text,
        recipe=recipes.pop() if recipes else None,
        back_to=whole.candidate.dialect,
        verdict=whole.verdict,
        decided=whole.decided,
        fidelity=whole.fidelity,
        there=there.fidelity if there else None,
        back=back.fidelity if back else None,
        proofs=dict(Counter(p.proof for p in there.parts if p.proof)) if there else {},
        nbytes=middle.nbytes,
        bits=8 * middle.nbytes / middle.parameters,
        seconds=seconds,
        sqnr=min(sqnrs, default=None),
        noise_kl_mean=whole.forward.on_text.noise.kl_mean if whole.forward else None,
        failures=whole.failures,
        notes=whole.notes,
        **figures,
    )
