"""Which quantizer made the scales of an MXFP4 weight: the largest code of each block betrays it.

A scale rule says in which range a block's largest magnitude lies, in units of the scale, and so which codes it can
have: `floor` [4, 8), `even` [3.5, 7), `best` between the two (nearly all in [3.625, 7.25)), `rceil` (3, 6]. Codes 6 and
7 are 4 and 6. So a block whose largest code is 5 (3) was made by `rceil`, and if enough blocks have none, it was not.

`floor`, `even` and `best` leave the same codes. What tells them apart is how wide each code's range of magnitudes is:
the blocks of (scale e, code 6) have their maxima in [4, 5) or [3.5, 5) or [3.625, 5) times 2^e, those of (e, 7) in the
rest. Magnitudes of trained weights have a smooth density over the octaves; read with the wrong rule, it goes up and
down from range to range. Where magnitudes are too much alike for that, nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, log2

from ckpttool.codecs.formats import RECIPES, ScaleRule

BLOCKS_NEEDED = 256
"""Fewer non-zero blocks than this say nothing: 23 % of code 5 at the least are then no accident that is missed."""

RARE = 1 / 1000
"""Up to this share of blocks may be of another making: subnormal maxima, edited or merged rows."""

MARGIN = 1.25
"""How much rougher a reading must be than the smoothest one to be ruled out."""

SMOOTH = 1.7
"""Rougher than this, even the smoothest reading is no smooth density: the weights' magnitudes lie too close together.

Measured on our own quantizers, with 9,000 blocks and more: rows of differing size come to 1.1 to 1.4 under the right
rule and 1.8 to 3.8 under a wrong one, Student t (4) to 1.5 to 1.7 and 1.9 to 3.6; for equal Gaussians and Laplacians,
at 1.8 to 5.5 under any rule, nothing is said.
"""

_STARTS = {ScaleRule.floor: 4.0, ScaleRule.even: 3.5, ScaleRule.best: 3.625}
"""Where a rule's range of largest magnitudes begins; it ends at twice that. Code 7 begins at 5."""

_SEVEN = 5.0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The recipes that may have made a weight (none: not by any of them), and why."""

    recipes: tuple[str, ...]
    blocks: int
    reason: str


def fingerprint(largest: Sequence[Sequence[int]], negative_zeros: int | None = None) -> Fingerprint:
    """Who made the blocks that `largest` counts: 256 rows, one for each scale byte, of blocks by largest code, 0 to 7.

    `negative_zeros` counts the codes 8 of all blocks: llama.cpp writes none, every other recipe where a small negative
    rounds to zero. Blocks of scale 0 (all zero, or clamped) and 255 are left out. Source of the rules:
    `ckpttool.codecs.reference`, which every named library equals.
    """
    by_scale = {e: tuple(row) for e, row in enumerate(largest) if 0 < e < 255 and any(row)}
    counts = [sum(row[code] for row in by_scale.values()) for code in range(8)]
    blocks = sum(counts[1:])
    if blocks < BLOCKS_NEEDED:
        return Fingerprint(tuple(RECIPES), blocks, f"{blocks} blocks that are not zero are too few to tell")
    small, five = sum(counts[1:5]) / blocks, counts[5] / blocks
    if small > RARE:
        text = f"{small:.1%} of the blocks have a largest code under 5, which no rule of these leaves"
        return Fingerprint((), blocks, f"{text}: trained so, searched, edited, or scaled twice")
    if five > RARE:
        text = (
            f"{five:.1%} of the blocks have the largest code 5 (3.0): the scale was rounded up, so that nothing clips"
        )
        return Fingerprint(_recipes(ScaleRule.rceil), blocks, text)
    rules, why = _smoothest(by_scale)
    names = tuple(n for rule in rules for n in _recipes(rule))
    if negative_zeros == 0:
        names, why = ("llama.cpp",), "no code is -0, and no block's largest code is under 6"
    elif negative_zeros:
        names = tuple(n for n in names if RECIPES[n].keeps_negative_zero)
    return Fingerprint(names, blocks, why)


def _recipes(rule: ScaleRule) -> tuple[str, ...]:
    return tuple(r.name for r in RECIPES.values() if r.scale is rule)


def _smoothest(by_scale: dict[int, tuple[int, ...]]) -> tuple[tuple[ScaleRule, ...], str]:
    """The rules under which the density of the largest magnitudes is smoothest; several where they hardly differ."""
    rough = {rule: _roughness(by_scale, start) for rule, start in _STARTS.items()}
    order = sorted(rough, key=lambda rule: rough[rule])
    first = rough[order[0]]
    shown = ", ".join(f"{rule} {rough[rule]:.1f}" for rule in order)
    if first > SMOOTH:
        return tuple(_STARTS), f"all largest codes are 6 or 7, of magnitudes too much alike to tell the rule ({shown})"
    kept = tuple(rule for rule in order if rough[rule] <= first * MARGIN)
    return kept, f"all largest codes are 6 or 7; roughness of the magnitudes' density under each rule: {shown}"


def _roughness(by_scale: dict[int, tuple[int, ...]], start: float) -> float:
    """How far the log of the density bends from range to range, weighted by blocks: natural log units, 0 is straight.

    Ranges lie one after the other over all octaves, so each has two neighbours; where the density's slope changes from
    one pair to the next, it bends. A smooth density bends slowly and one way, a wrong reading at every range.
    """
    six, seven = log2(_SEVEN / start), log2(2 * start / _SEVEN)
    points = []
    for e, row in sorted(by_scale.items()):
        at = e + log2(start)
        points += [(at + six / 2, row[6], six), (at + six + seven / 2, row[7], seven)]
    known = [(at, log(n / width), n) for at, n, width in points if n >= _FEW]
    slopes = [((b[1] - a[1]) / (b[0] - a[0]), a, b) for a, b in pairwise(known) if b[0] - a[0] < 1]
    bend = weight = 0.0
    for (s1, a, b), (s2, b2, c) in pairwise(slopes):
        if b is b2:
            w = min(a[2], b[2], c[2]) ** 0.5
            bend += w * abs(s2 - s1)
            weight += w
    return bend / weight if weight else 0.0


_FEW = 16
"""A range of fewer blocks than this is left out of the density: its count is mostly chance."""
