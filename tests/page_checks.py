"""What tests of report pages share: hostile words, reading a page's tags and tables, contrast."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

HOSTILE = (
    "</script><script>window.hit=1</script>", "<img src=x onerror=window.hit=1>", "'\"><svg onload=window.hit=1>",
    "</title></style><h1>hit</h1>", "\x1b[31m\u202e\x00\ufffe\ud800", "]]><!--", "a" * 3000, "&lt;b&gt; &amp; %3Cb%3E",
    "{{7*7}} ${7*7} ` \\u003cscript\\u003e",
)  # fmt: skip
"""Names as a hostile file may hold them."""

CHOOSE = "(s => {s.selectedIndex = %d; s.dispatchEvent(new Event('change'))})(document.querySelector('%s'))"
"""Take an option of a select."""
CORNER = "(r => [r.left, r.top])(document.querySelectorAll('%s')[%d].getBoundingClientRect())"
"""Where an element is in the window."""


class Tags(HTMLParser):
    """Every start tag of a page with its attributes, and whether tags are nested as they should be."""

    void = frozenset(("meta", "input", "br", "link", "img"))

    def __init__(self, document: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@dataclass
class TableCell:
    """A cell as it stands in the page: its text, and the number it is sorted by."""

    words: str = ""
    value: float | None = None


@dataclass
class Tables(HTMLParser):
    """The rows of every table of a page, heads left out, by the table's id."""

    document: str
    rows: dict[str, list[list[TableCell]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._table: str | None = None
        self._cell: TableCell | None = None
        self._head = False
        self.feed(self.document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._table = given["id"]
            assert self._table is not None
            self.rows[self._table] = []
        elif tag == "thead":
            self._head = True
        elif self._table is not None and not self._head:
            if tag == "tr":
                self.rows[self._table].append([])
            elif tag in ("td", "th"):
                value = given.get("data-v")
                self._cell = TableCell(value=None if value is None else float(value))
                self.rows[self._table][-1].append(self._cell)
            elif self._cell is not None and tag in ("div", "br"):
                self._cell.words += "\n" if self._cell.words else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "thead":
            self._head = False
        elif tag == "table":
            self._table = None
        elif tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.words += data


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG's contrast of two sRGB colours, 0 to 255 each."""

    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
