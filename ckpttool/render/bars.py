"""How far a long piece of work is: a bar, or lines for a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ckpttool.render.terminal import tell
from ckpttool.units import size

LINE_SECONDS = 30


@contextlib.contextmanager
def progress(total: int, verb: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar in bytes on stderr; without a terminal a plain line every 30 seconds; nothing where `quiet`."""
    if quiet:
        yield lambda nbytes: None
        return
    if sys.stderr is None or not sys.stderr.isatty():
        yield _PlainProgress(total, verb).advance
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=verb, unit="B", unit_scale=True, dynamic_ncols=True, mininterval=0.2) as bar:
        yield bar.update


def steps(*, quiet: bool) -> Callable[[str], None]:
    """A line on stderr for each thing that is begun; nothing where `quiet`."""
    return (lambda doing: None) if quiet else (lambda doing: tell(f"{doing}\n"))


class _PlainProgress:
    """For logs: done, rate and time left, twice a minute."""

    def __init__(self, total: int, verb: str) -> None:
        self._total, self._verb, self._done = total, verb, 0
        self._lock = threading.Lock()
        self._begun = self._said = time.monotonic()

    def advance(self, nbytes: int) -> None:
        """Count, and say so when it is time."""
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._said < LINE_SECONDS:
                return
            self._said = now
            rate = self._done / (now - self._begun)
            left = (self._total - self._done) / rate if rate else 0.0
            share = 100 * self._done / max(1, self._total)
            tell(
                f"{self._verb}: {size(self._done)} of {size(self._total)} ({share:.0f} %), "
                f"{size(rate)}/s, {left / 60:.1f} min left\n"
            )
