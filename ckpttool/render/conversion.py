"""Plans and receipts, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.terminal import MOST_PROBLEMS, many, print_json, say, say_notes, table
from ckpttool.reports import UNUSABLE, Conversion, PlanReport, document
from ckpttool.units import size


def show_plan(report: PlanReport, as_json: bool) -> None:
    """What a conversion would do."""
    if as_json:
        print_json(document(report))
        return
    source, target = shown(report.source, MESSAGE_LIMIT), shown(report.target, MESSAGE_LIMIT)
    say(f"{source} ({report.source_dialect}) -> {target} ({report.target_dialect})")
    say()
    files = [(f.name, f"{f.tensors:,}", f"{f.nbytes:,}") for f in report.files]
    files += [(f.name, "", f"{f.nbytes:,}") for f in report.sidecars]
    table(("file", "tensors", "bytes"), [*files, ("all", "", f"{report.nbytes:,}")], right=("tensors", "bytes"))
    say()
    steps = [
        (s.kind, f"{s.source_format} -> {s.target_format}", s.fidelity, f"{s.steps:,}", f"{s.nbytes:,}")
        for s in report.steps
    ]
    table(("step", "formats", "fidelity", "steps", "bytes"), steps, right=("steps", "bytes"))
    say()
    if report.recipe:
        r = report.recipe
        say(f"MXFP4 by recipe {r['name']}: scale rule {r['scale']}, ties {r['ties']}")
    say(f"memory: up to {size(report.peak_memory)} with {many(report.workers, 'thread')}, {many(report.slabs, 'slab')}")
    if any(s.kind == "narrow" for s in report.steps):
        say("narrow: what would change can only be counted as it runs; the receipt says values where nothing did")
    _assumed(report.assumed)
    say_notes(report.notes)
    say(f"writes {size(report.nbytes)}; nothing written yet")


def _assumed(assumed: Sequence[Any]) -> None:
    if assumed:
        say("assumed, because the source does not say (--reference DIR replaces assumption by fact):")
        for row in assumed:
            value = json.dumps(row["value"], ensure_ascii=False)
            say(f"  {row['file']}: {row['key']} = {value if len(value) <= 80 else value[:79] + '…'}")


def show_conversion(report: Conversion, receipt: str, as_json: bool) -> None:
    """The summary of a finished conversion."""
    if as_json:
        print_json(document(report))
        return
    run = report.run
    wall = run["seconds"]["total"]
    nbytes = run["nbytes"]
    say(
        f"read {size(nbytes['read'])}, wrote {size(nbytes['written'])} in {many(len(report.files), 'file')}, "
        f"{wall:.1f} s ({size(nbytes['written'] / wall)}/s) with {many(run['workers'], 'thread')}"
    )
    if (why := run.get("devices_why", "")).startswith(UNUSABLE):
        say(f"on {', '.join(run['devices'])}: {why}")
    if run["slabs_resumed"]:
        say(f"went on from an interrupted run: {run['slabs_resumed']:,} of {run['slabs']:,} slabs were done")
    say("fidelity: " + ", ".join(f"{many(n, 'tensor')} {name}" for name, n in report.fidelity.items() if n))
    changed = [t for t in report.tensors if t.changed]
    for t in changed[:MOST_PROBLEMS]:
        say(f"  {t.name}: {many(t.changed, 'value')} changed")
    if len(changed) > MOST_PROBLEMS:
        say(f"  and {many(len(changed) - MOST_PROBLEMS, 'more tensor')}; the receipt lists them")
    if report.recipe:
        r = report.recipe
        say(f"MXFP4 by recipe {r['name']}: scale rule {r['scale']}, ties {r['ties']}")
    if report.assumed:
        say(f"assumed {len(report.assumed)} values that the source does not carry; the receipt lists them")
    say_notes(report.notes)
    say(f"read back and compared: {'yes' if report.verified else 'no (--no-verify)'}")
    say(f"receipt: {shown(receipt, MESSAGE_LIMIT)}")
