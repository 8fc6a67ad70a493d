"""How the command line begins and ends as a process: signals, errors as lines or a document, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

RESUME: Final = ("convert", "upload")
"""The commands that go on where they were stopped; others begin anew."""

SOON: Final = 0.02
"""Seconds after which a signal whose exception was lost is raised again."""


class Terminated(BaseException):
    """SIGTERM arrived."""


RAISED: Final = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
"""What signals raise."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _rescue(found: sys.UnraisableHookArgs) -> None:
    """Raise a signal again a moment later where its exception was raised in a finalizer or another callback, which it
    cannot leave: Python only tells of it, and would go on. Where memory is out the next to ask for some is told."""
    if issubclass(found.exc_type, MemoryError):
        return
    number = next((n for kind, n in RAISED.items() if issubclass(found.exc_type, kind)), None)
    if number is None or not hasattr(signal, "setitimer"):
        sys.__unraisablehook__(found)
        return
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    signal.setitimer(signal.ITIMER_REAL, SOON)


def run(command: click.Group) -> NoReturn:
    """Run `command` with this process' arguments; every way out has its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _rescue
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    argv = sys.argv[1:]
    try:
        code = _ran(command, argv)
    except BaseException as e:
        _let_go(e)
        goes_on = bool(argv) and argv[0] in RESUME
        code = _reported(e, as_json="--json" in argv, debug="--debug" in argv, goes_on=goes_on)
    _settle()
    sys.exit(code)


def _ran(command: click.Group, argv: list[str]) -> int:
    from ckpttool import render
    from ckpttool.publishing import secrets

    secrets.refuse_arguments(argv)
    stdout = sys.stdout
    try:
        # Click returns what a command ended with: None, or the code that --help and the like ended with.
        code = command.main(argv, prog_name=_called(), standalone_mode=False) or 0
    except SystemExit as e:
        if sys.stdout is not stdout:  # Click wraps it when the reader has left, and ends with 1, as a failed check does
            raise render.OutputClosed from e
        code = e.code if isinstance(e.code, int) else 70
    render.flush()
    return int(code)


def _called() -> str:
    """What the user typed for this command: as an extension of huggingface_hub's it is called hf-ckpttool."""
    return "hf ckpttool" if Path(sys.argv[0]).stem == "hf-ckpttool" else "ckpttool"


def _let_go(error: BaseException | None) -> None:
    """Free what the frames hold that an error came through: where memory is out, some is needed to tell of it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _reported(error: BaseException, *, as_json: bool, debug: bool, goes_on: bool) -> int:
    from ckpttool import render
    from ckpttool.errors import CkptError

    if isinstance(error, render.OutputClosed):
        return 0
    if debug:
        render.tell("".join(traceback.format_exception(error)))
    if isinstance(error, KeyboardInterrupt | click.Abort | Terminated):
        code = 143 if isinstance(error, Terminated) else 130
        render.show_interrupted(code, as_json, goes_on=goes_on)
        return code
    known = _known(error)
    render.show_error(known, as_json)
    return known.exit_code if isinstance(known, CkptError) else 70


def _known(error: BaseException) -> BaseException:
    """`error` as one of ours, where it is a user's or the machine's doing."""
    from ckpttool.errors import LimitError, UsageError, os_error

    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else f"{_called()} COMMAND"
        return UsageError(error.format_message().rstrip("."), hint=f"{command} --help shows what there is")
    if isinstance(error, MemoryError):
        return LimitError("out of memory", hint="give a smaller --max-memory, or fewer --workers")
    return os_error(error) if isinstance(error, OSError) else error


def _settle() -> None:
    """Python flushes both streams once more at its end, and would exit with 120 where that fails."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
