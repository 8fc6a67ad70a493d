"""What a hostile checkpoint makes the commands ask of the system: no socket, no program, nothing opened for writing, no
file outside its folder, and none of its modules. By strace; without it these tests skip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from front_ends import ALONE, HUNG, ROOT, Hostile, argvs, made
from test_catalogue import ALL

CALLS = (
    "trace=%network,execve,execveat,openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,symlink"
)
WRITES = re.compile(r"\b(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|creat|rename\w*|unlink\w*|mkdir\w*|symlink)\b")
PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
BEGIN = ("IX10 ", "IX17 URL", "IX21 ", "IX23 ", "CF17 ", "CF18 ", "CF20 ", "CF21 ", "ST102 a path", "ST107 ")
CASES = [case for case in ALL if case.id.startswith(BEGIN)]
IN_CI = [case for case in CASES if case.id.startswith(("IX17", "CF18", "CF21"))]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")


def calls(log: Path, folder: Path, *argv: str | Path) -> list[str]:
    """The system calls of one command, run in `folder`, its own start left out. As the installed script, it takes no
    module from there (-P)."""
    command = ["strace", "-f", "-qq", "-e", CALLS, "-o", str(log), sys.executable, "-P", "-c", ALONE, *map(str, argv)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, capture_output=True, timeout=HUNG * 5, env=env, check=False, cwd=folder)
    found = [line.split(maxsplit=1)[1] for line in log.read_text(errors="backslashreplace").splitlines()]
    assert found[0].startswith("execve("), found[:1]
    return [call for call in found[1:] if not call.startswith(("---", "+++"))]


def harmless(case: Hostile, at: Path, commands: tuple[str, ...]) -> None:
    """Nothing of what the module names, and the checkpoint itself was opened."""
    source, target = made(case, at)
    for name in commands:
        seen = calls(at / f"{name}.log", at / "case", *argvs(case, source, target)[name])
        assert not [c for c in seen if c.startswith(("socket", "connect", "bind", "sendto", "exec"))]
        opened = [m[1] for c in seen if " = -1" not in c and (m := PATH.search(c))]
        assert not [c for c in seen if WRITES.search(c) and "/dev/null" not in c and " = -1" not in c]
        here = [Path(path) for path in opened if path.startswith(str(at))]
        assert here, f"{name} opened nothing of the case"
        folder = at / "case"
        inside = [path for path in here if path.resolve().is_relative_to(folder)]
        assert inside == here
        if name != "verify":  # which reads whatever its receipt names
            assert not [path for path in here if path.suffix in (".py", ".so", ".pyc")]
        if case.id.startswith("IX21"):
            assert folder / "elsewhere" not in [path.resolve() for path in here]


@needs_strace
@pytest.mark.parametrize("case", IN_CI, ids=lambda case: case.id)
def test_a_dry_run_asks_for_nothing_else(case: Hostile, tmp_path: Path) -> None:
    harmless(case, tmp_path, ("convert",))


@needs_strace
@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_command_asks_for_anything_else(case: Hostile, tmp_path: Path) -> None:
    harmless(case, tmp_path, ("inspect", "check", "convert", "verify"))


def test_the_cases_are_there() -> None:
    assert {case.id.split(maxsplit=1)[0] for case in CASES} == {b.split()[0] for b in BEGIN}
