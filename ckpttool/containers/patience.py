"""How long a remote end is waited for, and how often it is asked again.

Whatever a server does, one range ends within `Patience.altogether` and the time that its bytes need at
`Patience.slowest`, 600 seconds and 16 for each MiB: up to five tries, the pauses between them, and the waits that
answers ask for. A header takes three ranges at most, a side file one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ckpttool import threads
from ckpttool.containers import answers
from ckpttool.containers.answers import Again
from ckpttool.containers.limits import KIB
from ckpttool.errors import NetworkError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a remote end is waited for, in seconds; `slowest` is bytes per second of a body.

    One request may take `total` and the time that its bytes need at `slowest`. A failed one is tried again after
    `pauses`, or when the answer says, if that is within `longest_wait`; all of it together may take `altogether`, and
    once more the time for its bytes.
    """

    connect: float = 10
    read: float = 30
    total: float = 60
    slowest: float = 64 * KIB
    pauses: tuple[float, ...] = (0.5, 1, 2, 4)
    longest_wait: float = 300  # the Hub counts requests in windows of so many seconds
    altogether: float = 600


PATIENCE = Patience()
"""The one in force."""


def retried(call: Callable[[threading.Event], T], label: str, nbytes: int = 0) -> T:
    """What `call` returns; where it raises `Again`, it is called again after a pause, a bounded number of times.

    `nbytes` are to come. `call` works in a thread of its own and should stop once its event is set: the client bounds
    each wait for bytes, but neither a head nor a body that drips.

    Raises:
        NetworkError: it was given up, or took longer than `Patience` has.
    """
    patience = PATIENCE
    needs = nbytes / patience.slowest
    end = time.monotonic() + patience.altogether + needs
    tried = 0
    while True:
        pause = patience.pauses[tried] if tried < len(patience.pauses) else None
        tried += 1
        try:
            return threads.within(min(patience.total + needs, end - time.monotonic()), call)
        except TimeoutError as error:
            raise NetworkError("too slow: no whole answer in time", file=label, hint=answers.LATER) from error
        except Again as again:
            if pause is None or tried >= again.tries:
                raise again.error(label, f", {tried} times" if pause is None else "") from again
            if again.wait is not None and again.wait > patience.longest_wait:
                raise again.error(label, f", and asks to wait {again.wait:.0f} s") from again
            seconds = answers.jittered(pause) if again.wait is None else again.wait
            if time.monotonic() + seconds > end:
                raise again.error(label, f", {tried} times, and for too long") from again
        threads.pause(seconds)
