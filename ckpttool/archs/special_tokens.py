"""The special tokens and the chat template of a GGUF, as llama.cpp's `SpecialVocab` finds them.

It looks into tokenizer.json, tokenizer_config.json, the chat template files and config.json, in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpttool.containers.gguf_values import Array, Scalar, string, string_array
from ckpttool.containers.strict_json import Source, read_object, read_text
from ckpttool.errors import InputError

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # llama.cpp's spelling
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
ADD_KEYS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
TEMPLATE_KEY = "tokenizer.chat_template"
_OWN = "use the model's own tokenizer.json, with --reference DIR if it lies elsewhere"


@dataclass
class Special:
    """The special ids and flags by role, in the order in which they are written, and the chat template if any."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    template: str | list[Any] | None = None


@dataclass
class _Roles:
    """Which token stands in which role while the post-processor is read; `known`: tokenizer_config.json names some."""

    named: dict[str, Any]
    known: bool
    order: list[str] = field(default_factory=lambda: list(ROLES))
    add: dict[str, bool] = field(default_factory=dict)

    def get(self, role: str) -> Any:
        return self.named.get(f"{role}_token")

    def put(self, role: str, token: Any) -> None:
        self.named[f"{role}_token"] = token


def special_tokens(
    rest: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    files: Mapping[str, Source],
) -> Special:
    """Special ids: those of tokenizer_config.json first, then config.json's; flags, and the chat template.

    `rest` is tokenizer.json without its vocabulary. Neither flags of tokenizer_config.json nor templates are read where
    that file is missing or empty. Raises InputError for ids that are none.
    """
    roles = _Roles(dict(settings or {}), bool(settings))
    for role, other in (("bos", "cls"), ("eos", "sep")):
        if roles.known and not roles.get(role) and roles.get(other):
            roles.put(role, roles.get(other))
    try:
        _read_post_processor(rest.get("post_processor"), roles)
    except (AttributeError, TypeError, KeyError, IndexError):  # not of the shape that tokenizers writes
        raise InputError("is none that tokenizers writes", file=FILE, field="post_processor", hint=_OWN) from None
    out = Special(add=roles.add)
    if settings:
        out.template = _template(settings, files)
        for role in roles.order:
            if isinstance(flag := settings.get(f"add_{role}_token"), bool):
                out.add[role] = flag
            text = content(roles.get(role))
            found = next((t["id"] for t in rest.get("added_tokens") or () if t["content"] == text), None)
            if found is not None:
                out.ids.setdefault(role, found)
    for role in roles.order:
        value = config.get(f"{role}_token_id")
        if type(value) is int:
            _check_id(value, role, int(config["vocab_size"]))
            out.ids.setdefault(role, value)
    return out


def content(entry: Any) -> str | None:
    """The text of a token that a config names as a string or as an object."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _check_id(value: int, role: str, vocab_size: int) -> None:
    if not 0 <= value < vocab_size:
        key = f"{role}_token_id"
        raise InputError(
            f"is {value}, which is no token id", file="config.json", field=key, hint="correct or remove it"
        )


def _template(settings: Mapping[str, Any], files: Mapping[str, Source]) -> str | list[Any] | None:
    template = settings["chat_template"] if "chat_template" in settings else chat_template(files)
    return template if isinstance(template, str | list) else None


def _read_post_processor(post: Any, roles: _Roles) -> None:
    """Learn from the post-processor whether BOS, EOS and SEP are added, as crudely as `SpecialVocab` does."""
    for processor in post.get("processors", [post]) if post else ():
        if processor.get("type") == "RobertaProcessing":
            roles.add |= {"bos": True, "eos": True, "sep": True}
            for role, other in (("cls", "bos"), ("sep", "eos")):
                if roles.known and not roles.get(role):
                    roles.put(role, processor.get(role, [roles.get(other)])[0])
        elif processor.get("type") == "TemplateProcessing":
            single = processor.get("single", [])
            first = _token(single[0]) if len(single) > 1 else None
            last = _token(single[-1]) if len(single) > 1 else None
            if first:
                _leading(first, roles)
            if last:
                _trailing(last, roles)
            _separating(processor.get("pair", []), first, last, roles)


def _token(piece: Any) -> Any:
    return piece.get("SpecialToken", {}).get("id")


def _leading(first: Any, roles: _Roles) -> None:
    known = (roles.get("bos"), roles.get("cls"))
    if not roles.known:
        roles.put("bos", first)
    elif first not in known:
        for role in ("bos", "cls"):
            if not roles.get(role):
                roles.put(role, first)
    roles.add["bos"] = first in (roles.get("bos"), roles.get("cls"))


def _trailing(last: Any, roles: _Roles) -> None:
    """The last token is the EOS; the one that was named so becomes EOT, or EOM."""
    if roles.known and last != roles.get("eos"):
        spare = next((role for role in ("eot", "eom") if role not in roles.order), None)
        if spare is not None:
            roles.order.append(spare)
            roles.put(spare, roles.get("eos"))
    roles.put("eos", last)
    roles.add["eos"] = True


def _separating(pair: list[Any], first: Any, last: Any, roles: _Roles) -> None:
    """Whether a SEP or EOS stands between the two sequences of a pair: A [sep] [eos] B."""
    if not pair:
        return
    start = 1 if first and _token(pair[0]) == first else 0
    stop = len(pair) - 1 if last and _token(pair[-1]) == last else len(pair)
    pair = pair[start:stop]
    if len(pair) < 3 or [pair[n].get("Sequence", {}).get("id") for n in (0, -1)] != ["A", "B"]:
        return
    between = [_token(piece) for piece in pair[1:-1]]
    ends = (roles.get("sep"), roles.get("eos"))
    add = bool(between[0] and between[0] in ends and not last)
    add = add or bool(len(between) == 2 and between[1] and between[1] in ends)
    roles.add["sep"] = add
    if add and roles.known and not roles.get("sep"):
        roles.put("sep", roles.get("eos"))


def chat_template(files: Mapping[str, Source]) -> str | list[dict[str, str]] | None:
    """The chat template files, by llama.cpp's precedence: .jinja (with additional ones), then .json.

    Line ends become newlines, as in Python's text mode.
    """
    if "chat_template.jinja" in files:
        main = _lines(read_text(files["chat_template.jinja"], "chat_template.jinja"))
        folder = "additional_chat_templates/"
        more = sorted(f for f in files if f.startswith(folder) and f.endswith(".jinja"))
        if not more:
            return main
        named = [{"name": f[len(folder) : -len(".jinja")], "template": _lines(read_text(files[f], f))} for f in more]
        return [{"name": "default", "template": main}, *named]
    if "chat_template.json" in files:
        template = read_object(files["chat_template.json"], "chat_template.json").get("chat_template")
        return template if isinstance(template, str | list) else None
    return None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def template_keys(template: str | list[Any] | None) -> dict[str, Scalar | Array]:
    """A template, or several by name (sorted: llama.cpp's own order changes from run to run)."""
    if not isinstance(template, list):
        return {TEMPLATE_KEY: string(template)} if template else {}
    named = {
        "".join(c if c.isascii() and c.isalnum() else "_" for c in entry["name"]): entry["template"]
        for entry in template
        if isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("name", "template"))
    }
    default = named.pop("default", None)
    out: dict[str, Scalar | Array] = {f"{TEMPLATE_KEY}.{k}": string(v) for k, v in sorted(named.items()) if k and v}
    if named:
        out["tokenizer.chat_templates"] = string_array(sorted(filter(None, named)))
    return out | ({TEMPLATE_KEY: string(default)} if default else {})
