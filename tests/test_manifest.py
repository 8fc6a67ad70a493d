"""What may be published: the receipt's files and no others, as they were when they were looked at."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpttool
from ckpttool.errors import InputError, LimitError, LocalIOError, UsageError
from ckpttool.publishing import held, manifest
from ckpttool.publishing.manifest import Item

HF = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss" / "hf"
TOKEN = "hf_" + "xY3" * 12
RECEIPT = "ckpttool.receipt.json"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, a GGUF and a split set, converted once."""
    place = tmp_path_factory.mktemp("manifest")
    ckpttool.convert(HF, place / "m", to="bf16", max_shard_size="4MB", device="cpu")
    ckpttool.convert(HF, place / "m.gguf", device="cpu")
    ckpttool.convert(HF, place / "s.gguf", max_shard_size="2MB", device="cpu")
    return place


@pytest.fixture
def made(once: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(once, tmp_path / "made")


def edited(receipt: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The receipt with something else in it."""
    value = json.loads(receipt.read_text())
    change(value)
    receipt.write_text(json.dumps(value))
    return receipt.parent


def named(name: str) -> Callable[[dict[str, Any]], object]:
    """A receipt that names one more file."""
    row = {"name": name, "nbytes": 1, "crc32": "00000000", "sha256": "0" * 64}
    return lambda receipt: receipt["files"].append(row)


def item(target: Path, name: str) -> Item:
    return next(i for i in manifest.read(target).items if i.name == name)


# What is in it


@pytest.mark.parametrize("target", ["m", "m.gguf", "s.gguf", "s-00002-of-00003.gguf", f"m/{RECEIPT}"])
def test_every_file_of_the_receipt_and_the_receipt(made: Path, target: str) -> None:
    found = manifest.read(made / target)
    receipt = made / ("m" if target.startswith("m/") else "") / found.receipt_path.name
    if target == "m":
        receipt = made / "m" / RECEIPT
    assert found.receipt_path == receipt
    wanted = {row["name"] for row in json.loads(receipt.read_text())["files"]} | {receipt.name}
    assert {i.name for i in found.items} == wanted
    assert len(found.items) == len(wanted)
    for i in found.items:
        data = (receipt.parent / i.name).read_bytes()
        assert (i.nbytes, i.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert manifest.checked(i).seen is not None
        assert manifest.content(i) == data
        with manifest.opened(i) as path:
            assert path.read_bytes() == data
    assert found.nbytes == sum(i.nbytes for i in found.items)


def test_of_weights_only_the_header_is_text(made: Path) -> None:
    header = item(made / "m", "model-00001-of-00002.safetensors")
    data = header.path.read_bytes()
    assert header.text_nbytes == 8 + int.from_bytes(data[:8], "little")
    assert item(made / "m", "tokenizer.json").text_nbytes == item(made / "m", "tokenizer.json").nbytes
    assert 0 < item(made / "m.gguf", "m.gguf").text_nbytes < 100_000


def test_a_folder_that_holds_one_gguf(made: Path) -> None:
    folder = made / "alone"
    folder.mkdir()
    for name in ("m.gguf", "m.gguf.receipt.json"):
        shutil.move(made / name, folder / name)
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("mine")
    found = manifest.read(folder)
    assert {i.name for i in found.items} == {"m.gguf", "m.gguf.receipt.json", "LICENSE"}
    assert found.own_card == folder / "README.md"
    named_alone = manifest.read(folder / "m.gguf")  # what lies beside it may be of anything
    assert {i.name for i in named_alone.items} == {"m.gguf", "m.gguf.receipt.json"}
    assert (named_alone.own_card, named_alone.left_out) == (None, ())


def test_a_link_to_the_folder_is_the_folder(made: Path) -> None:
    (made / "latest").symlink_to("m")
    found = manifest.read(made / "latest")
    assert all(manifest.checked(i).seen for i in found.items)


LEFT = (
    ".env", ".netrc", "id_rsa", "optimizer.pt", "training_args.bin", "model.pkl", "notes.ipynb", "train.py",
    ".tmpAb3d9x", "model-00001-of-00002.safetensors.tmp", "model-00009-of-00009.safetensors", "LICENSE.pkl", "x.json",
)  # fmt: skip


def test_all_else_is_left_out_and_listed(made: Path) -> None:
    """Licences that somebody put there go along; a card does as the user's own; links go nowhere."""
    folder = made / "m"
    for name in LEFT:
        (folder / name).write_text(TOKEN)
    for name in ("NOTICE", "USAGE_POLICY.md", "README.md"):
        (folder / name).write_text("words")
    for name in ("checkpoint-100", ".cache", ".git"):
        (folder / name).mkdir()
    (folder / "LICENSE-OTHER").symlink_to("/etc/passwd")
    before = {i.name for i in manifest.read(made / "m").items}
    assert before >= {"NOTICE", "USAGE_POLICY.md", "LICENSE"}
    assert not before & {*LEFT, "LICENSE-OTHER", "README.md"}
    left = {*LEFT, "LICENSE-OTHER", "checkpoint-100/", ".cache/", ".git/"}
    assert set(manifest.read(made / "m").left_out) == left


def test_what_lies_beside_a_file_in_a_folder(made: Path) -> None:
    folder = made / "m" / "additional_chat_templates"
    folder.mkdir()
    for name in ("tool.jinja", "other.jinja", ".env"):
        (folder / name).write_text("{}")
    row = {
        "name": f"{folder.name}/tool.jinja",
        "nbytes": 2,
        "crc32": "0" * 8,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
    }
    found = manifest.read(edited(made / "m" / RECEIPT, lambda r: r["files"].append(row)))
    assert found.left_out == (f"{folder.name}/.env", f"{folder.name}/other.jinja")
    assert manifest.checked(next(i for i in found.items if i.name == row["name"])).seen is not None


def test_a_card_that_is_a_link_is_nobodys_own(made: Path) -> None:
    (made / "m" / "README.md").symlink_to("/etc/passwd")
    assert manifest.read(made / "m").own_card is None


# What is refused


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../secret.json", "leaves the folder"), ("/etc/passwd", "leaves the folder"), ("a/../../x.json", "leaves"),
        ("a//x.json", "no name inside"), ("./x.json", "no name inside"), ("a\\x.json", "no name inside"),
        ("", "no name inside"), (".env", "hidden"), (".cache/x.json", "hidden"), ("a/.git/x.json", "hidden"),
        ("optimizer.pt", "kind"), ("model.bin", "kind"), ("x.pkl", "kind"), ("x.pickle", "kind"), ("x.py", "kind"),
        ("notes.ipynb", "kind"), ("id_rsa", "kind"), ("LICENSE.pkl", "kind"), ("sub/LICENSE", "kind"),
        ("README.md", "not the receipt's to name"), (RECEIPT, "not the receipt's to name"),
        ("a\nb.json", "characters"), ("\u202ex.json", "characters"),
    ],
)  # fmt: skip
def test_a_receipt_that_names_what_no_conversion_writes(made: Path, name: str, why: str) -> None:
    folder = edited(made / "m" / RECEIPT, named(name))
    with pytest.raises(InputError, match=why) as error:
        manifest.read(folder)
    assert error.value.hint is not None


def test_every_strange_name_is_told(made: Path) -> None:
    folder = edited(made / "m" / RECEIPT, lambda r: (named("a.pt")(r), named("b.pt")(r)))
    with pytest.raises(InputError) as error:
        manifest.read(folder)
    assert "a.pt" in str(error.value) and "b.pt" in str(error.value)


def test_more_files_than_the_hub_takes(made: Path) -> None:
    folder = edited(made / "m" / RECEIPT, lambda r: [named(f"{n}.json")(r) for n in range(manifest.FILES)])
    with pytest.raises(LimitError, match=r"10,\d{3} files; the Hub takes 10,000") as error:
        manifest.read(folder)
    assert "--max-shard-size" in str(error.value)


def test_what_was_not_read_back(tmp_path: Path) -> None:
    ckpttool.convert(HF, tmp_path / "m", to="mxfp4", verify=False, device="cpu")
    with pytest.raises(InputError, match=r"no sha256.*without --no-verify"):
        manifest.read(tmp_path / "m")


def test_nothing_that_was_converted(made: Path) -> None:
    (made / "empty").mkdir()
    with pytest.raises(InputError, match="no receipt"):
        manifest.read(made / "empty")
    with pytest.raises(InputError, match="no receipt"):
        manifest.read(HF)
    with pytest.raises(InputError, match="no such file or folder"):
        manifest.read(made / "nothing")
    with pytest.raises(UsageError, match="holds 2 conversions"):
        manifest.read(made)


def test_an_unfinished_conversion(made: Path) -> None:
    (made / "n.partial" / "files").mkdir(parents=True)
    for name in ("n.partial", "n.partial/files"):
        with pytest.raises(InputError, match="unfinished"):
            manifest.read(made / name)


@pytest.mark.parametrize("name", ["m", "m.gguf"])
def test_while_it_is_being_replaced(made: Path, name: str) -> None:
    """A conversion holds its lock; what an interrupted one has left does not matter."""
    partial = made / f"{name}.partial"
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        manifest.read(made / name)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LocalIOError, match="being written"):
            manifest.read(made / name)
    manifest.read(made / name)


# Held against the files


def spoilt_link(path: Path) -> None:
    shutil.move(path, path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def spoilt_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoilt_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def spoilt_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SPOILS = {
    "link": (spoilt_link, "is a link"),
    "folder": (spoilt_folder, "no plain file"),
    "fifo": (spoilt_fifo, "no plain file"),
    "gone": (Path.unlink, "is missing"),
    "byte": (spoilt_byte, "sha256 differs"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "the receipt says"),
    "shorter": (lambda p: os.truncate(p, p.stat().st_size - 1), "the receipt says"),
}


@pytest.mark.parametrize(("spoil", "why"), SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_file_that_is_not_the_receipts(made: Path, name: str, spoil: Callable[[Path], object], why: str) -> None:
    found = item(made / "m", name)
    spoil(found.path)
    with pytest.raises(InputError, match=why):
        manifest.checked(found)
    with pytest.raises(InputError, match=why), manifest.opened(found):
        pass


def test_a_file_behind_a_linked_folder(made: Path, tmp_path: Path) -> None:
    """Each step of the way is opened without following links."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.json").write_text("{}")
    (made / "m" / "sub").symlink_to(tmp_path / "outside")
    found = Item("sub/x.json", made / "m" / "sub" / "x.json", 2, hashlib.sha256(b"{}").hexdigest(), 2)
    with pytest.raises(InputError, match="lies behind"):
        manifest.checked(found)
    (made / "m" / "sub").unlink()
    shutil.copytree(tmp_path / "outside", made / "m" / "sub")
    assert manifest.checked(found).seen is not None


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"])
def test_a_token_in_a_text_file(made: Path, name: str) -> None:
    path = made / "m" / name
    data = path.read_bytes().rstrip(b"\n")
    lines = data.count(b"\n") + 1
    path.write_bytes(data + b"\n" + TOKEN.encode())
    now = path.read_bytes()
    spoilt = Item(name, path, len(now), hashlib.sha256(now).hexdigest(), len(now))
    with pytest.raises(InputError, match=f"line {lines + 1} holds what looks like a Hugging Face token") as error:
        manifest.checked(spoilt)
    assert TOKEN not in str(error.value)


def test_a_token_in_the_header_of_weights(tmp_path: Path) -> None:
    """A chat template ends in a GGUF's key-values."""
    source = shutil.copytree(HF, tmp_path / "hf")
    template = source / "chat_template.jinja"
    template.write_text(template.read_text() + "{# " + TOKEN + " #}")
    ckpttool.convert(source, tmp_path / "x.gguf", device="cpu")
    with pytest.raises(InputError, match=r"x\.gguf at byte \d+: its header holds") as error:
        manifest.checked(item(tmp_path / "x.gguf", "x.gguf"))
    offset = error.value.offset
    assert offset is not None
    assert (tmp_path / "x.gguf").read_bytes()[offset:].startswith(TOKEN.encode())


# Kept


@pytest.fixture(params=["descriptor", "name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the open descriptor, as on Linux; or by name, as elsewhere."""
    if request.param == "name":
        monkeypatch.setattr(held, "HELD", "/nowhere")
    return str(request.param)


def test_what_is_opened_is_what_was_checked(made: Path, way: str) -> None:
    found = manifest.checked(item(made / "m", "config.json"))
    before = found.path.read_bytes()
    with manifest.opened(found) as path:
        assert path.read_bytes() == before
        assert (path == found.path) == (way == "name")


def test_a_swap_after_the_check_is_seen(made: Path, way: str) -> None:
    found = manifest.checked(item(made / "m", "config.json"))
    shutil.copy(found.path, made / "copy")
    (made / "copy").replace(found.path)  # the same bytes, in another file
    with pytest.raises(InputError, match="has changed since it was checked"), manifest.opened(found):
        pass


def test_a_swap_while_it_is_open(made: Path, way: str) -> None:
    """It is seen at the end; and by the descriptor the other file was not read either."""
    found = manifest.checked(item(made / "m", "config.json"))
    before = found.path.read_bytes()
    (made / "secret").write_text("not for you")
    read = b""
    with pytest.raises(InputError, match="has changed while"), manifest.opened(found) as path:
        (made / "secret").replace(found.path)
        read = path.read_bytes()
    assert read == (before if way == "descriptor" else b"not for you")


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_change_is_seen(made: Path, way: str, when: str) -> None:
    """Even one that puts size and time back."""
    found = manifest.checked(item(made / "m", "config.json"))
    stat = found.path.stat()

    def change() -> None:
        spoilt_byte(found.path)
        os.utime(found.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(InputError, match="has changed"):
        if when == "before":
            change()
        with manifest.opened(found):
            change()
    with pytest.raises(InputError, match="has changed"):
        manifest.content(found)


def test_what_the_disk_refuses_is_its_fault(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = item(made / "m", "config.json")

    def broken(fd: int, n: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(held.os, "read", broken)
    with pytest.raises(LocalIOError, match=r"config\.json: Input/output error; the disk"):
        manifest.checked(found)


def test_progress_counts_every_byte(made: Path) -> None:
    found = manifest.read(made / "m")
    seen: list[int] = []
    for i in found.items:
        manifest.checked(i, seen.append)
    assert sum(seen) == found.nbytes
