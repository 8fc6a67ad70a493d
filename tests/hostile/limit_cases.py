"""For each limit what asks for just as much as it allows, and what asks for the least more.

As a command, it holds all of them to the limits that the environment sets, and prints the names of those that hold.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

import httpx2
import range_server as web
from hostile_files import arr, entry, gguf, info, kv, raw_entry, st

from ckpttool import archs, checkpoint
from ckpttool.archs import gguf_metadata
from ckpttool.archs.tokenizer_json import read_tokenizer
from ckpttool.containers import exchange, limits, strict_json
from ckpttool.containers import gguf as our_gguf
from ckpttool.containers import safetensors as our_safetensors
from ckpttool.containers.index import parse_index
from ckpttool.containers.remote import RemoteHead
from ckpttool.containers.source import LocalFile
from ckpttool.errors import CkptError, InputError, LimitError
from ckpttool.publishing.door import Passage

FIXTURES = Path(__file__).parents[2] / "fixtures"


@dataclass(frozen=True)
class Asking:
    """`ask(folder, n)` reads what asks for `n` of what `limit` counts.

    `kind`: the error beyond it. `small`: the limit that another environment sets. `next`: the least above `n` that can
    be asked for. `costly`: not held to the default too, which takes minutes or gigabytes.
    """

    limit: str
    small: int
    ask: Callable[[Path, int], object]
    kind: type[CkptError] = LimitError
    next: Callable[[int], int] = lambda n: n + 1
    costly: bool = False

    def holds(self, folder: Path) -> None:
        """What is allowed is read, and the least more is refused by an error that names the limit."""
        n = int(limits.LIMITS[self.limit])
        self.ask(folder, n)
        try:
            self.ask(folder, self.next(n))
        except self.kind as error:
            assert type(error) is self.kind and error.file, error
            assert f"({limits.PREFIX}{self.limit}=N allows more)" in (error.hint or ""), error
        else:
            raise AssertionError(f"{self.limit}: {self.next(n)} was read")


def _safetensors(folder: Path, data: bytes) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    with LocalFile(path) as file:
        our_safetensors.parse(file)


def _gguf(folder: Path, data: bytes) -> None:
    path = folder / "x.gguf"
    path.write_bytes(data)
    with LocalFile(path) as file:
        our_gguf.parse(file)


def _table(n: int) -> bytes:
    """A safetensors file of `n` tensors without elements."""
    return st(b"{%s}" % b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(n)))


def _long_entry(folder: Path, n: int) -> None:
    tail = '"dtype":"U8","data_offsets":[0,4]}'
    _safetensors(folder, raw_entry('{"shape":[4],'.ljust(n - len(tail)) + tail))


def _values(folder: Path, n: int) -> None:
    """Key-values that end at byte `n`."""
    before = len(gguf((arr("a", 0, 0),), alignment=1))
    _gguf(folder, gguf((arr("a", 0, n - before, bytes(n - before)),)))


def _shards(folder: Path, n: int) -> None:
    """A checkpoint of two shards with `n` tensors together."""
    shards = {"model-00001-of-00002.safetensors": n // 2, "model-00002-of-00002.safetensors": n - n // 2}
    weight_map = {}
    for i, (name, count) in enumerate(shards.items()):
        names = [f"{'ab'[i]}{k}" for k in range(count)]
        weight_map |= dict.fromkeys(names, name)
        (folder / name).write_bytes(st({k: entry(shape=[0], offsets=[0, 0]) for k in names}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint.open_checkpoint(folder)


def _index(n: int) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(n)}}).encode()


def _json(data: bytes) -> None:
    strict_json.read_object(data, "config.json", limits.SIDE_FILE)


def _tokenizer(words: int, nbytes: int = 0) -> None:
    """A tokenizer.json of so many tokens, filled up with spaces to so many bytes."""
    vocab = {f"{i:030d}": i for i in range(words)}
    text = json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}})
    read_tokenizer(text.ljust(nbytes).encode())


def _huge_tokenizer(folder: Path, n: int) -> None:
    """A file of holes: at the limit it is no tokenizer, beyond it it is not read."""
    path = folder / "tokenizer.json"
    path.write_bytes(b"")
    os.truncate(path, n)
    strict_json.read_bytes(path, path.name, limits.TOKENIZER_FILE)


def _vocab_size(folder: Path, n: int) -> None:
    config = json.loads((FIXTURES / "tiny-gpt-oss/hf/config.json").read_text("utf-8")) | {"vocab_size": n}
    arch = archs.arch_named("gguf", "gpt-oss")
    assert arch
    gguf_metadata.model_keys(arch.table, config, {"file_type": 38})


class Endless:
    """A remote file of `size` bytes: `start`, and zeros."""

    def __init__(self, start: bytes, size: int) -> None:
        self.start = start
        self.size = size

    def fetch(self, at: int, stop: int, out: bytearray) -> None:
        """Bytes `at` to `stop` behind `out`."""
        n = min(stop, self.size) - at
        out += self.start[:n].ljust(n, b"\0") if at == 0 else bytes(n)


def _head(start: bytes, n: int) -> None:
    """A header of `n` bytes, as its parser asks for it."""
    head = RemoteHead("x", Endless(start, 2 * n + 1))  # type: ignore[arg-type]
    head.read(0, 8)
    head.read(8, n - 8)


def _many_files(folder: Path, n: int) -> None:
    """As many remote files, none of which can be read; the limit comes first."""
    found = SimpleNamespace(folder="https://example.org/x", container="safetensors", files=(Gone(),) * n)
    checkpoint._each(found)  # type: ignore[arg-type]


class Gone:
    """A remote file that is not there."""

    name = "x.safetensors"

    def head(self) -> Any:
        """Its beginning."""
        raise InputError("is gone", file=self.name)


def _list(folder: Path, n: int) -> None:
    with web.serving({}) as server:
        server.routes["/list"] = bytes(n)
        exchange.document(server.url("/list"), {}, "list", limits.HUB_LIST, lambda response: OSError())


def _answer(folder: Path, n: int) -> None:
    meter = SimpleNamespace(count=lambda **counts: None)
    passage = Passage("https://example.org", httpx2, "a receipt", meter, threading.Event())
    request = httpx2.Request("GET", "https://example.org/x")
    passage._whole(httpx2.Response(200, content=bytes(n), request=request), request)


ASKING = {
    "safetensors header": Asking(
        "SAFETENSORS_HEADER", 1000, lambda f, n: _safetensors(f, st(b"{}".ljust(n))), InputError),
    "safetensors name": Asking(
        "SAFETENSORS_NAME", 10, lambda f, n: _safetensors(f, st({"x" * n: entry()}, bytes(4))), InputError),
    "safetensors dimensions": Asking(
        "SAFETENSORS_DIMS", 8, lambda f, n: _safetensors(f, st({"a": entry(shape=[4] + [1] * (n - 1))}, bytes(4))),
        InputError),
    "safetensors entry": Asking("SAFETENSORS_ENTRY", 100, _long_entry, InputError),
    "safetensors metadata": Asking(
        "SAFETENSORS_METADATA", 5, lambda f, n: _safetensors(f, st({"__metadata__": {str(i): "" for i in range(n)}}))),
    "safetensors tensors": Asking("TENSORS", 5, lambda f, n: _safetensors(f, _table(n))),
    "gguf tensors": Asking(
        "TENSORS", 5, lambda f, n: _gguf(f, gguf((), tuple(info(str(i), (0,)) for i in range(n))))),
    "tensors of two files": Asking("CHECKPOINT_TENSORS", 8, _shards, costly=True),
    "gguf keys": Asking(
        "GGUF_KEYS", 5, lambda f, n: _gguf(f, gguf(tuple(kv(str(i), 0) for i in range(n))))),
    "gguf key": Asking("GGUF_KEY", 20, lambda f, n: _gguf(f, gguf((kv("k" * n, 0),))), InputError),
    "gguf name": Asking("GGUF_NAME", 10, lambda f, n: _gguf(f, gguf((), (info("n" * n, (0,)),))), InputError),
    "gguf dimensions": Asking(
        "GGUF_DIMS", 2, lambda f, n: _gguf(f, gguf((), (info("t", (4,) + (1,) * (n - 1)),), bytes(16))), InputError),
    "gguf alignment": Asking(
        "GGUF_ALIGNMENT", 64, lambda f, n: _gguf(f, gguf((kv("general.alignment", 4, n),), alignment=n)), InputError,
        next=lambda n: 2 * n),
    "gguf values": Asking("GGUF_VALUES", 200, _values),
    "index": Asking("INDEX_FILE", 2000, lambda f, n: parse_index(_index(2).ljust(n))),
    "files of an index": Asking("INDEX_FILES", 5, lambda f, n: parse_index(_index(n))),
    "side file": Asking("SIDE_FILE", 2000, lambda f, n: _json(b"{}".ljust(n))),
    "commas of a side file": Asking(
        "SIDE_FILE", 2000, lambda f, n: _json(b'{"a":[%s1]}' % (b"1," * (n // limits.JSON_TOKEN - 2))),
        next=lambda n: n + limits.JSON_TOKEN),
    "tokenizer": Asking("TOKENIZER_FILE", 3000, lambda f, n: _tokenizer(40, n), costly=True),
    "tokenizer, as bytes": Asking("TOKENIZER_FILE", 3000, _huge_tokenizer),
    "tokens": Asking("VOCABULARY", 50, lambda f, n: _tokenizer(n), costly=True),
    "vocab_size": Asking("VOCABULARY", 50, _vocab_size, InputError),
    "nesting": Asking("JSON_DEPTH", 10, lambda f, n: _json(b'{"a":' * n + b"1" + b"}" * n), InputError),
    "remote safetensors header": Asking("REMOTE_SAFETENSORS_HEADER", 200_000, lambda f, n: _head(bytes(8), n)),
    "remote gguf header": Asking("REMOTE_GGUF_HEADER", 200_000, lambda f, n: _head(b"GGUF", n)),
    "remote files": Asking("REMOTE_FILES", 3, _many_files),
    "list of a repo": Asking("HUB_LIST", 5000, _list),
    "answer of the Hub": Asking("HUB_ANSWER", 5000, _answer),
}  # fmt: skip


def main() -> None:
    """Hold all cases to the limits in force."""
    for name, asking in ASKING.items():
        assert limits.LIMITS[asking.limit] == asking.small
        with tempfile.TemporaryDirectory() as folder:
            asking.holds(Path(folder))
        print(name)


if __name__ == "__main__":
    main()
