"""Level `structure`: whether two checkpoints are of one model, by headers and side files alone.

Every part in one shape on both sides; every field of config.json that changes the forward pass; tokenizer, special
tokens, chat template and generation_config, with its list of end tokens. A GGUF's key-values and OpenAI's own config
are read as config.json's. What a container has no place for is not missed: a GGUF has no generation_config, OpenAI's
original/ folder nothing but tensors and sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ckpttool.checkpoint import Checkpoint
from ckpttool.comparison import config as configs
from ckpttool.comparison.pairs import by_part
from ckpttool.comparison.parts import PartComparison, Status, compare_parts
from ckpttool.comparison.tokens import SideFile, side_files
from ckpttool.errors import CkptError
from ckpttool.validator.failures import Failure, part_failure

SIDES: Final = ("the reference", "the candidate")
LEVEL: Final = "structure"
END_TOKENS: Final = "eos_token_id"


@dataclass(frozen=True)
class Structure:
    """What is wrong, and what could not be looked at. `parts` counts what both have in one shape."""

    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    parts: int


def check_structure(reference: Checkpoint, candidate: Checkpoint) -> Structure:
    """Hold two opened checkpoints against each other; no tensor data is read.

    Raises:
        NetworkError, LocalIOError: a side file that is there cannot be fetched.
    """
    rows = compare_parts(reference, candidate, headers_only=True)
    failures = [*_parts(rows)]
    named = {f.part for f in failures if f.part}
    for side, checkpoint in zip(SIDES, (reference, candidate), strict=True):
        problems = (_problem(p, side, checkpoint) for p in checkpoint.problems)
        failures += [p for p in problems if p.part is None or p.part not in named]
    more, notes = _config(reference, candidate)
    failures += more
    if not by_part(reference, candidate):
        failures += _architectures(reference, candidate)
        notes.append("not of an architecture whose parts are known: matched by the weights' names")
    rows_beside = tuple(side_files(reference, candidate, sides=SIDES))
    failures += [found for row in rows_beside if (found := _side_file(row, candidate))]
    notes += _not_compared(rows_beside, reference, candidate)
    return Structure(tuple(failures), tuple(notes), sum(r.status is None for r in rows))


def _parts(rows: tuple[PartComparison, ...]) -> Iterator[Failure]:
    for row in rows:
        if row.status is Status.only_a:
            yield part_failure(row.part, "is missing in the candidate", LEVEL)
        elif row.status is Status.only_b:
            yield part_failure(row.part, "is in the candidate, and not in the reference", LEVEL)
        elif row.status is Status.shape:
            yield part_failure(
                row.part, f"is {_axes(row.shape_b)} in the candidate, {_axes(row.shape_a)} in the reference", LEVEL
            )


def _axes(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "a single value"


def _problem(error: CkptError, side: str, checkpoint: Checkpoint) -> Failure:
    """What headers, index or config contradict, at the part whose tensor it names."""
    dialect = checkpoint.dialect
    claim = dialect.claim(error.field) if dialect and error.field else None
    what = f"{side} is damaged: {error}"
    return part_failure(claim.join.parts[0], what, LEVEL) if claim else Failure(None, None, what, LEVEL)


def _architectures(reference: Checkpoint, candidate: Checkpoint) -> Iterator[Failure]:
    names = [c.arch.name if c.arch else None for c in (reference, candidate)]
    if names[0] != names[1]:
        shown = [name or "of no known architecture" for name in names]
        yield Failure(None, None, f"the candidate is {shown[1]}, the reference {shown[0]}", LEVEL)


def _config(reference: Checkpoint, candidate: Checkpoint) -> tuple[list[Failure], list[str]]:
    """Fields that differ and matter, and notes on a side that says nothing."""
    stated = configs.said(reference), configs.said(candidate)
    failures = [
        Failure(None, None, f"config: {d.key} is {_value(d.b)} in the candidate, {_value(d.a)} in the reference", LEVEL)
        for d in configs.config_differences(*stated)
        if d.forward or (d.key == END_TOKENS and d.a is not None and d.b is not None)
    ]
    notes = []
    for side, checkpoint, told in zip(SIDES, (reference, candidate), stated, strict=True):
        if told.note is not None:
            failures.append(Failure(None, None, told.note, LEVEL))
        elif not told.fields and checkpoint is candidate and checkpoint.container != "gguf" and stated[0].fields:
            failures.append(Failure(None, None, "config.json is missing in the candidate", LEVEL))
        elif not told.fields:
            notes.append(f"{side} has no config ({checkpoint.path}): sizes, rope and the like were not compared")
    return failures, notes


def _value(value: Any) -> str:
    return "not stated" if value is None else repr(value)


def _side_file(row: SideFile, candidate: Checkpoint) -> Failure | None:
    many = row.name.endswith("s")
    if row.status == "differs":
        return Failure(None, None, f"{_label(row)} {'differ' if many else 'differs'}: {row.what}", LEVEL)
    if row.status == "unread":
        return Failure(None, None, f"{_label(row)} cannot be read: {row.what}", LEVEL)
    if row.status == "only_a" and _has_place(candidate, row.name):
        return Failure(None, None, f"{_label(row)} {'are' if many else 'is'} missing in the candidate", LEVEL)
    return None


def _not_compared(rows: tuple[SideFile, ...], reference: Checkpoint, candidate: Checkpoint) -> Iterator[str]:
    """What one side does not have, without that being its fault; but for what no GGUF has."""
    for status, side, checkpoint in (("only_a", SIDES[1], candidate), ("only_b", SIDES[0], reference)):
        lacking = [_label(r) for r in rows if r.status == status]
        if (
            lacking
            and checkpoint.container != "gguf"
            and (status == "only_b" or not _has_place(candidate, "tokenizer"))
        ):
            yield f"{side} has no {', '.join(lacking)}: not compared"
    if any(r.status == "absent" and r.name == "tokenizer" for r in rows):
        yield "neither has a tokenizer: not compared"


def _label(row: SideFile) -> str:
    return row.name if row.name == "generation_config" else row.name.replace("_", " ")


def _has_place(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a checkpoint of this kind would have such a file."""
    if checkpoint.container == "gguf":
        return name != "generation_config"
    return checkpoint.dialect is None or checkpoint.dialect.name != "openai"
