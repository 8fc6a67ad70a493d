"""MXFP4 codes to bytes and back: 32 codes of a block [..., 32] are 16 bytes [..., 16], in one of two orders.

`pair` (OpenAI, Hugging Face): byte j holds element 2j low and 2j+1 high. `ggml`: byte j holds element j low and j+16
high. All 16 codes survive in both; the scale byte is not touched by either.
"""

from __future__ import annotations

import numpy as np

from ckpttool.codecs.formats import Packing
from ckpttool.codecs.reference import U8


def pack_pair(codes: U8) -> U8:
    """Bytes [..., 16] of codes [..., 32]: neighbours share a byte."""
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def unpack_pair(blocks: U8) -> U8:
    """Codes [..., 32] of bytes [..., 16]."""
    return np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)


def pack_ggml(codes: U8) -> U8:
    """Bytes [..., 16] of codes [..., 32]: the halves of the block share a byte."""
    return codes[..., :16] | codes[..., 16:] << np.uint8(4)


def unpack_ggml(blocks: U8) -> U8:
    """Codes [..., 32] of bytes [..., 16]."""
    return np.concatenate([blocks & 15, blocks >> 4], -1)


PACK = {Packing.pair: pack_pair, Packing.ggml: pack_ggml}
UNPACK = {Packing.pair: unpack_pair, Packing.ggml: unpack_ggml}
