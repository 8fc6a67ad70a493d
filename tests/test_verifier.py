"""verify: a conversion that is as its receipt says passes, and one changed bit anywhere is found and named."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import Model, Sizes
from commandline import run

import ckpttool
from ckpttool.errors import CkptError, InputError
from ckpttool.verifier import find_receipt, receipt_nbytes

MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "folder": ("out", {"to": "mxfp4"}),
    "shards": ("out", {"to": "bf16", "max_shard_size": 12_000}),
    "gguf": ("out.gguf", {}),
    "split": ("out.gguf", {"max_shard_size": 20_000}),
    "not read back": ("out", {"to": "mxfp4", "verify": False}),
}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    def make(kind: str) -> tuple[Path, dict[str, Any]]:
        name, options = KINDS[kind]
        source = builders.write(MODEL, tmp_path / "in", "hf")
        ckpttool.convert(source, tmp_path / "made" / name, **options)
        target = tmp_path / "made" / name
        return target, json.loads(find_receipt(target).read_text())

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_passes(kind: str, made: Any) -> None:
    target, receipt = made(kind)
    report = ckpttool.verify(target)
    assert (report.ok, report.findings) == (True, ())
    assert report.tensors == len(receipt["tensors"])
    assert report.files == len(receipt["files"])
    assert report.nbytes == sum(f["nbytes"] for f in receipt["files"])
    folder = target if target.is_dir() else target.parent
    assert {f["name"] for f in receipt["files"]} | {find_receipt(target).name} == {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_anywhere_is_found_and_named(kind: str, made: Any) -> None:
    """In every file: its first and last byte, and one bit in each tensor and in what lies between them."""
    target, receipt = made(kind)
    folder, rng = find_receipt(target).parent, random.Random(0)
    for row in receipt["files"]:
        path = folder / row["name"]
        data = path.read_bytes()
        tensors = sorted((t for t in receipt["tensors"] if t["file"] == row["name"]), key=lambda t: t["offset"])
        owner = {t["offset"] + rng.randrange(t["nbytes"]): t["name"] for t in tensors}
        owner |= {t["offset"]: t["name"] for t in tensors}
        owner |= {t["offset"] + t["nbytes"] - 1: t["name"] for t in tensors}
        within = [(t["offset"], t["offset"] + t["nbytes"]) for t in tensors]
        between = {0, 4, len(data) - 1, *(stop for _, stop in within), *(start - 1 for start, _ in within)}
        for at in between:
            if at < len(data) and not any(a <= at < b for a, b in within):
                owner[at] = None
        for at, name in owner.items():
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
            report = ckpttool.verify(target)
            assert not report.ok, (row["name"], at)
            assert len(report.findings) == 1
            assert row["name"] in report.findings[0]
            if name:
                assert name in report.findings[0]
            elif tensors:
                assert "outside the tensors" in report.findings[0]
        path.write_bytes(data)
    assert ckpttool.verify(target).ok


def test_padding_between_tensors_is_covered(made: Any) -> None:
    target, receipt = made("gguf")
    ends = sorted((t["offset"], t["offset"] + t["nbytes"]) for t in receipt["tensors"])
    gaps = [stop for (_, stop), (start, _) in pairwise(ends) if stop < start]
    gaps += [ends[-1][1]] if ends[-1][1] < target.stat().st_size else []
    assert gaps
    data = bytearray(target.read_bytes())
    data[gaps[0]] = 1
    target.write_bytes(data)
    assert ckpttool.verify(target).findings == (f"{target.name}: sha256 differs, outside the tensors",)


def test_several_changed_tensors_are_all_named(made: Any) -> None:
    target, receipt = made("folder")
    path = target / "model.safetensors"
    data = bytearray(path.read_bytes())
    changed = [t for i, t in enumerate(receipt["tensors"]) if i % 5 == 0]
    for t in changed:
        data[t["offset"] + t["nbytes"] // 2] ^= 0x80
    path.write_bytes(data)
    report = ckpttool.verify(target)
    assert len(report.findings) == len(changed)
    assert all(any(t["name"] in f for f in report.findings) for t in changed)


def test_missing_longer_and_shorter_files(made: Any) -> None:
    target, _ = made("shards")
    shards = sorted(target.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes() + b"\0")
    (target / "tokenizer.json").write_bytes((target / "tokenizer.json").read_bytes()[:-1])
    findings = ckpttool.verify(target).findings
    assert len(findings) == 3
    assert any(f == f"{shards[0].name}: missing" for f in findings)
    assert any(f.startswith(f"{shards[1].name}: ") and "bytes, the receipt says" in f for f in findings)
    assert any(f.startswith("tokenizer.json: ") for f in findings)


def test_the_receipt_is_found_from_any_of_its_names(made: Any) -> None:
    target, _ = made("split")
    receipt = target.with_name("out.gguf.receipt.json")
    for name in (target, *sorted(target.parent.glob("out-*.gguf")), receipt, target.parent):
        assert find_receipt(name) == receipt


def test_a_folder_is_the_one_we_are_in(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("folder", "gguf"):
        target, _ = made(kind)
        monkeypatch.chdir(target if target.is_dir() else target.parent)
        assert ckpttool.verify(".").ok
        shutil.rmtree(find_receipt(target).parent)
        shutil.rmtree(target.parent.parent / "in")
    with pytest.raises(InputError, match="has no receipt"):
        ckpttool.verify("/")


def test_a_link_leads_to_its_receipt(made: Any, tmp_path: Path) -> None:
    target, _ = made("gguf")
    (tmp_path / "link.gguf").symlink_to(target)
    (tmp_path / "again.gguf").symlink_to("link.gguf")
    for name in ("link.gguf", "again.gguf"):
        assert find_receipt(tmp_path / name) == target.with_name("out.gguf.receipt.json")
        assert ckpttool.verify(tmp_path / name).findings == ()
    target.write_bytes(b"GGUF")
    assert not ckpttool.verify(tmp_path / "again.gguf").ok
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(InputError, match="no such file"):
        ckpttool.verify(tmp_path / "loop.gguf")


def test_a_file_that_the_receipt_does_not_name_is_a_finding(made: Any) -> None:
    """A GGUF that came to lie where a split set was made, or beside a shorter set, was never what is checked."""
    target, _ = made("split")
    first = min(target.parent.glob("out-*.gguf"))
    assert ckpttool.verify(target).ok
    shutil.copy(first, target)
    said = f"{target.name}: not among the files of out.gguf.receipt.json"
    assert ckpttool.verify(target).findings == (said,)
    assert run("verify", target).code == 1
    assert ckpttool.verify(first).ok
    assert ckpttool.verify(target.parent).ok
    assert ckpttool.verify(find_receipt(target)).ok
    stranger = target.with_name("out-00099-of-00099.gguf")
    for exists in (False, True):
        if exists:
            shutil.copy(first, stranger)
        (found,) = ckpttool.verify(stranger).findings
        assert found == f"{stranger.name}: not among the files of out.gguf.receipt.json"


def test_a_renamed_file_and_its_receipt(made: Any) -> None:
    """The receipt still says the old name, and only that is checked."""
    target, _ = made("gguf")
    moved = target.rename(target.with_name("y.gguf"))
    find_receipt(target).rename(target.with_name("y.gguf.receipt.json"))
    found = ckpttool.verify(moved).findings
    assert found == ("y.gguf: not among the files of y.gguf.receipt.json", "out.gguf: missing")


def test_no_receipt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ckpttool.verify(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no receipt"):
        ckpttool.verify(tmp_path)


@pytest.mark.parametrize("change", [
    lambda r: r.update(schema="conversion.v2"), lambda r: r.update(schema=None), lambda r: r.pop("files"),
    lambda r: r.pop("tensors"), lambda r: r["files"][0].pop("nbytes"), lambda r: r["tensors"][0].pop("crc32"),
    lambda r: r["files"][0].update(name="../in/config.json"), lambda r: r.update(files=5),
    lambda r: r["files"][0].update(nbytes="many"), lambda r: r["tensors"][0].update(offset=-1),
    lambda r: r["tensors"][0].update(offset=10**12), lambda r: r["tensors"][0].update(nbytes=None),
])  # fmt: skip
def test_a_damaged_receipt_is_an_error_or_a_finding_never_a_crash(change: Any, made: Any) -> None:
    target, receipt = made("folder")
    change(receipt)
    find_receipt(target).write_text(json.dumps(receipt))
    try:
        report = ckpttool.verify(target)
    except CkptError as e:
        assert e.exit_code == 3
    else:
        assert not report.ok


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no file": lambda r: r.update(files=[]),
    "no list of files": lambda r: r.update(files={}),
    "no list of tensors": lambda r: r.update(tensors={}),
    "files that are no objects": lambda r: r.update(files=["model.safetensors"]),
    "tensors that are no objects": lambda r: r["tensors"].append([]),
    "a file twice": lambda r: r["files"].append(r["files"][0]),
    "a file of googols of bytes": lambda r: r["files"][0].update(nbytes=10**400),
    "a file of 2^63 bytes": lambda r: r["files"][0].update(nbytes=1 << 63),
    "a file of True bytes": lambda r: r["files"][0].update(nbytes=True),
    "a file of less than no bytes": lambda r: r["files"][0].update(nbytes=-1),
    "a file elsewhere": lambda r: r["files"][0].update(name="../in/config.json"),
    "a file at the root": lambda r: r["files"][0].update(name="/etc/passwd"),
    "no word on sha256": lambda r: r["files"][0].pop("sha256"),
    "a sha256 that is a number": lambda r: r["files"][0].update(sha256=5),
    "a tensor in a file that is not listed": lambda r: r["tensors"][0].update(file="other.safetensors"),
    "a tensor that begins behind its file": lambda r: r["tensors"][0].update(offset=10**12),
    "a tensor that ends behind its file": lambda r: r["tensors"][0].update(nbytes=10**12),
    "a tensor of half a byte": lambda r: r["tensors"][0].update(nbytes=0.5),
    "a tensor inside another": lambda r: r["tensors"].append(r["tensors"][0]),
    "a tensor without a name": lambda r: r["tensors"][0].pop("name"),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_receipt_that_no_conversion_writes_is_refused(change: Any, made: Any) -> None:
    target, receipt = made("folder")
    change(receipt)
    find_receipt(target).write_text(json.dumps(receipt))
    for function in (ckpttool.verify, receipt_nbytes):
        with pytest.raises(InputError) as caught:
            function(target)
        assert caught.value.file == str(find_receipt(target))
        assert caught.value.field
        assert caught.value.hint == "the receipt is damaged, or was edited"
    result = run("verify", target)
    assert (result.code, result.out) == (3, "")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": "conversion.v1"}'])
def test_a_receipt_that_is_none(text: str, made: Any) -> None:
    target, _ = made("folder")
    find_receipt(target).write_text(text)
    for function in (ckpttool.verify, receipt_nbytes):
        with pytest.raises(InputError):
            function(target)


# What the receipt knows, but is no checkpoint, or another one than it says


def rewritten(target: Path, receipt: dict[str, Any], name: str, data: bytes) -> None:
    """A file changed, and the receipt with it, so that bytes and hashes agree."""
    (find_receipt(target).parent / name).write_bytes(data)
    (row,) = (r for r in receipt["files"] if r["name"] == name)
    row |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "crc32": f"{zlib.crc32(data):08x}"}
    find_receipt(target).write_text(json.dumps(receipt))


@pytest.mark.parametrize("kind", ["folder", "shards", "gguf", "split"])
def test_bytes_that_a_receipt_knows_must_open(kind: str, made: Any) -> None:
    target, receipt = made(kind)
    name = next(r["name"] for r in receipt["files"] if r["name"].endswith((".safetensors", ".gguf")))
    data = (find_receipt(target).parent / name).read_bytes()
    receipt["tensors"] = [t for t in receipt["tensors"] if t["file"] != name]
    rewritten(target, receipt, name, data[:9] + b"\xff" + data[10:])
    report = ckpttool.verify(target)
    assert not report.ok
    assert report.findings[0].startswith(name), report.findings


def test_what_inspect_shows_verify_shows(made: Any) -> None:
    target, receipt = made("folder")
    config = json.loads((target / "config.json").read_text()) | {"num_hidden_layers": 2}
    rewritten(target, receipt, "config.json", json.dumps(config).encode())
    findings = ckpttool.verify(target).findings
    assert findings == ckpttool.inspect(target).problems
    assert "model.layers.1.input_layernorm.weight: is missing" in findings[0]


def test_a_receipt_that_says_other_tensors_than_the_header(made: Any) -> None:
    target, receipt = made("folder")
    first, second, third = receipt["tensors"][:3]
    receipt["tensors"].remove(first)
    second["name"] = "other"
    third["nbytes"] -= 1
    data = (target / third["file"]).read_bytes()[third["offset"] :][: third["nbytes"]]
    third["crc32"] = f"{zlib.crc32(data):08x}"
    find_receipt(target).write_text(json.dumps(receipt))
    findings = ckpttool.verify(target).findings
    assert len(findings) == 4  # a new name is one too many and one too few
    assert f"model.safetensors: {first['name']}: not among the tensors of the receipt" in findings
    assert "model.safetensors: other: not in the file's header, but in the receipt" in findings
    assert any(
        third["name"] in f and f"; the receipt says ['{third['file']}', {third['offset']}" in f for f in findings
    )


def test_a_receipt_of_what_convert_never_writes(made: Any) -> None:
    target, receipt = made("folder")
    config = json.loads((target / "config.json").read_text()) | {"model_type": "llama"}
    rewritten(target, receipt, "config.json", json.dumps(config).encode())
    assert "no architecture that convert writes" in ckpttool.verify(target).findings[0]
    assert run("verify", target).code == 1


def test_a_link_out_of_the_folder_is_not_followed(made: Any) -> None:
    """The same bytes, but elsewhere: convert refuses them as a source too. Links inside the folder are fine."""
    target, _ = made("folder")
    name = "model.safetensors"
    (target / name).rename(target / "inside")
    (target / name).symlink_to("inside")
    assert ckpttool.verify(target).ok
    outside = target.with_name("outside")
    (target / "inside").rename(outside)
    (target / name).unlink()
    (target / name).symlink_to(outside)
    (finding,) = ckpttool.verify(target).findings
    assert f"{name}: a link that leaves the folder, to {outside}" in finding


def test_a_gguf_and_its_receipt_may_be_links(made: Any) -> None:
    target, _ = made("gguf")
    here = target.parent.with_name("links")
    here.mkdir()
    for path in target.parent.iterdir():
        (here / path.name).symlink_to(path)
    assert ckpttool.verify(here / target.name).ok
