"""`ckpttool upload`, and what may go wrong with it: the thirty cases UP01 to UP30, then the command itself.

UP08, 09, 11 and 13 are also met in all their variations by test_hub_faults, UP14, 16 and 17 by test_publishing, UP25 by
test_card, UP30 by test_verify_remote. What UP20 calls --prune does not exist: files of the conversion before are taken
away (test_outdated), and nothing else.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import fake_hub
import fake_repos
import hub_faults
import pytest
from builders import Model, Sizes
from commandline import Result, run
from fake_hub import FakeHub
from fake_repos import Repo, User
from huggingface_hub import ModelCard, constants
from test_schemas import check

import ckpttool
from ckpttool.errors import InputError, LimitError, LocalIOError, NetworkError, UsageError
from ckpttool.publishing import describing, foresight, held, hub_calls, sending, upload
from ckpttool.publishing.report import Publication, State
from ckpttool.publishing.upload import Asked, Uploader

pytestmark = pytest.mark.usefixtures("hasty")

HF = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss" / "hf"
TOKEN = "hf_" + "w" * 34
OTHER = "hf_" + "o" * 34
RECEIPT = "ckpttool.receipt.json"
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three shards, one of a single small file, and a GGUF."""
    place = tmp_path_factory.mktemp("upload")
    ckpttool.convert(HF, place / "m", to="mxfp4", max_shard_size="1.5MB", device="cpu")
    small = builders.write(Model(Sizes(layers=1)), place / "source", "hf")
    ckpttool.convert(small, place / "small", to="bf16", device="cpu")
    ckpttool.convert(HF, place / "m.gguf", device="cpu")
    return place


@pytest.fixture
def made(once: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(once, tmp_path / "made")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        hub.users |= {TOKEN: User("ada"), OTHER: User("ada", "read")}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a hundred kilobytes goes up by its open file, as weights of some gigabytes do."""
    for module in (sending, upload, foresight):
        monkeypatch.setattr(module, "SMALL", 100_000)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def of_conversion(files: dict[str, bytes]) -> dict[str, bytes]:
    """A repo's files but for the two that an upload does not take from the folder."""
    return {n: d for n, d in files.items() if n not in (".gitattributes", "README.md")}


def all_that_hub_holds(hub: FakeHub) -> bytes:
    return b"\0".join(
        [c.body for c in hub.calls]
        + [d for r in hub.repos.values() for t in r.commits.values() for d in t.values()]
        + [d for r in hub.repos.values() for d in r.objects.values()]
    )


def nothing_was_sent(hub: FakeHub) -> bool:
    """Not a byte of content, no repo, no commit."""
    return not any(map(hub.count, ("object", "part", "commit", "create", "branch")))


def rewritten(folder: Path, name: str, data: bytes) -> None:
    """Another content of a file, which the receipt agrees with."""
    (folder / name).write_bytes(data)
    receipt = json.loads((folder / RECEIPT).read_text())
    row = next(r for r in receipt["files"] if r["name"] == name)
    row["nbytes"], row["sha256"] = len(data), fake_repos.sha256(data)
    (folder / RECEIPT).write_text(json.dumps(receipt))


# What goes up


def test_up01_a_link_out_of_the_folder(hub: FakeHub, made: Path, tmp_path: Path) -> None:
    """One that the receipt names refuses the upload; any other stays here."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"not for": "anybody"}')
    (made / "m" / "other.json").symlink_to(secret)
    report = ckpttool.upload(made / "m", "ada/m")
    assert report.left_out == ("other.json",)
    (made / "m" / "config.json").unlink()
    (made / "m" / "config.json").symlink_to(secret)
    with pytest.raises(InputError, match=r"config\.json: is a link"):
        ckpttool.upload(made / "m", "ada/m")
    assert b"not for" not in all_that_hub_holds(hub)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_up02_a_token_in_a_file_of_the_receipt(hub: FakeHub, made: Path, name: str) -> None:
    text = (made / "m" / name).read_bytes().rstrip(b"\n")
    rewritten(made / "m", name, text + b"\n" + OTHER.encode())
    line = text.count(b"\n") + 2
    result = run("upload", made / "m", "ada/m")
    assert result.code == 3
    assert f"{name}: line {line} holds what looks like a Hugging Face token" in result.err
    assert OTHER not in result.out + result.err
    assert nothing_was_sent(hub)


@pytest.mark.parametrize("name", ["README.md", "LICENSE.md"])
def test_up02_a_token_in_the_users_own_text(hub: FakeHub, made: Path, name: str) -> None:
    (made / "m" / name).write_text(f"# mine\n\nexport HF_TOKEN={OTHER}\n")
    result = run("upload", made / "m", "ada/m")
    assert result.code == 3 and f"{name}: line 3 holds" in result.err
    assert OTHER not in result.err and nothing_was_sent(hub)


def test_up02_up03_up04_what_else_lies_there_stays_there(hub: FakeHub, made: Path) -> None:
    """Secrets, leftovers, pickles, notebooks, folders: none of it is uploaded, all of it is said."""
    names = {
        ".env", ".netrc", "id_rsa", "notebook.ipynb", ".tmpAb3d9x", "model.safetensors.tmp", "optimizer.pt",
        "pytorch_model.bin", "state.pkl",
    }  # fmt: skip
    for name in names:
        (made / "m" / name).write_text(f"{OTHER} {name}")
    (made / "m" / "checkpoint-500").mkdir()
    (made / "m" / "checkpoint-500" / "model.safetensors").write_text(OTHER)
    result = run("upload", made / "m", "ada/m")
    assert result.code == 0, result.err
    assert "stays here, since the receipt does not name it: .env, .netrc, .tmpAb3d9x, checkpoint-500/" in result.out
    assert run("upload", made / "m", "ada/m", "--json").document["left_out"] == sorted([*names, "checkpoint-500/"])
    assert OTHER.encode() not in all_that_hub_holds(hub)
    assert not names & set(hub.repos["ada/m"].files())


def test_up03_an_unfinished_conversion(hub: FakeHub, made: Path) -> None:
    (made / "n.partial" / "files").mkdir(parents=True)
    for name in ("n.partial", "n.partial/files"):
        assert "is an unfinished conversion" in run("upload", made / name, "ada/m").err
    assert hub.calls == []


@pytest.mark.parametrize("name", ["optimizer.pt", "state.pkl", "pytorch_model.bin", "train.py", ".env"])
def test_up04_a_receipt_that_names_it(hub: FakeHub, made: Path, name: str) -> None:
    """So an edited receipt does not help either."""
    (made / "m" / name).write_bytes(b"x")
    path = made / "m" / RECEIPT
    receipt = json.loads(path.read_text())
    receipt["files"].append({"name": name, "nbytes": 1, "crc32": "0" * 8, "sha256": fake_repos.sha256(b"x")})
    path.write_text(json.dumps(receipt))
    with pytest.raises(InputError, match=r"files: .*is (of a kind|a hidden file)"):
        ckpttool.upload(made / "m", "ada/m")
    assert hub.calls == []


class Meanwhile:
    """Does something to a file as the Hub is asked for the content's place, when it was checked already."""

    def __init__(self, hub: FakeHub, what: Callable[[], object]) -> None:
        self._what: Callable[[], object] | None = what
        hub.always["batch"] = self

    def __call__(self, call: hub_faults.Call, act: hub_faults.Act) -> hub_faults.Answer:
        what, self._what = self._what, None
        if what is not None:
            what()
        return act()


def spoil(path: Path) -> None:
    with path.open("r+b") as f:  # in its place: it is never shorter meanwhile
        f.seek(-1, os.SEEK_END)
        last = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 1]))


@pytest.mark.usefixtures("by_path")
@pytest.mark.parametrize("when", ["before", "while"])
def test_up05_a_file_that_changes_after_it_was_hashed(hub: FakeHub, made: Path, when: str) -> None:
    path = made / "m" / SHARD
    uploader = Uploader(made / "m", "ada/m", Asked())
    uploader.check()
    if when == "before":
        spoil(path)
    else:
        Meanwhile(hub, lambda: [spoil(made / "m" / n) for n in files_of(made / "m") if n.endswith("tensors")])
    with pytest.raises((InputError, NetworkError), match=r"has changed|sha256 mismatch"):
        uploader.run()
    assert hub.count("commit") == 0
    assert path.read_bytes() not in hub.repos["ada/m"].objects.values()


def test_up05_a_small_file_that_changes(hub: FakeHub, made: Path) -> None:
    uploader = Uploader(made / "m", "ada/m", Asked())
    uploader.check()
    spoil(made / "m" / "config.json")
    with pytest.raises(InputError, match=r"config\.json: has changed"):
        uploader.run()
    assert hub.count("commit") == 0


@pytest.mark.usefixtures("by_path")
@pytest.mark.parametrize("other", ["file", "link"])
def test_up06_a_file_that_is_swapped_by_a_rename(hub: FakeHub, made: Path, tmp_path: Path, other: str) -> None:
    """What was hashed is what is read, whatever bears its name by then."""
    secret = b"not for anybody" * 100_000
    (tmp_path / "secret").write_bytes(secret)

    def swap() -> None:
        for path in (made / "m").glob("*.safetensors"):
            new = path.with_suffix(".new")
            if other == "link":
                new.symlink_to(tmp_path / "secret")
            else:
                new.write_bytes(secret)
            new.replace(path)

    Meanwhile(hub, swap)
    with pytest.raises(InputError, match=r"has changed|is a link"):
        ckpttool.upload(made / "m", "ada/m")
    assert b"not for anybody" not in all_that_hub_holds(hub)
    assert hub.count("commit") == 0


# What breaks on the way


class Killed(BaseException):
    """The process ended here."""


class Killing:
    """Ends the process at its `step`th step: before a request, with a piece of its body, after its answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.last = 10**9
        count = hub_calls.Calls.count

        def counting(calls: hub_calls.Calls, **what: int) -> None:
            self.steps += 1
            if self.steps >= self.last:
                raise Killed
            count(calls, **what)

        monkeypatch.setattr(hub_calls.Calls, "count", counting)

    def at(self, step: int) -> None:
        self.steps, self.last = 0, step


def test_up07_killed_at_every_step_and_taken_up_again(
    hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is seen before all is, the same command ends it, and no content is put twice."""
    killing = Killing(monkeypatch)
    ckpttool.upload(made / "small", "ada/whole")
    whole, steps = hub.repos["ada/whole"].files(), killing.steps
    assert steps > 25
    committed = 0
    for step in range(1, steps + 1):
        repo = f"ada/m{step}"
        killing.at(step)
        with pytest.raises(Killed):
            ckpttool.upload(made / "small", repo)
        found = hub.repos[repo].files() if repo in hub.repos else {}
        assert set(found) <= {".gitattributes"} or set(found) == set(whole), step
        committed += len(found) > 1
        killing.at(10**9)
        report = ckpttool.upload(made / "small", repo)
        assert of_conversion(hub.repos[repo].files()) == of_conversion(whole), step
        assert report.up_to_date == (len(found) > 1)
        assert [r for r, _ in hub.repos[repo].log] == ["main", "main"], "committed twice"
    assert committed > 0
    assert hub.again == [], "an object was put that the Hub held"


def test_up08_the_commits_answer_is_lost(hub: FakeHub, made: Path) -> None:
    hub.faults["commit"] = [hub_faults.reply_lost]
    report = ckpttool.upload(made / "m", "ada/m")
    assert report.commit == hub.repos["ada/m"].head()
    assert hub.count("commit") == 1


def test_up09_the_branch_has_moved(hub: FakeHub, made: Path) -> None:
    hub.faults["commit"] = [hub_faults.moved(hub, "ada/m")]
    with pytest.raises(NetworkError, match="somebody else") as error:
        ckpttool.upload(made / "m", "ada/m")
    assert error.value.exit_code == 5
    assert set(hub.repos["ada/m"].files()) == {".gitattributes", "elsewhere.txt"}
    puts = hub.count("object")
    ckpttool.upload(made / "m", "ada/m")
    assert "elsewhere.txt" in hub.repos["ada/m"].files()
    assert hub.count("object") == puts


def test_up10_too_many_commits(hub: FakeHub, made: Path) -> None:
    """A short wait is waited for; a long one is an error, after which the same command goes on."""
    hub.faults["commit"] = [hub_faults.status(429, "too many commits", Retry_After="3600")]
    result = run("upload", made / "m", "ada/m")
    assert result.code == 5
    assert "too many commits" in result.err and "3600" in result.err
    puts = hub.count("object")
    hub.faults["commit"] = [hub_faults.status(429, "too many commits", Retry_After="0")]
    assert run("upload", made / "m", "ada/m").code == 0
    assert hub.count("object") == puts


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_up11_a_storm_of_5xx(hub: FakeHub, made: Path, status: int) -> None:
    """Twice at every route: all ends well. For ever at one: a clear error, and nothing is seen."""
    routes = ("whoami", "info", "create", "preupload", "batch", "object", "verify", "yaml", "commit", "paths")
    for route in routes:
        hub.faults[route] = [hub_faults.status(status)] * 2
    ckpttool.upload(made / "small", "ada/m")
    for route in ("batch", "object", "commit"):
        hub.always = {route: hub_faults.status(status, "we are down")}
        with pytest.raises(NetworkError, match=rf"{status}: we are down"):
            ckpttool.upload(made / "m", f"ada/{route}")
        assert set(hub.repos[f"ada/{route}"].files()) == {".gitattributes"}


def after_commit(hub: FakeHub, change: Callable[[Repo], object]) -> None:
    """Something befalls the repo between the commit and the look at it."""

    def fault(call: hub_faults.Call, act: hub_faults.Act) -> hub_faults.Answer:
        answer = act()
        change(hub.repos["ada/m"])
        return answer

    hub.always["commit"] = fault


@pytest.mark.parametrize("name", [SHARD, "config.json", "README.md"])
def test_up12_the_remote_file_is_another(hub: FakeHub, made: Path, name: str) -> None:
    def change(repo: Repo) -> None:
        tree = repo.files()
        tree[name] = hub_faults.flipped(tree[name])

    after_commit(hub, change)
    result = run("upload", made / "m", "ada/m")
    assert result.code == 5
    assert name in result.err and "does not hold what was sent" in result.err


def test_up13_a_remote_file_is_deleted_in_between(hub: FakeHub, made: Path) -> None:
    """Behind the commit it is missed; before it, the branch has moved, also for a file that was not to be sent."""
    after_commit(hub, lambda repo: repo.files().pop(SHARD))
    with pytest.raises(NetworkError, match=SHARD):
        ckpttool.upload(made / "m", "ada/m")
    hub.always.clear()
    ckpttool.upload(made / "m", "ada/n")
    repo = hub.repos["ada/n"]

    def delete(call: hub_faults.Call, act: hub_faults.Act) -> hub_faults.Answer:
        repo.commit("main", {n: d for n, d in repo.files().items() if n != SHARD}, "deleted")
        return act()

    hub.faults["commit"] = [delete]
    with pytest.raises(NetworkError, match="somebody else"):
        ckpttool.upload(made / "m", "ada/n", quantized_by="Ada")
    report = ckpttool.upload(made / "m", "ada/n", quantized_by="Ada")
    assert SHARD in repo.files()
    assert {f.name: f.state for f in report.files}[SHARD] is State.present


@pytest.mark.parametrize(
    ("token", "repo"),
    [
        (OTHER, "ada/new"),
        (OTHER, "ada/there"),
        ("hf_" + "x" * 34, "ada/new"),
        (TOKEN, "bob/new"),
        (TOKEN, "bob/there"),
        ("", "ada/new"),
    ],
    ids=["read-only new", "read-only there", "expired", "another's new", "another's", "none"],
)
def test_up14_a_token_that_may_not(
    hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, repo: str
) -> None:
    """Before anything is read or sent."""
    hub.add("ada/there")
    hub.add("bob/there")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(NetworkError) as error:
        Uploader(made / "m", repo, Asked())
    assert error.value.hint
    assert nothing_was_sent(hub)


def test_up15_the_token_is_nowhere(hub: FakeHub, made: Path) -> None:
    """Not on the command line, not in what is said however it fails, not in what is written or published."""
    assert run("upload", made / "m", "ada/m", TOKEN).code == 2
    assert run("upload", made / "m", f"https://ada:{TOKEN}@huggingface.co/ada/m").code == 2
    said = ""
    for faults in (
        {},
        {"commit": hub_faults.status(400, f"bad token {TOKEN}")},
        {"whoami": hub_faults.status(401, TOKEN)},
    ):
        hub.always = dict(faults)
        for options in ((), ("--json",), ("--debug",), ("--dry-run", "--debug")):
            result = run("upload", made / "m", f"ada/{len(faults)}", *options)
            said += result.out + result.err
    assert TOKEN not in said and "Bearer" not in said
    assert TOKEN not in "".join(p.read_text("latin-1") for p in made.rglob("*") if p.is_file())
    trees = [d for r in hub.repos.values() for d in r.files().values()]
    assert TOKEN.encode() not in b"\0".join(trees)


def test_up16_another_host_only_where_it_is_allowed(hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = f"{hub.endpoint}/ada/m"
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    with pytest.raises(UsageError, match="your token would be sent there") as error:
        ckpttool.upload(made / "m", page)
    assert "--allow-endpoint" in str(error.value) and hub.calls == []
    assert ckpttool.upload(made / "m", page, allow_endpoint=True).url.startswith(page)
    again = ckpttool.upload(made / "m", page, allow_endpoint=True, quantized_by="ada")  # by the card that is there
    assert [f.name for f in again.files if f.state is State.uploaded] == ["README.md"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example.org")
    with pytest.raises(UsageError, match="without encryption"):
        ckpttool.upload(made / "m", "ada/m")


@pytest.mark.parametrize(
    "repo",
    ["ada/..", "../m", "ada/my model", "m", "ada/m/x", "datasets/ada/m", "ada/m@", "ada/m\n", "", "https://[x/ada/m",
     "ada/m@a..b"],
)  # fmt: skip
def test_up17_what_is_no_repo(hub: FakeHub, made: Path, repo: str) -> None:
    result = run("upload", made / "m", repo)
    assert result.code == 2, result.err
    assert hub.calls == []


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "a/../../config.json", ".git/config.json"])
def test_up18_a_path_that_leaves_the_repo(hub: FakeHub, made: Path, name: str) -> None:
    path = made / "m" / RECEIPT
    path.write_text(path.read_text().replace('"name": "config.json"', f'"name": "{name}"'))
    with pytest.raises(InputError, match=r"leaves the folder|no name inside|hidden"):
        ckpttool.upload(made / "m", "ada/m")
    with pytest.raises(UsageError):
        ckpttool.upload(made / "small", f"hf://ada/m/{name}")
    assert hub.calls == []


def test_up19_gitattributes_that_do_not_track_weights(hub: FakeHub, made: Path) -> None:
    hub.add("ada/m").files()[".gitattributes"] = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    for options in ((), ("--dry-run",)):
        result = run("upload", made / "m.gguf", "ada/m", *options)
        assert result.code == 2
        assert "add the line '*.gguf filter=lfs diff=lfs merge=lfs -text'" in result.err
    assert nothing_was_sent(hub)


def test_up20_a_repo_that_holds_more(hub: FakeHub, made: Path) -> None:
    """Nothing is deleted; what a loader may take for a part of it is told."""
    mine = {"notes.txt": b"mine", "model-00001-of-00002.safetensors": b"old", "images/a.png": b"png"}
    repo = hub.add("ada/m", mine)
    attributes = repo.files()[".gitattributes"]
    report = ckpttool.upload(made / "m", "ada/m")
    found = repo.files()
    assert {n: found[n] for n in mine} == mine and found[".gitattributes"] == attributes
    assert of_conversion(found) == mine | files_of(made / "m")
    note = next(n for n in report.notes if n.startswith("the branch also holds"))
    assert note.endswith(": model-00001-of-00002.safetensors")


def test_up21_who_may_see_it(hub: FakeHub, made: Path) -> None:
    """As huggingface_hub has it by default, else as told; and said in the first line."""
    for option, private in ((), False), (("--private",), True), (("--public",), False):
        name = f"ada/m{len(hub.repos)}"
        dry = run("upload", made / "small", name, *option, "--dry-run")
        word = {(): "as visible as your account's default says"}.get(option, "private" if private else "public")
        assert dry.out.startswith(f"would publish to {name} ({word}, to be made)")
        result = run("upload", made / "small", name, *option)
        assert result.out.startswith(f"published to {name} ({'private' if private else 'public'}, made now), commit ")
        assert hub.repos[name].private == private
    result = run("upload", made / "small", name, "--private")
    assert result.code == 2 and "the repo is public" in result.err


def test_up22_a_file_that_only_xet_takes(hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "LARGEST", 3_000_000)
    with pytest.raises(LimitError, match=r"m\.gguf: has 3,989,824 bytes; without hf_xet.*--max-shard-size"):
        ckpttool.upload(made / "m.gguf", "ada/m")
    assert hub.calls == []


def test_up23_more_files_than_the_hub_takes(hub: FakeHub, made: Path) -> None:
    """In the receipt: an error. In the folder: they are counted."""
    for i in range(2000):
        (made / "m" / f"log-{i}").touch()
    out = run("upload", made / "m", "ada/m", "--dry-run").out
    assert "log-0, log-1, log-10, " in out and "and 1,992 more\n" in out
    path = made / "m" / RECEIPT
    receipt = json.loads(path.read_text())
    row = receipt["files"][-1]
    receipt["files"] += [{**row, "name": f"{i}.json"} for i in range(100_000)]
    path.write_text(json.dumps(receipt))
    before = len(hub.calls)
    with pytest.raises(LimitError, match="Hub takes 10,000"):
        ckpttool.upload(made / "m", "ada/m")
    assert len(hub.calls) == before


def test_up24_an_empty_folder(hub: FakeHub, made: Path) -> None:
    (made / "empty").mkdir()
    result = run("upload", made / "empty", "ada/m")
    assert result.code == 3 and "has no receipt" in result.err
    assert hub.calls == []


@pytest.mark.parametrize("where", ["here", "there"])
def test_up25_a_card_that_is_no_yaml(hub: FakeHub, made: Path, where: str) -> None:
    text = b"---\nlicense: [mit\ntags: {\n---\nmy model\n"
    if where == "here":
        (made / "m" / "README.md").write_bytes(text)
    else:
        hub.add("ada/m", {"README.md": text})
    with pytest.raises(InputError, match=r"README\.md"):
        ckpttool.upload(made / "m", "ada/m")
    assert nothing_was_sent(hub)


def test_up26_the_hub_finds_a_secret(hub: FakeHub, made: Path) -> None:
    hub.always["commit"] = hub_faults.status(400, "Your commit contains valid Hugging Face secrets in config.json")
    result = run("upload", made / "m", "ada/m")
    assert result.code == 5
    assert "the Hub found a valid secret" in result.err and "config.json" in result.err and "revoke" in result.err


@pytest.mark.parametrize("kind", ["closed port", "no TLS", "proxy", "no such host"])
def test_up27_no_way_to_the_hub(hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    endpoint = {
        "closed port": "http://127.0.0.1:9",
        "no TLS": hub.endpoint.replace("http:", "https:"),
        "proxy": "http://127.0.0.1:9",
        "no such host": "https://hub.invalid",
    }[kind]
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    if kind == "proxy":
        monkeypatch.setenv("HTTP_PROXY", "http://ada:opensesame@127.0.0.1:9")
        monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
        monkeypatch.setenv("HTTPS_PROXY", "http://ada:opensesame@127.0.0.1:9")
    result = run("upload", made / "m", "ada/m")
    assert result.code == 5, result.err
    assert "cannot connect" in result.err or "misbehaves" in result.err or "broke off" in result.err
    assert "opensesame" not in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("when", ["checked", "sent"])
def test_up28_the_disk_is_gone(hub: FakeHub, made: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    uploader = Uploader(made / "m", "ada/m", Asked())
    if when == "sent":
        uploader.check()

    def gone(fd: int, n: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(held.os, "read", gone)
    with pytest.raises(LocalIOError, match="Input/output error") as error:
        (uploader.run if when == "sent" else uploader.check)()
    assert error.value.exit_code == 4 and str(made) in str(error.value)
    assert hub.count("commit") == 0


def test_up28_the_folder_is_gone(hub: FakeHub, made: Path) -> None:
    uploader = Uploader(made / "m", "ada/m", Asked())
    uploader.check()
    shutil.rmtree(made / "m")
    with pytest.raises((InputError, LocalIOError), match=r"missing|No such file"):
        uploader.run()
    assert hub.count("commit") == 0


def test_up29_while_a_conversion_is_running(hub: FakeHub, made: Path) -> None:
    (made / "m.partial").mkdir()
    with (made / "m.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("upload", made / "m", "ada/m")
    assert result.code == 4 and "a conversion is being written here" in result.err
    assert hub.calls == []
    assert run("upload", made / "m", "ada/m").code == 0


def test_up30_what_was_published_is_verified_without_downloading(hub: FakeHub, made: Path) -> None:
    run("upload", made / "m", "ada/m")
    before = len(hub.calls)
    assert run("verify", "ada/m").code == 0
    read = {c.groups[2] for c in hub.calls[before:] if c.route == "resolve"}
    assert not any(n.endswith(".safetensors") for n in read)
    tree = hub.repos["ada/m"].files()
    tree[SHARD] = hub_faults.flipped(tree[SHARD])
    result = run("verify", "ada/m")
    assert result.code == 1 and SHARD in result.out


# The command


def published(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    check("publication.v1", result.document)
    return result.document


@pytest.mark.parametrize("target", ["m", "m.gguf"])
def test_what_is_published_is_what_was_converted(hub: FakeHub, made: Path, target: str) -> None:
    report = published(run("upload", made / target, "ada/m", "--json"))
    repo = hub.repos["ada/m"]
    found = repo.files()
    wanted = files_of(made / "m")
    if target == "m.gguf":
        wanted = {n: (made / n).read_bytes() for n in ("m.gguf", "m.gguf.receipt.json")}
    assert of_conversion(found) == wanted
    assert {f["name"] for f in report["files"]} == {*wanted, "README.md"}
    for f in report["files"]:
        assert (f["nbytes"], f["sha256"]) == (len(found[f["name"]]), fake_repos.sha256(found[f["name"]]))
        assert f["state"] == "uploaded"
    assert report["commit"] == repo.head() and report["url"] == f"{hub.endpoint}/ada/m/tree/{repo.head()}"
    assert (report["created"], report["up_to_date"], report["dry_run"]) == (True, False, False)
    assert repo.log[-1][1].startswith("hf converted to ")
    assert ModelCard(found["README.md"].decode()).data.license == "apache-2.0" or target == "m.gguf"


@pytest.mark.usefixtures("by_path")
@pytest.mark.parametrize("part_nbytes", [None, 100_000])
def test_large_files_go_up_from_their_open_files(hub: FakeHub, made: Path, part_nbytes: int | None) -> None:
    hub.part_nbytes = part_nbytes
    ckpttool.upload(made / "m", "ada/m")
    assert of_conversion(hub.repos["ada/m"].files()) == files_of(made / "m")
    assert (hub.count("part") > 10) == (part_nbytes is not None)


def test_the_second_time_nothing_is_sent(hub: FakeHub, made: Path) -> None:
    run("upload", made / "m", "ada/m")
    before = {route: hub.count(route) for route in ("object", "commit", "create", "batch")}
    result = run("upload", made / "m", "ada/m")
    assert result.out.startswith("up to date: ada/m has every file, in commit ")
    assert {route: hub.count(route) for route in before} == before
    report = published(run("upload", made / "m", "ada/m", "--json"))
    assert report["up_to_date"] and report["commit"] == hub.repos["ada/m"].head()


def test_content_of_an_earlier_run_is_not_sent_again(hub: FakeHub, made: Path) -> None:
    """The Hub's answer says what it has: no local state is needed."""
    repo = hub.add("ada/m")
    data = (made / "m" / SHARD).read_bytes()
    repo.objects[fake_repos.sha256(data)] = data
    dry = published(run("upload", made / "m", "ada/m", "--dry-run", "--json"))
    report = published(run("upload", made / "m", "ada/m", "--json"))
    for found in (dry, report):
        assert {f["name"]: f["state"] for f in found["files"]}[SHARD] == "present"
    assert hub.count("object") == 2


@pytest.mark.parametrize("target", ["m", "m.gguf"])
@pytest.mark.parametrize("before", ["no repo", "empty", "held", "published", "no branch"])
def test_a_dry_run_foresees_and_sends_nothing(hub: FakeHub, made: Path, target: str, before: str) -> None:
    option = ["--revision", "next"] if before == "no branch" else []
    if before != "no repo":
        repo = hub.add("ada/m")
        if before == "held":
            repo.objects |= {fake_repos.sha256(d): d for d in files_of(made).values()}
    if before == "published":
        run("upload", made / target, "ada/m")
    state = json.dumps({n: [r.log, sorted(r.objects), r.refs] for n, r in hub.repos.items()})
    dry = published(run("upload", made / target, "ada/m", "--dry-run", "--json", *option))
    assert json.dumps({n: [r.log, sorted(r.objects), r.refs] for n, r in hub.repos.items()}) == state
    assert dry["dry_run"] and dry["commit"] is None and dry["created"] == (before == "no repo")
    report = published(run("upload", made / target, "ada/m", "--json", *option))
    assert [(f["name"], f["sha256"], f["state"]) for f in dry["files"] if before != "no branch"] == [
        (f["name"], f["sha256"], f["state"]) for f in report["files"] if before != "no branch"
    ]
    foreseen, was = dry["traffic"], report["traffic"]
    assert foreseen["up_nbytes"] == sum(f["nbytes"] for f in dry["files"] if f["state"] == "uploaded")
    assert abs(foreseen["requests"] - was["requests"]) <= (4 if before == "no branch" else 0)
    assert foreseen["up_nbytes"] <= was["up_nbytes"] <= foreseen["up_nbytes"] * 1.05 + 50_000


def test_a_branch_is_made_and_main_stays(hub: FakeHub, made: Path) -> None:
    repo = hub.add("ada/m", {"mine": b"1"})
    report = ckpttool.upload(made / "m", "ada/m@next")
    assert report.revision == "next"
    assert set(repo.files()) == {".gitattributes", "mine"} and SHARD in repo.files("next")
    assert run("upload", made / "m", "ada/m", "--revision", "next").out.startswith("up to date: ada/m@next has")


def test_a_pull_request_leaves_the_branch(hub: FakeHub, made: Path) -> None:
    repo = hub.add("ada/m", {"mine": b"1"})
    assert "a pull request would be opened" in run("upload", made / "m", "ada/m", "--pr", "--dry-run").out
    report = published(run("upload", made / "m", "ada/m", "--pr", "--json"))
    assert report["pull_request"] == f"{hub.endpoint}/ada/m/discussions/1" and report["revision"] == "refs/pr/1"
    assert set(repo.files()) == {".gitattributes", "mine"} and SHARD in repo.files("refs/pr/1")


def test_the_card_alone(hub: FakeHub, made: Path, tmp_path: Path) -> None:
    """Of what is there; with what validate found; printed in a dry run."""
    result = run("upload", made / "m", "ada/m", "--card-only")
    assert result.code == 3 and "does not hold the weights" in result.err and "ada/m" not in hub.repos
    run("upload", made / "m", "ada/m")
    validated = tmp_path / "v.json"
    validated.write_text(run("validate", HF, made / "m", "--level", "values", "--json").out)
    options = ("--card-only", "--validation", str(validated), "--quantized-by", "Ada")
    card = run("upload", made / "m", "ada/m", *options, "--dry-run").out
    assert ModelCard(card).data.quantized_by == "Ada"
    before = hub.count("object")
    report = published(run("upload", made / "m", "ada/m", *options, "--json"))
    assert [f["name"] for f in report["files"]] == ["README.md"]
    assert hub.repos["ada/m"].files()["README.md"].decode() == card
    assert hub.count("object") == before
    shutil.rmtree(made / "source")
    for shard in (made / "m").glob("*.safetensors"):
        shard.unlink()  # a runner that only has the receipt can do it as well
    assert run("upload", made / "m", "ada/m", "--card-only").code == 0


def test_the_card_of_a_source_that_is_gone(hub: FakeHub, made: Path) -> None:
    """A path of two parts is not taken for somebody's repo."""
    hub.add("models/mine", {"README.md": b"---\nlicense: mit\n---\n"})
    path = made / "m" / RECEIPT
    path.write_text(path.read_text().replace(str(HF), "models/mine"))
    report = ckpttool.upload(made / "m", "ada/m")
    assert any(n.startswith("the source is not here any more") for n in report.notes)
    assert ModelCard(hub.repos["ada/m"].files()["README.md"].decode()).data.license == "apache-2.0"


@pytest.mark.parametrize("where", ["here", "there"])
def test_the_users_own_words_stay(hub: FakeHub, made: Path, where: str) -> None:
    words = "---\nlicense: mit\n---\n# Mine\n\nRead this first.\n"
    if where == "here":
        (made / "m" / "README.md").write_text(words)
    else:
        hub.add("ada/m", {"README.md": words.encode()})
    ckpttool.upload(made / "m", "ada/m")
    card = hub.repos["ada/m"].files()["README.md"].decode()
    assert "# Mine\n\nRead this first.\n" in card
    assert ModelCard(card).data.license == "mit" and ModelCard(card).data.library_name == "transformers"


def test_the_commit_says_what_it_is(hub: FakeHub, made: Path) -> None:
    run("upload", made / "m", "ada/m", "--message", "First\n\nand more")
    assert hub.repos["ada/m"].log[-1] == ("main", "First")
    assert run("upload", made / "m", "ada/m", "--message", " ").code == 2


def test_where_the_source_lay_is_told_before_it_is_published(hub: FakeHub, made: Path) -> None:
    result = run("upload", made / "m", "ada/m", "--dry-run")
    assert f"the receipt, which is published, says where the source lay on your disk: {HF}" in result.out


def test_progress_counts_what_is_checked_and_what_is_there(hub: FakeHub, made: Path) -> None:
    for _ in range(2):
        uploader = Uploader(made / "m", "ada/m", Asked())
        seen: list[int] = []
        total = uploader.nbytes
        uploader.check(seen.append)
        assert sum(seen) == total
        seen.clear()
        uploader.run(seen.append)
        assert sum(seen) == uploader.nbytes


def test_all_that_is_wrong_is_told_at_once(hub: FakeHub, made: Path) -> None:
    spoil(made / "m" / SHARD)
    (made / "m" / "config.json").unlink()
    result = run("upload", made / "m", "ada/m")
    assert result.code == 3
    assert [line.partition(": ")[2].split(":")[0].rpartition("/")[2] for line in result.err.splitlines()] == [
        SHARD,
        "config.json",
    ]


def test_an_interrupted_upload_says_that_it_goes_on(hub: FakeHub, made: Path) -> None:
    def interrupt(call: hub_faults.Call, act: hub_faults.Act) -> hub_faults.Answer:
        threading.main_thread()
        os.kill(os.getpid(), 2)
        return act()

    hub.faults["object"] = [interrupt]
    result = run("upload", made / "m", "ada/m")
    assert result.code == 130
    assert "interrupted; the same command goes on where this one stopped" in result.err
    assert run("upload", made / "m", "ada/m").code == 0
    assert hub.again == []


def test_api_and_command_are_one(hub: FakeHub, made: Path) -> None:
    assert isinstance(ckpttool.upload(made / "m", "ada/m"), Publication)
    with pytest.raises(TypeError):
        ckpttool.upload(made / "m", "ada/m", token="x")
