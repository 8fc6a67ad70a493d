"""Coverage-guided fuzzing of one parser with atheris (libFuzzer), from the corpus beside it.

    pip install -e '.[test,fuzz]'
    python tests/fuzz/fuzz.py gguf --seconds 900          # a defect ends it; the input is written to ./crash-*
    python tests/fuzz/fuzz.py gguf --seconds 900 --keep   # and what reaches new code goes into the corpus
    python tests/fuzz/fuzz.py gguf crash-1234             # one input again

Half of the mutants are libFuzzer's own, half those of tests/fuzz/*_mutants.py, which keep the files' structure.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TARGETS = ("safetensors", "gguf", "index", "json", "tokenizer")
CORPUS = Path(__file__).parent / "corpus"
RUN = "--libfuzzer"
LARGEST = 4096
"""Bytes of an input."""


def corpus(target: str) -> list[bytes]:
    """The inputs kept for a target: one in a line, in base64, so that git sees which are new."""
    return [base64.b64decode(line) for line in (CORPUS / f"{target}.b64").read_bytes().split()]


def keep(target: str, inputs: Sequence[bytes]) -> None:
    """Write the corpus anew, the shortest first."""
    if not inputs:
        sys.exit("nothing is left of the corpus: did libFuzzer merge?")
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    (CORPUS / f"{target}.b64").write_bytes(b"".join(base64.b64encode(data) + b"\n" for data in ordered))


def main() -> None:
    if sys.argv[2:3] == [RUN]:
        return _run(sys.argv[1], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("inputs", nargs="*", help="files to be judged once, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="libFuzzer's; what it finds depends on timing as well")
    parser.add_argument("--keep", action="store_true", help="merge what reaches new code into the corpus")
    args = parser.parse_args()
    if args.inputs:
        return _fuzzer(args.target, args.inputs)
    with tempfile.TemporaryDirectory() as folder:
        found, merged = Path(folder, "found"), Path(folder, "merged")
        found.mkdir()
        merged.mkdir()
        for data in corpus(args.target):
            Path(found, hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        limits = [f"-max_len={LARGEST}", "-timeout=5", "-rss_limit_mb=2048"]
        time = [f"-max_total_time={args.seconds}", f"-seed={args.seed}", "-print_final_stats=1"]
        _fuzzer(args.target, [*limits, *time, str(found)])
        if args.keep:
            _fuzzer(args.target, [*limits, "-merge=1", str(merged), str(found)])
            keep(args.target, [path.read_bytes() for path in merged.iterdir()])
    return None


def _fuzzer(target: str, arguments: Sequence[str]) -> None:
    """libFuzzer in a process of its own: it never returns."""
    done = subprocess.run([sys.executable, __file__, target, RUN, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _run(target: str, arguments: Sequence[str]) -> None:
    import atheris

    sys.path[:0] = [str(Path(__file__).parents[1])]
    with atheris.instrument_imports(include=["ckpttool"]):
        import ckpttool.archs.tokenizer_json
        import ckpttool.containers.gguf
        import ckpttool.containers.index
        import ckpttool.containers.safetensors  # noqa: F401
    from gguf_mutants import gguf_mutants
    from judges import JUDGES
    from text_mutants import json_mutants, safetensors_mutants

    mutants: Callable[[Sequence[bytes], int, int], Iterator[bytes]]
    mutants = {"gguf": gguf_mutants, "safetensors": safetensors_mutants}.get(target, json_mutants)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        if seed % 2:
            mutant: bytes = atheris.Mutate(data, largest)
            return mutant
        return next(mutants([data], 1, seed))[:largest]

    itself = shlex.join([sys.executable, __file__, target, RUN])  # libFuzzer starts it anew to merge, by a shell
    atheris.Setup([itself, *arguments], JUDGES[target], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
