"""The model card of a published conversion: front matter as the Hub reads it, and a section that tells what was done.

What a user wrote is kept to the letter. The next run replaces our section, and of the front matter whatever the user
has not changed since: what we set stands in the section's mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckpttool.containers import limits
from ckpttool.containers.remote import RemoteFolder
from ckpttool.containers.strict_json import read_text
from ckpttool.errors import InputError
from ckpttool.places import place
from ckpttool.publishing.card_facts import Facts, facts
from ckpttool.publishing.card_fields import fields_of, merged, model_index
from ckpttool.publishing.card_marks import Block, find_blocks, new_block, with_block
from ckpttool.publishing.card_sections import sections
from ckpttool.publishing.front_matter import CARD, Page, parse, render
from ckpttool.publishing.quality import Quality, quality, read_report
from ckpttool.receipt_file import EDITED

__all__ = ["card", "read_report", "remarks", "source_card"]


def card(
    receipt: Mapping[str, Any],
    *,
    repo: str,
    source_card: str | None = None,
    own: str | None = None,
    quantized_by: str | None = None,
    validation: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> str:
    """The text of README.md for the conversion of which `receipt` is the conversion.v1, in `repo` ("org/name").

    `own` is the card that is there already, the user's or an earlier one of ours; what of it is not ours stays, and
    its front matter is completed: what it says wins, but for `quantized_by`. `source_card` is the source's README.md,
    from which licence, language and the like are copied. `validation` is a validation.v1. `source` (hf://org/repo@rev)
    says where the source is found, if not where the receipt says.

    Figures of an earlier report stay as long as the files do. Pure, and the same again when the result is given as
    `own`.

    Raises:
        InputError: `own` has front matter that is no YAML or no model-index of the Hub's, or marks that do not match;
            `validation` is no such report, is of another conversion, or says failed; `receipt` is damaged.
    """
    told = _told(receipt, source)
    page = parse(own or "")
    blocks = find_blocks(page.body)
    before = next((b for b in blocks if b.file == told.artefact), Block(0, 0, told.artefact, "", {}))
    measured = before.quality if before.content == told.content else None
    if validation is not None:
        measured = quality(validation, told, repo)
    fields = fields_of(told, _source_page(source_card))
    if quantized_by is not None:
        fields["quantized_by"] = quantized_by
    changes, ours = merged(page.data, fields, before.fields, [b.fields for b in blocks if b.file != told.artefact])
    if quantized_by is not None:
        changes["quantized_by"] = quantized_by
    changes["model-index"] = model_index(page.data.get("model-index"), repo, told, measured)
    block = new_block(told, _section(told, repo, measured), ours, measured)
    text = render(Page(with_block(page.body, block, told, repo, blocks), page.yaml, page.data), changes)
    _check(text)
    return text


def remarks(
    receipt: Mapping[str, Any], *, source_card: str | None = None, own: str | None = None, source: str | None = None
) -> tuple[str, ...]:
    """What the card lacks, and how to add it: for whoever publishes."""
    fields = {**fields_of(_told(receipt, source), _source_page(source_card)), **parse(own or "").data}
    out = []
    if source_card is not None and _source_page(source_card) is None:
        out.append("the source's README.md has front matter that cannot be read; nothing was copied from it")
    for key, why, how in (
        ("base_model", "names no base model, since the source is no repo of the Hub", "base_model: org/repo"),
        ("license", "names no licence, since the source's card has none", "license: apache-2.0"),
    ):
        if not fields.get(key):
            out.append(f"the card {why}; put `{how}` into the front matter of README.md")
    return tuple(out)


def source_card(source: str | Path) -> str | None:
    """The text of README.md beside the checkpoint `source`, here or on the Hub; None where there is none.

    OpenAI's original/ folder has it one higher.

    Raises:
        InputError: it is not UTF-8, or there is no such source.
        LimitError: it is larger than a card may be.
        NetworkError: the remote end refuses.
    """
    folder, _ = place(re.sub(r"(?<=[^/\\])[/\\]original[/\\]?$", "", str(source)))
    if isinstance(folder, RemoteFolder) and CARD not in folder.names():
        return None
    return read_text(folder.side(CARD), CARD, limits.SIDE_FILE) if folder.has(CARD) else None


def _told(receipt: Mapping[str, Any], source: str | None) -> Facts:
    with _damage():
        return facts(receipt, source)


def _section(told: Facts, repo: str, measured: Quality | None) -> str:
    with _damage():
        return sections(told, repo, measured)


@contextmanager
def _damage() -> Iterator[None]:
    """InputError where a receipt lacks what every receipt has."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the receipt is not as convert writes it: {type(error).__name__}: {error}"
        raise InputError(what, hint=EDITED) from error


def _source_page(text: str | None) -> Page | None:
    """The source's card; None where there is none, and where nobody can read its front matter."""
    try:
        return None if text is None else parse(text)
    except InputError:
        return None


def _check(text: str) -> None:
    """That huggingface_hub reads the card.

    Raises:
        InputError: it does not; by then that is the doing of what the user's own front matter holds.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"huggingface_hub cannot read the card: {error}", file=CARD, hint="mend its front matter"
        ) from error
