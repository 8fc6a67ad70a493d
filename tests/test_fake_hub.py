"""The Hub of the tests against its real client: what the client does with the Hub, it does with this one."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import hub_faults
import pytest
from fake_hub import FakeHub
from fake_repos import User
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, get_session
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

TOKEN = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
DATA = bytes(range(256)) * 40
LIBRARY: Any = sys.modules[type(get_session()).__module__.partition(".")[0]]
"""httpx2, or httpx before huggingface_hub's 2.0."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        hub.users |= {TOKEN: User("ada"), READER: User("bob", "read")}
        yield hub


def api(hub: FakeHub, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


@pytest.mark.parametrize("part_nbytes", [None, 1000])
def test_upload_and_download(hub: FakeHub, tmp_path: Path, part_nbytes: int | None) -> None:
    hub.part_nbytes = part_nbytes
    client = api(hub)
    assert client.create_repo("ada/m", private=True) == f"{hub.endpoint}/ada/m"
    files = {"model.safetensors": DATA, "config.json": b"{}", "sub/README.md": b"# m"}
    found = client.create_commit("ada/m", [CommitOperationAdd(n, d) for n, d in files.items()], commit_message="all")
    assert found.oid == hub.repos["ada/m"].head()
    place = Path(client.snapshot_download("ada/m", cache_dir=tmp_path))
    assert {n: (place / n).read_bytes() for n in files} == files
    tree = {e.path: e for e in client.list_repo_tree("ada/m", recursive=True)}
    assert tree["model.safetensors"].lfs.sha256 == hashlib.sha256(DATA).hexdigest()
    assert tree["config.json"].lfs is None
    assert client.get_paths_info("ada/m", ["config.json"])[0].blob_id == tree["config.json"].blob_id
    assert client.whoami()["name"] == "ada"
    client.auth_check("ada/m", write=True)


def test_ranges(hub: FakeHub) -> None:
    hub.add("ada/m", {"model.safetensors": DATA})
    for hub.cdn in (False, True):
        with HfFileSystem(endpoint=hub.endpoint, token=TOKEN).open("ada/m/model.safetensors", "rb") as f:
            f.seek(1000)
            assert f.read(10) == DATA[1000:1010]


def test_content_is_put_once(hub: FakeHub) -> None:
    client = api(hub)
    client.create_repo("ada/m")
    for name in ("a.safetensors", "b.safetensors"):
        client.preupload_lfs_files("ada/m", [CommitOperationAdd(name, DATA)])
    assert hub.count("object") == 1


def test_branches_and_pull_requests(hub: FakeHub) -> None:
    client, repo = api(hub), hub.add("ada/m")
    client.create_branch("ada/m", branch="next/one")
    client.create_commit("ada/m", [CommitOperationAdd("x", b"1")], commit_message="x", revision="next/one")
    assert "x" in repo.files("next/one") and "x" not in repo.files()
    found = api(hub, READER).create_commit("ada/m", [CommitOperationAdd("y", b"1")], commit_message="y", create_pr=True)
    assert found.pr_num == 1 and "y" in repo.files("refs/pr/1") and "y" not in repo.files()


def test_what_it_refuses(hub: FakeHub) -> None:
    repo = hub.add("ada/m", private=True)
    with pytest.raises(RepositoryNotFoundError):
        api(hub, READER).repo_info("ada/m")
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, READER).create_repo("ada/other")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "hf_" + "x" * 34).whoami()
    old = repo.head()
    repo.commit("main", repo.files())
    adding = [CommitOperationAdd("x", b"1")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api(hub).create_commit("ada/m", adding, commit_message="x", parent_commit=old)
    wrong = CommitOperationAdd("x.safetensors", DATA)
    wrong.upload_info.sha256 = b"\0" * 32
    with pytest.raises(RuntimeError, match=r"x\.safetensors"):
        api(hub).preupload_lfs_files("ada/m", [wrong])


def test_faults(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    client, repo = api(hub), hub.add("ada/m")
    hub.faults["preupload"] = [hub_faults.status(503), None]
    hub.faults["commit"] = [hub_faults.reply_lost]
    with pytest.raises(Exception, match=r"disconnected|reset|peer"):
        client.create_commit("ada/m", [CommitOperationAdd("x", b"1")], commit_message="x")
    assert hub.count("preupload") == 2 and repo.files()["x"] == b"1"


def test_gitattributes_decide_what_lfs_holds(hub: FakeHub) -> None:
    repo = hub.add("ada/m", {".gitattributes": b"*.safetensors filter=lfs -text\n"})
    adding = [CommitOperationAdd(n, DATA) for n in ("x.safetensors", "x.gguf")]
    api(hub).create_commit("ada/m", adding, commit_message="x")
    assert [s.rfilename for s in api(hub).repo_info("ada/m", files_metadata=True).siblings if s.lfs] == [
        "x.safetensors"
    ]
    assert list(repo.objects) == [hashlib.sha256(DATA).hexdigest()]


def test_a_tree_comes_in_pages(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_hub, "PAGE", 3)
    hub.add("ada/m", {f"{n}.txt": b"x" for n in range(7)})
    assert len(list(api(hub).list_repo_tree("ada/m", recursive=True))) == 8
    assert hub.count("tree") == 3


def test_objects_at_another_host(hub: FakeHub) -> None:
    """Where no token is sent."""
    hub.storage, hub.cdn = hub.elsewhere, True
    hub.add("ada/m", private=True)
    api(hub).create_commit("ada/m", [CommitOperationAdd("x.safetensors", DATA)], commit_message="x")
    with HfFileSystem(endpoint=hub.endpoint, token=TOKEN).open("ada/m/x.safetensors", "rb") as f:
        assert f.read() == DATA
    away = [c for c in hub.calls if c.headers["host"].startswith("localhost")]
    assert {c.route for c in away} == {"object", "cdn"} and not any(c.token for c in away)


def test_what_was_there_already(hub: FakeHub) -> None:
    """A put of what the Hub holds is remembered, and so is every tree."""
    repo = hub.add("ada/m", {"x.safetensors": DATA})
    oid = hashlib.sha256(DATA).hexdigest()
    get_session().put(f"{hub.endpoint}/objects/ada/m/{oid}", content=DATA)
    assert hub.again == [oid]
    repo.commit("main", {"y": b""})
    repo.commit("next", {"z": b""})
    assert [sorted(t) for t in repo.trees()] == [[".gitattributes", "x.safetensors"], ["y"]]


def got(hub: FakeHub, fault: hub_faults.Fault) -> Any:
    """The answer to a range of x.safetensors that `fault` befalls, within half a second."""
    hub.faults["resolve"] = [fault]
    headers = {"Range": "bytes=10-19", "Authorization": f"Bearer {TOKEN}"}
    return get_session().get(f"{hub.endpoint}/ada/m/resolve/main/x.safetensors", headers=headers, timeout=0.5)


NO_ANSWER = [
    hub_faults.reset,
    hub_faults.silent,
    hub_faults.silent_after(3),
    hub_faults.truncated(3),
    hub_faults.BrokenOff(0),
]


@pytest.mark.parametrize("fault", NO_ANSWER)
def test_answers_that_do_not_come(hub: FakeHub, fault: hub_faults.Fault) -> None:
    hub.add("ada/m", {"x.safetensors": DATA})
    waits = getattr(fault, "__name__", "") == "silent" or fault is NO_ANSWER[2]
    with pytest.raises(LIBRARY.ReadTimeout if waits else (LIBRARY.ReadError, LIBRARY.RemoteProtocolError)):
        got(hub, fault)


def test_answers_that_are_others(hub: FakeHub) -> None:
    hub.add("ada/m", {"x.safetensors": DATA})
    whole = got(hub, hub_faults.ignored_range)
    assert (whole.status_code, whole.content) == (200, DATA)
    wrong = got(hub, hub_faults.wrong_bytes)
    assert wrong.status_code == 206 and wrong.content[:5] == DATA[10:15] and wrong.content != DATA[10:20]
    wait = got(hub, hub_faults.status(429, Retry_After="7"))
    assert (wait.status_code, wait.headers["retry-after"]) == (429, "7")
    there = got(hub, hub_faults.other_host(hub))
    assert there.content == DATA[10:20] and there.url.host == "localhost"
    assert [c.token for c in hub.asked("resolve")[-2:]] == [TOKEN, None]
    assert b"hotel" in got(hub, hub_faults.page).content


def test_uploads_that_break_off(hub: FakeHub) -> None:
    hub.add("ada/m")
    oid = hashlib.sha256(DATA).hexdigest()
    url = f"{hub.endpoint}/objects/ada/m/{oid}"
    hub.faults["object"] = [hub_faults.BrokenOff(1000), hub_faults.garbled, None]
    with pytest.raises(LIBRARY.TransportError):
        get_session().put(url, content=DATA)
    assert get_session().put(url, content=DATA).status_code == 400
    assert not hub.repos["ada/m"].objects
    assert get_session().put(url, content=DATA).status_code == 200
    hub.faults["batch"] = [hub_faults.forgotten(hub, "ada/m")]
    api(hub).preupload_lfs_files("ada/m", [CommitOperationAdd("x.safetensors", DATA)])
    assert not hub.again and hub.count("object") == 3


def test_a_commit_that_comes_late(hub: FakeHub) -> None:
    repo = hub.add("ada/m")
    hub.faults["commit"] = [hub_faults.late(hub, 0.1)]
    with pytest.raises(HfHubHTTPError, match="504"):
        api(hub).create_commit("ada/m", [CommitOperationAdd("x", b"1")], commit_message="x")
    assert "x" not in repo.files()
    deadline = time.monotonic() + 10
    while "x" not in repo.files() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert repo.files()["x"] == b"1"


def test_pull_requests_are_listed(hub: FakeHub) -> None:
    repo, client = hub.add("ada/m"), api(hub)
    found = client.create_commit("ada/m", [CommitOperationAdd("y", b"1")], commit_message="y", create_pr=True)
    refs = client.list_repo_refs("ada/m", include_pull_requests=True)
    assert [(r.ref, r.target_commit) for r in refs.pull_requests] == [("refs/pr/1", found.oid)]
    client.create_pull_request("ada/m", title="z")
    client.create_commit("ada/m", [CommitOperationAdd("z", b"1")], commit_message="z", revision="refs/pr/2")
    assert "z" in repo.files("refs/pr/2") and "z" not in repo.files()
    assert [(d.num, d.title) for d in client.get_repo_discussions("ada/m", author="ada")] == [(2, "z"), (1, "y")]
    assert [c.title for c in client.list_repo_commits("ada/m", revision="refs/pr/2")] == ["z", "initial commit"]
