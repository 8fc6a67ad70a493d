"""What `ckpttool validate` found, for the card: whether it is of this conversion, its figures in words and as results.

A report is a document that somebody hands over: its fields are looked at before they are believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from ckpttool.containers import limits
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError, InputError
from ckpttool.publishing.card_facts import Facts, origin_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

DATASET: Final = "ckpttool-validate"
"""The dataset of our EvalResults, by which they are known again."""

MAKE: Final = "ckpttool validate REFERENCE CANDIDATE --json makes one"


@dataclass(frozen=True)
class Figure:
    """A figure of the predictions: its name, its metric's id for the Hub, its place in the report and its error's."""

    name: str
    metric: str | None
    key: str
    error: str | None = None
    unit: str = ""


FIGURES: Final = (
    Figure("mean KL divergence", "kl_divergence", "kl_mean", "kl_mean_se", " nats"),
    Figure("same most probable token", "top1_agreement", "top1", "top1_se"),
    Figure("perplexity", "perplexity", "ppl_candidate"),
    Figure("the source's perplexity", None, "ppl_reference"),
    Figure("perplexity over the source's", "perplexity_ratio", "ppl_ratio", "ppl_ratio_se"),
)


@dataclass(frozen=True)
class Quality:
    """A report that was found to be of this conversion. `figures`: those measured on the text, if any were."""

    verdict: str
    decided: str
    reference: str
    level: str
    figures: Mapping[str, float]
    text: str
    conditions: str
    tokens: int
    sqnr: float | None

    def rows(self) -> Iterator[tuple[str, str]]:
        """Every figure with its value in words."""
        if self.sqnr is not None:
            yield "lowest SQNR of a part", f"{self.sqnr:.1f} dB"
        for f in FIGURES:
            if f.key not in self.figures:
                continue
            value, error = self.figures[f.key], self.figures.get(f.error or "")
            if f.key == "top1":
                spread = f" ± {100 * error:.2g}" if error else ""
                yield f.name, f"{100 * value:.4g}{spread} %"
            else:
                spread = f" ± {error:.2g}" if error else ""
                yield f.name, f"{value:.4g}{spread}{f.unit}"

    def results(self, artefact: str) -> list[EvalResult]:
        """The figures as the Hub's model-index has them; `artefact` is the file that they are of, "" for all."""
        from huggingface_hub import EvalResult

        return [
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=DATASET,
                dataset_name=f"{self.text}, {self.tokens:,} tokens",
                dataset_config=artefact or None,
                metric_type=f.metric,
                metric_name=f"{f.name[0].upper()}{f.name[1:]}",
                metric_value=float(f"{self.figures[f.key]:.6g}"),
            )
            for f in FIGURES
            if f.metric is not None and f.key in self.figures
        ]


def read_report(path: str | Path) -> dict[str, Any]:
    """The report in the file that --validation names.

    Raises:
        InputError: no such file, or no JSON object.
    """
    try:
        return read_object(Path(path), str(path), limits.INDEX_FILE)
    except InputError as error:
        raise InputError(error.message, file=str(path), offset=error.offset, hint=MAKE) from error


def quality(report: Mapping[str, Any], facts: Facts, repo: str) -> Quality:
    """The figures of `report`, a validation.v1, once it is found to be of the conversion that `facts` are of.

    Raises:
        InputError: no such document; one of another checkpoint; one whose verdict is failed.
    """
    if report.get("schema") != "validation.v1":
        raise _refused(f"is a {report.get('schema', 'document without a schema')}, not a validation.v1", MAKE)
    try:
        return _quality(report, facts, repo)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"is not what validation.v1 promises: {type(error).__name__}: {error}"
        raise _refused(what, MAKE) from error


def _quality(report: Mapping[str, Any], facts: Facts, repo: str) -> Quality:
    _check_candidate(report, facts, repo)
    decided = [str(d) for d in report["decided"]]
    if report["verdict"] not in ("exact", "within budget"):
        hint = "mend the conversion and validate it again; what fails is not published with its report"
        raise _refused(f"its verdict is {report['verdict']}: {decided[0]}", hint)
    metrics, forward = report["metrics"] or {}, report["forward"]
    names = {name for f in FIGURES for name in (f.key, f.error) if name}
    figures = {k: float(metrics[k]) for k in names & metrics.keys() if metrics[k] is not None}
    if not all(map(math.isfinite, figures.values())):
        raise ValueError("a figure is not finite")
    sqnr = [p["compared"]["sqnr"] for p in report["parts"] if p["compared"]["sqnr"] is not None]
    return Quality(
        report["verdict"],
        "; ".join(decided),
        origin_of(report["reference"]["source"]).name,
        report["level"],
        figures,
        _text(forward) if forward else "",
        _conditions(forward) if forward else "",
        int(metrics.get("tokens", 0)),
        float(min(sqnr)) if sqnr else None,
    )


def _text(forward: Mapping[str, Any]) -> str:
    return "ckpttool's text" if forward["text"] == "packaged" else _last(forward["text"])


def _conditions(forward: Mapping[str, Any]) -> str:
    return f"{forward['tokens']:,} tokens of {_text(forward)}, in {forward['numbers']}"


def _check_candidate(report: Mapping[str, Any], facts: Facts, repo: str) -> None:
    """That the report judges this conversion: same dialect, same bytes of tensors, and a name or a source in common.

    Raises:
        InputError: it is another's.
    """
    judged, target = report["candidate"], facts.receipt["target"]
    hint = f"validate this one: ckpttool validate {facts.origin.text} {_last(target['path'])} --json"
    for what, theirs, ours in (
        ("dialect", judged["dialect"], facts.dialect),
        ("number of tensor bytes", judged["nbytes"], facts.weights_nbytes),
    ):
        if theirs != ours:
            raise _refused(f"judges another checkpoint: its {what} is {theirs}, this one's {ours}", hint)
    its_names = {_last(judged["source"]), origin_of(judged["source"]).name}
    our_names = {_last(target["path"]), facts.artefact, facts.file, repo, repo.rpartition("/")[2]}
    sources = {facts.origin.name, _last(facts.receipt["source"]["path"])}
    if not its_names & our_names and origin_of(report["reference"]["source"]).name not in sources:
        what = f"judges {_last(judged['source'])} against {_last(report['reference']['source'])}"
        raise _refused(f"{what}, neither of which is this conversion's", hint)


def _last(path: str) -> str:
    """The end of a path, without whatever of somebody's disk stands before it."""
    return PurePath(path.replace("\\", "/").rstrip("/")).name


def _refused(what: str, hint: str) -> CkptError:
    return InputError(what, file="the validation report", hint=hint)
