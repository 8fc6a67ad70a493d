"""Steps and slabs as arithmetic: every byte once, whatever a slab's size."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
from builders import Model, Sizes

from ckpttool import api, steps
from ckpttool.archs.joins import Extent, PartShape
from ckpttool.codecs.formats import (
    BF16_FLAT,
    F16_FLAT,
    F32_FLAT,
    MXFP4_GGML,
    MXFP4_PAIR,
    Q8_0_GGML,
    RECIPES,
    Codec,
    ggml_codec,
)
from ckpttool.planner import Plan
from ckpttool.resources import resources
from ckpttool.steps import ByteRange, Fidelity, Kind, kind_of, make_steps, target_ranges

SMALL = Sizes(layers=2, experts=3, hidden=64, intermediate=96)
DIALECTS = ("hf", "hf-bf16", "unsloth", "openai", "gguf")
TARGETS = ("bf16", "mxfp4", "openai", "gguf")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, model = tmp_path_factory.mktemp("sources"), Model(SMALL)
    made = {d: builders.write(model, base / d, d, shards=2) for d in DIALECTS[:-1]}
    return made | {"gguf": builders.write_gguf(model, base / "in.gguf")}


def plan_of(sources: dict[str, Path], dialect: str, to: str, tmp_path: Path) -> Plan:
    path = tmp_path / ("out.gguf" if to == "gguf" else "out")
    return api.plan(sources[dialect], path, to=to, reference=sources["hf"])


@pytest.mark.parametrize(("dialect", "to"), list(product(DIALECTS, TARGETS)))
@pytest.mark.parametrize("slab_nbytes", [1, 1_000, 8 << 20])
def test_every_target_byte_is_written_once_and_every_source_byte_read_once(
    dialect: str, to: str, slab_nbytes: int, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SLAB_NBYTES", slab_nbytes)
    plan = plan_of(sources, dialect, to, tmp_path)
    read: list[ByteRange] = []
    written: list[ByteRange] = []
    for slab in plan.slabs:
        step = plan.steps[slab.step]
        assert 0 <= slab.start < slab.stop <= step.rows
        found = step.source.ranges(slab.start, slab.stop, step.row_length)
        read += [r for ranges in found for r in ranges]
        written += target_ranges(step, slab)
    assert_tiles(written, {(t.file, t.name): (t.offset, t.nbytes) for f in plan.files for t in f.tensors})
    stored = (t for w in plan.source.weights for t in w.stored)
    assert_tiles(read, {(t.file, t.name): (t.offset, t.nbytes) for t in stored})
    assert sum(plan.written_nbytes(i) for i in range(len(plan.slabs))) == plan.tensor_nbytes


def assert_tiles(ranges: list[ByteRange], tensors: dict[tuple[str, str], tuple[int, int]]) -> None:
    at = {key: offset for key, (offset, _) in tensors.items()}
    for r in sorted(ranges, key=lambda r: (r.file, r.offset)):
        assert r.offset == at[r.file, r.tensor]
        at[r.file, r.tensor] += r.nbytes
    assert at == {key: offset + nbytes for key, (offset, nbytes) in tensors.items()}


@pytest.mark.parametrize(("dialect", "to"), list(product(DIALECTS, TARGETS)))
def test_a_slab_is_small_unless_an_expert_is_not(
    dialect: str, to: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slab is cut by what it reads and writes; a transposed side takes whole experts."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 5_000)
    plan = plan_of(sources, dialect, to, tmp_path)
    for slab in plan.slabs:
        step = plan.steps[slab.step]
        sides = (step.source, step.target)
        row = len(step.parts) * sum(sum(s.codec.row_nbytes(step.row_length)) for s in sides)
        unit = step.expert_rows if any(s.transposed for s in sides) else 1
        assert (slab.stop - slab.start) * row <= max(5_000, unit * row)
        if unit > 1:
            assert slab.start % unit == 0 == slab.stop % unit
        assert (
            step.io_nbytes(slab)
            == (slab.stop - slab.start) * row
            <= resources(plan, api.limit(device="cpu")).buffer_nbytes
        )


def test_steps_zip_what_either_side_interleaves(sources: dict[str, Path], tmp_path: Path) -> None:
    for dialect, to in product(DIALECTS, TARGETS):
        zips = Counter(len(s.parts) for s in plan_of(sources, dialect, to, tmp_path).steps)
        both_separate = dialect == to == "gguf"
        assert zips[2] == (0 if both_separate else 2 * SMALL.layers), (dialect, to)
        assert set(zips) <= {1, 2}


PLAIN = (F32_FLAT, F16_FLAT, BF16_FLAT)
B, V, L = Fidelity.bytes, Fidelity.values, Fidelity.lossy


@pytest.mark.parametrize(("source", "target", "kind", "fidelity"), [
    (F32_FLAT, F32_FLAT, Kind.copy, B), (F32_FLAT, BF16_FLAT, Kind.narrow, L), (F32_FLAT, F16_FLAT, Kind.narrow, L),
    (BF16_FLAT, F32_FLAT, Kind.widen, V), (F16_FLAT, F32_FLAT, Kind.widen, V), (BF16_FLAT, F16_FLAT, Kind.narrow, L),
    (F16_FLAT, BF16_FLAT, Kind.narrow, L), (MXFP4_PAIR, MXFP4_PAIR, Kind.copy, B),
    (MXFP4_PAIR, MXFP4_GGML, Kind.repack, B), (MXFP4_GGML, MXFP4_PAIR, Kind.repack, B),
    (MXFP4_PAIR, BF16_FLAT, Kind.dequantize, V), (MXFP4_GGML, F32_FLAT, Kind.dequantize, V),
    (MXFP4_PAIR, F16_FLAT, Kind.dequantize, L), (Q8_0_GGML, Q8_0_GGML, Kind.copy, B),
    (Q8_0_GGML, F32_FLAT, Kind.dequantize, V), (Q8_0_GGML, BF16_FLAT, Kind.dequantize, L),
    (BF16_FLAT, MXFP4_PAIR, Kind.quantize, L), (F32_FLAT, MXFP4_GGML, Kind.quantize, L),
    (F16_FLAT, Q8_0_GGML, Kind.quantize, L), (ggml_codec("Q4_K"), BF16_FLAT, Kind.dequantize, L),
    (ggml_codec("Q4_K"), F32_FLAT, Kind.dequantize, V), (ggml_codec("Q6_K"), ggml_codec("Q6_K"), Kind.copy, B),
])  # fmt: skip
def test_what_leads_from_codec_to_codec(source: Codec, target: Codec, kind: Kind, fidelity: Fidelity) -> None:
    assert kind_of(source, target) == (kind, fidelity)


@pytest.mark.parametrize(("source", "target"), [
    (MXFP4_PAIR, Q8_0_GGML), (MXFP4_GGML, Q8_0_GGML), (Q8_0_GGML, MXFP4_GGML), (ggml_codec("Q4_K"), MXFP4_PAIR),
    (ggml_codec("Q4_K"), Q8_0_GGML), (ggml_codec("NVFP4"), F32_FLAT),
])  # fmt: skip
def test_nothing_is_quantized_again_or_guessed(source: Codec, target: Codec) -> None:
    assert kind_of(source, target) is None


def extent(codec: Codec, start: int, stop: int) -> Extent:
    stored = SimpleNamespace(file="m", offset=0)
    return Extent(SimpleNamespace(codec=codec, stored=(stored,)), ("a",), start, stop, 0, False)  # type: ignore[arg-type]


def test_what_no_plan_asks_for_is_no_step() -> None:
    """A way that there is not, and a part that lies in two formats."""
    shapes, target = {"a": PartShape((8,), 256)}, {"a": (extent(BF16_FLAT, 0, 8),)}
    assert (
        len(make_steps(shapes, {"a": (extent(F32_FLAT, 0, 4), extent(F32_FLAT, 4, 8))}, target, RECIPES["best"])) == 1
    )
    with pytest.raises(ValueError, match="a: nothing leads from Q8_0 to MXFP4"):
        make_steps(shapes, {"a": (extent(Q8_0_GGML, 0, 8),)}, {"a": (extent(MXFP4_GGML, 0, 8),)}, RECIPES["best"])
    with pytest.raises(ValueError, match="a: stored in several ways"):
        make_steps(shapes, {"a": (extent(F32_FLAT, 0, 4), extent(F16_FLAT, 4, 8))}, target, RECIPES["best"])


def test_the_same_source_and_options_give_the_same_plan(sources: dict[str, Path], tmp_path: Path) -> None:
    first = plan_of(sources, "hf", "gguf", tmp_path)
    assert plan_of(sources, "hf", "gguf", tmp_path).digest == first.digest
    others = [plan_of(sources, "hf", "bf16", tmp_path), plan_of(sources, "openai", "gguf", tmp_path),
              api.plan(sources["hf-bf16"], tmp_path / "a.gguf", experts="mxfp4"),
              api.plan(sources["hf-bf16"], tmp_path / "a.gguf", experts="mxfp4", recipe="ocp")]  # fmt: skip
    assert len({first.digest, *(p.digest for p in others)}) == 5


@pytest.mark.parametrize(
    ("kind", "source", "target", "theirs"),
    [
        (Kind.quantize, BF16_FLAT, MXFP4_PAIR, True),
        (Kind.quantize, BF16_FLAT, Q8_0_GGML, False),
        (Kind.dequantize, MXFP4_GGML, BF16_FLAT, True),
        (Kind.dequantize, MXFP4_PAIR, F32_FLAT, True),
        (Kind.dequantize, MXFP4_PAIR, F16_FLAT, False),
        (Kind.dequantize, Q8_0_GGML, BF16_FLAT, False),
        (Kind.repack, MXFP4_PAIR, MXFP4_GGML, True),
        (Kind.copy, MXFP4_PAIR, MXFP4_PAIR, False),
        (Kind.widen, BF16_FLAT, F32_FLAT, False),
    ],
)
def test_what_a_gpu_does(kind: Kind, source: Codec, target: Codec, theirs: bool) -> None:
    step: Any = SimpleNamespace(kind=kind, source=SimpleNamespace(codec=source), target=SimpleNamespace(codec=target))
    assert steps.for_gpu(step) is theirs


@pytest.mark.parametrize(
    ("kind", "source", "target", "direct"),
    [
        (Kind.quantize, (BF16_FLAT, True, True), (BF16_FLAT, True, True), True),
        (Kind.quantize, (BF16_FLAT, True, True), (BF16_FLAT, True, False), False),
        (Kind.widen, (BF16_FLAT, True, True), (F32_FLAT, False, True), False),
        (Kind.narrow, (F32_FLAT, False, True), (BF16_FLAT, False, False), True),
        (Kind.dequantize, (MXFP4_PAIR, False, True), (BF16_FLAT, True, True), True),
        (Kind.dequantize, (MXFP4_PAIR, False, True), (F32_FLAT, False, False), True),
        (Kind.dequantize, (MXFP4_PAIR, False, True), (F16_FLAT, True, True), False),
        (Kind.dequantize, (Q8_0_GGML, False, False), (BF16_FLAT, True, True), False),
        (Kind.quantize, (BF16_FLAT, True, True), (MXFP4_GGML, False, False), True),
        (Kind.quantize, (BF16_FLAT, True, True), (Q8_0_GGML, False, False), False),
        (Kind.quantize, (BF16_FLAT, False, False), (Q8_0_GGML, False, False), True),
    ],
)
def test_what_one_kernel_does(
    kind: Kind, source: tuple[Codec, bool, bool], target: tuple[Codec, bool, bool], direct: bool
) -> None:
    """The codec, whether the last axis is another than in memory, whether gate and up take turns."""
    sides = [SimpleNamespace(codec=c, transposed=t, zipped=z) for c, t, z in (source, target)]
    step: Any = SimpleNamespace(kind=kind, source=sides[0], target=sides[1])
    assert steps._direct(step) is direct
