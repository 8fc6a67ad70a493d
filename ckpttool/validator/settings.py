"""What the forward pass needs to know of a model besides its weights, from whichever side file says it.

Where a file says nothing, what its readers then take stands in for it (`comparison.config`), so that two dialects of
one model have equal settings, and a wrong rope or window in one of them computes what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ckpttool.checkpoint import Checkpoint
from ckpttool.comparison.config import said
from ckpttool.errors import InputError, raise_all

WINDOWED, FULL = "sliding_attention", "full_attention"

PUBLISHED_ROPE: Final[Mapping[str, Any]] = {
    "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False,
}  # fmt: skip
"""What transformers' GptOssConfig takes for a config.json that says nothing of rope's scaling."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `type` is "default", "linear" or "yarn"; `concentration` None: what YaRN's paper gives."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    concentration: float | None = None


@dataclass(frozen=True)
class Settings:
    """A gpt-oss model's sizes and settings. `windows` has for each layer its sliding window in tokens, or None."""

    layers: int
    experts: int
    hidden: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    experts_per_token: int
    windows: tuple[int | None, ...]
    eps: float
    rope: Rope
    swiglu_alpha: float
    swiglu_limit: float

    def differing(self, other: Settings) -> tuple[str, ...]:
        """The names of settings that differ."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


def settings_of(checkpoint: Checkpoint) -> Settings:
    """The settings of a gpt-oss checkpoint.

    Raises:
        InputError: damage, another architecture, or a value that no forward pass can be made with.
    """
    raise_all(checkpoint.problems)
    if checkpoint.arch is None or checkpoint.arch.name != "gpt-oss":
        name = checkpoint.arch.name if checkpoint.arch else "an unknown architecture"
        raise InputError(f"holds {name}; the forward pass knows gpt-oss", file=str(checkpoint.path))
    if checkpoint.sizes is None:
        raise InputError("has no config.json, which says how large the model is", file=str(checkpoint.path))
    told = said(checkpoint)
    if told.note is not None:
        raise InputError(told.note, file=str(checkpoint.path))
    read = _Fields({**told.defaults, **told.fields}, str(checkpoint.path))
    s = checkpoint.sizes
    if s["N"] % s["K"] or s["D"] % 2:
        what = f"{s['N']} query heads on {s['K']} key heads of {s['D']}"
        raise InputError(f"{what} cannot attend", file=str(checkpoint.path), field="num_attention_heads")
    k = read.number("num_experts_per_tok", None, whole=True)
    if k > s["E"]:
        raise InputError(f"is {k:.0f} of {s['E']} experts", file=str(checkpoint.path), field="num_experts_per_tok")
    return Settings(
        s["L"], s["E"], s["H"], s["I"], s["V"], s["N"], s["K"], s["D"], int(k), read.windows(s["L"]),
        read.number("rms_norm_eps", 1e-5), read.rope(), read.number("swiglu_alpha", 1.702),
        read.number("swiglu_limit", 7.0),
    )  # fmt: skip


class _Fields:
    """config.json's values by path, checked as they are asked for."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self._values = values
        self._file = file

    def number(self, key: str, default: float | None, *, whole: bool = False) -> float:
        """A positive finite number. InputError for anything else, and where it is missing and has no default."""
        value = self._values.get(key, default)
        if value is None:
            raise InputError("is missing, and the forward pass needs it", file=self._file, field=key)
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not math.isfinite(value) or value <= 0:
            raise InputError(f"is {value!r}, which cannot be", file=self._file, field=key)
        return value if whole else float(value)

    def windows(self, layers: int) -> tuple[int | None, ...]:
        """Each layer's window."""
        types = self._values.get("layer_types")
        if types is None:
            types = [(WINDOWED, FULL)[n % 2] for n in range(layers)]
        if not isinstance(types, list | tuple) or len(types) < layers or set(map(str, types)) - {WINDOWED, FULL}:
            text = f"is not a list of {layers} times {WINDOWED} or {FULL}"
            raise InputError(text, file=self._file, field="layer_types")
        if WINDOWED not in types[:layers]:
            return (None,) * layers
        window = int(self.number("sliding_window", 128, whole=True))
        return tuple(window if t == WINDOWED else None for t in types[:layers])

    def rope(self) -> Rope:
        """The rope, as transformers' modeling_rope_utils reads it."""
        stated = {k.removeprefix("rope."): v for k, v in self._values.items() if k.startswith("rope.")}
        if not stated.keys() & {"rope_type", "factor", "original_max_position_embeddings"}:
            published = {f"rope.{k}": v for k, v in PUBLISHED_ROPE.items()}
            return _Fields({**self._values, **published}, self._file).rope()
        theta, kind = self.number("rope.rope_theta", 150000.0), stated.get("rope_type", "default")
        if kind == "default":
            return Rope(theta)
        factor = self.number("rope.factor", None)
        if kind == "linear":
            return Rope(theta, "linear", factor)
        if kind != "yarn":
            raise InputError(f"is {kind!r}; default, linear and yarn are known", file=self._file, field="rope_type")
        known = stated.get("attention_factor") is not None
        return Rope(
            theta, "yarn", factor, int(self.number("rope.original_max_position_embeddings", None, whole=True)),
            self.number("rope.beta_fast", 32.0), self.number("rope.beta_slow", 1.0),
            bool(stated.get("truncate", True)), self.number("rope.attention_factor", None) if known else None,
        )  # fmt: skip
