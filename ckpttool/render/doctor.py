"""What the doctor found, for a terminal: a line for each runtime, then why, then what to type."""

from __future__ import annotations

import shutil
import sys
import textwrap

from ckpttool.doctor.diagnosis import Diagnosis, EnvironmentReport, Price, RuntimeReport
from ckpttool.doctor.gpus import Gpu
from ckpttool.doctor.logs import Match
from ckpttool.doctor.ways import ALONE, WayOut
from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import many, print_json, say, say_notes, table
from ckpttool.reports import document

PATHS = {
    "native": "native MXFP4",
    "emulated": "MXFP4, decoded to BF16 for each use",
    "dequantized": "dequantized to BF16",
    "refused": "refused",
    "unknown": "unknown",
}
"""A path in words."""

SHORT = {**PATHS, "native": "native", "emulated": "decoded for each use", "dequantized": "BF16"}


def show_doctor(report: Diagnosis, as_json: bool) -> None:
    """Verdicts, reasons, ways out, known messages of the log."""
    if as_json:
        print_json(document(report))
        return
    _head(report)
    say()
    gpus = report.environment.gpus
    rows = [
        (r.title, _version(r), PATHS[r.path], _gib(r.weights_bytes), _fits(r.fits_on, gpus, r.runtime), _best(r))
        for r in report.runtimes
    ]
    table(("runtime", "version", "path", "weights", "memory", "can be"), rows, right=("weights",))
    said = set[str]()
    for runtime in report.runtimes:
        say()
        _runtime(runtime, said)
    if report.messages is not None:
        say()
        _messages(report.messages)
    say()
    say_notes(report.notes)
    for i, line in enumerate(report.estimate):
        say(shown(line, MESSAGE_LIMIT) if i == 0 else f"  {shown(line, MESSAGE_LIMIT)}")
    if report.required:
        failing = ", ".join(report.failing)
        say(f"required {report.required}: {'yes' if report.ok else f'no ({failing})'}")


def _head(report: Diagnosis) -> None:
    where = report.environment
    about = "gpt-oss in MXFP4, in general" if report.source is None else shown(report.source, MESSAGE_LIMIT)
    what = f" ({report.checkpoint.form})" if report.checkpoint else ""
    say(f"{about}{what} on {_gpus(where)}")
    packages = [f"{name} {version}" for name, version in where.packages.items()]
    driver = [f"driver {where.driver}"] if where.driver else []
    _wrapped("here: ", ", ".join([*driver, *packages]) or "none of the packages that matter")
    for model in dict.fromkeys(p.model for p in report.prices):
        prices = [f"{_gib(p.nbytes)} {p.form}{_asked(p, where.gpus)}" for p in report.prices if p.model == model]
        say(f"weights of {shown(model, MESSAGE_LIMIT)}: {', '.join(prices)}")

    if report.checkpoint and report.checkpoint.speculation_nbytes:
        left = _gib(report.checkpoint.speculation_nbytes)
        say(
            f"left out of them: {left} of layers that only guess tokens ahead (MTP), which runtimes do not load unasked"
        )


def _asked(price: Price, gpus: int) -> str:
    return f" ({_fits(price.fits_on, gpus)})" if price.fits_on is not None else ""


def _fits(count: int | None, gpus: int, runtime: str = "any") -> str:
    """Whose memory holds it: that of one GPU, or of several together; where there is but one device, that is clear."""
    if count is None:
        return ""
    if gpus < 2:
        return "fits" if count else "does not fit"
    if not count:
        return "does not fit the one GPU it uses" if runtime in ALONE else f"does not fit {gpus} GPUs"
    return f"fits {count} GPUs together" if count > 1 else "fits one GPU"


def _gpus(where: EnvironmentReport) -> str:
    if where.gpus < 2:
        return _gpu(where.gpu)
    together = _gib(where.memory_bytes_together) if where.memory_bytes_together else "memory not known"
    if len(set(where.cards)) == 1:
        return f"{where.gpus} x {_gpu(where.gpu)} each, {together} together"
    return f"{where.gpus} GPUs of {together} together, the first {_gpu(where.gpu)}"


def _gpu(gpu: Gpu) -> str:
    if gpu.device == "cpu":
        return f"CPU, {_gib(gpu.memory)} of memory" if gpu.memory else "CPU"
    parts = [
        gpu.name,
        f"compute capability {gpu.capability}" if gpu.capability else "",
        gpu.gfx if gpu.gfx and gpu.gfx != gpu.name else "",
        _gib(gpu.memory) if gpu.memory else "memory not known",
    ]
    return ", ".join(shown(p) for p in parts if p)


def _version(r: RuntimeReport) -> str:
    version = r.version or "?"
    return version if r.installed else f"not here; as of {version}"


def _best(r: RuntimeReport) -> str:
    """The best that a way out leads to: in this runtime, or in another."""
    ways = sorted(r.ways, key=lambda w: (list(PATHS).index(w.path), w.runtime != r.runtime))
    if not ways:
        return ""
    return SHORT[ways[0].path] + ("" if ways[0].runtime == r.runtime else f" in {ways[0].runtime}")


def _runtime(r: RuntimeReport, said: set[str]) -> None:
    """One runtime; commands that were `said` before are not said again."""
    say(f"{r.title}: {PATHS[r.path]}")
    _wrapped("  because ", r.because)
    for doubt in r.doubts:
        _wrapped("  but ", doubt)
    if r.basis not in ("read", "") and not r.basis.startswith("read in"):
        _wrapped("  rules: ", r.basis)
    if r.install and r.path not in ("refused", "unknown"):
        say(f"  install: {r.install}")
    for way in r.ways:
        if way.command in said:
            say(f"  type: as above, for {way.runtime}")
        else:
            _way(way)
        said.add(way.command)
    for way in r.left_out:
        _wrapped("  left out: ", f"{way.command}: {_gib(way.weights_bytes)} do not fit")
    for f in r.flags:
        _wrapped(f"  with {f.flag}=True: ", f"{PATHS[f.path]}: {f.because}")


def _way(way: WayOut) -> None:
    say(f"  type: {way.command}")
    size = f", {_gib(way.weights_bytes)}" if way.weights_bytes is not None else ""
    note = f" ({way.note})" if way.note else ""
    _wrapped("        -> ", f"{PATHS[way.path]} in {way.runtime}{size}{note}")


def _messages(found: tuple[Match, ...]) -> None:
    say(f"the log: {many(len(found), 'known message')}" if found else "the log: no message that is known")
    for m in found:
        lines = ", ".join(map(str, m.lines)) + (f" and {m.count - len(m.lines)} more" if m.count > len(m.lines) else "")
        _wrapped(f"  line {lines}: ", shown(m.text, MESSAGE_LIMIT))
        _wrapped("    cause: ", m.cause)
        here = {True: "; this is installed here", False: "; what is installed here is not among them", None: ""}
        _wrapped("    affected: ", m.affected + here[m.installed_affected])
        for way in m.ways:
            say(f"    type: {way}")


def _gib(nbytes: int | None) -> str:
    if nbytes is None:
        return "-"
    return f"{nbytes / (1 << 30):,.1f} GiB" if nbytes >= 1 << 29 else f"{nbytes / (1 << 20):,.1f} MiB"


def _wrapped(head: str, text: str) -> None:
    """Words under each other on a terminal; on a pipe a line is as long as it is."""
    if not sys.stdout.isatty():
        say(head + text)
        return
    width = max(60, shutil.get_terminal_size().columns)
    indent = " " * (len(head) if len(head) <= 16 else 6)
    for line in textwrap.wrap(head + text, width, subsequent_indent=indent, drop_whitespace=True):
        say(line)
