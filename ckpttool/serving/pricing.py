"""What a checkpoint's weights weigh as they are, and what they would in another format."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ckpttool.codecs.formats import Packing
from ckpttool.parameters import Use, is_expert_matrix, parameters_of, used

if TYPE_CHECKING:
    from ckpttool.archs.purposes import Purpose, Purposes
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.tensors import Weight

NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Price:
    """A format to price: bits an element, and scales.

    `experts_only`: expert matrices alone take it (where no experts are known, all matrices but embedding and head), and
    the rest is BF16: so gpt-oss is published, and such files' sizes hold their scales. Otherwise every weight takes it,
    as published tables count, and scales stand apart. `scales`: bytes of scale for so many elements of a matrix.
    """

    bits: int
    scales: Fraction
    experts_only: bool
    words: str


PRICES = {
    "bf16": Price(16, Fraction(0), False, "all weights BF16"),
    "fp8": Price(8, Fraction(4, 128 * 128), False, "all weights FP8; apart: an F32 scale for each 128 x 128 block"),
    "int4": Price(4, Fraction(2, 128), False, "all weights INT4; apart: an F16 scale for each group of 128"),
    "mxfp4": Price(4, Fraction(1, 32), True, "expert matrices MXFP4, an E8M0 scale for each 32 in them; the rest BF16"),
    "nvfp4": Price(4, Fraction(1, 16), True, "expert matrices NVFP4, an E4M3 scale for each 16 in them; the rest BF16"),
}
"""--as, by name. Groups and blocks are the usual ones: GPTQ's and AWQ's 128, DeepSeek's 128 x 128."""


@dataclass(frozen=True)
class Weights:
    """Bytes of the weights that serving loads, in one form.

    `scales_bytes` stand beside `nbytes`, `scales_within_bytes` are of them. `per_token`: bytes that a token reads,
    scales included, None where that is not known. `mxfp4_expert_bytes`: the experts' that kernels may pad.
    `speculation_bytes` are those, scales included, of layers that only guess tokens ahead (MTP): runtimes leave them on
    the disk unless they are asked to speculate, so they are in none of the others.
    """

    form: str
    words: str
    nbytes: int
    scales_bytes: int
    scales_within_bytes: int
    per_token: int | None
    mxfp4_expert_bytes: int
    speculation_bytes: int

    @property
    def all_bytes(self) -> int:
        """With scales."""
        return self.nbytes + self.scales_bytes


def weigh(checkpoint: Checkpoint, purposes: Purposes, uses: tuple[Use, ...] | None, form: str) -> Weights:
    """The weights of `checkpoint` as they are (`NATIVE`), or priced as `PRICES` says.

    `uses` is what a token uses of each of the checkpoint's weights (`uses_of`), in their order.
    """
    weights = checkpoint.weights
    if form == NATIVE:
        rows = [(w.nbytes, 0, _stored_scales(w)) for w in weights]
        words = "as stored"
    else:
        price = PRICES[form]
        narrow = _narrow(weights, purposes, price)
        rows = [_priced(w, price if w.name in narrow else None) for w in weights]
        words = price.words
    per_token = None if uses is None else used(uses, [nbytes + scales for nbytes, scales, _ in rows])
    nbytes = scales = within = padded = speculation = 0
    for w, (own, beside, inside) in zip(weights, rows, strict=True):
        purpose = purposes.by_name[w.name]
        if purpose.speculates:
            speculation += own + beside
            continue
        nbytes, scales, within = nbytes + own, scales + beside, within + inside
        if is_expert_matrix(purpose) and (form == "mxfp4" or (form == NATIVE and w.codec.name == "MXFP4")):
            padded += own
    return Weights(form, words, nbytes, scales, within, per_token, padded, speculation)


def _stored_scales(w: Weight) -> int:
    """Bytes of a weight's scales: tensors of their own, or the first byte of each of ggml's MXFP4 blocks."""
    if w.codec.packing is Packing.ggml:
        return w.nbytes // 17 if w.codec.name == "MXFP4" else 0
    return sum(t.nbytes for t in w.stored[1:])


def _narrow(weights: tuple[Weight, ...], purposes: Purposes, price: Price) -> set[str]:
    """The weights that take the format."""
    if not price.experts_only:
        return {w.name for w in weights}
    experts = {w.name for w in weights if is_expert_matrix(purposes.by_name[w.name])}
    return experts or {w.name for w in weights if _is_matrix(w) and not _is_table(purposes.by_name[w.name])}


def _is_matrix(w: Weight) -> bool:
    """Whether it is no vector; what is quantized is none, though a shape that may not be read is one number."""
    return len(w.shape) > 1 or not w.codec.is_plain


def _is_table(purpose: Purpose) -> bool:
    return purpose.kinds in (("embed",), ("head",))


def _priced(w: Weight, price: Price | None) -> tuple[int, int, int]:
    """Bytes of the weight, of scales beside it, of scales within."""
    if not parameters_of(w):
        return w.nbytes, 0, 0
    if price is None:
        return 2 * w.parameters, 0, 0
    codes = -(-w.parameters * price.bits // 8)
    scales = int(w.parameters * price.scales) if _is_matrix(w) else 0
    return (codes + scales, 0, scales) if price.experts_only else (codes, scales, 0)
