"""The fused layer at gpt-oss-20b's sizes: its kernels against torch on the same GPU, its memory, and its streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

from forward_runs import TINY, heldout  # noqa: E402 - after the check for torch

from ckpttool.checkpoint import open_checkpoint  # noqa: E402
from ckpttool.validator import attention, fused, model, weights  # noqa: E402
from ckpttool.validator.attention import Batch  # noqa: E402
from ckpttool.validator.drift import Drift, drift  # noqa: E402
from ckpttool.validator.fused_kernels import lay_rows  # noqa: E402
from ckpttool.validator.lockstep import LogitChunk, lockstep  # noqa: E402
from ckpttool.validator.model import exact_products  # noqa: E402
from ckpttool.validator.settings import Rope, Settings  # noqa: E402

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
ROPE = Rope(150000.0)
PUBLISHED = Settings(
    24, 32, 2880, 2880, 201_088, 64, 8, 64, 4, (128, None) * 12, 1e-5, ROPE, 1.702, 7.0
)  # fmt: skip
"""gpt-oss-20b's."""


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("reverse", [False, True])
def test_attention_of_4096_tokens(window: int | None, reverse: bool) -> None:
    """Products of three in TF32 are float32's but for 2^-20 of a term (`fused_attention`); BF16 rounds by 2^-8."""
    torch.manual_seed(0)
    batch = Batch.of([[0] * 3000, [0] * 1096])
    heads, sinks = torch.randn(4096, 80 * 64, device=CUDA), torch.randn(64, device=CUDA)
    with exact_products(CUDA):
        tables = fused._tables(batch, ROPE, 64, CUDA)
        got = fused.attend(heads, sinks, tables, PUBLISHED, window, reverse)
        q, k, v = heads.double().view(-1, 80, 64).split([64, 8, 8], 1)
        want = attention.attend(q, k, v, sinks.double(), batch.spans, window, at_once=1 << 24)
        found = (got.flip(-1) if reverse else got).double()
        size = q.norm(dim=-1).amax() * k.norm(dim=-1).amax() / 8
        error = (2 * (64 * 2.0**-24 + 2.0**-20) * size + 2.0**-17 + 2 * 3000 * 2.0**-24) * v.abs().amax()
    assert ((found - want).abs() <= error + 2.0**-8 * want.abs()).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_grouped_products_of_32_experts(reverse: bool) -> None:
    """Experts without tokens, one with a single one, and the rest uneven; sums in float32, and equal bits each time."""
    torch.manual_seed(1)
    counts = torch.randint(0, 1000, (32,))
    counts[3], counts[4], counts[31] = 0, 1, 0
    ends = counts.cumsum(0).to(torch.int32).to(CUDA)
    with exact_products(CUDA):
        x = torch.randn(int(counts.sum()), 2880, device=CUDA).to(BF16)
        w = torch.randn(32, 5760, 2880, device=CUDA).to(BF16)
        given = x.flip(-1) if reverse else x
        got = fused.grouped(given, w, ends, reverse)
        assert torch.equal(got, fused.grouped(given, w, ends, reverse))
        begin = 0
        for one, count in zip(w, counts.tolist(), strict=True):
            rows = x[begin : begin + count].float()
            want, most = rows @ one.float().T, rows.abs() @ one.float().abs().T
            error = (got[begin : begin + count].float() - want).abs()
            assert (error <= 2 * 2880 * 2.0**-24 * most + 2.0**-8 * want.abs()).all()
            begin += count


def test_an_expert_of_hugging_face_is_laid_out() -> None:
    columns = torch.randn(4, 2880, 5760, device=CUDA).to(BF16)
    out = torch.empty((4, 5760, 2880), dtype=BF16, device=CUDA)
    lay_rows(columns.transpose(1, 2), out)
    assert torch.equal(out, columns.transpose(1, 2))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one model, some 100 MB a layer: BF16, and MXFP4 with the same values."""
    sizes = builders.Sizes(layers=6, experts=16, hidden=1024, intermediate=1024, vocab=512)
    folder = tmp_path_factory.mktemp("pair")
    plain = builders.write(builders.Model(sizes), folder / "m", "hf-bf16", side_files=False)
    return plain, builders.write(builders.Model(sizes), folder / "p", "hf", side_files=False)


@pytest.mark.parametrize("piece", [1 << 20, weights.PIECE_NBYTES])
def test_reads_that_run_ahead_change_no_bit(
    pair: tuple[Path, Path], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In BF16, where nothing waits: the logits of ten walks are equal, and so are both sides'."""
    monkeypatch.setattr(weights, "PIECE_NBYTES", piece)
    text = np.random.default_rng(0).integers(0, 512, 300).tolist()
    first: list[Any] = []
    for _ in range(5):
        for a, b in (pair, pair[::-1]):
            seen: list[Any] = []

            def keep(chunk: LogitChunk, seen: list[Any] = seen) -> None:
                assert torch.equal(chunk.reference, chunk.candidate)
                seen.append((chunk.reference.cpu(), chunk.noise.cpu()))

            report = lockstep(open_checkpoint(a), open_checkpoint(b), [text], keep, device="cuda", numbers=BF16)
            assert {x.drift for x in report.layers} == {Drift(0.0, 0.0, 0)}
            assert all(x.noise.whole for x in report.layers)
            first = first or seen
            assert all(torch.equal(x, y) for u, v in zip(first, seen, strict=True) for x, y in zip(u, v, strict=True))


def test_kernels_are_the_definition_but_for_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model's logits, both in BF16 on this GPU: apart by what another order of sums is."""
    text, held, floors = heldout(600), list[Any](), list[Drift]()
    for by_kernels in (True, False):
        if not by_kernels:
            monkeypatch.setattr(model, "_by_kernels", lambda x, settings, dtype: False)
        checkpoint, chunks = open_checkpoint(TINY / "hf-bf16"), list[Any]()

        def keep(chunk: LogitChunk, chunks: list[Any] = chunks) -> None:
            chunks.append(chunk.reference.cpu())

        report = lockstep(checkpoint, checkpoint, [text], keep, device="cuda", numbers=BF16)
        held.append(torch.cat(chunks))
        floors.append(report.logits_noise)
    assert not torch.equal(*held), "both ways were taken"
    assert not drift(held[1], held[0]).beyond(floors[1])


def test_a_whole_layer_of_the_published_size_is_bounded() -> None:
    """Beside what is decoded of it (1.6 GB) and the buffers of both checkpoints (5.6 GB), within 12 GiB."""
    torch.manual_seed(2)
    with exact_products(CUDA):
        w = torch.randn(32, 2880, 2, 2880, device=CUDA, dtype=BF16)
        down = torch.randn(32, 2880, 2880, device=CUDA, dtype=BF16)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        routing = fused.route(torch.randn(4096, 32, device=CUDA), 4)
        places = fused._Sorted.of(routing, 32)
        bias = torch.randn(32, 2880, device=CUDA)
        h = torch.randn(4096, 2880, device=CUDA).to(BF16)
        x = fused.grouped(h[places.tokens], w.flatten(1, 2), places.ends, reverse=True)
        x = fused.activate(x, bias, bias, places.row_experts, PUBLISHED, True)
        out = fused.mix(h.float(), fused.grouped(x, down, places.ends, reverse=True), bias, places)
        assert out.isfinite().all()
        assert torch.cuda.max_memory_allocated() - held < 2 << 30
