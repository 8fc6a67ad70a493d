"""Side files as they are written: what they came to is what was planned, and what the disk gives back."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpttool import sidecars
from ckpttool.errors import InputError, LocalIOError
from ckpttool.sidecars import Written, sidecar, write_sidecar

DATA = b"one two three"
WRITTEN = Written(len(DATA), zlib.crc32(DATA), hashlib.sha256(DATA).hexdigest())


class Stream:
    """Bytes that are made as they are written, as many of them as `nbytes` says or not."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __iter__(self) -> Iterator[bytes]:
        yield from (DATA[:4], DATA[4:])


def test_bytes_a_file_and_a_stream(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    for content in (DATA, tmp_path / "source", Stream(len(DATA))):
        assert write_sidecar(sidecar("sub/out", content), tmp_path, verify=True) == WRITTEN
        assert (tmp_path / "sub" / "out").read_bytes() == DATA


@pytest.mark.parametrize("later", [DATA[:-1], DATA + b"!", DATA.upper()], ids=["shorter", "longer", "another"])
def test_a_file_that_is_not_what_it_was(later: bytes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    planned = sidecar("out", source)
    source.write_bytes(later)
    with pytest.raises(InputError, match="out: has changed while it was converted"):
        write_sidecar(planned, tmp_path, verify=False)


@pytest.mark.parametrize("nbytes", [len(DATA) - 1, len(DATA) + 1])
def test_a_stream_of_another_length(nbytes: int, tmp_path: Path) -> None:
    """Nothing else is known of it before."""
    with pytest.raises(InputError, match="out: has changed while it was converted"):
        write_sidecar(sidecar("out", Stream(nbytes)), tmp_path, verify=False)


def test_a_disk_that_gives_back_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.file_digest

    def spoilt(file: object, name: str) -> object:
        with (tmp_path / "out").open("r+b") as f:
            f.write(b"X")
        return digest(file, name)  # type: ignore[type-var]

    planned = sidecar("out", DATA)
    monkeypatch.setattr(sidecars.hashlib, "file_digest", spoilt)
    with pytest.raises(LocalIOError, match="out: what was read back differs from what was written"):
        write_sidecar(planned, tmp_path, verify=True)
