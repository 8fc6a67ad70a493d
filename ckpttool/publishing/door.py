"""The door that each request of huggingface_hub's client passes while a call of ours runs.

The library tries again by itself, waits for as long as any server asks, and follows redirects to anywhere. All that is
right for reading; but content whose arrival nobody confirmed must not be put again before the Hub was asked whether it
is there. Behind the door there is one try, a time limit, a host that was looked at, an answer of bounded size, and an
error of ours where it fails. What is tried again, and when, is decided outside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ckpttool.containers import answers, limits, patience
from ckpttool.containers.answers import Again
from ckpttool.containers.exchange import REDIRECTS
from ckpttool.errors import LimitError, LocalIOError, NetworkError
from ckpttool.publishing import refusals

if TYPE_CHECKING:
    import httpx2


class Meter(Protocol):
    """Who counts what travels."""

    def count(self, *, down: int = 0, up: int = 0, requests: int = 0) -> None:
        """So much more of it."""


@dataclass(frozen=True)
class Passage:
    """One call's way through the door: to `hub`, with the client of `library`; `label` names it in errors.

    Nothing more is sent once `gone` is set. `in_parts`: content goes up in parts, each of which the library may put
    again. `sent` hears of the bytes of content as they go.
    """

    hub: str
    library: ModuleType
    label: str
    meter: Meter
    gone: threading.Event
    in_parts: bool = False
    sent: Callable[[int], None] = lambda nbytes: None

    def send(self, send: Callable[..., Any], request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        """The answer to `request`, unless it says that another try may succeed."""
        repeated = self.in_parts and request.method == "PUT"
        for _ in range(REDIRECTS + 1):
            answer = self._answer(send, request, options, repeated)
            try:
                following = answer.next_request
                response = self._whole(answer, request)
            finally:
                answer.close()
            if following is None:
                return self._weighed(response, repeated)
            request = self._next(request, following)
        raise NetworkError(f"more than {REDIRECTS} redirects", file=self.label, hint=answers.LATER)

    def _answer(
        self, send: Callable[..., Any], request: httpx2.Request, options: dict[str, Any], repeated: bool
    ) -> httpx2.Response:
        """An answer's head."""
        self._look_at(request)
        p = patience.PATIENCE
        silence = p.total if self.in_parts and request.method == "POST" else p.read  # parts take time to join
        waits = self.library.Timeout(silence, connect=p.connect).as_dict()
        request.extensions = {**request.extensions, "timeout": waits}
        request.stream = _counted(self.library)(request, self)
        self.went(request, 0)
        self.meter.count(requests=1)
        with self._ours(repeated):
            response: httpx2.Response = send(request, **{**options, "stream": True, "follow_redirects": False})
            return response

    def _whole(self, answer: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
        """An answer with all of its body, as the library would have read it."""
        body = bytearray()
        with self._ours(False):
            for piece in answer.iter_bytes():
                body += piece
                if self.gone.is_set():
                    raise Again("nobody waits any more")
                if len(body) > limits.HUB_ANSWER:
                    what = f"the answer has more than the {limits.HUB_ANSWER:,} bytes that are read of it"
                    more = limits.hint(limits.HUB_ANSWER, "is it really the Hub?")
                    raise LimitError(what, file=self.label, hint=more)
        self.meter.count(down=len(body))
        headers = [(k, v) for k, v in answer.headers.multi_items() if k not in ("content-encoding", "content-length")]
        response: httpx2.Response = self.library.Response(
            answer.status_code, headers=headers, content=bytes(body), request=request
        )
        return response

    def _weighed(self, response: httpx2.Response, repeated: bool) -> httpx2.Response:
        """The answer; `Again` where it asks for another try that the library must not make."""
        if response.status_code in answers.TRANSIENT:
            wait = answers.wait(response.status_code, response.headers)
            if not repeated or (wait or 0) > patience.PATIENCE.longest_wait:
                raise Again(refusals.summary(response), wait, hint=refusals.LATER)
        return response

    @contextmanager
    def _ours(self, repeated: bool) -> Iterator[None]:
        """The client's errors as ours, which the library does not catch; but not those of a part that it repeats."""
        try:
            with answers.translated(self.library, self.label):
                yield
        except Again as again:
            error = again.__cause__
            if repeated and error is not None and not isinstance(error, self.library.ConnectError):
                raise error from None
            raise

    def _look_at(self, request: httpx2.Request) -> None:
        """Refuse a host that content must not go to; what is not the Hub gets no token."""
        if _origin(str(request.url)) == _origin(self.hub):
            return
        try:
            answers.refuse_redirect(self.hub, str(request.url), self.label)
        except NetworkError as error:
            what = f"the Hub wants content at another place: it {error.message}"
            raise NetworkError(what, file=self.label, hint="it, or something between, misleads") from error
        request.headers.pop("authorization", None)

    def _next(self, request: httpx2.Request, following: httpx2.Request) -> httpx2.Request:
        """What a redirect asks for; content and commits go where the Hub said at first, or nowhere."""
        if request.method in ("GET", "HEAD"):
            answers.refuse_redirect(str(request.url), str(following.url), self.label)
            return following
        what = f"the server redirects what is sent to {following.url.host}"
        hint = "was the repo renamed? give its new name; else the server, or something between, misleads"
        raise NetworkError(what, file=self.label, hint=hint)

    def went(self, request: httpx2.Request, nbytes: int) -> None:
        """A piece of a body goes out. Raises where nobody waits for the call any more."""
        if self.gone.is_set():
            raise Again("nobody waits any more")
        self.meter.count(up=nbytes)
        if nbytes and request.method == "PUT":  # content, and not a question before it
            self.sent(nbytes)


_passage: ContextVar[Passage | None] = ContextVar("_passage", default=None)


@contextmanager
def through(passage: Passage, client: httpx2.Client) -> Iterator[None]:
    """What this thread asks of `client` meanwhile goes by `passage`; all other requests of it go as they did.

    Nor does the library log what it makes of those that pass, with URLs that are signed: failures are errors of ours.
    """
    for name in ("huggingface_hub.utils._http", "huggingface_hub._commit_api"):
        logging.getLogger(name).addFilter(_unlogged)  # the same one is added once
    send = client.send
    if not isinstance(send, _Door):
        client.send = _Door(send)  # type: ignore[method-assign]
    token = _passage.set(passage)
    try:
        yield
    finally:
        _passage.reset(token)


def _unlogged(record: logging.LogRecord) -> bool:
    return _passage.get() is None


class _Door:
    """`send` of the client, which each of its requests goes through."""

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send

    def __call__(self, request: httpx2.Request, **options: Any) -> Any:
        passage = _passage.get()
        return self._send(request, **options) if passage is None else passage.send(self._send, request, options)


@cache
def _counted(library: ModuleType) -> Callable[[httpx2.Request, Passage], Any]:
    """Bodies that tell what of them was sent, as streams of `library`."""

    class Counted(library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, request: httpx2.Request, passage: Passage) -> None:
            self._request = request
            self._stream: Any = request.stream
            self._passage = passage
            self._nbytes = int(request.headers.get("content-length", 0))

        def __iter__(self) -> Iterator[bytes]:
            missing = self._nbytes
            for piece in self._stream:
                self._passage.went(self._request, len(piece))
                missing -= len(piece)
                yield piece
            if missing > 0:
                what = "became shorter while it was sent"
                raise LocalIOError(what, file=self._passage.label, hint="who writes to it?")

        def close(self) -> None:
            self._stream.close()

    return Counted


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
