"""(environment, checkpoint, flags) -> the path that the checkpoint takes in each runtime. Pure: it looks nothing up.

Rules are asked in order, as the runtimes' own code asks; the first that holds decides. One whose facts are not known
leaves the verdict unknown, unless what follows says the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpttool.doctor.facts import CheckpointFacts
from ckpttool.doctor.probe import UNKNOWN, Environment, with_packages
from ckpttool.doctor.tables import Rule, Runtime, Tables, tables
from ckpttool.doctor.versions import Range, Version

PYTHON_RUNTIMES = frozenset({"transformers", "vllm", "unsloth", "gpt-oss"})
"""Runtimes that see a GPU only through a torch that was built for it."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of the checkpoint in one runtime.

    `version` is the runtime's; `installed` is False where it is not here and is judged as if it were, in the newest
    version that was read. `rule` decided, `because` is its reason; `basis` says how far the rules were read for that
    version. `ways` names ways out. `reads_form` is False where the checkpoint would have to be converted first.
    """

    runtime: str
    version: str | None
    installed: bool
    path: str
    because: str
    rule: str | None
    source: str | None
    doubts: tuple[str, ...]
    basis: str
    ways: tuple[str, ...]
    reads_form: bool = True


def judge(
    environment: Environment, facts: CheckpointFacts | None, flags: Collection[str] = (), *, rows: Tables | None = None
) -> tuple[Verdict, ...]:
    """The verdict of every runtime; without `facts`, on a gpt-oss in the form that each runtime reads."""
    rows = rows or tables()
    return tuple(judge_runtime(r.name, environment, facts, flags, rows=rows) for r in rows.runtimes)


def judge_runtime(
    name: str,
    environment: Environment,
    facts: CheckpointFacts | None,
    flags: Collection[str] = (),
    *,
    rows: Tables | None = None,
) -> Verdict:
    """The verdict of the runtime `name`."""
    rows = rows or tables()
    runtime = rows.runtime(name)
    installed = runtime.package in environment.packages
    if not installed:
        missing = {k: v for k, v in runtime.assume.items() if k not in environment.packages}
        traits = {k: v for k, v in runtime.traits.items() if k.partition(":")[0] in missing}
        environment = with_packages(environment, missing, traits)
    return replace(_Case(rows, runtime, environment, facts, frozenset(flags)).verdict(), installed=installed)


class _Case:
    """One runtime's question, with all that its conditions may ask."""

    def __init__(
        self,
        rows: Tables,
        runtime: Runtime,
        environment: Environment,
        facts: CheckpointFacts | None,
        flags: frozenset[str],
    ) -> None:
        self.rows, self.runtime, self.environment, self.facts, self.flags = rows, runtime, environment, facts, flags
        self.form = facts.form if facts else runtime.form
        text = environment.packages.get(runtime.package, UNKNOWN)
        self.text = text
        self.version = _version(text)
        self.device, self.notes = device(runtime.name, environment)
        self._inherited: Verdict | None = None

    def verdict(self) -> Verdict:
        if self.facts is not None and self.form == "other":
            return self._said("unknown", "holds no gpt-oss MXFP4 that these rules speak of", None)
        undecided: list[Rule] = []
        for rule in self.rows.rules:
            if rule.runtime != self.runtime.name:
                continue
            holds = self._holds(rule)
            if holds:
                return self._decided(rule, undecided)
            if holds is None:
                undecided.append(rule)
        return self._said("unknown", "no rule speaks for this case", None)

    def _decided(self, rule: Rule, undecided: list[Rule]) -> Verdict:
        differing = [r for r in undecided if r.path != rule.path]
        if differing:
            first = differing[0]
            asked, reason = " and ".join(self._open(first)), _fill(first.because, self)
            because = f"depends on {asked}, not known here: {first.path} where {reason}; else {rule.path}"
            return self._said("unknown", because, first)
        if rule.path != "like":
            return self._said(rule.path, _fill(rule.because, self), rule)
        inner = self._like(rule)
        because = f"{_fill(rule.because, self)}: {inner.because}"
        doubts = tuple(dict.fromkeys((*inner.doubts, *self._doubts(rule))))
        return replace(
            self._said(inner.path, because, rule),
            ways=inner.ways,
            reads_form=inner.reads_form,
            doubts=doubts,
            source=f"{rule.source}; {inner.source}",
        )

    def _like(self, rule: Rule) -> Verdict:
        assert rule.like is not None
        flags = self.flags - {rule.without_flag}
        return judge_runtime(rule.like, self.environment, self.facts, flags, rows=self.rows)

    def _said(self, path: str, because: str, rule: Rule | None) -> Verdict:
        return Verdict(
            self.runtime.name,
            None if self.text == UNKNOWN else self.text,
            True,
            path,
            because,
            rule.id if rule else None,
            rule.source if rule else None,
            self._doubts(rule),
            basis(self.runtime.name, self.version, self.rows),
            rule.ways if rule else (),
            rule is None or not rule.refuses_form,
        )

    def _doubts(self, rule: Rule | None) -> tuple[str, ...]:
        said = (rule.doubt,) if rule and rule.doubt else ()
        return (*said, *self.notes)

    def _holds(self, rule: Rule) -> bool | None:
        answers = [self._in_versions(rule.versions)]
        for name, wanted in rule.when.items():
            if name == "package":
                answers += [self._package(package, text) for package, text in wanted.items()]
            else:
                answers.append(self._condition(rule, name, wanted))
        return False if False in answers else None if None in answers else True

    def _open(self, rule: Rule) -> list[str]:
        """The facts that leave `rule` undecided, in words."""
        out = [] if self._in_versions(rule.versions) is not None else [f"the version of {self.runtime.title}"]
        for name, wanted in rule.when.items():
            if name == "package":
                out += [
                    f"{p.replace(':', ' (')}{')' if ':' in p else ''}"
                    for p, t in wanted.items()
                    if self._package(p, t) is None
                ]
            elif self._condition(rule, name, wanted) is None:
                out.append(
                    {"capability": "the GPU's compute capability", "gfx": "the GPU's target", "amx": "AMX"}.get(
                        name, name
                    )
                )
        return out

    def _in_versions(self, text: str) -> bool | None:
        if not text:
            return True
        return None if self.version is None else self.version in Range(text)

    def _condition(self, rule: Rule, name: str, wanted: Any) -> bool | None:
        gpu = self.environment.gpu
        if name == "capability":
            return None if gpu.capability is None else Version(gpu.capability) in Range(wanted)
        if name == "gfx":
            return None if gpu.gfx is None else gpu.gfx.startswith(tuple(wanted))
        if name == "amx":
            return None if self.environment.amx is None else bool(self.environment.amx == wanted)
        if name == "inherited":
            if self._inherited is None:
                self._inherited = self._like(rule)
            return bool(self._inherited.path == wanted)
        answers: Mapping[str, bool] = {
            "form": name == "form" and self.form in wanted,
            "device": name == "device" and self.device in wanted,
            "flag": name == "flag" and wanted in self.flags,
            "not_flag": name == "not_flag" and wanted not in self.flags,
        }
        return answers[name]

    def _package(self, name: str, wanted: str) -> bool | None:
        packages, traits = self.environment.packages, self.environment.traits
        owner, _, trait = name.partition(":")
        there: bool | None = owner in packages
        if trait and there:
            there = traits.get(name)
        if wanted in ("missing", "present"):
            return None if there is None else there == (wanted == "present")
        negated = wanted.startswith("not ")
        text = wanted.removeprefix("not ")
        if not there:
            return negated
        if text[0].isalpha():
            found = self.package_range(text)
            if found is None:
                return False
            text = found
        version = _version(packages[owner])
        return None if version is None else (version in Range(text)) != negated

    def package_range(self, name: str) -> str | None:
        """The range of [ranges] for this runtime's version."""
        return None if self.version is None else self.rows.package_range(self.runtime.name, name, self.version)


_WORDS = {"capability": "the GPU's compute capability", "gfx": "the GPU's target", "amx": "whether there is AMX"}


_UNTAGGED = re.compile(r"0\.[01]\.dev\d")
"""How builds from a clone without tags call themselves (vLLM's 0.1.dev17670): that is no old version, but any."""


def _version(text: str) -> Version | None:
    if _UNTAGGED.match(text):
        return None
    try:
        return Version(text)
    except ValueError:
        return None


def _fill(text: str, case: _Case) -> str:
    return text.replace("{kernels}", f"kernels {case.package_range('kernels') or ''}".rstrip())


def device(runtime: str, environment: Environment) -> tuple[str, tuple[str, ...]]:
    """The device that the runtime sees, and what to know of it: a torch that is built for CPUs sees no GPU."""
    gpu = environment.gpu
    torch = _version(environment.packages.get("torch", UNKNOWN))
    if runtime not in PYTHON_RUNTIMES or torch is None or gpu.device in ("cpu", "mps"):
        return gpu.device, ()
    built = next((b for b in ("cpu", "rocm", "cu", "xpu") if torch.local.startswith(b)), None)
    fits = built is None or built == {"cuda": "cu", "rocm": "rocm"}[gpu.device]
    if fits:
        return gpu.device, ()
    if environment.assumed:  # another machine's GPU, so another machine's torch
        return gpu.device, ()
    return "cpu", (f"torch {torch} is not built for this GPU and does not see it",)


def basis(runtime: str, version: Version | None, rows: Tables) -> str:
    """How far the rules were read for this version: "read", or in words how it stands to those that were."""
    texts = rows.read.get(runtime, ())
    read = sorted(v for v in map(_version, texts) if v is not None)
    if not read:
        return f"read in {', '.join(texts)}"
    if version is None:
        return f"no version known; read up to {read[-1]}"
    if version in read:
        return "read"
    if version > read[-1]:
        return f"newer than {read[-1]}, the newest that was read: judged by its rules"
    if version < read[0]:
        return f"older than {read[0]}, the oldest that was read"
    below, above = max(v for v in read if v < version), min(v for v in read if v > version)
    return f"not read itself; {below} and {above} were"
