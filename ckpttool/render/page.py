"""The page that a report can be written as: one HTML file that asks the network for nothing and opens from disk.

Whatever comes from a file is escaped by `text`, drawings are checked mark by mark (render/charts.py), and the page
itself forbids every script but its own and every request: a name that got through could still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckpttool import __version__
from ckpttool.errors import MESSAGE_LIMIT, NAME_LIMIT, LocalIOError, UsageError, shown
from ckpttool.render.terminal import say

GENERATOR = f'<meta name="generator" content="ckpttool {__version__}">'
OURS = b'<meta name="generator" content="ckpttool '
"""By this, within the first bytes, a page of ours is known again."""


OTHER_FILE = "give another --html FILE"


def no_drawing() -> UsageError:
    """What is said where the package that draws is missing."""
    hint = "pip install 'ckpttool[report]'"
    return UsageError("drawing a page needs the package vl-convert-python, which is not here", hint=hint)


@dataclass(frozen=True)
class Section:
    """A part of a page. `body` is HTML; `key`, its anchor, and `title` are our own words."""

    key: str
    title: str
    body: str


@dataclass(frozen=True)
class Column:
    """A column of a table; `numeric` ones are set right and sorted as numbers, the largest first."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `body` is HTML, `value` what it is sorted by where that is not its text."""

    body: str
    value: float | None = None


def number(value: float | None, digits: int = 4) -> str:
    """`value` with so many digits that count; a dash for None. Small and large ones have an exponent: "1.7e\u22125"."""
    if value is None:
        return "\u2013"
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 10**digits - 0.5:
        out = f"{value:.{digits}g}"
    elif 1 <= abs(value) < 1e7:
        out = f"{value:,.0f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        out = f"{float(mantissa):g}e{int(exponent)}"
    return out.replace("-", "\u2212")


def figure(value: float | None, digits: int = 4) -> Cell:
    """A figure, sorted as such."""
    return Cell(number(value, digits), value if value is not None and math.isfinite(value) else None)


def whole(value: int | None) -> Cell:
    """A whole number in full, a dash for None."""
    return Cell("\u2013") if value is None else Cell(f"{value:,}".replace("-", "\u2212"), value)


def more(rows: int) -> str:
    """What stands below a table that leaves `rows` out."""
    return f"<p>And {rows:,} more; <code>--json</code> lists them all.</p>" if rows > 0 else ""


def page(title: str, lede: str, sections: Sequence[Section]) -> str:
    """The whole document. `title` is text, `lede`, what stands above the sections, is HTML."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'; base-uri 'none'"
    links = "".join(f'<li><a href="#{s.key}">{s.title}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.key}" aria-labelledby="{s.key}-title">'
                   f'<h2 id="{s.key}-title">{s.title}</h2>{s.body}</section>\n' for s in sections)  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{text(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n"
        f'<body>\n<header><div><h1>{text(title)}</h1>{lede}</div></header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer>Made by ckpttool {__version__}. This file holds everything it shows and loads nothing.</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )  # fmt: skip


def _asset(name: str) -> str:
    return files("ckpttool.render").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def text(value: object, limit: int = MESSAGE_LIMIT) -> str:
    """`value` as HTML text or as an attribute's value in double quotes; control and bidi characters are spelt out."""
    return html.escape(shown(str(value), limit), quote=True)


def code(value: object) -> str:
    """A name or path from a file, in the font for such."""
    return f"<code>{text(value, NAME_LIMIT)}</code>"


def data_block(key: str, value: Any) -> str:
    """`value` as JSON that the page's script finds by `key`; nothing in it can end the block."""
    packed = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    packed = packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{key}">{packed}</script>'


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """Figures at a glance: name, value, and a line below it; all are text."""
    cells = (
        f'<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd class="sub">{text(more)}</dd></div>'
        for name, value, more in rows
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def facts(groups: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """Titled lists of name and value, which are text; groups without rows are left out."""
    out = []
    for title, rows in groups:
        if rows:
            items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
            out.append(f"<div><h3>{text(title)}</h3><dl>{items}</dl></div>")
    return f'<div class="facts">{"".join(out)}</div>'


def table(
    key: str, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]],
    *, search: bool = False, sort: bool = True,
) -> str:  # fmt: skip
    """A table; with `search` it can be searched, and unless its rows are no list sorted where it is long enough to."""
    sortable = sort and len(rows) > 3
    heads = "".join(_head(c, sortable) for c in columns)
    body = "".join(f"<tr>{''.join(_cell(n, c, columns[n]) for n, c in enumerate(row))}</tr>\n" for row in rows)
    out = (
        f'<div class="scroll{"" if search else " low"}" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table id="{key}"{" data-sort" if sortable else ""}><caption class="vh">{text(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
    if not search:
        return out
    return (
        f'<div class="controls js-only"><label>Search <input type="search" aria-controls="{key}" '
        f'aria-describedby="{key}-count" placeholder="words, all must occur" autocomplete="off" spellcheck="false">'
        "</label>"
        f'<span id="{key}-count" class="muted" role="status">{len(rows):,} of {len(rows):,}</span></div>{out}'
    )


def _head(column: Column, sortable: bool) -> str:
    title = f'<button type="button">{text(column.title)}</button>' if sortable else text(column.title)
    return f'<th scope="col"{" class=num" if column.numeric else ""}>{title}</th>'


def _cell(number: int, cell: Cell, column: Column) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value:.12g}"'
    kind = " class=num" if column.numeric else ""
    return f'<th scope="row"{value}>{cell.body}</th>' if number == 0 else f"<td{kind}{value}>{cell.body}</td>"


def check_place(path: str | os.PathLike[str]) -> None:
    """Before the work that a page needs: that it can be drawn, and written at `path`.

    Raises:
        UsageError: what draws is not installed.
        LocalIOError: something else lies there, or its folder is missing.
    """
    if find_spec("vl_convert") is None:
        raise no_drawing()
    target = Path(path)
    try:
        if target.is_symlink() or target.exists():
            _refuse_others(target)
        elif not target.parent.is_dir():
            raise LocalIOError("there is no such folder", file=str(target.parent), hint=OTHER_FILE)
    except OSError as e:
        raise _unwritable(target, e) from e


def write_page(path: str | os.PathLike[str], document: str) -> None:
    """Write `document`, a page, at `path`: whole or not at all. An older page there is replaced, nothing else is.

    Raises:
        LocalIOError: something else lies there, or it cannot be written.
    """
    target = Path(path)
    try:
        if target.is_symlink() or target.exists():
            _refuse_others(target)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as f:
                f.write(document)
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as e:
        raise _unwritable(target, e) from e


def show_place(path: str, as_json: bool, what: str = "page") -> None:
    """Say where the page, or other file, is; JSON stands alone."""
    if not as_json:
        say()
        say(f"{what}: {shown(path, MESSAGE_LIMIT)}")


def _unwritable(target: Path, error: OSError) -> LocalIOError:
    return LocalIOError(f"cannot be written: {error.strerror}", file=str(target), hint=OTHER_FILE)


def _refuse_others(target: Path) -> None:
    if target.is_file():
        with target.open("rb") as f:
            if OURS in f.read(500):
                return
    raise LocalIOError("exists and is no page of ckpttool's", file=str(target), hint=OTHER_FILE)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
