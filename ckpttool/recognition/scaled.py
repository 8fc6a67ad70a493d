"""Codes with scales under names beside theirs: FP8, the MX formats, NVFP4 and INT8 of every writer."""

from __future__ import annotations

from ckpttool.codecs.formats import E2M3, E3M2, INT8, ElementFormat, GlobalScale, Packing
from ckpttool.recognition.found import FLOATS, Lookup, Members, Unfit, codec_of, scale_element
from ckpttool.recognition.judged import FP6, FP8, Judged, judged
from ckpttool.tensors import Role, StoredTensor, Weight

CODED = frozenset({"U8", "I8", "I32", "F4", *FP8, *FP6})
"""The dtypes that are looked at for scales; any other tensor stands for itself, whatever it is called."""

NO_SCALES = "its scales are in a file that is missing, or misnamed"
_INT4 = ElementFormat("INT4", 4)


def scaled(codes: StoredTensor, at: Lookup) -> Weight | None:
    """The weight that `codes` make with their scales: `P` with `P_scale`, `P_scale_inv` or `P_weight_scale`.

    A `P` that is called `M.weight` may also have `M.scale` (DeepSeek-V4), `M.qscale_weight` (Mistral) or `M.SCB`
    (bitsandbytes). None where there are no scales, or nothing known is stored so.

    Raises:
        Unfit: a missing global scale, or shapes that do not fit.
    """
    name = codes.name
    module = name.removesuffix("weight") if name.endswith(".weight") or name == "weight" else None
    if (scb := _module(at, module, "SCB")) is not None and codes.dtype == "I8":
        return _bitsandbytes(codes, scb, at, module or "")
    scales = at.get(f"{name}_scale_inv", f"{name}_scale", f"{name}_weight_scale")
    if scales is None:
        scales = _module(at, module, "scale", "qscale_weight")
        if scales is None or (codes.dtype not in FP8 and scales.dtype != "F8_E8M0"):
            return None
    second = at.get(f"{scales.name}_2", f"{name}_global_scale")
    zeros = at.get(f"{name}_zero_point")
    known = _judged(codes, scales, second, zeros, at)
    if known is None:
        return None
    members = Members([(Role.codes, codes), (Role.scales, scales)])
    if second is not None:
        _require_one_each(codes, second)
        members.add(Role.global_scale, second)
    members.add(Role.zero_points, zeros)
    add_inputs(members, at, name, module)
    return members.weight(name, known.codec, known.shape)


def _module(at: Lookup, module: str | None, *ends: str) -> StoredTensor | None:
    return None if module is None else at.get(*(module + end for end in ends))


def _judged(
    codes: StoredTensor, scales: StoredTensor, second: StoredTensor | None, zeros: StoredTensor | None, at: Lookup
) -> Judged | None:
    """By dtypes and shapes; the integers that only one writer packs so come first."""
    if codes.dtype == "I32":
        return _quark_int4(codes, scales) if at.stated.method == "quark" else None
    if codes.dtype == "U8" and scales.dtype in FLOATS:
        return _modelopt_int4(codes, scales) or _unsigned(codes, scales, zeros)
    packing, rule = _writer(codes, scales, second, at)
    fp6 = next((e for word, e in (("fp6_e2m3", E2M3), ("fp6_e3m2", E3M2)) if word in at.stated.elements), None)
    return judged(codes, scales, packing, rule, fp6, at.stated.block)


def _writer(
    codes: StoredTensor, scales: StoredTensor, second: StoredTensor | None, at: Lookup
) -> tuple[Packing, GlobalScale]:
    """Whose packing it is. The nibbles lie alike in all of them; what the global scale does is not alike."""
    if codes.dtype in FP8 or scales.dtype in FLOATS:
        return Packing.scaled, GlobalScale.none
    if scales.dtype == "F8_E4M3":
        if second is None:
            hint = "NVFP4 needs the scale of the tensor; its file is missing, or it is misnamed"
            raise Unfit(f"has no {scales.name}_2", hint, codes)
        divides = second.name.endswith("_global_scale")
        found = Packing.compressed_tensors if divides else Packing.modelopt
        return found, GlobalScale.divides if divides else GlobalScale.multiplies
    if codes.dtype == "I8":
        return Packing.deepseek, GlobalScale.none
    return (Packing.modelopt if at.stated.method == "modelopt" else Packing.quark), GlobalScale.none


def _require_one_each(codes: StoredTensor, second: StoredTensor) -> None:
    """A global scale is one number, or one for each expert."""
    shape = tuple(n for n in second.shape if n != 1)
    if shape and (shape != codes.shape[: len(shape)] or len(shape) > len(codes.shape) - 2):
        text = f"{list(second.shape)} beside {codes.name} {list(codes.shape)}: it must be one for each matrix"
        raise Unfit(text, "is it of another checkpoint?", second)


def _modelopt_int4(codes: StoredTensor, scales: StoredTensor) -> Judged | None:
    """ModelOpt's INT4: U8 [.., out / 2, in], two output rows a byte, with scales [.., out, in / group]."""
    if len(codes.shape) < 2 or len(scales.shape) != len(codes.shape):
        return None
    rows, columns = codes.shape[-2] * 2, codes.shape[-1]
    count = scales.shape[-1]
    if scales.shape[:-1] != (*codes.shape[:-2], rows) or not count or columns % count:
        return None
    codec = codec_of("INT4", _INT4, scale_element(scales.dtype), (1, columns // count), Packing.modelopt)
    return Judged(codec, (*codes.shape[:-2], rows, columns))


def _unsigned(codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None) -> Judged | None:
    """U8 with zero points is INT8; without them, nothing says that these bytes are numbers."""
    if zeros is None:
        return None
    signed = StoredTensor(codes.name, "I8", codes.shape, codes.file, codes.offset, codes.nbytes)
    return judged(signed, scales, Packing.scaled)


def _quark_int4(codes: StoredTensor, scales: StoredTensor) -> Judged | None:
    """Quark's INT4: by group, I32 [in, out / 8] with scales [groups, out]; by channel, I32 [out, in / 8]."""
    if len(codes.shape) != 2 or scales.dtype not in FLOATS:
        return None
    first, words = codes.shape
    element = scale_element(scales.dtype)
    if len(scales.shape) == 2 and scales.shape[1] == words * 8 and first % max(1, scales.shape[0]) == 0:
        codec = codec_of("INT4", _INT4, element, (1, first // scales.shape[0]), Packing.quark)
        return Judged(codec, (words * 8, first))
    if scales.shape in ((), (1,), (first,), (first, 1)):
        how = (1, 0) if scales.shape[:1] == (first,) else (0, 0)
        return Judged(codec_of("INT4", _INT4, element, how, Packing.quark), (first, words * 8))
    return None


def _bitsandbytes(codes: StoredTensor, scb: StoredTensor, at: Lookup, module: str) -> Weight:
    """LLM.int8(): I8 [out, in] with SCB F32 [out]; a weight is code times SCB over 127."""
    if len(codes.shape) != 2 or scb.shape != codes.shape[:1] or scb.dtype not in FLOATS:
        text = f"{list(codes.shape)} with SCB {scb.dtype} {list(scb.shape)}; LLM.int8() has one for each row"
        raise Unfit(text, "is it of another checkpoint?", codes)
    members = Members([(Role.codes, codes), (Role.scales, scb)])
    members.add(Role.state, at.get(f"{module}weight_format"))
    codec = codec_of("INT8", INT8, scale_element(scb.dtype), (1, 0), Packing.bitsandbytes)
    return members.weight(codes.name, codec, codes.shape)


def add_inputs(members: Members, at: Lookup, name: str, module: str | None) -> None:
    """What a quantized weight's module says of its input: scales, zero points, factors."""
    if not any(word.endswith(_INPUTS) for word in at.last_words):
        return
    for prefix in (f"{name}_", module):
        if prefix is None:
            continue
        members.add(Role.input_scale, at.get(*(prefix + end for end in _INPUT_SCALES)))
        members.add(Role.input_zero_point, at.get(f"{prefix}input_zero_point"))
        members.add(Role.input_smoothing, at.get(f"{prefix}pre_quant_scale"))


_INPUT_SCALES = ("input_scale", "input_global_scale", "activation_scale", "qscale_act")
_INPUTS = (*_INPUT_SCALES, "input_zero_point", "pre_quant_scale")
