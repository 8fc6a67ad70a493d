"""The files that are being made: all at once, or one after the other as far as a window reaches."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from ckpttool.containers.layout import FileLayout
from ckpttool.containers.source import LocalTarget
from ckpttool.errors import LocalIOError
from ckpttool.planner import Plan
from ckpttool.readback import Stretch
from ckpttool.slabwork import Writable
from ckpttool.threads import Crew


class Staged:
    """Target files by name. A file is made when it is first opened; `window` files in a row, counted from the first
    that is not freed, may lie here at once, and whoever opens one behind them waits."""

    def __init__(
        self, plan: Plan, checks: Mapping[str, Sequence[Stretch]], crew: Crew, window: int, freed: Collection[str]
    ) -> None:
        self._folder = plan.place.staged
        self._layouts = plan.files
        self._number = {f.name: i for i, f in enumerate(plan.files)}
        self._checks = checks
        self._crew = crew
        self._window = window
        self._making = {f.name: threading.Lock() for f in plan.files}
        self._open: dict[str, LocalTarget] = {}
        self._freed = set(freed)
        self._first = self._first_left()
        self.files: dict[str, Writable] = dict.fromkeys(freed, GONE)

    @property
    def reached(self) -> list[str]:
        """The files that may lie here now."""
        within = self._layouts[self._first : self._first + self._window]
        return [f.name for f in within if f.name not in self._freed]

    def reach(self, names: Iterable[str]) -> bool:
        """Make or open all of these, in the end; False where the run has failed meanwhile."""
        return all(name in self.files or self.open(name) is not None for name in names)

    def open(self, name: str) -> LocalTarget | None:
        """The file, made if need be as soon as the window reaches it; None where the run has failed meanwhile."""
        number, crew = self._number[name], self._crew
        with crew.changed:
            crew.changed.wait_for(lambda: crew.failure is not None or number < self._first + self._window)
            if crew.failure is not None:
                return None
        with self._making[name]:
            if name not in self._open:
                self._open[name] = self.files[name] = self._made(self._layouts[number])
            return self._open[name]

    def free(self, name: str) -> None:
        """Delete the file, which nobody writes to any more."""
        file = self._open.pop(name)
        self.files[name] = GONE
        file.close()
        file.path.unlink()
        with self._crew.changed:
            self._freed.add(name)
            self._first = self._first_left()
            self._crew.changed.notify_all()

    def _first_left(self) -> int:
        left = (i for i, f in enumerate(self._layouts) if f.name not in self._freed)
        return next(left, len(self._layouts))

    def _made(self, layout: FileLayout) -> LocalTarget:
        """The target file: made whole, or the one of an earlier run; what no slab writes is written either way."""
        path = self._folder / layout.name
        if not path.exists():
            file = LocalTarget.create(path, layout.size, path.name)
        else:
            file = LocalTarget.open(path, path.name)
            for gap in self._checks[layout.name]:
                if gap.slab is None:
                    file.writeall(gap.offset, bytes(gap.nbytes))
        file.writeall(0, layout.header)
        return file

    def sync(self) -> None:
        """Bring to the disk what lies here. A file that does not get there is emptied, as `execute` says why."""
        for file in self._open.values():
            try:
                file.sync()
            except LocalIOError:
                os.truncate(file.path, 0)
                raise

    def close(self) -> None:
        """Close what is open."""
        with contextlib.ExitStack() as stack:
            for file in self._open.values():
                stack.callback(file.close)


class _Gone:
    """A file that is freed: what a slab that reaches into it and the next one writes there again is there already."""

    def writeall(self, offset: int, buffer: object) -> None:
        """Nothing."""


GONE: Final = _Gone()
