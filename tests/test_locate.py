"""What a SOURCE is, by its content: folders, indexes, shards, GGUFs, links; and what is refused, with what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpttool.errors import CkptError, InputError
from ckpttool.locate import Located, companions, locate
from ckpttool.places import LocalFolder

EMPTY = b"\x02\0\0\0\0\0\0\0{}"
GGUF = b"GGUF"


def put(folder: Path, *names: str, data: bytes = EMPTY) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def put_index(folder: Path, names: list[str], index: str = "model.safetensors.index.json") -> Path:
    weight_map = {f"tensor{i}": name for i, name in enumerate(names)}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return folder / index


def files(found: Located) -> list[str]:
    return [p.name for p in found.files]


def refused(source: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        locate(source, remote=False)
    assert caught.value.file
    assert caught.value.hint
    return caught.value


SHARDS1 = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SHARDS0 = ["model-00000-of-00002.safetensors", *SHARDS1]
OPENAI = ["model--00001-of-00002.safetensors", "model--00002-of-00002.safetensors"]
SPLIT = ["x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"]


@pytest.mark.parametrize("name", ["model.safetensors", "anything.safetensors", "model-00001-of-00001.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "config.json", "model.bin")
    found = locate(tmp_path)
    assert (found.container, str(found.folder), files(found)) == ("safetensors", str(tmp_path), [name])
    assert found.weight_map is None


@pytest.mark.parametrize("names", [SHARDS1, SHARDS0, OPENAI], ids=["1-based", "0-based", "openai"])
def test_shards_with_and_without_an_index(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, *names)
    assert files(locate(tmp_path)) == names
    index = put_index(tmp_path, names)
    for source in (tmp_path, index):
        found = locate(source)
        assert files(found) == names
        assert found.weight_map == {f"tensor{i}": n for i, n in enumerate(names)}
        assert (found.total_size, found.index_name) == (8, index.name)


def test_other_folders_beside_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors", "original/model.safetensors", "metal/model.bin")
    assert files(locate(tmp_path)) == ["model.safetensors"]
    assert str(locate(tmp_path / "original").folder) == str(tmp_path / "original")


def test_model_safetensors_stands_before_others(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "adapter_config.json")
    assert files(locate(tmp_path)) == ["model.safetensors"]


def test_a_whole_file_beside_shards_can_be_given(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors", *SHARDS1)
    assert files(locate(tmp_path / "model.safetensors")) == ["model.safetensors"]


def test_shards_that_the_index_does_not_name_are_noted(tmp_path: Path) -> None:
    put(tmp_path, *SHARDS0)
    put_index(tmp_path, SHARDS1)
    found = locate(tmp_path)
    assert files(found) == SHARDS1
    assert found.notes == (f"model.safetensors.index.json does not name {SHARDS0[0]}; left alone",)


def test_a_gguf_by_its_content(tmp_path: Path) -> None:
    put(tmp_path, "model.gguf", data=GGUF)
    put(tmp_path / "blobs", "sha256-ab12", data=GGUF)
    assert locate(tmp_path).container == "gguf"
    assert locate(tmp_path / "blobs" / "sha256-ab12").container == "gguf"
    assert files(locate(tmp_path)) == ["model.gguf"]
    assert files(locate(put(tmp_path / "loud", "MODEL.GGUF", data=GGUF))) == ["MODEL.GGUF"]


def test_a_split_set_by_its_first(tmp_path: Path) -> None:
    put(tmp_path, *SPLIT, data=GGUF)
    assert files(locate(tmp_path)) == SPLIT
    assert files(locate(tmp_path / SPLIT[0])) == SPLIT
    assert f"give {SPLIT[0]}" in str(refused(tmp_path / SPLIT[1]))
    (tmp_path / SPLIT[1]).unlink()
    assert f"its split set lacks {SPLIT[1]}" in str(refused(tmp_path / SPLIT[0]))


def lacking(names: list[str], gone: int) -> Callable[[Path], Path]:
    return lambda folder: put(folder, *(n for i, n in enumerate(names) if i != gone))


def adapter(folder: Path) -> Path:
    put(folder, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "openai/gpt-oss-20b"}')
    return folder


def indexed(names: list[str], *here: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        put(folder, *here)
        put_index(folder, names)
        return folder

    return make


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda f: f / "gone", "no such file or folder; check the path"),
    "a shard lost, 1-based": (lacking(SHARDS1, 1), "lacks number 00002 of 00002"),
    "a shard lost, 0-based": (lacking(SHARDS0, 1), "lacks number 00001 of 00002"),
    "one shard": (lambda f: put(f, *SHARDS1) / SHARDS1[0], "is one file of several"),
    "two sets": (lambda f: put(f, "a.safetensors", "b.safetensors"), "several safetensors files and no index"),
    "two sets of shards": (lambda f: put(f, *SHARDS1, *OPENAI), "several safetensors files and no index"),
    "two indexes": (
        lambda f: put_index(f, SHARDS1) and put_index(f, SHARDS1, "other.safetensors.index.json").parent,
        "several indexes",
    ),
    "an index and a whole file": (
        indexed(SHARDS1, *SHARDS1, "model.safetensors"),
        "holds both model.safetensors and model.safetensors.index.json",
    ),
    "an index whose files are gone": (
        indexed(SHARDS1, SHARDS1[0]),
        f"names files that are not there: {SHARDS1[1]}; download the missing files again",
    ),
    "shards and a whole file": (
        lambda f: put(f, *SHARDS1, "model.safetensors"),
        f"holds both model.safetensors and {SHARDS1[0]}; give model.safetensors as SOURCE",
    ),
    "an adapter": (adapter, "an adapter of openai/gpt-oss-20b; merge it first"),
    "an adapter's file": (
        lambda f: adapter(f) / "adapter_model.safetensors",
        "an adapter of openai/gpt-oss-20b; merge it first",
    ),
    "two GGUFs": (lambda f: put(f, "a.gguf", "b.gguf", data=GGUF), "holds several GGUFs: a.gguf, b.gguf"),
    "only original/": (lambda f: put(f, "original/model.safetensors"), "holds no checkpoint of its own; give"),
    "a Hub cache": (lambda f: put(f, "snapshots/ab/model.safetensors"), "give one folder of its snapshots/"),
    "pickles": (lambda f: put(f, "pytorch_model.bin"), "save the model as safetensors first"),
    "nothing inside": (lambda f: f, "holds no safetensors and no GGUF; SOURCE is"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    assert says in str(refused(make(tmp_path)))


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script gives it whose variable is empty."""
    put(tmp_path, "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert locate(".").files
    with pytest.raises(InputError, match="no such file or folder"):
        locate("")


def test_a_repository_is_not_downloaded_but_explained() -> None:
    said = str(refused(Path("openai/gpt-oss-20b")))
    assert said.endswith("hf download openai/gpt-oss-20b --local-dir gpt-oss-20b")


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    assert "neither a file nor a folder" in str(refused(tmp_path / "model.gguf"))
    assert "neither a file nor a folder" in str(refused(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "x.bin", "a\\x.safetensors", "\0.safetensors"],
)
def test_an_index_may_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path.parent, "x.safetensors")
    put_index(tmp_path, [name])
    error = refused(tmp_path)
    assert error.field == 'weight_map["tensor0"]'
    assert "plain file name inside the folder" in str(error)


# Links


def cache(root: Path, *names: str) -> Path:
    """A Hub cache's snapshot: links to the blobs of the same repo."""
    snapshot = root / "models--o--g" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in names:
        blob = root / "models--o--g" / "blobs" / f"sha-{name}"
        put(blob.parent, blob.name)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_links_into_the_caches_own_blobs_are_fine(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, *SHARDS1, "tokenizer.json")
    found = locate(snapshot)
    assert files(found) == SHARDS1
    assert str(found.folder) == str(snapshot)
    assert companions(snapshot)["tokenizer.json"] == snapshot / "tokenizer.json"
    template = put(snapshot.parent.parent / "blobs", "sha-rag") / "sha-rag"
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to(template)
    assert "additional_chat_templates/rag.jinja" in companions(snapshot)
    # A link to the snapshot itself changes nothing.
    (tmp_path / "link").symlink_to(snapshot)
    assert files(locate(tmp_path / "link")) == SHARDS1


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    put(tmp_path, "data/weights")
    (tmp_path / "model.safetensors").symlink_to("data/weights")
    assert files(locate(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["../x", "sub/../../x", "/etc/passwd", "sub/../../model/../x"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    with pytest.raises(InputError, match="leaves the folder"):
        LocalFolder(tmp_path / "model").file(name)
    assert LocalFolder(tmp_path / "model").file("sub/../x") == tmp_path / "model" / "sub/../x"


@pytest.mark.parametrize("names", [["model.safetensors"], SHARDS1], ids=["one", "shards"])
@pytest.mark.parametrize("with_index", [False, True])
def test_links_elsewhere_are_refused(tmp_path: Path, names: list[str], with_index: bool) -> None:
    put(tmp_path, "secret")
    folder = put(tmp_path / "folder", *names)
    (folder / names[-1]).unlink()
    (folder / names[-1]).symlink_to(tmp_path / "secret")
    if with_index:
        put_index(folder, names)
    error = refused(folder)
    assert "a link that leaves the folder" in str(error)
    assert str(tmp_path / "secret") in str(error)


def test_links_into_another_repos_blobs_are_refused(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, "model.safetensors")
    other = cache(tmp_path / "other", "model.safetensors")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other.resolve() / "model.safetensors")
    assert "a link that leaves the folder" in str(refused(snapshot))


def test_an_index_that_is_a_link_elsewhere_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "folder", *SHARDS1)
    index = put_index(tmp_path, SHARDS1)
    (tmp_path / "folder" / index.name).symlink_to(index)
    assert "a link that leaves the folder" in str(refused(tmp_path / "folder"))


def test_dangling_links_and_loops_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "model.safetensors"
    loop.symlink_to(loop)
    assert files(locate(tmp_path)) == [loop.name]  # opening it is refused
    for with_index in (False, True):
        folder = put(tmp_path / f"folder{with_index}", SHARDS1[0])
        (folder / SHARDS1[1]).symlink_to(tmp_path / "gone")
        if with_index:
            put_index(folder, SHARDS1)
        assert refused(folder)


def test_companions(tmp_path: Path) -> None:
    put(tmp_path, "config.json", "tokenizer.json", "LICENSE", "USAGE_POLICY", "notes.txt", "chat_template.jinja")
    (tmp_path / "vocab.json").mkdir()
    assert set(companions(tmp_path)) == {
        "config.json",
        "tokenizer.json",
        "LICENSE",
        "USAGE_POLICY",
        "chat_template.jinja",
    }
    (tmp_path / "merges.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="a link that leaves the folder"):
        companions(tmp_path)
    with pytest.raises(CkptError, match="no such folder; --reference takes"):
        companions(tmp_path / "gone")


def test_a_folder_of_templates_that_lies_elsewhere_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "a.jinja")
    put(tmp_path / "model", "config.json")
    (tmp_path / "model" / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link that leaves the folder"):
        companions(tmp_path / "model")
