"""A plan as a document: what a dry run shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from ckpttool.errors import os_errors
from ckpttool.planner import Plan
from ckpttool.preflight import check_target
from ckpttool.reports import PlannedFile, PlanReport, StepCount
from ckpttool.resources import Limits, resources
from ckpttool.settling import is_left
from ckpttool.steps import Fidelity


@os_errors()
def preview(plan: Plan, limits: Limits, *, overwrite: bool = False, frees: bool = False) -> PlanReport:
    """What executing `plan` within `limits` would write, do and need; whatever would stop it at its start is raised.

    Raises:
        LocalIOError: TARGET exists, too little disk.
        LimitError: too little memory.
        UsageError: a device that cannot be used.
    """
    using = resources(plan, limits)
    check_target(plan, overwrite, frees=frees, left=is_left(plan))
    counts: Counter[tuple[str, str, str, str]] = Counter()
    nbytes: Counter[tuple[str, str, str, str]] = Counter()
    fidelity: Counter[str] = Counter()
    for step in plan.steps:
        key = (step.kind, step.fidelity, step.source.codec.name, step.target.codec.name)
        counts[key] += 1
        nbytes[key] += step.target_nbytes
        fidelity[step.fidelity] += 1
    recipe = next((s.recipe for s in plan.steps if s.recipe), None)
    assert plan.source.dialect is not None
    return PlanReport(
        "plan.v1",
        str(plan.source.path),
        plan.target.address or str(plan.place.path),
        plan.source.dialect.name,
        plan.target.dialect,
        asdict(recipe) if recipe else None,
        tuple(PlannedFile(f.name, f.size, len(f.tensors)) for f in plan.files),
        tuple(PlannedFile(s.name, s.nbytes, 0) for s in plan.sidecars),
        plan.nbytes,
        tuple(StepCount(*key, n, nbytes[key]) for key, n in sorted(counts.items())),
        {str(f): fidelity[f] for f in Fidelity},
        using.devices.names,
        using.devices.why,
        using.workers,
        len(plan.slabs),
        using.memory,
        using.gpu_memory,
        tuple(asdict(a) for a in plan.assumed),
        plan.notes,
        plan.digest,
    )
