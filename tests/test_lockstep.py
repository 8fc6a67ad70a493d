"""Two checkpoints in lockstep: what is equal has no drift, what is not is found in its layer; how weights are read."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from forward_runs import TINY, forward, heldout, relative

from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs import reference
from ckpttool.codecs.formats import Packing
from ckpttool.codecs.packing import PACK
from ckpttool.errors import InputError
from ckpttool.validator import lockstep as lockstep_module
from ckpttool.validator import weights
from ckpttool.validator.drift import Drift, DriftSum, drift
from ckpttool.validator.lockstep import LockstepReport, LogitChunk, lockstep
from ckpttool.validator.metrics import LogitMetrics
from ckpttool.validator.routing import Flips, Routing, expert_use, flips, route
from ckpttool.validator.stored import _mxfp4, _mxfp4_as_it_comes, by_triton
from ckpttool.validator.weights import HEAD, Feed, ModelSource

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = 4


@pytest.fixture(scope="module")
def text() -> list[int]:
    return heldout(120)


def walk(a: Path, b: Path, sequences: list[list[int]], **how: Any) -> tuple[LockstepReport, list[LogitChunk]]:
    """The report, and copies of the chunks."""
    chunks: list[LogitChunk] = []

    def keep(chunk: LogitChunk) -> None:
        values = {f.name: getattr(chunk, f.name) for f in dataclasses.fields(chunk)}
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        chunks.append(LogitChunk(**copies))

    return lockstep(open_checkpoint(a), open_checkpoint(b), sequences, keep, **how), chunks


# --- equal values ---


@pytest.mark.parametrize("candidate", ["hf-bf16", "openai", "unsloth", "gguf/tiny-gpt-oss-auto.gguf"])
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_another_dialect_has_no_drift_at_all(candidate: str, numbers: torch.dtype, text: list[int]) -> None:
    report, chunks = walk(TINY / "hf", TINY / candidate, [text], numbers=numbers)
    nothing = Drift(0.0, 0.0, 0)
    assert report.first_diverging is None
    assert report.embed == report.logits == report.logits_forced == nothing
    for layer in report.layers:
        assert layer.drift == layer.forced == layer.own == nothing
        assert layer.flips == Flips(0, 0)
        assert layer.noise.whole is not None and 0 < layer.noise.whole < 0.05
        assert layer.reference == layer.candidate
    assert torch.equal(chunks[0].reference, chunks[0].candidate)
    assert report.numbers == ("FP32" if numbers is torch.float32 else "BF16")
    assert [x.layer for x in report.layers] == list(range(LAYERS))
    assert (report.tokens, report.sequences, report.device) == (len(text), 1, "cpu")


def test_the_residual_streams_and_logits_are_those_of_each_alone(text: list[int]) -> None:
    report, chunks = walk(TINY / "parent", TINY / "hf", [text])
    a, _ = forward(TINY / "parent", [text])
    b, _ = forward(TINY / "hf", [text])
    assert relative(chunks[0].reference, a[:-1]) < 1e-6
    assert relative(chunks[0].candidate, b[:-1]) < 1e-6
    expected = float((b - a)[:-1].double().norm() / a[:-1].double().norm())
    assert report.logits.whole == pytest.approx(expected, rel=1e-4)
    assert report.first_diverging == "layer.0"
    for layer in report.layers:
        assert layer.drift.whole is not None and layer.own is not None and layer.own.whole is not None
        assert 0.01 < layer.own.whole <= 1.001 * layer.drift.whole < 0.3


# --- one change, found in its place ---


def altered(folder: Path, change: Callable[[builders.Tensors], object], config: dict[str, Any] | None = None) -> Path:
    """The MXFP4 fixture with its tensors or its config changed, in one file."""
    tensors = {name: builders.Tensor(t.dtype, t.array.copy()) for name, t in builders.read(TINY / "hf").items()}
    change(tensors)
    folder.mkdir()
    builders.save(folder / "model.safetensors", tensors)
    stated = json.loads((TINY / "hf" / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def bump_scale(t: builders.Tensors) -> None:
    t["model.layers.2.mlp.experts.down_proj_scales"].array[1, 77, 3] += 1


def no_number(t: builders.Tensors) -> None:
    t["model.layers.1.mlp.experts.gate_up_proj_scales"].array[2, 10, 1] = 255


def plain(name: str, index: Any, bits: int) -> Callable[[builders.Tensors], None]:
    def change(t: builders.Tensors) -> None:
        t[name].array[index] = bits

    return change


PLACES: dict[str, tuple[Callable[[builders.Tensors], object], str]] = {
    "a scale": (bump_scale, "layer.2"),
    "sinks": (plain("model.layers.1.self_attn.sinks", ..., 0), "layer.1"),
    "a router's bias": (plain("model.layers.3.mlp.router.bias", 0, 0x3F80), "layer.3"),
    "a norm's weight": (plain("model.layers.0.input_layernorm.weight", 5, 0x3F00), "layer.0"),
    "an embedding": (lambda t: t["model.embed_tokens.weight"].array[:, 7].fill(0x3F80), "embed"),
    "the last norm": (plain("model.norm.weight", 9, 0), "head"),
    "a row of the head": (plain("lm_head.weight", 33, 0x3E80), "head"),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_first_diverging_place_is_named(name: str, text: list[int], tmp_path: Path) -> None:
    change, place = PLACES[name]
    report, _ = walk(TINY / "hf", altered(tmp_path / "b", change), [text])
    assert report.first_diverging == place
    for layer in report.layers:
        assert layer.own is not None
        assert (layer.own.whole != 0) == (place == f"layer.{layer.layer}"), "no other layer errs by itself"


def test_a_nan_is_found_in_its_layer(text: list[int], tmp_path: Path) -> None:
    report, _ = walk(TINY / "hf", altered(tmp_path / "b", no_number), [text])
    assert report.first_diverging == "layer.1"
    assert report.layers[0].drift == Drift(0.0, 0.0, 0)
    found = report.layers[1].drift
    assert found.whole is None
    assert found.broken == report.layers[1].candidate.tokens[2] > 0
    assert report.logits.broken >= found.broken


@pytest.mark.parametrize(
    "config", [{"sliding_window": 31}, {"rope_theta": 140000}, {"swiglu_limit": 2.0}, {"rms_norm_eps": 1e-3}], ids=str
)
def test_a_wrong_setting_diverges_at_once(config: dict[str, Any], text: list[int], tmp_path: Path) -> None:
    report, _ = walk(TINY / "hf", altered(tmp_path / "b", lambda t: None, config), [text])
    assert report.first_diverging == "layer.0"


def test_forced_routing_takes_the_flips_away(text: list[int], tmp_path: Path) -> None:
    """A router's weights alone: with the reference's choice only the weights of the chosen differ."""

    def tilt(t: builders.Tensors) -> None:
        name = "model.layers.1.mlp.router.weight"
        wide = builders.widened(t[name].array)
        t[name].array[:] = builders.bf16(wide + np.float32(0.3 * wide.std()) * np.roll(wide, 1, 1) / wide.std())

    report, _ = walk(TINY / "hf", altered(tmp_path / "b", tilt), [text])
    at = report.layers[1]
    assert at.flips.tokens > 0 and at.flips.choices >= at.flips.tokens
    assert at.forced is not None and at.forced.whole is not None and at.drift.whole is not None
    assert 0 < at.forced.whole < at.drift.whole
    assert report.layers[0].flips == at.noise_flips == Flips(0, 0)


def test_passes_that_are_not_asked_for(text: list[int]) -> None:
    report, chunks = walk(TINY / "parent", TINY / "hf", [text], forced=False, own=False)
    whole, _ = walk(TINY / "parent", TINY / "hf", [text])
    assert report.logits_forced is None and chunks[0].forced is None
    assert all(x.forced is None and x.own is None for x in report.layers)
    assert [x.drift for x in report.layers] == [x.drift for x in whole.layers]


# --- logits, handed out ---


@pytest.mark.parametrize("at_once", [1 << 25, 7 * 1024])
def test_every_row_comes_once(at_once: int, text: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep_module, "LOGITS_AT_ONCE", at_once)
    sequences = [text[:50], text[50:51], text[51:80]]
    _, chunks = walk(TINY / "parent", TINY / "hf", sequences)
    alone, _ = forward(TINY / "parent", sequences)
    starts = [0, 50, 51]
    seen = []
    for c in chunks:
        assert len(c.reference) == len(c.candidate) == len(c.noise) == len(c.next_ids) <= at_once // 1024
        assert c.next_ids.tolist() == [sequences[c.sequence][p + 1] for p in c.positions.tolist()]
        assert relative(c.reference, alone[c.positions + starts[c.sequence]]) < 1e-5
        seen += [(c.sequence, p) for p in c.positions.tolist()]
    assert seen == [(0, p) for p in range(49)] + [(2, p) for p in range(28)]


def test_only_wanted_rows(text: list[int]) -> None:
    _, chunks = walk(TINY / "hf", TINY / "hf", [text[:20], text[20:50]], rows=[[3, 4, 19], range(25, 30)])
    assert [(c.sequence, c.positions.tolist()) for c in chunks] == [(0, [3, 4]), (1, [25, 26, 27, 28])]
    report, none = walk(TINY / "hf", TINY / "hf", [text[:1]])
    assert (none, report.logits) == ([], Drift(0.0, 0.0, 0))


def test_metrics_take_the_chunks(text: list[int]) -> None:
    _, chunks = walk(TINY / "parent", TINY / "hf", [text])
    found, floor = LogitMetrics(), LogitMetrics()
    for c in chunks:
        at = c.positions.tolist()
        found.add(c.reference, c.candidate, c.next_ids, sequence=c.sequence, positions=at)
        floor.add(c.reference, c.noise, c.next_ids, sequence=c.sequence, positions=at)
    real, noise = found.metrics(), floor.metrics()
    assert real.tokens == len(text) - 1
    assert real.kl_mean is not None and noise.kl_mean is not None
    assert 0 < noise.kl_mean < 1e-10 < 1e-3 < real.kl_mean < 0.1


def test_progress_is_told(text: list[int]) -> None:
    told: list[tuple[int, int]] = []
    walk(TINY / "hf", TINY / "hf", [text[:9]], progress=lambda *at: told.append(at))
    assert told == [(n, LAYERS) for n in range(1, LAYERS + 1)]


def test_two_models_of_other_sizes_are_refused(text: list[int], tmp_path: Path) -> None:
    other = builders.write(builders.Model(builders.Sizes(layers=4, vocab=1024)), tmp_path / "m", "hf")
    with pytest.raises(InputError, match="the reference has"):
        walk(TINY / "hf", other, [text])


def test_a_token_without_embedding_is_refused() -> None:
    for bad in (1024, -1):
        with pytest.raises(InputError, match=f"token {bad} has no row among 1024"):
            walk(TINY / "hf", TINY / "hf", [[5, bad, 6]])


# --- drift and routing ---


def test_drift_is_the_relative_error() -> None:
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(2500, 17, generator=rng)
    b = a + 1e-3 * torch.randn(2500, 17, generator=rng)
    found = drift(a, b)
    assert found.whole == pytest.approx(float((b - a).double().norm() / a.double().norm()), rel=1e-12)
    assert found.median == pytest.approx(float(((b - a).norm(dim=1) / a.norm(dim=1)).median()), rel=1e-4)
    pieces = DriftSum()
    for at in range(0, 2500, 333):
        pieces.add(a[at : at + 333], b[at : at + 333])
    assert pieces.drift().whole == pytest.approx(found.whole, rel=1e-12)
    a[3] = b[3] = 0
    assert drift(a, a) == Drift(0.0, 0.0, 0)
    b[7, 2], b[9, 0] = math.inf, math.nan
    assert (drift(a, b).whole, drift(a, b).broken) == (None, 2)


def test_what_is_beyond_noise() -> None:
    floor = Drift(1e-6, 1e-6, 0)
    assert not Drift(3.9e-6, 0.0, 0).beyond(floor)
    assert Drift(4.1e-6, 0.0, 0).beyond(floor)
    assert Drift(None, None, 1).beyond(floor)
    assert not Drift(None, None, 2).beyond(Drift(None, None, 2)), "the reference is as broken"
    assert not Drift(0.0, 0.0, 0).beyond(Drift(0.0, 0.0, 0))


def test_flips_count_sets() -> None:
    logits = torch.zeros(4, 5)
    a = Routing(torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]]), torch.zeros(4, 2), logits)
    b = Routing(torch.tensor([[1, 0], [2, 4], [1, 3], [1, 2]]), torch.zeros(4, 2), logits)
    assert flips(a, b) == Flips(2, 3)


def test_how_experts_are_used() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25, 1e-30]] * 3 + [[0.25, 0.5, 0.25, 1e-30]]))
    use = expert_use(route(logits, 1))
    assert (use.tokens, use.unused) == ((3, 1, 0, 0), (2, 3))
    assert use.entropy == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)
    assert use.balance == pytest.approx(3.0)
    assert use.router_entropy == pytest.approx(1.5, abs=1e-6)


def test_weights_are_a_softmax_over_the_chosen() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    found = route(logits, 2)
    assert found.experts.tolist() == [[1, 2]]
    assert found.weights[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    held = route(logits, 2, torch.tensor([[3, 1]]))
    assert held.weights[0].tolist() == pytest.approx([1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4))])


# --- reading and decoding ---


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
def test_every_scale_byte_decodes_as_it_should(packing: Packing) -> None:
    """All 256 with every code: the definition's values, NaN and Inf included."""
    codes = np.tile(np.arange(32, dtype=np.uint8) % 16, (256, 2, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        want = torch.from_numpy(reference.dequantize(codes, scales)).view(256, 64)
    made = PACK[packing](codes)
    if packing is Packing.ggml:
        structs = torch.from_numpy(np.concatenate([scales[..., None], made], -1))
        blocks, bytes_ = structs[..., 1:], structs[..., 0]
    else:
        blocks, bytes_ = torch.from_numpy(made), torch.from_numpy(scales)
    got = _mxfp4_as_it_comes(blocks, bytes_, packing)
    assert torch.equal(got.view(torch.int32)[:255], want.view(torch.int32)[:255])
    assert got[255].isnan().all()
    for dtype in (torch.float32, torch.bfloat16):
        fast = _mxfp4(blocks[:253], bytes_[:253], packing, dtype)
        assert torch.equal(fast.float(), got[:253])


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpus_kernel_takes_the_views_that_a_layer_has(packing: Packing, dtype: torch.dtype) -> None:
    """Every second row, as gate and up lie in Hugging Face's dialect; in Triton's interpreter where there is no GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(1)
    scales = torch.from_numpy(rng.integers(100, 140, (12, 3), np.uint8))
    blocks = torch.from_numpy(rng.integers(0, 256, (12, 3, 16), np.uint8))
    if packing is Packing.ggml:
        structs = torch.cat([scales[..., None], blocks], -1).to(device)
        there, bytes_ = structs[..., 1:], structs[..., 0]
    else:
        there, bytes_ = blocks.to(device), scales.to(device)
    for place in (0, 1):
        out = torch.empty((6, 1, 96), dtype=dtype, device=device)
        by_triton(there[place::2][:, None], bytes_[place::2][:, None], packing, out)
        want = _mxfp4(blocks[place::2], scales[place::2], packing, dtype)
        assert torch.equal(out[:, 0].cpu(), want)


@pytest.mark.parametrize("name", ["hf", "hf-bf16", "openai", "unsloth", "gguf/split", "gguf/tiny-gpt-oss-q8_0.gguf",
                                  "gguf/tiny-gpt-oss-q4_k_m.gguf"])  # fmt: skip
@pytest.mark.parametrize("staged", [False, True])
def test_every_part_is_what_a_part_view_decodes(name: str, staged: bool) -> None:
    checkpoint = open_checkpoint(TINY / name)
    seen = 0
    with ModelSource(checkpoint) as source, torch.inference_mode():
        order = [(source, 2), (source, 3), (source, HEAD)]
        with Feed(order, torch.device("cpu"), staged=staged) as feed:
            for _, take in order:
                found = feed.head(source) if isinstance(take, str) else feed.layer(source, take)
                for field, part in source.parts(take).items():
                    mine = getattr(found, field)
                    want = torch.from_numpy(checkpoint.part(part).array())
                    if mine.shape.k is None:
                        got = mine.vectors()
                    elif len(mine.shape.rows) > 1:
                        got = torch.stack([mine.matrix(torch.float32, e) for e in range(mine.shape.rows[0])])
                    else:
                        got = mine.matrix(torch.float32)
                    assert torch.equal(got, want), part
                    seen += 1
    assert seen == 2 * 19 + 2


def test_a_feed_holds_two_buffers_of_its_largest() -> None:
    with ModelSource(open_checkpoint(TINY / "hf")) as a, ModelSource(open_checkpoint(TINY / "hf-bf16")) as b:
        order = [(s, n) for n in range(LAYERS) for s in (a, b)]
        largest = max(sum(-(-t.nbytes // 64) * 64 for t in s.stored(n)) for s, n in order)
        with Feed(order, torch.device("cpu")) as feed:
            assert [len(x) for x in feed._buffers] == [largest, largest]
            assert feed.nbytes == sum(t.nbytes for s, n in order for t in s.stored(n))
            with pytest.raises(ValueError, match="not what comes next"):
                feed.layer(b, 0)


def test_large_tensors_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch, text: list[int]) -> None:
    want, _ = forward(TINY / "hf", [text])
    monkeypatch.setattr(weights, "PIECE_NBYTES", 1000)
    assert torch.equal(forward(TINY / "hf", [text])[0], want)


def test_a_file_that_shrinks_is_an_error(text: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(TINY / "hf-bf16", folder)
    checkpoint = open_checkpoint(folder)
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as f:
            f.truncate(file.stat().st_size - 1000)
    with pytest.raises(InputError, match="early"):
        lockstep(open_checkpoint(TINY / "hf"), checkpoint, [text], lambda c: None)


@pytest.mark.parametrize("near", [1, 1 << 14, 1 << 30])
@pytest.mark.parametrize("name", ["hf", "gguf/tiny-gpt-oss-q8_0.gguf", "gguf/tiny-gpt-oss-q4_k_m.gguf"])
def test_embeddings_are_rows_of_the_part(name: str, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "NEAR_NBYTES", near)
    checkpoint = open_checkpoint(TINY / name)
    tokens = torch.tensor([1023, 0, 7, 7, 8, 500, 0])
    with ModelSource(checkpoint) as source:
        assert torch.equal(source.embed(tokens), torch.from_numpy(checkpoint.part("embed")[0])[tokens])


def test_formats_that_nobody_decodes_are_refused(tmp_path: Path) -> None:
    def double(rows: dict[str, Any]) -> None:
        rows["blk.1.attn_norm.weight"] = ("F64", np.zeros(64))

    path = builders.write_gguf(builders.Model(), tmp_path / "m.gguf", change=double)
    with pytest.raises(InputError, match="is not read") as caught:
        ModelSource(open_checkpoint(path))
    assert caught.value.field == "blk.1.attn_norm.weight"


def test_numbers_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger one decides."""
    small, large = open_checkpoint(TINY / "hf"), open_checkpoint(TINY / "hf-bf16")
    assert small.nbytes < large.nbytes
    monkeypatch.setattr(lockstep_module, "FP32_NBYTES", large.nbytes)
    assert lockstep_module.numbers_for(small, large) is torch.float32
    monkeypatch.setattr(lockstep_module, "FP32_NBYTES", large.nbytes - 1)
    assert lockstep_module.numbers_for(small, large) is lockstep_module.numbers_for(large, small) is torch.bfloat16
