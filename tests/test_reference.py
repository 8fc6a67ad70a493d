"""The reference against hand-derived blocks, exhaustive tables, and the libraries whose rules the recipes carry."""

from __future__ import annotations

import codec_peers as peers
import numpy as np
import pytest
from codec_cases import CASES, Case, hard_bits, hard_values, padded, quantize_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpttool.codecs import plain, q8_0, reference
from ckpttool.codecs.formats import E2M1_VALUES, RECIPES, Recipe, ScaleRule, TieRule
from ckpttool.codecs.reference import BadBlock

ALL_RECIPES = sorted(RECIPES)
EVERY_RULE = [Recipe(f"{s}/{t}", s, t, keep) for s in ScaleRule for t in TieRule for keep in (True, False)]


def values_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    return plain.widen(np.ascontiguousarray(bits), dtype).view(np.float32)


@pytest.mark.parametrize("case", quantize_cases(), ids=lambda c: c.id)
def test_named_blocks(case: Case) -> None:
    values = values_of(case.bits, case.dtype)
    if case.error:
        with pytest.raises(BadBlock) as caught:
            reference.quantize(values, RECIPES[case.recipe])
        assert caught.value.kind == case.error
        return
    codes, scales = reference.quantize(values, RECIPES[case.recipe])
    assert scales.tolist() == [case.scale]
    assert case.codes is not None
    assert codes[0].tolist() == case.codes.tolist()


@pytest.mark.parametrize("case", CASES["dequantize"], ids=lambda c: c["name"])
def test_named_decodings(case: dict) -> None:
    codes, scales = padded(case["codes"])[None], np.array([case["scale"]], np.uint8)
    if "error" in case:
        with pytest.raises(BadBlock) as caught:
            reference.require_decodable(codes, scales)
        assert caught.value.kind == case["error"]
        return
    reference.require_decodable(codes, scales)
    bits = plain.narrow(reference.dequantize(codes, scales).view(np.uint32), "BF16")
    assert [f"{b:04x}" for b in bits[: len(case["bf16"])]] == case["bf16"]


def test_all_scales_and_codes_are_their_definition() -> None:
    table = reference.decode_table()
    for scale in range(255):
        for code in range(16):
            exact = (-1) ** (code >> 3) * E2M1_VALUES[code & 7] * 2.0 ** (scale - 127)
            want = np.float32(exact) if abs(exact) < 2.0**128 else np.float32(np.copysign(np.inf, exact))
            assert table[scale, code] == want
            assert np.signbit(table[scale, code]) == (code >= 8)
    assert np.isnan(table[255]).all()


def test_decoding_equals_transformers_and_ggml() -> None:
    scales = np.repeat(np.arange(256, dtype=np.uint8), 1).reshape(256, 1)
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1, 2))
    ours = reference.dequantize(codes, scales)
    pair = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    theirs = peers.transformers_dequantized(pair[None], scales[None])[0].T
    # transformers decodes byte 255 as 2^128 (Inf and 0), not as NaN
    assert np.array_equal(plain.narrow(ours.view(np.uint32), "BF16")[:255], theirs[:255])
    struct = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << np.uint8(4)], -1)
    ggml = peers.ggml_decoded(struct, "dequantize_row_mxfp4")
    # ggml has no NaN and no -0
    assert np.array_equal(ours[:253] + np.float32(0), ggml[:253])
    assert np.array_equal(np.isinf(ours[253:255]), np.isinf(ggml[253:255]))


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_every_bf16_as_the_maximum(recipe: str) -> None:
    """All 65,536 codes alone in a block: the byte follows from the exact value, by another road than bits."""
    rule = RECIPES[recipe]
    bits = np.zeros((65536, 32), np.uint16)
    bits[:, 7] = np.arange(65536)
    magnitude = np.arange(65536) & 0x7FFF
    values = plain.widen(bits, "BF16").view(np.float32)
    for lo, hi, kind in ((0x7F80, 0x7F80, "inf"), (0x7F81, 0x7FFF, "nan")):
        for at in (lo, hi, lo | 0x8000):
            with pytest.raises(BadBlock) as caught:
                reference.quantize(values[at : at + 1], rule)
            assert caught.value.kind == kind
    finite = magnitude < 0x7F80
    exact = values[finite, 7].astype(np.float64)
    significand, exponent = np.frexp(np.abs(exact))  # in [0.5, 1), so the exponent is one more than log2's floor
    carry = {ScaleRule.even: significand >= 0.875, ScaleRule.rceil: significand > 0.75}.get(rule.scale, False)
    raw = exponent - 1 - 2 + 127 + np.where(carry, 1, 0)
    # rceil's F32 quotient is subnormal below 6 * 2^-126, and every nonzero subnormal rounds up to byte 1
    least = np.where(np.abs(exact) > 0, 1 if rule.scale is ScaleRule.rceil else 0, 0)
    want = np.where(exact == 0, 0, np.maximum(raw, least))
    overflow = np.array([_infinite(abs(v), int(s), rule.ties) for v, s in zip(exact, want, strict=True)])
    if rule.scale is ScaleRule.best:  # (8-6)(2m-14) > 0, unless it would be infinite
        up = (np.abs(exact) > 7 * 2.0 ** (want - 127.0)) & (want < 252)
        want = want + up
        overflow[:] = False
    kept = np.flatnonzero(finite)[~overflow]
    codes, scales = reference.quantize(values[kept], rule)
    assert np.array_equal(scales[:, 0], want[~overflow])
    decoded = reference.dequantize(codes, scales)
    assert np.isfinite(decoded).all()
    for at in np.flatnonzero(finite)[overflow]:
        with pytest.raises(BadBlock) as caught:
            reference.quantize(values[at : at + 1], rule)
        assert caught.value.kind == "overflow"


def _infinite(magnitude: float, scale: int, ties: TieRule) -> bool:
    if scale < 253:
        return False
    scaled = magnitude * 2.0 ** (127 - scale)
    return scaled > 3.5 or (scaled == 3.5 and ties is not TieRule.zero)


def test_every_tie_at_every_scale() -> None:
    """7 ties x 2 signs beside a 6, for scale bytes 3 to 252 as BF16 holds them all."""
    ties = np.array(reference.THRESHOLDS)
    up = {TieRule.even: (0, 2, 2, 4, 4, 6, 6), TieRule.away: (1, 2, 3, 4, 5, 6, 7), TieRule.zero: (0, 1, 2, 3, 4, 5, 6)}
    scale = np.arange(0, 253)
    block = np.zeros((253, 32))
    block[:, 0], block[:, 1:8], block[:, 8:15] = 6, ties, -ties
    values = np.ldexp(block, (scale - 127)[:, None]).astype(np.float32)
    for rule, want in up.items():
        codes, scales = reference.quantize(values, Recipe("t", ScaleRule.floor, rule))
        assert np.array_equal(scales[:, 0], scale)
        assert (codes[:, 0, 1:8] == want).all()
        assert (codes[:, 0, 8:15] == np.array(want) + 8).all()


def test_rceil_is_the_significand_above_one_and_a_half() -> None:
    """The F32 quotient's bits, for the 64 neighbours of every 6 * 2^k and of every power of two."""
    centres = np.concatenate([6.0 * 2.0 ** np.arange(-120, 125), 2.0 ** np.arange(-120, 127)]).astype(np.float32)
    bits = (centres.view(np.uint32)[:, None].astype(np.int64) + np.arange(-64, 65)).astype(np.uint32).ravel()
    want = ((bits.astype(np.int64) + 0x3FFFFF) >> 23) - 2
    assert np.array_equal(reference.scale_bytes(bits, ScaleRule.rceil), np.clip(want, 0, 254))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize(("recipe", "mode"), [("ocp", "FLOOR"), ("even", "EVEN"), ("rceil", "RCEIL")])
def test_torchao_bit_for_bit(recipe: str, mode: str, dtype: str) -> None:
    """For maxima of 2^-124 and above. Below, torchao's scale is subnormal: the next test says how it differs."""
    values = _normal(hard_bits(np.random.default_rng(1), 20000, dtype), dtype, recipe)
    codes, scales = reference.quantize(values, RECIPES[recipe])
    their_scales, their_codes = peers.torchao(values, mode, bf16=dtype == "BF16")
    assert np.array_equal(scales, their_scales)
    assert np.array_equal(codes, their_codes)


def _normal(bits: np.ndarray, dtype: str, recipe: str) -> np.ndarray:
    """The blocks with a maximum of 2^-124 and above that the recipe can make."""
    values = values_of(bits, dtype)
    amax = np.abs(values).max(-1)
    top = {"ocp": np.inf, "llama.cpp": np.inf, "best": np.inf, "even": 1.75 * 2.0**127}.get(recipe, 1.5 * 2.0**127)
    return values[(amax >= 2.0**-124) & (amax < top)]


def test_where_torchao_differs_below() -> None:
    """Scale byte 0: torchao divides by 2^-126 instead of 2^-127, so codes are those of byte 1."""
    values = np.zeros((1, 32), np.float32)
    values[0, :3] = 1.5 * 2.0**-126, 2.0**-127, 2.0**-128
    codes, scales = reference.quantize(values, RECIPES["ocp"])
    their_scales, their_codes = peers.torchao(values, "FLOOR", bf16=False)
    assert scales.tolist() == their_scales.tolist() == [[0]]
    assert codes[0, 0, :3].tolist() == [5, 2, 1]
    assert their_codes[0, 0, :3].tolist() == [3, 1, 0]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_compressed_tensors_bit_for_bit(dtype: str) -> None:
    """But for -0: its sign() is 0 there, so the code for -0 is lost."""
    values = _normal(hard_bits(np.random.default_rng(2), 20000, dtype), dtype, "even")
    values = np.where(values == 0, np.float32(0), values)
    codes, scales = reference.quantize(values, RECIPES["even"])
    their_scales, their_codes = peers.compressed_tensors(values, bf16=dtype == "BF16")
    assert np.array_equal(scales, their_scales)
    assert np.array_equal(codes, their_codes)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_llama_cpp_bit_for_bit(dtype: str) -> None:
    """ggml's C and gguf-py. F32 within a few ulp below a power of two is left out: there log2f rounds up to it."""
    values = _normal(hard_bits(np.random.default_rng(3), 20000, dtype), dtype, "llama.cpp")
    bits = np.abs(values).max(-1).view(np.uint32)
    values = values[(bits & 0x7FFFFF) < 0x7FFFC0] if dtype == "F32" else values
    codes, scales = reference.quantize(values, RECIPES["llama.cpp"])
    for blocks in (
        peers.ggml_c(values, "quantize_row_mxfp4_ref", 17),
        peers.gguf_py(values).reshape(-1, 1, 17),
    ):
        their_scales, their_codes = peers.of_ggml_struct(blocks)
        assert np.array_equal(scales, their_scales)
        assert np.array_equal(codes, their_codes)


def test_where_llama_cpp_differs() -> None:
    """Below 2^-125 its exponent wraps around a byte; just below a power of two its float logarithm rounds up."""
    values = np.zeros((3, 32), np.float32)
    values[:, 0] = 2.0**-126, 2.0**-127, np.nextafter(np.float32(2.0**127), np.float32(0))
    _, scales = reference.quantize(values, RECIPES["llama.cpp"])
    theirs = peers.ggml_c(values, "quantize_row_mxfp4_ref", 17)[:, 0, 0]
    assert scales[:, 0].tolist() == [0, 0, 251]
    assert theirs.tolist() == [255, 254, 252]


def test_transformers_rounds_half_away() -> None:
    values = _normal(hard_bits(np.random.default_rng(4), 20000, "BF16"), "BF16", "transformers")
    codes, scales = reference.quantize(values, RECIPES["transformers"])
    scaled = np.ldexp(values.astype(np.float64).reshape(*scales.shape, 32), 127 - scales[..., None].astype(int))
    assert np.array_equal(codes, peers.hub_kernel_codes(scaled.astype(np.float32)))


def test_modelopt_writes_minus_zero_for_zero() -> None:
    """modelopt's sign bit is (2 - sign(x)) // 2, 1 for an exact 0: its code is 8 where ours is 0.

    The rest is the number of bounds that a magnitude exceeds: ties to zero. Retold here, not imported.
    """
    values = np.array([[6.0, 0.0, -0.25, 0.25, 3.5] + [1.0] * 27], np.float32)
    codes, scales = reference.quantize(values, RECIPES["modelopt"])
    bounds = np.array(reference.THRESHOLDS)
    theirs = np.searchsorted(bounds, np.abs(values), side="left") + 8 * ((2 - np.sign(values)) // 2).astype(int)
    differs = codes[0, 0] != theirs[0]
    assert scales[0, 0] == 127
    assert np.array_equal(np.flatnonzero(differs), np.flatnonzero(values[0] == 0))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_best_is_the_smaller_squared_error(dtype: str) -> None:
    """Against fractions: the exact errors of both scales, for blocks in the ordinary range."""
    from fractions import Fraction

    rng = np.random.default_rng(5)
    bits = plain.narrow((rng.standard_normal((400, 32)) * 0.02).astype(np.float32).view(np.uint32), dtype)
    values = values_of(bits, dtype)
    _, scales = reference.quantize(values, RECIPES["best"])
    floor, low = reference.quantize(values, RECIPES["ocp"])
    magnitudes = np.abs(values).reshape(-1, 1, 32)
    high = low + np.uint8(1)
    upper = reference.magnitude_codes(magnitudes, high, TieRule.even)
    taken = 0
    for i in range(len(values)):
        errors = []
        for codes, scale in ((floor[i, 0] & 7, int(low[i, 0])), (upper[i, 0], int(high[i, 0]))):
            step = Fraction(2) ** (scale - 127)
            q = [Fraction(E2M1_VALUES[c]) * step for c in codes]
            errors.append(sum((Fraction(float(m)) - v) ** 2 for m, v in zip(magnitudes[i, 0], q, strict=True)))
        assert scales[i, 0] == (high if errors[1] < errors[0] else low)[i, 0]
        taken += errors[1] < errors[0]
    assert 10 < taken < 200


def test_only_maxima_above_one_and_three_quarters_gain() -> None:
    """The kernels rely on it: a block whose maximum has a significand of at most 1.75 never takes the higher scale."""
    values = hard_values(np.random.default_rng(6), 40000)
    scales = reference.quantize(values, RECIPES["best"])[1]
    floor = reference.quantize(values, RECIPES["ocp"])[1]
    raised = (scales != floor)[:, 0]
    significand = np.frexp(np.abs(values).max(-1))[0]
    assert raised.sum() > 1000
    assert significand[raised].min() > 0.875


blocks = hnp.arrays(np.uint16, (3, 64)).map(lambda b: np.where((b & 0x7F80) == 0x7F80, b & 0xBFFF, b).astype(np.uint16))


@settings(max_examples=60, deadline=None)
@given(blocks, st.sampled_from(EVERY_RULE))
def test_properties(bits: np.ndarray, recipe: Recipe) -> None:
    values = values_of(np.where(bits & 0x7F00 == 0x7F00, bits & 0x80FF, bits).astype(np.uint16), "BF16")
    codes, scales = reference.quantize(values, recipe)
    decoded = reference.dequantize(codes, scales)
    assert np.isfinite(decoded).all()
    assert scales.max() < 255
    # the sign flips with the source
    flipped, same = reference.quantize(-values, recipe)
    assert np.array_equal(same, scales)
    mask = (codes & 7) > 0 if not recipe.keeps_negative_zero else np.ones(codes.shape, bool)
    assert np.array_equal(flipped[mask], codes[mask] ^ 8)
    # what is decoded encodes to the same values
    again = reference.dequantize(*reference.quantize(decoded, recipe))
    assert np.array_equal(again, decoded)
    # blocks do not see each other
    order = np.array([1, 0])
    swapped = reference.quantize(values.reshape(3, 2, 32)[:, order].reshape(3, 64), recipe)
    assert np.array_equal(swapped[0], codes[:, order])
    assert np.array_equal(swapped[1], scales[:, order])
    # larger magnitudes in a block never get smaller codes
    order_in = np.argsort(np.abs(values.reshape(3, 2, 32)), -1, kind="stable")
    ranked = np.take_along_axis(codes & 7, order_in, -1).astype(int)
    assert (np.diff(ranked, axis=-1) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(-60, 60), st.sampled_from(EVERY_RULE))
def test_powers_of_two_only_move_the_scale(power: int, recipe: Recipe) -> None:
    values = (np.random.default_rng(7).standard_normal((4, 64)) * 0.02).astype(np.float32)
    codes, scales = reference.quantize(values, recipe)
    moved, moved_scales = reference.quantize(np.ldexp(values, power).astype(np.float32), recipe)
    assert np.array_equal(codes, moved)
    assert np.array_equal(scales.astype(int) + power, moved_scales)


@pytest.mark.parametrize("recipe", ["ocp", "even", "rceil", "best", "llama.cpp"])
def test_requantizing_keeps_values_always_and_bytes_from_code_6_on(recipe: str) -> None:
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, (5000, 1, 32)).astype(np.uint8)
    # rceil's bit form never writes byte 0 but for a zero block, so it cannot return what needs it
    scales = rng.integers(1 if recipe == "rceil" else 0, 253, (5000, 1)).astype(np.uint8)
    decoded = reference.dequantize(codes, scales)
    again, bytes_again = reference.quantize(decoded, RECIPES[recipe])
    assert np.array_equal(reference.dequantize(again, bytes_again), decoded)
    same = (codes[:, 0] & 7).max(-1) >= 6
    if recipe in ("ocp", "even", "rceil"):
        assert np.array_equal(again[same], codes[same])
        assert np.array_equal(bytes_again[same], scales[same])


def test_bad_blocks_are_named_by_their_first() -> None:
    values = np.ones((4, 2, 96), np.float32)
    values[2, 1, 70] = np.nan
    values[3, 0, 1] = np.nan
    with pytest.raises(BadBlock) as caught:
        reference.quantize(values, RECIPES["best"])
    error = caught.value
    assert (error.kind, error.row, error.part, error.block) == ("nan", 2, 1, 2)
    assert "a NaN in block 2 of row 2, 1" in str(error)


@pytest.mark.parametrize(("array", "says"), [(np.zeros(32), "float64"), (np.zeros(33, np.float32), "multiple of 32")])
def test_other_arrays_are_refused(array: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reference.quantize(array, RECIPES["best"])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_q8_0_equals_ggml_and_gguf_py(dtype: str) -> None:
    values = values_of(hard_bits(np.random.default_rng(9), 20000, dtype), dtype)
    values = values[(np.abs(values).max(-1) < 65504 * 127) & (np.abs(values).max(-1) > 2.0**-120)]
    values = np.concatenate([values, (np.random.default_rng(10).standard_normal((2000, 32)) * 0.02).astype(np.float32)])
    ours = q8_0.quantize(values)
    assert np.array_equal(ours, peers.ggml_c(values, "quantize_row_q8_0_ref", 34))
    assert np.array_equal(ours.reshape(-1, 34), peers.gguf_py(values, "Q8_0"))
    assert np.array_equal(q8_0.dequantize(ours), peers.ggml_decoded(ours, "dequantize_row_q8_0"))


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "nan"), (np.inf, "inf"), (65520.0 * 127, "overflow")])
def test_q8_0_refuses(value: float, kind: str) -> None:
    values = np.zeros((2, 64), np.float32)
    values[1, 40] = value
    with pytest.raises(BadBlock) as caught:
        q8_0.quantize(values)
    assert (caught.value.kind, caught.value.index) == (kind, (1, 1))


def test_q8_0_maxima_without_an_inverse_are_zero() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :2] = 2.0**-130, -(2.0**-140)
    assert not q8_0.quantize(values).any()


def test_q8_0_scale_must_be_finite() -> None:
    blocks = np.zeros((1, 1, 34), np.uint8)
    blocks[..., 1] = 0x7C
    with pytest.raises(BadBlock) as caught:
        q8_0.dequantize(blocks)
    assert caught.value.kind == "scale"


def test_plain_numbers_equal_numpy_and_ml_dtypes() -> None:
    import ml_dtypes

    every = np.arange(65536, dtype=np.uint16)
    with np.errstate(all="ignore"):
        half = every.view(np.float16).astype(np.float32)
    ours = plain.widen(every, "F16").view(np.float32)
    assert np.array_equal(ours, half, equal_nan=True)
    brain = every.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(plain.widen(every, "BF16"), brain.view(np.uint32))
    rng = np.random.default_rng(11)
    bits = rng.integers(0, 2**32, 400000, dtype=np.uint64).astype(np.uint32)
    near = plain.widen(every, "F16").astype(np.int64)[:, None] + rng.integers(-3, 4, (65536, 4)) + 0x1000
    bits = np.concatenate([bits, (near & 0xFFFFFFFF).astype(np.uint32).ravel()])
    bits = bits[(bits & 0x7FFFFFFF) <= 0x7F800000]
    with np.errstate(all="ignore"):
        assert np.array_equal(plain.narrow(bits, "F16"), bits.view(np.float32).astype(np.float16).view(np.uint16))
    theirs = bits.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(plain.narrow(bits, "BF16"), theirs)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_and_narrowing_return_all_codes(dtype: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(plain.narrow(plain.widen(every, dtype), dtype), every)


def test_narrowed_nans_stay_nans() -> None:
    nans = np.array([0x7F800001, 0xFF801000, 0x7FFFFFFF, 0x7F800FFF], np.uint32)
    for dtype in ("BF16", "F16"):
        wide = plain.widen(plain.narrow(nans, dtype), dtype)
        assert ((wide & 0x7FFFFFFF) > 0x7F800000).all()
        assert np.array_equal(wide >> 31, nans >> 31)
