"""What makes a candidate fail: one finding, with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_LAYER: Final = re.compile(r"layer\.(\d+)\.")


@dataclass(frozen=True)
class Failure:
    """`part` is the canonical part (or, without one, the weight) and `layer` its layer; None: it is of neither.

    `level` is the one that found it: "structure", "values" or "forward"; "verdict" is a limit that figures do not keep.
    """

    part: str | None
    layer: int | None
    what: str
    level: str


def so_many(n: int, total: int, noun: str) -> str:
    """ "1 of 5 values is", "2 of 5 values are": the beginning of what is said of them."""
    return f"{n:,} of {total:,} {noun}s {'is' if n == 1 else 'are'}"


def part_failure(part: str, what: str, level: str) -> Failure:
    """A failure of one part, whose layer is in its name."""
    found = _LAYER.match(part)
    return Failure(part, int(found[1]) if found else None, what, level)
