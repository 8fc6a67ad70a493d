"""The text on which two checkpoints are compared, and the tokenizer that cuts it: the checkpoint's own.

The text that ships with the package (`data/text.txt`, 32 kB, 8,727 tokens of gpt-oss) was written for it, so that no
model has learnt it by heart: prose, tables, arithmetic, thirteen languages, and programs in nine, with two modules of
this package among them. It is under the package's licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpttool.archs import special_tokens, tokenizer_files
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers import limits
from ckpttool.containers.strict_json import read_bytes, utf8
from ckpttool.errors import DAMAGED, InputError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGED: Final = "text.txt"
SHORTEST: Final = 2
"""Tokens of a sequence: one that is seen, one that is predicted."""


def packaged_text() -> str:
    """The text that ships with the package."""
    return (files("ckpttool.validator") / "data" / PACKAGED).read_text("utf-8")


def read_text(path: Path | None) -> str:
    """The user's text, or the package's. InputError where it is not UTF-8, or empty."""
    if path is None:
        return packaged_text()
    text = utf8(read_bytes(path, str(path), limits.SIDE_FILE), str(path))
    if not text.strip():
        raise InputError("holds no text", file=str(path), hint="give a text of a few thousand words with --text")
    return text


@dataclass(frozen=True)
class Encoder:
    """A checkpoint's own tokenizer. `vocabulary` is how many rows its embedding has; `source` says whose it is."""

    tokenizer: Tokenizer
    vocabulary: int
    source: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special tokens added; what looks like one in it is one, as everywhere.

        Raises:
            InputError: the tokenizer fails, or gives an id that the embedding has no row for.
        """
        return [i for i, _ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Each token's id, and the character of the text at which it begins. InputError as `encode`."""
        try:
            found = self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as e:  # the library raises Exception itself
            raise InputError(f"cannot encode: {e}", file=self.source, hint=DAMAGED) from e
        worst = max(found.ids, default=0)
        if worst >= self.vocabulary:
            what = f"gives the id {worst}, but the embedding has {self.vocabulary:,} rows"
            raise InputError(what, file=self.source, hint="is it this model's tokenizer?")
        return [(i, start) for i, (start, _) in zip(found.ids, found.offsets, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def encoder(*checkpoints: Checkpoint) -> Encoder:
    """The tokenizer of the first checkpoint that has one: OpenAI's original/ has none, its counterpart may.

    Raises:
        InputError: none has one, or what it has is no tokenizer.
        UsageError: the tokenizers library is not installed.
    """
    for checkpoint in checkpoints:
        data = tokenizer_json(checkpoint)
        if data is not None:
            return _encoder(checkpoint, data)
    hint = "put it beside the checkpoint; --level values needs none"
    raise InputError("tokenizer.json is missing", file=str(checkpoints[0].path), hint=hint)


def tokenizer_json(checkpoint: Checkpoint) -> bytes | None:
    """A checkpoint's tokenizer.json, of a GGUF rebuilt from its key-values; None where it has none.

    Raises:
        InputError: a GGUF's tokenizer that is not of its architecture's kind.
    """
    if checkpoint.container == "gguf" and "tokenizer.ggml.tokens" in checkpoint.metadata and checkpoint.arch:
        table = checkpoint.arch.table
        tokens = tokenizer_files.read_tokens(table, checkpoint.metadata)
        return b"".join(tokenizer_files.TokenizerStream(table, tokens))
    source = checkpoint.companions.get(special_tokens.FILE)
    return None if source is None else read_bytes(source, special_tokens.FILE, limits.TOKENIZER_FILE)


def _encoder(checkpoint: Checkpoint, data: bytes) -> Encoder:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        hint = "pip install 'ckpttool[torch]'; --level values needs none"
        raise UsageError("the tokenizers library is needed to cut text into tokens", hint=hint) from e
    source = f"{checkpoint.path}: {special_tokens.FILE}"
    try:
        made = Tokenizer.from_str(utf8(data, special_tokens.FILE))
    except InputError:
        raise
    except Exception as e:  # the library raises Exception itself
        raise InputError(f"is no tokenizer: {e}", file=source, hint=DAMAGED) from e
    return Encoder(made, vocabulary_size(checkpoint, made.get_vocab_size()), source)


def vocabulary_size(checkpoint: Checkpoint, otherwise: int) -> int:
    """Rows of the embedding, where the checkpoint's parts are known."""
    shape = checkpoint.shapes.get("embed")
    return shape.shape[0] if shape is not None else otherwise


def sequences(ids: Sequence[int], *, length: int, tokens: int | None = None) -> list[list[int]]:
    """`ids` cut into sequences of `length`, as many as `tokens` in all allow, spread evenly over the text.

    Sequences do not overlap; what fills none at the end is left out, unless the text has not even one. Within each, the
    first token is only seen, so `length - 1` are predicted.

    Raises:
        UsageError: lengths that leave nothing to predict.
    """
    shortest = length if tokens is None else min(length, tokens)
    if shortest < SHORTEST:
        what = f"{shortest} {'token leaves' if shortest == 1 else 'tokens leave'} nothing to predict"
        raise UsageError(what, hint=f"ask for {SHORTEST} or more; some thousands make a verdict worth having")
    if len(ids) < SHORTEST:
        raise UsageError(f"a text of {len(ids)} tokens leaves nothing to predict", hint="give a longer text")
    length = min(shortest, len(ids))
    there = len(ids) // length
    count = there if tokens is None else min(there, tokens // length)
    starts = [n * there // count * length for n in range(count)]
    return [list(ids[at : at + length]) for at in starts]
