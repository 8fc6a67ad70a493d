"""Round trips as a table for other programs: a line for each, under the fields' names, every digit kept."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ckpttool.errors import LocalIOError, os_hint
from ckpttool.validator.failures import Failure
from ckpttool.validator.round_trip_report import RoundTrip, RoundTrips

COLUMNS = ("source", "then", *(f.name for f in fields(RoundTrip)))
HEADER = ",".join(COLUMNS)
OTHER_FILE = "choose another FILE"


def csv_text(report: RoundTrips) -> str:
    """The table, RFC 4180 but for its line ends; what is not known is empty, lists are joined by semicolons."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for t in report.trips:
        writer.writerow([report.source.source, report.then, *(_cell(getattr(t, f.name)) for f in fields(t))])
    return out.getvalue()


def check_csv_place(path: str | os.PathLike[str]) -> None:
    """Before the work: that a table can be put at `path`. LocalIOError where something else lies there."""
    target = Path(path)
    try:
        if target.is_symlink() or target.exists():
            _refuse_others(target)
        elif not target.parent.is_dir():
            raise LocalIOError("there is no such folder", file=str(target.parent), hint=OTHER_FILE)
    except OSError as e:
        raise _unwritable(target, e) from e


def save_round_trips_csv(report: RoundTrips, path: str | os.PathLike[str]) -> None:
    """Write the table at `path`, whole or not at all; an older one there is replaced.

    Raises:
        LocalIOError: something else lies there, or it cannot be written.
    """
    target = Path(path)
    check_csv_place(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "w", encoding="utf-8", newline="", errors="surrogateescape") as f:
                f.write(csv_text(report))
            Path(name).chmod(0o644)
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as e:
        raise _unwritable(target, e) from e


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{name} {n}" for name, n in value.items())
    if isinstance(value, tuple):
        return "; ".join(_told(x) if isinstance(x, Failure) else x for x in value)
    return value


def _told(failure: Failure) -> str:
    return f"{failure.part}: {failure.what}" if failure.part else failure.what


def _refuse_others(target: Path) -> None:
    if target.is_file():
        with target.open("rb") as f:
            if f.read(len(HEADER) + 1).decode("utf-8", "replace") in ("", HEADER + "\n"):
                return
    raise LocalIOError("exists and is no table of round trips", file=str(target), hint=OTHER_FILE)


def _unwritable(target: Path, error: OSError) -> LocalIOError:
    return LocalIOError(f"cannot be written: {error.strerror}", file=str(target), hint=os_hint(error))
