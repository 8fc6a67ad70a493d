"""How parts lie in a stored weight: one, interleaved, concatenated; transposed; one stored tensor an expert.

Every part is a matrix of rows x K: experts and output features are its rows, the contraction axis is K (1 for biases
and norms). A join places rows of parts in a weight, and nothing else, so an `Extent` says it all, and both directions
follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ckpttool.tensors import Weight


@dataclass(frozen=True, slots=True)
class PartShape:
    """Output axes and contraction axis of a part: (E, I) and H for an expert matrix; K is None for a vector."""

    rows: tuple[int, ...]
    k: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical logical shape."""
        return self.rows if self.k is None else (*self.rows, self.k)

    @property
    def row_count(self) -> int:
        """Rows, experts and output features flattened."""
        return prod(self.rows)

    @property
    def row_length(self) -> int:
        """Elements of one row."""
        return 1 if self.k is None else self.k


@dataclass(frozen=True, slots=True)
class Join:
    """One row of a dialect's table: which parts make the stored weight, and how.

    `interleaved`: rows of the parts take turns; otherwise one part's rows follow the other's. `transposed`: the last
    two axes are exchanged. `per_expert`: the weight holds one expert of each part.
    """

    parts: tuple[str, ...]
    interleaved: bool = False
    transposed: bool = False
    per_expert: bool = False

    def stored_shape(self, shapes: Mapping[str, PartShape]) -> tuple[int, ...]:
        """The logical shape of the weight in the file's orientation."""
        first = shapes[self.parts[0]]
        rows = first.rows[1:] if self.per_expert else first.rows
        joined = sum(shapes[p].rows[-1] for p in self.parts)
        out = (*rows[:-1], joined)
        if first.k is not None:
            out = (*out, first.k)
        return (*out[:-2], out[-1], out[-2]) if self.transposed else out

    def extents(self, weight: Weight, shapes: Mapping[str, PartShape], expert: int | None) -> tuple[Extent, ...]:
        """Where the rows of each part lie in `weight`; `expert` is the one it holds, if it holds one."""
        first = shapes[self.parts[0]]
        count = prod(first.rows[1:]) if self.per_expert else first.row_count
        start = count * expert if self.per_expert and expert is not None else 0
        if self.interleaved or len(self.parts) == 1:
            return (Extent(weight, self.parts, start, start + count, 0, self.transposed),)
        out, row = [], 0
        for part in self.parts:
            rows = shapes[part].row_count
            out.append(Extent(weight, (part,), 0, rows, row, self.transposed))
            row += rows
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Extent:
    """Rows [start, stop) of `parts` lie in `weight`, zipped row by row, from the weight's row `row` on.

    Row i of part j is the weight's row `row + (i - start) * len(parts) + j`; where `transposed`, the same holds for the
    columns of each expert.
    """

    weight: Weight
    parts: tuple[str, ...]
    start: int
    stop: int
    row: int
    transposed: bool
