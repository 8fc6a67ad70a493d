"""The files of an HF folder from the key-values of a GGUF: the way back from `gguf_metadata`.

What the GGUF carries comes from it, what it lacks from `--reference` if given, else from the arch's table, and then it
is reported as assumed. A reference that contradicts the GGUF in what makes the model (sizes, rope, tokens, merges) is
of another model: an error. Where it only differs in taste (special ids, chat template) the GGUF's word is taken for
config.json and the template, the reference's other files are copied as they are, and a warning says so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpttool.archs import config as configs
from ckpttool.archs import special_tokens, tokenizer, tokenizer_files
from ckpttool.archs.config import MISSING, dumps
from ckpttool.archs.general import GENERATION, SAMPLING
from ckpttool.archs.tokenizer_files import Assumed, Metadata, TokenizerStream, Tokens
from ckpttool.archs.tokenizer_json import read_tokenizer
from ckpttool.containers.gguf_values import Array, Scalar, ValueType
from ckpttool.containers.strict_json import Source, parse_object, read_object, read_text
from ckpttool.errors import CkptError, InputError, raise_all

_FLOATS = frozenset((ValueType.f32, ValueType.f64))
_INTEGERS = frozenset(ValueType) - _FLOATS - {ValueType.bool, ValueType.string, ValueType.array}
_SAME_MODEL = "is the reference this model's own folder?"
_STATE_IT = "take config.json from the model's own folder with --reference DIR"


@dataclass
class Companions:
    """The side files of a target folder.

    `config` is config.json, `config_text` the same as it is written; `config.with_quantization` gives it the
    quantization_config and dtype of a target. `files` are the others by name: text, a stream, or the reference's file
    to copy. `assumed` are (file, key, value); `warnings` say what will not work.
    """

    config: dict[str, Any]
    config_text: bytes = b""
    files: dict[str, bytes | TokenizerStream | Source] = field(default_factory=dict)
    assumed: list[Assumed] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def from_gguf(
    arch: Mapping[str, Any], metadata: Metadata, *, reference: Mapping[str, Source] | None = None
) -> Companions:
    """Rebuild the companions of a GGUF. `reference` are the files of the `--reference` folder by name.

    Raises InputError (several at once) where the GGUF lacks a key, has a tokenizer that is not the arch's and the
    reference brings none, or where the reference is of another model.
    """
    reference = reference or {}
    problems: list[CkptError] = []
    tokens: Tokens | None = None
    warnings: list[str] = []
    try:
        tokens = tokenizer_files.read_tokens(arch, metadata)
    except InputError as e:
        if special_tokens.FILE not in reference:
            problems.append(e)
        else:
            warnings.append(f"{e.field} {e.message}: tokenizer.json is the reference's, not compared with the GGUF")
    stated = _stated(arch, metadata, problems, optional=configs.FILE in reference)
    raise_all(problems)
    out = _config(arch, stated, metadata, None if tokens is None else tokens.tokens.count, reference)
    out.warnings += warnings
    if tokens is not None:
        _tokenizer(arch, metadata, tokens, reference, out)
    else:
        _copy(reference, out, special_tokens.FILE, special_tokens.CONFIG, "special_tokens_map.json")
    _generation(arch, metadata, tokens, reference, out)
    _template(metadata, reference, out)
    return out


def config_from_gguf(arch: Mapping[str, Any], metadata: Metadata) -> tuple[dict[str, Any], list[Assumed]]:
    """config.json alone, and what of it is assumed; of the tokenizer only its size is looked at.

    Raises InputError (several at once) where the GGUF lacks a key.
    """
    problems: list[CkptError] = []
    stated = _stated(arch, metadata, problems, optional=False)
    raise_all(problems)
    listed = metadata.get("tokenizer.ggml.tokens")
    out = _config(arch, stated, metadata, listed.count if isinstance(listed, Array) else None, {})
    return out.config, out.assumed


def _stated(
    arch: Mapping[str, Any], metadata: Metadata, problems: list[CkptError], *, optional: bool
) -> dict[str, Any]:
    """What the GGUF says by config.json path. Appends to `problems` what it lacks or says twice differently."""
    out: dict[str, Any] = {}
    name = arch["arch"]["gguf"]
    lacking: dict[str, str] = {}
    for row in arch["gguf"]["keys"]:
        path = row.get("config")
        if path is None:
            continue
        key = row["key"].format(arch=name)
        if key not in metadata:
            if not (optional or row.get("optional")):
                lacking.setdefault(path, key)
            continue
        value = _number(metadata[key], row)
        if value is None or out.get(path, value) != value:
            what = f"is no {row['type']}" if value is None else f"is {value!r}, but another key says {out[path]!r}"
            problems.append(InputError(what, field=key, hint="the GGUF is damaged or of another kind; make it again"))
        else:
            out[path] = value
    kind = out.get("rope.rope_type")
    only = {row["config"]: row["only"] for row in arch["gguf"]["keys"] if "only" in row}
    for path, key in lacking.items():
        if path in out or (path in only and kind is not None and kind not in only[path]):
            continue
        problems.append(InputError("is missing", field=key, hint=_STATE_IT))
    return out


def _number(entry: Scalar | Array, row: Mapping[str, Any]) -> Any:
    """A key-value as config.json has it: floats by the shortest text that is the same f32. None for another type."""
    if not isinstance(entry, Scalar):
        return None
    if row["type"] == "string":
        return entry.value if isinstance(entry.value, str) else None
    if row["type"] == "u32":
        return int(entry.value) if entry.type in _INTEGERS else None
    if entry.type not in _FLOATS:
        return None
    value = float(entry.value)
    if not math.isfinite(value):
        return None
    if row.get("integer") and value.is_integer():
        return int(value)
    return shortest(value) if entry.type is ValueType.f32 else value


def shortest(value: float) -> float:
    """The float with the shortest decimal text that rounds to the same f32: 1e-05 for 9.99999974737875e-06."""
    texts = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((short for short in texts if _same(short, value)), value)


def _config(
    arch: Mapping[str, Any],
    stated: Mapping[str, Any],
    metadata: Metadata,
    vocabulary: int | None,
    reference: Mapping[str, Source],
) -> Companions:
    """config.json: the reference's, held against the GGUF, or rebuilt; `vocabulary` counts the GGUF's tokens."""
    carried = dict(stated)
    if vocabulary is not None:
        carried["vocab_size"] = vocabulary
    places = dict(arch["config"]["tokens"])
    if configs.FILE not in reference:  # roles that tokenizer_config.json is not given have their place here
        places |= {f"{role}_token_id": role for role in ("unk", "sep", "mask")}
    roles = {path: i for path, role in places.items() if (i := _id(metadata, role)) is not None}
    if configs.FILE in reference:
        return _checked(carried, roles, read_text(reference[configs.FILE], configs.FILE))
    config: dict[str, Any] = {}
    if "vocab_size" not in carried:
        raise InputError("says nothing of the vocabulary's size", field="tokenizer.ggml.tokens", hint=_STATE_IT)
    for path, value in {**carried, **roles}.items():
        configs.put(config, path, value)
    pattern = _pattern(arch, metadata, configs.layer_types(arch, config["num_hidden_layers"]))
    if pattern is not None:
        config["layer_types"] = pattern
    assumed = configs.complete(arch, config)
    return Companions(config, configs.render(config), assumed=assumed)


def _checked(carried: Mapping[str, Any], roles: Mapping[str, int], text: str) -> Companions:
    """The reference's config.json, with the GGUF's special ids, after every value that the GGUF carries agrees."""
    config = parse_object(text, configs.FILE)
    problems: list[CkptError] = []
    for path, value in carried.items():
        theirs = configs.get(config, path)
        if theirs is not MISSING and not _same(theirs, value):
            where = configs.field(config, path)
            what = f"is {theirs!r} in the reference, but the GGUF says {value!r}"
            problems.append(InputError(what, file=configs.FILE, field=where, hint=_SAME_MODEL))
    raise_all(problems)
    out = Companions(config, text.encode())
    changed = {path: value for path, value in roles.items() if config.get(path) != value}
    for path, value in changed.items():
        theirs = config.get(path)
        out.warnings.append(f"{path} is {value} in the GGUF, {theirs!r} in the reference: config.json gets the GGUF's")
    if changed:
        config |= changed
        out.config_text = configs.like(out.config_text, parse_object(text, configs.FILE), config)
    return out


def _same(a: Any, b: Any) -> bool:
    """Whether two values are the same in a GGUF, where floats are of 32 bits."""
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        try:
            return a == b or struct.pack("<f", a) == struct.pack("<f", b)
        except OverflowError:
            return False
    return bool(a == b)


def _id(metadata: Metadata, role: str) -> int | None:
    entry = metadata.get(special_tokens.ID_KEYS[role])
    return int(entry.value) if isinstance(entry, Scalar) and entry.type in _INTEGERS else None


def _pattern(arch: Mapping[str, Any], metadata: Metadata, published: list[str]) -> list[str] | None:
    """layer_types where the GGUF states its own pattern: a period (the last of it is full), or a flag a layer."""
    entry = metadata.get(f"{arch['arch']['gguf']}.attention.sliding_window_pattern")
    sliding, full = arch["config"]["layer_types"]["cycle"]
    layers = len(published)
    if isinstance(entry, Scalar) and entry.type in _INTEGERS and int(entry.value) > 0:
        return [sliding if n % int(entry.value) < int(entry.value) - 1 else full for n in range(layers)]
    if isinstance(entry, Array) and entry.type is not ValueType.string and entry.count == layers:
        return [sliding if flag else full for flag in entry]
    return None


def _tokenizer(
    arch: Mapping[str, Any], metadata: Metadata, tokens: Tokens, reference: Mapping[str, Source], out: Companions
) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json into `out`."""
    if special_tokens.FILE in reference:
        _compare(tokens, reference, out.config)
        out.files[special_tokens.FILE] = reference[special_tokens.FILE]
    else:
        out.files[special_tokens.FILE] = TokenizerStream(arch, tokens)
        out.assumed += tokenizer_files.assumed_scheme(arch, tokens.pre)
    made, assumed = tokenizer_files.config_files(arch, metadata, tokens)
    out.files |= {name: reference.get(name, content) for name, content in made.items()}
    if special_tokens.CONFIG not in reference:
        out.assumed += assumed
        return
    settings = read_object(reference[special_tokens.CONFIG], special_tokens.CONFIG)
    for role, text in tokenizer_files.role_texts(arch, metadata, tokens).items():
        theirs = settings.get(f"{role}_token")
        theirs = theirs.get("content") if isinstance(theirs, dict) else theirs
        if theirs != text:
            out.warnings.append(
                f"{role}_token is {text!r} in the GGUF, {theirs!r} in the reference: its {special_tokens.CONFIG} stays"
            )


def _compare(tokens: Tokens, reference: Mapping[str, Source], config: Mapping[str, Any]) -> None:
    """Raise InputError where the reference's tokenizer.json has other tokens or merges than the GGUF."""
    theirs = read_tokenizer(reference[special_tokens.FILE])
    size = config.get("vocab_size")
    texts, types = tokenizer.vocabulary(theirs, {}, size if type(size) is int else tokens.tokens.count)
    for i, (ours, text) in enumerate(zip(tokens.tokens, texts, strict=True)):
        if ours != text or (types[i] == tokenizer.NORMAL) != bool(tokens.normal[i]):
            raise InputError(
                f"token {i} is {text!r} in the reference, but {ours!r} in the GGUF",
                file=special_tokens.FILE,
                hint=_SAME_MODEL,
            )
    if (theirs.merge_count, theirs.merges) != (tokens.merges.count, tokens.merges.data):
        raise InputError(
            "the merges of the reference are not the GGUF's",
            file=special_tokens.FILE,
            field="model.merges",
            hint=_SAME_MODEL,
        )


def _generation(
    arch: Mapping[str, Any],
    metadata: Metadata,
    tokens: Tokens | None,
    reference: Mapping[str, Source],
    out: Companions,
) -> None:
    """generation_config.json into `out`: the reference's, or the special ids and sampling defaults of the GGUF."""
    if GENERATION in reference:
        _copy(reference, out, GENERATION)
        return
    table = arch["generation"]
    config: dict[str, Any] = dict(table["assumed"])
    out.assumed += [(GENERATION, key, value) for key, value in config.items()]
    for role in arch["tokenizer"]["roles"]["names"]:
        i = _id(metadata, role)
        if i is not None:
            config[f"{role}_token_id"] = i
    known = tokens.ids() if tokens is not None else {}
    for key, names in table["tokens"].items():
        ids = [known[n] for n in names if n in known]
        first = config.get(key)
        more = [i for i in ids if i != first]
        if more:
            config[key] = ids if first in ids or first is None else [first, *ids]
            out.assumed.append((GENERATION, key, config[key]))
    for key, name in SAMPLING.items():
        entry = metadata.get(f"general.sampling.{name}")
        if isinstance(entry, Scalar):
            config[key] = shortest(float(entry.value)) if entry.type is ValueType.f32 else entry.value
    out.files[GENERATION] = dumps(config, sort_keys=True)


def _template(metadata: Metadata, reference: Mapping[str, Source], out: Companions) -> None:
    """The chat templates into `out`: the GGUF's, else the reference's."""
    prefix = f"{special_tokens.TEMPLATE_KEY}."
    named = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    main = metadata.get(special_tokens.TEMPLATE_KEY)
    if isinstance(main, Scalar) and isinstance(main.value, str):
        out.files["chat_template.jinja"] = main.value.encode()
        theirs = special_tokens.chat_template(reference)
        if isinstance(theirs, str) and theirs != main.value:
            out.warnings.append("the chat template of the GGUF is not the reference's: the GGUF's is written")
    elif "chat_template.jinja" in reference:
        _copy(reference, out, "chat_template.jinja")
    else:
        out.warnings.append("no chat template in the GGUF: apply_chat_template will not work")
    for name, entry in named.items():
        if isinstance(entry, Scalar) and isinstance(entry.value, str) and name.isidentifier():
            out.files[f"additional_chat_templates/{name}.jinja"] = entry.value.encode()


def _copy(reference: Mapping[str, Source], out: Companions, *names: str) -> None:
    out.files |= {name: reference[name] for name in names if name in reference}
