"""Positional files: exact reads, whole writes, reserved space, and the system's refusals in the right class."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ckpttool.containers import source
from ckpttool.containers.source import LocalFile, LocalTarget
from ckpttool.errors import InputError, LocalIOError

DATA = random.Random(0).randbytes(100_000)
needs_users = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do everything")


@pytest.fixture(params=[True, False], ids=["positional", "lock and seek"])
def positional(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to read at an offset."""
    monkeypatch.setattr(source, "POSITIONAL", request.param)
    return bool(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "가중치 1.bin"
    path.write_bytes(DATA)
    return path


def test_read(path: Path, positional: bool) -> None:
    with LocalFile(path) as file:
        assert (file.name, file.path, file.size) == (path.name, path, len(DATA))
        assert file.mtime_ns == path.stat().st_mtime_ns
        assert file.identity == (path.stat().st_dev, path.stat().st_ino)
        assert file.read(0, len(DATA)) == DATA
        assert file.read(99_999, 1) == DATA[-1:]
        assert file.read(5, 0) == b""
        out = np.zeros((3, 4), np.uint16)
        file.readinto(7, out)
        assert out.tobytes() == DATA[7 : 7 + 24]
        file.readinto(7, np.zeros((0, 4), np.uint16))


def test_name_inside_the_checkpoint(path: Path) -> None:
    with LocalFile(path, "original/model.safetensors") as file, pytest.raises(InputError) as caught:
        file.read(99_999, 2)
    assert str(caught.value).startswith(
        "original/model.safetensors: the file ends at byte 100000, 1 bytes early: it shrank or is truncated"
    )


def test_reading_past_the_end(path: Path, positional: bool) -> None:
    with LocalFile(path) as file:
        for at, n in ((100_000, 1), (0, 100_001), (1 << 62, 1 << 62), (1 << 70, 1)):
            with pytest.raises(InputError, match="the file ends at byte 100000"):
                file.read(at, n)
        with pytest.raises(InputError, match="the file ends at byte 100000, 10 bytes early"):
            file.readinto(99_990, bytearray(20))


def test_a_file_that_shrinks(path: Path, positional: bool) -> None:
    with LocalFile(path) as file:
        os.truncate(path, 1000)
        with pytest.raises(InputError, match="it shrank or is truncated"):
            file.read(500, 1000)


def test_short_reads_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 777), at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:777]], at))
    with LocalFile(path) as file:
        assert file.read(3, 99_000) == DATA[3:99_003]


def test_pieces_of_large_reads(path: Path, monkeypatch: pytest.MonkeyPatch, positional: bool) -> None:
    monkeypatch.setattr(source, "_PIECE", 1000)
    with LocalFile(path) as file:
        assert file.read(1, 99_999) == DATA[1:]


def test_threads_read_at_their_own_offsets(path: Path, positional: bool) -> None:
    with LocalFile(path) as file, ThreadPoolExecutor(8) as pool:
        starts = [random.Random(i).randrange(99_000) for i in range(400)]
        for at, data in zip(starts, pool.map(lambda at: file.read(at, 1000), starts), strict=True):
            assert data == DATA[at : at + 1000]


def test_a_system_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pread", fail)
    with LocalFile(path) as file:
        for read in (lambda: file.read(5, 10), lambda: file.readinto(5, bytearray(10))):
            with pytest.raises(LocalIOError, match="at byte 5: cannot read: Input/output error") as caught:
                read()
            assert caught.value.file == path.name


def test_closed(path: Path) -> None:
    file = LocalFile(path)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.read(0, 1)


def test_a_buffer_with_holes_is_a_mistake(path: Path) -> None:
    with LocalFile(path) as file, pytest.raises(ValueError, match="not C-contiguous"):
        file.readinto(0, np.zeros((4, 4), np.uint8)[:, ::2])


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_fifo, "is a FIFO"),
        (Path.mkdir, "is a folder"),
        (_socket, "cannot open: No such device"),
        (_loop, "cannot open: Too many levels"),
        (lambda p: p.symlink_to("nowhere"), "cannot open: No such file"),
        (lambda p: p.symlink_to("/dev/zero"), "is a device"),
        (lambda p: None, "cannot open: No such file or directory; check the path; is the checkpoint complete"),
    ],
    ids=["fifo", "folder", "socket", "loop", "dangling", "device", "missing"],
)
def test_what_is_no_file(make: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("m.gguf")
    make(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=says) as caught:
        LocalFile(path)
    assert caught.value.file == "m.gguf"


def test_a_name_with_nul() -> None:
    with pytest.raises(InputError, match="NUL"):
        LocalFile("a\0b")


@needs_users
def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(LocalIOError, match="cannot open: Permission denied"):
        LocalFile(path)


def test_files_do_not_leak_into_children(path: Path, tmp_path: Path) -> None:
    with LocalFile(path) as file, LocalTarget.create(tmp_path / "new", 1) as target:
        assert not os.get_inheritable(file._open_fd())
        assert not os.get_inheritable(target._open_fd())


# Targets


def test_write_anywhere_in_any_order(tmp_path: Path, positional: bool) -> None:
    path = tmp_path / "새 파일"
    with LocalTarget.create(path, len(DATA), "x/새 파일") as target, ThreadPoolExecutor(8) as pool:
        assert target.size == len(DATA)
        assert target.name == "x/새 파일"
        starts = list(range(0, len(DATA), 1000))
        random.Random(1).shuffle(starts)
        list(pool.map(lambda at: target.writeall(at, DATA[at : at + 1000]), starts))
        back = bytearray(500)
        target.readinto(250, back)
        assert back == DATA[250:750]
        target.sync()
    assert path.read_bytes() == DATA


def test_writes_arrays_of_any_type(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    with LocalTarget.create(tmp_path / "x", 24) as target:
        target.writeall(0, values)
        target.writeall(24, values[:0])
        with pytest.raises(ValueError, match="not C-contiguous"):
            target.writeall(0, values.T)
    assert (tmp_path / "x").read_bytes() == values.tobytes()


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:777], at))
    with LocalTarget.create(tmp_path / "x", 10_000) as target:
        target.writeall(0, DATA[:10_000])
    assert (tmp_path / "x").read_bytes() == DATA[:10_000]


def test_a_system_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: 0)
    with LocalTarget.create(tmp_path / "x", 10) as target, pytest.raises(LocalIOError, match="takes no bytes"):
        target.writeall(0, b"abc")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space")
def test_space_is_reserved(tmp_path: Path) -> None:
    with LocalTarget.create(tmp_path / "x", 1 << 20):
        assert (tmp_path / "x").stat().st_blocks * 512 >= 1 << 20


def test_an_empty_file(tmp_path: Path) -> None:
    LocalTarget.create(tmp_path / "x", 0).close()
    assert (tmp_path / "x").read_bytes() == b""


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _raiser(code), raising=False)
    with LocalTarget.create(tmp_path / "x", 5000) as target:
        assert target.size == 5000


def test_a_system_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with LocalTarget.create(tmp_path / "x", 5000) as target:
        assert target.size == 5000
    with pytest.raises(LocalIOError, match=r"cannot reserve 1152921504606846976 bytes: No space left.*bytes are free"):
        LocalTarget.create(tmp_path / "y", 1 << 60)
    assert not (tmp_path / "y").exists()


def _raiser(code: int):  # type: ignore[no-untyped-def]
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _raiser(errno.ENOSPC), raising=False)
    with pytest.raises(LocalIOError, match=r"x: cannot reserve 5000 bytes: No space left.*bytes are free.*free some"):
        LocalTarget.create(tmp_path / "x", 5000)
    assert not (tmp_path / "x").exists()


def test_a_disk_that_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told as a full one."""
    monkeypatch.setattr(os, "posix_fallocate", _raiser(errno.EIO), raising=False)
    with pytest.raises(LocalIOError, match=r"x: cannot reserve 5000 bytes: Input/output error") as caught:
        LocalTarget.create(tmp_path / "x", 5000)
    assert "free" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_macos_is_told_to_empty_the_drives_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know that call is synced by the weaker one."""
    calls: list[tuple[str, ...]] = []

    def stronger(fd: int, command: str) -> None:
        calls.append((command,))
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    with LocalTarget.create(tmp_path / "x", 10) as target:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(fcntl=stronger, F_FULLFSYNC="full"))
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync",)))
        target.sync()
        monkeypatch.undo()
    assert calls == [("full",), ("fsync",)]


def test_a_duplicate_outlives_the_name(tmp_path: Path) -> None:
    with LocalTarget.create(tmp_path / "x", 10) as target:
        target.writeall(0, b"0123456789")
        fd = target.duplicate()
    (tmp_path / "x").unlink()
    assert os.pread(fd, 10, 0) == b"0123456789"
    os.close(fd)


@pytest.mark.parametrize(
    ("call", "use", "says"),
    [
        ("pwrite", lambda t: t.writeall(3, b"abc"), "x at byte 3: cannot write: No space left"),
        ("fsync", lambda t: t.sync(), "x: cannot sync: No space left"),
        ("preadv", lambda t: t.readinto(3, bytearray(3)), "x at byte 3: cannot read: No space left"),
    ],
)
def test_a_disk_that_fails_later(
    call: str, use: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalTarget.create(tmp_path / "x", 10) as target:
        monkeypatch.setattr(os, call, _raiser(errno.ENOSPC))
        with pytest.raises(LocalIOError, match=says):
            use(target)  # type: ignore[operator]


def test_close_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = LocalTarget.create(tmp_path / "x", 10)
    fd = target._open_fd()
    with monkeypatch.context() as m:
        m.setattr(os, "close", _raiser(errno.EIO))
        with pytest.raises(LocalIOError, match="cannot close: Input/output error"):
            target.close()
    os.close(fd)


def test_what_exists_is_not_touched(path: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(path.read_bytes()).digest()
    link = tmp_path / "link"
    link.symlink_to(path)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for taken in (path, link, dangling, tmp_path):
        with pytest.raises(LocalIOError, match="cannot create: File exists; remove it, or write elsewhere"):
            LocalTarget.create(taken, 10)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(LocalIOError, match="cannot create: No such file"):
        LocalTarget.create(tmp_path / "none" / "x", 10)


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0, 0o666)):
        path = tmp_path / f"{mask:o}"
        old = os.umask(mask)
        try:
            LocalTarget.create(path, 10).close()
        finally:
            os.umask(old)
        assert path.stat().st_mode & 0o777 == mode


def test_go_on_with_a_file(path: Path, tmp_path: Path, positional: bool) -> None:
    with LocalTarget.open(path) as target:
        assert target.size == len(DATA)
        target.writeall(10, b"xyz")
        with pytest.raises(LocalIOError, match="the file ends at byte 100000, 5 bytes early"):
            target.readinto(99_995, bytearray(10))
    assert path.read_bytes() == DATA[:10] + b"xyz" + DATA[13:]
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(LocalIOError, match="cannot open"):
        LocalTarget.open(link)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LocalIOError, match="is a FIFO"):
        LocalTarget.open(tmp_path / "fifo")
    with pytest.raises(LocalIOError, match="cannot open: No such file"):
        LocalTarget.open(tmp_path / "none")


def test_interrupted_reads_go_on(path: Path) -> None:
    """Signals every millisecond change nothing."""
    import signal

    seen = threading.Event()
    old = signal.signal(signal.SIGALRM, lambda *_: seen.set())
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with LocalFile(path) as file:
            while not seen.is_set():
                assert file.read(0, len(DATA)) == DATA
            for _ in range(50):
                assert file.read(0, len(DATA)) == DATA
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
