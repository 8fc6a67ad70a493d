"""Converting from a Hub on the loopback: how fast against plain reading by the same client, and in how much memory.

    python tests/bench/hub.py                         one layer of 32 experts: about 8 minutes
    python tests/bench/hub.py --experts 8 --rounds 1  a quick look

The Hub of the tests runs as a process of its own; the plain reader is a process that asks it for the same files with
huggingface_hub's client, eight ranges at once, and keeps nothing. A conversion's seconds are the receipt's: from the
first slab to the last byte written and read back, without start-up; a reader's are from the first range to the last.

Both bars are 0.7 of plain reading: for what a conversion reads with, and for whole conversions from a Hub that sends
1 Gbit/s. One that sends as fast as the loopback takes shares its cores with the conversion, whose own work decides
then: the same from a local folder stands beside it. From a process's peak memory we take what the same conversion of
the tiny fixture leaves resident. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import processes
from memory import MB, PROBE
from processes import CKPTTOOL, machine, need_memory, run, write_checkpoint

HERE = Path(__file__).resolve().parent
TINY = HERE.parents[1] / "fixtures" / "tiny-gpt-oss"
TOKEN = "hf_" + "w" * 34
BAR = 0.7
MORE_MEMORY = 256 * MB
AT_ONCE = 8
DIRECTIONS = [("mxfp4", "gguf"), ("mxfp4", "bf16"), ("bf16", "mxfp4")]

SERVE = """
import json, pathlib, sys, threading, time
sys.path.insert(0, sys.argv[1])
import fake_hub
rate, lock, free = float(sys.argv[4]), threading.Lock(), [0.0]
def paced(call, act):
    answer = act()
    with lock:
        free[0] = max(time.monotonic(), free[0]) + len(answer.body) / rate
        until = free[0]
    time.sleep(max(0.0, until - time.monotonic()))
    return answer
with fake_hub.running() as hub:
    if rate:
        hub.always["resolve"] = paced
    hub.users[sys.argv[2]] = fake_hub.User("ada")
    for name, folder in json.loads(sys.argv[3]).items():
        hub.add(name, {p.name: p.read_bytes() for p in sorted(pathlib.Path(folder).iterdir())})
    print(hub.endpoint, flush=True)
    while sys.stdin.read(1):
        pass
"""
"""The Hub, until its stdin is closed; what it sends is paced where a rate is given."""

SHARE = """
import json, sys, threading
from time import perf_counter
name, at_once, piece = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def share(sizes, take):
    todo = iter([(file, at, min(at + piece, size)) for file, size in sizes for at in range(0, size, piece)])
    lock, read = threading.Lock(), []
    def body():
        room = bytearray(piece)
        while True:
            with lock:
                asked = next(todo, None)
            if asked is None:
                return
            take(*asked, room)
            read.append(asked[2] - asked[1])
    threads = [threading.Thread(target=body) for _ in range(at_once)]
    begun = perf_counter()
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sum(read) == sum(size for _, size in sizes)
    print(json.dumps({"seconds": perf_counter() - begun, "nbytes": sum(read)}))
"""
"""Ranges of files, taken by threads."""

READ = (
    SHARE
    + """
from huggingface_hub import HfApi, get_session, hf_hub_url
found = HfApi().model_info(name, files_metadata=True)
client = get_session()
def take(file, first, stop, room):
    url = hf_hub_url(name, file, revision=found.sha)
    with client.stream("GET", url, headers={"Range": f"bytes={first}-{stop - 1}"}) as answer:
        assert sum(map(len, answer.iter_raw())) == stop - first
share([(s.rfilename, s.size) for s in found.siblings if s.rfilename.endswith(".safetensors")], take)
"""
)
"""Every byte of a repo's weights once, and nothing done with them."""

FILL = (
    SHARE
    + """
from ckpttool.hub import hub_folder
folder, _ = hub_folder(f"hf://{name}")
def take(file, first, stop, room):
    file.readinto(first, memoryview(room)[: stop - first])
files = [folder.file(n).open() for n in folder.names() if n.endswith(".safetensors")]
share([(f, f.size) for f in files], take)
"""
)
"""The same as a conversion reads: each range into a slab's buffer, held against what was listed, tried again."""


@dataclass
class Race:
    """A conversion from the Hub, and plain reading of the same files, in turns."""

    source: str
    to: str
    rate: float
    reading: list[float] = field(default_factory=list)
    filling: list[float] = field(default_factory=list)
    converting: list[float] = field(default_factory=list)
    here: list[float] = field(default_factory=list)
    nbytes: int = 0

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.source.upper()} -> {self.to.upper()}{f', {self.rate / MB:.0f} MB/s' if self.rate else ''}"


@contextlib.contextmanager
def hub(folders: dict[str, Path], rate: float = 0) -> Iterator[None]:
    """The Hub with these repos, which every process started meanwhile takes for its own; `rate` is bytes a second."""
    command = [
        sys.executable,
        "-c",
        SERVE,
        str(HERE.parent),
        TOKEN,
        json.dumps({n: str(p) for n, p in folders.items()}),
        str(rate),
    ]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        processes.ENVIRONMENT.pop(offline, None)
    processes.ENVIRONMENT |= {"HF_ENDPOINT": server.stdout.readline().strip(), "HF_TOKEN": TOKEN}
    processes.ENVIRONMENT |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        yield
    finally:
        server.stdin.close()
        server.wait()


def target_of(scratch: Path, to: str) -> Path:
    return scratch / ("out.gguf" if to == "gguf" else "out")


def remove(path: Path) -> None:
    """A target, and the receipt beside it."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.with_name(path.name + ".receipt.json").unlink(missing_ok=True)


def converted(source: str, target: Path, to: str) -> float:
    """Seconds between the first tensor's bytes and the last, written and read back."""
    command = [*CKPTTOOL, "convert", source, str(target), "--to", to, "--device", "cpu", "--json"]
    seconds = run(command).document["run"]["seconds"]
    remove(target)
    return float(seconds["total"] - seconds["prepare"])


def hold(race: Race, folder: Path, scratch: Path, rounds: int, piece: int) -> None:
    """Each of the four in turns; the first round does not count."""
    target, name = target_of(scratch, race.to), f"ada/bench-{race.source}"
    for n in range(-1, rounds):
        read, filled = (run([sys.executable, "-c", p, name, str(AT_ONCE), str(piece)]).document for p in (READ, FILL))
        race.nbytes = read["nbytes"]
        there, here = converted(name, target, race.to), converted(str(folder), target, race.to)
        if n >= 0:
            race.reading.append(read["seconds"])
            race.filling.append(filled["seconds"])
            race.converting.append(there)
            race.here.append(here)


HEAD = """| from the Hub | GB | plain reading | as a conversion reads | ratio | converting | ratio | from a folder |
|---|---|---|---|---|---|---|---|"""


def row(race: Race) -> str:
    reading, filling, converting, here = (
        statistics.median(x) for x in (race.reading, race.filling, race.converting, race.here)
    )

    def cell(seconds: float) -> str:
        return f"{seconds:.2f}, {race.nbytes / seconds / 1e6:,.0f}"

    read, whole = reading / filling, reading / converting
    bar = f": {'pass' if whole >= BAR else 'FAIL'}" if race.rate else ""
    return (
        f"| {race.name} | {race.nbytes / 1e9:.2f} | {cell(reading)} | {cell(filling)} "
        f"| {read:.2f}: {'pass' if read >= BAR else 'FAIL'} | {cell(converting)} | {whole:.2f}{bar} | {cell(here)} |"
    )


def probe(source: str, target: Path | str, *options: str) -> dict[str, int]:
    """What Linux says of a process that converts; the target is removed at once where it is here."""
    said = run([sys.executable, "-c", PROBE, "convert", source, str(target), *options]).stdout
    if isinstance(target, Path):
        remove(target)
    found: dict[str, int] = json.loads(said.splitlines()[-1])
    return found


def peak(kind: str, to: str, memory: int, scratch: Path, *, onward: bool = False) -> str:
    """A row: what a process has at its peak beside what the tiny repo's conversion leaves resident; `onward`: into
    another repo, shards freed as they are up."""
    options = ["--to", to, "--device", "cpu", "--workers", str(AT_ONCE), "--max-memory", f"{memory // MB}MB"]
    target: Path | str = target_of(scratch, to)
    if onward:
        options += ["--free-disk", "--workdir", str(scratch), "--max-shard-size", "200MB"]
        target = f"hf://ada/out-{memory}"
    before = probe(f"ada/tiny-{kind}", target_of(scratch, to), *options[:8])["VmRSS"]
    more = probe(f"ada/bench-{kind}", target, *options)["VmHWM"] - before
    verdict = "pass" if more < memory + MORE_MEMORY else "FAIL"
    name = f"{kind} -> {to}{', to the Hub' if onward else ''}"
    return f"| {name} | {memory // MB}MB | {more / MB:,.0f} | {(memory + MORE_MEMORY) // MB} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--piece", type=int, default=16 << 20, help="bytes of a plain reader's range")
    parser.add_argument("--rate", type=int, default=125, help="MB a second of the paced Hub: a line of 1 Gbit/s")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/ckpttool-hub"), help="a folder to be made")
    asked = parser.parse_args()
    print(f"{machine()}.\n", flush=True)
    asked.scratch.mkdir()
    try:
        measured(asked)
    finally:
        shutil.rmtree(asked.scratch)


def measured(asked: argparse.Namespace) -> None:
    """Both tables."""
    # Each source on tmpfs and in the Hub, the widest target, and a process.
    need_memory(int(asked.layers * asked.experts * 3 * 2880 * 2880 * (2 * 2.6 + 2)) + (4 << 30))
    folders = {kind: asked.scratch / f"bench-{kind}" for kind in ("mxfp4", "bf16")}
    for kind, folder in folders.items():
        write_checkpoint(folder, kind, layers=asked.layers, experts=asked.experts, vocab=asked.vocab)
    repos = {f"ada/{p.name}": p for p in folders.values()}
    repos |= {"ada/tiny-mxfp4": TINY / "hf", "ada/tiny-bf16": TINY / "hf-bf16"}
    pieces = f"ranges of {asked.piece >> 20} MiB, {AT_ONCE} at once"
    print(f"{asked.layers} layers, {asked.experts} experts; medians of {asked.rounds}; {pieces}.")
    print(f"Seconds, and MB/s of the source.\n\n{HEAD}", flush=True)
    for rate in (asked.rate * MB, 0):
        with hub(repos, rate):
            for source, to in DIRECTIONS:
                race = Race(source, to, rate)
                hold(race, folders[source], asked.scratch, asked.rounds, asked.piece)
                print(row(race), flush=True)
    with hub(repos):
        memory_table(asked.scratch)


def memory_table(scratch: Path) -> None:
    """What each direction has at its peak, in the memory of the default and in little."""
    print(f"\nMemory with {AT_ONCE} ranges at once, in MB of 10^6 bytes.\n")
    print("| conversion | --max-memory | above what is loaded | bar | |\n|---|---|---|---|---|", flush=True)
    for source, to in DIRECTIONS:
        for memory in (512 * MB, 160 * MB):
            print(peak(source, to, memory, scratch), flush=True)
    for memory in (512 * MB, 160 * MB):
        print(peak("bf16", "mxfp4", memory, scratch, onward=True), flush=True)


if __name__ == "__main__":
    main()
