"""A pytest plugin: collects once, then runs tests in forks of the process, one for each validation taken away."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import pytest
from reached import Reached
from swap import Living
from validations import Validation

LONGEST = 10.0
"""Processor seconds of the longest test that is run for a single validation."""
AT_LEAST = 60.0
"""Seconds that a test is given before it counts as hanging, or thirty times as long as the longest of them took."""
_QUIET = ("-q", "--no-header", "--tb=no", "-s", "-p", "no:cacheprovider", "-p", "no:xdist")
_NOTICED, _BROKEN = 1, 3


class Ended(NamedTuple):
    """How one run of tests ended: the exit code, a negative signal, or None where it never did; `by` is what failed."""

    code: int | None
    by: str

    @property
    def noticed(self) -> bool:
        """Whether a test failed, crashed or never ended."""
        return self.code != 0


@dataclass
class Tests:
    """What is known of the tests of a group: how long each takes, and which reach each line of each module."""

    seconds: dict[str, float] = field(default_factory=dict)
    reached: dict[str, dict[int, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def of(self, module: str, found: Validation) -> list[str]:
        """Those that reach a validation."""
        lines = self.reached.get(module, {})
        return self.ordered({t for n in range(found.first, found.last + 1) for t in lines.get(n, ())})

    def ordered(self, tests: set[str]) -> list[str]:
        """The quickest files first, and the quickest tests of each file."""
        files: dict[str, float] = defaultdict(float)
        for test in tests:
            files[file_of(test)] += self.seconds[test]
        return sorted(tests, key=lambda t: (files[file_of(t)], file_of(t), self.seconds[t]))


def file_of(test: str) -> str:
    """The file of a test."""
    return test.partition("::")[0]


class Remover:
    """Runs `body` with itself once the tests are collected; `root` is the checkout that is tested, and changed."""

    def __init__(self, root: Path, scratch: Path, body: Callable[[Remover], None]) -> None:
        self.root = root
        self.items: dict[str, pytest.Item] = {}
        self.tests = Tests()
        self._living: dict[str, Living] = {}
        self._scratch = scratch
        self._body = body

    def run(self, files: Sequence[str]) -> int:
        """Collect, and go. pytest's exit code: 0 where the tests could be collected."""
        return int(pytest.main([*files, *_QUIET, "--basetemp", str(self._scratch / "tmp")], plugins=[self]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running the tests once."""
        if session.testsfailed:
            raise session.Interrupted("the tests could not be collected")
        self.items = {item.nodeid: item for item in session.items}
        self._body(self)
        return True

    def trace(self, modules: Sequence[str]) -> list[str]:
        """Run every test once as it is, to fill `tests`; those that fail are returned, and left out from then on."""
        plugin, note = Reached({str(self.module(m)): m for m in modules}), self._scratch / "reached.json"

        def body() -> int:
            next(iter(self.items.values())).config.pluginmanager.register(plugin)
            _run([*self.items.values()], stop=False)
            said = {t: (plugin.seconds[t], plugin.lines[t], t in plugin.failed) for t in plugin.lines}
            note.write_text(json.dumps(said, default=sorted))
            return 0

        ended = self._forked(body, 3600)
        if ended.noticed:
            raise RuntimeError(f"the tests could not be run: {ended}")
        failed = []
        for test, (seconds, lines, fails) in json.loads(note.read_text()).items():
            if fails:
                failed.append(test)
            elif seconds <= LONGEST:
                self.tests.seconds[test] = seconds
                for module, numbers in lines.items():
                    for number in numbers:
                        self.tests.reached[module][number].add(test)
        return failed

    def judge(self, module: str, found: Validation, tests: Sequence[str]) -> Ended:
        """How these tests end without one validation."""
        path = self.module(module)
        source, before = path.read_bytes(), path.stat()
        if module not in self._living:
            importlib.import_module("ckpttool." + module.removesuffix(".py").replace("/", "."))  # some are lazily
            self._living[module] = Living(str(path))
        living = self._living[module]

        def body() -> int:
            if not found.of_import:
                living.swap(source, found)
            return _run([self.items[t] for t in tests], stop=True)

        path.write_bytes(found.removed(source))  # what starts a process of its own imports it from here
        try:
            return self._forked(body, max([AT_LEAST, *(30 * self.tests.seconds[t] for t in tests)]))
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def module(self, name: str) -> Path:
        """The path of a module."""
        return self.root / "ckpttool" / name

    def _forked(self, body: Callable[[], int], seconds: float) -> Ended:
        log = self._scratch / "log"
        pid = os.fork()
        if not pid:
            code = _BROKEN
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(out, 2)
                code = body()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = _waited(pid, seconds, log)
        said = log.read_text(errors="replace")
        if code == _BROKEN:
            raise RuntimeError(said)
        failed = [line for line in said.splitlines() if line.startswith(_FAILED)]
        return Ended(code, failed[0].removeprefix(_FAILED) if failed else f"ended with {code}")


_BEGUN, _FAILED = "begun: ", "failed: "


def _run(items: Sequence[pytest.Item], *, stop: bool) -> int:
    for i, item in enumerate(items):
        print(f"\n{_BEGUN}{item.nodeid}", flush=True)
        following = items[i + 1] if i + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if item.session.testsfailed and stop:
            print(f"\n{_FAILED}{item.nodeid}")
            return _NOTICED
    return 0


def _waited(pid: int, seconds: float, log: Path) -> int | None:
    """The exit code of a child; its own children are killed with it, and it is when a test takes so long."""
    deadline, nbytes, begun = monotonic() + seconds, 0, 0
    while True:
        if log.exists() and log.stat().st_size != nbytes:
            nbytes, before, begun = log.stat().st_size, begun, log.read_bytes().count(_BEGUN.encode())
            deadline = monotonic() + seconds if begun != before else deadline
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _kill(pid)
            return os.waitstatus_to_exitcode(status)
        if monotonic() > deadline:
            _kill(pid)
            os.waitpid(pid, 0)
            return None
        sleep(0.01)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
