"""A checkpoint's chat template, rendered as transformers renders it: Jinja in its immutable sandbox.

Templates are programs of whoever made the checkpoint. The sandbox keeps them from Python's internals and from files;
`limits.SIDE_FILE` bounds what they write, and jinja2 what they count to. They can still be slow on purpose, so nothing
is rendered unless prompts were asked for.

The date that a template asks for is always the same, so that today's figures are tomorrow's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from ckpttool.archs import special_tokens, tokenizer_files
from ckpttool.checkpoint import Checkpoint
from ckpttool.containers import limits
from ckpttool.containers.gguf_values import Scalar
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import InputError, LimitError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template

DATE: Final = datetime(2025, 8, 5)
"""What `strftime_now` says: the day gpt-oss was published."""

FILE: Final = "chat_template.jinja"
Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template; `tokens` are what it may call bos_token and the like, `source` says whose it is."""

    template: Template
    tokens: Mapping[str, str]
    source: str

    def render(self, messages: Sequence[Message], *, generation: bool, **more: Any) -> str:
        """The text of a conversation; with `generation` it ends where the model has to go on. `more`: other variables.

        Raises:
            InputError: the template refuses the messages, or fails.
            LimitError: it writes without end.
        """
        pieces, size = [], 0
        values = {"messages": list(messages), "tools": None, "documents": None, **self.tokens, **more}
        try:
            for piece in self.template.generate(add_generation_prompt=generation, **values):
                pieces.append(piece)
                size += len(piece)
                if size > limits.SIDE_FILE:
                    what = f"writes more than {limits.SIDE_FILE:,} characters"
                    hint = limits.hint(limits.SIDE_FILE, "is it really this model's template?")
                    raise LimitError(what, file=self.source, hint=hint)
        except LimitError:
            raise
        except Exception as e:  # whatever a program of others may raise
            hint = "do the messages have the fields that this template reads?"
            raise InputError(f"{type(e).__name__}: {e}", file=self.source, hint=hint) from e
        return "".join(pieces)


def chat_template(*checkpoints: Checkpoint) -> ChatTemplate:
    """The template of the first checkpoint that has one.

    Raises:
        InputError: none has one, or what it has is no template.
        UsageError: jinja2 is not installed.
    """
    for checkpoint in checkpoints:
        text = template_text(checkpoint)
        if text is not None:
            source = f"{checkpoint.path}: {FILE}"
            return ChatTemplate(compiled(text, source), named_tokens(checkpoint), source)
    hint = "put it beside the checkpoint, or leave --prompts out"
    raise InputError("no chat template", file=str(checkpoints[0].path), hint=hint)


def template_text(checkpoint: Checkpoint) -> str | None:
    """A checkpoint's default template; None where it has none."""
    if checkpoint.container == "gguf":
        entry = checkpoint.metadata.get(special_tokens.TEMPLATE_KEY)
        return str(entry.value) if isinstance(entry, Scalar) else None
    # chat_template.jinja goes before what tokenizer_config.json holds, as transformers 5 reads them.
    found = special_tokens.chat_template(checkpoint.companions) or _settings(checkpoint).get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def named_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """bos_token, eos_token and the like as text."""
    if checkpoint.container == "gguf" and checkpoint.arch:
        tokens = tokenizer_files.read_tokens(checkpoint.arch.table, checkpoint.metadata)
        roles = tokenizer_files.role_texts(checkpoint.arch.table, checkpoint.metadata, tokens)
        return {f"{role}_token": text for role, text in roles.items()}
    named = ((key, special_tokens.content(value)) for key, value in _settings(checkpoint).items())
    return {key: text for key, text in named if key.endswith("_token") and text is not None}


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    files = checkpoint.companions
    return read_object(files[special_tokens.CONFIG], special_tokens.CONFIG) if special_tokens.CONFIG in files else {}


def compiled(text: str, source: str) -> Template:
    """A template ready to render. InputError where it is none; UsageError without jinja2."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node, Scope
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as e:
        raise UsageError("jinja2 is needed to render prompts", hint="pip install 'ckpttool[torch]'") from e

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, by which templates mark answers: its body, as it is."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": DATE.strftime}
    try:
        return environment.from_string(text)
    except Exception as e:  # a syntax error, or a nesting that Python's own compiler refuses
        raise InputError(f"is no template: {e}", file=source, hint="is it a Jinja template?") from e


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
