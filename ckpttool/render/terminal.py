"""What every report is written with: tables, lines and JSON on stdout, words on stderr."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ckpttool.errors import LocalIOError, shown
from ckpttool.publishing.secrets import redacted
from ckpttool.reports import json_text

MOST_PROBLEMS = 20
"""Lines of one kind that are printed before the rest is counted."""


NARROW = 100
"""Columns of a terminal below which tables do without what can be done without."""


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] | Sequence[int] = (),
    styles: Sequence[str] = (),
    keep: int | None = None,
) -> None:
    """Print a table without a frame; on a pipe its lines are as long as they need to be.

    `right` are the columns, by name or number, that end alike; `styles` colour rows; column `keep` alone folds.
    """
    ends = [name in right or i in right for i, name in enumerate(columns)]
    cells = [[shown(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain_table([list(columns), *cells], ends)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = io.StringIO()  # rich would end the process itself where stdout is closed
    console = Console(file=text, highlight=False, force_terminal=True, width=shutil.get_terminal_size().columns)
    out = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        justify: Literal["right", "left"] = "right" if ends[i] else "left"
        out.add_column(name, justify=justify, overflow="fold", no_wrap=keep is not None and i != keep)
    for i, row in enumerate(cells):
        out.add_row(*map(Text, row), style=styles[i] if i < len(styles) else None)
    console.print(out)
    write(text.getvalue())


def _plain_table(rows: Sequence[Sequence[str]], ends: Sequence[bool]) -> None:
    """The same for a pipe, where nothing folds; rich, which takes longer to load than a header to read, stays away."""
    count = max(map(len, rows))
    widths = [max(_width(row[i]) for row in rows if i < len(row)) for i in range(count)]
    for row in rows:
        padded = []
        for cell, width, end in zip(row, widths, ends, strict=False):
            space = " " * (width - _width(cell))
            padded.append(space + cell if end else cell + space)
        write("  ".join(padded).rstrip() + "\n")


def _width(text: str) -> int:
    """Columns that `text` takes: two for a wide character of East Asia, none for one that joins its neighbour."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def columns() -> int:
    """How wide the terminal is; without one, as wide as anything needs."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def paragraph(head: str, text: str, style: str = "") -> None:
    """`head`, and `text` beside it as many lines as it needs; `style` colours the head on a terminal."""
    width = columns()
    room = max(24, width - len(head))
    lines = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False) if len(text) > room else [text]
    coloured = head
    if style and sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        from rich.style import Style

        coloured = Style.parse(style).render(head)
    for i, line in enumerate(lines or [""]):
        say((coloured if i == 0 else " " * len(head)) + line)


def writable(text: str) -> bool:
    """Whether stdout can show these characters."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def say(text: str = "") -> None:
    """A line to stdout."""
    write(text + "\n")


def write(text: str) -> None:
    """To stdout; characters that it cannot show are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    with stdout_errors():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def print_json(value: Mapping[str, Any], *, rows: bool = False) -> None:
    """One JSON document to stdout; `rows` as `json_text` has it."""
    with stdout_errors():
        sys.stdout.write(json_text(value, sys.stdout.encoding or "utf-8", rows=rows))


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
    """To stderr, without secrets; it escapes what it cannot show, and where it is closed nobody is left to tell."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(redacted(text))
            sys.stderr.flush()
