"""What a checkpoint holds: format, packing and logical shape of every weight by its headers; values where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.archs.facts import ModelFacts, facts_of, facts_of_config
from ckpttool.archs.purposes import Purposes, purposes_of
from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.errors import CkptError, InputError, UsageError
from ckpttool.expert_layout import ExpertLayouts, expert_layouts
from ckpttool.inspection.findings import finding_of, header_findings, in_order
from ckpttool.inspection.report import FileReport, Finding, Inspection, Severity, StoredReport, WeightReport
from ckpttool.inspection.sample import sampled
from ckpttool.inspection.summary import bits_per_weight, is_local, summarised
from ckpttool.parameters import count_parameters
from ckpttool.tensors import Role, Weight

if TYPE_CHECKING:
    from ckpttool.inspection.measured import Measurement

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Asked:
    """What to look at beside the headers: the options of the command.

    `tensors` is a glob on names of weights, stored tensors and parts, for rows, scales, codes and values. `scales`
    reads scale bytes, `codes` all MXFP4 blocks, `experts` scale bytes for the experts' spread, `check` scale bytes and
    plain numbers; `page` is what a page shows: scales and experts. Of a remote checkpoint `scales` and `codes` alone
    read values.
    """

    tensors: str | None = None
    scales: bool = False
    codes: bool = False
    experts: bool = False
    check: bool = False
    page: bool = False


def inspect(
    source: str | Path,
    *,
    tensors: str | None = None,
    scales: bool = False,
    codes: bool = False,
    experts: bool = False,
    check: bool = False,
) -> Inspection:
    """Inspect the checkpoint at `source`: a folder, a .safetensors file or a GGUF, here or at a remote end.

    The options are those of `Asked`. With `check`, a checkpoint whose headers contradict themselves is reported as far
    as it can be seen, with its damage as findings; without, it is refused.

    Raises:
        InputError: nothing recognisable there, or a header that cannot be trusted.
        UsageError: no weight has a name like `tensors`.
    """
    return Inspector(source, Asked(tensors, scales, codes, experts, check)).run()


def inspection(checkpoint: Checkpoint) -> Inspection:
    """The report on an opened checkpoint, by its headers."""
    return Inspector(checkpoint, Asked()).run()


class Inspector:
    """One inspection: what is to be read is known before it is, so that its progress can be shown."""

    def __init__(self, source: str | Path | Checkpoint, asked: Asked) -> None:
        """Read the headers.

        Raises:
            InputError, UsageError: as `inspect`.
        """
        self.asked = asked
        self.damage: tuple[Finding, ...] | None = None
        self.checkpoint = source if isinstance(source, Checkpoint) else self._opened(source)
        self._facts, self._found = _facts(self.checkpoint)
        self._purposes = purposes_of(self.checkpoint, self._facts.layers)
        self._selected = _selected(self.checkpoint, asked.tensors)
        self._measurement = self._measurement_of()

    def _opened(self, source: str | Path) -> Checkpoint:
        try:
            return open_checkpoint(source)
        except InputError as error:
            if not self.asked.check:
                raise
            from ckpttool.inspection.headers import broken

            found = broken(source, error)
            self.damage = found.findings
            return found.checkpoint

    def _measurement_of(self) -> Measurement | None:
        """What values are to be read: nothing of a damaged checkpoint, whose bytes may belong to anything."""
        asked, here = self.asked, is_local(self.checkpoint)
        scales = asked.scales or ((asked.experts or asked.check or asked.page) and here)
        if self.damage is not None or not (scales or asked.codes):
            return None
        from ckpttool.inspection.measured import Measurement, Wanted

        return Measurement(self.checkpoint, self._selected, Wanted(scales, asked.codes, asked.check and here))

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data that `run` reads."""
        return self._measurement.nbytes if self._measurement else 0

    def run(self, progress: Progress = lambda n: None) -> Inspection:
        """The report; `progress` is told of bytes of tensor data as they are read.

        Raises:
            InputError, LocalIOError, NetworkError: a file changed, or cannot be read.
        """
        checkpoint, asked = self.checkpoint, self.asked
        layouts = expert_layouts(checkpoint, self._facts, self._purposes)
        counts = count_parameters(checkpoint, self._facts, self._purposes)
        made_by = None
        if self.damage is None and is_local(checkpoint):
            made_by = sampled(checkpoint.weights, checkpoint.file_paths)
        summary = summarised(checkpoint, self._facts, counts, layouts, made_by)
        findings = [*self._found, *(self.damage or ())]
        findings += header_findings(checkpoint, self._facts, self._purposes, layouts)
        report = Inspection(
            schema="inspection.v1",
            source=str(checkpoint.path),
            arch=checkpoint.arch.name if checkpoint.arch else None,
            dialect=checkpoint.dialect.name if checkpoint.dialect else None,
            container=checkpoint.container,
            parameters=counts.total,
            active_parameters=counts.active,
            nbytes=checkpoint.nbytes,
            bits_per_weight=bits_per_weight(checkpoint.nbytes, counts.total),
            summary=summary,
            files=tuple(FileReport(f.name, f.size, f.header_sha256 or None) for f in checkpoint.files),
            tensors=tuple(_weight(checkpoint, self._purposes, w) for w in self._selected),
            scales=None,
            codes=None,
            experts=None,
            findings=(),
            ok=True,
            checked=asked.check,
            data_nbytes_read=0,
            problems=tuple(str(p) for p in checkpoint.problems),
            notes=checkpoint.notes,
        )
        return self._with_values(report, layouts, findings, progress)

    def _with_values(
        self, report: Inspection, layouts: ExpertLayouts | None, findings: list[Finding], progress: Progress
    ) -> Inspection:
        """The report with what values say, and all findings in order."""
        asked, measurement = self.asked, self._measurement
        scales = codes = experts = None
        nbytes = 0
        if measurement is not None:
            measured = measurement.run({t.name: t for t in report.tensors}, progress)
            scales, codes, nbytes = measured.scales, measured.codes, measured.nbytes
            findings = [*findings, *measured.findings]
        if asked.check and self.damage is None and self.checkpoint.container == "gguf" and is_local(self.checkpoint):
            from ckpttool.inspection.padding import padding_findings

            findings = [*findings, *padding_findings(self.checkpoint)]
        if asked.experts or asked.page:
            from ckpttool.inspection.experts import expert_layers, spread_findings

            top_k = report.summary.router.top_k
            experts = expert_layers(report.tensors, layouts, report.summary.expert_layout, top_k, scales or ())
            places = {t.name: t.stored[0].file for t in report.tensors}
            findings = [*findings, *spread_findings(experts, places)]
        if (asked.experts or asked.check) and measurement is None and self.damage is None:
            what = "headers alone were looked at: values of a remote checkpoint are read with --scales"
            findings = [*findings, Finding(Severity.info, "not-read", None, None, what, None)]
        if self.damage is None:
            self.checkpoint.require_unchanged()
        ordered = in_order(findings)
        return replace(
            report,
            scales=scales if asked.scales or asked.page else None,
            codes=codes,
            experts=experts,
            findings=ordered,
            ok=all(f.severity != Severity.error for f in ordered),
            data_nbytes_read=nbytes,
        )


def _selected(checkpoint: Checkpoint, glob: str | None) -> Sequence[Weight]:
    """The weights that the glob names by their own name, a stored tensor's or a part's."""
    if glob is None:
        return checkpoint.weights

    def names(w: Weight) -> list[str]:
        claim = checkpoint.claims.get(w.name)
        return [w.name, *(t.name for t in w.stored), *(claim.join.parts if claim else ())]

    found = [w for w in checkpoint.weights if any(fnmatchcase(n, glob) for n in names(w))]
    if not found:
        first = checkpoint.weights[0].name if checkpoint.weights else "nothing"
        hint = f"names are such as {first}; * stands for anything: --tensors '*q_proj*'"
        raise UsageError(f"no tensor is called like {glob!r}", file=str(checkpoint.path), hint=hint)
    return found


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
