"""Validations to make pages of: sizes and names of gpt-oss, figures made up by a seeded generator.

In `failed` two experts are wrong on purpose: of down, expert 97 of layer 5 and expert 40 of layer 17.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ckpttool.comparison.parts import ExpertErrors, PartComparison, Place, Status
from ckpttool.validator.budgets import NO_LOSS, budget_for, part_failures, verdict
from ckpttool.validator.drift import Drift
from ckpttool.validator.failures import Failure
from ckpttool.validator.metrics import FirstDifference, Metrics, Spot
from ckpttool.validator.report import (
    Forward,
    LayerResult,
    PartResult,
    Predictions,
    Side,
    Validation,
    histogram,
)
from ckpttool.validator.routing import ExpertUse

LAYERS, EXPERTS, HIDDEN, TOP = 36, 128, 2880, 4
TOKENS = 4096
WRONG = {("down", 5, 97): 3.4, ("down", 17, 40): -2.7}
"""SQNR of the experts that are wrong, in dB."""
STACKED = ("gate", "up", "down")
DENSE = ("attn_norm", "q", "q.bias", "k", "k.bias", "v", "v.bias", "o", "o.bias", "sinks", "mlp_norm", "router",
         "router.bias", "gate.bias", "up.bias", "down.bias")  # fmt: skip


def _shape(kind: str, experts: int) -> tuple[int, ...]:
    if kind in STACKED:
        return experts, HIDDEN, HIDDEN
    return (experts, HIDDEN) if kind.split(".")[0] in STACKED else (HIDDEN,)


def _names(layers: int) -> Iterator[tuple[str, str]]:
    """Every part and its kind."""
    yield "embed", "embed"
    for layer in range(layers):
        yield from ((f"layer.{layer}.{kind}", kind) for kind in (*DENSE, *STACKED))
    yield from (("norm", "norm"), ("head", "head"))


def _equal(layers: int, experts: int, status: Status | None = Status.bytes) -> tuple[PartResult, ...]:
    """Parts of which all are equal; with no status, none was read."""
    claim = None if status is None else "bytes"
    count = None if status is None else 0
    out = []
    for name, kind in _names(layers):
        shape = _shape(kind, experts)
        form = "MXFP4" if kind in STACKED else "BF16"
        row = PartComparison(name, status, shape, shape, form, form, count, count, count)
        out.append(PartResult(row, claim, None if status is None else status.value))
    return tuple(out)


def _lossy(layers: int, experts: int, wrong: dict[tuple[str, int, int], float]) -> tuple[PartResult, ...]:
    """Experts that went from BF16 to MXFP4; all else is equal."""
    random = np.random.default_rng(20251122)
    out = []
    for p in _equal(layers, experts):
        name, kind = p.compared.part, p.compared.part.rsplit(".", 1)[-1]
        if kind not in STACKED:
            out.append(p)
            continue
        layer = int(name.split(".")[1])
        middle = 18.6 - 0.35 * (kind == "down") + 0.25 * math.sin(layer / 6)
        rows = []
        for e in range(experts):
            sqnr = wrong.get((kind, layer, e), middle + float(random.normal(0, 0.08)))
            largest = float(random.uniform(0.02, 0.06)) * (10 if (kind, layer, e) in wrong else 1)
            differing = int(random.integers(6_000_000, 7_000_000))
            rows.append(ExpertErrors(e, differing, 0, largest, 10 ** (-sqnr / 20), sqnr))
        mean = -10 * math.log10(sum(10 ** (-e.sqnr / 10) for e in rows if e.sqnr is not None) / experts)
        row = replace(
            p.compared, status=Status.lossy, format_a="BF16", format_b="MXFP4",
            differing=sum(e.differing for e in rows), nonfinite=0, zero_signs=11, max_abs=max(e.max_abs for e in rows),
            relative=10 ** (-mean / 20), sqnr=mean, first=Place(0, 0, 1), experts=tuple(rows),
        )  # fmt: skip
        out.append(PartResult(row, "lossy", None if part_failures([row]) else "budget"))
    return tuple(out)


def _side(source: str, parts: Sequence[PartResult], b: bool) -> Side:
    formats = Counter(str(p.compared.format_b if b else p.compared.format_a) for p in parts)
    nbytes = {"BF16": 233_658_313_344, "MXFP4": 65_248_815_744}["MXFP4" if formats["MXFP4"] else "BF16"]
    return Side(source, "gpt-oss", "hf" if formats["MXFP4"] else "hf-bf16", "safetensors", nbytes, dict(formats))


def _use(random: np.random.Generator, experts: int, tokens: int) -> ExpertUse:
    share = random.dirichlet(np.full(experts, 1.2))
    counts = tuple(int(n) for n in random.multinomial(tokens * TOP, share))
    return _used(counts)


def _used(counts: Sequence[int]) -> ExpertUse:
    share = np.asarray(counts) / max(1, sum(counts))
    entropy = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
    unused = tuple(e for e, n in enumerate(counts) if not n)
    return ExpertUse(tuple(counts), unused, entropy, float(share.max() * len(counts)), entropy - 0.4)


def _moved(random: np.random.Generator, use: ExpertUse, flips: int) -> ExpertUse:
    """The same with so many choices moved to another expert."""
    counts = np.asarray(use.tokens).copy()
    for _ in range(flips):
        a, b = random.choice(np.flatnonzero(counts)), random.integers(len(counts))
        counts[a] -= 1
        counts[b] += 1
    return _used(tuple(int(n) for n in counts))


def _layers(layers: int, experts: int, loss: float, jumps: Sequence[int] = ()) -> tuple[LayerResult, ...]:
    """Drift that grows with `loss` (0: none), and fivefold in each layer of `jumps`; noise of FP32."""
    random = np.random.default_rng(7)
    out = []
    for n in range(layers):
        noise = 2.2e-7 * (1 + n) ** 0.5 * float(random.uniform(0.9, 1.1))
        after = 5.0 ** sum(n >= j for j in jumps)
        drift = after * loss * (1 + 0.09 * n) * float(random.uniform(0.93, 1.07))
        own = (12.0 if n in jumps else 1.0) * loss * 0.28 * float(random.uniform(0.85, 1.15))
        flips = int(TOKENS * (1 - math.exp(-2.1 * drift)))
        use = _use(random, experts, TOKENS)
        out.append(LayerResult(
            n, drift, drift * 0.93, 0, noise, drift * 0.83, own, flips, int(flips * 1.12), int(random.integers(0, 3)),
            use, _moved(random, use, int(flips * 1.12)),
        ))  # fmt: skip
    return tuple(out)


def _metrics(kl: np.ndarray, sequences: int, top1: float, ratio: float) -> Metrics:
    """As if `kl` were that of every token."""
    q = {p: float(np.quantile(kl, p)) for p in (0.5, 0.9, 0.99, 0.999)}
    mean = float(kl.mean())
    error = float(kl.std() / len(kl) ** 0.5)
    differs = FirstDifference(0, 13, 1234, 888, 0.021) if top1 < 1 else None
    return Metrics(
        len(kl), sequences, mean, error, q[0.5], q[0.9], q[0.99], q[0.999], float(kl.max()),
        Spot(0, int(kl.argmax())), top1, (top1 * (1 - top1) / len(kl)) ** 0.5, min(1.0, top1 + 0.06), 12.2871,
        12.2871 * ratio, ratio, abs(ratio - 1) / 8, 0.0 if ratio == 1 else 3.71, Spot(0, 77), 58.25, differs,
    )  # fmt: skip


def _predictions(tokens: int, scale: float, top1: float, ratio: float, forced: bool = True) -> Predictions:
    """KL about `scale` (0: none); 2 % of the tokens have none at all."""
    random = np.random.default_rng(tokens)
    floor = np.abs(random.normal(0, 3e-13, tokens))
    kl = scale * random.lognormal(-1.5, 1.9, tokens)
    kl[random.random(tokens) < 0.02] = 0.0
    return Predictions(
        _metrics(kl, 2, top1, ratio), _metrics(floor, 2, 1.0, 1.0),
        _metrics(kl * 0.7, 2, min(1.0, top1 + 0.01), ratio) if forced else None, histogram(kl),
    )  # fmt: skip


def _forward(
    layers: Sequence[LayerResult], text: Predictions, prompts: Predictions | None, first: str | None
) -> Forward:
    last = layers[-1]
    whole, floor = last.drift or 0.0, last.noise or 0.0
    return Forward(
        "packaged", TOKENS, 2, "cuda:0", "BF16", 128.4, 298_907_129_088, 9_812_000_000, Drift(0.0, 0.0, 0),
        Drift(whole * 0.9, whole * 0.8, 0), Drift(floor * 0.9, floor * 0.8, 0), Drift(whole * 0.7, whole * 0.6, 0),
        first, text, prompts, 12 if prompts else 0, "low" if prompts else None,
    )  # fmt: skip


def _report(parts: tuple[PartResult, ...], layers: tuple[LayerResult, ...], forward: Forward,
            failures: tuple[Failure, ...] = (), asked: dict[str, float] | None = None) -> Validation:  # fmt: skip
    fidelity = "lossy" if any(p.compared.status == "lossy" for p in parts) else "bytes"
    budget = budget_for(p.compared for p in parts).overridden(**(asked or {}))
    failures += tuple(part_failures([p.compared for p in parts]))
    metrics = forward.on_text.metrics
    found = verdict(
        failures, fidelity=fidelity, budget=budget, metrics=metrics, noise_floor=forward.on_text.noise.kl_mean
    )
    return Validation(
        "validation.v1", _side("/models/gpt-oss-120b-bf16", parts, False),
        _side("/models/gpt-oss-120b-mxfp4", parts, True), "forward", found.verdict, found.decided, fidelity, failures,
        budget, asked or {}, parts, metrics, layers, forward, (),
    )  # fmt: skip


def exact() -> Validation:
    """Every byte is equal, and so is every prediction: no drift, no flips, no KL; the noise floor stands alone."""
    layers = tuple(
        replace(x, forced=0.0, own=0.0, candidate=x.reference) for x in _layers(LAYERS, EXPERTS, 0.0)
    )  # fmt: skip
    forward = _forward(layers, _predictions(TOKENS - 2, 0.0, 1.0, 1.0), None, None)
    return _report(_equal(LAYERS, EXPERTS), layers, forward)


def within() -> Validation:
    """BF16 to MXFP4 by a right conversion, on text and prompts; `max_kl` is asked for."""
    layers = _layers(LAYERS, EXPERTS, 0.012)
    forward = _forward(layers, _predictions(TOKENS - 2, 0.012, 0.9183, 1.0021),
                       _predictions(733, 0.021, 0.9018, 1.0043), "layer.0")  # fmt: skip
    return _report(_lossy(LAYERS, EXPERTS, {}), layers, forward, asked={"max_kl": 0.1})


def failed() -> Validation:
    """The same with two experts that are wrong."""
    layers = _layers(LAYERS, EXPERTS, 0.006, (5, 17))
    forward = _forward(layers, _predictions(TOKENS - 2, 0.24, 0.7712, 1.2304), None, "layer.0")
    return _report(_lossy(LAYERS, EXPERTS, WRONG), layers, forward)


def broken() -> Validation:
    """A NaN in layer 2's down: nothing behind it is finite, and of predictions nothing is known."""
    layers = tuple(
        x if x.layer < 2 else replace(
            x, drift=None, drift_median=None, broken=TOKENS, forced=None, own=None if x.layer == 2 else x.own,
            candidate=replace(x.candidate, router_entropy=None),
        )
        for x in _layers(4, 8, 0.0)
    )  # fmt: skip
    none = Predictions(Metrics(0, 0), _predictions(900, 0.0, 1.0, 1.0).noise, Metrics(0, 0), histogram([]))
    lost = Drift(None, None, TOKENS)
    forward = replace(_forward(layers[:2], none, None, "layer.2"), logits=lost, logits_forced=lost)
    parts = tuple(
        replace(
            p, claim="bytes", proof=None,
            compared=replace(
                p.compared, status=Status.lossy, differing=1, nonfinite=1, max_abs=0.0, relative=None, sqnr=None,
                first=Place(3, 7, 21), experts=(ExpertErrors(3, 1, 1, 0.0, None, None),),
            ),
        )
        if p.compared.part == "layer.2.down" else p
        for p in _equal(4, 8)
    )  # fmt: skip
    failures = (
        Failure("layer.2.down", 2, "1 of 64 values is not the reference's", "values"),
        Failure(
            None, 2, "the candidate's residual stream is not finite behind it, at 4,096 of 4,096 tokens", "forward"
        ),
    )
    return replace(_report(parts, layers, forward), failures=failures, verdict="failed",
                   decided=tuple(f.what for f in failures))  # fmt: skip


def headers_only() -> Validation:
    """Level structure, with parts whose values nobody read, one that is missing and one of another shape."""
    parts = list(_equal(4, 8, None))
    gone, other = parts[3].compared, parts[5].compared
    parts[3] = PartResult(replace(gone, status=Status.only_a, shape_b=None, format_b=None), None, None)
    parts[5] = PartResult(replace(other, status=Status.shape, shape_b=(4, 5)), None, None)
    failures = (
        Failure(gone.part, 0, "is missing from the candidate", "structure"),
        Failure(other.part, 0, "is 4 x 5 and the reference's is 2880", "structure"),
        Failure(None, None, "rope_theta is 10000.0 and the reference's is 150000.0", "structure"),
    )
    return _below("structure", tuple(parts), failures)


def structure_only() -> Validation:
    """Level structure and nothing wrong: no parts, no values, no predictions."""
    return _below("structure", (), ())


def values_only() -> Validation:
    """Level values of a right conversion."""
    return _below("values", _lossy(4, 8, {}), ())


def _below(level: str, parts: tuple[PartResult, ...], failures: tuple[Failure, ...]) -> Validation:
    fidelity = "lossy" if level == "values" else None
    budget = budget_for(p.compared for p in parts) if level == "values" else NO_LOSS
    found = verdict(failures, fidelity=fidelity, budget=budget)
    side = Side("/models/a", "gpt-oss", "hf", "safetensors", 1_000_000, {"BF16": 3})
    return Validation("validation.v1", side, replace(side, source="/models/b.gguf", container="gguf"), level,
                      found.verdict, found.decided, fidelity, failures, budget, {}, parts, None, (), None,
                      ("the candidate has no receipt",))  # fmt: skip


SAMPLES = {
    "exact": exact, "within": within, "failed": failed, "broken": broken, "headers": headers_only,
    "structure": structure_only, "values": values_only,
}  # fmt: skip
