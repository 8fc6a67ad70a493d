"""The doctor's report: will this checkpoint run here, on which path, and if not well, what to type."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.doctor.facts import GPT_OSS_20B, GPT_OSS_120B, CheckpointFacts, checkpoint_facts
from ckpttool.doctor.gpus import Gpu
from ckpttool.doctor.judge import Verdict, judge, judge_runtime
from ckpttool.doctor.logs import Match, matches
from ckpttool.doctor.probe import Environment, probe
from ckpttool.doctor.tables import tables
from ckpttool.doctor.versions import Version
from ckpttool.doctor.ways import WayOut, fits_on, memory, stem_of, ways_out, weights_bytes
from ckpttool.errors import InputError, LocalIOError, UsageError, os_error
from ckpttool.gpus import gpu_model

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.serving.cards import Card

FLAGS = ("dequantize", "use_kernels", "load_in_4bit")
"""What callers pass to from_pretrained that changes the path: Mxfp4Config(dequantize=True), the others as they are."""

REQUIRABLE = ("native",)


@dataclass(frozen=True)
class FlagEffect:
    """What becomes of the checkpoint where a flag is passed, if that is another path."""

    flag: str
    path: str
    because: str


@dataclass(frozen=True)
class RuntimeReport:
    """The verdict of one runtime: `path` is native, emulated, dequantized, refused or unknown.

    `version` is what was judged, `installed` whether it is here; `reads_form` is False where the checkpoint would have
    to be converted first. `rule` decided, read in `source`; `basis` says how that version stands to those whose code
    was read. `weights_bytes` lie in memory on this path; `fits_on` is the
    fewest of these GPUs (1 where there is none: the machine) that hold them together, as the runtime uses several, 0
    where not even all do, which `fits` says too. `ways` are commands that lead to something better, `left_out` those
    that would not fit the memory; `flags` change the path.
    """

    runtime: str
    title: str
    version: str | None
    installed: bool
    path: str
    reads_form: bool
    because: str
    doubts: tuple[str, ...]
    rule: str | None
    source: str | None
    basis: str
    weights_bytes: int | None
    fits: bool | None
    fits_on: int | None
    install: str | None
    ways: tuple[WayOut, ...]
    left_out: tuple[WayOut, ...]
    flags: tuple[FlagEffect, ...]


@dataclass(frozen=True)
class EnvironmentReport:
    """What was looked at. `gpu` is what the verdicts are about, `assumed` that it was named and not found.

    `memory_bytes` is that GPU's alone, `memory_bytes_together` that of all in `cards`, which are `gpus`; of a processor
    both are the machine's.
    """

    gpu: Gpu
    gpus: int
    cards: tuple[Gpu, ...]
    assumed: bool
    memory_bytes: int | None
    memory_bytes_together: int | None
    driver: str | None
    python: str | None
    packages: Mapping[str, str]
    amx: bool | None


@dataclass(frozen=True)
class Price:
    """Bytes of a model's weights in a form, and whether they leave room to work in the memory of all GPUs together.

    `fits_on` is the fewest of them that will do, 0 where not even all.
    """

    model: str
    form: str
    nbytes: int
    fits: bool | None
    fits_on: int | None


@dataclass(frozen=True)
class Diagnosis:
    """The whole report. `checkpoint` is None where none was given: it is then about gpt-oss in MXFP4 in general.

    `ok` is False where `required` asks for a path that an installed runtime which reads the checkpoint does not take
    (or where no such runtime is installed); `failing` names those.
    """

    schema: str
    source: str | None
    checkpoint: CheckpointFacts | None
    environment: EnvironmentReport
    runtimes: tuple[RuntimeReport, ...]
    prices: tuple[Price, ...]
    messages: tuple[Match, ...] | None
    required: str | None
    ok: bool
    failing: tuple[str, ...]
    estimate: tuple[str, ...]
    notes: tuple[str, ...]


def diagnose(
    source: str | Path | None = None,
    *,
    gpu: str | None = None,
    python: str | Path | None = None,
    extra: Sequence[str] = (),
    log: str | Path | None = None,
    require: str | None = None,
) -> Diagnosis:
    """Judge the checkpoint at `source` in every runtime, on this machine or what it is asked to take for it.

    `extra` are packages as NAME=VERSION, `log` is a file or "-" for standard input.

    Raises:
        UsageError: no such GPU or package.
        InputError: the checkpoint or the environment cannot be read.
        LocalIOError: the log cannot be read.
    """
    if require is not None and require not in REQUIRABLE:
        raise UsageError(f"--require {require}: can only be native", hint="leave it out to see every path")
    environment = probe(gpu, python, extra)
    facts, served = None, _Serving()
    notes = list(environment.notes)
    if source is not None:
        from ckpttool.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(source)
        facts = checkpoint_facts(checkpoint)
        served = _serving(checkpoint, str(source), environment)
        facts = replace(facts, kv_nbytes=served.kv, overhead_nbytes=served.overhead, padding_nbytes=served.padding)
        notes += [f"the checkpoint has problems: {p}" for p in checkpoint.damage[:1]]
    verdicts = judge(environment, facts)
    reports = tuple(_report(v, environment, facts) for v in verdicts)
    failing = _failing(reports, require)
    found = None if log is None else _messages(log, environment, facts)
    return Diagnosis(
        "doctor.v1",
        str(source) if source is not None else None,
        facts,
        _environment(environment),
        reports,
        tuple(_prices(environment, facts)),
        found,
        require,
        not failing,
        failing,
        _served(served, reports),
        (*notes, *_remarks(environment), *served.notes),
    )


def _report(verdict: Verdict, environment: Environment, facts: CheckpointFacts | None) -> RuntimeReport:
    runtime = tables().runtime(verdict.runtime)
    nbytes = weights_bytes(facts, verdict.path)
    count = fits_on(nbytes, environment, facts, runtime.name)
    ways, left_out = ways_out(verdict, environment, facts)
    return RuntimeReport(
        runtime.name, runtime.title, verdict.version, verdict.installed, verdict.path, verdict.reads_form,
        verdict.because, verdict.doubts, verdict.rule, verdict.source, verdict.basis, nbytes,
        None if count is None else count > 0, count, None if verdict.installed else runtime.install, ways, left_out,
        tuple(_flags(verdict, environment, facts)),
    )  # fmt: skip


def _flags(verdict: Verdict, environment: Environment, facts: CheckpointFacts | None) -> Iterator[FlagEffect]:
    if verdict.runtime not in ("transformers", "unsloth"):
        return
    for flag in FLAGS:
        changed = judge_runtime(verdict.runtime, environment, facts, {flag})
        if changed.path != verdict.path:
            yield FlagEffect(flag, changed.path, changed.because)


def _failing(reports: Sequence[RuntimeReport], require: str | None) -> tuple[str, ...]:
    """The runtimes that do not take the required path: of those installed that read the checkpoint as it is stored.

    Where none of those is installed, all: nothing here runs it.
    """
    if require is None:
        return ()
    asked = [r for r in reports if r.installed and r.reads_form]
    return tuple(r.runtime for r in asked or reports if not asked or r.path != require)


def _environment(environment: Environment) -> EnvironmentReport:
    return EnvironmentReport(
        environment.gpu, len(environment.gpus), environment.gpus, environment.assumed, environment.gpu.memory,
        memory(environment), environment.driver, environment.python, dict(environment.packages), environment.amx,
    )  # fmt: skip


def _prices(environment: Environment, facts: CheckpointFacts | None) -> Iterator[Price]:
    for model in (facts,) if facts else (GPT_OSS_20B, GPT_OSS_120B):
        for form, nbytes in (("as stored", model.nbytes), ("bf16", model.bf16_nbytes)):
            count = fits_on(nbytes, environment, model)
            yield Price(model.source, form, nbytes, None if count is None else count > 0, count)


@dataclass(frozen=True)
class _Serving:
    """What estimate ends with, or why it says nothing; `overhead` is one GPU's, `padding` that of all together."""

    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kv: int = 0
    overhead: int = 0
    padding: int = 0


def _serving(checkpoint: Checkpoint, source: str, environment: Environment) -> _Serving:
    """The last lines of `estimate` on the GPU looked at: which context it holds, and the command that serves it."""
    from ckpttool.archs.facts import facts_of
    from ckpttool.serving.estimator import Asked, default_context, estimate_opened
    from ckpttool.serving.overhead import nbytes

    facts = facts_of(checkpoint)
    asked = Asked(default_context(facts))
    try:
        report = estimate_opened(checkpoint, source, facts, asked, _cards(environment.gpu))
    except InputError as e:  # it needs a config.json, which the verdicts do not
        return _Serving(notes=(f"no estimate: {e}",))
    each = nbytes(facts, 0, asked.batch, 1)
    lines = (report.advice, *report.commands)
    return _Serving(lines, kv=report.kv_cache_bytes, overhead=each, padding=report.overhead_bytes - each)


def _served(served: _Serving, reports: Sequence[RuntimeReport]) -> tuple[str, ...]:
    """Estimate's lines; where vLLM refuses this very GPU, the line that serves by it says so."""
    vllm = next(r for r in reports if r.runtime == "vllm")
    if vllm.rule not in ("vllm-capability", "vllm-rocm-without-quark"):
        return served.lines
    return tuple(f"{x}  # vLLM refuses this GPU, see above" if "vllm serve" in x else x for x in served.lines)


def _cards(gpu: Gpu) -> tuple[Card, ...]:
    """The GPU as estimate takes it, with the memory that it has; where there is none, those of every usual size."""
    from ckpttool.serving.cards import Card, usual_cards

    if gpu.device not in ("cuda", "rocm") or not gpu.memory:
        return usual_cards()
    model = gpu_model(gpu.name)
    return (Card(gpu.name, model.names[0] if model else None, gpu.memory, model.bandwidth if model else None),)


def _remarks(environment: Environment) -> Iterator[str]:
    torch = environment.packages.get("torch", "")
    gpu = environment.gpu
    if environment.assumed and gpu.device in ("cuda", "rocm") and "+cpu" in torch:
        yield f"torch {torch} here is built for CPUs; on {gpu.name} one that is built for it is taken for granted"
    if len({g.name for g in environment.gpus}) > 1:
        others = ", ".join(g.name for g in environment.gpus[1:])
        yield f"the verdicts are about {gpu.name}; other GPUs here: {others}"


def _messages(log: str | Path, environment: Environment, facts: CheckpointFacts | None) -> tuple[Match, ...]:
    source = facts.source if facts else "gpt-oss-20b"
    version = environment.packages.get("transformers")
    kernels = ""
    if version is not None:
        try:
            kernels = tables().package_range("transformers", "kernels", Version(version)) or ""
        except ValueError:  # a version that is none, of a build of one's own
            kernels = ""
    values = {"source": source, "stem": stem_of(source), "kernels": kernels}
    if str(log) == "-":
        return matches(sys.stdin or io.StringIO(), environment.packages, values)
    try:
        with open(log, encoding="utf-8", errors="replace") as f:
            return matches(f, environment.packages, values)
    except OSError as e:
        raise os_error(e) from e


__all__ = ["Diagnosis", "EnvironmentReport", "FlagEffect", "LocalIOError", "Price", "RuntimeReport", "diagnose"]
