"""Every stored tensor of a safetensors checkpoint, grouped into weights: the order of rules, and what is left over.

A tensor is an anchor by its name (`qweight`, `W_q`, `_packed` ...) or by its dtype; the anchor's recogniser decides by
what is stored. What no rule takes is a weight of its stored dtype. What a rule takes and cannot fit is a problem, and
its tensors are shown as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckpttool.codecs.formats import MXFP4_PAIR, Packing
from ckpttool.errors import CkptError, InputError
from ckpttool.recognition.found import Lookup, Peek, Unfit, plain_codec
from ckpttool.recognition.judged import FP8, POWERS
from ckpttool.recognition.outcome import Recognition
from ckpttool.recognition.packed import PACKED, QWEIGHT, compressed, words
from ckpttool.recognition.scaled import CODED, NO_SCALES, scaled
from ckpttool.recognition.stated import stated
from ckpttool.recognition.states import ABSMAX, W_Q, bitsandbytes, hqq
from ckpttool.recognition.torchao import QDATA, torchao
from ckpttool.tensors import Role, StoredTensor, Weight

PAIRS = (("_blocks", "_scales"), (".blocks", ".scales"))
"""What codes' and scales' names end in, in every dialect that has MXFP4 in two tensors."""

_PAIR_HINT = "an MXFP4 weight is codes and scales; one of its files is missing or misnamed"


def recognise(
    stored: Sequence[StoredTensor], config: Mapping[str, Any] | None = None, peek: Peek | None = None
) -> Recognition:
    """The weights that `stored` make; `peek` reads small tensors, where that costs nothing.

    Raises:
        InputError: from `peek`, for a file that changed or ended.
    """
    at = Lookup({t.name: t for t in stored}, stated(config), peek)
    found: dict[str, Weight] = {}
    problems: list[CkptError] = []
    broken: set[str] = set()
    four = {n.removesuffix(ABSMAX) for n in at.by_name if n.endswith(ABSMAX)}
    for t in stored:
        recogniser, name = _recogniser(t, four)
        if recogniser is None or t.name in found:
            continue
        try:
            weight = recogniser(t, at)
        except Unfit as e:
            problems.append(InputError(e.message, file=e.at.file, field=e.at.name, hint=e.hint))
            broken.add(name)
            continue
        if weight is not None:
            found[t.name] = weight
    taken = {s.name for w in found.values() for s in w.stored}
    weights = [found.get(t.name) or Weight(t.name, plain_codec(t.dtype), t.shape, (t,)) for t in stored
               if t.name in found or t.name not in taken]  # fmt: skip
    for problem, name in _left_over(weights, at):
        problems.append(problem)
        broken.add(name)
    return Recognition(tuple(weights), tuple(problems), frozenset(broken), _loose(weights, broken))


def _loose(weights: Sequence[Weight], broken: set[str]) -> frozenset[str]:
    """The tensors shown as stored whose names begin as that of a broken weight of their module does."""
    stems: dict[str, list[str]] = {}
    for name in broken:
        stems.setdefault(name.rpartition(".")[0], []).append(name.removesuffix("weight"))
    return frozenset(
        w.name
        for w in weights
        if w.codec.packing is Packing.flat
        and any(w.name.startswith(stem) for stem in stems.get(w.name.rpartition(".")[0], ())[:_STEMS])
    )


_STEMS = 64
"""Broken weights of one module that are looked through for each of its tensors: real modules have a few."""


Recogniser = Callable[[StoredTensor, Lookup], Weight | None]


def _recogniser(t: StoredTensor, four: set[str]) -> tuple[Recogniser | None, str]:
    """Who looks at `t`, and the name of the weight that its tensors would make."""
    name = t.name
    if name in four:
        return bitsandbytes, name
    if name.endswith(_ENDS):
        for end, recogniser, replaced in _ANCHORS:
            if name.endswith(end):
                return recogniser, name.removesuffix(end) + replaced
    return (scaled, name) if t.dtype in CODED else (None, name)


def _pair(codes: StoredTensor, at: Lookup) -> Weight | None:
    """The MXFP4 weight of two stored tensors: codes U8 [..., G, 16], scales U8 [..., G]."""
    end, other = next(p for p in PAIRS if codes.name.endswith(p[0]))
    name = codes.name.removesuffix(end)
    scales = at.get(name + other)
    if scales is None:
        if codes.dtype != "U8":
            return None
        raise Unfit("has no scales", _PAIR_HINT, codes)
    if (codes.dtype, scales.dtype) != ("U8", "U8") or not scales.shape or codes.shape != (*scales.shape, 16):
        text = f"{codes.dtype} {list(codes.shape)} with scales {scales.dtype} {list(scales.shape)}"
        raise Unfit(f"{text}; MXFP4 is U8 [..., G, 16] with U8 [..., G]", "another format under MXFP4's names", codes)
    shape = (*scales.shape[:-1], scales.shape[-1] * 32)
    return Weight(name, MXFP4_PAIR, shape, (codes, scales), (Role.codes, Role.scales))


_ANCHORS: tuple[tuple[str, Recogniser, str], ...] = (
    *((codes, _pair, "") for codes, _ in PAIRS),
    (PACKED, compressed, ""),
    ("." + QWEIGHT, words, ".weight"),
    ("." + W_Q, hqq, ".weight"),
    (QDATA, torchao, ""),
)
_ENDS = tuple(end for end, _, _ in _ANCHORS)

_ORPHANS = (
    ("_scales", ("_blocks", "", "_packed"), "U8"),
    (".scales", (".blocks", ".weight", ".qweight", ".W_q", ".weight_packed"), "U8"),
    ("_scale_inv", ("", "_packed"), ""),
    (".weight_scale", (".weight", ".weight_packed"), ""),
    (".weight_scale_2", (".weight",), ""),
    (".weight_global_scale", (".weight_packed", ".weight"), ""),
    (".weight_zero_point", (".weight_packed", ".weight"), ""),
    (".qzeros", (".qweight",), "I32"),
    (ABSMAX, ("",), ""),
    (".SCB", (".weight",), ""),
)
"""Names that only companions have, of which tensors, and of which dtype (any): alone, they show that one is missing."""


def _left_over(weights: Sequence[Weight], at: Lookup) -> list[tuple[CkptError, str]]:
    """Companions whose codes are missing, and codes without scales where others like them have some.

    With each, the name of the weight that is not whole.
    """
    out: list[tuple[CkptError, str]] = []
    coded = {w.stored[0].dtype for w in weights if w.codec.packing in _BESIDE}
    if at.stated.method in _FP8_METHODS:
        coded |= FP8.keys()
    for w in weights:
        t = w.stored[0]
        if w.codec.packing is not Packing.flat:
            continue
        orphan = next((o for o in _ORPHANS if t.name.endswith(o[0]) and o[2] in ("", t.dtype)), None)
        if orphan is not None:
            end, others, _ = orphan
            base = t.name.removesuffix(end)
            if all(base + other not in at.by_name for other in others):
                blocks = others[0].endswith("blocks")
                hint = _PAIR_HINT if blocks else "the file of its codes is missing or misnamed"
                problem = InputError(f"has no {base}{others[0]}", file=t.file, field=t.name, hint=hint)
                out.append((problem, base if blocks else base + others[0]))
        elif t.dtype in coded - POWERS and len(t.shape) >= 2:
            text = f"is {t.dtype} and has no scales, as others like it have"
            out.append((InputError(text, file=t.file, field=t.name, hint=NO_SCALES), t.name))
    return out


_FP8_METHODS = frozenset({"fp8", "fbgemm_fp8"})
"""Words of `quant_method` whose loaders give every FP8 weight a scale: transformers' finegrained and FBGEMM's."""

_BESIDE = frozenset({Packing.scaled, Packing.deepseek})
"""Packings whose codes have plain names: only their dtype tells that scales are missing."""
