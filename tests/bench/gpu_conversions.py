"""A whole gpt-oss-20b converted on a GPU and on the cores, against what reading, the link and writing take alone.

    python tests/bench/gpu_conversions.py                    24 layers: 84 GB in /dev/shm, some minutes
    python tests/bench/gpu_conversions.py --layers 2         a quick look

Source and target lie on tmpfs. Each conversion runs in a process of its own that has imported torch, made a context and
compiled the kernels by converting one small layer; its seconds are the conversion's own, from the plan to the rename.
`from start` is the same command as a process from its start to its end. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from processes import CKPTTOOL, machine, need_memory, run, write_checkpoint

PIECE = 8 << 20
ROUNDS = 3
BAR = 1.5
HOST_BAR, GPU_BAR = 2 << 30, 4 << 30

PROBE = """
import gc, json, re, shutil, sys
import ckpttool, torch
small, small_target, source, target, rounds, options = json.loads(sys.argv[1])
torch.cuda.init()
ckpttool.convert(small, small_target, **options)
gc.collect()
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
runs = []
for _ in range(rounds):
    shutil.rmtree(target, ignore_errors=True)
    receipt = ckpttool.convert(source, target, **options)
    runs.append(receipt.run)
free, total = torch.cuda.mem_get_info()
print(json.dumps({"runs": runs, "host": status("VmHWM") - before, "gpu": total - free,
                  "files": [f.sha256 for f in receipt.files]}))
"""
"""A conversion some times over in a process that is warm; `gpu` is all that it holds, its context included."""


@dataclass(frozen=True)
class Limits:
    """Seconds that each stage takes alone."""

    read: float
    link: float
    write: float

    @property
    def slowest(self) -> float:
        return max(self.read, self.link, self.write)


@dataclass(frozen=True)
class Row:
    """A conversion on a device, with or without verification."""

    name: str
    device: str
    verify: bool
    seconds: float
    spread: tuple[float, float]
    last: dict[str, Any]


def in_threads(count: int, body: Callable[[int], None]) -> float:
    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    begun = perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return perf_counter() - begun


def pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(file, offset, nbytes) of pieces of all files, in turns."""
    for at in range(0, max(sizes), PIECE):
        yield from ((i, at, min(PIECE, size - at)) for i, size in enumerate(sizes) if at < size)


def moved(fds: Sequence[int], sizes: Sequence[int], threads: int, write: bool) -> float:
    """Seconds for reading or writing all files whole, piece by piece."""
    todo, lock = pieces(sizes), threading.Lock()
    buffers = [np.ones(PIECE, np.uint8).data for _ in range(threads)]

    def body(i: int) -> None:
        while True:
            with lock:
                piece = next(todo, None)
            if piece is None:
                return
            file, offset, nbytes = piece
            view = buffers[i][:nbytes]
            done = os.pwrite(fds[file], view, offset) if write else os.preadv(fds[file], [view], offset)
            assert done == nbytes

    return in_threads(threads, body)


def read_alone(paths: Sequence[Path], threads: int) -> float:
    """The best of two."""
    fds = [os.open(p, os.O_RDONLY) for p in paths]
    sizes = [p.stat().st_size for p in paths]
    seconds = min(moved(fds, sizes, threads, write=False) for _ in range(2))
    for fd in fds:
        os.close(fd)
    return seconds


def write_alone(folder: Path, sizes: Sequence[int], threads: int) -> float:
    """Reserving and writing files of these sizes; the best of two."""
    seconds = []
    for _ in range(2):
        folder.mkdir()
        begun = perf_counter()
        fds = [os.open(folder / str(i), os.O_RDWR | os.O_CREAT) for i in range(len(sizes))]
        with ThreadPoolExecutor(len(fds)) as pool:
            list(pool.map(lambda fd, size: os.posix_fallocate(fd, 0, size), fds, sizes))
        moved(fds, sizes, threads, write=True)
        seconds.append(perf_counter() - begun)
        for fd in fds:
            os.close(fd)
        shutil.rmtree(folder)
    return min(seconds)


def link_rates() -> tuple[float, float]:
    """Bytes a second to the GPU and back, pinned."""
    import torch

    host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    card = torch.empty_like(host, device="cuda")
    rates = []
    for target, source in ((card, host), (host, card)):
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            begun = perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            seconds.append(perf_counter() - begun)
        rates.append(host.nbytes / min(seconds))
    return rates[0], rates[1]


def limits(source: Path, target: Path, scratch: Path, rates: tuple[float, float], cores: int) -> Limits:
    """What each stage takes alone, for the files of a finished conversion."""
    read = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    written = [target] if target.is_file() else sorted(target.glob("*.safetensors"))
    sizes = [p.stat().st_size for p in written]
    coming, going = sum(p.stat().st_size for p in read), sum(sizes)
    write = min(write_alone(scratch / "alone", sizes, n) for n in (len(sizes), cores // 2))
    return Limits(read_alone(read, cores), max(coming / rates[0], going / rates[1]), write)


def converted(small: Path, source: Path, target: Path, device: str, verify: bool, to: str) -> Row:
    """Some rounds, or one with verification; the target of the last one stays."""
    remove(target)
    options = {"to": to, "device": device, "verify": verify, "overwrite": True}
    places = [str(p) for p in (small, small.with_name("warm-" + target.name), source, target)]
    request = json.dumps([*places, 1 if verify else ROUNDS, options])
    last = json.loads(run([sys.executable, "-c", PROBE, request]).stdout.splitlines()[-1])
    seconds = [r["seconds"]["total"] for r in last["runs"]]
    name = f"{source.name} -> {target.name}"
    return Row(name, device, verify, statistics.median(seconds), (min(seconds), max(seconds)), last)


def from_start(source: Path, target: Path, device: str, to: str) -> float:
    """The command as a process."""
    remove(target)
    options = ["--to", to, "--device", device, "--no-verify", "--json"]
    return run([*CKPTTOOL, "convert", str(source), str(target), *options]).seconds


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.with_name(path.name + ".receipt.json").unlink(missing_ok=True)


def why(source: Path, target: Path, to: str) -> str:
    """What the plan says of the device that `auto` takes."""
    options = ["--to", to, "--dry-run", "--json", "--overwrite"]
    plan = run([*CKPTTOOL, "convert", str(source), str(target), *options]).document
    return f"{', '.join(plan['devices'])}: {plan['devices_why']}"


def race(scratch: Path, source: str, target: str, to: str, cores: int, rates: tuple[float, float]) -> None:
    """One direction on both devices; lines of the table, and what `auto` says."""
    a, b, small = scratch / source, scratch / target, scratch / f"small-{source}"
    rows = [converted(small, a, b, device, verify, to) for verify in (False, True) for device in ("cuda", "cpu")]
    verified = [r.last["files"] for r in rows if r.verify]
    if verified[0] != verified[1]:
        raise RuntimeError(f"{source} -> {target}: GPU and CPU differ")
    alone = limits(a, b, scratch, rates, cores)
    started = {device: from_start(a, b, device, to) for device in ("cuda", "cpu") if to == "mxfp4"}
    for r in rows:
        ratio = r.seconds / alone.slowest
        bar = f" ({'pass' if ratio <= BAR else 'FAIL'})" if r.device == "cuda" and not r.verify else ""
        cells = (
            r.name, r.device, "yes" if r.verify else "no", f"{alone.read:.2f}, {alone.link:.2f}, {alone.write:.2f}",
            f"{r.seconds:.2f} ({r.spread[0]:.2f} to {r.spread[1]:.2f})", f"{ratio:.2f}{bar}",
            f"{started[r.device]:.1f}" if r.device in started and not r.verify else "",
            f"{r.last['host'] / 1e6:,.0f}", f"{r.last['gpu'] / 1e6:,.0f}" if r.device == "cuda" else "",
            stages(r.last["runs"][-1]["seconds"]),
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
        if r.device == "cuda" and (r.last["host"] > HOST_BAR or r.last["gpu"] > GPU_BAR):
            print("FAIL: more memory than the bar")
    reasons.append(f"* {source} to {target}: {why(a, b, to)}")


reasons: list[str] = []


def stages(seconds: dict[str, float]) -> str:
    names = ("prepare", "slabs", "threads_read", "threads_compute", "threads_write")
    return ", ".join(f"{seconds[n]:.2f}" for n in names)


def gpu() -> str:
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return f"{torch.cuda.get_device_name()}, driver {run(query).stdout.splitlines()[0]}, CUDA {torch.version.cuda}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=201_088)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    need_memory(int(asked.layers * 2.4e9) + (8 << 30))
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        scratch = Path(folder)
        rates = link_rates()
        nbytes = write_checkpoint(scratch / "bf16", "bf16", layers=asked.layers, vocab=asked.vocab)
        for kind in ("bf16", "mxfp4"):
            write_checkpoint(scratch / f"small-{kind}", kind, layers=1, experts=1, vocab=4096)
        print(f"{gpu()}; link {rates[0] / 1e9:.1f} and {rates[1] / 1e9:.1f} GB/s; {machine()}.\n")
        print(f"{asked.layers} layers, BF16 {nbytes / 1e9:.1f} GB; medians of {ROUNDS}.\n")
        print("| conversion | device | read back | read, link, write alone, s | seconds | of the slowest alone "
              "| from start, s | host MB | GPU MB | prepare, slabs; threads: read, compute, write, s |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|")
        race(scratch, "bf16", "mxfp4", "mxfp4", cores, rates)
        remove(scratch / "bf16")
        race(scratch, "mxfp4", "bf16", "bf16", cores, rates)
        remove(scratch / "bf16")
        race(scratch, "mxfp4", "out.gguf", "gguf", cores, rates)
        print("\nWhat `--device auto` decides there, in the plan's words:\n")
        print("\n".join(reasons))


if __name__ == "__main__":
    main()
