"""Two checkpoints through the model together, layer by layer on the same tokens.

One layer of one of them is computed with while the next is read; a walk holds of both together what `weights` says of
one, a residual stream float32 [T, H] for each of up to five passes, and the logits of some rows.

The passes, which share the weights of their side:

* reference and candidate, each by itself;
* noise: the reference with every sum from its other end (`Arithmetic.reverse`), which is the floor under all figures;
* forced: the candidate with the reference's choice of experts, which leaves rounding and takes the flips away;
* own: each of the candidate's layers on the reference's residual stream and choice, so that what one layer does by
  itself shows apart from what it was handed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import torch

from ckpttool.checkpoint import Checkpoint
from ckpttool.errors import InputError, LimitError
from ckpttool.validator.attention import Batch
from ckpttool.validator.drift import Drift, DriftSum, drift, drift_sum
from ckpttool.validator.model import Arithmetic, Head, Layer, Pass, exact_products, layer_passes, unembed
from ckpttool.validator.routing import ExpertUse, Flips, Routing, expert_use, flips
from ckpttool.validator.weights import HEAD, Feed, ModelSource

Tensor = torch.Tensor

FP32_NBYTES: Final = 2_000_000_000
"""Where both checkpoints' weights take no more, products are made in float32 unless something else is asked for."""

LOGITS_AT_ONCE: Final = 1 << 25
GPU_LOGITS_AT_ONCE: Final = 1 << 27
"""Logits of one pass that are held at a time: 128 MB, on a GPU 512, since all of the head is read for each lot."""

NO_MEMORY: Final = ("DefaultCPUAllocator", "out of memory")
"""What torch says where there is none: "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"."""


@dataclass(frozen=True, eq=False)
class LogitChunk:
    """Logits float32 [n, V] of some rows of one sequence, on the device, and the ids [n] that follow, on the CPU.

    They are good while the consumer runs; nothing holds them afterwards.
    """

    sequence: int
    positions: Tensor
    next_ids: Tensor
    reference: Tensor
    candidate: Tensor
    noise: Tensor
    forced: Tensor | None


Consumer = Callable[[LogitChunk], None]
Progress = Callable[[int, int], None]
"""Layers of both that are done, and how many there are."""


@dataclass(frozen=True)
class LayerReport:
    """What one layer says. Drifts are of the residual stream behind it, from the reference's; see this module's passes.

    `flips` are the candidate's against the reference, `noise_flips` the noise's; None: not asked for.
    """

    layer: int
    drift: Drift
    noise: Drift
    forced: Drift | None
    own: Drift | None
    flips: Flips
    noise_flips: Flips
    reference: ExpertUse
    candidate: ExpertUse


@dataclass(frozen=True, eq=False)
class _LayerFound:
    """What makes a `LayerReport`, which may still be under way on a GPU; choices of experts by the pass they are of."""

    layer: int
    drift: DriftSum
    noise: DriftSum
    forced: DriftSum | None
    own: DriftSum | None
    by_reference: Routing
    by_noise: Routing
    by_candidate: Routing

    def report(self) -> LayerReport:
        """With all of it done."""
        return LayerReport(
            self.layer, self.drift.drift(), self.noise.drift(), None if self.forced is None else self.forced.drift(),
            None if self.own is None else self.own.drift(), flips(self.by_reference, self.by_candidate),
            flips(self.by_reference, self.by_noise), expert_use(self.by_reference), expert_use(self.by_candidate),
        )  # fmt: skip


@dataclass(frozen=True)
class LockstepReport:
    """What a walk found. `first_diverging`: the first of embed, layer.0, ..., head beyond noise (`drift.DIVERGES`).

    `numbers`: "FP32" (TF32 off) or "BF16", in which products are made. `read_nbytes` were read of both checkpoints.
    """

    tokens: int
    sequences: int
    device: str
    numbers: str
    embed: Drift
    layers: tuple[LayerReport, ...]
    logits: Drift
    logits_noise: Drift
    logits_forced: Drift | None
    first_diverging: str | None
    seconds: float
    read_nbytes: int
    peak_gpu_nbytes: int | None


def numbers_for(reference: Checkpoint, candidate: Checkpoint) -> torch.dtype:
    """Float32 for small models, where the code itself is on trial, else BF16."""
    small = max(reference.nbytes, candidate.nbytes) <= FP32_NBYTES
    return torch.float32 if small else torch.bfloat16


def lockstep(
    reference: Checkpoint, candidate: Checkpoint, sequences: Sequence[Sequence[int]], consume: Consumer,
    *, device: str = "cpu", numbers: torch.dtype | None = None, rows: Sequence[Sequence[int]] | None = None,
    forced: bool = True, own: bool = True, progress: Progress = lambda done, of: None,
) -> LockstepReport:  # fmt: skip
    """Walk both through `sequences` of token ids, and hand the logits of `rows` to `consume`.

    `rows` has for each sequence the positions whose logits are wanted, ascending; None: all that have a successor.
    Positions without one are not handed out.

    Raises:
        InputError: a checkpoint that cannot be computed, two that are not of one size, or a token without embedding.
        LimitError: the device's memory does not hold it.
        ValueError: no sequence, or an empty one.
    """
    where, began = torch.device(device), perf_counter()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    batch = Batch.of([list(s) for s in sequences])
    dtype = numbers or numbers_for(reference, candidate)
    try:
        with ModelSource(reference) as a, ModelSource(candidate) as b, exact_products(where):
            _require_comparable(a, b)
            with Feed(_order(a, b), where) as feed:
                walk = _Walk(a, b, batch, feed, dtype, forced, own)
                found = walk.report(consume, rows, progress)
                nbytes = feed.nbytes
    except (RuntimeError, MemoryError) as e:
        if not _is_lack_of_memory(e):
            raise
        hint = "give fewer --tokens" if where.type == "cpu" else "give fewer --tokens, or --device cpu"
        raise LimitError(f"{device} has too little memory for {len(batch.tokens):,} tokens", hint=hint) from e
    peak = torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
    return LockstepReport(
        len(batch.tokens), len(batch.lengths), device, "FP32" if dtype is torch.float32 else "BF16", *found,
        perf_counter() - began, nbytes, peak,
    )  # fmt: skip


def _is_lack_of_memory(error: BaseException) -> bool:
    """On a CPU, and where CUDA itself has none, torch raises RuntimeErrors that say so in words alone."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in told for words in NO_MEMORY)


def walk_nbytes(reference: Checkpoint, candidate: Checkpoint) -> tuple[int, ...]:
    """Bytes of both that a walk reads, layer by layer and then of the heads; nothing is read for it.

    Raises:
        InputError: as `lockstep`, for two that cannot be walked through.
    """
    with ModelSource(reference) as a, ModelSource(candidate) as b:
        _require_comparable(a, b)
        takes = (*range(a.settings.layers), HEAD)
        return tuple(sum(t.nbytes for source in (a, b) for t in source.stored(take)) for take in takes)


def _require_comparable(a: ModelSource, b: ModelSource) -> None:
    """Sizes that the two streams and the two choices share; other settings may differ, and show in what comes out."""
    sizes = ("layers", "hidden", "vocab", "experts")
    for name in set(a.settings.differing(b.settings)) & set(sizes):
        x, y = getattr(a.settings, name), getattr(b.settings, name)
        text = f"has {y} {name} and the reference has {x}"
        raise InputError(text, file=str(b.checkpoint.path), field=name, hint="these are two models")


def _order(a: ModelSource, b: ModelSource) -> list[tuple[ModelSource, int | str]]:
    layers = [(source, n) for n in range(a.settings.layers) for source in (a, b)]
    return [*layers, (a, HEAD), (b, HEAD)]


class _Walk:
    """The passes' residual streams, from the embedding to the logits."""

    def __init__(
        self, a: ModelSource, b: ModelSource, batch: Batch, feed: Feed, dtype: torch.dtype, forced: bool, own: bool
    ) -> None:
        self._a, self._b, self._batch, self._feed, self._dtype = a, b, batch, feed, dtype
        self._own = own
        self._reference = a.embed(batch.tokens).to(feed.device)
        self._candidate = b.embed(batch.tokens).to(feed.device)
        self._noise = self._reference
        self._forced = self._candidate if forced else None

    def report(
        self, consume: Consumer, rows: Sequence[Sequence[int]] | None, progress: Progress
    ) -> tuple[Drift, tuple[LayerReport, ...], Drift, Drift, Drift | None, str | None]:
        """The report's fields from `embed` to `first_diverging`."""
        embed = drift(self._reference, self._candidate)
        found = []
        for n in range(self._a.settings.layers):
            found.append(self._layer(n))
            progress(n + 1, self._a.settings.layers)
        layers = [x.report() for x in found]
        logits, noise, forced = self._logits(consume, _wanted(self._batch, rows))
        places = [("embed", embed, Drift(0.0, 0.0, 0)), *((f"layer.{x.layer}", x.drift, x.noise) for x in layers)]
        places.append(("head", logits, noise))
        first = next((name for name, found, floor in places if found.beyond(floor)), None)
        return embed, tuple(layers), logits, noise, forced, first

    def _layer(self, n: int) -> _LayerFound:
        """Both sides through layer `n`."""
        before = self._reference
        (self._reference, taken), (self._noise, astray) = self._passes(
            self._a, self._feed.layer(self._a, n), n, [Pass(before), Pass(self._noise, reverse=True)]
        )
        passes = [Pass(self._candidate)]
        passes += [Pass(self._forced, taken.experts)] if self._forced is not None else []
        passes += [Pass(before, taken.experts)] if self._own else []
        found = self._passes(self._b, self._feed.layer(self._b, n), n, passes)
        self._candidate, chosen = found[0]
        if self._forced is not None:
            self._forced = found[1][0]
        return _LayerFound(
            n,
            drift_sum(self._reference, self._candidate),
            drift_sum(self._reference, self._noise),
            None if self._forced is None else drift_sum(self._reference, self._forced),
            drift_sum(self._reference, found[-1][0]) if self._own else None,
            taken,
            astray,
            chosen,
        )

    def _passes(self, source: ModelSource, layer: Layer, n: int, passes: list[Pass]) -> list[tuple[Tensor, Routing]]:
        return layer_passes(passes, layer, n, source.settings, self._batch, self._dtype)

    def _logits(self, consume: Consumer, wanted: Tensor) -> tuple[Drift, Drift, Drift | None]:
        """Hand out the logits of the `wanted` rows; how far the passes' are from the reference's."""
        a, b = self._feed.head(self._a), self._feed.head(self._b)
        away, noise, forced = DriftSum(), DriftSum(), DriftSum()
        at_once = GPU_LOGITS_AT_ONCE if self._feed.device.type == "cuda" else LOGITS_AT_ONCE
        for some in _chunks(wanted, max(1, at_once // self._a.settings.vocab)):
            reference = self._unembed(self._a, a, self._reference, some)
            floor = self._unembed(self._a, a, self._noise, some, reverse=True)
            candidate = self._unembed(self._b, b, self._candidate, some)
            away.add(reference, candidate)
            noise.add(reference, floor)
            held = None
            if self._forced is not None:
                held = self._unembed(self._b, b, self._forced, some)
                forced.add(reference, held)
            for sequence, begin, end in _sequences(self._batch, some):
                rows = some[begin:end]
                consume(
                    LogitChunk(
                        sequence, self._batch.positions[rows], self._batch.tokens[rows + 1], reference[begin:end],
                        candidate[begin:end], floor[begin:end], None if held is None else held[begin:end],
                    )
                )  # fmt: skip
        return away.drift(), noise.drift(), None if self._forced is None else forced.drift()

    def _unembed(self, source: ModelSource, head: Head, x: Tensor, rows: Tensor, reverse: bool = False) -> Tensor:
        return unembed(x[rows.to(x.device)], head, source.settings, Arithmetic(self._dtype, reverse))


def _wanted(batch: Batch, rows: Sequence[Sequence[int]] | None) -> Tensor:
    """The rows [T] whose logits are handed out, ascending."""
    if rows is None:
        rows = [range(n - 1) for n in batch.lengths]
    flat = [
        start + r
        for (start, stop), own in zip(batch.spans, rows, strict=True)
        for r in own
        if 0 <= r < stop - start - 1
    ]
    return torch.tensor(flat, dtype=torch.int64)


def _sequences(batch: Batch, rows: Tensor) -> list[tuple[int, int, int]]:
    """(sequence, begin, end): which of `rows`, ascending, are of one sequence."""
    begins = torch.tensor([start for start, _ in batch.spans])
    ids, counts = torch.unique_consecutive(torch.searchsorted(begins, rows, right=True) - 1, return_counts=True)
    out, at = [], 0
    for sequence, count in zip(ids.tolist(), counts.tolist(), strict=True):
        out.append((sequence, at, at + count))
        at += count
    return out


def _chunks(rows: Tensor, count: int) -> list[Tensor]:
    return [rows[at : at + count] for at in range(0, len(rows), count)]
