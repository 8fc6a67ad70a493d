"""The codecs on a GPU, in Triton: what `reference` defines, fused with packing, transposition and gate/up interleave.

Names, geometry and results are those of `cpu`; arrays are torch tensors on one CUDA device (or on the CPU, where
Triton's interpreter runs: TRITON_INTERPRET=1). A **rows view** is [R, p, ...], with any strides on these two axes;
**columns** are [K, N], or [E, K, N] of E experts at once, whose rows follow each other: row e * N/p + n // p of part
n % p. Plain numbers are any dtype of the right width, BF16 and F16 of 2 bytes, F32 of 4; MXFP4 is blocks [R, p, G, 16]
and scales [R, p, G] of uint8, G = K / 32.

Stricter than on the CPU: plain rows and lines, and pair packing, start at multiples of 4 bytes; with pair packing the G
blocks (and scales) of a row follow each other, and ggml's blocks and scales are the views `[..., 1:]` and `[..., 0]` of
one tensor of structs [R, p, G, 17]; one call takes fewer than 2^31 blocks.

Functions return without waiting for the GPU where they are given a `status` (`new_status`), in which kernels note the
first bad block: `raise_bad` looks at it, once for as many calls on the same geometry as one likes. Without one they
wait, and raise themselves. Errors: `BadBlock` names row, part and block of the first in row-major order; what the
output then holds is undefined. ValueError for tensors that do not fit together, and for a device that cannot run this.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

import torch

from ckpttool.codecs import gpu_columns, gpu_lanes, gpu_rows
from ckpttool.codecs.formats import Packing, Recipe, ScaleRule, TieRule
from ckpttool.codecs.reference import BadBlock

__all__ = [
    "BadBlock",
    "dequantize_columns",
    "dequantize_rows",
    "new_status",
    "quantize_columns",
    "quantize_rows",
    "raise_bad",
    "repack",
    "unsupported",
]

Tensor = torch.Tensor

ITEMSIZE: Final = {"BF16": 2, "F16": 2, "F32": 4}
KINDS: Final = ("nan", "inf", "overflow", "scale")

_DTYPES: Final = {"BF16": gpu_lanes.BF16.value, "F16": gpu_lanes.F16.value, "F32": gpu_lanes.F32.value}
_RULES: Final = {
    ScaleRule.floor: gpu_lanes.FLOOR.value,
    ScaleRule.even: gpu_lanes.EVEN.value,
    ScaleRule.rceil: gpu_lanes.RCEIL.value,
    ScaleRule.best: gpu_lanes.BEST.value,
}
_TIES: Final = {
    TieRule.even: gpu_lanes.TO_EVEN.value,
    TieRule.away: gpu_lanes.AWAY.value,
    TieRule.zero: gpu_lanes.TO_ZERO.value,
}
_NOTHING: Final = 2**63 - 1

PAIR, GGML = Packing.pair, Packing.ggml
QUANTIZE_ROWS: Final = {PAIR: (128, 4), GGML: (256, 4)}
DEQUANTIZE_ROWS: Final = {PAIR: (64, 2), GGML: (128, 4)}
REPACK: Final = {PAIR: (256, 2), GGML: (256, 4)}
"""Blocks that a program of the row kernels works on, and its warps, by packing (of the target, for repack): measured on
an H200, see tests/bench/gpu_kernels.py. A thread has one block, or a few."""

QUANTIZE_COLUMNS: Final = {PAIR: (64, 2), GGML: (128, 4)}
"""Words along N that a program works on, four blocks along K each, and its warps: best of those tried on an H200. A
thread has one word."""

DEQUANTIZE_COLUMNS: Final = {PAIR: (4, 64, 8), GGML: (2, 64, 4)}
"""Blocks along K, and words along N, that a program works on, and its warps."""


def unsupported(device: torch.device) -> str | None:
    """Why these kernels cannot run on `device`; None where they can."""
    if gpu_lanes.INTERPRETED:
        return None
    if device.type != "cuda" or torch.version.hip:
        return f"the kernels run on NVIDIA GPUs, not on {device.type if device.type != 'cuda' else 'ROCm'}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"the kernels need compute capability 8.0, and {device} has {major}.{minor}"


def new_status(device: torch.device) -> Tensor:
    """Where kernels note the first bad block: an int64 [1]."""
    return torch.full((1,), _NOTHING, dtype=torch.int64, device=device)


def raise_bad(status: Tensor, parts: int, groups: int) -> None:
    """Wait for the kernels that were given `status`, and raise `BadBlock` if one of them found a bad block.

    `parts` and `groups` are p and G of their rows view; index is (row, part, block).
    """
    found = int(status.item())
    if found != _NOTHING:
        index, kind = divmod(found, 8)
        row, rest = divmod(index, parts * groups)
        raise BadBlock(KINDS[kind], (row, *divmod(rest, groups)))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class _Run:
    """An operand as the row kernels see it: blocks of `unit` bytes, one after the other in a row. Strides are bytes."""

    tensor: Tensor
    unit: int
    row: int
    part: int

    def joins(self, parts: int, groups: int) -> bool:
        """Whether parts lie between rows, so that both axes are one."""
        return self.part == groups * self.unit and self.row == parts * self.part


def _plain(name: str, x: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """`x` as bytes; type, shape and place are checked."""
    size = ITEMSIZE[dtype]
    _require(x.element_size() == size, f"{name} is {x.dtype}, expected {size} bytes an element for {dtype}")
    _require(tuple(x.shape) == shape, f"{name} has shape {tuple(x.shape)}, expected {shape}")
    _require(x.stride(-1) == 1 or shape[-1] <= 1, f"the last axis of {name} is not contiguous")
    strides = [s * size for s, n in zip(x.stride()[:-1], shape[:-1], strict=True) if n > 1]
    _require(not any(v % 4 for v in (x.data_ptr(), *strides)), f"{name} is not aligned to 4 bytes")
    return x.view(torch.uint8)


def _plain_rows(name: str, x: Tensor, dtype: str) -> _Run:
    _require(x.dim() == 3, f"{name} has shape {tuple(x.shape)}, expected [R, p, K]")
    _require(x.shape[2] % 32 == 0, f"rows of {x.shape[2]} elements are no whole number of blocks of 32")
    size = ITEMSIZE[dtype]
    flat = _plain(name, x, dtype, tuple(x.shape))
    return _run(flat, 32 * size, x.stride(0) * size, x.stride(1) * size, x.shape)


def _run(tensor: Tensor, unit: int, row: int, part: int, shape: torch.Size | tuple[int, ...]) -> _Run:
    """The strides of axes with one entry mean nothing: here they say that nothing lies between."""
    groups = shape[2] if len(shape) > 3 or unit in (1, 17) else shape[2] // 32
    if shape[1] == 1:
        part = groups * unit
        if shape[0] == 1:
            row = part
    elif shape[0] == 1:
        row = shape[1] * part
    return _Run(tensor, unit, row, part)


def _mxfp4(blocks: Tensor, scales: Tensor, packing: Packing, shape: tuple[int, int, int]) -> tuple[_Run, _Run]:
    """Blocks and scales of rows [R, p, K]; for ggml both are the structs."""
    rows, parts, k = shape
    _require(packing in (Packing.pair, Packing.ggml), f"MXFP4 has no packing {packing}")
    _require(k % 32 == 0, f"rows of {k} elements are no whole number of blocks of 32")
    groups = k // 32
    for name, x in ("blocks", blocks), ("scales", scales):
        _require(x.dtype == torch.uint8, f"{name} are {x.dtype}, expected torch.uint8")
    for name, x, wanted in ("blocks", blocks, (rows, parts, groups, 16)), ("scales", scales, (rows, parts, groups)):
        _require(tuple(x.shape) == wanted, f"{name} have shape {tuple(x.shape)}, expected {wanted}")
    ggml = packing is Packing.ggml
    units = (17, 17) if ggml else (16, 1)
    steps = blocks.stride(2), scales.stride(2)
    _require(blocks.stride(3) == 1 and (groups <= 1 or steps == units), f"blocks and scales do not lie as {packing}")
    s = _run(scales, units[1], scales.stride(0), scales.stride(1), scales.shape)
    b = _run(blocks, units[0], blocks.stride(0), blocks.stride(1), blocks.shape)
    if ggml:
        same = blocks.data_ptr() == scales.data_ptr() + 1 and (b.row, b.part) == (s.row, s.part)
        _require(same or not blocks.numel(), "blocks and scales are not views of one tensor of structs")
        return s, s
    strides = [v for v, n in ((b.row, rows), (b.part, parts)) if n > 1]
    _require(not any(v % 4 for v in (blocks.data_ptr(), *strides)), "blocks are not aligned to 4 bytes")
    return b, s


def _columns(name: str, x: Tensor, dtype: str, parts: int) -> tuple[Tensor, tuple[int, int, int]]:
    """`x` as [E, K, N], and the shape [R, p, K] of its rows view."""
    _require(x.dim() in (2, 3), f"{name} has shape {tuple(x.shape)}, expected [K, N] or [E, K, N]")
    cube = x if x.dim() == 3 else x[None]
    experts, k, n = cube.shape
    _require(parts > 0 and n % parts == 0, f"{n} columns do not divide among {parts} parts")
    size = ITEMSIZE[dtype]
    _require(cube.element_size() == size, f"{name} is {x.dtype}, expected {size} bytes an element for {dtype}")
    _require(cube.stride(2) == 1 or n <= 1, f"the last axis of {name} is not contiguous")
    return cube, (experts * (n // max(1, parts)), parts, k)


def _on_device(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The device of all tensors as the current one; ValueError where they lie apart, or it cannot run this."""
    device = tensors[0].device
    _require(all(t.device == device for t in tensors), f"tensors lie on {', '.join(str(t.device) for t in tensors)}")
    reason = unsupported(device)
    _require(reason is None, str(reason))
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _geometry(runs: tuple[_Run, ...], shape: tuple[int, int, int]) -> tuple[tuple[_Run, ...], int, int, int]:
    """Runs, rows, parts and groups, parts having become rows where every operand allows it."""
    rows, parts, k = shape
    groups = k // 32
    _require(rows * parts * groups < 2**31, "2^31 blocks or more in one call")
    if all(r.joins(parts, groups) for r in runs):
        return tuple(_Run(r.tensor, r.unit, r.part, 0) for r in runs), rows * parts, 1, groups
    return runs, rows, parts, groups


def _dense(groups: int, *runs: _Run) -> bool:
    return all(r.row == groups * r.unit for r in runs)


def _known(groups: int, parts: int, *runs: _Run) -> int:
    """G for kernels that divide by it, which are compiled for each; 0 for the others."""
    return 0 if parts == 1 and _dense(groups, *runs) else groups


def _aligned(groups: int, parts: int, *runs: _Run) -> bool:
    """Whether structs start at multiples of 4 bytes in each part, and follow each other."""
    structs = [r for r in runs if r.unit == 17]
    places = [v for r in structs for v in (r.tensor.data_ptr(), r.part if parts > 1 else 0)]
    return bool(structs) and _dense(groups, *structs) and not any(v % 4 for v in places)


def _lines(cube: Tensor, dtype: str) -> tuple[Tensor, int, int] | None:
    """Columns [E, K, N] as bytes, the distance of experts in bytes, and that of lines in words of 4 bytes.

    None where lines are no whole words: an odd number of BF16 columns, or lines that start between words.
    """
    size = ITEMSIZE[dtype]
    expert, line = cube.stride(0) * size, cube.stride(1) * size
    if any(v % 4 for v in (cube.data_ptr(), expert if len(cube) > 1 else 0, line, cube.shape[2] * size)):
        return None
    return cube.view(torch.uint8), expert, line // 4


def _require_exact(out_dtype: str) -> None:
    _require(out_dtype in ("BF16", "F32"), f"MXFP4 decodes to BF16 or F32, value for value, not to {out_dtype}")


def _tiles(groups: int, words: int, experts: int, tile: tuple[int, int]) -> tuple[int, int, int]:
    return -(-groups // tile[0]), -(-words // tile[1]), experts


def _spans(count: int, aligned: bool) -> list[tuple[int, int, bool]]:
    """(start, end, aligned): structs in fours, and what remains one by one."""
    whole = count // 4 * 4 if aligned else 0
    return [s for s in ((0, whole, True), (whole, count, False)) if s[0] < s[1]]


def _strides(*runs: _Run) -> list[int]:
    return [v for r in runs for v in (r.row, r.part)]


def _how(recipe: Recipe) -> dict[str, Any]:
    """A recipe as compile-time arguments."""
    return {"RULE": _RULES[recipe.scale], "TIES": _TIES[recipe.ties], "KEEPS": recipe.keeps_negative_zero}


def _grid(span: tuple[int, int, bool], parts: int, lanes: int) -> tuple[int]:
    return (-(-(span[1] - span[0]) // lanes) * parts,)


def quantize_rows(
    x: Tensor, dtype: str, recipe: Recipe, packing: Packing, blocks: Tensor, scales: Tensor,
    status: Tensor | None = None,
) -> None:  # fmt: skip
    """MXFP4 by `recipe` of rows `x` [R, p, K] of `dtype` (BF16, F16, F32), blocks along K.

    `BadBlock` for NaN, Inf and blocks that the recipe's rule would make infinite.
    """
    source = _plain_rows("x", x, dtype)
    shape = (x.shape[0], x.shape[1], x.shape[2])
    operands = (source, *_mxfp4(blocks, scales, packing, shape))
    with _on_device(x, blocks, scales):
        note = new_status(x.device) if status is None else status
        (a, b, s), rows, parts, groups = _geometry(operands, shape)
        lanes, warps = QUANTIZE_ROWS[packing]
        for span in _spans(rows * groups, _aligned(groups, parts, s)):
            gpu_rows.quantize_rows[_grid(span, parts, lanes)](
                a.tensor, b.tensor, s.tensor, note, span[0], span[1], *_strides(a, b, s),
                SOURCE=_DTYPES[dtype], **_how(recipe), GGML=packing is Packing.ggml, PARTS=parts,
                X_DENSE=_dense(groups, a), OUT_DENSE=_dense(groups, b, s), ALIGNED=span[2], BLOCKS=lanes,
                GROUPS=_known(groups, parts, a, b, s), num_warps=warps,
            )  # fmt: skip
        if status is None:
            raise_bad(note, shape[1], shape[2] // 32)


def quantize_columns(
    x: Tensor, dtype: str, recipe: Recipe, packing: Packing, blocks: Tensor, scales: Tensor,
    status: Tensor | None = None,
) -> None:  # fmt: skip
    """MXFP4 by `recipe` of columns `x` [K, N] or [E, K, N]: transposed and de-interleaved on the way.

    Errors as `quantize_rows`. Lines that are no whole words of 4 bytes, and fewer than four blocks along K, are
    transposed in memory first.
    """
    parts = blocks.shape[1] if blocks.dim() == 4 else 0
    cube, shape = _columns("x", x, dtype, parts)
    b, s = _mxfp4(blocks, scales, packing, shape)
    lines = _lines(cube, dtype)
    if lines is None or shape[2] < 128:
        rows = cube.transpose(1, 2).contiguous().view(shape)
        return quantize_rows(rows, dtype, recipe, packing, blocks, scales, status)
    with _on_device(x, blocks, scales):
        note = new_status(x.device) if status is None else status
        experts, k, n = cube.shape
        words = n * ITEMSIZE[dtype] // 4
        lanes, warps = QUANTIZE_COLUMNS[packing]
        if cube.numel():
            gpu_columns.quantize_columns[_tiles(k // 32, words, experts, (4, lanes))](
                lines[0], b.tensor, s.tensor, note, k // 32, n, lines[1], b.part, s.part, SOURCE=_DTYPES[dtype],
                **_how(recipe), GGML=packing is Packing.ggml, PARTS=parts, LINE=lines[2], BLOCK_ROW=b.row,
                SCALE_ROW=s.row, WORDS=lanes, WHOLE=words % lanes == 0, num_warps=warps,
            )  # fmt: skip
        if status is None:
            raise_bad(note, shape[1], shape[2] // 32)
    return None


def dequantize_rows(
    blocks: Tensor, scales: Tensor, packing: Packing, out: Tensor, out_dtype: str, status: Tensor | None = None
) -> None:
    """The values of MXFP4 as rows `out` [R, p, K] of BF16 or F32, exactly.

    `BadBlock` for scale byte 255 and for 253 and 254 where a value is 2^128 or more: NaN and Inf in `out`.
    """
    _require_exact(out_dtype)
    target = _plain_rows("out", out, out_dtype)
    shape = (out.shape[0], out.shape[1], out.shape[2])
    operands = (*_mxfp4(blocks, scales, packing, shape), target)
    with _on_device(out, blocks, scales):
        note = new_status(out.device) if status is None else status
        (b, s, o), rows, parts, groups = _geometry(operands, shape)
        lanes, warps = DEQUANTIZE_ROWS[packing]
        for span in _spans(rows * groups, _aligned(groups, parts, s)):
            gpu_rows.dequantize_rows[_grid(span, parts, lanes)](
                b.tensor, s.tensor, o.tensor, note, span[0], span[1], *_strides(b, s, o),
                TARGET=_DTYPES[out_dtype], GGML=packing is Packing.ggml, PARTS=parts, IN_DENSE=_dense(groups, b, s),
                OUT_DENSE=_dense(groups, o), ALIGNED=span[2], BLOCKS=lanes,
                GROUPS=_known(groups, parts, b, s, o), num_warps=warps,
            )  # fmt: skip
        if status is None:
            raise_bad(note, shape[1], shape[2] // 32)


def dequantize_columns(
    blocks: Tensor, scales: Tensor, packing: Packing, out: Tensor, out_dtype: str, status: Tensor | None = None
) -> None:
    """The values of MXFP4 as columns `out` [K, N] or [E, K, N] of BF16 or F32: interleaved and transposed.

    Errors as `dequantize_rows`. Lines that are no whole words of two columns are transposed in memory last.
    """
    _require_exact(out_dtype)
    parts = blocks.shape[1] if blocks.dim() == 4 else 0
    cube, shape = _columns("out", out, out_dtype, parts)
    b, s = _mxfp4(blocks, scales, packing, shape)
    experts, k, n = cube.shape
    lines = _lines(cube, out_dtype)
    if lines is None or n % 2:
        rows = torch.empty(shape, dtype=out.dtype, device=out.device)
        dequantize_rows(blocks, scales, packing, rows, out_dtype, status)
        cube.copy_(rows.view(experts, n, k).transpose(1, 2))
        return
    with _on_device(out, blocks, scales):
        note = new_status(out.device) if status is None else status
        tile = DEQUANTIZE_COLUMNS[packing]
        if cube.numel():
            gpu_columns.dequantize_columns[_tiles(k // 32, n // 2, experts, tile[:2])](
                b.tensor, s.tensor, lines[0], note, k // 32, n, lines[1], *_strides(b, s),
                TARGET=_DTYPES[out_dtype], GGML=packing is Packing.ggml, PARTS=parts, LINE=lines[2], GROUPS=tile[0],
                WORDS=tile[1], num_warps=tile[2],
            )  # fmt: skip
        if status is None:
            raise_bad(note, shape[1], shape[2] // 32)


def repack(
    blocks: Tensor, scales: Tensor, packing: Packing, out_blocks: Tensor, out_scales: Tensor, out_packing: Packing
) -> None:
    """Move nibbles from one packing to another, and every scale byte as it is. Same packing: a copy."""
    _require(blocks.dim() == 4, f"blocks have shape {tuple(blocks.shape)}, expected [R, p, G, 16]")
    shape = (blocks.shape[0], blocks.shape[1], blocks.shape[2] * 32)
    operands = (*_mxfp4(blocks, scales, packing, shape), *_mxfp4(out_blocks, out_scales, out_packing, shape))
    with _on_device(blocks, scales, out_blocks, out_scales):
        (b, s, ob, os), rows, parts, groups = _geometry(operands, shape)
        lanes, warps = REPACK[out_packing]
        ggml, out_ggml = packing is Packing.ggml, out_packing is Packing.ggml
        aligned = _aligned(groups, parts, *(r for r in (s, os) if r.unit == 17))
        for span in _spans(rows * groups, aligned):
            gpu_rows.repack[_grid(span, parts, lanes)](
                b.tensor, s.tensor, ob.tensor, os.tensor, span[0], span[1], *_strides(b, s, ob, os),
                GGML=ggml, OUT_GGML=out_ggml, PARTS=parts, IN_DENSE=_dense(groups, b, s),
                OUT_DENSE=_dense(groups, ob, os), ALIGNED=span[2], BLOCKS=lanes,
                GROUPS=_known(groups, parts, b, s, ob, os), num_warps=warps,
            )  # fmt: skip
