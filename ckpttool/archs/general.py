"""The `general.*` key-values of a GGUF and its default file name, as llama.cpp's converter makes them.

The rules (model card, folder name, size label) are the gguf package's own; it is imported here only, on first use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ckpttool.archs import card_yaml
from ckpttool.containers.gguf_values import Array, Scalar, f32, i32, i32_array, string, string_array, u32
from ckpttool.containers.strict_json import Source, read_object, read_text
from ckpttool.errors import InputError

README = "README.md"
README_LIMIT = 1 << 20
GENERATION = "generation_config.json"
SAMPLING = {
    "sequence": "sequence",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temperature": "temp",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""generation_config.json's key: the key behind `general.sampling.`."""


class ParameterCounts(NamedTuple):
    """Parameters as the converter counts them for the size label: `expert` is of one expert, over all tensors."""

    total: int
    shared: int
    expert: int
    expert_count: int


def parameter_counts(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> ParameterCounts:
    """Count the parameters of GGUF tensors (name, logical shape in torch order), as `GGUFWriter` does."""
    total = shared = expert = expert_sum = stacks = 0
    for name, shape in tensors:
        size = math.prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            count = shape[-2 if ".bias" in name else -3]
            expert += size // count
            expert_sum += count
            stacks += 1
        else:
            shared += size
    return ParameterCounts(total, shared, expert, expert_sum // stacks if stacks else 0)


def to_gguf(
    arch_name: str,
    config: Mapping[str, Any],
    files: Mapping[str, Source],
    *,
    model_name: str | None,
    source_dir: Path | None,
    counts: ParameterCounts,
) -> dict[str, Scalar | Array]:
    """`general.*` in llama.cpp's order: from README.md, config.json's _name_or_path, the folder's name, the options.

    Raises InputError where README.md or generation_config.json hold what a GGUF cannot.
    """
    import gguf

    folder = None if source_dir is None else Path(_utf8(source_dir.name or source_dir.resolve().name))
    metadata = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), _model_card(files), {"_name_or_path": _model_id(config)}, folder, counts.total
    )
    generation = _generation(files)
    for key, name in SAMPLING.items():
        setattr(metadata, f"sampling_{name}", generation.get(key))
    if model_name is not None:
        metadata.name = model_name
    if metadata.name is None:
        metadata.name = folder.name if folder is not None else "model"
    if metadata.size_label is None and counts.total > 0:
        metadata.size_label = gguf.size_label(*counts)
    writer = gguf.GGUFWriter(path=None, arch=arch_name)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        return {key: _value(key, entry) for key, entry in writer.kv_data[0].items()}
    except (AttributeError, TypeError, ValueError) as e:  # the front matter's values are of any type
        raise InputError(
            f"its front matter holds a value that a GGUF cannot: {e}", file=README, hint="correct or remove it"
        ) from None


def _model_id(config: Mapping[str, Any]) -> str | None:
    value = config.get("_name_or_path")
    return value if isinstance(value, str) else None


def _model_card(files: Mapping[str, Source]) -> dict[str, Any]:
    """README.md's YAML front matter, as `Metadata.load_model_card` reads it."""
    if README not in files:
        return {}
    from yaml import YAMLError  # type: ignore[import-untyped]

    lines = read_text(files[README], README, README_LIMIT).splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]).replace("\t", "  ")  # as in some cards
    try:
        card = card_yaml.load(text)
    except (YAMLError, RecursionError, ValueError) as e:
        raise InputError(
            f"its front matter is not valid YAML: {' '.join(str(e).split())[:200]}", file=README, hint="correct it"
        ) from None
    return card if isinstance(card, dict) else {}


def _generation(files: Mapping[str, Source]) -> dict[str, Any]:
    """The sampling defaults of generation_config.json that are numbers or words, as the converter takes them."""
    if GENERATION not in files:
        return {}
    found = read_object(files[GENERATION], GENERATION)
    for key in SAMPLING:
        value = found.get(key)
        wanted = str if key == "sequence" else int | float
        if value is not None and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise InputError(f"is {value!r}", file=GENERATION, field=key, hint="correct or remove it")
    return found


def _value(key: str, entry: Any) -> Scalar | Array:
    """One of `GGUFWriter`'s values as ours. Raises TypeError for what is not of its type."""
    value, kind = entry.value, entry.type.name
    if kind == "STRING" and isinstance(value, str):
        return string(value)
    if kind == "UINT32" and isinstance(value, int):
        return u32(value)
    if kind == "INT32" and isinstance(value, int):
        return i32(value)
    if kind == "FLOAT32" and isinstance(value, int | float):
        return f32(float(value))
    if kind == "ARRAY" and all(isinstance(v, str) for v in value):
        return string_array(value)
    if kind == "ARRAY" and all(type(v) is int for v in value):
        return i32_array(value)
    raise TypeError(f"{key} is {value!r}")


def _utf8(name: str) -> str:
    """A folder's name as text: bytes that are not UTF-8 cannot stand in a key-value."""
    return name.encode("utf-8", "replace").decode()


def default_name(metadata: Mapping[str, Scalar | Array]) -> str:
    """The file name that llama.cpp's converter gives a GGUF with these key-values, `.gguf` included.

    A plain name whatever the key-values say: they may come from strangers, and llama.cpp's rule lets `/` through.
    """
    import gguf

    def text(key: str) -> str | None:
        entry = metadata.get(f"general.{key}")
        return str(entry.value) if isinstance(entry, Scalar) else None

    file_type = metadata.get("general.file_type")
    encoding = None
    if isinstance(file_type, Scalar) and isinstance(file_type.value, int):
        known = {t.value: t.name for t in gguf.LlamaFileType}
        encoding = known.get(file_type.value, "").partition("_")[2] or None
    name = gguf.naming_convention(
        text("name"), text("basename"), text("finetune"), text("version"), text("size_label"), encoding
    )
    plain = _UNSAFE.sub("-", str(name)).lstrip(".").encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{plain or 'model'}.gguf"


NAME_BYTES = 180
"""What a default name may have at most: file systems take 255, and `.partial` and the receipt's ending follow it."""

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]+")
