"""Prompts in the form the model was trained on: `--prompts FILE.jsonl`, and which tokens of them are the answer's.

A line is {"messages": [...], "answer": "..."}, messages as chat APIs take them, also with "thinking" (for harmony's
analysis channel), "tools" and "tool_calls". Without "answer" the last message must be the assistant's, and is the
answer. The conversation is rendered with it and, up to where the model takes over, without it; what the one has beyond
the other is what the model had to write: in harmony the channels' headers, the text, and <|return|>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckpttool.containers import limits
from ckpttool.containers.strict_json import parse_object, read_bytes, utf8
from ckpttool.errors import InputError
from ckpttool.validator.chat_template import ChatTemplate, Message
from ckpttool.validator.text import Encoder

EFFORTS: Final = ("low", "medium", "high")
_REASONING: Final = ("thinking", "reasoning_content", "reasoning")
_FORM: Final = 'a line is {"messages": [{"role": "user", "content": "..."}], "answer": "..."}'


@dataclass(frozen=True)
class Prompt:
    """One conversation, whose last message is the answer; `line` is where it stands in its file, from 1."""

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids. Those from `answer` on are the answer's, predicted at the positions before them."""

    line: int
    ids: tuple[int, ...]
    answer: int

    @property
    def positions(self) -> range:
        """The positions whose successors are the answer's tokens."""
        return range(self.answer - 1, len(self.ids) - 1)


def read_prompts(path: Path) -> list[Prompt]:
    """The conversations of a JSONL file; empty lines are skipped.

    Raises:
        InputError: a line that is no conversation with an answer, or no line at all.
    """
    text = utf8(read_bytes(path, str(path), limits.SIDE_FILE), str(path))
    out = [_prompt(line, n, path) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not out:
        raise InputError("holds no prompts", file=str(path), hint=_FORM)
    return out


def _prompt(line: str, number: int, path: Path) -> Prompt:
    where = f"{path}, line {number}"
    row = parse_object(line, where)
    messages, tools, answer = row.get("messages"), row.get("tools") or [], row.get("answer")
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        what = "is no list of messages, each with a role and content"
        raise InputError(what, file=where, field="messages", hint=_FORM)
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise InputError("is no list of objects", file=where, field="tools", hint=_FORM)
    if answer is not None:
        if not isinstance(answer, str):
            raise InputError("is no text", file=where, field="answer", hint=_FORM)
        messages = [*messages, {"role": "assistant", "content": answer}]
    if messages[-1]["role"] != "assistant":
        hint = 'add "answer", or end with a message of the assistant'
        raise InputError("has no answer to measure", file=where, field="messages", hint=hint)
    return Prompt(number, tuple(_with_reasoning(m) for m in messages), tuple(tools))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return "content" in value or "tool_calls" in value


def _with_reasoning(message: Message) -> Message:
    """Reasoning under each of the names that templates read it by, as transformers passes it on."""
    text = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if text is None else {"thinking": text, **message, "reasoning_content": text}


def encode(prompt: Prompt, template: ChatTemplate, encoder: Encoder, *, effort: str | None = None) -> Encoded:
    """A conversation's ids and where its answer begins. `effort` is harmony's reasoning effort; None: the template's.

    Raises:
        InputError: the template refuses the messages, or does not render the answer after the prompt.
    """
    more: dict[str, Any] = {"tools": list(prompt.tools) or None}
    if effort is not None:
        more["reasoning_effort"] = effort
    where = f"{template.source}, on line {prompt.line} of the prompts"
    try:
        whole = template.render(prompt.messages, generation=False, **more)
        asked = template.render(prompt.messages[:-1], generation=True, **more)
    except InputError as e:
        e.file = where
        raise
    if not whole.startswith(asked) or whole == asked:
        what = "does not render the answer where the prompt ends"
        raise InputError(what, file=where, hint="the answer's tokens cannot be told apart with such a template")
    spans = encoder.spans(whole)
    # A token that begins in the prompt and ends in the answer is not the answer's alone.
    first = next((n for n, (_, start) in enumerate(spans) if start >= len(asked)), len(spans))
    if not 0 < first < len(spans):
        raise InputError("leaves no token to predict", file=where, hint="is the answer empty?")
    return Encoded(prompt.line, tuple(i for i, _ in spans), first)


def encoded(
    prompts: Sequence[Prompt], template: ChatTemplate, encoder: Encoder, *, effort: str | None = None
) -> list[Encoded]:
    """All conversations; errors as of `encode`."""
    return [encode(p, template, encoder, effort=effort) for p in prompts]
