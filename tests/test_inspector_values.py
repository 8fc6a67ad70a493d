"""--scales, --codes, --experts and what --check reads: every count against numpy on the fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import range_server as web
from builders import Model, Packed, Sizes, Tensor, Tensors
from commandline import run
from independent import parts as read_parts
from numpy.typing import NDArray

import ckpttool
from ckpttool.codecs import counting, cpu, reference
from ckpttool.codecs.formats import RECIPES
from ckpttool.containers.gguf_values import Array
from ckpttool.inspection import reading
from ckpttool.inspection.report import Inspection, ScaleCounts

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny-gpt-oss"
SOURCES = ("hf", "openai", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-mxfp4_moe.gguf")
SIZES = Sizes(layers=2, experts=6, hidden=64, intermediate=96)
U8 = NDArray[np.uint8]
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


def exponents(counts: ScaleCounts) -> dict[int, int]:
    """The histogram by exponent, empty ones left out."""
    first = counts.histogram.first or 0
    return {first + i: n for i, n in enumerate(counts.histogram.counts) if n}


def expected(scales: U8) -> dict[int, int]:
    values, numbers = np.unique(scales, return_counts=True)
    return {int(v) - 127: int(n) for v, n in zip(values, numbers, strict=True) if v < 255}


def stored_scales(source: Path) -> dict[str, U8]:
    """Scale bytes [E, rows, G] by weight, as an independent reader has them."""
    parts = read_parts(source, HEADS)
    out = {}
    for t in ckpttool.inspect(source).tensors:
        if t.format == "MXFP4" and t.part is not None:
            held = [parts[p].scales for p in t.part.split("+")]
            out[t.name] = builders.interleaved(*held) if len(held) == 2 else held[0]
    return out


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_scales_are_as_numpy_counts_them(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpttool.inspection.measured.COMPILED_FROM", 0 if compiled else 1 << 60)
    monkeypatch.setattr(reading, "SLAB", 1000)
    monkeypatch.setattr("ckpttool.inspection.scales.SLAB", 1000)
    report = ckpttool.inspect(TINY / name, scales=True)
    wanted = stored_scales(TINY / name)
    assert report.scales is not None
    found = {s.tensor: s for s in report.scales if s.format == "MXFP4"}
    assert found.keys() == wanted.keys() and len(found) >= 8
    for tensor, scales in wanted.items():
        s = found[tensor]
        assert (s.element, s.total.blocks, s.total.expert) == ("E8M0", scales.size, None)
        assert exponents(s.total) == expected(scales)
        assert (s.total.minimum, s.total.maximum) == (int(scales.min()) - 127, int(scales.max()) - 127)
        assert s.total.mean == pytest.approx(scales.mean() - 127, abs=1e-4)
        assert len(s.experts) == len(scales)
        for e, counts in enumerate(s.experts):
            assert (counts.expert, exponents(counts)) == (e, expected(scales[e]))
    if name in ("hf", "openai"):
        assert report.data_nbytes_read == sum(s.size for s in wanted.values())


def test_ends_of_the_range_are_counted(tmp_path: Path) -> None:
    def ends(t: Tensors) -> None:
        scales = t["model.layers.0.mlp.experts.down_proj_scales"].array
        scales.reshape(-1)[:10] = [0, 0, 0, 254, 254, 255, 253, 1, 200, 255]

    report = ckpttool.inspect(builders.write(Model(), tmp_path / "a", "hf", change=ends), scales=True)
    (found,) = (s.total for s in report.scales or () if s.tensor == "model.layers.0.mlp.experts.down_proj")
    assert (found.bytes_0, found.bytes_254, found.bytes_255) == (3, 2, 2)
    assert (found.zero_blocks, found.nonfinite, found.minimum, found.maximum) == (3, 2, -127, 127)
    assert sum(found.histogram.counts) == found.blocks - 2


def gguf_numbers(path: Path, name: str) -> tuple[Any, U8]:
    import gguf

    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return tensor, np.asarray(tensor.data)


def test_scales_of_other_ggml_blocks() -> None:
    """Q8_0's and the k-quants' F16, by gguf's own reader."""
    path = TINY / "gguf" / "tiny-gpt-oss-q8_0.gguf"
    report = ckpttool.inspect(path, scales=True)
    assert report.scales
    for s in report.scales:
        _, raw = gguf_numbers(path, s.tensor)
        d = np.ascontiguousarray(raw.reshape(-1, 34)[:, :2]).view(np.float16).astype(np.float64)
        assert (s.element, s.total.blocks, s.total.bytes_255) == ("F16", d.size, None)
        values, counts = np.unique(np.floor(np.log2(d[d != 0])).astype(int), return_counts=True)
        assert exponents(s.total) == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert s.total.zero_blocks == int((d == 0).sum())
    mixed = ckpttool.inspect(TINY / "gguf" / "tiny-gpt-oss-q4_k_m.gguf", scales=True)
    assert {s.format for s in mixed.scales or ()} == {"Q4_K", "Q5_0", "Q8_0", "Q6_K"}


SCALED = {
    "modelopt-nvfp4": "E4M3", "modelopt-fp8-block": "F32", "modelopt-mxfp8": "E8M0", "quark-mxfp4": "E8M0",
    "quark-mxfp6-e2m3": "E8M0", "gptq-4": "F16", "awq-gemm": "F16", "bitsandbytes-nf4": "F32", "quark-fp8": "BF16",
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_scales_of_every_writer(name: str) -> None:
    """Any scale beside its codes, by safetensors' own reader."""
    from safetensors import safe_open

    report = ckpttool.inspect(FIXTURES / "formats" / name, scales=True)
    assert report.scales is not None and {s.element for s in report.scales} == {SCALED[name]}
    for s in report.scales:
        weight = next(t for t in report.tensors if t.name == s.tensor)
        scales = next(t for t in weight.stored if t.role == "scales")
        with safe_open(FIXTURES / "formats" / name / scales.file, "pt") as f:  # type: ignore[no-untyped-call]
            tensor = f.get_tensor(scales.name)
        raw = np.array(tensor.float().numpy() if SCALED[name] != "E8M0" else tensor.view(dtype=_u8()).numpy())
        values = np.ldexp(1.0, raw.astype(int) - 127) if SCALED[name] == "E8M0" else np.abs(raw.astype(np.float64))
        known = values[values != 0]
        numbers, counts = np.unique(np.floor(np.log2(known)).astype(int), return_counts=True)
        assert exponents(s.total) == dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _u8() -> Any:
    import torch

    return torch.uint8


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_codes_are_as_numpy_counts_them(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpttool.inspection.measured.COMPILED_FROM", 0 if compiled else 1 << 60)
    monkeypatch.setattr("ckpttool.inspection.codes.SLAB", 5000)
    report = ckpttool.inspect(TINY / name, codes=True)
    parts = read_parts(TINY / name, HEADS)
    assert report.codes
    assert report.scales is None
    for c in report.codes:
        assert c.part is not None
        codes = np.concatenate([parts[p].codes.reshape(-1, 32) for p in c.part.split("+")])
        assert c.elements == codes.size
        assert c.histogram == tuple(np.bincount(codes.reshape(-1), minlength=16).tolist())
        assert c.saturated == int((codes & 7 == 7).sum())
        assert c.negative_zeros == int((codes == 8).sum())
        assert c.zero_blocks == int((codes & 7 == 0).all(1).sum())
        assert c.largest == tuple(np.bincount((codes & 7).max(1), minlength=8).tolist())
        assert not c.fingerprint.sampled
        assert c.fingerprint.blocks == len(codes) - c.zero_blocks
        assert ("llama.cpp" in c.fingerprint.recipes) == name.endswith("_moe.gguf")


def test_what_overflows_is_counted(tmp_path: Path) -> None:
    def large(t: Tensors) -> None:
        at = "model.layers.0.mlp.experts.down_proj_"
        t[at + "scales"].array.reshape(-1)[:3] = [253, 254, 252]
        blocks = t[at + "blocks"].array.reshape(-1, 16)
        blocks[:3] = np.tile(np.array([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE], np.uint8), 2)

    source = builders.write(Model(), tmp_path / "a", "hf", change=large)
    found = {c.tensor: c.overflow for c in ckpttool.inspect(source, codes=True).codes or ()}
    # 4 and 6 at 2^126: four of the sixteen codes, twice; from 2 on at 2^127: eight, twice
    assert found["model.layers.0.mlp.experts.down_proj"] == 8 + 16
    assert sum(found.values()) == 24
    checked = ckpttool.inspect(source, codes=True, check=True)
    assert [f.check for f in checked.findings if f.severity == "error"] == ["non-finite"]


def weights(recipe: str, experts: int, rows: int, k: int, seed: int) -> Packed:
    """Trained-like weights by a recipe, in Hugging Face's packing."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((experts * rows, k)) * 0.03 * np.exp(0.3 * rng.standard_normal((experts * rows, 1)))
    codes, scales = reference.quantize(builders.widened(builders.bf16(values.astype(np.float32))), RECIPES[recipe])
    pairs = codes.reshape(experts, rows, k // 32, 16, 2)
    return Packed((pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8), scales.reshape(experts, rows, k // 32))


@pytest.mark.parametrize("recipe", ["rceil", "llama.cpp", "best"])
def test_the_summary_says_who_quantized(recipe: str, tmp_path: Path) -> None:
    """By a sample of blocks, with no numpy; and by all of them."""

    def by_recipe(t: Tensors) -> None:
        for n in range(2):
            for i, name in enumerate(("gate_up_proj", "down_proj")):
                at = f"model.layers.{n}.mlp.experts.{name}"
                experts, rows, g = t[at + "_scales"].array.shape
                made = weights(recipe, experts, rows, 32 * g, 2 * n + i)
                t[at + "_blocks"], t[at + "_scales"] = Tensor("U8", made.blocks), Tensor("U8", made.scales)

    big = Model(Sizes(experts=8, hidden=128, intermediate=192))
    source = builders.write(big, tmp_path / "a", "hf", change=by_recipe)
    report = ckpttool.inspect(source, codes=True)
    made_by = report.summary.fingerprint
    assert made_by is not None and report.codes is not None
    assert recipe in made_by.recipes
    assert all(recipe in c.fingerprint.recipes for c in report.codes)
    told = {"rceil": {"rceil", "transformers", "modelopt"}, "llama.cpp": {"llama.cpp"}}
    assert set(made_by.recipes) <= told.get(recipe, {"best", "even", "ocp"})
    assert made_by.weights == 4 and made_by.blocks <= 16 * 1024


def test_the_sample_is_all_there_is_of_a_small_one(tmp_path: Path) -> None:
    found = ckpttool.inspect(builders.write(Model(SIZES), tmp_path / "a", "hf")).summary.fingerprint
    assert found is not None
    blocks = SIZES.experts * SIZES.intermediate * 2 * SIZES.hidden // 32  # of gate and up
    assert found.sampled == (blocks > 1024)
    assert ckpttool.inspect(builders.write(Model(SIZES), tmp_path / "b", "hf-bf16")).summary.fingerprint is None


# Experts against each other


def alike(t: Tensors) -> None:
    """Scales as those of one trained matrix, in place of random bytes."""
    rng = np.random.default_rng(3)
    for name, tensor in t.items():
        if name.endswith("_scales"):
            tensor.array[:] = rng.choice(np.array([122, 123, 124, 125], np.uint8), tensor.array.shape)


def spread(report: Inspection, layer: int, name: str) -> dict[int, str]:
    (of_layer,) = (x for x in report.experts or () if x.layer == layer)
    (found,) = (s for s in of_layer.spread if s.tensor.endswith(name))
    return {e.expert: e.odd for e in found.experts if e.odd}


def test_a_dead_and_a_scaled_expert_show(tmp_path: Path) -> None:
    def odd(t: Tensors) -> None:
        alike(t)
        t["model.layers.0.mlp.experts.down_proj_scales"].array[4] = 0
        t["model.layers.1.mlp.experts.gate_up_proj_scales"].array[2] = 131

    source = builders.write(Model(SIZES), tmp_path / "a", "hf", change=odd)
    report = ckpttool.inspect(source, experts=True)
    assert report.scales is None  # not asked for
    assert spread(report, 0, "down_proj") == {4: "dead: all its scales are 0"}
    assert spread(report, 1, "gate_up_proj") == {2: "its scales are 2^7.5 times larger than those of the others"}
    assert spread(report, 0, "gate_up_proj") == spread(report, 1, "down_proj") == {}
    findings = [(f.check, f.tensor, f.message) for f in report.findings]
    assert findings == [
        (
            "dead-experts", "model.layers.0.mlp.experts.down_proj",
            "layer 0: expert 4 is dead: all scales of its down_proj are 0",
        ),
        (
            "expert-spread", "model.layers.1.mlp.experts.gate_up_proj",
            "layer 1, expert 2: its scales are 2^7.5 times larger than those of the others",
        ),
    ]  # fmt: skip
    text = run("inspect", source, "--experts").out
    assert text.count("expert 4 is dead") == 1
    clean = ckpttool.inspect(builders.write(Model(SIZES), tmp_path / "b", "hf", change=alike), experts=True)
    assert clean.findings == ()


def test_the_dead_experts_of_a_layer_are_one_finding(tmp_path: Path) -> None:
    def dead(t: Tensors) -> None:
        alike(t)
        for layer, name, experts in (
            (0, "down_proj", [0, 1, 2, 4]),
            (0, "gate_up_proj", [1, 2]),
            (1, "down_proj", [3]),
        ):
            t[f"model.layers.{layer}.mlp.experts.{name}_scales"].array[experts] = 0

    report = ckpttool.inspect(builders.write(Model(SIZES), tmp_path / "a", "hf", change=dead), experts=True)
    assert [(f.check, f.tensor, f.message) for f in report.findings] == [
        ("dead-experts", None, "layer 0: experts 0, 4 are dead: all scales of their down_proj are 0; "
         "experts 1-2 are dead: all scales of their down_proj and gate_up_proj are 0"),
        ("dead-experts", "model.layers.1.mlp.experts.down_proj",
         "layer 1: expert 3 is dead: all scales of its down_proj are 0"),
    ]  # fmt: skip


def test_a_copied_expert_shows(tmp_path: Path) -> None:
    big = Model(Sizes(layers=1, experts=4, hidden=256, intermediate=512))

    def copied(t: Tensors) -> None:
        alike(t)
        scales = t["model.layers.0.mlp.experts.gate_up_proj_scales"].array
        scales[3] = scales[1]

    report = ckpttool.inspect(builders.write(big, tmp_path / "a", "hf", change=copied), experts=True)
    assert spread(report, 0, "gate_up_proj") == {3: "its scales are those of expert 1, one for one in number: a copy?"}


def test_every_layer_of_experts_is_shown() -> None:
    for name in ("hf", "openai", "gguf/tiny-gpt-oss-auto.gguf"):
        report = ckpttool.inspect(TINY / name, experts=True)
        assert report.experts is not None
        assert [x.layer for x in report.experts] == [0, 1, 2, 3]
        for x in report.experts:
            assert (x.top_k, x.layout.experts, x.layout.bias, x.differs) == (2, 4, True, None)
            assert x.parameters == 4 * (3 * 256 * 192 + 2 * 192 + 256)
            assert [len(s.experts) for s in x.spread] == [4] * (3 if name.endswith("gguf") else 2)
            assert all(e.odd is None and abs(e.deviation or 0) < 0.1 for s in x.spread for e in s.experts)
        assert not [f for f in report.findings if f.check == "expert-spread"]
    wide = ckpttool.inspect(TINY / "hf-bf16", experts=True)
    assert wide.experts is not None and all(x.spread == () for x in wide.experts)


# Numbers that are none


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_numbers_that_are_none_are_errors(dtype: str, tmp_path: Path) -> None:
    def spoil(t: Tensors) -> None:
        array = t["model.layers.1.self_attn.k_proj.weight"].array
        nan, inf = (0x7FC0, 0xFF80) if dtype == "BF16" else (np.nan, -np.inf)
        array[3, 7], array[5, 1] = nan, inf

    source = builders.write(Model(SIZES), tmp_path / "a", "hf-bf16", dtype=dtype, change=spoil)
    result = run("inspect", source, "--check", "--json")
    assert result.code == 1
    document = result.document
    (found,) = (f for f in document["findings"] if f["check"] == "non-finite")
    assert (found["severity"], found["tensor"]) == ("error", "model.layers.1.self_attn.k_proj.weight")
    assert found["message"] == "2 of 4,096 values are NaN or infinite, the first at [3, 7]"
    stored = next(t["stored"][0] for t in document["tensors"] if t["name"] == found["tensor"])
    size = 4 if dtype == "F32" else 2
    assert found["place"] == f"model.safetensors at byte {stored['offset'] + (3 * 64 + 7) * size}"
    assert (document["ok"], document["checked"]) == (False, True)
    assert run("inspect", source).code == 0


def test_the_largest_finite_numbers_are_none(tmp_path: Path) -> None:
    def large(t: Tensors) -> None:
        t["model.norm.weight"].array[:4] = [0x7F7F, 0xFF7F, 0x0001, 0x8000]

    assert run("inspect", builders.write(Model(SIZES), tmp_path / "a", "hf-bf16", change=large), "--check").code == 0


def test_scale_byte_255_is_an_error(tmp_path: Path) -> None:
    def nan(t: Tensors) -> None:
        t["model.layers.1.mlp.experts.down_proj_scales"].array[2, 3, 1] = 255

    hf = builders.write(Model(SIZES), tmp_path / "a", "hf", change=nan)
    for source in (hf, builders.write_gguf(Model(SIZES), tmp_path / "a.gguf", change=_nan_gguf)):
        result = run("inspect", source, "--check", "--json")
        (found,) = (f for f in result.document["findings"] if f["check"] == "non-finite")
        assert (result.code, found["severity"]) == (1, "error")
        assert "1 of 1,152 scales are byte 255" in found["message"]


def _nan_gguf(rows: dict[str, tuple[str, NDArray[Any]]]) -> None:
    rows["blk.1.ffn_down_exps.weight"][1].reshape(-1, 17)[40, 0] = 255


def test_bias_125_is_told_by_distribution(tmp_path: Path) -> None:
    big = Model(Sizes(experts=8, hidden=128, intermediate=192))

    def shifted(by: int) -> Any:
        def change(t: Tensors) -> None:
            for n, name in enumerate(t):
                if name.endswith("_scales"):
                    experts, rows, g = t[name].array.shape
                    values = np.random.default_rng(n).standard_normal((experts * rows, 32 * g)) / np.sqrt(32 * g)
                    rounded = builders.widened(builders.bf16(values.astype(np.float32)))
                    _, scales = reference.quantize(rounded, RECIPES["even"])
                    t[name].array[:] = scales.reshape(experts, rows, g) - by

        return change

    old = builders.write(big, tmp_path / "a", "hf", change=shifted(3))
    found = [f for f in ckpttool.inspect(old, check=True).findings if f.check == "bias"]
    assert len(found) == 4 and {f.severity for f in found} == {"warning"}
    assert "four times too small" in found[0].message
    assert run("inspect", old, "--check").code == 0  # likelihood is no error
    sound = builders.write(big, tmp_path / "b", "hf", change=shifted(0))
    assert not [f for f in ckpttool.inspect(sound, check=True).findings if f.check == "bias"]


# Reading


def test_a_remote_checkpoint_is_read_by_ranges_and_only_when_asked() -> None:
    path = TINY / "unsloth" / "model.safetensors"
    hf = TINY / "hf"
    files: dict[str, web.Content] = {f"/{p.name}": p for p in hf.iterdir()}
    name = "/model-00000-of-00002.safetensors"
    with web.serving({**files, "/one.safetensors": path}) as server:
        ckpttool.inspect(server.url("/one.safetensors"), check=True, experts=True)
        assert len(server.log) <= 2  # the head, and a config.json that is not there
    with web.serving({"/x.safetensors": hf / name[1:]}) as server:
        there = ckpttool.inspect(server.url("/x.safetensors"), scales=True)
        assert there.scales
        asked = sum(r.sent for r in server.log)
        scales = sum(s.total.blocks for s in there.scales)
        assert there.data_nbytes_read == scales
        assert asked < scales + 140_000  # the head's window beside
    local = ckpttool.inspect(hf, scales=True)
    by_name = {s.tensor: s for s in local.scales or ()}
    for s in there.scales:
        assert exponents(s.total) == exponents(by_name[s.tensor].total)


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    from ckpttool import inspector

    source = builders.write(Model(SIZES), tmp_path / "a", "hf")
    inspection = inspector.Inspector(source, inspector.Asked(scales=True))
    with (source / "model.safetensors").open("r+b") as f:
        f.truncate(20_000)
    with pytest.raises(ckpttool.CkptError, match=r"model\.safetensors: the file ends"):
        inspection.run()


def test_progress_is_told_of_every_byte(tmp_path: Path) -> None:
    from ckpttool import inspector

    source = builders.write(Model(SIZES), tmp_path / "a", "hf")
    inspection = inspector.Inspector(source, inspector.Asked(check=True, codes=True))
    told: list[int] = []
    report = inspection.run(told.append)
    assert sum(told) == inspection.nbytes == report.data_nbytes_read > 0


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    def jobs() -> Iterator[reading.Job]:
        for i in range(100):
            yield reading.Job((reading.Range("x", i, 1),), fail if i == 7 else lambda v: v, lambda found: None)

    def fail(views: object) -> None:
        raise ZeroDivisionError

    (tmp_path / "x").write_bytes(bytes(100))
    with pytest.raises(ZeroDivisionError):
        reading.read_all(jobs(), {"x": tmp_path / "x"}, lambda n: None, workers=3)


def test_kernels_and_numpy_count_alike() -> None:
    rng = np.random.default_rng(5)
    for n in (0, 1, 3, 17, 4096):
        data = rng.integers(0, 256, (n, 17)).astype(np.uint8)
        for view in (data[:, 0], np.ascontiguousarray(data[:, 3])):
            found = [counting.count_bytes(view, compiled=c) for c in (False, True)]
            assert found[0].tolist() == found[1].tolist() == np.bincount(view, minlength=256).tolist()
        blocks = [counting.count_blocks(data[:, 1:], data[:, 0], compiled=c) for c in (False, True)]
        for a, b in zip(*blocks, strict=True):
            assert a.tolist() == b.tolist()
        assert blocks[0][1].sum() == n
    assert cpu.backend() == "numba"


BYTES = {"few": (110, 126), "one": (7, 8), "zeros": (0, 1), "all": (0, 256), "the last": (254, 256), "many": (90, 131)}


@pytest.mark.parametrize("values", BYTES)
def test_runs_are_counted_as_each_by_itself(values: str) -> None:
    """Of a few values, of many, of both by turns, zeros among them; ends that are no whole piece."""
    rng = np.random.default_rng(6)
    data = rng.integers(*BYTES[values], 50_000).astype(np.uint8)
    data[20_000:30_000] = rng.integers(0, 256, 10_000)
    data[rng.integers(0, 50_000, 300)] = 0
    for view in (data, data[::3], data[1:2049], data[:1]):
        for first, length in ((1, 1000), (2048, 2048), (700, 20_011), (100_000, 100_000)):
            cuts = [0, *range(first, len(view), length), len(view)]
            wanted = [np.bincount(view[a:b], minlength=256).tolist() for a, b in pairwise(cuts)]
            for compiled in (False, True):
                assert counting.count_runs(view, first, length, compiled=compiled).tolist() == wanted


def test_an_array_of_strings_is_measured_by_runs(tmp_path: Path) -> None:
    """Short strings are skipped many at a time; long ones between them, and the last few, one by one."""
    tokens = ["", "x" * 63, "y" * 64, "z" * 300] + [f"t{i}" for i in range(1500)] + ["w" * 70_000] + ["a"] * 700
    path = builders.write_gguf(Model(SIZES), tmp_path / "a.gguf", keys={"test.strings": tokens})
    found = ckpttool.open_checkpoint(path).metadata["test.strings"]
    assert isinstance(found, Array) and list(found) == tokens
