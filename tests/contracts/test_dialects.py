"""Every dialect from every dialect: parts decoded here, without ckpttool, before and after."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import builders
import gguf
import numpy as np
import pytest
import torch
from builders import Model, Sizes, Tensor, Tensors
from independent import Array, Mxfp4, Part, bits, floats, layer_count, parts, same, stored
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import ckpttool
from ckpttool import steps
from ckpttool.codecs import reference
from ckpttool.codecs.formats import RECIPES
from ckpttool.errors import CheckFailed, CkptError, InputError
from ckpttool.reports import Conversion

FIXTURES = Path(__file__).parents[2] / "fixtures"
ROOT = FIXTURES / "tiny-gpt-oss"
sys.path.insert(0, str(FIXTURES / "make"))

import mxfp4 as oracle  # noqa: E402

CONFIG = json.loads((ROOT / "hf" / "config.json").read_text())
SOURCES = {
    "hf": ROOT / "hf",
    "hf-bf16": ROOT / "hf-bf16",
    "openai": ROOT / "openai",
    "unsloth": ROOT / "unsloth",
    "gguf": ROOT / "gguf" / "tiny-gpt-oss-auto.gguf",
    "gguf-bf16": ROOT / "gguf" / "tiny-gpt-oss-bf16.gguf",
    "gguf-split": ROOT / "gguf" / "split" / "tiny-gpt-oss-auto-00001-of-00003.gguf",
}
TARGETS = ("mxfp4", "bf16", "openai", "gguf")
EXPERTS = ("gate", "up", "down")


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return ckpttool.convert(source, target, workers=2, **options)


def target_path(folder: Path, to: str) -> Path:
    return folder / ("out.gguf" if to == "gguf" else "out")


def is_matrix_of_experts(part: str) -> bool:
    return part.rsplit(".", 1)[-1] in EXPERTS


def quantized(values: Array, recipe: str) -> Mxfp4:
    codes, scales = reference.quantize(values, RECIPES[recipe])
    return Mxfp4(codes.reshape(values.shape), scales)


def expected(part: str, source: Part, to: str, recipe: str = "best") -> Part:
    """What a part becomes: MXFP4 of BF16 by the recipe, BF16 of MXFP4 by its values, anything else itself."""
    if not is_matrix_of_experts(part) or to == "gguf":
        return source
    if to == "bf16":
        return floats(source)
    return source if isinstance(source, Mxfp4) else quantized(floats(source), recipe)


@pytest.mark.parametrize(("source", "to"), list(product(SOURCES, TARGETS)))
def test_every_ordered_pair(source: str, to: str, tmp_path: Path) -> None:
    before = parts(SOURCES[source], CONFIG)
    path = target_path(tmp_path, to)
    report = convert(SOURCES[source], path, to=to, reference=ROOT / "hf")
    after = parts(path, CONFIG)
    assert set(after) == set(before)
    for part, x in before.items():
        want = expected(part, x, to)
        assert isinstance(want, Mxfp4) == isinstance(after[part], Mxfp4), part
        assert same(after[part], want), part
    assert not report.assumed
    assert_fidelity_is_what_holds(report, before, after)


def assert_fidelity_is_what_holds(report: Conversion, before: dict[str, Part], after: dict[str, Part]) -> None:
    """Quantizing alone is lossy here; all else keeps its values, as the parts show."""
    lossy = {t.name for t in report.tensors if t.fidelity == "lossy"}
    quantizes = any(isinstance(after[p], Mxfp4) and not isinstance(before[p], Mxfp4) for p in before)
    assert bool(lossy) == quantizes
    assert all("exp" in name or ".mlp1_weight" in name or ".mlp2_weight" in name for name in lossy)
    assert not any(t.changed for t in report.tensors)
    assert sum(report.fidelity.values()) == len(report.tensors)
    for t in report.tensors:
        assert (t.fidelity == "bytes") == (t.kind in ("copy", "repack"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_to_mxfp4_is_the_reference_by_recipe(recipe: str, tmp_path: Path) -> None:
    """The parent is the model before it was quantized, so its values lie on no grid."""
    before = parts(ROOT / "parent")
    report = convert(ROOT / "parent", tmp_path / "out", to="mxfp4", recipe=recipe)
    after = parts(tmp_path / "out")
    for part, x in before.items():
        assert same(after[part], quantized(floats(x), recipe) if is_matrix_of_experts(part) else x), part
    assert report.recipe is not None
    assert report.recipe["name"] == recipe


def test_bf16_to_mxfp4_is_what_others_write(tmp_path: Path) -> None:
    """`ocp` against the fixture's own quantizer, `llama.cpp` against gguf-py's."""
    before = parts(ROOT / "parent")
    convert(ROOT / "parent", tmp_path / "ocp", to="mxfp4", recipe="ocp")
    convert(ROOT / "parent", tmp_path / "ggml.gguf", experts="mxfp4", recipe="llama.cpp")
    ocp, ggml = stored(tmp_path / "ocp"), stored(tmp_path / "ggml.gguf")
    for n in range(CONFIG["num_hidden_layers"]):
        blocks, scales = oracle.quantize(floats(before[f"layer.{n}.down"]))
        assert ocp[f"model.layers.{n}.mlp.experts.down_proj_blocks"].data == blocks.tobytes()
        assert ocp[f"model.layers.{n}.mlp.experts.down_proj_scales"].data == scales.tobytes()
        for name in EXPERTS:
            values = floats(before[f"layer.{n}.{name}"])
            theirs = gguf.quantize(values, gguf.GGMLQuantizationType.MXFP4)
            assert ggml[f"blk.{n}.ffn_{name}_exps.weight"].data == theirs.tobytes()


def test_mxfp4_to_bf16_is_what_transformers_dequantizes(tmp_path: Path) -> None:
    convert(ROOT / "hf", tmp_path / "out", to="bf16")
    source, target = stored(ROOT / "hf"), stored(tmp_path / "out")
    for name in (n.removesuffix("_blocks") for n in source if n.endswith("_blocks")):
        blocks, scales = (torch.from_numpy(source[name + end].bytes_().copy()) for end in ("_blocks", "_scales"))
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
        assert target[name].shape == tuple(theirs.shape)
        assert target[name].data == theirs.contiguous().view(torch.uint8).numpy().tobytes(), name


CHAINS = (("gguf", "mxfp4"), ("openai", "mxfp4"), ("openai", "gguf", "mxfp4"), ("gguf", "gguf", "openai", "mxfp4"))


@pytest.mark.parametrize("chain", CHAINS, ids=" ".join)
def test_round_trips_of_mxfp4_return_every_tensor_byte_for_byte(chain: tuple[str, ...], tmp_path: Path) -> None:
    path = ROOT / "hf"
    for i, to in enumerate(chain):
        (tmp_path / str(i)).mkdir()
        target = target_path(tmp_path / str(i), to)
        convert(path, target, to=to, reference=ROOT / "hf")
        path = target
    assert stored(path) == stored(ROOT / "hf")


@pytest.mark.parametrize("chain", [("gguf", "bf16"), ("gguf", "gguf", "bf16")], ids=" ".join)
def test_round_trips_of_bf16_return_every_tensor_byte_for_byte(chain: tuple[str, ...], tmp_path: Path) -> None:
    path = ROOT / "parent"
    for i, to in enumerate(chain):
        (tmp_path / str(i)).mkdir()
        target = target_path(tmp_path / str(i), to)
        report = convert(path, target, to=to)
        assert not any(t.changed for t in report.tensors)
        assert report.fidelity["lossy"] == 0
        path = target
    assert stored(path) == stored(ROOT / "parent")


# --- every scale byte, every code ---


def every_scale_and_code(made: Tensors) -> None:
    """256 scales x 16 codes in each expert matrix, and beyond."""
    for name, t in made.items():
        if name.endswith(("_scales", ".scales")):
            t.array[...] = np.arange(t.array.size).reshape(t.array.shape) % 256
        if name.endswith(("_blocks", ".blocks")):
            flat = np.arange(t.array.size // 16)
            codes = (flat[:, None] // 256 + np.arange(16)) % 16
            t.array[...] = (codes | np.roll(codes, 5, axis=1) << 4).reshape(t.array.shape)


@pytest.mark.parametrize("chain", [("gguf", "mxfp4"), ("openai", "mxfp4"), ("mxfp4",)], ids=" ".join)
def test_all_256_scales_and_16_codes_are_carried(chain: tuple[str, ...], tmp_path: Path) -> None:
    source = builders.write(Model(Sizes(layers=1)), tmp_path / "in", "hf", shards=3, change=every_scale_and_code)
    scales = stored(source)["model.layers.0.mlp.experts.down_proj_scales"].bytes_()
    assert len(np.unique(scales)) == 256
    path = source
    for i, to in enumerate(chain):
        (tmp_path / str(i)).mkdir()
        target = target_path(tmp_path / str(i), to)
        report = convert(path, target, to=to, reference=source)
        for t in report.tensors:
            if "exp" in t.name and "bias" not in t.name:
                assert t.fidelity == "bytes"
        path = target
    assert stored(path) == stored(source)
    after = parts(path)
    assert all(same(after[part], x) for part, x in parts(source).items())


def one_bad_scale(scale: int, code: int) -> Callable[[Tensors], None]:
    def change(made: Tensors) -> None:
        made["model.layers.1.mlp.experts.gate_up_proj_scales"].array[2, 7, 1] = scale
        made["model.layers.1.mlp.experts.gate_up_proj_blocks"].array[2, 7, 1] = code

    return change


@pytest.mark.parametrize(("scale", "code"), [(255, 0), (254, 0x44), (253, 0x77)])
@pytest.mark.parametrize("to", ["bf16", "gguf"])
def test_what_bf16_cannot_hold_stops_the_run_and_names_the_place(
    scale: int, code: int, to: str, tmp_path: Path
) -> None:
    """Row 7 of the interleaved matrix is row 3 of `up`."""
    source = builders.write(Model(), tmp_path / "in", "hf", change=one_bad_scale(scale, code))
    path = target_path(tmp_path, to)
    with pytest.raises(InputError, match=r"layer\.1\.up, expert 2, row 3, block 1") as caught:
        convert(source, path, to=to, experts="bf16")
    assert caught.value.field == "model.layers.1.mlp.experts.gate_up_proj"
    assert caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(("scale", "code"), [(254, 0x22), (253, 0x55), (0, 0x11), (1, 0x11)])
def test_the_outermost_scales_are_exact_where_bf16_holds_them(scale: int, code: int, tmp_path: Path) -> None:
    source = builders.write(Model(), tmp_path / "in", "hf", change=one_bad_scale(scale, code))
    convert(source, tmp_path / "out", to="bf16")
    before, after = parts(source)["layer.1.up"], parts(tmp_path / "out")["layer.1.up"]
    assert same(after, floats(before))
    assert np.abs(floats(before)[2, 3, 32:]).min() == float(oracle.E2M1[code & 7]) * 2.0 ** (scale - 127)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dialect", ["hf-bf16", "unsloth"])
def test_values_that_are_no_numbers_stop_the_quantizer(value: float, dialect: str, tmp_path: Path) -> None:
    def change(made: Tensors) -> None:
        pattern = builders.bf16(np.array([1], np.float32)) if np.isnan(value) else None
        word = np.uint16(0x7FC1) if pattern is not None else np.array([value], np.float32).view(np.uint32)[0] >> 16
        if dialect == "unsloth":
            made["model.layers.0.mlp.experts.down_projs.1.weight"].array[5, 40] = word
        else:
            made["model.layers.0.mlp.experts.down_proj"].array[1, 40, 5] = word

    source = builders.write(Model(), tmp_path / "in", dialect, change=change)
    with pytest.raises(InputError, match=r"expert 1, row 5, block 1"):
        convert(source, tmp_path / "out", to="mxfp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


# --- other dtypes and options ---


def off_the_grid(dtype: str) -> Callable[[Tensors], None]:
    """Values with more bits than BF16 has: multiples of 2^-20, which F32 holds, and cut to F16 where asked for."""

    def change(made: Tensors) -> None:
        rng = np.random.default_rng(5)
        for name, t in made.items():
            if t.dtype == dtype:
                x = np.ldexp(rng.integers(-(2**19), 2**19, t.array.shape).astype(np.float32), -20)
                made[name] = Tensor(dtype, x.astype(builders.NUMPY[dtype]))

    return change


def changed_as(before: Part, after: Part) -> int:
    return int((bits(before) != bits(after)).sum())


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("dialect", ["hf-bf16", "unsloth"])
@pytest.mark.parametrize(("to", "options"), [
    ("bf16", {}), ("bf16", {"dtype": "f32"}), ("bf16", {"experts": "f32"}),
    ("bf16", {"experts": "f32", "dtype": "f32"}), ("mxfp4", {}), ("mxfp4", {"dtype": "f32"}),
    ("gguf", {}), ("gguf", {"experts": "f32"}), ("gguf", {"experts": "f16"}), ("gguf", {"outtype": "bf16"}),
    ("gguf", {"experts": "mxfp4"}), ("gguf", {"experts": "keep", "outtype": "q8_0"}),
])  # fmt: skip
def test_f32_and_f16_sources(dtype: str, dialect: str, to: str, options: dict[str, str], tmp_path: Path) -> None:
    source = builders.write(Model(), tmp_path / "in", dialect, dtype=dtype, change=off_the_grid(dtype))
    path = target_path(tmp_path, to)
    report = convert(source, path, to=to, **options)
    before, after = parts(source), parts(path)
    kinds = {n: t.dtype for n, t in stored(path).items()}
    assert set(kinds.values()) <= {"BF16", "F32", "F16", "U8", "MXFP4", "Q8_0"}
    differing = 0
    for part, x in before.items():
        y = after[part]
        if isinstance(y, Mxfp4):
            assert same(y, quantized(floats(x), "best")), part
        elif not ("q8_0" in options.values() and part.split(".")[-1] in ("embed", "head", "q", "k", "v", "o")):
            assert same(y, x) or same(y, narrowed(x, "BF16")) or same(y, narrowed(x, "F16")), part
            differing += changed_as(x, y)
    assert_changes_are_counted(report, before, after)
    if options.get("experts") == "f32" and options.get("dtype") == "f32":
        assert differing == 0
        assert report.fidelity["lossy"] == 0


def narrowed(x: Part, dtype: str) -> Array:
    if dtype == "BF16":
        return builders.widened(builders.bf16(floats(x)))
    return floats(x).astype(np.float16).astype(np.float32)


GGUF_PARTS = {suffix: part for part, suffix in builders.GGUF_LAYER.items()}


def assert_changes_are_counted(report: Conversion, before: dict[str, Part], after: dict[str, Part]) -> None:
    """For GGUF targets, whose tensors are parts: what narrowing changes is counted."""
    for t in report.tensors:
        if not t.name.startswith("blk.") or t.kind != "narrow":
            continue
        _, layer, suffix = t.name.split(".", 2)
        part = f"layer.{layer}.{GGUF_PARTS[suffix]}"
        assert t.changed == changed_as(before[part], after[part]), t.name
        assert (t.fidelity == "lossy") == (t.changed > 0)


@pytest.mark.parametrize("experts", ["keep", "f32", "f16", "bf16", "q8_0", "mxfp4"])
@pytest.mark.parametrize("source", ["hf", "openai", "gguf"])
def test_mxfp4_experts_in_every_format_a_gguf_may_have(source: str, experts: str, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    if experts == "q8_0":
        with pytest.raises(CkptError, match=r"quantized? (it )?again"):
            convert(SOURCES[source], path, experts=experts, reference=ROOT / "hf")
        assert not any(tmp_path.iterdir())
        return
    report = convert(SOURCES[source], path, experts=experts, reference=ROOT / "hf")
    before, after = parts(SOURCES[source], CONFIG), parts(path)
    for part, x in before.items():
        if is_matrix_of_experts(part) and experts == "f16":
            assert same(after[part], narrowed(x, "F16"))
        else:
            assert same(after[part], x)
            assert isinstance(after[part], Mxfp4) == (is_matrix_of_experts(part) and experts in ("keep", "mxfp4"))
    dtypes = {t.dtype for t in report.tensors if t.name.endswith("_exps.weight")}
    assert dtypes == {"MXFP4" if experts in ("keep", "mxfp4") else experts.upper()}


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("to", ["bf16", "mxfp4"])
def test_dtype_of_the_other_weights(to: str, dtype: str, tmp_path: Path) -> None:
    convert(ROOT / "hf", tmp_path / "out", to=to, dtype=dtype)
    found = stored(tmp_path / "out")
    for name, t in found.items():
        if name.endswith(("_blocks", "_scales")):
            assert t.dtype == "U8"
        elif name.endswith(("gate_up_proj", "down_proj")):
            assert t.dtype == "BF16"
        else:
            assert t.dtype == dtype.upper()
    after = parts(tmp_path / "out")
    for part, x in parts(ROOT / "hf").items():
        assert same(after[part], floats(x) if to == "bf16" else x)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("quantization_config" in config) == (to == "mxfp4")
    left_out = {"quantization_config", "torch_dtype", "dtype"}
    assert {k: v for k, v in config.items() if k not in left_out} == {
        k: v for k, v in CONFIG.items() if k not in left_out
    }


@pytest.mark.parametrize("dialect", ["hf-bf16", "unsloth", "openai", "hf"])
def test_eleven_layers_keep_their_numbers(dialect: str, tmp_path: Path) -> None:
    """Layer 10 sorts before layer 2: a mistake in the order of names would swap them."""
    model = Model(Sizes(layers=12, experts=2, hidden=32, intermediate=64, vocab=300))
    source = builders.write(model, tmp_path / "in", dialect, shards=2)
    builders.write(model, tmp_path / "reference", "hf")
    for to in TARGETS:
        (tmp_path / to).mkdir()
        path = target_path(tmp_path / to, to)
        convert(source, path, to=to, recipe="ocp", reference=tmp_path / "reference")
        config = model.sizes.config
        for part, x in parts(path, config).items():
            assert same(floats(x), model.values(part)), (to, part)


@pytest.mark.parametrize("dialect", ["hf", "hf-bf16", "unsloth", "openai", "gguf"])
def test_part_of_a_checkpoint_is_what_it_holds(dialect: str, tmp_path: Path) -> None:
    model = Model(Sizes(layers=2))
    if dialect == "gguf":
        source = builders.write_gguf(model, tmp_path / "in.gguf")
    else:
        source = builders.write(model, tmp_path / "in", dialect, shards=2)
    checkpoint = ckpttool.open_checkpoint(source)
    names = [*model.plain, *model.packed]
    assert set(checkpoint.shapes) == set(names)
    for name in names:
        view, want = checkpoint.part(name), model.values(name)
        assert view.shape == want.shape
        assert same(view.array(), want), name
        if name in model.packed:
            for expert in range(model.sizes.experts):
                assert same(view[expert], want[expert])


@pytest.mark.parametrize("source", ["hf", "hf-bf16", "unsloth", "openai", "gguf", "gguf-bf16"])
@pytest.mark.parametrize("to", TARGETS)
def test_slabs_of_any_size_give_the_same_bytes(
    source: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = target_path(tmp_path, to)
    convert(SOURCES[source], path, to=to, reference=ROOT / "hf")
    whole = stored(path)
    monkeypatch.setattr(steps, "SLAB_NBYTES", 7_000)
    (tmp_path / "b").mkdir()
    path = target_path(tmp_path / "b", to)
    report = convert(SOURCES[source], path, to=to, reference=ROOT / "hf")
    assert report.run["slabs"] > 3 * len(report.tensors) // 2
    assert stored(path) == whole


def test_a_step_that_loses_values_is_refused_under_lossless(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="--lossless, but 8 steps quantize"):
        convert(ROOT / "parent", tmp_path / "out", to="mxfp4", lossless=True)
    source = builders.write(Model(), tmp_path / "in", "hf-bf16", dtype="F32", change=off_the_grid("F32"))
    with pytest.raises(CheckFailed, match="values would change as BF16"):
        convert(source, tmp_path / "out", to="bf16", lossless=True)
    exact = builders.write(Model(), tmp_path / "exact", "hf-bf16", dtype="F32")
    report = convert(exact, tmp_path / "out", to="bf16", lossless=True)
    assert report.fidelity["lossy"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exact", "in", "out"]


def test_layers_are_counted_here_as_they_are() -> None:
    assert layer_count(stored(ROOT / "hf"), "model.layers.") == CONFIG["num_hidden_layers"]
