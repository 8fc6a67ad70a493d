"""What went wrong, in a line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpttool.errors import MESSAGE_LIMIT, CkptError, LocalIOError, Problems, shown
from ckpttool.publishing.secrets import redacted
from ckpttool.render.terminal import MOST_PROBLEMS, flush, print_json, tell
from ckpttool.reports import error_document

FEW = 4


def show_error(error: BaseException, as_json: bool) -> None:
    """One line for each problem, on stderr; with `as_json` a document, on stdout."""
    if as_json:
        with contextlib.suppress(OSError, LocalIOError):  # a stdout that takes nothing: the lines below go to stderr
            print_json(_without_secrets(error_document(error)))
            flush()
            return
    problems = error.problems if isinstance(error, Problems) else (error,)
    rows = [str(p) if isinstance(p, CkptError) else _as_bug(p) for p in _grouped(problems)]
    lines = rows[:MOST_PROBLEMS]
    if len(rows) > MOST_PROBLEMS:
        lines.append(f"and {len(rows) - MOST_PROBLEMS} more problems (--json lists them all)")
    tell("".join(f"error: {line}\n" for line in lines))


def _without_secrets(document: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{k: redacted(v) if isinstance(v, str) else v for k, v in row.items()} for row in document["errors"]]
    return {**document, "errors": rows}


def _grouped(problems: Sequence[BaseException]) -> Iterator[BaseException]:
    """What is wrong with many tensors alike, as one problem, so that it hides no other."""
    groups: dict[object, list[BaseException]] = {}
    for p in problems:
        alike = isinstance(p, CkptError) and p.field and p.offset is None
        groups.setdefault((p.message, p.file, p.hint) if alike and isinstance(p, CkptError) else p, []).append(p)
    for group in groups.values():
        first = group[0]
        if len(group) < FEW or not isinstance(first, CkptError):
            yield from group
        else:
            field = f"{first.field} and {len(group) - 1} more (--json lists them)"
            yield type(first)(first.message, file=first.file, field=field, hint=first.hint)


def _as_bug(error: BaseException) -> str:
    said = shown(f"{type(error).__name__}: {error}", MESSAGE_LIMIT)
    return f"{said}; this is a bug: please report it with the output of --debug"


def show_interrupted(code: int, as_json: bool, *, goes_on: bool) -> None:
    """Say that it was stopped, and where it is so (`goes_on`) that nothing is lost."""
    text = "interrupted; the same command goes on where this one stopped" if goes_on else "interrupted"
    if as_json:
        row = {"kind": "interrupted", "message": text, "file": None, "field": None, "offset": None, "hint": None}
        with contextlib.suppress(OSError, LocalIOError):
            print_json({"schema": "error.v1", "exit_code": code, "errors": [row]})
            flush()
    else:
        tell(f"\n{text}\n")
