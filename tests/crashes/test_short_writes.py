"""Writes that take less than they are given, as the system may: all of them, and the last one before a full disk.

Each of seven conversions: where every write takes at most 777 bytes the target is the same; where one of them takes
half and the next ones nothing, the old target stays, the error says so, and the same command goes on to the same bytes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from conversions import CONVERSIONS, SLAB_NBYTES, convert, source
from crash_runs import tree

import ckpttool
from ckpttool import steps
from ckpttool.errors import LocalIOError


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLAB_NBYTES", SLAB_NBYTES)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_short_writes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = CONVERSIONS[name]
    made, work, whole = source(asked, tmp_path / "source"), tmp_path / "work", tmp_path / "whole"
    work.mkdir()
    whole.mkdir()
    if asked.over:
        convert(asked, source(asked, tmp_path / "other", seed=9), work)
    old = tree(work)
    sizes: list[int] = []
    pwrite = os.pwrite

    def short(fd: int, data: Any, offset: int) -> int:
        sizes.append(len(data))
        return pwrite(fd, data[:777], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        convert(asked, made, whole)
    assert max(sizes) > 7_777

    calls = len(sizes) // 30

    def full(fd: int, data: Any, offset: int) -> int:
        sizes.append(len(data))
        if len(sizes) > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[: len(data) // 2 or 1] if len(sizes) == calls else data, offset)

    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(LocalIOError, match="cannot write: No space left") as caught:
            convert(asked, made, work, overwrite=asked.over, workers=1)
    assert caught.value.offset is not None
    assert {n: s for n, s in tree(work).items() if ".partial/" not in n} == old
    convert(asked, made, work, overwrite=asked.over)
    assert tree(work) == tree(whole)
    assert ckpttool.verify(work / asked.target).ok
    assert not list(work.glob("*.partial"))
