"""Checkpoints on the Hub, in object stores and on this machine: the same inspection wherever the files lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import range_server as web
from commandline import run
from fsspec.implementations.memory import MemoryFileSystem
from header_checkpoints import write_headers
from range_server import SHA, Repo

from ckpttool import open_checkpoint
from ckpttool.containers import limits, stores
from ckpttool.errors import CkptError, InputError, LimitError, NetworkError, UsageError

pytestmark = pytest.mark.usefixtures("hasty")

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures" / "tiny-gpt-oss"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    """A server that huggingface_hub takes for the Hub, and a token for it."""
    with web.as_hub(monkeypatch) as server:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


@pytest.fixture
def tiny(hub: web.Server) -> Repo:
    return Repo(hub, "org/tiny", web.folder_files(FIXTURES / "hf")).publish()


@pytest.fixture
def ggufs(hub: web.Server) -> Repo:
    return Repo(hub, "org/tiny-GGUF", web.folder_files(FIXTURES / "gguf")).publish()


def inspected(source: str | Path) -> dict[str, Any]:
    """The report on `source`, without its name, and without what reading more than headers tells of a local one."""
    done = run("inspect", source, "--json")
    assert done.code == 0, done.out
    document = done.document
    document.pop("source")
    document["summary"].pop("fingerprint")
    template = document["summary"]["chat_template"]
    document["summary"]["chat_template"] = template and template.split(",")[0]
    return document


def refused(source: str, code: int = 5) -> str:
    """The one error that inspecting `source` ends with."""
    done = run("inspect", source, "--json")
    assert done.code == code, done.out
    (error,) = done.document["errors"]
    assert error["hint"]
    assert "hf_secret" not in done.out + done.err
    return f"{error['message']}; {error['hint']}"


# Repos


def test_a_repo_of_shards(tiny: Repo) -> None:
    assert inspected("org/tiny") == inspected(FIXTURES / "hf")
    shards = {n: 1 for n in tiny.files if n.endswith(".safetensors")}
    assert tiny.requests == shards | {"model.safetensors.index.json": 1, "config.json": 1, "generation_config.json": 1}
    assert len(tiny.server.log) == 1 + 1 + 3 + 1 + 1
    assert {r.headers["authorization"] for r in tiny.server.log} == {"Bearer hf_secret"}
    assert all(r.headers["user-agent"].startswith("ckpttool/") for r in tiny.server.log)


def test_the_commit_is_pinned_and_reported(tiny: Repo) -> None:
    tiny.revisions = ("v1.0",)
    tiny.publish()
    for source in ("org/tiny", "org/tiny@v1.0", f"org/tiny@{SHA}", f"hf://org/tiny@{SHA}"):
        assert run("inspect", source, "--json").document["source"] == f"hf://org/tiny@{SHA}"
    assert {r.path.split("/")[4] for r in tiny.server.log if "/resolve/" in r.path} == {SHA}


def test_what_identifies_remote_files(tiny: Repo) -> None:
    checkpoint = open_checkpoint("org/tiny")
    assert [f.sha256 for f in checkpoint.files] == [
        row["lfs"]["sha256"]
        for row in json.loads(tiny.server.routes["/api/models/org/tiny"])["siblings"]
        if "lfs" in row
    ]
    assert {f.etag for f in checkpoint.files} == {'"v1"'}
    assert str(checkpoint.files[0].place) == f"hf://org/tiny@{SHA}/{checkpoint.files[0].name}"


def test_companions_are_read_when_they_are_asked_for(tiny: Repo) -> None:
    companions = open_checkpoint("org/tiny").companions
    asked = len(tiny.server.log)
    assert sorted(companions) == sorted(open_checkpoint(FIXTURES / "hf").companions)
    assert "tokenizer.json" in companions
    assert "README.md" not in companions
    assert len(tiny.server.log) == asked
    assert companions["tokenizer_config.json"] == (FIXTURES / "hf" / "tokenizer_config.json").read_bytes()
    assert companions["tokenizer_config.json"]
    assert len(tiny.server.log) == asked + 1


@pytest.mark.parametrize(
    "source",
    [
        "hf://org/tiny-GGUF/tiny-gpt-oss-auto.gguf",
        "hf://org/tiny-GGUF@main/tiny-gpt-oss-auto.gguf",
        "{root}/org/tiny-GGUF/blob/main/tiny-gpt-oss-auto.gguf",
        "{root}/org/tiny-GGUF/resolve/main/tiny-gpt-oss-auto.gguf?download=true",
    ],
)
def test_one_gguf_of_a_repo(ggufs: Repo, source: str) -> None:
    source = source.format(root=ggufs.server.root)
    assert inspected(source) == inspected(FIXTURES / "gguf" / "tiny-gpt-oss-auto.gguf")
    assert ggufs.requests == {"tiny-gpt-oss-auto.gguf": 1}


def test_a_folder_of_a_repo(ggufs: Repo) -> None:
    assert inspected("hf://org/tiny-GGUF/split") == inspected(FIXTURES / "gguf" / "split")
    assert set(ggufs.requests.values()) == {1}


def test_a_repo_of_one_gguf(hub: web.Server) -> None:
    repo = Repo(hub, "org/one", {"x.gguf": FIXTURES / "gguf" / "tiny-gpt-oss-q8_0.gguf", "README.md": b"# x"}).publish()
    assert inspected("org/one")["files"][0]["name"] == "x.gguf"
    assert repo.requests == {"x.gguf": 1}


def test_an_original_folder(hub: web.Server) -> None:
    files = {f"original/{n}": p for n, p in web.folder_files(FIXTURES / "openai").items()}
    Repo(hub, "org/full", {**files, **web.folder_files(FIXTURES / "hf")}).publish()
    assert inspected("hf://org/full/original") == inspected(FIXTURES / "openai")
    assert inspected("org/full") == inspected(FIXTURES / "hf")


def test_full_size(hub: web.Server, tmp_path: Path) -> None:
    here = write_headers(tmp_path / "120b", "120b")
    vocabulary = write_headers(tmp_path / "gguf", "20b", container="gguf")
    repo = Repo(hub, "openai/gpt-oss-120b", web.folder_files(here)).publish()
    assert inspected("openai/gpt-oss-120b") == inspected(here)
    assert len(repo.requests) == 18
    assert set(repo.requests.values()) == {1}
    assert sum(r.sent for r in hub.log) < 3_000_000

    repo = Repo(hub, "x/gpt-oss-20b-GGUF", {vocabulary.name: vocabulary}).publish()
    assert inspected("x/gpt-oss-20b-GGUF") == inspected(vocabulary)
    assert [r.range for r in repo.asked(vocabulary.name)] == ["bytes=0-131071", "bytes=131072-16777215"]


def test_a_process_of_its_own(tiny: Repo, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": tiny.server.root,
        "HF_TOKEN": "hf_other",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "ckpttool", "inspect", "org/tiny", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parameters"] == inspected(FIXTURES / "hf")["parameters"]
    assert {r.headers["authorization"] for r in tiny.server.log} == {"Bearer hf_other"}
    assert list(tmp_path.iterdir()) == []

    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "HF_HUB_OFFLINE is set" in json.loads(done.stdout)["errors"][0]["message"]


# What is here wins


def test_a_path_that_exists_wins(tiny: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").symlink_to(FIXTURES / "gguf" / "split")
    assert inspected("org/tiny")["container"] == "gguf"
    assert inspected(f"file://{FIXTURES / 'hf'}") == inspected(FIXTURES / "hf")
    said = refused("org/other", 3)
    assert said == "no such file or folder; check the path, or give hf://org/other if a repo of the Hub is meant"
    assert tiny.server.log == []
    assert inspected("hf://org/tiny")["container"] == "safetensors"


@pytest.mark.parametrize("source", ["gone", "./org/tiny", "a/b/c", "/org/tiny", "../org/tiny", "org/", "-x/y/", "C:x"])
def test_what_is_no_repo_is_a_path(hub: web.Server, source: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        open_checkpoint(source)
    assert hub.log == []


# Refusals of the Hub


def test_no_such_repo(hub: web.Server) -> None:
    said = refused("org/gone")
    assert said.startswith("no such file or folder here; as a repo of the Hub: no such repo at 127.0.0.1")
    assert "may your token read it?" in said


def test_no_such_revision(tiny: Repo) -> None:
    path = "/api/models/org/tiny/revision/v9"
    tiny.server.always[path] = web.status(404, X_Error_Code="RevisionNotFound")
    assert "the repo has no revision v9" in refused("org/tiny@v9")


def test_no_such_file(tiny: Repo) -> None:
    assert "the repo has no such file or folder; it has config.json" in refused("hf://org/tiny/x.gguf", 3)


def test_a_gated_repo(tiny: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    tiny.server.always[tiny.path("model.safetensors.index.json")] = web.status(403, X_Error_Code="GatedRepo")
    page = tiny.server.url("/org/tiny")
    assert refused("org/tiny") == f"the repo is gated; accept its terms at {page}"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    assert refused("org/tiny").endswith(
        f"accept its terms at {page}, then log in with: hf auth login (or set HF_TOKEN)"
    )
    assert "authorization" not in tiny.server.log[-1].headers


def test_a_gated_list(hub: web.Server) -> None:
    hub.always["/api/models/org/gated"] = web.status(403, X_Error_Code="GatedRepo")
    assert "the repo is gated; accept its terms at" in refused("org/gated")


def test_a_hub_that_is_busy(tiny: Repo) -> None:
    busy = [web.status(503), web.status(429, RateLimit='"api";r=0;t=0')]
    tiny.server.faults["/api/models/org/tiny"] = list(busy)
    tiny.server.faults[tiny.path(SHARD)] = list(busy)
    assert inspected("org/tiny") == inspected(FIXTURES / "hf")
    tiny.server.routes.pop("/api/models/org/tiny")
    tiny.server.always["/api/models/org/tiny"] = web.status(500)
    assert "the server answers 500, 5 times" in refused("org/tiny")


def test_offline(tiny: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("org/tiny", "https://example.org/x.gguf"):
        assert "HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE" in refused(source)
    assert tiny.server.log == []


ANSWERS = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "no commit": b'{"id": "org/tiny", "sha": null, "siblings": []}',
    "a commit that is a path": b'{"id": "org/tiny", "sha": "../../x", "siblings": []}',
    "a file without a name": b'{"id": "org/tiny", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{}]}',
    "files that are numbers": b'{"id": "org/tiny", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [1]}',
    "brackets without end": b"[" * 100_000,
    **{
        f"a row {name}": b'{"id": "org/tiny", "sha": "%s", "siblings": [{%s}]}' % (SHA.encode(), row)
        for name, row in {
            "that leaves the repo": b'"rfilename": "../../api/whoami"',
            "at the root": b'"rfilename": "/etc/passwd"',
            "whose path is a number": b'"rfilename": 5',
            "of a negative size": b'"rfilename": "x", "size": -1',
            "of a size that is text": b'"rfilename": "x", "size": "5"',
            "of an endless size": b'"rfilename": "x", "size": 1e400',
            "whose sha256 is none": b'"rfilename": "x", "lfs": {"sha256": "\\u001b[31m"}',
            "whose sha256 is a number": b'"rfilename": "x", "lfs": {"sha256": 5}',
        }.items()
    },
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_lists_that_are_none(tiny: Repo, answer: bytes) -> None:
    tiny.server.routes["/api/models/org/tiny"] = answer
    assert "as a repo of the Hub: the Hub" in refused("org/tiny")


def test_an_empty_repo(hub: web.Server) -> None:
    Repo(hub, "org/empty", {}).publish()
    assert "holds no safetensors and no GGUF" in refused("org/empty", 3)


def test_several_ggufs(ggufs: Repo) -> None:
    said = refused("org/tiny-GGUF", 3)
    assert said.startswith("holds several GGUFs")
    assert said.endswith(f"give one as SOURCE: hf://org/tiny-GGUF@{SHA}/tiny-gpt-oss-auto.gguf")


def test_ggufs_in_folders(hub: web.Server) -> None:
    Repo(hub, "org/folders", {"BF16/a.gguf": b"GGUF", "Q8_0/a.gguf": b"GGUF", "README.md": b""}).publish()
    assert refused("org/folders", 3).endswith(f"hf://org/folders@{SHA}/BF16, hf://org/folders@{SHA}/Q8_0")


def test_pickles_alone(hub: web.Server) -> None:
    repo = Repo(hub, "org/old", {"pytorch_model.bin": b"\x80\x02", "config.json": b"{}"}).publish()
    assert "pickles can run code" in refused("org/old", 3)
    assert repo.requests == {"pytorch_model.bin": 1}  # its first bytes


def test_an_adapter(hub: web.Server) -> None:
    config = b'{"base_model_name_or_path": "openai/gpt-oss-20b"}'
    Repo(hub, "org/lora", {"adapter_model.safetensors": b"x", "adapter_config.json": config}).publish()
    assert "an adapter of openai/gpt-oss-20b; merge it first" in refused("org/lora", 3)


# Repos that are not what they say


def test_a_shard_that_the_index_names_is_gone(tiny: Repo) -> None:
    del tiny.files[SHARD]
    tiny.publish()
    assert f"names files that are not there: {SHARD}" in refused("org/tiny", 3)


def test_a_shard_that_the_list_names_is_gone(tiny: Repo) -> None:
    del tiny.server.files[tiny.path(SHARD)]
    assert "there is no such file (404)" in refused("org/tiny")


def test_a_shard_of_another_size(tiny: Repo) -> None:
    tiny.sizes[SHARD] = 10_000_000
    tiny.publish()
    assert "the remote file changed: has" in refused("org/tiny")


def test_a_branch_that_moves(tiny: Repo) -> None:
    tiny.server.always[tiny.path(SHARD)] = web.with_headers(X_Repo_Commit="f" * 40)
    assert "is of commit ffffffffffff, not 0123456789ab; it was replaced meanwhile" in refused("org/tiny")


def test_every_bad_shard_is_named(tiny: Repo) -> None:
    for name in tiny.files:
        if name.endswith(".safetensors"):
            tiny.server.files[tiny.path(name)] = b"<!DOCTYPE html>".ljust(tiny.files[name].stat().st_size)  # type: ignore[union-attr]
    done = run("inspect", "org/tiny", "--json")
    assert (done.code, len(done.document["errors"])) == (3, 3)


@pytest.mark.parametrize("name", ["../../api/whoami.safetensors", "/x.safetensors", "a/b.safetensors"])
def test_an_index_may_not_leave_its_repo(tiny: Repo, name: str) -> None:
    tiny.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"t": name}}).encode()
    tiny.publish()
    assert "plain file name inside the folder" in refused("org/tiny", 3)
    assert set(tiny.requests) == {"model.safetensors.index.json"}


def test_side_files_have_limits(tiny: Repo) -> None:
    tiny.sizes["model.safetensors.index.json"] = limits.INDEX_FILE + 1
    tiny.publish()
    assert "more than the 67,108,864" in refused("org/tiny", 6)
    assert tiny.requests == {}


def test_more_files_than_are_asked_for(hub: web.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_FILES", 2)
    repo = Repo(hub, "org/tiny", web.folder_files(FIXTURES / "hf")).publish()
    with pytest.raises(LimitError, match="has 3 files, more than the 2 that are asked for"):
        open_checkpoint("org/tiny")
    assert set(repo.requests) == {"model.safetensors.index.json"}


def test_files_on_another_host(tiny: Repo) -> None:
    """As the Hub does it: files redirect to a store that must not see the token."""
    with web.serving({}) as store:
        for name, content in tiny.files.items():
            store.files[f"/{name}"] = content
            tiny.server.always[tiny.path(name)] = web.redirect(store.url(f"/{name}"))
        assert inspected("org/tiny") == inspected(FIXTURES / "hf")
        assert len(store.log) == 6
        assert not [r for r in store.log if "authorization" in r.headers]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf://", "is no address of a repo"),
        ("hf://org", "is no address of a repo"),
        ("hf://spaces/org/x", "is a space, which holds no checkpoint"),
        ("hf://buckets/org/x", "is a bucket, which holds no checkpoint"),
        ("{root}/org/tiny/discussions/1", "is no address of a repo"),
        ("nosuch://bucket/x", "nosuch:// is not known"),
    ],
)
def test_addresses_that_are_none(hub: web.Server, source: str, says: str) -> None:
    assert says in refused(source.format(root=hub.root), 2)
    assert hub.log == []


def test_a_list_of_files_that_redirects_without_end(hub: web.Server) -> None:
    hub.always["/api/models/org/loop"] = web.redirect("/api/models/org/loop")
    assert "more than 3 redirects" in refused("org/loop")
    assert len(hub.log) == 4


def test_no_token_of_an_address_is_shown(hub: web.Server) -> None:
    refused("https://user:hf_secret@huggingface.co/org/gone")
    refused("https://user:hf_secret@huggingface.co/", 2)


# Object stores


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    for folder in ("hf", "gguf"):
        for name, content in web.folder_files(FIXTURES / folder).items():
            assert isinstance(content, Path)
            system.pipe_file(f"/bucket/{folder}/{name}", content.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def test_a_folder_of_a_store(memory: MemoryFileSystem) -> None:
    assert inspected("memory://bucket/hf") == inspected(FIXTURES / "hf")
    assert inspected("memory://bucket/hf/") == inspected(FIXTURES / "hf")
    assert inspected("memory://bucket/gguf/split") == inspected(FIXTURES / "gguf" / "split")


@pytest.mark.parametrize("name", ["hf/model.safetensors.index.json", "gguf/tiny-gpt-oss-auto.gguf"])
def test_a_file_of_a_store(memory: MemoryFileSystem, name: str) -> None:
    """Beside a file config.json is looked for, and no other: nothing lists them."""
    remote, local = inspected(f"memory://bucket/{name}"), inspected(FIXTURES / name)
    if name.endswith(".json"):
        for report in (remote, local):
            for key in ("vocabulary", "chat_template", "said"):
                report["summary"].pop(key)
    assert remote == local


def test_what_a_store_is_asked(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    cat = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        asked.append((path.rpartition("/")[2], start, end))
        return cat(self, path, start, end)  # type: ignore[no-any-return]

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    inspected("memory://bucket/hf")
    assert sorted(asked) == [
        ("config.json", 0, 1318),
        ("generation_config.json", 0, 162),
        *((f"model-0000{i}-of-00002.safetensors", 0, 131_072) for i in range(3)),
        ("model.safetensors.index.json", 0, 6540),
    ]


def test_a_store_without_such_a_thing(memory: MemoryFileSystem) -> None:
    assert "there is no such file or folder" in refused("memory://bucket/gone")
    assert "holds several GGUFs" in refused("memory://bucket/gguf", 3)


def test_a_file_that_changes_in_a_store(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_FIRST", 1024)
    cat = MemoryFileSystem.cat_file

    def replaced(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        data: bytes = cat(self, path, start, end)
        self.pipe_file(path, b"x" * 2_000_000)
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", replaced)
    assert "the remote file changed: its etag is" in refused("memory://bucket/gguf/tiny-gpt-oss-auto.gguf")


def test_a_file_that_is_replaced_while_its_second_range_is_read(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the file before that would not tell."""
    name = "/bucket/gguf/tiny-gpt-oss-auto.gguf"
    (folder, one) = stores.store_folder(f"memory:/{name}")
    assert one is not None
    ranges = folder.file(one).ranges
    cat = MemoryFileSystem.cat_file

    def replaced(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        if start:
            self.pipe_file(path, b"x" * 2_000_000)
        data: bytes = cat(self, path, start, end)
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", replaced)
    assert ranges.fetch(0, 4) == b"GGUF"
    with pytest.raises(NetworkError, match="the remote file changed: its etag is"):
        ranges.fetch(4, 8)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (PermissionError("Forbidden"), NetworkError, "the store refuses: PermissionError: Forbidden"),
        (RuntimeError("NoCredentials"), NetworkError, "are the store's credentials set"),
        (FileNotFoundError("x"), NetworkError, "there is no such file"),
        (ImportError("no aiohttp"), UsageError, "its driver is not installed: no aiohttp; install it with pip"),
    ],
)
def test_a_store_that_refuses(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[CkptError], says: str
) -> None:
    def fail(*args: object, **options: object) -> bytes:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(kind, match=says):
        open_checkpoint("memory://bucket/gguf/tiny-gpt-oss-auto.gguf")


@pytest.mark.parametrize(("more", "says"), [(1, "sends 5 bytes where 4 were asked for"), (-4, "0 came")])
def test_a_store_that_sends_more_or_less(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, more: int, says: str
) -> None:
    folder, one = stores.store_folder("memory://bucket/gguf/tiny-gpt-oss-auto.gguf")
    assert one is not None
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start, end: bytes(end - start + more))
    with folder.file(one).open() as f, pytest.raises(NetworkError, match=says):
        f.readinto(0, bytearray(4))


def test_a_store_that_sends_nothing_of_a_header(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start, end: b"")
    assert "ends at byte 0, before its size" in refused("memory://bucket/gguf/tiny-gpt-oss-auto.gguf")


def test_a_sibling_that_is_not_there(memory: MemoryFileSystem) -> None:
    folder, _ = stores.store_folder("memory://bucket/hf/model.safetensors.index.json")
    assert folder.file("config.json").ranges.size == 1318
    with pytest.raises(NetworkError, match=r"hf/gone\.json: there is no such file"):
        folder.file("gone.json")


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match="pip install s3fs"):
        open_checkpoint("s3://bucket/x.gguf")
