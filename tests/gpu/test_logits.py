"""The figures of logits that lie on a GPU: those of the CPU, and the same bits however they are cut."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

import numpy as np  # noqa: E402 - after the check for torch

from ckpttool.validator.logits import FIELDS, measure  # noqa: E402


@pytest.mark.parametrize(("count", "vocabulary"), [(700, 1024), (130, 4099), (50, 201_088), (9, 201_089)])
def test_a_gpu_gives_the_cpus_figures_and_no_bit_depends_on_chunks(count: int, vocabulary: int) -> None:
    torch.manual_seed(1)
    a = 3 * torch.randn(count, vocabulary, device="cuda")
    b = a + 0.1 * torch.randn_like(a)
    a[1, 5] = float("nan")
    ids = torch.randint(vocabulary, (count,), device="cuda")
    whole = measure(a, b, ids)
    cpu = measure(a.cpu(), b.cpu(), ids.cpu())
    for name in FIELDS:
        np.testing.assert_allclose(getattr(whole, name), getattr(cpu, name), rtol=1e-10, atol=1e-14, err_msg=name)
    for step in (1, 3, 64, 65):
        parts = [measure(*(x[n : n + step] for x in (a, b, ids))) for n in range(0, count, step)]
        for name in FIELDS:
            joined = np.concatenate([getattr(p, name) for p in parts])
            assert joined.tobytes() == getattr(whole, name).tobytes(), (name, step)
