"""The finder of validations: 12 kinds of places in a module of ten functions; every validation of the modules that
`remove_checks.py` goes through has a name of its own and leaves a module that compiles; a function that is swapped does
without its check. And at night the whole: at least 98 of 100 are noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from modules import GROUPS
from swap import Living
from validations import validations

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "ckpttool"

MODULE = b"""
from functools import lru_cache

def one(a, b):
    if a < 0 or (b and (c := b) > 3):
        raise ValueError(a)
    if any(x < 0 or x > 9 for x in b):
        return None
    if a:
        return a
    return b

def two(path) -> bool:
    return path.there and not path.link

def three(row):
    found = row.get("x")
    return found if found and found > 0 else None

class Reader:
    def _name_fault(self, name):
        if not name:
            return "is empty"
        return ""

    def read(self, problems):
        _refuse_other(self)
        self._check(self)
        self.go(self)
        problems.append(1)
        try:
            self.go()
        except OSError as error:
            raise ValueError from error
        except KeyError:
            raise

@lru_cache
def five(n):
    if n > 5:
        raise ValueError(n)
    return n
"""

FOUND = [
    "one: check: a < 0 or (b and (c := b) > 3)",
    "one: part: a < 0",
    "one: part: b and (c := b) > 3",
    "one: check: any((x < 0 or x > 9 for x in b))",
    "one: part: x < 0",
    "one: part: x > 9",
    "two: need: path.there",
    "two: need: not path.link",
    "three: need: found",
    "three: need: found > 0",
    "Reader._name_fault: check: not name",
    "Reader.read: call: _refuse_other(self)",
    "Reader.read: call: self._check(self)",
    "Reader.read: call: problems.append(1)",
    "Reader.read: raise: raise ValueError from error",
    "Reader.read: translation: raise ValueError from error",
    "Reader.read: raise: raise",
    "five: check: n > 5",
]


def test_what_a_validation_is() -> None:
    found = validations(MODULE)
    assert [v.name for v in found] == FOUND
    lines = [v.removed(MODULE).splitlines()[v.first - 1].strip().decode() for v in found]
    assert lines[0] == "if ((a < 0 or (b and (c := b) > 3)) and False):"
    assert lines[1] == "if False or (b and (c := b) > 3):"
    assert lines[3] == "if ((any(x < 0 or x > 9 for x in b)) and False):"
    assert lines[4] == "if any(False or x > 9 for x in b):"
    assert lines[6] == "return True and not path.link"
    assert lines[10] == "if False:"
    assert lines[11] == lines[14] == "pass"
    assert lines[15] == "raise"


@pytest.mark.parametrize("module", [m for group in GROUPS.values() for m in group.modules])
def test_all_of_a_module(module: str) -> None:
    source = (PACKAGE / module).read_bytes()
    found = validations(source)
    assert len({v.name for v in found}) == len(found)
    for each in found:
        text = each.removed(source)
        assert text != source
        compile(text, module, "exec")


def test_a_swapped_function_does_without(tmp_path: Path) -> None:
    path = str(tmp_path / "module.py")
    names: dict[str, object] = {"__name__": "module"}
    exec(compile(MODULE, path, "exec"), names)
    five = names["five"]
    assert callable(five)
    living = Living(path)
    with pytest.raises(ValueError, match="6"):
        five(6)
    assert five(1) == 1
    [check] = [v for v in validations(MODULE) if v.function == "five"]
    living.swap(MODULE, check)
    assert five(6) == 6


@pytest.mark.nightly
@pytest.mark.parametrize("group", GROUPS)
def test_the_suite_notices(group: str) -> None:
    command = [sys.executable, str(HERE / "remove_checks.py"), "--group", group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
