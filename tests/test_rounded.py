"""Rounding as proof: F16, BF16 and Q8_0 of wider numbers, each value the nearest, and what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import builders
import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from test_claims import judge, proofs, told

import ckpttool
from ckpttool.validator.claims import ValuesFound

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
Arrays = dict[str, NDArray[Any]]


def weights(seed: int = 0) -> Arrays:
    """Numbers that no narrower format holds, one tensor with plenty of halfway cases among them."""
    rng = np.random.default_rng(seed)
    x = {f"w{i}": rng.normal(0, 0.02, (40, 96)).astype(np.float32) for i in range(4)}
    x["bias"] = rng.normal(0, 1, 33).astype(np.float32)
    halfway = rng.integers(0x3C000000, 0x40000000, (8, 64), np.uint32) & 0xFFFF0000
    halfway[:, ::2] |= 0x8000  # between two of BF16
    halfway[:, 1::2] |= 0x1000  # between two of F16
    return x | {"halfway": halfway.view(np.float32)}


def save(path: Path, arrays: Arrays) -> Path:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def held(tmp_path: Path, a: Arrays, b: Arrays, **how: Any) -> ValuesFound:
    return judge(save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b), **how)


def truncated(x: NDArray[np.float32]) -> NDArray[Any]:
    return (x.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["BF16", "F16"])
def test_the_nearest_by_another_library(tmp_path: Path, dtype: Any) -> None:
    x = weights()
    found = held(tmp_path, x, {name: a.astype(dtype) for name, a in x.items()})
    assert found.failures == ()
    assert found.notes == ()
    assert set(proofs(found).values()) == {"rounding"}
    assert found.fidelity == "lossy"
    assert all(p.compared.sqnr is not None and p.compared.max_abs for p in found.parts)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["BF16", "F16"])
def test_one_value_that_is_not_the_nearest(tmp_path: Path, dtype: Any) -> None:
    """By one unit in its last place: no figure shows it, and it is named."""
    x = weights()
    y = {name: a.astype(dtype) for name, a in x.items()}
    right = y["w2"][17, 5]
    y["w2"].view(np.uint16)[17, 5] ^= 1
    found = held(tmp_path, x, y)
    new, old = (f"{float(v):.9g}" for v in (y["w2"][17, 5], right))
    want = f"1 of 3,840 values is not what rounding makes of the reference, at row 17, column 5: {new}, not {old}"
    assert told(found) == {"w2": want}
    assert Counter(proofs(found).values()) == {"rounding": 5, None: 1}


def test_by_way_of_another_format(tmp_path: Path) -> None:
    x = weights()
    found = held(tmp_path, x, {name: a.astype(np.float16).astype(ml_dtypes.bfloat16) for name, a in x.items()})
    assert found.failures == ()
    assert set(proofs(found).values()) == {"rounding by way of F16"}


def test_numbers_cut_off_have_a_budget(tmp_path: Path) -> None:
    """Truncation is no rounding to nearest, but no damage either."""
    x = weights()
    x["exact"] = x["w0"].astype(ml_dtypes.bfloat16).astype(np.float32)
    found = held(tmp_path, x, {name: truncated(a) for name, a in x.items()})
    assert found.failures == ()
    assert proofs(found)["exact"] == "values"
    assert Counter(proofs(found).values()) == {"budget": 6, "values": 1}
    assert found.notes == ("no way that is known here makes the candidate's BF16 of F32: 6 parts are held to a budget",)


def test_what_need_not_be_rounded_has_to_stay(tmp_path: Path) -> None:
    """However it was made: a number that BF16 holds is a BF16."""
    x = weights()
    x["exact"] = x["w0"].astype(ml_dtypes.bfloat16).astype(np.float32)
    y = {name: truncated(a) for name, a in x.items()}
    y["exact"].view(np.uint16)[[3, 9], [7, 2]] ^= 1
    found = held(tmp_path, x, y)
    assert list(told(found)) == ["exact"]
    assert told(found)["exact"].startswith(
        "2 of 3,840 values are not the reference's, which BF16 could hold, the first at row 3, column 7: "
    )


@pytest.mark.parametrize("to", ["BF16", "F16"])
def test_what_is_not_beside_the_nearest_is_no_rounding(tmp_path: Path, to: str) -> None:
    """Whichever way a number was rounded, it is one of the two that enclose it; a sign or a place further is damage."""
    x = weights()
    x["small"] = np.linspace(-3e-6, 3e-6, 2000, dtype=np.float32)  # where F16 has 24 bits behind the point and no more
    dtype = ml_dtypes.bfloat16 if to == "BF16" else np.float16
    y = {}
    for name, a in x.items():
        near = a.astype(dtype)
        up = np.nextafter(near, np.asarray(np.inf, dtype))
        y[name] = np.where(near.astype(np.float32) < a, up, near)  # towards infinity
    assert held(tmp_path, x, y, min_sqnr=30.0).failures == ()
    assert set(proofs(held(tmp_path, x, y, min_sqnr=30.0)).values()) == {"budget"}
    bits = y["w2"].view(np.uint16)
    bits[17, 5] ^= 0x8000
    bits[18, 6] += 2
    found = held(tmp_path, x, y, min_sqnr=30.0)
    assert list(told(found)) == ["w2"]
    assert told(found)["w2"].startswith(
        "2 of 3,840 values are not what any rule makes of the reference, the first at row 17, column 5: "
    )


def test_a_part_stored_in_several_formats(tmp_path: Path) -> None:
    """Each expert is judged by the format that it is stored in."""
    model = builders.Model(builders.Sizes(layers=1, experts=4))
    rng = np.random.default_rng(5)
    wide: Arrays = {}

    def reference(t: builders.Tensors) -> None:
        for name in (n for n in t if ".experts." in n and n.endswith(".weight")):
            wide[name] = rng.normal(0, 0.02, t[name].array.shape).astype(np.float32)
            t[name] = builders.Tensor("F32", wide[name])

    def candidate(t: builders.Tensors) -> None:
        for name, a in wide.items():
            expert = int(name.split(".")[-2])
            kinds = (("F32", a), ("F16", a.astype(np.float16)), ("BF16", builders.bf16(a)), ("F32", a))
            t[name] = builders.Tensor(*kinds[expert])

    a = builders.write(model, tmp_path / "a", "unsloth", change=reference)
    b = builders.write(model, tmp_path / "b", "unsloth", change=candidate)
    found = judge(a, b)
    parts = {p.compared.part: p for p in found.parts}
    assert found.failures == ()
    assert found.notes == ()
    for name in ("gate", "up", "down"):
        part = parts[f"layer.0.{name}"]
        assert part.compared.format_b == "F32+F16+BF16"
        assert (part.claim, part.proof) == ("lossy", "rounding")
    assert {p.proof for p in judge(b, b).parts} == {p.claim for p in judge(b, b).parts} == {"bytes"}


def test_too_large_for_the_format(tmp_path: Path) -> None:
    x = weights()
    x["w1"][3, 4] = 1e6
    with np.errstate(over="ignore"):
        y = {name: a.astype(np.float16) for name, a in x.items()}
    found = held(tmp_path, x, y)
    assert list(told(found)) == ["w1"]
    assert told(found)["w1"].startswith(
        "1 of 3,840 values is not what rounding makes of the reference, at row 3, column 4"
    )
    assert told(found)["w1"].endswith("inf, and the reference has 1e+06")


def test_infinities_and_nan_pass(tmp_path: Path) -> None:
    x = weights()
    x["w1"][3, 4:7] = np.inf, -np.inf, np.nan
    assert held(tmp_path, x, {name: a.astype(ml_dtypes.bfloat16) for name, a in x.items()}).failures == ()


# --- Q8_0 ---


def blocks(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return data.reshape(*data.shape[:-1], -1, 34)


@pytest.fixture(scope="module")
def model() -> builders.Model:
    return builders.Model(builders.Sizes(layers=1))


def q8_0(model: builders.Model, path: Path, edit: Any = lambda name, blocks: None) -> Path:
    """Attention and embeddings as the gguf package makes them of the BF16 values."""

    def change(rows: dict[str, tuple[str, NDArray[Any]]]) -> None:
        for name, (kind, array) in rows.items():
            if kind == "BF16":
                values = builders.widened(array.view(np.uint16))
                made = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
                edit(name, blocks(made))
                rows[name] = ("Q8_0", made)

    return builders.write_gguf(model, path, change=change)


def test_q8_0_by_the_gguf_package(model: builders.Model, tmp_path: Path) -> None:
    a = builders.write(model, tmp_path / "a", "hf")
    found = judge(a, q8_0(model, tmp_path / "x.gguf"))
    assert found.failures == ()
    by_format = Counter((p.compared.format_b, p.proof) for p in found.parts)
    assert by_format == {("Q8_0", "rounding"): 6, ("F32", "values"): 13, ("MXFP4", "bytes"): 3}


@pytest.mark.parametrize(
    ("at", "change", "what"),
    [((5, 1, 7), 1, r"at row 5, block 1: -?\d+, not -?\d+, in column 37"),
     ((5, 1, 0), 1, r"at row 5, block 1: scale [\d.e-]+, not [\d.e-]+")],
)  # fmt: skip
def test_one_byte_of_q8_0(model: builders.Model, tmp_path: Path, at: tuple[int, ...], change: int, what: str) -> None:
    import re

    def edit(name: str, made: NDArray[np.uint8]) -> None:
        if name == "blk.0.attn_k.weight":
            made[at] ^= change

    found = judge(builders.write(model, tmp_path / "a", "hf"), q8_0(model, tmp_path / "x.gguf", edit))
    assert list(told(found)) == ["layer.0.k"]
    assert re.fullmatch(
        f"1 of 128 blocks is not what rounding makes of the reference, {what}", told(found)["layer.0.k"]
    )
    assert found.failures[0].layer == 0


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("to", ["bf16", "f16"])
def test_what_was_quantized_is_rounded_too(tmp_path: Path, kind: str, to: str) -> None:
    """Q8_0 and k-quants as plain numbers: what BF16 cannot hold of them is rounded once."""
    import torch
    from safetensors.torch import save_file

    source = FIXTURE / "gguf" / f"tiny-gpt-oss-{kind}.gguf"
    reader = gguf.GGUFReader(source)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[to]
    made = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).copy()).to(dtype)
        for t in reader.tensors
    }
    # Under the GGUF's own names no table of ours fits: parts are matched by them.
    save_file(made, tmp_path / "x.safetensors")
    found = judge(source, tmp_path / "x.safetensors")
    assert found.failures == ()
    assert {p.proof for p in found.parts if p.compared.format_a not in ("F32", None)} <= {"rounding", "values"}
    assert Counter(p.proof for p in found.parts)["rounding"] > 20


def test_ours_of_the_parent(tmp_path: Path) -> None:
    """What `convert` makes, from its own receipt's side: every lossy part is proven."""
    for outtype, want in (("f16", "rounding"), ("q8_0", "rounding"), ("mxfp4", "recipe best")):
        out = tmp_path / f"{outtype}.gguf"
        if outtype == "mxfp4":
            ckpttool.convert(FIXTURE / "parent", tmp_path / "mx", to="mxfp4", device="cpu")
            out = tmp_path / "mx"
        else:
            ckpttool.convert(FIXTURE / "parent", out, outtype=outtype, device="cpu")
        found = judge(FIXTURE / "parent", out)
        assert found.failures == ()
        lossy = [p for p in found.parts if p.compared.status == "lossy"]
        assert lossy
        assert {p.proof for p in lossy} <= {want, "recipe best"}
