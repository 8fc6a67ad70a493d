"""diff of checkpoints on the Hub: headers by ranges, values where they are asked for, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
import range_server as web
from builders import Model, Sizes, Tensors
from commandline import run
from range_server import SHA, Repo

from ckpttool.diff import compare

MODEL = Sizes(layers=1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    """A server that huggingface_hub takes for the Hub."""
    with web.as_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return builders.write(Model(MODEL), tmp_path / "hf", "hf", shards=2)


def test_headers_only_downloads_nothing(hub: web.Server, local: Path) -> None:
    repo = Repo(hub, "org/tiny", web.folder_files(local)).publish()
    report = compare(local, "org/tiny", headers_only=True)
    assert report.identical is None and report.agrees
    assert report.b.source == f"hf://org/tiny@{SHA}"
    assert report.config == ()
    assert {f.status for f in report.side_files} == {"unread"}
    shards = [name for name in repo.files if name.endswith(".safetensors")]
    assert set(repo.requests) == {*shards, "config.json", "model.safetensors.index.json"}
    result = run("diff", "org/tiny", local, "--headers-only")
    assert (result.out.splitlines()[0], result.code) == ("headers agree on all 22 parts; no values compared", 0)


def test_a_repo_against_another_in_another_container(hub: web.Server, local: Path, tmp_path: Path) -> None:
    Repo(hub, "org/tiny", web.folder_files(local)).publish()
    file = builders.write_gguf(Model(Sizes(layers=2)), tmp_path / "tiny.gguf")
    Repo(hub, "org/tiny-GGUF", {file.name: file}).publish()
    result = run("diff", "org/tiny", "org/tiny-GGUF", "--headers-only")
    assert (result.out.splitlines()[0], result.code) == ("19 of 41 parts differ", 1)
    assert "layer.1.gate  3 x 96 x 64  MXFP4" in result.out
    assert "num_hidden_layers: 1 in A, 2 in B; changes the forward pass" in result.out


def test_values_of_a_repo(hub: web.Server, local: Path, tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        t["model.layers.0.mlp.experts.down_proj_scales"].array[1, 4, 2] += 3

    other = builders.write(Model(MODEL), tmp_path / "other", "hf", change=change)
    Repo(hub, "org/tiny", web.folder_files(other)).publish()
    report = compare(local, "org/tiny")
    worst = [(p.part, p.first and (p.first.expert, p.first.row)) for p in report.worst]
    assert worst == [("layer.0.down", (1, 4))]
    assert {f.status for f in report.side_files} == {"equal"}


def test_what_is_not_there(hub: web.Server, local: Path, tmp_path: Path) -> None:
    assert run("diff", local, "org/none", "--headers-only").code == 5
    shutil.rmtree(local)
    assert run("diff", local, "org/none").code == 3
