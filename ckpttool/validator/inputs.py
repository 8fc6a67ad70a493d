"""What both models are given: sequences of a text, and conversations, as the reference's tokenizer cuts them.

All of it is made before a tensor is read, so that a tokenizer that is missing or broken is said at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckpttool.checkpoint import Checkpoint
from ckpttool.errors import UsageError
from ckpttool.validator.chat_template import chat_template
from ckpttool.validator.prompts import EFFORTS, Encoded, encoded, read_prompts
from ckpttool.validator.text import Encoder, encoder, read_text, sequences

PACKAGED: Final = "packaged"

LENGTH: Final = 512
"""Tokens of a sequence: four times gpt-oss' sliding window, and what llama-perplexity takes unless told otherwise."""

TOKENS: Final = {"cpu": 2048, "cuda": 4096}
"""Tokens of the text unless asked otherwise: on a CPU so few that a small model takes seconds."""


@dataclass(frozen=True)
class Inputs:
    """Token ids of both kinds, cut by `encoder`. `text` says which text: "packaged", or its path. `notes` are for the
    report."""

    encoder: Encoder
    text: str
    sequences: tuple[list[int], ...]
    prompts: tuple[Encoded, ...]
    effort: str | None
    notes: tuple[str, ...]

    @property
    def batch(self) -> list[list[int]]:
        """The sequences of the text, then the prompts."""
        return [*self.sequences, *(list(p.ids) for p in self.prompts)]

    @property
    def rows(self) -> list[range]:
        """For each of them the positions whose successors are predicted: all of a text's, the answers' of prompts."""
        return [*(range(len(s) - 1) for s in self.sequences), *(p.positions for p in self.prompts)]


def inputs_for(
    reference: Checkpoint,
    candidate: Checkpoint,
    *,
    device: str,
    text: str | Path | None = None,
    tokens: int | None = None,
    prompts: str | Path | None = None,
    effort: str | None = None,
) -> Inputs:
    """The inputs of two checkpoints; `tokens` None: `TOKENS` of the kind of `device`.

    Raises:
        InputError: a text or prompts that cannot be read; no tokenizer, or none that works.
        UsageError: lengths that leave nothing to predict; a package that is missing.
    """
    if effort is not None and prompts is None:
        raise UsageError("--reasoning-effort says nothing without --prompts", hint="give --prompts FILE.jsonl")
    if effort not in (None, *EFFORTS):
        raise UsageError(f"--reasoning-effort {effort}: unknown", hint=f"use {', '.join(EFFORTS)}")
    cut = encoder(reference, candidate)
    wanted = TOKENS[device.partition(":")[0]] if tokens is None else tokens
    ids = cut.encode(read_text(None if text is None else Path(text)))
    found = sequences(ids, length=LENGTH, tokens=wanted)
    answers: list[Encoded] = []
    if prompts is not None:
        rows, template = read_prompts(Path(prompts)), chat_template(reference, candidate)
        answers = encoded(rows, template, cut, effort=effort)
    notes = _notes(reference, cut, len(ids), wanted if tokens is not None else 0)
    return Inputs(cut, PACKAGED if text is None else str(text), tuple(found), tuple(answers), effort, tuple(notes))


def _notes(reference: Checkpoint, cut: Encoder, there: int, asked: int) -> Iterator[str]:
    if not cut.source.startswith(f"{reference.path}:"):
        yield f"the reference has no tokenizer; the text was cut by {cut.source}"
    if there < asked:
        yield f"the text has {there:,} tokens; {asked:,} were asked for"
