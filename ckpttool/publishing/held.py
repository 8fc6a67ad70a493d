"""Files held against what they should be, and kept: what was hashed and looked through is what is uploaded.

A file's bytes are hashed on an open descriptor, and a path to that descriptor is handed on: a name that is swapped for
another file, or for a link out of the folder, leaks nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ckpttool.containers import limits
from ckpttool.errors import CkptError, InputError, LimitError, os_error
from ckpttool.publishing import secrets

Progress = Callable[[int], None]

HELD: Final = "/proc/self/fd"
"""Where Linux has open files by their descriptors."""

WEIGHTS: Final = (".safetensors", ".gguf")
CHUNK: Final = 4 << 20
AGAIN: Final = "let nothing write there, and give the same command again"
REMADE: Final = "convert again, or put the file back as it was"
LEAKED: Final = (
    "revoke it, and take it out; if the receipt names the file, out of the source, and convert again; "
    "nothing was uploaded"
)


@dataclass(frozen=True)
class Stamp:
    """What the file system says of an open file: whoever swaps or changes it cannot keep all of it."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Item:
    """A file that may be published. `name` is its path in the folder and in the repo, with slashes.

    The first `text_nbytes` of it can be read: all of a side file, the header of a file of weights. `seen` is the file
    that was checked.
    """

    name: str
    path: Path
    nbytes: int
    sha256: str
    text_nbytes: int = 0
    seen: Stamp | None = None


def checked(item: Item, progress: Progress = lambda nbytes: None) -> Item:
    """`item`, its file held against the manifest byte for byte; what can be read of it is looked through for secrets.

    Raises:
        InputError: the file is gone, is a link, is another than the receipt says; or holds what looks like a secret.
        LocalIOError: the system cannot read it.
    """
    with _open(item) as fd:
        seen = _stamp(fd, item)
        if seen.nbytes != item.nbytes:
            what = f"has {seen.nbytes:,} bytes; the receipt says {item.nbytes:,}"
            raise InputError(what, file=str(item.path), hint=REMADE)
        if item.text_nbytes > limits.TOKENIZER_FILE:
            what = f"has {item.text_nbytes:,} bytes to read, more than the {limits.TOKENIZER_FILE:,} of any such file"
            more = limits.hint(limits.TOKENIZER_FILE, "is it really this file?")
            raise LimitError(what, file=str(item.path), hint=more)
        text = bytearray()
        found = _hashed(fd, item, text, progress)
        if _stamp(fd, item) != seen:
            raise InputError("has changed while it was read", file=str(item.path), hint=AGAIN)
        if found != item.sha256:
            raise InputError("is not what the receipt says: its sha256 differs", file=str(item.path), hint=REMADE)
    secrets.refuse(str(item.path), bytes(text), LEAKED, is_text=not item.name.endswith(WEIGHTS))
    return replace(item, seen=seen)


@contextlib.contextmanager
def opened(item: Item) -> Iterator[Path]:
    """A path to the very file that was checked, which no change of names touches; checked now if it was not yet.

    Elsewhere than on Linux it is the file's own path, and a swap is found at the end.

    Raises:
        InputError: it is another file than before, or has changed by the end.
        LocalIOError: the system cannot open it.
    """
    item = item if item.seen is not None else checked(item)
    with _open(item) as fd:
        if _stamp(fd, item) != item.seen:
            raise InputError("has changed since it was checked", file=str(item.path), hint=AGAIN)
        held = Path(HELD, str(fd))
        by_name = not held.exists()
        yield item.path if by_name else held
        with _open(item) if by_name else contextlib.nullcontext(fd) as now:
            if _stamp(now, item) != item.seen:
                raise InputError("has changed while it was uploaded", file=str(item.path), hint=AGAIN)


def content(item: Item) -> bytes:
    """The bytes of a small file, which are what the manifest says. InputError where they are not."""
    text = bytearray()
    with _open(item) as fd:
        if _hashed(fd, replace(item, text_nbytes=item.nbytes), text, lambda _: None) != item.sha256:
            raise InputError("has changed since it was checked", file=str(item.path), hint=AGAIN)
    return bytes(text)


@contextlib.contextmanager
def _open(item: Item) -> Iterator[int]:
    """A descriptor of the file, which is no link, nor is a folder on the way to it."""
    *folders, last = item.name.split("/")
    root = item.path.parents[len(folders)]
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    with contextlib.ExitStack() as stack:
        try:
            if os.open in os.supports_dir_fd:
                at = _held(stack, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                for folder in folders:
                    at = _held(stack, os.open(folder, flags | os.O_DIRECTORY, dir_fd=at))
                fd = _held(stack, os.open(last, flags, dir_fd=at))
            else:
                fd = _held(stack, os.open(item.path, flags))
        except OSError as error:
            raise _not_opened(error, item) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError("is no plain file", file=str(item.path), hint=REMADE)
        yield fd


def _held(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _not_opened(error: OSError, item: Item) -> CkptError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        return InputError("is a link, or lies behind one", file=str(item.path), hint="put the file itself in its place")
    if error.errno == errno.ENOENT:
        return InputError("is missing; the receipt names it", file=str(item.path), hint=REMADE)
    return os_error(OSError(error.errno, error.strerror, str(item.path)))


def _stamp(fd: int, item: Item) -> Stamp:
    try:
        found = os.fstat(fd)
    except OSError as error:
        raise os_error(OSError(error.errno, error.strerror, str(item.path))) from error
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _hashed(fd: int, item: Item, text: bytearray, progress: Progress) -> str:
    """The sha256 of as many bytes as the file should have; the first `text_nbytes` are added to `text`."""
    digest = hashlib.sha256()
    left = item.nbytes
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        while left and (piece := os.read(fd, min(CHUNK, left))):
            digest.update(piece)
            text += piece[: max(0, item.text_nbytes - len(text))]
            left -= len(piece)
            progress(len(piece))
    except OSError as error:
        raise os_error(OSError(error.errno, error.strerror, str(item.path))) from error
    return digest.hexdigest()
