"""How long `ckpttool validate` takes, level by level: the tiny fixture on cores, a whole gpt-oss-20b on a GPU.

    python tests/bench/validations.py                        both; without a GPU the first alone
    python tests/bench/validations.py --only gpu --layers 2  a quick look at the second
    python tests/bench/validations.py --only gpu --device cpu --layers 1 --experts 4 --vocab 4096 --tokens 64
                                                             the second on cores: to try this program

The second wants 24 layers, 56 GB in /dev/shm: synthetic BF16, MXFP4 made of it by `ckpttool convert`, and both held
against each other in a process that has imported torch, made a context and compiled the kernels by validating a small
pair. What it is measured by is reading both checkpoints once over the link, and nothing else: threads that read 16 MiB
into pinned memory and copy it to the GPU. Predictions of random weights mean nothing, so limits are set out of the way.
Markdown on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from processes import CKPTTOOL, machine, need_memory, run, write_checkpoint

TINY = Path(__file__).resolve().parents[2] / "fixtures" / "tiny-gpt-oss"
PAIRS = (
    ("parent", "hf", "BF16, MXFP4"),
    ("hf", "hf-bf16", "MXFP4, its BF16"),
    ("hf", "gguf/tiny-gpt-oss-auto.gguf", "MXFP4, its GGUF"),
)
LEVELS = ("structure", "values", "forward")
ROUNDS = 3
PIECE = 16 << 20
READERS = (8, 16)

TINY_BAR = 10.0
LINK_BAR = 2.0
GPU_BAR = 12 << 30

NO_LIMITS = {"max_kl": 1e300, "min_top1": 0.0, "max_ppl_ratio": 1e300}

PROBE = """
import gc, json, re, sys
from time import perf_counter
import torch
from ckpttool.validator.validation import validate
small, pair, rounds, options = json.loads(sys.argv[1])
on_gpu = options["device"] != "cpu"
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def timed(level, **more):
    begun = perf_counter()
    report = validate(*pair, level=level, **more)
    return report, perf_counter() - begun
validate(*small, level="forward", **options)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
out = {"structure": timed("structure")[1]}
report, out["values"] = timed("values")
assert report.ok, report.decided
out["proofs"] = sorted({str(p.proof) for p in report.parts})
out["runs"] = []
for _ in range(rounds):
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    report, seconds = timed("forward", **options)
    assert report.ok and report.forward is not None, report.decided
    f = report.forward
    reserved = torch.cuda.max_memory_reserved() if on_gpu else 0
    out["runs"].append({"whole": seconds, "walk": f.seconds, "read": f.read_nbytes, "numbers": f.numbers,
                        "tokens": f.tokens, "allocated": f.peak_gpu_nbytes or 0, "reserved": reserved})
out["host"] = status("VmHWM") - before
print(json.dumps(out))
"""
"""All levels in a process that is warm; `walk` is the forward level's own time, `whole` that with the levels below."""


@dataclass(frozen=True)
class Link:
    """Seconds for reading all files once and copying them to the GPU, and what pinned memory alone gives a second."""

    seconds: float
    threads: int
    rate: float


def tiny() -> None:
    """Each level of pairs of the fixture, as processes from their start to their end."""
    print("| reference, candidate | level | seconds from start (best to worst) | CPU | peak MB | bar |")
    print("|---|---|---|---|---|---|")
    for reference, candidate, name in PAIRS:
        for level in LEVELS:
            command = [*CKPTTOOL, "validate", str(TINY / reference), str(TINY / candidate), "--level", level, "--json"]
            done = [run(command) for _ in range(ROUNDS)]
            seconds = statistics.median(d.seconds for d in done)
            spread = f"{min(d.seconds for d in done):.2f} to {max(d.seconds for d in done):.2f}"
            bar = f"{TINY_BAR:g} s: {'pass' if seconds < TINY_BAR else 'FAIL'}" if level == "forward" else ""
            cpu, peak = statistics.median(d.cpu_seconds for d in done), max(d.peak for d in done)
            print(
                f"| {name} | {level} | {seconds:.2f} ({spread}) | {cpu:.2f} | {peak / 1e6:,.0f} | {bar} |", flush=True
            )


def copied(paths: Sequence[Path], threads: int) -> float:
    """Seconds for reading every file once, piece by piece, over the link."""
    import torch

    fds = [os.open(p, os.O_RDONLY) for p in paths]
    todo = iter([(fd, at) for fd in fds for at in range(0, os.fstat(fd).st_size, PIECE)])
    lock = threading.Lock()
    rooms = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(threads)]
    cards = [torch.empty(PIECE, dtype=torch.uint8, device="cuda") for _ in range(threads)]

    def body(i: int) -> None:
        stream, view = torch.cuda.Stream(), rooms[i].numpy().data
        while True:
            with lock:
                piece = next(todo, None)
            if piece is None:
                return
            count = os.preadv(piece[0], [view], piece[1])
            with torch.cuda.stream(stream):
                cards[i][:count].copy_(rooms[i][:count], non_blocking=True)
            stream.synchronize()

    workers = [threading.Thread(target=body, args=(i,)) for i in range(threads)]
    torch.cuda.synchronize()
    begun = perf_counter()
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    seconds = perf_counter() - begun
    for fd in fds:
        os.close(fd)
    return seconds


def link_alone(paths: Sequence[Path]) -> Link:
    """The best of two rounds with each number of threads."""
    from gpu_conversions import link_rates

    seconds, threads = min((copied(paths, n), n) for n in READERS for _ in range(2))
    return Link(seconds, threads, link_rates()[0])


def pair(scratch: Path, name: str, **sizes: int) -> tuple[Path, Path]:
    """A BF16 folder and the MXFP4 one that is made of it."""
    bf16, mxfp4 = scratch / f"{name}-bf16", scratch / f"{name}-mxfp4"
    write_checkpoint(bf16, "bf16", **sizes)
    run([*CKPTTOOL, "convert", str(bf16), str(mxfp4), "--to", "mxfp4", "--no-verify", "--json"])
    return bf16, mxfp4


def big(asked: argparse.Namespace) -> None:
    """A whole model: what each level takes, against reading both."""
    need_memory(int(asked.layers * asked.experts / 32 * 2.4e9) + (8 << 30))
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        small = pair(Path(folder), "small", layers=2, experts=4, vocab=4096)
        both = pair(Path(folder), "big", layers=asked.layers, experts=asked.experts, vocab=asked.vocab)
        files = [p for side in both for p in sorted(side.glob("*.safetensors"))]
        sizes = [sum(p.stat().st_size for p in side.glob("*.safetensors")) for side in both]
        options = {"device": asked.device, "tokens": asked.tokens, **NO_LIMITS}
        request = json.dumps([[str(p) for p in small], [str(p) for p in both], ROUNDS, options])
        found = json.loads(run([sys.executable, "-c", PROBE, request]).stdout.splitlines()[-1])
        link = link_alone(files) if asked.device != "cpu" else None
    last = found["runs"][-1]
    print(f"{asked.layers} layers, BF16 {sizes[0] / 1e9:.1f} GB against MXFP4 {sizes[1] / 1e9:.1f} GB, "
          f"{last['tokens']:,} tokens in {last['numbers']}; medians of {ROUNDS}.\n")  # fmt: skip
    if link:
        print(f"Reading both once over the link: {link.seconds:.2f} s with {link.threads} threads "
              f"({sum(sizes) / link.seconds / 1e9:.1f} GB/s); pinned memory alone gives {link.rate / 1e9:.1f} GB/s, "
              f"{sum(sizes) / link.rate:.2f} s.\n")  # fmt: skip
    levels(found, link)


def levels(found: dict[str, Any], link: Link | None) -> None:
    """The table of one model."""
    runs = found["runs"]
    print("| level | seconds | of reading both | GPU MB, allocated, reserved | host MB |")
    print("|---|---|---|---|---|")
    print(f"| structure | {found['structure']:.2f} | | | |")
    print(f"| values ({', '.join(found['proofs'])}) | {found['values']:.2f} | | | |")
    for name in ("walk", "whole"):
        seconds = [r[name] for r in runs]
        median = statistics.median(seconds)
        ratio = median / link.seconds if link else 0.0
        verdict = f" ({'pass' if ratio <= LINK_BAR else 'FAIL'})" if name == "walk" else ""
        peaks = [max(r[key] for r in runs) for key in ("allocated", "reserved")]
        gpu = f"{peaks[0] / 1e6:,.0f}, {peaks[1] / 1e6:,.0f} ({'pass' if peaks[1] <= GPU_BAR else 'FAIL'})"
        label = "forward alone" if name == "walk" else "forward, with the levels below"
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        cells = (f"{median:.2f} ({spread})", f"{ratio:.2f}{verdict}" if link else "", gpu if link else "")
        print(f"| {label} | {' | '.join(cells)} | {found['host'] / 1e6:,.0f} |", flush=True)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("tiny", "gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=201_088)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    asked = parser.parse_args()
    print(f"{machine()}.\n")
    if asked.only != "gpu":
        tiny()
        print()
    if asked.only == "gpu" or (asked.only is None and has_gpu()):
        if asked.device != "cpu":
            from gpu_conversions import gpu

            print(f"{gpu()}.\n")
        big(asked)


if __name__ == "__main__":
    main()
