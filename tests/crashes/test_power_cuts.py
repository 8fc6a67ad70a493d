"""Conversions on ext4, ext4 with data=writeback, and xfs, whose power is cut at 40 random moments; nightly at 420.

After each cut, what the disk holds is mounted: the target is the old one or the new one, whole, and `verify` says so.
The same command then makes the new one, with nothing beside it. Once the command has ended, the new one stays. That a
loss would be seen is shown by conversions that sync nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conversions import CONVERSIONS
from deaths import check_end, check_state
from power_cuts import FILE_SYSTEMS
from prepared import Prepared, prepare

HERE = Path(__file__).parent
TOOLS = ("mount", "umount", "unshare", "sync", "mkfs.ext4")
WRITEBACK = "ext4, data=writeback"
Cut = Callable[..., tuple[Prepared, list[dict[str, Any]]]]


@pytest.fixture(scope="module", autouse=True)
def loop_devices(tmp_path_factory: pytest.TempPathFactory) -> None:
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking or os.getuid() != 0:
        pytest.skip(f"no file systems to cut the power of: {', '.join(lacking) or 'root'} is missing")
    folder = tmp_path_factory.mktemp("loop")
    with (folder / "image").open("wb") as f:
        f.truncate(4 << 20)
    (folder / "at").mkdir()
    script = "mkfs.ext4 -q -F image && mount -o loop image at"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file systems to cut the power of: {done.stderr.decode().strip()}")


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    """Cut the power of conversions on a file system; in memory if possible, which is a quick disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:

        def run(name: str, file_system: str, cuts: int, *, unsynced: bool = False) -> Any:
            make = FILE_SYSTEMS[file_system][0].split()[0]
            if shutil.which(make) is None:
                pytest.skip(f"no {file_system} to cut the power of: {make} is missing")
            made = prepare(CONVERSIONS[name], tmp_path, Path(folder) / "work")
            request = made.request | {"file_system": file_system, "cuts": cuts, "seed": cuts, "unsynced": unsynced}
            script = [sys.executable, str(HERE / "power_cuts.py"), json.dumps(request, default=str)]
            done = subprocess.run(["unshare", "--mount", *script], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr.decode()[-4000:]
            return made, json.loads(done.stdout.splitlines()[-1])

        yield run


@pytest.mark.parametrize(("name", "file_system"), [
    ("MXFP4 to BF16", "ext4"), ("over an old folder", WRITEBACK), ("over an old GGUF", "xfs"), ("in shards", "xfs"),
])  # fmt: skip
def test_power_cut_at_any_moment(name: str, file_system: str, cut: Cut) -> None:
    judge(*cut(name, file_system, 10))


@pytest.mark.nightly
@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_power_cut_at_very_many_moments(name: str, file_system: str, cut: Cut) -> None:
    judge(*cut(name, file_system, 20))


@pytest.mark.parametrize("file_system", [WRITEBACK, "xfs"])
def test_a_conversion_that_syncs_nothing_is_found_out(file_system: str, cut: Cut) -> None:
    """There are targets that are neither, or that are old after the command has ended."""
    made, rows = cut("over an old folder", file_system, 10, unsynced=True)
    assert any(r["finals"] not in (made.old, made.new) or (r["ended"] == 0 and r["finals"] == made.old) for r in rows)


def judge(made: Prepared, rows: list[dict[str, Any]]) -> None:
    assert any(row["finals"] == made.old for row in rows), "no cut came before the end"
    for row in rows:
        check_state(made, row)
        check_end(made, row)
        if row["ended"] is not None:
            assert row["ended"] == 0, row
            assert row["finals"] == made.new, row
