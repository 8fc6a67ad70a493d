"""The conversions that are disturbed: small models, some ten slabs each, and an old target where one is overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import builders
from builders import Model, Sizes

import ckpttool
from ckpttool.reports import Conversion as Receipt

SIZES = Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300)
SLAB_NBYTES = 20_000


@dataclass(frozen=True)
class Conversion:
    """From a small model in this dialect ("gguf": a GGUF) to `target`; over the conversion of another one if `over`."""

    dialect: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    over: bool = False


CONVERSIONS = {
    "BF16 to MXFP4": Conversion("hf-bf16", "out", {"to": "mxfp4"}),
    "MXFP4 to BF16": Conversion("hf", "out", {"to": "bf16"}),
    "MXFP4 to GGUF": Conversion("hf", "out.gguf", {"model_name": "x"}),
    "GGUF to MXFP4": Conversion("gguf", "out", {"to": "mxfp4"}),
    "in shards": Conversion("hf", "out", {"to": "bf16", "max_shard_size": 40_000}),
    "over an old folder": Conversion("hf-bf16", "out", {"to": "mxfp4"}, over=True),
    "over an old GGUF": Conversion("hf", "out.gguf", {"model_name": "x"}, over=True),
}


def source(conversion: Conversion, folder: Path, seed: int = 0) -> Path:
    """The checkpoint that is converted, written into `folder`."""
    model = Model(SIZES, seed)
    if conversion.dialect == "gguf":
        folder.mkdir(parents=True)
        return builders.write_gguf(model, folder / "model.gguf")
    return builders.write(model, folder / "source", conversion.dialect)


def convert(conversion: Conversion, source: Path, folder: Path, **more: Any) -> Receipt:
    """Convert to the target in `folder`."""
    return ckpttool.convert(source, folder / conversion.target, **{**conversion.options, **more})
