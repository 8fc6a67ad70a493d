"""What every recogniser shares: the tensors by name, what the config states, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from ckpttool.codecs.formats import (
    E8M0,
    PLAIN,
    BlockFormat,
    Codec,
    ElementFormat,
    GlobalScale,
    Packing,
)
from ckpttool.containers.safetensors_table import DTYPE_BITS
from ckpttool.recognition.stated import Stated
from ckpttool.tensors import Role, StoredTensor, Weight

Peek = Callable[[StoredTensor], bytes]
"""The bytes of a small tensor (a shape, a state). Its errors are the reader's own."""

PEEK_LIMIT = 1 << 16
"""What describes a weight is never larger than this, in bytes."""

FLOATS = frozenset({"F32", "F16", "BF16"})
"""The dtypes of scales that are plain numbers."""


class Unfit(Exception):
    """The tensors of one weight contradict each other, or one of them is missing."""

    def __init__(self, message: str, hint: str, at: StoredTensor) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at


@dataclass(frozen=True)
class Lookup:
    """All stored tensors of a checkpoint by name, what its config states, and a way to read small ones."""

    by_name: Mapping[str, StoredTensor]
    stated: Stated
    peek: Peek | None

    @cached_property
    def last_words(self) -> frozenset[str]:
        """What comes after the last dot of any name: a few words, however many tensors there are."""
        return frozenset(name.rpartition(".")[2] for name in self.by_name)

    def get(self, *names: str) -> StoredTensor | None:
        """The first of these that is stored."""
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        return None

    def small(self, t: StoredTensor | None) -> bytes | None:
        """What `t` holds; None where there is no such tensor, or nothing may be read (a remote checkpoint).

        Raises:
            Unfit: it is too large to be what its name says.
        """
        if t is None or self.peek is None:
            return None
        if t.nbytes > PEEK_LIMIT:
            raise Unfit(f"has {t.nbytes:,} bytes, too many for what it should be", "is it of another checkpoint?", t)
        return self.peek(t)


@dataclass
class Members:
    """The stored tensors of one weight with their roles, in the order in which they are shown."""

    pairs: list[tuple[Role, StoredTensor]] = field(default_factory=list)

    def add(self, role: Role, t: StoredTensor | None) -> None:
        """Take `t` in, if there is one and it is not in yet."""
        if t is not None and all(t is not had for _, had in self.pairs):
            self.pairs.append((role, t))

    def weight(self, name: str, codec: Codec, shape: tuple[int, ...]) -> Weight:
        """The weight that these make."""
        return Weight(name, codec, shape, tuple(t for _, t in self.pairs), tuple(r for r, _ in self.pairs))


@cache
def plain_codec(dtype: str) -> Codec:
    """A tensor that stands for itself: its format is its stored dtype."""
    if dtype in PLAIN:
        return PLAIN[dtype]
    bits = DTYPE_BITS[dtype]
    return Codec(BlockFormat(dtype, ElementFormat(dtype, bits)), Packing.flat, (max(1, bits // 8),))


@cache
def scale_element(dtype: str) -> ElementFormat:
    """What a scale tensor of this dtype holds; U8 scales are E8M0 wherever a recogniser asks."""
    if dtype in ("U8", "F8_E8M0"):
        return E8M0
    exponent, mantissa = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7), "F8_E4M3": (4, 3)}.get(dtype, (0, 0))
    return ElementFormat(dtype.removeprefix("F8_"), DTYPE_BITS[dtype], exponent, mantissa)


@cache
def codec_of(
    name: str,
    element: ElementFormat | None,
    scale: ElementFormat,
    spread: tuple[int, int],
    packing: Packing,
    global_scale: GlobalScale = GlobalScale.none,
    element_bits: int = 0,
) -> Codec:
    """The codec of codes with scales beside them; `spread` is rows and columns that share a scale, 0 for all.

    `element_bits` are those of an element that is not known closer than that.
    """
    rows, block = spread
    bits = element.bits if element else element_bits
    nbytes = (block * bits // 8, scale.bits // 8) if rows == 1 and block and block * bits % 8 == 0 else ()
    return Codec(BlockFormat(name, element, block, scale, rows), packing, nbytes, global_scale)
