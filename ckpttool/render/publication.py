"""What was published, or would be, for a terminal: where, by which commit, then every file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import many, print_json, say, say_notes, table, tell, write
from ckpttool.reports import document
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.publishing.report import Publication

LISTED = 40
"""Files that are shown; of a longer list the first ones."""

FEW = 8
"""Names that a line holds."""

WORDS = {
    "uploaded": ("uploaded", "to upload"),
    "present": ("the Hub had it", "the Hub has it"),
    "removed": ("removed: of the conversion before", "to be removed: of the conversion before"),
}
"""What became of a file, and in a dry run what would."""


def show_publication(report: Publication, as_json: bool, *, card: str | None = None, listed: bool = True) -> None:
    """The verdict, the files if `listed`, what travelled, what stayed here; with `card` that text, and on stderr the
    notes."""
    if as_json:
        print_json(document(report))
        return
    if card is not None:
        write(card)
        tell("".join(f"note: {shown(n, MESSAGE_LIMIT)}\n" for n in report.notes))
        return
    say(shown(_verdict(report), MESSAGE_LIMIT))
    for url in (report.pull_request, report.url if report.commit else None):
        if url:
            say(f"  {shown(url, MESSAGE_LIMIT)}")
    if listed:
        say()
        _files(report)
    say(_traffic(report))
    if report.left_out:
        more = len(report.left_out) - FEW
        names = ", ".join(shown(n) for n in report.left_out[:FEW]) + (f" and {more:,} more" if more > 0 else "")
        say(f"stays here, since the receipt does not name it: {names}")
    say_notes(shown(n, MESSAGE_LIMIT) for n in report.notes)
    if report.dry_run:
        say("nothing was sent")


def _verdict(report: Publication) -> str:
    on_branch = report.pull_request is None and report.revision != "main"
    where = f"{report.repo}@{report.revision}" if on_branch else report.repo
    if report.up_to_date:
        return f"up to date: {where} has every file{'' if report.dry_run else f', in commit {_short(report)}'}"
    if report.dry_run:
        return f"would publish to {where} ({_visible(report)}{', to be made' if report.created else ''})"
    what = "opened a pull request to" if report.pull_request else "published to"
    return f"{what} {where} ({_visible(report)}{', made now' if report.created else ''}), commit {_short(report)}"


def _visible(report: Publication) -> str:
    if report.private is None:
        return "as visible as your account's default says"
    return "private" if report.private else "public"


def _short(report: Publication) -> str:
    return (report.commit or "")[:12]


def _files(report: Publication) -> None:
    """A row for each file that is not on the branch as it is."""
    moved = [f for f in report.files if f.state != "unchanged"]
    rows = [(f.name, f"{f.nbytes:,}", WORDS[f.state][report.dry_run]) for f in moved[:LISTED]]
    if len(moved) > LISTED:
        rest = moved[LISTED:]
        rows.append((f"and {len(rest):,} more (--json lists them)", f"{sum(f.nbytes for f in rest):,}", ""))
    if not moved:
        return
    if same := [f for f in report.files if f.state == "unchanged"]:
        rows.append((many(len(same), "other file"), f"{sum(f.nbytes for f in same):,}", "unchanged"))
    table(("file", "bytes", ""), rows, right=("bytes",))
    say()


def _traffic(report: Publication) -> str:
    t = report.traffic
    kept = [f for f in report.files if f.state != "removed"]
    all_of_it = f"{many(len(kept), 'file')}, {size(sum(f.nbytes for f in kept))}"
    if report.dry_run:
        sent = f"about {size(t.up_nbytes)} up, {size(t.down_nbytes)} down, {many(t.requests, 'request')}"
        return f"{all_of_it}: {sent}; disk needed: {size(report.peak_disk)}"
    sent = f"{size(t.up_nbytes)} up, {size(t.down_nbytes)} down, {many(t.requests, 'request')}"
    compared = "" if report.up_to_date else "; the Hub's hashes are those of the files here"
    return f"{all_of_it}: {sent}{compared}"
