"""What a checkpoint holds, for a terminal."""

from __future__ import annotations

from collections import Counter

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.inspection.report import Inspection
from ckpttool.render.terminal import MOST_PROBLEMS, many, more, print_json, say, say_notes, table
from ckpttool.reports import document
from ckpttool.units import size


def show_inspection(report: Inspection, as_json: bool) -> None:
    """One line a weight, then totals, then what is wrong."""
    if as_json:
        print_json(document(report))
        return
    columns = ("name", "part", "format", "packing", "shape", "bytes")
    rows = (
        (t.name, t.part or "-", t.format, t.packing, " x ".join(map(str, t.shape)) or "scalar", f"{t.nbytes:,}")
        for t in report.tensors
    )
    table(columns, rows, right=("bytes",))
    say()
    what = f"{report.arch or 'unknown architecture'}, {report.dialect or 'unknown dialect'}, {report.container}"
    say(f"{shown(report.source, MESSAGE_LIMIT)}: {what}, {many(len(report.files), 'file')}")
    say(
        f"{len(report.tensors):,} weights, {report.parameters:,} parameters, {report.nbytes:,} bytes "
        f"({size(report.nbytes)}), {report.bits_per_weight:.2f} bits per weight"
    )
    shares = Counter[str]()
    for t in report.tensors:
        shares[t.format] += t.parameters
    total = max(1, report.parameters)
    say(", ".join(f"{name} {100 * n / total:.1f} %" for name, n in shares.most_common()))
    say_notes(report.notes)
    for problem in report.problems[:MOST_PROBLEMS]:
        say(f"problem: {problem}")
    more(len(report.problems))
