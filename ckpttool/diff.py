"""What differs between two checkpoints, in any dialects and containers: weights, config, tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.comparison import parts as comparison
from ckpttool.comparison.config import FieldDifference, config_differences, metadata_differences, said
from ckpttool.comparison.pairs import by_part
from ckpttool.comparison.parts import PartComparison, Status, compared_nbytes
from ckpttool.comparison.tokens import SideFile, side_files
from ckpttool.containers.gguf_values import Scalar
from ckpttool.places import LocalFolder

__all__ = ["Diff", "DiffSide", "compare", "compared_nbytes", "diff", "opened"]


@dataclass(frozen=True)
class DiffSide:
    """One of the two checkpoints; `arch` is what it declares where no table of ours knows its names."""

    source: str
    arch: str | None
    dialect: str | None
    container: str
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Diff:
    """What two checkpoints have in common and what not.

    `identical`: every part is in both, with equal bytes or values; None where headers agree and no value was read,
    which `compared` says. `counts` are parts by status; `unread` are those with none.
    """

    schema: str
    a: DiffSide
    b: DiffSide
    compared: str
    identical: bool | None
    verdict: str
    counts: dict[str, int]
    parts: tuple[PartComparison, ...]
    config: tuple[FieldDifference, ...]
    metadata: tuple[FieldDifference, ...]
    side_files: tuple[SideFile, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing that was looked at differs: the command's exit code is 0."""
        return self.identical is not False

    @property
    def worst(self) -> list[PartComparison]:
        """The lossy parts, the worst first: those not decoded, those with values that are not finite, then by error."""
        return sorted((p for p in self.parts if p.status is Status.lossy), key=_badness)


def _badness(part: PartComparison) -> tuple[bool, bool, float, float, str]:
    relative = float("inf") if part.relative is None else part.relative
    return part.differing is not None, not part.nonfinite, -relative, -(part.max_abs or 0.0), part.part


def compare(
    a: str | Path,
    b: str | Path,
    *,
    headers_only: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Diff:
    """Compare the checkpoints at `a` and `b`; errors are those of `b` against `a`.

    With `headers_only` no tensor data is read: parts, shapes, formats, config and, of local folders, the tokenizer.
    `progress` is called from any thread with the bytes that have just been compared.

    Raises:
        InputError: no checkpoint there, or a header that cannot be trusted.
    """
    return diff(*opened(a, b), headers_only=headers_only, workers=workers, progress=progress)


def opened(a: str | Path, b: str | Path) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints' headers. InputError as `compare` raises it."""
    return open_checkpoint(a), open_checkpoint(b)


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    headers_only: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Diff:
    """The report on two opened checkpoints; as `compare`."""
    parts = comparison.compare_parts(a, b, headers_only=headers_only, workers=workers, progress=progress)
    counts = Counter("unread" if p.status is None else p.status.value for p in parts)
    stated = said(a), said(b)
    here = isinstance(a.folder, LocalFolder) and isinstance(b.folder, LocalFolder)
    differing = sum(counts[s] for s in (Status.lossy, Status.only_a, Status.only_b, Status.shape))
    return Diff(
        "diff.v1", _side(a), _side(b),
        "headers" if headers_only else "values",
        _identical(counts, parts, differing),
        _verdict(counts, parts, differing),
        {s: counts[s] for s in (*(s.value for s in Status), "unread")},
        parts,
        tuple(config_differences(*stated)),
        tuple(metadata_differences(a, b)),
        tuple(side_files(a, b, read=here or not headers_only)),
        tuple(_notes(a, b, [s.note for s in stated])),
    )  # fmt: skip


def _side(checkpoint: Checkpoint) -> DiffSide:
    return DiffSide(
        str(checkpoint.path),
        _arch(checkpoint),
        checkpoint.dialect.name if checkpoint.dialect else None,
        checkpoint.container,
        len(checkpoint.weights),
        checkpoint.nbytes,
    )


def _arch(checkpoint: Checkpoint) -> str | None:
    if checkpoint.arch:
        return checkpoint.arch.name
    entry = checkpoint.metadata.get("general.architecture")
    declared = entry.value if isinstance(entry, Scalar) else (checkpoint.config or {}).get("model_type")
    return declared if isinstance(declared, str) else None


def _identical(counts: Counter[str], parts: Sequence[PartComparison], differing: int) -> bool | None:
    if differing or not parts:
        return False
    return None if counts["unread"] else True


def _verdict(counts: Counter[str], parts: Sequence[PartComparison], differing: int) -> str:
    total = len(parts)
    if not total:
        return "nothing to compare: neither has a tensor"
    if differing:
        return f"{differing:,} of {total:,} parts differ"
    if counts["unread"]:
        other = sum(p.format_a != p.format_b for p in parts)
        formats = f", but for the formats of {other:,}" if other else ""
        return f"headers agree on all {total:,} parts{formats}; no values compared"
    return f"identical {'values' if counts[Status.values] else 'bytes'}, all parts ({total:,})"


def _notes(a: Checkpoint, b: Checkpoint, more: Sequence[str | None]) -> list[str]:
    out = []
    if not by_part(a, b):
        out.append("not two checkpoints of one architecture whose parts are known: matched by the weights' names")
    for letter, c in (("A", a), ("B", b)):
        out += [f"{letter}: {problem}" for problem in c.damage]
    return [*out, *(note for note in more if note)]
