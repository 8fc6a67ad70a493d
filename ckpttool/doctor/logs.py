"""Known messages in a log: what caused them, whom they befall, and what to type. The table is messages.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ckpttool.doctor.versions import Range, Version

LINE_LIMIT = 1 << 16
"""Characters of a line that are looked at: logs hold tensors and progress bars."""


@dataclass(frozen=True)
class Message:
    """A message: `pattern` is a regular expression for one line, `ways` are commands."""

    id: str
    runtime: str
    pattern: str
    cause: str
    affected: str
    ways: tuple[str, ...]
    source: str
    package: str | None = None
    versions: str = ""


@dataclass(frozen=True)
class Match:
    """A message that a log holds. `lines` are numbers from 1, the first few; `count` is how often it stands there.

    `installed_affected` says whether the version here is among those affected; None where that is not known.
    """

    id: str
    runtime: str
    text: str
    count: int
    lines: tuple[int, ...]
    cause: str
    affected: str
    installed_affected: bool | None
    ways: tuple[str, ...]
    source: str


FIRST = 5


@cache
def messages() -> tuple[Message, ...]:
    """The known messages, the more particular before the more general."""
    rows = tomllib.loads(files("ckpttool.doctor").joinpath("messages.toml").read_text("utf-8"))["messages"]
    return tuple(Message(**{**row, "ways": tuple(row["ways"])}) for row in rows)


def matches(
    lines: Iterable[str], packages: Mapping[str, str], values: Mapping[str, str] | None = None
) -> tuple[Match, ...]:
    """The known messages in `lines`, in the order in which they first stand there.

    `packages` are the installed versions; `values` fill the commands: source, stem, kernels.
    """
    patterns = [(m, re.compile(m.pattern)) for m in messages()]
    found: dict[str, tuple[Message, str, list[int]]] = {}
    for number, line in enumerate(lines, 1):
        line = line[:LINE_LIMIT]
        for message, pattern in patterns:
            if hit := pattern.search(line):
                row = found.setdefault(message.id, (message, _around(line, hit), []))
                row[2].append(number)
                break  # one line, one message: the table has the particular ones first
    return tuple(_match(m, text, numbers, packages, values or {}) for m, text, numbers in found.values())


def _around(line: str, hit: re.Match[str]) -> str:
    """The line, or so much of it that the message can be told."""
    text = line.strip()
    return text if len(text) <= 240 else line[max(0, hit.start() - 60) : hit.end() + 120].strip()


def _match(m: Message, text: str, numbers: list[int], packages: Mapping[str, str], values: Mapping[str, str]) -> Match:
    ways = tuple(_filled(way, values) for way in m.ways)
    return Match(
        m.id, m.runtime, text, len(numbers), tuple(numbers[:FIRST]), m.cause, m.affected, _befalls(m, packages), ways,
        m.source,
    )  # fmt: skip


def _befalls(m: Message, packages: Mapping[str, str]) -> bool | None:
    if m.package is None or m.package not in packages:
        return None
    try:
        return Version(packages[m.package]) in Range(m.versions)
    except ValueError:
        return None


def _filled(way: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        way = way.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", value)
    return way
