"""What can go wrong, and what the user should do about it.

Every error the package raises on purpose is a `CkptError`: one line that names the file, the field and the byte offset
where it has them, and ends with a hint. Its kind decides the exit code of the command line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from collections.abc import Iterator, Sequence

NAME_LIMIT = 120
MESSAGE_LIMIT = 1000
DAMAGED = "the file is damaged or hostile; fetch or make it again"
"""The hint where a file is not what its format allows."""


def shown(name: str, limit: int = NAME_LIMIT) -> str:
    """`name` as it may be printed: control, bidi and surrogate characters as \\u{…}, cut at `limit` characters.

    Names come from files, so they may hold terminal escapes.
    """
    out = "".join(
        f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in name[:limit]
    )
    return out if len(name) <= limit else f"{out}… ({len(name)} characters)"


class CkptError(Exception):
    """An error with a place (file, field, offset) and a hint.

    `field` is a tensor name, a JSON path or a GGUF key; `offset` is absolute in the file, in bytes.
    """

    exit_code = 70
    kind = "internal"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        field: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.field = field
        self.offset = offset
        self.hint = hint

    def __str__(self) -> str:
        file = shown(self.file, MESSAGE_LIMIT) if self.file else ""  # a path, whose end says most
        where = ": ".join(x for x in (file, shown(self.field or "")) if x)
        at = "" if self.offset is None else f" at byte {self.offset}"
        head = f"{where}{at}: " if where or at else ""
        tail = f"; {shown(self.hint, MESSAGE_LIMIT)}" if self.hint else ""
        return f"{head}{shown(self.message, MESSAGE_LIMIT)}{tail}"  # messages quote names and values from files as well


class CheckFailed(CkptError):
    """A check that the user asked for found something (exit 1)."""

    exit_code = 1
    kind = "check"


class UsageError(CkptError):
    """The options contradict each other or this source (exit 2)."""

    exit_code = 2
    kind = "usage"


class InputError(CkptError):
    """The source is damaged, hostile, or not what it claims to be (exit 3)."""

    exit_code = 3
    kind = "input"


class UnconvertibleError(InputError):
    """The source is whole, as far as headers tell, but stored in a form that no dialect has: `convert` refuses it."""


class LocalIOError(CkptError):
    """This machine refused: disk full, permissions, a target that exists (exit 4)."""

    exit_code = 4
    kind = "io"


class NetworkError(CkptError):
    """A remote end refused or broke off (exit 5)."""

    exit_code = 5
    kind = "network"


class LimitError(CkptError):
    """A memory or size limit does not allow the work (exit 6)."""

    exit_code = 6
    kind = "limit"


class Problems(InputError):
    """Several errors found together, so that the user sees the whole damage once. The first decides the exit code."""

    def __init__(self, problems: Sequence[CkptError]) -> None:
        super().__init__(problems[0].message)
        self.problems = tuple(problems)
        self.exit_code = problems[0].exit_code
        self.kind = problems[0].kind

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)


_OS_HINTS = {
    errno.ENOENT: "check the path; is the checkpoint complete?",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EROFS: "choose a place that can be written to",
    errno.EEXIST: "remove it, or write elsewhere",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EFBIG: "choose a file system that holds files of this size",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or its connection fails; look at the system's log",
}


def os_hint(error: OSError) -> str:
    """What the user can do about the system's error."""
    return _OS_HINTS.get(error.errno or 0, "check the path and the disk")


def os_error(error: OSError) -> LocalIOError:
    """What the system refused, as an error of ours."""
    name = error.filename
    file = os.fsdecode(name) if isinstance(name, str | bytes) else None
    return LocalIOError(error.strerror or str(error) or type(error).__name__, file=file, hint=os_hint(error))


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """What the system refuses in here, a caller's callback included, raised as an error of ours; `path` is what it is
    about where it does not say."""
    try:
        yield
    except OSError as e:
        if e.filename is None and path is not None:
            e.filename = os.fspath(path)
        raise os_error(e) from e


def first_line(error: BaseException) -> str:
    """The first line of what a library says of its error; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def raise_all(problems: Sequence[CkptError]) -> None:
    """Raise what was collected: nothing, the one error, or all of them as `Problems`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)
