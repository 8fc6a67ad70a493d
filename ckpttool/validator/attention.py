"""Attention with sinks: rotary embedding, grouped heads, sliding windows, in blocks of queries.

Shapes: T tokens of a batch, one sequence after the other; N query heads, K key heads, G = N / K, D a head's width.
Source: gpt_oss/torch/model.py (OpenAI), modeling_gpt_oss.py and modeling_rope_utils.py (transformers 5.23).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ckpttool.validator.settings import Rope

Tensor = torch.Tensor

SCORES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Scores that are held at a time, 4 bytes each and twice: small enough for a CPU's cache, large enough for a GPU."""


@dataclass(frozen=True)
class Batch:
    """Sequences of tokens, one after the other without padding: `tokens` int64 [T], `lengths` sum up to T."""

    tokens: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: list[list[int]]) -> Batch:
        """A batch of lists of ids. ValueError for an empty sequence, or none."""
        if not sequences or not all(sequences):
            raise ValueError("a batch needs sequences, and each of them a token")
        flat = [token for s in sequences for token in s]
        return cls(torch.tensor(flat, dtype=torch.int64), tuple(map(len, sequences)))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each sequence."""
        out, at = [], 0
        for n in self.lengths:
            out.append((at, at + n))
            at += n
        return tuple(out)

    @cached_property
    def positions(self) -> Tensor:
        """int64 [T]: each token's place in its sequence."""
        return torch.cat([torch.arange(n) for n in self.lengths])


def frequencies(rope: Rope, dim: int) -> tuple[Tensor, float]:
    """float32 [dim / 2] radians a token, and the factor of cos and sin.

    In float32 throughout, as the references do it: far into a text, another rounding of a frequency is another angle.
    """
    whole = rope.theta ** (torch.arange(0, dim, 2).to(torch.float32) / dim)
    if rope.type == "default":
        return 1.0 / whole, 1.0
    if rope.type == "linear":
        return 1.0 / whole / rope.factor, 1.0

    def turning(turns: float) -> float:
        """The pair of dimensions that turns so often within the original context."""
        return dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = turning(rope.beta_fast), turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inverse = 1.0 / (rope.factor * whole) * (1 - kept) + 1.0 / whole * kept
    if rope.concentration is not None:
        return inverse, rope.concentration
    return inverse, 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0


def rotation(rope: Rope, dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, 1, dim / 2], on the device of `positions`."""
    inverse, factor = frequencies(rope, dim)
    angles = positions.to(torch.float32)[:, None] * inverse.to(positions.device)
    return (angles.cos() * factor)[:, None], (angles.sin() * factor)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [T, heads, D] turned, halves against each other."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, spans: tuple[tuple[int, int], ...], window: int | None,
    *, at_once: int | None = None, reverse: bool = False,
) -> Tensor:  # fmt: skip
    """What each token takes from itself and those before it: [T, N * D] of q [T, N, D], k and v [T, K, D], float32.

    A sink [N] adds to the softmax's denominator and to nothing else. With a `window`, a token sees that many, itself
    included. At most `at_once` scores (and one query's) are held at a time. `reverse`: sums from their other end.
    """
    out = torch.empty_like(q)
    limit = at_once or SCORES_AT_ONCE["cuda" if q.is_cuda else "cpu"]
    if reverse:
        q, k = q.flip(-1), k.flip(-1)
    for start, stop in spans:
        widest = stop - start if window is None else min(stop - start, window)
        at = start
        while at < stop:
            # A windowed block of n queries sees n - 1 keys more than one query does.
            count = max(1, limit // (q.shape[1] * widest)) if window is None else _windowed(limit // q.shape[1], widest)
            end = min(stop, at + count)
            first = start if window is None else max(start, at - window + 1)
            out[at:end] = _block(q[at:end], k[first:end], v[first:end], sinks, at - first, window, reverse)
            at = end
    return out.flatten(1)


def _windowed(limit: int, window: int) -> int:
    """The most queries n with n * (n + window) scores within `limit`; at least 1."""
    return max(1, int((math.sqrt(window * window + 4 * limit) - window) / 2))


def _block(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, ahead: int, window: int | None, reverse: bool) -> Tensor:
    """[n, N, D] for n queries on m keys; the first query is key number `ahead`."""
    n, heads, dim = q.shape
    m, groups = k.shape[0], heads // k.shape[1]
    scores = q.view(n, -1, groups, dim).permute(1, 2, 0, 3).reshape(-1, groups * n, dim) @ k.permute(1, 2, 0)
    scores = scores.view(heads, n, m).mul_(dim**-0.5)
    age = torch.arange(n, device=q.device)[:, None] + ahead - torch.arange(m, device=q.device)
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    scores.masked_fill_(hidden, -math.inf)
    sink = sinks.view(heads, 1, 1)
    most = torch.maximum(scores.amax(-1, keepdim=True), sink)
    weights = scores.sub_(most).exp_()
    if reverse:
        weights, v = weights.flip(-1), v.flip(0)
    total = weights.sum(-1, keepdim=True) + (sink - most).exp()
    taken = weights.view(-1, groups * n, m) @ v.transpose(0, 1)
    return (taken.view(heads, n, dim) / total).transpose(0, 1)
