"""The forward pass of one checkpoint, by the validator's own functions; and texts for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ckpttool.checkpoint import open_checkpoint
from ckpttool.validator.attention import Batch
from ckpttool.validator.model import Arithmetic, exact_products, layer_forward, unembed
from ckpttool.validator.routing import Routing
from ckpttool.validator.settings import Settings
from ckpttool.validator.weights import HEAD, Feed, ModelSource

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny-gpt-oss"

FP32 = Arithmetic(torch.float32)


def heldout(count: int, start: int = 0) -> list[int]:
    """Tokens of the fixture's held-out text."""
    tokenizer = Tokenizer.from_file(str(TINY / "hf" / "tokenizer.json"))
    ids: list[int] = tokenizer.encode((FIXTURES / "heldout.txt").read_text("utf-8"), add_special_tokens=False).ids
    return ids[start : start + count]


def forward(
    path: Path,
    sequences: list[list[int]],
    arithmetic: Arithmetic = FP32,
    *,
    device: str = "cpu",
    change: Callable[[Settings], Settings] = lambda s: s,
    forced: list[Routing] | None = None,
) -> tuple[torch.Tensor, list[Routing]]:
    """Logits [T, V] of all tokens on the CPU, and each layer's routing. `forced` are the experts of another run."""
    where, batch = torch.device(device), Batch.of(sequences)
    taken: list[Routing] = []
    with ModelSource(open_checkpoint(path)) as source, exact_products(where):
        settings = change(source.settings)
        order = [*((source, n) for n in range(settings.layers)), (source, HEAD)]
        with Feed(order, where) as feed:
            x = source.embed(batch.tokens).to(where)
            for n in range(settings.layers):
                held = forced[n].experts if forced else None
                x, routing = layer_forward(x, feed.layer(source, n), n, settings, batch, arithmetic, routing=held)
                taken.append(routing)
            return unembed(x, feed.head(source), settings, arithmetic).cpu(), taken


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the range of the expected logits."""
    return float((got - expected).abs().max() / (expected.max() - expected.min()))
