"""ckpttool: convert, inspect and verify open-weight mixture-of-experts checkpoints.

    >>> import ckpttool
    >>> ckpttool.convert("gpt-oss-20b", "gpt-oss-20b.gguf")
    >>> ckpttool.open_checkpoint("gpt-oss-20b.gguf").part("layer.7.gate")[3]

Every name is loaded on first use; none of them needs torch, but for `validate` and `round_trips` at level `forward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckpttool.api import convert, convert_to_hub, plan
    from ckpttool.checkpoint import Checkpoint, open_checkpoint
    from ckpttool.codecs.arrays import RECIPES, BadBlock, Recipe, dequantize, quantize
    from ckpttool.diff import compare
    from ckpttool.doctor.diagnosis import diagnose
    from ckpttool.errors import CkptError
    from ckpttool.inspector import inspect
    from ckpttool.publishing.upload import upload
    from ckpttool.serving.estimator import estimate
    from ckpttool.validator.round_trips import round_trips
    from ckpttool.validator.validation import validate
    from ckpttool.verifier import verify

__all__ = [
    "RECIPES",
    "BadBlock",
    "Checkpoint",
    "CkptError",
    "Recipe",
    "__version__",
    "compare",
    "convert",
    "convert_to_hub",
    "dequantize",
    "diagnose",
    "estimate",
    "inspect",
    "open_checkpoint",
    "plan",
    "quantize",
    "round_trips",
    "upload",
    "validate",
    "verify",
]

_HOMES = {
    "BadBlock": "codecs.reference",
    "Checkpoint": "checkpoint",
    "CkptError": "errors",
    "RECIPES": "codecs.formats",
    "Recipe": "codecs.formats",
    "compare": "diff",
    "convert": "api",
    "convert_to_hub": "api",
    "dequantize": "codecs.arrays",
    "diagnose": "doctor.diagnosis",
    "estimate": "serving.estimator",
    "inspect": "inspector",
    "open_checkpoint": "checkpoint",
    "plan": "api",
    "quantize": "codecs.arrays",
    "round_trips": "validator.round_trips",
    "upload": "publishing.upload",
    "validate": "validator.validation",
    "verify": "verifier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckpttool' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"ckpttool.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
