"""Which weight of a checkpoint is what: its claims by the layout that knows the most of its experts.

For whoever counts and describes. Conversion asks a dialect, which must know every weight; this asks whichever dialect
or layout of the declared architecture fits, and lets the rest be.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.archs import ArchTable, Dialect, declared_table
from ckpttool.archs.joins import Join

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.tensors import Weight

EXPERT_PURPOSES = frozenset({"gate", "up", "down"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|block|blocks)\.(\d{1,6})\.")
_NUMBER = re.compile(r"(?<![^.])\d{1,6}(?![^.])")
_SPECULATION = re.compile(r"(?:^|\.)(?:mtp|mtp_layers|mtp_block|nextn)\.")
"""How modules are called that guess tokens ahead: multi-token prediction, "next n"."""
_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|audio|speech|encoder)")
"""How modules are called that have layers of their own count, for pictures and sound."""
_GENERIC = {
    "embed": ("embed_tokens.weight", "token_embd.weight", "embedding.weight", "wte.weight"),
    "head": ("lm_head.weight", "output.weight", "unembedding.weight"),
}
"""How names end that mean the same in every model, for architectures without a table."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a weight is: `kinds` as "embed", "gate", "shared.up", "gate.bias", None where nothing is known of it.

    `layer` and `expert` are its numbers, where it has them. `idle`: a token of text does not pass through it; one that
    `speculates` besides guesses tokens ahead, and is loaded where that is asked for.
    """

    kinds: tuple[str, ...] = ()
    layer: int | None = None
    expert: int | None = None
    join: Join | None = None
    idle: bool = False
    speculates: bool = False

    @property
    def is_expert(self) -> bool:
        """Whether it holds routed experts, or their biases."""
        return bool(self.kinds) and self.kinds[0].removesuffix(".bias") in EXPERT_PURPOSES


@dataclass(frozen=True)
class Purposes:
    """The purposes of all weights, by name; `layout` is the dialect or layout that told them."""

    table: ArchTable | None
    layout: Dialect | None
    by_name: Mapping[str, Purpose]


def purposes_of(checkpoint: Checkpoint, layers: int | None) -> Purposes:
    """The purpose of every weight; `layers` is the model's count, past which a checkpoint holds speculation alone."""
    table = declared_table(checkpoint)
    layout, found = _best(table, checkpoint)
    idle = re.compile("|".join(fnmatch.translate(glob) for glob in (table.idle if table else ())) or "(?!)")
    out = {}
    for w in checkpoint.weights:
        purpose = found.get(w.name) or _generic(w.name)
        number = _LAYER.search(w.name)
        past = number is not None and layers is not None and int(number[1]) >= layers
        rests = past or idle.match(w.name) is not None
        speculates = (past and not _TOWER.search(w.name)) or _SPECULATION.search(w.name) is not None
        layer = purpose.layer if purpose.layer is not None or number is None else int(number[1])
        out[w.name] = Purpose(purpose.kinds, layer, purpose.expert, purpose.join, rests or speculates, speculates)
    return Purposes(table, layout, out)


def _best(table: ArchTable | None, checkpoint: Checkpoint) -> tuple[Dialect | None, Mapping[str, Purpose]]:
    """The layout under which most weights are experts, and what it says of all that it knows.

    Between equals the checkpoint's dialect: formats told hf from hf-bf16, whose names are the same.
    """
    layouts = [x for x in (table.layouts if table else {}).values() if x.container == checkpoint.container]
    layouts.sort(key=lambda x: checkpoint.dialect is None or x.name != checkpoint.dialect.name)
    best: tuple[int, Dialect | None, Mapping[str, Purpose]] = (0, None, {})
    names = _keyed(checkpoint.weights)
    for layout in layouts:
        found = dict(_claimed(layout, names))
        score = sum(r.is_expert for r in found.values())
        if score > best[0]:
            best = (score, layout, found)
    return best[1], best[2]


def _keyed(weights: tuple[Weight, ...]) -> list[tuple[str, str]]:
    """Every weight's name, and the same with # for its numbers: thousands of experts come to a few such keys."""
    return [(w.name, _NUMBER.sub("#", w.name)) for w in weights]


def _claimed(layout: Dialect, names: list[tuple[str, str]]) -> Iterator[tuple[str, Purpose]]:
    """Every weight that a row of `layout` names, with or without the `.weight` that quantizers leave out."""
    rows = {re.sub(r"\{[le]\}", "#", t): (re.findall(r"\{([le])\}", t), j) for t, j in layout.rows.items()}
    kinds = {key: tuple(p.removeprefix("layer.{l}.") for p in join.parts) for key, (_, join) in rows.items()}
    for name, key in names:
        found = key if key in rows else key + ".weight"
        if found in rows:
            letters, join = rows[found]
            told = dict(zip(letters, map(int, _NUMBER.findall(name)), strict=True))
            yield name, Purpose(kinds[found], told.get("l"), told.get("e"), join)


def _generic(name: str) -> Purpose:
    for kind, ends in _GENERIC.items():
        if any(name == end or name.endswith("." + end) for end in ends):
            return Purpose((kind,))
    return Purpose()
