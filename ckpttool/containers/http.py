"""Ranges of a file over HTTP: pinned to what the first answer showed, bounded in time, bytes, tries and redirects.

A range that breaks off is asked for again, from where it did. How often and how long is `patience`'s business.

The client is huggingface_hub's (httpx2, httpx before its 2.0): connection pool, proxies, certificates, HF_HUB_OFFLINE
and whatever factory the user has set are its own. Redirects are followed here, one by one, because each must be looked
at; the client makes the next request, and strips the token from it where the host changes.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol

from ckpttool.containers import answers, patience
from ckpttool.containers.answers import Again, Stale
from ckpttool.containers.limits import KIB
from ckpttool.containers.patience import retried
from ckpttool.errors import CkptError, NetworkError

if TYPE_CHECKING:
    import httpx2


REDIRECTS: Final = 3

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


@dataclass
class Hop:
    """Where the bytes are asked for: the given URL, or what it last redirected to; `headers` are fit for there."""

    url: str
    headers: dict[str, str]


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
            before = len(got)
            try:
                self._once(first + before, stop, got, gone)
            except Stale:  # a redirect's target lives for an hour, a long look at a repo may take more
                self._hop = self._origin
                continue
            stop = min(stop, self.size or 0)
            if len(got) == before and first + before < stop:
                raise Again("sends nothing")

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
        library, client = session()
        with answers.translated(library, self.label):
            hop = self._hop
            remembered = hop is not self._origin
            for _ in range(REDIRECTS + 1):
                wait = library.Timeout(patience.PATIENCE.read, connect=patience.PATIENCE.connect)
                headers = hop.headers | {"Range": f"bytes={at}-{stop - 1}", "Accept-Encoding": "identity"}
                request = client.build_request("GET", hop.url, headers=headers, timeout=wait)
                response = client.send(request, stream=True, follow_redirects=False)
                try:
                    self._pinned(response)
                    if response.next_request is None:
                        self._refuse(response, remembered)
                        self._hop = hop
                        yield response
                        return
                    answers.refuse_redirect(self._origin.url, str(response.next_request.url), self.label)
                    hop = Hop(str(response.next_request.url), _kept(response.next_request.headers))
                    _drain(response)
                finally:
                    response.close()
        raise NetworkError(f"more than {REDIRECTS} redirects", file=self.label, hint="give the URL that they lead to")

    def _refuse(self, response: httpx2.Response, remembered: bool) -> None:
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
        if response.status_code not in (200, 206):
            return
        if (coding := response.headers.get("content-encoding", "identity")) != "identity":
            what = f"the answer is compressed ({coding}), though that was not asked for"
            raise NetworkError(what, file=self.label, hint=answers.NO_SUPPORT)
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
            if at or (length.isdigit() and int(length) > stop):
                raise NetworkError(_IGNORES, file=self.label, hint=_WHOLE)
            if not length.isdigit():
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


def _drain(response: httpx2.Response) -> None:
    """Read the few words of a redirect, so that its connection can be used again."""
    taken = 0
    for chunk in response.iter_raw():
        taken += len(chunk)
        if taken > 64 * KIB:
            return


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a request's headers those that are ours: the client adds its own anew."""
    return {k: v for k, v in headers.items() if k.lower() in ("authorization", "user-agent")}


def session() -> tuple[ModuleType, httpx2.Client]:
    """huggingface_hub's client, which threads share, and the library that it is of, under either of its names."""
    from huggingface_hub import get_session

    client = get_session()
    name = next(m for c in type(client).__mro__ if (m := c.__module__.partition(".")[0]) in ("httpx2", "httpx"))
    return importlib.import_module(name), client
