"""GPUs by name, sm number or AMD target: the properties that the rules ask for, from gpus.toml."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ckpttool.errors import UsageError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """What computes: `device` is cuda, rocm, mps or cpu; `capability` "9.0", `gfx` "gfx942"; `memory` in bytes.

    None is what is not known. For a processor `memory` is the machine's.
    """

    name: str
    device: str
    capability: str | None = None
    gfx: str | None = None
    memory: int | None = None


@cache
def _table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tomllib.loads(files("ckpttool.doctor").joinpath("gpus.toml").read_text("utf-8"))["gpu"]
    return rows


def names() -> list[str]:
    """Every name that `named` takes besides sm numbers and AMD targets."""
    return [name for row in _table() for name in row["names"]]


def _squeezed(name: str) -> str:
    """A name as it is compared: "NVIDIA GeForce RTX 4090" is "RTX-4090" is "rtx4090" is "4090"."""
    name = re.sub(r"[\s_\-]+", "", name.lower())
    return re.sub(r"^(nvidia|amd|tesla|geforce|quadro|instinct|radeon|rtx|gtx|rx)+", "", name)


_SIZE = re.compile(r"^(?P<name>.*?)[\s_\-:,(]*(?P<size>\d+)\s*GB?\)?$", re.IGNORECASE)


def named(text: str) -> Gpu:
    """The GPU called `text`: a name ("H100", "A100 40GB"), "sm_90", "9.0", "gfx942" or "cpu".

    Raises:
        UsageError: no such GPU is in the table.
    """
    word = text.strip().lower()
    if word == "cpu":
        return replace(processor(), name="CPU", device="cpu")
    if found := re.fullmatch(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)[af]?", word):
        capability = f"{int(found[1])}.{found[2]}"
        if 5 <= int(found[1]) <= 13:
            return Gpu(f"sm_{found[1]}{found[2]}", "cuda", capability=capability)
    if re.fullmatch(r"gfx[0-9a-f]{3,5}", word):
        return Gpu(word, "rocm", gfx=word)
    if row := _row(word):
        return _gpu(row, text.strip(), row["memory"][0])
    if (found := _SIZE.match(text.strip())) and (row := _row(found["name"])) and int(found["size"]) in row["memory"]:
        return _gpu(row, text.strip(), int(found["size"]))
    raise UsageError(
        f"--gpu {text}: not in the table", hint="give cpu, sm_90, gfx942, or one of: " + ", ".join(names())
    )


def processor() -> Gpu:
    """This machine's processor; its memory is the machine's."""
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not everywhere is there a sysconf that says
        ram = None
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return Gpu("Apple GPU", "mps", memory=ram) if apple else Gpu("CPU", "cpu", memory=ram)


def _row(name: str) -> dict[str, Any] | None:
    squeezed = _squeezed(name)
    return next((row for row in _table() if any(_squeezed(n) == squeezed for n in row["names"])), None)


def _gpu(row: dict[str, Any], name: str, gib: int) -> Gpu:
    device = "rocm" if "gfx" in row else "cuda"
    return Gpu(name, device, row.get("capability"), row.get("gfx"), _reported(name) or gib * GIB)


def _reported(name: str) -> int | None:
    """What the driver of a GPU of that name reports, where the table of cards knows it."""
    from ckpttool.serving.cards import card

    try:
        found = card(name)
    except UsageError:
        return None
    return found.memory if found.name else None


def nvidia(name: str, capability: str, mebibytes: str) -> Gpu:
    """A GPU as nvidia-smi reports it; old drivers know no capability, which the table then gives by name."""
    memory = int(mebibytes) << 20 if mebibytes.isdigit() else None
    if not re.fullmatch(r"\d+\.\d", capability):
        words = name.split()
        rows = (_row(" ".join(words[i:j])) for i in range(len(words)) for j in range(len(words), i, -1))
        row = next((r for r in rows if r), None) or next((r for w in words if (r := _row(w.split("-")[0]))), None)
        return Gpu(name, "cuda", capability=row.get("capability") if row else None, memory=memory)
    return Gpu(name, "cuda", capability=capability, memory=memory)
