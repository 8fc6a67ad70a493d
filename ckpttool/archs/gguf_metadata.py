"""config.json, the tokenizer's files and the model card as the key-values of a GGUF.

The order and the bytes are those of llama.cpp's convert_hf_to_gguf.py: readers do not care, but a file that is equal to
the converter's can be checked against it with cmp. The way back is in `companions`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpttool.archs import config as configs
from ckpttool.archs import general, tokenizer
from ckpttool.archs.general import ParameterCounts, default_name, parameter_counts
from ckpttool.containers import limits
from ckpttool.containers.gguf_values import Array, Scalar, f32, string, u32
from ckpttool.containers.strict_json import Source
from ckpttool.errors import CkptError, InputError, raise_all

__all__ = ["ParameterCounts", "default_name", "parameter_counts", "to_gguf"]

Metadata = dict[str, Scalar | Array]
_WHY = "llama.cpp's converter writes it"
_NUMBERS = {"u32": u32, "f32": f32}


def to_gguf(
    arch: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Mapping[str, Source],
    *,
    model_name: str | None = None,
    source_dir: Path | None,
    counts: ParameterCounts,
    file_type: int,
) -> tuple[Metadata, list[str]]:
    """All key-values of a GGUF, in order, and warnings.

    `config` is config.json; `files` are the companions by their name in the folder (tokenizer.json,
    tokenizer_config.json, special_tokens_map.json, chat_template.jinja, generation_config.json, README.md ...);
    `source_dir` gives the name of the model where nothing else does; `counts` are of the GGUF's tensors;
    `file_type` is general.file_type. Raises InputError (several at once) for what config.json lacks or a GGUF cannot
    hold.
    """
    problems: list[CkptError] = []
    out: Metadata = {}
    middle: Metadata = {}
    words: Metadata = {}
    warnings: list[str] = []
    try:
        middle = model_keys(arch, config, {"file_type": file_type})
    except CkptError as e:
        problems += getattr(e, "problems", (e,))
    try:
        if not any(p.field == "vocab_size" for p in problems):
            words, warnings = tokenizer.to_gguf(arch, config, files)
    except CkptError as e:
        problems += getattr(e, "problems", (e,))
    raise_all(problems)
    name = arch["arch"]["gguf"]
    out |= general.to_gguf(name, config, files, model_name=model_name, source_dir=source_dir, counts=counts)
    if general.GENERATION not in files:
        warnings.append(f"{general.GENERATION} is missing: the GGUF states no sampling defaults from it")
    return out | middle | words, warnings


def model_keys(arch: Mapping[str, Any], config: Mapping[str, Any], given: Mapping[str, int]) -> Metadata:
    """The key-values of `[gguf] keys`, from config.json and `given`. Raises InputError for all that is missing."""
    problems: list[CkptError] = []
    out: Metadata = {}
    kind = configs.get(config, "rope.rope_type")
    size = configs.get(config, "vocab_size")
    if size is configs.MISSING:
        problems.append(configs.missing(config, "vocab_size", "the tokenizer is padded to it"))
    elif type(size) is not int or not 0 < size <= limits.VOCABULARY:
        what = f"is {size!r}, which is no size of a vocabulary"
        too_many = type(size) is int and size > limits.VOCABULARY
        more = limits.hint(limits.VOCABULARY, "correct it") if too_many else "correct it"
        problems.append(InputError(what, file=configs.FILE, field="vocab_size", hint=more))
    for row in arch["gguf"]["keys"]:
        key = row["key"].format(arch=arch["arch"]["gguf"])
        if "given" in row or "value" in row:
            out[key] = u32(given[row["given"]] if "given" in row else row["value"])
            continue
        if "only" in row and kind not in (*row["only"], configs.MISSING):
            continue
        value = configs.get(config, row["config"])
        if value is configs.MISSING:
            if not row.get("optional"):
                problems.append(configs.missing(config, row["config"], _WHY))
            continue
        made = _scalar(row["type"], value)
        if made is None:
            where = configs.field(config, row["config"])
            what = f"is {value!r}, which is no {row['type']}"
            problems.append(InputError(what, file=configs.FILE, field=where, hint="correct it"))
        else:
            out[key] = made
    raise_all(_once(problems))
    return out


def _scalar(kind: str, value: Any) -> Scalar | None:
    """`value` as a GGUF scalar, None where it is not of that kind."""
    if kind == "string":
        return string(value) if isinstance(value, str) and value else None
    if isinstance(value, bool) or not isinstance(value, int if kind == "u32" else int | float):
        return None
    if kind == "u32":
        return u32(value) if 0 <= value < 1 << 32 else None
    try:
        struct.pack("<f", value)
    except OverflowError:
        return None
    return f32(float(value)) if math.isfinite(value) else None


def _once(problems: list[CkptError]) -> list[CkptError]:
    """Without repetitions: two key-values may come from one config key."""
    return list({str(p): p for p in problems}.values())
