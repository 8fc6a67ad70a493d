"""Our sections in a card: between two marks, of which the first remembers what we set, and the figures.

<!-- ckpttool:begin {"file": "", "content": "4f2a...", "set": {"base_model": "openai/gpt-oss-20b", ...}} -->
...
<!-- ckpttool:end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ckpttool.errors import InputError
from ckpttool.publishing.card_facts import Facts
from ckpttool.publishing.front_matter import CARD
from ckpttool.publishing.quality import Quality

_BEGIN: Final = "<!-- ckpttool:begin {} -->"
_END: Final = "<!-- ckpttool:end -->"
_OURS: Final = re.compile(r"<!-- ckpttool:(?:begin (?P<record>\{[^\r\n]*\})|(?P<end>end)) -->")
_NOTE: Final = "<!-- ckpttool writes what stands between these marks anew; your own text goes above or below. -->"


@dataclass(frozen=True)
class Block:
    """A section of ours in a card: where it stands, and what its mark remembers.

    `file` is the GGUF that it is of ("": the folder), `content` the hash of all files, `fields` what was set in the
    front matter with it.
    """

    start: int
    stop: int
    file: str
    content: str
    fields: Mapping[str, Any]
    quality: Quality | None = None


def find_blocks(body: str) -> list[Block]:
    """Our sections in a card.

    Raises:
        InputError: a mark without its other, or one that cannot be read.
    """
    hint = "give each `ckpttool:begin` its `ckpttool:end`, or take both out with what is between"
    out: list[Block] = []
    begin: re.Match[str] | None = None
    for mark in _OURS.finditer(body):
        if (begin is None) == bool(mark["end"]):
            raise InputError("one of ckpttool's marks lacks the other", file=CARD, hint=hint)
        if begin is None:
            begin = mark
            continue
        try:
            record = json.loads(begin["record"])
            figures = Quality(**record["quality"]) if "quality" in record else None
            if figures is not None:  # written by anybody who may write to the repo
                list(figures.rows()), figures.results("")
            known = (str(record["file"]), str(record["content"]), dict(record["set"]), figures)
            out.append(Block(begin.start(), mark.end(), *known))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError("one of ckpttool's marks cannot be read", file=CARD, hint=hint) from error
        begin = None
    if begin is not None:
        raise InputError("one of ckpttool's marks lacks the other", file=CARD, hint=hint)
    return out


def new_block(told: Facts, text: str, ours: Mapping[str, Any], measured: Quality | None) -> str:
    """The section `text` between its marks; `ours` is what was set in the front matter, `measured` what it quotes."""
    known: dict[str, Any] = {"file": told.artefact, "content": told.content, "set": ours}
    if measured is not None:
        known["quality"] = asdict(measured)
    record = json.dumps(known).replace("<", "\\u003c").replace(">", "\\u003e")
    return "\n".join((_BEGIN.format(record), _NOTE, "", text.replace("<!--", "<! --"), "", _END))


def with_block(body: str, block: str, told: Facts, repo: str, blocks: Sequence[Block]) -> str:
    """The body with our section in the place of the one before, or below all that is there."""
    end = "\r\n" if "\r\n" in body else "\n"
    block = block.replace("\n", end)
    found = next((b for b in blocks if b.file == told.artefact), None)
    if found is not None:
        return body[: found.start] + block + body[found.stop :]
    if not body.strip():
        return f"\n# {repo.rpartition('/')[2]}\n\n{block}\n"
    return f"{body.rstrip()}{end}{end}{block}{end}"
