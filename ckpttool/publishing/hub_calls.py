"""Calls of huggingface_hub that publish: bounded in time and tries, counted, and their refusals in words.

The library tries again by itself, waits for as long as any server asks, and follows redirects to anywhere. All that is
right for reading; but content whose arrival nobody confirmed must not be put again before the Hub was asked whether it
is there. So while a call of ours runs, each request of the library's client passes a door: one try, a time limit, a
host that was looked at, and an error of ours where it fails. What is tried again, and when, is decided outside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ckpttool.containers import answers, patience
from ckpttool.containers.answers import Again
from ckpttool.containers.exchange import REDIRECTS, session
from ckpttool.errors import CkptError, InputError, LocalIOError, NetworkError, os_error
from ckpttool.publishing import refusals
from ckpttool.publishing.report import Traffic
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

T = TypeVar("T")


class Calls:
    """Calls to the Hub of one target, and what has travelled. Threads may share it."""

    def __init__(self, target: RepoTarget) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """What has travelled so far."""
        with self._lock:
            return self._traffic

    def count(self, *, down: int = 0, up: int = 0, requests: int = 0) -> None:
        """Add to what has travelled."""
        with self._lock:
            t = self._traffic
            self._traffic = Traffic(t.down_nbytes + down, t.up_nbytes + up, t.requests + requests)

    def ask(
        self,
        call: Callable[[HfApi], T],
        label: str | None = None,
        *,
        nbytes: int = 0,
        in_parts: bool = False,
        sent: Callable[[int], None] | None = None,
    ) -> T:
        """What `call` returns, tried again where it may succeed then.

        `label` names it in errors, `nbytes` are sent with it, and `sent` hears of each of their pieces. `in_parts`:
        content goes up in parts, each of which the library may put again.

        Raises:
            NetworkError: the Hub refuses (`refusals.Refused`), breaks off too often, or is too slow.
            LocalIOError: what is sent cannot be read.
        """
        label = label or str(self.target)

        def once(gone: threading.Event) -> T:
            library, client = session()
            _guard(client)
            passage = _Passage(self, library, label, gone, in_parts, sent)
            with _passing(passage), answers.translated(library, label), _in_words(label, self.target):
                return call(self._api())

        return patience.retried(once, label, nbytes)

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        from ckpttool import __version__

        return HfApi(endpoint=self.target.hub, library_name="ckpttool", library_version=__version__)


_passage: ContextVar[_Passage | None] = ContextVar("_passage", default=None)


@contextmanager
def _passing(passage: _Passage) -> Iterator[None]:
    token = _passage.set(passage)
    try:
        yield
    finally:
        _passage.reset(token)


def _guard(client: httpx2.Client) -> None:
    """Let the requests that publish pass the door; all others of the shared client go as they did.

    Nor does the library log failures of those that pass, with URLs that are signed: they end as errors of ours.
    """
    logging.getLogger("huggingface_hub.utils._http").addFilter(_unlogged)  # the same one is added once
    send = client.send
    if not isinstance(send, _Door):
        client.send = _Door(send)  # type: ignore[method-assign]


def _unlogged(record: logging.LogRecord) -> bool:
    return _passage.get() is None


class _Door:
    """`send` of the client, which each of its requests goes through."""

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send

    def __call__(self, request: httpx2.Request, **options: Any) -> Any:
        passage = _passage.get()
        return self._send(request, **options) if passage is None else passage.send(self._send, request, options)


class _Passage:
    """One call's way through the door."""

    def __init__(
        self,
        calls: Calls,
        library: ModuleType,
        label: str,
        gone: threading.Event,
        in_parts: bool,
        sent: Callable[[int], None] | None,
    ) -> None:
        self._calls = calls
        self._library = library
        self.label = label
        self._gone = gone
        self._in_parts = in_parts
        self._sent = sent

    def send(self, send: Callable[..., Any], request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        """The answer to `request`, unless it says that another try may succeed."""
        repeated = self._in_parts and request.method == "PUT"  # by the library, with the part read anew
        for _ in range(REDIRECTS + 1):
            response = self._answer(send, request, options, repeated)
            if response.next_request is None:
                break
            request = self._next(request, response)
        else:
            raise NetworkError(f"more than {REDIRECTS} redirects", file=self.label, hint=answers.LATER)
        self._calls.count(down=len(response.content))
        if response.status_code in answers.TRANSIENT:
            wait = answers.wait(response.status_code, response.headers)
            if not repeated or (wait or 0) > patience.PATIENCE.longest_wait:
                raise Again(refusals.summary(response), wait, hint=refusals.LATER)
        return response

    def _answer(
        self, send: Callable[..., Any], request: httpx2.Request, options: dict[str, Any], repeated: bool
    ) -> httpx2.Response:
        if self._gone.is_set():
            raise Again("nobody waits any more")
        self._look_at(request)
        p = patience.PATIENCE
        silence = p.total if self._in_parts and request.method == "POST" else p.read  # parts take time to join
        waits = self._library.Timeout(silence, connect=p.connect).as_dict()
        request.extensions = {**request.extensions, "timeout": waits}
        request.stream = _counted(self._library)(request, self)
        self._calls.count(requests=1)
        try:
            with answers.translated(self._library, self.label):
                response: httpx2.Response = send(request, **{**options, "follow_redirects": False})
        except Again as again:
            error = again.__cause__
            if repeated and error is not None and not isinstance(error, self._library.ConnectError):
                raise error from None
            raise
        return response

    def _look_at(self, request: httpx2.Request) -> None:
        """Refuse a host that content must not go to; what is not the Hub gets no token."""
        hub, url = urlsplit(self._calls.target.hub), urlsplit(str(request.url))
        if (url.scheme, url.netloc) == (hub.scheme, hub.netloc):
            return
        try:
            answers.refuse_redirect(hub.geturl(), str(request.url), self.label)
        except NetworkError as error:
            what = f"the Hub wants content at another place: it {error.message}"
            raise NetworkError(what, file=self.label, hint="it, or something between, misleads") from error
        request.headers.pop("authorization", None)

    def _next(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
        """What a redirect asks for; content and commits go where the Hub said at first, or nowhere."""
        target = response.next_request
        assert target is not None
        if request.method in ("GET", "HEAD"):
            answers.refuse_redirect(str(request.url), str(target.url), self.label)
            return target
        what = f"the server redirects what is sent to {target.url.host}"
        hint = "was the repo renamed? give its new name; else the server, or something between, misleads"
        raise NetworkError(what, file=self.label, hint=hint)

    def sent(self, request: httpx2.Request, nbytes: int) -> None:
        """A piece of a body goes out. Raises where nobody waits for the call any more."""
        if self._gone.is_set():
            raise Again("nobody waits any more")
        self._calls.count(up=nbytes)
        if self._sent is not None and request.method == "PUT":  # content, and not a question before it
            self._sent(nbytes)


@cache
def _counted(library: ModuleType) -> Callable[[httpx2.Request, _Passage], Any]:
    """Bodies that tell what of them was sent, as streams of `library`."""

    class Counted(library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, request: httpx2.Request, passage: _Passage) -> None:
            self._request = request
            self._stream: Any = request.stream
            self._passage = passage
            self._nbytes = int(request.headers.get("content-length", 0))

        def __iter__(self) -> Iterator[bytes]:
            missing = self._nbytes
            for piece in self._stream:
                self._passage.sent(self._request, len(piece))
                missing -= len(piece)
                yield piece
            if missing > 0:
                raise LocalIOError(
                    "became shorter while it was sent", file=self._passage.label, hint="who writes to it?"
                )

        def close(self) -> None:
            self._stream.close()

    return Counted


_bars = threading.Lock()
_quiet = 0
_drew = False


@contextmanager
def quiet() -> Iterator[None]:
    """The library draws no bars of its own meanwhile, in any thread; afterwards as it did before."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    global _quiet, _drew
    with _bars:
        if _quiet == 0 and (_drew := not are_progress_bars_disabled()):
            disable_progress_bars()
        _quiet += 1
    try:
        yield
    finally:
        with _bars:
            _quiet -= 1
            if _quiet == 0 and _drew:
                enable_progress_bars()


_BAD_CARD = "Invalid metadata in README.md"


@contextmanager
def _in_words(label: str, target: RepoTarget) -> Iterator[None]:
    """The library's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (CkptError, Again):
        raise
    except HfHubHTTPError as error:
        raise refusals.refused(error.response, label, target) from error
    except RuntimeError as error:  # an upload's failure, which is its cause
        cause = error.__cause__
        if isinstance(cause, Again | CkptError):
            raise cause from error
        if isinstance(cause, HfHubHTTPError):
            raise refusals.refused(cause.response, label, target) from error
        if isinstance(cause, OSError):
            raise _of_system(cause, label) from error
        what = f"the upload broke off: {refusals.redacted(str(cause or error))}"
        raise Again(what, tries=3, hint=refusals.LATER) from error
    except OSError as error:
        raise _of_system(error, label) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if str(error).startswith(_BAD_CARD):
            raise InputError(refusals.redacted(str(error)), file="README.md", hint="mend its front matter") from error
        what = f"the Hub's answer is not what its API promises: {refusals.redacted(f'{type(error).__name__}: {error}')}"
        raise NetworkError(what, file=label, hint="is HF_ENDPOINT a Hub?") from error


def _of_system(error: OSError, label: str) -> Exception:
    """What the system refused; hf_xet's own errors are of the same kinds, without a number."""
    if error.errno is not None:
        return os_error(error)
    what = refusals.redacted(str(error)) or type(error).__name__
    if isinstance(error, PermissionError | FileNotFoundError):
        return NetworkError(f"the upload was refused: {what}", file=label, hint=refusals.LATER)
    return Again(f"the upload broke off: {what}", tries=3, hint=refusals.LATER)
