"""Every hostile case through the front ends, and what must hold of each: `refuses` of one checker, four times over.

A case is written into a folder of its own with a receipt that tells the truth about its bytes, and then goes through

    inspect · inspect --check · convert --dry-run · verify · ckpttool.inspect, plan and verify

Of every run: the exit code, the words, one line an error with the file's name (and its field and offset as the error
has them), no line over 2 KiB, no traceback and no warning, no control, bidi or surrogate character, at most two
seconds of this process' time, nothing written, and the input as it was, by bytes and times. The Python API says what
the lines say, and raises nothing but CkptError. `alone` runs the commands as processes with 512 MiB of address space,
and holds that neither numba nor torch was imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from commandline import Result, run
from hostile_files import Case

import ckpttool
from ckpttool.errors import CkptError, LimitError, Problems

SECONDS, LARGE_SECONDS = 2.0, 10.0
"""What a command may take of the processor, its process' start left out; the second for headers of up to 100 MB."""
START = 1.0
"""What Python and the package take to start."""
HUNG = 60
"""Seconds after which a command hangs, however busy the machine is."""
ADDRESS_SPACE = 512 << 20
LINE = 2048
Make = Callable[[Path], Path]


class Codes(NamedTuple):
    """Exit codes of the four commands, by the README's table."""

    inspect: int
    check: int
    convert: int
    verify: int


REFUSED = Codes(3, 1, 3, 1)
"""A header, or what stands for one, cannot be trusted."""
NOTHING = Codes(3, 3, 3, 1)
"""There is no file that could be shown: none at all, or nothing says which."""
SHOWN = Codes(0, 1, 3, 1)
"""Each header is sound, but they contradict each other, the index or config.json: inspect shows all there is."""
LIMIT = Codes(6, 6, 6, 6)
FOREIGN = Codes(0, 0, 3, 1)
"""Sound, but no checkpoint that can be converted, nor one that convert wrote."""
ACCEPTED = Codes(0, 0, 0, 0)


@dataclass(frozen=True)
class Hostile:
    """One case. `number` is the catalogue's; `make` writes it in an empty folder and returns what is given as SOURCE.

    `says` are words that must stand in a line of every command that does not accept it; of one that is accepted, in
    what inspect and convert print. `unsaid` names commands that need not say them.
    """

    number: str
    what: str
    make: Make
    says: tuple[str, ...] = ()
    codes: Codes = REFUSED
    options: tuple[str, ...] = ("--to", "bf16")
    unsaid: tuple[str, ...] = ("check",)

    @property
    def id(self) -> str:
        return f"{self.number} {self.what}".strip()


def of_file(number: str, case: Case, name: str) -> Hostile:
    """A case of one broken file, alone in its folder; `number` is empty where the case's id begins with it."""

    def make(at: Path) -> Path:
        (at / name).write_bytes(case.data)
        return at / name

    says = (f"{name}", case.says)
    return Hostile(number, case.id, make, says, LIMIT if case.kind is LimitError else REFUSED)


# The folder as it was


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """What lies in a folder: kind, size, time of change, and the bytes of what is small. FIFOs are not opened."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        s = path.lstat()
        small = stat.S_ISREG(s.st_mode) and s.st_size <= 1 << 20
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small and os.access(path, os.R_OK) else ""
        link = os.fspath(path.readlink()) if stat.S_ISLNK(s.st_mode) else ""
        found[os.fspath(path.relative_to(folder))] = (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ino, link, digest)
    return found


def write_receipt(source: Path) -> None:
    """A receipt of what lies there, true in every byte: as `convert` would have written it, had it made this."""
    folder = source if source.is_dir() else source.parent
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".receipt.json")]
    rows, places = [], {}
    for path in files if source.is_dir() else [source] if source.is_file() else []:
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        rows.append({"name": name, "nbytes": len(data), "crc32": f"{zlib.crc32(data):08x}",
                     "sha256": hashlib.sha256(data).hexdigest()})  # fmt: skip
        places[name] = path
    tensors = []
    with contextlib.suppress(CkptError):
        for weight in ckpttool.open_checkpoint(source, remote=False).weights:
            for t in weight.stored:
                with places[t.file].open("rb") as f:
                    f.seek(t.offset)
                    crc = f"{zlib.crc32(f.read(t.nbytes)):08x}"
                tensors.append({"name": t.name, "file": t.file, "offset": t.offset, "nbytes": t.nbytes, "crc32": crc})
    beside = folder / "ckpttool.receipt.json"
    if source.suffix == ".gguf":
        beside = source.with_name(source.name + ".receipt.json")
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps({"schema": "conversion.v1", "files": rows, "tensors": tensors}), "utf-8")


# One run


@contextlib.contextmanager
def unhung() -> Iterator[None]:
    """A command that waits for ever, as on a FIFO, fails its test instead."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"hangs for {HUNG} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HUNG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def printable(text: str) -> bool:
    """Whether nothing in `text` drives a terminal or hides what is written."""
    return not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def clean(result: Result, code: int) -> list[str]:
    """The error lines of a run that went as every run must."""
    assert result.code == code, result
    assert printable(result.out), ascii(result.out)
    assert printable(result.err), ascii(result.err)
    assert "Traceback" not in result.out + result.err
    assert all(len(line.encode()) <= LINE for line in result.err.splitlines())
    found = result.err.splitlines()
    assert all(line.startswith("error: ") for line in found), result.err
    assert bool(found) == (code > 1), result
    return [line.removeprefix("error: ") for line in found]


def seconds(source: Path) -> float:
    """What a command may take that is given this source."""
    files = [source] if source.is_file() else source.glob("*")
    return SECONDS if sum(p.lstat().st_size for p in files) < 2 << 20 else LARGE_SECONDS


def timed(most: float, argv: Sequence[str | Path]) -> Result:
    """One command in this process, within its time."""
    start = time.process_time()
    with unhung():
        result = run(*argv)
    took = time.process_time() - start
    assert took <= most, f"{argv[0]}: {took:.1f} s"
    return result


def argvs(case: Hostile, source: Path, target: Path) -> dict[str, tuple[str | Path, ...]]:
    """The commands, by the name of their exit code."""
    asked = source if source.is_dir() or source.suffix == ".gguf" else source.parent
    return {
        "inspect": ("inspect", source),
        "check": ("inspect", source, "--check"),
        "convert": ("convert", source, target, *case.options, "--dry-run"),
        "verify": ("verify", asked),
    }


def same_verdict(case: Hostile, at: Path) -> None:
    """The case through every front end, in this process; see the module."""
    source, target = made(case, at)
    before = state(at)
    printed = {}
    for name, argv in argvs(case, source, target).items():
        result = timed(seconds(source), argv)
        clean(result, getattr(case.codes, name))
        printed[name] = result
        said(case, name, result)
    by_api(case, source, target, printed)
    assert state(at) == before
    assert not list(target.parent.iterdir())


def made(case: Hostile, at: Path) -> tuple[Path, Path]:
    """The source of a case with its receipt, and a target in a folder of its own."""
    folder = at / "case"
    folder.mkdir()
    source = case.make(folder)
    write_receipt(source)
    target = at / "out" / "target"
    target.parent.mkdir()
    return source, target


def said(case: Hostile, name: str, result: Result) -> None:
    """The words of the case, in lines of this command."""
    if name in case.unsaid or (name == "verify" and case.codes.verify == 0):
        return
    # inspect folds its lines; so words may stand on two of them
    shown = result.out + result.err
    flat = " ".join(shown.split())
    for words in case.says:
        assert words in shown or " ".join(words.split()) in flat, f"{name}: {words!r} not in {shown}"


def by_api(case: Hostile, source: Path, target: Path, printed: dict[str, Result]) -> None:
    """Python says the same: the same kind of error and words, or none."""
    options: dict[str, Any] = {}
    names = [o.removeprefix("--").replace("-", "_") for o in case.options[::2]]
    options = dict(zip(names, case.options[1::2], strict=True))
    calls: dict[str, Callable[[], object]] = {
        "inspect": lambda: ckpttool.inspect(source),
        "convert": lambda: ckpttool.plan(source, target, **options),
        "verify": lambda: ckpttool.verify(argvs(case, source, target)["verify"][1]),
    }
    for name, call in calls.items():
        code = getattr(case.codes, name)
        if code > 1:
            with unhung(), pytest.raises(CkptError) as caught:
                call()
            assert caught.value.exit_code == code
            errors = caught.value.problems if isinstance(caught.value, Problems) else (caught.value,)
            assert all(e.hint for e in errors), errors
            if len(errors) == 1:
                assert printed[name].err == f"error: {errors[0]}\n"
            continue
        with unhung():
            report = call()
        if name == "verify":
            assert report.ok == (code == 0)  # type: ignore[attr-defined]


# As processes

ALONE = """
import os, sys
from ckpttool import cli
try:
    cli.main()
finally:
    if loaded := {"numba", "torch", "triton", "transformers", "jinja2"} & sys.modules.keys():
        print("imported", *loaded, file=sys.stderr)
"""
ROOT = Path(__file__).parents[2]


def limited() -> None:
    """In the child: what it may take of the machine."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def process(most: float, argv: Sequence[str | Path]) -> Result:
    """A command as a process with 512 MiB of address space; its time, its start left out, within bounds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", ALONE, *map(str, argv)],
        capture_output=True,
        timeout=HUNG,
        preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took <= most + START, f"{argv[0]}: {took:.1f} s"
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def alone(case: Hostile, at: Path) -> None:
    """The same commands as processes of their own."""
    source, target = made(case, at)
    before = state(at)
    for name, argv in argvs(case, source, target).items():
        result = process(seconds(source), argv)
        clean(result, getattr(case.codes, name))
        said(case, name, result)
    assert state(at) == before
    assert not list(target.parent.iterdir())
