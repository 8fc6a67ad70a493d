"""A card's front matter: YAML between two lines of ---, read as the Hub reads it and changed where it must be.

Keys that stay are kept to the letter, with their comments and their order: only what changes is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ckpttool.archs import card_yaml
from ckpttool.errors import InputError

if TYPE_CHECKING:
    from yaml import Node  # type: ignore[import-untyped]

CARD: Final = "README.md"
_BLOCK: Final = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$))")
"""What the Hub takes for front matter: huggingface_hub 2.4.0, repocard.py:31, which is the server's own."""


@dataclass(frozen=True)
class Page:
    """A card: the values of its front matter, the YAML they stand in, and the Markdown below."""

    body: str
    yaml: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def parse(card: str, file: str = CARD) -> Page:
    """The parts of a card; one without front matter is all body.

    Raises:
        InputError: front matter that is no YAML, or no mapping.
    """
    import yaml

    card = card.removeprefix("\ufeff")
    match = _BLOCK.match(card)
    if match is None:
        return Page(card)
    text = match[2]
    hint = "mend the lines between the first two --- of the card"
    try:
        data = card_yaml.load(text)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark
        line = "" if at is None else f" (line {at.line + 1 + match[1].count(chr(10))})"
        raise InputError(f"its front matter is no YAML: {error.problem}{line}", file=file, hint=hint) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"its front matter is no YAML: {str(error) or type(error).__name__}"
        raise InputError(what, file=file, hint=hint) from error
    if data is not None and not isinstance(data, dict):
        what = f"its front matter is a {type(data).__name__}, not keys with values"
        raise InputError(what, file=file, hint=hint)
    return Page(card[match.end() :], text, data or {})


def render(page: Page, changes: Mapping[str, Any]) -> str:
    """The card with `changes` in its front matter; None takes a key out. New keys come last, in their order."""
    text = _changed(page, changes)
    return f"---{_line_end(page)}{text}---{_line_end(page)}{page.body}"


def _changed(page: Page, changes: Mapping[str, Any]) -> str:
    wanted = {k: v for k, v in changes.items() if page.data.get(k) != v}
    spans = _spans(page.yaml)
    if spans is None:
        return _dumped({k: v for k, v in {**page.data, **wanted}.items() if v is not None}, page)
    text = page.yaml.rstrip()
    for key in sorted(spans.keys() & wanted.keys(), key=lambda k: -spans[k][0]):
        start, stop = spans[key]
        new = "" if wanted[key] is None else _dumped({key: wanted[key]}, page)
        text = text[:start] + new + text[stop:].lstrip(" \t").removeprefix("\r").removeprefix("\n")
    text = text and text.rstrip() + _line_end(page)
    added = {k: v for k, v in wanted.items() if k not in spans and v is not None}
    return text + (_dumped(added, page) if added else "")


def _spans(text: str) -> dict[str, tuple[int, int]] | None:
    """Where each key with its value stands; None where they do not stand one below the other."""
    import yaml

    root = yaml.compose(text, yaml.SafeLoader)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode) or root.flow_style or "\t" in text:
        return None
    return {key.value: (key.start_mark.index, _end(value)) for key, value in root.value}


def _end(node: Node) -> int:
    """Where a value ends; a list or mapping in lines ends with its last item, and not with the comments behind."""
    import yaml

    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _dumped(data: Mapping[str, Any], page: Page) -> str:
    from huggingface_hub.utils import yaml_dump

    text: str = yaml_dump(dict(data), sort_keys=False, line_break=_line_end(page))
    return text


def _line_end(page: Page) -> str:
    return "\r\n" if "\r\n" in page.yaml + page.body else "\n"
