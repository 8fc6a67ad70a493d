"""Publishing to a Hub that misbehaves, through its real client: all of it becomes visible or nothing, no byte wrong.

Fixed schedules have names; random ones are drawn by their number from the requests that the job makes without faults,
so that any of them may be the one that something befalls. What must hold after each is `hub_schedules`' business.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from builders import Model, Sizes, write
from commandline import run
from fake_hub import FakeHub
from hub_schedules import ALWAYS, JOBS, OUT, SOURCE, TOKEN, Befall, Sources, Tree, Trial, comparable, sources

RANDOM = 300


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub.as_the_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A small model in two shards, and its conversions, BF16 in five shards."""
    scratch = tmp_path_factory.mktemp("made")
    write(Model(Sizes(layers=1, experts=2), seed=1), scratch / "model", "hf", shards=2)
    return sources(scratch / "model", scratch)


@dataclass(frozen=True)
class Undisturbed:
    """A job without faults: which requests it makes, sorted since threads make them, and the tree that it leaves."""

    requests: tuple[tuple[str, str | None], ...]
    tree: Tree


@pytest.fixture(scope="module")
def undisturbed(made: Sources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Undisturbed]]:
    """That of a job by its name; its weights and side files are those of a conversion that stays here."""
    known: dict[str, Undisturbed] = {}

    def of(name: str) -> Undisturbed:
        if name not in known:
            known[name] = _undisturbed(name, made, tmp_path_factory.mktemp("undisturbed"))
        return known[name]

    yield of


def _undisturbed(name: str, made: Sources, work: Path) -> Undisturbed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        with fake_hub.as_the_hub(patch) as hub:
            trial = Trial(hub, JOBS[name], made, work)
            assert trial.run().code == 0, trial.result.out
            requests = sorted((c.route, c.groups[0] if c.groups else None) for c in hub.calls)
            tree = trial.newest()
            for file, data in tree.items():
                assert file not in made.local or data == made.local[file], file
            assert trial.before.get("notes.txt") == tree.get("notes.txt")
            if JOBS[name].before == "older":
                assert len(made.older.keys() - tree.keys()) > 5
            if JOBS[name].before != "old":  # which holds weights of another
                assert run("verify", f"{OUT}@{trial.ref}", "--json").code == 0
            weights = {f for f in tree if f.endswith((".safetensors", ".gguf"))} - trial.before.keys()
            assert weights and weights <= made.local.keys()
            return Undisturbed(tuple(requests), comparable(tree))


def tried(
    hub: FakeHub,
    name: str,
    *schedules: Sequence[Befall],
    made: Sources,
    work: Path,
    tree: Tree,
    fresh: bool = False,
    swept: bool = False,
) -> Trial:
    """The job under each of its schedules in turn, judged, and then run again without faults."""
    trial = Trial(hub, JOBS[name], made, work / "work", tree)
    for schedule in schedules:
        trial.run(schedule)
        trial.judge()
    trial.again(fresh=fresh, swept=swept)
    return trial


DONE = ""
"""The fault is got over."""

FIXED: dict[str, tuple[str, list[Befall], str | None]] = {
    # What comes before the first byte
    "who we are is not told": ("upload", [Befall("whoami", None, 0, "401", ALWAYS)], "token"),
    "who we are is told late": ("upload", [Befall("whoami", None, 0, "503", 2)], DONE),
    "a page in place of who we are": ("upload", [Befall("whoami", None, 0, "page", ALWAYS)], "is HF_ENDPOINT a Hub?"),
    "the token may not write": ("upload over old", [Befall("auth", OUT, 0, "403", ALWAYS)], "write"),
    "the repo is made, and nobody hears of it": ("upload", [Befall("create", None, 0, "reply lost")], DONE),
    "the repo is made, and a gateway fails": ("upload", [Befall("create", None, 0, "502 after all")], DONE),
    "the repo may not be made": ("upload", [Befall("create", None, 0, "403")], "write"),
    "the branch is made, and nobody hears of it": ("upload branch", [Befall("branch", OUT, 0, "reply lost")], DONE),
    "the branch is not made": ("upload branch", [Befall("branch", OUT, 0, "500", ALWAYS)], "500"),
    "the listing is another repo's page": (
        "upload over old",
        [Befall("info", OUT, 0, "page")],
        "is HF_ENDPOINT a Hub?",
    ),
    "the listing breaks off": ("upload over old", [Befall("info", OUT, 0, "truncated", 2)], DONE),
    "the listing is silent": ("upload over old", [Befall("info", OUT, 0, "silent in the body")], DONE),
    # Large files on their way
    "how files are stored is told late": ("upload", [Befall("preupload", OUT, 1, "502", 3)], DONE),
    "how files are stored is cut": ("upload", [Befall("preupload", OUT, 0, "truncated")], DONE),
    "what is there is told late": ("upload", [Befall("batch", OUT, 0, "500", 2)], DONE),
    "too many requests, for now": ("upload", [Befall("batch", OUT, 1, "429 at once", 2)], DONE),
    "too many requests, for a second": ("upload", [Befall("batch", OUT, 1, "429 in a second")], DONE),
    "too many requests, for years": ("upload", [Befall("batch", OUT, 1, "429 in years")], "asks to wait"),
    "too many requests, by RateLimit": ("upload", [Befall("object", OUT, 1, "429 by RateLimit")], DONE),
    "a put for years": ("upload", [Befall("object", OUT, 1, "429 in years")], "asks to wait"),
    "a put is reset": ("upload", [Befall("object", OUT, 0, "reset")], DONE),
    "a put breaks off in the middle": ("upload", [Befall("object", OUT, 2, "broken off", 3)], DONE),
    "a put is there, and nobody hears of it": ("upload", [Befall("object", OUT, 1, "reply lost")], DONE),
    "every put is there, and nobody hears of it": ("upload", [Befall("object", OUT, 0, "reply lost", ALWAYS)], DONE),
    "every put is there, and the gateway fails": ("upload", [Befall("object", OUT, 0, "504 after all", ALWAYS)], DONE),
    "a put is refused four times": ("upload", [Befall("object", OUT, 3, "503", 4)], DONE),
    "puts are refused": ("upload", [Befall("object", OUT, 3, "503", ALWAYS)], "503"),
    "a put is never answered": ("upload", [Befall("object", OUT, 0, "silent")], None),
    "no put is ever answered": ("upload", [Befall("object", OUT, 1, "silent", ALWAYS)], "time"),
    "a put arrives garbled": ("upload", [Befall("object", OUT, 0, "garbled")], None),
    "puts arrive garbled": ("upload", [Befall("object", OUT, 0, "garbled", ALWAYS)], "sha256 mismatch"),
    "a put's signature has run out": ("upload", [Befall("object", OUT, 1, "403")], None),
    "a put is sent to another host": ("upload", [Befall("object", OUT, 0, "other host", ALWAYS)], "redirects"),
    "a put is sent into the cloud": ("upload", [Befall("object", OUT, 0, "redirect into the cloud")], "redirects"),
    "a put is not confirmed": ("upload", [Befall("verify", OUT, 0, "500", ALWAYS)], None),
    "a put's confirmation is lost": ("upload", [Befall("verify", OUT, 2, "reply lost")], DONE),
    "the token is revoked meanwhile": ("upload", [Befall("batch", OUT, 4, "401", ALWAYS)], "token"),
    # The commit
    "a commit's reply is lost": ("upload over old", [Befall("commit", OUT, 0, "reply lost")], DONE),
    "a commit is made, and a gateway fails": ("upload over old", [Befall("commit", OUT, 0, "504 after all")], DONE),
    "a commit is made late": ("upload over old", [Befall("commit", OUT, 0, "late")], None),
    "a commit is reset": ("upload over old", [Befall("commit", OUT, 0, "reset", 2)], DONE),
    "a commit breaks off": ("upload over old", [Befall("commit", OUT, 0, "broken off")], DONE),
    "commits break off": ("upload over old", [Befall("commit", OUT, 0, "broken off", ALWAYS)], "nothing was committed"),
    "a commit is refused for now": ("upload over old", [Befall("commit", OUT, 0, "503", 3)], DONE),
    "a commit is never answered": ("upload over old", [Befall("commit", OUT, 0, "silent")], None),
    "a commit is answered by a page": ("upload over old", [Befall("commit", OUT, 0, "page after all")], None),
    "a commit holds a secret": ("upload over old", [Befall("commit", OUT, 0, "secrets")], "secret"),
    "nobody knows of a commit": (
        "upload over old",
        [Befall("commit", OUT, 0, "reply lost"), Befall("info", OUT, 1, "500", ALWAYS)],
        "not known",
    ),
    "the branch moves before the commit": ("upload over old", [Befall("commit", OUT, 0, "moved")], "somebody else"),
    "the branch moves at once after it": ("upload over old", [Befall("commit", OUT, 0, "moved after all")], None),
    "what is up is swept away": ("upload over old", [Befall("commit", OUT, 0, "forgotten")], None),
    "the commit cannot be looked at": ("upload over old", [Befall("paths", OUT, 0, "500", ALWAYS)], "500"),
    "the card cannot be checked": ("upload over old", [Befall("yaml", None, 0, "503", 2)], DONE),
    "a pull request is opened, and nobody hears of it": ("upload pr", [Befall("commit", OUT, 0, "reply lost")], DONE),
    "a pull request is opened late": ("upload pr", [Befall("commit", OUT, 0, "late")], None),
    "a pull request is not opened": ("upload pr", [Befall("commit", OUT, 0, "500", ALWAYS)], "nothing was committed"),
    # A conversion from the Hub to the Hub
    "the source breaks off": ("convert", [Befall("resolve", SOURCE, n, "truncated") for n in range(3, 30, 3)], DONE),
    "the source is reset": ("convert and free", [Befall("resolve", SOURCE, 12, "reset", 3)], DONE),
    "the source has enough": ("convert and free", [Befall("resolve", SOURCE, 20, "429 in years", ALWAYS)], "to wait"),
    "the source is silent": ("convert", [Befall("resolve", SOURCE, 12, "silent in the body")], DONE),
    "the source fails": ("convert and free", [Befall("resolve", SOURCE, 25, "500", ALWAYS)], "500"),
    "the source ignores ranges": ("convert", [Befall("resolve", SOURCE, 12, "ignored range")], "ignores ranges"),
    "the source is at another host": ("convert", [Befall("resolve", SOURCE, 0, "other host", ALWAYS)], DONE),
    "the source leads into the cloud": (
        "convert",
        [Befall("resolve", SOURCE, 9, "redirect into the cloud")],
        "a private address",
    ),
    "a file of the source is gone": ("convert", [Befall("resolve", SOURCE, 9, "404", ALWAYS)], "404"),
    "a side file comes wrong": ("convert", [Befall("resolve", SOURCE, 0, "wrong side file", 1)], DONE),
    "side files come wrong": ("convert", [Befall("resolve", SOURCE, 0, "wrong side file", ALWAYS)], "hash differs"),
    "a header comes wrong": ("convert and free", [Befall("resolve", SOURCE, 0, "wrong header", ALWAYS)], None),
    "freed shards, then refused": ("convert and free", [Befall("object", OUT, 3, "503", ALWAYS)], "503"),
    "freed shards, and nobody hears of them": ("convert and free", [Befall("object", OUT, 0, "reply lost", 9)], DONE),
    "freed shards, and a commit's reply": ("convert and free", [Befall("commit", OUT, 0, "reply lost")], DONE),
    "the branch moves while it is converted": (
        "convert and free",
        [Befall("object", OUT, 1, "moved")],
        "somebody else",
    ),
    "a GGUF breaks off": ("convert gguf", [Befall("object", OUT, 0, "broken off", 2)], DONE),
    "a GGUF's commit is not known": (
        "convert gguf",
        [Befall("commit", OUT, 0, "504 after all"), Befall("info", OUT, 2, "502", ALWAYS)],
        None,
    ),
    "old shards go by a commit that is lost": ("upload over older", [Befall("commit", OUT, 0, "reply lost")], DONE),
    "old shards go by a commit that is late": ("convert and free over older", [Befall("commit", OUT, 0, "late")], None),
    "old shards stay": ("convert and free over older", [Befall("commit", OUT, 0, "500", ALWAYS)], "nothing was"),
    "a branch's commit is lost": ("convert branch", [Befall("commit", OUT, 0, "reply lost")], DONE),
}


def cases() -> list[Any]:
    """Every fixed schedule; a conversion's once more with a second run that finds nothing of the first one here."""
    here = [pytest.param(name, False, id=name) for name in FIXED]
    return here + [pytest.param(n, True, id=f"{n}, elsewhere") for n in FIXED if FIXED[n][0].startswith("convert")]


@pytest.mark.parametrize(("name", "fresh"), cases())
def test_fixed_schedules(
    name: str, fresh: bool, hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    job, schedule, expected = FIXED[name]
    trial = tried(hub, job, schedule, made=made, work=tmp_path, tree=undisturbed(job).tree, fresh=fresh)
    first = trial.results[0]
    if expected is not None:
        assert (first.code == 0) == (expected == DONE), first.out
        assert expected in first.out


def test_objects_in_parts(
    hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """One is refused, one arrives garbled, and nobody hears that all are there."""
    hub.part_nbytes = 20_000
    schedule = [Befall("part", OUT, 1, "500", 2), Befall("part", OUT, 4, "garbled"), Befall("part", OUT, 9, "reset")]
    schedule += [Befall("complete", OUT, 1, "reply lost"), Befall("complete", OUT, 3, "502 after all")]
    trial = tried(hub, "upload", schedule, made=made, work=tmp_path, tree=undisturbed("upload").tree)
    assert trial.repo is not None and hub.count("object") == 0
    assert hub.count("complete") >= len(trial.repo.objects)


@pytest.mark.parametrize("name", ["upload", "convert", "convert and free"])
def test_what_is_up_is_swept_away_between_two_runs(
    name: str, hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Shards that were freed here are made again."""
    schedule = [Befall("object", OUT, 3, "503", ALWAYS)]
    trial = tried(hub, name, schedule, made=made, work=tmp_path, tree=undisturbed(name).tree, swept=True)
    assert trial.results[0].code == 5
    assert hub.statuses.count(("object", 200)) == 3 + 5


def test_another_host_holds_the_objects(
    hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Which gets no token; the addresses that it gives for reading live for one request."""
    hub.storage, hub.cdn = hub.elsewhere, True
    schedule = [Befall("object", OUT, 0, "503"), *(Befall("cdn", SOURCE, n, "403") for n in (5, 20))]
    trial = tried(
        hub, "convert and free", schedule, made=made, work=tmp_path, tree=undisturbed("convert and free").tree
    )
    assert trial.results[0].code == 0
    assert {c.headers["host"] for c in hub.asked("cdn") + hub.asked("object")} == {hub.elsewhere[7:]}


@pytest.mark.parametrize("name", ["upload over old", "convert and free"])
def test_what_the_hub_then_lists_is_another_content(
    name: str, hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Nobody can tell whether it is the list that is wrong: the file is named, and the next run looks again."""
    trial = tried(
        hub, name, [Befall("paths", OUT, 0, "other hash")], made=made, work=tmp_path, tree=undisturbed(name).tree
    )
    first = trial.results[0]
    assert first.code == 5 and "does not hold what was sent: model-00001-of" in first.out


def test_a_commit_that_arrives_with_another_content(
    hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """TLS is there against it. The file is named, and the next run mends it."""
    trial = Trial(hub, JOBS["upload"], made, tmp_path / "work", undisturbed("upload").tree)
    first = trial.run([Befall("commit", OUT, 0, "other content")])
    assert first.code == 5 and "does not hold what was sent: config.json" in first.out
    assert trial.run().code == 0
    assert trial.is_new(trial.newest()) and hub.again == []


def test_a_range_of_a_tensor_that_comes_wrong(
    hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """A range has no hash of its own, only TLS: it is `verify --source`, which reads again, that finds it."""
    trial = Trial(hub, JOBS["convert and free"], made, tmp_path / "work", undisturbed("convert and free").tree)
    assert trial.run([Befall("resolve", SOURCE, 12, "wrong tensor")]).code == 0
    found = run("verify", OUT, "--source", SOURCE, "--samples", "1000", "--json")
    assert found.code == 1 and not trial.is_new(trial.newest())
    assert trial.run().document["up_to_date"]
    assert trial.run([], "--force").code == 0
    assert trial.is_new(trial.newest()) and hub.again == []
    assert run("verify", OUT, "--source", SOURCE, "--samples", "1000", "--json").code == 0


# Drawn by number

ANY = ("reset", "reply lost", "truncated", "empty", "500", "502", "503", "504", "408", "429 at once", "stalled")
ANY += ("504 after all", "500 after all", "page", "403", "404", "429 in years", "other host", "409")
MORE = {
    "object": ("broken off", "broken off at once", "garbled", "reply lost", "403"),
    "commit": ("late", "moved", "forgotten", "reply lost", "504 after all", "page after all", "moved after all", "412"),
    "resolve": ("ignored range", "truncated", "empty", "wrong side file"),
    "batch": ("forgotten", "moved"),
    "preupload": ("wrong bytes",),
}
RARE = ("silent", "silent in the body")


@dataclass(frozen=True)
class Drawn:
    """A job, what befalls some requests of its first runs, and whether the last one finds nothing of them here, or
    nothing at the Hub that no commit holds."""

    job: str
    schedules: tuple[tuple[Befall, ...], ...]
    fresh: bool
    swept: bool


def drawn(number: int, undisturbed: Callable[[str], Undisturbed]) -> Drawn:
    """Of a few requests of the job each meets a fault, once or more often; one time in six a second run does so too."""
    rng = random.Random(number)
    job = rng.choice(sorted(JOBS))
    requests = undisturbed(job).requests
    runs = [
        [_befall(rng, requests) for _ in range(rng.choice((1, 1, 2, 3, 5)))]
        for _ in range(rng.choice((1, 1, 1, 1, 1, 2)))
    ]
    return Drawn(job, tuple(map(tuple, runs)), rng.random() < 0.3, rng.random() < 0.2)


def _befall(rng: random.Random, requests: tuple[tuple[str, str | None], ...]) -> Befall:
    at = rng.randrange(len(requests))
    route, repo = requests[at]
    kinds = rng.choice((ANY, ANY, MORE.get(route, ANY))) if rng.random() > 0.03 else RARE
    return Befall(
        route, repo, requests[:at].count(requests[at]), rng.choice(kinds), rng.choice((1, 1, 1, 2, 3, ALWAYS))
    )


@pytest.mark.parametrize("number", range(RANDOM))
def test_random_schedules(
    number: int, hub: FakeHub, made: Sources, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    d = drawn(number, undisturbed)
    tried(
        hub, d.job, *d.schedules, made=made, work=tmp_path, tree=undisturbed(d.job).tree, fresh=d.fresh, swept=d.swept
    )


def test_the_random_schedules_are_many_and_different(undisturbed: Callable[[str], Undisturbed]) -> None:
    """Hardly two are alike; each job, and each kind of request, has its share."""
    all_drawn = [drawn(n, undisturbed) for n in range(RANDOM)]
    assert len(set(all_drawn)) > 0.98 * RANDOM
    assert min(Counter(d.job for d in all_drawn).values()) >= RANDOM // len(JOBS) // 2
    routes = Counter(b.route for d in all_drawn for schedule in d.schedules for b in schedule)
    assert {"object", "commit", "batch", "info", "preupload", "resolve", "verify", "whoami", "paths"} <= routes.keys()
