"""Converting from a remote end: the bytes of a local conversion, pinned, resumed, and nothing asked for twice."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import range_server as web
from commandline import run
from crash_runs import tree
from fsspec.implementations.memory import MemoryFileSystem
from range_server import SHA, Repo

import ckpttool
from ckpttool import api, steps
from ckpttool.containers import limits, patience
from ckpttool.containers.patience import Patience
from ckpttool.errors import InputError, NetworkError, UsageError
from ckpttool.reports import Conversion

pytestmark = pytest.mark.usefixtures("hasty")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
HF = FIXTURES / "hf"
RECEIPT = "ckpttool.receipt.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    """A server that huggingface_hub takes for the Hub."""
    with web.as_hub(monkeypatch) as server:
        yield server


def published(hub: web.Server, name: str, folder: Path) -> Repo:
    return Repo(hub, name, web.folder_files(folder)).publish()


@pytest.fixture
def tiny(hub: web.Server) -> Repo:
    """Called as the local folder is, since a GGUF's name comes from there."""
    return published(hub, "org/hf", HF)


def convert(source: str | Path, target: Path, **options: Any) -> Conversion:
    return ckpttool.convert(source, target, device="cpu", **options)


def compared(source: str, local: Path, tmp_path: Path, **options: Any) -> Conversion:
    """The receipt of converting what is there, which equals what is here, byte for byte."""
    name = "out.gguf" if options["to"] == "gguf" else "out"
    there = convert(source, tmp_path / "there" / name, **options)
    convert(local, tmp_path / "here" / name, **options)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert ckpttool.verify(tmp_path / "there" / name).ok
    return there


SHARDS = sorted(p.name for p in HF.glob("*.safetensors"))


@pytest.mark.parametrize("to", ["bf16", "mxfp4", "openai", "gguf"])
def test_a_repo_gives_what_its_folder_gives(to: str, tiny: Repo, tmp_path: Path) -> None:
    """Side files included; only those that are wanted are read, and each once."""
    report = compared("org/hf", HF, tmp_path, to=to)
    asked = tiny.requests
    assert {asked[n] for n in asked if n not in SHARDS} == {1}
    assert "LICENSE" not in asked or to != "gguf"
    sources = {f["name"]: f for f in report.source["files"]}
    for name in SHARDS:
        read = [r.range for r in tiny.asked(name)]
        assert len(set(read)) == len(read)  # no range twice
        assert sources[name]["etag"] == '"v1"'
        assert len(sources[name]["sha256"]) == 64


def test_no_byte_is_read_twice(tiny: Repo, tmp_path: Path) -> None:
    """But what came with the headers."""
    convert("org/hf", tmp_path / "out", to="bf16")
    for name in SHARDS:
        path = HF / name
        sent = sum(r.sent for r in tiny.asked(name))
        assert path.stat().st_size <= sent + 8 * 1024 <= path.stat().st_size + limits.REMOTE_FIRST + 8 * 1024


def test_the_commit_is_pinned_and_recorded(tiny: Repo, tmp_path: Path) -> None:
    tiny.revisions = ("v1.0",)
    tiny.publish()
    report = convert("org/hf@v1.0", tmp_path / "out", to="bf16")
    assert report.source["path"] == f"hf://org/hf@{SHA}"
    assert (report.source["revision"], report.source["commit"]) == ("v1.0", SHA)
    assert {r.path.split("/")[4] for r in tiny.server.log if "/resolve/" in r.path} == {SHA}
    newest = convert("org/hf", tmp_path / "newest", to="bf16")
    assert (newest.source["revision"], newest.source["commit"]) == (None, SHA)


@pytest.mark.parametrize("source", ["hf://org/hf", "{root}/org/hf"])
def test_other_words_for_a_repo(source: str, tiny: Repo, tmp_path: Path) -> None:
    compared(source.format(root=tiny.server.root), HF, tmp_path, to="bf16")


def test_one_gguf_of_a_repo(hub: web.Server, tmp_path: Path) -> None:
    """With a reference that is a repo too, of which only side files are read."""
    published(hub, "org/GGUF", FIXTURES / "gguf")
    reference = published(hub, "org/hf", HF)
    name = "tiny-gpt-oss-auto.gguf"
    there = convert(f"hf://org/GGUF/{name}", tmp_path / "there", to="mxfp4", reference="org/hf")
    convert(FIXTURES / "gguf" / name, tmp_path / "here", to="mxfp4", reference=HF)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert there.options["reference"] == f"hf://org/hf@{SHA}"
    assert there.source["path"] == f"hf://org/GGUF@{SHA}/{name}"
    assert not set(reference.requests) & {*SHARDS, "model.safetensors.index.json"}


def test_a_reference_on_the_hub_for_a_local_source(tiny: Repo, tmp_path: Path) -> None:
    convert(FIXTURES / "openai", tmp_path / "there", to="mxfp4", reference="hf://org/hf")
    convert(FIXTURES / "openai", tmp_path / "here", to="mxfp4", reference=HF)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_openai_s_folder_of_a_repo(hub: web.Server, tmp_path: Path) -> None:
    files = {f"original/{n}": p for n, p in web.folder_files(FIXTURES / "openai").items()}
    Repo(hub, "org/openai", files).publish()
    compared("hf://org/openai/original", FIXTURES / "openai", tmp_path, to="mxfp4")


def test_plain_urls(tmp_path: Path) -> None:
    """Without a list of what lies beside them, only config.json is looked for there."""
    name = "tiny-gpt-oss-auto.gguf"
    with web.serving({f"/x/{name}": FIXTURES / "gguf" / name}) as server:
        report = compared(server.url(f"/x/{name}"), FIXTURES / "gguf" / name, tmp_path, to="gguf", experts="bf16")
        assert "commit" not in report.source
        assert report.source["path"] == server.url(f"/x/{name}")


def test_a_store(tmp_path: Path) -> None:
    system = MemoryFileSystem()
    system.store.clear()
    for name, path in web.folder_files(HF).items():
        assert isinstance(path, Path)
        system.pipe(f"/hf/{name}", path.read_bytes())
    try:
        compared("memory://hf", HF, tmp_path, to="mxfp4")
    finally:
        system.store.clear()


def test_through_the_command(tiny: Repo, tmp_path: Path) -> None:
    """The dry run reads no tensor."""
    command = ("convert", "org/hf", tmp_path / "out", "--to", "bf16", "--device", "cpu", "--json")
    plan = run(*command, "--dry-run")
    assert plan.code == 0
    assert plan.document["source"] == f"hf://org/hf@{SHA}"
    assert all(len(tiny.asked(n)) == 1 for n in SHARDS)
    done = run(*command)
    assert done.code == 0
    assert done.document["source"]["commit"] == SHA
    assert json.loads((tmp_path / "out" / RECEIPT).read_text()) == done.document


# What goes wrong


def test_ranges_are_asked_for_several_at_once(tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a remote end is asked for, whatever the number of cores."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    plan = api.plan("org/hf", tmp_path / "out", to="bf16")
    assert api.preview(plan, api.limit(device="cpu")).workers >= limits.REMOTE_PARALLEL
    meeting = threading.Barrier(limits.REMOTE_PARALLEL)
    met = []

    def meet(handler: web.Handler) -> bool:
        if len(met) < limits.REMOTE_PARALLEL:
            meeting.wait(20)
            met.append(handler.record)
        return False

    tiny.server.always |= {tiny.path(n): meet for n in SHARDS}
    api.execute(plan, api.limit(device="cpu"))
    assert len(met) >= limits.REMOTE_PARALLEL


def test_what_may_pass_is_tried_again(tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets, refusals, truncated bodies: still every byte is right. One thread may meet all of them."""
    monkeypatch.setattr(patience, "PATIENCE", Patience(pauses=(0,) * 99))
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    faults: list[Callable[[web.Handler], bool] | None]
    faults = [None, web.status(503), web.cut(7), None, web.status(429), web.cut(0), None, web.status(500)]
    tiny.server.faults |= {tiny.path(n): faults * 3 for n in SHARDS}
    compared("org/hf", HF, tmp_path, to="mxfp4")


def broken_after(count: int, fault: web.Fault) -> web.Fault:
    """The right answer `count` times, then `fault`."""
    left = [count]

    def answer(handler: web.Handler) -> bool:
        with handler.server.lock:
            left[0] -= 1
            over = left[0] < 0
        return fault(handler) if over else False

    return answer


REFUSES = web.status(500)


def interrupted(tiny: Repo, target: Path, count: int = 8, fault: web.Fault = REFUSES) -> None:
    """A conversion of which the first shard's server has enough after some ranges."""
    tiny.server.always[tiny.path(SHARDS[0])] = broken_after(count, fault)
    with pytest.raises(NetworkError) as caught:
        convert("org/hf", target, to="bf16", workers=2)
    assert "goes on where this one stopped" in str(caught.value.hint)
    del tiny.server.always[tiny.path(SHARDS[0])]


def test_a_conversion_that_broke_off_goes_on(tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks for nothing of what is done but headers and side files."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    interrupted(tiny, tmp_path / "there" / "out")
    before = sum(r.sent for n in SHARDS for r in tiny.asked(n))
    report = convert("org/hf", tmp_path / "there" / "out", to="bf16")
    assert 0 < report.run["slabs_resumed"] < report.run["slabs"]
    after = sum(r.sent for n in SHARDS for r in tiny.asked(n))
    whole = sum((HF / n).stat().st_size for n in SHARDS)
    assert after - before < whole + len(SHARDS) * limits.REMOTE_FIRST
    convert(HF, tmp_path / "here" / "out", to="bf16")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


@pytest.mark.parametrize("change", ["sha256", "etag"])
def test_another_content_is_not_gone_on_with(
    change: str, tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header and its size are the same."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    name = SHARDS[0]
    if change == "etag":
        for path in (f"/api/models/{tiny.name}", *(f"/api/models/{tiny.name}/revision/{r}" for r in tiny.revisions)):
            document = json.loads(tiny.server.routes[path])
            for row in document["siblings"]:
                row.pop("lfs", None)
            tiny.server.routes[path] = json.dumps(document).encode()
    interrupted(tiny, tmp_path / "there" / "out")
    data = bytearray((HF / name).read_bytes())
    data[-64:] = bytes(64)
    if change == "etag":
        tiny.server.etags[tiny.path(name)] = "v2"
    else:
        for path, text in list(tiny.server.routes.items()):
            document = json.loads(text)
            for row in document["siblings"]:
                if row["rfilename"] == name:
                    row["lfs"]["sha256"] = "1" * 64
            tiny.server.routes[path] = json.dumps(document).encode()
    tiny.server.files[tiny.path(name)] = bytes(data)
    report = convert("org/hf", tmp_path / "there" / "out", to="bf16")
    assert report.run["slabs_resumed"] == 0
    (tmp_path / "changed").mkdir()
    for file in HF.iterdir():
        (tmp_path / "changed" / file.name).write_bytes(data if file.name == name else file.read_bytes())
    convert(tmp_path / "changed", tmp_path / "here" / "out", to="bf16")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (web.with_headers(ETag='"v2"'), "the remote file changed"),
        (web.with_headers(X_Repo_Commit="f" * 40), "is of commit ffffffffffff"),
        (web.whole, "ignores ranges"),
        (web.status(404), "no such file"),
        (web.with_headers(Content_Range="bytes 0-9/10"), "has 10 bytes, not"),
    ],
)
def test_a_file_that_changes_meanwhile(
    fault: web.Fault, says: str, tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is committed."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    interrupted(tiny, tmp_path / "out", fault=fault)
    assert not (tmp_path / "out").exists()
    done = run("convert", "org/hf", tmp_path / "out", "--to", "bf16", "--device", "cpu", "--json")
    assert done.code == 0


def test_a_server_that_names_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan says so, and what an interrupted run has left is not believed."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    monkeypatch.setattr(web.Handler, "etag", lambda self: "")
    monkeypatch.setattr(web.Handler, "serve_range", without_etag(web.Handler.serve_range))
    name = "tiny-gpt-oss-auto.gguf"
    with web.serving({f"/{name}": FIXTURES / "gguf" / name}) as server:
        source, target = server.url(f"/{name}"), tmp_path / "out.gguf"
        server.always[f"/{name}"] = broken_after(8, web.status(500))
        with pytest.raises(NetworkError):
            convert(source, target, experts="bf16", workers=2)
        server.always.clear()
        report = convert(source, target, experts="bf16")
        assert report.run["slabs_resumed"] == 0
        assert any("names no version" in note for note in report.notes)


def without_etag(serve: Callable[..., None]) -> Callable[..., None]:
    def served(self: web.Handler, **changes: str) -> None:
        sent = self.send_header
        self.send_header = lambda k, v: None if k == "ETag" else sent(k, v)  # type: ignore[method-assign]
        serve(self, **changes)

    return served


def test_an_interrupt_does_not_wait_for_a_server_that_stalls(tiny: Repo, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def arrive(*args: object) -> None:
        raise Stop

    over = threading.Event()
    plan = api.plan("org/hf", tmp_path / "out", to="bf16")
    tiny.server.always |= {tiny.path(n): web.stall(over) for n in SHARDS}
    before = signal.signal(signal.SIGALRM, arrive)
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(Stop):
            api.execute(plan, api.limit(device="cpu"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
    assert time.monotonic() - begun < 20
    assert not (tmp_path / "out").exists()


def test_side_files_that_are_refused(tiny: Repo, tmp_path: Path) -> None:
    """No target with a part of them."""
    tiny.server.always[tiny.path("tokenizer.json")] = web.status(403)
    with pytest.raises(NetworkError, match="refuses access"):
        convert("org/hf", tmp_path / "out", to="bf16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("org/none", NetworkError, "as a repo of the Hub: no such repo"),
        ("hf://org/hf/none", InputError, "no such file or folder"),
        ("no-such://bucket/x", UsageError, "is not known"),
    ],
)
def test_sources_that_are_not_there(source: str, error: type[Exception], says: str, tiny: Repo, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        convert(source, tmp_path / "out", to="bf16")
    with pytest.raises(error, match=says):
        convert(HF, tmp_path / "out", to="bf16", reference=source)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_a_local_conversion(tiny: Repo, tmp_path: Path) -> None:
    """What comes goes straight into the slabs' buffers, so the plan counts the same."""
    limits_ = api.limit(device="cpu", workers=4, max_memory="64MB")
    there = api.preview(api.plan("org/hf", tmp_path / "out", to="bf16"), limits_)
    here = api.preview(api.plan(HF, tmp_path / "out", to="bf16"), limits_)
    assert (there.peak_memory, there.workers) == (here.peak_memory, here.workers)
