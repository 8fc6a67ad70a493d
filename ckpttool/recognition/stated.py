"""What config.json states about its weights' format, in the words of the libraries that read it.

Shapes decide wherever they can; these numbers only choose among what the shapes leave open (4 bits in groups of 128 or
8 in groups of 64). Whatever is not of the expected type is as if it were not there: the file is a stranger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Stated:
    """`method` is `quant_method`; `groups` are (bits, elements that share a scale or None), of integers only.

    `block` is `weight_block_size`, rows and columns; `bits` and `group` are GPTQ's and AWQ's; `elements` names what
    Quark's FP6 is made of.
    """

    method: str = ""
    groups: tuple[tuple[int, int | None], ...] = ()
    block: tuple[int, int] | None = None
    bits: int | None = None
    group: int | None = None
    elements: tuple[str, ...] = ()


def stated(config: Mapping[str, Any] | None) -> Stated:
    """What `config` says, or what its text model says; an empty `Stated` where it says nothing."""
    found = _section(config)
    if found is None:
        return Stated()
    groups = tuple(_integer_groups(found))
    return Stated(
        _word(found.get("quant_method")) or ("modelopt" if "quant_algo" in found else ""),
        groups,
        _block(found.get("weight_block_size")),
        _count(found.get("bits", found.get("w_bit"))),
        _count(found.get("group_size", found.get("q_group_size"))),
        tuple(_words_at(found, "dtype")),
    )


def _section(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """`quantization_config`, old names and multimodal models' included."""
    if config is None:
        return None
    for holder in (config, config.get("text_config"), config.get("language_config")):
        if isinstance(holder, Mapping):
            for key in ("quantization_config", "compression_config"):
                if isinstance(section := holder.get(key), Mapping):
                    return section
    return None


def _integer_groups(section: Mapping[str, Any]) -> Iterator[tuple[int, int | None]]:
    """compressed-tensors' `config_groups`, where their weights are integers."""
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("type", "int") == "int":
            bits = _count(weights.get("num_bits"))
            if bits is not None:
                yield bits, _count(weights.get("group_size"))


def _words_at(section: Mapping[str, Any], key: str) -> Iterator[str]:
    """Every word under `key`, however deep: Quark nests a spec for each kind of layer."""
    for name, value in section.items():
        if name == key and isinstance(value, str):
            yield value.lower()
        elif isinstance(value, Mapping):
            yield from _words_at(value, key)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    yield from _words_at(item, key)


def _word(value: object) -> str:
    return value.lower() if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 24 else None


def _block(value: object) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    rows, columns = _count(value[0]), _count(value[1])
    return (rows, columns) if rows and columns else None
