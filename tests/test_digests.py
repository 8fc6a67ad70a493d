"""CPU = GPU: one file of sha256, and everything that computes MXFP4 arrives at it.

The reference, the compiled kernels, the numpy ones, and Triton's: natively where there is a card, otherwise in its
interpreter. Larger tensors, on a card alone, are in tests/gpu.
"""

from __future__ import annotations

from types import ModuleType

import number_cases
import numpy as np
import pytest
import tensor_digests
from device_codecs import PACKINGS, on_cpu, on_device
from tensor_digests import SMALL, Codec, digests, wanted

from ckpttool.codecs import cpu, cpu_numpy
from ckpttool.codecs.formats import RECIPES, Packing

LAYOUTS = pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])


def test_the_file_is_the_reference_s() -> None:
    assert dict(digests(tensor_digests.REFERENCE, SMALL)) == wanted()


@LAYOUTS
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("module", [cpu, cpu_numpy], ids=["compiled", "numpy"])
def test_the_cpu(module: ModuleType, packing: Packing, columns: bool) -> None:
    assert dict(digests(on_cpu(module, packing, columns), SMALL)) == wanted()


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_gpu(packing: Packing) -> None:
    pytest.importorskip("triton")
    assert dict(digests(on_device(packing, False), SMALL)) == wanted()


COLUMNS = {Packing.pair: {"F16 ocp", "to BF16"}, Packing.ggml: {"F16 transformers", "F32 llama.cpp", "to F32"}}


@pytest.mark.parametrize("packing", PACKINGS)
def test_columns_on_the_gpu(packing: Packing) -> None:
    """Some of them, for the interpreter takes seconds for each; all of them in tests/gpu."""
    pytest.importorskip("triton")
    made = dict(digests(on_device(packing, True), SMALL, COLUMNS[packing].__contains__))
    assert made == {name: digest for name, digest in wanted().items() if name in COLUMNS[packing]}
    assert len(made) == len(COLUMNS[packing])


def test_a_digest_notices_one_code() -> None:
    """One code of one block, by one recipe: that digest differs, and no other."""
    right = tensor_digests.REFERENCE

    def quantize(rows: number_cases.Rows, recipe: object) -> tuple[np.ndarray, np.ndarray]:
        blocks, scales = right.quantize(rows, recipe)
        if recipe is RECIPES["even"] and rows.dtype == "F16":
            blocks[5, 1, 4, 15] ^= 1
        return blocks, scales

    made = dict(digests(Codec(quantize, right.dequantize), SMALL))
    assert {name for name, digest in wanted().items() if made[name] != digest} == {"F16 even"}


def test_the_tensors_reach_what_is_hard() -> None:
    """The smallest and largest scales, both zeros, numbers below the normal ones, scales that `best` raises."""
    for dtype in number_cases.DTYPES:
        rows = tensor_digests.tensor(dtype, SMALL)
        blocks, scales = tensor_digests.REFERENCE.quantize(rows, RECIPES["best"])
        floor = tensor_digests.REFERENCE.quantize(rows, RECIPES["ocp"])[1]
        assert (scales != floor).any()
        assert {0, 8} <= set((blocks & 15).ravel().tolist())
        smallest = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}[dtype]
        magnitudes = np.abs(rows.values)
        assert ((magnitudes > 0) & (magnitudes < smallest)).any()
        assert len(np.unique(scales)) > (15 if dtype == "F16" else 30)
