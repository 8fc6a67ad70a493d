"""The ways in which a lossy format is made of another: by a recipe or by rounding, directly or by way of a third one.

MXFP4 names no algorithm. But the rules that people use are few: how the scale follows from the maximum, where ties go,
what becomes of -0. And a conversion often goes by way of another plain format: an F32 checkpoint is saved as BF16, then
quantized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import F32_FLAT, MXFP4, PLAIN, RECIPES, WRITABLE_GGML, Codec, Recipe, ScaleRule, TieRule
from ckpttool.codecs.transcode import Operand, transcode
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError
from ckpttool.verifier import RECEIPT_LIMIT, find_receipt

_LOSSES: Final = {"F32": ("BF16", "F16"), "F16": ("BF16",), "BF16": ("F16",)}
"""Plain formats that a plain one may have gone through with some loss."""


@dataclass(frozen=True, slots=True)
class Maker:
    """One way: MXFP4 by `recipe`, all else to nearest; `via` another plain format where there is one."""

    recipe: Recipe | None = None
    via: Codec | None = None

    @property
    def name(self) -> str:
        """As a proof says it."""
        made = f"recipe {self.recipe.name}" if self.recipe else "rounding"
        return f"{made} by way of {self.via.name}" if self.via else made


DIRECTLY: Final = Maker()
"""What needs no choice: copied, repacked, widened."""


def makes(source: Codec, target: Codec) -> bool:
    """Whether anything here makes the one of the other, with whatever loss."""
    return source.readable and target.name in WRITABLE_GGML


def makers(source: str, target: str, hint: Recipe | None = None) -> list[Maker]:
    """All ways from one format to the other, the likeliest first; `hint` is the likeliest recipe."""
    vias = [None, *(PLAIN[v] for v in _LOSSES.get(source, ()) if v != target)]
    recipes: Sequence[Recipe | None] = _recipes(hint) if target == MXFP4.name else (None,)
    return [Maker(recipe, via) for via in vias for recipe in recipes]


def _recipes(hint: Recipe | None) -> list[Recipe]:
    """`hint`, then those with a name, then every other choice of rules."""
    found = {(r.scale, r.ties, r.keeps_negative_zero): r for r in RECIPES.values()}
    for scale, ties, signed in product(ScaleRule, TieRule, (True, False)):
        name = f"{scale}/{ties}" if signed else f"{scale}/{ties} without -0"
        found.setdefault((scale, ties, signed), Recipe(name, scale, ties, signed))
    return sorted(found.values(), key=lambda r: r != hint)


def remake(rows: Operand, like: Codec, maker: Maker) -> Operand:
    """Rows [R, 1, ...] of one part, upright, as `maker` makes them in the codec `like`.

    Raises:
        BadBlock: a value that may not be converted so; its row is counted from the operand's first.
    """
    if rows.codec == like:
        return rows
    if maker.via:
        rows = _transcoded(rows, maker.via, None)
    elif not (rows.codec.is_plain or like.is_plain or rows.codec.format == like.format):
        rows = _transcoded(rows, F32_FLAT, None)
    return _transcoded(rows, like, maker.recipe)


def _transcoded(rows: Operand, codec: Codec, recipe: Recipe | None) -> Operand:
    first = rows.fields[0]
    k = first.shape[-1] // rows.codec.block_nbytes[0] * rows.codec.format.block
    target = Operand(codec, tuple(np.empty((first.shape[0], 1, n), np.uint8) for n in codec.row_nbytes(k)), 1)
    transcode(rows, target, recipe)
    return target


def stated_recipe(candidate: Checkpoint) -> Recipe | None:
    """The recipe that the candidate's receipt names, if one lies beside it and can be read."""
    if isinstance(candidate.path, Path):
        with contextlib.suppress(CkptError):
            path = find_receipt(candidate.path)
            stated = read_object(path, path.name, RECEIPT_LIMIT).get("recipe")
            return RECIPES.get(str(stated.get("name"))) if isinstance(stated, Mapping) else None
    return None
