"""KL, perplexity and agreement against their definitions, and against what transformers computes."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from ckpttool.checkpoint import open_checkpoint
from ckpttool.validator.logits import measure
from ckpttool.validator.metrics import BLOCK_TOKENS, FirstDifference, LogitMetrics, Metrics, Spot
from ckpttool.validator.text import encoder, sequences

FIXTURES = Path(__file__).parents[1] / "fixtures"
Array = NDArray[Any]

finite = st.floats(-60, 60, width=32)
LARGEST = float(np.finfo(np.float32).max)


def pair(seed: int, count: int, vocabulary: int, apart: float) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    a = (3 * rng.normal(size=(count, vocabulary))).astype(np.float32)
    b = (a + apart * rng.normal(size=a.shape)).astype(np.float32)
    return a, b, rng.integers(0, vocabulary, count)


def of(a: Array, b: Array, ids: Array, **more: Any) -> Metrics:
    metrics = LogitMetrics()
    metrics.add(a, b, ids, **more)
    return metrics.metrics()


def exact_kl(a: Array, b: Array) -> float:
    """Sum of p log(p / q) with 80 digits, which is no less than zero but for their rounding."""
    with localcontext() as context:
        context.prec = 80
        x, y = ([Decimal(float(v)) for v in row] for row in (a, b))
        log_p, log_q = ([v - sum(u.exp() for u in row).ln() for v in row] for row in (x, y))
        return max(0.0, float(sum(p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True))))


# --- against the definitions ---


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=9))
def test_kl_is_its_definition(logits: list[tuple[float, float]]) -> None:
    a, b = (np.array([row], np.float32) for row in zip(*logits, strict=True))
    found = float(measure(a, b, [0]).kl[0])
    wanted = exact_kl(a[0], b[0])
    error = 2**-53 * (np.abs(a).max() + np.abs(b).max() + 10)  # of w: two differences and two logarithms
    assert found >= 0
    assert abs(found - wanted) <= 4 * error * math.sqrt(2 * wanted) + error**2 + 2**-50 * wanted


@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2])
def test_kl_of_nearly_equal_logits_does_not_cancel(apart: float) -> None:
    a, b, ids = pair(1, 20, 50, apart)
    for n, found in enumerate(measure(a, b, ids).kl):
        assert found == pytest.approx(exact_kl(a[n], b[n]), rel=3e-15 / apart + 1e-13, abs=0)


def test_figures_are_torchs() -> None:
    a, b, ids = pair(2, 300, 700, 0.5)
    metrics = LogitMetrics()
    metrics.add(a, b, ids)
    m, kl = metrics.metrics(), metrics.kl()
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    log_p, log_q = (functional.log_softmax(v.double(), -1) for v in (x, y))
    wanted = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).numpy()
    np.testing.assert_allclose(kl, wanted, rtol=1e-12)
    assert m.kl_mean == pytest.approx(wanted.mean(), rel=1e-12)
    assert m.kl_max == wanted.max() or m.kl_max == pytest.approx(wanted.max(), rel=1e-12)
    assert m.kl_max_at == Spot(0, int(wanted.argmax()))
    assert [m.kl_median, m.kl_p90, m.kl_p99, m.kl_p999] == pytest.approx(np.quantile(wanted, [0.5, 0.9, 0.99, 0.999]))
    top_a, top_b = x.argmax(-1), y.topk(5, -1).indices
    assert m.top1 == pytest.approx((top_a == top_b[:, 0]).double().mean().item(), rel=1e-15)
    assert m.top5 == pytest.approx((top_a[:, None] == top_b).any(-1).double().mean().item(), rel=1e-15)
    assert m.logit_difference == (x.double() - y.double()).abs().max().item()
    assert m.logit_range == (x.double().amax(-1) - x.double().amin(-1)).max().item()
    first = int((top_a != top_b[:, 0]).nonzero()[0])
    margin = float(a[first, top_a[first]]) - float(a[first, top_b[first, 0]])
    assert m.first_difference == FirstDifference(0, first, int(top_a[first]), int(top_b[first, 0]), margin)
    assert (m.tokens, m.sequences) == (300, 1)


def test_perplexity_is_transformers_loss() -> None:
    a, b, ids = pair(3, 128, 90, 0.3)
    m = of(a, b, ids)
    for logits, found in ((a, m.ppl_reference), (b, m.ppl_candidate)):
        shifted = torch.from_numpy(ids)[None]
        loss = ForCausalLMLoss(torch.from_numpy(logits)[None].double(), shifted, 90, shift_labels=shifted)
        # Its logits are made FP32: 2^-24 of the largest logit, and of each of some 30 operations.
        assert found == pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert m.ppl_ratio == pytest.approx(m.ppl_candidate / m.ppl_reference, rel=1e-12)


def test_ties_go_to_the_lower_id() -> None:
    a = np.zeros((1, 8), np.float32)
    b = np.array([[0, 0, 2, 2, 2, 2, 2, 0]], np.float32)
    found = measure(a, b, [0])
    assert (found.top_reference[0], found.top_candidate[0], found.rank[0]) == (0, 2, 5)
    assert measure(a, a, [0]).rank[0] == 0
    assert measure(b, a, [0]).rank[0] == 2  # of eight equal ones, tokens 0 and 1 come before token 2


# --- standard errors ---


def test_standard_error_is_its_formula() -> None:
    a, b, ids = pair(4, 3 * BLOCK_TOKENS, 20, 1.0)
    metrics = LogitMetrics()
    sizes = (BLOCK_TOKENS + 40, BLOCK_TOKENS, BLOCK_TOKENS - 40)  # four blocks: the first sequence has two
    stops = np.cumsum(sizes)
    for n, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        at = slice(stop - size, stop)
        metrics.add(a[at], b[at], ids[at], sequence=n)
    x = metrics.kl()
    blocks = np.split(x, [BLOCK_TOKENS, *stops[:-1]])
    total = sum((block - x.mean()).sum() ** 2 for block in blocks)
    assert metrics.metrics().kl_mean_se == pytest.approx(math.sqrt(4 / 3 * total) / len(x), rel=1e-12)


def test_standard_error_is_what_other_texts_would_give() -> None:
    """Sequences with a level of their own, so that tokens depend on each other: 500 texts of 24 sequences."""
    rng = np.random.default_rng(5)
    ratios, errors = [], []
    for _ in range(500):
        level = 0.3 * rng.normal(size=(24, 1))
        logit = level + 0.5 * rng.normal(size=(24, 8))
        a = np.zeros((24, 8, 2), np.float32)
        b = np.stack((np.zeros_like(logit), logit), -1).astype(np.float32)
        metrics = LogitMetrics()
        for n in range(24):
            metrics.add(a[n], b[n], np.ones(8, np.int64), sequence=n)
        m = metrics.metrics()
        ratios.append(m.ppl_ratio)
        errors.append(m.ppl_ratio_se)
    # The spread of 500 draws is known to 1 / sqrt(2 * 499) = 3 %; three times that.
    assert np.mean(errors) == pytest.approx(np.std(ratios, ddof=1), rel=0.1)


def test_one_block_has_no_standard_error() -> None:
    a, b, ids = pair(6, BLOCK_TOKENS, 20, 1.0)
    m = of(a, b, ids)
    assert (m.kl_mean_se, m.ppl_ratio_se, m.top1_se) == (None, None, None)


# --- chunks ---


def chunked(a: Array, b: Array, ids: Array, cuts: list[int], backwards: bool, as_torch: bool) -> LogitMetrics:
    metrics = LogitMetrics()
    edges = [0, *sorted({c % len(ids) for c in cuts} - {0}), len(ids)]
    pieces = list(pairwise(edges))
    for start, stop in reversed(pieces) if backwards else pieces:
        given = (a[start:stop], b[start:stop], ids[start:stop])
        metrics.add(*(map(torch.from_numpy, given) if as_torch else given), positions=start)
    return metrics


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([1, 2, 7, 33, 1000, 5003]), st.lists(st.integers(0, 10**6), max_size=8),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_no_bit_depends_on_chunks(seed: int, vocabulary: int, cuts: list[int], backwards: bool, as_torch: bool) -> None:
    a, b, ids = pair(seed, 90, vocabulary, 0.1)
    whole = chunked(a, b, ids, [], False, as_torch)
    parts = chunked(a, b, ids, cuts, backwards, as_torch)
    assert whole.metrics() == parts.metrics()
    assert whole.kl().tobytes() == parts.kl().tobytes()


def test_torch_and_numpy_in_every_float() -> None:
    a, b, ids = pair(8, 40, 64, 0.5)
    a, b = (torch.from_numpy(x).bfloat16() for x in (a, b))
    wide = of(a.float().numpy(), b.float().numpy(), ids)
    assert of(a, b, torch.from_numpy(ids)) == wide
    assert of(a.double(), b.double(), ids) == wide


def test_positions_may_have_gaps() -> None:
    a, b, ids = pair(9, 6, 30, 0.5)
    metrics = LogitMetrics()
    metrics.add(a, b, ids, sequence=4, positions=[3, 4, 5, 90, 91, 92])
    assert metrics.tokens().position.tolist() == [3, 4, 5, 90, 91, 92]
    assert set(metrics.tokens().sequence) == {4}


# --- hostile logits ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_what_is_not_finite_fails_with_its_place(bad: float, side: str) -> None:
    a, b, ids = pair(10, 50, 40, 0.5)
    clean = LogitMetrics()
    clean.add(np.delete(a, [11, 30], 0), np.delete(b, [11, 30], 0), np.delete(ids, [11, 30]), positions=[
        n for n in range(50) if n not in (11, 30)
    ])  # fmt: skip
    broken = a if side == "reference" else b
    broken[11, 7] = broken[11, 9] = broken[30, 0] = bad
    metrics = LogitMetrics()
    metrics.add(a, b, ids)
    (failure,) = metrics.failures()
    assert failure.what == (
        f"logits of the {side} are not finite at 2 of 50 tokens; the first: sequence 0, position 11, token 7"
    )
    assert metrics.metrics() == clean.metrics()
    assert not clean.failures()


def test_nothing_but_nan_has_no_figures() -> None:
    a = np.full((3, 5), np.nan, np.float32)
    metrics = LogitMetrics()
    metrics.add(a, a, [0, 1, 2])
    assert metrics.metrics() == Metrics(0, 0)
    assert len(metrics.failures()) == 2
    assert LogitMetrics().metrics() == Metrics(0, 0)


@given(st.lists(st.sampled_from([-LARGEST, -1e30, -800.0, 0.0, 1.0, 800.0, 1e30, LARGEST]), min_size=8, max_size=8))
def test_the_largest_logits_give_finite_figures(values: list[float]) -> None:
    a, b = np.array(values, np.float32).reshape(2, 1, 4)
    m = of(a, b, [3])
    figures = [v for v in asdict(m).values() if isinstance(v, float)]
    assert all(map(math.isfinite, figures))
    assert m.kl_mean >= 0
    assert 0 < m.ppl_reference <= sys.float_info.max
    json.dumps(asdict(m), allow_nan=False)


def test_a_vocabulary_of_one_token() -> None:
    m = of(np.array([[3.0]], np.float32), np.array([[-7.0]], np.float32), [0])
    assert (m.kl_mean, m.ppl_reference, m.ppl_candidate, m.top1, m.logit_difference) == (0, 1, 1, 1, 10)


def test_equal_logits_are_equal() -> None:
    a, _, ids = pair(11, 600, 300, 0)
    m = of(a, a, ids)
    assert (m.kl_mean, m.kl_max, m.kl_mean_se, m.logit_difference, m.first_difference) == (0, 0, 0, 0, None)
    assert (m.top1, m.top5, m.ppl_ratio, m.ppl_ratio_se) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("a", "b", "ids"),
    [((2, 3), (2, 4), [0, 0]), ((2, 3), (3, 3), [0, 0]), ((3,), (3,), [0]), ((2, 3), (2, 3), [0]),
     ((2, 0), (2, 0), [0, 0]), ((1, 3), (1, 3), [3]), ((1, 3), (1, 3), [-1])],
)  # fmt: skip
def test_misuse(a: tuple[int, ...], b: tuple[int, ...], ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"logits of|ids of"):
        measure(np.zeros(a, np.float32), np.zeros(b, np.float32), ids)


def test_a_token_counts_once() -> None:
    metrics = LogitMetrics()
    for _ in range(2):
        metrics.add(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), [0], positions=5)
    with pytest.raises(ValueError, match="twice"):
        metrics.metrics()
    with pytest.raises(ValueError, match="positions"):
        metrics.add(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), [0], positions=[1, 2])


# --- the trained fixture ---


@pytest.mark.slow
def test_the_fixtures_perplexity_is_the_manifests() -> None:
    """What the manifest says of parent and master, computed apart, and their distance: MXFP4 by the recipe `ocp`."""
    manifest = json.loads((FIXTURES / "MANIFEST.json").read_text("utf-8"))["model"]["perplexity"]
    folders = [FIXTURES / "tiny-gpt-oss" / name for name in ("parent", "hf-bf16")]
    ids = encoder(open_checkpoint(folders[0])).encode((FIXTURES / "heldout.txt").read_text("utf-8"))
    windows = torch.tensor(sequences(ids, length=256))
    found = []
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            found.append(torch.cat([model(input_ids=x, use_cache=False).logits for x in windows.split(8)]))
    metrics = LogitMetrics()
    for n, window in enumerate(windows):
        metrics.add(found[0][n, :-1], found[1][n, :-1], window[1:], sequence=n)
    m = metrics.metrics()
    assert (m.tokens, m.sequences) == (10965, 43)
    assert m.ppl_reference == pytest.approx(manifest["parent"], rel=1e-5)
    assert m.ppl_candidate == pytest.approx(manifest["hf-bf16"], rel=1e-5)
    assert m.kl_mean == pytest.approx(0.016936, rel=1e-3)
    assert m.top1 == pytest.approx(0.9139, abs=1e-3)
