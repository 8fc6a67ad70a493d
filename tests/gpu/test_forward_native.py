"""The forward pass on a GPU: the CPU's logits in FP32, equal bits in every dialect, weights that come over a link."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from forward_runs import TINY, forward, heldout, relative

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

from ckpttool.checkpoint import open_checkpoint  # noqa: E402 - after the check for torch
from ckpttool.validator.attention import attend  # noqa: E402
from ckpttool.validator.drift import Drift  # noqa: E402
from ckpttool.validator.lockstep import LogitChunk, lockstep  # noqa: E402
from ckpttool.validator.model import Arithmetic  # noqa: E402

NAMES = ["hf", "hf-bf16", "openai", "unsloth", "gguf/tiny-gpt-oss-auto.gguf"]


@pytest.mark.parametrize("name", [*NAMES, "gguf/tiny-gpt-oss-q8_0.gguf", "gguf/tiny-gpt-oss-q4_k_m.gguf"])
def test_fp32_is_the_cpus(name: str) -> None:
    """TF32 would be off by 1e-3 and more."""
    text = heldout(600)
    on_cpu, _ = forward(TINY / name, [text])
    assert relative(forward(TINY / name, [text], device="cuda")[0], on_cpu) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dialects_are_equal_bits(dtype: torch.dtype) -> None:
    text = heldout(600)
    first, *others = (forward(TINY / name, [text], Arithmetic(dtype), device="cuda")[0] for name in NAMES)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_lockstep(numbers: torch.dtype) -> None:
    seen: list[int] = []

    def consume(chunk: LogitChunk) -> None:
        assert chunk.reference.is_cuda and not chunk.next_ids.is_cuda
        seen.append(len(chunk.reference))

    a, b = open_checkpoint(TINY / "hf-bf16"), open_checkpoint(TINY / "gguf" / "tiny-gpt-oss-auto.gguf")
    report = lockstep(a, b, [heldout(300), heldout(70, 300)], consume, device="cuda", numbers=numbers)
    assert sum(seen) == 299 + 69
    assert report.first_diverging is None
    assert {x.drift for x in report.layers} == {Drift(0.0, 0.0, 0)}
    assert report.peak_gpu_nbytes is not None and report.peak_gpu_nbytes > 0


def test_layers_that_take_many_reads(tmp_path: builders.Path) -> None:
    """Some 100 MB a layer, so that every reader's buffer is used again and again while the layer before computes."""
    sizes = builders.Sizes(layers=4, experts=16, hidden=1024, intermediate=1024, vocab=512)
    folder = builders.write(builders.Model(sizes), tmp_path / "m", "hf-bf16", side_files=False)
    packed = builders.write(builders.Model(sizes), tmp_path / "p", "hf", side_files=False)
    text = np.random.default_rng(0).integers(0, 512, 64).tolist()
    report = lockstep(open_checkpoint(folder), open_checkpoint(packed), [text], lambda c: None, device="cuda")
    assert report.first_diverging is None
    assert {x.drift for x in report.layers} == {Drift(0.0, 0.0, 0)}


@pytest.mark.parametrize("window", [None, 128])
def test_attention_over_4096_tokens_is_bounded(window: int | None) -> None:
    """64 heads: the whole of the scores would be 4.3 GB; blocks of them are held twice, and some of the inputs."""
    q = torch.randn(4096, 64, 64, device="cuda")
    k, v = (torch.randn(4096, 8, 64, device="cuda") for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(q, k, v, torch.zeros(64, device="cuda"), ((0, 4096),), window)
    assert torch.cuda.max_memory_allocated() - before < 1.5e9
