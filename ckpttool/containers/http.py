"""Ranges of a file over HTTP: pinned to what the first answer showed, bounded in time, bytes, tries and redirects.

A range that breaks off is asked for again, from where it did. How often and how long is `patience`'s business.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from ckpttool.containers import answers
from ckpttool.containers.answers import Again, Stale
from ckpttool.containers.exchange import Hop, answered, refuse_coding
from ckpttool.containers.patience import retried
from ckpttool.errors import CkptError, NetworkError

if TYPE_CHECKING:
    import httpx2

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Ranges(Protocol):
    """A remote file as what can be asked of it. `label` is its name for errors, `size` is known after the first answer
    at the latest; `etag` and `sha256` are what the remote end calls its content, where it does."""

    label: str
    size: int | None
    etag: str | None
    sha256: str | None

    def fetch(self, start: int, stop: int, onto: bytearray | None = None) -> bytearray:
        """The bytes from `start` to `stop`, or to the end of the file where that comes first; behind those of `onto`,
        where it is given."""

    def fill(self, start: int, view: memoryview) -> int:
        """The bytes from `start` on into `view`; how many there are."""


class Gathered(Protocol):
    """What came so far: a bytearray, or a `Filling`."""

    def __len__(self) -> int: ...

    def extend(self, more: bytes | bytearray, /) -> None:
        """`more` behind what is there."""


class Filling:
    """Memory that is filled from its begin on."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def extend(self, more: bytes | bytearray, /) -> None:
        """`more` behind what is there. ValueError where it has no room."""
        self._view[self._filled : self._filled + len(more)] = more
        self._filled += len(more)


class HttpRanges:
    """Ranges of the file at `url`; `headers` (a token) go to its host alone.

    `size` and `sha256` are what a listing promised, `commit` the Hub's X-Repo-Commit; an answer that says otherwise, or
    otherwise than the first answer, is an error: ranges of two files are no header.
    """

    def __init__(
        self,
        url: str,
        label: str,
        headers: Mapping[str, str] | None = None,
        *,
        size: int | None = None,
        sha256: str | None = None,
        commit: str | None = None,
        repo_url: str | None = None,
    ) -> None:
        self.label = label
        self.size = size
        self.sha256 = sha256
        self.etag: str | None = None
        self._commit = commit
        self._repo_url = repo_url
        self._origin = Hop(url, dict(headers or {}))
        self._hop = self._origin

    def fetch(self, start: int, stop: int, onto: bytearray | None = None) -> bytearray:
        """The bytes from `start` to `stop`, or to the file's end; behind those of `onto`, where it is given.

        Raises:
            NetworkError: the remote end refuses, breaks off too often, is too slow, or sends something else.
        """
        got = bytearray() if onto is None else onto
        self._gather(start - len(got), stop, got)
        return got

    def fill(self, start: int, view: memoryview) -> int:
        """The bytes from `start` on into `view`; how many there are. NetworkError as `fetch` raises it."""
        got = Filling(view)
        self._gather(start, start + len(view), got)
        return len(got)

    def _gather(self, first: int, stop: int, got: Gathered) -> None:
        missing = (stop if self.size is None else min(stop, self.size)) - first - len(got)
        retried(lambda gone: self._rest(first, stop, got, gone), self.label, max(0, missing))

    def _rest(self, first: int, stop: int, got: Gathered, gone: threading.Event) -> None:
        """What is still missing of the bytes from `first` to `stop`, behind `got`: a body that broke off goes on where
        it did."""
        stop = stop if self.size is None else min(stop, self.size)
        while first + len(got) < stop or self.size is None:
            try:
                self._once(first + len(got), stop, got, gone)
            except Stale:  # a redirect's target lives for an hour, a long look at a repo may take more
                self._hop = self._origin
                continue
            stop = min(stop, self.size or 0)

    def _once(self, at: int, stop: int, got: Gathered, gone: threading.Event) -> None:
        """One answer's bytes to the end of `got`; of a whole file in place of a range, all or none."""
        with self._answer(at, stop) as response:
            n = self._expected(response, at, stop)
            if n == 0:
                return
            into: Gathered = got if response.status_code == 206 else bytearray()
            taken = 0
            for chunk in response.iter_raw():  # as it comes: gathered pieces would be lost where it breaks off
                if gone.is_set():
                    raise Again("nobody waits any more")
                taken += len(chunk)
                if taken > (stop - at if n is None else n):
                    raise self._too_much(n)
                into.extend(chunk)
            if n is not None and taken < n:
                raise Again(f"breaks off after {taken:,} of {n:,} bytes")
        if isinstance(into, bytearray) and into is not got:
            self._sized(taken)
            got.extend(into)

    def _too_much(self, n: int | None) -> CkptError:
        if n is None:
            return NetworkError(_IGNORES, file=self.label, hint=_WHOLE)
        return NetworkError(f"sends more than the {n:,} bytes asked for", file=self.label, hint=answers.NO_SUPPORT)

    @contextlib.contextmanager
    def _answer(self, at: int, stop: int) -> Iterator[httpx2.Response]:
        """The last answer to a request for `at` to `stop`: its head checked, its body not yet read."""
        start = self._hop
        more = {"Range": f"bytes={at}-{stop - 1}"}
        with answered(start, self._origin.url, more, self.label, self._pinned) as (response, hop):
            self._refuse(response, remembered=start is not self._origin)
            self._hop = hop
            yield response

    def _refuse(self, response: httpx2.Response, *, remembered: bool) -> None:
        """Raise for every status but those that carry bytes; `Stale` where a `remembered` redirect has run out."""
        status = response.status_code
        if status in (200, 206, 416):
            return
        if remembered and status in answers.GONE:
            raise Stale
        logged_in = "authorization" in self._origin.headers
        raise answers.refusal(status, response.headers, self.label, repo_url=self._repo_url, logged_in=logged_in)

    def _pinned(self, response: httpx2.Response) -> None:
        """Hold what the Hub says on the way, and the etag at the end, against what is known."""
        commit = response.headers.get("x-repo-commit")
        if self._commit and commit and commit != self._commit:
            raise self._changed(f"is of commit {commit[:12]}, not {self._commit[:12]}")
        linked = response.headers.get("x-linked-etag", "").strip('"')
        if self.sha256 and _SHA256.fullmatch(linked) and linked != self.sha256:
            raise self._changed(f"its sha256 is {linked[:12]}…, that of the list {self.sha256[:12]}…")
        if response.status_code not in (200, 206):
            return
        refuse_coding(response, self.label)
        etag = response.headers.get("etag") or response.headers.get("last-modified")
        if self.etag is not None and etag != self.etag:
            raise self._changed(f"its etag is {etag}, at first it was {self.etag}")
        self.etag = etag

    def _expected(self, response: httpx2.Response, at: int, stop: int) -> int | None:
        """How many bytes the body must have; None for a whole file of unknown length. Learns the file's size."""
        if response.status_code == 416:
            return self._past_end(response)
        if response.status_code == 200:
            length = response.headers.get("content-length", "")
            known = length.isascii() and length.isdigit()
            if at or (known and int(length) > stop):
                raise NetworkError(_IGNORES, file=self.label, hint=_WHOLE)
            if not known:
                return None
            self._sized(int(length))
            return int(length)
        said = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(said)
        if match is None:
            what = f"the answer's Content-Range is {said!r}" if said else "the answer has no Content-Range"
            raise NetworkError(what, file=self.label, hint=answers.NO_SUPPORT)
        first, last, size = map(int, match.groups())
        self._sized(size)
        if (first, last) != (at, min(stop, size) - 1):
            what = f"bytes {at} to {stop - 1} were asked for, {first} to {last} came"
            raise NetworkError(what, file=self.label, hint=answers.NO_SUPPORT)
        return last + 1 - first

    def _past_end(self, response: httpx2.Response) -> int:
        """416: an empty file, or one that has become shorter."""
        if response.headers.get("content-range", "") == "bytes */0" and not self.size:
            self.size = 0
            return 0
        raise NetworkError("the server refuses a range inside the file (416)", file=self.label, hint=answers.CHANGED)

    def _sized(self, size: int) -> None:
        if self.size is not None and size != self.size:
            raise self._changed(f"has {size:,} bytes, not {self.size:,}")
        self.size = size

    def _changed(self, what: str) -> CkptError:
        return NetworkError(f"the remote file changed: {what}", file=self.label, hint=answers.CHANGED)


_IGNORES: Final = "the server ignores ranges and would send the whole file"
_WHOLE: Final = "download it and give the local file"
