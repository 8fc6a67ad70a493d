"""torchao's safetensors form: a tensor subclass taken apart as `M._weight_qdata`, `M._weight_scale` and more.

Source: torchao.prototype.safetensors. Its INT4 has layouts of several kernels and is shown as stored.
"""

from __future__ import annotations

from ckpttool.codecs.formats import GlobalScale, Packing
from ckpttool.recognition.found import FLOATS, Lookup, Members
from ckpttool.recognition.judged import FP8, judged
from ckpttool.tensors import Role, StoredTensor, Weight

QDATA = "_qdata"


def torchao(codes: StoredTensor, at: Lookup) -> Weight | None:
    """The weight `M.P` of `M._P_qdata` with `M._P_scale`: FP8, MXFP8, MXFP4, NVFP4 or INT8. Else None.

    Raises:
        Unfit: shapes that do not fit.
    """
    module, dot, last = codes.name.removesuffix(QDATA).rpartition(".")
    scales = at.get(f"{module}{dot}{last}_scale")
    if not last.startswith("_") or scales is None:
        return None
    if codes.dtype == "I8" and scales.dtype in FLOATS and len(scales.shape) != len(codes.shape):
        return None
    whole = at.get(f"{module}{dot}{last}_per_tensor_scale")
    rule = GlobalScale.multiplies if whole else GlobalScale.none
    packing = Packing.scaled if codes.dtype in FP8 else Packing.torchao
    known = judged(codes, scales, packing, rule)
    if known is None:
        return None
    members = Members([(Role.codes, codes), (Role.scales, scales)])
    members.add(Role.global_scale, whole)
    members.add(Role.zero_points, at.get(f"{module}{dot}{last}_zero_point"))
    return members.weight(f"{module}{dot}{last[1:]}", known.codec, known.shape)
