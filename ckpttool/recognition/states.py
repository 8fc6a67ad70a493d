"""Weights whose shape is data: bitsandbytes' 4 bits and HQQ keep it in small tensors beside the codes.

Where nothing may be read (a remote checkpoint), the number of elements is still known from the bytes, and is the shape.
"""

from __future__ import annotations

import struct
from math import ceil, prod
from typing import Any

from ckpttool.codecs.formats import NF4_ELEMENT, ElementFormat, Packing
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError
from ckpttool.recognition.found import FLOATS, Lookup, Members, Unfit, codec_of, scale_element
from ckpttool.recognition.packed import INTEGERS, integer, integers
from ckpttool.tensors import Role, StoredTensor, Weight

ABSMAX, W_Q = ".absmax", "W_q"
_STATE = ".quant_state.bitsandbytes__"
_FOURS = {"nf4": ("NF4", NF4_ELEMENT), "fp4": ("FP4", ElementFormat("FP4", 4))}
_BITSANDBYTES = (
    (Role.scales, ABSMAX),
    (Role.values, ".quant_map"),
    (Role.nested_scales, ".nested_absmax"),
    (Role.nested_values, ".nested_quant_map"),
)
_ELSEWHERE = "a file of it is missing, or it is of another checkpoint"


def bitsandbytes(codes: StoredTensor, at: Lookup) -> Weight:
    """`P` of any dtype with `P.absmax` and `P.quant_state.bitsandbytes__nf4` or `__fp4`.

    Raises:
        Unfit: no state, or one that contradicts the codes.
    """
    name = codes.name
    found = [(at.get(f"{name}{_STATE}{word}"), what) for word, what in _FOURS.items()]
    state, (title, element) = next((x for x in found if x[0] is not None), found[0])
    if state is None:
        raise Unfit(f"has {ABSMAX[1:]} but no {_STATE[1:]}nf4", _ELSEWHERE, codes)
    members = Members([(Role.codes, codes)])
    for role, end in _BITSANDBYTES:
        members.add(role, at.get(name + end))
    members.add(Role.state, state)
    absmax = at.by_name[name + ABSMAX]
    shape, block = _stated_shape(codes, state, absmax, at)
    scale = scale_element(absmax.dtype) if absmax.dtype != "U8" else integer(8)
    codec = codec_of(title, element, scale, (1, block), Packing.bitsandbytes)
    return members.weight(name, codec, shape)


def _stated_shape(
    codes: StoredTensor, state: StoredTensor, absmax: StoredTensor, at: Lookup
) -> tuple[tuple[int, ...], int]:
    """The shape in the state's JSON and its block size; the bytes must hold that many elements."""
    data = at.small(state)
    count = prod(absmax.shape)
    if data is None:
        return (codes.nbytes * 2,), ceil(codes.nbytes * 2 / max(1, count))
    try:
        told: dict[str, Any] = read_object(data, state.name)
    except CkptError as e:
        raise Unfit(f"its state is no JSON: {e.message}", _ELSEWHERE, state) from e
    shape, block = told.get("shape"), told.get("blocksize")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 1 << 40 for n in shape):
        raise Unfit(f"says shape {str(shape)[:80]}", _ELSEWHERE, state)
    if type(block) is not int or not 0 < block < 1 << 20:
        raise Unfit(f"says blocksize {str(block)[:80]}", _ELSEWHERE, state)
    elements = prod(shape)
    if ceil(elements / 2) != codes.nbytes or ceil(elements / block) != count:
        text = (
            f"says {shape} in blocks of {block}, but {codes.name} has {codes.nbytes:,} bytes and "
            f"{count:,} scales; 4 bits an element are {ceil(elements / 2):,} and {ceil(elements / block):,}"
        )
        raise Unfit(text, _ELSEWHERE, state)
    return tuple(shape), block


_HQQ = (
    "shape", "nbits", "group_size", "axis", "packing", "view_as_float", "unpack_view_dtype", "compute_dtype",
    "quant_scale", "quant_zero", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip
"""What HQQ's state dict holds beside codes, scales and zero points."""

_STORED_BITS = {8: 8, 6: 8, 5: 8, 4: 4, 2: 2, 1: 1}
"""Bits that each number takes in HQQ's bytes; 3 bits are ten to a word of 32."""


def hqq(codes: StoredTensor, at: Lookup) -> Weight | None:
    """HQQ: `M.W_q` with `M.scale`, `M.zero` and the state that says what they are.

    None where the state may not be read: the bits of an element cannot be known without it.

    Raises:
        Unfit: no scales, or a state that contradicts the codes.
    """
    if codes.dtype not in ("U8", "I32"):
        return None
    module = codes.name.removesuffix(W_Q)
    scales, zeros = at.get(f"{module}scale"), at.get(f"{module}zero")
    if scales is None or zeros is None:
        raise Unfit(f"has no {'zero' if scales else 'scale'}", _ELSEWHERE, codes)
    members = Members([(Role.codes, codes), (Role.scales, scales), (Role.zero_points, zeros)])
    shape_at, bits_at = at.get(f"{module}shape"), at.get(f"{module}nbits")
    for end in _HQQ:
        members.add(Role.shape if end == "shape" else Role.state, at.get(module + end))
    shape, bits = _numbers(shape_at, at), _number(bits_at, at)
    if shape is None or bits is None or scales.dtype not in FLOATS:
        return None
    elements = prod(shape)
    numbers = codes.nbytes * 8 // _STORED_BITS.get(bits, 8) if bits != 3 else codes.nbytes // 4 * 10
    count = prod(scales.shape)
    if bits not in (*_STORED_BITS, 3) or not count or elements % count or not _holds(bits, numbers, elements):
        text = f"says {bits} bits of {list(shape)}, but has {codes.nbytes:,} bytes and {count:,} scales"
        raise Unfit(text, _ELSEWHERE, codes)
    group = elements // count
    element = integer(bits)
    codec = codec_of(element.name, element, scale_element(scales.dtype), (1, group), Packing.hqq)
    return members.weight(f"{module}weight", codec, shape)


def _holds(bits: int, numbers: int, elements: int) -> bool:
    """Words of ten may be padded by whole rows of groups; bytes are never."""
    return numbers == elements if bits != 3 else elements <= numbers


def _numbers(t: StoredTensor | None, at: Lookup) -> tuple[int, ...] | None:
    data = at.small(t)
    if t is None or data is None or t.dtype not in INTEGERS:
        return None
    found = integers(data, t.dtype)
    return found if found and all(0 < n < 1 << 40 for n in found) else None


def _number(t: StoredTensor | None, at: Lookup) -> int | None:
    """Whole, or a float of 1.58 bits, which are stored as two."""
    data = at.small(t)
    if t is None or data is None:
        return None
    if t.dtype == "F32" and len(data) == 4:
        return ceil(value) if 0 < (value := struct.unpack("<f", data)[0]) <= 8 else None
    found = integers(data, t.dtype) if t.dtype in INTEGERS else ()
    return found[0] if len(found) == 1 else None
