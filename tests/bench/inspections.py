"""What inspecting gpt-oss-120b's headers and scales takes: a process from start to end, its CPU time and peak memory.

    python tests/bench/inspections.py               about 2 minutes; 4 GB of page cache
    python tests/bench/inspections.py --runs 3      quicker, less sure

The checkpoints are real headers over holes (tests/header_checkpoints.py): 65 GB that take a few MB of disk; the GGUF
has a vocabulary of the real size. The best of the runs counts: whatever else the machine does only adds. The peers: the
gguf package's own reader on the same file, and a process that reads the same scale bytes and counts nothing. A hole's
bytes are all alike, which is counted fastest; so the kernel is measured by itself on scales that are not. Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import CKPTTOOL, Finished, machine, run

HERE = Path(__file__).resolve().parent
HEADERS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from header_checkpoints import write_headers
write_headers(Path(sys.argv[2]) / "120b", "120b")
write_headers(Path(sys.argv[2]) / "gguf", "120b", "gguf")
"""
GGUF_READER = [sys.executable, "-c", "import sys, gguf; print(len(gguf.GGUFReader(sys.argv[1]).tensors))"]
READ_SCALES = """
import os, sys, threading
from ckpttool.checkpoint import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
scales = iter([w.stored[1] for w in checkpoint.weights if len(w.stored) == 2])
lock, total = threading.Lock(), [0]
def work():
    buffer = bytearray(4 << 20)
    while True:
        with lock:
            t = next(scales, None)
        if t is None:
            return
        with open(checkpoint.file_paths[t.file], "rb", buffering=0) as f:
            for at in range(0, t.nbytes, len(buffer)):
                view = memoryview(buffer)[: min(len(buffer), t.nbytes - at)]
                os.preadv(f.fileno(), [view], t.offset + at)
        with lock:
            total[0] += t.nbytes
threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(total[0])
"""

LOAD = "from ckpttool.codecs import counting; import numpy; counting.count_bytes(numpy.zeros(8, numpy.uint8))"
COUNT = """
import sys
import time
import numpy as np
from ckpttool.codecs.counting import count_runs
rng = np.random.default_rng(7)
data = {"one": np.zeros(4 << 20), "few": rng.normal(118, 2, 4 << 20), "all": rng.integers(0, 256, 4 << 20)}[sys.argv[1]]
data = data.astype(np.uint8)
seconds = []
for _ in range(50):
    begun = time.process_time()
    count_runs(data, 518_400, 518_400)
    seconds.append(time.process_time() - begun)
print(len(data) / min(seconds) / 1e9)
"""
KINDS = {"one": "one value", "few": "a trained expert's 20 or so", "all": "all 256"}


def best(command: list[str], runs: int) -> Finished:
    """The quickest of `runs` runs, with the largest peak."""
    done = [run(command) for _ in range(runs)]
    quickest = min(done, key=lambda f: f.seconds)
    return Finished(quickest.seconds, min(f.cpu_seconds for f in done), max(f.peak for f in done), quickest.stdout)


def row(name: str, found: Finished, bar: str, more: str = "") -> None:
    """A row of the table."""
    print(
        f"| {name} | {found.seconds:.2f} | {found.cpu_seconds:.2f} | {found.peak / 1e6:.0f} | {bar} | {more} |",
        flush=True,
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of each command; the peers run once or thrice")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", HEADERS, str(HERE.parent), folder], check=True)
        hf, gguf = f"{folder}/120b", f"{folder}/gguf/gpt-oss-120b.gguf"
        print(f"{machine()}\n")
        print("| command | seconds | CPU seconds | peak MB | bar | |\n| --- | ---: | ---: | ---: | --- | --- |")
        row("`inspect` of 15 shards, 687 tensors", best([*CKPTTOOL, "inspect", hf], runs), "0.6 s, 200 MB")
        row("the same, `--json`", best([*CKPTTOOL, "inspect", hf, "--json"], runs), "0.6 s, 200 MB")
        ours = best([*CKPTTOOL, "inspect", gguf], runs)
        row("`inspect` of a GGUF, 201,088 tokens", ours, "0.4 s, 60 MB")
        theirs = best([*GGUF_READER, gguf], 1)
        ratio = f"{theirs.seconds / ours.seconds:.0f} x the time, {theirs.peak / ours.peak:.0f} x the memory"
        row("gguf-py's reader, the same file", theirs, "", ratio)
        few = max(1, runs // 3)
        reading = best([sys.executable, "-c", READ_SCALES, hf], few)  # and brings the holes into the page cache
        scales = best([*CKPTTOOL, "inspect", hf, "--scales", "--json"], few)
        nbytes = int(reading.stdout)
        row(f"reading {nbytes / 1e9:.2f} GB of scales", reading, "", f"{nbytes / reading.seconds / 1e9:.2f} GB/s")
        more = f"{nbytes / scales.seconds / 1e9:.2f} GB/s, {scales.seconds / reading.seconds:.2f} x reading"
        row("`inspect --scales --json`", scales, "as reading", more)
        row("of that, numba and the kernel loaded", best([sys.executable, "-c", LOAD], few), "")
        print("\n| scale bytes of an expert | GB/s that one thread counts |\n| --- | ---: |")
        for kind, words in KINDS.items():
            print(f"| {words} | {float(run([sys.executable, '-c', COUNT, kind]).stdout):.1f} |")


if __name__ == "__main__":
    main()
