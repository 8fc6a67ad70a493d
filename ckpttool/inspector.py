"""What a checkpoint holds: format, packing and logical shape of every weight by its headers; values where asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpttool.archs.facts import ModelFacts, facts_of, facts_of_config
from ckpttool.archs.purposes import Purposes, purposes_of
from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.errors import CkptError
from ckpttool.expert_layout import expert_layouts
from ckpttool.inspection.findings import finding_of, header_findings, in_order
from ckpttool.inspection.report import FileReport, Finding, Inspection, Severity, StoredReport, WeightReport
from ckpttool.inspection.sample import sampled
from ckpttool.inspection.summary import bits_per_weight, is_local, summarised
from ckpttool.parameters import count_parameters
from ckpttool.tensors import Role, Weight

Progress = Callable[[int], None]


def inspect(source: str | Path) -> Inspection:
    """Inspect the checkpoint at `source`: an HF folder, OpenAI's original/, a .safetensors file or a GGUF.

    Raises:
        InputError: nothing recognisable there, or a header that cannot be trusted.
    """
    return inspection(open_checkpoint(source))


def inspection(checkpoint: Checkpoint) -> Inspection:
    """The report on an opened checkpoint."""
    facts, findings = _facts(checkpoint)
    purposes = purposes_of(checkpoint, facts.layers)
    layouts = expert_layouts(checkpoint, facts, purposes)
    counts = count_parameters(checkpoint, facts, purposes)
    findings += header_findings(checkpoint, facts, purposes, layouts)
    print_ = sampled(checkpoint.weights, checkpoint.file_paths) if is_local(checkpoint) else None
    ordered = in_order(findings)
    return Inspection(
        schema="inspection.v1",
        source=str(checkpoint.path),
        arch=checkpoint.arch.name if checkpoint.arch else None,
        dialect=checkpoint.dialect.name if checkpoint.dialect else None,
        container=checkpoint.container,
        parameters=checkpoint.parameters,
        active_parameters=counts.active,
        nbytes=checkpoint.nbytes,
        bits_per_weight=bits_per_weight(checkpoint.nbytes, checkpoint.parameters),
        summary=summarised(checkpoint, facts, counts, layouts, print_),
        files=tuple(FileReport(f.name, f.size, f.header_sha256) for f in checkpoint.files),
        tensors=tuple(_weight(checkpoint, purposes, w) for w in checkpoint.weights),
        scales=None,
        codes=None,
        experts=None,
        findings=ordered,
        ok=all(f.severity != Severity.error for f in ordered),
        checked=False,
        data_nbytes_read=0,
        problems=tuple(str(p) for p in checkpoint.problems),
        notes=checkpoint.notes,
    )


def _facts(checkpoint: Checkpoint) -> tuple[ModelFacts, list[Finding]]:
    """What the side files say; a generation_config.json that cannot be read is a finding and no more."""
    try:
        return facts_of(checkpoint), []
    except CkptError as e:
        return facts_of_config(checkpoint.config or {}), [finding_of(e, "side-file")]


def _weight(checkpoint: Checkpoint, purposes: Purposes, w: Weight) -> WeightReport:
    claim = checkpoint.claims.get(w.name)
    part = None
    if claim is not None:
        expert = "" if claim.expert is None else f"[{claim.expert}]"
        part = "+".join(p + expert for p in claim.join.parts)
    roles = w.roles or (Role.codes, Role.scales)
    stored = tuple(
        StoredReport(t.name, t.dtype, t.shape, t.file, t.offset, t.nbytes, str(role))
        for t, role in zip(w.stored, roles, strict=False)
    )
    purpose = purposes.by_name[w.name]
    return WeightReport(
        w.name, part, "+".join(purpose.kinds) or None, purpose.layer, purpose.expert, w.codec.name, w.codec.packing,
        w.shape, w.parameters, w.nbytes, bits_per_weight(w.nbytes, w.parameters), w.codec.global_scale, stored,
    )  # fmt: skip
