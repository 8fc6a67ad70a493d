"""P1 to P24: what must hold of the numbers and of whole conversions, whatever they are made of.

Every example goes through the compiled kernels and through the reference, which must agree bit for bit, and only then
is asked for the property. Where a property has a narrower range than all rules and all numbers, its test says which
and asserts what holds outside.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import codec_peers as peers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from number_cases import EVERY_RULE, ONE_BLOCK, Rows, codes_and_scales, near_bits, rows_of_numbers
from numpy.typing import NDArray
from test_cpu import columns_of, outputs

from ckpttool.codecs import cpu, cpu_numpy, plain, reference
from ckpttool.codecs.formats import BF16_FLAT, E2M1_VALUES, MXFP4_GGML, MXFP4_PAIR, Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.packing import PACK, UNPACK
from ckpttool.codecs.reference import BadBlock
from ckpttool.codecs.transcode import Operand, transcode

U8 = NDArray[np.uint8]

PROPERTIES = {
    "P1": "test_what_is_decoded_keeps_its_values",
    "P2": "test_canonical_blocks_return",
    "P3": "test_packings_are_permutations",
    "P4": "test_mxfp4_through_ggml_returns",
    "P5": "test_bf16_is_copied_bit_for_bit",
    "P6": "test_errors_are_at_most_half_a_step",
    "P7": "test_signs_flip",
    "P8": "test_powers_of_two_move_the_scale",
    "P9": "test_blocks_do_not_see_each_other",
    "P10": "test_rows_may_be_split_anywhere",
    "P11": "test_pieces_threads_and_layouts_make_no_difference",
    "P12": "test_order_is_kept",
    "P13": "test_zeros_are_zeros",
    "P14": "test_the_maximum_has_a_large_code",
    "P15, P16": "test_finite_numbers_give_finite_numbers_or_are_refused",
    "P17 to P21": "test_conversion_properties::test_conversions",
    "P22": "test_execute::test_killed_at_every_journal_line, test_execute::test_killed_at_any_other_point, "
    "test_execute::test_killed_at_the_rename, crashes/test_system_calls::test_a_disturbed_conversion, "
    "crashes/test_system_calls::test_a_conversion_disturbed_at_every_call",
    "P23": "test_the_oracle_searches_and_finds_the_same",
    "P24": "test_peers_decode_the_same",
}
"""Beside these, of whole files: P2 and P4 contracts/test_dialects, P11 test_digests, test_gpu_link and test_execute."""
every_example = settings(max_examples=500, derandomize=True, deadline=None, database=None)
rules = st.sampled_from(EVERY_RULE)


def quantized(rows: Rows, recipe: Recipe) -> tuple[U8, U8]:
    """Codes [R, p, G, 32] and scales [R, p, G] by the compiled kernel, which must be the reference's."""
    r, p, k = rows.bits.shape
    blocks, scales = outputs(r, p, k // 32, Packing.pair)
    cpu.quantize_rows(rows.bits, rows.dtype, recipe, Packing.pair, blocks, scales)
    codes, wanted = reference.quantize(rows.values, recipe)
    assert np.array_equal(scales, wanted)
    assert np.array_equal(UNPACK[Packing.pair](blocks), codes)
    return codes, scales


def decoded(codes: U8, scales: U8) -> NDArray[np.float32]:
    """float32 [R, p, K] by the compiled kernel, which must be the reference's."""
    out = np.zeros((*scales.shape[:-1], scales.shape[-1] * 32), np.uint32)
    cpu.dequantize_rows(PACK[Packing.pair](codes), np.ascontiguousarray(scales), Packing.pair, out, "F32")
    assert np.array_equal(out, reference.dequantize(codes, scales).view(np.uint32))
    return out.view(np.float32)


def f32(values: NDArray[Any]) -> Rows:
    return Rows("F32", np.ascontiguousarray(values, np.float32).view(np.uint32))


def in_blocks(x: NDArray[Any]) -> NDArray[Any]:
    """[..., K] as [..., G, 32]."""
    return x.reshape(*x.shape[:-1], -1, 32)


def least_scale(recipe: Recipe) -> int:
    """`rceil` divides in F32, where subnormals round up: it writes scale 0 for (all but) zeros alone."""
    return int(recipe.scale is ScaleRule.rceil)


# --- P1 to P5: what returns ---


@every_example
@given(st.data(), rules)
def test_what_is_decoded_keeps_its_values(data: st.DataObject, recipe: Recipe) -> None:
    """P1. Values, whatever the blocks; the sign of zero too where the recipe keeps it."""
    values = decoded(*data.draw(codes_and_scales(least=least_scale(recipe))))
    again = decoded(*quantized(f32(values), recipe))
    assert np.array_equal(again, values)
    if recipe.keeps_negative_zero:
        assert np.array_equal(again.view(np.uint32), values.view(np.uint32))


@every_example
@given(st.data(), rules)
def test_canonical_blocks_return(data: st.DataObject, recipe: Recipe) -> None:
    """P2. Canonical: a code of 4 or 6, or the smallest scale; zeros have scale 0, and -0 only where it is kept."""
    codes, scales = data.draw(codes_and_scales(least=least_scale(recipe)))
    place, value = data.draw(st.integers(0, 31)), data.draw(st.sampled_from([6, 7, 14, 15]))
    scales = np.minimum(scales, 252).astype(np.uint8)
    codes[scales > 0, place] = value
    scales[(codes & 7 == 0).all(-1)] = 0
    if not recipe.keeps_negative_zero:
        codes[codes == 8] = 0
    again, same = quantized(f32(decoded(codes, scales)), recipe)
    assert np.array_equal(same, scales)
    assert np.array_equal(again, codes)


@every_example
@given(rows_of_numbers(), rules)
def test_what_quantize_writes_is_canonical(rows: Rows, recipe: Recipe) -> None:
    """P2, of what is written: the same bytes the second time; by `rceil` from the second time on, for 3 is also 6/2."""
    once = quantized(rows, recipe)
    twice = quantized(f32(decoded(*once)), recipe)
    if recipe.scale is ScaleRule.rceil or (recipe.scale, recipe.ties) == (ScaleRule.even, TieRule.zero):
        again = quantized(f32(decoded(*twice)), recipe)
        same = (once[1] > 0) & ((once[0] & 7).max(-1) != 5)
        assert np.array_equal(twice[0][same], once[0][same])
        assert np.array_equal(twice[1][same], once[1][same])
        once, twice = twice, again
    assert np.array_equal(twice[0], once[0])
    assert np.array_equal(twice[1], once[1])


@every_example
@given(st.binary(min_size=34, max_size=34 * 6), st.sampled_from([Packing.pair, Packing.ggml]))
def test_packings_are_permutations(raw: bytes, packing: Packing) -> None:
    """P3. Any bytes at all, scale byte 255 among them; the codes are those of the definition."""
    n = len(raw) // 17 // 2 * 2
    structs = np.frombuffer(raw[: 17 * n], np.uint8).reshape(n // 2, 2, 1, 17)
    other = Packing.ggml if packing is Packing.pair else Packing.pair
    there, back = outputs(n // 2, 2, 1, other), outputs(n // 2, 2, 1, packing)
    cpu.repack(structs[..., 1:], structs[..., 0], packing, *there, other)
    assert np.array_equal(UNPACK[other](there[0]), UNPACK[packing](structs[..., 1:]))
    cpu.repack(*there, other, *back, packing)
    assert np.array_equal(back[0], structs[..., 1:])
    assert np.array_equal(back[1], structs[..., 0])


def mxfp4(packing: Packing, r: int, p: int, g: int, interleaved: bool) -> Operand:
    """Room for rows, p parts zipped: in one tensor row by row, or one after the other."""

    def room(*tail: int) -> U8:
        return np.zeros((r, p, *tail), np.uint8) if interleaved else np.zeros((p, r, *tail), np.uint8).swapaxes(0, 1)

    if packing is Packing.pair:
        return Operand(MXFP4_PAIR, (room(16 * g), room(g)), p)
    return Operand(MXFP4_GGML, (room(17 * g),), p)


@every_example
@given(st.data(), st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 4)))
def test_mxfp4_through_ggml_returns(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    """P4. As conversions do it: zipped and interleaved as they please. Whole files: contracts/test_dialects."""
    source = mxfp4(Packing.pair, *shape, data.draw(st.booleans()))
    ggml = mxfp4(Packing.ggml, *shape, data.draw(st.booleans()))
    target = mxfp4(Packing.pair, *shape, data.draw(st.booleans()))
    for field in source.fields:
        raw = data.draw(st.binary(min_size=field.size, max_size=field.size))
        field[...] = np.frombuffer(raw, np.uint8).reshape(field.shape)
    assert transcode(source, ggml, None) == transcode(ggml, target, None) == (0,)
    for x, y in zip(source.fields, target.fields, strict=True):
        assert np.array_equal(x, y)


def plain_operand(rows: NDArray[np.uint16], transposed: bool) -> Operand:
    """BF16 rows [R, p, K], or the one expert of columns that they are."""
    if transposed:
        return Operand(BF16_FLAT, (columns_of(rows)[None].view(np.uint8),), rows.shape[1], True)
    return Operand(BF16_FLAT, (np.ascontiguousarray(rows).view(np.uint8),), rows.shape[1])


@every_example
@given(st.data(), st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 40)), st.booleans(), st.booleans())
def test_bf16_is_copied_bit_for_bit(data: st.DataObject, shape: tuple[int, int, int], turned: bool, turn: bool) -> None:
    """P5. Any 16 bits, NaN payloads too: as rows and as columns, from each to each, and by way of F32."""
    n = int(np.prod(shape))
    rows = np.frombuffer(data.draw(st.binary(min_size=2 * n, max_size=2 * n)), np.uint16).reshape(shape)
    source, target = plain_operand(rows, turned), plain_operand(np.zeros(shape, np.uint16), turn)
    assert set(transcode(source, target, None)) == {0}
    made = target.elements[0].T.reshape(shape) if turn else target.elements
    assert np.array_equal(made, rows)
    wide, back = np.zeros(shape, np.uint32), np.zeros(shape, np.uint16)
    assert cpu.convert(rows, "BF16", wide, "F32") == cpu.convert(wide, "F32", back, "BF16") == 0
    assert np.array_equal(back, rows)


# --- P6 to P16: what quantizing does ---

STEPS = np.array(E2M1_VALUES)
HALF_STEPS = np.array([max(b - a for a, b in pairwise(E2M1_VALUES[max(0, c - 1) : c + 2])) / 2 for c in range(8)])
"""Half the wider of a code's two gaps: what lies farther away is nearer to another code."""


@every_example
@given(rows_of_numbers(), rules)
def test_errors_are_at_most_half_a_step(rows: Rows, recipe: Recipe) -> None:
    """P6. And no other code is nearer. Above 6 it saturates, whatever the distance."""
    codes, scales = quantized(rows, recipe)
    scaled = np.ldexp(np.abs(in_blocks(rows.values)).astype(np.float64), 127 - scales[..., None].astype(int))
    distance = np.abs(scaled[..., None] - STEPS)
    chosen = np.take_along_axis(distance, (codes & 7)[..., None].astype(int), -1)[..., 0]
    assert (chosen == distance.min(-1)).all()
    within = scaled <= 6
    assert (chosen <= HALF_STEPS[codes & 7])[within].all()
    assert ((codes & 7)[~within] == 7).all()
    assert scaled.max() < 8
    signs = np.signbit(in_blocks(rows.values))
    assert ((codes >> 3).astype(bool) == (signs if recipe.keeps_negative_zero else signs & (codes & 7 > 0))).all()


@every_example
@given(rows_of_numbers(), rules)
def test_signs_flip(rows: Rows, recipe: Recipe) -> None:
    """P7. Not by `llama.cpp`, and whatever keeps no -0: there all but zeros flip, and zeros stay +0."""
    word = plain.UINT[rows.dtype]
    sign = word.type(1 << (8 * word.itemsize - 1))
    codes, scales = quantized(rows, recipe)
    flipped, same = quantized(Rows(rows.dtype, rows.bits ^ sign), recipe)
    assert np.array_equal(same, scales)
    flips = np.full(codes.shape, 8) if recipe.keeps_negative_zero else np.where(codes & 7, 8, 0)
    assert np.array_equal(flipped, codes ^ flips)
    if not recipe.keeps_negative_zero:
        assert not (codes == 8).any()


@every_example
@given(st.binary(min_size=97 * 3, max_size=97 * 3), st.integers(-100, 100), rules)
def test_powers_of_two_move_the_scale(raw: bytes, power: int, recipe: Recipe) -> None:
    """P8. Where every number is normal before and after, and no scale lies at an end."""
    values = near_bits(raw, "F32", 131, 124).view(np.float32)
    codes, scales = quantized(f32(values[:, None]), recipe)
    moved, moved_scales = quantized(f32(np.ldexp(values, power)[:, None]), recipe)
    zeros = (values == 0).all(-1)[:, None, None]
    assert np.array_equal(moved, codes)
    assert np.array_equal(moved_scales, np.where(zeros, 0, scales.astype(int) + power))


@every_example
@given(rows_of_numbers(), rules, st.randoms(use_true_random=False))
def test_blocks_do_not_see_each_other(rows: Rows, recipe: Recipe, random: Any) -> None:
    """P9. Any permutation of all blocks."""
    r, p, k = rows.bits.shape
    order = list(range(rows.bits.size // 32))
    random.shuffle(order)
    codes, scales = quantized(rows, recipe)
    mixed = Rows(rows.dtype, rows.bits.reshape(-1, 32)[order].reshape(r, p, k))
    mixed_codes, mixed_scales = quantized(mixed, recipe)
    assert np.array_equal(mixed_codes.reshape(-1, 32), codes.reshape(-1, 32)[order])
    assert np.array_equal(mixed_scales.ravel(), scales.ravel()[order])


TALL = st.tuples(st.integers(1, 12), st.integers(1, 2), st.integers(1, 2))


@every_example
@given(rows_of_numbers(shapes=TALL), rules, st.lists(st.integers(0, 12), max_size=4))
def test_rows_may_be_split_anywhere(rows: Rows, recipe: Recipe, cuts: list[int]) -> None:
    """P10. Rows, and the columns that they are stored as."""
    codes, scales = quantized(rows, recipe)
    bounds = sorted({0, len(rows.bits), *(min(c, len(rows.bits)) for c in cuts)})
    pieces = [slice(a, b) for a, b in pairwise(bounds)]
    made = [quantized(Rows(rows.dtype, rows.bits[s]), recipe) for s in pieces]
    assert np.array_equal(np.concatenate([c for c, _ in made]), codes)
    assert np.array_equal(np.concatenate([s for _, s in made]), scales)
    columns, p = columns_of(rows.bits), rows.bits.shape[1]
    for s in pieces:
        blocks, some = outputs(s.stop - s.start, p, scales.shape[2], Packing.pair)
        cpu.quantize_columns(columns[:, s.start * p : s.stop * p], rows.dtype, recipe, Packing.pair, blocks, some)
        assert np.array_equal(blocks, PACK[Packing.pair](codes[s]))
        assert np.array_equal(some, scales[s])


@every_example
@given(rows_of_numbers(shapes=TALL), rules, st.integers(1, 4), st.integers(1, 200))
def test_pieces_threads_and_layouts_make_no_difference(rows: Rows, recipe: Recipe, threads: int, piece: int) -> None:
    """P11. Devices: test_digests. Whole conversions: test_execute and test_gpu_link."""
    codes, scales = quantized(rows, recipe)
    r, p, g = scales.shape
    wanted = PACK[Packing.ggml](codes)

    def same(fill: Callable[..., object], *lead: Any) -> None:
        blocks, some = outputs(r, p, g, Packing.ggml)
        fill(*lead, rows.dtype, recipe, Packing.ggml, blocks, some)
        assert np.array_equal(blocks, wanted)
        assert np.array_equal(some, scales)

    def by_threads(x: Any, dtype: str, recipe: Recipe, packing: Packing, blocks: U8, some: U8) -> None:
        cuts = [slice(i * r // threads, (i + 1) * r // threads) for i in range(threads)]
        jobs = [
            threading.Thread(target=cpu.quantize_rows, args=(x[s], dtype, recipe, packing, blocks[s], some[s]))
            for s in cuts
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    same(by_threads, rows.bits)
    same(cpu.quantize_columns, columns_of(rows.bits))
    with mock.patch.object(cpu_numpy, "PIECE_ELEMENTS", piece):
        same(cpu_numpy.quantize_rows, rows.bits)
        same(cpu_numpy.quantize_columns, columns_of(rows.bits))


@every_example
@given(rows_of_numbers(), rules)
def test_order_is_kept(rows: Rows, recipe: Recipe) -> None:
    """P12. x <= y in a block, so q(x) <= q(y); signs included."""
    values = in_blocks(rows.values)
    made = in_blocks(decoded(*quantized(rows, recipe)))
    ranked = np.take_along_axis(made, np.argsort(values, -1, kind="stable"), -1)
    assert (np.diff(ranked.astype(np.float64), axis=-1) >= 0).all()


@every_example
@given(st.lists(st.booleans(), min_size=32, max_size=32), st.sampled_from(["BF16", "F16", "F32"]), rules)
def test_zeros_are_zeros(negative: list[bool], dtype: str, recipe: Recipe) -> None:
    """P13. Scale 0; all-zero bytes but for -0, which is code 8 and comes back as -0, where the recipe keeps it."""
    word = plain.UINT[dtype]
    sign = word.type(1 << (8 * word.itemsize - 1))
    rows = Rows(dtype, np.where(negative, sign, word.type(0)).astype(word).reshape(1, 1, 32))
    codes, scales = quantized(rows, recipe)
    kept = np.array(negative) & recipe.keeps_negative_zero
    assert scales.tolist() == [[[0]]]
    assert np.array_equal(codes[0, 0, 0], np.where(kept, 8, 0))
    made = decoded(codes, scales)
    assert not made.any()
    assert np.array_equal(np.signbit(made[0, 0]), kept)


@every_example
@given(rows_of_numbers(), rules)
def test_the_maximum_has_a_large_code(rows: Rows, recipe: Recipe) -> None:
    """P14. 4 or 6; 3 by `rceil`, which ends at 6, and by `even` where 3.5 may round down. Below 2^-124 scales end."""
    codes, scales = quantized(rows, recipe)
    largest = np.abs(in_blocks(rows.values)).max(-1)
    ordinary = largest >= 2.0**-124
    at_three = recipe.scale is ScaleRule.rceil or (recipe.scale is ScaleRule.even and recipe.ties is TieRule.zero)
    assert ((codes & 7).max(-1)[ordinary] >= (5 if at_three else 6)).all()
    assert (scales[~ordinary] <= 1).all()


@every_example
@given(rows_of_numbers(most=254), rules)
def test_finite_numbers_give_finite_numbers_or_are_refused(rows: Rows, recipe: Recipe) -> None:
    """P15, P16. Scale byte 255 is never written, nor what decodes to NaN or Inf; `floor` and `best` refuse nothing."""
    try:
        codes, scales = quantized(rows, recipe)
    except BadBlock as bad:
        assert recipe.scale in (ScaleRule.even, ScaleRule.rceil)
        assert bad.kind == "overflow"
        assert np.abs(in_blocks(rows.values)[bad.row, bad.part, bad.block]).max() >= 1.5 * 2.0**127
        return
    assert scales.max() < 255
    assert np.isfinite(decoded(codes, scales)).all()


# --- P23: another road to the same ---

POWERS = [Fraction(2) ** (byte - 127) for byte in range(256)]
E2M1 = [Fraction(v) for v in E2M1_VALUES]


def nearest(scaled: Fraction, ties: TieRule) -> int:
    """The code whose value is nearest, by trying all eight."""
    off = [abs(scaled - v) for v in E2M1]
    best = [c for c in range(8) if off[c] == min(off)]
    return {TieRule.even: lambda: next((c for c in best if c % 2 == 0), best[0]), TieRule.away: lambda: best[-1],
            TieRule.zero: lambda: best[0]}[ties]()  # fmt: skip


def searched_scale(top: Fraction, rule: ScaleRule) -> int:
    """The scale byte by trying all of them, from the rule in words."""
    if rule is ScaleRule.rceil:  # the least scale at which 6 is enough; the quotient is an F32 one
        quotient = np.float32(float(top)) / np.float32(6)
        return next(e for e in range(255) if float(quotient) <= POWERS[e] and (e or quotient == 0))
    most = Fraction(7, 2) if rule is ScaleRule.even else Fraction(4)  # the largest scale at which it rounds to 4
    return max((e for e in range(255) if most * POWERS[e] <= top), default=0)


def searched(values: list[float], recipe: Recipe) -> tuple[list[int], int] | None:
    """Magnitudes of a block's codes and its scale; None where the rule makes a value of 2^128 or more."""
    magnitudes = [abs(Fraction(v)) for v in values]
    scale = searched_scale(max(magnitudes), recipe.scale)

    def at(byte: int) -> tuple[list[int], bool, Fraction]:
        codes = [nearest(m / POWERS[byte], recipe.ties) for m in magnitudes]
        made = [E2M1[c] * POWERS[byte] for c in codes]
        return codes, max(made) < 2**128, sum(((m - v) ** 2 for m, v in zip(magnitudes, made, strict=True)), Fraction())

    codes, held, error = at(scale)
    if recipe.scale is ScaleRule.best:
        more, held_too, less = at(scale + 1)
        if held_too and less < error:
            return more, scale + 1
    return (codes, scale) if held else None


@every_example
@given(rows_of_numbers(most=254, shapes=ONE_BLOCK), rules)
def test_the_oracle_searches_and_finds_the_same(rows: Rows, recipe: Recipe) -> None:
    """P23. In fractions, by trying every scale and every code."""
    wanted = searched([float(v) for v in rows.values.ravel()], recipe)
    if wanted is None:
        with pytest.raises(BadBlock) as caught:
            quantized(rows, recipe)
        assert caught.value.kind == "overflow"
        return
    codes, scales = quantized(rows, recipe)
    assert (codes[0, 0, 0] & 7).tolist() == wanted[0]
    assert int(scales[0, 0, 0]) == wanted[1]


# --- P24: other people's decoders ---


def same_numbers(made: NDArray[np.uint32], wanted: NDArray[np.float64]) -> bool:
    """Bit for bit, but for the payloads of NaN."""
    with np.errstate(over="ignore"):
        bits = wanted.astype(np.float32).view(np.uint32)
    nan = np.isnan(wanted)
    return np.array_equal(made[~nan], bits[~nan]) and bool(np.isnan(made.view(np.float32)[nan]).all())


@every_example
@given(st.binary(min_size=17, max_size=17 * 8), st.sampled_from(sorted(peers.DECODERS)))
def test_peers_decode_the_same(raw: bytes, name: str) -> None:
    """P24. Any bytes at all; what is different is in `DECODERS`, and is exactly that."""
    structs = np.frombuffer(raw[: len(raw) // 17 * 17], np.uint8).reshape(-1, 1, 17)
    codes, scales = UNPACK[Packing.ggml](structs[..., 1:]), np.ascontiguousarray(structs[..., 0])
    decoder = peers.DECODERS[name]
    assert same_numbers(decoder.bits(codes, scales), peers.expected_of(decoder, codes, scales))
    definition = peers.Decoder(lambda c, s: reference.dequantize(c, s).view(np.uint32), minus_zero=True, nan=True)
    assert same_numbers(definition.bits(codes, scales), peers.expected_of(definition, codes, scales))


def test_the_table_names_tests_that_are_there() -> None:
    named = [name for names in PROPERTIES.values() for name in names.split(", ")]
    for name in named:
        module, _, test = name.rpartition("::")
        source = (Path(__file__).parent / f"{module or Path(__file__).stem}.py").read_text("utf-8")
        assert f"def {test}(" in source, name
    words = " ".join(PROPERTIES)
    assert {int(n) for n in re.findall(r"P(\d+)", words)} | {18, 19, 20} == set(range(1, 25))
