"""Conversions killed at 301 random moments: 43 deaths (SIGKILL) of each of the seven, half of them twice or more often.

After each death the target is the old one or the new one, whole, and `verify` says so of what is there. The next run
takes over every slab that was written down, ends with the bytes of an undisturbed one, and leaves nothing beside it.
The nightly lane has 3500.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversions import CONVERSIONS, convert, source
from crash_runs import tree
from deaths import check_end, check_state
from prepared import prepare, run

from ckpttool.errors import LocalIOError


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Where conversions die; in memory if possible, for each of them waits for the disk several times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "work"


@pytest.mark.parametrize("name", CONVERSIONS)
def test_killed_at_any_moment(name: str, tmp_path: Path, work: Path) -> None:
    die(name, 43, tmp_path, work)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CONVERSIONS)
def test_killed_at_very_many_moments(name: str, tmp_path: Path, work: Path) -> None:
    die(name, 500, tmp_path, work)


def die(name: str, kills: int, folder: Path, work: Path) -> None:
    made = prepare(CONVERSIONS[name], folder, work)
    rows = run("killed_at_random", made.request | {"kills": kills, "seed": kills})
    deaths = [d for row in rows for d in row["deaths"]]
    assert len(deaths) >= kills
    assert any(len(row["deaths"]) > 1 for row in rows)
    assert len([d for d in deaths if d["lines"] > 0]) > kills // 5
    for row in rows:
        for death in row["deaths"]:
            check_state(made, death)
        check_end(made, row)
        last = row["deaths"][-1] if row["deaths"] else {"finals": made.new}
        if last["finals"] != made.new and "resumed" in row["again"]:
            assert row["again"]["resumed"] == last["lines"], row


@pytest.mark.parametrize("name", ["MXFP4 to BF16", "MXFP4 to GGUF"])
@pytest.mark.parametrize("left", [["lock"], []])
def test_killed_with_nothing_but_the_lock_left(name: str, left: list[str], tmp_path: Path) -> None:
    """The target is whole: it is what the next run would make. One that is damaged, or shall be overwritten, is not."""
    asked = CONVERSIONS[name]
    checkpoint = source(asked, tmp_path / "source")
    convert(asked, checkpoint, tmp_path)
    whole = tree(tmp_path)

    def leave() -> None:
        partial = tmp_path / f"{asked.target}.partial"
        partial.mkdir()
        for file in left:
            (partial / file).touch()

    leave()
    convert(asked, checkpoint, tmp_path)
    assert tree(tmp_path) == whole
    assert not list(tmp_path.glob("*.partial"))

    file = max(
        (p for p in tmp_path.glob("out*/**/*" if asked.target == "out" else "out.gguf")), key=lambda p: p.stat().st_size
    )
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    leave()
    with pytest.raises(LocalIOError, match="already exists"):
        convert(asked, checkpoint, tmp_path)
    leave()
    convert(asked, checkpoint, tmp_path, overwrite=True)
    assert tree(tmp_path) == whole
    assert not list(tmp_path.glob("*.partial"))
