"""The kernels of a layer against the torch code that defines it: on a GPU, or in the interpreter where there is none.

What is equal bit for bit and what is bounded, `fused_kernels` and `fused_attention` say, and why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from forward_runs import TINY, heldout  # noqa: E402 - see above

from ckpttool.checkpoint import open_checkpoint  # noqa: E402
from ckpttool.codecs import gpu  # noqa: E402
from ckpttool.codecs.formats import Packing  # noqa: E402
from ckpttool.validator import attention, fused  # noqa: E402
from ckpttool.validator.attention import Batch  # noqa: E402
from ckpttool.validator.drift import DIVERGES, _squares, drift  # noqa: E402
from ckpttool.validator.fused_kernels import lay_rows, row_squares  # noqa: E402
from ckpttool.validator.model import (  # noqa: E402
    Arithmetic,
    Layer,
    Pass,
    exact_products,
    layer_passes,
    rms_norm,
    swiglu,
    unembed,
)  # fmt: skip
from ckpttool.validator.routing import Routing, route  # noqa: E402
from ckpttool.validator.settings import Rope, Settings  # noqa: E402
from ckpttool.validator.stored import _mxfp4_as_it_comes, by_triton, fill_in_turns  # noqa: E402
from ckpttool.validator.weights import HEAD, Feed, ModelSource  # noqa: E402

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
BF16 = torch.bfloat16
ROUNDED = 2.0**-8
"""What rounding to BF16 moves a number by at most, relative to it."""

DIALECTS = ["hf", "hf-bf16", "openai", "unsloth", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-q8_0.gguf"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    with exact_products(DEVICE):
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def many_blocks_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what Triton's interpreter takes its time by."""
    if DEVICE.type == "cpu":
        for packing in Packing.pair, Packing.ggml:
            monkeypatch.setitem(gpu.DEQUANTIZE_ROWS, packing, (8192, 4))


def randn(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape).to(dtype).to(DEVICE)


def sizes(**changes: Any) -> Any:
    """Settings as far as one kernel asks for them."""
    given: dict[str, Any] = {"heads": 6, "kv_heads": 2, "head_dim": 16, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}
    return SimpleNamespace(**given | changes)


def equal(a: Any, b: Any) -> bool:
    """The same bits, NaN included."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return a.dtype == b.dtype and torch.equal(a.view(kinds[a.element_size()]), b.view(kinds[b.element_size()]))


# --- kernels ---


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 64), (3, 40), (5, 1000)])
@pytest.mark.parametrize("reverse", [False, True])
def test_norms(tokens: int, hidden: int, reverse: bool) -> None:
    """Of the sum of squares 2^-24 may be lost an addition, half of which shows; and some by dividing and its root."""
    x, y, bias, weight = randn(tokens, hidden), randn(tokens, hidden, dtype=BF16), randn(hidden), randn(hidden)
    x[0] *= 1e-3
    alone = fused.norm_rows(x, weight, 1e-5, reverse=reverse)
    assert alone.x is x
    got = fused.norm_rows(x, weight, 1e-5, reverse=reverse, added=(y, bias), wide=True)
    assert equal(got.x, x + (y.float() + bias))
    for found, given in ((alone, x), (got, got.x)):
        want = rms_norm(given.double(), weight.double(), 1e-5)
        narrow = found.narrow.flip(-1) if reverse else found.narrow
        bound = (hidden / 2 + 8) * 2.0**-24
        assert ((narrow.double() - want).abs() <= (bound + ROUNDED) * want.abs()).all()
        if found is got:
            assert ((found.wide.double() - want).abs() <= bound * want.abs()).all()
            assert equal(narrow, found.wide.to(BF16))


@pytest.mark.parametrize("lengths", [(1,), (5, 1, 9)])
@pytest.mark.parametrize("dim", [16, 64])
def test_heads_are_turned_as_defined(lengths: tuple[int, ...], dim: int) -> None:
    s = sizes(head_dim=dim)
    batch = Batch.of([[0] * n for n in lengths])
    tables = fused._tables(batch, Rope(150000.0), dim, DEVICE)
    h, bias = randn(sum(lengths), 10 * dim, dtype=BF16), randn(10 * dim)
    cos, sin = attention.rotation(Rope(150000.0), dim, batch.positions.to(DEVICE))
    heads = (h.float() + bias).view(-1, 10, dim)
    want = torch.cat([attention.rotate(heads[:, :8], cos, sin), heads[:, 8:]], 1).flatten(1)
    assert equal(fused.turn(h, bias, tables, s), want)


@pytest.mark.parametrize("window", [None, 1, 20, 64, 500])
@pytest.mark.parametrize("reverse", [False, True])
def test_attention(window: int | None, reverse: bool) -> None:
    """Sequences of one token, of one more than a block takes, and of several blocks."""
    s = sizes()
    batch = Batch.of([[0] * n for n in (1, 65, 130, 7)])
    heads, sinks = randn(203, 10 * 16), randn(6)
    heads[30:40] *= 2
    got = fused.attend(heads, sinks, fused._tables(batch, Rope(1e4), 16, DEVICE), s, window, reverse)
    q, k, v = heads.double().view(-1, 10, 16).split([6, 2, 2], 1)
    want = attention.attend(q, k, v, sinks.double(), batch.spans, window).view(-1, 6, 16)
    # See `fused_attention`: of scores; of their exponentials, whose sum too; of what is added up by them.
    scores = (16 * 2.0**-24 + 2.0**-20) * q.abs().sum(-1).amax() * k.abs().amax() * 16**-0.5
    error = (2 * scores + 2.0**-17 + 2 * 130 * 2.0**-24 + 2.0**-20) * v.abs().amax()
    found = (got.flip(-1) if reverse else got).double().view(-1, 6, 16)
    assert ((found - want).abs() <= error + ROUNDED * want.abs()).all()
    assert float(error) < 0.01


def test_attention_without_sinks_and_with_numbers_that_are_none() -> None:
    s, batch = sizes(), Batch.of([[0] * 40, [0] * 30])
    heads, sinks = randn(70, 10 * 16), torch.full((6,), -torch.inf, device=DEVICE)
    tables = fused._tables(batch, Rope(1e4), 16, DEVICE)
    q, k, v = heads.view(-1, 10, 16).split([6, 2, 2], 1)
    want = attention.attend(q, k, v, sinks, batch.spans, None)
    assert (
        fused.attend(heads, sinks, tables, s, None, False).float() - want
    ).abs().max() < 2 * ROUNDED * want.abs().max()
    heads[50, 3] = torch.nan
    got = fused.attend(heads, sinks, tables, s, None, False).isnan()
    assert got[50].any() and not got[:40].any(), "another sequence's"


@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 7), (2, 1030)])
@pytest.mark.parametrize("reverse", [False, True])
def test_activation(rows: int, width: int, reverse: bool) -> None:
    x, gate_bias, up_bias = randn(rows, 2 * width, dtype=BF16) * 6, randn(5, width), randn(5, width)
    experts = torch.arange(rows, device=DEVICE) % 5
    got = fused.activate(x, gate_bias, up_bias, experts, sizes(), reverse)
    gate, up = x[:, 0::2].double() + gate_bias.double()[experts], x[:, 1::2].double() + up_bias.double()[experts]
    want = swiglu(gate, up, sizes())
    found = (got.flip(-1) if reverse else got).double()
    # Biases are added and clamped in float32, whose rounding counts where up is next to -1.
    sums = 2.0**-23 * (1 + gate.abs()) * (2 + up.abs())
    assert ((found - want).abs() <= (ROUNDED + 2.0**-15) * want.abs() + 2 * sums).all()


def test_what_is_no_number_stays_none() -> None:
    """Clamps would hide it."""
    x = randn(2, 8, dtype=BF16)
    x[0, 4], x[1, 1] = torch.nan, torch.nan
    got = fused.activate(x, randn(1, 4), randn(1, 4), torch.zeros(2, dtype=torch.int64, device=DEVICE), sizes())
    assert got.isnan().tolist() == [[False, False, True, False], [True, False, False, False]]


def chosen(tokens: int, experts: int, k: int, unused: int = 0) -> Routing:
    logits = randn(tokens, experts)
    logits[:, :unused] = -100.0
    return route(logits, k)


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "unused"), [(1, 1, 1, 0), (1, 4, 2, 1), (9, 5, 3, 0), (20, 6, 2, 3)]
)
def test_experts_outputs_are_added_in_the_definitions_order(tokens: int, experts: int, k: int, unused: int) -> None:
    routing = chosen(tokens, experts, k, unused)
    places = fused._Sorted.of(routing, experts)
    assert places.row_experts.tolist() == sorted(routing.experts.flatten().tolist())
    assert places.ends.tolist() == [int((places.row_experts <= e).sum()) for e in range(experts)]
    hidden = 37
    x, down, bias = randn(tokens, hidden), randn(tokens * k, hidden, dtype=BF16), randn(experts, hidden)
    want = torch.zeros_like(x)
    for row, (token, e) in enumerate(zip(places.tokens.tolist(), places.row_experts.tolist(), strict=True)):
        weight = routing.weights[token][routing.experts[token] == e]
        want[token] += (down[row].float() + bias[e]) * weight
    assert equal(fused.mix(x, down, bias, places), x + want)


@pytest.mark.parametrize(("counts", "k"), [((0, 1, 0), 8), ((3, 0, 5), 40), ((1,), 16), ((0, 0), 8), ((2, 1), 9)])
@pytest.mark.parametrize("reverse", [False, True])
def test_grouped_products(counts: tuple[int, ...], k: int, reverse: bool) -> None:
    x, weights = randn(sum(counts), k, dtype=BF16), randn(len(counts), 24, k, dtype=BF16)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32).to(DEVICE)
    got = fused.grouped(x.flip(-1) if reverse else x, weights, ends, reverse)
    begin = 0
    for w, count in zip(weights, counts, strict=True):
        rows = x[begin : begin + count].double()
        want, most = rows @ w.double().T, rows.abs() @ w.double().abs().T
        error = (got[begin : begin + count].double() - want).abs()
        assert (error <= k * 2.0**-24 * most + ROUNDED * want.abs() * 1.001).all()
        begin += count
    assert len(got) == begin


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 70, 130), (3, 64, 64)])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_rows_that_lie_across_are_laid_out(shape: tuple[int, int, int], dtype: Any) -> None:
    experts, rows, columns = shape
    wide = randn(experts, columns, 2 * rows, dtype=dtype)
    for source in (wide[:, :, 1::2].transpose(1, 2), wide[:, :, :rows].transpose(1, 2)):
        out = torch.full((experts, rows, 2, columns), 7.0, dtype=BF16, device=DEVICE)
        lay_rows(source, out[:, :, 1])
        assert equal(out[:, :, 1], source.to(BF16))
        assert (out[:, :, 0] == 7).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (2, 1030)])
def test_squares(rows: int, columns: int) -> None:
    """Float64 sums in two orders."""
    a = randn(rows, columns)
    b = a + 1e-3 * randn(rows, columns)
    for x, y in zip(row_squares(a, b)[:2], _squares(a, b)[:2], strict=True):
        assert ((x - y).abs() <= columns * 2.0**-53 * y).all()
    assert [t.tolist() for t in row_squares(a, a)[::2]] == [[0.0] * rows, [0] * rows]
    b[0, columns - 1] = torch.inf
    assert row_squares(a, b)[2].tolist() == _squares(a, b)[2].int().tolist() == [1] + [0] * (rows - 1)


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_every_scale_byte_comes_as_it_is(packing: Packing, dtype: Any) -> None:
    """Inf and NaN too: on a GPU nothing asks before."""
    rng = np.random.default_rng(4)
    structs = torch.from_numpy(rng.integers(0, 256, (256, 2, 17), np.uint8))
    structs[..., 0] = torch.arange(256)[:, None]
    structs[:, 0, 1:] = torch.arange(16, dtype=torch.uint8) * 17
    structs = structs.to(DEVICE)
    blocks, scales = structs[..., 1:], structs[..., 0]
    if packing is Packing.pair:
        blocks, scales = blocks.contiguous(), scales.contiguous()
    out = torch.empty((256, 1, 64), dtype=dtype, device=DEVICE)
    by_triton(blocks[:, None], scales[:, None], packing, out)
    want = _mxfp4_as_it_comes(blocks, scales, packing).to(dtype)
    assert torch.equal(out[:, 0].isnan(), want.isnan())
    assert torch.equal(out[:, 0].nan_to_num(0.5), want.nan_to_num(0.5))


# --- layers ---


def layers(name: str, *numbers: int) -> Iterator[tuple[Settings, Layer]]:
    with ModelSource(open_checkpoint(TINY / name)) as source, Feed([(source, n) for n in numbers], DEVICE) as feed:
        for n in numbers:
            yield source.settings, feed.layer(source, n)


@pytest.mark.parametrize("name", DIALECTS)
def test_experts_are_decoded_as_one_by_one(name: str) -> None:
    """All of them, and some in the middle."""
    for settings, layer in layers(name, 1):
        for first, count in ((0, settings.experts), (1, 2)):
            both = torch.empty((count, settings.intermediate, 2, settings.hidden), dtype=BF16, device=DEVICE)
            down = torch.empty((count, settings.hidden, settings.intermediate), dtype=BF16, device=DEVICE)
            fill_in_turns(layer.gate, layer.up, first, both)
            layer.down.fill(first, down)
            for n in range(count):
                assert equal(both[n, :, 0], layer.gate.matrix(BF16, first + n))
                assert equal(both[n, :, 1], layer.up.matrix(BF16, first + n))
                assert equal(down[n], layer.down.matrix(BF16, first + n))


BATCH = Batch.of([heldout(36), heldout(1, 60), heldout(9, 70)])


def streams(name: str, numbers: tuple[int, ...], by_kernels: bool) -> list[Any]:
    """What a layer makes of the embedding: itself, the noise, and with experts that are forced."""
    with ModelSource(open_checkpoint(TINY / name)) as source:
        x = source.embed(BATCH.tokens).to(DEVICE)
    forced = torch.arange(2, device=DEVICE).repeat(len(x), 1) + 1
    passes = [Pass(x), Pass(x, reverse=True), Pass(x, forced)]
    found = []
    for n, (settings, layer) in zip(numbers, layers(name, *numbers), strict=True):
        found.append(layer_passes(passes, layer, n, settings, BATCH, BF16, fused=by_kernels))
    return found


def test_a_layer_is_the_definitions_but_for_noise() -> None:
    """With a window and without one."""
    defined, made = (streams("hf-bf16", (0, 1), by_kernels) for by_kernels in (False, True))
    for a, b in zip(defined, made, strict=True):
        floor = drift(a[0][0], a[1][0])
        for (x, taken), (y, found) in zip(a, b, strict=True):
            assert not drift(x, y).beyond(floor)
            assert not found.logits.is_cuda and torch.equal(taken.experts.cpu(), found.experts)
        assert floor.whole and drift(b[0][0], b[1][0]).whole > floor.whole / DIVERGES, "another order is another sum"


@pytest.mark.parametrize("at_once", [fused.DECODED_NBYTES, 3 * 6 * 192 * 256, 1])
def test_dialects_and_experts_at_a_time_are_equal_bits(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert at a time, or three and one."""
    (first,) = streams("hf-bf16", (2,), True)
    monkeypatch.setattr(fused, "DECODED_NBYTES", at_once)
    for name in ("hf", "gguf/tiny-gpt-oss-auto.gguf") if at_once > 1 else ("hf",):
        (other,) = streams(name, (2,), True)
        assert all(equal(x, y) for (x, _), (y, _) in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["hf-bf16", "gguf/tiny-gpt-oss-q8_0.gguf"])
def test_logits(name: str) -> None:
    with ModelSource(open_checkpoint(TINY / name)) as source, Feed([(source, HEAD)], DEVICE) as feed:
        head, x = feed.head(source), randn(5, source.settings.hidden)
        defined, made = (
            [unembed(x, head, source.settings, Arithmetic(BF16, r), fused=f) for r in (False, True)]
            for f in (False, True)
        )
        floor = drift(*defined)
        for a, b in zip(defined, made, strict=True):
            assert a.shape == b.shape and not drift(a, b).beyond(floor)


def test_which_heads_suit() -> None:
    assert [d for d in range(200) if fused.suits(sizes(head_dim=d))] == [16, 32, 64, 128]
