"""Where steps are computed: what may be asked for, what is said where it cannot be had, and how `auto` decides."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
from builders import Model, Sizes

from ckpttool import api, devices
from ckpttool.codecs.gpu_room import reserved_nbytes
from ckpttool.devices import Devices
from ckpttool.errors import UsageError
from ckpttool.planner import Plan

CPU = ("cpu",)
ROOM = 2_000_000_000
CARD = SimpleNamespace(type="cuda")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
    return builders.write(model, tmp_path_factory.mktemp("source") / "hf", "hf")


@pytest.fixture
def plan(source: Path, tmp_path: Path) -> Plan:
    return api.plan(source, tmp_path / "out", to="bf16")


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))


@pytest.mark.parametrize("asked", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "cuda:0,cuda:1,cuda:2"])
def test_words_for_devices(asked: str) -> None:
    devices.check_asked(asked)
    assert api.limit(device=asked).device == asked


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "gpu",
        "CUDA",
        "cuda:",
        "cuda:-1",
        "cuda:x",
        "cpu,cuda",
        "auto,cuda:0",
        "cuda:0;cuda:1",
        "cuda,",
        "cuda,cuda:0",
        "cuda:00",
        "cuda:256",
        "cuda:0,",
    ],
)
def test_no_words_for_devices(asked: str) -> None:
    with pytest.raises(UsageError, match="unknown"):
        api.limit(device=asked)


def test_a_device_named_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        api.limit(device="cuda:1,cuda:1")


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_without_its_extra_it_says_what_to_install(
    missing: str, plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    without(monkeypatch, missing)
    with pytest.raises(UsageError, match=f"--device cuda needs {missing}, which is not installed") as caught:
        devices.choose("cuda", plan, 1, ROOM)
    assert caught.value.hint == "pip install 'ckpttool[torch]'"
    chosen = devices.choose("auto", plan, 1, ROOM)
    assert chosen == Devices(CPU, f"there is a GPU, but {missing} is not installed: pip install 'ckpttool[torch]'")


def test_torch_that_cannot_be_loaded(plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(devices, "_lacking", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="--device cuda: torch cannot be loaded: import of torch halted"):
        devices.choose("cuda", plan, 1, ROOM)
    chosen = devices.choose("auto", plan, 1, ROOM)
    assert chosen.names == CPU
    assert "torch cannot be loaded" in chosen.why


def test_torch_without_cuda_is_told_apart(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from ckpttool.codecs import gpu_lanes

    monkeypatch.setattr(gpu_lanes, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, said in ((None, "is built without CUDA"), ("13.0", "finds no GPU that its driver can use")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UsageError, match=f"--device cuda:0: torch .* {said}"):
            devices.choose("cuda:0", plan, 1, ROOM)


def test_gpus_that_are_not_there_and_too_old(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from ckpttool.codecs import gpu_lanes

    monkeypatch.setattr(gpu_lanes, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7 + device.index, 5))
    with pytest.raises(UsageError, match="there is no such GPU") as caught:
        devices.choose("cuda:1,cuda:2", plan, 1, ROOM)
    assert caught.value.hint == "choose of cuda:0, cuda:1"
    with pytest.raises(UsageError, match=r"compute capability 8\.0, and cuda:0 has 7\.5"):
        devices.choose("cuda", plan, 1, ROOM)
    assert devices.choose("cuda:1", plan, 1, ROOM) == Devices(("cuda:1",), "asked for")


def test_nothing_for_a_gpu_to_do(source: Path, tmp_path: Path, with_gpu: None) -> None:
    plan = api.plan(source, tmp_path / "out", to="openai")
    for asked in ("auto", "cuda"):
        chosen = devices.choose(asked, plan, 1, ROOM)
        assert chosen.names == CPU
        assert "a GPU does nothing else" in chosen.why


def test_auto_without_a_gpu(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    assert devices.choose("auto", plan, 1, ROOM) == Devices(CPU, "no NVIDIA GPU here")


def test_auto_measures(plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> None:
    """The cores where they are done before a GPU has started; else whichever is faster, link against kernels."""
    pytest.importorskip("torch")
    from ckpttool.codecs import gpu_link

    monkeypatch.setattr(devices, "START_SECONDS", 1e9)
    monkeypatch.setattr(devices, "sys", type("no modules", (), {"modules": {}}))
    chosen = devices.choose("auto", plan, 2, ROOM)
    assert chosen.names == CPU
    assert re.match(r"2 threads compute it in [0-9]\.[0-9] s, and a GPU takes", chosen.why)
    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(devices, "cards", lambda asked: [CARD])
    for rate, names in ((1e15, ("cuda:0",)), (1e3, CPU)):
        monkeypatch.setattr(gpu_link, "link_rate", lambda device, most, rate=rate: rate)
        chosen = devices.choose("auto", plan, 1, ROOM)
        assert (chosen.names, chosen.by_choice) == (names, names != CPU)
        assert re.match(r"1 thread computes it in [0-9]\.[0-9] s, the GPU's link takes", chosen.why)


def test_auto_stays_on_cores_where_the_gpu_is_of_no_use(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    def refused(asked: str) -> Any:
        raise UsageError("the kernels need compute capability 8.0", hint="")

    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(devices, "cards", refused)
    assert devices.choose("auto", plan, 1, ROOM) == Devices(CPU, "the kernels need compute capability 8.0")


def test_auto_stays_on_cores_where_others_have_filled_the_gpu(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    torch = pytest.importorskip("torch")
    from ckpttool.codecs import gpu_link

    def full(device: Any, most: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.\nadvice")

    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(devices, "cards", lambda asked: [CARD])
    monkeypatch.setattr(gpu_link, "link_rate", full)
    why = "the GPU cannot be used: CUDA out of memory. Tried to allocate 64.00 MiB."
    assert devices.choose("auto", plan, 1, ROOM) == Devices(CPU, why)


def test_auto_stays_on_cores_where_triton_interprets(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    """The CPU then stands for the GPU: a thousandfold slower, and there is no link to measure."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from ckpttool.codecs import gpu_lanes, gpu_link

    monkeypatch.setattr(gpu_lanes, "INTERPRETED", True)
    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(gpu_link, "link_rate", lambda *args: 1e15)
    assert devices.cards("cuda") == [torch.device("cpu")]
    expected = Devices(CPU, "there is a GPU, but Triton interprets (TRITON_INTERPRET=1)")
    assert devices.choose("auto", plan, 1, ROOM) == expected


def test_what_is_measured_stays_within_the_memory_allowed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    pytest.importorskip("torch")
    from ckpttool.codecs import gpu_link

    samples = []

    def rate(device: Any, most: int) -> float:
        samples.append(most)
        return 1e15

    monkeypatch.setattr(devices, "START_SECONDS", 0.0)
    monkeypatch.setattr(devices, "cards", lambda asked: [CARD])
    monkeypatch.setattr(gpu_link, "link_rate", rate)
    for allowed in (13_000_000, 64_000_000):
        assert devices.choose("auto", plan, 1, allowed).names == ("cuda:0",)
        assert reserved_nbytes(1, samples.pop()) <= allowed
    chosen = devices.choose("auto", plan, 1, 10_000_000)
    assert (chosen.names, samples) == (CPU, [])
    assert chosen.why == "there is a GPU, but torch takes more than 10,000,000 bytes of its memory"


@pytest.mark.parametrize("to", ["bf16", "mxfp4", "gguf"])
def test_what_cores_take_grows_with_the_work(to: str, tmp_path: Path) -> None:
    """A rate is of a slab, so eight layers take eight times as long as one."""
    dialect = "hf-bf16" if to == "mxfp4" else "hf"
    seconds = []
    for layers in (1, 8):
        model = Model(Sizes(layers=layers, experts=2, hidden=64, intermediate=64, vocab=300))
        made = api.plan(builders.write(model, tmp_path / str(layers), dialect), tmp_path / "x", to=to, model_name="x")
        steps = [s for s in made.steps if devices.for_gpu(s)]
        assert devices._traffic(made) == (sum(s.source_nbytes for s in steps), sum(s.target_nbytes for s in steps))
        seconds.append(devices._traffic(made)[0])
        assert devices._core_seconds(made) > 0
    assert seconds[1] == 8 * seconds[0]
