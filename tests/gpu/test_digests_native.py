"""CPU = GPU on tensors of some ten million numbers: sha256 of what the compiled kernels and the card make of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

from device_codecs import PACKINGS, on_cpu, on_device  # noqa: E402 - after the check for torch
from tensor_digests import LARGE, SMALL, digests, wanted  # noqa: E402

from ckpttool.codecs import cpu, gpu  # noqa: E402
from ckpttool.codecs.formats import Packing  # noqa: E402


@pytest.fixture(scope="module")
def of_the_cpu() -> dict[str, str]:
    return dict(digests(on_cpu(cpu, Packing.pair, False), LARGE))


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_card_arrives_at_the_same(packing: Packing, columns: bool, of_the_cpu: dict[str, str]) -> None:
    """And at the committed digests of the small ones."""
    assert not gpu.gpu_lanes.INTERPRETED
    codec = on_device(packing, columns)
    assert dict(digests(codec, SMALL)) == wanted()
    assert dict(digests(codec, LARGE)) == of_the_cpu
