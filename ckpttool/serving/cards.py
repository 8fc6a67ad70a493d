"""The GPUs that an estimate is about: those of every usual size, or the one that is asked for by name or size."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ckpttool.errors import UsageError
from ckpttool.gpus import GpuModel, gpu_model, gpu_names, gpu_of_size

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


def usual_cards() -> tuple[Card, ...]:
    """One card for each of `SIZES`."""
    return tuple(card(str(n)) for n in SIZES)


def card(text: str) -> Card:
    """The card that `text` names: "H100", "rtx 4090"; or a size: "80" and "80GB" as sold, "79.6GiB" exactly.

    Raises:
        UsageError: neither.
    """
    if found := gpu_model(text):
        return _card(found, found.names[0])
    if size := gpu_of_size(text):
        memory, stands = size
        return _card(stands, str(stands.sold)) if stands else Card(text.strip(), None, memory, None)
    names = gpu_names()
    near = difflib.get_close_matches(text.upper(), names, 3, 0.3) or names
    raise UsageError(f"{text!r} is no GPU that is known", hint=f"a size such as 80GB, or a name: {', '.join(near)}")


def _card(model: GpuModel, label: str) -> Card:
    return Card(label, model.names[0], model.memory, model.bandwidth)
