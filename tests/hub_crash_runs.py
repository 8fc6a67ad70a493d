"""Conversions to a repo that die: a process that forks one child for each death, and one for each resumption.

    python hub_crash_runs.py REQUEST-AS-JSON

prints one JSON document. The Hub lives in the process that started this one; each death has a repo of its own there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import crash_runs
import huggingface_hub  # noqa: F401  (so that no child has to)
from crash_runs import die_at, in_child

import ckpttool
from ckpttool import api, journal, staged, steps, workplace
from ckpttool.containers import patience
from ckpttool.containers.source import LocalTarget
from ckpttool.publishing.sending import Sending

POINTS: dict[str, tuple[Any, str]] = {
    "journal": (journal.Journal, "add"),
    "create": (LocalTarget, "create"),
    "put": (Sending, "put"),
    "free": (staged.Staged, "free"),
    "commit": (Sending, "commit"),
    "discard": (workplace, "discard"),
    "rename": (workplace, "move_in"),
}


def convert(request: dict[str, Any], repo: str, work: Path) -> Any:
    return api.convert_to_hub(request["source"], f"hf://{repo}", workdir=work, **request["options"])


def resumed(request: dict[str, Any], repo: str, work: Path) -> dict[str, Any]:
    """Convert again in a child: its exit status, and how many slabs it did not work."""
    report = work.with_name("report.json")
    report.unlink(missing_ok=True)

    def body() -> None:
        done = convert(request, repo, work)
        run = done.conversion.run if done.conversion else {"slabs_resumed": None, "slabs": None}
        report.write_text(json.dumps([run["slabs_resumed"], run["slabs"]]))

    status = in_child(body)
    found = json.loads(report.read_text()) if report.exists() else [None, None]
    return {"status": status, "resumed": found[0], "slabs": found[1]}


def kill_everywhere(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Die at every so many calls of every point; then resume, with what was left here or without. A row for each."""
    rows = []
    for point, before, stride in request["points"]:
        count = 1 - stride
        while True:
            count += stride
            work = Path(request["work"])
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            repo = f"{request['repo']}-{point}-{'before' if before else 'after'}-{count}"

            def body(point: str = point, before: bool = before, count: int = count, repo: str = repo) -> None:
                die_at(*POINTS[point], count, before=before)
                convert(request, repo, Path(request["work"]))

            status = in_child(body)
            if status == 0:  # there is no such call any more
                break
            left = sorted(p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file())
            if request["fresh"]:
                shutil.rmtree(work)
                work.mkdir()
            again = resumed(request, repo, work)
            rows.append({"repo": repo, "point": point, "count": count, "status": status, "left": left, "again": again,
                         "tree": crash_runs.tree(work)})  # fmt: skip
            if status != signal.SIGKILL or again["status"]:
                return rows
    return rows


def main() -> None:
    request = json.loads(sys.argv[1])
    steps.SLAB_NBYTES = request["slab_nbytes"]
    patience.PATIENCE = patience.Patience(pauses=(0, 0, 0, 0))
    ckpttool.convert(request["warm_source"], Path(request["warm"]), **request["warm_options"])
    shutil.rmtree(request["warm"])
    os.chdir(request["cwd"])
    print(json.dumps(kill_everywhere(request)))


if __name__ == "__main__":
    main()
