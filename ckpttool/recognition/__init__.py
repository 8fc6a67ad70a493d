"""What the stored tensors of a checkpoint are, told by what is stored: dtypes, shapes, companions, small states.

`recognise` groups a safetensors checkpoint's tensors into weights, `gguf_weights` a GGUF's; `fingerprint` and `bias_of`
say what the scales of MXFP4 betray.
"""

from __future__ import annotations

from ckpttool.recognition.bias import Bias, bias_of
from ckpttool.recognition.fingerprint import Fingerprint, fingerprint
from ckpttool.recognition.found import Peek
from ckpttool.recognition.gguf import gguf_weights
from ckpttool.recognition.grouping import Recognition, recognise
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
