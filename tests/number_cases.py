"""Finite numbers made of bytes, by integers alone: the same on every machine, and small bytes are simple numbers.

`any_bits` are bits as they come. `near_bits` lie close under an exponent that their block shares, half of them on the
thresholds of E2M1 or beside, as weights and hard cases do. The hypothesis strategies and the digests draw from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ckpttool.codecs import plain
from ckpttool.codecs.formats import Recipe, ScaleRule, TieRule

Bits = NDArray[Any]

DTYPES = ("BF16", "F16", "F32")
EVERY_RULE = [Recipe(f"{s}/{t}/{k}", s, t, k) for s in ScaleRule for t in TieRule for k in (True, False)]


@dataclass(frozen=True)
class Layout:
    """Where the fields of a number lie: `mantissa` bits, and the largest exponent field of a finite one."""

    mantissa: int
    top: int


LAYOUTS = {"BF16": Layout(7, 254), "F16": Layout(10, 30), "F32": Layout(23, 254)}
NEAR_NBYTES = 3
"""Bytes that `near_bits` takes for an element; and one more for each block."""


def any_bits(raw: bytes, dtype: str, top: int | None = None) -> Bits:
    """[n, 32] of 32 * itemsize bytes a block; exponent fields above `top` (default: Inf's) lose their high bit."""
    layout, word = LAYOUTS[dtype], plain.UINT[dtype]
    bits = np.frombuffer(raw, word.newbyteorder("<")).astype(word).reshape(-1, 32)
    exponent = (bits >> word.type(layout.mantissa)) & word.type(layout.top + 1)
    high = word.type((layout.top + 2) // 2 << layout.mantissa)
    out: Bits = np.where(exponent > (layout.top if top is None else top), bits & ~high, bits)
    return out


def near_bits(raw: bytes, dtype: str, top: int | None = None, least: int = 0) -> Bits:
    """[n, 32] of 1 + 32 * `NEAR_NBYTES` bytes a block, every element at most 7 binades under its block's exponent.

    The exponent field lies in `least`..`top` (default: all finite ones), less that distance. A first byte says sign and
    distance, and whether the significand is a multiple of 1/4, a bit more or less, or any; or that the element is 0.
    """
    layout = LAYOUTS[dtype]
    most = layout.top if top is None else top
    block = np.frombuffer(raw, np.uint8).astype(np.int64).reshape(-1, 1 + 32 * NEAR_NBYTES)
    how, low, high = block[:, 1:].reshape(-1, 32, NEAR_NBYTES).transpose(2, 0, 1)
    exponent = np.maximum(least + block[:, :1] % (most - least + 1) - (how & 7), 0)
    kind, width = how >> 4 & 3, layout.mantissa
    quarter = (low & 3) << (width - 2)
    loose = ((high << 8 | low) * 0x10001 >> 1 & 0x7FFFFF) >> (23 - width)
    field = exponent << width
    exact = field | quarter
    magnitude = np.select(
        [kind == 0, kind == 1, kind == 2], [exact, exact | 1, np.maximum(exact - 1, 0)], field | loose
    )
    magnitude = np.where(how & 0x78 == 0x78, 0, magnitude)
    word = plain.UINT[dtype]
    sign = (how >> 7) << (8 * word.itemsize - 1)
    return (sign | magnitude).astype(word)


@dataclass(frozen=True)
class Rows:
    """Numbers [R, p, K] of a type, by their bits."""

    dtype: str
    bits: Bits

    @property
    def values(self) -> NDArray[np.float32]:
        """The same as float32."""
        return plain.widen(self.bits, self.dtype).view(np.float32)


@st.composite
def rows_of_numbers(
    draw: st.DrawFn,
    *,
    dtypes: tuple[str, ...] = DTYPES,
    most: int = 253,
    shapes: st.SearchStrategy[tuple[int, int, int]] | None = None,
) -> Rows:
    """Rows of either kind. `most`: the largest exponent field of BF16 and F32; 253 is below 2^127: every rule can."""
    dtype = draw(st.sampled_from(dtypes))
    r, p, g = draw(SHAPES if shapes is None else shapes)
    top = min(most, LAYOUTS[dtype].top)
    near = draw(st.booleans())
    size = 1 + 32 * NEAR_NBYTES if near else 32 * plain.UINT[dtype].itemsize
    raw = draw(st.binary(min_size=r * p * g * size, max_size=r * p * g * size))
    bits = near_bits(raw, dtype, top) if near else any_bits(raw, dtype, top)
    return Rows(dtype, bits.reshape(r, p, g * 32))


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2))
ONE_BLOCK = st.just((1, 1, 1))


@st.composite
def codes_and_scales(draw: st.DrawFn, *, least: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MXFP4 that F32 can hold: codes [R, p, G, 32], scales [R, p, G] of `least` to 254."""
    shape = draw(SHAPES)
    n = int(np.prod(shape))
    raw = np.frombuffer(draw(st.binary(min_size=16 * n, max_size=16 * n)), np.uint8)
    codes = np.stack([raw & 15, raw >> 4], -1).reshape(*shape, 32)
    drawn = draw(st.lists(st.integers(least, 254), min_size=n, max_size=n))
    scales = np.array(drawn, np.uint8).reshape(shape)
    largest = np.select([scales == 253, scales == 254], [5, 3], 7)[..., None]  # 3 * 2^126 and 1.5 * 2^127
    return (codes & 8 | np.minimum(codes & 7, largest)).astype(np.uint8), scales
