"""Round trips for a terminal: the verdict first, then one table, then what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import NARROW, columns, many, print_json, say, say_notes, table
from ckpttool.reports import document
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.validator.round_trip_report import RoundTrip, RoundTrips

LISTED = 12
"""Failures of one round trip that are shown."""

STYLES = {"failed": "red", "exact": "green"}

PLAIN = ("via", "verdict", "back", "size", "bits", "SQNR dB", "seconds")
FIGURES = ("KL mean", "KL 99 %", "KL max", "top-1", "perplexity ratio")
SPARE = ("size", "SQNR dB", "seconds", "KL 99 %", "KL max")
"""Columns that a narrow terminal does without."""


def show_round_trips(report: RoundTrips, as_json: bool) -> None:
    """The verdict, what was sent, a line for each way, failures, notes."""
    if as_json:
        print_json(document(report))
        return
    say(_verdict(report))
    say()
    s = report.source
    say(f"{shown(s.source, MESSAGE_LIMIT)}: {s.dialect}, {size(s.nbytes)}; back to {_back_to(report)}")
    measured = next((t for t in report.trips if t.kl_mean is not None), None)
    if measured and measured.tokens is not None:
        floor = "" if measured.noise_kl_mean is None else f"; noise alone gives a KL of {measured.noise_kl_mean:.1g}"
        say(f"on {measured.tokens:,} tokens of perplexity {measured.ppl_reference:,.2f}{floor}")
    say()
    names = [*PLAIN, *(FIGURES if measured else ())]
    if columns() < NARROW:
        names = [n for n in names if n not in SPARE]
    rows = [_cells(t) for t in report.trips]
    styles = [STYLES.get(t.verdict, "") for t in report.trips]
    right = [n for n in names if n not in ("via", "verdict", "back")]
    table(names, [[row[n] for n in names] for row in rows], right=right, styles=styles)
    for t in report.trips:
        _failures(t)
    _proofs(report)
    notes = list(dict.fromkeys(note for t in report.trips for note in t.notes))
    if notes:
        say()
        say_notes(shown(n, MESSAGE_LIMIT) for n in notes)


def _verdict(report: RoundTrips) -> str:
    failed = [t.via for t in report.trips if t.verdict == "failed"]
    if failed:
        return f"failed: {', '.join(failed)}"
    trips = many(len(report.trips), "round trip")
    if report.verdict == "exact":
        return f"exact: {trips}, every value came back"
    if report.level == "structure":
        return f"within budget: {trips}, by headers and side files alone"
    exact = sum(t.verdict == "exact" for t in report.trips)
    return f"within budget: {trips}{f', {exact} of them exact' if exact else ''}"


def _back_to(report: RoundTrips) -> str:
    found = ", ".join(dict.fromkeys(t.back_to or "?" for t in report.trips))
    return found if report.then else f"{found}, the form of the source"


def _cells(t: RoundTrip) -> dict[str, str]:
    out = {
        "via": t.via,
        "verdict": t.verdict,
        "back": t.fidelity or "-",
        "size": size(t.nbytes),
        "bits": f"{t.bits:.2f}",
        "SQNR dB": "-" if t.sqnr is None else f"{t.sqnr:.2f}",
        "seconds": f"{t.seconds:.1f}",
    }
    if t.kl_mean is None:
        return out | dict.fromkeys(FIGURES, "-")
    return out | {
        "KL mean": _with_error(t.kl_mean, t.kl_mean_se, ".2e", ".0e"),
        "KL 99 %": f"{t.kl_p99:.2e}",
        "KL max": f"{t.kl_max:.2e}",
        "top-1": f"{t.top1:.2%}",
        "perplexity ratio": _with_error(t.ppl_ratio or 0.0, t.ppl_ratio_se, ".4f", ".4f"),
    }


def _with_error(value: float, error: float | None, form: str, error_form: str) -> str:
    return f"{value:{form}}" + ("" if error is None else f" ± {error:{error_form}}")


def _failures(t: RoundTrip) -> None:
    if t.verdict != "failed":
        return
    say()
    say(f"{t.via}:")
    for what in t.decided[:LISTED]:
        say(f"  {shown(what, MESSAGE_LIMIT)}")
    if len(t.decided) > LISTED:
        say(f"  and {len(t.decided) - LISTED:,} more (--json lists them all)")


def _proofs(report: RoundTrips) -> None:
    """How a lossy conversion there is known to be right, which the table has no room for."""
    lossy = [t for t in report.trips if t.there == "lossy"]
    if not lossy:
        return
    say()
    say("the conversion there, by what was proven of its parts:")
    for t in lossy:
        say(f"  {t.via}: {', '.join(f'{n:,} by {name}' for name, n in sorted(t.proofs.items())) or 'nothing'}")
