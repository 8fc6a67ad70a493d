"""The comparison engine against an independent decoder: every pair of dialects, damage of every kind, any threads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import permutations
from math import log10
from pathlib import Path
from typing import Any

import builders
import independent
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from builders import Model, Sizes, Tensor, Tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import floats
from numpy.typing import NDArray

from ckpttool.checkpoint import open_checkpoint
from ckpttool.comparison import pairs as comparison_pairs
from ckpttool.comparison import parts as comparison
from ckpttool.comparison import slabs as comparison_slabs
from ckpttool.comparison.parts import PartComparison, Place, Status, compare_parts, compared_nbytes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
KINDS = {
    "hf": "hf",
    "hf-bf16": "hf-bf16",
    "openai": "openai",
    "unsloth": "unsloth",
    "parent": "parent",
    "gguf": "gguf/tiny-gpt-oss-auto.gguf",
    "gguf-bf16": "gguf/tiny-gpt-oss-bf16.gguf",
    "gguf-q8_0": "gguf/tiny-gpt-oss-q8_0.gguf",
    "gguf-moe": "gguf/tiny-gpt-oss-mxfp4_moe.gguf",
    "gguf-q4": "gguf/tiny-gpt-oss-q4_k_m.gguf",
}
SMALL = Model(Sizes(layers=1))


@pytest.fixture(scope="module")
def decoded() -> dict[str, dict[str, independent.Part]]:
    return {kind: independent.parts(FIXTURE / at, HEADS) for kind, at in KINDS.items()}


def compare(a: Path, b: Path, **how: Any) -> dict[str, PartComparison]:
    return {p.part: p for p in compare_parts(open_checkpoint(a), open_checkpoint(b), **how)}


def expected(a: independent.Part, b: independent.Part, formats: Sequence[str | None]) -> Status:
    """bytes where codes or numbers of one format are the same, values where they decode alike"""
    if formats[0] == formats[1] and independent.same(a, b):
        return Status.bytes
    x, y = floats(a), floats(b)
    return Status.values if bool(((x == y) | (np.isnan(x) & np.isnan(y))).all()) else Status.lossy


def figures(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float, float]:
    """max abs, relative error and SQNR as float64 has them, all at once."""
    s, d = x.astype(np.float64), y.astype(np.float64) - x.astype(np.float64)
    noise, signal = float((d * d).sum()), float((s * s).sum())
    return float(np.abs(d).max()), (noise / signal) ** 0.5, 10 * log10(signal / noise)


def check_figures(found: Any, x: NDArray[Any], y: NDArray[Any]) -> None:
    largest, relative, sqnr = figures(x, y)
    assert found.max_abs == largest
    assert found.relative == pytest.approx(relative, rel=1e-11)
    assert found.sqnr == pytest.approx(sqnr, rel=1e-11)


@pytest.mark.parametrize(("a", "b"), list(permutations(KINDS, 2)))
def test_every_pair_of_dialects(a: str, b: str, decoded: Mapping[str, Mapping[str, independent.Part]]) -> None:
    found = compare(FIXTURE / KINDS[a], FIXTURE / KINDS[b])
    assert set(found) == set(decoded[a]) == set(decoded[b])
    for name, part in found.items():
        x, y = decoded[a][name], decoded[b][name]
        assert part.status == expected(x, y, (part.format_a, part.format_b)), name
        u, v = floats(x), floats(y)
        assert part.shape_a == part.shape_b == u.shape
        if part.status is not Status.lossy:
            assert (part.max_abs, part.relative, part.sqnr, part.experts) == (None, None, None, ())
            signs = np.argwhere(np.signbit(u) != np.signbit(v))  # llama.cpp's quantizer knows no -0
            assert part.zero_signs == len(signs)
            assert (part.first is None) == (not len(signs))
            continue
        check_figures(part, u, v)
        assert part.differing == np.count_nonzero(u != v)
        first = tuple(int(i) for i in np.argwhere(u != v)[0])
        assert part.first == (Place(*first) if u.ndim == 3 else Place(None, *first))
        if u.ndim == 3:
            assert [e.expert for e in part.experts] == [e for e in range(len(u)) if (u[e] != v[e]).any()]
            for each in part.experts:
                check_figures(each, u[each.expert], v[each.expert])


def test_what_the_fixture_promises() -> None:
    """Literally: these statuses do not follow from any decoder."""

    def statuses(a: str, b: str) -> dict[str, Status | None]:
        return {n: p.status for n, p in compare(FIXTURE / KINDS[a], FIXTURE / KINDS[b]).items()}

    hf_gguf = statuses("hf", "gguf")
    assert {hf_gguf["layer.0.gate"], hf_gguf["layer.3.down"], hf_gguf["embed"]} == {Status.bytes}
    assert {hf_gguf["norm"], hf_gguf["layer.0.gate.bias"], hf_gguf["layer.1.sinks"]} == {Status.values}
    assert set(statuses("hf", "openai").values()) == {Status.bytes}
    assert set(statuses("hf-bf16", "unsloth").values()) == {Status.bytes}  # transposed or not, the bits are there
    assert statuses("hf", "hf-bf16")["layer.0.gate"] is Status.values
    assert statuses("parent", "hf")["layer.0.gate"] is Status.lossy


def test_either_order_says_the_same() -> None:
    for a, b in (("parent", "gguf-q4"), ("hf", "gguf-q8_0"), ("unsloth", "parent")):
        one, other = compare(FIXTURE / KINDS[a], FIXTURE / KINDS[b]), compare(FIXTURE / KINDS[b], FIXTURE / KINDS[a])
        assert list(one) == list(other)
        for p, q in zip(one.values(), other.values(), strict=True):
            for field in ("status", "differing", "nonfinite", "zero_signs", "max_abs", "first"):
                assert getattr(p, field) == getattr(q, field), (p.part, field)
            assert (p.format_a, p.shape_a) == (q.format_b, q.shape_b)
            assert [e.max_abs for e in p.experts] == [e.max_abs for e in q.experts]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random model in every dialect."""
    at = tmp_path_factory.mktemp("small")
    out = {d: builders.write(SMALL, at / d, d) for d in ("hf", "hf-bf16", "unsloth", "openai")}
    return out | {"gguf": builders.write_gguf(SMALL, at / "m.gguf")}


def data_start(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 40) - 1), st.integers(0, 7), st.sampled_from(("hf", "hf-bf16", "openai", "unsloth")))
def test_a_flipped_bit_is_found_and_named(
    small: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, where: int, bit: int, dialect: str
) -> None:
    damaged = tmp_path_factory.mktemp("flip") / "b"
    shutil.copytree(small[dialect], damaged)
    file = damaged / "model.safetensors"
    raw = bytearray(file.read_bytes())
    start = data_start(file)
    raw[start + where % (len(raw) - start)] ^= 1 << bit
    file.write_bytes(raw)
    found = compare(small[dialect], damaged)
    changed = [p for p in found.values() if p.status is not Status.bytes]
    assert len(changed) == 1
    heads = {k: SMALL.sizes.openai_config[k] for k in HEADS}
    before, after = (independent.parts(x, heads)[changed[0].part] for x in (small[dialect], damaged))
    u, v = floats(before), floats(after)
    assert not independent.same(before, after)
    other = np.argwhere(independent.bits(before) != independent.bits(after))
    both_nan = np.isnan(u) & np.isnan(v)
    if not len(other) or both_nan[tuple(other[0])]:
        assert changed[0].status is Status.values
        return
    first = [int(i) for i in other[0]]
    axes = [*first, 0] if "bias" in changed[0].part or u.ndim == 1 else first
    assert changed[0].first == Place(*axes) if len(axes) == 3 else Place(None, *axes)
    assert changed[0].status is (Status.lossy if (u != v).any() else Status.values)


def edited(tmp_path: Path, name: str, change: builders.Change, dialect: str = "hf", **how: Any) -> Path:
    model = Model(Sizes(layers=1))  # `change` works on its arrays
    return builders.write(model, tmp_path / name, dialect, change=change, **how)


DOWN = "model.layers.0.mlp.experts.down_proj"


def test_two_swapped_experts(small: dict[str, Path], tmp_path: Path) -> None:
    def swap(t: Tensors) -> None:
        for end in ("_blocks", "_scales"):
            array = t[DOWN + end].array
            array[[0, 2]] = array[[2, 0]]

    found = compare(small["hf"], edited(tmp_path, "b", swap))
    lossy = [p for p in found.values() if p.status is Status.lossy]
    assert [p.part for p in lossy] == ["layer.0.down"]
    assert [e.expert for e in lossy[0].experts] == [0, 2]
    values = SMALL.values("layer.0.down")
    check_figures(lossy[0], values, values[[2, 1, 0]])  # the expert that is equal counts as signal


def test_other_bytes_that_mean_the_same(small: dict[str, Path], tmp_path: Path) -> None:
    def zero_a(t: Tensors) -> None:
        t[DOWN + "_blocks"].array[1, 5, 0] = 0
        t[DOWN + "_scales"].array[1, 5, 0] = 100

    def zero_b(t: Tensors) -> None:
        t[DOWN + "_blocks"].array[1, 5, 0] = 0
        t[DOWN + "_blocks"].array[1, 5, 0, 3] = 0x08  # -0 in the low nibble: element 6
        t[DOWN + "_scales"].array[1, 5, 0] = 7

    a, b = edited(tmp_path, "a", zero_a), edited(tmp_path, "b", zero_b)
    part = compare(a, b)["layer.0.down"]
    assert (part.status, part.differing, part.zero_signs) == (Status.values, 0, 1)
    assert part.first == Place(1, 5, 6)
    assert (part.max_abs, part.relative, part.sqnr, part.experts) == (None, None, None, ())


def test_doubled_codes_and_a_halved_scale_are_values(small: dict[str, Path], tmp_path: Path) -> None:
    """Codes 2 and 4 are 1 and 2: the same number by two pairs of code and scale."""

    def change(code: int, scale: int) -> builders.Change:
        def edit(t: Tensors) -> None:
            t[DOWN + "_blocks"].array[0] = code * 17
            t[DOWN + "_scales"].array[0] = scale

        return edit

    part = compare(edited(tmp_path, "a", change(2, 121)), edited(tmp_path, "b", change(4, 120)))["layer.0.down"]
    assert (part.status, part.zero_signs, part.first) == (Status.values, 0, None)


def test_no_figure_shows_threads_slabs_or_dialect(
    small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shift(t: Tensors) -> None:
        t[DOWN + "_scales"].array[1:] -= np.random.default_rng(5).integers(0, 3, (2, 64, 3), np.uint8)
        t["lm_head.weight"].array[::3] += 1

    other = edited(tmp_path, "b", shift)

    def run(dialect: str, workers: int, slab: int, piece: int) -> list[PartComparison]:
        monkeypatch.setattr(comparison_pairs, "SLAB_NBYTES", slab)
        monkeypatch.setattr(comparison_slabs, "PIECE_ELEMENTS", piece)
        monkeypatch.setattr(comparison_slabs, "PIECE_NBYTES", 8 * piece)
        return list(compare(small[dialect], other, workers=workers).values())

    want = run("hf-bf16", 1, 8 << 20, 1 << 18)
    assert [p.part for p in want if p.sqnr] == ["head", "layer.0.down"]
    for workers, slab, piece in ((2, 1 << 14, 1000), (5, 1, 1), (3, 1 << 12, 100)):
        for dialect in ("unsloth", "hf-bf16"):  # rows and columns: the same values, and no other bit of any figure
            assert run(dialect, workers, slab, piece) == want


def test_who_watches_sees_what_differs(small: dict[str, Path], tmp_path: Path) -> None:
    """The rows of every slab that differs, once, upright, by part; of equal values only where one format has two."""

    def change(t: Tensors) -> None:
        t[DOWN + "_scales"].array[1] -= 1
        t["model.norm.weight"].array[3] ^= 1

    def seen(a: Path, b: Path) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}

        def watch(group: comparison_pairs.Group, part: str, x: Any, y: Any, first_row: int) -> None:
            assert x.fields[0].shape[:2] == y.fields[0].shape[:2]
            assert not (x.transposed or y.transposed)
            assert x.fields[0].shape[1] == 1
            rows.setdefault(part, []).extend(range(first_row, first_row + x.fields[0].shape[0]))

        compare(a, b, watch=watch, workers=2)
        return {part: sorted(found) for part, found in rows.items()}

    other = edited(tmp_path, "b", change)
    want = {"layer.0.down": list(range(3 * 64)), "norm": list(range(64))}
    assert seen(small["hf"], other) == seen(small["gguf"], other) == seen(small["hf-bf16"], other) == want
    # unsloth has a slab for each expert: those that are equal are not seen
    assert seen(small["unsloth"], other) == want | {"layer.0.down": list(range(64, 128))}
    assert seen(small["hf"], small["hf-bf16"]) == seen(small["hf"], small["gguf"]) == {}


@pytest.mark.parametrize("b_is", ["hf", "gguf"])
def test_blocks_without_a_value(b_is: str, small: dict[str, Path], tmp_path: Path) -> None:
    def nan(t: Any) -> None:
        t[DOWN + "_scales"].array[2, 9, 1] = 255

    damaged = edited(tmp_path, "b", nan)
    part = compare(small[b_is], damaged)["layer.0.down"]
    assert (part.status, part.differing, part.nonfinite) == (Status.lossy, 32, 32)
    assert (part.max_abs, part.relative, part.sqnr) == (0.0, 0.0, None)  # over what is finite
    assert part.first == Place(2, 9, 32)
    assert [(e.expert, e.nonfinite) for e in part.experts] == [(2, 32)]
    assert compare(damaged, damaged)["layer.0.down"].status is Status.bytes
    part = compare(small["hf-bf16"], damaged)["layer.0.down"]
    assert (part.status, part.nonfinite) == (Status.lossy, 32)


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def test_nan_and_infinity_in_plain_numbers(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32)[None]
    y = x.copy()
    x[0, 1] = y[0, 1] = np.nan
    y.view(np.uint32)[0, 1] = 0xFFC00001
    x[0, 2] = y[0, 2] = -np.inf
    a, b = save(tmp_path / "a.safetensors", {"w": x}), save(tmp_path / "b.safetensors", {"w": y})
    assert compare(a, b)["w"].status is Status.values
    y[0, 5], y[0, 2] = np.nan, np.inf
    part = compare(a, save(tmp_path / "c.safetensors", {"w": y}))["w"]
    assert (part.status, part.differing, part.nonfinite) == (Status.lossy, 2, 2)
    assert part.first == Place(None, 0, 2)


def test_an_unknown_architecture_is_matched_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 40)).astype(np.float32)
    half = x.astype(np.float16)
    same: dict[str, NDArray[Any]] = {
        "f32": x, "f64": x.astype(np.float64), "i64": np.arange(5), "mask": np.array([True, False]),
        "scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 4), np.float32), "cube": x.reshape(2, 3, 40),
        "bf16": x.astype(ml_dtypes.bfloat16), "f8": x.astype(ml_dtypes.float8_e4m3fn),
    }  # fmt: skip
    ours = same | {"wide": half, "gone": x, "odd": x, "count": np.array([[1 << 24, 7]]), "eight": same["f8"]}
    theirs = same | {"wide": half.astype(np.float32), "new": x, "odd": x.T, "count": np.array([[(1 << 24) + 1, 7]]),
                     "eight": x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)}  # fmt: skip
    found = compare(save(tmp_path / "a.safetensors", ours), save(tmp_path / "b.safetensors", theirs))
    assert {n: found[n].status for n in same} == dict.fromkeys(same, Status.bytes)
    assert {n: found[n].status for n in ("gone", "new", "odd", "wide", "eight", "count")} == {
        "gone": Status.only_a, "new": Status.only_b, "odd": Status.shape, "wide": Status.values, "eight": Status.values,
        "count": Status.lossy,
    }  # fmt: skip
    assert (found["odd"].shape_a, found["odd"].shape_b) == ((6, 40), (40, 6))
    assert (found["count"].max_abs, found["count"].first) == (1.0, Place(None, 0, 0))
    assert (found["gone"].shape_a, found["gone"].shape_b, found["new"].format_a) == ((6, 40), None, None)


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu, np.int8, np.uint16, np.float64]
)
def test_all_codes_of_small_numbers(dtype: Any, tmp_path: Path) -> None:
    """Their values, against ml_dtypes': a file of all bytes against the same as float32."""
    raw = np.arange(256, dtype=np.uint8).repeat(np.dtype(dtype).itemsize).reshape(1, -1)
    if dtype is np.float64:
        raw = np.linspace(-3, 3, 256).astype(np.float32).astype(np.float64).view(np.uint8).reshape(1, -1)
    values = raw.view(dtype)
    found = compare(
        save(tmp_path / "a.safetensors", {"w": values}),
        save(tmp_path / "b.safetensors", {"w": values.astype(np.float32)}),
    )
    assert found["w"].status is Status.values


@pytest.mark.parametrize("n", [1 << 12, 3 << 11, 4099])
def test_rows_too_long_for_memory(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, n)).astype(np.float32)
    y = x.copy()
    y[1, n - 3] += 1
    a, b = save(tmp_path / "a.safetensors", {"w": x}), save(tmp_path / "b.safetensors", {"w": y})
    whole = compare(a, b)["w"]
    monkeypatch.setattr(comparison_pairs, "LONGEST_ROW", 1 << 10)
    monkeypatch.setattr(comparison_pairs, "SLAB_NBYTES", 1 << 13)
    cut = compare(a, b)["w"]
    assert cut.first == whole.first == Place(None, 1, n - 3)
    check_figures(cut, x, y)
    groups = list(comparison_pairs.groups(*comparison_pairs.holdings(open_checkpoint(a), open_checkpoint(b))))
    assert max(groups[0].slab_nbytes(*slab) for slab in groups[0].slabs()) <= 1 << 13


def test_mxfp4_of_compressed_tensors_is_decoded(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    codes, scales = rng.integers(0, 256, (8, 32), np.uint8), rng.integers(110, 120, (8, 2), np.uint8)
    packed = {"l.weight_packed": codes, "l.weight_scale": scales}
    values = builders.decoded(builders.Packed(codes.reshape(8, 2, 16), scales))
    a = save(tmp_path / "a.safetensors", packed)
    part = compare(a, save(tmp_path / "b.safetensors", {"l.weight": values}))["l.weight"]
    assert (part.status, part.format_a, part.shape_a) == (Status.values, "MXFP4", (8, 64))
    values[3, 7] += 1
    part = compare(a, save(tmp_path / "c.safetensors", {"l.weight": values}))["l.weight"]
    assert (part.status, part.first) == (Status.lossy, Place(None, 3, 7))


def test_integers_of_a_quantizer_are_compared_as_bytes(tmp_path: Path) -> None:
    """GPTQ's words, scales and zeros are one weight whose values nothing here decodes."""
    rng = np.random.default_rng(4)
    one = {
        "l.qweight": rng.integers(0, 1 << 31, (4, 32), np.int32), "l.scales": np.ones((1, 32), np.float16),
        "l.qzeros": np.zeros((1, 4), np.int32), "l.g_idx": np.zeros(32, np.int32),
    }  # fmt: skip
    other = {k: v.copy() for k, v in one.items()}
    other["l.qweight"][2, 9] ^= 1
    a, b = save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", other)
    assert {p.status for p in compare(a, a).values()} == {Status.bytes}
    assert [p.status for p in compare(a, b).values() if p.status is not Status.bytes] == [Status.lossy]


def test_experts_of_a_format_that_no_part_has_are_compared_as_bytes(small: dict[str, Path], tmp_path: Path) -> None:
    """Unsloth's 4-bit checkpoints: names of a known dialect, whose values nothing here decodes."""

    def one_byte(t: Tensors) -> None:
        builders.as_nf4(t)
        t["model.layers.0.mlp.experts.down_projs.1.weight"].array[7] ^= 1

    a, b = edited(tmp_path, "a", builders.as_nf4, "unsloth"), edited(tmp_path, "b", one_byte, "unsloth")
    found = compare(a, a)
    assert {p.status for p in found.values()} == {Status.bytes}
    assert (found["layer.0.down"].shape_a, found["layer.0.down"].format_a) == ((3, 64, 96), "NF4")
    changed = {n: p for n, p in compare(a, b).items() if p.status is not Status.bytes}
    assert [(n, p.status, p.differing) for n, p in changed.items()] == [("layer.0.down", Status.lossy, None)]
    against = compare(small["hf"], a)["layer.0.down"]
    assert (against.status, against.format_a, against.format_b) == (Status.lossy, "MXFP4", "NF4")


def test_a_wrong_shape_that_both_sides_have_is_no_difference(tmp_path: Path) -> None:
    def cut(t: Tensors) -> None:
        t["model.norm.weight"] = Tensor("BF16", t["model.norm.weight"].array[:-1])

    a = edited(tmp_path, "a", cut)
    assert {p.status for p in compare(a, a).values()} == {Status.bytes}


def test_missing_misshapen_and_unknown_tensors(small: dict[str, Path], tmp_path: Path) -> None:
    def damage(t: Tensors) -> None:
        del t["model.layers.0.self_attn.k_proj.bias"]
        del t["model.layers.0.mlp.experts.gate_up_proj_bias"]
        t["model.norm.weight"] = Tensor("BF16", t["model.norm.weight"].array[:-1])
        t["model.extra"] = Tensor("BF16", np.zeros(3, np.uint16))

    damaged = edited(tmp_path, "b", damage)
    found = compare(small["gguf"], damaged)
    odd = {n: p.status for n, p in found.items() if p.status not in (Status.bytes, Status.values)}
    assert odd == {
        "layer.0.k.bias": Status.only_a, "layer.0.gate.bias": Status.only_a, "layer.0.up.bias": Status.only_a,
        "norm": Status.shape, "model.extra": Status.only_b,
    }  # fmt: skip
    assert (found["norm"].shape_a, found["norm"].shape_b) == ((64,), (63,))
    back = compare(damaged, small["gguf"])
    assert back["layer.0.k.bias"].status is Status.only_b
    assert back["model.extra"].status is Status.only_a


def test_half_of_a_zip_that_the_other_side_lacks(tmp_path: Path) -> None:
    def drop(t: dict[str, Any]) -> None:
        del t["blk.0.ffn_up_exps.weight"]

    model = Model(Sizes(layers=1))
    a, b = builders.write(model, tmp_path / "a", "hf"), builders.write_gguf(model, tmp_path / "b.gguf", change=drop)
    found = compare(a, b)
    assert (found["layer.0.gate"].status, found["layer.0.up"].status) == (Status.bytes, Status.only_a)


def test_an_expert_that_only_one_side_stores(small: dict[str, Path], tmp_path: Path) -> None:
    def drop(t: Tensors) -> None:
        del t["model.layers.0.mlp.experts.down_projs.1.weight"]

    found = compare(small["hf"], edited(tmp_path, "b", drop, "unsloth"))
    assert found["layer.0.down[1]"].status is Status.only_a
    assert found["layer.0.down[1]"].shape_a == (64, 96)
    assert found["layer.0.down"].status is Status.values  # of the others


def test_a_side_without_config_takes_the_sizes_of_the_other(small: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(small["openai"] / "model.safetensors", tmp_path / "alone.safetensors")
    found = compare(small["hf"], tmp_path / "alone.safetensors")
    assert {p.status for p in found.values()} == {Status.bytes}
    assert "layer.0.gate" in found


def test_other_sizes_are_other_shapes(small: dict[str, Path], tmp_path: Path) -> None:
    found = compare(small["hf"], builders.write(Model(Sizes(layers=2, experts=4)), tmp_path / "b", "hf-bf16"))
    assert found["layer.0.gate"].status is Status.shape
    assert found["layer.1.gate"].status is Status.only_b
    assert (found["layer.0.gate"].shape_a, found["layer.0.gate"].shape_b) == ((3, 96, 64), (4, 96, 64))


def test_headers_only_reads_no_data(small: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(comparison, "open_file", fail)
    found = compare(small["hf"], small["gguf"], headers_only=True)
    assert {p.status for p in found.values()} == {None}
    assert (found["layer.0.gate"].format_a, found["norm"].format_b) == ("MXFP4", "F32")
    with pytest.raises(AssertionError, match="data was read"):
        compare(small["hf"], small["gguf"])


def test_progress_counts_every_byte_once(small: dict[str, Path]) -> None:
    for a, b in (("hf", "gguf"), ("hf-bf16", "hf")):
        sides = open_checkpoint(small[a]), open_checkpoint(small[b])
        seen: list[int] = []
        compare_parts(*sides, progress=seen.append, workers=2)
        assert sum(seen) == compared_nbytes(*sides) == sum(s.nbytes for s in sides)


def test_a_file_that_shrinks_is_an_error(small: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(small["hf"], tmp_path / "b")
    sides = open_checkpoint(small["hf"]), open_checkpoint(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    for workers in (1, 4):
        with pytest.raises(Exception, match="the file ends at byte"):
            compare_parts(*sides, workers=workers)


def test_little_memory_means_fewer_threads_and_the_same_result(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = compare(small["hf-bf16"], small["gguf"])
    monkeypatch.setattr(comparison, "MAX_MEMORY", 1)
    assert compare(small["hf-bf16"], small["gguf"], workers=8) == want


def test_without_a_compiler_the_figures_are_the_same(small: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpttool.codecs import cpu, cpu_numpy

    a, b = FIXTURE / KINDS["parent"], FIXTURE / KINDS["hf"]
    want = compare(a, b)
    monkeypatch.setattr(cpu, "_module", cpu_numpy)
    assert cpu.backend() == "numpy"
    assert compare(a, b) == want
