"""What differs between two checkpoints, for a terminal: the verdict first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import many, print_json, say, say_notes, table
from ckpttool.reports import document
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.comparison.config import FieldDifference
    from ckpttool.comparison.parts import PartComparison
    from ckpttool.diff import Diff, DiffSide

WORST = 10
"""Lossy parts that are shown."""

LISTED = 24
"""Lines of each other kind that are shown."""

VALUE_LIMIT = 60

NUMBER = re.compile(r"(?<![^.\[])[0-9]+(?![^.\]])")
"""A layer's or expert's number in a name."""


def show_diff(report: Diff, as_json: bool) -> None:
    """The verdict, then the worst parts, what only one has, other shapes, config and tokenizer."""
    if as_json:
        print_json(document(report))
        return
    say(report.verdict)
    say()
    _sides(report.a, report.b)
    _counts(report)
    _worst(report.worst)
    for status, title in (("only_a", "only in A"), ("only_b", "only in B")):
        rows = [p for p in report.parts if p.status == status]
        _list(title, _folded([(p.part, f"{_shape(p.shape_a or p.shape_b)}  {p.format_a or p.format_b}") for p in rows]))
    shapes = [p for p in report.parts if p.status == "shape"]
    _list("of another shape", _folded([(p.part, f"{_shape(p.shape_a)} / {_shape(p.shape_b)}") for p in shapes]))
    _fields("config", report.config)
    _fields("GGUF key-values", report.metadata)
    _side_files(report)
    say_notes(shown(n, MESSAGE_LIMIT) for n in report.notes[:LISTED])
    if len(report.notes) > LISTED:
        say(f"and {many(len(report.notes) - LISTED, 'more note')} (--json lists them all)")


def _sides(a: DiffSide, b: DiffSide) -> None:
    rows = [
        (letter, s.source, s.arch or "unknown", s.dialect or s.container, f"{s.weights:,}", size(s.nbytes))
        for letter, s in (("A", a), ("B", b))
    ]
    table(("", "checkpoint", "architecture", "dialect", "weights", "size"), rows, right=("weights", "size"))


def _counts(report: Diff) -> None:
    words = {
        "bytes": "equal bytes", "values": "equal values", "lossy": "differ", "only_a": "only in A",
        "only_b": "only in B", "shape": "of another shape", "unread": "not compared",
    }  # fmt: skip
    found = [f"{n:,} {words[status]}" for status, n in report.counts.items() if n]
    if len(found) > 1:
        say(f"parts: {', '.join(found)}")
    formats: dict[tuple[str, str], int] = {}
    for p in report.parts:
        if p.format_a and p.format_b and p.format_a != p.format_b:
            formats[p.format_a, p.format_b] = formats.get((p.format_a, p.format_b), 0) + 1
    if formats:
        rows = sorted(formats.items(), key=lambda item: -item[1])
        say("formats, A / B: " + "; ".join(f"{a} / {b} {many(n, 'part')}" for (a, b), n in rows))
    zeros = sum(p.zero_signs or 0 for p in report.parts)
    if zeros:
        say(f"zeros of another sign, counted as equal: {zeros:,}")


def _worst(parts: Sequence[PartComparison]) -> None:
    if not parts:
        return
    say()
    more = f"the {WORST} worst of {len(parts):,}" if len(parts) > WORST else many(len(parts), "part")
    say(f"differing values, errors of B against A ({more}):")
    columns = ("part", "formats", "max abs", "relative", "SQNR dB", "differing", "experts", "first at")
    table(columns, map(_worst_row, parts[:WORST]), right=columns[2:7])


def _worst_row(p: PartComparison) -> tuple[str, ...]:
    formats = f"{p.format_a}" if p.format_a == p.format_b else f"{p.format_a} / {p.format_b}"
    if p.differing is None:
        return (p.part, formats, "bytes differ; nothing here decodes them", "", "", "", "", "")
    place = ""
    if p.first:
        expert = "" if p.first.expert is None else f"expert {p.first.expert}, "
        place = f"{expert}row {p.first.row}, column {p.first.column}"
    nonfinite = f" ({p.nonfinite:,} not finite)" if p.nonfinite else ""
    experts = f"{len(p.experts)} of {(p.shape_a or (0,))[0]}" if p.experts else ""
    if len(p.experts) > 1:
        worst = max(p.experts, key=lambda e: (e.nonfinite, e.relative is None, e.relative or 0.0))
        experts += f", worst {worst.expert}"
    return (
        p.part, formats, _number(p.max_abs), _number(p.relative), "-" if p.sqnr is None else f"{p.sqnr:.2f}",
        f"{p.differing:,}{nonfinite}", experts, place,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape or ())) or "scalar"


def _folded(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each row; those that differ in their layer or expert alone are one, with a * for the number."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, what in rows:
        groups.setdefault((NUMBER.sub("*", name), what), []).append(name)
    return [
        f"{names[0] if len(names) == 1 else pattern}  {what}{'' if len(names) == 1 else f'  ({len(names):,})'}"
        for (pattern, what), names in groups.items()
    ]


def _list(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    say()
    say(f"{title}:")
    for line in lines[:LISTED]:
        say(f"  {shown(line, MESSAGE_LIMIT)}")
    if len(lines) > LISTED:
        say(f"  and {len(lines) - LISTED:,} more (--json lists them all)")


def _fields(title: str, rows: Sequence[FieldDifference]) -> None:
    lines = [
        f"{d.key}: {_value(d.a)} in A, {_value(d.b)} in B{'; changes the forward pass' if d.forward else ''}"
        for d in rows
    ]
    _list(f"{title}, {many(len(rows), 'field')}", lines)


def _value(value: Any) -> str:
    return "not stated" if value is None else shown(json.dumps(value, ensure_ascii=False), VALUE_LIMIT)


def _side_files(report: Diff) -> None:
    words = {"only_a": "only in A", "only_b": "only in B", "unread": "not compared", "differs": "differs"}
    rows = [f for f in report.side_files if f.status in words]
    _list("beside the weights", [f"{f.name}: {words[f.status]}{f'; {f.what}' if f.what else ''}" for f in rows])
    same = [f.name for f in report.side_files if f.status == "equal"]
    if same:
        say()
        say(f"equal: {', '.join(same)}")
