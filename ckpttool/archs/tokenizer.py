"""The tokenizer's files as the tokenizer key-values of a GGUF.

What llama.cpp's converter learns from transformers' tokenizer and from its own `SpecialVocab` is read here from
tokenizer.json and tokenizer_config.json themselves: tokens by id, their types, the merges, special ids, the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpttool.archs.json_files import Source, read_object, read_text
from ckpttool.archs.tokenizer_json import TokenizerJson, read_tokenizer
from ckpttool.containers.gguf_values import Array, Scalar, bool_, i32_array, string, string_array, u32
from ckpttool.errors import CkptError, InputError, raise_all

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of a GGUF (`gguf.TokenType`) that a byte-level BPE tokenizer has."""

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # llama.cpp's spelling
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
ADD_KEYS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
TEMPLATE_KEY = "tokenizer.chat_template"
FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_OWN = "use the model's own tokenizer.json, with --reference DIR if it lies elsewhere"
_SAVE_AGAIN = "load and save it with transformers' AutoTokenizer, so that tokenizer.json holds all tokens"
_SPECIAL_WORDS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


def byte_alphabet() -> dict[str, int]:
    """GPT-2's 256 characters, and the byte that each stands for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(other)}


@dataclass(frozen=True, slots=True)
class Special:
    """The special ids and flags by role, in the order in which they are written, and the chat template if any."""

    ids: dict[str, int]
    add: dict[str, bool]
    template: str | list[Any] | None


def to_gguf(
    arch: Mapping[str, Any], config: Mapping[str, Any], files: Mapping[str, Source]
) -> tuple[dict[str, Scalar | Array], list[str]]:
    """The `tokenizer.*` key-values, in llama.cpp's order, and warnings.

    `files` must hold tokenizer.json; tokenizer_config.json, special_tokens_map.json and the chat templates are used if
    they are there. Raises InputError where the tokenizer is not the arch's.
    """
    if FILE not in files:
        raise InputError(
            "is missing, and a GGUF carries its tokenizer", file=FILE, hint="name a folder that has it: --reference DIR"
        )
    tokenizer = read_tokenizer(files[FILE])
    settings = read_object(files[CONFIG], CONFIG) if CONFIG in files else None
    pre = pre_tokenizer(arch, tokenizer.rest)
    texts, types = vocabulary(tokenizer, _flags(files, settings), int(config["vocab_size"]))
    out: dict[str, Scalar | Array] = {
        "tokenizer.ggml.model": string(arch["gguf"]["tokenizer_model"]),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": string_array(texts),
        "tokenizer.ggml.token_type": i32_array(types),
    }
    if tokenizer.merge_count:
        out["tokenizer.ggml.merges"] = Array(string("").type, tokenizer.merge_count, tokenizer.merges)
    special = special_tokens(tokenizer.rest, settings, config, files)
    out |= {ID_KEYS[role]: u32(i) for role, i in special.ids.items() if role in ID_KEYS}
    out |= {ADD_KEYS[role]: bool_(flag) for role, flag in special.add.items() if role in ADD_KEYS}
    out |= _templates(special.template)
    return out, _warnings(special, settings, len(texts), files)


def pre_tokenizer(arch: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way tokenizer.json splits text, from `[tokenizer.pre]`."""
    normalizer, pre = rest.get("normalizer"), rest.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, dict) and pre.get("type") == "Sequence" else None
    regex = None
    if normalizer is None and isinstance(steps, list) and len(steps) == 2:
        split, level = (s if isinstance(s, dict) else {} for s in steps)
        wanted = {"type": "Split", "behavior": "Isolated", "invert": False}
        levels = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        pattern = split.get("pattern")
        if wanted.items() <= split.items() and levels.items() <= level.items() and isinstance(pattern, dict):
            regex = pattern.get("Regex")
    for name, known in arch["tokenizer"]["pre"].items():
        if regex == known:
            return str(name)
    seen = f"the split regex {regex!r}" if isinstance(regex, str) else "this normalizer or pre_tokenizer"
    known_names = ", ".join(arch["tokenizer"]["pre"])
    raise InputError(
        f"llama.cpp has no name for {seen} (known here: {known_names})", file=FILE, field="pre_tokenizer", hint=_OWN
    )


def _flags(files: Mapping[str, Source], settings: Mapping[str, Any] | None) -> dict[str, bool | None]:
    """Tokens that the config files call special or not: token to flag, None where they say only that it exists."""
    flags: dict[str, bool | None] = {}
    listed = (settings or {}).get("added_tokens_decoder")
    for entry in listed.values() if isinstance(listed, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            flags[entry["content"]] = entry["special"] if isinstance(entry.get("special"), bool) else None
    name = "special_tokens_map.json"
    for source in ((settings or {}), read_object(files[name], name) if name in files else {}):
        named = [source.get(f"{role}_token") for role in ROLES]
        for key in ("extra_special_tokens", "additional_special_tokens"):
            extra = source.get(key)
            named += list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
        flags |= dict.fromkeys(filter(None, map(_content, named)), True)
    return flags


def _content(entry: Any) -> str | None:
    """The text of a token that a config names as a string or as an object."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def vocabulary(
    tokenizer: TokenizerJson, flags: Mapping[str, bool | None], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Tokens and their types by id, padded to `vocab_size` with `[PAD{id}]`. Raises all contradictions at once."""
    top = max(tokenizer.vocab.values(), default=-1)
    if top >= vocab_size:
        raise _beyond(next(t for t, i in tokenizer.vocab.items() if i == top), top, vocab_size)
    texts: list[str | None] = [None] * vocab_size
    types = [UNUSED] * vocab_size
    for token, i in tokenizer.vocab.items():
        texts[i] = token
        types[i] = NORMAL
    problems: list[CkptError] = []
    alphabet = byte_alphabet()
    added = set()
    for entry, i in added_tokens(tokenizer):
        token = entry["content"]
        added.add(token)
        if i >= vocab_size:
            problems.append(_beyond(token, i, vocab_size))
            continue
        special = flags.get(token)
        text = token if entry.get("normalized", True) else decoded(token, alphabet)
        control = (entry.get("special") is True if special is None else special) or _looks_special(text)
        texts[i] = text if control else text.replace("\u2581", " ")
        types[i] = CONTROL if control else USER_DEFINED
    problems += [
        InputError(f"names the token {t!r}, which {FILE} does not list as added", file=CONFIG, hint=_SAVE_AGAIN)
        for t in flags
        if t not in added
    ]
    raise_all(problems)
    return [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)], types


def added_tokens(tokenizer: TokenizerJson) -> Iterator[tuple[dict[str, Any], int]]:
    """The added tokens with the ids that readers give them. Raises InputError where the file states other ids."""
    entries = tokenizer.rest.get("added_tokens") or []
    if not isinstance(entries, list):
        raise InputError("is not a list", file=FILE, field="added_tokens", hint=_OWN)
    following = len(tokenizer.vocab)
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or _content(entry) is None or type(entry.get("id")) is not int:
            raise InputError("must have an id and a content", file=FILE, field=f"added_tokens[{n}]", hint=_OWN)
        i = tokenizer.vocab.get(entry["content"], following)
        if i != entry["id"]:
            raise InputError(
                f"states id {entry['id']} for {entry['content']!r}, but readers of this file give it {i}",
                file=FILE,
                field=f"added_tokens[{n}]",
                hint=_SAVE_AGAIN,
            )
        following = max(following, i + 1)
        yield entry, i


def _beyond(token: str, i: int, vocab_size: int) -> InputError:
    return InputError(
        f"has id {i} for {token!r}, but config.json has vocab_size {vocab_size}",
        file=FILE,
        hint="tokenizer and model are not of one checkpoint; correct the one that is wrong",
    )


def decoded(token: str, alphabet: Mapping[str, int]) -> str:
    """What the tokenizer decodes an added token to: its decoder takes byte characters for bytes wherever it can."""
    if all(c in alphabet for c in token):
        return bytes(alphabet[c] for c in token).decode("utf-8", "replace")
    return token


def _looks_special(text: str) -> bool:
    return text in _SPECIAL_WORDS or any(text.startswith(a) and text.endswith(b) for a, b in _SPECIAL_ENDS)


def special_tokens(
    rest: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    files: Mapping[str, Source],
) -> Special:
    """Special ids as llama.cpp's `SpecialVocab` finds them: tokenizer_config.json first, then config.json.

    It reads neither flags nor templates where tokenizer_config.json is missing or empty.
    """
    _check_post_processor(rest.get("post_processor"))
    ids: dict[str, int] = {}
    add: dict[str, bool] = {}
    template: Any = None
    if settings:
        template = settings["chat_template"] if "chat_template" in settings else chat_template(files)
        for role in ROLES:
            if isinstance(flag := settings.get(f"add_{role}_token"), bool):
                add[role] = flag
            text = _content(_standing_in(settings, role))
            found = next((t["id"] for t in rest.get("added_tokens") or () if t["content"] == text), None)
            if found is not None:
                ids[role] = found
    for role in ROLES:
        value = config.get(f"{role}_token_id")
        if type(value) is int:
            if not 0 <= value < int(config["vocab_size"]):
                raise InputError(
                    f"is {value}, which is no token id",
                    file="config.json",
                    field=f"{role}_token_id",
                    hint="correct or remove it",
                )
            ids.setdefault(role, value)
    return Special(ids, add, template if isinstance(template, str | list) else None)


def _standing_in(settings: Mapping[str, Any], role: str) -> Any:
    """The token in a role; cls and sep stand in for bos and eos that are not set, as in `SpecialVocab`."""
    other = {"bos": "cls", "eos": "sep"}.get(role)
    return settings.get(f"{role}_token") or (settings.get(f"{other}_token") if other else None)


def _check_post_processor(post: Any) -> None:
    """llama.cpp guesses from other post-processors whether BOS and EOS are added; ByteLevel adds none."""
    steps = post.get("processors", [post]) if isinstance(post, dict) else [] if post is None else [post]
    other = next((s for s in steps if not isinstance(s, dict) or s.get("type") != "ByteLevel"), None)
    if other is not None:
        kind = other.get("type") if isinstance(other, dict) else other
        raise InputError(f"is {kind!r}, where this arch has ByteLevel", file=FILE, field="post_processor", hint=_OWN)


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


def _templates(template: str | list[Any] | None) -> dict[str, Scalar | Array]:
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


def _warnings(
    special: Special, settings: Mapping[str, Any] | None, size: int, files: Mapping[str, Source]
) -> list[str]:
    out = []
    if not settings:
        what = "is missing" if settings is None else "is empty"
        out.append(f"{CONFIG} {what}: llama.cpp's converter then writes no chat template, and neither does this one")
    elif not special.template:
        out.append("no chat template: llama.cpp will fall back to a generic one, which this model was not trained on")
    if "eos" not in special.ids:
        out.append("no EOS token is named in tokenizer_config.json or config.json: generation will not stop by itself")
    return out
