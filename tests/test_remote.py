"""Remote files by ranges: how many requests and bytes a header takes, and every way in which a server misbehaves."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import range_server as web
from commandline import run

from ckpttool import inspect, open_checkpoint, threads
from ckpttool.containers import answers, exchange, gguf, limits, patience, remote, safetensors, stores
from ckpttool.containers.http import HttpRanges
from ckpttool.containers.patience import Patience
from ckpttool.containers.remote import RemoteFile, RemoteFolder, RemoteHead, RemotePath
from ckpttool.errors import CkptError, InputError, LimitError, NetworkError, UsageError
from ckpttool.inspection import reading
from ckpttool.inspector import Asked, Inspector

pytestmark = pytest.mark.usefixtures("hasty")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
DATA = bytes(range(256)) * 40
PATH = "/x.safetensors"


@pytest.fixture
def server() -> Iterator[web.Server]:
    with web.serving({PATH: DATA}) as server:
        yield server


def ranges(server: web.Server, path: str = PATH, **options: object) -> HttpRanges:
    return HttpRanges(server.url(path), "x", **options)  # type: ignore[arg-type]


def refused(server: web.Server, start: int = 0, stop: int = 100, **options: object) -> NetworkError:
    with pytest.raises(NetworkError) as caught:
        ranges(server, **options).fetch(start, stop)
    assert (caught.value.exit_code, caught.value.file) == (5, "x")
    assert caught.value.hint
    return caught.value


def safetensors_file(header: int, data: int = 8) -> bytes:
    """A valid file whose JSON is `header` bytes long."""
    text = json.dumps({"t": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}).encode()
    return header.to_bytes(8, "little") + text.ljust(header) + b"x" * data


def gguf_file(tokens: int) -> bytes:
    """A GGUF with a vocabulary of so many tokens of 8 bytes, and no tensors; 100,000 bytes follow its header."""
    key = b"tokenizer.ggml.tokens"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    return head + struct.pack("<IIQ", 9, 8, tokens) + struct.pack("<Q8s", 8, b"12345678") * tokens + b"x" * 100_000


# How many requests, how many bytes


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        (100, ["bytes=0-131071"]),
        (131_064, ["bytes=0-131071"]),
        (131_065, ["bytes=0-131071", "bytes=131072-131072"]),
        (500_000, ["bytes=0-131071", "bytes=131072-500007"]),
    ],
)
def test_a_safetensors_header_takes_one_request_or_two(header: int, asked: list[str]) -> None:
    data = safetensors_file(header, 1_000_000)
    with web.serving({PATH: data}) as server:
        with RemoteHead("x", ranges(server)) as f:
            found = safetensors.parse(f)
            assert f.size == len(data)
        assert [r.range for r in server.log] == asked
        assert sum(r.sent for r in server.log) == max(131_072, header + 8)
    assert (found.nbytes, found.tensors[0].nbytes) == (header + 8, 1_000_000)


@pytest.mark.parametrize(("tokens", "marks"), [(1, [4096]), (600, [4096, 16384]), (3000, [4096, 16384, 65536])])
def test_a_gguf_header_takes_three_requests_at_most(
    monkeypatch: pytest.MonkeyPatch, tokens: int, marks: list[int]
) -> None:
    monkeypatch.setattr(limits, "REMOTE_FIRST", 4096)
    monkeypatch.setattr(limits, "REMOTE_GGUF", (4096, 16384, 65536))
    with web.serving({PATH: gguf_file(tokens)}) as server:
        with RemoteHead("x", ranges(server)) as f:
            found = gguf.parse(f)
        assert [r.range for r in server.log] == [f"bytes={a}-{b - 1}" for a, b in zip([0, *marks], marks, strict=False)]
    tokens_key = found.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens_key, gguf.Array) and len(tokens_key) == tokens


def test_a_gguf_header_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_FIRST", 4096)
    monkeypatch.setattr(limits, "REMOTE_GGUF", (4096, 16384, 65536))
    with web.serving({PATH: gguf_file(10_000)}) as server:
        with RemoteHead("x", ranges(server)) as f, pytest.raises(LimitError, match="more than 3 requests"):
            gguf.parse(f)
        assert len(server.log) == 3


def test_the_same_header_as_from_the_disk() -> None:
    for path in sorted((FIXTURES / "gguf").glob("*.gguf")):
        with web.serving({PATH: path}) as server:
            there, here = inspect(server.url(PATH)), inspect(path)
            assert [r.range for r in server.log] == ["bytes=0-131071"]
        assert there.files[0].header_sha256 == here.files[0].header_sha256
        assert there.parameters == here.parameters
        assert there.nbytes == here.nbytes


def test_nothing_is_asked_twice_while_a_head_is_open(server: web.Server) -> None:
    head = RemoteHead("x", ranges(server))
    assert head.read(0, 4) + head.read(4, 1000) == DATA[:1004]
    assert head.read_some(5000, 8, 100_000) == DATA[5000:]
    assert head.size == len(DATA)
    assert len(server.log) == 1


def test_reads_anywhere(server: web.Server) -> None:
    file = RemoteFile("x", ranges(server))
    out = bytearray(300)
    file.readinto(7000, out)
    assert (out, file.read(9_999, 1), file.read(17, 0)) == (DATA[7000:7300], DATA[9_999:10_000], b"")
    with pytest.raises(InputError, match="ends at byte 10240, 1 bytes early"):
        file.read(10_000, 241)


def test_a_head_and_a_file_read_the_same(server: web.Server) -> None:
    """A file asks for what is needed; a head gives what it has beyond that."""
    with RemoteFile("x", ranges(server)) as file:
        assert file.read_some(7, 10, 99) == DATA[7:17]
    head = RemoteHead("x", ranges(server))
    room = bytearray(10)
    head.readinto(7, room)
    head.readinto(0, bytearray())
    assert room == DATA[7:17]
    assert head.read_some(7, 10, 99) == DATA[7:106]
    assert [r.range for r in server.log] == ["bytes=0-0", "bytes=7-16", "bytes=0-131071"]


def test_an_empty_file(server: web.Server) -> None:
    server.files[PATH] = b""
    head = RemoteHead("x", ranges(server))
    assert head.size == 0
    with pytest.raises(InputError, match="the file has 0"):
        safetensors.parse(head)


# A server that fails for a while


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: web.Server, code: int) -> None:
    server.faults[PATH] = [web.status(code), web.status(code, Retry_After="0")]
    assert ranges(server).fetch(3, 10) == DATA[3:10]
    assert len(server.log) == 3


def test_not_for_ever(server: web.Server) -> None:
    server.always[PATH] = web.status(503)
    assert "the server answers 503, unavailable, 5 times" in str(refused(server))
    assert len(server.log) == 5


@pytest.mark.parametrize("said", ["1000000000", "9" * 400, "Fri, 31 Dec 2099 23:59:59 GMT"])
def test_a_wait_that_is_too_long_is_refused(server: web.Server, said: str) -> None:
    server.always[PATH] = web.status(429, Retry_After=said)
    assert "too many requests, and asks to wait" in str(refused(server))
    assert len(server.log) == 1


def test_the_waits_that_answers_ask_for() -> None:
    assert answers.wait(429, {"retry-after": "7"}) == 7
    assert answers.wait(503, {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    for garbage in ("-5", "soon", "", "1e9", "٣"):
        assert answers.wait(503, {"retry-after": garbage}) is None
    assert answers.wait(429, {"ratelimit": '"api";r=0;t=55'}) == 55
    assert answers.wait(429, {"ratelimit": '"api";r=3;t=55'}) is None
    assert answers.wait(429, {"ratelimit": "garbage"}) is None


def test_pauses_grow_and_differ() -> None:
    assert all(1 <= answers.jittered(2) <= 2 for _ in range(100))
    assert len({answers.jittered(2) for _ in range(100)}) > 1
    assert list(Patience().pauses) == sorted(Patience().pauses)


def test_a_body_that_breaks_off_goes_on_where_it_did(server: web.Server) -> None:
    server.faults[PATH] = [web.cut(1000), web.cut(1), web.cut(999)]
    assert ranges(server).fetch(100, 5100) == DATA[100:5100]
    assert [r.range for r in server.log] == [f"bytes={at}-5099" for at in (100, 1100, 1101, 2100)]


@pytest.mark.parametrize("at", [0, 1, 63, 4095, 9999])
def test_a_reset_at_any_byte(server: web.Server, at: int) -> None:
    server.faults[PATH] = [web.cut(at)]
    assert ranges(server).fetch(0, 10_240) == DATA


def test_a_body_that_ends_too_early_goes_on_where_it_did(server: web.Server) -> None:
    """It ends as a body in chunks does: only its Content-Range tells that bytes are missing."""
    server.faults[PATH] = [web.short(10), web.short(7)]
    assert ranges(server).fetch(0, 100) == DATA[:100]
    assert [r.range for r in server.log] == ["bytes=0-99", "bytes=10-99", "bytes=17-99"]


def test_a_server_that_always_breaks_off(server: web.Server) -> None:
    server.always[PATH] = web.cut(0)
    assert "5 times" in str(refused(server))


def test_nobody_listens() -> None:
    with web.serving({}) as server:
        gone = server
    assert "cannot connect" in str(refused(gone))


def test_a_slow_drip_ends(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", Patience(total=0.1, slowest=1e9, pauses=()))
    over = threading.Event()
    server.always[PATH] = web.drip(over)
    try:
        assert "too slow" in str(refused(server))
    finally:
        over.set()
    assert len(server.log) == 1


def test_a_head_that_drips_ends(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", Patience(total=0.1, slowest=1e9, pauses=()))
    over = threading.Event()
    server.always[PATH] = web.drip_head(over)
    threading.Timer(10, over.set).start()
    try:
        assert "too slow: no whole answer in time" in str(refused(server))
    finally:
        over.set()


def test_all_tries_together_end(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each within its time, each for a reason that passes: a server may do so for ever, and is not let."""
    monkeypatch.setattr(patience, "PATIENCE", Patience(read=0.2, slowest=1e9, pauses=(0.05,) * 1000, altogether=1))
    over = threading.Event()
    server.always[PATH] = web.stall(over)
    begun = time.monotonic()
    try:
        assert re.search("for too long|too slow", str(refused(server)))
    finally:
        over.set()
    assert 0.5 < time.monotonic() - begun < 20
    assert 1 < len(server.log) < 8


def test_waits_that_are_asked_for_count(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", Patience(altogether=100))
    slept: list[float] = []
    clock = [0.0]

    def pause(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(threads, "pause", pause)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    server.always[PATH] = web.status(503, Retry_After="45")
    assert "503, unavailable, 3 times, and for too long" in str(refused(server))
    assert slept == [45, 45]


def test_a_list_of_files_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's API too."""
    monkeypatch.setattr(patience, "PATIENCE", Patience(total=0.5, pauses=()))
    over = threading.Event()
    with web.as_hub(monkeypatch) as server:
        server.always["/api/models/org/tiny"] = server.always["/api/models/org/tiny/revision/main"] = web.drip_head(
            over
        )
        try:
            with pytest.raises(NetworkError, match="too slow"):
                open_checkpoint("hf://org/tiny")
        finally:
            over.set()


def test_what_nobody_waits_for_any_more_is_left(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed while the server still sends."""
    monkeypatch.setattr(patience, "PATIENCE", Patience(total=0.1, pauses=()))
    over, left = threading.Event(), threading.Event()
    drip = web.drip(over, 200)
    server.always[PATH] = lambda handler: drip(handler) and (left.set() or True)
    try:
        with pytest.raises(NetworkError, match="too slow"):
            exchange.document(server.url(PATH), {}, "x", 1 << 20, lambda response: NetworkError("no"))
        assert left.wait(20)
    finally:
        over.set()


def test_a_header_is_held_twice_at_most() -> None:
    """As it came and as it is parsed; beside them the last piece of a range."""
    size = 23 << 20
    head = RemoteHead("x", Plenty(size))
    tracemalloc.start()
    try:
        assert len(head.read(0, 8)) == 8
        assert len(head.read(8, size - 8)) == size - 8
        assert tracemalloc.get_traced_memory()[1] < 2.3 * size
    finally:
        tracemalloc.stop()


class Plenty(HttpRanges):
    """A file of zeros, in pieces as a client gives them."""

    def __init__(self, size: int) -> None:
        super().__init__("http://127.0.0.1:1/x", "x", size=size)

    def _once(self, at: int, stop: int, got: Any, gone: threading.Event) -> None:
        for start in range(at, stop, 1 << 16):
            got.extend(bytes(min(1 << 16, stop - start)))


def test_memory_is_filled_in_place(server: web.Server) -> None:
    """Over a body that breaks off, and never beyond its end."""
    buffer = bytearray(b"-" * 300)
    server.faults[PATH] = [web.cut(33), None]
    with RemoteFile("x", ranges(server)) as f:
        f.readinto(5, memoryview(buffer)[100:200])
        assert buffer == b"-" * 100 + DATA[5:105] + b"-" * 100
        with pytest.raises(InputError, match="truncated"):
            f.readinto(len(DATA) - 10, buffer)
        f.readinto(len(DATA), bytearray())


class Stop(BaseException):
    pass


@pytest.mark.parametrize("way", ["interrupt", "error"])
def test_scales_of_a_stalling_server_are_not_waited_for(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the reading ends it at once, and no thread goes on to ask."""
    over, stalled = threading.Event(), threading.Event()
    folder = web.folder_files(FIXTURES / "hf")
    files: dict[str, web.Content] = {f"/m/{n}": p for n, p in folder.items()}
    first, *others = sorted(n for n in files if n.endswith(".safetensors"))

    def arrive(*args: object) -> None:
        raise Stop

    def gone(handler: web.Handler) -> bool:
        stalled.wait(20)
        return web.status(404)(handler)

    def stall(handler: web.Handler) -> bool:
        stalled.set()
        return web.stall(over)(handler)

    before = signal.signal(signal.SIGALRM, arrive)
    with web.serving(files) as server:
        checkpoint = open_checkpoint(server.url("/m/model.safetensors.index.json"))
        server.always |= dict.fromkeys(others, stall)
        server.always[first] = gone if way == "error" else stall
        opened = len(server.log)
        threads_before = {t for t in threading.enumerate() if "process_request" not in t.name}
        begun = time.monotonic()
        if way == "interrupt":
            signal.setitimer(signal.ITIMER_REAL, 2)
        try:
            with pytest.raises(Stop if way == "interrupt" else NetworkError):
                Inspector(checkpoint, Asked(scales=True, codes=True)).run()
            assert time.monotonic() - begun < 15
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            over.set()
        time.sleep(0.5)
        assert len(server.log) - opened <= limits.REMOTE_PARALLEL  # one request of each thread, and no second try
        left = {t for t in threading.enumerate() if "process_request" not in t.name} - threads_before
        for thread in left:
            thread.join(10)
            assert not thread.is_alive()


def test_as_many_readers_as_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as many as the machine has; at a remote end as many as are asked for at once."""
    counts = []
    monkeypatch.setattr(reading, "CORES", 3)
    monkeypatch.setattr(reading, "share", lambda jobs, workers: counts.append(len(workers)))
    reading.read_all([], {"x": FIXTURES}, lambda n: None)
    reading.read_all([], {"x": web_path()}, lambda n: None)
    reading.read_all([], {"x": FIXTURES}, lambda n: None, 5)
    assert counts == [3, limits.REMOTE_PARALLEL, 5]


def web_path() -> RemotePath:
    return RemotePath("x", "http://x/x", HttpRanges("http://x/x", "x"))


def test_a_reference_is_asked_for_what_is_missing_alone() -> None:
    """Of a remote source no side file is read for it."""
    files: dict[str, web.Content] = {f"/m/{n}": p for n, p in web.folder_files(FIXTURES / "hf").items()}
    del files["/m/tokenizer.json"], files["/m/generation_config.json"]
    with web.serving(files) as server:
        found = open_checkpoint(server.url("/m/model.safetensors.index.json"), reference=FIXTURES / "hf")
        sides = [r.path for r in server.log if not r.path.endswith((".safetensors", ".index.json"))]
        assert sides == ["/m/config.json"]
        assert found.companions["tokenizer.json"] == FIXTURES / "hf" / "tokenizer.json"
        assert isinstance(found.companions["config.json"], bytes)
        assert len([r for r in server.log if "tokenizer" in r.path]) == 0


def test_a_stall_ends(server: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", Patience(read=0.1, pauses=(0,)))
    over = threading.Event()
    server.always[PATH] = web.stall(over)
    try:
        assert "does not answer in time, 2 times" in str(refused(server))
    finally:
        over.set()


def test_an_interrupt_does_not_wait_for_servers_that_stall() -> None:
    class Stop(BaseException):
        pass

    def arrive(*args: object) -> None:
        raise Stop

    over = threading.Event()
    files: dict[str, web.Content] = {f"/m/{n}": p for n, p in web.folder_files(FIXTURES / "hf").items()}
    before = signal.signal(signal.SIGALRM, arrive)
    with web.serving(files) as server:
        server.always |= {name: web.stall(over) for name in files if name.endswith(".safetensors")}
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 2)
        try:
            with pytest.raises(Stop):
                open_checkpoint(server.url("/m/model.safetensors.index.json"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            over.set()
    assert time.monotonic() - begun < 15


# A server that answers something else


def test_a_file_that_changes_between_ranges(server: web.Server) -> None:
    file = ranges(server)
    file.fetch(0, 10)
    server.etags[PATH] = "v2"
    with pytest.raises(NetworkError, match=r'the remote file changed: its etag is "v2", at first it was "v1"'):
        file.fetch(10, 20)


def test_a_file_that_changes_its_size_between_ranges(server: web.Server) -> None:
    file = ranges(server)
    file.fetch(0, 10)
    server.files[PATH] = DATA[:-1]
    with pytest.raises(NetworkError, match=r"the remote file changed: has 10,239 bytes, not 10,240"):
        file.fetch(10, 20)
    server.files[PATH] = b"short"
    with pytest.raises(NetworkError, match=r"refuses a range inside the file \(416\)"):
        file.fetch(10, 20)


def test_a_file_that_is_not_the_listed_one(server: web.Server) -> None:
    assert "has 10,240 bytes, not 999" in str(refused(server, size=999))
    server.headers["X-Repo-Commit"] = "b" * 40
    assert "is of commit bbbbbbbbbbbb, not aaaaaaaaaaaa" in str(refused(server, commit="a" * 40))


@pytest.mark.parametrize("listed", ["sha256", "git"])
def test_a_side_file_that_is_not_the_listed_one(server: web.Server, listed: str) -> None:
    """It is asked for once more, for something between may keep an old copy; then it is an error."""
    sha256 = hashlib.sha256(DATA).hexdigest() if listed == "sha256" else None
    git = remote.git_sha1(DATA) if listed == "git" else None

    def path() -> RemotePath:
        at = ranges(server)
        at.sha256 = sha256
        return RemotePath("x", "x", at, git)

    def old(handler: web.Handler) -> bool:
        handler.content = DATA[::-1]
        handler.serve_range()
        return True

    server.faults[PATH] = [old]
    assert path().read_bytes() == DATA
    assert len(server.log) == 2
    server.always[PATH] = old
    with pytest.raises(NetworkError, match="what comes is not what is listed: its hash differs"):
        path().read_bytes()
    assert len(server.log) == 4


def test_last_modified_stands_in_for_an_etag(server: web.Server) -> None:
    server.faults[PATH] = [web.with_headers(ETag="", Last_Modified="a"), web.with_headers(ETag="", Last_Modified="b")]
    file = ranges(server)
    file.fetch(0, 1)
    with pytest.raises(NetworkError, match="its etag is b, at first it was a"):
        file.fetch(1, 2)


def test_a_small_file_may_come_whole(server: web.Server) -> None:
    server.faults[PATH] = [web.whole, web.chunked]
    for _ in range(2):
        file = ranges(server)
        assert (file.fetch(0, 20_000), file.size) == (DATA, len(DATA))


@pytest.mark.parametrize("fault", [web.whole, web.chunked])
def test_a_large_one_may_not(server: web.Server, fault: web.Fault) -> None:
    server.files[PATH] = bytes(50_000_000)
    server.always[PATH] = fault
    assert "ignores ranges and would send the whole file; download it" in str(refused(server, 0, 1000))
    assert "ignores ranges" in str(refused(server, 500, 1000))
    assert len(server.log) == 2
    assert sum(r.sent for r in server.log) < 50_000_000


WRONG = {
    "gzip": ({"Content_Encoding": "gzip"}, "is compressed (gzip)"),
    "brotli": ({"Content_Encoding": "br"}, "is compressed (br)"),
    "another start": ({"Content_Range": "bytes 1-100/10240"}, "bytes 0 to 99 were asked for, 1 to 100 came"),
    "another end": ({"Content_Range": "bytes 0-98/10240"}, "0 to 98 came"),
    "unknown size": ({"Content_Range": "bytes 0-99/*"}, "Content-Range is 'bytes 0-99/*'"),
    "no range": ({"Content_Range": ""}, "no Content-Range"),
    "several": ({"Content_Range": "", "Content_Type": "multipart/byteranges; boundary=x"}, "no Content-Range"),
    "garbage": ({"Content_Range": "bytes " + "9" * 5000}, "Content-Range is"),
}


@pytest.mark.parametrize(("headers", "says"), WRONG.values(), ids=WRONG)
def test_answers_that_contradict_the_request(server: web.Server, headers: dict[str, str], says: str) -> None:
    server.always[PATH] = web.with_headers(**headers)
    assert says in str(refused(server))
    assert len(server.log) == 1


def test_more_than_asked_for(server: web.Server) -> None:
    def longer(handler: web.Handler) -> bool:
        handler.answer(206, DATA[:200], {"Content-Range": "bytes 0-99/10240"})
        return True

    server.always[PATH] = longer
    assert "sends more than the 100 bytes asked for" in str(refused(server))


def test_requests_ask_for_plain_bytes(server: web.Server) -> None:
    ranges(server).fetch(0, 1)
    assert server.log[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (401, "refuses access (401)"),
        (403, "refuses access (403)"),
        (404, "there is no such file (404)"),
        (400, "answers 400"),
        (304, "answers 304"),
    ],
)
def test_refusals(server: web.Server, code: int, says: str) -> None:
    server.always[PATH] = web.status(code)
    assert says in str(refused(server))
    assert len(server.log) == 1


def test_a_header_bomb(server: web.Server) -> None:
    server.always[PATH] = web.with_headers(X_Bomb="x" * 1_000_000)
    assert "its answer breaks off, or is no HTTP" in str(refused(server))


# Redirects


def test_a_redirect_takes_no_token_to_another_host(server: web.Server) -> None:
    with web.serving({"/blob": DATA}) as store:
        server.always[PATH] = web.redirect(store.url("/blob"))
        file = ranges(server, headers={"authorization": "Bearer secret"})
        assert file.fetch(0, 5) == DATA[:5]
        assert server.log[0].headers["authorization"] == "Bearer secret"
        assert "authorization" not in store.log[0].headers

        # The second range goes where the first was led to.
        assert file.fetch(5, 9) == DATA[5:9]
        assert (len(server.log), len(store.log)) == (1, 2)
        assert "authorization" not in store.log[1].headers


def test_a_redirect_on_the_same_host_keeps_the_token(server: web.Server) -> None:
    server.files["/moved"] = DATA
    server.always[PATH] = web.redirect("/moved", 307)
    assert ranges(server, headers={"authorization": "Bearer secret"}).fetch(0, 5) == DATA[:5]
    assert server.log[1].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_an_address_that_has_run_out_is_asked_for_anew(server: web.Server, code: int) -> None:
    with web.serving({"/1": DATA, "/2": DATA}) as store:
        server.faults[PATH] = [web.redirect(store.url("/1")), web.redirect(store.url("/2"))]
        store.faults["/1"] = [None, web.status(code)]
        file = ranges(server, headers={"authorization": "Bearer secret"})
        assert file.fetch(0, 5) + file.fetch(5, 9) == DATA[:9]
        assert [r.path for r in store.log] == ["/1", "/1", "/2"]
        assert [r.headers.get("authorization") for r in server.log] == ["Bearer secret"] * 2


def test_a_redirect_of_many_words(server: web.Server) -> None:
    """Its body is not read to the end."""
    server.files["/moved"] = DATA

    def wordy(handler: web.Handler) -> bool:
        handler.answer(302, b"x" * 5_000_000, {"Location": "/moved"})
        return True

    server.always[PATH] = wordy
    assert ranges(server).fetch(0, 5) == DATA[:5]


def test_an_error_that_the_library_has_no_class_for() -> None:
    """As a user's own client may raise, which decodes what we do not."""
    library, _ = exchange.session()
    with pytest.raises(NetworkError, match="the server misbehaves: bad gzip"), answers.translated(library, "x"):
        raise library.DecodingError("bad gzip")


def test_redirects_without_end(server: web.Server) -> None:
    server.always[PATH] = web.redirect(PATH)
    assert "more than 3 redirects" in str(refused(server))
    assert len(server.log) == 4


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://169.254.169.254/latest/meta-data", "redirects to 169.254.169.254, a private address"),
        ("http://[fe80::1]/", "a private address"),
        ("file:///etc/passwd", "redirects from http to file"),
        ("ftp://127.0.0.1/x", "redirects from http to ftp"),
        (f"http://{'a' * 64}.com/x", "which no host can be called"),
    ],
)
def test_redirects_to_where_nobody_should_go(server: web.Server, target: str, says: str) -> None:
    server.always[PATH] = web.redirect(target)
    assert says in str(refused(server))


@pytest.mark.parametrize(
    "target",
    [
        "http://huggingface.co/x",
        "https://127.0.0.1/x",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://192.168.1.1/x",
        "https://inside.example/x",
    ],
)
def test_the_public_network_does_not_lead_into_a_private_one(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    known = {"huggingface.co": "18.64.1.1", "inside.example": "10.1.2.3"}

    def lookup(host: str, port: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, 0, 0, "", (known[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(NetworkError, match="redirects"):
        answers.refuse_redirect("https://huggingface.co/a", target, "x")
    answers.refuse_redirect("https://huggingface.co/a", "https://18.64.1.2/x", "x")


# Files at plain URLs


def test_a_url_is_shown_without_its_secrets(server: web.Server) -> None:
    server.files["/m.gguf"] = (FIXTURES / "gguf" / "tiny-gpt-oss-auto.gguf").read_bytes()
    url = server.url("/m.gguf").replace("://", "://user:secret@") + "?signature=secret"
    report = run("inspect", url, "--json")
    assert report.code == 0
    assert report.document["source"] == server.url("/m.gguf")
    assert server.log[0].headers["authorization"].startswith("Basic ")
    server.always["/m.gguf"] = web.status(403)
    report = run("inspect", url, "--json")
    assert report.code == 5
    assert "secret" not in report.out + report.err


def test_shards_by_the_url_of_their_index() -> None:
    files: dict[str, web.Content] = {f"/m/{n}": p for n, p in web.folder_files(FIXTURES / "hf").items()}
    with web.serving(files) as server:
        there = open_checkpoint(server.url("/m/model.safetensors.index.json"))
        assert {r.path: len(server.asked(r.path)) for r in server.log} == {
            "/m/model.safetensors.index.json": 1,
            "/m/model-00000-of-00002.safetensors": 1,
            "/m/model-00001-of-00002.safetensors": 1,
            "/m/model-00002-of-00002.safetensors": 1,
            "/m/config.json": 1,
        }
    here = open_checkpoint(FIXTURES / "hf")
    assert (there.weights, there.extents, there.config) == (here.weights, here.extents, here.config)
    assert not there.problems


def test_a_file_alone_has_no_config(server: web.Server) -> None:
    server.files = {"/model.safetensors": FIXTURES / "parent" / "model.safetensors"}
    checkpoint = open_checkpoint(server.url("/model.safetensors"))
    assert checkpoint.config is None
    assert checkpoint.parameters == open_checkpoint(FIXTURES / "parent").parameters
    assert [r.path for r in server.log] == ["/model.safetensors", "/config.json"]


def test_a_split_set_by_the_url_of_its_first() -> None:
    files: dict[str, web.Content] = {f"/{n}": p for n, p in web.folder_files(FIXTURES / "gguf" / "split").items()}
    with web.serving(files) as server:
        first = min(files)
        there, here = inspect(server.url(first)), inspect(FIXTURES / "gguf" / "split")
        assert [f.header_sha256 for f in there.files] == [f.header_sha256 for f in here.files]
        assert there.parameters == here.parameters
        assert all(len(server.asked(path)) == 1 for path in files)
        del server.files[max(files)]
        with pytest.raises(NetworkError, match=r"00003-of-00003.gguf: there is no such file \(404\)"):
            inspect(server.url(first))


def test_a_url_whose_host_can_have_no_such_name() -> None:
    report = run("inspect", f"https://{'a' * 64}.com/x.gguf", "--json")
    assert report.code == 2
    assert "is no URL that can be asked" in report.document["errors"][0]["message"]


def test_what_is_shown_of_an_address() -> None:
    for url, shown in {
        "https://user:secret@h/x.gguf?token=secret": "https://h/x.gguf",
        "ftp://user:secret@h/x.gguf": "ftp://user@h/x.gguf",
        "simplecache::sftp://user:secret@h/x": "simplecache::sftp://user@h/x",
        "abfs://container@account/x": "abfs://container@account/x",
        "github://org:repo@main/x": "github://org:repo@main/x",
        "s3://bucket/a:b@c": "s3://bucket/a:b@c",
    }.items():
        assert stores.without_secrets(url) == shown


@pytest.mark.parametrize("url", ["nosuch://user:secret@h/x.gguf", "ftp://user:secret@127.0.0.1:1/x.gguf"])
def test_no_password_of_a_store_in_errors(url: str) -> None:
    report = run("inspect", url, "--json")
    assert report.code in (2, 5)
    assert "secret" not in report.out + report.err


def test_no_password_of_what_is_no_address() -> None:
    with pytest.raises(UsageError, match="is no URL") as caught:
        stores.without_secrets("https://user:secret@[x/y")
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_listed_has_no_other_files() -> None:
    with pytest.raises(InputError, match="x/gone: no such file; check the name"):
        RemoteFolder("x", {}).file("gone")


@pytest.mark.parametrize("scheme", ["https", "hf"])
def test_no_password_where_it_cannot_be_reached(scheme: str, tmp_path: Path) -> None:
    source = f"{scheme}://user:secret@127.0.0.1:1/x.gguf"
    with pytest.raises(InputError) as caught:
        open_checkpoint(source, remote=False)
    assert "secret" not in str(caught.value)
    report = run("convert", source, tmp_path / "x", "--to", "bf16", "--json")
    assert report.code == (5 if scheme == "https" else 2)
    assert "secret" not in report.out + report.err


@pytest.mark.parametrize(("path", "says"), [("/", "names no file"), ("/folder", "names no file")])
def test_urls_that_name_no_file(server: web.Server, path: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        inspect(server.url(path))


BODIES = {
    "a web page": (b"<!DOCTYPE html><html>", "this is a web page"),
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4792272488\n",
        "this is a git-lfs pointer to a file of 4792272488 bytes",
    ),
    "a pickle": (b"\x80\x02}q\x00." + bytes(100), "this is a pickle"),
    "a cut file": (safetensors_file(100)[:-1], "1 bytes are missing"),
}


@pytest.mark.parametrize(("body", "says"), BODIES.values(), ids=BODIES)
def test_files_that_are_something_else(server: web.Server, body: bytes, says: str) -> None:
    server.files[PATH] = body
    with pytest.raises(InputError, match=says):
        inspect(server.url(PATH))
    assert len(server.log) == 1


# Parts of remote checkpoints


def test_parts_are_read_by_range() -> None:
    files: dict[str, web.Content] = {f"/m/{n}": p for n, p in web.folder_files(FIXTURES / "hf").items()}
    with web.serving(files) as server:
        there = open_checkpoint(server.url("/m/model.safetensors.index.json")).part("layer.1.gate")
        here = open_checkpoint(FIXTURES / "hf").part("layer.1.gate")
        asked = len(server.log)
        assert (there[2] == here[2]).all()
        assert len(server.log) == asked + 2  # the codes and the scales of one expert


def test_what_wants_local_files_says_so(server: web.Server) -> None:
    checkpoint_url = server.url("/m.gguf")
    server.files["/m.gguf"] = FIXTURES / "gguf" / "tiny-gpt-oss-auto.gguf"
    found = open_checkpoint(checkpoint_url)
    for ask in (lambda: found.root, lambda: found.files[0].path, lambda: found.file_paths):
        with pytest.raises(UsageError, match="hf download"):
            ask()
    with pytest.raises(CkptError):
        open_checkpoint(checkpoint_url, remote=False)
