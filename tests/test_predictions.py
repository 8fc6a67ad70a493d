"""Level `forward`: its figures are those of each model by itself, and what is not finite is named with its place."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import builders
import pytest
import torch
from forward_runs import TINY, forward

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.errors import InputError, LimitError, UsageError
from ckpttool.validator import lockstep as lockstep_module
from ckpttool.validator import predictions
from ckpttool.validator.failures import Failure
from ckpttool.validator.inputs import LENGTH, TOKENS, Inputs, inputs_for
from ckpttool.validator.lockstep import lockstep, walk_nbytes
from ckpttool.validator.metrics import LogitMetrics, Metrics
from ckpttool.validator.predictions import Found, device_for, predict

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = (
    '{"messages": [{"role": "user", "content": "hello"}], "answer": "good morning to you"}\n'
    '{"messages": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a house"}]}\n'
)


@pytest.fixture(scope="module")
def hf() -> Checkpoint:
    return open_checkpoint(TINY / "hf")


@pytest.fixture(scope="module")
def parent() -> Checkpoint:
    return open_checkpoint(TINY / "parent")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, parent: Checkpoint, hf: Checkpoint) -> Inputs:
    file = tmp_path_factory.mktemp("predictions") / "prompts.jsonl"
    file.write_text(PROMPTS)
    return inputs_for(parent, hf, device="cpu", tokens=2 * LENGTH, prompts=file, effort="low")


@pytest.fixture(scope="module")
def found(parent: Checkpoint, hf: Checkpoint, both: Inputs) -> Found:
    return predict(parent, hf, both, device="cpu", nbytes=walk_nbytes(parent, hf))


def run(reference: Checkpoint, candidate: Path, tokens: int = 40) -> Found:
    other = open_checkpoint(candidate)
    given = inputs_for(reference, other, device="cpu", tokens=tokens)
    return predict(reference, other, given, device="cpu", nbytes=walk_nbytes(reference, other))


# --- inputs ---


def test_a_gpu_gets_more_tokens_and_sequences_are_of_one_length(parent: Checkpoint, hf: Checkpoint) -> None:
    for device, tokens in (("cpu", TOKENS["cpu"]), ("cuda:1", TOKENS["cuda"])):
        given = inputs_for(parent, hf, device=device)
        assert [len(s) for s in given.sequences] == [LENGTH] * (tokens // LENGTH)
    assert (given.text, given.prompts, given.effort, given.notes) == ("packaged", (), None, ())


def test_a_text_of_ones_own_and_its_end(parent: Checkpoint, hf: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a short text of its own")
    given = inputs_for(parent, hf, device="cpu", text=tmp_path / "a.txt", tokens=4000)
    (ids,) = given.sequences
    assert given.text == str(tmp_path / "a.txt")
    assert given.notes == (f"the text has {len(ids)} tokens; 4,000 were asked for",)
    assert inputs_for(parent, hf, device="cpu", text=tmp_path / "a.txt").notes == ()


def test_a_reference_without_a_tokenizer_takes_the_candidates(hf: Checkpoint) -> None:
    given = inputs_for(open_checkpoint(TINY / "openai"), hf, device="cpu", tokens=9)
    (note,) = given.notes
    assert note == f"the reference has no tokenizer; the text was cut by {TINY / 'hf'}: tokenizer.json"
    with pytest.raises(InputError, match=r"tokenizer.json is missing; .*--level values"):
        inputs_for(open_checkpoint(TINY / "openai"), open_checkpoint(TINY / "openai"), device="cpu")


def test_of_prompts_the_answers_count(both: Inputs, hf: Checkpoint) -> None:
    from ckpttool.validator.text import encoder

    answers = [encoder(hf).decode([p.ids[n + 1] for n in p.positions]) for p in both.prompts]
    assert [text for text in ("good morning to you", "a house") if text not in "".join(answers)] == []
    assert not [text for text in ("hello", "what is it") if text in "".join(answers)]
    assert both.rows[:2] == [range(LENGTH - 1)] * 2
    assert both.rows[2:] == [p.positions for p in both.prompts]
    assert [len(ids) for ids in both.batch] == [LENGTH, LENGTH, *(len(p.ids) for p in both.prompts)]


@pytest.mark.parametrize(
    ("how", "what"),
    [({"effort": "low"}, "says nothing without --prompts"), ({"effort": "most", "prompts": "x"}, "low, medium, high"),
     ({"tokens": 1}, "leaves nothing to predict")],
)  # fmt: skip
def test_inputs_that_cannot_be(parent: Checkpoint, hf: Checkpoint, how: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        inputs_for(parent, hf, device="cpu", **how)  # type: ignore[arg-type]


# --- figures ---


def alone(sequences: list[list[int]], rows: list[range]) -> Metrics:
    """The figures of two models that never met: each in its own walk."""
    out, at = LogitMetrics(), 0
    logits = [forward(TINY / side, sequences)[0] for side in ("parent", "hf")]
    for n, (ids, own) in enumerate(zip(sequences, rows, strict=True)):
        picked = torch.tensor(own) + at
        targets = torch.tensor(ids)[torch.tensor(own) + 1]
        out.add(logits[0][picked], logits[1][picked], targets, sequence=n, positions=list(own))
        at += len(ids)
    return out.metrics()


def test_the_figures_are_those_of_each_model_by_itself(found: Found, both: Inputs) -> None:
    assert found.forward.on_prompts is not None
    kinds = [(found.forward.on_text, slice(0, 2)), (found.forward.on_prompts, slice(2, None))]
    for got, part in kinds:
        expected = alone(both.batch[part], both.rows[part])
        m = got.metrics
        assert (m.tokens, m.sequences, m.top1, m.top5) == (
            expected.tokens, expected.sequences, expected.top1, expected.top5,
        )  # fmt: skip
        assert m.kl_max_at == expected.kl_max_at
        for name in ("kl_mean", "kl_p99", "ppl_reference", "ppl_candidate", "ppl_ratio"):
            assert getattr(m, name) == pytest.approx(getattr(expected, name), rel=1e-4), name
        assert m.kl_mean is not None and got.noise.kl_mean is not None and got.forced is not None
        assert 0 < got.noise.kl_mean < 1e-10 < 1e-3 < m.kl_mean
        assert got.noise.ppl_reference == m.ppl_reference
        assert sum(got.kl.counts) + got.kl.zeros == m.tokens
    assert found.forward.on_prompts.metrics.tokens == sum(len(p.positions) for p in both.prompts)


def test_what_the_walk_says_is_in_the_report(found: Found, both: Inputs) -> None:
    f = found.forward
    assert (f.tokens, f.sequences) == (sum(map(len, both.batch)), 4)
    assert (f.device, f.numbers, f.peak_gpu_nbytes) == ("cpu", "FP32", None)
    assert (f.prompts, f.reasoning_effort, f.text) == (2, "low", "packaged")
    assert f.first_diverging == "layer.0"
    assert found.failures == ()
    assert [x.layer for x in found.layers] == [0, 1, 2, 3]
    for x in found.layers:
        assert x.drift is not None and x.forced is not None and x.own is not None and x.noise is not None
        assert x.noise < 1e-5 < 0.01 < x.own <= x.drift * 1.001
        assert x.flips <= x.choices <= 2 * x.flips
        assert sum(x.reference.tokens) == sum(x.candidate.tokens) == 2 * f.tokens
    assert found.layers[3].forced < found.layers[3].drift  # type: ignore[operator]


def test_progress_counts_every_byte_once(parent: Checkpoint, hf: Checkpoint) -> None:
    nbytes = walk_nbytes(parent, hf)
    told: list[int] = []
    given = inputs_for(parent, hf, device="cpu", tokens=8)
    done = predict(parent, hf, given, device="cpu", nbytes=nbytes, progress=told.append)
    assert told == list(nbytes)
    assert sum(told) == done.forward.read_nbytes
    # All but the embeddings, of which only the rows of the text are read.
    embeds = sum(c.shapes["embed"].row_count * c.shapes["embed"].row_length * 2 for c in (parent, hf))
    assert sum(told) == parent.nbytes + hf.nbytes - embeds


# --- what is not finite ---


def spoilt(folder: Path, change: Callable[[builders.Tensors], object]) -> Path:
    tensors = {name: builders.Tensor(t.dtype, t.array.copy()) for name, t in builders.read(TINY / "hf").items()}
    change(tensors)
    folder.mkdir()
    builders.save(folder / "model.safetensors", tensors)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "hf" / name, folder)
    return folder


def fill(name: str, index: object, bits: int) -> Callable[[builders.Tensors], None]:
    def change(t: builders.Tensors) -> None:
        t[name].array[index] = bits

    return change


NAN = 0x7FC0
BROKEN = {
    "a bias": (fill("model.layers.2.self_attn.q_proj.bias", 3, NAN), None, 2),
    "a scale": (fill("model.layers.1.mlp.experts.down_proj_scales", (slice(None), 0, 0), 255), None, 1),
    "the embedding": (fill("model.embed_tokens.weight", (slice(None), 7), NAN), "embed", None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_first_place_of_a_nan(name: str, hf: Checkpoint, tmp_path: Path) -> None:
    change, part, layer = BROKEN[name]
    got = run(hf, spoilt(tmp_path / "x", change))
    first, *others = got.failures
    assert (first.part, first.layer, first.level) == (part, layer, "forward")
    assert first.what == "the candidate's residual stream is not finite behind it, at 40 of 40 tokens"
    (logits,) = others
    assert logits.what.startswith("logits of the candidate are not finite at 39 of 39 tokens; the first: sequence 0, ")
    assert got.forward.on_text.metrics == Metrics(0, 0)
    assert got.forward.on_text.noise.tokens == 39


def test_a_reference_that_is_broken_is_said_to_be(tmp_path: Path) -> None:
    change, _, layer = BROKEN["a bias"]
    broken = open_checkpoint(spoilt(tmp_path / "x", change))
    got = run(broken, TINY / "hf")
    assert [(f.layer, f.what.split(" ")[1]) for f in got.failures] == [(layer, "reference's"), (None, "of")]
    assert got.failures[1].what.startswith("logits of the reference are not finite")


def test_a_nan_in_the_head_has_no_layer(hf: Checkpoint, tmp_path: Path) -> None:
    got = run(hf, spoilt(tmp_path / "x", fill("lm_head.weight", (5, 5), NAN)))
    (failure,) = got.failures
    assert failure == Failure(None, None, failure.what, "forward")
    assert failure.what.endswith("the first: sequence 0, position 0, token 5")
    assert not any(x.broken for x in got.layers)


# --- what keeps it from running ---


def test_two_sizes_are_said_before_anything_is_read(
    hf: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep_module, "Feed", None)
    folder = spoilt(tmp_path / "x", lambda t: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError):
        walk_nbytes(hf, open_checkpoint(folder))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_too_little_memory_is_a_limit(hf: Checkpoint, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lockstep_module, "layer_passes", fail)
    with pytest.raises(LimitError, match="cpu has too little memory for 3 tokens; give fewer --tokens"):
        lockstep(hf, hf, [[1, 2, 3]], lambda chunk: None)


def test_another_error_of_torch_stays_what_it_is(hf: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(lockstep_module, "layer_passes", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        lockstep(hf, hf, [[1, 2, 3]], lambda chunk: None)


# --- devices ---


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_for("cpu") == "cpu"
    for asked in ("gpu", "cuda:x", "cuda:0,cuda:1", ""):
        with pytest.raises(UsageError, match=f"--device {asked}"):
            device_for(asked)
    seen = {"cuda": SimpleNamespace(type="cuda", index=None), "cuda:1": SimpleNamespace(type="cuda", index=1)}
    monkeypatch.setattr(predictions, "cards", lambda asked: [seen[asked]])
    assert [device_for(asked) for asked in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert device_for("auto") == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda: .*--device cpu"):
        device_for("cuda")


def test_without_the_tokenizers_library(hf: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"tokenizers library .*pip install 'ckpttool\[torch\]'"):
        inputs_for(hf, hf, device="cpu")
