"""What MXFP4 of a set of tensors must be on every device: sha256 of bytes, in fixtures/codecs/mxfp4/digests.json.

The tensors come from SHAKE-256 by integers alone, so that no library's generator and no logarithm takes part. A digest
is of blocks and scales as the `pair` packing stores them, whatever layout they were made from and by way of.

    python tests/tensor_digests.py          # writes the file, by the reference
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from number_cases import DTYPES, NEAR_NBYTES, Rows, any_bits, near_bits
from numpy.typing import NDArray

from ckpttool.codecs import plain, reference
from ckpttool.codecs.formats import RECIPES, Recipe
from ckpttool.codecs.packing import pack_pair, unpack_pair

U8 = NDArray[np.uint8]
FILE = Path(__file__).parents[1] / "fixtures/codecs/mxfp4/digests.json"
SMALL = (6, 2, 5)
LARGE = (2048, 2, 90)
"""Rows, parts and blocks in a row: of the file's tensors, and of those that only compiled code makes in time."""
TOP = 252
"""The largest exponent field of BF16 and F32: every recipe can make every block."""


def stream(name: str, nbytes: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(nbytes)


def tensor(dtype: str, shape: tuple[int, int, int]) -> Rows:
    """Rows [R, p, 32 G] of `dtype`: blocks of any bits and blocks of numbers near each other in turns."""
    r, p, g = shape
    half, top = -(-r * p * g // 2), min(TOP, 30 if dtype == "F16" else TOP)
    loose = any_bits(stream(f"any {dtype}", half * 32 * plain.UINT[dtype].itemsize), dtype, top)
    near = near_bits(stream(f"near {dtype}", half * (1 + 32 * NEAR_NBYTES)), dtype, top)
    bits = np.stack([loose, near], 1).reshape(-1, 32)[: r * p * g]
    return Rows(dtype, bits.reshape(r, p, 32 * g))


def packed(shape: tuple[int, int, int]) -> tuple[U8, U8]:
    """Blocks [R, p, G, 16] of any bytes, and scales [R, p, G] of 0 to 252."""
    n = int(np.prod(shape))
    blocks = np.frombuffer(stream("codes", 16 * n), np.uint8).reshape(*shape, 16)
    scales = np.frombuffer(stream("scales", n), np.uint8) % 253
    return blocks, scales.reshape(shape).astype(np.uint8)


@dataclass(frozen=True)
class Codec:
    """An implementation, in one layout and packing: blocks and scales in the `pair` packing, rows of bits."""

    quantize: Callable[[Rows, Recipe], tuple[U8, U8]]
    dequantize: Callable[[U8, U8, str], NDArray[Any]]


def _quantize(rows: Rows, recipe: Recipe) -> tuple[U8, U8]:
    codes, scales = reference.quantize(rows.values, recipe)
    return pack_pair(codes), scales


def _dequantize(blocks: U8, scales: U8, dtype: str) -> NDArray[Any]:
    return plain.narrow(reference.dequantize(unpack_pair(blocks), scales).view(np.uint32), dtype)


REFERENCE = Codec(_quantize, _dequantize)


def sha256(*arrays: NDArray[Any]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def digests(
    codec: Codec, shape: tuple[int, int, int], wants: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, str]]:
    """(name, sha256) of every type by every recipe, and of what is decoded; of the names that are wanted."""
    for dtype in DTYPES:
        rows = tensor(dtype, shape)
        for name, recipe in RECIPES.items():
            if wants(f"{dtype} {name}"):
                yield f"{dtype} {name}", sha256(*codec.quantize(rows, recipe))
    for dtype in ("BF16", "F32"):
        if wants(f"to {dtype}"):
            yield f"to {dtype}", sha256(codec.dequantize(*packed(shape), dtype))


def wanted() -> dict[str, str]:
    """The file's digests, of `SMALL` tensors."""
    found: dict[str, str] = json.loads(FILE.read_text("utf-8"))
    return found


def main() -> None:
    FILE.write_text(json.dumps(dict(digests(REFERENCE, SMALL)), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
