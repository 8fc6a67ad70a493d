"""Level values: what each pair of formats promises, whether it is kept, and where damage is that nothing promises."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import safetensors.numpy
from builders import Model, Sizes, Tensor, Tensors
from numpy.typing import NDArray
from test_comparison import FIXTURE, KINDS

from ckpttool.archs.joins import PartShape
from ckpttool.checkpoint import open_checkpoint
from ckpttool.codecs.formats import BF16_FLAT, F16_FLAT, F32_FLAT, MXFP4_GGML, MXFP4_PAIR, Q8_0_GGML, Codec, ggml_codec
from ckpttool.comparison import pairs as comparison_pairs
from ckpttool.comparison import slabs as comparison_slabs
from ckpttool.comparison.pairs import Holding
from ckpttool.tensors import Weight
from ckpttool.validator.claims import ValuesFound, claim_of, judge_values, values_nbytes
from ckpttool.validator.failures import Failure

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
Array = NDArray[Any]
Edit = Callable[[Array], Array]


def judge(reference: Path, candidate: Path, **how: Any) -> ValuesFound:
    return judge_values(open_checkpoint(reference), open_checkpoint(candidate), **how)


def proofs(found: ValuesFound) -> dict[str, str | None]:
    return {p.compared.part: p.proof for p in found.parts}


def told(found: ValuesFound) -> dict[str, str]:
    return {f.part: f.what for f in found.failures if f.part}


# --- claims ---

B, V, L = "bytes", "values", "lossy"
FORMATS: Mapping[str, Codec] = {
    "F32": F32_FLAT, "F16": F16_FLAT, "BF16": BF16_FLAT, "MXFP4 pair": MXFP4_PAIR, "MXFP4 ggml": MXFP4_GGML,
    "Q8_0": Q8_0_GGML, "Q4_K": ggml_codec("Q4_K"), "NVFP4": ggml_codec("NVFP4"),
}  # fmt: skip
CLAIMS = {  # columns: to F32, F16, BF16, MXFP4 pair, MXFP4 ggml, Q8_0, Q4_K, NVFP4
    "F32": (B, L, L, L, L, L, L, L),
    "F16": (V, B, L, L, L, L, L, L),
    "BF16": (V, L, B, L, L, L, L, L),
    "MXFP4 pair": (V, L, V, B, B, None, None, None),
    "MXFP4 ggml": (V, L, V, B, B, None, None, None),
    "Q8_0": (V, L, L, None, None, B, None, None),
    "Q4_K": (V, L, L, None, None, None, B, None),
    "NVFP4": (None, None, None, None, None, None, None, B),
}


def holding(codecs: Sequence[Codec]) -> Holding:
    """A part whose experts are stored so, in a weight each."""
    weights = tuple(Weight(f"w.{i}", codec, (64,), ()) for i, codec in enumerate(codecs))
    return Holding({"p": PartShape((64,), None)}, {}, {"p": comparison_pairs.Misfit(weights, (64,))})


@pytest.mark.parametrize(("source", "target"), list(product(FORMATS, FORMATS)))
def test_what_every_pair_of_formats_promises(source: str, target: str) -> None:
    want = CLAIMS[source][list(FORMATS).index(target)]
    assert claim_of(holding([FORMATS[source]]), holding([FORMATS[target]]), "p") == want


def test_of_several_formats_the_lowest_promise_counts() -> None:
    both = holding([BF16_FLAT, F32_FLAT])
    assert claim_of(holding([BF16_FLAT]), both, "p") == V
    assert claim_of(both, holding([BF16_FLAT]), "p") == L
    assert claim_of(holding([MXFP4_PAIR, BF16_FLAT]), holding([Q8_0_GGML]), "p") is None
    assert claim_of(both, holding([]), "p") is None


# --- the fixture: what our dialects and llama.cpp's make of each other ---

OF_ONE_MODEL = ("hf", "hf-bf16", "openai", "unsloth", "gguf", "gguf-bf16")


@pytest.mark.parametrize(("a", "b"), list(permutations(OF_ONE_MODEL, 2)))
def test_dialects_of_one_model_lose_nothing(a: str, b: str) -> None:
    """Whatever is promised: where a narrower format holds every value, that is proven, and said."""
    found = judge(FIXTURE / KINDS[a], FIXTURE / KINDS[b])
    assert found.failures == ()
    assert found.notes == ()
    assert found.fidelity == max((p.compared.status.value for p in found.parts if p.compared.status), key=[B, V].index)
    for part in found.parts:
        assert part.proof == part.compared.status
        assert [B, V, L].index(str(part.proof)) <= [B, V, L].index(str(part.claim))


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [("parent", "hf", {"recipe ocp": 12, "bytes": 67}), ("parent", "openai", {"recipe ocp": 12, "bytes": 67}),
     ("parent", "hf-bf16", None), ("hf", "gguf-q8_0", {"rounding": 30, "values": 49}),
     ("hf-bf16", "gguf-moe", {"rounding": 18, "values": 61}),
     # To BF16 and back in between, where llama.cpp's own recipe, which knows no -0, loses nothing but those.
     ("parent", "gguf-moe", {"recipe floor/even without -0": 12, "rounding": 18, "values": 49}),
     ("parent", "gguf", {"recipe ocp": 12, "values": 49, "bytes": 18})],
)  # fmt: skip
def test_lossy_parts_are_proven(a: str, b: str, want: dict[str, int] | None) -> None:
    found = judge(FIXTURE / KINDS[a], FIXTURE / KINDS[b])
    if want is None:  # the same format, and other values: no conversion
        assert {f.part for f in found.failures} == {f"layer.{n}.{p}" for n in range(4) for p in ("gate", "up", "down")}
        assert all(re.match(r"[\d,]+ of 196,608 values are not the reference's", f.what) for f in found.failures)
        return
    assert found.failures == ()
    assert Counter(proofs(found).values()) == want
    assert found.fidelity == "lossy"


def test_formats_that_nobody_makes_here_have_a_budget() -> None:
    found = judge(FIXTURE / KINDS["hf-bf16"], FIXTURE / KINDS["gguf-q4"])
    assert found.failures == ()
    assert {p.proof for p in found.parts if p.compared.format_b in ("Q4_K", "Q5_0", "Q6_K")} == {"budget"}
    assert {p.proof for p in found.parts if p.compared.format_b == "Q8_0"} == {"rounding"}
    asked = judge(FIXTURE / KINDS["hf-bf16"], FIXTURE / KINDS["gguf-q4"], min_sqnr=30.0)
    assert {p.compared.format_b for p in asked.parts if p.proof is None} == {"Q4_K", "Q5_0"}
    assert "is below the 30 dB" in asked.failures[0].what


def test_what_a_user_asks_for_holds_for_what_is_proven_too() -> None:
    found = judge(FIXTURE / KINDS["parent"], FIXTURE / KINDS["hf"], min_sqnr=19.0)
    assert len(found.failures) == 12
    assert {p.proof for p in found.parts if p.compared.status == "lossy"} == {None}


# --- damage ---


def mutated(at: Path, source: str, edits: Mapping[str, Edit]) -> Path:
    tensors = builders.read(FIXTURE / source)
    for name, edit in edits.items():
        tensors[name] = tensors[name]._replace(array=edit(tensors[name].array.copy()))
    at.mkdir()
    builders.save(at / "model.safetensors", tensors)
    for side in ("config.json", "tokenizer.json"):
        shutil.copy(FIXTURE / source / side, at / side)
    return at


def at_one(place: tuple[int, ...], change: Callable[[int], int]) -> Edit:
    def edit(a: Array) -> Array:
        a[place] = change(int(a[place]))
        return a

    return edit


def experts_swapped(a: Array) -> Array:
    return a[[1, 0, *range(2, len(a))]]


def gate_and_up_swapped(a: Array) -> Array:
    return a.reshape(a.shape[0], -1, 2, *a.shape[2:])[:, :, ::-1].reshape(a.shape)


def nibbles_swapped(a: Array) -> Array:
    return a << 4 | a >> 4


def both(edit: Edit) -> dict[str, Edit]:
    return {GATE_UP + "_blocks": edit, GATE_UP + "_scales": edit}


ONE = "1 of 6,144 blocks is WRONG, at expert 1, row 2, block 0: "
DAMAGE: Mapping[str, tuple[Mapping[str, Edit], Mapping[str, str]]] = {
    "a scale byte off by one": (
        {GATE_UP + "_scales": at_one((1, 5, 0), lambda s: s + 1)}, {"up": ONE + "scale byte 122, not 121"},
    ),
    "one code": (
        {GATE_UP + "_blocks": at_one((1, 5, 0, 3), lambda b: b ^ 1)}, {"up": ONE + "code 14, not 15, in column 6"},
    ),
    "NaN": (
        {GATE_UP + "_scales": at_one((2, 9, 1), lambda s: 255)},
        {"up": "1 of 6,144 blocks is WRONG, at expert 2, row 4, block 1: scale byte 255, not 121"},
    ),
    "experts": (both(experts_swapped), {
        "gate": "experts 0 and 1 have changed places: 3,072 of 6,144 blocks are WRONG, in 2 experts, the first at",
        "up": "experts 0 and 1 have changed places: 3,072 of 6,144 blocks are WRONG, in 2 experts, the first at",
    }),
    "gate and up": (both(gate_and_up_swapped), {
        "gate": "gate and up have changed places: 6,144 of 6,144 blocks are WRONG, in 4 experts,",
        "up": "gate and up have changed places: 6,144 of 6,144 blocks are WRONG, in 4 experts,",
    }),
    "nibbles": ({GATE_UP + "_blocks": nibbles_swapped}, {
        "gate": "the two codes of each byte have changed places: 6,144 of 6,144 blocks are WRONG, in 4 experts,",
        "up": "the two codes of each byte have changed places: 6,144 of 6,144 blocks are WRONG, in 4 experts,",
    }),
    "sinks zeroed": ({"model.layers.1.self_attn.sinks": np.zeros_like}, {
        "sinks": "zeros stand in their place: 4 of 4 values are not the reference's, the first at element 0: 0, not ",
    }),
    "one value of a norm": ({"model.layers.1.input_layernorm.weight": at_one((7,), lambda b: b ^ 1)}, {
        "attn_norm": "1 of 256 values is not the reference's, at element 7: ",
    }),
    "experts' biases": ({GATE_UP.replace("gate_up", "down") + "_bias": experts_swapped}, {
        "down.bias": "experts 0 and 1 have changed places: 512 of 1,024 values are not the reference's, in 2 experts,",
    }),
    "two projections": ({
        "model.layers.1.self_attn.k_proj.weight": lambda a: builders.read(FIXTURE / "hf")[
            "model.layers.1.self_attn.v_proj.weight"].array,
        "model.layers.1.self_attn.v_proj.weight": lambda a: builders.read(FIXTURE / "hf")[
            "model.layers.1.self_attn.k_proj.weight"].array,
    }, {"k": "k and v have changed places: ", "v": "k and v have changed places: "}),
}  # fmt: skip
REFERENCES = {
    "hf": "not the reference's", "gguf": "not the reference's",
    "hf-bf16": "not the reference's, which MXFP4 could hold", "parent": "not what recipe ocp makes of the reference",
}  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: str, reference: str) -> None:
    """By part, expert, row and block, with its cause where that is certain; the same from any reference."""
    edits, want = DAMAGE[damage]
    found = judge(FIXTURE / KINDS[reference], mutated(tmp_path / "x", "hf", edits))
    assert {f.part for f in found.failures} == {f"layer.1.{part}" for part in want}
    for failure in found.failures:
        assert failure.part is not None
        assert (failure.layer, failure.level) == (1, "values")
        told = want[failure.part.removeprefix("layer.1.")].replace("WRONG", REFERENCES[reference])
        # A GGUF holds vectors as F32, of which BF16 might have lost something.
        assert failure.what.replace(", which BF16 could hold", "").startswith(told)
    assert [p.compared.part for p in found.parts if p.proof is None] == [f.part for f in found.failures]
    assert found.fidelity == "lossy"


def test_experts_that_are_not_transposed(tmp_path: Path) -> None:
    """hf-bf16 holds experts as [E, K, N]: numbers laid out as [E, N, K] under that shape are all wrong."""
    edit = {GATE_UP: lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).reshape(a.shape)}
    found = judge(FIXTURE / "hf", mutated(tmp_path / "x", "hf-bf16", edit))
    assert set(told(found)) == {"layer.1.gate", "layer.1.up"}
    assert all("196,608 values are not the reference's, in 4 experts" in what for what in told(found).values())
    same = judge(FIXTURE / "hf", FIXTURE / "hf-bf16")
    assert same.failures == ()


def test_other_bytes_that_mean_the_same_are_no_bytes(tmp_path: Path) -> None:
    """A block of zeros may have any scale: between two MXFP4 that fails, of wider numbers it is as good as any."""
    model = Model(Sizes(layers=1))

    def zero(scale: int) -> builders.Change:
        def change(t: Tensors) -> None:
            t["model.layers.0.mlp.experts.down_proj_blocks"].array[1, 5, 0] = 0
            t["model.layers.0.mlp.experts.down_proj_scales"].array[1, 5, 0] = scale

        return change

    a, b = (builders.write(model, tmp_path / str(s), "hf", change=zero(s)) for s in (0, 9))
    found = judge(a, b)
    assert found.failures == (
        Failure("layer.0.down", 0,
                "1 of 576 blocks is not the reference's, at expert 1, row 5, block 0: scale byte 9, not 0", "values"),
    )  # fmt: skip
    assert (found.fidelity, proofs(found)["layer.0.down"]) == ("values", None)

    def zero_bf16(t: Tensors) -> None:
        t["model.layers.0.mlp.experts.down_proj"].array[1, :32, 5] = 0

    wide = builders.write(model, tmp_path / "wide", "hf-bf16", change=zero_bf16)
    for narrow in (a, b):
        assert judge(wide, narrow).failures == ()
        assert judge(narrow, wide).failures == ()


def test_parts_that_are_not_on_both_sides_are_no_business_of_this_level(tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        del t["model.layers.0.self_attn.k_proj.bias"]
        t["model.norm.weight"] = Tensor("BF16", t["model.norm.weight"].array[:-1])

    model = Model(Sizes(layers=1))
    found = judge(
        builders.write(model, tmp_path / "a", "hf"), builders.write(model, tmp_path / "b", "hf", change=change)
    )
    assert found.failures == ()
    assert {p.compared.part: (p.claim, p.proof) for p in found.parts if p.claim is None} == {
        "layer.0.k.bias": (None, None), "norm": (None, None),
    }  # fmt: skip
    assert found.fidelity == "bytes"


def test_what_nobody_can_read(tmp_path: Path) -> None:
    """Equal bytes prove it; others cannot be judged, and that fails."""
    model = Model(Sizes(layers=1))

    def one_byte(t: Tensors) -> None:
        builders.as_nf4(t)
        t["model.layers.0.mlp.experts.down_projs.1.weight"].array[7] ^= 1

    a = builders.write(model, tmp_path / "a", "unsloth", change=builders.as_nf4)
    b = builders.write(model, tmp_path / "b", "unsloth", change=one_byte)
    assert judge(a, a).fidelity == "bytes"
    assert set(told(judge(a, b))) == {"layer.0.down"}
    what = told(judge(a, b))["layer.0.down"]
    assert re.fullmatch(r"1 of [\d,]+ bytes is not the reference's, at byte [\d]+: 0x(..), not 0x(?!\1)..", what)
    found = judge(builders.write(model, tmp_path / "c", "hf"), b)
    assert told(found)["layer.0.down"] == "differs, and its values cannot be compared (MXFP4, NF4)"


def test_weights_of_no_known_architecture(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    near = x.astype(np.float16)
    near[1, 7] = np.nextafter(near[1, 7], np.float16(9))
    ours = {"same": x, "wide": x.astype(np.float16), "near": x, "one": np.arange(5)}
    theirs = {
        "same": x,
        "wide": x.astype(np.float16).astype(np.float32),
        "near": near,
        "one": np.array([0, 1, 2, 3, 5]),
    }
    for name, tensors in (("a", ours), ("b", theirs)):
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")
    found = judge(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert proofs(found) == {"same": "bytes", "wide": "values", "near": None, "one": None}
    assert told(found)["one"] == "1 of 5 values is not the reference's, at row 0, column 4: 5, not 4"
    assert told(found)["near"].startswith(
        "1 of 120 values is not what rounding makes of the reference, at row 1, column 7: "
    )


def test_nothing_in_common_is_nothing_kept(tmp_path: Path) -> None:
    for name in "ab":
        safetensors.numpy.save_file({name: np.zeros(3, np.float32)}, tmp_path / f"{name}.safetensors")
    found = judge(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found.fidelity, found.failures) == ("lossy", ())


# --- the same whatever it runs on ---


@pytest.mark.parametrize("damage", ["a scale byte off by one", "experts", "nibbles"])
def test_findings_show_no_threads_slabs_or_dialect(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mutated(tmp_path / "x", "hf", DAMAGE[damage][0])

    def run(workers: int, slab: int, piece: int) -> ValuesFound:
        monkeypatch.setattr(comparison_pairs, "SLAB_NBYTES", slab)
        monkeypatch.setattr(comparison_slabs, "PIECE_ELEMENTS", piece)
        return judge(FIXTURE / "parent", made, workers=workers)

    want = run(1, 8 << 20, 1 << 18)
    for how in ((2, 1 << 16, 20000), (5, 1 << 14, 5000)):
        assert run(*how) == want
    # An unsloth checkpoint of the same numbers has experts of their own, and rows where parent has columns.
    for part, other in zip(want.parts, judge(FIXTURE / "hf-bf16", made).parts, strict=True):
        assert (part.compared.part, part.claim) == (other.compared.part, other.claim)
    rows = judge(FIXTURE / "unsloth", made)
    assert rows.failures == judge(FIXTURE / "hf-bf16", made).failures
    assert proofs(rows) == proofs(judge(FIXTURE / "hf-bf16", made))


def test_progress_tells_of_every_byte_once() -> None:
    sides = open_checkpoint(FIXTURE / "parent"), open_checkpoint(FIXTURE / "hf")
    seen: list[int] = []
    judge_values(*sides, progress=seen.append, workers=2)
    assert sum(seen) == values_nbytes(*sides) == sum(s.nbytes for s in sides)


def test_without_a_compiler_the_findings_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpttool.codecs import cpu, cpu_numpy

    model = Model(Sizes(layers=1))
    a = builders.write(model, tmp_path / "a", "hf-bf16")
    b = builders.write(model, tmp_path / "b", "hf", change=lambda t: t.update(_nudged(t)))
    want = judge(a, b)
    monkeypatch.setattr(cpu, "_module", cpu_numpy)
    assert judge(a, b) == want
    assert len(want.failures) == 1


def _nudged(t: Tensors) -> Tensors:
    name = "model.layers.0.mlp.experts.down_proj_scales"
    array = t[name].array.copy()
    array[1, 5, 0] += 1
    return {name: Tensor("U8", array)}
