"""Files at a remote end as the header parsers read them: a beginning that grows in at most three ranges.

Nothing is written to this machine's disk. What is asked for lies behind `Ranges`: HTTP here and on the Hub, any other
store through fsspec.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckpttool.containers import limits
from ckpttool.containers.answers import NotThere
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError, LimitError, NetworkError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from ckpttool.containers.http import Ranges


class RemoteFile:
    """A remote file, read exactly, a request for each read. `name` is its name inside the checkpoint."""

    def __init__(self, name: str, ranges: Ranges) -> None:
        self.name = name
        self.ranges = ranges

    def close(self) -> None:
        """Let go of what was read; connections belong to the pool."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Its bytes; asks for the first of them where nobody has said it."""
        if self.ranges.size is None:
            self.ranges.fetch(0, 1)
        return self.ranges.size or 0

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from `offset`. InputError when the file ends first, NetworkError when it cannot be read."""
        out = bytearray(n)
        self.readinto(offset, out)
        return bytes(out)

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        """From `least` to `most` bytes from `offset`, without another request than `least` needs."""
        return self.read(offset, least)

    def readinto(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill `buffer`, which is contiguous, from `offset`, as `read` does."""
        view = memoryview(buffer)
        n = view.nbytes
        self._require(offset + n)
        if n and (came := self.ranges.fill(offset, view.cast("B"))) != n:
            what = f"{n} bytes were asked for at {offset}, {came} came"
            raise NetworkError(what, file=self.name, hint="try again later")

    def _require(self, stop: int) -> None:
        """InputError where the file ends before `stop`."""
        if stop > self.size:
            what = f"the file ends at byte {self.size}, {stop - self.size} bytes early: it is truncated"
            raise InputError(what, file=self.name, hint="it was uploaded in part; ask whoever did")


class RemoteHead(RemoteFile):
    """The beginning of a remote file, kept while its header is parsed: first a window, then what the parser needs.

    A safetensors header says its length, so the second range is exact. A GGUF's does not: its ranges end at growing
    marks, and a header that goes beyond the last is refused. `most`: bytes of whatever is no GGUF.
    """

    def __init__(self, name: str, ranges: Ranges, most: int = limits.REMOTE_SAFETENSORS_HEADER) -> None:
        super().__init__(name, ranges)
        self.most = most
        self._head = bytearray()
        self._windows = 0
        self.closed = False

    @property
    def size(self) -> int:
        """Its bytes; asks for the first window where nobody has said it."""
        if self.ranges.size is None:
            self._grow(1)
        return self.ranges.size or 0

    def read_some(self, offset: int, least: int, most: int) -> bytes:
        """From `least` to `most` bytes from `offset`, as many of them as there are once `least` are."""
        if offset + least > len(self._head):
            self.read(offset, least)
        return bytes(memoryview(self._head)[offset : offset + most])

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from `offset`, as a file reads them."""
        self._require(offset + n)
        while len(self._head) < offset + n:
            self._grow(offset + n)
        return bytes(memoryview(self._head)[offset : offset + n])

    def readinto(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill `buffer`, which is contiguous, from `offset`."""
        view = memoryview(buffer)
        if view.nbytes:
            view.cast("B")[:] = self.read(offset, view.nbytes)

    def _grow(self, stop: int) -> None:
        """One more range, so that the head has `stop` bytes, or is the whole file, or is a first window."""
        have = len(self._head)
        goal, most = max(stop, limits.REMOTE_FIRST) if have else limits.REMOTE_FIRST, self.most
        if self._head.startswith(b"GGUF"):
            goal, most = next((m for m in limits.REMOTE_GGUF if m >= goal), goal), limits.REMOTE_GGUF[-1]
        if self._windows == limits.REMOTE_REQUESTS or goal > max(most, limits.REMOTE_FIRST):
            what = f"its header needs more than {limits.REMOTE_REQUESTS} requests, or than {most} bytes"
            raise LimitError(what, file=self.name, hint=limits.hint(most, "download the file and give it"))
        self._windows += 1
        self.ranges.fetch(have, goal, self._head)
        if len(self._head) == have and self.ranges.size:
            raise NetworkError(f"ends at byte {have}, before its size", file=self.name, hint="try again later")

    def close(self) -> None:
        """Let go of what was read."""
        self._head = bytearray()
        self.closed = True


class RemotePath:
    """Where one remote file lies: `name` inside the checkpoint, `label` what a user would give for it.

    `git_sha1` is git's hash of its content, where a listing says it."""

    def __init__(self, name: str, label: str, ranges: Ranges, git_sha1: str | None = None) -> None:
        self.name = name
        self.label = label
        self.ranges = ranges
        self.git_sha1 = git_sha1
        self._head: RemoteHead | None = None

    def __str__(self) -> str:
        return self.label

    def head(self) -> RemoteHead:
        """Its beginning, to parse a header from; the same until it is closed, so that nothing is asked for twice."""
        if self._head is None or self._head.closed:
            self._head = RemoteHead(self.name, self.ranges)
        return self._head

    def open(self) -> RemoteFile:
        """The file, for reads anywhere in it."""
        return RemoteFile(self.name, self.ranges)

    def read_bytes(self, limit: int = limits.INDEX_FILE) -> bytes:
        """All of a side file, in one request where its size is known; in one more where what came is not what the
        listing says by its hash.

        Raises:
            LimitError: it is over `limit` bytes.
            NetworkError: it cannot be read, or is twice another content.
        """
        for _ in range(2):
            with self.open() if self.ranges.size is not None else RemoteHead(self.name, self.ranges, limit) as f:
                if f.size > limit:
                    what = f"is {f.size:,} bytes, more than the {limit:,} that such a file may have"
                    raise LimitError(what, file=self.name, hint=limits.hint(limit, "is it really this file?"))
                data = f.read(0, f.size)
            if self._is_listed(data):
                return data
        hint = "something between keeps a wrong copy, or the server is broken; try again later"
        raise NetworkError("what comes is not what is listed: its hash differs", file=self.name, hint=hint)

    def _is_listed(self, data: bytes) -> bool:
        """Whether `data` is what the listing says, as far as it does."""
        if self.ranges.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.ranges.sha256
        return self.git_sha1 is None or git_sha1(data) == self.git_sha1


def git_sha1(data: bytes) -> str:
    """What git calls this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


FilePath = Path | RemotePath
"""Where a file of a checkpoint lies, here or at a remote end."""


def open_head(path: FilePath) -> LocalFile | RemoteHead:
    """The file at `path`, to parse its header from."""
    return LocalFile(path, path.name) if isinstance(path, Path) else path.head()


def open_file(path: FilePath, name: str) -> LocalFile | RemoteFile:
    """The file at `path`, for reads anywhere in it; `name` is its name for errors."""
    return LocalFile(path, name) if isinstance(path, Path) else path.open()


class RemoteFolder:
    """A folder at a remote end: a Hub repo at a commit, one of an object store, or where a URL's file lies.

    `label` is what a user would give for it. `files` are by their path beneath it; where a remote end does not list
    them, `unlisted` makes the one of a name, which may turn out not to be there. `name` is what the model is called
    there; `revision` and `commit` are a repo's: what was asked for, and what it is.
    """

    def __init__(
        self,
        label: str,
        files: Mapping[str, RemotePath],
        unlisted: Callable[[str], RemotePath] | None = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        commit: str | None = None,
    ) -> None:
        self.label = label
        self.name = name or label.rstrip("/").rpartition("/")[2]
        self.revision = revision
        self.commit = commit
        self._files = dict(files)
        self._unlisted = unlisted

    def __str__(self) -> str:
        return self.label

    def names(self) -> list[str]:
        """The files directly in it, sorted; none where they are not listed."""
        return sorted(n for n in self._files if "/" not in n)

    @property
    def lists(self) -> bool:
        """Whether all that lies in it is known."""
        return self._unlisted is None

    def listed(self) -> list[str]:
        """The files beneath it, by their paths; of those that are not listed, the ones that were asked for."""
        return sorted(self._files)

    def folders_with(self, endings: tuple[str, ...]) -> list[str]:
        """The folders beneath it that hold files with one of these endings."""
        return sorted({n.rpartition("/")[0] for n in self._files if n.endswith(endings)} - {""})

    def has(self, name: str) -> bool:
        """Whether there is such a file, as far as is known without asking."""
        return name in self._files or self._unlisted is not None

    def has_folder(self, name: str) -> bool:
        """Whether files lie in a folder of this name."""
        return any(n.startswith(f"{name}/") for n in self._files)

    def file(self, name: str) -> RemotePath:
        """The file of this name; the same object each time. InputError where there is none."""
        if name not in self._files:
            if self._unlisted is None:
                raise InputError("no such file", file=self.at(name), hint="check the name")
            self._files[name] = self._unlisted(name)
        return self._files[name]

    def side(self, name: str) -> bytes:
        """All of a side file."""
        return self.file(name).read_bytes()

    def at(self, name: str) -> str:
        """What a user would give for the file or folder `name` in it."""
        return f"{self.label.rstrip('/')}/{name}"


class RemoteCompanions(Mapping[str, bytes]):
    """Side files of a remote checkpoint by name, each read when it is first asked for, and once.

    `probe` are names that may be there though nobody lists them; to ask whether one is reads it.
    """

    def __init__(self, folder: RemoteFolder, names: Iterable[str], probe: Iterable[str] = ()) -> None:
        self._folder = folder
        self._names = dict.fromkeys(names)
        self._probe = set(probe)
        self._read: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> bytes:
        with self._lock:
            if name in self._probe:
                self._probe.discard(name)
                self._try(name)
            if name not in self._names:
                raise KeyError(name)
            if name not in self._read:
                self._read[name] = self._folder.file(name).read_bytes(limits.TOKENIZER_FILE)
            return self._read[name]

    def _try(self, name: str) -> None:
        try:
            self._read[name] = self._folder.file(name).read_bytes(limits.SIDE_FILE)
        except NotThere:  # it was only guessed at
            return
        self._names[name] = None

    def __contains__(self, name: object) -> bool:
        if name in self._probe and isinstance(name, str):
            return self.get(name) is not None
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
