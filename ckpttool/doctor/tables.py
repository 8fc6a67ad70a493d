"""The rules and the ways out, read from rules.toml and checked as they load."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ckpttool.doctor.probe import PACKAGES, canonical
from ckpttool.doctor.versions import Range, Version

PATHS = ("native", "emulated", "dequantized", "refused", "unknown")
"""What can become of MXFP4 weights in a runtime, the best first."""

_CONDITIONS = {"form", "device", "capability", "gfx", "amx", "flag", "not_flag", "inherited", "package"}


@dataclass(frozen=True)
class Rule:
    """One row of what a runtime's code decides; see rules.toml for the fields."""

    id: str
    runtime: str
    path: str
    because: str
    source: str
    versions: str = ""
    when: Mapping[str, Any] = field(default_factory=dict)
    ways: tuple[str, ...] = ()
    doubt: str | None = None
    like: str | None = None
    without_flag: str | None = None

    @property
    def refuses_form(self) -> bool:
        """Whether it speaks of how the checkpoint is stored alone: the runtime would read it once converted."""
        asked = {name for name, wanted in self.when.items() if wanted}
        return self.path == "refused" and asked == {"form"}


@dataclass(frozen=True)
class Way:
    """A way out. `pip` are requirements, or else `command` is the whole; what it changes is in the other fields."""

    name: str
    command: str | None = None
    pip: tuple[str, ...] = ()
    sets: Mapping[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    form: str | None = None
    flags: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    runtime: str | None = None
    traits: Mapping[str, bool] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Runtime:
    """A runtime: `form` is the checkpoint's that it reads, `assume` what would be there, were it installed today."""

    name: str
    title: str
    form: str
    assume: Mapping[str, str]
    install: str
    traits: Mapping[str, bool] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The package whose version is the runtime's."""
        return canonical(self.name)


@dataclass(frozen=True)
class Tables:
    """All rows, in the order of the files."""

    rules: tuple[Rule, ...]
    ways: Mapping[str, Way]
    runtimes: tuple[Runtime, ...]
    ranges: Mapping[tuple[str, str], tuple[tuple[Range, str], ...]]
    read: Mapping[str, tuple[str, ...]]

    def runtime(self, name: str) -> Runtime:
        """The runtime called `name`."""
        return next(r for r in self.runtimes if r.name == name)

    def package_range(self, runtime: str, name: str, version: Version) -> str | None:
        """The range of the package `name` that this version of `runtime` takes; None where none is said."""
        rows = self.ranges.get((runtime, name), ())
        return next((text for versions, text in rows if version in versions), None)


@cache
def tables() -> Tables:
    """The rules of this package.

    Raises:
        ValueError: a row is not what the format allows.
    """
    return parse(tomllib.loads(files("ckpttool.doctor").joinpath("rules.toml").read_text("utf-8")))


def parse(document: Mapping[str, Any]) -> Tables:
    """Rules from their TOML.

    Raises:
        ValueError: a row is not what the format allows.
    """
    runtimes = tuple(Runtime(**{**row, "assume": _packages(row["assume"])}) for row in document["runtimes"])
    ways = {name: _way(name, row) for name, row in document["ways"].items()}
    names = {r.name for r in runtimes}
    rules = tuple(_rule(row, names, set(ways)) for row in document["rules"])
    if len({r.id for r in rules}) != len(rules):
        raise ValueError("two rules share an id")
    ranges = {
        (row["runtime"], row["name"]): tuple((Range(r["versions"]), r["range"]) for r in row["rows"])
        for row in document["ranges"]
    }
    return Tables(rules, ways, runtimes, ranges, {k: tuple(v) for k, v in document["read"].items()})


def _rule(row: Mapping[str, Any], runtimes: set[str], ways: set[str]) -> Rule:
    rule = Rule(**{**row, "ways": tuple(row.get("ways", ()))})
    problems = [
        rule.runtime not in runtimes and f"no runtime {rule.runtime}",
        rule.path not in (*PATHS, "like") and f"no path {rule.path}",
        (rule.path == "like" or "inherited" in rule.when) and rule.like not in runtimes and "like what?",
        set(rule.when) - _CONDITIONS and f"no condition {set(rule.when) - _CONDITIONS}",
        set(rule.ways) - ways and f"no way {set(rule.ways) - ways}",
        not rule.source and "no source",
    ]
    if found := [p for p in problems if p]:
        raise ValueError(f"rule {rule.id}: {found}")
    Range(rule.versions)
    if "capability" in rule.when:
        Range(rule.when["capability"])
    return Rule(**{**vars(rule), "when": {**rule.when, "package": _packages(rule.when.get("package", {}))}})


def _way(name: str, row: Mapping[str, Any]) -> Way:
    lists = {k: tuple(row[k]) for k in ("pip", "leaves", "flags", "drops") if k in row}
    way = Way(name, **{**row, **lists, "sets": _packages(row.get("sets", {}))})
    if bool(way.command) == bool(way.pip):
        raise ValueError(f"way {name}: a command or requirements of pip, one of them")
    return way


def _packages(rows: Mapping[str, str]) -> dict[str, str]:
    """Rows by the canonical names of their packages; "triton_kernels:x" is a trait of one."""
    out = {}
    for name, value in rows.items():
        package, _, trait = name.partition(":")
        known = canonical(package)
        if known not in PACKAGES:
            raise ValueError(f"no package {name}")
        out[f"{known}:{trait}" if trait else known] = value
    return out
