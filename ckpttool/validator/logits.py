"""What two models' logits at one place say of each other: KL divergence, likelihoods, the places of tokens.

A row is the logits of one place, over the whole vocabulary. It is measured in float64, and so that neither its
neighbours nor its place in a chunk can move a bit of the result: on the CPU by numpy, whose sums over the last axis and
functions of elements know no neighbours; on a GPU by torch, in blocks of a shape that only the vocabulary decides.

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

BLOCK_ELEMENTS: Final = 1 << 22
"""Logits of a block on a GPU: 32 MiB in float64, of which some ten are alive at once."""
BLOCK_ROWS: Final = 64

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
    blocks = _cuda_blocks if getattr(reference, "is_cuda", False) else _cpu_blocks
    found = [_block(xp, a, b, t) for xp, a, b, t in blocks(reference, candidate, ids)]
    columns = [_joined([block[n] for block in found], len(ids)) for n in range(len(FIELDS))]
    return Rows(*columns)


def _joined(pieces: list[Any], count: int) -> Any:
    """The pieces of a column as one numpy array; the last block's padding falls off."""
    if not pieces:
        return np.empty(0)
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    import torch

    return torch.cat(pieces)[:count].cpu().numpy()


def _cpu_blocks(reference: Any, candidate: Any, ids: Integers) -> Iterator[tuple[Any, Any, Any, Any]]:
    """A few rows at a time, as numpy, which adds up each row of a C-ordered array by itself."""
    rows = [x if isinstance(x, np.ndarray) else x.detach().float().numpy() for x in (reference, candidate)]
    step = max(1, CPU_ELEMENTS // reference.shape[1])
    for start in range(0, len(ids), step):
        a, b = (x[start : start + step].astype(np.float64, order="C") for x in rows)
        yield np, a, b, ids[start : start + step]


def _cuda_blocks(reference: Any, candidate: Any, ids: Integers) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Blocks of always the same shape, the last filled up with zeros: a reduction's order depends on the shape."""
    import torch

    vocabulary = reference.shape[1]
    rows = min(BLOCK_ROWS, max(1, BLOCK_ELEMENTS // vocabulary))
    targets = torch.from_numpy(ids).to(reference.device)
    for start in range(0, len(ids), rows):
        a, b = (torch.zeros((rows, vocabulary), dtype=torch.float64, device=reference.device) for _ in range(2))
        t = torch.zeros(rows, dtype=torch.int64, device=reference.device)
        n = min(rows, len(ids) - start)
        a[:n], b[:n], t[:n] = reference[start : start + n], candidate[start : start + n], targets[start : start + n]
        yield torch, a, b, t


def _block(xp: Any, a: Any, b: Any, ids: Any) -> tuple[Any, ...]:
    """The figures of a block, in the order of `Rows`: a, b [R, V] in float64, `xp` numpy or torch, which owns them."""
    bad_a, a = _first_bad(xp, a)
    bad_b, b = _first_bad(xp, b)
    each = xp.arange(a.shape[0]) if xp is np else xp.arange(a.shape[0], device=a.device)
    top_a, top_b = xp.argmax(a, axis=-1), xp.argmax(b, axis=-1)
    highest = a[each, top_a]
    log_p, log_q = _log_softmax(xp, a), _log_softmax(xp, b)
    return (
        _divergence(xp, log_p, log_q), -log_p[each, ids], -log_q[each, ids], top_a, top_b,
        _rank(xp, b, top_a, each), highest - a[each, top_b],
        xp.amax(xp.abs(a - b), axis=-1), xp.amin(a, axis=-1), highest, bad_a, bad_b,
    )  # fmt: skip


def _first_bad(xp: Any, x: Any) -> tuple[Any, Any]:
    """The first entry of each row that is not finite, or -1; and the rows with zeros there, so that all can go on."""
    bad = ~xp.isfinite(x)
    if not bad.any():
        none = xp.zeros_like(x[:, 0]) - 1
        return _integers(none), x
    first = xp.argmax(_integers(bad), axis=-1)
    return xp.where(xp.any(bad, axis=-1), first, -1), xp.where(bad, 0.0, x)


def _integers(x: Any) -> Any:
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x.long()


def _log_softmax(xp: Any, x: Any) -> Any:
    shifted = x - xp.amax(x, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def _divergence(xp: Any, log_p: Any, log_q: Any) -> Any:
    """KL(p || q) of each row; e^w would overflow where q is far above p, so there the term is written q - p - p w."""
    w = log_q - log_p
    p = xp.exp(log_p)
    near = xp.abs(w) <= 1
    clipped = xp.where(near, w, 0.0)
    terms = xp.where(near, p * (xp.expm1(clipped) - clipped), xp.exp(log_q) - p - p * w)
    return xp.sum(terms, axis=-1)


def _rank(xp: Any, b: Any, token: Any, each: Any) -> Any:
    """How many tokens come before `token` in each row of b; of equals the lower id comes first."""
    own = b[each, token][:, None]
    ids = xp.arange(b.shape[1]) if xp is np else xp.arange(b.shape[1], device=b.device)
    before = (b > own) | ((b == own) & (ids < token[:, None]))
    return xp.sum(before, axis=-1)
