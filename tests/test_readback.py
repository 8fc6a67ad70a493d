"""Reading back: a file's hash, a bit that flipped in any stretch of it, and a run that has failed meanwhile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ckpttool.containers.layout import FileLayout
from ckpttool.containers.source import LocalTarget
from ckpttool.crc import crc32
from ckpttool.errors import LocalIOError
from ckpttool.readback import read_back, stretches

SLAB = bytes(range(200))
DATA = b"header" + SLAB + bytes(10)
FOUND = stretches(FileLayout("m", b"header", (), len(DATA)), [(6, 200, 3, 1)])


def test_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(DATA)
    with LocalTarget.open(tmp_path / "m") as file:
        asked: list[tuple[int, int]] = []
        found = read_back(file, FOUND, lambda slab, index: asked.append((slab, index)) or crc32(SLAB))
        assert found == hashlib.sha256(DATA).hexdigest()
        assert asked == [(3, 1)]
        assert read_back(file, FOUND, lambda slab, index: None) is None


@pytest.mark.parametrize(("at", "told"), [(0, 0), (5, 0), (6, 6), (205, 6), (206, 206), (215, 206)])
def test_a_flipped_bit(at: int, told: int, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(DATA[:at] + bytes([DATA[at] ^ 16]) + DATA[at + 1 :])
    with LocalTarget.open(tmp_path / "m") as file, pytest.raises(LocalIOError, match="what was read back differs") as e:
        read_back(file, FOUND, lambda slab, index: crc32(SLAB))
    assert e.value.offset == told
