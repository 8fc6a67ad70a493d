"""The command line in this process: what it prints, and what it exits with."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from ckpttool import cli


class Result(NamedTuple):
    """One run of the command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Stdout as the one JSON document that --json promises."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def run(*argv: str | Path) -> Result:
    """Run `ckpttool ARGV`."""
    out, err = io.StringIO(), io.StringIO()
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    try:
        with (
            mock.patch.object(sys, "argv", ["ckpttool", *map(str, argv)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as e:
        assert isinstance(e.code, int)
        return Result(e.code, out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook
    raise AssertionError("the command did not exit")
