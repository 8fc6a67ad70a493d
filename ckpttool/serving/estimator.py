"""Will it fit: the memory that serving a checkpoint takes, which GPUs hold it, and how fast they could be at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpttool.archs.facts import ModelFacts, facts_of
from ckpttool.archs.layers import UNNAMED
from ckpttool.archs.purposes import purposes_of
from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.errors import UsageError
from ckpttool.parameters import count_parameters, uses_of
from ckpttool.serving import commands as serving
from ckpttool.serving import kvcache, overhead
from ckpttool.serving.cards import Card, card, usual_cards
from ckpttool.serving.pricing import NATIVE, PRICES, Weights, weigh

DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class GpuEstimate:
    """One GPU: whether it holds the checkpoint at the asked context and batch, and what it could do.

    `memory_bytes` is what the card's driver reports, `usable_bytes` the share that is asked for. `largest_context`:
    tokens for each of the batch's sequences, 0 where not even the weights fit. The ceilings are tokens a second of one
    sequence, by bandwidth alone; None where bandwidth or active parameters are unknown.
    """

    gpu: str
    card: str | None
    memory_bytes: int
    usable_bytes: int
    fits: bool
    largest_context: int
    tokens_per_second: float | None
    tokens_per_second_bf16: float | None


@dataclass(frozen=True)
class FormEstimate:
    """The weights in one resident form, and the smallest size of GPU that holds them with the asked context and batch.

    `overhead_bytes` is that form's: what the runtime adds on one GPU.
    """

    form: str
    runtime: str
    weights_bytes: int
    overhead_bytes: int
    total_bytes: int
    smallest_gpu: str | None


@dataclass(frozen=True)
class BytesPerToken:
    """Bytes read to decode one token of one sequence: active weights, and the cache at the asked context."""

    weights: int | None
    weights_bf16: int | None
    kv_cache: int


@dataclass(frozen=True)
class Estimate:
    """The memory to serve a checkpoint. All amounts are bytes, of all GPUs together but for `per_gpu_bytes`.

    `form` is "native" or what --as asked for. `scales_bytes` are scales beside `weights_bytes`, `scales_within_bytes`
    scales that are part of them. `speculation_bytes`, of layers that only guess tokens ahead (MTP), are in no other
    amount: serving leaves them out. `fits` tells for each GPU whether `per_gpu_bytes` are within its usable memory.
    """

    schema: str
    source: str
    family: str | None
    form: str
    form_words: str
    parameters: int
    active_parameters: int | None
    context: int
    model_context: int | None
    batch: int
    kv_cache_dtype: str
    tp: int
    gpu_memory_utilization: float
    weights_bytes: int
    scales_bytes: int
    scales_within_bytes: int
    speculation_bytes: int
    kv_cache_bytes: int
    kv_cache_bytes_naive: int
    overhead_bytes: int
    overhead_rule: tuple[str, ...]
    total_bytes: int
    per_gpu_bytes: int
    fits: Mapping[str, bool]
    gpus: tuple[GpuEstimate, ...]
    forms: tuple[FormEstimate, ...]
    bytes_per_token: BytesPerToken
    notes: tuple[str, ...]
    advice: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What to price: the options of the command."""

    context: int
    batch: int = 1
    kv_cache_dtype: str = "fp16"
    tp: int = 1
    utilization: float = 0.9
    form: str = NATIVE


def estimate(
    source: str | Path,
    *,
    context: int | None = None,
    batch: int = 1,
    kv_cache_dtype: str = "fp16",
    tp: int = 1,
    gpu_memory_utilization: float = 0.9,
    gpu: str | None = None,
    form: str | None = None,
) -> Estimate:
    """Estimate what serving the checkpoint at `source` takes; `form` prices it as another format ("bf16", "int4" ...).

    `context` is in tokens, by default the model's own up to 8192; `gpu` a name or a size, by default every usual size.

    Raises:
        InputError: nothing recognisable there, or its side files do not say what the cache follows from.
        UsageError: an option that is out of range or contradicts the model.
    """
    checkpoint = open_checkpoint(source)
    facts = facts_of(checkpoint)
    if context is None:
        context = default_context(facts)
    asked = Asked(context, batch, kv_cache_dtype, tp, gpu_memory_utilization, form or NATIVE)
    return estimate_opened(checkpoint, str(source), facts, asked, (card(gpu),) if gpu is not None else usual_cards())


def default_context(facts: ModelFacts) -> int:
    """Tokens a sequence where nothing is asked for."""
    return min(facts.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _check(asked: Asked, facts: ModelFacts) -> None:
    """UsageError for what no runtime would take."""
    if asked.form != NATIVE and asked.form not in PRICES:
        raise UsageError(f"{asked.form!r} is no format to price", hint=f"one of {', '.join(PRICES)}")
    if asked.kv_cache_dtype not in kvcache.ELEMENT_NBYTES:
        raise UsageError(f"{asked.kv_cache_dtype!r} is no dtype of a KV cache here", hint="fp16 or fp8")
    if min(asked.context, asked.batch, asked.tp) < 1 or not 0 < asked.utilization <= 1:
        text = "context, batch and tp are at least 1, the memory utilization is above 0 and at most 1"
        raise UsageError(text, hint="ckpttool estimate --help shows the defaults")
    if facts.context is not None and asked.context > facts.context:
        text = f"a context of {asked.context:,} tokens is more than the model's {facts.context:,}"
        raise UsageError(text, hint=f"--context {facts.context} is its largest")
    if facts.heads and facts.heads % asked.tp:
        legal = ", ".join(str(n) for n in range(1, min(facts.heads, 64) + 1) if facts.heads % n == 0)
        raise UsageError(f"{facts.heads} heads cannot be split over {asked.tp} GPUs", hint=f"--tp one of {legal}")


def estimate_opened(
    checkpoint: Checkpoint, source: str, facts: ModelFacts, asked: Asked, cards: tuple[Card, ...]
) -> Estimate:
    """The same of an opened checkpoint, whose `facts` are known; `source` is what the user called it."""
    kvcache.require(facts, source)
    _check(asked, facts)
    purposes = purposes_of(checkpoint, facts.layers)
    counts = count_parameters(checkpoint, facts, purposes)
    uses = uses_of(checkpoint.weights, facts, purposes)
    weights = weigh(checkpoint, purposes, uses, asked.form)
    wide = weigh(checkpoint, purposes, uses, "bf16")
    need = _Need(facts, asked, weights)
    rows = tuple(_gpu(c, need, weights, wide) for c in cards)
    context = asked.context
    plan = serving.plan(checkpoint, source, cards, need.holds, need.most, asked)
    return Estimate(
        schema="estimate.v1",
        source=str(checkpoint.path),
        family=facts.family or facts.model_type,
        form=asked.form,
        form_words=weights.words,
        parameters=counts.total,
        active_parameters=counts.active,
        context=context,
        model_context=facts.context,
        batch=asked.batch,
        kv_cache_dtype=asked.kv_cache_dtype,
        tp=asked.tp,
        gpu_memory_utilization=asked.utilization,
        weights_bytes=weights.nbytes,
        scales_bytes=weights.scales_bytes,
        scales_within_bytes=weights.scales_within_bytes,
        speculation_bytes=weights.speculation_bytes,
        kv_cache_bytes=need.kv,
        kv_cache_bytes_naive=asked.batch * kvcache.naive_kv_bytes(facts, context, asked.kv_cache_dtype),
        overhead_bytes=need.overhead(asked.tp),
        overhead_rule=overhead.rule(facts, weights.mxfp4_expert_bytes, asked.batch),
        total_bytes=need.total,
        per_gpu_bytes=need.per_gpu(asked.tp, context),
        fits={row.gpu: row.fits for row in rows},
        gpus=rows,
        forms=_forms(facts, weights, wide, asked, need.kv),
        bytes_per_token=BytesPerToken(
            weights.per_token, wide.per_token, kvcache.kv_bytes(facts, context, asked.kv_cache_dtype)
        ),
        notes=(*_notes(checkpoint, facts, counts.active), *([plan.note] if plan.note else [])),
        advice=plan.advice,
        commands=plan.commands,
    )


@dataclass(frozen=True)
class _Need:
    """How much memory `weights` with what is asked take, on how many GPUs."""

    facts: ModelFacts
    asked: Asked
    weights: Weights

    @property
    def kv(self) -> int:
        """Bytes of the whole cache, once."""
        return self.asked.batch * kvcache.kv_bytes(self.facts, self.asked.context, self.asked.kv_cache_dtype)

    def overhead(self, tp: int) -> int:
        return overhead.nbytes(self.facts, self.weights.mxfp4_expert_bytes, self.asked.batch, tp)

    @property
    def total(self) -> int:
        """Of all GPUs; a cache that every GPU keeps whole counts once for each."""
        copies = kvcache.gpu_share(self.facts, self.asked.tp) * self.asked.tp
        return self.weights.all_bytes + round(self.kv * copies) + self.overhead(self.asked.tp)

    def fixed(self, tp: int) -> int:
        """On each of `tp` GPUs, without the cache."""
        return -(-(self.weights.all_bytes + self.overhead(tp)) // tp)

    def per_gpu(self, tp: int, context: int) -> int:
        kv = self.asked.batch * kvcache.kv_bytes(self.facts, context, self.asked.kv_cache_dtype)
        return self.fixed(tp) + round(kv * kvcache.gpu_share(self.facts, tp))

    def usable(self, c: Card) -> int:
        return int(c.memory * self.asked.utilization)

    def holds(self, c: Card, tp: int) -> bool:
        """Whether `tp` of this card hold it as asked; never where the heads cannot be split so."""
        return not (self.facts.heads or tp) % tp and self.per_gpu(tp, self.asked.context) <= self.usable(c)

    def most(self, c: Card, tp: int) -> int:
        """The largest context on `tp` of this card."""
        share = kvcache.gpu_share(self.facts, tp)
        room = self.usable(c) - self.fixed(tp)
        return kvcache.largest_context(self.facts, room, self.asked.batch, self.asked.kv_cache_dtype, share)


def _gpu(c: Card, need: _Need, weights: Weights, wide: Weights) -> GpuEstimate:
    tp = need.asked.tp

    def ceiling(nbytes: int | None) -> float | None:
        return round(c.bandwidth * tp / nbytes, 1) if c.bandwidth and nbytes else None

    fits, most = need.holds(c, tp), need.most(c, tp)
    return GpuEstimate(
        c.label, c.name, c.memory, need.usable(c), fits, most, ceiling(weights.per_token), ceiling(wide.per_token)
    )


def _forms(facts: ModelFacts, native: Weights, wide: Weights, asked: Asked, kv: int) -> tuple[FormEstimate, ...]:
    """The checkpoint as each runtime keeps it on one GPU."""
    rows = [(asked.form, "vLLM", native, overhead.nbytes(facts, native.mxfp4_expert_bytes, asked.batch, 1))]
    if asked.form == NATIVE:
        rows.append((NATIVE, "llama.cpp", native, overhead.LLAMA_CPP))
    if asked.form != "bf16":
        rows.append(("bf16", "dequantized", wide, overhead.nbytes(facts, 0, asked.batch, 1)))
    out = []
    for form, runtime, weights, extra in rows:
        total = weights.all_bytes + kv + extra
        share = 1.0 if runtime == "llama.cpp" else asked.utilization
        smallest = next((c.label for c in usual_cards() if total <= c.memory * share), None)
        out.append(FormEstimate(form, runtime, weights.all_bytes, extra, total, smallest))
    return tuple(out)


def _notes(checkpoint: Checkpoint, facts: ModelFacts, active: int | None) -> tuple[str, ...]:
    """What makes the figures less certain."""
    notes = []
    if checkpoint.damage:
        notes.append(f"{len(checkpoint.damage):,} problems with this checkpoint: ckpttool inspect lists them")
    odd = sorted(set(facts.attention or ()) - {"full", "sliding", "chunked", "mla", "compressed"})
    if odd:
        notes.append(f"{', '.join(odd)} layers are priced as full attention, which is more than they take")
    if facts.said.get("attention") == UNNAMED:
        window = f"a window of {facts.sliding_window or 0:,} tokens is stated"
        notes.append(f"{window}, but not which layers have it: all are priced as full attention")
    if active is None:
        notes.append("which weights are experts is not known for this architecture, so nothing is said of speed")
    return tuple(notes)


def summary_lines(report: Estimate) -> tuple[str, str]:
    """The two lines that say it: what it takes, and which GPUs hold it."""
    from ckpttool.units import size

    held = [f"{g.gpu} GB" if g.gpu.isdigit() else g.gpu for g in report.gpus if g.fits]
    takes = (
        f"{size(report.total_bytes)} to serve: weights {size(report.weights_bytes + report.scales_bytes)}, KV cache "
        f"{size(report.kv_cache_bytes)} ({report.batch:,} x {report.context:,} tokens), "
        f"overhead {size(report.overhead_bytes)}"
    )
    return takes, f"held by: {', '.join(held) or 'none of the GPUs asked about'}" + (
        f" (each of {report.tp})" if report.tp > 1 else ""
    )
