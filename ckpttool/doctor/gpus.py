"""GPUs by name, size, sm number or AMD target, or as their driver reports them: what the rules ask of one."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, replace

from ckpttool.errors import UsageError
from ckpttool.gpus import gpu_model, gpu_names, gpu_of_size

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


def named(text: str) -> Gpu:
    """The GPU called `text`: a name ("H100", "A100 40GB"), "sm_90", "gfx942" or "cpu"; or a size ("80GB").

    Raises:
        UsageError: no such GPU is in the table, or a number that may be a capability or a size.
    """
    word = text.strip().lower()
    if word == "cpu":
        return replace(processor(), name="CPU", device="cpu")
    if found := re.fullmatch(r"(?:sm_?|compute_?)(\d{1,2})\.?(\d)[af]?", word):
        capability = f"{int(found[1])}.{found[2]}"
        if 5 <= int(found[1]) <= 13:
            return Gpu(f"sm_{found[1]}{found[2]}", "cuda", capability=capability)
    if re.fullmatch(r"gfx[0-9a-f]{3,5}", word):
        return Gpu(word, "rocm", gfx=word)
    if model := gpu_model(text):
        return Gpu(text.strip(), "rocm" if model.gfx else "cuda", model.capability, model.gfx, model.memory)
    if word.endswith("b") and (size := gpu_of_size(text)):
        return Gpu(text.strip(), "cuda", memory=size[0])
    if number := re.fullmatch(r"(\d{1,3})(?:\.(\d))?", word):
        sm = f"sm_{number[1]}{number[2] or ''}"
        hint = f"{sm} is a compute capability, {word}GB an amount of memory"
        raise UsageError(f"--gpu {text}: a number alone may be either", hint=hint)
    raise UsageError(
        f"--gpu {text}: not in the table", hint="give cpu, sm_90, gfx942, 80GB, or one of: " + ", ".join(gpu_names())
    )


def several(text: str) -> tuple[Gpu, ...]:
    """The GPUs that `text` names, as `named`: "H100" is one, "4 x H100" four alike."""
    many = re.fullmatch(r"\s*([1-9]\d?)\s*[xX*]\s*(?=\S)(.+)", text)
    return (named(many[2]),) * int(many[1]) if many else (named(text),)


def processor() -> Gpu:
    """This machine's processor; its memory is the machine's."""
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not everywhere is there a sysconf that says
        ram = None
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return Gpu("Apple GPU", "mps", memory=ram) if apple else Gpu("CPU", "cpu", memory=ram)


def nvidia(name: str, capability: str, mebibytes: str) -> Gpu:
    """A GPU as nvidia-smi reports it; old drivers know no capability, which the table then gives by name."""
    memory = int(mebibytes) << 20 if mebibytes.isdigit() else None
    if not re.fullmatch(r"\d+\.\d", capability):
        model = gpu_model(name)
        return Gpu(name, "cuda", capability=model.capability if model else None, memory=memory)
    return Gpu(name, "cuda", capability=capability, memory=memory)
