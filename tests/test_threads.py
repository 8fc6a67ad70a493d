"""Threads that share work: every item once, the first failure stops all, and nobody waits for what nobody needs."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ckpttool import threads
from ckpttool.threads import Crew, Left, pause, share, within


class Stop(BaseException):
    """What arrives from outside, as an interrupt or cli.Terminated."""


@pytest.fixture
def arriving() -> Iterator[Callable[[float, int], list[float]]]:
    """`Stop` in the main thread after some seconds, so many times, a tenth of a second apart; when it came."""
    came: list[float] = []

    def start(seconds: float, times: int) -> list[float]:
        def arrive(*args: object) -> None:
            if len(came) < times:
                came.append(time.monotonic())
                raise Stop

        signal.signal(signal.SIGALRM, arrive)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        return came

    before = signal.getsignal(signal.SIGALRM)
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_every_item_once_on_every_thread() -> None:
    crew, seen = Crew(), Counter[int]()
    by_worker: list[list[int]] = [[], [], []]
    meeting = threading.Barrier(3)

    def worker(mine: list[int]) -> Callable[[int], None]:
        def work(item: int) -> None:
            if not mine:
                meeting.wait(20)  # so that all three get one
            mine.append(item)
            with crew.changed:
                seen[item] += 1

        return work

    crew.add(range(1000), [worker(mine) for mine in by_worker])
    crew.run()
    assert seen == Counter(range(1000))
    assert all(mine == sorted(mine) and mine for mine in by_worker)


def test_two_kinds_of_work_at_once() -> None:
    """One waits for what the other does, as reading back waits for writing."""
    crew, done = Crew(), list[int]()

    def write(item: int) -> None:
        with crew.changed:
            done.append(item)
            crew.changed.notify_all()

    def read(item: int) -> None:
        with crew.changed:
            assert crew.changed.wait_for(lambda: item in done, 20)

    crew.add(range(20), [read])
    crew.add(range(20), [write, write])
    crew.run()
    assert sorted(done) == list(range(20))


def test_nothing_to_do() -> None:
    share([], [lambda item: 1 / 0] * 3)
    share([1, 2], [])


def test_the_first_failure_stops_all_and_is_raised() -> None:
    begun, failed = list[int](), threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            failed.set()
            raise ValueError("the first")
        if item > 3:
            assert failed.wait(20)
            time.sleep(0.2)
            raise ValueError("a later one")

    with pytest.raises(ValueError, match="the first"):
        share(range(1000), [work] * 4)
    assert len(begun) < 10


def test_items_that_cannot_be_made() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        share(items(), [lambda item: None] * 2)


def test_whatever_arrives_threads_come_to_the_end_of_their_item(
    arriving: Callable[[float, int], list[float]],
) -> None:
    """They work on files that are closed after that."""
    begun, ended = list[int](), list[int]()

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.5)
        ended.append(item)

    came = arriving(0.1, 2)
    with pytest.raises(Stop):
        share(range(100), [work])
    assert (begun, ended, len(came)) == ([0], [0], 2)


def test_what_takes_long_is_left_behind_where_it_is_too_late() -> None:
    over, left = threading.Event(), threading.Event()

    def slow(gone: threading.Event) -> None:
        assert gone.wait(20)
        left.set()
        over.wait(20)

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, slow)
    assert time.monotonic() - begun < 10
    assert left.wait(10)
    over.set()


def test_what_comes_in_time_is_returned_or_raised() -> None:
    assert within(20, lambda gone: gone.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        within(20, lambda gone: 1 / 0)
    found = list[int]()
    share([1, 2], [lambda item: found.append(within(20, lambda gone: item * 2))])
    assert found == [2, 4]


@pytest.mark.parametrize("wait", [lambda: within(60, lambda gone: gone.wait(60)), lambda: threads.pause(60)])
def test_a_thread_does_not_wait_for_a_remote_end_once_another_has_failed(wait: Callable[[], object]) -> None:
    left = list[type[BaseException]]()
    waiting = threading.Event()

    def work(item: int) -> None:
        if item:
            waiting.wait(20)
            raise ValueError("the first")
        waiting.set()
        try:
            wait()
        except BaseException as e:
            left.append(type(e))
            raise

    begun = time.monotonic()
    with pytest.raises(ValueError, match="the first"):
        share(range(2), [work] * 2)
    assert left == [Left]
    assert time.monotonic() - begun < 20


def test_an_interrupt_ends_waits_for_remote_ends(arriving: Callable[[float, int], list[float]]) -> None:
    arriving(0.2, 1)
    begun, before = time.monotonic(), threading.active_count()
    with pytest.raises(Stop):
        share(range(8), [lambda item: within(60, lambda gone: gone.wait(60))] * 4)
    while threading.active_count() > before and time.monotonic() - begun < 10:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert time.monotonic() - begun < 20


def test_a_signal_that_wakes_nobody_is_seen_soon() -> None:
    """As one does that comes just before the lock is waited for; `interrupt_main` never wakes whoever waits."""
    crew, left = Crew(), list[bool]()

    def work(item: int) -> None:
        time.sleep(0.3)  # then the other one waits
        _thread.interrupt_main()
        try:
            pause(20)
        except Left:
            left.append(True)
            raise

    crew.add([1], [work])
    with pytest.raises(KeyboardInterrupt):
        crew.run()
    assert left == [True]


def test_a_signal_that_wakes_nobody_is_seen_soon_without_a_crew() -> None:
    left, ended = list[bool](), threading.Event()

    def call(gone: threading.Event) -> None:
        time.sleep(0.3)  # then the other one waits
        _thread.interrupt_main()
        left.append(gone.wait(20))
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        within(60, call)
    assert ended.wait(20) and left == [True]
