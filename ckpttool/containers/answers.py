"""What a remote end's refusal means, and what the user can do: statuses, broken connections, redirects."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from enum import IntEnum
from types import ModuleType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ckpttool.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

LATER: Final = "try again later"
CHANGED: Final = "it was replaced meanwhile; run the command again"
NO_SUPPORT: Final = "the server does not answer ranges as RFC 9110 says; download the file and give it"
COMPRESSED: Final = "does something between compress what is not asked for compressed? download the file and give it"
LOG_IN: Final = "log in with: hf auth login (or set HF_TOKEN)"
PROXY: Final = "look at HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
ONLINE: Final = "unset HF_HUB_OFFLINE, or give a local folder"

TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
GONE: Final = frozenset({401, 403, 404, 410})
"""What a redirect's target answers once its signature has run out."""


class Again(Exception):
    """Failed, and may succeed when tried again: after `wait` seconds where the answer names them.

    `tries` is how many are worth while, where that is fewer than for others.
    """

    def __init__(self, reason: str, wait: float | None = None, *, tries: int = 100, hint: str = LATER) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.tries = tries
        self.hint = hint

    def error(self, label: str, more: str = "") -> NetworkError:
        """The error once it is given up."""
        return NetworkError(f"{self.reason}{more}", file=label, hint=self.hint)


class NotThere(NetworkError):
    """The remote end says that there is no such file, or none for us: stores answer either where they list nothing."""


class Stale(Exception):
    """The address that a redirect led to no longer answers; the first one will say where to go."""


def jittered(pause: float) -> float:
    """`pause`, or up to half of it less, so that parallel requests do not come again all at once."""
    import random

    return pause * random.uniform(0.5, 1)


def refusal(
    status: int, headers: Mapping[str, str], label: str, *, repo_url: str | None = None, logged_in: bool = False
) -> Exception:
    """The error of an answer with `status`: `Again` where it may pass, else a NetworkError.

    `repo_url` is the page of the Hub repo, where it is one; `logged_in` whether a token was sent.
    """
    if status in TRANSIENT:
        return Again(f"the server answers {status}{_WORDS.get(status, '')}", wait(status, headers))
    if headers.get("x-error-code", "") == "GatedRepo" and repo_url:
        hint = f"accept its terms at {repo_url}" + ("" if logged_in else f", then {LOG_IN}")
        return NetworkError("the repo is gated", file=label, hint=hint)
    if status in (401, 403):
        hint = "give a URL that may be read without logging in, or download the file"
        if repo_url:
            hint = f"may your token read {repo_url}?" if logged_in else LOG_IN
        return NotThere(f"the server refuses access ({status})", file=label, hint=hint)
    if status == 407:
        return NetworkError("the proxy wants another user or password (407)", file=label, hint=PROXY)
    if status in (404, 410):
        return NotThere(f"there is no such file ({status})", file=label, hint="check the name")
    return NetworkError(f"the server answers {status}", file=label, hint="check the URL")


_WORDS: Final = {429: ", too many requests", 503: ", unavailable"}


def wait(status: int, headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer asks to wait: by Retry-After, in seconds or as a date, or by the Hub's RateLimit."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said[:12])
    if said and (date := _date(said)) is not None:
        return max(0.0, date - time.time())
    if status != 429:
        return None
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and not limit.remaining else None


def _date(text: str) -> float | None:
    import email.utils

    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


@contextlib.contextmanager
def translated(library: ModuleType, label: str) -> Iterator[None]:
    """The HTTP library's errors as ours; `library` is httpx2 or httpx."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise NetworkError("is remote, and HF_HUB_OFFLINE is set", file=label, hint=ONLINE) from error
    except library.LocalProtocolError:
        raise _bad_header(label) from None
    except (library.InvalidURL, library.UnsupportedProtocol, UnicodeError) as error:
        if getattr(error, "encoding", "") == "ascii":  # a header; what is wrong with a host's name is of "idna"
            raise _bad_header(label) from None
        raise UsageError(f"is no URL that can be asked: {error}", file=label, hint="check the URL") from error
    except (library.ConnectError, library.ConnectTimeout) as error:
        tls = "CERTIFICATE" in str(error).upper()
        hint = "set SSL_CERT_FILE if the certificate is your own" if tls else "check the name and the network"
        raise Again(f"cannot connect to {error.request.url.host}: {error}", tries=1 if tls else 2, hint=hint) from error
    except library.ProxyError as error:
        raise Again(f"the proxy refuses: {error}", tries=2, hint=PROXY) from error
    except library.TimeoutException as error:
        raise Again("does not answer in time") from error
    except library.RemoteProtocolError as error:
        raise Again(f"its answer breaks off, or is no HTTP: {error!s:.120}") from error
    except library.TransportError as error:
        raise Again(f"the connection broke off: {str(error) or type(error).__name__}") from error
    except library.RequestError as error:  # redirects without end, a body that is not compressed as it says
        raise NetworkError(f"the server misbehaves: {error}", file=label, hint="is it the right URL?") from error


def _bad_header(label: str) -> UsageError:
    """The library's own error quotes it, and it may be the token."""
    what = "the request cannot be made: a header of it holds what none may hold"
    return UsageError(what, file=label, hint="is HF_TOKEN, or the password in the URL, what it should be?")


class Reach(IntEnum):
    """From how far away an address can be reached."""

    LINK = 0  # where clouds keep their credentials
    MACHINE = 1
    PRIVATE = 2
    PUBLIC = 3


def refuse_redirect(origin: str, target: str, label: str) -> None:
    """NetworkError for a redirect that leaves HTTPS, or that leads further inside than `origin` lies.

    From the public network none leads into a private one, from there none to this machine, and from nowhere one to a
    link-local address. A name is resolved here and once more by the client; where it cannot be resolved (behind a
    proxy), the proxy decides.
    """
    start, end = urlsplit(origin), urlsplit(target)
    hint = "the server, or something between, misleads; download the file by other means"
    if end.scheme not in ("https", start.scheme):
        raise NetworkError(f"redirects from {start.scheme} to {end.scheme}", file=label, hint=hint)
    if end.hostname == start.hostname:
        return
    try:
        found = [_reach(a) for a in _addresses(end.hostname)]
    except UnicodeError as error:
        what = f"redirects to {end.hostname}, which no host can be called"
        raise NetworkError(what, file=label, hint=hint) from error
    lies = max((_reach(a) for a in _addresses(start.hostname)), default=Reach.PUBLIC)
    if found and min(found) < max(lies, Reach.MACHINE):
        raise NetworkError(f"redirects to {end.hostname}, a private address", file=label, hint=hint)


def _reach(address: IPv4Address | IPv6Address) -> Reach:
    """That of an address, or of the IPv4 address that it carries."""
    from ipaddress import IPv4Address, IPv6Address, IPv6Network

    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped or address.sixtofour
        if address in IPv6Network("64:ff9b::/96"):  # what NAT64 translates
            mapped = IPv4Address(int(address) & 0xFFFF_FFFF)
        address = mapped or address
    if address.is_link_local:
        return Reach.LINK
    if address.is_loopback or address.is_unspecified:
        return Reach.MACHINE
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def _addresses(host: str | None) -> list[IPv4Address | IPv6Address]:
    import ipaddress
    import socket

    try:
        return [ipaddress.ip_address(host or "")]
    except ValueError:
        pass
    try:
        return [ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in socket.getaddrinfo(host, None)]
    except OSError:
        return []
