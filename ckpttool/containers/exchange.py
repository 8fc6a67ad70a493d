"""One GET: its redirects followed one by one, each looked at; and all of a document by it, of bounded size.

The client is huggingface_hub's (httpx2, httpx before its 2.0): connection pool, proxies, certificates, HF_HUB_OFFLINE
and whatever factory the user has set are its own. It would follow redirects anywhere, so they are followed here; it
makes the next request, and strips the token from it where the host changes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import Cookie, DefaultCookiePolicy
from types import ModuleType
from typing import TYPE_CHECKING, Final

from ckpttool.containers import answers, limits, patience
from ckpttool.containers.answers import Again
from ckpttool.containers.patience import retried
from ckpttool.errors import LimitError, NetworkError, UsageError, first_line

if TYPE_CHECKING:
    from urllib.request import Request

    import httpx2

REDIRECTS: Final = 3


@dataclass
class Hop:
    """Where bytes are asked for: a given URL, or what it redirected to; `headers` are fit for there."""

    url: str
    headers: dict[str, str]


@contextlib.contextmanager
def answered(
    hop: Hop, origin: str, more: Mapping[str, str], label: str, look: Callable[[httpx2.Response], None]
) -> Iterator[tuple[httpx2.Response, Hop]]:
    """The last answer to a GET at `hop`, its body not yet read, and where it came from.

    `origin` is the URL that was given, from which no redirect may lead further inside than it lies; `more` headers go
    everywhere; every answer on the way is given to `look`.

    Raises:
        Again: the connection failed, which may pass.
        NetworkError: too many redirects, or one that is refused.
        UsageError: no such URL, or the client cannot be set up.
    """
    library, client = session()
    with answers.translated(library, label), _without_cookies(client):
        for _ in range(REDIRECTS + 1):
            wait = library.Timeout(patience.PATIENCE.read, connect=patience.PATIENCE.connect)
            headers = hop.headers | {"Accept-Encoding": "identity"} | dict(more)
            request = client.build_request("GET", hop.url, headers=headers, timeout=wait)
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                look(response)
                if response.next_request is None:
                    yield response, hop
                    return
                answers.refuse_redirect(origin, str(response.next_request.url), label)
                hop = Hop(str(response.next_request.url), _kept(response.next_request.headers))
                _drain(response)
            finally:
                response.close()
    raise NetworkError(f"more than {REDIRECTS} redirects", file=label, hint="give the URL that they lead to")


class _NoCookies(DefaultCookiePolicy):
    """Of what is asked here none are kept: a server would have us send, and hold, as many as it likes."""

    def set_ok(self, cookie: Cookie, request: Request) -> bool:
        return not _asking.get() and super().set_ok(cookie, request)


_asking: ContextVar[bool] = ContextVar("_asking", default=False)


@contextlib.contextmanager
def _without_cookies(client: httpx2.Client) -> Iterator[None]:
    """Those that a user's own factory has given the client are sent as they were."""
    if not isinstance(client.cookies.jar._policy, _NoCookies):  # type: ignore[attr-defined]
        client.cookies.jar.set_policy(_NoCookies())
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def document(
    url: str, headers: Mapping[str, str], label: str, limit: int, refused: Callable[[httpx2.Response], Exception]
) -> bytes:
    """All that lies at `url`, tried as often as `patience` has it; `headers` (a token) go to its host alone.

    Raises:
        LimitError: more than `limit` bytes.
        Exception: what `refused` makes of another status than 200.
        NetworkError, UsageError: as for `answered`.
    """
    origin = Hop(url, dict(headers))

    def ask(gone: threading.Event) -> bytes:
        with answered(origin, url, {}, label, lambda response: None) as (response, _):
            if response.status_code != 200:
                raise refused(response)
            refuse_coding(response, label)
            out = bytearray()
            for chunk in response.iter_raw():
                if gone.is_set():
                    raise Again("nobody waits any more")
                out += chunk
                if len(out) > limit:
                    what = f"the answer has more than the {limit:,} bytes that are read of it"
                    raise LimitError(what, file=label, hint=limits.hint(limit, "is it really the Hub?"))
            return bytes(out)

    return retried(ask, label)


def refuse_coding(response: httpx2.Response, label: str) -> None:
    """NetworkError for a compressed body: none is asked for, and a small one may become any size."""
    if (coding := response.headers.get("content-encoding", "identity")) != "identity":
        what = f"the answer is compressed ({coding}), though that was not asked for"
        raise NetworkError(what, file=label, hint=answers.COMPRESSED)


def _drain(response: httpx2.Response) -> None:
    """Read the few words of a redirect, so that its connection can be used again."""
    taken = 0
    for chunk in response.iter_raw():
        taken += len(chunk)
        if taken > 64 * limits.KIB:
            return


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a request's headers those that are ours: the client adds its own anew."""
    return {k: v for k, v in headers.items() if k.lower() in ("authorization", "user-agent")}


def session() -> tuple[ModuleType, httpx2.Client]:
    """huggingface_hub's client, which threads share, and the library that it is of, under either of its names.

    Raises:
        UsageError: it cannot be set up, by the environment's fault: a proxy that is no URL, no such certificates.
    """
    from huggingface_hub import get_session

    try:
        client = get_session()
    except Exception as error:  # whatever a factory raises
        from urllib.request import getproxies_environment

        secret = any("@" in url for url in getproxies_environment().values())
        why = type(error).__name__ if secret else f"{type(error).__name__}: {first_line(error)}"
        names = [n for n in sorted(os.environ) if n.upper() in _SETTINGS]
        hint = f"look at {', '.join(names)}" if names else "look at what set_client_factory was given"
        raise UsageError(f"the HTTP client cannot be set up: {why}", hint=hint) from error
    name = next(m for c in type(client).__mro__ if (m := c.__module__.partition(".")[0]) in ("httpx2", "httpx"))
    return importlib.import_module(name), client


_SETTINGS: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
