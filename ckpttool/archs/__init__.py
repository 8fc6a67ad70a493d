"""What things are called: one TOML table per architecture, read into `Arch`, `Dialect` and `Join` values.

A table with dialects can be converted; one with layouts alone can only be looked at (`ArchTable`).

A dialect's row says "this stored name is these parts, joined so". Both directions, and the inspector, come from it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool.archs.joins import Join, PartShape

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""A layer's or expert's number in a name: all between two dots."""

Sizes = Mapping[str, int]
"""The letters of an architecture's shapes, as numbers: {"L": 24, "E": 32, "H": 2880, ...}."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a dialect says about one weight name: the join with layer (and expert) filled in."""

    name: str
    join: Join
    expert: int | None


@dataclass(frozen=True)
class Dialect:
    """What one family of checkpoints calls the parts, and which formats its experts may have."""

    name: str
    container: str
    experts: tuple[str, ...]
    pair: tuple[str, str] | None
    rows: Mapping[str, Join]

    def claim(self, name: str) -> Claim | None:
        """The row that `name` matches, with its numbers filled in, or None."""
        for template, pattern in self._patterns().get(_NUMBER.sub("#", name), ()):
            if match := pattern.fullmatch(name):
                numbers = {k: int(v) for k, v in match.groupdict().items()}
                return self._filled(template, numbers)
        return None

    def expand(self, sizes: Sizes) -> Iterable[Claim]:
        """Every weight that a checkpoint of these sizes must hold, in the table's order, layer by layer."""
        for template in self.rows:
            if "{l}" not in template:
                yield self._filled(template, {})
        for layer in range(sizes["L"]):
            for template in self.rows:
                if "{e}" in template:
                    for expert in range(sizes["E"]):
                        yield self._filled(template, {"l": layer, "e": expert})
                elif "{l}" in template:
                    yield self._filled(template, {"l": layer})

    def _filled(self, template: str, numbers: Mapping[str, int]) -> Claim:
        row = self.rows[template]
        parts = tuple(p.format(**numbers) for p in row.parts)
        join = Join(parts, row.interleaved, row.transposed, row.per_expert)
        return Claim(template.format(**numbers), join, numbers.get("e"))

    @cache  # noqa: B019 (dialects live as long as the process)
    def _patterns(self) -> Mapping[str, list[tuple[str, re.Pattern[str]]]]:
        """The rows' patterns by what names come to with # for their numbers: a name is held against one, not all."""
        number = r"(?P<\1>0|[1-9][0-9]{0,5})"
        out: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        for t in self.rows:
            pattern = re.compile(re.sub(r"\\{([le])\\}", number, re.escape(t)))
            out.setdefault(_NUMBER.sub("#", re.sub(r"\{[le]\}", "0", t)), []).append((t, pattern))
        return out

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Arch:
    """One architecture: its parts with their shapes, its dialects, and the facts that `table` holds for side files."""

    name: str
    size_keys: Mapping[str, str]
    parts: Mapping[str, str]
    expert_parts: frozenset[str]
    dialects: Mapping[str, Dialect]
    table: Mapping[str, Any]

    def shapes(self, sizes: Sizes) -> dict[str, PartShape]:
        """The shape of every part of a checkpoint of these sizes, in the table's order."""
        out = {}
        for name, axes in self.parts.items():
            shape = _part_shape(axes, sizes)
            layers = range(sizes["L"]) if "{l}" in name else range(1)
            out.update({name.format(l=layer): shape for layer in layers})
        return out

    def is_expert(self, part: str) -> bool:
        """Whether `part` is an expert matrix, which `--experts` speaks of."""
        return re.sub(r"^layer\.\d+\.", "layer.{l}.", part) in self.expert_parts


def _part_shape(axes: str, sizes: Sizes) -> PartShape:
    rows, _, k = axes.partition("|")

    def size(axis: str) -> int:
        out = 1
        for letter in axis.split("*"):
            out *= sizes[letter.strip()]
        return out

    return PartShape(tuple(size(a) for a in rows.split()), size(k) if k else None)


def _dialect(name: str, table: Mapping[str, Any], rows: Mapping[str, Join]) -> Dialect:
    pair = table.get("pair")
    return Dialect(name, table["container"], tuple(table.get("experts", ())), tuple(pair) if pair else None, rows)


def _join(template: str, row: str | Mapping[str, Any]) -> Join:
    per_expert = "{e}" in template
    if isinstance(row, str):
        return Join((row,), per_expert=per_expert)
    parts = row.get("interleave") or row["concat"]
    return Join(tuple(parts), "interleave" in row, row.get("transpose", False), per_expert)


def _arch(table: Mapping[str, Any]) -> Arch:
    dialects: dict[str, Dialect] = {}
    for name, dialect in table["dialect"].items():
        inherited = dialects[dialect["like"]].rows if "like" in dialect else {}
        rows = {t: j for t, j in inherited.items() if t not in dialect.get("without", ())}
        rows |= {t: _join(t, row) for t, row in dialect["weights"].items()}
        dialects[name] = _dialect(name, dialect, rows)
    return Arch(
        table["arch"]["name"], table["sizes"], table["parts"], frozenset(table["experts"]["parts"]), dialects, table
    )


@dataclass(frozen=True)
class ArchTable:
    """One archs/*.toml for whoever only looks: which names its embedding, head, routers and experts have.

    `layouts` are its dialects and, under `[layout.*]`, names that are recognised and never converted. `idle` are globs
    of weights that a token of text does not pass through, beside those of speculation. `assumed` are facts that hold
    for every such model though no side file says them, `cycle` its pattern of attention. `names` are ours by
    config.json's model_type, `gguf` is general.architecture.
    """

    name: str
    file: str
    layouts: Mapping[str, Dialect]
    names: Mapping[str, str]
    gguf: str | None
    idle: tuple[str, ...]
    assumed: Mapping[str, Any]
    cycle: tuple[str, ...]

    def shown_name(self, model_type: str | None) -> str:
        """What to call a model of this table that calls itself `model_type`."""
        return self.names.get(model_type or "", self.name)


def _arch_table(file: str, table: Mapping[str, Any]) -> ArchTable:
    arch = table["arch"]
    layouts = dict(_arch(table).dialects) if "dialect" in table else {}
    for name in table.get("layout", {}):
        row = _layout(file, name)
        layouts[name] = _dialect(name, row, _layout_rows(row))
    names = {arch["model_type"]: arch["name"]} | arch.get("also", {})
    cycle = arch.get("attention") or table.get("config", {}).get("layer_types", {}).get("cycle", ())
    return ArchTable(
        arch["name"],
        f"archs/{file}",
        layouts,
        names,
        arch.get("gguf"),
        tuple(arch.get("idle", ())),
        arch.get("assumed", {}),
        tuple(cycle),
    )


def _layout(file: str, name: str) -> Mapping[str, Any]:
    """The layout `name` of a file; over the one of that name which it extends, where it extends one."""
    row: Mapping[str, Any] = dict(_files())[file]["layout"][name]
    if "extends" not in row:
        return row
    below = _layout(f"{row['extends']}.toml", name)
    return {**below, **row, "weights": {**below["weights"], **row.get("weights", {})}}


def _layout_rows(layout: Mapping[str, Any]) -> dict[str, Join]:
    """The rows of a layout, once for each of its prefixes."""
    return {
        template.replace("{p}", prefix): _join(template, row)
        for template, row in layout["weights"].items()
        for prefix in layout.get("prefixes", [""])
    }


@cache
def _files() -> tuple[tuple[str, Mapping[str, Any]], ...]:
    folder = Path(__file__).parent
    return tuple((p.name, tomllib.loads(p.read_text("utf-8"))) for p in sorted(folder.glob("*.toml")))


@cache
def arches() -> tuple[Arch, ...]:
    """Every architecture that can be converted, which is one whose table has dialects, by file name."""
    return tuple(_arch(table) for _, table in _files() if "dialect" in table)


def arch_named(key: str, value: object) -> Arch | None:
    """The architecture whose `[arch]` table holds `value` under `key` ("model_type", "gguf", "name")."""
    return next((a for a in arches() if a.table["arch"].get(key) == value), None)


@cache
def arch_tables() -> tuple[ArchTable, ...]:
    """Every architecture that has a table, by file name."""
    return tuple(_arch_table(file, table) for file, table in _files())


def declared_table(checkpoint: Checkpoint) -> ArchTable | None:
    """The table of what `checkpoint` says that it is, or of the architecture that its names gave away."""
    if checkpoint.container == "gguf":
        declared = getattr(checkpoint.metadata.get("general.architecture"), "value", None)
        return next((t for t in arch_tables() if declared is not None and t.gguf == declared), None)
    config = checkpoint.config or {}
    text = config.get("text_config")
    for name in (config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None):
        for table in arch_tables():
            if isinstance(name, str) and name in table.names:
                return table
    arch = checkpoint.arch
    return next((t for t in arch_tables() if arch is not None and t.name == arch.name), None)
