"""The figures of logits by the kernel and by definition: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import os
from fractions import Fraction
from math import factorial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402 - see above

from ckpttool.validator.logit_kernel import excess, measured  # noqa: E402
from ckpttool.validator.logits import FIELDS, Rows, measure  # noqa: E402

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def pair(count: int, vocabulary: int, noise: float, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    a = (3 * rng.standard_normal((count, vocabulary))).astype(np.float32)
    b = a + np.float32(noise) * rng.standard_normal((count, vocabulary)).astype(np.float32)
    return torch.from_numpy(a), torch.from_numpy(b), rng.integers(0, vocabulary, count)


def by_kernel(a: Any, b: Any, ids: Any) -> Rows:
    return Rows(*measured(a.to(DEVICE), b.to(DEVICE), ids))


def check(a: Any, b: Any, ids: Any) -> None:
    """Places are the definition's, and so are numbers that no sum is in; of a KL the definition has ten digits."""
    got, want = by_kernel(a, b, ids), measure(a, b, ids)
    for name in FIELDS:
        x, y = getattr(got, name), getattr(want, name)
        assert x.dtype == y.dtype
        if name in ("kl", "loss_reference", "loss_candidate"):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-14, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("vocabulary", [1, 2, 1023, 1024, 1025, 4099])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.1, 5.0])
def test_figures_are_the_definitions(vocabulary: int, noise: float) -> None:
    check(*pair(5, vocabulary, noise))


def test_far_apart() -> None:
    """Where e^w would overflow, and where a token has no probability left."""
    a, b, ids = pair(4, 300, 0.1)
    b[0] *= -5
    b[1] *= 300
    a[2] *= 300
    b[3] = -a[3] * 100
    check(a, b, ids)


def test_of_equals_the_lowest_comes_first() -> None:
    a, b, ids = pair(3, 2500, 0.1)
    a[0, [2400, 17, 1041]] = 50
    b[1, [1400, 376, 2000]] = 60
    a[2], b[2] = 1, 1
    check(a, b, ids)
    found = by_kernel(a, b, ids)
    assert (found.top_reference[0], found.top_candidate[1], found.top_reference[2], found.rank[2]) == (17, 376, 0, 0)


def test_logits_that_are_not_finite() -> None:
    a, b, ids = pair(5, 1100, 0.1)
    a[1, [1090, 70]] = float("nan")
    b[2, 1099] = float("-inf")
    a[3, 0], b[3, 5] = float("inf"), float("nan")
    ids[1] = 70
    b[4, int(a[4].argmax())] = float("nan")
    check(a, b, ids)
    assert by_kernel(a, b, ids).bad_reference.tolist() == [-1, 70, -1, 0, -1]


def test_no_bit_depends_on_rows_beside() -> None:
    """Nor on the distance of rows."""
    a, b, ids = pair(6, 1500, 0.05)
    wide = torch.zeros(6, 1600)
    wide[:, 30:1530] = a
    whole = by_kernel(a, b, ids)
    apart = [by_kernel(wide[n : n + 2, 30:1530], b[n : n + 2], ids[n : n + 2]) for n in range(0, 6, 2)]
    for name in FIELDS:
        assert np.concatenate([getattr(x, name) for x in apart]).tobytes() == getattr(whole, name).tobytes()


def test_no_rows() -> None:
    assert len(by_kernel(*pair(0, 7, 0.1))) == 0


@triton.jit
def excess_of(w, out, count: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads annotations as its own
    at = tl.arange(0, count)
    tl.store(out + at, excess(tl.load(w + at)))


def test_the_series_has_fifty_bits() -> None:
    """Against fractions, where `expm1(w) - w` has few digits left."""
    w = [s * x for x in (1.0, 0.75, 0.5, 0.1, 1e-3, 1e-6, 1e-9, 1e-200) for s in (1, -1)]
    given = torch.tensor(w, dtype=torch.float64, device=DEVICE)
    out = torch.empty_like(given)
    excess_of[(1,)](given, out, len(w))
    for x, y in zip(w, out.tolist(), strict=True):
        exact = sum((Fraction(x) ** n / factorial(n) for n in range(3, 40)), Fraction(x) ** 2 / 2)
        if x * x == 0:
            assert y == 0
        else:
            assert abs(Fraction(y) - exact) <= exact * Fraction(1, 2**50), x
