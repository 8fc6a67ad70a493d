"""The tables of formats, packings, codecs and recipes against their sources."""

from __future__ import annotations

import numpy as np
import pytest

from ckpttool.codecs import formats
from ckpttool.codecs.formats import RECIPES, Packing, ScaleRule, TieRule
from ckpttool.containers.ggml_types import GGML_TYPES


def test_bits_per_element() -> None:
    """The numbers that llama.cpp prints (bpw), where it names them."""
    names = ("F32", "F16", "BF16", "MXFP4", "Q8_0", "Q2_K", "Q6_K", "IQ1_S", "TQ1_0", "I8")
    bits = {name: formats.ggml_codec(name).bits for name in names}
    assert bits == {
        "F32": 32, "F16": 16, "BF16": 16, "MXFP4": 4.25, "Q8_0": 8.5,
        "Q2_K": 2.625, "Q6_K": 6.5625, "IQ1_S": 1.5625, "TQ1_0": 1.6875, "I8": 8,
    }  # fmt: skip
    assert formats.MXFP4_PAIR.bits == 4.25


def test_element_formats_add_up() -> None:
    for element in (formats.F32_ELEMENT, formats.F16_ELEMENT, formats.BF16_ELEMENT, formats.E2M1):
        assert element.bits == 1 + element.exponent + element.mantissa
    assert formats.E8M0.bits == formats.E8M0.exponent  # no sign


def test_e2m1_values_follow_from_its_bits() -> None:
    """OCP MX 5.3.3: bias 1, one subnormal, no Inf and no NaN."""
    want = [(code & 1) / 2 if code < 2 else (1 + (code & 1) / 2) * 2.0 ** ((code >> 1) - 1) for code in range(8)]
    assert list(formats.E2M1_VALUES) == want


@pytest.mark.parametrize(
    "codec", [*formats.WRITABLE_GGML.values(), formats.MXFP4_PAIR], ids=lambda c: f"{c.name}-{c.packing}"
)
def test_codec_sizes(codec: formats.Codec) -> None:
    k = codec.format.block * 3
    assert codec.row_nbytes(k) == tuple(3 * n for n in codec.block_nbytes)
    assert codec.format.element is not None
    scale = codec.format.scale.bits if codec.format.scale else 0
    assert sum(codec.block_nbytes) * 8 == codec.format.element.bits * codec.format.block + scale
    assert codec.is_plain == (codec.format.block == 1)


def test_a_row_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="33 elements are no whole number of MXFP4 blocks of 32"):
        formats.MXFP4_PAIR.row_nbytes(33)


def test_stored_shapes() -> None:
    assert formats.MXFP4_PAIR.stored_shapes((32, 5760, 2880)) == ((32, 5760, 90, 16), (32, 5760, 90))
    assert formats.MXFP4_GGML.stored_shapes((32, 2880, 2880)) == ((32, 2880, 2880),)
    assert formats.BF16_FLAT.stored_shapes((7,)) == ((7,),)


@pytest.mark.parametrize("name", sorted(GGML_TYPES))
def test_every_ggml_type_has_a_codec_of_its_size(name: str) -> None:
    row = GGML_TYPES[name]
    codec = formats.ggml_codec(name)
    assert codec.name == name
    assert codec.row_nbytes(row.elements * 2) == (row.nbytes * 2,)
    assert codec.packing is (Packing.flat if row.elements == 1 else Packing.ggml)


def test_recipes_are_the_designs_table() -> None:
    table = {r.name: (r.scale, r.ties, r.keeps_negative_zero) for r in RECIPES.values()}
    assert table == {
        "best": (ScaleRule.best, TieRule.even, True),
        "ocp": (ScaleRule.floor, TieRule.even, True),
        "even": (ScaleRule.even, TieRule.even, True),
        "rceil": (ScaleRule.rceil, TieRule.even, True),
        "transformers": (ScaleRule.rceil, TieRule.away, True),
        "modelopt": (ScaleRule.rceil, TieRule.zero, True),
        "llama.cpp": (ScaleRule.floor, TieRule.zero, False),
    }
    assert next(iter(RECIPES)) == "best"


def test_numpy_agrees_on_the_plain_formats() -> None:
    for element, dtype in ((formats.F32_ELEMENT, np.float32), (formats.F16_ELEMENT, np.float16)):
        info = np.finfo(dtype)
        assert (info.bits, info.nexp, info.nmant) == (element.bits, element.exponent, element.mantissa)


def test_blocks_that_are_not_of_one_row_have_no_bits() -> None:
    codec = formats.Codec(formats.MXFP4, Packing.gptq, ())
    for ask in (lambda: codec.bits, lambda: codec.row_nbytes(64)):
        with pytest.raises(ValueError, match="MXFP4 in packing gptq has no block of one row"):
            ask()
