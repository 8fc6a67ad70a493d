"""Reports as text for a terminal, or as JSON; and the progress bar. Numbers are in the unit that people think in."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpttool.errors import MESSAGE_LIMIT, CkptError, LocalIOError, Problems, shown
from ckpttool.reports import (
    Conversion,
    Inspection,
    PlanReport,
    Verification,
    document,
    error_document,
    json_text,
)
from ckpttool.units import size

LINE_SECONDS = 30
MOST_PROBLEMS = 20
FEW = 4


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table without a frame; on a pipe its lines are as long as they need to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tty = sys.stdout.isatty()
    text = io.StringIO()  # rich would end the process itself where stdout is closed
    width = shutil.get_terminal_size().columns if tty else 10_000
    console = Console(file=text, highlight=False, force_terminal=tty, width=width)
    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        out.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(shown(cell)) for cell in row))
    console.print(out)
    _write(text.getvalue())


def _say(text: str = "") -> None:
    _write(text + "\n")


def _write(text: str) -> None:
    """To stdout; characters that it cannot show are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    with _stdout_errors():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_json(value: Mapping[str, Any]) -> None:
    with _stdout_errors():
        sys.stdout.write(json_text(value, sys.stdout.encoding or "utf-8"))


def flush() -> None:
    """Bring out what was printed, while a failure can still be told."""
    with _stdout_errors():
        sys.stdout.flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as e:
        raise OutputClosed from e
    except OSError as e:
        raise LocalIOError(f"cannot be written: {e.strerror}", file="standard output", hint=_LOST) from e


class OutputClosed(Exception):
    """Whoever read our output has seen enough. No OSError, of which click would make an exit code of its own."""


_LOST = "the command itself is done, its report is lost"


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _notes(notes: Iterable[str]) -> None:
    for note in notes:
        _say(f"note: {note}")


def show_inspection(report: Inspection, as_json: bool) -> None:
    """One line a weight, then totals, then what is wrong."""
    if as_json:
        _print_json(document(report))
        return
    columns = ("name", "part", "format", "packing", "shape", "bytes")
    rows = (
        (t.name, t.part or "-", t.format, t.packing, " x ".join(map(str, t.shape)) or "scalar", f"{t.nbytes:,}")
        for t in report.tensors
    )
    _table(columns, rows, right=("bytes",))
    _say()
    what = f"{report.arch or 'unknown architecture'}, {report.dialect or 'unknown dialect'}, {report.container}"
    _say(f"{shown(report.source, MESSAGE_LIMIT)}: {what}, {_many(len(report.files), 'file')}")
    _say(
        f"{len(report.tensors):,} weights, {report.parameters:,} parameters, {report.nbytes:,} bytes "
        f"({size(report.nbytes)}), {report.bits_per_weight:.2f} bits per weight"
    )
    shares = Counter[str]()
    for t in report.tensors:
        shares[t.format] += t.parameters
    total = max(1, report.parameters)
    _say(", ".join(f"{name} {100 * n / total:.1f} %" for name, n in shares.most_common()))
    _notes(report.notes)
    for problem in report.problems[:MOST_PROBLEMS]:
        _say(f"problem: {problem}")
    _more(len(report.problems))


def _more(count: int) -> None:
    if count > MOST_PROBLEMS:
        _say(f"and {count - MOST_PROBLEMS} more problems (--json lists them all)")


def show_plan(report: PlanReport, as_json: bool) -> None:
    """What a conversion would do."""
    if as_json:
        _print_json(document(report))
        return
    source, target = shown(report.source, MESSAGE_LIMIT), shown(report.target, MESSAGE_LIMIT)
    _say(f"{source} ({report.source_dialect}) -> {target} ({report.target_dialect})")
    _say()
    files = [(f.name, f"{f.tensors:,}", f"{f.nbytes:,}") for f in report.files]
    files += [(f.name, "", f"{f.nbytes:,}") for f in report.sidecars]
    _table(("file", "tensors", "bytes"), [*files, ("all", "", f"{report.nbytes:,}")], right=("tensors", "bytes"))
    _say()
    steps = [
        (s.kind, f"{s.source_format} -> {s.target_format}", s.fidelity, f"{s.steps:,}", f"{s.nbytes:,}")
        for s in report.steps
    ]
    _table(("step", "formats", "fidelity", "steps", "bytes"), steps, right=("steps", "bytes"))
    _say()
    if report.recipe:
        r = report.recipe
        _say(f"MXFP4 by recipe {r['name']}: scale rule {r['scale']}, ties {r['ties']}")
    _say(
        f"memory: up to {size(report.peak_memory)} with {_many(report.workers, 'thread')}, "
        f"{_many(report.slabs, 'slab')}"
    )
    if any(s.kind == "narrow" for s in report.steps):
        _say("narrow: what would change can only be counted as it runs; the receipt says values where nothing did")
    _assumed(report.assumed)
    _notes(report.notes)
    _say(f"writes {size(report.nbytes)}; nothing written yet")


def _assumed(assumed: Sequence[Any]) -> None:
    if assumed:
        _say("assumed, because the source does not say (--reference DIR replaces assumption by fact):")
        for row in assumed:
            value = json.dumps(row["value"], ensure_ascii=False)
            _say(f"  {row['file']}: {row['key']} = {value if len(value) <= 80 else value[:79] + '…'}")


def show_conversion(report: Conversion, receipt: str, as_json: bool) -> None:
    """The summary of a finished conversion."""
    if as_json:
        _print_json(document(report))
        return
    run = report.run
    wall = run["seconds"]["total"]
    nbytes = run["nbytes"]
    _say(
        f"read {size(nbytes['read'])}, wrote {size(nbytes['written'])} in {_many(len(report.files), 'file')}, "
        f"{wall:.1f} s ({size(nbytes['written'] / wall)}/s) with {_many(run['workers'], 'thread')}"
    )
    if run["slabs_resumed"]:
        _say(f"went on from an interrupted run: {run['slabs_resumed']:,} of {run['slabs']:,} slabs were done")
    _say("fidelity: " + ", ".join(f"{_many(n, 'tensor')} {name}" for name, n in report.fidelity.items() if n))
    changed = [t for t in report.tensors if t.changed]
    for t in changed[:MOST_PROBLEMS]:
        _say(f"  {t.name}: {_many(t.changed, 'value')} changed")
    if len(changed) > MOST_PROBLEMS:
        _say(f"  and {_many(len(changed) - MOST_PROBLEMS, 'more tensor')}; the receipt lists them")
    if report.recipe:
        r = report.recipe
        _say(f"MXFP4 by recipe {r['name']}: scale rule {r['scale']}, ties {r['ties']}")
    if report.assumed:
        _say(f"assumed {len(report.assumed)} values that the source does not carry; the receipt lists them")
    _notes(report.notes)
    _say(f"read back and compared: {'yes' if report.verified else 'no (--no-verify)'}")
    _say(f"receipt: {shown(receipt, MESSAGE_LIMIT)}")


def show_verification(report: Verification, as_json: bool) -> None:
    """Whether a finished conversion still is what its receipt says."""
    if as_json:
        _print_json(document(report))
        return
    for finding in report.findings:
        _say(shown(finding, limit=1000))
    state = "as the receipt says" if report.ok else f"{_many(len(report.findings), 'finding')}"
    _say(
        f"{shown(report.target, MESSAGE_LIMIT)}: {_many(report.files, 'file')}, {_many(report.tensors, 'tensor')}, "
        f"{size(report.nbytes)}: {state}"
    )


def show_error(error: BaseException, as_json: bool) -> None:
    """One line for each problem, on stderr; with `as_json` a document, on stdout."""
    if as_json:
        with contextlib.suppress(OSError, LocalIOError):  # a stdout that takes nothing: the lines below go to stderr
            _print_json(error_document(error))
            flush()
            return
    problems = error.problems if isinstance(error, Problems) else (error,)
    rows = [str(p) if isinstance(p, CkptError) else _as_bug(p) for p in _grouped(problems)]
    lines = rows[:MOST_PROBLEMS]
    if len(rows) > MOST_PROBLEMS:
        lines.append(f"and {len(rows) - MOST_PROBLEMS} more problems (--json lists them all)")
    _tell("".join(f"error: {line}\n" for line in lines))


def _grouped(problems: Sequence[BaseException]) -> Iterator[BaseException]:
    """What is wrong with many tensors alike, as one problem, so that it hides no other."""
    groups: dict[object, list[BaseException]] = {}
    for p in problems:
        alike = isinstance(p, CkptError) and p.field and p.offset is None
        groups.setdefault((p.message, p.file, p.hint) if alike and isinstance(p, CkptError) else p, []).append(p)
    for group in groups.values():
        first = group[0]
        if len(group) < FEW or not isinstance(first, CkptError):
            yield from group
        else:
            field = f"{first.field} and {len(group) - 1} more (--json lists them)"
            yield type(first)(first.message, file=first.file, field=field, hint=first.hint)


def _tell(text: str) -> None:
    """To stderr, which escapes what it cannot show; where it is closed there is nobody left to tell."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _as_bug(error: BaseException) -> str:
    said = shown(f"{type(error).__name__}: {error}", MESSAGE_LIMIT)
    return f"{said}; this is a bug: please report it with the output of --debug"


def show_interrupted(code: int, as_json: bool) -> None:
    """Say that nothing is lost."""
    text = "interrupted; the same command goes on where this one stopped"
    if as_json:
        row = {"kind": "interrupted", "message": text, "file": None, "field": None, "offset": None, "hint": None}
        with contextlib.suppress(OSError, LocalIOError):
            _print_json({"schema": "error.v1", "exit_code": code, "errors": [row]})
            flush()
    else:
        _tell(f"\n{text}\n")


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
            _tell(
                f"{self._verb}: {size(self._done)} of {size(self._total)} ({share:.0f} %), "
                f"{size(rate)}/s, {left / 60:.1f} min left\n"
            )
