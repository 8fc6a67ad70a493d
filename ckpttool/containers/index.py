"""`model.safetensors.index.json`: which tensor lies in which file of a sharded checkpoint.

Its file names come from strangers and are joined to a folder by every loader, so they must be plain names inside it.
Written as transformers writes it: sorted, indented by 2, with a newline at the end.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ckpttool.containers import limits, strict_json
from ckpttool.errors import InputError, LimitError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Index(NamedTuple):
    """`weight_map` names each tensor's file; `total_size` is the tensors' bytes together, where it says so."""

    weight_map: dict[str, str]
    total_size: int | None


def parse_index(source: Path | bytes, file: str | None = None) -> Index:
    """The index at a path, or its bytes; `file` is its name for errors. InputError by rule, LimitError by size.

    Whether the files exist, and hold what the index says, is for whoever has the folder.
    """
    file = file or (source.name if isinstance(source, Path) else "model.safetensors.index.json")
    value = strict_json.read_object(source, file, limits.INDEX_FILE, any_integer=False)
    weight_map = value.get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        what = "is missing" if "weight_map" not in value else "must be an object that names a file for each tensor"
        raise InputError(what, file=file, field="weight_map", hint="fetch the index again")
    if len({name for name in weight_map.values() if type(name) is str}) > limits.INDEX_FILES:
        what = f"names more than {limits.INDEX_FILES} files"
        more = limits.hint(limits.INDEX_FILES, "is it really the index of a checkpoint?")
        raise LimitError(what, file=file, field="weight_map", hint=more)
    for tensor, name in weight_map.items():
        if type(name) is not str or (fault := _name_fault(name)):
            said = fault if type(name) is str else "must be a file name"
            raise InputError(
                f"{said}: {name!r:.200}",
                file=file,
                field=f'weight_map["{tensor}"]',
                hint="each must be a plain file name inside the folder",
            )
    _refuse_twins(weight_map, file)
    return Index(weight_map, _total_size(value, file))


def _refuse_twins(weight_map: Mapping[str, str], file: str) -> None:
    """Two names that are one file where case does not count: what a reader finds there depends on the disk."""
    seen: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if (first := seen.setdefault(name.casefold(), name)) != name:
            raise InputError(
                f"is {name!r:.200}, and another {first!r:.200}: one file where case does not count",
                file=file,
                field=f'weight_map["{tensor}"]',
                hint="rename one of them",
            )


def _total_size(value: dict[str, Any], file: str) -> int | None:
    """`metadata.total_size`, if any; old transformers wrote it as a float."""
    metadata = value.get("metadata")
    if metadata is None:
        return None
    if type(metadata) is not dict:
        raise InputError("must be an object", file=file, field="metadata", hint="fetch the index again")
    total = metadata.get("total_size")
    if total is None:
        return None
    if type(total) not in (int, float) or total != int(total) or not 0 <= total <= limits.INT64_MAX:
        raise InputError(
            f"must be a number of bytes, not {total!r:.40}",
            file=file,
            field="metadata.total_size",
            hint="fetch the index again",
        )
    return int(total)


@lru_cache(maxsize=1 << 10)
def _name_fault(name: str) -> str:
    """Why `name` is no plain name of a safetensors file; empty when it is one."""
    if name in ("", ".", ".."):
        return "is no file name"
    if any(c in "/\\:" or unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "leaves the folder, or holds a control character"
    if len(name.encode()) > 255:
        return "is longer than 255 bytes"
    if name.lower().endswith(_PICKLES):
        return "is a pickle, which is never opened"
    if not name.endswith(".safetensors"):
        return "is no .safetensors file"
    return ""


def render_index(weight_map: Mapping[str, str], total_size: int, *, total_parameters: int | None = None) -> bytes:
    """The bytes of an index; `total_parameters` as transformers 5 adds it, left out where not given."""
    metadata = {"total_size": total_size}
    if total_parameters is not None:
        metadata["total_parameters"] = total_parameters
    index = {"metadata": metadata, "weight_map": dict(weight_map)}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
