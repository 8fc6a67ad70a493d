"""Conversions that go to a repo as they are made: what is seen there, what lies here, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import builders
import fake_hub
import hub_faults
import jsonschema
import pytest
from builders import Model, Sizes
from commandline import run
from crash_runs import tree
from fake_hub import FakeHub
from fake_repos import User
from hub_faults import Answer, Call
from referencing import Registry, Resource

import ckpttool
from ckpttool import api, order, steps, workplace
from ckpttool.commit import move_in
from ckpttool.containers.source import LocalTarget
from ckpttool.errors import CheckFailed, InputError, LocalIOError, NetworkError, UsageError
from ckpttool.execute import execute
from ckpttool.journal import Entry, Freed, Journal, read_entries, read_freed
from ckpttool.publishing.report import Publication
from ckpttool.publishing.sending import Sending
from ckpttool.publishing.streaming import HubConversion
from ckpttool.staged import Staged

pytestmark = pytest.mark.usefixtures("hasty")

HERE = Path(__file__).parent
TOKEN, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
RECEIPT = "ckpttool.receipt.json"
SMALL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
SHARDED: dict[str, Any] = {"to": "mxfp4", "max_shard_size": 12_000}
"""Some twenty slabs and ten shards; experts' blocks and scales lie in two of them."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the small model in ada/model; the current folder is empty."""
    with fake_hub.as_the_hub(monkeypatch) as hub:
        hub.users |= {TOKEN: User("ada"), READER: User("ada", "read")}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        folder = builders.write(SMALL, tmp_path / "model", "hf")
        hub.add("ada/model", {p.name: p.read_bytes() for p in folder.iterdir()})
        monkeypatch.setattr(steps, "SLAB_NBYTES", 9_000)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield hub


@pytest.fixture
def local(hub: FakeHub, tmp_path: Path) -> Path:
    """The same model here."""
    return tmp_path / "model"


def convert(source: str | Path = "ada/model", repo: str = "hf://ada/out", **options: Any) -> Publication:
    return ckpttool.convert_to_hub(source, repo, device="cpu", **{**SHARDED, **options})


def expected(local: Path, tmp_path: Path, name: str = "out", **options: Any) -> dict[str, str]:
    """What a conversion to this machine gives."""
    target = tmp_path / "expected" / name
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        ckpttool.convert(local, target, device="cpu", **{**SHARDED, **options})
    return tree(target if target.is_dir() else target.parent)


def seen(hub: FakeHub, repo: str = "ada/out", ref: str = "main") -> dict[str, str]:
    """What the branch shows, but for what every repo has and for what differs from run to run."""
    files = hub.repos[repo].files(ref)
    ours = {n: d for n, d in files.items() if n not in (".gitattributes", "README.md") and not n.endswith(RECEIPT[9:])}
    return {n: hashlib.sha256(d).hexdigest() for n, d in ours.items()}


def puts(hub: FakeHub, repo: str = "ada/out") -> Counter[str]:
    """How often each content was put."""
    return Counter(c.groups[1] for c in hub.asked("object") if c.groups[0] == repo)


def commits(hub: FakeHub, repo: str = "ada/out") -> int:
    """How many there are beside the first."""
    return len(hub.repos[repo].commits) - 1


def here() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


# What is published


@pytest.mark.parametrize("frees", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out", {}),
        ("out", {"to": "bf16", "max_shard_size": None}),
        ("out.gguf", {"to": "gguf", "max_shard_size": None}),
        ("out.gguf", {"to": "gguf", "max_shard_size": 30_000}),
    ],
    ids=["shards", "folder", "gguf", "split"],
)
def test_the_repo_shows_what_a_conversion_here_gives(
    name: str, options: dict[str, Any], frees: bool, hub: FakeHub, local: Path, tmp_path: Path
) -> None:
    """By one commit, with a card and a receipt; and here lies the same, or nothing."""
    done = convert(free_disk=frees, **options)
    whole = expected(local, tmp_path, name, model_name=None, **options)
    assert seen(hub) == whole
    assert commits(hub) == 1
    receipt_name = RECEIPT if name == "out" else "out.gguf.receipt.json"
    files = hub.repos["ada/out"].files()
    assert set(files) - set(whole) == {".gitattributes", "README.md", receipt_name}
    receipt = json.loads(files[receipt_name])
    assert receipt["target"]["path"] == "hf://ada/out" + ("" if name == "out" else "/out.gguf")
    assert receipt["source"]["commit"] == hub.repos["ada/model"].head()
    assert {row["name"]: row["sha256"] for row in receipt["files"]} == whole
    assert b"base_model: ada/model" in files["README.md"]
    assert (done.commit, done.created, done.up_to_date) == (hub.repos["ada/out"].head(), True, False)
    assert {f.name for f in done.files} == set(files) - {".gitattributes"}
    assert set(puts(hub).values()) == {1}
    if frees:
        assert here() == []
        return
    target = Path(name)
    assert tree(Path() if target.suffix else target) == whole
    assert ckpttool.verify(target).ok


def test_the_report_is_as_its_schema_says(hub: FakeHub) -> None:
    for argv in (("--dry-run",), (), ()):
        done = run("convert", "ada/model", "hf://ada/out", "--to", "bf16", "--device", "cpu", "--json", *argv)
        assert done.code == 0, done.out
        validated(done.document)
    assert done.document["up_to_date"] and done.document["conversion"] is None


def validated(document: dict[str, Any]) -> None:
    schemas = [json.loads(p.read_text()) for p in (HERE.parent / "schemas").glob("*.json")]
    registry: Registry[Any] = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas)
    schema = next(s for s in schemas if s["$id"].endswith("publication.v1"))
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


def test_nothing_is_seen_before_the_commit(hub: FakeHub) -> None:
    """Whatever is asked of the Hub meanwhile finds the branch as it was."""
    repo = hub.add("ada/out", {"old.txt": b"old"})
    before = repo.head()
    heads = set()

    def look(call: Call, act: Callable[[], Answer]) -> Answer:
        heads.add(repo.head())
        return act()

    hub.always |= dict.fromkeys(("object", "verify", "batch", "preupload", "resolve", "commit"), look)
    convert(free_disk=True)
    assert heads == {before}
    assert commits(hub) == 1
    assert repo.files()["old.txt"] == b"old"


@pytest.mark.parametrize("sent_by_lfs", [True, False])
def test_what_went_by_xet_is_freed_once_lfs_has_it(
    sent_by_lfs: bool, hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here Xet's content is known by its sha256 with the commit alone; what is freed goes by LFS as well, or stays."""
    import huggingface_hub._commit_api as library

    by_xet: dict[str, bytes] = {}

    def xet(*, additions: Any, **_: Any) -> None:
        for a in additions:
            with a.as_file() as f:
                by_xet[a.upload_info.sha256.hex()] = f.read()

    def commit(call: Call, act: Callable[[], Answer]) -> Answer:
        hub.repos["ada/out"].objects |= by_xet
        return act()

    monkeypatch.setattr(library, "is_xet_available", lambda: True)
    monkeypatch.setattr(library, "_upload_xet_files", xet)
    hub.always["commit"] = commit
    if not sent_by_lfs:
        hub.always |= dict.fromkeys(("object", "verify"), lambda call, act: Answer(200))
        with pytest.raises(NetworkError, match="does not have what was sent"):
            convert(free_disk=True)
        return
    convert(free_disk=True)
    assert by_xet and seen(hub) == expected(local, tmp_path)


def test_a_branch_and_a_pull_request(hub: FakeHub, local: Path, tmp_path: Path) -> None:
    repo = hub.add("ada/out")
    before = repo.head()
    done = convert(revision="next", workdir="a")
    assert seen(hub, ref="next") == expected(local, tmp_path)
    assert (done.revision, repo.head()) == ("next", before)
    done = convert(pr=True, workdir="b")
    assert seen(hub, ref="refs/pr/1") == expected(local, tmp_path)
    assert done.pull_request is not None and (done.revision, repo.head()) == ("refs/pr/1", before)
    assert set(puts(hub).values()) == {1}


def test_a_gguf_by_its_name(hub: FakeHub) -> None:
    convert(repo="hf://ada/out/q.gguf", to=None, max_shard_size=None, free_disk=True)
    convert(repo="hf://ada/other-GGUF", to="gguf", max_shard_size=None)
    assert {"q.gguf", "q.gguf.receipt.json", "README.md"} < set(hub.repos["ada/out"].files())
    assert "other.gguf" in hub.repos["ada/other-GGUF"].files()
    assert here() == ["other.gguf", "other.gguf.receipt.json"]


def test_the_command_says_what_it_did(hub: FakeHub) -> None:
    command = ("convert", "ada/model", "hf://ada/out", "--to", "bf16", "--device", "cpu", "--free-disk")
    foreseen = run(*command, "--dry-run")
    assert foreseen.code == 0
    assert "would publish to ada/out (as visible as your account's default says, to be made)" in foreseen.out
    assert "-> hf://ada/out (hf-bf16)" in foreseen.out
    assert "disk needed" in foreseen.out and "nothing was sent" in foreseen.out
    assert "ada/out" not in hub.repos
    done = run(*command)
    assert done.code == 0
    assert "published to ada/out (public, made now)" in done.out
    assert "read back and compared: yes" in done.out
    assert TOKEN not in foreseen.out + foreseen.err + done.out + done.err
    again = run(*command)
    assert again.out.startswith("up to date: ada/out")


# How much of the disk it takes


def lying(folder: Path) -> int:
    """Bytes of weights in the folder of an unfinished conversion, as the file system counts them."""
    nbytes = 0
    for path in folder.glob("*.partial/files/*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # freed just now
            nbytes += path.stat().st_size
    return nbytes


MANY: dict[str, Any] = {"to": "bf16", "max_shard_size": 2_000}
"""Fifteen shards, some of one tensor."""


@pytest.mark.parametrize("slow", [False, True])
def test_two_shards_lie_here_at_most(slow: bool, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at whenever a file is made and whenever one goes out, which is when the most can lie there."""
    most, counts = [0], []
    lock = threading.Lock()

    def look() -> None:
        with lock:
            most[0] = max(most[0], lying(Path()))
            counts.append(len(list(Path().glob("*.partial/files/*.safetensors"))))

    made = LocalTarget.create.__func__  # type: ignore[attr-defined]

    def create(cls: Any, path: Any, size: int, name: str | None = None) -> LocalTarget:
        out: LocalTarget = made(cls, path, size, name)
        look()
        return out

    def put(call: Call, act: Callable[[], Answer]) -> Answer:
        look()
        if slow:
            time.sleep(0.05)
        return act()

    monkeypatch.setattr(LocalTarget, "create", classmethod(create))
    hub.always["object"] = put
    plan = api.plan("ada/model", "out", **MANY)
    sizes = sorted(f.size for f in plan.files)
    assert len(sizes) >= 10 and order.window(plan) == 2
    done = convert(**MANY, free_disk=True)
    assert max(counts) == 2
    assert most[0] <= sum(sizes[-2:]) <= done.peak_disk
    assert sizes[-1] < most[0]
    assert here() == []


@pytest.mark.parametrize("workers", [1, 4])
def test_slabs_that_reach_further_widen_the_window(
    workers: int, hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file at a time would wait for ever where gate lies in one file and up, zipped with it, in the next."""
    monkeypatch.setattr(order, "WINDOW", 1)
    options: dict[str, Any] = {"to": "gguf", "max_shard_size": 500}
    assert order.window(api.plan(local, tmp_path / "x.gguf", **options)) == 2
    assert order.window(api.plan(local, tmp_path / "x", **MANY)) == 1
    convert(free_disk=True, workers=workers, **options)
    assert seen(hub) == expected(local, tmp_path, "out.gguf", **options)
    convert(repo="hf://ada/other", free_disk=True, workers=workers, **MANY)
    assert seen(hub, "ada/other") == expected(local, tmp_path, "other", **MANY)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_any_number_of_workers_and_little_memory(workers: int, hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """One reader too, which sends by itself."""
    convert(free_disk=True, workers=workers, max_memory="26MB" if workers == 1 else "512MB")
    assert seen(hub) == expected(local, tmp_path)


def test_the_window_is_arithmetic(local: Path, tmp_path: Path) -> None:
    plan = api.plan(local, tmp_path / "x", **SHARDED)
    sizes = [f.size for f in plan.files]
    assert order.peak_nbytes(plan, 2) == max(map(sum, pairwise(sizes))) + sum(s.nbytes for s in plan.sidecars)
    assert order.peak_nbytes(plan, len(sizes)) == plan.nbytes
    assert sorted(order.in_file_order(plan)) == list(range(len(plan.slabs)))


def test_too_little_disk_is_said_before_anything_is_made(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards are enough where they are freed."""
    plan = api.plan("ada/model", "out", **MANY)
    room = order.peak_nbytes(plan, 2)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=room))
    with pytest.raises(LocalIOError, match="needs"):
        convert(**MANY)
    assert "ada/out" not in hub.repos
    convert(**MANY, free_disk=True)


# What an interrupt leaves


def sharded(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The scenario of `hub_crash_runs` in a process of its own."""
    command = [sys.executable, str(HERE / "hub_crash_runs.py"), json.dumps(request, default=str)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=HERE.parent, env=environment(request["hub"]))
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert (rows[-1]["status"], rows[-1]["again"]["status"]) == (signal.SIGKILL, 0), (rows[-1], done.stderr.decode())
    return rows


def environment(endpoint: str) -> dict[str, str]:
    return {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(HERE.parent),
    }  # fmt: skip


@pytest.mark.parametrize("frees", [False, True], ids=["keeps", "frees"])
@pytest.mark.parametrize("fresh", [False, True], ids=["goes on", "fresh runner"])
def test_killed_anywhere(fresh: bool, frees: bool, hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """The branch is as it was or has all; the same command does the rest, and nothing is put twice."""
    every = 1 if frees else 4
    points = [("put", fresh, every), ("commit", True, 1), ("commit", False, 1)]
    if not fresh:
        points += [("journal", True, 6), ("journal", False, 9), ("create", True, 3), ("discard", True, 1)]
        points += [("free", True, 2), ("free", False, 2)] if frees else [("rename", True, 1), ("rename", False, 1)]
    options = {**SHARDED, "free_disk": frees, "device": "cpu", "workers": 1, "max_memory": "26MB"}
    rows = sharded(
        {"hub": hub.endpoint, "source": "ada/model", "repo": "ada/out", "work": tmp_path / "dies", "options": options,
         "slab_nbytes": 9_000, "points": points, "fresh": fresh, "warm_source": local, "warm": tmp_path / "warm",
         "warm_options": {**SHARDED, "device": "cpu"}, "cwd": tmp_path}
    )  # fmt: skip
    whole = expected(local, tmp_path)
    assert {r["point"] for r in rows} == {p for p, _, _ in points}
    assert sum(r["point"] == "put" for r in rows) == -(-(len(whole) + 2) // every)  # with card and receipt
    for row in rows:
        assert seen(hub, row["repo"]) == whole, row
        assert commits(hub, row["repo"]) == 1, row
        # The Hub may not have seen all of a body that was on its way when a thread beside it was killed.
        on_its_way = row["point"] in ("journal", "create")
        assert puts(hub, row["repo"]).total() - len(puts(hub, row["repo"])) <= on_its_way, row
        if frees:
            assert row["tree"] == {}, row
            assert sum(n.endswith(".safetensors") for n in row["left"]) <= 2, row
        elif fresh and row["repo"].startswith("ada/out-commit-after"):
            assert row["tree"] == {}, row  # all is there: another machine has nothing to make
        else:
            assert row["tree"] == {f"out-{row['repo'].removeprefix('ada/out-')}/{n}": s for n, s in whole.items()}, row
        if row["point"] == "journal" and not fresh:
            assert row["again"]["resumed"] > 0 or row["count"] == 1, row
        if row["point"] == "commit" and not fresh and row["again"]["slabs"]:
            assert row["again"]["resumed"] == row["again"]["slabs"], row  # what was freed is not made again


class Stop(BaseException):
    """What stops a run here."""


def stopped(count: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A conversion that ends before the file number `count` goes out."""
    original, calls = Sending.put, [0]

    def put(self: Sending, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise Stop
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Sending, "put", put)
        with pytest.raises(Stop):
            convert(workers=1, max_memory="26MB", **options)


def test_what_the_hub_forgot_is_made_again(
    hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that no commit shows may be collected; the journal is not believed where the Hub says otherwise."""
    stopped(6, monkeypatch, free_disk=True)
    journal = next(Path().glob("*.partial")) / "journal"
    freed = [json.loads(line) for line in journal.read_text().splitlines() if '"file"' in line]
    assert len(freed) == 6
    repo = hub.repos["ada/out"]
    for row in freed[2:4]:
        del repo.objects[row["sha256"]]
    done = convert(free_disk=True)
    assert seen(hub) == expected(local, tmp_path)
    again = Counter({r["sha256"]: 2 for r in freed[2:4]})
    assert {k: n for k, n in puts(hub).items() if n > 1} == again
    assert done.conversion is not None and 0 < done.conversion.run["slabs_resumed"] < done.conversion.run["slabs"]
    assert here() == []


def test_freed_files_are_no_use_to_a_conversion_that_stays_here(
    hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes them again, and puts nothing twice."""
    stopped(6, monkeypatch, free_disk=True)
    convert()
    assert tree(Path("out")) == seen(hub) == expected(local, tmp_path)
    assert set(puts(hub).values()) == {1}


def test_damage_beside_a_freed_file(hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab of which one half went and the other is damaged here is worked again, for the half that is missing."""
    stopped(6, monkeypatch, free_disk=True)
    for path in Path().glob("*.partial/files/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-40:] = bytes(40)
        path.write_bytes(data)
    convert(free_disk=True)
    assert seen(hub) == expected(local, tmp_path)
    assert set(puts(hub).values()) == {1}


def test_another_repo_of_the_name_does_not_take_over(
    hub: FakeHub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder here is of the same name, and its journal speaks of files that this repo never got."""
    hub.users["hf_" + "o" * 34] = User("org")
    stopped(6, monkeypatch, free_disk=True)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    convert(repo="hf://org/out", free_disk=True)
    assert seen(hub, "org/out") == expected(local, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_does_not_wait_for_an_upload(
    number: signal.Signals, code: int, hub: FakeHub, local: Path, tmp_path: Path
) -> None:
    """It stalls for a minute; the command ends at once, says that it goes on, and then does."""
    reached = threading.Event()
    over = threading.Event()

    def stall(call: Call, act: Callable[[], Answer]) -> Answer:
        if hub.count("object") < 4:
            return act()
        reached.set()
        over.wait(60)
        return Answer(hangup=True)

    hub.always["object"] = stall
    command = [sys.executable, "-m", "ckpttool", "convert", "ada/model", "hf://ada/out", "--to", "mxfp4", "--device"]
    command += ["cpu", "--max-shard-size", "12000", "--free-disk"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(hub.endpoint))
    try:
        assert reached.wait(60)
        begun = time.monotonic()
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    finally:
        over.set()
        child.kill()
    assert child.returncode == code, err.decode()
    assert time.monotonic() - begun < 20
    assert b"goes on" in err and b"Traceback" not in err
    assert commits(hub) == 0
    hub.always.clear()
    landed = set(hub.repos["ada/out"].objects)
    before = puts(hub)
    convert(free_disk=True)
    assert seen(hub) == expected(local, tmp_path)
    assert all(puts(hub)[oid] == before[oid] for oid in landed)


def test_the_journal_of_a_freed_file(tmp_path: Path) -> None:
    """Comes back as it was; torn or changed, it and what follows it is not believed."""
    path = tmp_path / "journal"
    lines: list[Entry | Freed] = [Entry(0, (1, 2), (0,)), Freed("a.safetensors", 17, "ab" * 32), Entry(1, (3,), (0,))]
    journal = Journal(path, "plan", lines[:1])
    for line in lines[1:]:
        journal.add(line)
    journal.close()
    assert read_entries(path, "plan") == [lines[0], lines[2]]
    assert read_freed(path, "plan") == [lines[1]]
    assert read_freed(path, "another") == read_freed(tmp_path / "none", "plan") == []
    data = path.read_bytes()
    begin = data.index(b'{"file"')
    for at in range(begin, data.index(b"\n", begin) + 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert (read_entries(path, "plan"), read_freed(path, "plan")) == ([lines[0]], []), at
        path.write_bytes(data[:at])
        assert read_entries(path, "plan") == [lines[0]]


# Up to date


def tensor_reads(hub: FakeHub, since: int) -> list[str]:
    """Ranges of weights that do not begin at the file's begin, which is where its header is."""
    calls = [c for c in hub.calls[since:] if c.route == "resolve" and c.path.endswith((".safetensors", ".gguf"))]
    return [c.path for c in calls if not c.headers.get("range", "").startswith("bytes=0-")]


@pytest.mark.parametrize("to", ["mxfp4", "gguf"])
def test_a_repo_that_is_up_to_date_is_left_alone(to: str, hub: FakeHub) -> None:
    options = {"to": to, "max_shard_size": None, "free_disk": True}
    first = convert(**options)
    since = len(hub.calls)
    assert tensor_reads(hub, 0)
    done = convert(**options)
    assert (done.up_to_date, done.commit, done.conversion) == (True, first.commit, None)
    assert {f.name: f.sha256 for f in done.files}.items() <= {f.name: f.sha256 for f in first.files}.items()
    assert tensor_reads(hub, since) == []
    assert {c.method for c in hub.calls[since:]} == {"GET"}
    assert here() == []
    dry = api.hub_conversion("ada/model", "hf://ada/out", api.limit(), **options).preview()
    assert dry[0] is None and dry[1].up_to_date and dry[1].dry_run
    named = convert(**options, quantized_by="ada")
    assert named.up_to_date and "--force" in " ".join(named.notes) and not done.notes


def test_a_dry_run_beside_what_was_interrupted(hub: FakeHub, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stopped between the renames of a split set: a dry run changes nothing, and the command goes on."""

    def conversion() -> HubConversion:
        limits = api.limit(device="cpu")
        return api.hub_conversion("ada/model", "hf://ada/out/x.gguf", limits, model_name="x", max_shard_size=30_000)

    first = conversion()
    moved = itertools.count()

    def interrupted(*args: Any, **options: Any) -> None:
        if next(moved) == 2:
            raise KeyboardInterrupt
        move_in(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "move_in", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(first.plan, api.limit(device="cpu"))
    was = tree(Path())
    plan, _ = conversion().preview()
    assert plan is not None and plan.digest == first.plan.digest
    assert tree(Path()) == was
    done = conversion().run()
    assert done.conversion is not None and done.conversion.run["slabs_resumed"] == len(first.plan.slabs)
    assert not any(name.endswith(".partial") for name in here())


def test_force_converts_and_puts_nothing_again(hub: FakeHub) -> None:
    """Nor is there a commit for a receipt that differs in seconds alone."""
    first = convert(free_disk=True)
    since = len(hub.calls)
    done = convert(free_disk=True, force=True)
    assert tensor_reads(hub, since)
    assert done.commit == first.commit and done.up_to_date and done.conversion is not None
    assert (set(puts(hub).values()), commits(hub)) == ({1}, 1)


def test_what_is_not_up_to_date(hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """Another commit of the source, other options, a branch that somebody has changed, a receipt that was edited."""
    convert(free_disk=True)
    repo, source = hub.repos["ada/out"], hub.repos["ada/model"]

    def converts(**options: Any) -> Publication:
        since = len(hub.calls)
        done = convert(free_disk=True, **options)
        assert tensor_reads(hub, since), "nothing was converted"
        assert convert(free_disk=True, **options).conversion is None
        return done

    source.commit("main", {**source.files(), "note.txt": b"another commit"})
    assert not converts().up_to_date
    shard = next(n for n in repo.files() if n.endswith(".safetensors"))
    repo.commit("main", {**repo.files(), shard: b"damage"})
    converts()
    repo.commit("main", {n: d for n, d in repo.files().items() if n != "config.json"})
    converts()
    repo.commit("main", {**repo.files(), "config.json": b"{}" + b" " * (len(repo.files()["config.json"]) - 2)})
    converts()
    receipt = json.loads(repo.files()[RECEIPT])
    for change in ({"plan": "0" * 64}, {"verified": False}, {"source": {**receipt["source"], "commit": "0" * 40}}):
        repo.commit("main", {**repo.files(), RECEIPT: json.dumps({**receipt, **change}).encode()})
        converts()
    repo.commit("main", {**repo.files(), RECEIPT: b"{}"})
    converts()
    converts(max_shard_size=15_000)
    assert set(puts(hub).values()) == {1}
    assert seen(hub).items() >= expected(local, tmp_path, "larger", max_shard_size=15_000).items()


def test_what_lies_here_is_never_up_to_date(hub: FakeHub, local: Path) -> None:
    """Its content is pinned by nothing; but nothing is put or committed again."""
    first = convert(local, free_disk=True)
    done = convert(local, free_disk=True)
    assert done.conversion is not None and done.commit == first.commit
    assert (set(puts(hub).values()), commits(hub)) == ({1}, 1)


# What lies here already


def test_a_conversion_that_is_made_is_not_made_again(hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """By an earlier run, or by one without the Hub: it is held against its receipt and published."""
    ckpttool.convert(local, "out", device="cpu", **SHARDED)
    done = convert(local)
    assert done.conversion is None and "made by an earlier run" in done.notes[0]
    assert seen(hub) == expected(local, tmp_path)
    assert convert(local).up_to_date
    assert commits(hub) == 1
    (Path("out") / "config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"config\.json"):
        convert(local, repo="hf://ada/out@other")


def test_what_is_in_the_way_stays(hub: FakeHub) -> None:
    convert()
    with pytest.raises(LocalIOError, match="already exists") as caught:
        convert(to="bf16")
    assert "--workdir" in str(caught.value.hint)
    assert commits(hub) == 1
    convert(to="bf16", workdir="elsewhere")
    convert(to="bf16", overwrite=True, force=True)
    assert tree(Path("out")) == tree(Path("elsewhere/out"))


# What is refused before anything is read or made


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("ada/model", "hf://ada/out", "--no-verify"), "what is published is read back"),
        (("ada/model", "out", "--free-disk"), "--free-disk goes with hf://org/repo as TARGET"),
        (("ada/model", "out", "--public"), "--public goes with hf://org/repo as TARGET"),
        (("ada/model", "hf://ada/model"), "TARGET is SOURCE"),
        (("ada/model", "hf://ada/out/sub/x.gguf", "--to", "gguf"), "a GGUF at its top"),
        (("ada/model", "hf://ada/out/x.safetensors"), "a GGUF at its top"),
        (("ada/model", "hf://ada/../out"), "is no repo"),
        (("ada/model", "https://example.com/ada/out"), "your token would be sent there"),
        (("ada/model", "hf://ada/out@a", "--revision", "b"), "names the branch a"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(argv: tuple[str, ...], says: str, hub: FakeHub) -> None:
    options = () if "--to" in argv else ("--to", "bf16")
    done = run("convert", *argv, *options)
    assert done.code == 2, done.err
    assert says in done.err
    assert (puts(hub), here(), set(hub.repos)) == (Counter(), [], {"ada/model"})


def test_a_token_that_may_only_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a byte of the source is read."""
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(NetworkError, match="may only read"):
        convert()
    hub.add("ada/out")
    with pytest.raises(NetworkError):
        convert()
    assert hub.count("resolve") == 0
    assert here() == []


def test_a_secret_in_a_side_file(hub: FakeHub) -> None:
    """Nothing is converted, made or sent; the line is named, the secret is not."""
    repo = hub.repos["ada/model"]
    secret = "hf_" + "Z" * 34
    template = repo.files().get("chat_template.jinja", b"") + f"\n{{# {secret} #}}".encode()
    repo.commit("main", {**repo.files(), "chat_template.jinja": template})
    with pytest.raises(InputError, match=r"line \d+ holds what looks like") as caught:
        convert()
    assert secret not in str(caught.value)
    assert set(hub.repos) == {"ada/model"}
    assert here() == []


def test_a_path_is_no_repo_for_the_other_functions(hub: FakeHub) -> None:
    for call in (ckpttool.plan, ckpttool.convert):
        with pytest.raises(UsageError, match="is a repo, not a path"):
            call("ada/model", "hf://ada/out", to="bf16")  # type: ignore[operator]


def test_a_source_of_the_repo_s_name(hub: FakeHub, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local.parent)
    with pytest.raises(UsageError, match="lies where the files would be made") as caught:
        convert("model", repo="hf://ada/model@next")
    assert "--workdir" in str(caught.value.hint)
    convert("model", repo="hf://ada/model@next", workdir="work")


# What fails on the way


def test_values_that_cannot_be_held(hub: FakeHub, tmp_path: Path) -> None:
    """The source is at fault: nothing is kept here, and nothing is seen there."""
    with pytest.raises(CheckFailed):
        convert(to="mxfp4", lossless=True, source=dense(hub, tmp_path))
    assert here() == []
    assert hub.repos.get("ada/out") is None


def dense(hub: FakeHub, tmp_path: Path) -> str:
    folder = builders.write(SMALL, tmp_path / "dense", "hf-bf16")
    hub.add("ada/dense", {p.name: p.read_bytes() for p in folder.iterdir()})
    return "ada/dense"


def test_a_branch_that_moves_meanwhile(hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """Their commit stays, ours is not made; all is kept, and the same command ends on top of theirs."""
    hub.add("ada/out")
    hub.faults["commit"] = [hub_faults.moved(hub, "ada/out")]
    with pytest.raises(NetworkError) as caught:
        convert(free_disk=True)
    assert "goes on where this one stopped" in str(caught.value)
    assert seen(hub).keys() == {"elsewhere.txt"}
    done = convert(free_disk=True)
    assert done.conversion is not None and done.conversion.run["slabs_resumed"] == done.conversion.run["slabs"]
    assert seen(hub).items() >= expected(local, tmp_path).items()
    assert "elsewhere.txt" in hub.repos["ada/out"].files()
    assert set(puts(hub).values()) == {1}


@pytest.mark.parametrize("route", ["object", "verify", "batch", "preupload", "commit"])
def test_a_hub_that_breaks_off(route: str, hub: FakeHub, local: Path, tmp_path: Path) -> None:
    """For good, after a few files; later it is well again."""
    hub.always[route] = lambda call, act: act() if hub.count(route) < 4 and route != "commit" else Answer(503)
    if route == "verify":  # whether content came is asked for once more
        assert convert(free_disk=True).commit
    else:
        with pytest.raises(NetworkError):
            convert(free_disk=True)
        assert commits(hub) == 0
    hub.always.clear()
    before = puts(hub)
    landed = set(hub.repos["ada/out"].objects)
    convert(free_disk=True)
    assert seen(hub) == expected(local, tmp_path)
    assert all(puts(hub)[oid] == before[oid] for oid in landed)


def test_what_was_foreseen_is_what_is_asked(hub: FakeHub) -> None:
    """Bytes and requests, but for those of the card and the receipt, of which the dry run does not know the size."""
    options = {**SHARDED, "free_disk": True}
    hub.add("ada/out")
    plan, dry = api.hub_conversion("ada/model", "hf://ada/out", api.limit(), **options).preview()
    assert plan is not None and hub.count("object") == 0
    done = convert(**options)
    small = sum(f.nbytes for f in done.files if f.name in ("README.md", RECEIPT))
    assert sum(f.nbytes for f in done.files) == dry.traffic.up_nbytes + small
    assert re.fullmatch(r"[0-9a-f]{40}", done.commit or "")
    assert dry.peak_disk == done.peak_disk == order.peak_nbytes(api.plan("ada/model", "x", **SHARDED), 2)
    assert done.traffic.requests == dry.traffic.requests


def test_progress_adds_up(hub: FakeHub) -> None:
    lock, made, sent = threading.Lock(), [0], [0]

    def count(into: list[int]) -> Callable[[int], None]:
        def add(n: int) -> None:
            with lock:
                into[0] += n

        return add

    done = convert(free_disk=True, progress=count(made), sent=count(sent))
    assert made[0] == api.plan("ada/model", "x", **SHARDED).tensor_nbytes
    assert sent[0] == sum(f.nbytes for f in done.files)


def test_a_freed_file_is_gone_for_writers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file comes to be again once it is freed."""
    freed, original = [], Staged.free

    def free(self: Staged, name: str) -> None:
        original(self, name)
        freed.append(name)
        assert not list(Path().glob(f"*.partial/files/{name}"))

    monkeypatch.setattr(Staged, "free", free)
    done = convert(free_disk=True)
    assert sorted(freed) == sorted(f.name for f in done.files if f.name.endswith(".safetensors"))
