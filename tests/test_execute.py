"""Executing a plan: the same bytes however it is done, whatever it dies of, and no wreck where it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import crash_runs
import jsonschema
import pytest
from builders import Model, Sizes
from crash_runs import tree

import ckpttool
from ckpttool import api, execute, preflight, steps, workplace
from ckpttool.containers.source import LocalTarget
from ckpttool.errors import InputError, LimitError, LocalIOError, UsageError
from ckpttool.journal import Entry, Journal
from ckpttool.verifier import find_receipt

HERE = Path(__file__).parent
FIXTURE = HERE.parent / "fixtures" / "tiny-gpt-oss" / "hf"
SMALL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
SLAB = 9_000
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "folder": ("out", {"to": "bf16", "workers": 1}),
    "two threads": ("out", {"to": "bf16", "workers": 2}),
    "shards": ("out", {"to": "mxfp4", "max_shard_size": 12_000, "workers": 1}),
    "gguf": ("out.gguf", {"model_name": "x", "workers": 1}),
    "split": ("out.gguf", {"model_name": "x", "max_shard_size": 30_000, "workers": 1}),
}
"""Target name and options of conversions of a model that take some twenty slabs."""


def run(scenario: str, request: dict[str, Any]) -> Any:
    """A scenario of `crash_runs` in a process of its own."""
    command = [sys.executable, str(HERE / "crash_runs.py"), scenario, json.dumps(request, default=str)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return builders.write(SMALL, tmp_path / "source", "hf")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Where conversions die; in memory if possible, for each of them waits for the disk several times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "work"


@pytest.fixture
def request_for(small: Path, tmp_path: Path, work: Path) -> Any:
    """What a scenario needs, and the tree that an undisturbed conversion leaves."""

    def make(kind: str, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
        name, options = TARGETS[kind]
        whole = tmp_path / "whole"
        whole.mkdir()
        ckpttool.convert(small, whole / name, **options)
        request = {"source": small, "target": name, "options": dict(options), "work": work,
                   "warm": tmp_path / "warm" / name, "slab_nbytes": SLAB, **more}  # fmt: skip
        (tmp_path / "warm").mkdir()
        return request, tree(whole)

    return make


# --- deaths ---


@pytest.mark.parametrize("kind", TARGETS)
def test_killed_at_every_journal_line(kind: str, request_for: Any) -> None:
    """Nothing under the target's name, then the same bytes, and every slab of the journal taken over."""
    request, whole = request_for(kind, points=["journal"])
    rows = run("kill_everywhere", request)
    slabs = rows[0]["again"]["slabs"]
    assert slabs >= 15
    assert len(rows) == 2 * slabs
    for row in rows:
        assert row["status"] == signal.SIGKILL, row
        assert row["finals"] == {}, row
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row
        if request["options"]["workers"] == 1:
            assert row["again"]["resumed"] == row["count"] - row["before"], row


@pytest.mark.parametrize("kind", ["folder", "shards", "gguf"])
def test_killed_at_any_other_point(kind: str, request_for: Any) -> None:
    """Preallocation, side files, sync, receipt: nothing of the target is there yet, and all slabs done are kept."""
    request, whole = request_for(kind, points=["create", "sidecar", "sync", "receipt"])
    rows = run("kill_everywhere", request)
    assert {r["point"] for r in rows} >= {"create", "sync", "receipt"}
    for row in rows:
        assert row["status"] == signal.SIGKILL, row
        assert row["finals"] == {}, row
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row
        if row["point"] != "create":
            assert row["again"]["resumed"] == row["again"]["slabs"], row


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_killed_at_the_rename(kind: str, request_for: Any) -> None:
    """The target is as it was, and then made; or it is there, whole, and only the traces are cleared away."""
    request, whole = request_for(kind, points=["rename"])
    rows = run("kill_everywhere", request)
    assert len(rows) == (2 if kind == "folder" else 4)
    for row in rows:
        assert row["finals"] in ({}, whole), row
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row
    assert any(row["finals"] for row in rows)


def test_a_split_set_killed_at_its_renames_is_not_loadable_and_goes_on(request_for: Any) -> None:
    """Its first shard comes last, so that no reader takes a part for the whole; the same command does the rest."""
    request, whole = request_for("split", points=["rename"])
    first = min(whole)
    rows = run("kill_everywhere", request)
    assert len(rows) == 2 * (len(whole) + 1)
    for row in rows:
        assert row["finals"].items() <= whole.items(), row
        assert (first in row["finals"]) == (row["finals"] == whole), row
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_killed_while_an_old_target_is_overwritten(kind: str, request_for: Any, tmp_path: Path) -> None:
    """The old one, whole, or the new one, whole; and then the new one, with nothing left beside it."""
    request, whole = request_for(kind, points=["rename", "exchange"])
    other = builders.write(Model(SMALL.sizes, seed=9), tmp_path / "other", "hf")
    (tmp_path / "old").mkdir()
    ckpttool.convert(other, tmp_path / "old" / request["target"], **request["options"])
    old = tree(tmp_path / "old")
    assert old != whole
    request["options"]["overwrite"] = True
    rows = run("kill_everywhere", {**request, "old": tmp_path / "old"})
    assert len(rows) >= 4
    for row in rows:
        assert row["finals"] in (old, whole), row
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row
    assert any(row["finals"] == old for row in rows)
    assert any(row["finals"] == whole for row in rows)


def test_a_journal_torn_at_every_byte_of_its_last_line(request_for: Any) -> None:
    """A line that is torn, or says something else, costs at most its own slab and never a byte."""
    request, whole = request_for("gguf", lines=6)
    rows = run("torn", request)
    assert len(rows) > 50
    for row in rows:
        assert row["again"]["status"] == 0, row
        assert row["again"]["resumed"] in (5, 6), row
        assert row["tree"] == whole, row
    assert {row["again"]["resumed"] for row in rows} == {5, 6}


@pytest.mark.parametrize("kind", ["gguf", "shards"])
def test_damage_to_unfinished_files_is_redone(kind: str, request_for: Any) -> None:
    """Header, tensors and padding: whatever byte has changed, the result is right."""
    request, whole = request_for(kind, places=4 if kind == "shards" else 40)
    rows = run("damaged_partial", request)
    assert len(rows) > 25
    for row in rows:
        assert row["again"]["status"] == 0, row
        assert row["tree"] == whole, row
        assert row["again"]["resumed"] >= row["again"]["slabs"] - 1, row
    assert any(row["again"]["resumed"] < row["again"]["slabs"] for row in rows)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_with_its_journal_intact(
    number: signal.Signals, code: int, request_for: Any, tmp_path: Path
) -> None:
    request, whole = request_for("folder")
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["convert", str(request["source"]), str(work / "out"), "--to", "bf16", "--workers", "2"]
    asked = {"slab_nbytes": SLAB, "line": 5, "signal": int(number), "arguments": arguments}
    command = [sys.executable, str(HERE / "crash_runs.py"), "signalled", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=HERE.parent)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert [p.name for p in work.iterdir()] == ["out.partial"]
    lines = (work / "out.partial" / "journal").read_bytes().splitlines()
    assert len(lines) > 5
    assert all(isinstance(json.loads(line), dict) for line in lines)
    again = in_process(request, work / "out")
    assert tree(work) == whole
    assert again["slabs"] > again["slabs_resumed"] == len(lines) - 1


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLAB_NBYTES", SLAB)


def in_process(request: dict[str, Any], target: Path, **more: Any) -> dict[str, Any]:
    return dict(ckpttool.convert(request["source"], target, **{**request["options"], **more}).run)


class Stop(BaseException):
    """What stops a run here."""


def stopped(small: Path, target: Path, line: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Leave an unfinished conversion with `line` lines in its journal."""
    original, calls = Journal.add, [0]

    def add(self: Journal, entry: Entry) -> None:
        if calls[0] == line:
            raise Stop
        calls[0] += 1
        original(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(Stop):
            ckpttool.convert(small, target, workers=1, **options)


def test_another_plan_begins_anew(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpttool.convert(small, tmp_path / "whole", to="bf16", dtype="f32")
    stopped(small, tmp_path / "out", 7, monkeypatch, to="bf16")
    report = ckpttool.convert(small, tmp_path / "out", to="bf16", dtype="f32")
    assert report.run["slabs_resumed"] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_a_source_that_has_changed_begins_anew(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(small, tmp_path / "out", 7, monkeypatch, to="bf16")
    file = small / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] == 0
    ckpttool.convert(small, tmp_path / "whole", to="bf16")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_source_that_changes_meanwhile_is_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be of two versions; the target does not come to be."""
    original = Journal.add

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        os.utime(small / "model.safetensors", ns=(1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(InputError, match="has changed while it was converted"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] == 0


def test_a_source_that_goes_meanwhile_is_an_error(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open can still be read, but nobody could tell any more of what the target is made."""
    original = Journal.add

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        (small / "model.safetensors").unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(InputError, match=r"model\.safetensors: has gone while it was converted; put it back"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_folders_in_the_target_are_brought_to_the_disk(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = small / "additional_chat_templates" / "tool.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")
    synced = []
    original = execute.sync_folder

    def sync(folder: Path) -> None:
        synced.append(folder.name)
        original(folder)

    monkeypatch.setattr(execute, "sync_folder", sync)
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert synced == ["additional_chat_templates", "files"]
    assert (tmp_path / "out" / template.relative_to(small)).read_text() == "{{ messages }}"


def test_a_source_that_is_cut_off_meanwhile_is_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal.add

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        os.truncate(small / "model.safetensors", 5_000)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(InputError, match=r"shrank or is truncated") as caught:
            ckpttool.convert(small, tmp_path / "out", to="bf16", workers=1)
    assert caught.value.file == "model.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_strangers_in_the_partial_folder_do_not_get_into_the_target(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(small, tmp_path / "out", 7, monkeypatch, to="bf16")
    files = tmp_path / "out.partial" / "files"
    (files / "stranger.bin").write_bytes(b"?")
    (files / "folder").mkdir()
    (files / "config.json").symlink_to(small / "config.json")
    before = (small / "config.json").read_bytes()
    assert ckpttool.convert(small, tmp_path / "out", to="bf16").run["slabs_resumed"] == 7
    ckpttool.convert(small, tmp_path / "whole", to="bf16")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())
    assert (small / "config.json").read_bytes() == before


# --- the same bytes ---


@pytest.mark.parametrize("kind", ["folder", "shards", "gguf", "split"])
def test_the_same_bytes_whatever_workers_and_memory(kind: str, small: Path, tmp_path: Path) -> None:
    name, options = TARGETS[kind]
    trees, receipts = [], []
    for workers, memory in ((1, "512MB"), (2, "512MB"), (4, "512MB"), (4, "25MB"), (3, "30MB")):
        folder = tmp_path / f"{workers} {memory}"
        folder.mkdir()
        report = ckpttool.convert(
            small, folder / name, **{**options, "workers": workers, "max_memory": memory, "verify": memory == "512MB"}
        )
        trees.append(tree(folder))
        receipts.append([(t.name, t.crc32, t.fidelity, t.changed) for t in report.tensors])
    assert all(t == trees[0] for t in trees)
    assert all(r == receipts[0] for r in receipts)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_receipt_says_what_lies_there(kind: str, small: Path, tmp_path: Path) -> None:
    """Held against the files by hashlib and zlib, and against its schema; but for `run` it says the same each time."""
    name, options = TARGETS[kind]
    documents = []
    for folder in (tmp_path / "made", tmp_path / "again"):
        ckpttool.convert(small, folder / name, **options)
        path = find_receipt(folder / name)
        documents.append(json.loads(path.read_text()))
    receipt = documents[0]
    jsonschema.validate(receipt, json.loads((HERE.parent / "schemas" / "conversion.v1.json").read_text()))
    root = find_receipt(tmp_path / "made" / name).parent
    contents = {p.name: p.read_bytes() for p in root.iterdir() if not p.name.endswith(crash_runs.RECEIPTS)}
    for row in receipt["files"]:
        data = contents.pop(row["name"])
        assert row["nbytes"] == len(data)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["crc32"] == f"{zlib.crc32(data):08x}"
    assert not contents
    for t in receipt["tensors"]:
        data = (root / t["file"]).read_bytes()[t["offset"] : t["offset"] + t["nbytes"]]
        assert t["crc32"] == f"{zlib.crc32(data):08x}"
    for row in receipt["source"]["files"]:
        data = (small / row["name"]).read_bytes()
        header = data[: 8 + int.from_bytes(data[:8], "little")]
        assert (row["nbytes"], row["header_sha256"]) == (len(data), hashlib.sha256(header).hexdigest())
    assert receipt["run"]["nbytes"]["written"] == sum(f["nbytes"] for f in receipt["files"])
    assert {"seconds", "nbytes", "peak_memory", "versions", "workers"} <= set(receipt["run"])
    for document in documents:
        document.pop("run")
        document["target"].pop("path")
    assert documents[0] == documents[1]


def test_too_little_memory_says_how_much_it_takes(small: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="largest slab needs") as caught:
        ckpttool.convert(small, tmp_path / "out", to="bf16", max_memory=1_000_000)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out.partial").exists()
    needed = str(caught.value.hint).split("--max-memory ")[1].split()[0]
    ckpttool.convert(small, tmp_path / "out", to="bf16", max_memory=needed)


# --- what is in the way ---


def test_two_conversions_at_one_target(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused while the first is at work, and the first is not disturbed."""
    reached, go_on = threading.Event(), threading.Event()
    original = Journal.add

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        reached.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Journal, "add", add)
    reports: list[Any] = []
    first = threading.Thread(target=lambda: reports.append(ckpttool.convert(small, tmp_path / "out", to="bf16")))
    first.start()
    try:
        assert reached.wait(60)
        with pytest.raises(LocalIOError, match="another conversion is writing here"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    finally:
        go_on.set()
        first.join()
    assert len(reports) == 1
    assert ckpttool.verify(tmp_path / "out").ok


def test_a_lock_whose_file_is_gone_is_no_lock(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening it and our locking it, the other run ended and took its folder along."""
    original = workplace._lock

    def lock(fd: int) -> bool:
        shutil.rmtree(tmp_path / "out.partial")
        return original(fd)

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "_lock", lock)
        with pytest.raises(LocalIOError, match="another conversion is writing here"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    ckpttool.convert(small, tmp_path / "out", to="bf16")


@pytest.mark.parametrize("kind", ["folder", "gguf", "split"])
def test_a_target_that_exists_stays_unless_overwritten(kind: str, small: Path, tmp_path: Path) -> None:
    name, options = TARGETS[kind]
    ckpttool.convert(small, tmp_path / name, **options)
    before = tree(tmp_path)
    other = builders.write(Model(SMALL.sizes, seed=9), tmp_path / "other", "hf")
    with pytest.raises(LocalIOError, match="already exists") as caught:
        ckpttool.convert(other, tmp_path / name, **options)
    assert caught.value.hint
    assert {n: s for n, s in tree(tmp_path).items() if not n.startswith("other/")} == before
    ckpttool.convert(other, tmp_path / name, overwrite=True, **options)
    (tmp_path / "fresh").mkdir()
    ckpttool.convert(other, tmp_path / "fresh" / name, **options)
    after = {n: s for n, s in tree(tmp_path).items() if not n.startswith(("other/", "fresh/", "source/"))}
    assert after == tree(tmp_path / "fresh")


def test_overwrite_spares_a_folder_that_is_no_checkpoint(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(LocalIOError):
        ckpttool.convert(small, tmp_path / "out", to="bf16", overwrite=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("other", ["thesis.docx", "sub/deep.txt", ".git/HEAD", "model.gguf"])
def test_overwrite_spares_a_checkpoint_that_lies_among_other_things(other: str, small: Path, tmp_path: Path) -> None:
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    (tmp_path / "out" / other).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / other).write_text("years of work")
    with pytest.raises(LocalIOError, match="no part of a checkpoint"):
        ckpttool.convert(small, tmp_path / "out", to="bf16", overwrite=True)
    assert (tmp_path / "out" / other).read_text() == "years of work"


def test_a_folder_where_the_conversion_would_be_made_is_no_source(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "out.partial" / "files")
    before = tree(tmp_path / "out.partial")
    with pytest.raises(UsageError, match="holds what it reads"):
        ckpttool.convert(tmp_path / "out.partial" / "files", tmp_path / "out", to="bf16")
    with pytest.raises(UsageError, match="holds what it reads"):
        ckpttool.convert(small, tmp_path / "out", to="bf16", reference=tmp_path / "out.partial" / "files")
    with pytest.raises(LocalIOError, match="which is not ours"):
        ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert tree(tmp_path / "out.partial") == before


def test_a_split_set_does_not_take_over_another_files_receipt(small: Path, tmp_path: Path) -> None:
    ckpttool.convert(small, tmp_path / "x.gguf")
    before = tree(tmp_path)
    with pytest.raises(LocalIOError, match="already exists"):
        ckpttool.convert(small, tmp_path / "x.gguf", max_shard_size=20_000)
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(LocalIOError, match="already exists"):
        ckpttool.convert(small, tmp_path / "x.gguf", max_shard_size=20_000)
    assert tree(tmp_path) == {n: s for n, s in before.items() if n != "x.gguf"}


@pytest.mark.parametrize("point", ["before", "after"])
def test_what_lies_at_the_target_since_is_not_taken_for_an_old_one(point: str, small: Path, tmp_path: Path) -> None:
    """Killed around the rename; then the user puts something else there, and the same command must not delete it."""
    request = {"source": str(small), "options": {"to": "bf16", "overwrite": True}}
    crash_runs.crash(request, tmp_path / "out", "rename", 1, point == "before")
    assert (tmp_path / "out.partial").exists()
    if (tmp_path / "out").exists():
        shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(LocalIOError):
        ckpttool.convert(small, tmp_path / "out", to="bf16", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["out", "x.gguf"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_damaged_target_of_the_same_plan_is_replaced_after_an_interruption(
    name: str, count: int, small: Path, tmp_path: Path
) -> None:
    options = {"to": "bf16"} if name == "out" else {}
    ckpttool.convert(small, tmp_path / name, **options)
    file = tmp_path / name if name == "x.gguf" else tmp_path / name / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not ckpttool.verify(tmp_path / name).ok
    request = {"source": str(small), "options": {**options, "overwrite": True}}
    crash_runs.crash(request, tmp_path / name, "journal", count, True)
    ckpttool.convert(small, tmp_path / name, overwrite=True, **options)
    assert ckpttool.verify(tmp_path / name).ok
    assert not (tmp_path / f"{name}.partial").exists()


def test_side_files_that_change_after_an_interruption_are_not_stale(small: Path, tmp_path: Path) -> None:
    crash_runs.crash({"source": str(small), "options": {"to": "bf16"}}, tmp_path / "out", "rename", 1, True)
    config = small / "config.json"
    config.write_text(config.read_text().replace("1e-05", "2e-05"))
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert "2e-05" in (tmp_path / "out" / "config.json").read_text()
    assert ckpttool.verify(tmp_path / "out").ok


def test_a_side_file_that_changes_during_the_run_is_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = execute.write_sidecar

    def write_sidecar(sidecar: Any, folder: Path, **more: Any) -> Any:
        if isinstance(sidecar.content, Path):
            sidecar.content.write_bytes(sidecar.content.read_bytes() + b" ")
        return original(sidecar, folder, **more)

    monkeypatch.setattr(execute, "write_sidecar", write_sidecar)
    with pytest.raises(InputError, match="has changed while it was converted"):
        ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_dry_run_writes_nothing_and_says_exactly_what_would_be_written(small: Path, tmp_path: Path) -> None:
    for kind, (name, options) in TARGETS.items():
        folder = tmp_path / kind
        asked = {k: v for k, v in options.items() if k != "workers"}
        report = api.preview(api.plan(small, folder / name, **asked), api.limit())
        assert not folder.exists()
        ckpttool.convert(small, folder / name, **options)
        planned = {f.name: f.nbytes for f in (*report.files, *report.sidecars)}
        written = {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file() and "receipt" not in p.name}
        assert written == planned
        assert report.nbytes == sum(written.values())


# --- failing disks ---


class Flip:
    """A disk that flips one bit of the `count`-th write."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.original = LocalTarget.writeall

    def __get__(self, file: LocalTarget, owner: type) -> Any:
        def writeall(offset: int, buffer: Any) -> None:
            self.left -= 1
            data = bytearray(memoryview(buffer).cast("B"))
            if self.left == 0:
                data[len(data) // 2] ^= 0x10
            self.original(file, offset, data)

        return writeall


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_reading_back_finds_a_flipped_bit(
    count: int, kind: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = TARGETS[kind]
    (tmp_path / "whole").mkdir()
    ckpttool.convert(small, tmp_path / "whole" / name, **options)
    (tmp_path / "work").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(LocalTarget, "writeall", Flip(count))
        with pytest.raises(LocalIOError, match="read back differs"):
            ckpttool.convert(small, tmp_path / "work" / name, **options)
    assert not (tmp_path / "work" / name).exists()
    ckpttool.convert(small, tmp_path / "work" / name, **options)
    assert tree(tmp_path / "work") == tree(tmp_path / "whole")


def test_a_side_file_that_does_not_get_to_the_disk_is_made_anew(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is emptied: what memory still holds of it would pass for written."""
    original = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(fd)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here, which tells the name of what is open")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(LocalIOError, match=r"config\.json: .*Input/output error.*goes on where this one stopped"):
            ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert [p.name for p in tmp_path.iterdir() if p.name != "source"] == ["out.partial"]
    assert not (tmp_path / "out.partial" / "files" / "config.json").read_bytes()
    ckpttool.convert(small, tmp_path / "out", to="bf16")
    ckpttool.convert(small, tmp_path / "whole", to="bf16")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_receipt_is_read_back(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        data = original(self)
        return data[:-2] + b" \n" if self.name.endswith("receipt.json") and "out.partial" in self.parts else data

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(LocalIOError, match=r"ckpttool\.receipt\.json: what was read back differs"):
        ckpttool.convert(small, tmp_path / "out", to="bf16")
    assert not (tmp_path / "out").exists()


def test_without_reading_back_the_receipt_still_tells(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalTarget, "writeall", Flip(9))
        report = ckpttool.convert(small, tmp_path / "out", to="bf16", verify=False)
    assert not report.verified
    assert not ckpttool.verify(tmp_path / "out").ok


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the system lets us mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system: {done.stderr.decode().strip() or 'mount needs root'}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_found_before_the_work(small: Path, full_disk: Path) -> None:
    with pytest.raises(LocalIOError, match=r"needs .* more") as caught:
        ckpttool.convert(small, full_disk / "out", to="bf16")
    assert caught.value.exit_code == 4
    assert not any(full_disk.iterdir())


def test_a_disk_that_fills_up_while_files_are_made_leaves_no_wreck(
    small: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took the room after we had looked."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    for name, options in TARGETS.values():
        with pytest.raises(LocalIOError, match="No space"):
            ckpttool.convert(small, full_disk / name, **options)
        assert not any(full_disk.iterdir()), name


def test_a_disk_that_is_full_at_the_end_can_be_freed_and_gone_on_with(
    small: Path, full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors are there, the side files have no room: nothing is lost."""
    subprocess.run(["mount", "-o", "remount,size=1m", str(full_disk)], check=True)
    ckpttool.convert(small, tmp_path / "whole", to="bf16")
    plan = api.plan(small, full_disk / "out", to="bf16")
    original = execute.write_sidecar

    def write_sidecar(sidecar: Any, folder: Path, **more: Any) -> Any:
        ballast = full_disk / "ballast"
        if not ballast.exists():
            with ballast.open("wb") as f:
                f.write(bytes(max(0, shutil.disk_usage(full_disk).free)))
        return original(sidecar, folder, **more)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "write_sidecar", write_sidecar)
        with pytest.raises(LocalIOError, match="No space") as caught:
            ckpttool.convert(small, full_disk / "out", to="bf16")
    assert "the same command" in str(caught.value.hint)
    assert not (full_disk / "out").exists()
    (full_disk / "ballast").unlink()
    report = ckpttool.convert(small, full_disk / "out", to="bf16")
    assert report.run["slabs_resumed"] == len(plan.slabs)
    assert tree(full_disk / "out") == tree(tmp_path / "whole")
    assert sorted(p.name for p in full_disk.iterdir()) == ["out"]


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_limit_on_file_sizes_leaves_no_wreck(kind: str, request_for: Any) -> None:
    request, _ = request_for(kind, limit=20_000)
    found = run("limited", request)
    assert found == {"status": 4 << 8, "tree": {}, "names": []}


# --- memory ---


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak that begins anew")
@pytest.mark.parametrize(("source", "options"), [
    ("hf", {"to": "bf16"}), ("hf-bf16", {"to": "mxfp4"}), ("hf", {"to": "gguf", "experts": "f16"}),
    ("gguf", {"to": "bf16"}),
], ids=["hf to bf16", "hf-bf16 to mxfp4", "hf to an F16 GGUF", "gguf to bf16"])  # fmt: skip
def test_memory_stays_within_its_bound(source: str, options: dict[str, Any], tmp_path: Path, work: Path) -> None:
    """64 MB are allowed above a process that has loaded the kernels; source and target are more than twice that."""
    sizes = Sizes(layers=4, experts=16, hidden=512, intermediate=768)
    made = {}
    for name, model in (("small", SMALL), ("large", Model(sizes))):
        if source == "gguf":
            made[name] = builders.write_gguf(model, tmp_path / f"{name}.gguf")
        else:
            made[name] = builders.write(model, tmp_path / name, source)
    target = "out.gguf" if options["to"] == "gguf" else "out"
    asked = {**options, "max_memory": 64_000_000, "workers": 2}
    work.mkdir()
    found = run("peak", {**made, "source": made["large"], "target": target, "options": asked, "work": work})
    files = [p for f in (made["large"], work / target) for p in (f.iterdir() if f.is_dir() else [f])]
    assert sum(p.stat().st_size for p in files) > 128_000_000
    assert found["after"] - found["before"] < 64_000_000
    assert found["reported"] == pytest.approx(found["after"], abs=1 << 20)  # threads count pages in batches


def test_the_scenarios_know_the_points_they_replace() -> None:
    for owner, name in crash_runs.POINTS.values():
        assert callable(getattr(owner, name))
