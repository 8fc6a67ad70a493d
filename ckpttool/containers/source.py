"""Positional reads and writes of local files: any thread, any offset, never mapped into memory.

A mapped file that shrinks kills the process with SIGBUS, and Python cannot catch that; a positional read of the same
file is an error with a name. Opening never blocks: a FIFO or a device in place of a file is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from ckpttool.errors import CkptError, InputError, LocalIOError, os_hint

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

POSITIONAL: Final = all(hasattr(os, f) for f in ("preadv", "pread", "pwrite"))
"""Whether the system reads and writes at an offset; where not, a lock and a seek do."""

_PIECE: Final = 1 << 30
"""Largest single request: macOS refuses 2 GiB and more, Linux cuts there."""

_CONTENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR})
"""What is the checkpoint's fault when a source file is opened: it is not there, or not a file."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _flags(*names: str) -> int:
    """The open flags of these names that this system has."""
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


_SAFE: Final = _flags("O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOCTTY")


def _bytes_of(buffer: ReadableBuffer) -> memoryview:
    """`buffer` as flat bytes. ValueError unless it is C-contiguous."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("the buffer is not C-contiguous")
    # An empty view of several dimensions cannot be cast, and needs no bytes.
    return view.cast("B") if view.nbytes else memoryview(b"")


class ReadableFile(Protocol):
    """An open source file, here or at a remote end: exact reads at any offset. `size` in bytes."""

    @property
    def name(self) -> str:
        """Its name inside the checkpoint, for errors."""

    @property
    def size(self) -> int:
        """Its bytes."""

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from `offset`; an error when the file ends first."""

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        """From `least` to `most` bytes from `offset`: as many of them as come without another request."""

    def readinto(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill `buffer` from `offset`; an error when the file ends first."""


class _Positional:
    """An open file descriptor with whole positional reads."""

    def __init__(self, fd: int, path: Path, name: str) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self.path = path
        self.name = name

    def close(self) -> None:
        """Close the file; again is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise ValueError(f"{self.name} is closed")
        return self._fd

    def _get(self, offset: int, view: memoryview) -> int:
        """Some bytes at `offset` into `view`; 0 at the end of the file. Interrupted calls are retried by Python."""
        fd = self._open_fd()
        if POSITIONAL:
            return os.preadv(fd, [view[:_PIECE]], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, min(len(view), _PIECE))
        view[: len(data)] = data
        return len(data)

    def readinto(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill `buffer` from `offset`. InputError when the file ends first, LocalIOError when the system fails."""
        view = _bytes_of(buffer)
        done = 0
        while done < len(view):
            try:
                got = self._get(offset + done, view[done:])
            except OSError as error:
                raise self._io_error("cannot read", error, offset + done) from error
            if not got:
                raise self._short(offset + done, len(view) - done)
            done += got

    def _io_error(self, what: str, error: OSError, offset: int | None = None) -> LocalIOError:
        return LocalIOError(f"{what}: {_reason(error)}", file=self.name, offset=offset, hint=os_hint(error))

    def _short(self, at: int, missing: int) -> CkptError:
        return InputError(
            f"the file ends at byte {at}, {missing} bytes early: it shrank or is truncated",
            file=self.name,
            hint="fetch or make the file again, and let nothing change it meanwhile",
        )


class LocalFile(_Positional):
    """A source file, open for reading. `name` is its name inside the checkpoint, for errors; `size` in bytes.

    InputError when there is no such file or it is none (folder, FIFO, device), LocalIOError when the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        where = Path(path)
        label = where.name if name is None else name
        try:
            fd = os.open(where, os.O_RDONLY | _SAFE)
        except OSError as error:
            kind = InputError if error.errno in _CONTENT else LocalIOError
            raise kind(f"cannot open: {_reason(error)}", file=label, hint=os_hint(error)) from error
        except ValueError as error:
            raise InputError("the file name holds a NUL character", file=label) from error
        super().__init__(fd, where, label)
        try:
            status = os.fstat(fd)
            _require_regular(status.st_mode, label)
        except BaseException:
            self.close()
            raise
        self.size: int = status.st_size
        self.mtime_ns: int = status.st_mtime_ns
        self.identity: tuple[int, int] = (status.st_dev, status.st_ino)

    def require_unchanged(self) -> None:
        """InputError where its path no longer leads to it, or it is no longer what it was when it was opened."""
        require_unchanged(self.path, self.name, (self.size, self.mtime_ns, self.identity))

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from `offset`. InputError when the file ends first."""
        if offset + n > self.size:
            raise self._short(self.size, offset + n - self.size)
        if POSITIONAL and n <= _PIECE:
            # One call and no copy in the usual case; a short answer is asked for again below, with its errors.
            try:
                data = os.pread(self._open_fd(), n, offset)
            except OSError as error:
                raise self._io_error("cannot read", error, offset) from error
            if len(data) == n:
                return data
        out = bytearray(n)
        self.readinto(offset, out)
        return bytes(out)

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        """Exactly `most` bytes: a local read of more costs no more. InputError when the file ends first."""
        return self.read(offset, most)


Stamp = tuple[int, int, tuple[int, int]]
"""What tells whether a file has changed: its size in bytes, mtime in nanoseconds, device and inode."""


def require_unchanged(path: Path, name: str, seen: Stamp, doing: str = "read") -> None:
    """InputError where the file at `path` is not the one that was `seen`: what was read may be of two versions."""
    try:
        status = path.stat()
    except OSError as e:
        raise InputError(f"has gone while it was {doing}", file=name, hint="put it back, and start again") from e
    if (status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino)) != seen:
        raise InputError(f"has changed while it was {doing}", file=name, hint="give the same command again")


def _reason(error: OSError) -> str:
    """The system's own words for an error."""
    return error.strerror or str(error)


def _require_regular(mode: int, label: str) -> None:
    """InputError unless `mode` is a regular file's."""
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    what = kinds.get(stat.S_IFMT(mode), "something else")
    raise InputError(f"is {what}, not a regular file", file=label, hint="give the path of a file")


class LocalTarget(_Positional):
    """A file being written, at any offset, from any thread. Every failure is a LocalIOError (exit 4)."""

    @classmethod
    def create(cls, path: str | os.PathLike[str], size: int, name: str | None = None) -> LocalTarget:
        """A new file of `size` bytes, its space reserved, so that a full disk fails now and not in an hour.

        The file must not exist, as a link neither; its mode is what the umask leaves of 0666.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE | _flags("O_NOFOLLOW")
        target = cls._opened(path, flags, name, "cannot create")
        try:
            target._reserve(size)
        except BaseException:
            target.close()
            # Ours, just made, and useless without its space.
            with contextlib.suppress(OSError):
                target.path.unlink()
            raise
        return target

    @classmethod
    def open(cls, path: str | os.PathLike[str], name: str | None = None) -> LocalTarget:
        """An existing file, to go on with; a symbolic link is refused."""
        target = cls._opened(path, os.O_RDWR | _SAFE | _flags("O_NOFOLLOW"), name, "cannot open")
        try:
            _require_regular(os.fstat(target._open_fd()).st_mode, target.name)
        except InputError as error:
            target.close()
            raise LocalIOError(error.message, file=target.name, hint="remove it, or write elsewhere") from error
        return target

    @classmethod
    def _opened(cls, path: str | os.PathLike[str], flags: int, name: str | None, what: str) -> LocalTarget:
        where = Path(path)
        label = where.name if name is None else name
        try:
            return cls(os.open(where, flags, 0o666), where, label)
        except OSError as error:
            raise LocalIOError(f"{what}: {_reason(error)}", file=label, hint=os_hint(error)) from error

    @property
    def size(self) -> int:
        """The file's size now, in bytes."""
        return os.fstat(self._open_fd()).st_size

    def duplicate(self) -> int:
        """Another descriptor of this very file, whatever its name stands for by now; the caller's to close."""
        return os.dup(self._open_fd())

    def _reserve(self, size: int) -> None:
        """Reserve `size` bytes, or where the file system cannot, check that they are free and set the length."""
        if not size:
            return
        try:
            if not _fallocate(self._open_fd(), size):
                free = self._free()
                if free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.ftruncate(self._open_fd(), size)
        except OSError as error:
            raise self._no_room(size, error) from error

    def _free(self) -> int:
        """Bytes that are free where the file lies."""
        import shutil  # it brings every kind of archive with it, and readers need none

        return shutil.disk_usage(self.path.parent).free

    def _no_room(self, size: int, error: OSError) -> LocalIOError:
        if error.errno not in _NO_ROOM:
            return self._io_error(f"cannot reserve {size} bytes", error)
        free = self._free()
        return LocalIOError(
            f"cannot reserve {size} bytes: {_reason(error)} ({free} bytes are free)",
            file=self.name,
            hint=os_hint(error),
        )

    def _put(self, offset: int, view: memoryview) -> int:
        """Write some of `view` at `offset`; how much."""
        fd = self._open_fd()
        if POSITIONAL:
            return os.pwrite(fd, view[:_PIECE], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, view[:_PIECE])

    def writeall(self, offset: int, buffer: ReadableBuffer) -> None:
        """Write all of `buffer` at `offset`; short writes go on, so a disk that fills up shows as its own error."""
        view = _bytes_of(buffer)
        done = 0
        while done < len(view):
            try:
                put = self._put(offset + done, view[done:])
            except OSError as error:
                raise self._io_error("cannot write", error, offset + done) from error
            if not put:
                raise LocalIOError("cannot write: the system takes no bytes", file=self.name, offset=offset + done)
            done += put

    def sync(self) -> None:
        """Bring the file to the disk. A failure is final: a second try would report success for lost bytes."""
        fd = self._open_fd()
        try:
            if sys.platform == "darwin":
                import fcntl

                # fsync stops at the drive's cache on macOS; not every file system knows the stronger call.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            os.fsync(fd)
        except OSError as error:
            raise self._io_error("cannot sync", error) from error

    def close(self) -> None:
        """Close the file; again is fine. A failure may be a late write error, so it is one of ours."""
        try:
            super().close()
        except OSError as error:
            raise self._io_error("cannot close", error) from error

    def _short(self, at: int, missing: int) -> CkptError:
        return LocalIOError(
            f"the file ends at byte {at}, {missing} bytes early: something else changed it", file=self.name
        )


def _fallocate(fd: int, size: int) -> bool:
    """Reserve the file's space; False where the system or the file system cannot."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True
