"""The kernels' cache on disk: shared by processes, damaged, outdated, or not there at all."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from ckpttool.codecs import cpu_jit
from ckpttool.codecs.cpu_lanes import width

ROOT = Path(__file__).parents[1]
UNITS = {16: np.uint16(0), 32: np.uint32(0)}


def _plus_width(unit: Any, number: int) -> int:
    return number + width(unit)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the kernel as a process does that has loaded nothing yet."""

    def call(bits: int) -> int:
        monkeypatch.setattr(cpu_jit, "_compiled", {})
        monkeypatch.setattr(cpu_jit, "_warned", set())
        return int(cpu_jit.kernel(_plus_width)(UNITS[bits], 100))

    return call


def cached(folder: Path, bits: int, ending: str) -> Path:
    (path,) = folder.rglob(f"*_uint{bits}_*.{ending}")
    return path


def test_each_signature_has_files_of_its_own(folder: Path, fresh: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert (fresh(16), fresh(32)) == (116, 132)
    assert sorted(p.suffix for p in folder.rglob("*.nb?")) == [".nbc", ".nbc", ".nbi", ".nbi"]
    assert _plus_width.__qualname__ == "_plus_width"
    assert not caplog.records


DAMAGES = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: b"\x93" * len(whole),
}


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_costs_time_only(
    damage: str, ending: str, folder: Path, fresh: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fresh(16)
    path = cached(folder, 16, ending)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert fresh(16) == 116
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ckpttool", logging.WARNING)
    assert record.getMessage().endswith(f"delete its .nbi and .nbc files: {path.parent}")


def test_code_of_another_signature_is_not_run(folder: Path, fresh: Any, caplog: pytest.LogCaptureFixture) -> None:
    fresh(16), fresh(32)
    shutil.copy(cached(folder, 16, "nbc"), cached(folder, 32, "nbc"))
    assert fresh(32) == 132
    assert "compiled for" in caplog.text


def test_a_cache_that_cannot_be_written(
    folder: Path, fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    assert fresh(16) == 116
    assert "No space left on device" in caplog.text


def test_nowhere_to_cache(fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert fresh(16) == 116
    assert not caplog.records


def test_code_of_earlier_sources_is_discarded(folder: Path, fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: not what another machine compiled, nor what is another kernel's or nobody's."""
    old, new = "0123456789ab", "ba9876543210"
    monkeypatch.setattr(cpu_jit, "_SOURCE", old)
    fresh(16), fresh(32)
    place = cached(folder, 16, "nbi").parent
    older = {p.name for p in place.iterdir()}
    others = {
        f"test_cpu_cache._plus_width_uint16_{new}_01234567-24.py311.nbi",
        f"test_cpu_cache._plus_width_more_uint16_{old}_01234567-24.py311.nbi",
        f"test_cpu_cache._plus_width_uint16_{old}_01234567-24.py311.txt",
        "test_cpu_cache._plus_width-24.py311.nbi",
    }
    for name in others:
        (place / name).touch()
    monkeypatch.setattr(cpu_jit, "_SOURCE", new)
    fresh(16)
    found = {p.name for p in place.iterdir()}
    assert (len(older), older & found, others - found, len(found - others)) == (4, set(), set(), 2)


def test_one_warning_for_a_folder(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cpu_jit, "_warned", set())
    for folder in ("a", "a", "b"):
        cpu_jit._warn(folder, OSError("full"))
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["a", "b"]


class Watched(dict[Any, Any]):
    """Says when it has been asked the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        self.asked.set()
        return found


def test_what_another_thread_has_compiled_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, results = Watched(), []
    monkeypatch.setattr(cpu_jit, "_compiled", compiled)
    monkeypatch.setattr(cpu_jit, "_compile", None)
    kernel = cpu_jit.kernel(_plus_width)
    late = threading.Thread(target=lambda: results.append(kernel(UNITS[16], 100)))
    with cpu_jit._lock:
        late.start()
        assert compiled.asked.wait(20)
        compiled[(_plus_width, "H")] = _plus_one
    late.join(20)
    assert results == [101]


def _plus_one(unit: Any, number: int) -> int:
    return number + 1


def test_older_files_that_cannot_be_looked_for_stay(tmp_path: Path) -> None:
    cpu_jit._discard_older(tmp_path / "gone", _plus_width)  # type: ignore[arg-type]


RACE = """
import os, sys, time
from pathlib import Path
from numba.core.caching import IndexDataCacheFile as Files

sys.path.insert(0, "tests")
from test_cpu_cache import UNITS, _plus_width, cpu_jit

me, other, flags = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

def did(event):
    (flags / f"{me} {event}").touch()

def wait(who, event):
    end = time.monotonic() + 60
    while not (flags / f"{who} {event}").exists():
        assert time.monotonic() < end, f"{who} never {event}"
        time.sleep(0.005)

def save_index(self, overloads, save=Files._save_index):
    did("read")
    wait(other, "read")
    if me == 32:
        wait(16, "wrote index")
    save(self, overloads)
    did("wrote index")

def save_data(self, name, data, save=Files._save_data):
    wait(32, "wrote index")
    if me == 16:
        wait(32, "wrote data")
    save(self, name, data)
    did("wrote data")

if me != other:
    Files._save_index, Files._save_data = save_index, save_data
print(cpu_jit.kernel(_plus_width)(UNITS[me], 100))
"""


def test_two_processes_with_a_cold_cache(tmp_path: Path) -> None:
    """Both read the index before either writes it; its last writer is not the last to write code."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    for pairs in ((16, 32), (32, 16)), ((16, 16), (32, 32)):
        commands = [[sys.executable, "-c", RACE, str(me), str(other), str(tmp_path)] for me, other in pairs]
        running = [subprocess.Popen(c, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) for c in commands]
        assert [process.communicate(timeout=120) for process in running] == [("116\n", ""), ("132\n", "")]
