"""How much memory this process has used at most."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_rss() -> int | None:
    """The process's peak resident set in bytes; None where the system does not say.

    Linux's getrusage counts what the process that started this one held at that moment, so its /proc is asked first.
    """
    if STATUS.is_file():
        words = STATUS.read_text("ascii", "replace").split()
        if "VmHWM:" in words:
            return int(words[words.index("VmHWM:") + 1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
