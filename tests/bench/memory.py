"""Peak memory of conversions with gpt-oss' real vocabulary, what `--help` takes, and that no torch is loaded.

    python tests/bench/memory.py                    one layer of 8 experts, 201,088 tokens: about 3 minutes
    python tests/bench/memory.py --experts 2        a quick look

Each conversion is a process of its own. From its peak resident memory we take what the same conversion of the tiny
fixture leaves resident: a process that has imported the package and loaded the same kernels. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from processes import CKPTTOOL, machine, need_memory, run, write_checkpoint

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parents[1] / "fixtures" / "tiny-gpt-oss"
TINY = {"mxfp4": FIXTURES / "hf", "bf16": FIXTURES / "hf-bf16", "gguf": FIXTURES / "gguf" / "tiny-gpt-oss-auto.gguf"}
VOCABULARY = 201_088
MB = 1_000_000
HELP_SECONDS = 0.3

PROBE = """
import json, re, sys
from ckpttool.cli import main
try:
    main()
except SystemExit as e:
    code = e.code
status = open("/proc/self/status").read()
kilobytes = {name: int(re.search(name + r":\\s+(\\d+)", status)[1]) for name in ("VmHWM", "VmRSS")}
print(json.dumps({"torch": "torch" in sys.modules, **{k: v * 1024 for k, v in kilobytes.items()}}))
sys.exit(code)
"""
"""The command line, and what Linux then says of the process."""


@dataclass(frozen=True)
class Case:
    """A direction, the memory it may work in, and the bytes it may have at its peak."""

    source: str
    to: str
    max_memory: str
    bar: int


DIRECTIONS = ["mxfp4 -> bf16", "bf16 -> mxfp4", "mxfp4 -> openai"]
DIRECTIONS += ["mxfp4 -> gguf", "bf16 -> gguf", "gguf -> mxfp4", "gguf -> bf16"]
VOCABULARY_MEMORY = 256 * MB
"""What the tokenizer of a GGUF may cost, beside the memory to work in."""


def cases() -> list[Case]:
    """Every direction in the memory of the default, and in little."""
    out = []
    for direction in DIRECTIONS:
        source, to = direction.split(" -> ")
        more = VOCABULARY_MEMORY if "gguf" in direction else 0
        out += [Case(source, to, f"{m}MB", m * MB + more) for m in (512, 160)]
    return out


def probe(*arguments: str) -> dict[str, int]:
    """Run the command line in a process and return its VmHWM and VmRSS in bytes, and whether torch was imported."""
    said = run([sys.executable, "-c", PROBE, *arguments]).stdout
    found: dict[str, int] = json.loads(said.splitlines()[-1])
    return found


def converted(source: Path, target: Path, case: Case) -> dict[str, int]:
    """What `probe` says of the conversion; the target is removed at once."""
    found = probe("convert", str(source), str(target), "--to", case.to, "--max-memory", case.max_memory)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.with_name(target.name + ".receipt.json").unlink(missing_ok=True)
    return found


def measured(case: Case, source: Path, scratch: Path) -> str:
    """One row of the table."""
    target = scratch / ("out.gguf" if case.to == "gguf" else "out")
    converted(TINY[case.source], target, case)  # compiles the kernels, where no earlier run has
    before = converted(TINY[case.source], target, case)
    after = converted(source, target, case)
    more = after["VmHWM"] - before["VmRSS"]
    verdict = "pass" if more < case.bar and not after["torch"] else "FAIL"
    return (
        f"| {case.source} -> {case.to} | {case.max_memory} | {before['VmRSS'] / MB:,.0f} | {more / MB:,.0f} "
        f"| {case.bar // MB} | {'yes' if after['torch'] else 'no'} | {verdict} |"
    )


def sources(scratch: Path, asked: argparse.Namespace) -> dict[str, Path]:
    """The three checkpoints, the GGUF made of the MXFP4 one."""
    out = {kind: scratch / f"bench-{kind}" for kind in ("mxfp4", "bf16")}
    tokenizer = asked.tokenizer or _real_tokenizer()
    for kind, folder in out.items():
        write_checkpoint(folder, kind, layers=1, experts=asked.experts, vocab=VOCABULARY, tokenizer=tokenizer)
    out["gguf"] = scratch / "bench.gguf"
    run([*CKPTTOOL, "convert", str(out["mxfp4"]), str(out["gguf"])])
    return out


def _real_tokenizer() -> Path:
    sys.path.insert(0, str(HERE.parent))
    import realtokenizer

    return realtokenizer.folder()


def start() -> list[str]:
    """How long `--help` takes, and whether reading headers loads torch."""
    run([*CKPTTOOL, "--help"])
    seconds = statistics.median(run([*CKPTTOOL, "--help"]).seconds for _ in range(7))
    torch = probe("inspect", str(TINY["mxfp4"]))["torch"]
    return [
        f"`ckpttool --help`: {seconds:.2f} s, at most {HELP_SECONDS}: {'pass' if seconds < HELP_SECONDS else 'FAIL'}. ",
        f"torch imported by `inspect`: {'yes: FAIL' if torch else 'no: pass'}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--tokenizer", type=Path, help="a folder with gpt-oss' tokenizer.json; default: fetched")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/ckpttool-memory"), help="a folder to be made")
    asked = parser.parse_args()
    print(f"{machine()}.\n", flush=True)
    print("\n".join(start()), flush=True)
    print(f"\n1 layer, {asked.experts} experts, {VOCABULARY:,} tokens; memory in MB of 10^6 bytes.\n")
    print(
        "| conversion | --max-memory | loaded | above that | bar | torch | |\n|---|---|---|---|---|---|---|", flush=True
    )
    asked.scratch.mkdir()
    try:
        # Three sources, the largest target, and a process.
        need_memory(4 * (4 * VOCABULARY * 2880 + asked.experts * 6 * 2880 * 2880) + (2 << 30))
        found = sources(asked.scratch, asked)
        for case in cases():
            print(measured(case, found[case.source], asked.scratch), flush=True)
    finally:
        shutil.rmtree(asked.scratch)


if __name__ == "__main__":
    main()
