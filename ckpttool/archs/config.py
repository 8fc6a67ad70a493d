"""config.json: its two shapes read alike, its sizes checked, and what of it a conversion changes.

transformers 4 writes `rope_scaling`, `rope_theta`, `torch_dtype`; transformers 5 writes `rope_parameters`, `dtype`.
Paths in the tables name rope's values `rope.factor`, whichever shape a file has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from ckpttool.containers.strict_json import parse_object, utf8
from ckpttool.errors import CkptError, InputError, UsageError, raise_all
from ckpttool.tensors import StoredTensor

FILE = "config.json"
MISSING: Any = object()
SIZE_LIMIT = 1 << 31
"""Above any size that a model has; below, products of sizes stay exact."""

LAYER_LIMIT = 1 << 14
"""Layers; layer_types lists them, so an absurd number must not be believed."""

_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}
_STATE_IT = "state it as the model's own config.json does, or take that one with --reference DIR"


def get(config: Mapping[str, Any], path: str) -> Any:
    """The value at a table's path (`hidden_size`, `rope.factor`), MISSING where it is absent or null."""
    top, _, inner = path.partition(".")
    value = rope(config).get(inner, MISSING) if top == "rope" and inner else config.get(path, MISSING)
    return MISSING if value is None else value


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope's parameters, rope_theta among them; rope_scaling stands above rope_parameters, as in transformers."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, Mapping):
            out = dict(value)
            break
    else:
        out = {}
    if "rope_type" not in out and "type" in out:
        out["rope_type"] = out["type"]
    if "attention_factor" not in out and "attn_factor" in out:
        out["attention_factor"] = out["attn_factor"]
    if "rope_theta" not in out and config.get("rope_theta") is not None:
        out["rope_theta"] = config["rope_theta"]
    return out


def field(config: Mapping[str, Any], path: str) -> str:
    """What a path is called in this config.json, for messages."""
    if not path.startswith("rope."):
        return path
    inner = path.removeprefix("rope.")
    if isinstance(config.get("rope_parameters"), Mapping) and not isinstance(config.get("rope_scaling"), Mapping):
        return f"rope_parameters.{inner}"
    return inner if inner == "rope_theta" else f"rope_scaling.{inner}"


def missing(config: Mapping[str, Any], path: str, why: str) -> InputError:
    """The error for a key that config.json must state."""
    return InputError(f"is missing, and {why}", file=FILE, field=field(config, path), hint=_STATE_IT)


def sizes(arch: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the arch's parts by letter, from the keys in `[sizes]`. Raises all that are missing or absurd."""
    problems: list[CkptError] = []
    out = {}
    for letter, key in arch["sizes"].items():
        value = get(config, key)
        if value is MISSING:
            problems.append(missing(config, key, "the tensors' shapes follow from it"))
        elif type(value) is not int or not 0 < value < SIZE_LIMIT:
            problems.append(
                InputError(f"is {value!r}, which is no size", file=FILE, field=key, hint="it should be a whole number")
            )
        else:
            out[letter] = value
    raise_all(problems)
    return out


def with_quantization(text: bytes, arch: Mapping[str, Any], experts: str | None, dtype: str) -> bytes:
    """The config.json of a target: every key of the source's but quantization_config and the dtype, in its order.

    `experts`: "mxfp4" (quantization_config as published) or None (none); `dtype`: of the other weights, "bf16" or
    "f32". A file in which nothing must change comes back byte for byte. What an MXFP4 file says of its dtype is
    corrected where it says something else, and added only for f32: published ones say nothing, and readers then take
    BF16. A file without quantization_config always gets a dtype: transformers 4 would load it as F32.
    """
    config = parse_object(utf8(text, FILE), FILE)
    wanted = dict(config)
    if experts is None:
        wanted.pop("quantization_config", None)
    else:
        wanted["quantization_config"] = _quantization(arch, config, experts)
    named = [key for key in ("torch_dtype", "dtype") if key in config]
    if not named and (experts is None or dtype != "bf16"):
        named = ["dtype" if isinstance(config.get("rope_parameters"), Mapping) else "torch_dtype"]
    wanted |= dict.fromkeys(named, _DTYPES[dtype])
    if wanted == config:
        return text
    return like(text, config, wanted)


def _quantization(arch: Mapping[str, Any], config: Mapping[str, Any], experts: str) -> dict[str, Any]:
    published: dict[str, Any] = arch["config"]["quantization"][experts]
    present = config.get("quantization_config")
    if isinstance(present, Mapping) and present.get("quant_method") == published["quant_method"]:
        return dict(present)
    return dict(published)


def like(text: bytes, config: Mapping[str, Any], wanted: dict[str, Any]) -> bytes:
    """`wanted` in the style of its source `text`: indent, end of file, ASCII or not; sorted where the source is."""
    keys = list(config)
    if keys == sorted(keys):
        wanted = dict(sorted(wanted.items()))
    indent = re.match(rb"\{\r?\n( +|\t+)", text)
    style = {"indent": indent[1].decode()} if indent else {}
    out = json.dumps(wanted, ensure_ascii=text.isascii(), **style)  # type: ignore[arg-type]
    return out.encode() + (b"\n" if text.endswith(b"\n") else b"")


def layer_types(arch: Mapping[str, Any], layers: int) -> list[str]:
    """The published pattern of sliding and full attention. InputError where `layers` is no number of layers."""
    if type(layers) is not int or not 0 < layers <= LAYER_LIMIT:
        what = f"is {layers!r}, which is no number of layers"
        raise InputError(what, file=FILE, field="num_hidden_layers", hint="the source is damaged; fetch it again")
    cycle = arch["config"]["layer_types"]["cycle"]
    return [cycle[n % len(cycle)] for n in range(layers)]


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path in a config of transformers 4's shape, which the published ones have."""
    if path.startswith("rope.") and path != "rope.rope_theta":
        config.setdefault("rope_scaling", {})[path.removeprefix("rope.")] = value
    else:
        config[path.removeprefix("rope.")] = value


def complete(arch: Mapping[str, Any], config: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Add in place what `config` lacks of a published config.json, and say what was assumed: (file, key, value).

    Keys are put into the order of the published files, which is the alphabet's.
    """
    assumed = []
    table = arch["config"]
    config.setdefault("architectures", [arch["arch"]["architecture"]])
    config.setdefault("model_type", arch["arch"]["model_type"])
    for path, source in table["copies"].items():
        if get(config, path) is MISSING and get(config, source) is not MISSING:
            put(config, path, get(config, source))
    if "layer_types" not in config:
        config["layer_types"] = layer_types(arch, config["num_hidden_layers"])
        assumed.append((FILE, "layer_types", config["layer_types"]))
    for path, value in table["assumed"].items():
        if get(config, path) is MISSING:
            put(config, path, value)
            assumed.append((FILE, field(config, path), value))
    _sort(config)
    return assumed


def _sort(config: dict[str, Any]) -> None:
    ordered = {k: dict(sorted(v.items())) if isinstance(v, dict) else v for k, v in sorted(config.items())}
    config.clear()
    config.update(ordered)


def openai_to_hf(
    arch: Mapping[str, Any], openai: Mapping[str, Any], stated: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[tuple[str, str, Any]], list[str]]:
    """original/config.json as a published HF config.json (without quantization_config), what was assumed, and notes.

    `stated` are special ids that another file of the checkpoint gives, so that they need not be assumed.
    """
    table = arch["openai"]
    config: dict[str, Any] = {}
    problems: list[CkptError] = []
    for row in table["keys"]:
        kind = row.get("read_as", row["type"])
        value = openai.get(row["key"], row.get("default"))
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = "is missing" if value is None else f"is {value!r}, which is no number"
            problems.append(
                InputError(found, file="original/config.json", field=row["key"], hint="download the file again")
            )
            continue
        put(config, row["config"], _number(value, kind))
    raise_all(problems)
    sizes(arch, config)
    assumed: list[tuple[str, str, Any]] = []
    for path, factors in table["products"].items():
        product = prod(float(get(config, factor)) for factor in factors)
        if not 0 < product < SIZE_LIMIT:
            what = f"would be {product}, the product of {' and '.join(factors)}"
            raise InputError(what, file=FILE, field=path, hint="download original/config.json again")
        put(config, path, int(product))
        assumed.append((FILE, path, int(product)))
    config |= stated or {}
    notes = []
    for path, value in table["assumed"].items():
        if path in config:
            continue
        if path.endswith("_token_id") and value >= config["vocab_size"]:  # transformers could not load the folder
            notes.append(f"{path} is left out of {FILE}: the published {value} is beyond the vocabulary")
            continue
        put(config, path, value)
        assumed.append((FILE, field(config, path), value))
    return config, assumed + complete(arch, config), notes


def hf_to_openai(arch: Mapping[str, Any], config: Mapping[str, Any]) -> bytes:
    """original/config.json, in OpenAI's order of keys, on one line as published."""
    out: dict[str, Any] = {}
    problems: list[CkptError] = []
    for row in arch["openai"]["keys"]:
        value = get(config, row["config"])
        if value is MISSING:
            value = row.get("default")
        if value is None:
            problems.append(missing(config, row["config"], "original/config.json states it"))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            where = field(config, row["config"])
            problems.append(InputError(f"is {value!r}, which is no number", file=FILE, field=where, hint="correct it"))
        else:
            out[row["key"]] = _number(value, row["type"])
    kind = get(config, "rope.rope_type")
    if kind is not MISSING and kind != arch["openai"]["assumed"]["rope.rope_type"]:
        problems.append(
            UsageError(
                f"is {kind!r}, which original/config.json cannot say",
                file=FILE,
                field=field(config, "rope.rope_type"),
                hint="convert to another dialect, for example --to mxfp4",
            )
        )
    raise_all(problems)
    return json.dumps(out).encode()


def dtypes(arch: Mapping[str, Any], tensors: Iterable[StoredTensor]) -> bytes:
    """original/dtypes.json for these tensors, in their order, on one line as published: what U8 stands for."""
    words = arch["openai"]["dtypes"]
    rows = {t.name: next((word for end, word in words.items() if t.name.endswith(end)), t.dtype) for t in tensors}
    return json.dumps(rows).encode()


def render(config: Mapping[str, Any]) -> bytes:
    """config.json as transformers writes it."""
    return dumps(config)


def dumps(value: Mapping[str, Any], *, sort_keys: bool = False, ensure_ascii: bool = True) -> bytes:
    """JSON as transformers writes it: two spaces of indent, non-ASCII escaped in configs but not in tokenizer files."""
    return (json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=ensure_ascii) + "\n").encode()


def _number(value: float, kind: str) -> int | float:
    """`value` as the kind of number that the file has there, where that loses nothing."""
    if kind == "float":
        return float(value)
    return int(value) if float(value).is_integer() else value
