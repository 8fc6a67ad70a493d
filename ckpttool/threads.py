"""Threads that share work: each takes the next item until there is none left, or one of them has failed.

The first failure stops them all and is the one that is raised. An interrupt of the thread that waits for them is such a
failure: each comes to the end of its item, so that what they work on can be closed after that; but one that waits for
a remote end leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Those that this process may use, which in a container or a job are fewer than the machine has."""


class Left(Exception):
    """The crew of this thread has failed: what it waits for does not matter any more."""


LOOK_UP = 0.2
"""Seconds after which whoever waits looks up: a signal that comes just before a lock is waited for wakes nobody."""


class Crew:
    """Threads over shared items. `changed` guards whatever they share, and is notified where one fails."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self._threads: list[_Thread] = []

    def add(self, items: Iterable[T], workers: Sequence[Callable[[T], object]]) -> None:
        """One thread for each of `workers`, which is called with one of `items` after the other."""
        shared = iter(items)
        self._threads += [_Thread(lambda w=w: self._work(shared, w)) for w in workers]  # type: ignore[misc]

    def run(self) -> None:
        """Start all threads and wait for their end.

        Raises:
            BaseException: what the first one that failed has raised, or what came while they were waited for.
        """
        try:
            for t in self._threads:
                t.start()
            for t in self._threads:
                while not t.ended.wait(LOOK_UP):
                    pass
        except BaseException as e:
            self.fail(e)
            for t in self._threads:
                t.wait()
        if self.failure is not None:
            raise self.failure

    def fail(self, error: BaseException) -> None:
        """Stop all threads at their next item."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def _work(self, items: Iterator[T], worker: Callable[[T], object]) -> None:
        _current.crew = self
        try:
            for item in self._taken(items):
                worker(item)
        except BaseException as e:
            self.fail(e)

    def _taken(self, items: Iterator[T]) -> Iterator[T]:
        """Those of the shared `items` that one thread gets."""
        while True:
            with self.changed:
                if self.failure is not None:
                    return
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


def share(items: Iterable[T], workers: Sequence[Callable[[T], object]]) -> None:
    """Call `workers`, each in a thread of its own, with one of `items` after the other. Raises as `Crew.run` does."""
    crew = Crew()
    crew.add(items, workers)
    crew.run()


class _Thread(threading.Thread):
    """A thread that can be waited for again after an interrupt: Python 3.11 and 3.12 take it for dead if that came in
    the middle of `join`."""

    def __init__(self, body: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._body()
        finally:
            self.ended.set()

    def wait(self) -> None:
        """Wait for its end if it was started, whatever else arrives: it works on files that are closed after that."""
        while self.ident is not None and not self.ended.is_set():
            with contextlib.suppress(BaseException):  # one more Ctrl-C, or SIGTERM
                self.ended.wait(LOOK_UP)


_current = threading.local()
"""The crew that a thread belongs to."""


def within(seconds: float, call: Callable[[threading.Event], T]) -> T:
    """What `call` returns, in a thread of its own, which nobody waits for once it is late.

    `call` is given an event that is set as soon as its result does not matter any more.

    Raises:
        TimeoutError: it takes longer.
        Left: the crew of this thread has failed meanwhile.
    """
    result: Future[T] = Future()
    gone = threading.Event()

    def body() -> None:
        try:
            result.set_result(call(gone))
        except BaseException as e:
            result.set_exception(e)

    try:
        threading.Thread(target=body, daemon=True).start()
        if not _done(result, seconds):
            raise TimeoutError
    finally:
        gone.set()
    return result.result()


def pause(seconds: float) -> None:
    """Wait. Raises `Left` as soon as the crew of this thread has failed."""
    _done(Future(), seconds)


def _done(result: Future[Any], seconds: float) -> bool:
    """Whether `result` is there within `seconds`."""
    crew: Crew | None = getattr(_current, "crew", None)
    if crew is None:
        end = monotonic() + seconds
        while not wait([result], max(0.0, min(LOOK_UP, end - monotonic()))).done:
            if monotonic() >= end:
                return False
        return True
    changed = crew.changed

    def wake(_: object) -> None:
        with changed:
            changed.notify_all()

    result.add_done_callback(wake)
    with changed:
        changed.wait_for(lambda: crew.failure is not None or result.done(), max(0.0, seconds))
        if crew.failure is not None:
            raise Left
    return result.done()
