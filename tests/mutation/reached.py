"""Which tests reach which lines: a pytest plugin that notes it."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import pytest

Trace = Callable[[FrameType, str, Any], Any]

CALLS = 100
"""Calls of one function by one test that are traced; later ones seldom reach another line."""


def _spent() -> float:
    return sum(os.times()[:4])


class Reached:
    """After the run: `lines[test][module]` are the line numbers, `seconds[test]` what it took of a processor, with what
    it started; `failed` those that did.

    Lines that run in another process, or once for several tests (in a fixture of the module), are noted for none or
    for the first.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        """`modules`: the name of each by its path."""
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self._now: dict[str, set[int]] = {}
        self._calls = Counter[CodeType]()
        self._tracers = {path: self._tracer(module) for path, module in modules.items()}

    def _tracer(self, module: str) -> Trace:
        def trace(frame: FrameType, event: str, arg: Any) -> Trace:
            self._now[module].add(frame.f_lineno)
            return trace

        return trace

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Trace | None:
        code = frame.f_code
        found = self._tracers.get(code.co_filename)
        if found is None or self._calls[code] >= CALLS:
            return None
        self._calls[code] += 1
        return found(frame, event, arg)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace one test with its fixtures."""
        self._now = defaultdict(set)
        self._calls.clear()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        begun = _spent()
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.seconds[item.nodeid] = _spent() - begun
            self.lines[item.nodeid] = self._now

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed:
            self.failed.add(report.nodeid)
