"""Whole conversions, process start to finish, against llama.cpp's converter, transformers and a plain copy.

    python tests/bench/conversions.py                       2 layers of gpt-oss-20b's size, 3 rounds: about 10 minutes
    python tests/bench/conversions.py --experts 4 --rounds 1    a quick look
    python tests/bench/conversions.py --only length             1 layer against 8

Source and target lie on tmpfs; every contender of a race runs once in each round, one after the other, and the medians
are compared. llama.cpp's file must be ours, byte for byte, or the race does not count. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from processes import CKPTTOOL, Finished, machine, need_memory, run, write_checkpoint

HERE = Path(__file__).resolve().parent
LLAMACPP = str(HERE.parent / "llamacpp.py")
PEERS = str(HERE / "conversion_peers.py")
NO_VERIFY = "--no-verify"


@dataclass
class Contender:
    """One tool in a race. `{source}`, `{target}`, `{nbytes}` in `command` are filled in; `bar` is against the peer."""

    name: str
    command: list[str]
    bar: float | None = None
    runs: list[Finished] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(r.seconds for r in self.runs)


@dataclass
class Race:
    """From one checkpoint to one target; the last contender is the peer that the others are held against."""

    name: str
    source: str
    target: str
    contenders: list[Contender]
    same_bytes: bool = False


def ours(name: str, *options: str, bar: float | None = None) -> Contender:
    return Contender(name, [*CKPTTOOL, "convert", "{source}", "{target}", "--json", *options], bar)


def llamacpp() -> Contender:
    request = {"pre": "gpt-4o", "arguments": ["{source}", "--outfile", "{target}", "--outtype", "auto"]}
    return Contender("llama.cpp", [sys.executable, LLAMACPP, "convert", json.dumps(request)])


def peer(name: str, *arguments: str) -> Contender:
    return Contender(name, [sys.executable, PEERS, name, "{source}", "{target}", *arguments])


def pair(to: str, unverified: float | None = None, verified: float | None = None) -> list[Contender]:
    """Ours without and with verification."""
    return [
        ours("ckpttool --no-verify", "--to", to, NO_VERIFY, bar=unverified),
        ours("ckpttool", "--to", to, bar=verified),
    ]


def races() -> list[Race]:
    copy = ("copy", "{nbytes}")
    mxfp4_to_bf16 = [*pair("bf16", 8), peer("transformers")]  # which verifies nothing
    return [  # those that need the same source together: tmpfs is memory
        Race("MXFP4 -> GGUF", "mxfp4", "out.gguf", [*pair("gguf", 6, 4), llamacpp()], same_bytes=True),
        Race("MXFP4 -> BF16", "mxfp4", "out", mxfp4_to_bf16),
        Race("GGUF -> MXFP4", "gguf", "out", [*pair("mxfp4"), peer(*copy)]),
        Race("GGUF -> BF16", "gguf", "out", [*pair("bf16"), peer(*copy)]),
        Race("BF16 -> GGUF", "bf16", "out.gguf", [*pair("gguf", 6, 3), llamacpp()], same_bytes=True),
        Race("BF16 -> MXFP4", "bf16", "out", [*pair("mxfp4"), peer(*copy)]),
    ]


class Track:
    """The checkpoints on tmpfs: made when a race needs them, deleted when none does any more."""

    def __init__(self, scratch: Path, **sizes: int) -> None:
        self.scratch = scratch
        self.sizes = sizes
        self.experts_nbytes = sizes["layers"] * sizes["experts"] * 3 * 2880 * 2880
        self.rest_nbytes = 2 * sizes["vocab"] * 2880 * 2 + sizes["layers"] * 55_000_000

    def source(self, kind: str) -> Path:
        """The checkpoint of that kind, made if need be."""
        path = self.scratch / (f"{kind}.gguf" if kind == "gguf" else f"bench-{kind}")
        if path.exists():
            return path
        # The widest race holds a source, a BF16 target, and transformers with a bit more than the whole model.
        need_memory(int(8 * self.experts_nbytes + 3 * self.rest_nbytes) + (2 << 30))
        if kind == "gguf":
            run([*CKPTTOOL, "convert", str(self.source("mxfp4")), str(path), NO_VERIFY])
        else:
            write_checkpoint(path, kind, **self.sizes)
        return path

    def keep_only(self, kinds: Iterable[str]) -> None:
        names = {f"{k}.gguf" if k == "gguf" else f"bench-{k}" for k in kinds}
        for path in self.scratch.iterdir():
            if path.name not in names:
                remove(path)


def remove(path: Path) -> None:
    """A file or folder, and the receipt beside it."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.with_name(path.name + ".receipt.json").unlink(missing_ok=True)


def tensor_nbytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(p.stat().st_size for p in files)


def hold(race: Race, track: Track, rounds: int) -> int:
    """Run the race and return the bytes of its target.

    Raises:
        RuntimeError: a contender failed, or wrote something else than the others.
    """
    source, target = track.source(race.source), track.scratch / race.target
    warm_up = ours("warm-up", "--to", race.contenders[0].command[race.contenders[0].command.index("--to") + 1])
    nbytes = 0
    for n in range(-1, rounds):
        for c in [warm_up] if n < 0 else race.contenders:
            command = [_filled(word, source, target, nbytes) for word in c.command]
            c.runs.append(run(command))
            kept = track.scratch / "kept"
            if n < 0:
                nbytes = tensor_nbytes(target)
                if race.same_bytes:
                    target.rename(kept)
            elif n == 0 and race.same_bytes and not filecmp.cmp(target, kept, shallow=False):
                raise RuntimeError(f"{race.name}: {c.name} wrote other bytes")
            remove(target)
        if n == 0 and race.same_bytes:
            remove(track.scratch / "kept")
    return nbytes


def _filled(word: str, source: Path, target: Path, nbytes: int) -> str:
    for name, value in (("source", source), ("target", target), ("nbytes", nbytes)):
        word = word.replace("{" + name + "}", str(value))
    return word


def report(race: Race, read: int, written: int) -> list[str]:
    """The race's rows of the table; each of ours names its factor over the peer."""
    other = race.contenders[-1]
    rows = []
    for c in race.contenders:
        best, worst = (f(r.seconds for r in c.runs) for f in (min, max))
        factor = f"{other.seconds / c.seconds:.2f} x {other.name}" if c is not other else ""
        verdict = "" if c.bar is None else f"{c.bar:g} x: {'pass' if other.seconds / c.seconds >= c.bar else 'FAIL'}"
        cpu = statistics.median(r.cpu_seconds for r in c.runs)
        rate = (read + written) / c.seconds / 1e6
        rows.append(
            f"| {race.name} | {c.name} | {c.seconds:.2f} ({best:.2f} to {worst:.2f}) | {cpu:.2f} | {rate:,.0f} "
            f"| {max(r.peak for r in c.runs) / 1e6:,.0f} | {factor} | {verdict} |"
        )
    return rows


HEAD = """| conversion | tool | seconds (best to worst) | CPU | MB/s, read + written | peak MB | factor | bar |
|---|---|---|---|---|---|---|---|"""

PHASES = """| conversion | tool | wall | start-up, plan | prepare | slabs | finish | threads: read, compute, write |
|---|---|---|---|---|---|---|---|"""


def phases(race: Race) -> list[str]:
    """Where our time went, in the round of the median: from the receipt, which `--json` prints."""
    rows = []
    for c in race.contenders[:-1]:
        r = sorted(c.runs, key=lambda r: r.seconds)[len(c.runs) // 2]
        s = r.document["run"]["seconds"]
        threads = ", ".join(f"{s['threads_' + n]:.2f}" for n in ("read", "compute", "write"))
        rows.append(
            f"| {race.name} | {c.name} | {r.seconds:.2f} | {r.seconds - s['total']:.2f} | {s['prepare']:.2f} "
            f"| {s['slabs']:.2f} | {s['finish']:.2f} | {threads} |"
        )
    return rows


def length(scratch: Path, experts: int, rounds: int) -> list[str]:
    """MXFP4 -> GGUF of 1 and of 8 layers: seconds and peak memory."""
    found = {}
    for layers in (1, 8):
        track = Track(scratch, layers=layers, experts=experts, vocab=1024)
        race = Race(f"{layers} layers", "mxfp4", "out.gguf", [ours("ckpttool", "--to", "gguf")])
        hold(race, track, rounds)
        track.keep_only(())
        runs = race.contenders[0].runs
        slabs = statistics.median(r.document["run"]["seconds"]["slabs"] for r in runs)
        found[layers] = (race.contenders[0].seconds, slabs, max(r.document["run"]["peak_memory"] for r in runs))
    (wall1, slabs1, peak1), (wall8, slabs8, peak8) = found[1], found[8]
    passed = wall8 <= 8 * wall1 and peak8 <= 1.1 * peak1
    return [
        "| layers | seconds | in slabs | peak MB |",
        "|---|---|---|---|",
        *(f"| {n} | {wall:.2f} | {slabs:.2f} | {peak / 1e6:,.0f} |" for n, (wall, slabs, peak) in found.items()),
        f"| 8 to 1 | {wall8 / wall1:.2f} x | {slabs8 / slabs1:.2f} x | {peak8 / peak1:.2f} x |",
        "",
        f"At most 8 times the time, and the same memory within a tenth: {'pass' if passed else 'FAIL'}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="races whose name holds this, or: length")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/dev/shm/ckpttool-bench"), help="a folder that is emptied"
    )
    asked = parser.parse_args()
    asked.scratch.mkdir()
    print(f"{machine()}.\n", flush=True)
    try:
        chosen = [r for r in races() if asked.only is None or asked.only in r.name]
        if chosen:
            print(f"{asked.layers} layers, {asked.experts} experts, {asked.vocab:,} tokens; {asked.rounds} rounds.\n")
            _hold_all(chosen, asked)
        if asked.only in (None, "length"):
            print("\n".join(["", *length(asked.scratch, max(1, asked.experts // 4), asked.rounds)]))
    finally:
        shutil.rmtree(asked.scratch)


def _hold_all(chosen: list[Race], asked: argparse.Namespace) -> None:
    track = Track(asked.scratch, layers=asked.layers, experts=asked.experts, vocab=asked.vocab)
    print(HEAD, flush=True)
    for i, race in enumerate(chosen):
        track.keep_only(r.source for r in chosen[i:])
        written = hold(race, track, asked.rounds)
        print("\n".join(report(race, tensor_nbytes(track.source(race.source)), written)), flush=True)
    print("\n".join(["", "Where our time went, seconds:", "", PHASES, *(row for r in chosen for row in phases(r))]))


if __name__ == "__main__":
    main()
