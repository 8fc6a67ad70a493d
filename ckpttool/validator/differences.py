"""How a block or a number differs from what it was to be, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ckpttool.codecs.formats import MXFP4, Q8_0
from ckpttool.codecs.measure import differing
from ckpttool.codecs.packing import UNPACK
from ckpttool.codecs.transcode import Operand
from ckpttool.codecs.values import decodable
from ckpttool.validator.remade import numbers


def described(x: Operand, y: Operand, made: Operand | None, unit: int) -> str:
    """How a unit of the one row that each operand holds differs from what was made, in words: new, and then old."""
    if made is None:
        block = y.codec.format.block
        a, b = (numbers(side)[0, unit * block :][:block] for side in (x, y))
        odd = ~(np.isfinite(a) & np.isfinite(b)) & differing(a, b)
        at = int(np.argmax(odd if odd.any() else differing(a, b)))
        return f"{b[at]:.6g}, and the reference has {a[at]:.6g}"
    new, old = ([u[0, unit] for u in _units(side)] for side in (y, made))
    if y.codec.format == MXFP4:
        return _mxfp4(_scale_and_codes(y, unit), _scale_and_codes(made, unit), unit)
    if y.codec.format == Q8_0:
        return _q8_0(new[0], old[0], unit)
    return _number(_plain(y, unit), _plain(made, unit), new[0], old[0])


def _scale_and_codes(rows: Operand, unit: int) -> tuple[int, NDArray[np.uint8]]:
    blocks, scales = rows.blocks_and_scales
    return int(scales[0, 0, unit]), UNPACK[rows.codec.packing](blocks[0, 0, unit])


def _mxfp4(new: tuple[int, NDArray[np.uint8]], old: tuple[int, NDArray[np.uint8]], unit: int) -> str:
    codes = np.flatnonzero(new[1] != old[1])
    if new[0] != old[0]:
        return f"scale byte {new[0]}, not {old[0]}" + (f", and {len(codes)} codes" if codes.size else "")
    first = int(codes[0])
    return f"code {new[1][first]}, not {old[1][first]}, in column {unit * MXFP4.block + first}"


def _q8_0(new: NDArray[np.uint8], old: NDArray[np.uint8], unit: int) -> str:
    scales = [u[:2].view(np.float16)[0] for u in (new, old)]
    if scales[0] != scales[1]:
        return f"scale {scales[0]}, not {scales[1]}"
    elements = [u[2:].view(np.int8) for u in (new, old)]
    first = int(np.flatnonzero(elements[0] != elements[1])[0])
    return f"{elements[0][first]}, not {elements[1][first]}, in column {unit * Q8_0.block + first}"


def _plain(rows: Operand, unit: int) -> str | None:
    """A number; None for a block that is only decoded as a whole, or not at all."""
    if not decodable(rows.codec) or rows.codec.format.block != 1:
        return None
    return f"{numbers(rows)[0, unit]:.9g}"


def _number(new: str | None, old: str | None, new_bytes: NDArray[np.uint8], old_bytes: NDArray[np.uint8]) -> str:
    if new is not None and new != old:
        return f"{new}, not {old}"
    if new_bytes.size <= 8:
        return f"0x{new_bytes[::-1].tobytes().hex()}, not 0x{old_bytes[::-1].tobytes().hex()}"
    return "other bytes"


def _units(rows: Operand) -> list[NDArray[np.uint8]]:
    """The bytes of each unit, [R, G, n] of each stored tensor."""
    return [
        np.ascontiguousarray(f[:, 0]).reshape(f.shape[0], -1, n)
        for f, n in zip(rows.fields, rows.codec.block_nbytes, strict=True)
    ]
