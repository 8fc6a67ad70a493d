"""What the bits mean, and in which order they lie: every format, packing, codec and recipe, as data.

A **format** says what stored bits decode to; a **packing** in which order they lie; a **codec** is the two together,
and knows the size of everything without seeing data. A **recipe** says how MXFP4 is made from wider numbers: MXFP4
names a wire format, not an algorithm.

Source of the MX formats: OCP Microscaling Formats v1.0. Of the ggml blocks: ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpttool.containers.ggml_types import GGML_TYPES


@dataclass(frozen=True, slots=True)
class ElementFormat:
    """One number: `bits` wide; `exponent` and `mantissa` bits of a float (0 and 0: an integer or a scale)."""

    name: str
    bits: int
    exponent: int = 0
    mantissa: int = 0


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`block` elements of a row, in `rows` rows, that share one scale; `block` 1 and no scale is a plain number.

    `block` 0: the whole row shares it; `rows` 0: all rows of a matrix do. So (0, 0) is a scale for each matrix, block
    0 and rows 1 one for each row, 128 and 128 one for each square of that size. `element` None: others decode it, and
    how its blocks are made up is theirs.
    """

    name: str
    element: ElementFormat | None
    block: int = 1
    scale: ElementFormat | None = None
    rows: int = 1


F32_ELEMENT = ElementFormat("F32", 32, 8, 23)
F16_ELEMENT = ElementFormat("F16", 16, 5, 10)
BF16_ELEMENT = ElementFormat("BF16", 16, 8, 7)
E2M1 = ElementFormat("E2M1", 4, 2, 1)
E8M0 = ElementFormat("E8M0", 8, 8, 0)
INT8 = ElementFormat("INT8", 8)
E4M3 = ElementFormat("E4M3", 8, 4, 3)
E5M2 = ElementFormat("E5M2", 8, 5, 2)
E4M3FNUZ = ElementFormat("E4M3FNUZ", 8, 4, 3)
E5M2FNUZ = ElementFormat("E5M2FNUZ", 8, 5, 2)
E2M3 = ElementFormat("E2M3", 6, 2, 3)
E3M2 = ElementFormat("E3M2", 6, 3, 2)
NF4_ELEMENT = ElementFormat("NF4", 4)

F32 = BlockFormat("F32", F32_ELEMENT)
F16 = BlockFormat("F16", F16_ELEMENT)
BF16 = BlockFormat("BF16", BF16_ELEMENT)
MXFP4 = BlockFormat("MXFP4", E2M1, 32, E8M0)
Q8_0 = BlockFormat("Q8_0", INT8, 32, F16_ELEMENT)

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What codes 0 to 7 mean; bit 3 of a code is the sign."""

E8M0_BIAS = 127
E8M0_NAN = 255


class Packing(StrEnum):
    """The order in which a row's bits lie.

    * `flat`: elements one after the other.
    * `pair`: codes and scales in two tensors; byte j of a block holds element 2j low, 2j+1 high (OpenAI, HF).
    * `ggml`: one struct per block, scale first; for MXFP4 17 bytes, byte 1+j holds element j low, j+16 high.

    Those three are read. The others are recognised and shown, named after what defines them; scales (and zero points)
    are tensors of their own in all of them, and lie along the last axis unless said otherwise.

    * `scaled`: elements one after the other, in the container's own dtype: FP8, MXFP8, INT8, F4, whoever writes them.
    * `compressed-tensors`: 4 bits, two a byte, low first; 6 bits, four in three bytes, low first; integers in 32-bit
      words without gaps, low first. The global scale of NVFP4 divides.
    * `modelopt`: 4 bits as above, the global scale multiplies; INT4 has two rows a byte, the even row low.
    * `quark`: 4 and 6 bits as compressed-tensors has them, under the plain name; INT4 as AWQ.
    * `deepseek`: 4 bits, two a byte, low first, declared as I8.
    * `gptq`: words [in * bits / 32, out], low first: down the columns; scales [groups, out].
    * `awq`: words [in, out * bits / 32] along the output axis, elements 0 2 4 6 1 3 5 7; scales [groups, out].
    * `awq-gemv`: words [out, in * bits / 32], low first; scales [out, groups], padded.
    * `hqq`: the first part of the rows of groups in the high bits, the last in the low ones.
    * `bitsandbytes`: 4 bits flattened, two a byte, *high* first; 8 bits row by row.
    * `torchao`: 4 bits, two a byte, low first; or whole bytes; names begin with an underscore.
    """

    flat = "flat"
    pair = "pair"
    ggml = "ggml"
    scaled = "scaled"
    compressed_tensors = "compressed-tensors"
    modelopt = "modelopt"
    quark = "quark"
    deepseek = "deepseek"
    gptq = "gptq"
    awq = "awq"
    awq_gemv = "awq-gemv"
    hqq = "hqq"
    bitsandbytes = "bitsandbytes"
    torchao = "torchao"


READ_PACKINGS = frozenset({Packing.flat, Packing.pair, Packing.ggml})
"""The packings that our kernels or the gguf package read."""


class GlobalScale(StrEnum):
    """What a scale of the whole tensor does to its block scales; NVFP4's writers disagree."""

    none = "none"
    divides = "divides"
    multiplies = "multiplies"


@dataclass(frozen=True, slots=True)
class Codec:
    """A format in a packing. `block_nbytes` lists the bytes of one block of a row in each stored tensor.

    It is empty where nothing here reads the format and blocks are not of one row.
    """

    format: BlockFormat
    packing: Packing
    block_nbytes: tuple[int, ...]
    global_scale: GlobalScale = GlobalScale.none

    @property
    def name(self) -> str:
        """The format's name; the packing is said beside it."""
        return self.format.name

    @property
    def bits(self) -> float:
        """Bits per element, its share of all that a block of a row holds beside elements included.

        ValueError where blocks are not of one row: what a weight takes is `Weight.nbytes`.
        """
        if not self.block_nbytes:
            raise ValueError(f"{self.name} in packing {self.packing} has no block of one row")
        return 8 * sum(self.block_nbytes) / self.format.block

    @property
    def is_plain(self) -> bool:
        """Whether elements stand alone: F32, F16, BF16."""
        return self.packing is Packing.flat

    @property
    def readable(self) -> bool:
        """Whether its values can be decoded, by our kernels or by the gguf package."""
        return self.name in READABLE and self.packing in READ_PACKINGS

    def row_nbytes(self, k: int) -> tuple[int, ...]:
        """Bytes of a row of `k` elements in each stored tensor; `k` must be a whole number of blocks.

        ValueError for a format whose rows cannot be read alone.
        """
        if not self.block_nbytes:
            raise ValueError(f"{self.name} in packing {self.packing} has no block of one row")
        blocks, rest = divmod(k, self.format.block)
        if rest:
            raise ValueError(f"{k} elements are no whole number of {self.name} blocks of {self.format.block}")
        return tuple(blocks * n for n in self.block_nbytes)

    def stored_shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes in the file of a weight of logical `shape`: the same, but for `pair`, whose tensors are bytes."""
        if self.packing is not Packing.pair:
            return (shape,)
        blocks = shape[-1] // self.format.block
        return (*shape[:-1], blocks, self.block_nbytes[0]), (*shape[:-1], blocks)


F32_FLAT = Codec(F32, Packing.flat, (4,))
F16_FLAT = Codec(F16, Packing.flat, (2,))
BF16_FLAT = Codec(BF16, Packing.flat, (2,))
MXFP4_PAIR = Codec(MXFP4, Packing.pair, (16, 1))
MXFP4_GGML = Codec(MXFP4, Packing.ggml, (17,))
Q8_0_GGML = Codec(Q8_0, Packing.ggml, (34,))

PLAIN = {c.name: c for c in (F32_FLAT, F16_FLAT, BF16_FLAT)}
WRITABLE_GGML = PLAIN | {c.name: c for c in (MXFP4_GGML, Q8_0_GGML)}


READABLE = frozenset(WRITABLE_GGML) | {
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
    "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
}  # fmt: skip
"""Formats whose values can be decoded: ours, and those that every supported gguf package decodes (a test asks it)."""


def ggml_codec(type_name: str) -> Codec:
    """The codec of a GGUF tensor type, by its name; those that we only decode are blocks of a size."""
    if type_name in WRITABLE_GGML:
        return WRITABLE_GGML[type_name]
    row = GGML_TYPES[type_name]
    packing = Packing.flat if row.elements == 1 else Packing.ggml
    return Codec(BlockFormat(type_name, None, row.elements), packing, (row.nbytes,))


class ScaleRule(StrEnum):
    """How a block's scale follows from its largest magnitude (design: `reference.scale_bytes`)."""

    floor = "floor"
    even = "even"
    rceil = "rceil"
    best = "best"


class TieRule(StrEnum):
    """Where a magnitude goes that lies exactly between two codes."""

    even = "even"
    away = "away"
    zero = "zero"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How MXFP4 is made: scale rule, tie rule, and whether a negative that rounds to zero keeps its sign."""

    name: str
    scale: ScaleRule
    ties: TieRule
    keeps_negative_zero: bool = True


RECIPES = {
    r.name: r
    for r in (
        Recipe("best", ScaleRule.best, TieRule.even),
        Recipe("ocp", ScaleRule.floor, TieRule.even),
        Recipe("even", ScaleRule.even, TieRule.even),
        Recipe("rceil", ScaleRule.rceil, TieRule.even),
        Recipe("transformers", ScaleRule.rceil, TieRule.away),
        Recipe("modelopt", ScaleRule.rceil, TieRule.zero),
        Recipe("llama.cpp", ScaleRule.floor, TieRule.zero, keeps_negative_zero=False),
    )
}
"""By name; the namesakes are in the README's table of recipes."""
