"""What a branch holds of the conversion before goes with the commit of the next one; nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import builders
import fake_hub
import hub_faults
import pytest
from fake_hub import FakeHub
from fake_repos import User

import ckpttool
from ckpttool.publishing.report import Publication, State
from ckpttool.verifier import verify

MODEL = builders.Model(builders.Sizes(layers=2, experts=2, hidden=64, intermediate=96, vocab=320))
REPO = "ada/out"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        hub.users["hf_ada"] = User("ada")
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        source = builders.write(MODEL, tmp_path / "model", "hf")
        hub.add("ada/model", {p.name: p.read_bytes() for p in source.iterdir()})
        monkeypatch.chdir(tmp_path)
        yield hub


def uploaded(tmp_path: Path, name: str, shard: str, **options: object) -> Publication:
    ckpttool.convert(tmp_path / "model", tmp_path / name, to="bf16", max_shard_size=shard)
    return ckpttool.upload(tmp_path / name, REPO, **options)


def removed(done: Publication) -> set[str]:
    return {f.name for f in done.files if f.state is State.removed}


SHARDS = {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)} | {"model.safetensors.index.json"}


@pytest.mark.parametrize(("first", "second", "gone"), [
    ("300KB", "5GB", SHARDS), ("5GB", "300KB", {"model.safetensors"}),
])  # fmt: skip
def test_another_layout(first: str, second: str, gone: set[str], hub: FakeHub, tmp_path: Path) -> None:
    uploaded(tmp_path, "a", first)
    before = set(hub.repos[REPO].files())
    foreseen = uploaded(tmp_path, "b", second, dry_run=True)
    assert set(hub.repos[REPO].files()) == before
    done = ckpttool.upload(tmp_path / "b", REPO)
    assert removed(done) == removed(foreseen) == gone
    assert not gone & set(hub.repos[REPO].files())
    assert gone < before
    assert verify(REPO).ok
    assert not removed(ckpttool.upload(tmp_path / "b", REPO))


def test_what_is_not_as_the_receipt_says_stays(hub: FakeHub, tmp_path: Path) -> None:
    """Somebody else has put it there; and what no receipt names is nobody's to take away."""
    uploaded(tmp_path, "a", "300KB")
    repo = hub.repos[REPO]
    theirs = {"model-00002-of-00002.safetensors": b"theirs", "model.safetensors.index.json": b"{}", "extra.bin": b"x"}
    repo.commit("main", {**repo.files(), **theirs})
    done = uploaded(tmp_path, "b", "5GB")
    assert removed(done) == {"model-00001-of-00002.safetensors"}
    assert theirs.items() <= repo.files().items()
    assert any("model-00002-of-00002.safetensors" in note for note in done.notes)


def test_an_answer_that_is_lost_removes_once(hub: FakeHub, tmp_path: Path, hasty: None) -> None:
    uploaded(tmp_path, "a", "300KB")
    hub.faults["commit"] = [hub_faults.reply_lost]
    done = uploaded(tmp_path, "b", "5GB")
    assert removed(done) == SHARDS
    assert not SHARDS & set(hub.repos[REPO].files())
    assert len(hub.repos[REPO].log) == 3  # made, and two commits


def test_a_conversion_from_repo_to_repo(hub: FakeHub) -> None:
    for shard, gone in (("300KB", set()), ("5GB", SHARDS)):
        done = ckpttool.convert_to_hub("ada/model", f"hf://{REPO}", to="bf16", max_shard_size=shard, free_disk=True)
        assert removed(done) == gone
    assert verify(REPO, source="ada/model").ok
