"""Slabs over the link: the bytes of the CPU's, whatever the room, and a clean end whatever fails.

On a GPU where there is one; otherwise Triton interprets, and the CPU stands for every card.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest
from builders import Model, Sizes, Tensors
from commandline import run

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import ckpttool  # noqa: E402 - after the check for torch
from ckpttool import api, devices, steps, threads  # noqa: E402
from ckpttool.codecs import gpu_link  # noqa: E402
from ckpttool.codecs.gpu_link import Lane, pinned  # noqa: E402
from ckpttool.codecs.gpu_room import lanes_within, reserved_nbytes  # noqa: E402
from ckpttool.containers.source import LocalFile, LocalTarget  # noqa: E402
from ckpttool.devices import Devices  # noqa: E402
from ckpttool.errors import CkptError, InputError, LimitError, LocalIOError, UsageError  # noqa: E402
from ckpttool.reports import Conversion  # noqa: E402
from ckpttool.resources import PAGE  # noqa: E402
from ckpttool.slabwork import ALIGNMENT  # noqa: E402

MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
NATIVE = torch.cuda.is_available()
needs_two = pytest.mark.skipif(NATIVE and torch.cuda.device_count() < 2, reason="needs two GPUs, or none")

CONVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "dequantize, transposed": ("hf", {"to": "bf16"}),
    "dequantize, transposed, F32": ("openai", {"to": "bf16", "experts": "f32"}),
    "dequantize, rows": ("hf", {"to": "gguf", "experts": "bf16"}),
    "repack": ("hf", {"to": "gguf"}),
    "quantize, transposed": ("hf-bf16", {"to": "mxfp4", "recipe": "ocp"}),
    "quantize, transposed, to structs": ("hf-bf16", {"to": "gguf", "experts": "mxfp4", "recipe": "ocp"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {name: builders.write(MODEL, root / name, name) for name in ("hf", "hf-bf16", "openai")}


def convert(source: Path, target: Path, device: str, **options: Any) -> Conversion:
    if options["to"] == "gguf":
        options = {"model_name": "x", **options}
        target = target / "out.gguf"
    return ckpttool.convert(source, target, device=device, **options)


def files(report: Conversion) -> list[tuple[int, str | None]]:
    """Size and sha256 of each file, in their order."""
    return [(f.nbytes, f.sha256) for f in report.files]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_bytes_of_the_cpu(
    name: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each slab that is for a GPU went there, and no other."""
    source, options = CONVERSIONS[name]
    calls = []
    original = Lane.transcode

    def transcode(self: Lane, *args: Any) -> None:
        calls.append(self)
        original(self, *args)

    monkeypatch.setattr(Lane, "transcode", transcode)
    monkeypatch.setattr(steps, "SLAB_NBYTES", 20_000)
    plan = api.plan(sources[source], tmp_path / "x", **({"model_name": "x"} | options))
    expected = sum(steps.for_gpu(plan.steps[s.step]) for s in plan.slabs)
    assert 0 < expected < len(plan.slabs)
    on_cpu = convert(sources[source], tmp_path / "cpu", "cpu", **options)
    assert not calls
    on_gpu = convert(sources[source], tmp_path / "gpu", "cuda", workers=3, **options)
    assert files(on_gpu) == files(on_cpu)
    assert len(calls) == expected
    assert on_cpu.run["devices"] == ["cpu"]
    assert on_gpu.run["devices"] == ["cuda:0"]
    assert on_gpu.run["versions"]["torch"] == torch.__version__
    assert on_gpu.plan == on_cpu.plan


@needs_two
def test_slabs_are_spread_over_cards(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    original = Lane.transcode

    def transcode(self: Lane, *args: Any) -> None:
        used.add(id(self._stream))
        original(self, *args)

    monkeypatch.setattr(Lane, "transcode", transcode)
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    options = {"to": "gguf", "workers": 4}
    on_gpus = convert(sources["hf"], tmp_path / "gpus", "cuda:0,cuda:1", **options)
    assert len(used) == 4
    assert on_gpus.run["devices"] == ["cuda:0", "cuda:1"]
    assert files(on_gpus) == files(convert(sources["hf"], tmp_path / "cpu", "cpu", **options))


def test_threads_take_cards_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own memory here, and its own there."""
    cards: list[Any] = [SimpleNamespace(type="cpu", index=i) for i in range(2)]
    made = []

    def lane(device: Any, buffer: Any, room: Any) -> Any:
        made.append((buffer.ctypes.data, room))
        return device, buffer.ctypes.data

    monkeypatch.setattr(gpu_link, "Lane", lane)
    monkeypatch.setattr(gpu_link, "_try", lambda card: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, device, **more: empty(*args, **more))
    whole = np.zeros((5, PAGE), np.uint8)
    lanes: list[Any] = gpu_link.lanes(cards, list(whole), 0)
    assert [device.index for device, _ in lanes] == [0, 1, 0, 1, 0]
    assert [address for _, address in lanes] == [buffer.ctypes.data for buffer in whole]
    rooms = [dict(made)[b.ctypes.data] for b in whole]
    assert len({room.data_ptr() for room in rooms}) == 5
    assert all(room.nbytes == PAGE for room in rooms)
    owners = [room.untyped_storage().data_ptr() for room in rooms]
    assert owners == [owners[0], owners[1]] * 2 + [owners[0]]  # one allocation for all of a card's
    assert owners[0] != owners[1]


class Recorded:
    """What stands for a CUDA graph: the work on a slab, to be done again on the same memory."""

    def __init__(self, lane: Lane, *slab: Any) -> None:
        self.lane = lane
        self.slab = slab
        self.replayed = 0

    def replay(self) -> None:
        assert gpu_link.LAUNCHING.locked(), "torch plays no graph of a card that another thread records one on"
        self.replayed += 1
        self.lane._enqueue(*self.slab)


RECORDS = pytest.mark.skipif(NATIVE, reason="there the other tests record and replay")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lanes that are made, each taken for one to a card."""
    lanes: list[Any] = []
    original = Lane.__init__

    def made(self: Any, *args: Any) -> None:
        original(self, *args)
        self.device = SimpleNamespace(type="cuda")
        lanes.append(self)

    monkeypatch.setattr(Lane, "__init__", made)
    monkeypatch.setattr(Lane, "_recorded", lambda *args: Recorded(*args))
    return lanes


@RECORDS
def test_what_comes_once_is_not_recorded(sources: dict[str, Path], tmp_path: Path, recording: list[Any]) -> None:
    """It would cost more than to run it."""
    convert(sources["hf"], tmp_path / "gpu", "cuda", workers=1, to="bf16")
    (lane,) = recording
    assert (len(lane._met), lane._graphs) == (2, {})


@RECORDS
@pytest.mark.parametrize("name", ["dequantize, transposed", "repack", "quantize, transposed"])
def test_what_is_recorded_is_replayed_for_slabs_alike(
    name: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recording: list[Any]
) -> None:
    source, options = CONVERSIONS[name]
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    on_gpu = convert(sources[source], tmp_path / "gpu", "cuda", workers=1, **options)
    assert files(on_gpu) == files(convert(sources[source], tmp_path / "cpu", "cpu", **options))
    (lane,) = recording
    graphs = list(lane._graphs.values())
    plan = api.plan(sources[source], tmp_path / "x", **({"model_name": "x"} | options))
    slabs = sum(steps.for_gpu(plan.steps[s.step]) for s in plan.slabs)
    assert graphs
    assert set(lane._graphs) <= lane._met
    assert sum(g.replayed for g in graphs) == slabs - len(lane._met) > 0  # each first one is run as it is


def test_one_slab_at_a_time_is_enough_room(sources: dict[str, Path], tmp_path: Path) -> None:
    """Less is refused with the figure that then does."""
    options = {"to": "gguf", "workers": 4}
    with pytest.raises(LimitError, match="the largest slab needs 13 MB of the GPU") as caught:
        convert(sources["hf"], tmp_path / "a", "cuda", max_gpu_memory=10_000, **options)
    assert caught.value.exit_code == 6
    needed = str(caught.value.hint).split("--max-gpu-memory ")[1].split()[0]
    report = convert(sources["hf"], tmp_path / "a", "cuda", max_gpu_memory=needed, **options)
    assert files(report) == files(convert(sources["hf"], tmp_path / "b", "cpu", **options))


def test_the_plan_says_where_and_what_it_takes(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = api.plan(sources["hf"], tmp_path / "x", to="bf16")
    report = api.preview(plan, api.limit(device="cuda", workers=2))
    assert (report.devices, report.devices_why) == (("cuda:0",), "asked for")
    largest = max(plan.steps[x.step].io_nbytes(x) for x in plan.slabs)
    buffer = -(-(largest + ALIGNMENT) // PAGE) * PAGE
    assert report.gpu_memory == reserved_nbytes(2, buffer)
    most = lanes_within(report.gpu_memory, buffer)
    few = api.preview(plan, api.limit(device="cuda", workers=len(plan.slabs), max_gpu_memory=report.gpu_memory))
    assert (few.workers, few.gpu_memory) == (min(most, len(plan.slabs)), report.gpu_memory)
    report = api.preview(plan, api.limit(device="cpu", workers=2))
    assert (report.devices, report.gpu_memory) == (("cpu",), 0)


@needs_two
def test_two_cards_share_the_threads(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = api.plan(sources["hf"], tmp_path / "x", to="bf16")
    of_each = api.preview(plan, api.limit(device="cuda:0,cuda:1", workers=2)).gpu_memory
    assert of_each == api.preview(plan, api.limit(device="cuda", workers=1)).gpu_memory


def test_a_bad_value_is_named_as_on_the_cpu(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.experts.gate_up_proj"].array[1, 20, 77] = 0xFF80

    source = builders.write(MODEL, tmp_path / "source", "hf-bf16", change=change)
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(InputError, match=r"layer\.0\.up, expert 1, row 38, block 0") as caught:
            convert(source, tmp_path / device, device, to="mxfp4", recipe="ocp")
        said.append(str(caught.value))
        assert [p.name for p in tmp_path.iterdir()] == ["source"]
    assert said[0] == said[1]


def test_a_scale_that_is_nan_is_named_as_on_the_cpu(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.experts.down_proj_scales"].array[1, 30, 1] = 255

    source = builders.write(MODEL, tmp_path / "source", "hf", change=change)
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(InputError, match="expert 1, row 30, block 1") as caught:
            convert(source, tmp_path / device, device, to="bf16")
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert files(convert(source, tmp_path / "a", "cuda", to="gguf")) == files(
        convert(source, tmp_path / "b", "cpu", to="gguf")
    )  # which carries the byte as it is


def test_a_card_that_fails_loses_nothing(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch says comes through in a line, and the CPU goes on where the card stopped."""
    original = Lane._run
    calls = []

    def run_one(self: Lane, *args: Any) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice for developers")
        original(self, *args)

    monkeypatch.setattr(steps, "SLAB_NBYTES", 20_000)
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "_run", run_one)
        with pytest.raises(LocalIOError) as caught:
            convert(sources["hf"], tmp_path / "out", "cuda", to="bf16", workers=1)
    assert "failed: CUDA error: an illegal memory access was encountered" in caught.value.message
    assert "developers" not in str(caught.value)
    assert "--device cpu" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    report = convert(sources["hf"], tmp_path / "out", "cpu", to="bf16")
    assert report.run["slabs_resumed"] >= 2
    assert files(report) == files(convert(sources["hf"], tmp_path / "whole", "cpu", to="bf16"))


def test_too_little_memory_on_the_card(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "__init__", fails(NO_ROOM))
    with pytest.raises(LimitError, match=r"cuda:0: CUDA out of memory\. Tried to allocate 2\.00 GiB\.") as caught:
        convert(sources["hf"], tmp_path / "out", "cuda", to="bf16")
    assert "--max-gpu-memory" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())  # nor are files that were reserved left lying


NO_ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


class Coded(RuntimeError):
    """As torch.AcceleratorError: its code is CUDA's."""

    error_code = 2


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any) -> Any:
        raise error

    return fail


STARTS: list[tuple[str, BaseException, type[CkptError]]] = [
    ("lanes", NO_ROOM, LimitError),
    ("lanes", Coded("CUDA error: out of memory"), LimitError),
    ("pinned", RuntimeError("out of memory (2)"), LimitError),
    ("pinned", RuntimeError("operation not supported (801)"), LocalIOError),
    ("lanes", RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore"), LocalIOError),
    ("_try", subprocess.CalledProcessError(1, ["gcc", "main.c"]), LocalIOError),
    ("init", RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nmore"), UsageError),
    ("init", AssertionError("Torch not compiled with CUDA enabled"), UsageError),
]
"""Where a GPU fails as it starts, with what, and what kind of error that is."""


@pytest.fixture(params=range(len(STARTS)))
def unfit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[BaseException, type[CkptError]]:
    """A GPU that does not start."""
    where, error, kind = STARTS[request.param]
    if where == "init":
        monkeypatch.setattr(devices, "cards", lambda asked: [torch.device("cuda:0")])
        monkeypatch.setattr(torch.cuda, "init", fails(error))
    else:
        monkeypatch.setattr(gpu_link, where, fails(error))
    return error, kind


def test_what_stops_a_gpu_that_was_asked_for(
    unfit: tuple[BaseException, type[CkptError]], sources: dict[str, Path], tmp_path: Path
) -> None:
    """Only memory that lacks is a limit; and it is one line."""
    error, kind = unfit
    with pytest.raises(kind) as caught:
        convert(sources["hf"], tmp_path / "out", "cuda", to="bf16")
    assert type(caught.value) is kind
    assert caught.value.message == f"cuda:0: {str(error).splitlines()[0]}"
    assert "--device cpu" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_was_chosen_is_done_without(
    unfit: tuple[BaseException, type[CkptError]],
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cores compute, within the memory of a run on cores, and the receipt says why."""
    monkeypatch.setattr(devices, "choose", lambda *args: CHOSEN)
    report = convert(sources["hf"], tmp_path / "out", "auto", to="bf16")
    assert report.run["devices"] == ["cpu"]
    assert report.run["devices_why"] == f"the GPU cannot be used: cuda:0: {str(unfit[0]).splitlines()[0]}"
    assert report.run["workers"] <= threads.CORES
    monkeypatch.undo()
    assert files(report) == files(convert(sources["hf"], tmp_path / "cpu", "cpu", to="bf16"))


CHOSEN = Devices(("cuda:0",), "faster", by_choice=True)


def test_a_gpu_that_was_chosen_and_may_have_no_memory(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says so already."""
    monkeypatch.setattr(devices, "choose", lambda *args: CHOSEN)
    plan = api.plan(sources["hf"], tmp_path / "x", to="bf16")
    report = api.preview(plan, api.limit(max_gpu_memory="12MB"))
    assert (report.devices, report.gpu_memory) == (("cpu",), 0)
    assert report.devices_why == "the GPU cannot be used: the largest slab needs 13 MB of the GPU"


def test_the_terminal_says_why_a_gpu_was_not_used(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "choose", lambda *args: CHOSEN)
    monkeypatch.setattr(gpu_link, "lanes", fails(NO_ROOM))
    done = run("convert", sources["hf"], tmp_path / "out", "--to", "bf16")
    assert done.code == 0
    assert "on cpu: the GPU cannot be used: cuda:0: CUDA out of memory" in done.out + done.err


def test_torch_that_reserves_more_than_was_counted(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with PYTORCH_CUDA_ALLOC_CONF=roundup_power2_divisions:1."""
    held = iter([1 << 20, 1 << 30])
    monkeypatch.setattr(gpu_link, "_reserved", lambda card: next(held))
    with pytest.raises(
        LimitError, match=r"torch reserves 1,072,693,248 bytes for what should take 12,582,912"
    ) as caught:
        convert(sources["hf"], tmp_path / "out", "cuda", to="bf16", workers=1)
    assert "PYTORCH_CUDA_ALLOC_CONF" in str(caught.value.hint)


def test_what_torch_holds_is_counted_without_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is emptied first; a CPU holds nothing."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: asked.append(card.type) or 7)
    assert gpu_link._reserved(torch.device("cuda:0")) == 7
    assert gpu_link._reserved(torch.device("cpu")) == 0
    assert asked == ["emptied", "cuda"]


def test_more_cards_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last card gets no lane."""
    monkeypatch.setattr(gpu_link, "_try", lambda card: None)
    assert len(gpu_link.lanes([torch.device("cpu")] * 2, [np.zeros(1 << 16, np.uint8)], 0)) == 1


def test_many_threads_share_a_card(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten threads, slabs of a few rows: no slab gets another's bytes."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 2_000)
    options = {"to": "gguf", "workers": 10}
    on_gpu = convert(sources["hf"], tmp_path / "gpu", "cuda", **options)
    assert on_gpu.run["slabs"] > 60
    assert files(on_gpu) == files(convert(sources["hf"], tmp_path / "cpu", "cpu", **options))


class Runtime:
    """CUDA's, of a process whose GPU has failed while memory was pinned."""

    def __init__(self) -> None:
        self.device: object = None
        self.calls: list[tuple[str, object]] = []

    def cudaHostRegister(self, *args: int) -> int:  # noqa: N802 - CUDA's name
        self.calls.append(("register", self.device))
        return 0

    def cudaHostUnregister(self, *args: int) -> int:  # noqa: N802
        self.calls.append(("unregister", self.device))
        return 700


def test_memory_is_let_go_of_though_the_card_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error does not hide the one that tells what happened; and no other GPU is touched."""
    runtime = Runtime()

    @contextlib.contextmanager
    def current(device: object) -> Iterator[None]:
        runtime.device = device
        yield
        runtime.device = None

    def check(code: int) -> None:
        if code:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    monkeypatch.setattr(torch.cuda, "device", current)
    card = torch.device("cuda:1")
    with pytest.raises(LocalIOError, match="the first word"), pinned(np.zeros(1, np.uint8), card):
        raise LocalIOError("the first word")
    assert runtime.calls == [("register", card), ("unregister", None)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError(), "failed: RuntimeError"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), r"failed: Command '\['gcc', 'main.c'\]' returned"),
    ],
)
def test_whatever_fails_on_the_way_is_one_line(
    error: Exception, says: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton builds its launcher with a C compiler, which may lack a header; torch may have nothing to say."""

    monkeypatch.setattr(Lane, "_run", fails(error))
    with pytest.raises(LocalIOError, match=says):
        convert(sources["hf"], tmp_path / "out", "cuda", to="bf16", workers=1)


@pytest.mark.parametrize("way", ["readinto", "writeall"])
def test_a_file_that_fails_in_the_middle_of_a_slab(
    way: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads come to their end, and what they did is right."""
    owner = LocalFile if way == "readinto" else LocalTarget
    original = getattr(owner, way)
    calls = []

    def fails(self: Any, offset: int, buffer: Any) -> None:
        calls.append(offset)
        if len(calls) == 20:
            raise LocalIOError("Input/output error", file="x", hint="")
        original(self, offset, buffer)

    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    options = {"to": "gguf", "workers": 3}
    with monkeypatch.context() as patch, pytest.raises(LocalIOError, match="Input/output error"):
        patch.setattr(owner, way, fails)
        convert(sources["hf"], tmp_path / "out", "cuda", **options)
    report = convert(sources["hf"], tmp_path / "out", "cuda", **options)
    assert 0 < report.run["slabs_resumed"] < report.run["slabs"]
    assert files(report) == files(convert(sources["hf"], tmp_path / "cpu", "cpu", **options))
