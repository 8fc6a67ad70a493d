"""verify org/repo: a receipt against the Hub's hashes, and with --source against what the source gives.

A forger who changes a file changes the receipt as well: what then shows it is the source alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from zlib import crc32

import builders
import fake_hub
import hub_faults
import numpy as np
import pytest
from builders import Model, Sizes
from commandline import run
from fake_hub import FakeHub
from fake_repos import Repo

import ckpttool
from ckpttool import steps
from ckpttool.derivation import Derived
from ckpttool.errors import InputError, NetworkError, UsageError
from ckpttool.publishing import remote_verify
from ckpttool.reports import Verification
from ckpttool.samples import LEAST, chosen
from ckpttool.steps import target_ranges

pytestmark = pytest.mark.usefixtures("hasty")

MODEL = Model(Sizes(layers=2, experts=2, hidden=32, intermediate=64, vocab=300))
RECEIPT = "ckpttool.receipt.json"
ALL = 10**6

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mxfp4": ("hf-bf16", "out", {"to": "mxfp4", "max_shard_size": 12_000}),
    "bf16": ("hf", "out", {"to": "bf16", "max_shard_size": 30_000}),
    "openai": ("hf", "out", {"to": "openai"}),
    "gguf": ("hf", "m.gguf", {}),
    "split": ("hf-bf16", "m.gguf", {"max_shard_size": 20_000, "experts": "mxfp4", "outtype": "f16"}),
}
"""The source's dialect, TARGET and options."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    with fake_hub.as_the_hub(monkeypatch) as hub:
        yield hub


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def with_rounding(tensors: builders.Tensors) -> None:
    """Experts whose values MXFP4 does not hold, so that each recipe makes other bytes."""
    rng = np.random.default_rng(0)
    for name, t in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")) and t.dtype == "BF16":
            t.array[...] ^= rng.integers(0, 64, t.array.shape, np.uint16)


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind: `src`, its source, and `made`, the conversion from the repo org/src. Made once."""
    done: dict[str, Path] = {}

    def convert(kind: str) -> Path:
        if kind not in done:
            dialect, name, options = KINDS[kind]
            folder = done[kind] = tmp_path_factory.mktemp("kind")
            builders.write(MODEL, folder / "src", dialect, shards=2, change=with_rounding)
            ckpttool.convert("org/src", folder / "made" / name, device="cpu", **options)
        return done[kind]

    return convert


class Published:
    """A conversion from the repo org/src, in the repo org/out: its files by name, to be changed and put there again."""

    def __init__(self, hub: FakeHub, folder: Path, kind: str) -> None:
        self.hub = hub
        self.local_source = folder / "src"
        self.source = hub.repos["org/src"]
        self.target = folder / "made" / KINDS[kind][1]
        self.files = files_in(self.target if self.target.is_dir() else folder / "made")
        self.receipt_name = next(n for n in self.files if n.endswith("receipt.json"))
        self.receipt: dict[str, Any] = json.loads(self.files[self.receipt_name])
        self.put()

    @property
    def weights(self) -> list[str]:
        return sorted({t["file"] for t in self.receipt["tensors"]})

    def put(self) -> Repo:
        """The repo with these files, the receipt as it is now."""
        self.files[self.receipt_name] = json.dumps(self.receipt).encode()
        return self.hub.add("org/out", self.files)

    def forge(self) -> None:
        """Put it there with a receipt that says of all files what they now are."""
        for row in self.receipt["files"]:
            data = self.files[row["name"]]
            row |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "crc32": f"{crc32(data):08x}"}
        for t in self.receipt["tensors"]:
            data = self.files[t["file"]][t["offset"] : t["offset"] + t["nbytes"]]
            t["crc32"] = f"{crc32(data):08x}"
        self.put()

    def flip(self, name: str, at: int) -> None:
        data = bytearray(self.files[name])
        data[at] ^= 0x40
        self.files[name] = bytes(data)


@pytest.fixture
def made(hub: FakeHub, tmp_path: Path, conversions: Callable[[str], Path]) -> Callable[[str], Published]:
    """A commit's name follows from the repo's, so that each test's Hub has the one that was converted."""

    def publish(kind: str) -> Published:
        dialect = KINDS[kind][0]
        source = builders.write(MODEL, tmp_path / "src", dialect, shards=2, change=with_rounding)
        hub.add("org/src", files_in(source))
        shutil.copytree(conversions(kind) / "made", tmp_path / "made")
        return Published(hub, tmp_path, kind)

    return publish


def verify(target: str | Path = "org/out", **options: Any) -> Verification:
    return ckpttool.verify(target, **options)


def read_names(hub: FakeHub) -> list[str]:
    """What was read of the repo org/out."""
    return sorted(c.groups[2] for c in hub.asked("resolve") if c.groups[0] == "org/out")


# The receipt and the Hub's hashes


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_published_passes_and_nothing_large_is_read(kind: str, made: Callable[[str], Published]) -> None:
    out = made(kind)
    report = verify()
    assert (report.ok, report.findings, report.unlisted, report.notes) == (True, (), (), ())
    assert report.target == f"hf://org/out@{out.hub.repos['org/out'].head()}"
    assert report.commit == out.hub.repos["org/out"].head()
    assert {f.name: f.by for f in report.checked} == {
        row["name"]: "hub" if row["name"] in out.weights else "sha256" for row in out.receipt["files"]
    }
    assert all(f.ok for f in report.checked)
    small = [row["name"] for row in out.receipt["files"] if row["name"] not in out.weights]
    assert read_names(out.hub) == sorted([*small, out.receipt_name])
    assert out.hub.count("cdn") == 0
    assert report.nbytes == sum(row["nbytes"] for row in out.receipt["files"])
    assert report.tensors == len(out.receipt["tensors"])


@pytest.mark.parametrize("kind", ["mxfp4", "split"])
def test_one_flipped_bit_in_any_file_is_found_and_named(kind: str, made: Callable[[str], Published]) -> None:
    out = made(kind)
    for row in out.receipt["files"]:
        out.flip(row["name"], row["nbytes"] // 2)
        out.put()
        report = verify()
        assert len(report.findings) == 1
        assert report.findings[0].startswith(f"{row['name']}: ")
        assert [f.name for f in report.checked if not f.ok] == [row["name"]]
        assert run("verify", "org/out").code == 1
        out.flip(row["name"], row["nbytes"] // 2)
    out.put()
    assert verify().ok


def test_shards_that_were_swapped(made: Callable[[str], Published]) -> None:
    """Of one size: a hash tells which file it is."""
    out = made("mxfp4")
    pairs = combinations(out.weights, 2)
    a, b = next(p for p in pairs if len({len(out.files[n]) for n in p}) == 1 < len({out.files[n] for n in p}))
    out.files[a], out.files[b] = out.files[b], out.files[a]
    out.put()
    assert set(verify().findings) == {f"{a}: has the bytes of {b}", f"{b}: has the bytes of {a}"}


def test_missing_longer_and_shorter_files(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    first, second = out.weights[:2]
    del out.files[first]
    out.files[second] += b"\0"
    out.files["config.json"] = out.files["config.json"][:-1]
    del out.files["tokenizer.json"]
    out.put()
    report = verify()
    sizes = {row["name"]: row["nbytes"] for row in out.receipt["files"]}
    assert set(report.findings) == {
        f"{first}: missing",
        f"{second}: {sizes[second] + 1} bytes, the receipt says {sizes[second]}",
        f"config.json: {sizes['config.json'] - 1} bytes, the receipt says {sizes['config.json']}",
        "tokenizer.json: missing",
    }
    assert {f.name for f in report.checked if f.by is None} == {first, second, "config.json", "tokenizer.json"}


LOADED = ["model.safetensors", "adapter_config.json", "model-00099-of-00099.safetensors", "modeling_gpt_oss.py",
          "pytorch_model.bin", "additional_chat_templates/tools.jinja", "tokenizer.model"]  # fmt: skip
HARMLESS = ["README.md", "assets/chart.png", "original/model.safetensors", "eval.json", "NOTICE", ".env", "x.gguf"]


@pytest.mark.parametrize("name", LOADED)
def test_an_unlisted_file_that_loaders_read_is_a_finding(name: str, made: Callable[[str], Published]) -> None:
    """transformers takes model.safetensors, where there is one, before the shards of the index."""
    out = made("mxfp4")
    out.files[name] = b"x"
    out.put()
    report = verify()
    assert report.findings == (f"{name}: not among the files of {RECEIPT}, and loaders may read it",)
    local = out.target / name
    local.parent.mkdir(exist_ok=True)
    local.write_bytes(b"x")
    assert verify(out.target).findings == report.findings


@pytest.mark.parametrize("name", HARMLESS)
def test_any_other_unlisted_file_is_told(name: str, made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.files[name] = b"x"
    out.put()
    report = verify()
    assert (report.ok, report.unlisted) == (True, (name,))
    shown = run("verify", "org/out")
    assert (shown.code, f"no part of the conversion: {name}" in shown.out) == (0, True)


def test_what_lies_beside_a_gguf_is_none_of_its_business(made: Callable[[str], Published]) -> None:
    out = made("gguf")
    out.files |= {"other.gguf": b"GGUF", "config.json": b"{}"}
    out.put()
    assert (verify().ok, verify().unlisted) == (True, ("config.json", "other.gguf"))


# The receipt itself


def test_an_edited_hash_is_a_finding(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    for row in out.receipt["files"]:
        before, row["sha256"] = row["sha256"], "0" * 64
        out.put()
        assert [f.split(": ")[0] for f in verify().findings] == [row["name"]]
        row["sha256"] = before


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda r: r.update(schema="conversion.v2"),
    "no file": lambda r: r.update(files=[]),
    "a file elsewhere": lambda r: r["files"][0].update(name="../src/config.json"),
    "a file twice": lambda r: r["files"].append(r["files"][0]),
    "a tensor behind its file": lambda r: r["tensors"][0].update(offset=10**12),
    "no hash": lambda r: r["files"][0].pop("sha256"),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_receipt_that_no_conversion_writes_is_refused(change: Any, made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    change(out.receipt)
    out.put()
    with pytest.raises(InputError) as caught:
        verify()
    assert caught.value.file == f"hf://org/out@{out.hub.repos['org/out'].head()}/{RECEIPT}"
    assert run("verify", "org/out").code == 3


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_receipt_that_is_none(text: bytes, made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.hub.add("org/out", {**out.files, RECEIPT: text})
    with pytest.raises(InputError):
        verify()


def test_a_receipt_without_hashes(hub: FakeHub, made: Callable[[str], Published], tmp_path: Path) -> None:
    """Of --no-verify: side files have one, what it says of shards cannot be held against the Hub's."""
    out = made("mxfp4")
    ckpttool.convert("org/src", tmp_path / "again", to="mxfp4", device="cpu", verify=False)
    hub.add("org/again", files_in(tmp_path / "again"))
    report = verify("org/again")
    assert report.findings == (
        "model.safetensors: the receipt has no sha256 to hold against the Hub's (convert --no-verify)",
    )
    for row in out.receipt["files"]:
        row["sha256"] = row["sha256"] if row["name"] in out.weights else None
    out.put()
    assert {f.by for f in verify().checked} == {"hub", "crc32"}
    out.flip("config.json", 5)
    out.put()
    assert verify().findings == ("config.json: CRC-32 differs",)


def test_a_file_without_a_hash_is_read_only_where_it_is_small(
    made: Callable[[str], Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made("mxfp4")
    monkeypatch.setattr(remote_verify, "READ", 1_000)
    report = verify()
    large = [r for r in out.receipt["files"] if r["name"] not in out.weights and r["nbytes"] > 1_000]
    assert len(large) > 1
    assert set(report.findings) == {
        f"{r['name']}: the Hub lists no sha256 of it, and {r['nbytes']:,} bytes are too many to read" for r in large
    }


# Which receipt


def test_words_for_a_published_conversion(made: Callable[[str], Published]) -> None:
    out = made("split")
    head = out.hub.repos["org/out"].head()
    beneath = (f"hf://org/out/{n}" for n in (out.weights[0], out.weights[-1], out.receipt_name))
    for name in ("org/out", f"org/out@{head}", "hf://org/out", f"{out.hub.endpoint}/org/out", *beneath):
        report = verify(name)
        assert (report.ok, report.commit, report.files) == (True, head, len(out.weights)), name


def test_a_branch_a_tag_and_a_pull_request(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    repo = out.hub.repos["org/out"]
    good = repo.head()
    repo.refs |= {"v1.0": good, "refs/pr/3": good, "next/one": good}
    bad = repo.commit("main", {**repo.files(), "config.json": b"{}"})
    for name, commit in (("v1.0", good), ("refs/pr/3", good), ("next/one", good), (good, good), (bad, bad)):
        report = verify(f"hf://org/out@{name.replace('next/', 'next%2F')}")
        assert (report.ok, report.commit) == (commit == good, commit)
    assert not verify().ok


def test_a_conversion_in_a_folder_of_a_repo(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.hub.add("org/two", {f"mxfp4/{n}": d for n, d in out.files.items()} | {"model.safetensors": b"another"})
    assert verify("hf://org/two/mxfp4").ok
    with pytest.raises(InputError, match="has no receipt"):
        verify("org/two")


def test_several_receipts(made: Callable[[str], Published]) -> None:
    out = made("gguf")
    receipt = {**out.receipt, "files": [{**out.receipt["files"][0], "name": "n.gguf"}]}
    receipt["tensors"] = [{**t, "file": "n.gguf"} for t in receipt["tensors"]]
    repo = out.hub.add(
        "org/both",
        {**out.files, "n.gguf": out.files["m.gguf"], "n.gguf.receipt.json": json.dumps(receipt).encode()},
    )
    with pytest.raises(InputError, match="has 2 receipts") as caught:
        verify("org/both")
    assert f"hf://org/both@{repo.head()}/n.gguf" in str(caught.value.hint)
    for name in ("m.gguf", "n.gguf"):
        report = verify(f"hf://org/both/{name}")
        assert (report.ok, [f.name for f in report.checked]) == (True, [name])


def test_a_file_that_no_receipt_names(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.files["x.gguf"] = b"GGUF"
    out.put()
    assert verify("hf://org/out/x.gguf").findings == (f"x.gguf: not among the files of {RECEIPT}",)


def test_what_cannot_be_verified(made: Callable[[str], Published], monkeypatch: pytest.MonkeyPatch) -> None:
    out = made("mxfp4")
    for name, error, says in (
        ("org/src", InputError, "has no receipt"),
        ("org/none", NetworkError, "no such repo"),
        ("org/out@v9", NetworkError, "no revision"),
        ("hf://org/out/none.gguf", InputError, "no such file"),
        ("https://example.com/x/model.safetensors", InputError, "no repo of the Hub"),
        ("memory://x", NetworkError, "no such file"),
    ):
        with pytest.raises(error, match=says):
            verify(name)
    assert run("verify", "org/src").code == 3
    assert run("verify", "org/none").code == 5
    out.hub.always["info"] = hub_faults.status(503)
    failed = run("verify", "org/out", "--json")
    assert (failed.code, failed.document["errors"][0]["kind"]) == (5, "network")


def test_a_path_here_goes_before_a_repo(made: Callable[[str], Published], tmp_path: Path, monkeypatch: Any) -> None:
    made("mxfp4")
    monkeypatch.chdir(tmp_path)
    assert verify("org/out").commit
    (tmp_path / "org").mkdir()
    with pytest.raises(InputError, match="no such file or folder"):
        verify("org/out")
    (tmp_path / "made" / "out").rename(tmp_path / "org" / "out")
    assert verify("org/out").commit is None


def test_a_remote_end_that_breaks_off_is_asked_again(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.hub.faults["info"] = [hub_faults.status(503), hub_faults.reset, None]
    out.hub.faults["resolve"] = [hub_faults.reset, hub_faults.status(500), None, hub_faults.status(429)]
    assert verify().ok


# The source


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("here", [False, True], ids=["repo", "folder"])
def test_what_comes_of_the_source_passes(kind: str, here: bool, made: Callable[[str], Published]) -> None:
    out = made(kind)
    source = out.local_source if here else "org/src"
    for target in ("org/out", out.target):
        report = verify(target, source=source, samples=ALL)
        assert (report.ok, report.findings) == (True, ())
        assert report.derivation is not None
        found = report.derivation
        assert found.source == (str(source) if here else f"hf://org/src@{out.source.head()}")
        assert found.compared == found.slabs == sum(found.steps.values()) > 20
        assert found.nbytes == sum(t["nbytes"] for t in out.receipt["tensors"])
        assert found.side_files == sum(row["name"] not in out.weights for row in out.receipt["files"])
        said = out.receipt["source"]["path"]
        assert report.notes == ((f"{source} has the sizes and headers of {said}, which the receipt names",) * here)


def test_a_sample_is_a_part_of_it_and_said_to_be(made: Callable[[str], Published]) -> None:
    made("mxfp4")
    report = verify(source="org/src", samples=5)
    assert report.derivation is not None
    assert (report.ok, report.derivation.compared) == (True, 5)
    shown = run("verify", "org/out", "--source", "org/src", "--samples", "5")
    assert shown.code == 0
    assert f"5 of {report.derivation.slabs} slabs" in shown.out
    document = run("verify", "org/out", "--source", "org/src", "--samples", "5", "--json").document
    assert document["derivation"]["steps"] == report.derivation.steps


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_of_every_file_and_kind_of_step(kind: str, made: Callable[[str], Published]) -> None:
    out = made(kind)
    plan = ckpttool.plan(out.local_source, out.target.with_name("other" + out.target.suffix), **KINDS[kind][2])

    def place(index: int) -> tuple[str, ...]:
        step = plan.steps[plan.slabs[index].step]
        file = target_ranges(step, plan.slabs[index])[0].file
        return file, step.kind, step.source.codec.name, step.target.codec.name

    groups = Counter(place(i) for i in range(len(plan.slabs)))
    default = chosen(plan, "seed", None)
    assert {place(i) for i in default} == set(groups)
    assert len(default) == min(len(plan.slabs), max(LEAST, len(groups)))
    files = {group[0] for group in groups}
    assert {place(i)[0] for i in chosen(plan, "seed", len(files))} == files
    for count in (1, 7, len(plan.slabs), ALL):
        found = chosen(plan, "seed", count)
        assert len(set(found)) == len(found) == min(count, len(plan.slabs))
        assert found == chosen(plan, "seed", count) == sorted(found)
    assert chosen(plan, "seed", 7) != chosen(plan, "another", 7) or len(plan.slabs) < 14


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_of_a_slab_is_found_and_named(kind: str, made: Callable[[str], Published]) -> None:
    """In each kind of step, at its first and its last byte. The receipt says that all is well."""
    out = made(kind)
    genuine = dict(out.files), copy.deepcopy(out.receipt)
    tried = set()
    for t in genuine[1]["tensors"]:
        if (t["kind"], t["dtype"]) in tried:
            continue
        tried.add((t["kind"], t["dtype"]))
        for at in (t["offset"], t["offset"] + t["nbytes"] - 1):
            out.files, out.receipt = dict(genuine[0]), copy.deepcopy(genuine[1])
            out.flip(t["file"], at)
            out.forge()
            assert verify().ok
            report = verify(source="org/src", samples=ALL)
            said = f"{t['file']}: {t['name']}: is not what comes of the source, from byte {at} of the file on"
            assert report.findings == (said,)
    assert len(tried) > 1
    shown = run("verify", "org/out", "--source", "org/src", "--samples", str(ALL))
    assert shown.code == 1
    assert report.findings[0] in shown.out


def test_a_byte_is_found_where_it_is_sampled_and_not_elsewhere(made: Callable[[str], Published]) -> None:
    """So the count that is shown means something."""
    out = made("bf16")
    genuine = dict(out.files), copy.deepcopy(out.receipt)
    found = []
    for t in genuine[1]["tensors"][::4]:
        out.files, out.receipt = dict(genuine[0]), copy.deepcopy(genuine[1])
        out.flip(t["file"], t["offset"])
        out.forge()
        derived = Derived(out.receipt, RECEIPT, out.local_source, 6, None)
        ranges = [at for i in derived._samples for at in derived._ranges(i)]
        sampled = any((at.file, at.offset) == (t["file"], t["offset"]) for at in ranges)
        assert verify(source=out.local_source, samples=6).ok is not sampled
        found.append(sampled)
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("kind", ["mxfp4", "gguf"])
def test_a_changed_header_is_found(kind: str, made: Callable[[str], Published]) -> None:
    out = made(kind)
    name = out.weights[0]
    old, new = (b'"format":"pt"', b'"format":"np"') if kind == "mxfp4" else (b"gpt-oss.context", b"gpt-oss.contexT")
    assert old in out.files[name]
    at = out.files[name].index(old) + next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    out.files[name] = out.files[name].replace(old, new, 1)
    out.forge()
    first, *keys = verify(source="org/src").findings
    assert first == f"{name}: its header is not what comes of the source, from byte {at} on"
    assert keys == ([] if kind == "mxfp4" else [
        f"{name}: gpt-oss.context_length is missing, from the source comes 131072",
        f"{name}: gpt-oss.contexT_length is 131072, from the source comes nothing",
    ])  # fmt: skip


def test_key_values_that_differ_are_named(made: Callable[[str], Published], tmp_path: Path) -> None:
    """A model card beside the source gives names to a GGUF: a copy of the source without it makes another header."""
    folder = builders.write(MODEL, tmp_path / "with-card", "hf")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    ckpttool.convert(folder, tmp_path / "x.gguf", device="cpu")
    assert verify(tmp_path / "x.gguf", source=folder).ok
    (folder / "README.md").unlink()
    report = verify(tmp_path / "x.gguf", source=folder)
    assert "x.gguf: general.license is 'apache-2.0', from the source comes nothing" in report.findings
    assert (report.ok, report.derivation and report.derivation.compared) == (False, 0)


def test_bytes_between_tensors_are_zero(made: Callable[[str], Published]) -> None:
    out = made("gguf")
    ordered = sorted(out.receipt["tensors"], key=lambda t: t["offset"])
    size = len(out.files["m.gguf"])
    starts = [*(t["offset"] for t in ordered[1:]), size]
    gaps = [
        (t, t["offset"] + t["nbytes"])
        for t, start in zip(ordered, starts, strict=True)
        if t["offset"] + t["nbytes"] < start
    ]
    assert gaps
    tensor, at = gaps[0]
    out.flip("m.gguf", at)
    out.forge()
    (found,) = verify(source="org/src", samples=ALL).findings
    assert found == f"m.gguf: {tensor['name']}: is not what comes of the source, from byte {at} of the file on"


def test_a_changed_side_file_is_found(made: Callable[[str], Published]) -> None:
    """A chat template that says something else, and a config of another size."""
    out = made("mxfp4")
    out.files["chat_template.jinja"] += b"{# and obey #}"
    out.files["config.json"] = out.files["config.json"].replace(b"7.0", b"8.0")
    out.forge()
    assert verify().ok
    template, config = (len(out.files[n]) for n in ("chat_template.jinja", "config.json"))
    assert config
    assert set(verify(source="org/src").findings) == {
        f"chat_template.jinja: {template:,} bytes, from the source come {template - 14:,}",
        "config.json: is not what comes of the source",
    }


def test_a_file_more_or_less_is_found(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.files["vocab.json"] = b"{}"
    out.receipt["files"].append({"name": "vocab.json", "nbytes": 2, "crc32": "", "sha256": ""})
    del out.files["generation_config.json"]
    out.receipt["files"] = [r for r in out.receipt["files"] if r["name"] != "generation_config.json"]
    out.forge()
    assert verify().ok
    assert set(verify(source="org/src").findings) == {
        "vocab.json: does not come of the source",
        "generation_config.json: comes of the source, but the receipt does not name it",
    }


OCP = {"name": "ocp", "scale": "floor", "ties": "even", "keeps_negative_zero": True}
CLAIMS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "fidelity": ("mxfp4", lambda r: [t.update(fidelity="bytes") for t in r["tensors"]], "receipt says fidelity bytes"),
    "kind": ("mxfp4", lambda r: [t.update(kind="copy") for t in r["tensors"]], "receipt says kind copy"),
    "dtype": ("mxfp4", lambda r: r["tensors"][0].update(dtype="F32"), "receipt says dtype F32"),
    "shape": ("mxfp4", lambda r: r["tensors"][0].update(shape=[1]), "receipt says shape [1]"),
    "a tensor less": ("mxfp4", lambda r: r["tensors"].pop(0), "but the receipt does not name it"),
    "another name": ("mxfp4", lambda r: r["tensors"][0].update(name="x"), "x: does not come of the source"),
    "another recipe": ("mxfp4", lambda r: r["recipe"].update(OCP), "is not what comes of the source, from byte"),
    "no recipe": ("mxfp4", lambda r: r.update(recipe=None), "the receipt says recipe none"),
    "a recipe": ("bf16", lambda r: r.update(recipe=OCP), "the receipt says recipe ocp"),
    "lossless": ("mxfp4", lambda r: r["options"].update(lossless=True), "says --lossless, but values are lost"),
    "a name": ("gguf", lambda r: r["options"].update(model_name="Another"), "its header is not"),
    "another outtype": ("gguf", lambda r: r["options"].update(outtype="f32"), "from the source comes F32"),
    "other shards": ("mxfp4", lambda r: r["options"].update(max_shard_size=None), "model.safetensors: comes of the"),
}
"""What a forged receipt may claim of the very bytes that were made, and what is said of it."""


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_receipt_claims_is_found_out(name: str, made: Callable[[str], Published]) -> None:
    kind, change, says = CLAIMS[name]
    out = made(kind)
    change(out.receipt)
    out.put()
    assert verify().ok
    report = verify(source="org/src", samples=ALL)
    assert any(says in f for f in report.findings), report.findings


def test_values_that_changed_are_counted(hub: FakeHub, tmp_path: Path) -> None:
    """A receipt that says that narrowing changed nothing."""
    source = builders.write(MODEL, tmp_path / "f32", "hf-bf16", dtype="F32", change=with_odd_values)
    ckpttool.convert(source, tmp_path / "out", to="bf16", device="cpu")
    path = tmp_path / "out" / RECEIPT
    receipt = json.loads(path.read_text())
    row = next(t for t in receipt["tensors"] if t["changed"])
    said = row["changed"]
    assert verify(tmp_path / "out", source=source, samples=ALL).ok
    row.update(changed=said - 1)
    path.write_text(json.dumps(receipt))
    (found,) = verify(tmp_path / "out", source=source, samples=ALL).findings
    assert found.endswith(f"the receipt says that {said - 1:,} values changed; {said:,} do in the sample")


def with_odd_values(tensors: builders.Tensors) -> None:
    norm = tensors["model.norm.weight"].array
    norm[:5] = 1 + 2.0**-20


# What is no source


def test_another_commit_is_refused(made: Callable[[str], Published]) -> None:
    """Even one with the same weights: the receipt says which one it was."""
    out = made("mxfp4")
    before = out.source.head()
    after = out.source.commit("main", {**out.source.files(), "README.md": b"more"})
    with pytest.raises(InputError, match=f"is of commit {after[:12]}, the receipt says that {before[:12]}") as caught:
        verify(source="org/src")
    assert f"hf://org/src@{before}" in str(caught.value.hint)
    refused = run("verify", "org/out", "--source", "org/src")
    assert (refused.code, refused.out) == (3, "")
    assert verify(source=f"org/src@{before}").ok


def test_another_source_is_refused(made: Callable[[str], Published], tmp_path: Path) -> None:
    out = made("mxfp4")
    other = Model(Sizes(layers=2, experts=2, hidden=32, intermediate=64, vocab=300), seed=9)
    whole = builders.write(MODEL, tmp_path / "whole", "hf-bf16")
    another = builders.write(other, tmp_path / "another", "hf-bf16", shards=2)
    larger = builders.write(Model(Sizes(layers=2, vocab=500)), tmp_path / "larger", "hf-bf16", shards=2)
    for source, says in ((whole, "which was converted"), (larger, "bytes, what was converted had")):
        with pytest.raises(InputError, match=says):
            verify(source=source)
    assert not verify(source=another, samples=ALL).ok  # whose headers are the same
    row = out.receipt["source"]["files"][0]
    row["header_sha256"] = "0" * 64
    out.put()
    with pytest.raises(InputError, match="another header"):
        verify(source=out.local_source)


def test_a_copy_with_another_hash_is_refused(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    name = out.receipt["source"]["files"][0]["name"]
    data = bytearray(out.source.files()[name])
    data[-1] ^= 1
    out.hub.add("org/src", {**out.source.files(), name: bytes(data)})
    out.receipt["source"]["commit"] = out.hub.repos["org/src"].head()
    out.put()
    with pytest.raises(InputError, match="another sha256"):
        verify(source="org/src")


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no options": lambda r: r.pop("options"),
    "no word of --to": lambda r: r["options"].pop("to"),
    "another --to": lambda r: r["options"].update(to="elsewhere"),
    "--to gguf": lambda r: r["options"].update(to="gguf"),
    "an outtype that does not go with it": lambda r: r["options"].update(outtype="q8_0"),
    "shards of nothing": lambda r: r["options"].update(max_shard_size=0),
    "a lossless number": lambda r: r["options"].update(lossless=1),
    "no source": lambda r: r.pop("source"),
    "no source files": lambda r: r["source"].update(files=[]),
    "a source called by a number": lambda r: r["source"].update(name=5),
    "no header": lambda r: r["source"]["files"][0].pop("header_sha256"),
    "a recipe of no rule": lambda r: r["recipe"].update(scale="none"),
    "a known recipe of other rules": lambda r: r["recipe"].update(name="best", scale="floor"),
    "no fidelity": lambda r: r["tensors"][0].pop("fidelity"),
    "no tool": lambda r: r.pop("tool"),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_a_receipt_that_cannot_be_planned_again_is_refused(change: Any, made: Callable[[str], Published]) -> None:
    """Of the commit, nobody needs that: so verify alone passes."""
    out = made("mxfp4")
    change(out.receipt)
    out.put()
    with pytest.raises(InputError) as caught:
        verify(source="org/src")
    assert RECEIPT in str(caught.value.file)
    assert caught.value.hint == "the receipt is damaged, or was edited"
    assert run("verify", "org/out", "--source", "org/src").code == 3
    assert verify().ok


def test_the_source_is_left_out_where_the_files_are_not_the_receipt_s(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.flip(out.weights[0], -1)
    out.put()
    report = verify(source="org/src")
    assert (len(report.findings), report.derivation) == (1, None)
    assert report.notes == ("not held against its source, since it is not as its receipt says",)


def test_a_gguf_is_called_as_its_source_was(made: Callable[[str], Published], tmp_path: Path) -> None:
    """Its general.name is that of a folder or repo: of the one that was converted."""
    out = made("gguf")
    assert out.receipt["source"]["name"] == "src"
    moved = out.local_source.rename(tmp_path / "snapshot-4f2a91c")
    assert verify(source=moved).ok
    assert verify(out.target, source=moved).ok


def test_a_reference_is_read_where_it_lies_now(tmp_path: Path, hub: FakeHub) -> None:
    lender = builders.write(MODEL, tmp_path / "hf", "hf")
    source = builders.write(MODEL, tmp_path / "openai", "openai")
    ckpttool.convert(source, tmp_path / "out", to="mxfp4", reference=lender, device="cpu")
    hub.add("org/out", files_in(tmp_path / "out"))
    assert verify(source=source).ok
    moved = lender.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=f"says --reference {lender}, which is not here"):
        verify(source=source)
    assert verify(source=source, reference=moved).ok
    receipt = json.loads((tmp_path / "out" / RECEIPT).read_text())
    receipt["options"]["reference"] = f"{hub.endpoint}/api/whoami-v2"
    hub.add("org/out", {**files_in(tmp_path / "out"), RECEIPT: json.dumps(receipt).encode()})
    asked = len(hub.calls)
    with pytest.raises(InputError, match="which is not here"):
        verify(source=source)
    assert {c.route for c in hub.calls[asked:]} == {"info", "resolve"}


def test_another_version_is_told(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    out.receipt["tool"]["version"] = "0.0.1"
    out.put()
    report = verify(source="org/src")
    assert report.ok
    assert report.notes == (f"the receipt is of ckpttool 0.0.1; planned again by {ckpttool.__version__}",)


@pytest.mark.parametrize("option", ["samples", "reference"])
def test_options_that_go_with_a_source(option: str, made: Callable[[str], Published]) -> None:
    made("mxfp4")
    with pytest.raises(UsageError, match=f"--{option} goes with --source"):
        verify(**{option: 5})
    assert run("verify", "org/out", f"--{option}", "5").code == 2
    assert run("verify", "org/out", "--source", "org/src", "--samples", "0").code == 2


def test_a_source_that_cannot_be_reached(made: Callable[[str], Published]) -> None:
    out = made("mxfp4")
    assert run("verify", "org/out", "--source", "org/none").code == 5
    calls = len(out.hub.calls)
    out.hub.always["resolve"] = lambda call, act: (
        hub_faults.status(500)(call, act) if "org/src" in call.path and call.path.endswith(".safetensors") else act()
    )
    result = run("verify", "org/out", "--source", "org/src")
    assert (result.code, result.out) == (5, "")
    assert len(out.hub.calls) > calls
