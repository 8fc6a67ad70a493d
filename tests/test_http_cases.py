"""HT01 to HT42: what servers do to those who read, each through the commands to its end.

Whatever a server does, `inspect` and `convert` end in time with the right bytes, or with one clear error and the right
exit code; they take no more than was asked for, leave no target behind, and show the token to nobody but the endpoint.
`ELSEWHERE` says which tests of other modules prove a case, or a part of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import range_server as web
import rude_servers as rude
from commandline import Result, run
from crash_runs import tree
from range_server import Repo
from rude_servers import BOMB
from test_remote import safetensors_file

from ckpttool import open_checkpoint, steps, threads
from ckpttool.containers import answers, limits, patience
from ckpttool.containers.patience import Patience
from ckpttool.errors import NetworkError

pytestmark = pytest.mark.usefixtures("hasty")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
HF = FIXTURES / "hf"
GGUF = FIXTURES / "gguf" / "tiny-gpt-oss-auto.gguf"
SHARD = "model-00001-of-00002.safetensors"
LIST = "/api/models/org/hf"
TOKEN = "hf_" + "secret" * 6
MIB = 1 << 20

ELSEWHERE = {
    "HT01": "test_remote: test_a_large_one_may_not",
    "HT02": "test_remote: test_answers_that_contradict_the_request",
    "HT03": "test_remote: test_more_than_asked_for",
    "HT04": "test_remote: test_a_body_that_breaks_off_goes_on_where_it_did",
    "HT08": "test_remote: test_a_file_that_changes_its_size_between_ranges",
    "HT09": "test_remote: test_a_file_that_changes_between_ranges",
    "HT10": "test_hub: test_a_branch_that_moves",
    "HT11": "test_hub: test_a_shard_of_another_size",
    "HT13": "test_remote: test_a_slow_drip_ends",
    "HT14": "test_remote: test_a_stall_ends",
    "HT16": "test_convert_remote: test_what_may_pass_is_tried_again",
    "HT18": "test_remote: test_a_wait_that_is_too_long_is_refused",
    "HT19": "test_remote: test_the_waits_that_answers_ask_for",
    "HT21": "test_hub: test_files_on_another_host",
    "HT22": "test_remote: test_the_public_network_does_not_lead_into_a_private_one",
    "HT24": "test_remote: test_redirects_without_end",
    "HT25": "test_publishing: test_what_is_sent_is_not_redirected, test_places_that_nothing_is_sent_to",
    "HT26": "test_hub: test_a_gated_repo, test_a_gated_list",
    "HT27": "test_hub: test_a_shard_that_the_index_names_is_gone, test_a_shard_that_the_list_names_is_gone",
    "HT28": "test_remote: test_files_that_are_something_else",
    "HT29": "test_remote: test_files_that_are_something_else",
    "HT30": "test_hub: test_side_files_have_limits",
    "HT31": "test_hub: test_more_files_than_are_asked_for",
    "HT32": "test_hub: test_an_index_may_not_leave_its_repo",
    "HT34": "test_remote: test_a_header_bomb",
    "HT40": "test_remote: test_a_safetensors_header_takes_one_request_or_two",
    "HT41": "test_remote: test_a_gguf_header_that_never_ends_is_given_up",
    "HT42": "test_convert_remote: test_a_file_that_changes_meanwhile, test_another_content_is_not_gone_on_with",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    """A server that huggingface_hub takes for the Hub, and a token for it."""
    with web.as_hub(monkeypatch) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def tiny(hub: web.Server) -> Repo:
    return Repo(hub, "org/hf", web.folder_files(HF)).publish()


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set once the test is over, so that no server goes on."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What converting the local files gives."""
    target = tmp_path_factory.mktemp("here") / "out"
    assert run("convert", HF, target, "--to", "bf16", "--device", "cpu", "--json").code == 0
    return tree(target.parent)


# Doors: where a reader meets a server


@dataclass(frozen=True)
class Met:
    """How a command ended, and what it asked of the server that misbehaved."""

    done: Result
    asked: list[web.Asked]

    @property
    def said(self) -> str:
        """The one error that it ended with."""
        (error,) = self.done.document["errors"]
        assert error["hint"]
        return f"{error['message']}; {error['hint']}"


def met(server: web.Server, path: str, *argv: str | Path) -> Met:
    """Run the command; assert what holds whatever is done at `path`."""
    begun = time.monotonic()
    done = run(*argv, "--json")
    assert time.monotonic() - begun < 60
    assert TOKEN not in done.out + done.err
    assert "Traceback" not in done.err
    assert not re.search("[^\n -~\xa0-\u2029\u202f-\uffff]", done.out + done.err)
    if done.code:
        (error,) = done.document["errors"]
        assert len(json.dumps(error)) < 2048
    return Met(done, server.asked(path))


def at_url(tiny: Repo, fault: web.Fault, tmp_path: Path) -> Met:
    """The first range of a file at a plain URL, of which nothing is known. No token goes there."""
    with web.serving({"/x.gguf": GGUF}) as server:
        server.always |= {"/x.gguf": fault, "/loop": web.redirect("/loop")}
        found = met(server, "/x.gguf", "inspect", server.url("/x.gguf"))
        assert not [r for r in server.log if "authorization" in r.headers]
    return found


def at_shard(tiny: Repo, fault: web.Fault, tmp_path: Path) -> Met:
    """The first range of a repo's shard, whose size and commit the list has told."""
    tiny.server.always[tiny.path(SHARD)] = fault
    return met(tiny.server, tiny.path(SHARD), "inspect", "org/hf")


def at_slab(tiny: Repo, fault: web.Fault, tmp_path: Path) -> Met:
    """A range of the same shard after its header was read, in the middle of a conversion."""
    tiny.server.always[tiny.path(SHARD)] = rude.after(1, fault)
    argv = ("convert", "org/hf", tmp_path / "out", "--to", "bf16", "--device", "cpu")
    found = met(tiny.server, tiny.path(SHARD), *argv)
    assert found.done.code == 0 or not (tmp_path / "out").exists()
    return found


def at_list(tiny: Repo, fault: web.Fault, tmp_path: Path) -> Met:
    """The Hub's list of a repo's files."""
    del tiny.server.routes[LIST]
    tiny.server.always[LIST] = fault
    return met(tiny.server, LIST, "inspect", "hf://org/hf")


Door = Callable[[Repo, web.Fault, Path], Met]
RANGES: tuple[Door, ...] = (at_url, at_shard, at_slab)
LATER: tuple[Door, ...] = (at_shard, at_slab)
ALL: tuple[Door, ...] = (*RANGES, at_list)


# What ends in an error


@dataclass(frozen=True)
class Case:
    """What a server does for ever, what the one error says, and how often it is asked at most."""

    fault: web.Fault
    says: str
    doors: tuple[Door, ...] = RANGES
    asked: int = 1
    code: int = 5
    bomb: bool = False


TOO_LONG = "the answer has more than the 16,777,216 bytes that are read of it"
IGNORES = "the server ignores ranges and would send the whole file; download it"
BROKE = "its answer breaks off, or is no HTTP: "
SMALL = {"Content_Range": "bytes 0-9/10"}
HTML = b"<!DOCTYPE html><html><title>Sign in</title>" + b" " * 4000

CASES = {
    "HT01-range ignored, 10 GB": Case(rude.endless(length=10_000_000_000), IGNORES, bomb=True),
    "HT01-a list of 10 GB": Case(rude.endless(length=10_000_000_000), TOO_LONG, (at_list,), 1, 6, bomb=True),
    "HT02-another start": Case(rude.moved(1), "were asked for", RANGES),
    "HT02-another end": Case(web.with_headers(Content_Range="bytes 0-98/3989824"), "to 98 came", (at_url,)),
    "HT02-another total": Case(rude.moved(0, of=1), "the remote file changed: has 924,481 bytes, not 924,480", LATER),
    "HT02-no total": Case(web.with_headers(Content_Range="bytes 0-99/*"), "Content-Range is 'bytes 0-99/*'"),
    "HT02-none": Case(web.with_headers(Content_Range=""), "the answer has no Content-Range"),
    "HT02-negative": Case(web.with_headers(Content_Range="bytes -5-99/100"), "Content-Range is"),
    "HT03-one byte more": Case(rude.longer(1), "sends more than the"),
    "HT03-without end": Case(rude.endless(206, length=10_000_000_000, ranged=True), "sends more than the", bomb=True),
    "HT04-always shorter": Case(web.cut(3), BROKE, RANGES, 5),
    "HT04-a shorter list": Case(rude.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9", b"{"), BROKE, (at_list,), 5),
    "HT04-nothing": Case(web.cut(0), BROKE, RANGES, 5),
    "HT05-gzip bomb": Case(rude.answer(200, BOMB, Content_Encoding="gzip"), "is compressed (gzip)", ALL, bomb=True),
    "HT05-ranged": Case(rude.headers(b"Content-Encoding: gzip"), "is compressed (gzip)"),
    "HT06-deflate": Case(rude.headers(b"Content-Encoding: deflate"), "is compressed (deflate)"),
    "HT06-br": Case(rude.headers(b"Content-Encoding: br"), "is compressed (br)"),
    "HT06-zstd": Case(rude.headers(b"Content-Encoding: zstd"), "is compressed (zstd)"),
    "HT06-twice": Case(rude.headers(b"Content-Encoding: identity, gzip"), "is compressed (identity, gzip)"),
    "HT07-multipart": Case(
        rude.answer(206, b"--x\r\n\r\nGG\r\n--x--", Content_Type="multipart/byteranges; boundary=x"),
        "the answer has no Content-Range",
    ),
    "HT08-416 inside": Case(rude.answer(416, b"", Content_Range="bytes */3989824"), "refuses a range inside the file"),
    "HT08-416 of an empty file": Case(rude.answer(416, b"", Content_Range="bytes */0"), "(416)", LATER),
    "HT09-etag": Case(rude.headers(etag=b'"v2"'), 'its etag is "v2", at first it was "v1"', (at_slab,)),
    "HT09-no etag any more": Case(rude.headers(etag=b""), "its etag is None", (at_slab,)),
    "HT09-another sha256": Case(
        rude.headers(b'X-Linked-Etag: "' + b"f" * 64 + b'"'), "its sha256 is ffffffffffff…", LATER
    ),
    "HT10-commit": Case(web.with_headers(X_Repo_Commit="f" * 40), "is of commit ffffffffffff, not 0123456789ab", LATER),
    "HT11-another size": Case(web.with_headers(**SMALL), "has 10 bytes, not 924,480", LATER),
    "HT12-chunks without end": Case(rude.endless(), IGNORES, bomb=True),
    "HT12-a range in chunks without end": Case(rude.endless(206, ranged=True), "sends more than the", bomb=True),
    "HT12-a list without end": Case(rude.endless(), TOO_LONG, (at_list,), 1, 6, bomb=True),
    "HT16-500 for ever": Case(web.status(500), "the server answers 500, 5 times", ALL, 5),
    "HT16-503 for ever": Case(web.status(503), "the server answers 503, unavailable, 5 times", ALL, 5),
    "HT18-too long": Case(web.status(429, Retry_After="1000000000"), "and asks to wait 1000000000 s", ALL),
    "HT18-much too long": Case(web.status(503, Retry_After="9" * 400), "and asks to wait", ALL),
    "HT18-until 2099": Case(web.status(503, Retry_After="Thu, 31 Dec 2099 23:59:59 GMT"), "and asks to wait", ALL),
    "HT20-a window of years": Case(web.status(429, RateLimit='"api";r=0;t=99999999'), "and asks to wait", ALL),
    "HT22-metadata": Case(web.redirect("http://169.254.169.254/latest"), "a private address", ALL),
    "HT22-metadata by IPv6": Case(web.redirect("http://[::ffff:169.254.169.254]/"), "a private address", ALL),
    "HT22-metadata through NAT64": Case(web.redirect("http://[64:ff9b::a9fe:a9fe]/"), "a private address", ALL),
    "HT22-metadata as a number": Case(web.redirect("http://2852039166/"), "a private address", ALL),
    "HT22-link-local": Case(web.redirect("http://[fe80::1%25eth0]/"), "a private address", ALL),
    "HT22-a file": Case(web.redirect("file:///etc/passwd"), "redirects from http to file", ALL),
    "HT22-gopher": Case(web.redirect("gopher://127.0.0.1/x"), "redirects from http to gopher", ALL),
    "HT24-a loop": Case(web.redirect("/loop"), "more than 3 redirects", ALL, 1),
    "HT26-401": Case(web.status(401), "the server refuses access (401)"),
    "HT26-403": Case(web.status(403), "the server refuses access (403)", ALL),
    "HT26-gated": Case(web.status(403, X_Error_Code="GatedRepo"), "the repo is gated; accept its terms at http", LATER),
    "HT27-gone": Case(web.status(404), "there is no such file (404)"),
    "HT28-a web page": Case(rude.answer(200, HTML, Content_Type="text/html"), "this is a web page", (at_url,), 1, 3),
    "HT28-in place of a shard": Case(rude.answer(200, HTML), "has 4,043 bytes, not 924,480", (at_shard,)),
    "HT28-in place of the list": Case(rude.answer(200, HTML), "is HF_ENDPOINT a Hub?", (at_list,)),
    "HT34-1 MB of head": Case(rude.headers(b"X-Bomb: " + b"x" * 1_000_000), BROKE, ALL, 5),
    "HT34-10,000 cookies": Case(
        rude.headers(*(b"Set-Cookie: c%d=%d" % (n, n) for n in range(10_000))), BROKE, ALL, 5
    ),
    "HT34-a line without end": Case(rude.raw(b"HTTP/1.1 206 " + b"x" * 1_000_000), BROKE, ALL, 5),
    "HT35-etag": Case(rude.headers(etag=b"\xff\xfe"), "its etag is", (at_slab,)),
    "HT35-range": Case(rude.headers(b"Content-Range: bytes \xff-9/10"), "the answer's Content-Range is"),
    "HT35-commit": Case(rude.headers(b"X-Repo-Commit: \xff\xfe\xe2\x80\xae"), "is of commit", LATER),
    "HT35-coding": Case(rude.headers(b"Content-Encoding: \xe2\x80\xae\xff"), "is compressed", RANGES),
    "HT35-place": Case(rude.raw(b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\xff"), "cannot connect to", ALL, 2),
    "HT35-a control character": Case(rude.headers(etag=b"\x1b[31m"), "its etag is \x1b[31m", (at_slab,)),
    "HT35-no head at all": Case(rude.raw(b"\xff\xfe\x00" * 100), BROKE, ALL, 5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "door"),
    [pytest.param(c, d, id=f"{name}-{d.__name__}") for name, c in CASES.items() for d in c.doors],
)
def test_one_clear_error(case: Case, door: Door, tiny: Repo, tmp_path: Path) -> None:
    tiny.server.always["/loop"] = web.redirect("/loop")
    with traced() if case.bomb and door is not at_slab else contextlib.nullcontext():
        found = door(tiny, case.fault, tmp_path)
    assert found.done.code == case.code, found.done.out
    assert case.says in found.said
    threads = limits.REMOTE_PARALLEL if door is at_slab else 1
    assert len(found.asked) <= case.asked * threads + (door is at_slab)
    most = 24 if door is at_list else 8 * threads
    assert sum(r.sent for r in found.asked) < most * MIB  # what lies in sockets' buffers counts as sent


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """What Python allocates in the block stays far below what a bomb would take."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


SLOW = {"HT13-body": web.drip, "HT13-head": web.drip_head}
SILENT = {"HT14-after the head": rude.halted, "HT14-before it": web.stall}
TRICKLES = {"HT13-body": rude.trickle, "HT14-after the head": rude.trickle}
"""What a list does in place of a range."""


@pytest.mark.parametrize("door", ALL)
@pytest.mark.parametrize("way", [*SLOW, *SILENT])
def test_a_server_without_end(
    way: str, door: Door, tiny: Repo, over: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that sends a byte now and then nor one that sends none is waited for."""
    slow = way in SLOW or door is at_list
    hurry = Patience(total=0.7, slowest=1e9, pauses=()) if slow else Patience(read=0.2, pauses=(0,))
    monkeypatch.setattr(patience, "PATIENCE", hurry)
    fault = (SLOW | SILENT)[way] if door is not at_list else TRICKLES.get(way, web.drip_head)
    found = door(tiny, fault(over), tmp_path)
    assert found.done.code == 5
    assert ("too slow: no whole answer in time" if slow else "does not answer in time, 2 times") in found.said


# What ends well


RESETS = [fault for k in range(64) for fault in (rude.reset(k), None)]
PASSES: dict[str, list[web.Fault | None]] = {
    "HT04-shorter": [web.cut(1000), web.cut(1), None] * 4,
    "HT15-reset at each byte": RESETS,
    "HT16-5xx": [web.status(code) for code in (500, 502, 503, 504, 408)] + [None],
    "HT19-a date": [web.status(429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), None],
    "HT19-a negative one": [web.status(429, Retry_After="-5"), None],
    "HT19-garbage": [web.status(503, Retry_After="soon\tor \xff never"), web.status(503, Retry_After=""), None],
    "HT20-garbage": [web.status(429, RateLimit="\xff;r=0;t=x", RateLimit_Policy='"x";q=;w=', Retry_After="x"), None],
    "HT34-60 kB of head": [rude.headers(b"X-Bomb: " + b"x" * 60_000)],
    "HT34-1,000 cookies": [rude.headers(*(b"Set-Cookie: c%d=%d" % (n, n) for n in range(1000)))],
    "HT35-headers that are no text": [rude.headers(b"X-Any: \xff\xfe", b"Server: \xe2\x80\xae")],
    "HT39-a name to write to": [rude.headers(b'Content-Disposition: attachment; filename="../../evil"')] * 3,
}


@pytest.mark.parametrize("name", PASSES)
def test_what_passes(
    name: str, tiny: Repo, here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as from the disk, whatever befalls the first requests for each file, and nothing beside them."""
    monkeypatch.setattr(patience, "PATIENCE", Patience(pauses=(0,) * 200))
    monkeypatch.setattr(steps, "SLAB_NBYTES", 2_000 if name.startswith("HT15") else steps.SLAB_NBYTES)
    tiny.server.faults = {tiny.path(n): list(PASSES[name]) for n in tiny.files}
    if name[:4] in ("HT16", "HT19", "HT20"):  # refusals
        tiny.server.faults[LIST] = list(PASSES[name])
    done = run("convert", "org/hf", tmp_path / "target" / "out", "--to", "bf16", "--device", "cpu", "--json")
    assert done.code == 0, done.out
    assert tree(tmp_path / "target") == here
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert not any(tiny.server.faults[tiny.path(n)] for n in tiny.files if n.endswith(".safetensors"))


def test_ht34_no_cookie_is_kept(tiny: Repo) -> None:
    """But those of the user's own client, which they may need."""
    from huggingface_hub import get_session

    get_session().cookies.set("mine", "1", domain="127.0.0.1")
    try:
        tiny.server.headers["Set-Cookie"] = "theirs=1"
        assert run("inspect", "org/hf", "--json").code == 0
        assert {r.headers.get("cookie") for r in tiny.server.log} == {"mine=1"}
        assert [c.name for c in get_session().cookies.jar] == ["mine"]
    finally:
        get_session().cookies.clear()


def test_ht17_a_wait_that_is_asked_for(tiny: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept, in place of the pause that would have been, by the list as by a range."""
    slept: list[float] = []
    monkeypatch.setattr(threads, "pause", slept.append)
    tiny.server.faults = {path: [web.status(429, Retry_After="2")] for path in (LIST, tiny.path(SHARD))}
    tiny.server.faults[tiny.path("config.json")] = [web.status(429, RateLimit='"resolvers";r=0;t=300')]
    assert run("inspect", "org/hf", "--json").code == 0
    assert slept == [2, 2, 300]


# Other networks, names and certificates


@pytest.fixture
def client() -> Iterator[None]:
    """A client of huggingface_hub's that sees this test's environment, and none after it does."""
    from huggingface_hub import close_session

    close_session()
    yield
    close_session()


Names = Callable[..., None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Let names stand for these addresses, tried in this order; one without an address is not known."""

    def stand(**known: list[str]) -> None:
        asked = socket.getaddrinfo

        def lookup(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            if name not in known:
                return asked(host, port, *rest, **options)
            if not known[name]:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [row for address in known[name] for row in asked(address, port, *rest, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)

    return stand


@pytest.fixture
def proxy(client: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    """A proxy to whatever host is named, which serves all of them itself."""
    with web.serving({"/x.gguf": GGUF}) as server:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, server.root)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        yield server


INSIDE = [
    "127.0.0.1",
    "localhost",
    "[::1]",
    "0.0.0.0",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "[fd00::1]",
    "intranet",
]
PUBLIC = "http://public.example/x.gguf"


@pytest.mark.parametrize("door", ["url", "list"])
@pytest.mark.parametrize("host", INSIDE)
def test_ht22_the_public_network_leads_to_no_private_host(
    host: str, door: str, proxy: web.Server, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(**{"public.example": ["18.64.1.1"], "intranet": ["18.64.1.2", "10.1.2.3"]})
    proxy.always = {path: web.redirect(f"http://{host}/secret") for path in ("/x.gguf", LIST)}
    if door == "list":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://public.example")
    path, source = ("/x.gguf", PUBLIC) if door == "url" else (LIST, "hf://org/hf")
    found = met(proxy, path, "inspect", source)
    assert found.done.code == 5
    assert f"redirects to {host.strip('[]')}, a private address" in found.said
    assert len(proxy.log) == 1


@pytest.mark.parametrize(
    ("origin", "target", "goes"),
    [
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "10.0.0.1", True),
        ("127.0.0.1", "18.64.1.1", True),
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "18.64.1.1", True),
        ("10.0.0.1", "127.0.0.1", False),
        ("10.0.0.1", "169.254.169.254", False),
        ("169.254.169.254", "169.254.169.253", False),
        ("18.64.1.1", "18.64.1.2", True),
        ("18.64.1.1", "[2002:a00:1::]", False),
    ],
)
def test_ht22_no_redirect_leads_further_inside(origin: str, target: str, goes: bool) -> None:
    with contextlib.nullcontext() if goes else pytest.raises(NetworkError, match="a private address"):
        answers.refuse_redirect(f"http://{origin}/", f"http://{target}/", "x")


def test_ht22_an_origin_of_two_networks_is_the_outer_one(names: Names) -> None:
    names(**{"both.example": ["10.0.0.1", "18.64.1.1"]})
    with pytest.raises(NetworkError, match="a private address"):
        answers.refuse_redirect("http://both.example/", "http://10.0.0.2/", "x")


def test_ht21_from_one_public_host_to_another(proxy: web.Server, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the list, by a file, and back: the token is seen by the endpoint alone."""
    names(**{"public.example": ["18.64.1.1"], "store.example": ["18.64.1.2"]})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://public.example")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://public.example/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repo = Repo(proxy, "org/hf", web.folder_files(HF)).publish()
    proxy.routes["/moved"] = proxy.routes[LIST]
    proxy.always[LIST] = web.redirect("http://store.example/moved", 307)
    for name, content in repo.files.items():
        proxy.files[f"/store/{name}"] = content
        proxy.always[repo.path(name)] = web.redirect(f"http://store.example/store/{name}")
    assert met(proxy, LIST, "inspect", "org/hf").done.code == 0
    hosts = {r.headers["host"]: r.headers.get("authorization") for r in proxy.log}
    assert hosts == {"public.example": f"Bearer {TOKEN}", "store.example": None}


@pytest.fixture
def tls(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A certificate for a host of this name."""

    def make(name: str) -> Path:
        path = rude.certificate(tmp_path_factory.mktemp("tls"), name)
        if path is None:
            pytest.skip("no openssl here to make a certificate with")
        return path

    return make


def test_ht23_from_https_to_http(
    client: None, tls: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, hub: web.Server
) -> None:
    """Neither by a list nor by a file, not on the same host either."""
    pem = tls("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with rude.serving_tls({"/x.gguf": GGUF}, pem) as server:
        root = f"https://localhost:{server.server_address[1]}"
        assert met(server, "/x.gguf", "inspect", f"{root}/x.gguf").done.code == 0
        for target in (hub.root, hub.root.replace("127.0.0.1", "localhost")):
            server.always = {path: web.redirect(f"{target}/x") for path in ("/x.gguf", LIST)}
            for path, source in (("/x.gguf", f"{root}/x.gguf"), (LIST, "hf://org/hf")):
                monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", root if path == LIST else hub.root)
                found = met(server, path, "inspect", source)
                assert found.done.code == 5
                assert "redirects from https to http" in found.said
    assert hub.log == []


@pytest.mark.parametrize(("name", "trusted"), [("localhost", False), ("other.example", True)])
def test_ht33_a_certificate_that_does_not_hold(
    name: str, trusted: bool, client: None, tls: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that nobody vouches for, and one of another host. Nothing is asked, and there is no way round."""
    pem = tls(name)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with rude.serving_tls({"/x.gguf": GGUF}, pem) as server:
        root = f"https://localhost:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        for source, endpoint in ((f"{root}/x.gguf", "https://huggingface.co"), ("hf://org/hf", root)):
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
            found = met(server, "/x.gguf", "inspect", source)
            assert found.done.code == 5
            assert "CERTIFICATE_VERIFY_FAILED" in found.said.upper()
            assert "set SSL_CERT_FILE if the certificate is your own" in found.said
        assert server.log == []


def test_ht36_the_first_of_two_addresses_is_a_black_hole(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", Patience(connect=0.3))
    names(**{"two.example": ["::1", "127.0.0.1"]})
    with web.serving({"/x.gguf": GGUF}) as server, rude.black_hole(server.server_address[1]):
        begun = time.monotonic()
        found = met(server, "/x.gguf", "inspect", f"http://two.example:{server.server_address[1]}/x.gguf")
        assert found.done.code == 0, found.done.out
        assert time.monotonic() - begun > 0.3
        assert len(found.asked) == 1


def test_ht37_a_name_that_nobody_knows(names: Names, tiny: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    names(**{"nowhere.example": []})
    found = met(tiny.server, "", "inspect", "https://nowhere.example/x.gguf")
    assert found.done.code == 5
    assert found.said.startswith("cannot connect to nowhere.example: ")
    assert "check the name and the network" in found.said
    found = at_shard(tiny, web.redirect("https://nowhere.example/x"), Path())
    assert "cannot connect to nowhere.example: " in found.said
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://nowhere.example")
    assert "cannot connect to nowhere.example: " in met(tiny.server, "", "inspect", "hf://org/hf").said


# Proxies


SECRET = "s3cret"


@pytest.fixture
def closed(proxy: web.Server, names: Names) -> Callable[[str], Met]:
    """How asking a URL by way of the proxy, which wants a password, ends. Nobody sees the password."""
    names(**{"public.example": ["18.64.1.1"]})

    def ask(url: str) -> Met:
        found = met(proxy, urlsplit(url).path, "inspect", url)
        assert SECRET not in found.done.out + found.done.err
        return found

    return ask


def test_ht38_a_proxy_with_a_password(
    proxy: web.Server, closed: Callable[[str], Met], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.root.replace("://", f"://user:{SECRET}@"))
    found = closed(PUBLIC)
    assert found.done.code == 0
    assert found.asked[0].headers["proxy-authorization"].startswith("Basic ")
    proxy.always["/x.gguf"] = web.status(407)
    found = closed(PUBLIC)
    assert found.done.code == 5
    assert found.said.startswith("the proxy wants another user or password (407); look at HTTP_PROXY")


def test_ht38_a_proxy_that_is_not_there(closed: Callable[[str], Met], monkeypatch: pytest.MonkeyPatch) -> None:
    with web.serving({}) as gone:
        pass
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, gone.root.replace("://", f"://user:{SECRET}@"))
    for url in (PUBLIC, PUBLIC.replace("http:", "https:")):
        found = closed(url)
        assert found.done.code == 5
        assert found.said.startswith("cannot connect to public.example: ")


def test_ht38_a_proxy_that_refuses_https(
    proxy: web.Server, closed: Callable[[str], Met], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy.root.replace("://", f"://user:{SECRET}@"))
    found = closed(PUBLIC.replace("http:", "https:"))
    assert found.done.code == 5
    assert found.said.startswith("the proxy refuses: 501")


@pytest.mark.parametrize(
    "url",
    [f"htp://user:{SECRET}@h", f"http://user:{SECRET}/x@h", f"http://user:pa@h:{SECRET}", "socks9://h"],
)
def test_ht38_a_proxy_that_is_no_url(url: str, closed: Callable[[str], Met], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", url)
    found = closed(PUBLIC)
    assert found.done.code == 2
    assert "the HTTP client cannot be set up" in found.said
    assert "http_proxy" in found.said


def test_ht33_no_such_certificates(closed: Callable[[str], Met], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    found = closed(PUBLIC)
    assert found.done.code == 2
    assert "the HTTP client cannot be set up: FileNotFoundError" in found.said
    assert "SSL_CERT_FILE" in found.said


@pytest.mark.parametrize("token", [f"hf_{SECRET}\x00", f"hf_{SECRET}\u00e9"])
def test_a_token_that_no_header_may_hold(
    token: str, hub: web.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP library quotes the header that it refuses."""
    (tmp_path / "token").write_text(token)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    debugged = run("inspect", "hf://org/hf", "--debug")
    assert "Traceback" in debugged.err
    assert SECRET not in debugged.out + debugged.err
    found = met(hub, LIST, "inspect", "hf://org/hf")
    assert found.done.code == 2
    assert SECRET not in found.done.out + found.done.err
    assert "is HF_TOKEN, or the password in the URL, what it should be?" in found.said


# Files that ask for more than they should


def test_ht30_an_index_of_10_gb() -> None:
    def huge(handler: web.Handler) -> bool:
        handler.serve_range(Content_Range="bytes 0-131071/10000000000")
        return True

    path = "/m/model.safetensors.index.json"
    for fault, code, says in (
        (huge, 6, "is 10,000,000,000 bytes, more than the 67,108,864 that such a file may have"),
        (rude.endless(length=10_000_000_000), 5, IGNORES),
        (rude.endless(206, ranged=True), 5, "sends more than the"),
    ):
        with web.serving({path: bytes(200_000)}) as server, traced():
            server.always[path] = fault
            found = met(server, path, "inspect", server.url(path))
            assert (found.done.code, len(server.log)) == (code, 1)
            assert says in found.said


@pytest.mark.parametrize(
    ("count", "says"), [(1_001, "has 1001 files, more than the 1000"), (100_001, "names more than 100000 files")]
)
def test_ht31_an_index_of_too_many_shards(count: int, says: str, tiny: Repo) -> None:
    """At a URL, where nobody lists them: not one of them is asked for."""
    index = json.dumps({"weight_map": {f"t{n}": f"{n}.safetensors" for n in range(count)}}).encode()
    path = "/m/model.safetensors.index.json"
    with web.serving({path: index}) as server:
        found = met(server, path, "inspect", server.url(path))
        assert found.done.code == 6
        assert says in found.said
        assert {r.path for r in server.log} == {path}


def test_ht31_an_index_of_a_million_shards() -> None:
    """It is refused by its size, or by how much it holds, before it is parsed."""
    index = b'{"weight_map": {%s}}' % b",".join(b'"%d": "%d.safetensors"' % (n, n) for n in range(1_000_000))
    path = "/m/model.safetensors.index.json"
    with web.serving({path: index}) as server:
        found = met(server, path, "inspect", server.url(path))
        assert found.done.code == 6, found.said
        assert {r.path for r in server.log} == {path}


@pytest.mark.parametrize("sizes", [range(99_992, 100_009), range(131_056, 131_081)], ids=["100,000", "131,072"])
def test_ht40_headers_about_the_size_of_a_window(sizes: range) -> None:
    """Of safetensors: at the mark of other clients, and where our first range ends."""
    with web.serving({}) as server:
        for size in sizes:
            path = f"/{size}.safetensors"
            server.files[path] = safetensors_file(size)
            checkpoint = open_checkpoint(server.url(path))
            assert (checkpoint.files[0].header_nbytes, len(server.asked(path))) == (size + 8, 1 + (size + 8 > 131_072))
            assert [t.nbytes for f in checkpoint.weights for t in f.stored] == [8]


# All of them


def test_every_case_is_proven() -> None:
    """Here under its id, or by tests elsewhere that are there."""
    text = Path(__file__).read_text()
    here = set(re.findall(r'"(HT\d\d)-', text)) | {n.upper() for n in re.findall(r"def test_(ht\d\d)_", text)}
    assert here | set(ELSEWHERE) == {f"HT{n:02}" for n in range(1, 43)}
    for said in ELSEWHERE.values():
        module, _, names = said.partition(": ")
        text = (Path(__file__).parent / f"{module}.py").read_text()
        assert not [name for name in names.split(", ") if f"\ndef {name}(" not in text]
