"""Exhaustive tables that test_reference and test_cpu do not have: the compiled kernels on whole ranges."""

from __future__ import annotations

import codec_peers as peers
import numpy as np
import pytest
from test_cpu import columns_of, outputs
from test_properties import same_numbers

from ckpttool.codecs import cpu, plain, reference
from ckpttool.codecs.formats import RECIPES, Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.packing import PACK, UNPACK


def compiled(bits: np.ndarray, dtype: str, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n, 32] and scales [n] of blocks [n, 32]."""
    blocks, scales = outputs(len(bits), 1, 1, Packing.pair)
    cpu.quantize_rows(bits[:, None], dtype, recipe, Packing.pair, blocks, scales)
    return UNPACK[Packing.pair](blocks)[:, 0, 0], scales[:, 0, 0]


@pytest.mark.parametrize("name", peers.DECODERS)
def test_all_scales_and_codes_by_every_peer(name: str) -> None:
    """256 x 16; where a peer is known to differ, it differs so."""
    scales = np.arange(256, dtype=np.uint8).reshape(256, 1)
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1, 2))
    decoder = peers.DECODERS[name]
    made = decoder.bits(codes, scales)
    assert same_numbers(made, peers.expected_of(decoder, codes, scales))
    ours = reference.dequantize(codes, scales).view(np.uint32)
    differs = {tuple(at) for at in np.argwhere(made != ours)[:, :2].tolist() if at[0] != 255 or not decoder.nan}
    minus_zero = {(s, c) for s in range(256) for c in (8, 24) if not decoder.minus_zero}
    byte_255 = {(255, c) for c in range(32) if not decoder.nan}
    assert differs == minus_zero | byte_255


def test_torch_s_scales() -> None:
    wanted = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)
    assert np.array_equal(peers.torch_scales(), wanted.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_bf16_as_the_maximum_among_others(name: str) -> None:
    """Those that are finite and can be made, anywhere in a block, over 31 numbers below."""
    recipe = RECIPES[name]
    limit = {"even": 0x7F60, "transformers": 0x7F60, "rceil": 0x7F60, "modelopt": 0x7F61}.get(name, 0x7F80)
    top = np.concatenate([np.arange(limit), np.arange(limit) | 0x8000])
    rng = np.random.default_rng(50)
    below = np.maximum((top & 0x7FFF)[:, None] - rng.integers(0, 600, (len(top), 32)), 0)
    bits = (below | rng.integers(0, 2, below.shape) << 15).astype(np.uint16)
    bits[np.arange(len(top)), np.arange(len(top)) % 32] = top
    codes, scales = compiled(bits, "BF16", recipe)
    wanted, wanted_scales = reference.quantize(reference.bf16_values(bits), recipe)
    assert np.array_equal(scales, wanted_scales[:, 0])
    assert np.array_equal(codes, wanted[:, 0])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize(
    ("ties", "up"), [("even", (0, 2, 2, 4, 4, 6, 6)), ("away", (1, 2, 3, 4, 5, 6, 7)), ("zero", (0, 1, 2, 3, 4, 5, 6))]
)
def test_every_tie_at_every_scale(ties: str, up: tuple[int, ...], dtype: str) -> None:
    """7 ties x 2 signs, and the neighbours of F32, beside a 6 that sets scales 0 to 252: there are no larger ones."""
    scale = np.arange(253)
    block = np.zeros((253, 32))
    block[:, 0], block[:, 1:8], block[:, 8:15] = 6, reference.THRESHOLDS, np.negative(reference.THRESHOLDS)
    bits = plain.narrow(np.ldexp(block, (scale - 127)[:, None]).astype(np.float32).view(np.uint32), dtype)
    recipe = Recipe("t", ScaleRule.floor, TieRule(ties))
    codes, scales = compiled(bits, dtype, recipe)
    assert np.array_equal(scales, scale)
    assert (codes[:, 1:8] == up).all()
    assert (codes[:, 8:15] == np.array(up) + 8).all()
    for step in (-1, 1):
        beside = bits.copy()
        beside[:, 1:15] = bits[:, 1:15] + bits.dtype.type(step % 2 ** (8 * bits.itemsize))
        codes, _ = compiled(beside, dtype, recipe)
        assert (codes[:, 1:8] == np.arange(7) + (step > 0)).all()
        assert (codes[:, 8:15] == np.arange(7) + (step > 0) + 8).all()


@pytest.mark.parametrize("packing", [Packing.pair, Packing.ggml])
def test_every_byte_beside_every_scale_is_moved(packing: Packing) -> None:
    """2^16 pairs of a byte and a scale, each byte in each of 16 places by turns; with both packings 2^17."""
    other = Packing.ggml if packing is Packing.pair else Packing.pair
    byte, scale = (a.ravel() for a in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    given, there, back = (outputs(65536, 1, 1, p) for p in (packing, other, packing))
    given[0][:, 0, 0] = (byte[:, None] + 37 * ((np.arange(16) + scale[:, None]) % 16)).astype(np.uint8)
    given[1][:, 0, 0] = scale
    cpu.repack(*given, packing, *there, other)
    assert np.array_equal(there[0], PACK[other](UNPACK[packing](given[0])))
    assert np.array_equal(there[1], given[1])
    cpu.repack(*there, other, *back, packing)
    assert np.array_equal(back[0], given[0])


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("rule", ScaleRule)
def test_float32_around_every_power_of_two(rule: ScaleRule, columns: bool) -> None:
    """64 neighbours on either side of 2^-126 to 2^127, as maxima: exponents by frexp, not by bits."""
    powers = np.arange(1, 255, dtype=np.int64) << 23
    bits = (powers[:, None] + np.arange(-64, 65)).ravel().astype(np.uint32)
    exact = bits.view(np.float32).astype(np.float64)
    significand, exponent = np.frexp(exact)
    if rule is ScaleRule.rceil:
        significand, exponent = np.frexp((bits.view(np.float32) / np.float32(6)).astype(np.float64))
        wanted = np.maximum(exponent - (significand == 0.5) + 127, 1)  # ceil(log2), and at least 1
    else:
        # alone in its block, what is beyond 7 in the smaller scale is nearer to 4 in the larger than to 6
        carry = {ScaleRule.even: significand >= 0.875, ScaleRule.best: significand > 0.875}.get(rule, False)
        wanted = np.maximum(exponent - 3 + 127 + np.where(carry, 1, 0), 0)
    block = np.zeros((len(bits), 32), np.uint32)
    block[np.arange(len(bits)), np.arange(len(bits)) % 32] = bits
    makeable = (exact < 1.5 * 2.0**127) | (rule in (ScaleRule.floor, ScaleRule.best))
    held = block[makeable]
    blocks, scales = outputs(len(held), 1, 1, Packing.pair)
    run, source = (cpu.quantize_columns, columns_of(held[:, None])) if columns else (cpu.quantize_rows, held[:, None])
    run(source, "F32", Recipe("r", rule, TieRule.even), Packing.pair, blocks, scales)
    assert np.array_equal(scales[:, 0, 0], wanted[makeable])
