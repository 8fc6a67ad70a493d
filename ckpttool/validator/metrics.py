"""How far a candidate's predictions are from the reference's, over all tokens of a text.

Figures are of tokens whose predecessors both models saw. Every token's are kept (some 100 bytes each), sorted by place
and added up exactly, so that neither chunks nor their order change a bit of the result, and quantiles are those of all
tokens, interpolated linearly between neighbours.

* `kl_*`: KL(reference || candidate) in nats.
* `ppl_*`: exp of the mean negative log-likelihood; `ppl_ratio` is the candidate's over the reference's.
* `top1`: share of tokens where both find the same token the most probable; `top5`: where the reference's is among the
  candidate's five.
* `*_se`: standard errors of what another text of the same kind would give, by batch means: tokens are cut into blocks
  of 256 neighbours of one sequence, within which they may depend on each other as they like; blocks are taken as
  independent. For the mean m of x over N tokens in G blocks, with D and n a block's sum and number,

      se^2 = G / (G - 1) * sum of (D - n m)^2 / N^2

  Of the ratio r = exp(m), x being the paired difference of both log-likelihoods, it is r se (first order): what both
  models find equally hard cancels, so it is far below the error of either perplexity.

A row with a logit that is not finite is no figure but a failure, and is left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckpttool.validator.failures import Failure
from ckpttool.validator.logits import FIELDS, Floats, Integers, Rows, measure

BLOCK_TOKENS: Final = 256
"""Neighbours that may depend on each other. Differences of the tiny model's log-likelihoods do not correlate even with
the next token's, but its KL is larger in some passages than in others: single tokens give a standard error of 0.00030,
blocks of 64 0.00034, of 256 0.00042."""

TOP: Final = 5
_NONE: Final = np.empty(0, np.int64)


@dataclass(frozen=True)
class Spot:
    """A token of the text: `position` counts in its sequence the token whose successor is predicted."""

    sequence: int
    position: int


@dataclass(frozen=True)
class FirstDifference:
    """The first place where the most probable tokens differ; `margin`: how much higher the reference holds its own.

    The texts of both are None as long as nobody with a tokenizer has filled them in.
    """

    sequence: int
    position: int
    reference: int
    candidate: int
    margin: float
    reference_text: str | None = None
    candidate_text: str | None = None


@dataclass(frozen=True)
class Metrics:
    """All figures over `tokens`, see this module; None where there is no token, and errors where there is one block.

    `logit_difference` is the largest |a - b| of two logits, to be held against `logit_range`, the widest spread of one
    row of the reference.
    """

    tokens: int
    sequences: int
    kl_mean: float | None = None
    kl_mean_se: float | None = None
    kl_median: float | None = None
    kl_p90: float | None = None
    kl_p99: float | None = None
    kl_p999: float | None = None
    kl_max: float | None = None
    kl_max_at: Spot | None = None
    top1: float | None = None
    top1_se: float | None = None
    top5: float | None = None
    ppl_reference: float | None = None
    ppl_candidate: float | None = None
    ppl_ratio: float | None = None
    ppl_ratio_se: float | None = None
    logit_difference: float | None = None
    logit_difference_at: Spot | None = None
    logit_range: float | None = None
    first_difference: FirstDifference | None = None


@dataclass(frozen=True)
class Tokens:
    """The figures of every token, by sequence and position."""

    sequence: Integers
    position: Integers
    rows: Rows

    def spot(self, n: int) -> Spot:
        """Where entry n is."""
        return Spot(int(self.sequence[n]), int(self.position[n]))


class LogitMetrics:
    """Takes in logits chunk by chunk, in any order."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Integers, Integers, Rows]] = []

    def add(self, reference: Any, candidate: Any, next_ids: Any, *, sequence: int = 0, positions: Any = 0) -> None:
        """Logits [T, V] of both, of numpy or torch, and the ids [T] of the tokens that follow.

        `positions` [T] are the rows' in their sequence, or one number: that of the first, where they are neighbours.

        Raises:
            ValueError: shapes that do not fit, or an id beyond the vocabulary.
        """
        rows = measure(reference, candidate, next_ids)
        at = np.arange(len(rows)) + positions if isinstance(positions, int) else np.asarray(positions, np.int64)
        if at.shape != (len(rows),):
            raise ValueError(f"{at.shape} positions for {len(rows)} rows")
        self._pieces.append((np.full(len(rows), sequence), at, rows))

    def tokens(self) -> Tokens:
        """What was taken in so far, sorted. ValueError where a token came twice."""
        sequence = np.concatenate([_NONE, *(p[0] for p in self._pieces)])
        position = np.concatenate([_NONE, *(p[1] for p in self._pieces)])
        order = np.lexsort((position, sequence))
        sequence, position = sequence[order], position[order]
        if ((np.diff(sequence) == 0) & (np.diff(position) == 0)).any():
            raise ValueError("a token was given twice")
        rows = _columns(lambda name: _concatenated([getattr(p[2], name) for p in self._pieces])[order])
        return Tokens(sequence, position, rows)

    def failures(self) -> list[Failure]:
        """The first logit that is not finite on either side, and how many rows hold one."""
        found = self.tokens()
        out = []
        for side, bad in (("reference", found.rows.bad_reference), ("candidate", found.rows.bad_candidate)):
            at = np.flatnonzero(bad >= 0)
            if at.size:
                spot = found.spot(at[0])
                where = f"sequence {spot.sequence}, position {spot.position}, token {bad[at[0]]}"
                what = f"logits of the {side} are not finite at {at.size:,} of {len(bad):,} tokens; the first: {where}"
                out.append(Failure(None, None, what, "forward"))
        return out

    def kl(self) -> Floats:
        """The divergence of every token with finite logits, by place."""
        return _finite(self.tokens()).rows.kl

    def metrics(self) -> Metrics:
        """The figures over all tokens with finite logits."""
        return _metrics(_finite(self.tokens()))


def _finite(tokens: Tokens) -> Tokens:
    keep = (tokens.rows.bad_reference < 0) & (tokens.rows.bad_candidate < 0)
    rows = _columns(lambda name: getattr(tokens.rows, name)[keep])
    return Tokens(tokens.sequence[keep], tokens.position[keep], rows)


def _columns(column: Callable[[str], Any]) -> Rows:
    return Rows(*(column(name) for name in FIELDS))


def _concatenated(pieces: list[Any]) -> Any:
    return np.concatenate(pieces) if pieces else np.empty(0)


def _metrics(tokens: Tokens) -> Metrics:
    rows, n = tokens.rows, len(tokens.rows)
    if not n:
        return Metrics(0, 0)
    kl, same = rows.kl, (rows.top_reference == rows.top_candidate).astype(np.float64)
    median, p90, p99, p999 = (float(q) for q in np.quantile(kl, (0.5, 0.9, 0.99, 0.999)))
    worst, farthest = int(np.argmax(kl)), int(np.argmax(rows.difference))
    paired = rows.loss_candidate - rows.loss_reference
    ratio, ratio_error = _exp(_mean(paired)), _standard_error(tokens, paired)
    return Metrics(
        n, len(np.unique(tokens.sequence)),
        _mean(kl), _standard_error(tokens, kl), median, p90, p99, p999, float(kl[worst]), tokens.spot(worst),
        _mean(same), _standard_error(tokens, same), _mean((rows.rank < TOP).astype(np.float64)),
        _exp(_mean(rows.loss_reference)), _exp(_mean(rows.loss_candidate)),
        ratio, None if ratio_error is None else _capped(ratio * ratio_error),
        float(rows.difference[farthest]), tokens.spot(farthest), float((rows.highest - rows.lowest).max()),
        _first_difference(tokens),
    )  # fmt: skip


def _first_difference(tokens: Tokens) -> FirstDifference | None:
    rows = tokens.rows
    differing = np.flatnonzero(rows.top_reference != rows.top_candidate)
    if not differing.size:
        return None
    n = int(differing[0])
    spot = tokens.spot(n)
    return FirstDifference(
        spot.sequence, spot.position, int(rows.top_reference[n]), int(rows.top_candidate[n]), float(rows.margin[n])
    )


def _mean(x: Floats) -> float:
    return math.fsum(x) / len(x)


def _exp(x: float) -> float:
    """e^x, at most the largest float: JSON knows no infinity, and neither does a perplexity mean one."""
    return math.exp(x) if x < math.log(sys.float_info.max) else sys.float_info.max


def _capped(x: float) -> float:
    return min(x, sys.float_info.max)


def _standard_error(tokens: Tokens, x: Floats) -> float | None:
    """Of the mean of x, by batch means; None where there are no two blocks."""
    blocks = np.flatnonzero(np.diff(tokens.sequence, prepend=-1) | np.diff(tokens.position // BLOCK_TOKENS, prepend=-1))
    if len(blocks) < 2:
        return None
    mean, ends = _mean(x), [*blocks[1:], len(x)]
    deviations = [math.fsum(x[a:b] - mean) for a, b in zip(blocks, ends, strict=True)]
    scale = max(map(abs, deviations))
    if not scale:
        return 0.0
    squares = math.fsum((d / scale) ** 2 for d in deviations)
    return _capped(scale * math.sqrt(len(blocks) / (len(blocks) - 1) * squares) / len(x))
