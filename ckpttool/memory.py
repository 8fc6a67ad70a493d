"""How much memory this process has used at most."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss() -> int | None:
    """The process's peak resident set in bytes; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):  # unlike ru_maxrss not inherited from the process that started this one
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
