"""Level `forward`: both models on the same text and prompts, in one walk, and what their predictions say.

A walk reads each checkpoint once, so prompts go with the text: layers are measured over the tokens of both, predictions
apart, of prompts at the answers' tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ckpttool.checkpoint import Checkpoint
from ckpttool.devices import cards, check_asked
from ckpttool.errors import UsageError
from ckpttool.validator.drift import Drift
from ckpttool.validator.failures import Failure, part_failure
from ckpttool.validator.inputs import Inputs
from ckpttool.validator.lockstep import LayerReport, LockstepReport, LogitChunk, lockstep
from ckpttool.validator.metrics import LogitMetrics, Metrics
from ckpttool.validator.report import Forward, LayerResult, Predictions, histogram
from ckpttool.validator.text import Encoder


@dataclass(frozen=True)
class Found:
    """What the forward level adds to the report."""

    forward: Forward
    layers: tuple[LayerResult, ...]
    failures: tuple[Failure, ...]


def device_for(asked: str) -> str:
    """The one device that `--device` means; auto takes the first GPU where its kernels run, else the CPU.

    Raises:
        UsageError: a word that is unknown, more than one GPU, or one that is not there or too old.
    """
    check_asked(asked)
    if asked == "cpu":
        return asked
    if "," in asked:
        raise UsageError(f"--device {asked}: one device computes", hint="name one of them")
    try:
        (card,) = cards("cuda" if asked == "auto" else asked)
    except UsageError:
        if asked == "auto":
            return "cpu"
        raise
    if card.type == "cuda":
        return f"cuda:{card.index or 0}"
    if asked == "auto":
        return "cpu"
    raise UsageError(f"--device {asked}: Triton interprets here, and no GPU computes", hint="--device cpu")


def predict(
    reference: Checkpoint,
    candidate: Checkpoint,
    inputs: Inputs,
    *,
    device: str,
    nbytes: Sequence[int],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Found:
    """Walk through both. `nbytes` is `walk_nbytes` of the two, by which `progress` counts.

    Raises:
        InputError, LimitError: as `lockstep`.
    """
    texts, answers = _Figures(inputs.encoder), _Figures(inputs.encoder, first=len(inputs.sequences))

    def consume(chunk: LogitChunk) -> None:
        (texts if chunk.sequence < answers.first else answers).add(chunk)

    walked = lockstep(
        reference, candidate, inputs.batch, consume, device=device, rows=inputs.rows,
        progress=lambda done, of: progress(nbytes[done - 1]),
    )  # fmt: skip
    progress(nbytes[-1])
    forward = Forward(
        inputs.text, walked.tokens, walked.sequences, walked.device, walked.numbers, walked.seconds, walked.read_nbytes,
        walked.peak_gpu_nbytes, walked.embed, walked.logits, walked.logits_noise, walked.logits_forced,
        walked.first_diverging, texts.predictions(), answers.predictions() if inputs.prompts else None,
        len(inputs.prompts), inputs.effort,
    )  # fmt: skip
    failures = [*_not_finite(walked), *texts.failures(""), *answers.failures(" on prompts")]
    return Found(forward, tuple(map(_layer, walked.layers)), tuple(failures))


class _Figures:
    """Every pass against the reference, over one kind of input, whose sequences begin with number `first`."""

    def __init__(self, encoder: Encoder, first: int = 0) -> None:
        self.first = first
        self._encoder = encoder
        self._candidate, self._noise, self._forced = LogitMetrics(), LogitMetrics(), LogitMetrics()
        self._any_forced = False

    def add(self, chunk: LogitChunk) -> None:
        """The rows of one sequence."""
        passes = [(self._candidate, chunk.candidate), (self._noise, chunk.noise)]
        if chunk.forced is not None:
            passes.append((self._forced, chunk.forced))
            self._any_forced = True
        for figures, logits in passes:
            figures.add(
                chunk.reference, logits, chunk.next_ids,
                sequence=chunk.sequence - self.first, positions=chunk.positions,
            )  # fmt: skip

    def predictions(self) -> Predictions:
        """All figures."""
        forced = self._told(self._forced) if self._any_forced else None
        return Predictions(
            self._told(self._candidate), self._told(self._noise), forced, histogram(self._candidate.kl())
        )  # fmt: skip

    def _told(self, figures: LogitMetrics) -> Metrics:
        """The figures, and the first tokens that differ as text."""
        found = figures.metrics()
        first = found.first_difference
        if first is None:
            return found
        texts = [self._encoder.decode([i]) for i in (first.reference, first.candidate)]
        told = replace(first, reference_text=texts[0], candidate_text=texts[1])
        return replace(found, first_difference=told)

    def failures(self, where: str) -> Iterator[Failure]:
        """Logits that are not finite; `where` says of which input."""
        for found in self._candidate.failures():
            yield Failure(found.part, found.layer, found.what + where, found.level)


def _not_finite(walked: LockstepReport) -> Iterator[Failure]:
    """The first place behind which either side's residual stream is not finite."""

    def told(side: str, broken: int) -> str:
        return f"the {side}'s residual stream is not finite behind it, at {broken:,} of {walked.tokens:,} tokens"

    sides: list[tuple[str, Callable[[LayerReport], Drift]]] = [
        ("candidate", lambda x: x.drift), ("reference", lambda x: x.noise)
    ]  # fmt: skip
    for side, drift in sides:
        if side == "candidate" and walked.embed.broken:
            yield part_failure("embed", told(side, walked.embed.broken), "forward")
            continue
        first = next((x for x in walked.layers if drift(x).broken), None)
        if first is not None:
            yield Failure(None, first.layer, told(side, drift(first).broken), "forward")


def _layer(x: LayerReport) -> LayerResult:
    return LayerResult(
        x.layer, x.drift.whole, x.drift.median, x.drift.broken, x.noise.whole,
        None if x.forced is None else x.forced.whole, None if x.own is None else x.own.whole,
        x.flips.tokens, x.flips.choices, x.noise_flips.tokens, x.reference, x.candidate,
    )  # fmt: skip
