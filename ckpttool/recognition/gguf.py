"""The weights of a GGUF: one for each tensor; NVFP4's scales of whole tensors are bound to theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import prod

from ckpttool.codecs.formats import Codec, GlobalScale, ggml_codec
from ckpttool.tensors import Role, StoredTensor, Weight

NVFP4 = "NVFP4"
_BESIDE = ((Role.global_scale, "scale"), (Role.input_scale, "input_scale"))


def gguf_weights(stored: Sequence[StoredTensor]) -> tuple[Weight, ...]:
    """`stored` as weights. An NVFP4 tensor `X.weight` takes in `X.scale` and `X.input_scale`, F32, one for each matrix.

    llama.cpp multiplies by them. Source: its conversion of ModelOpt's checkpoints.
    """
    four = {t.name.removesuffix("weight"): t for t in stored if t.dtype == NVFP4 and t.name.endswith(".weight")}
    if not four:
        return tuple(Weight(t.name, ggml_codec(t.dtype), t.shape, (t,)) for t in stored)
    by_name = {t.name: t for t in stored}
    bound: dict[str, list[tuple[Role, StoredTensor]]] = {}
    taken = set()
    for module, t in four.items():
        for role, end in _BESIDE:
            scale = by_name.get(module + end)
            if scale is not None and scale.dtype == "F32" and prod(scale.shape) in (1, prod(t.shape[:-2])):
                bound.setdefault(t.name, []).append((role, scale))
                taken.add(scale.name)
    return tuple(_weight(t, bound.get(t.name, [])) for t in stored if t.name not in taken)


def _weight(t: StoredTensor, beside: Sequence[tuple[Role, StoredTensor]]) -> Weight:
    roles = (Role.codes, *(r for r, _ in beside))
    codec = _multiplied() if Role.global_scale in roles else ggml_codec(t.dtype)
    return Weight(t.name, codec, t.shape, (t, *(s for _, s in beside)), roles if beside else ())


@cache
def _multiplied() -> Codec:
    return replace(ggml_codec(NVFP4), global_scale=GlobalScale.multiplies)
