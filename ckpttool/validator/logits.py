"""What two models' logits at one place say of each other: KL divergence, likelihoods, the places of tokens.

A row is the logits of one place, over the whole vocabulary. It is measured in float64, and so that neither its
neighbours nor its place in a chunk can move a bit of the result: on the CPU by numpy, whose sums over the last axis and
functions of elements know no neighbours; on a GPU by a kernel that has a program for each row (`logit_kernel`).

With p, q the probabilities of reference and candidate and w = log q - log p, the divergence of a row is summed as

    KL = sum of p (e^w - 1 - w)        which is sum of p log(p / q), since both sum to one

whose every term is >= 0, so that nothing cancels: where logits differ by little, sum of p log(p / q) is a small
difference of large numbers, and this is not. If d is the error of w (some 2^-53 of the largest logit that counts), that
of KL is below d sqrt(2 KL) + d^2: a divergence of 1e-12 still has nine digits right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CPU_ELEMENTS: Final = 1 << 16
"""Logits of a block on the CPU, whose arrays then stay in the caches."""


@dataclass(frozen=True)
class Rows:
    """Figures of some rows, an entry each.

    `kl` is in nats, `loss_*` the negative log-likelihood of the next token. `top_*` are the most probable tokens, of
    equals the lowest id; `rank` counts the tokens that the candidate puts before the reference's, `margin` is by how
    much the reference's logit of its own lies above that of the candidate's. `difference` is the largest |a - b| of two
    logits, `lowest` and `highest` are the reference's. `bad_*` is the first token whose logit is not finite, or -1: the
    other figures of such a row mean nothing.
    """

    kl: Floats
    loss_reference: Floats
    loss_candidate: Floats
    top_reference: Integers
    top_candidate: Integers
    rank: Integers
    margin: Floats
    difference: Floats
    lowest: Floats
    highest: Floats
    bad_reference: Integers
    bad_candidate: Integers

    def __len__(self) -> int:
        return len(self.kl)


FIELDS: Final = tuple(Rows.__dataclass_fields__)
_NO_ROWS: Final = Rows(*[np.empty(0, np.int64)] * len(FIELDS))  # type: ignore[arg-type]


def measure(reference: Any, candidate: Any, next_ids: Any) -> Rows:
    """The figures of each row: logits [T, V] of both and the ids [T] that follow, numpy's or torch's on one device.

    Raises:
        ValueError: other shapes, or an id that is not below V.
    """
    if reference.ndim != 2 or tuple(reference.shape) != tuple(candidate.shape) or not reference.shape[1]:
        raise ValueError(f"logits of {tuple(reference.shape)} and {tuple(candidate.shape)}, not twice [T, V]")
    ids = np.asarray(next_ids.cpu() if hasattr(next_ids, "cpu") else next_ids, np.int64)
    if ids.shape != (reference.shape[0],) or (ids.size and not 0 <= ids.min() <= ids.max() < reference.shape[1]):
        raise ValueError(f"ids of {ids.shape} for logits of {tuple(reference.shape)}, or one beyond the vocabulary")
    if getattr(reference, "is_cuda", False):
        from ckpttool.validator.logit_kernel import measured

        return Rows(*measured(reference, candidate, ids))
    found = [_block(a, b, t) for a, b, t in _cpu_blocks(reference, candidate, ids)]
    columns: list[Any] = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Rows(*columns) if columns else _NO_ROWS


def _cpu_blocks(reference: Any, candidate: Any, ids: Integers) -> Iterator[tuple[Floats, Floats, Integers]]:
    """A few rows at a time, as numpy, which adds up each row of a C-ordered array by itself."""
    rows = [x if isinstance(x, np.ndarray) else x.detach().float().numpy() for x in (reference, candidate)]
    step = max(1, CPU_ELEMENTS // reference.shape[1])
    for start in range(0, len(ids), step):
        a, b = (x[start : start + step].astype(np.float64, order="C") for x in rows)
        yield a, b, ids[start : start + step]


def _block(a: Floats, b: Floats, ids: Integers) -> tuple[Any, ...]:
    """The figures of a block, in the order of `Rows`, of a and b [R, V]."""
    bad_a, a = _first_bad(a)
    bad_b, b = _first_bad(b)
    each = np.arange(len(a))
    top_a, top_b = np.argmax(a, axis=-1), np.argmax(b, axis=-1)
    highest = a[each, top_a]
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return (
        _divergence(log_p, log_q), -log_p[each, ids], -log_q[each, ids], top_a, top_b,
        _rank(b, top_a, each), highest - a[each, top_b],
        np.amax(np.abs(a - b), axis=-1), np.amin(a, axis=-1), highest, bad_a, bad_b,
    )  # fmt: skip


def _first_bad(x: Floats) -> tuple[Integers, Floats]:
    """The first entry of each row that is not finite, or -1; and the rows with zeros there, so that all can go on."""
    bad = ~np.isfinite(x)
    if not bad.any():
        return np.full(len(x), -1), x
    return np.where(bad.any(axis=-1), bad.argmax(axis=-1), -1), np.where(bad, 0.0, x)


def _log_softmax(x: Floats) -> Any:
    shifted = x - np.amax(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def _divergence(log_p: Floats, log_q: Floats) -> Any:
    """KL(p || q) of each row; e^w would overflow where q is far above p, so there the term is written q - p - p w."""
    w = log_q - log_p
    p = np.exp(log_p)
    near = np.abs(w) <= 1
    clipped = np.where(near, w, 0.0)
    terms = np.where(near, p * (np.expm1(clipped) - clipped), np.exp(log_q) - p - p * w)
    return np.sum(terms, axis=-1)


def _rank(b: Floats, token: Integers, each: Integers) -> Any:
    """How many tokens come before `token` in each row of b; of equals the lower id comes first."""
    own = b[each, token][:, None]
    before = (b > own) | ((b == own) & (np.arange(b.shape[1]) < token[:, None]))
    return np.sum(before, axis=-1)
