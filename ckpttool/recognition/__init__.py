"""What the stored tensors of a checkpoint are, told by what is stored: dtypes, shapes, companions, small states.

`recognise` groups a safetensors checkpoint's tensors into weights, `gguf_weights` a GGUF's; `fingerprint` and `bias_of`
say what the scales of MXFP4 betray. The rules of safetensors load when they are asked for: a GGUF needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpttool.recognition.bias import Bias, bias_of
from ckpttool.recognition.fingerprint import Fingerprint, fingerprint
from ckpttool.recognition.gguf import gguf_weights
from ckpttool.recognition.outcome import Recognition

if TYPE_CHECKING:
    from ckpttool.recognition.found import Peek
    from ckpttool.recognition.grouping import recognise
    from ckpttool.recognition.peek import Peeker

__all__ = [
    "Bias",
    "Fingerprint",
    "Peek",
    "Peeker",
    "Recognition",
    "bias_of",
    "fingerprint",
    "gguf_weights",
    "recognise",
]

_HOMES = {"Peek": "found", "Peeker": "peek", "recognise": "grouping"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckpttool.recognition' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ckpttool.recognition.{_HOMES[name]}"), name)
