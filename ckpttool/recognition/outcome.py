"""What recognising a checkpoint's tensors gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpttool.errors import CkptError
    from ckpttool.tensors import Weight


@dataclass(frozen=True)
class Recognition:
    """The weights of a checkpoint, in the order of their codes; what contradicts itself is in `problems`.

    `broken` are the names of weights that are not whole; `loose` are the stored tensors of theirs, which are among
    `weights` under their own names.
    """

    weights: tuple[Weight, ...]
    problems: tuple[CkptError, ...] = ()
    broken: frozenset[str] = frozenset()
    loose: frozenset[str] = frozenset()
