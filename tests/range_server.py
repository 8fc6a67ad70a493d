"""A web server on the loopback that serves ranges, logs what it was asked, and misbehaves when told; and a Hub on it.

    with serving({"/x.gguf": data}) as server:
        server.url("/x.gguf")
        server.asked("/x.gguf")                        # the requests for it so far
        server.faults["/x.gguf"] = [status(503), None] # what happens to the first, the second ... request

A file is bytes or a path; a fault takes the handler and returns whether it has answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Content = bytes | Path
Fault = Callable[["Handler"], bool]

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Asked:
    """One request: its path, and of its headers those that matter; `sent` are the body's bytes that went out."""

    path: str
    range: str | None
    headers: dict[str, str]
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    record: Asked
    content: Content

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.record = Asked(path, self.headers.get("range"), {k.lower(): v for k, v in self.headers.items()})
        with self.server.lock:
            self.server.log.append(self.record)
            faults = self.server.faults.get(path, [])
            fault = faults.pop(0) if faults else self.server.always.get(path)
        self.content = self.server.routes.get(path, self.server.files.get(path, b""))
        if fault is not None and fault(self):
            return
        if path in self.server.routes:
            self.answer(200, self.content, {"Content-Type": "application/json"})
            return
        if path not in self.server.files:
            self.answer(404, b"no such file")
            return
        self.serve_range()

    def serve_range(self, **changes: str) -> None:
        """The range asked for, as RFC 9110 says; `changes` are headers in place of the right ones."""
        first, stop, size = self.wanted()
        if first >= size:
            self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        headers = {"Content-Range": f"bytes {first}-{stop - 1}/{size}", "ETag": self.etag()}
        headers |= {k.replace("_", "-"): v for k, v in changes.items()}
        self.answer(206, self.part(first, stop), headers)

    def wanted(self) -> tuple[int, int, int]:
        """First byte, stop and size of the range asked for."""
        size = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.record.range or "")
        return (int(match[1]), min(int(match[2]) + 1, size), size) if match else (0, size, size)

    def part(self, first: int, stop: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[first:stop]
        with self.content.open("rb") as f:
            f.seek(first)
            return f.read(stop - first)

    def etag(self) -> str:
        return f'"{self.server.etags.get(self.record.path, "v1")}"'

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer; a Content-Length among `headers` stands in place of the true one."""
        self.send_response(status)
        all_headers = {"Content-Length": str(len(body)), **self.server.headers, **(headers or {})}
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.send(body)

    def send(self, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), 1 << 16):
                piece = body[at : at + (1 << 16)]
                self.record.sent += len(piece)  # before the client can look
                self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`routes` are fixed JSON answers; `faults` befall the requests for a path in turn, `always` every other one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: Mapping[str, Content]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.routes: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault | None]] = {}
        self.always: dict[str, Fault] = {}
        self.etags: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.log: list[Asked] = []
        self.lock = threading.Lock()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return self.root + path

    def asked(self, path: str) -> list[Asked]:
        return [r for r in self.log if r.path == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as some of ours should."""


@contextlib.contextmanager
def serving(files: Mapping[str, Content]) -> Iterator[Server]:
    """A server of these files for the length of the block."""
    server = Server(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Faults


def status(code: int, **headers: str) -> Fault:
    """An answer with this status and nothing else."""

    def fault(handler: Handler) -> bool:
        handler.answer(code, b"no", {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return fault


def with_headers(**headers: str) -> Fault:
    """The right bytes under these headers."""

    def fault(handler: Handler) -> bool:
        handler.serve_range(**headers)
        return True

    return fault


def whole(handler: Handler) -> bool:
    """200 and the whole file, whatever the range."""
    handler.answer(200, handler.part(0, handler.wanted()[2]), {"ETag": handler.etag()})
    return True


def chunked(handler: Handler) -> bool:
    """200 and the whole file in chunks, without its length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    data = handler.part(0, handler.wanted()[2])
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(data), 1000):
            piece = data[at : at + 1000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")
    return True


def cut(n: int) -> Fault:
    """`n` bytes of the range, then the connection closes."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        headers = {"Content-Range": f"bytes {first}-{stop - 1}/{size}", "Content-Length": str(stop - first)}
        handler.answer(206, handler.part(first, min(stop, first + n)), headers | {"ETag": handler.etag()})
        handler.close_connection = True
        return True

    return fault


def short(n: int) -> Fault:
    """`n` bytes of the range in chunks, properly ended, under a Content-Range that has all of it."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        handler.send_header("ETag", handler.etag())
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.send(f"{n:x}\r\n".encode() + handler.part(first, first + n) + b"\r\n0\r\n\r\n")
        return True

    return fault


def redirect(target: str, code: int = 302) -> Fault:
    """To another address."""
    return status(code, Location=target)


def drip(event: threading.Event, code: int = 206) -> Fault:
    """The head at once, then a byte at a time, until `event` is set."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        handler.send_response(code)
        handler.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        handler.send_header("Content-Length", str(stop - first))
        handler.send_header("ETag", handler.etag())
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            while not event.wait(0.02):
                handler.wfile.write(b"x")
        handler.close_connection = True
        return True

    return fault


def drip_head(event: threading.Event) -> Fault:
    """A head that never ends, a byte at a time, until `event` is set."""

    def fault(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            while not event.wait(0.02):
                handler.wfile.write(b"x")
        handler.close_connection = True
        return True

    return fault


def stall(event: threading.Event) -> Fault:
    """Nothing at all, until `event` is set."""

    def fault(handler: Handler) -> bool:
        event.wait(60)
        handler.close_connection = True
        return True

    return fault


# A Hub


@contextlib.contextmanager
def as_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that huggingface_hub takes for the Hub."""
    from huggingface_hub import constants

    with serving({}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.root)
        template = server.root + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server


@dataclass
class Repo:
    """One repo of the Hub on a server: what its API answers, and where its files lie."""

    server: Server
    name: str
    files: dict[str, Content]
    revisions: tuple[str, ...] = ("main", SHA)
    sizes: dict[str, int] = field(default_factory=dict)

    def publish(self) -> Repo:
        """Put the repo's files and its API's answers on the server."""
        siblings = [self._sibling(name, content) for name, content in sorted(self.files.items())]
        info = {"id": self.name, "modelId": self.name, "sha": SHA, "siblings": siblings, "private": False}
        info |= {"tags": [], "downloads": 0, "likes": 0, "disabled": False, "gated": False}
        text = json.dumps(info).encode()
        self.server.routes[f"/api/models/{self.name}"] = text
        for revision in self.revisions:
            self.server.routes[f"/api/models/{self.name}/revision/{revision}"] = text
        for name, content in self.files.items():
            self.server.files[self.path(name)] = content
        return self

    def _sibling(self, name: str, content: Content) -> dict[str, Any]:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        row: dict[str, Any] = {"rfilename": name, "size": self.sizes.get(name, size)}
        if name.endswith(
            (".safetensors", ".gguf")
        ):  # sparse ones may be as large as published ones: a hash of any kind
            lfs = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "size": size, "pointerSize": 135}
            return row | {"blobId": "0" * 40, "lfs": lfs}
        data = content if isinstance(content, bytes) else content.read_bytes()
        return row | {"blobId": hashlib.sha1(b"blob %d\0" % size + data).hexdigest()}

    def path(self, name: str) -> str:
        """The path of a file on the server, at the one commit."""
        return f"/{self.name}/resolve/{SHA}/{name}"

    def asked(self, name: str) -> list[Asked]:
        """The requests for a file so far."""
        return self.server.asked(self.path(name))

    @property
    def requests(self) -> dict[str, int]:
        """How often each file was asked for."""
        return {name: n for name in self.files if (n := len(self.asked(name)))}


def folder_files(folder: Path) -> dict[str, Content]:
    """All files of a folder, by their names in it."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
