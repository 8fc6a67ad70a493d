"""How much memory this process has used at most."""

from __future__ import annotations

import sys


def peak_rss() -> int | None:
    """The process's peak resident set in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
