"""Which codec each target weight gets: the rules of `--to`, `--experts`, `--outtype` and `--dtype`."""

from __future__ import annotations

from collections.abc import Mapping

from ckpttool.archs import Claim
from ckpttool.archs.joins import PartShape
from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import (
    BF16_FLAT,
    F16_FLAT,
    F32_FLAT,
    MXFP4,
    MXFP4_GGML,
    MXFP4_PAIR,
    PLAIN,
    Q8_0_GGML,
    READ_PACKINGS,
    Codec,
)
from ckpttool.errors import CkptError, InputError, UsageError
from ckpttool.steps import kind_of
from ckpttool.target import Target

GGUF_CODECS: Mapping[str, Codec] = {
    "f32": F32_FLAT, "f16": F16_FLAT, "bf16": BF16_FLAT, "q8_0": Q8_0_GGML, "mxfp4": MXFP4_GGML,
}  # fmt: skip

ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight")
"""GGUF weights that llama.cpp keeps in F32 beside vectors and biases."""


def source_codecs(source: Checkpoint) -> dict[str, Codec]:
    """The codec of every part.

    Raises:
        InputError: one part in several formats.
    """
    out = {}
    for part, extents in source.extents.items():
        codecs = {x.weight.codec for x in extents}
        if len(codecs) > 1:
            names = ", ".join(sorted(c.name for c in codecs))
            hint = "convert the checkpoint to one format first"
            raise InputError(f"comes in several formats: {names}", field=part, hint=hint)
        out[part] = codecs.pop()
    return out


def chosen_outtype(source: Checkpoint, target: Target) -> str:
    """`--outtype` with auto resolved: the dtype of the first tensor of two or more dimensions that has a plain one.

    "keep" where both sides are GGUF and nothing was asked for.
    """
    if target.outtype == "mxfp4_moe":
        return "q8_0"
    if target.outtype != "auto":
        return target.outtype
    if source.container == "gguf":
        return "keep"
    plain = (w.codec.name for w in source.weights if len(w.shape) >= 2 and w.codec.name in PLAIN)
    return next(plain, "F16").lower()


def choose(source: Checkpoint, target: Target, claims: list[Claim]) -> tuple[dict[str, Codec], list[CkptError]]:
    """The codec of every target weight, by name, and what stands against it."""
    assert source.arch is not None
    have = source_codecs(source)
    outtype = chosen_outtype(source, target) if target.to == "gguf" else ""
    out: dict[str, Codec] = {}
    problems: dict[str, CkptError] = {}
    for claim in claims:
        part = claim.join.parts[0]
        if source.arch.is_expert(part):
            codec = _expert_codec(target, have[part], outtype)
        else:
            codec = _other_codec(target, have[part], outtype, claim.name, source.shapes[part])
        out[claim.name] = codec
        for each in claim.join.parts:
            clash = _against(source.shapes[each], have[each], codec)
            if claim.join.interleaved and have[each] != have[part]:
                clash = _unlike(claim, have)
            if clash:
                weight, (text, hint) = source.extents[each][0].weight, clash
                problems[weight.name] = InputError(text, file=weight.stored[0].file, field=weight.name, hint=hint)
    return out, [*problems.values(), *_against_dialect(source, target, claims, out)]


def _expert_codec(target: Target, have: Codec, outtype: str) -> Codec:
    if target.to != "gguf":
        if target.experts == "keep":
            return MXFP4_PAIR if have.format == MXFP4 else have
        if target.experts == "auto":
            return BF16_FLAT if target.to == "bf16" else MXFP4_PAIR
        return MXFP4_PAIR if target.experts == "mxfp4" else PLAIN[target.experts.upper()]
    if target.experts in GGUF_CODECS:
        return GGUF_CODECS[target.experts]
    if target.outtype == "mxfp4_moe" and target.experts == "auto":
        return MXFP4_GGML
    if have.format == MXFP4:
        return MXFP4_GGML
    if target.experts == "keep" or outtype == "keep":
        return have
    return GGUF_CODECS[outtype]


def _other_codec(target: Target, have: Codec, outtype: str, name: str, shape: PartShape) -> Codec:
    if target.to == "openai":
        return BF16_FLAT
    if target.to != "gguf":
        return PLAIN[target.dtype.upper()]
    if outtype == "keep":
        return have
    if shape.k is None or not name.endswith(".weight") or name.endswith(ALWAYS_F32):
        return F32_FLAT
    codec = GGUF_CODECS[outtype]
    # llama.cpp's converter falls back to F16 where a row is no whole number of blocks.
    return F16_FLAT if shape.row_length % codec.format.block else codec


def _unlike(claim: Claim, have: Mapping[str, Codec]) -> tuple[str, str]:
    """Parts that become one weight, row by row, are read by one kernel: they must be stored alike."""
    formats = ", ".join(f"{p} {have[p].name}" for p in claim.join.parts)
    hint = "make them alike first: ckpttool convert SOURCE alike.gguf --outtype bf16 --experts bf16"
    return f"is to become one weight with another that is stored otherwise ({formats})", hint


def _against(shape: PartShape, have: Codec, codec: Codec) -> tuple[str, str] | None:
    """What stands against a part's way from one codec to the other, and what to do about it."""
    if have.packing not in READ_PACKINGS:
        text = f"is {have.name} in {have.packing} packing, which cannot be decoded"
        return text, "take the checkpoint that it was made from: BF16 or MXFP4"
    if shape.row_length % codec.format.block:
        text = f"rows of {shape.row_length} elements do not divide into {codec.name} blocks of {codec.format.block}"
        return text, "keep this weight in BF16: --to bf16, or --experts bf16 for a GGUF"
    if not have.readable and have != codec:
        return f"is {have.name}, which cannot be decoded", "take the checkpoint that it was made from: BF16 or MXFP4"
    if kind_of(have, codec) is None:
        hint = f"convert with --to bf16 first, and make {codec.name} of that if you must"
        return f"is {have.name}; to quantize it again, to {codec.name}, would lose more than either does alone", hint
    return None


def _against_dialect(
    source: Checkpoint, target: Target, claims: list[Claim], chosen: Mapping[str, Codec]
) -> list[CkptError]:
    """`--experts keep` may meet a format that the target's dialect cannot hold."""
    assert source.arch is not None
    dialect = source.arch.dialects[target.dialect]
    kept = {chosen[c.name].name for c in claims if source.arch.is_expert(c.join.parts[0])}
    bad = sorted(kept - set(dialect.experts)) if target.to != "gguf" else []
    if not bad:
        return []
    hint = "leave out --experts keep, or choose the --to that fits the experts"
    return [UsageError(f"--to {target.to} cannot hold {', '.join(bad)} experts", hint=hint)]
