"""Every limit: what asks for just as much is read, the least more is refused, and the error says how to allow more.

28 kinds of asking for 24 limits, each held to its default and to what another environment sets (three only to the
latter, for their defaults take minutes); names and values of the environment that mean nothing; what `inspect` says
where memory runs out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_files import entry, st
from limit_cases import ASKING, Asking

from ckpttool.containers import limits
from ckpttool.containers.shards import parse_size
from ckpttool.errors import UsageError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "fixtures" / "tiny-gpt-oss" / "hf"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone when the test ends: some of its files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_every_limit_has_a_case() -> None:
    assert {a.limit for a in ASKING.values()} == limits.LIMITS.keys()
    assert not [name for name in limits.LIMITS if getattr(limits, name) is not limits.LIMITS[name]]


DEFAULTS = {name: asking for name, asking in ASKING.items() if not asking.costly}


@pytest.mark.parametrize("asking", DEFAULTS.values(), ids=DEFAULTS)
def test_at_the_default_and_beyond(asking: Asking, folder: Path) -> None:
    asking.holds(folder)


def run(argv: list[str], **environment: int | str) -> subprocess.CompletedProcess[str]:
    """A process of Python with these limits in its environment."""
    found = {limits.PREFIX + name: str(value) for name, value in environment.items()}
    env = os.environ | found | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, check=False)


def test_the_environment_sets_every_limit() -> None:
    small = {asking.limit: asking.small for asking in ASKING.values()}
    done = run([str(Path(__file__).with_name("limit_cases.py"))], **small)
    assert done.stdout.splitlines() == list(ASKING), done.stderr


def test_the_command_line_has_the_limits_of_its_environment() -> None:
    done = run(["-m", "ckpttool", "inspect", str(TINY), "--json"], TENSORS="3")
    assert done.returncode == 6, done.stderr
    for error in json.loads(done.stdout)["errors"]:
        assert error["kind"] == "limit" and "CKPTTOOL_LIMIT_TENSORS=N allows more" in error["hint"]
    more = run(["-m", "ckpttool", "inspect", str(TINY)], SAFETENSORS_HEADER="2GB", TENSORS="300000")
    assert more.returncode == 0, more.stderr


@pytest.mark.parametrize("value", ["", "many", "0", "-1", "501", "1e3", "5 5"])
def test_a_value_that_means_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTTOOL_LIMIT_JSON_DEPTH", value)
    says = f"CKPTTOOL_LIMIT_JSON_DEPTH: {value!r} is {'more than 500' if value == '501' else 'no number'}"
    with pytest.raises(UsageError, match=f"^{re.escape(says)}"):
        limits.Limit("JSON_DEPTH", 64, most=500)


@pytest.mark.parametrize(("value", "means"), [("500", 500), ("1", 1), ("0.1KiB", 102)])
def test_a_value_up_to_the_most(value: str, means: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTTOOL_LIMIT_JSON_DEPTH", value)
    assert limits.Limit("JSON_DEPTH", 64, most=500) == means


@pytest.mark.parametrize(("name", "value"), [("TENSOR", "5"), ("TENSORS", "many"), ("GGUF_DIMS", "65")])
def test_a_limit_that_means_nothing_ends_the_command(name: str, value: str) -> None:
    done = run(["-m", "ckpttool", "inspect", str(TINY)], **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {limits.PREFIX}{name}: [^\n]+\n", done.stderr), done.stderr


def test_security_md_lists_every_limit() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert {name: parse_size(default.replace(",", "")) for name, default in rows} == limits.LIMITS
    assert len(rows) == len(limits.LIMITS)


# Where memory runs out

SMALL = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (%d << 20,) * 2); runpy.run_module('ckpttool')"


@pytest.mark.parametrize("mib", [60, 90])
def test_too_little_memory_is_a_limit(mib: int, tmp_path: Path) -> None:
    """It is found in a parser, in the middle of a report, wherever: one line, and exit code 6."""
    n = 60_000
    rows = {f"model.layers.{i}.a.name.of.some.length": entry(shape=[0], offsets=[0, 0]) for i in range(n)}
    (tmp_path / "model.safetensors").write_bytes(st(rows))
    argv = ["-c", f"import sys; sys.argv = ['ckpttool', 'inspect', {str(tmp_path)!r}]; " + SMALL % mib]
    done = run(argv)
    assert done.returncode == 6, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: out of memory") and done.stderr.count("\n") == 1
