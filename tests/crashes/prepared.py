"""What the scenarios of `crash_runs` are given, and how they are run: each in a process of its own.

made = prepare(CONVERSIONS["MXFP4 to GGUF"], tmp_path, work)
rows = run("killed_at_random", made.request | {"kills": 50, "seed": 1})
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversions import SLAB_NBYTES, Conversion, source
from crash_runs import tree

import ckpttool

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Prepared:
    """A request to `crash_runs`, and the trees of the target when it is new and when it is old (or not there)."""

    request: dict[str, Any]
    new: dict[str, str]
    old: dict[str, str]


def prepare(asked: Conversion, folder: Path, work: Path) -> Prepared:
    """Write the source, convert it undisturbed, and make the old target, all in `folder`; deaths will be in `work`."""
    options = {**asked.options, "overwrite": asked.over}
    made = source(asked, folder / "source")
    (folder / "new").mkdir()
    (folder / "warm").mkdir()
    ckpttool.convert(made, folder / "new" / asked.target, **options)
    request = {"source": made, "target": asked.target, "options": options, "work": work,
               "warm": folder / "warm" / asked.target, "slab_nbytes": SLAB_NBYTES}  # fmt: skip
    if not asked.over:
        return Prepared(request, tree(folder / "new"), {})
    (folder / "old").mkdir()
    ckpttool.convert(source(asked, folder / "other", seed=9), folder / "old" / asked.target, **asked.options)
    return Prepared(request | {"old": folder / "old"}, tree(folder / "new"), tree(folder / "old"))


def run(scenario: str, request: dict[str, Any]) -> Any:
    """A scenario's report."""
    command = [sys.executable, str(TESTS / "crash_runs.py"), scenario, json.dumps(request, default=str)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
