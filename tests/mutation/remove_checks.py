"""Does the suite notice? Takes away each validation of the parsers, and of what writes, one at a time.

    python tests/mutation/remove_checks.py                                  # all of modules.GROUPS
    python tests/mutation/remove_checks.py --module containers/index.py     # one module, as its path in the package
    python tests/mutation/remove_checks.py --group parsers --show           # and which test notices each

What a validation is, `validations.py` says. In a copy of the checkout the group's tests are collected and run once,
traced; then, for each validation, those that reach its line, quickest first, until one fails (`remover.py`). Exit code
1 where fewer than 98 of 100 are noticed, or `equivalents.py` names what is not there or is noticed.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from equivalents import EQUIVALENT
from modules import GROUPS, Group
from remover import Ended, Remover, file_of
from validations import Validation, validations

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "build", "dist")
BAR = 0.98


@dataclass
class Tally:
    """What came of some validations."""

    all: int = 0
    noticed: int = 0
    equivalent: int = 0
    outdated: int = 0

    def add(self, other: Tally) -> None:
        """Sum up."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def passes(self) -> bool:
        """Whether enough are noticed."""
        return self.noticed >= BAR * (self.all - self.equivalent) and not self.outdated

    def __str__(self) -> str:
        due = self.all - self.equivalent
        return f"{self.noticed} of {due} noticed ({self.noticed / max(1, due):.1%}), {self.equivalent} more equivalent"


def copied(folder: Path) -> Path:
    """A copy of the checkout, whose package is compiled and looks old: what is changed in it is compiled anew."""
    root = folder / "checkout"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT, symlinks=True)
    for path in (root / "ckpttool").rglob("*.py"):
        os.utime(path, (10**9, 10**9))
    compileall.compile_dir(root / "ckpttool", quiet=2)
    return root


def test_files(root: Path, names: Sequence[str]) -> Iterator[str]:
    """The files of a group that there are."""
    for name in names:
        path = root / "tests" / name
        found = sorted(path.glob("test_*.py")) if path.is_dir() else [path]
        yield from (f.relative_to(root).as_posix() for f in found if f.exists())


def look(remover: Remover, group: Group, module: str, args: argparse.Namespace) -> Tally:
    """Take away each validation of a module, and say what the tests say."""
    listed = EQUIVALENT.get(module, {})
    found = [v for v in validations(remover.module(module).read_bytes()) if any(o in v.name for o in args.only)]
    unknown = set(listed) - {v.name for v in found} if args.only == [""] else set()
    for name in sorted(unknown):
        print(f"GONE, though listed as equivalent: {module}: {name}")
    tally = Tally(len(found), outdated=len(unknown))
    for each in found:
        begun = monotonic()
        ended = judged(remover, () if args.near else group.apart, module, each)
        what = f"{module}:{each.first}: {each.name}"
        if each.name in listed:
            tally.equivalent += 1
            tally.outdated += ended.noticed
            if ended.noticed:
                print(f"NOTICED, though listed as equivalent: {what}: {ended.by}", flush=True)
        elif not ended.noticed:
            print(
                f"NOT NOTICED: {what}" + ("" if remover.tests.of(module, each) else " (no test gets there)"), flush=True
            )
        else:
            tally.noticed += 1
            if args.show:
                print(f"{monotonic() - begun:5.1f} s {what}: {ended.by}", flush=True)
    return tally


def judged(remover: Remover, apart: Sequence[str], module: str, found: Validation) -> Ended:
    """What the tests say that get there; and where these see nothing, those that work in other processes."""
    near = remover.tests.of(module, found)
    ended = remover.judge(module, found, near)
    if ended.noticed or not apart:
        return ended
    others = {t for t in remover.tests.seconds if file_of(t).removeprefix("tests/") in apart}
    return remover.judge(module, found, remover.tests.ordered(others - set(near)))


def main() -> None:
    """Print what is not noticed, and a line for each module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--group", choices=GROUPS)
    parser.add_argument("--module", action="append")
    parser.add_argument("--tests", nargs="+", help="only these test files, by their paths in tests")
    parser.add_argument("-k", dest="keyword", default="", help="only these tests, as pytest understands it")
    parser.add_argument("--near", action="store_true", help="leave out a second look by tests in other processes")
    parser.add_argument("--only", nargs="+", default=[""], help="validations with one of these in their names")
    parser.add_argument("--show", action="store_true", help="say which test notices each")
    args = parser.parse_args()
    os.nice(10)
    chosen = {
        n: g for n, g in GROUPS.items() if args.group in (None, n) and set(g.modules) & set(args.module or g.modules)
    }
    if len(chosen) > 1:  # each in a process of its own: pytest collects once
        return sys.exit(max(os.waitstatus_to_exitcode(os.spawnv(os.P_WAIT, sys.executable, _again(n))) for n in chosen))
    [(name, group)] = chosen.items()
    modules = [m for m in group.modules if m in (args.module or group.modules)]
    total = Tally()

    def body(remover: Remover) -> None:
        for test in remover.trace(modules):
            print(f"fails as it is, and is left out: {test}", flush=True)
        print(f"{name}: {len(remover.tests.seconds)} tests", flush=True)
        for module in modules:
            tally = look(remover, group, module, args)
            print(f"{module}: {tally}", flush=True)
            total.add(tally)

    with tempfile.TemporaryDirectory(prefix="remove-checks-") as folder:
        root = copied(Path(folder))
        os.chdir(root)
        sys.path.insert(0, str(root))
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        from hypothesis import Phase, settings

        settings.register_profile("no shrinking", phases=(Phase.explicit, Phase.generate), database=None)
        settings.load_profile("no shrinking")
        code = Remover(root, Path(folder), body).run([*test_files(root, args.tests or group.tests), "-k", args.keyword])
    print(f"{name}: {total}")
    sys.exit(code or not total.passes)


def _again(group: str) -> list[str]:
    return [sys.executable, *sys.argv, "--group", group]


if __name__ == "__main__":
    main()
