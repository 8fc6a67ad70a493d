"""Which experts the tokens of a text go to, and what that says of two models.

Shapes: T tokens, E experts, k experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Routing:
    """A layer's choice: `experts` int64 [T, k], best first; `weights` float32 [T, k]; all `logits` float32 [T, E]."""

    experts: Tensor
    weights: Tensor
    logits: Tensor


def route(logits: Tensor, k: int, forced: Tensor | None = None) -> Routing:
    """The best k experts by `logits` [T, E], or those that are `forced` [T, k]; softmax over the chosen ones alone.

    Forced are the experts and not their weights: these change smoothly with rounding, and only a choice can flip.
    """
    experts = logits.topk(k, -1).indices if forced is None else forced
    return Routing(experts, logits.gather(-1, experts).softmax(-1), logits)


@dataclass(frozen=True)
class Assignment:
    """A routing by expert: `slots` int64 [T * k] are places in [T, k], expert by expert, `counts` of them for each."""

    slots: Tensor
    counts: tuple[int, ...]


def by_expert(routing: Routing) -> Assignment:
    """The tokens' places expert by expert, in the order of tokens."""
    flat = routing.experts.flatten()
    counts = torch.bincount(flat, minlength=routing.logits.shape[-1])
    return Assignment(flat.argsort(stable=True), tuple(counts.tolist()))


@dataclass(frozen=True)
class ExpertUse:
    """How a layer's experts are used on a text.

    `tokens` for each expert; `entropy` of that distribution in bits (log2 E: all alike), and `balance`, the busiest
    expert's share times E (1: all alike). `router_entropy` is that of softmax over all E, in bits, mean over tokens;
    None: a logit of the router is not finite.
    """

    tokens: tuple[int, ...]
    unused: tuple[int, ...]
    entropy: float
    balance: float
    router_entropy: float | None


def expert_use(routing: Routing) -> ExpertUse:
    """The statistics of one layer."""
    counts = torch.bincount(routing.experts.flatten(), minlength=routing.logits.shape[-1]).cpu()
    share = counts.double() / counts.sum()
    p = routing.logits.double().softmax(-1)
    router = torch.special.entr(p).sum(-1).mean() / torch.tensor(2.0, dtype=torch.float64).log()
    tokens = tuple(int(n) for n in counts.tolist())
    return ExpertUse(
        tokens,
        tuple(e for e, n in enumerate(tokens) if not n),
        float(-(share * share.clamp_min(1e-300).log2()).sum()),
        float(share.max() * len(tokens)),
        float(router) if router.isfinite() else None,
    )


@dataclass(frozen=True)
class Flips:
    """Where two routings of the same text differ: tokens whose set of experts does, and choices that are not shared."""

    tokens: int
    choices: int


def flips(a: Routing, b: Routing) -> Flips:
    """What `b` chose otherwise than `a`; the order within a token's choice does not count."""
    shared = (a.experts[:, :, None] == b.experts[:, None, :]).any(-1).sum(-1)
    missing = a.experts.shape[1] - shared
    return Flips(int((missing > 0).sum()), int(missing.sum()))
