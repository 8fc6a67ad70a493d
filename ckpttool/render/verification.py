"""Whether a conversion is what its receipt says, for a terminal."""

from __future__ import annotations

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import many, print_json, say, say_notes, table
from ckpttool.reports import Derivation, Verification, document
from ckpttool.units import size

HELD = {"hub": "sha256, as the Hub lists it", "sha256": "sha256 of what was read", "crc32": "CRC-32 of what was read"}
"""What a file was held against, in words."""

MOST_NAMES = 8


def show_verification(report: Verification, as_json: bool) -> None:
    """Whether a finished conversion still is what its receipt says, and of a repo how each file was looked at."""
    if as_json:
        print_json(document(report))
        return
    if report.commit is not None:
        rows = [(f.name, f"{f.nbytes:,}", _held(f.by), "yes" if f.ok else "NO") for f in report.checked]
        table(("file", "bytes", "compared by", "as the receipt says"), rows, right=("bytes",))
        say()
    for finding in report.findings:
        say(shown(finding, limit=1000))
    if report.unlisted:
        names = ", ".join(shown(n) for n in report.unlisted[:MOST_NAMES])
        more = len(report.unlisted) - MOST_NAMES
        say(f"beside them, no part of the conversion: {names}{f' and {more} more' if more > 0 else ''}")
    if report.derivation is not None:
        _derivation(report.derivation)
    say_notes(report.notes)
    state = "as the receipt says" if report.ok else many(len(report.findings), "finding")
    if report.ok and report.derivation is not None:
        state += ", and as the source gives it"
    say(
        f"{shown(report.target, MESSAGE_LIMIT)}: {many(report.files, 'file')}, {many(report.tensors, 'tensor')}, "
        f"{size(report.nbytes)}: {state}"
    )


def _held(by: str | None) -> str:
    return "not compared" if by is None else HELD[by]


def _derivation(found: Derivation) -> None:
    """What was held against the source, and how much of it."""
    steps = ", ".join(f"{n:,} {name}" for name, n in found.steps.items())
    say(f"source: {shown(found.source, MESSAGE_LIMIT)}")
    say(
        f"compared with what comes of it: all layouts and headers, {many(found.side_files, 'side file')}, "
        f"{found.compared:,} of {many(found.slabs, 'slab')} ({steps or 'none'}; {size(found.nbytes)})"
    )
