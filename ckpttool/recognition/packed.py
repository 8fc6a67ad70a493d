"""Codes packed under names of their own: compressed-tensors' `_packed`, GPTQ's and AWQ's `qweight`."""

from __future__ import annotations

import struct
from math import ceil, prod

from ckpttool.codecs.formats import E2M3, Codec, ElementFormat, GlobalScale, Packing
from ckpttool.recognition.found import FLOATS, Lookup, Members, Unfit, codec_of, scale_element
from ckpttool.recognition.judged import judged
from ckpttool.recognition.scaled import NO_SCALES, add_inputs
from ckpttool.tensors import Role, StoredTensor, Weight

WORD = 32
"""Bits of the words that integers are packed in."""

PACKED, QWEIGHT = "_packed", "qweight"


def integer(bits: int) -> ElementFormat:
    """The element of an integer format of `bits` bits."""
    return ElementFormat(f"INT{bits}", bits)


def compressed(codes: StoredTensor, at: Lookup) -> Weight | None:
    """compressed-tensors: `P_packed` with `P_scale`; U8 is MXFP4, MXFP6 or NVFP4, I32 integers. Else None.

    Raises:
        Unfit: no scales, no global scale, or shapes that do not fit.
    """
    if codes.dtype not in ("U8", "I32"):
        return None
    name = codes.name.removesuffix(PACKED)
    module = name.removesuffix("weight") if name.endswith(".weight") or name == "weight" else None
    scales = at.get(f"{name}_scale")
    if scales is None:
        raise Unfit("has no scales", NO_SCALES, codes)
    members = Members([(Role.codes, codes), (Role.scales, scales)])
    if codes.dtype == "I32":
        made = _words(codes, scales, name, at)
    else:
        whole = at.get(f"{name}_global_scale")
        rule = GlobalScale.none
        if scales.dtype == "F8_E4M3":
            if whole is None:
                hint = "NVFP4 needs the scale of the tensor; its file is missing, or it is misnamed"
                raise Unfit(f"has no {name}_global_scale", hint, codes)
            rule = GlobalScale.divides
        known = judged(codes, scales, Packing.compressed_tensors, rule, E2M3)
        made = (known.codec, known.shape) if known else None
        members.add(Role.global_scale, whole)
    if made is None:
        return None
    for role, end in _COMPANIONS:
        members.add(role, at.get(f"{name}_{end}"))
    add_inputs(members, at, name, module)
    return members.weight(name, *made)


_COMPANIONS = ((Role.zero_points, "zero_point"), (Role.shape, "shape"), (Role.group_order, "g_idx"))


def _words(codes: StoredTensor, scales: StoredTensor, name: str, at: Lookup) -> tuple[Codec, tuple[int, ...]] | None:
    """Integers without gaps in 32-bit words: how many bits each has is in `weight_shape`, or in the config."""
    if scales.dtype not in FLOATS or not codes.shape:
        raise Unfit(f"I32 with scales {scales.dtype}; packed integers have plain ones", NO_SCALES, codes)
    words = codes.shape[-1]
    grouped = len(scales.shape) == len(codes.shape) and scales.shape[:-1] == codes.shape[:-1]
    count = scales.shape[-1] if grouped else 1
    shape = _told_shape(codes, at.get(f"{name}_shape"), at)
    fits = []
    for bits, group in at.stated.groups or tuple((b, None) for b in range(1, 9)):
        columns = shape[-1] if shape else count * group if group and count > 1 else words * WORD // bits
        if ceil(columns * bits / WORD) == words and (group is None or count == 1 or ceil(columns / group) == count):
            fits.append((bits, group, columns))
    if not fits and at.stated.groups:
        stated = " or ".join(f"{b} bits" + (f" in groups of {g}" if g else "") for b, g in at.stated.groups)
        text = f"{list(codes.shape)} words with scales {list(scales.shape)}, but config.json says {stated}"
        raise Unfit(text, "is it of another checkpoint?", codes)
    if len({(bits, columns) for bits, _, columns in fits}) != 1:
        return None
    bits, group, columns = fits[0]
    block = group or (ceil(columns / count) if count > 1 else 0)
    how = (1, block) if count > 1 else (1, 0) if prod(scales.shape) > 1 else (0, 0)
    codec = codec_of(f"INT{bits}", integer(bits), scale_element(scales.dtype), how, Packing.compressed_tensors)
    return codec, (*codes.shape[:-1], columns)


def _told_shape(codes: StoredTensor, shape: StoredTensor | None, at: Lookup) -> tuple[int, ...] | None:
    """What `weight_shape` says; its leading axes must be those of the words."""
    data = at.small(shape)
    if data is None or shape is None or shape.dtype not in INTEGERS:
        return None
    numbers = integers(data, shape.dtype)
    if len(numbers) < 2 or numbers[-2] != codes.shape[-2] or not 0 < numbers[-1] < 1 << 40:
        text = f"says {list(numbers)[:8]}, but {codes.name} has {list(codes.shape)} words"
        raise Unfit(text, "is it of another checkpoint?", shape)
    return numbers


INTEGERS = {"I64": "q", "I32": "i", "I16": "h", "U8": "B"}


def integers(data: bytes, dtype: str) -> tuple[int, ...]:
    """The whole numbers that a small tensor of this dtype holds."""
    code = INTEGERS[dtype]
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


def words(codes: StoredTensor, at: Lookup) -> Weight | None:
    """GPTQ's and AWQ's `M.qweight` I32 with `M.scales`, `M.qzeros`, `M.g_idx`: told apart by which axis is packed.

    Raises:
        Unfit: no scales, or shapes that do not fit.
    """
    if codes.dtype != "I32" or len(codes.shape) != 2:
        return None
    module = codes.name.removesuffix(QWEIGHT)
    scales, zeros, order = (at.get(module + end) for end in ("scales", "qzeros", "g_idx"))
    if scales is None:
        raise Unfit("has no scales", NO_SCALES, codes)
    if scales.dtype not in FLOATS or len(scales.shape) != 2:
        return None
    members = Members([(Role.codes, codes), (Role.scales, scales)])
    members.add(Role.zero_points, zeros)
    members.add(Role.group_order, order)
    groups, last = scales.shape
    if last == codes.shape[1]:
        packing, bits, (out, k) = _gptq(codes, scales, zeros, order, at)
    elif groups == codes.shape[0]:
        packing, bits, (out, k) = _gemv(codes, scales, zeros, at)
        groups = ceil(k / at.stated.group) if at.stated.group else last
    else:
        packing, bits, (out, k) = _awq(codes, scales, zeros)
    block = ceil(k / groups) if groups > 1 else 0
    codec = codec_of(f"INT{bits}", integer(bits), scale_element(scales.dtype), (1, block), packing)
    return members.weight(f"{module}weight", codec, (out, k))


def _gptq(
    codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None, order: StoredTensor | None, at: Lookup
) -> tuple[Packing, int, tuple[int, int]]:
    """Words down the columns: the zero points, packed along a row, tell how many bits a number has."""
    groups, out = scales.shape
    bits = at.stated.bits
    if zeros is not None and len(zeros.shape) == 2:
        bits = zeros.shape[1] * WORD // max(1, out)
        if zeros.shape[0] != groups or ceil(out * bits / WORD) != zeros.shape[1]:
            bits = 0
    elif order is not None and len(order.shape) == 1:
        bits = codes.shape[0] * WORD // max(1, order.shape[0])
    if not bits or bits > 8:
        raise _unfit(codes, scales, zeros, "GPTQ's zero points are [groups, out * bits / 32]")
    k = order.shape[0] if order is not None and len(order.shape) == 1 else codes.shape[0] * WORD // bits
    if ceil(k * bits / WORD) != codes.shape[0] or groups > k:
        raise _unfit(codes, scales, zeros, f"{bits} bits for each of {k} columns are {ceil(k * bits / WORD)} words")
    return Packing.gptq, bits, (out, k)


def _awq(codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None) -> tuple[Packing, int, tuple[int, int]]:
    """Words along the output axis."""
    (k, across), (groups, out) = codes.shape, scales.shape
    bits, rest = divmod(across * WORD, max(1, out))
    fits = zeros is None or zeros.shape == (groups, across)
    if rest or bits not in (2, 4, 8) or not fits or not groups or k % groups:
        raise _unfit(codes, scales, zeros, "neither GPTQ's [in * bits / 32, out] nor AWQ's [in, out * bits / 32]")
    return Packing.awq, bits, (out, k)


def _gemv(
    codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None, at: Lookup
) -> tuple[Packing, int, tuple[int, int]]:
    """AWQ's older layout: rows are outputs, scales [out, groups], padded to whole words of zero points."""
    out, across = codes.shape
    bits = at.stated.bits or 4
    if zeros is not None:
        bits = zeros.shape[-1] * WORD // max(1, scales.shape[1])
    if bits not in (2, 4, 8) or (zeros is not None and zeros.shape[0] != out):
        raise _unfit(codes, scales, zeros, "AWQ's gemv has zero points [out, groups * bits / 32]")
    return Packing.awq_gemv, bits, (out, across * WORD // bits)


def _unfit(codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None, why: str) -> Unfit:
    beside = "" if zeros is None else f" and zero points {list(zeros.shape)}"
    text = f"I32 {list(codes.shape)} with scales {list(scales.shape)}{beside}; {why}"
    return Unfit(text, "is it of another checkpoint, or of a format that is not known here?", codes)
