"""The tokenizer's files as the tokenizer key-values of a GGUF.

What llama.cpp's converter learns from transformers' tokenizer and from its own `SpecialVocab` is read here from
tokenizer.json and tokenizer_config.json themselves: tokens by id, their types, the merges, special ids, the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpttool.archs.special_tokens import (
    ADD_KEYS,
    CONFIG,
    FILE,
    ID_KEYS,
    ROLES,
    Special,
    content,
    special_tokens,
    template_keys,
)
from ckpttool.archs.tokenizer_json import TokenizerJson, read_tokenizer
from ckpttool.containers.gguf_values import Array, Scalar, bool_, i32_array, string, string_array, u32
from ckpttool.containers.strict_json import Source, read_object
from ckpttool.errors import CkptError, InputError, raise_all

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of a GGUF (`gguf.TokenType`) that a byte-level BPE tokenizer has."""

_OWN = "use the model's own tokenizer.json, with --reference DIR if it lies elsewhere"
_SAVE_AGAIN = "load and save it with transformers' AutoTokenizer, so that tokenizer.json holds all tokens"
_SPECIAL_WORDS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


def byte_alphabet() -> dict[str, int]:
    """GPT-2's 256 characters, and the byte that each stands for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(other)}


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
    out |= template_keys(special.template)
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
        flags |= dict.fromkeys(filter(None, map(content, named)), True)
    return flags


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
        if not isinstance(entry, dict) or content(entry) is None or type(entry.get("id")) is not int:
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
