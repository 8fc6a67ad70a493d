"""What every report is written with: tables, lines and JSON on stdout, words on stderr."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpttool.errors import LocalIOError, shown
from ckpttool.reports import json_text

MOST_PROBLEMS = 20
"""Lines of one kind that are printed before the rest is counted."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table without a frame; on a pipe its lines are as long as they need to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tty = sys.stdout.isatty()
    text = io.StringIO()  # rich would end the process itself where stdout is closed
    width = shutil.get_terminal_size().columns if tty else 10_000
    console = Console(file=text, highlight=False, force_terminal=tty, width=width)
    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        out.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(shown(cell)) for cell in row))
    console.print(out)
    write(text.getvalue())


def say(text: str = "") -> None:
    """A line to stdout."""
    write(text + "\n")


def write(text: str) -> None:
    """To stdout; characters that it cannot show are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    with stdout_errors():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document to stdout."""
    with stdout_errors():
        sys.stdout.write(json_text(value, sys.stdout.encoding or "utf-8"))


def flush() -> None:
    """Bring out what was printed, while a failure can still be told."""
    with stdout_errors():
        sys.stdout.flush()


@contextlib.contextmanager
def stdout_errors() -> Iterator[None]:
    """A reader that has gone ends the program in peace; any other failure of stdout is one of ours."""
    try:
        yield
    except BrokenPipeError as e:
        raise OutputClosed from e
    except OSError as e:
        raise LocalIOError(f"cannot be written: {e.strerror}", file="standard output", hint=_LOST) from e


class OutputClosed(Exception):
    """Whoever read our output has seen enough. No OSError, of which click would make an exit code of its own."""


_LOST = "the command itself is done, its report is lost"


def many(n: int, noun: str) -> str:
    """So many of `noun`, which takes an s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def say_notes(notes: Iterable[str]) -> None:
    """A line each."""
    for note in notes:
        say(f"note: {note}")


def more(count: int) -> None:
    """Say how many problems were left out."""
    if count > MOST_PROBLEMS:
        say(f"and {count - MOST_PROBLEMS} more problems (--json lists them all)")


def tell(text: str) -> None:
    """To stderr, which escapes what it cannot show; where it is closed there is nobody left to tell."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
