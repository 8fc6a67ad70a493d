"""A validation for a terminal: the verdict and what decided it, then values, predictions and layers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpttool.errors import MESSAGE_LIMIT, shown
from ckpttool.render.fold import folded
from ckpttool.render.terminal import NARROW, columns, many, paragraph, print_json, say, say_notes, table
from ckpttool.reports import document
from ckpttool.units import size

if TYPE_CHECKING:
    from ckpttool.validator.failures import Failure
    from ckpttool.validator.metrics import Metrics
    from ckpttool.validator.report import Forward, LayerResult, PartResult, Predictions, Side, Validation

LISTED = 12
"""Failures that are shown."""

WORST = 6
"""Lossy parts that are shown."""

LAYERS = 12
"""Layers that are shown; of more the first, the last and those that add the most."""

NOTES = 24

TOKEN_LIMIT = 40
"""Characters of a token: some are long rows of blanks."""

PROOFS = {
    "bytes": "equal bytes",
    "values": "equal values",
    "rounding": "every value the nearest there is",
    "budget": "within the SQNR of their format",
    None: "not proven",
}
"""How a part's claim was met, in words; the others name a recipe."""


def show_validation(report: Validation, as_json: bool) -> None:
    """The report, as text or as its document."""
    if as_json:
        print_json(document(report))
        return
    _verdict(report)
    say()
    _sides(report.reference, report.candidate)
    _failures(report.failures)
    _values(report)
    if report.forward is not None:
        _predictions(report.forward)
        _layers(report.layers, report.forward)
    if report.notes:
        say()
    say_notes(shown(n, MESSAGE_LIMIT) for n in report.notes[:NOTES])
    if len(report.notes) > NOTES:
        say(f"and {many(len(report.notes) - NOTES, 'more note')} (--json lists them all)")


def _verdict(report: Validation) -> None:
    """The first line says it all; what was kept to stands below, what failed in its table."""
    first, *others = report.decided
    if report.verdict == "failed":
        more = f" (and {len(others):,} more)" if others else ""
        say(f"failed: {shown(first, MESSAGE_LIMIT)}{more}")
        return
    say(f"{report.verdict}: {first}")
    for what in others:
        say(f"{' ' * len(report.verdict)}  {what}")


def _sides(reference: Side, candidate: Side) -> None:
    rows = [
        (name, s.source, s.arch or "unknown", s.dialect or s.container, _formats(s), size(s.nbytes))
        for name, s in (("reference", reference), ("candidate", candidate))
    ]
    table(("", "checkpoint", "architecture", "dialect", "parts", "size"), rows, right=("size",), keep=1)


def _formats(side: Side) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in side.formats.items())


def _failures(failures: Sequence[Failure]) -> None:
    """By part; those that differ in their layer alone are one row."""
    if not failures:
        return
    say()
    groups = folded(failures, lambda f: f.part or "", lambda f: (f.level, f.what, f.layer if f.part is None else None))
    rows = [(g.rows[0].level, shown(_place(g.rows[0], g.name)), g.rows[0].what) for g in groups[:LISTED]]
    say("failures:")
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for level, where, what in rows:
        paragraph(f"  {level:{wide[0]}}  {where:{wide[1]}}  ", shown(what, MESSAGE_LIMIT))
    rest = sum(len(g.rows) for g in groups[LISTED:])
    if rest:
        say(f"and {many(rest, 'more failure')} (--json lists them all)")


def _place(failure: Failure, name: str) -> str:
    if failure.part:
        return name
    return "" if failure.layer is None else f"layer {failure.layer}"


def _values(report: Validation) -> None:
    """How many parts were proven how, and the lossy ones, the worst first."""
    if not report.parts:
        return
    say()
    statuses = Counter(p.compared.status for p in report.parts)
    both = sum(n for status, n in statuses.items() if status in ("bytes", "values", "lossy"))
    proofs = Counter(p.proof for p in report.parts if p.compared.status in ("bytes", "values", "lossy"))
    told = [f"{n:,} {_proven(proof)}" for proof, n in proofs.items()]
    say(f"{many(both, 'part')} compared: {', '.join(told) or 'none'}")
    zeros = sum(p.compared.zero_signs or 0 for p in report.parts)
    if zeros:
        say(f"zeros of another sign, counted as equal: {zeros:,}")
    lossy = sorted((p for p in report.parts if p.compared.status == "lossy"), key=_badness)
    if not lossy:
        return
    say()
    say(f"lossy parts, the {WORST} worst of {len(lossy):,}:" if len(lossy) > WORST else "lossy parts:")
    names = ["part", "formats", "SQNR dB", "worst expert", "relative", "max abs", "differing", "proof"]
    if columns() < NARROW:
        names = [n for n in names if n not in ("relative", "max abs", "differing")]
    rows = [[cells[n] for n in names] for cells in map(_lossy_row, lossy[:WORST])]
    table(names, rows, right=("SQNR dB", "worst expert", "relative", "max abs", "differing"))


def _proven(proof: str | None) -> str:
    if proof is not None and proof.startswith("recipe "):
        return f"made by {proof}, equal in every block"
    return PROOFS.get(proof) or str(proof)


def _badness(part: PartResult) -> tuple[bool, bool, float, str]:
    """Those without a proof first, then by what is left of their signal."""
    p = part.compared
    return part.proof is not None, p.differing is not None, _decibels(p.sqnr), p.part


def _decibels(sqnr: float | None) -> float:
    return float("-inf") if sqnr is None else sqnr


def _lossy_row(part: PartResult) -> dict[str, str]:
    p = part.compared
    formats = f"{p.format_a}" if p.format_a == p.format_b else f"{p.format_a} / {p.format_b}"
    worst = min(p.experts, key=lambda e: _decibels(e.sqnr), default=None)
    return {
        "part": p.part,
        "formats": formats,
        "SQNR dB": "-" if p.sqnr is None else f"{p.sqnr:.2f}",
        "worst expert": ""
        if worst is None
        else f"{worst.expert}: {'-' if worst.sqnr is None else f'{worst.sqnr:.2f}'}",
        "relative": _number(p.relative),
        "max abs": _number(p.max_abs),
        "differing": "-" if p.differing is None else f"{p.differing:,}",
        "proof": part.proof or "none",
    }


def _predictions(forward: Forward) -> None:
    """How they were made, and the figures of each kind of input."""
    say()
    where = "the packaged text" if forward.text == "packaged" else shown(forward.text, MESSAGE_LIMIT)
    gpu = "" if forward.peak_gpu_nbytes is None else f", at most {size(forward.peak_gpu_nbytes)} of its memory"
    exact = ", TF32 off" if forward.numbers == "FP32" and forward.peak_gpu_nbytes is not None else ""
    say(
        f"{many(forward.tokens, 'token')} in {many(forward.sequences, 'sequence')}, {forward.numbers}{exact} "
        f"on {forward.device}{gpu}, {forward.seconds:.1f} s, {size(forward.read_nbytes)} read"
    )
    say()
    _figures(f"on {where}", forward.on_text)
    if forward.on_prompts is not None:
        effort = f", reasoning effort {forward.reasoning_effort}" if forward.reasoning_effort else ""
        say()
        _figures(f"on the answers of {many(forward.prompts, 'prompt')}{effort}", forward.on_prompts)


def _figures(title: str, found: Predictions) -> None:
    """A row for each figure; beside the candidate's what rounding alone does, and what is left without flips."""
    passes = [found.metrics, found.noise, *([found.forced] if found.forced else [])]
    heads = ("candidate", "noise floor", "reference's experts")
    names = [f"{n}; reference {_number(found.metrics.ppl_reference, 4)}" if n == PERPLEXITY else n for n in FIGURES]
    rows = [(name, *values) for name, *values in zip(names, *map(_column, passes), strict=True)]
    table((f"{title}, {many(found.metrics.tokens, 'token')}", *heads[: len(passes)]), rows, right=heads)
    f = found.metrics.first_difference
    if f is not None:
        say(
            f"first other token: sequence {f.sequence}, position {f.position}, "
            f"{_token(f.candidate, f.candidate_text)} for {_token(f.reference, f.reference_text)}, "
            f"whose logit is {f.margin:.3g} higher in the reference"
        )


def _token(number: int, text: str | None) -> str:
    """A token as text, blanks and line ends to be seen, and its id."""
    return str(number) if text is None else f"{shown(json.dumps(text, ensure_ascii=False), TOKEN_LIMIT)} ({number})"


PERPLEXITY = "perplexity"
FIGURES = (
    "KL mean", "KL median", "KL 99 %", "KL max", "same top-1", "top-1 within 5", PERPLEXITY, "perplexity ratio",
    "largest logit error",
)  # fmt: skip
"""The rows of predictions."""


def _column(m: Metrics) -> list[str]:
    """One pass' figures, in the order of `FIGURES`."""
    return [
        _with_error(_number(m.kl_mean), m.kl_mean_se, ".1g"),
        _number(m.kl_median),
        _number(m.kl_p99),
        _number(m.kl_max),
        _with_error(_percent(m.top1), None if m.top1_se is None else 100 * m.top1_se, ".2f"),
        _percent(m.top5),
        _number(m.ppl_candidate, 4),
        _with_error("-" if m.ppl_ratio is None else f"{m.ppl_ratio:.4f}", m.ppl_ratio_se, ".4f"),
        "-" if m.logit_range is None else f"{_number(m.logit_difference)} of {_number(m.logit_range)}",
    ]


def _with_error(text: str, error: float | None, form: str) -> str:
    shown_error = "" if error is None else f"{error:{form}}"
    return f"{text} ± {shown_error}" if shown_error.strip("0.") else text


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}g}"


def _layers(layers: Sequence[LayerResult], forward: Forward) -> None:
    """Drift and flips by layer; a walk without any is one line."""
    say()
    if all(x.drift == 0 and not x.flips for x in layers):
        say(f"no drift in any of {many(len(layers), 'layer')}, and no flips")
        return
    say(f"first beyond the noise: {forward.first_diverging or 'nowhere'}")
    say("relative error of the residual stream behind each layer, and tokens whose experts differ:")
    names = ["layer", "drift", "noise", "reference's experts", "alone", "flips", "noise flips", "unused experts"]
    if columns() < NARROW:
        names = [n for n in names if n not in ("noise flips", "unused experts")]
    shown_layers = _telling(layers)
    rows = [[_layer_row(x, forward.tokens)[n] for n in names] for x in shown_layers]
    table(names, rows, right=names)
    if len(shown_layers) < len(layers):
        say(f"and {len(layers) - len(shown_layers)} layers between that add less (--json lists them all)")


def _telling(layers: Sequence[LayerResult]) -> list[LayerResult]:
    """All of them where they are few; else the first and last ones, and those that by themselves are farthest off."""
    if len(layers) <= LAYERS:
        return list(layers)
    third = LAYERS // 3
    kept = {x.layer for x in (*layers[:third], *layers[-third:])}
    others = sorted((x for x in layers if x.layer not in kept), key=lambda x: -(x.own or 0.0))
    kept |= {x.layer for x in others[:third]}
    return [x for x in layers if x.layer in kept]


def _layer_row(x: LayerResult, tokens: int) -> dict[str, str]:
    share = f" ({100 * x.flips / tokens:.1f} %)" if x.flips else ""
    return {
        "layer": str(x.layer),
        "drift": "not finite" if x.drift is None else _number(x.drift),
        "noise": _number(x.noise),
        "reference's experts": _number(x.forced),
        "alone": _number(x.own),
        "flips": f"{x.flips:,}{share}",
        "noise flips": f"{x.noise_flips:,}",
        "unused experts": " / ".join(str(len(u.unused)) for u in (x.reference, x.candidate)),
    }
