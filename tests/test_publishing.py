"""Files on their way to a repo: whom it lets in, what is put and what is not, and the commit that shows all of it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_hub
import fake_repos
import hub_faults
import pytest
from fake_hub import FakeHub
from fake_repos import User
from hub_faults import Answer
from huggingface_hub import constants, get_session
from huggingface_hub.utils import are_progress_bars_disabled

from ckpttool.containers import patience
from ckpttool.containers.exchange import session
from ckpttool.errors import CkptError, InputError, LocalIOError, NetworkError, UsageError
from ckpttool.publishing import door, refusals
from ckpttool.publishing import sending as published_by
from ckpttool.publishing.access import Access, check_access, made
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.report import State
from ckpttool.publishing.repos import RepoTarget, is_repo_url, repo_target
from ckpttool.publishing.sending import Sending, git_sha1

pytestmark = pytest.mark.usefixtures("hasty")

TOKEN = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
NARROW = "hf_" + "n" * 34
DATA = bytes(range(256)) * 40
SHARD = "model-00001-of-00001.safetensors"
CONFIG = b'{"model_type": "gpt_oss"}'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        hub.users |= {TOKEN: User("ada"), READER: User("ada", "read"), NARROW: User("ada", only=("ada/other",))}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sending(target: str | RepoTarget = "ada/m", **options: Any) -> Sending:
    """A publication that may begin: access checked, repo and branch made."""
    target = repo_target(target) if isinstance(target, str) else target
    calls = Calls(target)
    access = made(target, check_access(target, private=None, calls=calls), None, calls)
    return Sending(target, access, calls=calls, **options)


def put(to: Sending, files: dict[str, bytes]) -> list[State]:
    return [to.put(name, data, sha(data), len(data)) for name, data in files.items()]


FILES = {SHARD: DATA, "config.json": CONFIG}


def published(to: Sending, files: dict[str, bytes] = FILES) -> tuple[str, str | None]:
    put(to, files)
    return to.commit("A conversion", "of something")


def refused(what: Callable[[], object], kind: type[CkptError] = NetworkError) -> str:
    """The message and hint that it ends with, in which no token stands."""
    with pytest.raises(kind) as caught:
        what()
    assert caught.value.hint
    said = str(caught.value)
    assert TOKEN not in said and READER not in said and "Signature" not in said
    return said


# Which repo


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ada/m", RepoTarget("ada/m")),
        ("ada/m@next/one", RepoTarget("ada/m", "next/one")),
        ("hf://ada/m", RepoTarget("ada/m")),
        ("hf://ada/m@dev/sub/x.gguf", RepoTarget("ada/m", "dev", path="sub/x.gguf")),
        ("hf://models/ada/m", RepoTarget("ada/m")),
        ("hf://ada/m@refs/pr/3", RepoTarget("ada/m", "refs/pr/3")),
        ("{hub}/ada/m/tree/dev", RepoTarget("ada/m", "dev")),
        ("https://huggingface.co/ada/m", RepoTarget("ada/m")),
    ],
)
def test_addresses(hub: FakeHub, text: str, expected: RepoTarget) -> None:
    target = repo_target(text.format(hub=hub.endpoint))
    assert target == expected
    assert target.name == "m" and target.url == f"{hub.endpoint}/ada/m"


def test_options_of_an_address() -> None:
    assert repo_target("ada/m", revision="dev") == repo_target("ada/m@dev", revision="dev") == repo_target("ada/m@dev")
    assert repo_target("ada/m", pr=True).pr
    assert [str(repo_target(t)) for t in ("ada/m", "hf://ada/m@dev")] == ["ada/m", "ada/m@dev"]
    assert is_repo_url("hf://a/b") and is_repo_url("https://x.org/a/b") and not is_repo_url("ada/m")


BAD = [
    "", "m", "ada/../m", "../ada/m", "ada/m m", "ada/m\n", "ada/m\u202e", "ada/m--x", "ada/m.git", "ada/.m",
    "ada/m/..", "a/b/../../c", "ada/m@", "ada/m/x.gguf", "datasets/ada/m", "@dev",
    "hf://datasets/ada/m", "hf://spaces/ada/m", "hf://buckets/ada/m", "hf://ada/m@../x", "hf://ada/m@a..b",
    "hf://ada/m@" + "a" * 40, "ada/m@-x", "ada/m@x.lock", "ada/" + "m" * 97, "s3://bucket/m", "file:///ada/m",
    "hf://ada/m/sub/../../x.gguf", "hf://ada:secret@m",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_repo(text: str) -> None:
    assert "secret" not in refused(lambda: repo_target(text, allow_endpoint=True), UsageError)


def test_contradictions_of_an_address() -> None:
    assert "--revision dev" in refused(lambda: repo_target("ada/m@main", revision="dev"), UsageError)
    assert "goes to main" in refused(lambda: repo_target("ada/m@dev", pr=True), UsageError)


def test_other_hosts_need_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("https://hub.example.org/ada/m", "https://user:pw@hub.example.org/ada/m"):
        said = refused(lambda text=text: repo_target(text), UsageError)  # type: ignore[misc]
        assert "--allow-endpoint" in said and "pw" not in said
        target = repo_target(text, allow_endpoint=True)
        assert (target.id, target.endpoint, target.url) == (
            "ada/m", "https://hub.example.org", "https://hub.example.org/ada/m",
        )  # fmt: skip
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example.org")
    assert "without encryption" in refused(lambda: repo_target("ada/m"), UsageError)
    assert repo_target("ada/m", allow_endpoint=True) == RepoTarget("ada/m")
    for here in ("http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000", "https://mirror.example.org"):
        monkeypatch.setattr(constants, "ENDPOINT", here)
        assert repo_target("ada/m") == RepoTarget("ada/m")
    monkeypatch.setattr(constants, "ENDPOINT", "https://user:pw@mirror.example.org")
    assert repo_target("ada/m").url == "https://mirror.example.org/ada/m"


# Who may write


def access(text: str = "ada/m", *, private: bool | None = None, **options: Any) -> Access:
    return check_access(repo_target(text, **options), private=private)


def test_access_to_what_is_there(hub: FakeHub) -> None:
    repo = hub.add("ada/m", {SHARD: DATA, "config.json": CONFIG}, private=True)
    found = access()
    assert (found.user, found.exists, found.private, found.head) == ("ada", True, True, repo.head())
    shard, config = found.files[SHARD], found.files["config.json"]
    assert (shard.nbytes, shard.sha256) == (len(DATA), sha(DATA))
    assert (config.nbytes, config.sha256, config.git_sha1) == (len(CONFIG), None, git_sha1(CONFIG))
    assert [c.route for c in hub.calls] == ["whoami", "info", "auth"]
    assert access(private=True) == found


def test_access_makes_nothing(hub: FakeHub) -> None:
    assert access(private=True) == Access("ada", False, True, None, {})
    repo = hub.add("ada/n")
    found = access("ada/n@dev")
    assert (found.exists, found.private, found.head, dict(found.files)) == (True, False, None, {})
    assert list(hub.repos) == ["ada/n"] and list(repo.refs) == ["main"]


def test_who_may_not_write(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("ada/m")
    hub.add("bob/m")
    hub.add("bob/secret", private=True)
    assert "403" in refused(lambda: access("bob/m"))
    assert "neither you (ada)" in refused(lambda: access("bob/other"))
    assert "neither you (ada)" in refused(lambda: access("bob/secret"))
    assert "is public" in refused(lambda: access(private=True), UsageError)
    assert "no such repo" in refused(lambda: access("ada/none", pr=True), UsageError)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "/settings/tokens" in refused(access)
    assert "may only read" in refused(lambda: access("ada/new"))
    monkeypatch.setenv("HF_TOKEN", NARROW)
    assert "write access to ada/m" in refused(access)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "401" in (said := refused(access)) and "hf auth login" in said
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.calls)
    assert "not logged in" in refused(access)
    assert len(hub.calls) == asked
    assert not any(c.method == "PUT" or c.route in ("create", "branch", "commit") for c in hub.calls)


def test_organisations(hub: FakeHub) -> None:
    for role, ok in (("admin", True), ("write", True), ("contributor", True), ("read", False)):
        org = {"name": "lovelace", "roleInOrg": role}
        hub.faults["whoami"] = [hub_faults.said(lambda me, org=org: me | {"orgs": [org]})]  # type: ignore[misc]
        if ok:
            assert not access("lovelace/m").exists
        else:
            assert "your role in lovelace may only read" in refused(lambda: access("lovelace/m"))


def test_a_pull_request_needs_no_right_to_write(hub: FakeHub) -> None:
    hub.add("bob/m")
    assert access("bob/m", pr=True).exists


def test_a_renamed_repo(hub: FakeHub) -> None:
    hub.add("ada/m")
    hub.faults["info"] = [hub_faults.said(lambda info: info | {"id": "ada/renamed"})]
    assert "called ada/renamed" in refused(access, UsageError)


def test_an_answer_that_is_none(hub: FakeHub) -> None:
    hub.add("ada/m")
    for edit in (lambda info: {}, lambda info: info | {"sha": "HEAD"}, lambda info: info | {"sha": None}):
        hub.faults["info"] = [hub_faults.said(edit)]
        assert "not what its API promises" in refused(access)
    hub.faults["info"] = [hub_faults.page]
    assert "is HF_ENDPOINT a Hub?" in refused(access)


def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(access)
    assert not hub.calls


def test_repo_and_branch_are_made(hub: FakeHub) -> None:
    for private in (None, True, False):
        name = f"ada/{private}".lower()
        target = repo_target(f"{name}@dev")
        found = made(target, check_access(target, private=private), private)
        assert hub.repos[name].private is bool(private)
        assert found.head == hub.repos[name].head("dev") == hub.repos[name].head()
        asked = len(hub.calls)
        assert made(target, found, private) is found and len(hub.calls) == asked


@pytest.mark.parametrize("route", ["create", "branch", "info", "whoami", "auth"])
@pytest.mark.parametrize(
    "fault", [hub_faults.reply_lost, hub_faults.reset, hub_faults.status(503), hub_faults.truncated(3)]
)
def test_making_survives(hub: FakeHub, route: str, fault: hub_faults.Fault) -> None:
    if route == "auth":
        hub.add("ada/m")
    hub.faults[route] = [fault, fault]
    assert sending("ada/m@dev").access.head == hub.repos["ada/m"].head("dev")


# What is put


def test_large_goes_up_and_small_waits(hub: FakeHub, tmp_path: Path) -> None:
    place = tmp_path / "shard"
    place.write_bytes(DATA)
    seen: list[int] = []
    to = sending(progress=seen.append)
    repo = hub.repos["ada/m"]
    before = repo.files()
    assert to.put(SHARD, place, sha(DATA), len(DATA)) is State.uploaded
    place.unlink()
    assert to.put("config.json", CONFIG, sha(CONFIG), len(CONFIG)) is State.uploaded
    assert sha(DATA) in repo.objects and repo.files() == before
    commit, request = to.commit("A conversion", "of something")
    assert (commit, request) == (repo.head(), None)
    assert repo.files() == before | {SHARD: DATA, "config.json": CONFIG}
    assert repo.log[-1] == ("main", "A conversion")
    assert [(f.name, f.nbytes, f.sha256, f.state) for f in to.files] == [
        ("config.json", len(CONFIG), sha(CONFIG), State.uploaded), (SHARD, len(DATA), sha(DATA), State.uploaded),
    ]  # fmt: skip
    assert sum(seen) == len(DATA) + len(CONFIG)
    assert to.traffic.requests == len(hub.calls)
    assert to.traffic.up_nbytes == sum(len(c.body) for c in hub.calls)
    assert to.traffic.down_nbytes > 0
    assert {c.token for c in hub.calls if c.route != "object"} == {TOKEN}
    assert {c.token for c in hub.asked("object")} == {None}


def test_again_puts_nothing(hub: FakeHub) -> None:
    first, _ = published(sending())
    asked = len(hub.calls)
    to = sending()
    assert put(to, FILES) == [State.unchanged] * 2
    assert to.commit("again") == (first, None)
    assert {c.route for c in hub.calls[asked:]} == {"whoami", "info", "auth", "paths"}


def test_an_interrupted_run_is_continued(hub: FakeHub) -> None:
    put(sending(), FILES)
    to = sending()
    assert to.has(sha(DATA), len(DATA)) and not to.has(sha(b"x"), 1)
    assert put(to, FILES) == [State.present, State.uploaded]
    to.commit("A conversion")
    assert hub.count("object") == 1 and hub.repos["ada/m"].files()[SHARD] == DATA


def test_content_that_lies_here_no_more(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    put(sending(), FILES)
    seen: list[int] = []
    to = sending(progress=seen.append)
    assert to.claim(SHARD, sha(DATA), len(DATA)) is State.present
    with caplog.at_level(logging.WARNING):
        to.commit("A conversion")
    assert hub.repos["ada/m"].files()[SHARD] == DATA and hub.count("object") == 1
    assert seen == [len(DATA)] and not caplog.records
    to = sending()
    assert to.claim(SHARD, sha(DATA), len(DATA)) is State.unchanged
    other = DATA + b"never sent"
    to.claim("b.safetensors", sha(other), len(other))
    refused(lambda: to.commit("A conversion"))
    assert "b.safetensors" not in hub.repos["ada/m"].files() and sha(b"") not in hub.repos["ada/m"].objects


def test_content_of_two_names_goes_up_once(hub: FakeHub) -> None:
    to = sending()
    names = [f"{n}.safetensors" for n in range(6)]
    threads = [threading.Thread(target=to.put, args=(n, DATA, sha(DATA), len(DATA))) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    to.commit("copies")
    assert hub.count("object") == 1 and {hub.repos["ada/m"].files()[n] for n in names} == {DATA}
    assert sorted(f.state for f in to.files) == [State.present] * 5 + [State.uploaded]


def test_what_others_put_there_stays(hub: FakeHub) -> None:
    repo = hub.add("ada/m", {"theirs.bin": b"1" * 100, "notes.txt": b"n", "config.json": b"old"})
    before = repo.files()
    published(sending())
    assert repo.files() == before | FILES


def test_small_files_that_the_repo_keeps_large(hub: FakeHub) -> None:
    hub.add("ada/m", {".gitattributes": fake_repos.ATTRIBUTES + b"tokenizer.json filter=lfs\n"})
    to = sending()
    assert put(to, {"tokenizer.json": b"{}"}) == [State.uploaded]
    to.commit("tokenizer")
    assert hub.count("object") == 1
    assert put(sending(), {"tokenizer.json": b"{}"}) == [State.unchanged]


def test_an_empty_file(hub: FakeHub) -> None:
    published(sending(), {"empty.bin": b"", "empty.txt": b""})
    assert hub.repos["ada/m"].files()["empty.bin"] == b"" and not hub.count("object")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_an_open_file_cannot_be_swapped(hub: FakeHub, tmp_path: Path) -> None:
    place = tmp_path / "shard"
    place.write_bytes(DATA)
    to = sending()
    with place.open("rb") as f:
        place.unlink()
        place.write_bytes(b"a secret")
        to.put(SHARD, f"/proc/self/fd/{f.fileno()}", sha(DATA), len(DATA))
    to.commit("A conversion")
    assert hub.repos["ada/m"].files()[SHARD] == DATA


@pytest.mark.parametrize("data", [DATA, CONFIG])
def test_content_that_is_another(hub: FakeHub, tmp_path: Path, data: bytes) -> None:
    to = sending()
    place = tmp_path / "x"
    place.write_bytes(data[:-1])
    name = SHARD if data is DATA else "config.json"
    assert "changed" in refused(lambda: to.put(name, place, sha(data), len(data)), InputError)
    place.write_bytes(data[:-1] + b"?")
    refused(lambda: to.put(name, place, sha(data), len(data)), CkptError)
    place.unlink()
    refused(lambda: to.put(name, place, sha(data), len(data)), LocalIOError)
    assert not hub.repos["ada/m"].objects and to.files == ()


NAMES = [
    "../x",
    "a/../x",
    "/x",
    "",
    "a//b",
    ".git/config",
    "a/.git/x",
    ".cache/x",
    "a\\b",
    "a\nb",
    ".",
    "a/./b",
    "x\u202e",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_repo_has(hub: FakeHub, name: str) -> None:
    to = sending()
    refused(lambda: to.put(name, b"x", sha(b"x"), 1), InputError)
    assert not hub.count("preupload")


def test_weights_that_the_repo_would_keep_as_text(hub: FakeHub) -> None:
    hub.add("ada/m", {".gitattributes": b"*.bin filter=lfs -text\n"})
    to = sending()
    for name in ("m.gguf", SHARD):
        said = refused(lambda name=name: to.put(name, DATA, sha(DATA), len(DATA)), UsageError)  # type: ignore[misc]
        assert f"*.{name.rpartition('.')[2]} filter=lfs diff=lfs merge=lfs -text" in said and ".gitattributes" in said
        assert refused(lambda name=name: to.expect({"config.json": 2, name: 1}), UsageError) == said  # type: ignore[misc]
    assert hub.repos["ada/m"].files()[".gitattributes"] == b"*.bin filter=lfs -text\n" and not hub.count("object")


def test_what_the_repo_ignores(hub: FakeHub) -> None:
    hub.add("ada/m")
    hub.always["preupload"] = hub_faults.said(lambda m: {"files": [r | {"shouldIgnore": True} for r in m["files"]]})
    assert ".gitignore" in refused(lambda: put(sending(), FILES), UsageError)


def test_expected_files_are_asked_for_at_once(hub: FakeHub) -> None:
    hub.add("ada/m")
    to = sending()
    to.expect({n: len(d) for n, d in FILES.items()} | {f"{n}.json": 1 for n in range(300)})
    assert hub.count("preupload") == 2
    put(to, {f"{n}.json": b"%d" % n for n in range(10)})
    assert hub.count("preupload") == 2


# In parts


def test_in_parts(hub: FakeHub) -> None:
    hub.part_nbytes = 1000
    to = sending()
    published(to)
    assert hub.count("part") == 11 and hub.repos["ada/m"].files()[SHARD] == DATA
    assert to.traffic.up_nbytes == sum(len(c.body) for c in hub.calls)


@pytest.mark.parametrize("route", ["part", "complete"])
@pytest.mark.parametrize("fault", [hub_faults.reset, hub_faults.status(500), hub_faults.reply_lost])
def test_a_part_is_put_again(
    hub: FakeHub, route: str, fault: hub_faults.Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.part_nbytes = 4000
    hub.faults[route] = [fault]
    with caplog.at_level(logging.WARNING):
        published(sending())
    assert (
        hub.count("part") <= (4 if route == "part" else 6)
        and hub.repos["ada/m"].files()[SHARD] == DATA
        and not hub.again
    )
    assert not caplog.records


def test_a_part_that_is_told_to_wait_for_hours(hub: FakeHub) -> None:
    hub.part_nbytes = 4000
    hub.always["part"] = hub_faults.status(429, Retry_After="86400")
    assert "asks to wait 86400 s" in refused(lambda: put(sending(), FILES))


# With Xet


class Xet:
    """What huggingface_hub uses of hf_xet, onto the fake Hub."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        self.sent: list[str] = []
        self.fails: list[BaseException] = []

    def new_upload_commit(self, **options: Any) -> Xet:
        assert TOKEN in str(options["token_refresh_headers"])
        return self

    def __enter__(self) -> Xet:
        return self

    def __exit__(self, *error: object) -> None: ...

    def start_upload_file(self, path: str, sha256: str) -> None:
        self.start_upload_bytes(Path(path).read_bytes(), sha256)

    def start_upload_bytes(self, data: bytes, sha256: str) -> None:
        if self.fails:
            raise self.fails.pop(0)
        assert sha(data) == sha256
        self.hub.repos["ada/m"].objects[sha256] = data
        self.sent.append(sha256)


@pytest.fixture
def xet(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Xet:
    import sys
    import types

    from huggingface_hub import _commit_api
    from huggingface_hub.utils import _xet

    found = Xet(hub)
    monkeypatch.setitem(sys.modules, "hf_xet", types.SimpleNamespace(COMPUTE_SHA256=object()))
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: True)
    monkeypatch.setattr(_xet, "get_xet_session", lambda: found)
    return found


def test_xet(hub: FakeHub, xet: Xet, tmp_path: Path) -> None:
    place = tmp_path / "shard"
    place.write_bytes(DATA)
    seen: list[int] = []
    to = sending(progress=seen.append)
    with place.open("rb") as f:
        place.unlink()
        to.put(SHARD, f"/dev/fd/{f.fileno()}", sha(DATA), len(DATA))
    put(to, {"config.json": CONFIG})
    to.commit("A conversion")
    assert xet.sent == [sha(DATA)] and not hub.count("object") and hub.repos["ada/m"].files()[SHARD] == DATA
    assert sum(seen) == len(DATA) + len(CONFIG) and to.traffic.up_nbytes > len(DATA)


def test_xet_is_not_asked_for_what_is_there(hub: FakeHub, xet: Xet, caplog: pytest.LogCaptureFixture) -> None:
    put(sending(), FILES)
    to = sending()
    assert put(to, FILES) == [State.present, State.uploaded]
    to.claim("b.safetensors", sha(DATA), len(DATA))
    with caplog.at_level(logging.WARNING):
        to.commit("A conversion")
    assert xet.sent == [sha(DATA)] and not hub.count("object") and not caplog.records
    assert hub.repos["ada/m"].files()["b.safetensors"] == DATA


def test_xet_that_breaks_off(hub: FakeHub, xet: Xet) -> None:
    xet.fails = [RuntimeError("Network error: connection reset"), OSError("dns failed")]
    published(sending())
    assert xet.sent == [sha(DATA)]
    xet.fails = [RuntimeError(f"401 at https://cas/?Signature=1 {TOKEN}")] * 9
    assert "the upload broke off: 401 at https://cas/ [a token]" in refused(
        lambda: put(sending(), {"b.safetensors": DATA + b"b"})
    )
    xet.fails = [PermissionError("token expired")] * 9
    assert "token expired" in refused(lambda: put(sending(), {"b.safetensors": DATA + b"b"}))


# What is sent, and where


@pytest.mark.parametrize(
    ("fault", "objects"),
    [
        (hub_faults.reset, 2),
        (hub_faults.status(500), 2),
        (hub_faults.status(429, Retry_After="0"), 2),
        (hub_faults.reply_lost, 1),
        (hub_faults.then_status(504), 1),
        (hub_faults.garbled, 1),
        (hub_faults.page, 1),
    ],
    ids=["reset", "500", "429", "reply lost", "504 after", "garbled", "a page"],
)
def test_an_object_is_put_again_only_if_it_is_not_there(
    hub: FakeHub, fault: hub_faults.Fault, objects: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults["object"] = [fault]
    to = sending()
    if fault in (hub_faults.garbled, hub_faults.page):  # a refusal by the Hub's own sums, which say what was wrong
        refused(lambda: put(to, FILES))
        hub.faults.clear()
        to = sending()
    with caplog.at_level(logging.WARNING):
        published(to)
    assert hub.count("object") == objects + (fault in (hub_faults.garbled, hub_faults.page))
    assert not hub.again and not caplog.records
    assert hub.repos["ada/m"].files()[SHARD] == DATA


@pytest.mark.parametrize("route", ["preupload", "batch", "object", "verify", "commit", "paths"])
@pytest.mark.parametrize("code", [408, 500, 502, 503, 504])
def test_storms_pass(hub: FakeHub, route: str, code: int) -> None:
    hub.faults[route] = [hub_faults.status(code)] * 4
    published(sending())
    assert hub.repos["ada/m"].files()[SHARD] == DATA and not hub.again
    assert sum(ref == "main" for ref, _ in hub.repos["ada/m"].log) == 2


@pytest.mark.parametrize("route", ["preupload", "batch", "object", "commit"])
def test_storms_that_do_not_pass(hub: FakeHub, route: str) -> None:
    to = sending()
    hub.always[route] = hub_faults.status(503, "overloaded")
    said = refused(lambda: published(to))
    assert "503: overloaded" in said and "5 times" in said and "is not put again" in said
    assert SHARD not in hub.repos["ada/m"].files()
    hub.always.clear()
    published(sending())
    assert not hub.again


def test_silence_is_waited_for_a_while(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience(read=0.3, total=5, pauses=(0, 0)))
    hub.faults |= {r: [hub_faults.silent] for r in ("batch", "object", "paths", "preupload")}
    published(sending())
    hub.always["object"] = hub_faults.silent
    began = time.monotonic()
    said = refused(lambda: put(sending(), {"b.safetensors": DATA + b"b"}))
    assert time.monotonic() - began < 20 and "does not answer in time, 3 times" in said


@pytest.mark.parametrize(
    ("said", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({"RateLimit": '"api";r=0;t=11'}, 11.0), ({"Retry-After": "x"}, None)],
)
def test_waits_that_are_asked_for(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], seconds: float | None
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(patience.threads, "pause", waited.append)
    to = sending()
    hub.faults["object"] = [lambda call, act: Answer(429, b"{}", said)]
    published(to)
    assert waited == ([seconds] if seconds else [0])


def test_a_limit_of_commits(hub: FakeHub) -> None:
    to = sending()
    hub.always["commit"] = hub_faults.status(429, "You have exceeded 128 commits per hour", Retry_After="3000")
    said = refused(lambda: published(to))
    assert "nothing was committed" in said and "128 commits per hour" in said and "asks to wait 3000 s" in said
    assert hub.count("commit") == 1
    hub.always.clear()
    published(sending())
    assert hub.count("object") == 1


@pytest.mark.parametrize(
    ("route", "code", "words"),
    [
        ("object", 403, "write access"),
        ("batch", 401, "hf auth login"),
        ("batch", 402, "/settings/billing"),
        ("commit", 403, "write access"),
        ("commit", 413, "no files or commits of this size"),
        ("commit", 422, "422"),
        ("preupload", 404, "check the name"),
    ],
)
def test_refusals(hub: FakeHub, route: str, code: int, words: str) -> None:
    to = sending()
    hub.always[route] = hub_faults.status(code, "because")
    said = refused(lambda: published(to))
    assert f"{code}: because" in said and words in said
    assert hub.count(route) == 1 and SHARD not in hub.repos["ada/m"].files()


def test_the_hub_finds_a_secret(hub: FakeHub) -> None:
    to = sending()
    words = f"Your push was rejected because it contains valid Hugging Face secrets: README.md holds {TOKEN}"
    hub.always["commit"] = hub_faults.status(400, words)
    said = refused(lambda: published(to))
    assert "valid secret" in said and "README.md holds [a token]" in said and "revoke" in said
    assert hub.count("commit") == 1


def test_batch_says_no(hub: FakeHub) -> None:
    error = {"code": 422, "message": "Storage quota exceeded"}
    hub.always["batch"] = hub_faults.said(
        lambda b: {"objects": [{"oid": o["oid"], "size": o["size"], "error": error} for o in b["objects"]]}
    )
    assert "Storage quota exceeded" in refused(lambda: put(sending(), FILES))
    hub.always["batch"] = hub_faults.said(lambda b: {"objects": []})
    assert "other content" in refused(lambda: put(sending(), FILES))


def href(place: str) -> hub_faults.Fault:
    def edit(batch: Any) -> Any:
        for row in batch["objects"]:
            row["actions"]["upload"]["href"] = place
        return batch

    return hub_faults.said(edit)


PLACES = [
    "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x", "ftp://127.0.0.1/x", "http://[fe80::1]/x", "file:///etc/passwd",
    "nonsense",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_places_that_nothing_is_sent_to(hub: FakeHub, place: str) -> None:
    to = sending()
    hub.always["batch"] = href(place)
    refused(lambda: put(to, FILES), CkptError)
    assert not hub.repos["ada/m"].objects


def test_a_public_hub_leads_to_no_private_place(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpttool.containers import answers

    real = answers._addresses
    monkeypatch.setattr(answers, "_addresses", lambda host: real("8.8.8.8" if host == "127.0.0.1" else host))
    to = sending()
    hub.always["batch"] = href(f"{hub.elsewhere}/objects/ada/m/{sha(DATA)}")
    assert "at another place" in refused(lambda: put(to, FILES))


def test_the_token_stays_with_the_hub(hub: FakeHub) -> None:
    hub.storage = hub.elsewhere

    def verify_elsewhere(batch: Any) -> Any:
        for row in batch["objects"]:
            if "actions" in row:
                row["actions"]["verify"]["href"] = row["actions"]["verify"]["href"].replace("127.0.0.1", "localhost")
        return batch

    hub.always["batch"] = hub_faults.said(verify_elsewhere)
    hub.always["verify"] = lambda call, act: Answer(200, b"{}")
    published(sending())
    assert {c.token for c in hub.calls if c.headers["host"].startswith("localhost")} == {None}
    assert {c.route for c in hub.calls if c.headers["host"].startswith("localhost")} == {"object", "verify"}


@pytest.mark.parametrize("code", [301, 302, 307, 308])
@pytest.mark.parametrize("route", ["object", "commit", "batch", "create"])
def test_what_is_sent_is_not_redirected(hub: FakeHub, route: str, code: int) -> None:
    hub.always[route] = hub_faults.other_host(hub, code)
    assert "redirects what is sent to localhost" in refused(lambda: published(sending()))
    assert not any(c.headers["host"].startswith("localhost") for c in hub.calls)
    assert "ada/m" not in hub.repos or SHARD not in hub.repos["ada/m"].files()


def test_questions_are_redirected(hub: FakeHub) -> None:
    hub.add("ada/m")
    hub.always["info"] = hub_faults.other_host(hub, 302)
    hub.always["auth"] = hub_faults.redirected("http://169.254.169.254/")
    with pytest.raises(NetworkError, match="private address"):
        access()
    assert [c.token for c in hub.asked("info")] == [TOKEN, None]
    hub.always["info"] = hub_faults.redirected(f"{hub.endpoint}/api/models/ada/m")
    assert "more than 3 redirects" in refused(access)


def test_a_file_that_becomes_shorter(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_by, "SMALL", 1000)
    data = DATA * 1000
    place = tmp_path / "shard"
    place.write_bytes(data)
    to = sending(progress=lambda nbytes: os.truncate(place, 1_000_000))
    said = refused(lambda: to.put(SHARD, place, sha(data), len(data)), LocalIOError)
    assert "became shorter while it was sent" in said
    assert not hub.repos["ada/m"].objects


def test_a_file_that_cannot_be_read(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is taken away while its file is sent."""
    place = tmp_path / "shard"
    place.write_bytes(DATA)
    monkeypatch.setattr(published_by, "SMALL", 1000)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(place))

    def broken(request: Any, passage: Any) -> Any:
        counted = real(request, passage)
        if request.method == "PUT":
            counted._stream = iter(fails, None)
        return counted

    real = door._counted(session()[0])
    monkeypatch.setattr(door, "_counted", lambda library: broken)
    to = sending()
    said = refused(lambda: to.put(SHARD, place, sha(DATA), len(DATA)), LocalIOError)
    assert "Input/output error" in said and not hub.repos["ada/m"].objects


# The commit


def count_commits(hub: FakeHub, ref: str = "main") -> int:
    return sum(r == ref for r, _ in hub.repos["ada/m"].log)


@pytest.mark.parametrize(
    "fault",
    [
        hub_faults.reply_lost,
        hub_faults.then_status(500),
        hub_faults.then_status(504),
        hub_faults.truncated(20),
        hub_faults.wrong_bytes,
        hub_faults.said(lambda c: c | {"commitOid": "0" * 40}),
        hub_faults.said(lambda c: c | {"commitOid": "main"}),
        hub_faults.said(lambda c: {}),
    ],
    ids=["lost", "500", "504", "truncated", "wrong", "another sha", "no sha", "empty"],
)
def test_a_commit_whose_answer_is_lost_is_made_once(hub: FakeHub, fault: hub_faults.Fault) -> None:
    hub.faults["commit"] = [fault]
    assert published(sending()) == (hub.repos["ada/m"].head(), None)
    assert hub.count("commit") == 1 and count_commits(hub) == 2


@pytest.mark.parametrize(
    "fault", [hub_faults.reset, hub_faults.status(503), hub_faults.status(409, "another operation")]
)
def test_a_commit_that_did_not_happen_is_posted_again(hub: FakeHub, fault: hub_faults.Fault) -> None:
    hub.faults["commit"] = [fault, fault]
    assert published(sending())[0] == hub.repos["ada/m"].head()
    assert hub.count("commit") == 3 and count_commits(hub) == 2


def test_a_commit_that_happens_late(hub: FakeHub) -> None:
    hub.faults["commit"] = [hub_faults.late(hub, 0.2), hub_faults.stalled(0.4)]
    assert published(sending())[0] == hub.repos["ada/m"].head()
    assert count_commits(hub) == 2


def test_the_branch_moved(hub: FakeHub) -> None:
    repo = hub.add("ada/m")
    to = sending()
    hub.faults["commit"] = [hub_faults.moved(hub, "ada/m")]
    said = refused(lambda: published(to))
    assert "somebody else moved the branch" in said and "nothing was committed" in said
    assert set(repo.files()) == {".gitattributes", "elsewhere.txt"}
    published(sending())
    assert repo.files()[SHARD] == DATA and repo.files()["elsewhere.txt"] and hub.count("object") == 1


def test_a_file_that_goes_meanwhile(hub: FakeHub) -> None:
    repo = hub.add("ada/m", {SHARD: DATA})
    to = sending()
    assert put(to, FILES)[0] is State.unchanged
    repo.commit("main", {k: v for k, v in repo.files().items() if k != SHARD}, "deleted")
    assert "somebody else moved" in refused(lambda: to.commit("A conversion"))


def test_nobody_knows(hub: FakeHub) -> None:
    to = sending()
    put(to, FILES)
    hub.faults["commit"] = [hub_faults.reply_lost]
    hub.always["info"] = hub_faults.reset
    assert "is not known" in (said := refused(lambda: to.commit("A conversion"))) and "/commits/main" in said
    assert hub.count("commit") == 1
    hub.always.clear()
    assert sending().access.files[SHARD].sha256 == sha(DATA)


def test_a_commit_that_holds_something_else(hub: FakeHub) -> None:
    def tampered(call: hub_faults.Call, act: hub_faults.Act) -> Answer:
        answer = act()
        repo = hub.repos["ada/m"]
        repo.commits[repo.head()]["config.json"] = b'{"model_type": "llama_x"}'
        return answer

    hub.faults["commit"] = [tampered]
    said = refused(lambda: published(sending()))
    assert "does not hold what was sent: config.json;" in said and hub.repos["ada/m"].head()[:12] in said

    def lost(call: hub_faults.Call, act: hub_faults.Act) -> Answer:
        answer = act()
        repo = hub.repos["ada/n"]
        del repo.commits[repo.head()][SHARD]
        return answer

    hub.faults["commit"] = [lost]
    assert f"does not hold what was sent: {SHARD};" in refused(lambda: published(sending("ada/n")))


def test_a_commit_that_cannot_be_compared(hub: FakeHub) -> None:
    hub.always["paths"] = hub_faults.status(503)
    said = refused(lambda: published(sending()))
    assert f"commit {hub.repos['ada/m'].head()[:12]} is there, but was not compared" in said
    assert f"ckpttool verify ada/m@{hub.repos['ada/m'].head()}" in said


def test_content_that_the_hub_lost(hub: FakeHub) -> None:
    to = sending()
    hub.faults["commit"] = [hub_faults.forgotten(hub, "ada/m")]
    assert "does not exist" in refused(lambda: published(to))
    assert SHARD not in hub.repos["ada/m"].files()
    published(sending())


def test_a_card_that_the_hub_does_not_read(hub: FakeHub) -> None:
    hub.always["yaml"] = lambda call, act: Answer(
        400, b'{"errors": [{"message": "license is unknown"}], "warnings": []}'
    )
    said = refused(lambda: published(sending(), FILES | {"README.md": b"---\nlicense: x\n---\n"}), InputError)
    assert "README.md" in said and "license is unknown" in said and not hub.count("commit")


def test_branches(hub: FakeHub) -> None:
    repo = hub.add("ada/m")
    published(sending("ada/m@next/one"))
    assert repo.files("next/one")[SHARD] == DATA and SHARD not in repo.files()
    assert repo.head() in repo.commits


# Pull requests


def test_a_pull_request(hub: FakeHub) -> None:
    repo = hub.add("ada/m")
    commit, request = published(sending(repo_target("ada/m", pr=True)))
    assert (commit, request) == (repo.head("refs/pr/1"), f"{hub.endpoint}/ada/m/discussions/1")
    assert repo.files("refs/pr/1")[SHARD] == DATA and set(repo.files()) == {".gitattributes"}


@pytest.mark.parametrize("fault", [hub_faults.reply_lost, hub_faults.then_status(504)])
def test_a_pull_request_is_opened_once(hub: FakeHub, fault: hub_faults.Fault) -> None:
    repo = hub.add("ada/m")
    repo.pull(repo.head(), "by another", "bob")
    hub.faults["commit"] = [fault]
    commit, request = published(sending(repo_target("ada/m", pr=True)))
    assert commit == repo.head("refs/pr/2") and request == f"{hub.endpoint}/ada/m/discussions/2"
    assert len(repo.pulls) == 2 and hub.count("commit") == 1


def test_a_pull_request_that_was_not_opened(hub: FakeHub) -> None:
    repo = hub.add("ada/m")
    hub.faults["commit"] = [hub_faults.reset, hub_faults.status(503)]
    assert published(sending(repo_target("ada/m", pr=True)))[0] == repo.head("refs/pr/1")
    assert len(repo.pulls) == 1


# What others see of it


def test_the_client_is_as_it_was_for_others(hub: FakeHub) -> None:
    hub.add("ada/m")
    access()
    hub.faults["whoami"] = [hub_faults.redirected("/api/models/ada/m")]
    answer = get_session().get(f"{hub.endpoint}/api/whoami-v2", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.json()["id"] == "ada/m" and len(answer.history) == 1
    hub.faults["whoami"] = [hub_faults.status(503)]
    assert get_session().get(f"{hub.endpoint}/api/whoami-v2").status_code == 503


def test_no_bars_of_the_library(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    hub.always["object"] = lambda call, act: (seen.append(are_progress_bars_disabled()), act())[1]
    published(sending())
    assert seen == [True] and not are_progress_bars_disabled()
    assert capsys.readouterr() == ("", "")


def test_words_without_secrets() -> None:
    text = (
        f"GET https://u:pw@s3.example.org/x?X-Amz-Signature=abc#f failed\n for {TOKEN}, ghp_{'a' * 36} in model-00001"
    )
    assert refusals.redacted(text) == "GET https://s3.example.org/x failed for [a token], [a token] in model-00001"
    assert len(refusals.redacted("x" * 10_000)) == refusals.SAID_LIMIT


def test_who_is_not_waited_for_stops(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is given up sends nothing more, so that no late commit surprises anybody."""
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience(total=0.2, pauses=(0,), slowest=1e12))
    to = sending()
    to.expect({SHARD: len(DATA)})
    hub.faults["preupload"] = [hub_faults.stalled(0.6)]
    assert "too slow" in refused(lambda: put(to, {SHARD: DATA}))
    time.sleep(1)
    assert not hub.repos["ada/m"].objects


def test_a_target_elsewhere(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Hub by its address, everything goes there."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    target = replace(repo_target(f"{hub.endpoint}/ada/m", allow_endpoint=True), branch="main")
    assert target.endpoint == hub.endpoint
    assert published(sending(target))[0] == hub.repos["ada/m"].head()
