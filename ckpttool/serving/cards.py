"""GPUs by name and by the size they are sold in: memory and bandwidth. The table is `cards.toml`."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ckpttool.errors import UsageError

SIZES = (16, 24, 32, 48, 80, 96, 141, 192)
"""GB as sold: what is answered for where no card is named."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU. `memory` in bytes, as its driver reports it; `bandwidth` in bytes a second, None where it is unknown.

    `label` is what was asked for ("80", "H100"), `name` the card that answers for it, None for a bare amount.
    """

    label: str
    name: str | None
    memory: int
    bandwidth: int | None


@cache
def _table() -> dict[str, Card]:
    """Cards by their folded names, in the table's order."""
    rows = tomllib.loads(Path(__file__).with_name("cards.toml").read_text("utf-8"))["card"]
    out = {}
    for row in rows:
        for name in (row["name"], *row.get("also", ())):
            out[_folded(name)] = Card(row["name"], row["name"], row["memory"] << 20, row["bandwidth"] * 10**9)
    return out


@cache
def _by_size() -> dict[int, Card]:
    """For each size as sold the card with the least memory, which stands for it."""
    rows = tomllib.loads(Path(__file__).with_name("cards.toml").read_text("utf-8"))["card"]
    out: dict[int, Card] = {}
    for row in rows:
        card = Card(str(row["sold"]), row["name"], row["memory"] << 20, row["bandwidth"] * 10**9)
        if row["sold"] not in out or card.memory < out[row["sold"]].memory:
            out[row["sold"]] = card
    return out


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("geforce", ""))


def usual_cards() -> tuple[Card, ...]:
    """One card for each of `SIZES`."""
    return tuple(_by_size()[n] for n in SIZES)


def card(text: str) -> Card:
    """The card that `text` names: "H100", "rtx 4090"; or a size: "80" and "80GB" as sold, "79.6GiB" exactly.

    Raises:
        UsageError: neither.
    """
    if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gb|gib)?\s*", text, re.IGNORECASE):
        amount, binary = float(match[1]), (match[2] or "").lower() == "gib"
        if not binary and amount in _by_size():
            return _by_size()[int(amount)]
        memory = int(amount * (1 << 30 if binary else 10**9))
        if 0 < memory < 1 << 50:
            return Card(text.strip(), None, memory, None)
    if found := _table().get(_folded(text)):
        return found
    names = list(dict.fromkeys(c.label for c in _table().values()))
    near = difflib.get_close_matches(text.upper(), names, 3, 0.3) or names
    raise UsageError(f"{text!r} is no GPU that is known", hint=f"a size such as 80GB, or a name: {', '.join(near)}")
