"""The named MXFP4 blocks of fixtures/codecs/mxfp4/cases.json, and data that reaches every corner of the formats."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs import plain

CASES = json.loads((Path(__file__).parents[1] / "fixtures/codecs/mxfp4/cases.json").read_text("utf-8"))


@dataclass(frozen=True)
class Case:
    """One block, one recipe, and what must come of it: a scale byte and codes, or the kind of BadBlock."""

    name: str
    recipe: str
    dtype: str
    bits: NDArray[Any]
    scale: int | None
    codes: NDArray[np.uint8] | None
    error: str | None

    @property
    def id(self) -> str:
        return f"{self.name} [{self.recipe}]"


def number(text: Any) -> float:
    """A JSON number, `nan`, `inf`, or `a * 2^b`."""
    significand, _, exponent = str(text).partition(" * 2^")
    return float(significand) * 2.0 ** int(exponent or 0)


def bits_of(values: list[Any], dtype: str) -> NDArray[Any]:
    """A block of bits; the values must be exact in `dtype`, so that no rounding of ours takes part."""
    block = np.zeros(32, np.float64)
    block[: len(values)] = [number(v) for v in values]
    narrow = plain.narrow(block.astype(np.float32).view(np.uint32), dtype)
    back = plain.widen(narrow, dtype).view(np.float32).astype(np.float64)
    assert np.array_equal(back, block, equal_nan=True), f"{values} are not exact in {dtype}"
    return narrow


def padded(codes: list[int]) -> NDArray[np.uint8]:
    out = np.zeros(32, np.uint8)
    out[: len(codes)] = codes
    return out


def quantize_cases() -> list[Case]:
    cases = []
    for case in CASES["quantize"]:
        bits = bits_of(case["values"], case["dtype"])
        for expected in case["expect"]:
            codes = padded(expected["codes"]) if "codes" in expected else None
            result = (expected.get("scale"), codes, expected.get("error"))
            cases += [Case(case["name"], recipe, case["dtype"], bits, *result) for recipe in expected["recipes"]]
    return cases


def hard_values(rng: np.random.Generator, blocks: int) -> NDArray[np.float32]:
    """Finite float32 [blocks, 32]: magnitudes over the whole range, close to each other, on ties, and with zeros."""
    exponent = rng.integers(-149, 128, (blocks, 1)) + rng.integers(-6, 1, (blocks, 32))
    fraction = rng.choice([1.0, 1.25, 1.5, 1.75, 1.875, 1.9921875], (blocks, 32))
    loose = 1 + rng.random((blocks, 32))
    significand = np.where(rng.random((blocks, 32)) < 0.5, fraction, loose)
    values = np.ldexp(significand, exponent) * rng.choice([-1.0, 1.0], (blocks, 32))
    values[rng.random((blocks, 32)) < 0.05] = 0.0
    values[rng.random((blocks, 32)) < 0.02] = -0.0
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32)


def hard_bits(rng: np.random.Generator, blocks: int, dtype: str) -> NDArray[Any]:
    """`hard_values` as bits of `dtype` [blocks, 32], all finite."""
    values = hard_values(rng, blocks)
    if dtype == "F16":
        values = np.ldexp(values, -np.round(np.log2(np.abs(values).max(-1, keepdims=True) + 1e-45) / 8 * 7).astype(int))
        values = np.clip(np.nan_to_num(values), -65504, 65504).astype(np.float32)
    bits = plain.narrow(values.view(np.uint32), dtype)
    if dtype == "BF16":
        bits = np.where((bits & 0x7FFF) >= 0x7F80, (bits & 0x8000) | 0x7F7F, bits).astype(np.uint16)
    return bits
