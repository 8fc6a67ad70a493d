"""Publications through the command line against a Hub that misbehaves by a schedule, and what must hold all the same.

    trial = Trial(hub, JOBS["convert"], tmp_path)
    trial.run([Befall("commit", OUT, 0, "reply lost")])      # what the first commit to the target meets
    trial.judge()                                            # old or new, no wrong byte, nothing put twice ...
    trial.again()                                            # a second run without faults ends with the right tree

A schedule is a list of `Befall`s: a fault, and which of the requests of a route to a repo it befalls.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fake_repos
import hub_faults
from commandline import Result, run
from fake_hub import FakeHub
from fake_repos import Repo, User
from hub_faults import Act, Answer, Call, Fault

import ckpttool
from ckpttool.containers import patience
from ckpttool.containers.patience import Patience

TOKEN = "hf_" + "w" * 34
SOURCE, OUT = "ada/model", "ada/out"
RECEIPT = "ckpttool.receipt.json"
THEIRS = "elsewhere.txt"
ALWAYS = 10**9

HASTY = Patience(connect=5, read=0.4, total=0.8, pauses=(0, 0, 0, 0), longest_wait=2, altogether=6)
PATIENT = Patience(pauses=(0, 0, 0, 0))

Tree = Mapping[str, bytes]


@dataclass(frozen=True)
class Befall:
    """`fault` befalls the request number `first` of `route` to `repo` (None: any), and `times` - 1 more."""

    route: str
    repo: str | None
    first: int
    fault: str
    times: int = 1


@dataclass(frozen=True)
class Job:
    """A publication: the command's arguments, where {folder} is a finished conversion, {gguf} one in one file and
    {work} an empty folder; what the target holds before (None: no repo); the branch, and whether a request is opened.
    """

    name: str
    arguments: str
    before: str | None = "new"
    branch: str = "main"
    pr: bool = False

    @property
    def converts(self) -> bool:
        return self.arguments.startswith("convert")


UPLOAD, CONVERT = "upload {folder} ada/out", "convert ada/model hf://ada/out --to bf16 --workdir {work}"
SHARDS = " --max-shard-size 60KB"
JOBS = {
    j.name: j
    for j in (
        Job("upload", UPLOAD, None),
        Job("upload over old", UPLOAD, "old"),
        Job("upload what is held", UPLOAD, "held"),
        Job("upload over older", UPLOAD, "older"),
        Job("upload gguf", "upload {gguf} ada/out"),
        Job("upload branch", UPLOAD + " --revision next", "old", "next"),
        Job("upload pr", UPLOAD + " --pr", "old", pr=True),
        Job("convert", CONVERT + SHARDS, None),
        Job("convert over old", CONVERT + SHARDS, "old"),
        Job("convert and free", CONVERT + SHARDS + " --free-disk"),
        Job("convert and free what is held", CONVERT + SHARDS + " --free-disk", "held"),
        Job("convert and free over older", CONVERT + SHARDS + " --free-disk", "older"),
        Job("convert gguf", "convert ada/model hf://ada/out --to gguf --workdir {work} --free-disk"),
        Job("convert branch", CONVERT + SHARDS + " --free-disk --revision next", "old", "next"),
        Job("convert pr", CONVERT + SHARDS + " --pr", "old", pr=True),
    )
}


@dataclass(frozen=True)
class Sources:
    """What is published: the files of the repo that is converted, and conversions of it that lie here."""

    repo: Tree
    folder: Path
    gguf: Path
    local: Tree
    """What a conversion gives here, without receipts: the bytes that may be seen of any conversion of it."""
    older: Tree
    """Another conversion of it, in more shards, with its receipt."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sources(model: Path, scratch: Path) -> Sources:
    """Of the HF folder `model`, which is called as the repo is: a GGUF names it."""
    folder, gguf = scratch / "out", scratch / "gguf" / "out.gguf"
    ckpttool.convert(model, folder, to="bf16", max_shard_size="60KB", device="cpu")
    ckpttool.convert(model, gguf, to="gguf", device="cpu")
    ckpttool.convert(model, scratch / "older", to="bf16", max_shard_size="45KB", device="cpu")
    local = {n: d for n, d in (files_of(folder) | files_of(gguf.parent)).items() if not n.endswith("receipt.json")}
    return Sources(files_of(model), folder, gguf, local, files_of(scratch / "older"))


def faults(hub: FakeHub) -> dict[str, Fault]:
    """Every fault by its name."""
    return {
        "reset": hub_faults.reset,
        "reply lost": hub_faults.reply_lost,
        "silent": hub_faults.silent,
        "silent in the body": hub_faults.silent_after(7),
        "truncated": hub_faults.truncated(7),
        "empty": hub_faults.truncated(0),
        "late": hub_faults.late(hub, 0.05),
        "stalled": hub_faults.stalled(0.02),
        "page": hub_faults.page,
        "page after all": _page_after_all,
        "secrets": hub_faults.status(400, "contains valid Hugging Face secrets"),
        "other hash": hub_faults.said(_other_hash),
        "other content": _other_content,
        "moved after all": _moved_after_all(hub),
        "wrong bytes": hub_faults.wrong_bytes,
        "wrong side file": _where(lambda name, first: not name.endswith(".safetensors")),
        "wrong header": _where(lambda name, first: name.endswith(".safetensors") and first == 0, at=100),
        "wrong tensor": _where(lambda name, first: name.endswith(".safetensors") and first > 0),
        "ignored range": hub_faults.ignored_range,
        "garbled": hub_faults.garbled,
        "broken off": hub_faults.BrokenOff(1000),
        "broken off at once": hub_faults.BrokenOff(0),
        "other host": hub_faults.other_host(hub),
        "redirect to nowhere": hub_faults.redirected("http://localhost:1/x"),
        "redirect into the cloud": hub_faults.redirected("http://169.254.169.254/latest/meta-data"),
        "429 at once": hub_faults.status(429, "too many", Retry_After="0"),
        "429 in a second": hub_faults.status(429, "too many", Retry_After="1"),
        "429 in years": hub_faults.status(429, "too many", Retry_After="1000000000"),
        "429 by RateLimit": hub_faults.status(429, "too many", RateLimit='"api";r=0;t=0'),
        "moved": hub_faults.moved(hub, OUT, path=THEIRS),
        "moved on next": hub_faults.moved(hub, OUT, "next", THEIRS),
        "forgotten": hub_faults.forgotten(hub, OUT),
        **{str(s): hub_faults.status(s) for s in (400, 401, 403, 404, 408, 409, 412, 500, 502, 503, 504)},
        **{f"{s} after all": hub_faults.then_status(s) for s in (409, 500, 502, 503, 504)},
    }


def _where(fits: Callable[[str, int], bool], at: int | None = None) -> Fault:
    """Another byte in the middle (or `at`) of answers for files and ranges of some names and first bytes."""

    def fault(call: Call, act: Act) -> Answer:
        first = int(call.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if not fits(call.groups[-1], first):
            return act()
        answer = act()
        body = hub_faults.flipped(answer.body[: at and 2 * at])
        return replace(answer, body=body + answer.body[len(body) :])

    return fault


def _page_after_all(call: Call, act: Act) -> Answer:
    act()
    return hub_faults.page(call, act)


def _other_hash(listing: Any) -> Any:
    """A list of files that shows the first shard with another hash."""
    row = next(r for r in listing if "00001-of" in r["path"])
    row["lfs"]["oid"] = "0" * 64
    return listing


def _other_content(call: Call, act: Act) -> Answer:
    """A commit that arrives with another config.json."""
    lines = [json.loads(line) for line in call.body.splitlines()]
    for line in lines:
        if line["value"].get("path") == "config.json":
            line["value"]["content"] = "e30="
    return act(replace(call, body="\n".join(map(json.dumps, lines)).encode()))


def _moved_after_all(hub: FakeHub) -> Fault:
    """All happens, somebody else commits on top, and nobody hears of either."""

    def fault(call: Call, act: Act) -> Answer:
        act()
        return hub_faults.moved(hub, OUT, path=THEIRS)(call, lambda _=None: Answer(hangup=True))

    return fault


class Trial:
    """One job on a Hub of its own."""

    def __init__(self, hub: FakeHub, job: Job, sources: Sources, work: Path, wanted: Tree | None = None) -> None:
        """`wanted` is the tree that the job without faults leaves, as `comparable` has it."""
        self.hub, self.job, self.sources, self.wanted = hub, job, sources, wanted
        self.work = work
        work.mkdir(exist_ok=True)
        hub.users[TOKEN] = User("ada")
        hub.add(SOURCE, sources.repo)
        self.before: dict[str, bytes] = {".gitattributes": fake_repos.ATTRIBUTES}
        self._known = 0
        if job.before is not None:
            self._prepare(hub.add(OUT))
        self.results: list[Result] = []

    def _prepare(self, repo: Repo) -> None:
        if self.job.before == "old":
            shard = next(n for n in self.sources.local if "00002-of" in n)
            old = {"notes.txt": b"mine", "config.json": b"{}", shard: b"an old one", "adapter.safetensors": b"mine too"}
            repo.commit("main", {**repo.files(), **old}, "old")
        if self.job.before == "older":
            repo.commit("main", {**repo.files(), **self.sources.older, "notes.txt": b"mine"}, "old")
        if self.job.before == "held":  # by an earlier run, or another branch
            for data in list(self.sources.local.values())[::2]:
                repo.objects[fake_repos.sha256(data)] = data
        self.before = dict(repo.files())
        self._known = len(repo.commits)

    @property
    def repo(self) -> Repo | None:
        return self.hub.repos.get(OUT)

    @property
    def result(self) -> Result:
        return self.results[-1]

    def run(self, schedule: Sequence[Befall] = (), *more: str) -> Result:
        """The command, once, under `schedule`; with `more` options."""
        words = [*self.job.arguments.split(), *more]
        places = {"folder": self.sources.folder, "gguf": self.sources.gguf, "work": self.work}
        command = [w.format(**places) for w in words]
        if self.job.converts:
            command += ["--device", "cpu"]
        known = faults(self.hub)
        count: Counter[tuple[str, str | None]] = Counter()

        def plan(route: str, repo: str | None) -> Fault | None:
            number = count[route, repo]
            count[route, repo] += 1
            fits = (b for b in schedule if b.route == route and b.repo in (None, repo))
            return next((known[b.fault] for b in fits if b.first <= number < b.first + b.times), None)

        self.hub.plan = plan
        try:
            with waiting(HASTY if any("silent" in b.fault for b in schedule) else PATIENT), files_of_bytes(30_000):
                self.results.append(run(*command, "--json"))
        finally:
            self.hub.plan = lambda route, repo: None
        return self.result

    def judge(self) -> None:
        """What must hold after any run, whatever befell it."""
        self._ended_well()
        self._kept_its_token()
        self._left_in_order()
        assert self.hub.again == [], "an object was put that the Hub held"
        for tree in self.seen():
            self.whole(tree)
        # Nothing guards a request: one that comes late, after another was opened, is opened too.
        assert len(self.ours()) <= (len(self.results) + len(self.hub.later) if self.job.pr else 1), "committed twice"
        if self.result.code == 0:
            assert self.is_new(self.newest()), "says that all is well, and it is not there"

    def _ended_well(self) -> None:
        code, document = self.result.code, self.result.document
        assert code in (0, 2, 3, 5), f"{self.result.out}{self.result.err}"
        if code:
            assert all(row["message"] and row["hint"] for row in document["errors"]), document
        elif not self.job.pr:
            assert document["commit"] == self.hub.repos[OUT].refs[self.job.branch]

    def _kept_its_token(self) -> None:
        said = self.result.out + self.result.err
        assert TOKEN not in said and "Signature" not in said
        assert not [c for c in self.hub.calls if c.token and c.headers["host"] != self.hub.endpoint[7:]]

    def _left_in_order(self) -> None:
        """Here lies the whole conversion or none of it, beside what the next run goes on from; freed files do not."""
        kept = {n: d for n, d in files_of(self.work).items() if ".partial/" not in n}
        finished = {n.rpartition("/")[2]: d for n, d in kept.items() if not n.endswith("receipt.json")}
        wanted = {n for n in self.wanted if n in self.sources.local} if self.wanted else set()
        if "--free-disk" in self.job.arguments or not self.job.converts:
            assert not kept
        elif kept:
            assert finished == {n: self.sources.local[n] for n in wanted}
        if self.result.code == 0 and not self.result.document["up_to_date"]:
            assert not [n for n in files_of(self.work) if ".partial/" in n]

    def seen(self) -> list[dict[str, bytes]]:
        """Every tree that anybody could ever have seen since the job began, on any ref."""
        return list(self.repo.commits.values())[self._known :] if self.repo else []

    def ours(self) -> list[str]:
        """The titles of the commits since then that are by nobody else."""
        titles = [title for _, title in self.repo.log][self._known :] if self.repo else []
        return [t for t in titles if t not in ("initial commit", "by another")]

    def whole(self, tree: Tree) -> None:
        """`tree` is the old one or all of the new one."""
        found = {n: d for n, d in tree.items() if n != THEIRS}
        assert found == self.before or self.is_new(tree), "a tree that is neither the old one nor the new one"

    def is_new(self, tree: Tree) -> bool:
        """Whether `tree` is what the job makes, beside what another has put there."""
        assert self.wanted is not None
        return comparable({n: d for n, d in tree.items() if n != THEIRS}) == self.wanted

    def newest(self) -> Tree:
        """The tree that the job was to make, as it is now."""
        assert self.repo is not None
        return self.repo.files(self.ref)

    @property
    def ref(self) -> str:
        """Where that tree is: the branch, or the newest pull request."""
        assert self.repo is not None
        return f"refs/pr/{len(self.repo.pulls)}" if self.job.pr else self.job.branch

    def again(self, *, fresh: bool = False, swept: bool = False) -> None:
        """A second run without faults completes, puts nothing twice and commits nothing twice; with `fresh` it finds
        nothing of the first one here, with `swept` nothing at the Hub that no commit holds."""
        for thread in self.hub.later:
            thread.join()
        self.judge()
        if swept and self.repo is not None:
            self.repo.sweep()
        if fresh:
            shutil.rmtree(self.work)
            self.work.mkdir()
        self.run()
        assert self.result.code == 0, self.result.out
        self.judge()


def comparable(tree: Tree) -> dict[str, bytes]:
    """A tree without what differs from run to run: the receipt's times and machine."""
    return {n: _steady(d) if n.endswith("receipt.json") else d for n, d in tree.items()}


def _steady(receipt: bytes) -> bytes:
    document = json.loads(receipt)
    del document["run"]
    return json.dumps(document, sort_keys=True).encode()


@contextlib.contextmanager
def files_of_bytes(most: int) -> Iterator[None]:
    """Contents of so many bytes go up from their files, as those of millions do."""
    for command in ("streaming", "upload"):
        importlib.import_module(f"ckpttool.publishing.{command}")
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("ckpttool.publishing.") and hasattr(module, "SMALL"):
                stack.enter_context(mock.patch.object(module, "SMALL", most))
        yield


@contextlib.contextmanager
def waiting(how_long: Patience) -> Iterator[None]:
    """Remote ends are waited for as long as this, and huggingface_hub makes no pauses of its own."""
    from huggingface_hub.utils import _http

    with (
        mock.patch.object(patience, "PATIENCE", how_long),
        mock.patch.object(_http, "time", SimpleNamespace(sleep=abs)),
    ):
        yield
