"""The Triton codecs against a plain copy and against peers, on one expert tensor of gpt-oss-20b, on this GPU.

    python tests/bench/gpu_kernels.py

Prints a markdown table. GB/s count each byte of source and target once. Each kernel is timed in turns with a copy of
the BF16 tensor on the same device (`do_bench`: CUDA events, L2 emptied before every run, median), and its share is of
the copy beside it. Peers that are not installed are left out; triton_kernels is no package, and its figures are quoted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from triton.testing import do_bench

from ckpttool.codecs import gpu
from ckpttool.codecs.formats import RECIPES, Packing

EXPERTS, ROWS, K = 32, 5760, 2880
GROUPS = K // 32
ELEMENTS = EXPERTS * ROWS * K
PACKED = ELEMENTS // 32 * 17
ROUNDS = 3
DEVICE = torch.device("cuda")

Work = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """One row of the table: what must be reached and what is reached for, as shares of the copy (None for a peer)."""

    name: str
    work: Work
    nbytes: int
    least: float | None = None
    reach: float | None = None


def median_ms(work: Work) -> float:
    return float(do_bench(work, warmup=15, rep=60, return_mode="median"))


def experts() -> torch.Tensor:
    """[E, R, K] of BF16, as wide as trained weights."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    return torch.empty((EXPERTS, ROWS, K), dtype=torch.bfloat16, device=DEVICE).normal_(0, 0.02, generator=generator)


def rows_view(parts: int, packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for blocks and scales [E * R / p, p, ...]: interleaved for pair, gate and up apart for ggml."""
    rows = EXPERTS * ROWS // parts
    if packing is Packing.pair:
        blocks = torch.empty((rows, parts, GROUPS, 16), dtype=torch.uint8, device=DEVICE)
        return blocks, torch.empty((rows, parts, GROUPS), dtype=torch.uint8, device=DEVICE)
    structs = torch.empty((parts, rows, GROUPS, 17), dtype=torch.uint8, device=DEVICE).transpose(0, 1)
    return structs[..., 1:], structs[..., 0]


def our_lines(x: torch.Tensor, y: torch.Tensor) -> list[Line]:
    """Every kernel; columns are the same memory as [E, K, N], N = R."""
    status = gpu.new_status(DEVICE)
    one, two = x.view(EXPERTS * ROWS, 1, K), x.view(EXPERTS * ROWS // 2, 2, K)
    columns, out = x.view(EXPERTS, K, ROWS), y.view(EXPERTS, K, ROWS)
    pair, ggml = Packing.pair, Packing.ggml
    p1, p2, g2 = rows_view(1, pair), rows_view(2, pair), rows_view(2, ggml)
    q2 = rows_view(2, ggml)
    bars = {"ocp": (0.80, 0.92), "best": (0.60, 0.80), "transformers": (None, None)}
    lines = []
    for name, (least, reach) in bars.items():
        recipe, total = RECIPES[name], 2 * ELEMENTS + PACKED
        up = (0.65, 0.85) if least else (None, None)

        def rows(r: Any = recipe) -> None:
            gpu.quantize_rows(one, "BF16", r, pair, *p1, status)

        def structs(r: Any = recipe) -> None:
            gpu.quantize_rows(two, "BF16", r, ggml, *g2, status)

        def turned(r: Any = recipe) -> None:
            gpu.quantize_columns(columns, "BF16", r, pair, *p2, status)

        def turned_structs(r: Any = recipe) -> None:
            gpu.quantize_columns(columns, "BF16", r, ggml, *g2, status)

        lines += [
            Line(f"quantize, last axis, `{name}`, pair", rows, total, least, reach),
            Line(f"quantize, last axis, `{name}`, ggml, gate and up apart", structs, total, least, reach),
            Line(f"quantize, transposed source, `{name}`, pair", turned, total, *up),
            Line(f"quantize, transposed source, `{name}`, ggml, gate and up apart", turned_structs, total, *up),
        ]
    total = 2 * ELEMENTS + PACKED
    gpu.quantize_rows(two, "BF16", RECIPES["ocp"], pair, *p2)
    gpu.quantize_rows(two, "BF16", RECIPES["ocp"], ggml, *g2)
    flat = [t.reshape(EXPERTS * ROWS, 1, *t.shape[2:]) for t in p2]
    lines += [
        Line("dequantize, last axis, pair", lambda: gpu.dequantize_rows(*flat, pair, y.view(one.shape), "BF16", status),
             total, 0.92, 0.95),
        Line("dequantize, last axis, ggml", lambda: gpu.dequantize_rows(*g2, ggml, y.view(two.shape), "BF16", status),
             total, 0.92, 0.95),
        Line("dequantize, transposed target, pair", lambda: gpu.dequantize_columns(*p2, pair, out, "BF16", status),
             total, 0.75, 0.90),
        Line("dequantize, transposed target, ggml", lambda: gpu.dequantize_columns(*g2, ggml, out, "BF16", status),
             total, 0.75, 0.90),
        Line("repack, pair to ggml, gate and up apart", lambda: gpu.repack(*p2, pair, *q2, ggml),
             2 * PACKED, 0.85, 0.92),
        Line("repack, ggml to pair, gate and up zipped", lambda: gpu.repack(*g2, ggml, *p2, pair),
             2 * PACKED, 0.85, 0.92),
    ]  # fmt: skip
    return lines


def peer_lines(x: torch.Tensor) -> list[Line]:
    """What can be installed: torchao, compiled, and transformers."""
    lines = []
    total = 2 * ELEMENTS + PACKED
    try:
        from torchao.prototype.mx_formats.config import ScaleCalculationMode
        from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

        floor, element = ScaleCalculationMode.FLOOR, torch.float4_e2m1fn_x2
        flat = x.view(-1, K)
        compiled = torch.compile(lambda: to_mx(flat, element, 32, floor), fullgraph=True)
        scale, data = compiled()
        back = torch.compile(lambda: to_dtype(data, scale, element, 32, torch.bfloat16), fullgraph=True)
        lines += [
            Line("torchao to_mx FLOOR, torch.compile", compiled, total),
            Line("torchao to_dtype, torch.compile", back, total),
        ]
    except ImportError as error:
        print(f"no torchao: {error}\n")
    try:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        blocks = torch.randint(0, 256, (EXPERTS, ROWS, GROUPS, 16), dtype=torch.uint8, device=DEVICE)
        scales = torch.randint(110, 130, (EXPERTS, ROWS, GROUPS), dtype=torch.uint8, device=DEVICE)
        lines.append(
            Line(
                "transformers convert_moe_packed_tensors (transposed target)",
                lambda: convert_moe_packed_tensors(blocks, scales),
                total,
            )
        )
    except ImportError as error:
        print(f"no transformers: {error}\n")
    return lines


def measured(line: Line, copy: Work) -> tuple[float, float]:
    """GB/s, and the share of the copy; in turns."""
    times = [(median_ms(copy), median_ms(line.work)) for _ in range(ROUNDS)]
    copied, worked = (statistics.median(column) for column in zip(*times, strict=True))
    rate = line.nbytes / worked / 1e6
    return rate, rate / (4 * ELEMENTS / copied / 1e6)


def versions() -> str:
    found = [f"torch {torch.__version__}"]
    for name in ("triton", "torchao", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def driver() -> str:
    import subprocess

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main() -> None:
    x, y, z = experts(), experts(), experts()

    def copy() -> None:
        z.copy_(x)

    print(f"{torch.cuda.get_device_name()}, driver {driver()}; {versions()}; BF16 [{EXPERTS}, {ROWS}, {K}]\n")
    print("| kernel | GB/s | of copy | at least | reach for |\n|---|---|---|---|---|")
    print(f"| copy of the BF16 tensor | {4 * ELEMENTS / median_ms(copy) / 1e6:,.0f} | 1 | | |")
    for line in [*our_lines(x, y), *peer_lines(x)]:
        rate, share = measured(line, copy)
        bars = " | ".join("" if bar is None else f"{bar:.2f}" for bar in (line.least, line.reach))
        print(f"| {line.name} | {rate:,.0f} | {share:.2f} | {bars} |", flush=True)
    print("| triton_kernels downcast_to_mxfp, quoted, not measured here | 358 | 0.08 | | |")
    print("| triton_kernels upcast_from_mxfp, quoted, not measured here | 1,104 | 0.26 | | |")


if __name__ == "__main__":
    main()
