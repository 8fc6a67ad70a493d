"""Whether MXFP4 scale bytes have bias 125 instead of E8M0's 127: every value would then be four times too small.

compressed-tensors before 0.13.1 stored `127 + log2(scale) - 2` (its pull request 538, January 2026, ended that). No
byte shows it: a shifted histogram is a valid one. What shows it is the size of the weights that the bytes mean. A
linear layer keeps the size of what passes through it where its weights' root mean square times the square root of its
inputs is about 1, and training moves that by a factor of two or three, not of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from ckpttool.codecs.formats import E8M0_BIAS

OLD_BIAS = 125

RMS_IN_SCALES = 2.0
"""The root mean square of a block in units of its scale: 1.8 to 2.3 for Gaussian blocks, by the scale rule."""

TOO_SMALL = 0.25
"""A gain (root mean square times the root of the inputs) under this at bias 127 is one under 1 at bias 125."""

SOUND = 1.0
"""A gain over this at bias 127 would be one over 4 at bias 125."""

BLOCKS_NEEDED = 256


@dataclass(frozen=True, slots=True)
class Bias:
    """`bias` is 127, 125, or None where the distribution fits both; `gain` is that of the weights at bias 127."""

    bias: int | None
    gain: float
    reason: str


def bias_of(histogram: Sequence[int], row_length: int) -> Bias:
    """The bias of scale bytes, by how often each of the 256 occurs in a weight whose rows have `row_length` elements.

    It is likelihood, not proof: a weight that is small on purpose looks as one of bias 125 does. Say so where it is
    shown, and look at several weights of the checkpoint, or at its quantizer's version.

    ValueError unless `histogram` has 256 counts and `row_length` is positive.
    """
    if len(histogram) != 256 or row_length < 1:
        raise ValueError("a histogram of 256 scale bytes, and rows of at least one element")
    blocks = sum(histogram[1:255])  # 0 is a block of zeros, 255 no number
    if blocks < BLOCKS_NEEDED:
        return Bias(None, 0.0, f"{blocks} blocks that are not zero are too few to tell")
    power = sum(n * 4.0 ** (e - E8M0_BIAS) for e, n in enumerate(histogram[:255]) if e and n) / blocks
    gain = RMS_IN_SCALES * (power * row_length) ** 0.5
    if gain == 0.0:
        return Bias(None, gain, "the scales are too small to be those of weights")
    seen = f"root mean square times root of {row_length} inputs is {gain:.2g} (2^{log2(gain):.1f})"
    if gain < TOO_SMALL:
        return Bias(OLD_BIAS, gain, f"{seen}, {4 * gain:.2g} if the bias is 125; about 1 is usual")
    if gain > SOUND:
        return Bias(E8M0_BIAS, gain, f"{seen}; about 1 is usual")
    return Bias(None, gain, f"{seen}, {4 * gain:.2g} if the bias is 125: either may be")
