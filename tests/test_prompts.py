"""Prompts as transformers renders and tokenizes them, and which of their tokens are the answer's."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import realtemplate
import realtokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from ckpttool.checkpoint import open_checkpoint
from ckpttool.containers import limits
from ckpttool.errors import InputError, LimitError
from ckpttool.validator.chat_template import DATE, ChatTemplate, chat_template, compiled
from ckpttool.validator.prompts import Encoded, Prompt, encode, encoded, read_prompts
from ckpttool.validator.text import Encoder, encoder

ROOT = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
USER = {"role": "user", "content": "Tell me of Ruth."}
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Of a place.",
    "parameters": {"type": "object", "required": ["place"], "properties": {
        "place": {"type": "string", "description": "Where"}, "days": {"type": "integer", "default": 1},
    }},
}}  # fmt: skip
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Båstad"}}}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [USER], "answer": "And Ruth said, <3 & more."},
    "ends with the assistant": {"messages": [USER, {"role": "assistant", "content": "Yes."}]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER], "answer": "No."},
    "thinking": {"messages": [USER, {"role": "assistant", "thinking": "Which Ruth? 路得", "content": "The\n\nlong."}]},
    "reasoning_content": {"messages": [USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "So."}]},
    "turns": {"messages": [USER, {"role": "assistant", "content": "Of whom?"}, USER], "answer": " Of Ruth, ünd so."},
    "tools": {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                           {"role": "tool", "content": "12 °C"}], "tools": [WEATHER], "answer": "Cold."},
    "a call is the answer": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": [WEATHER]},
}  # fmt: skip


def read(tmp_path: Path, *rows: Any) -> list[Prompt]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows), "utf-8")
    return read_prompts(path)


def whole(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row["messages"] + ([{"role": "assistant", "content": row["answer"]}] if "answer" in row else [])


@pytest.fixture(scope="module")
def published() -> tuple[PreTrainedTokenizerFast, ChatTemplate, Encoder]:
    """gpt-oss' own tokenizer and template, in transformers and in ours."""
    file = realtokenizer.folder() / "tokenizer.json"
    text = realtemplate.path().read_text("utf-8")
    oracle = PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<|startoftext|>", eos_token="<|return|>")
    oracle.chat_template = text
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>"}
    ours = ChatTemplate(compiled(text, "the published one"), tokens, "the published one")
    return oracle, ours, Encoder(Tokenizer.from_file(str(file)), 201_088, "the published one")


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return DATE

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.mark.parametrize("effort", ["low", "medium", "high", None])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_transformers_own(
    tmp_path: Path, published: tuple[PreTrainedTokenizerFast, ChatTemplate, Encoder], name: str, effort: str | None
) -> None:
    oracle, template, made = published
    row = CONVERSATIONS[name]
    (prompt,) = read(tmp_path, row)
    found = encode(prompt, template, made, effort=effort)
    more = {} if effort is None else {"reasoning_effort": effort}
    more |= {"tools": row.get("tools"), "tokenize": True, "return_dict": False}
    assert list(found.ids) == oracle.apply_chat_template(whole(row), **more)
    asked = oracle.apply_chat_template(whole(row)[:-1], add_generation_prompt=True, **more)
    assert list(found.ids[: found.answer]) == asked
    assert f"Reasoning: {effort or 'medium'}" in made.decode(found.ids)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("plain", "<|channel|>final<|message|>And Ruth said, <3 & more.<|return|>"),
     ("thinking", "<|channel|>analysis<|message|>Which Ruth? 路得<|end|><|start|>assistant<|channel|>final<|message|>"
                  "The\n\nlong.<|return|>"),
     ("a call is the answer", ' to=functions.weather<|channel|>commentary json<|message|>{"place": "Båstad"}<|call|>')],
)  # fmt: skip
def test_the_answers_tokens(
    tmp_path: Path, published: tuple[PreTrainedTokenizerFast, ChatTemplate, Encoder], name: str, answer: str
) -> None:
    _, template, made = published
    (found,) = encoded(read(tmp_path, CONVERSATIONS[name]), template, made)
    assert made.decode(found.ids[found.answer :]) == answer
    assert [found.ids[p + 1] for p in found.positions] == list(found.ids[found.answer :])


@pytest.mark.parametrize("source", ["hf", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-q8_0.gguf"])
def test_the_fixtures_template_in_each_container(tmp_path: Path, source: str) -> None:
    checkpoint = open_checkpoint(ROOT / source)
    (prompt,) = read(tmp_path, CONVERSATIONS["turns"])
    found = encode(prompt, chat_template(checkpoint), encoder(checkpoint))
    oracle = AutoTokenizer.from_pretrained(ROOT / "hf")
    wanted = oracle.apply_chat_template(whole(CONVERSATIONS["turns"]), tokenize=True, return_dict=False)
    assert list(found.ids) == wanted
    assert encoder(checkpoint).decode(found.ids[found.answer :]) == (
        "<|channel|>final<|message|> Of Ruth, ünd so.<|end|>"
    )


def test_a_checkpoint_without_template() -> None:
    openai = open_checkpoint(ROOT / "openai")
    assert chat_template(openai, open_checkpoint(ROOT / "hf")).source.startswith(str(ROOT / "hf"))
    with pytest.raises(InputError, match="no chat template"):
        chat_template(openai)


# --- the file ---


def test_lines_are_counted_and_empty_ones_skipped(tmp_path: Path) -> None:
    found = read(tmp_path, CONVERSATIONS["plain"], "", CONVERSATIONS["thinking"])
    assert [p.line for p in found] == [1, 3]
    assert found[1].messages[-1]["reasoning_content"] == found[1].messages[-1]["thinking"]


@pytest.mark.parametrize(
    ("line", "what"),
    [("{", "line 1.*not valid JSON"), ("[]", "line 1.*not a JSON object"), ("{}", "line 1: messages"),
     ('{"messages": []}', "messages"), ('{"messages": [{"role": "user"}], "answer": "a"}', "messages"),
     ('{"messages": [{"role": 1, "content": ""}], "answer": "a"}', "messages"),
     ('{"messages": [{"role": "user", "content": "x"}]}', "no answer to measure"),
     ('{"messages": [{"role": "user", "content": "x"}], "answer": 3}', "answer: is no text"),
     ('{"messages": [{"role": "user", "content": "x"}], "answer": "a", "tools": [1]}', "tools"),
     ("", "holds no prompts")],
)  # fmt: skip
def test_what_is_no_prompt(tmp_path: Path, line: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read(tmp_path, line)


# --- templates of others ---


def rendered(template: str, messages: list[dict[str, Any]] | None = None) -> Encoded:
    made = ChatTemplate(compiled(template, "here"), {}, "here")
    return encode(
        Prompt(1, tuple(messages or whole(CONVERSATIONS["plain"]))), made, encoder(open_checkpoint(ROOT / "hf"))
    )


def test_answers_that_templates_mark_are_rendered() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    made = encoder(open_checkpoint(ROOT / "hf"))
    found = rendered(template)
    assert made.decode(found.ids) == "Tell me of Ruth.\nA: And Ruth said, <3 & more."
    # The space before "And" belongs to the token that begins in the prompt, so this is seen and not predicted.
    assert made.decode(found.ids[found.answer :]) == " Ruth said, <3 & more."


@pytest.mark.parametrize(
    ("template", "what"),
    [("{{ raise_exception('no such role') }}", "no such role"), ("{{ messages[0].nothing.more }}", "UndefinedError"),
     ("{{ ''.__class__.__mro__ }}", "SecurityError|unsafe"), ("{{ messages.append(1) }}", "SecurityError|unsafe"),
     ("{{ 1 / 0 }}", "ZeroDivisionError"), ("{% for x in range(10000000) %}{% endfor %}", "OverflowError"),
     ("{{ strftime_now.__self__.year }}", "SecurityError|unsafe"),
     ("{{ messages | tojson(indent=messages) }}", "TypeError"),
     ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "does not render the answer"),
     ("always the same", "does not render the answer")],
)  # fmt: skip
def test_templates_that_fail_are_errors(template: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        rendered(template)


@pytest.mark.parametrize(
    "template", ["{% if", "{{ x | nothing }}", "{% include 'x' %}{% endfor %}", "{% generation %}"]
)
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(InputError, match="is no template"):
        compiled(template, "here")


def test_no_file_is_included(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="here, on line 1 of the prompts: TypeError: no loader"):
        rendered("{% include '/etc/passwd' %}")


def test_a_template_that_writes_without_end_is_stopped() -> None:
    assert limits.SIDE_FILE < 99_000 * 1000
    with pytest.raises(LimitError, match="writes more than"):
        rendered("{% for x in range(99000) %}" + "x" * 1000 + "{% endfor %}")


def test_an_answer_of_no_tokens() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="does not render the answer"):
        rendered(template, [USER, {"role": "assistant", "content": ""}])
