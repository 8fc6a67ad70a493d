"""What codes and their scales are, by dtypes and shapes: the one place that tells FP8, the MX formats, NVFP4 and INT8.

The name of a tensor says which tensor belongs to which; what they mean is read here, from how they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ckpttool.codecs.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    INT8,
    Codec,
    ElementFormat,
    GlobalScale,
    Packing,
)
from ckpttool.recognition.found import FLOATS, Unfit, codec_of, scale_element
from ckpttool.recognition.spread import along, spread, widened
from ckpttool.tensors import StoredTensor

FP8 = {"F8_E4M3": E4M3, "F8_E5M2": E5M2, "F8_E4M3FNUZ": E4M3FNUZ, "F8_E5M2FNUZ": E5M2FNUZ}
FP6 = {"F6_E2M3": E2M3, "F6_E3M2": E3M2}
POWERS = frozenset({"U8", "F8_E8M0"})
"""The dtypes of E8M0 scales."""

MX_BLOCK, NV_BLOCK = 32, 16
_OTHER = "is it of another checkpoint, or of a format that is not known here?"


@dataclass(frozen=True, slots=True)
class Judged:
    """The codec and the logical shape of codes with scales."""

    codec: Codec
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """Of a stored tensor, what decides."""

    dtype: str
    shape: tuple[int, ...]


def judged(
    codes: StoredTensor,
    scales: StoredTensor,
    packing: Packing,
    global_scale: GlobalScale = GlobalScale.none,
    fp6: ElementFormat | None = None,
    block: tuple[int, int] | None = None,
) -> Judged | None:
    """What `codes` with `scales` are; the rest is what the writer's names add. None where nothing known is stored so.

    `fp6` is the element of six bits, where the writer says it; `block` is the block that the config names.

    Raises:
        Unfit: dtypes of a known format in shapes that do not fit each other.
    """
    pair = _Pair(
        Stored(codes.dtype, codes.shape), Stored(scales.dtype, scales.shape), packing, global_scale, fp6, block
    )
    try:
        return _judged(pair)
    except _Misfit as e:
        text = f"{codes.dtype} {list(codes.shape)} with scales {scales.dtype} {list(scales.shape)}; {e}"
        raise Unfit(text, _OTHER, codes) from None


class _Misfit(ValueError):
    """Why shapes do not fit."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The arguments of `judged` without names and places: a model of 50,000 experts has three or four different."""

    codes: Stored
    scales: Stored
    packing: Packing
    global_scale: GlobalScale
    fp6: ElementFormat | None
    block: tuple[int, int] | None

    def judged(self) -> Judged | None:
        """What they are, as `judged` says it. _Misfit where shapes do not fit."""
        if self.codes.dtype in FP8:
            return self._fp8(FP8[self.codes.dtype])
        if self.codes.dtype in FP6 or self.codes.dtype == "F4":
            return self._native()
        if self.codes.dtype in ("U8", "I8"):
            return self._bytes()
        return None

    def _fp8(self, element: ElementFormat) -> Judged:
        scale = self.scales.dtype
        if scale not in POWERS and scale not in FLOATS:
            raise _Misfit("FP8 has scales of F32, BF16, F16 or E8M0")
        how = spread(self.codes.shape, self.scales.shape, self.block)
        if how is None or (scale == "U8" and how != (1, MX_BLOCK)):
            raise _Misfit("the scales do not divide the codes into blocks")
        mx = scale in POWERS and how == (1, MX_BLOCK)
        name = f"{'MXFP8' if mx else 'FP8'}_{element.name}"
        return Judged(codec_of(name, element, scale_element(scale), how, Packing.scaled), self.codes.shape)

    def _native(self) -> Judged | None:
        """4 and 6 bits under safetensors' own dtypes, whose shapes count elements."""
        element = E2M1 if self.codes.dtype == "F4" else FP6[self.codes.dtype]
        how = (1, MX_BLOCK if self.scales.dtype in POWERS else NV_BLOCK)
        if self.scales.dtype not in POWERS and (self.scales.dtype, element) != ("F8_E4M3", E2M1):
            return None
        if along(self.codes.shape, self.scales.shape, how[1]) != -1:
            raise _Misfit(f"scales go with {how[1]} elements of a row")
        name = "NVFP4" if how[1] == NV_BLOCK else "MXFP4" if element is E2M1 else f"MXFP6_{element.name}"
        codec = codec_of(name, element, scale_element(self.scales.dtype), how, Packing.scaled, self.global_scale)
        return Judged(codec, self.codes.shape)

    def _bytes(self) -> Judged | None:
        """Bytes that hold 4, 6 or 8 bits an element: the scales' dtype and number tell."""
        codes, scales = self.codes.shape, self.scales.shape
        if self.scales.dtype == "F8_E4M3":
            if (axis := along(codes, scales, NV_BLOCK // 2)) is None:
                raise _Misfit("NVFP4 has one F8_E4M3 for 8 bytes")
            codec = codec_of("NVFP4", E2M1, E4M3, (1, NV_BLOCK), self.packing, self.global_scale)
            return Judged(codec, widened(codes, axis, (2, 1)))
        if self.scales.dtype in POWERS:
            return self._mx_bytes()
        if self.scales.dtype not in FLOATS or self.codes.dtype != "I8":
            return None
        how = spread(codes, scales, self.block)
        if how is None:
            raise _Misfit("the scales do not divide the codes into blocks")
        return Judged(codec_of("INT8", INT8, scale_element(self.scales.dtype), how, self.packing), codes)

    def _mx_bytes(self) -> Judged:
        codes, scales = self.codes.shape, self.scales.shape
        element = scale_element(self.scales.dtype)
        if (axis := along(codes, scales, MX_BLOCK // 2)) is not None:
            codec = codec_of("MXFP4", E2M1, element, (1, MX_BLOCK), self.packing)
            return Judged(codec, widened(codes, axis, (2, 1)))
        if self.codes.dtype == "U8" and (axis := along(codes, scales, MX_BLOCK * 3 // 4)) is not None:
            name = f"MXFP6_{self.fp6.name}" if self.fp6 else "MXFP6"
            codec = codec_of(name, self.fp6, element, (1, MX_BLOCK), self.packing, element_bits=6)
            return Judged(codec, widened(codes, axis, (4, 3)))
        raise _Misfit("MXFP4 has one scale for 16 bytes, MXFP6 one for 24")


@lru_cache(maxsize=1 << 12)
def _judged(pair: _Pair) -> Judged | None:
    return pair.judged()
