"""Where a weight's scales lie: in a tensor beside the codes, or at a place in each block of a GGUF.

Reading scales beside codes touches nothing else, 1/17 of MXFP4's bytes. In GGUF blocks they lie between the codes, so
all bytes are read, and the scales are taken out by their stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ckpttool.codecs.formats import Packing
from ckpttool.tensors import Role, StoredTensor, Weight

NUMPY: Final = {"E8M0": np.uint8, "E4M3": np.uint8, "F16": np.uint16, "BF16": np.uint16, "F32": np.uint32}
"""How the bits of a scale are held: its width."""

GGML: Final = {
    "MXFP4": ("E8M0", (0,)), "NVFP4": ("E4M3", (0, 1, 2, 3)), "Q4_0": ("F16", (0,)), "Q4_1": ("F16", (0,)),
    "Q5_0": ("F16", (0,)), "Q5_1": ("F16", (0,)), "Q8_0": ("F16", (0,)), "Q8_1": ("F16", (0,)),
    "Q2_K": ("F16", (80,)), "Q3_K": ("F16", (108,)), "Q4_K": ("F16", (0,)), "Q5_K": ("F16", (0,)),
    "Q6_K": ("F16", (208,)), "Q8_K": ("F32", (0,)), "IQ2_XXS": ("F16", (0,)), "IQ2_XS": ("F16", (0,)),
    "IQ2_S": ("F16", (0,)), "IQ3_XXS": ("F16", (0,)), "IQ3_S": ("F16", (0,)), "IQ1_S": ("F16", (0,)),
    "IQ4_NL": ("F16", (0,)), "IQ4_XS": ("F16", (0,)), "TQ1_0": ("F16", (52,)), "TQ2_0": ("F16", (64,)),
}  # fmt: skip
"""The scale `d` of ggml's blocks and where it lies in each (ggml-common.h). IQ1_M's is spread over other fields."""

_BESIDE: Final = {"F8_E8M0": "E8M0", "U8": "E8M0", "F8_E4M3": "E4M3", "F16": "F16", "BF16": "BF16", "F32": "F32"}


@dataclass(frozen=True, slots=True)
class ScaleSource:
    """The scales of a weight: at `places` of each item of `item_nbytes` of `tensor`, in `experts` equal parts.

    `element` is what they are, a key of NUMPY. `experts` is 1 for a weight that holds one matrix; `stacked` is false
    there.
    """

    weight: Weight
    tensor: StoredTensor
    element: str
    item_nbytes: int
    places: tuple[int, ...]
    experts: int
    stacked: bool

    @property
    def items(self) -> int:
        """Items of one expert."""
        return self.tensor.nbytes // self.item_nbytes // self.experts


def scale_source(w: Weight) -> ScaleSource | None:
    """Where the scales of `w` lie, None where it has none, or none that are known."""
    if w.codec.packing is Packing.ggml:
        return _in_blocks(w)
    tensor = w.stored_as(Role.scales) if len(w.stored) > 1 else None
    if tensor is None or w.codec.format.scale is None:
        return None
    element = w.codec.format.scale.name
    if _BESIDE.get(tensor.dtype) != element:
        return None  # bitsandbytes' scales that are codes themselves
    size = np.dtype(NUMPY[element]).itemsize
    experts = w.shape[0] if len(w.shape) == 3 and tensor.shape[:1] == w.shape[:1] else 1
    return _source(w, tensor, element, size, (0,), experts)


def _in_blocks(w: Weight) -> ScaleSource | None:
    known = GGML.get(w.codec.name)
    if known is None:
        return None
    element, places = known
    experts = w.shape[0] if len(w.shape) == 3 else 1
    return _source(w, w.stored[0], element, w.codec.block_nbytes[0], places, experts)


def _source(
    w: Weight, tensor: StoredTensor, element: str, size: int, places: tuple[int, ...], experts: int
) -> ScaleSource | None:
    if not tensor.nbytes or not experts or tensor.nbytes % (size * experts):
        return None
    stacked = len(w.shape) == 3 and experts == w.shape[0]
    return ScaleSource(w, tensor, element, size, places, experts, stacked)
