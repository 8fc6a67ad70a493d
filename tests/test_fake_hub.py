"""The Hub of the tests against its real client: what the client does with the Hub, it does with this one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import FakeHub, User
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

TOKEN = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
DATA = bytes(range(256)) * 40


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
    hub.faults["preupload"] = [fake_hub.status(503), None]
    hub.faults["commit"] = [fake_hub.reply_lost]
    with pytest.raises(Exception, match=r"disconnected|reset|peer"):
        client.create_commit("ada/m", [CommitOperationAdd("x", b"1")], commit_message="x")
    assert hub.count("preupload") == 2 and repo.files()["x"] == b"1"
