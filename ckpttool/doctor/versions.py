"""Versions and ranges of versions, as far as the rules need them: PEP 440's order without epochs.

The `packaging` package would do, but a command that examines other people's environments should need none of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import total_ordering
from operator import eq, ge, gt, le, lt
from typing import Any

_VERSION = re.compile(
    r"v?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|alpha|b|beta|c|rc|pre|preview)[-_.]?(?P<pre_n>\d*))?"
    r"(?P<post>[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>\d*)|-\d+)?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE,
)
_PRE = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_LATEST = (9, 0)


@total_ordering
class Version:
    """A version, ordered: 3.4.0.dev1 < 3.4.0rc1 < 3.4.0 = 3.4.0+cu128 < 3.4.0.post1. `local` is what follows the +.

    Raises:
        ValueError: `text` is no version.
    """

    def __init__(self, text: str) -> None:
        found = _VERSION.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no version")
        self.text = text.strip()
        self.local = (found["local"] or "").lower()
        release = [int(n) for n in found["release"].split(".")]
        while release and release[-1] == 0:
            release.pop()
        pre = (_PRE[found["pre"].lower()], int(found["pre_n"] or 0)) if found["pre"] else _LATEST
        post = int(found["post_n"] or 0) if found["post"] else -1
        dev = int(found["dev_n"] or 0) if found["dev"] else None
        if dev is not None and not found["pre"] and post < 0:
            pre = (-1, 0)  # 1.0.dev1 comes before 1.0a1
        self._key = (tuple(release), pre, post, (0, dev) if dev is not None else (1, 0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key == other._key

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return self.text


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {">=": ge, "<=": le, "==": eq, ">": gt, "<": lt}
_CLAUSE = re.compile(r"(>=|<=|==|>|<)\s*([^\s,]+)")


class Range:
    """A range such as ">=0.18.2,<0.19"; "" holds every version. Pre-releases count by their order alone.

    Raises:
        ValueError: `text` is no range.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._clauses = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            found = _CLAUSE.fullmatch(part)
            if found is None:
                raise ValueError(f"{part!r} is no comparison of versions")
            self._clauses.append((_COMPARE[found[1]], Version(found[2])))

    def __contains__(self, version: Version) -> bool:
        return all(compare(version, bound) for compare, bound in self._clauses)

    def __str__(self) -> str:
        return self.text
