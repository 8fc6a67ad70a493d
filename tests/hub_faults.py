"""What may befall a request to the Hub of the tests: each fault takes the call and what would have answered it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from fake_hub import FakeHub


@dataclass(frozen=True)
class Call:
    """One request: the `route` names what it asks for."""

    route: str
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    groups: tuple[str, ...]

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Answer:
    """What is sent back. `cut`: so many bytes of the body, then the connection closes; `hangup`: not even a head.
    With `silent` it does not close there, but nothing more comes."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hangup: bool = False
    silent: bool = False


class Act(Protocol):
    """What answers a call, or another one in its place."""

    def __call__(self, call: Call | None = None) -> Answer: ...


Fault = Callable[[Call, Act], Answer]


@dataclass(frozen=True)
class BrokenOff:
    """The connection is reset once `nbytes` of a request's body have come."""

    nbytes: int

    def __call__(self, call: Call, act: Act) -> Answer:
        return Answer(hangup=True)


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """A refusal; nothing happens."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return lambda call, act: Answer(code, json.dumps({"error": message}).encode(), named)


def reset(call: Call, act: Act) -> Answer:
    """The connection is reset before anything happens."""
    return Answer(hangup=True)


def reply_lost(call: Call, act: Act) -> Answer:
    """All happens, and nobody hears of it."""
    act()
    return Answer(hangup=True)


def then_status(code: int) -> Fault:
    """All happens, and the answer says that it did not."""

    def fault(call: Call, act: Act) -> Answer:
        act()
        return Answer(code, b'{"error": "gateway"}')

    return fault


def late(hub: FakeHub, seconds: float, code: int = 504) -> Fault:
    """A gateway gives up waiting; it happens after that, unless the Hub has ended."""

    def fault(call: Call, act: Act) -> Answer:
        def after() -> None:
            if not hub.over.wait(seconds):
                act()

        thread = threading.Thread(target=after, daemon=True)
        hub.later.append(thread)
        thread.start()
        return Answer(code, b'{"error": "gateway"}')

    return fault


def truncated(n: int) -> Fault:
    """The body ends after `n` bytes, before its end."""
    return lambda call, act: _cut(act(), n)


def _cut(answer: Answer, n: int) -> Answer:
    """`answer` without its end; without its head where it has no body."""
    return replace(answer, cut=min(n, len(answer.body) - 1)) if answer.body else Answer(hangup=True)


def stalled(seconds: float) -> Fault:
    """Nothing for so long, then the answer."""

    def fault(call: Call, act: Act) -> Answer:
        time.sleep(seconds)
        return act()

    return fault


def silent(call: Call, act: Act) -> Answer:
    """Nothing happens, and nothing comes, as long as the client waits."""
    return Answer(hangup=True, silent=True)


def silent_after(n: int) -> Fault:
    """All happens; `n` bytes of the answer's body come, and then nothing, as long as the client waits."""
    return lambda call, act: replace(_cut(act(), n), silent=True)


def wrong_bytes(call: Call, act: Act) -> Answer:
    """A body of the right size, whose middle byte is another."""
    answer = act()
    return replace(answer, body=flipped(answer.body))


def garbled(call: Call, act: Act) -> Answer:
    """What was sent arrives with another byte in its middle."""
    return act(replace(call, body=flipped(call.body)))


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(b ^ 1 for b in data[at : at + 1]) + data[at + 1 :]


def ignored_range(call: Call, act: Act) -> Answer:
    """200 and the whole file, whatever the range."""
    return act(replace(call, headers={k: v for k, v in call.headers.items() if k != "range"}))


def redirected(target: str, code: int = 302) -> Fault:
    """To another address."""
    return lambda call, act: Answer(code, b"", {"Location": target})


def other_host(hub: FakeHub, code: int = 307) -> Fault:
    """To the same path and query at another host, where the same is answered; a redirect from there is not again."""

    def fault(call: Call, act: Act) -> Answer:
        there = f"{hub.elsewhere}{quote(call.path)}?{urlencode(call.query, doseq=True)}".rstrip("?")
        return act() if call.headers["host"] in there else Answer(code, b"", {"Location": there})

    return fault


def page(call: Call, act: Act) -> Answer:
    """What a captive portal answers: 200, and words."""
    return Answer(200, b"<!doctype html><html><body>Welcome to our hotel</body></html>", {"Content-Type": "text/html"})


def said(edit: Callable[[Any], Any]) -> Fault:
    """All happens, and the answer's JSON is what `edit` makes of it."""

    def fault(call: Call, act: Act) -> Answer:
        answer = act()
        return replace(answer, body=json.dumps(edit(json.loads(answer.body))).encode())

    return fault


def moved(hub: FakeHub, name: str, ref: str = "main", path: str = "elsewhere.txt") -> Fault:
    """Somebody else commits to the branch just before."""

    def fault(call: Call, act: Act) -> Answer:
        with hub.lock:
            repo = hub.repos[name]
            repo.commit(ref, {**repo.files(ref), path: b"by another"}, "by another")
        return act()

    return fault


def forgotten(hub: FakeHub, name: str) -> Fault:
    """Just before, the objects that no commit holds are swept away."""

    def fault(call: Call, act: Act) -> Answer:
        with hub.lock:
            hub.repos[name].sweep()
        return act()

    return fault
