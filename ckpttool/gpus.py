"""GPUs by name and by the size they are sold in: memory, bandwidth, what they can do. The table is `gpus.toml`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One row of the table. `memory` in bytes, as its driver reports it; `bandwidth` in bytes a second.

    `sold` is in GB, the first of `names` is shown; `capability` is "9.0" of NVIDIA's, `gfx` "gfx942" of AMD's.
    """

    names: tuple[str, ...]
    sold: int
    memory: int
    bandwidth: int
    capability: str | None
    gfx: str | None


@cache
def gpu_models() -> tuple[GpuModel, ...]:
    """Every GPU of the table, the smallest first."""
    rows = tomllib.loads(Path(__file__).with_name("gpus.toml").read_text("utf-8"))["gpu"]
    return tuple(
        GpuModel(
            tuple(row["names"]),
            row["sold"],
            row["memory"] << 20 if "memory" in row else row["sold"] * 10**9,
            row["bandwidth"] * 10**9,
            row.get("capability"),
            row.get("gfx"),
        )
        for row in rows
    )


def gpu_names() -> list[str]:
    """Every name that `gpu_model` takes, in the table's order."""
    return [name for model in gpu_models() for name in model.names]


def gpu_of_size(text: str) -> tuple[int, GpuModel | None] | None:
    """Bytes of memory that `text` names, and the GPU that stands for them: "80GB" as sold, "79.6GiB" exactly.

    None where it is no size.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    amount, binary = float(found["amount"]), (found["unit"] or "").lower() == "gib"
    model = None if binary else next((m for m in gpu_models() if m.sold == amount), None)
    memory = model.memory if model else int(amount * (1 << 30 if binary else 10**9))
    return (memory, model) if 0 < memory < 1 << 50 else None


_SIZE = re.compile(r"\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>gb|gib)?\s*", re.IGNORECASE)


def gpu_model(text: str) -> GpuModel | None:
    """The GPU called `text`, with or without its size, its maker or its form: "H100", "a100-40gb", "4090".

    What nvidia-smi says is taken too ("NVIDIA H100 80GB HBM3", "Tesla V100-SXM2-32GB").
    """
    for words in (text, _FORMS.sub(" ", text)):
        if found := _by_name().get(_squeezed(words)):
            return found
        if sized := _SIZED.fullmatch(words.strip()):
            wanted, sold = _squeezed(sized["name"]), int(sized["sold"])
            # All sizes of a GPU are called as the first one is: "RTX 3060 8GB", "H100 80GB".
            same = (m for m in gpu_models() if m.sold == sold and wanted in map(_squeezed, m.names))
            if found := next(same, None):
                return found
    return None


@cache
def _by_name() -> dict[str, GpuModel]:
    return {_squeezed(name): model for model in gpu_models() for name in model.names}


_FORMS = re.compile(
    r"\b(sxm\d?|pcie|oam|hbm\d\w?|generation|tensor core|(max-q )?(server|workstation) edition)(?=[\W_]|$)",
    re.IGNORECASE,
)
"""What makers and drivers add to a name, and that changes neither size nor rules."""

_SIZED = re.compile(r"(?P<name>.*?)[\s_\-:,(]*(?P<sold>\d+)\s*GB?\)?", re.IGNORECASE)
_MAKERS = re.compile(r"^(nvidia|amd|tesla|geforce|quadro|instinct|radeon|rtx|gtx|rx)+")


def _squeezed(name: str) -> str:
    """A name as it is compared: "NVIDIA GeForce RTX 4090" is "RTX-4090" is "rtx4090" is "4090"."""
    name = re.sub(r"[^a-z0-9]", "", name.lower())
    return _MAKERS.sub("", re.sub(r"(?<=\d)gb$", "g", name))
