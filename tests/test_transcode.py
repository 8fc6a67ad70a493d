"""`transcode` between every two codecs, upright or transposed, against the definitions; and `values` of all of them.

Sides: F32, F16 and BF16 upright and in columns, MXFP4 in both packings, Q8_0, and Q4_0 as one that is only decoded.
Every way that exists is asserted bit for bit, every other one to be refused.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ckpttool.codecs import counting, cpu_numpy, measure, plain, reference
from ckpttool.codecs.formats import (
    MXFP4_GGML,
    MXFP4_PAIR,
    PLAIN,
    RECIPES,
    BlockFormat,
    Codec,
    ElementFormat,
    Packing,
    ggml_codec,
)
from ckpttool.codecs.packing import PACK, UNPACK
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Operand, transcode
from ckpttool.codecs.values import OTHERS, decodable, meeting, values

Q8_0, Q4_0 = ggml_codec("Q8_0"), ggml_codec("Q4_0")
EXPERTS, ROWS, PARTS, K = 2, 3, 2, 64
SHAPE = (EXPERTS * ROWS, PARTS, K)
OCP = RECIPES["ocp"]


def sample() -> NDArray[np.float32]:
    """Weights [R, p, K] that every codec here holds, rounded."""
    return (np.random.default_rng(50).standard_normal(SHAPE) * 0.5).astype(np.float32)


def in_columns(rows: NDArray[Any]) -> NDArray[Any]:
    """[R, p, K] as [experts, K, N]."""
    return np.ascontiguousarray(rows.reshape(EXPERTS, -1, rows.shape[2]).swapaxes(1, 2))


def plain_side(name: str, bits: NDArray[Any], transposed: bool = False) -> Operand:
    stored = in_columns(bits) if transposed else np.ascontiguousarray(bits)
    return Operand(PLAIN[name], (stored.view(np.uint8),), bits.shape[1], transposed)


def mxfp4_side(codec: Codec, codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Operand:
    """Of codes [R, p, G, 32]."""
    blocks = PACK[codec.packing](codes)
    if codec is MXFP4_PAIR:
        return Operand(codec, (blocks.reshape(*blocks.shape[:2], -1), scales), blocks.shape[1])
    structs = np.concatenate([scales[..., None], blocks], -1)
    return Operand(codec, (structs.reshape(*structs.shape[:2], -1),), blocks.shape[1])


def q8_0_side(rows: NDArray[np.float32]) -> Operand:
    r, p, k = rows.shape
    out = np.zeros((r, p, k // 32, 34), np.uint8)
    cpu_numpy.quantize_q8_0(rows.view(np.uint32), "F32", out)
    return Operand(Q8_0, (out.reshape(r, p, -1),), p)


def q4_0_side(rows: NDArray[np.float32]) -> Operand:
    return Operand(Q4_0, (gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0),), rows.shape[1])


def sides() -> dict[str, Operand]:
    """Every side, filled with `sample`."""
    rows = sample()
    bits = {name: plain.narrow(rows.view(np.uint32), name) for name in PLAIN}
    quantized = reference.quantize(rows, OCP)
    return {
        **{name: plain_side(name, b) for name, b in bits.items()},
        **{f"{name} columns": plain_side(name, b, True) for name, b in bits.items()},
        "MXFP4 pair": mxfp4_side(MXFP4_PAIR, *quantized),
        "MXFP4 ggml": mxfp4_side(MXFP4_GGML, *quantized),
        "Q8_0": q8_0_side(rows),
        "Q4_0": q4_0_side(rows),
    }


SIDES = sides()


def meant(side: Operand) -> NDArray[np.float32]:
    """The values [R, p, K] of a side, by the definitions."""
    if side.codec.name in PLAIN:
        wide = plain.widen(side.elements, side.codec.name).view(np.float32)
        return np.ascontiguousarray(wide.swapaxes(1, 2)).reshape(SHAPE) if side.transposed else wide
    if side.codec in (MXFP4_PAIR, MXFP4_GGML):
        blocks, scales = side.blocks_and_scales
        return reference.dequantize(UNPACK[side.codec.packing](blocks), np.ascontiguousarray(scales)).reshape(SHAPE)
    out: NDArray[np.float32] = gguf.quants.dequantize(side.fields[0], gguf.GGMLQuantizationType[side.codec.name])
    return out


def empty_like(side: Operand) -> Operand:
    return Operand(side.codec, tuple(np.zeros_like(f) for f in side.fields), side.parts, side.transposed)


def is_way(source: Operand, target: Operand) -> bool:
    """Whether anything leads from one to the other."""
    a, b = source.codec, target.codec
    if a == b:
        return True
    if source.transposed and target.transposed:
        return True
    return b.is_plain or (a.format == b.format) or (a.is_plain and b.name in ("MXFP4", "Q8_0"))


@pytest.mark.parametrize("target", SIDES)
@pytest.mark.parametrize("source", SIDES)
def test_every_way(source: str, target: str) -> None:
    """Bit for bit what the definition gives, and how many numbers it rounds."""
    a, out = SIDES[source], empty_like(SIDES[target])
    if not is_way(a, out):
        with pytest.raises(ValueError, match=f"nothing leads from {a.codec.name} to {out.codec.name}"):
            transcode(a, out, OCP)
        return
    counts = transcode(a, out, OCP)
    rounded = 0
    if a.codec == out.codec:
        wanted = SIDES[target]
    elif out.codec.is_plain:
        bits = plain.narrow(meant(a).view(np.uint32), out.codec.name)
        rounded = int((plain.widen(bits, out.codec.name).view(np.float32) != meant(a)).sum())
        wanted = plain_side(out.codec.name, bits, out.transposed)
    elif out.codec.name == "Q8_0":
        wanted = q8_0_side(meant(a))
    elif a.codec.name == "MXFP4":
        wanted = SIDES[target]
    else:
        wanted = mxfp4_side(out.codec, *reference.quantize(meant(a), OCP))
    for made, want in zip(out.fields, wanted.fields, strict=True):
        assert np.array_equal(made, want)
    assert sum(counts) == rounded


@pytest.mark.parametrize("target", ["MXFP4 pair", "F16", "F16 columns"])
@pytest.mark.parametrize("source", ["F32", "F32 columns"])
def test_blocks_that_the_target_cannot_hold_are_named(source: str, target: str) -> None:
    """By row, part and block of the slab, however the numbers lie."""
    rows = sample()
    rows[4, 1, 40] = 3.4e38
    a = plain_side("F32", rows.view(np.uint32), "columns" in source)
    with pytest.raises(BadBlock) as caught:
        transcode(a, empty_like(SIDES[target]), RECIPES["even"])
    assert (caught.value.kind, caught.value.index) == ("overflow", (4, 1, 1))


@pytest.mark.parametrize("target", ["F16", "F16 columns"])
def test_values_of_mxfp4_that_f16_cannot_hold_are_named(target: str) -> None:
    codes, scales = np.zeros((*SHAPE[:2], 2, 32), np.uint8), np.full((*SHAPE[:2], 2), 127, np.uint8)
    codes[5, 1, 1, 3], scales[5, 1, 1] = 7, 150
    with pytest.raises(BadBlock) as caught:
        transcode(mxfp4_side(MXFP4_PAIR, codes, scales), empty_like(SIDES[target]), None)
    assert (caught.value.kind, caught.value.index) == ("overflow", (5, 1, 1))


def test_where_rows_meet_without_loss() -> None:
    other = Codec(BlockFormat("I8", ElementFormat("I8", 8)), Packing.flat, (1,))
    bf16, f16 = PLAIN["BF16"], PLAIN["F16"]
    met = [meeting(a, b) for a, b in ((bf16, MXFP4_PAIR), (MXFP4_GGML, MXFP4_PAIR), (bf16, f16), (Q8_0, bf16))]
    assert met == ["BF16", "BF16", "F32", "F32"]
    assert meeting(other, bf16) == meeting(f16, other) == "F64"


@pytest.mark.parametrize("numbers", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("side", [name for name in SIDES if "columns" not in name])
def test_values_are_what_is_meant(side: str, numbers: str) -> None:
    """Of one part; as BF16 where that loses nothing."""
    a = Operand(SIDES[side].codec, tuple(f[:, :1] for f in SIDES[side].fields), 1)
    if numbers == "BF16" and a.codec.name not in ("BF16", "MXFP4"):
        return
    found, wanted = values(a, numbers), meant(SIDES[side])[:, 0]
    if numbers == "F64":
        assert np.array_equal(found, wanted.astype(np.float64))
    else:
        assert np.array_equal(found, plain.narrow(np.ascontiguousarray(wanted).view(np.uint32), numbers))


@pytest.mark.parametrize("codec", [MXFP4_PAIR, MXFP4_GGML], ids=lambda c: str(c.packing))
def test_a_scale_that_means_nothing_has_values(codec: Codec) -> None:
    """NaN as F32; BF16 refuses."""
    codes, scales = np.full((1, 1, 2, 32), 2, np.uint8), np.array([[[255, 127]]], np.uint8)
    side = mxfp4_side(codec, codes, scales)
    with pytest.raises(BadBlock):
        values(side, "BF16")
    found = values(side, "F32").view(np.float32)
    assert np.isnan(found[0, :32]).all()
    assert (found[0, 32:] == 1).all()


def test_a_scale_of_q8_0_that_means_nothing_has_values() -> None:
    side = q8_0_side(np.ones((1, 1, 64), np.float32))
    side.fields[0][0, 0, :2] = 0, 0x7C
    found = values(side, "F32").view(np.float32)
    assert np.isinf(found[0, :32]).all()
    assert np.isfinite(found[0, 32:]).all()


TORCH = {
    "F64": "float64", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_numbers_that_no_kernel_reads(name: str) -> None:
    """All bytes, as torch reads them."""
    torch = pytest.importorskip("torch")
    raw = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    kind = getattr(torch, TORCH[name])
    wanted = torch.from_numpy(raw[0]).view(kind).to(torch.float64).numpy()
    codec = Codec(BlockFormat(name, ElementFormat(name, 8 * kind.itemsize)), Packing.flat, (kind.itemsize,))
    assert decodable(codec)
    assert np.array_equal(values(Operand(codec, (raw,), 1), "F64"), wanted, equal_nan=True)


def test_what_is_counted_and_measured_must_fit() -> None:
    u8, f32 = np.zeros((4, 16), np.uint8), np.zeros((2, 8), np.uint32)
    for count in (
        lambda: counting.count_runs(u8, 1, 1),
        lambda: counting.count_runs(u8[0], 3, 2),
        lambda: counting.count_blocks(u8[:, :8], u8[:, 0]),
        lambda: counting.count_blocks(np.zeros((4, 32), np.uint8)[:, ::2], u8[:, 0]),
        lambda: measure.measure(f32, f32[:1], "F32"),
        lambda: measure.measure(f32, f32, "BF16"),
        lambda: measure.measure(f32[:, ::2], f32[:, ::2], "F32"),
    ):
        with pytest.raises(ValueError, match=r"uint|one after the other|shapes"):
            count()
