"""What rude servers do: bodies without end, heads that are none, resets, certificates of somebody else."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import range_server as web
from range_server import Content, Fault, Handler


def answer(status: int, body: bytes = b"no", **headers: str) -> Fault:
    """This status under these headers, with this body."""

    def fault(handler: Handler) -> bool:
        handler.answer(status, body, {"ETag": handler.etag()} | {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return fault


def endless(status: int = 200, *, length: int | None = None, ranged: bool = False) -> Fault:
    """A body of zeros for as long as somebody reads: `length` bytes by its head, else in chunks without end; `ranged`
    under the Content-Range that was asked for."""

    def fault(handler: Handler) -> bool:
        handler.send_response(status)
        if ranged:
            first, stop, size = handler.wanted()
            handler.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        handler.send_header("ETag", handler.etag())
        name, value = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
        handler.send_header(name, value)
        handler.end_headers()
        piece = bytes(1 << 16) if length is not None else b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        with contextlib.suppress(OSError):
            while length is None or handler.record.sent < length:
                handler.wfile.write(piece)
                handler.record.sent += len(piece)
        handler.close_connection = True
        return True

    return fault


def longer(more: int) -> Fault:
    """The right range, and `more` bytes after it under the same head."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        headers = {"Content-Range": f"bytes {first}-{stop - 1}/{size}", "ETag": handler.etag()}
        handler.answer(206, handler.part(first, stop) + bytes(more), headers)
        return True

    return fault


def moved(by: int, of: int = 0) -> Fault:
    """The range that starts `by` bytes later and is as long, under a true head; of a file with `of` bytes more."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        said = f"bytes {first + by}-{stop + by - 1}/{size + of}"
        handler.answer(206, handler.part(first, stop), {"Content-Range": said, "ETag": handler.etag()})
        return True

    return fault


def halted(over: threading.Event) -> Fault:
    """The head of the right answer, and nothing after it until `over` is set."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        handler.send_header("Content-Length", str(stop - first))
        handler.send_header("ETag", handler.etag())
        handler.end_headers()
        handler.wfile.flush()
        over.wait(60)
        handler.close_connection = True
        return True

    return fault


def trickle(over: threading.Event) -> Fault:
    """200, and a chunk of one byte now and then, until `over` is set."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            while not over.wait(0.02):
                handler.wfile.write(b"1\r\n \r\n")
        handler.close_connection = True
        return True

    return fault


def reset(at: int) -> Fault:
    """`at` bytes of the right answer, then the connection is reset."""

    def fault(handler: Handler) -> bool:
        web.cut(at)(handler)
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True

    return fault


def raw(head: bytes, body: bytes = b"") -> Fault:
    """These bytes, whatever they are, and the end."""

    def fault(handler: Handler) -> bool:
        with contextlib.suppress(OSError):
            handler.wfile.write(head + b"\r\n\r\n" + body)
        handler.close_connection = True
        return True

    return fault


def headers(*lines: bytes, etag: bytes = b'"v1"') -> Fault:
    """The right range under these header lines, which need be no text, before the right ones."""

    def fault(handler: Handler) -> bool:
        first, stop, size = handler.wanted()
        body = handler.part(first, stop)
        right = b"Content-Range: bytes %d-%d/%d\r\nContent-Length: %d" % (first, stop - 1, size, len(body))
        right += b"\r\nETag: " + etag if etag else b""
        return raw(b"\r\n".join((b"HTTP/1.1 206 Partial Content", *lines, right)), body)(handler)

    return fault


BOMB = gzip.compress(bytes(10_000_000), 9) * 50
"""Half a megabyte that unpacks to half a gigabyte."""


def after(count: int, fault: Fault) -> Fault:
    """The right answer `count` times, then `fault`."""
    left = [count]

    def answer(handler: Handler) -> bool:
        with handler.server.lock:
            left[0] -= 1
            over = left[0] < 0
        return over and fault(handler)

    return answer


def certificate(folder: Path, name: str) -> Path | None:
    """A certificate for the host `name` with its key, in one file; None where there is no openssl to make it."""
    if shutil.which("openssl") is None:
        return None
    path = folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@contextlib.contextmanager
def serving_tls(files: Mapping[str, Content], certificate: Path) -> Iterator[web.Server]:
    """A server of these files that speaks TLS."""
    with web.serving(files) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        yield server


@contextlib.contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Connections to this port of ::1 are never accepted, nor refused: its queue is full."""
    with socket.socket(socket.AF_INET6) as listener, contextlib.ExitStack() as waiting:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(("::1", port))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen(0)
        for _ in range(4):
            other = waiting.enter_context(socket.socket(socket.AF_INET6))
            other.setblocking(False)
            other.connect_ex(("::1", port))
        yield
