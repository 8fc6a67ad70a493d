"""What the user asks for: one frozen value, checked against the table of legal combinations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ckpttool.codecs.formats import RECIPES, Recipe, ScaleRule, TieRule
from ckpttool.containers.shards import SAFETENSORS_SHARD
from ckpttool.errors import UsageError

DIALECTS: Mapping[str, str] = MappingProxyType({"bf16": "hf-bf16", "mxfp4": "hf", "openai": "openai", "gguf": "gguf"})
"""Which dialect each `--to` writes."""

LEGAL: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "bf16": {"experts": ("auto", "keep", "bf16", "f32"), "outtype": (), "dtype": ("bf16", "f32")},
        "mxfp4": {"experts": ("auto", "keep", "mxfp4"), "outtype": (), "dtype": ("bf16", "f32")},
        "openai": {"experts": ("auto", "keep", "mxfp4"), "outtype": (), "dtype": ()},
        "gguf": {
            "experts": ("auto", "keep", "mxfp4", "bf16", "f16", "f32", "q8_0"),
            "outtype": ("auto", "bf16", "f16", "f32", "q8_0", "mxfp4_moe"),
            "dtype": (),
        },
    }
)
"""What `--experts`, `--outtype` and `--dtype` may say for each `--to`; () means the option may not be given."""

MOE_EXPERTS = ("auto", "keep", "mxfp4")
"""What `--experts` may say beside `--outtype mxfp4_moe`."""

K_QUANT = re.compile(r"q[2-6]_k(_[sml])?|iq[1-4]_(x{0,2}s|m)|tq[12]_0", re.IGNORECASE)
"""llama-quantize's words for formats with blocks of 256 elements."""

MAX_MEMORY = 512_000_000
MAX_GPU_MEMORY = 2_000_000_000


@dataclass(frozen=True)
class Target:
    """Where to, in which form, made how. Build it with `target`, which checks and fills in the defaults.

    `address` is where it is published, if it is.
    """

    path: Path
    to: str
    experts: str
    outtype: str
    dtype: str
    recipe: Recipe
    lossless: bool
    max_shard_size: int | None
    model_name: str | None
    address: str | None = None

    @property
    def dialect(self) -> str:
        """The dialect that is written."""
        return DIALECTS[self.to]

    @property
    def is_file(self) -> bool:
        """Whether `path` is that of the GGUF, and not of a folder for what is made."""
        return is_gguf(self.path)


def is_gguf(path: Path) -> bool:
    """Whether the name says GGUF, in whichever case: some file systems do not tell x.GGUF from x.gguf."""
    return path.suffix.lower() == ".gguf"


def target(
    path: str | Path,
    *,
    to: str | None = None,
    experts: str | None = None,
    outtype: str | None = None,
    dtype: str | None = None,
    recipe: str | Recipe = "best",
    scale_rule: str | None = None,
    ties: str | None = None,
    lossless: bool = False,
    max_shard_size: int | None = None,
    model_name: str | None = None,
    address: str | None = None,
) -> Target:
    """Check what was asked for and fill in the defaults; None means "not given".

    Raises:
        UsageError: an unknown word, or a combination outside `LEGAL`, with the legal choice named.
    """
    path = Path(path)
    for option, value in (("to", to), ("experts", experts), ("outtype", outtype)):
        _refuse_k_quant(option, value)
    to = to or ("gguf" if is_gguf(path) else None)
    if to is None:
        hint = f"give --to {{{','.join(LEGAL)}}}, or a TARGET that ends in .gguf"
        raise UsageError("TARGET does not say what to convert to", hint=hint)
    if to not in LEGAL:
        raise UsageError(f"--to {to}: unknown", hint=f"choose one of {', '.join(LEGAL)}")
    if is_gguf(path) and to != "gguf":
        hint = f"leave out {path.suffix}, or say --to gguf"
        raise UsageError(f"--to {to} writes a folder, but TARGET is {path.name}", hint=hint)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in model_name or ""):
        raise UsageError(f"--model-name {model_name!r}: is no text of one line", hint="give a name in UTF-8")
    for option, value in (("experts", experts), ("outtype", outtype), ("dtype", dtype)):
        _check(to, option, value)
    if outtype == "mxfp4_moe" and experts not in (None, *MOE_EXPERTS):
        hint = "use --outtype q8_0 for the rest"
        raise UsageError(f"--outtype mxfp4_moe makes the experts MXFP4, --experts says {experts}", hint=hint)
    return Target(
        path,
        to,
        experts or "auto",
        outtype or "auto",
        dtype or "bf16",
        chosen_recipe(recipe, scale_rule, ties),
        lossless,
        max_shard_size if to == "gguf" else max_shard_size or SAFETENSORS_SHARD,
        model_name,
        address,
    )


def _refuse_k_quant(option: str, value: str | None) -> None:
    if value is None or not K_QUANT.fullmatch(value):
        return
    instead = {
        "experts": "--experts mxfp4, which has 4.25 bits an element, or --experts q8_0",
        "outtype": "--outtype mxfp4_moe (experts MXFP4 with 4.25 bits an element, the rest Q8_0), or --outtype q8_0",
        "to": "--to gguf --outtype mxfp4_moe (experts MXFP4 with 4.25 bits an element, the rest Q8_0)",
    }[option]
    text = f"--{option} {value} has blocks of 256 elements, and gpt-oss' rows of 2880 are no multiple of 256"
    raise UsageError(text, hint=f"type {instead}")


def _check(to: str, option: str, value: str | None) -> None:
    legal = LEGAL[to][option]
    if value is None or value in legal:
        return
    if not legal:
        other = ", ".join(f"--to {t}" for t, row in LEGAL.items() if row[option])
        raise UsageError(f"--{option} {value} does not go with --to {to}", hint=f"leave it out; it goes with {other}")
    raise UsageError(f"--{option} {value} does not go with --to {to}", hint=f"choose one of {', '.join(legal)}")


def chosen_recipe(recipe: str | Recipe, scale_rule: str | None = None, ties: str | None = None) -> Recipe:
    """The named recipe, with its scale rule or tie rule replaced where asked for.

    Raises:
        UsageError: an unknown name or rule.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise UsageError(f"--recipe {recipe}: unknown", hint=f"choose one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if scale_rule is None and ties is None:
        return recipe
    for option, value, rules in (("--scale-rule", scale_rule, ScaleRule), ("--ties", ties, TieRule)):
        if value is not None and value not in list(rules):
            raise UsageError(f"{option} {value}: unknown", hint=f"choose one of {', '.join(rules)}")
    scale = ScaleRule(scale_rule or recipe.scale)
    tie = TieRule(ties or recipe.ties)
    made = replace(recipe, scale=scale, ties=tie)
    same = (r for r in (recipe, *RECIPES.values()) if replace(made, name=r.name) == r)
    return next(same, replace(made, name=f"{scale}/{tie}"))
