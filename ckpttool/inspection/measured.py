"""What values say: scales, codes and numbers that are none, read in one pass over whatever was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from ckpttool.codecs.formats import Packing
from ckpttool.inspection.codes import CodeTally, code_jobs
from ckpttool.inspection.reading import Job, read_all
from ckpttool.inspection.report import CodeReport, Finding, ScaleReport, Severity, WeightReport
from ckpttool.inspection.sample import lie_of
from ckpttool.inspection.scale_sources import scale_source
from ckpttool.inspection.scales import ScaleTally, scale_jobs
from ckpttool.inspection.values import ValueTally, value_jobs
from ckpttool.tensors import Role, StoredTensor, Weight

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint

COMPILED_FROM: Final = 256 << 20
"""Bytes from which compiled kernels, which take half a second to load, save more than that."""


@dataclass(frozen=True)
class Wanted:
    """What is to be read of the selected weights."""

    scales: bool
    codes: bool
    values: bool


@dataclass(frozen=True)
class Measured:
    """What was found; None for what was not asked."""

    scales: tuple[ScaleReport, ...] | None
    codes: tuple[CodeReport, ...] | None
    findings: tuple[Finding, ...]
    nbytes: int


class Measurement:
    """Scales, codes and values of some weights: `nbytes` is what reading them takes."""

    def __init__(self, checkpoint: Checkpoint, weights: Sequence[Weight], wanted: Wanted) -> None:
        sources = [s for w in weights if (s := scale_source(w)) is not None] if wanted.scales or wanted.values else []
        self._places = checkpoint.places
        self._wanted = wanted
        self._scales = [ScaleTally(s) for s in sources]
        lies = [(w.name, lie) for w in weights if (lie := lie_of(w)) is not None] if wanted.codes else []
        self._codes = {name: CodeTally(lie) for name, lie in lies}
        counted = {t.source.tensor.name for t in self._scales}
        numbers = [t for w in weights for t in _numbers(w) if t.name not in counted] if wanted.values else []
        self._values = [ValueTally(t) for t in numbers]
        self.nbytes = sum(j.nbytes for j in self._jobs(compiled=False))

    def _jobs(self, *, compiled: bool) -> Iterator[Job]:
        return chain(
            (j for t in self._scales for j in scale_jobs(t, compiled=compiled)),
            (j for t in self._codes.values() for j in code_jobs(t, compiled=compiled)),
            (j for t in self._values for j in value_jobs(t)),
        )

    def run(
        self, rows: Mapping[str, WeightReport], progress: Callable[[int], None], workers: int | None = None
    ) -> Measured:
        """Read and count; `rows` are the weights as the report has them.

        Raises:
            InputError, LocalIOError, NetworkError: a file ends early, or cannot be read.
        """
        compiled = self.nbytes >= COMPILED_FROM
        nbytes = read_all(self._jobs(compiled=compiled), self._places, progress, workers)
        scales = tuple(t.report(rows[t.source.weight.name]) for t in self._scales)
        codes = tuple(t.report(rows[name]) for name, t in self._codes.items())
        findings = (*_scale_findings(self._scales, scales), *_bias_findings(scales), *_code_findings(codes))
        findings += tuple(_value_findings(self._values))
        wanted = self._wanted
        return Measured(scales if wanted.scales else None, codes if wanted.codes else None, findings, nbytes)


def _numbers(w: Weight) -> Iterator[StoredTensor]:
    """The stored tensors of `w` that are numbers by their dtype: packed codes may be declared as anything."""
    for t, role in zip(w.stored, w.roles or (Role.codes, Role.scales), strict=False):
        if role is not Role.state and (role is not Role.codes or w.codec.packing in (Packing.flat, Packing.scaled)):
            yield t


_MAKE_AGAIN = "make it again from a checkpoint that is whole; ckpttool never writes it"


def _scale_findings(tallies: Sequence[ScaleTally], reports: Sequence[ScaleReport]) -> Iterator[Finding]:
    for tally, r in zip(tallies, reports, strict=True):
        t = tally.source.tensor
        place = f"{t.file} at byte {t.offset}"
        if r.total.nonfinite:
            what = "byte 255" if r.element == "E8M0" else "NaN or infinite"
            text = f"{r.total.nonfinite:,} of {r.total.blocks:,} scales are {what}: their blocks are no numbers"
            yield Finding(Severity.error, "non-finite", t.name, place, text, _MAKE_AGAIN)
        if r.total.bytes_254:
            text = f"{r.total.bytes_254:,} scales are byte 254, 2^127: values of 2 and more overflow BF16"
            yield Finding(Severity.warning, "overflow", t.name, place, text, _MAKE_AGAIN)


def _bias_findings(reports: Sequence[ScaleReport]) -> Iterator[Finding]:
    """Bias 125 only where no weight of the checkpoint speaks for 127: one quantizer made them all."""
    told = [r for r in reports if r.bias is not None]
    old = [r for r in told if r.bias == 125]
    if not old or len(old) < len(told):
        return
    hint = "add 2 to every scale byte, or quantize again; compressed-tensors before 0.13.1 wrote such"
    for r in old:
        text = f"scales look as if their bias were 125: values would be four times too small; {r.bias_reason}"
        yield Finding(Severity.warning, "bias", r.tensor, None, text, hint)


def _code_findings(reports: Sequence[CodeReport]) -> Iterator[Finding]:
    for r in reports:
        if r.overflow:
            text = f"{r.overflow:,} of {r.elements:,} elements decode to more than BF16 holds"
            yield Finding(Severity.error, "non-finite", r.tensor, None, text, _MAKE_AGAIN)


def _value_findings(tallies: Sequence[ValueTally]) -> Iterator[Finding]:
    for v in tallies:
        if v.nonfinite:
            t = v.tensor
            size = t.nbytes // max(1, _elements(t.shape))
            place = f"{t.file} at byte {t.offset + (v.first or 0) * size}"
            none = "neither 0 nor 1" if t.dtype == "BOOL" else "NaN or infinite"
            text = f"{v.nonfinite:,} of {_elements(t.shape):,} values are {none}, the first {_index(v)}"
            hint = "train or merge again from a checkpoint that is whole; nothing that reads it will work"
            yield Finding(Severity.error, "non-finite", t.name, place, text, hint)


def _elements(shape: Sequence[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def _index(v: ValueTally) -> str:
    """Where in its tensor the first one is: [3, 17]."""
    left, out = v.first or 0, []
    for n in reversed(v.tensor.shape):
        left, at = divmod(left, n)
        out.append(str(at))
    return f"at [{', '.join(reversed(out))}]"
