"""What serving a checkpoint takes, for a terminal. GB are 10^9 bytes, GiB 2^30, and each figure says which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import print_json, say, say_notes, table
from ckpttool.reports import document

if TYPE_CHECKING:
    from ckpttool.serving.estimator import Estimate


def show_estimate(report: Estimate, as_json: bool) -> None:
    """What it takes, which GPUs hold it, how fast they could be, and the command."""
    if as_json:
        print_json(document(report))
        return
    form = "" if report.form == "native" else f", priced as {report.form}: {report.form_words}"
    active = f", {report.active_parameters:,} active per token" if report.active_parameters is not None else ""
    say(f"{shown(report.source, MESSAGE_LIMIT)}: {report.family or 'unknown architecture'}{form}")
    say(f"{report.parameters:,} parameters{active}")
    say()
    _memory(report)
    say()
    _gpus(report)
    say()
    _forms(report)
    say()
    _speed(report)
    say("overhead, as vLLM's own logs have it:")
    for term in report.overhead_rule:
        say(f"  {term}")
    say_notes(report.notes)
    say()
    say(report.advice)
    for command in report.commands:
        say(f"  {shown(command, MESSAGE_LIMIT)}")


def _memory(report: Estimate) -> None:
    n = f"{report.batch:,} x {report.context:,} tokens, {report.kv_cache_dtype}"
    rows = [("weights", report.weights_bytes, "")]
    if report.scales_within_bytes:
        rows.append(("  of which scales", report.scales_within_bytes, ""))
    if report.scales_bytes:
        rows.append(("scales", report.scales_bytes, ""))
    rows += [("KV cache", report.kv_cache_bytes, n), ("overhead", report.overhead_bytes, "")]
    rows.append(("total", report.total_bytes, f"on {report.tp} GPUs" if report.tp > 1 else ""))
    if report.tp > 1:
        rows.append(("on each GPU", report.per_gpu_bytes, ""))
    if report.speculation_bytes:
        rows.append(("not loaded", report.speculation_bytes, "layers that only guess tokens ahead (MTP)"))
    rows.append(("naive KV cache", report.kv_cache_bytes_naive, "2 x layers x KV heads x head size, every layer full"))
    columns = ("memory", "GB", "GiB", "")
    table(columns, [(name, _gb(b), _gib(b), note) for name, b, note in rows], right=("GB", "GiB"))


def _gpus(report: Estimate) -> None:
    share = f"{report.gpu_memory_utilization:.0%}"
    columns = ("GPU", "card", "memory GB", f"{share} of it", "holds it", "largest context", "tok/s", "tok/s BF16")
    rows = [
        (
            f"{g.gpu} GB" if g.gpu.isdigit() else g.gpu,
            g.card or "-",
            _gb(g.memory_bytes),
            _gb(g.usable_bytes),
            "yes" if g.fits else "no",
            f"{g.largest_context:,}" if g.largest_context else "-",
            f"{g.tokens_per_second:,.0f}" if g.tokens_per_second and g.largest_context else "-",
            f"{g.tokens_per_second_bf16:,.0f}" if g.tokens_per_second_bf16 and g.largest_context else "-",
        )
        for g in report.gpus
    ]
    table(columns, rows, right=columns[2:4] + columns[5:])


def _forms(report: Estimate) -> None:
    columns = ("resident form", "weights GB", "overhead GB", "total GB", "smallest GPU")
    rows = [
        (f"{f.form}, {f.runtime}", _gb(f.weights_bytes), _gb(f.overhead_bytes), _gb(f.total_bytes),
         f"{f.smallest_gpu} GB" if f.smallest_gpu else "none of these alone")
        for f in report.forms
    ]  # fmt: skip
    table(columns, rows, right=columns[1:4])


def _speed(report: Estimate) -> None:
    per = report.bytes_per_token
    if per.weights is None or per.weights_bf16 is None:
        return
    say(
        f"a decoded token reads {_gb(per.weights)} GB of weights ({_gb(per.weights_bf16)} GB in BF16, "
        f"{per.weights_bf16 / per.weights:.2f} x as much) and {_gb(per.kv_cache)} GB of cache"
    )
    say("tok/s: bandwidth by weights alone, for one sequence; a ceiling that no runtime reaches")


def _gb(nbytes: int) -> str:
    return _digits(nbytes / 1e9)


def _gib(nbytes: int) -> str:
    return _digits(nbytes / 2**30)


def _digits(x: float) -> str:
    """Two decimals, and three digits of what is smaller than that shows."""
    return f"{x:,.2f}" if x >= 1 or not x else f"{x:.3g}" if x >= 1e-4 else f"{x:.6f}"
