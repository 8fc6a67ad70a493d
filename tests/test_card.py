"""The model card: true to the receipt, read by huggingface_hub as it is meant, kind to what a user wrote, stable."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import yaml
from commandline import run
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schemas import check

import ckpttool
from ckpttool.codecs.formats import RECIPES, ScaleRule, TieRule
from ckpttool.doctor.tables import tables
from ckpttool.doctor.versions import Version
from ckpttool.errors import InputError
from ckpttool.place import RECEIPT_NAME, RECEIPT_SUFFIX
from ckpttool.publishing import card as cards
from ckpttool.publishing.card import card, read_report, remarks, source_card
from ckpttool.publishing.card_facts import facts, origin_of
from ckpttool.publishing.card_sections import SCALES, TIES
from ckpttool.publishing.loading import LIBRARIES, RUNTIMES
from ckpttool.target import DIALECTS

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
REPO = "ada/tiny"
SHA = "0123456789abcdef0123456789abcdef01234567"
SOURCE_CARD = """\
---
license: other
license_name: house-rules
license_link: RULES.md
language: [en, no]
pipeline_tag: text-generation
library_name: transformers
tags: [medical, vllm, GGUF, 8-bit, "base_model:x/y", conversational]
datasets: [x/y]
---
# Theirs
"""

MADE: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "mxfp4": ("parent", "out", {"to": "mxfp4"}),
    "bf16": ("hf", "out", {"to": "bf16", "lossless": True}),
    "f32": ("hf", "out", {"to": "bf16", "experts": "f32", "dtype": "f32"}),
    "openai": ("hf", "out", {"to": "openai", "max_shard_size": "2MB"}),
    "from-openai": ("openai", "out", {"to": "bf16"}),
    "gguf": ("hf", "out.gguf", {}),
    "q8_0": ("parent", "out q8.gguf", {"outtype": "q8_0", "model_name": "My 'own' model"}),
    "split": ("hf-bf16", "out.gguf", {"experts": "mxfp4", "max_shard_size": "2MB", "recipe": "llama.cpp"}),
    "own-recipe": ("parent", "out", {"to": "mxfp4", "recipe": "modelopt", "scale_rule": "floor", "ties": "away"}),
    "lent": ("gguf/tiny-gpt-oss-auto.gguf", "out", {"to": "mxfp4", "reference": TINY / "hf"}),
}  # fmt: skip
"""Conversions of every kind: from, to, and the options."""


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, dict[str, Any]]]:
    """What was made, and its receipt as a document."""
    out = {}
    for name, (source, target, options) in MADE.items():
        path = tmp_path_factory.mktemp(name) / target
        ckpttool.convert(TINY / source, path, **options)
        receipt = path / RECEIPT_NAME if path.is_dir() else path.with_name(path.name + RECEIPT_SUFFIX)
        out[name] = (path, json.loads(receipt.read_text("utf-8")))
    return out


@pytest.fixture(scope="module")
def mxfp4(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    return receipts["mxfp4"][1]


@pytest.fixture(scope="module")
def gguf(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    return receipts["gguf"][1]


@pytest.fixture(scope="module")
def report(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The validation of what was made by rounding."""
    found = run("validate", TINY / "parent", receipts["mxfp4"][0], "--tokens", "600", "--json").document
    check("validation.v1", found)
    assert found["verdict"] == "within budget"
    return found


def of_the_hub(receipt: Mapping[str, Any], repo: str = "openai/gpt-oss-20b") -> dict[str, Any]:
    """The receipt of the same conversion, had the source been a repo."""
    out = copy.deepcopy(dict(receipt))
    out["source"] |= {"path": f"hf://{repo}@{SHA}", "revision": None, "commit": SHA}
    return out


def front(text: str) -> dict[str, Any]:
    """Front matter as the Hub's YAML reader has it; huggingface_hub must read the same."""
    match = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    assert match is not None
    data = yaml.safe_load(match[1])
    read = ModelCard(text).data.to_dict()
    assert {k: v for k, v in read.items() if k != "model-index"} == {
        k: v for k, v in data.items() if k != "model-index"
    }
    assert isinstance(data, dict)
    return data


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def table(text: str, head: str) -> list[list[str]]:
    rows = text[text.index(f"| {head}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


# --- front matter ---


@pytest.mark.parametrize("name", MADE)
def test_front_matter_says_what_it_is(name: str, receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    receipt = of_the_hub(receipts[name][1])
    data = front(card(receipt, repo=REPO, quantized_by="ada"))
    dialect = receipt["target"]["dialect"]
    assert data["base_model"] == "openai/gpt-oss-20b" and data["base_model_relation"] == "quantized"
    assert data["quantized_by"] == "ada" and data["pipeline_tag"] == "text-generation"
    assert data["library_name"] == LIBRARIES[dialect]
    assert ("vllm" in data["tags"]) == dialect.startswith("hf")
    assert ("gguf" in data["tags"]) == ("llama.cpp" in data["tags"]) == (dialect == "gguf")
    formats = {"mxfp4": "mxfp4", "bf16": "bf16", "f32": "f32", "from-openai": "bf16", "q8_0": "q8_0"}
    assert formats.get(name, "mxfp4") in data["tags"] and "ckpttool" in data["tags"]


def test_what_holds_for_any_form_is_copied_and_nothing_else(mxfp4: dict[str, Any]) -> None:
    data = front(card(of_the_hub(mxfp4), repo=REPO, source_card=SOURCE_CARD))
    assert data["license"] == "other" and data["license_name"] == "house-rules" and data["language"] == ["en", "no"]
    assert data["license_link"] == "https://huggingface.co/openai/gpt-oss-20b/blob/main/RULES.md"
    assert data["tags"] == ["medical", "conversational", "mxfp4", "vllm", "ckpttool"]
    assert "datasets" not in data
    assert "license_link" not in front(card(mxfp4, repo=REPO, source_card=SOURCE_CARD))
    linked = SOURCE_CARD.replace("RULES.md", "LICENSE")
    assert front(card(mxfp4, repo=REPO, source_card=linked))["license_link"] == "LICENSE"


def test_of_a_source_without_a_repo_no_base_is_made_up(mxfp4: dict[str, Any], gguf: dict[str, Any]) -> None:
    data = front(card(mxfp4, repo=REPO))
    assert "base_model" not in data and "base_model_relation" not in data
    assert data["license"] == "apache-2.0"  # its LICENSE is that text to the letter
    assert any("base_model: org/repo" in r for r in remarks(mxfp4))
    assert any("license: apache-2.0" in r for r in remarks(gguf))
    assert not remarks(gguf, own="---\nbase_model: a/b\nlicense: mit\n---\n")
    assert not remarks(of_the_hub(gguf), source_card=SOURCE_CARD)
    theirs = "---\nbase_model: openai/gpt-oss-20b\nlicense: mit\n---\n"
    tuned = front(card(mxfp4, repo=REPO, source_card=theirs))  # a local fine-tune: what it was tuned from is known
    assert tuned["base_model"] == "openai/gpt-oss-20b" and "base_model_relation" not in tuned


@pytest.mark.parametrize(
    ("path", "text", "repo"),
    [
        (f"hf://a/b@{SHA}", f"a/b@{SHA}", "a/b"),
        (f"hf://a/b@{SHA}/original", f"hf://a/b@{SHA}/original", "a/b"),
        (f"hf://datasets/a/b@{SHA}", f"hf://datasets/a/b@{SHA}", None),
        (f"/root/.cache/huggingface/hub/models--a--b/snapshots/{SHA}", f"a/b@{SHA}", "a/b"),
        (f"C:\\hub\\models--a--b-c\\snapshots\\{SHA}", f"a/b-c@{SHA}", "a/b-c"),
        (f"models--a--b/snapshots/{SHA}/original", f"hf://a/b@{SHA}/original", "a/b"),
        ("s3://bucket/a", "s3://bucket/a", None),
        ("https://u:p@host/a.gguf?token=1", "https://host/a.gguf", None),
        ("/home/ada/secret-project/tuned/", "tuned", None),
        ("org/name", "name", None),
        (".", "the-source", None),
    ],
)
def test_a_source_is_named_as_others_find_it(path: str, text: str, repo: str | None) -> None:
    found = origin_of(path)
    assert (found.text, found.repo, found.commit) == (text, repo, SHA if repo else None)


def test_nobodys_folders_are_told(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    for path, receipt in receipts.values():
        text = card(receipt, repo=REPO)
        assert str(path.parent) not in text and str(TINY) not in text


def test_a_source_card_that_cannot_be_believed(mxfp4: dict[str, Any]) -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    )
    odd = f'---\nlicense: {{a: 1}}\nlanguage: [no, 3]\ntags: 5\nbase_model: [1]\npipeline_tag: "a\\nb"\n{bomb}---\n'
    data = front(card(mxfp4, repo=REPO, source_card=odd))
    assert data["language"] == ["no"] and data["license"] == "apache-2.0" and data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data
    broken = "---\n\ta: [\n---\n"
    assert card(mxfp4, repo=REPO, source_card=broken) == card(mxfp4, repo=REPO)
    assert any("cannot be read" in r for r in remarks(mxfp4, source_card=broken))


# --- what it tells ---


@pytest.mark.parametrize("name", MADE)
def test_the_table_is_the_receipts(name: str, receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    receipt = receipts[name][1]
    rows = table(card(receipt, repo=REPO), "weights")
    assert sum(int(row[3].replace(",", "")) for row in rows) == sum(t["nbytes"] for t in receipt["tensors"])
    fidelity = {"the source's bytes": "bytes", "equal values": "values", "rounded": "lossy"}
    told = {fidelity[re.split(r"[:,]", row[4])[0]] for row in rows}
    assert told == {k for k, n in receipt["fidelity"].items() if n}
    assert {row[0] for row in rows} >= {"experts", "experts' biases", "attention", "norms", "routers", "embedding"}
    assert "others" not in {row[0] for row in rows}
    (experts,) = (row for row in rows if row[0] == "experts")
    assert int(experts[1]) in (8, 12)  # gate and up are one weight, or two, in each of four layers
    assert sum(int(row[1]) for row in rows) == sum(
        not t["name"].endswith(("_scales", ".scales")) for t in receipt["tensors"]
    )


def test_values_that_changed_are_counted(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    receipt = copy.deepcopy(receipts["bf16"][1])
    row = next(t for t in receipt["tensors"] if t["name"] == "model.norm.weight")
    row |= {"kind": "narrow", "fidelity": "lossy", "changed": 1234}
    text = card(receipt, repo=REPO)
    assert "| norms | 1 | BF16 | 512 | rounded: 1,234 changed |" in text
    assert "1 of 71 weights were rounded to BF16, the others keep every value." in text


def test_what_was_assumed_is_told(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    receipt = receipts["from-openai"][1]
    assert receipt["assumed"]
    rows = table(card(receipt, repo=REPO), "file | key")
    assert [[json.loads(c.strip("`")) if i == 2 else c.strip("`") for i, c in enumerate(row)] for row in rows] == [
        [a["file"], a["key"], a["value"]] for a in receipt["assumed"]
    ]


def test_every_rule_has_its_words(mxfp4: dict[str, Any]) -> None:
    assert set(SCALES) == set(ScaleRule) and set(TIES) == set(TieRule) and set(LIBRARIES) == set(DIALECTS.values())
    assert "By recipe `best`: of OCP's scale and the next one" in card(mxfp4, repo=REPO)
    receipt = copy.deepcopy(mxfp4)
    r = RECIPES["llama.cpp"]
    receipt["recipe"] = {"name": r.name, "scale": r.scale, "ties": r.ties, "keeps_negative_zero": False}
    assert "a negative that rounds to zero loses its sign" in card(receipt, repo=REPO)


# --- how to load it ---


def test_only_runtimes_that_load_it_are_named(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    wanted = {
        "mxfp4": {"transformers", "vLLM"}, "bf16": {"transformers", "vLLM"}, "gguf": {"llama.cpp"},
        "openai": {"OpenAI's gpt-oss"},
    }  # fmt: skip
    for name, titles in wanted.items():
        text = card(receipts[name][1], repo=REPO)
        assert set(re.findall(r"^\*\*(.+)\*\* \(`", text, re.MULTILINE)) == titles


def test_no_runtime_is_named_that_doctor_says_refuses() -> None:
    names = {"transformers": "transformers", "vLLM": "vllm", "llama.cpp": "llama.cpp", "OpenAI's gpt-oss": "gpt-oss"}
    forms = {"hf": "mxfp4", "hf-bf16": "bf16", "openai": "openai", "gguf": "gguf-mxfp4"}
    found = tables()
    for r in RUNTIMES:
        runtime = found.runtime(names[r.title])
        version = Version(runtime.assume[runtime.package])
        for dialect in r.dialects:
            rules = [x for x in found.rules if x.runtime == runtime.name and x.refuses_form]
            assert rules
            assert not [x.id for x in rules if forms[dialect] in x.when["form"] and _speaks_for(x.versions, version)]


def _speaks_for(versions: str, version: Version) -> bool:
    from ckpttool.doctor.versions import Range

    return not versions or version in Range(versions)


@pytest.mark.parametrize("name", ["mxfp4", "bf16"])
def test_the_code_for_transformers_runs(
    name: str, receipts: Mapping[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, receipt = receipts[name]
    (code,) = re.findall(r"```python\n(.*?)```", card(receipt, repo=REPO), re.DOTALL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = io.StringIO()
    code = code.replace(f'"{REPO}"', repr(str(path))).replace("max_new_tokens=200", "max_new_tokens=4")
    with contextlib.redirect_stdout(out):
        exec(compile(code, "card", "exec"), {})
    assert out.getvalue().strip()


def test_the_file_for_llama_cpp_is_the_first(receipts: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    for name in ("gguf", "q8_0", "split"):
        path, receipt = receipts[name]
        (line,) = (c for c in commands(card(receipt, repo=REPO)) if c.startswith("llama-server"))
        words = shlex.split(line)
        file = words[words.index("--hf-file") + 1]
        assert words[words.index("-hf") + 1] == REPO and (path.parent / file).is_file()
        assert "-00001-of-" in file if name == "split" else file == path.name


# --- how to make it again ---


@pytest.mark.parametrize("name", MADE)
def test_the_command_makes_the_same_bytes(
    name: str, receipts: Mapping[str, tuple[Path, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = receipts[name][1]
    for source in (TINY / MADE[name][0], TINY / "hf"):
        with contextlib.suppress(FileExistsError):
            (tmp_path / source.name).symlink_to(source)
    (line,) = (c for c in commands(card(receipt, repo=REPO)) if c.startswith("ckpttool convert"))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    again = run(*words[1:], "--json").document
    assert again["schema"] == "conversion.v1", again
    assert again["files"] == receipt["files"] and again["recipe"] == receipt["recipe"]
    assert f"pip install ckpttool=={ckpttool.__version__}" in commands(card(receipt, repo=REPO))


def test_the_command_names_the_commit(mxfp4: dict[str, Any], gguf: dict[str, Any]) -> None:
    found = commands(card(of_the_hub(mxfp4), repo=REPO))
    assert f"ckpttool convert openai/gpt-oss-20b@{SHA} tiny --to mxfp4 --recipe best" in found
    assert found[-2:] == [f"ckpttool verify {REPO}", f"ckpttool verify {REPO} --source openai/gpt-oss-20b@{SHA}"]
    assert f"ckpttool verify hf://{REPO}/out.gguf" in commands(card(gguf, repo=REPO))
    moved = card(mxfp4, repo=REPO, source=f"hf://a/b@{SHA}")
    assert front(moved)["base_model"] == "a/b" and f"ckpttool convert a/b@{SHA} tiny" in moved


def test_names_cannot_write_markdown(mxfp4: dict[str, Any]) -> None:
    receipt = copy.deepcopy(mxfp4)
    receipt["source"]["path"] = "/x/a`b\n```\n# Boo <!-- ckpttool:end --> | c"
    text = card(receipt, repo=REPO)
    assert "\n# Boo" not in text and text.count("<!-- ckpttool:end -->") == 1
    assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0
    assert card(receipt, repo=REPO, own=text) == text


# --- quality ---


def test_figures_are_the_reports(mxfp4: dict[str, Any], report: dict[str, Any]) -> None:
    text = card(mxfp4, repo=REPO, validation=report)
    m = report["metrics"]
    rows = dict(map(tuple, table(text, "figure")))  # type: ignore[arg-type]
    assert rows["mean KL divergence"].startswith(f"{m['kl_mean']:.4g} ± {m['kl_mean_se']:.2g} nats")
    assert rows["same most probable token"].startswith(f"{100 * m['top1']:.4g} ± ")
    assert rows["perplexity"] == f"{m['ppl_candidate']:.4g}"
    sqnr = min(p["compared"]["sqnr"] for p in report["parts"] if p["compared"]["sqnr"] is not None)
    assert rows["lowest SQNR of a part"] == f"{sqnr:.1f} dB"
    said = f"Measured on {report['forward']['tokens']:,} tokens of ckpttool's text, in FP32."
    assert "says **within budget**" in text and said in text
    data = ModelCard(text).data
    assert data.model_name == "tiny"
    found = {r.metric_type: r.metric_value for r in data.eval_results or ()}
    assert found == {
        "kl_divergence": float(f"{m['kl_mean']:.6g}"), "top1_agreement": float(f"{m['top1']:.6g}"),
        "perplexity": float(f"{m['ppl_candidate']:.6g}"), "perplexity_ratio": float(f"{m['ppl_ratio']:.6g}"),
    }  # fmt: skip
    assert {(r.task_type, r.dataset_type) for r in data.eval_results or ()} == {
        ("text-generation", "ckpttool-validate")
    }
    assert card(mxfp4, repo=REPO, validation=report, own=text) == text


def test_figures_stay_as_long_as_the_files_do(mxfp4: dict[str, Any], report: dict[str, Any]) -> None:
    text = card(mxfp4, repo=REPO, validation=report)
    assert card(mxfp4, repo=REPO, own=text) == text
    other = copy.deepcopy(mxfp4)
    other["files"][0]["sha256"] = "0" * 64
    assert card(other, repo=REPO, own=text) == card(other, repo=REPO)
    assert "What it costs" not in card(other, repo=REPO, own=text)


def test_figures_of_others_stay(mxfp4: dict[str, Any], report: dict[str, Any]) -> None:
    row = {"task": {"type": "text-generation"}, "dataset": {"name": "MMLU", "type": "cais/mmlu"}}
    mine = {"model-index": [{"name": "mine", "results": [{**row, "metrics": [{"type": "accuracy", "value": 0.85}]}]}]}
    own = f"---\n{yaml.safe_dump(mine)}---\ntext\n"
    both = card(mxfp4, repo=REPO, own=own, validation=report)
    data = ModelCard(both).data
    assert data.model_name == "mine" and len(data.eval_results or ()) == 5
    other = {**mxfp4, "files": [{**f, "sha256": "0" * 64} for f in mxfp4["files"]]}
    assert front(card(other, repo=REPO, own=both))["model-index"] == mine["model-index"]
    assert front(card(mxfp4, repo=REPO, own=own))["model-index"] == mine["model-index"]


def test_a_report_without_a_forward_pass(mxfp4: dict[str, Any], report: dict[str, Any]) -> None:
    short = {**report, "level": "values", "metrics": None, "forward": None, "layers": []}
    text = card(mxfp4, repo=REPO, validation=short)
    assert "model-index" not in front(text) and "lowest SQNR of a part" in text and "Measured on" not in text
    exact = {**short, "verdict": "exact", "decided": ["every value is equal"], "parts": []}
    text = card(mxfp4, repo=REPO, validation=exact)
    assert "says **exact**: every value is equal.\n" in text and "and none of their values changed." in text
    assert "| rounded: none changed |" in text and "| figure" not in text


def wrong(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(report), **changes}


def test_reports_that_are_refused(mxfp4: dict[str, Any], gguf: dict[str, Any], report: dict[str, Any]) -> None:
    side = report["candidate"]
    another = {"source": "elsewhere/other", "arch": "gpt-oss", "dialect": "hf-bf16", "container": "safetensors"}
    cases = {
        "its verdict is failed: layer.1.up: is off": wrong(report, verdict="failed", decided=["layer.1.up: is off"]),
        "is a conversion.v1, not": dict(mxfp4),
        "is a document without a schema": {},
        "its number of tensor bytes is": wrong(report, candidate={**side, "nbytes": 5}),
        "its dialect is hf-bf16": wrong(report, candidate={**side, "dialect": "hf-bf16"}),
        "neither of which is this": wrong(
            report, candidate={**side, "source": "other"}, reference={**report["reference"], **another}
        ),
        "not what validation.v1 promises: KeyError": {k: v for k, v in report.items() if k != "parts"},
        "not what validation.v1 promises: TypeError": wrong(report, candidate=None),
        "not what validation.v1 promises: ValueError": wrong(
            report, metrics={**report["metrics"], "kl_mean": float("nan")}
        ),
        "not what validation.v1 promises: IndexError": wrong(report, verdict="failed", decided=[]),
    }
    for why, document in cases.items():
        with pytest.raises(InputError, match=re.escape(why)) as caught:
            card(mxfp4, repo=REPO, validation=document)
        assert caught.value.hint
    with pytest.raises(InputError, match="judges another checkpoint"):
        card(gguf, repo=REPO, validation=report)


def test_reports_by_other_names_are_taken(mxfp4: dict[str, Any], report: dict[str, Any]) -> None:
    """Who renames the folder still has the reference, and who validates what is published still has the repo."""
    for candidate, reference in (("renamed", report["reference"]["source"]), (f"hf://{REPO}@{SHA}", "x/y")):
        given = wrong(report)
        given["candidate"]["source"], given["reference"]["source"] = candidate, reference
        assert "## What it costs" in card(mxfp4, repo=REPO, validation=given)


def test_a_report_is_read_from_its_file(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(report, indent=1), "utf-8")
    assert read_report(path) == report
    path.write_text("[1]", "utf-8")
    with pytest.raises(InputError, match="ckpttool validate"):
        read_report(path)
    with pytest.raises(InputError, match="ckpttool validate"):
        read_report(tmp_path / "none.json")


# --- what a user wrote ---

OWN = """\
---
# chosen with care
language: no   # not English
tags:          # mine
  - poetry     # the first
  - mxfp4
# a comment between
license: mit
extra_gated_prompt: >-
  Be
  kind.
---

# A poet

It writes. <!-- a comment -->
"""


def test_a_users_text_is_kept_to_the_letter(mxfp4: dict[str, Any]) -> None:
    text = card(of_the_hub(mxfp4), repo=REPO, own=OWN, source_card=SOURCE_CARD)
    assert OWN.split("---\n", 2)[2].rstrip() in text
    for line in ("# chosen with care", "language: no   # not English", "# a comment between", "license: mit"):
        assert f"\n{line}\n" in text
    assert "extra_gated_prompt: >-\n  Be\n  kind.\n" in text
    data = front(text)
    assert data["license"] == "mit" and data["tags"] == [
        "poetry",
        "mxfp4",
        "medical",
        "conversational",
        "vllm",
        "ckpttool",
    ]
    assert data["base_model"] == "openai/gpt-oss-20b" and data["base_model_relation"] == "quantized"
    assert "# tiny" not in text  # it has a title
    assert card(of_the_hub(mxfp4), repo=REPO, own=text, source_card=SOURCE_CARD) == text


def test_what_a_user_says_wins(mxfp4: dict[str, Any]) -> None:
    own = "---\nbase_model: [a/b, c/d]\nlibrary_name: mine\nquantized_by: me\nlicense_link: x\n---\n"
    data = front(card(of_the_hub(mxfp4), repo=REPO, own=own))
    assert data["base_model"] == ["a/b", "c/d"] and data["library_name"] == "mine" and data["quantized_by"] == "me"
    assert "base_model_relation" not in data  # of our base it would be true, of theirs nobody knows
    assert front(card(of_the_hub(mxfp4), repo=REPO, own=own, quantized_by="ada"))["quantized_by"] == "ada"


def test_running_again_replaces_what_is_ours(mxfp4: dict[str, Any]) -> None:
    first = card(of_the_hub(mxfp4, "old/base"), repo=REPO, source_card=SOURCE_CARD, quantized_by="ada")
    edited = first.replace("license_name: house-rules", "license_name: my-rules").replace(
        "- medical\n", "- medical\n- mine\n"
    )
    assert front(first)["quantized_by"] == "ada"
    edited = edited.replace("# tiny", "# Tiny, by Ada\n\nHello.") + "\nGoodbye.\n"
    again = card(of_the_hub(mxfp4, "new/base"), repo=REPO, own=edited)
    data = front(again)
    assert data["base_model"] == "new/base" and data["license_name"] == "my-rules"
    assert "license_link" not in data and data["license"] == "apache-2.0" and "language" not in data
    assert data["quantized_by"] == "ada"  # who made it does not change because nobody says it again
    assert data["tags"] == ["mine", "mxfp4", "vllm", "ckpttool"]
    assert again.count("ckpttool:begin") == again.count("ckpttool:end") == 1 and "old/base" not in again
    assert "# Tiny, by Ada\n\nHello." in again and again.endswith("\nGoodbye.\n")
    assert card(of_the_hub(mxfp4, "new/base"), repo=REPO, own=again) == again


def test_several_files_of_a_repo_have_a_section_each(
    receipts: Mapping[str, tuple[Path, dict[str, Any]]], report: dict[str, Any]
) -> None:
    small, large = of_the_hub(receipts["gguf"][1]), of_the_hub(receipts["q8_0"][1])
    side = {"source": "out.gguf", "dialect": "gguf", "nbytes": sum(t["nbytes"] for t in small["tensors"])}
    of_small = wrong(report, candidate={**report["candidate"], **side})
    one = card(small, repo=REPO, validation=of_small)
    two = card(large, repo=REPO, own=one)
    assert re.findall(r"^## (.*)$", two, re.MULTILINE) == ["`out.gguf`", "`out q8.gguf`"]
    assert two.count("\n# ") == 1 and {"mxfp4", "q8_0"} <= set(front(two)["tags"])
    assert len(ModelCard(two).data.eval_results or ()) == 4
    assert {r.dataset_config for r in ModelCard(two).data.eval_results or ()} == {"out.gguf"}
    assert card(large, repo=REPO, own=two) == two
    assert card(small, repo=REPO, own=two, validation=of_small) == two
    assert card(small, repo=REPO, own=two) == two


def test_line_ends_are_the_users(mxfp4: dict[str, Any]) -> None:
    own = OWN.replace("\n", "\r\n")
    text = card(of_the_hub(mxfp4), repo=REPO, own=own)
    assert not re.search(r"(?<!\r)\n", text) and ModelCard(text).data.base_model == "openai/gpt-oss-20b"
    assert card(of_the_hub(mxfp4), repo=REPO, own=text) == text
    assert card(mxfp4, repo=REPO, own="\ufeff" + OWN) == card(mxfp4, repo=REPO, own=OWN)


@pytest.mark.parametrize("own", ["", "\n", "---\n{}\n---\n", "---\n# nothing\n---\n", "---\n---\n", "---\n\n---\n"])
def test_cards_without_a_word_get_a_title(own: str, mxfp4: dict[str, Any]) -> None:
    text = card(mxfp4, repo=REPO, own=own)
    assert "# tiny\n" in text or own == "---\n---\n"  # which the Hub takes for two lines across the page
    assert card(mxfp4, repo=REPO, own=text) == text and front(text)["library_name"] == "transformers"


MARK = json.dumps(
    {
        "file": "", "content": "", "set": {},
        "quality": {"verdict": "exact", "decided": "", "reference": "", "level": "", "figures": {"top1": "x"},
                    "text": "", "conditions": "", "tokens": 5, "sqnr": None},
    }
)  # fmt: skip
"""What somebody may have written into a mark."""


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ("---\na: [1\nb: 2\n---\n", r"no YAML: .*line 3"),
        ("---\na: 2024-99-99\n---\n", "no YAML: month"),
        ("---\n- a\n- b\n---\n", "is a list, not keys"),
        ("---\njust words\n---\n", "is a str, not keys"),
        ("---\n" + "[" * 3000 + "\n---\n", "no YAML"),
        ("---\nmodel-index: [{name: x}]\n---\n", "model-index"),
        ("---\nmodel-index: 5\n---\n", "model-index"),
        ("---\ntags: !!python/object:os.system {}\n---\n", "no YAML"),
        ("<!-- ckpttool:end -->", "lacks the other"),
        ('<!-- ckpttool:begin {"file": "", "content": "", "set": {}} -->', "lacks the other"),
        (
            '<!-- ckpttool:begin {"file": "", "content": "", "set": {}, "quality": {"x": 1}} --><!-- ckpttool:end -->',
            "cannot be read",
        ),
        (f"<!-- ckpttool:begin {MARK} --><!-- ckpttool:end -->", "cannot be read"),
        ('<!-- ckpttool:begin {"file": ""} --><!-- ckpttool:end -->', "cannot be read"),
        ("<!-- ckpttool:begin {x} --><!-- ckpttool:end -->", "cannot be read"),
    ],
)  # fmt: skip
def test_cards_that_are_refused(own: str, why: str, mxfp4: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=why) as caught:
        card(mxfp4, repo=REPO, own=own)
    assert caught.value.hint and caught.value.file == "README.md"


def test_a_damaged_receipt_is_no_bug_of_ours(mxfp4: dict[str, Any]) -> None:
    for key in ("source", "target", "files", "tensors", "options", "tool"):
        with pytest.raises(InputError, match="receipt is not as convert writes it"):
            card({k: v for k, v in mxfp4.items() if k != key}, repo=REPO)
    with pytest.raises(InputError, match="receipt is not as convert writes it"):
        card({**mxfp4, "recipe": {**mxfp4["recipe"], "scale": "x"}}, repo=REPO)


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)
_VALUES: st.SearchStrategy[Any] = st.one_of(
    _WORDS, st.integers(-5, 5), st.booleans(), st.none(), st.lists(_WORDS, max_size=3),
    st.dictionaries(_WORDS, _WORDS, max_size=2),
)  # fmt: skip

_FIELDS = dict.fromkeys(("license", "x", "base_model", "language", "quantized_by", "é è"), _VALUES) | {
    "tags": st.one_of(_WORDS, st.none(), st.lists(_WORDS, max_size=3))
}


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=_FIELDS), st.text(st.sampled_from("ab# -\n`<!>|\t"), max_size=60), st.booleans()
)
def test_whatever_was_there_is_kept_and_again_is_the_same(
    small: dict[str, Any], data: dict[str, Any], body: str, flow: bool
) -> None:
    own = f"---\n{yaml.safe_dump(data, allow_unicode=True, default_flow_style=flow)}---\n{body}"
    text = card(small, repo=REPO, own=own)
    assert card(small, repo=REPO, own=text) == text
    assert body.rstrip() in text
    found = yaml.safe_load(text.split("---\n")[1]) if "---\n" not in str(data) else {}
    assert not found or all(found[k] == v for k, v in data.items() if v is not None and k != "tags")


# --- the source's card ---


def test_the_card_of_a_folder(tmp_path: Path) -> None:
    assert source_card(TINY / "hf") is None
    folder = tmp_path / "m"
    shutil.copytree(TINY / "openai", folder / "original")
    (folder / "README.md").write_text(SOURCE_CARD, "utf-8")
    assert source_card(folder) == source_card(folder / "original") == source_card(f"{folder}/original/") == SOURCE_CARD
    (folder / "README.md").write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        source_card(folder)


def test_the_card_of_a_repo(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub.as_the_hub(monkeypatch) as hub:
        repo = hub.add("ada/m", {"README.md": SOURCE_CARD.encode(), "original/config.json": b"{}"})
        hub.add("ada/bare", {"config.json": b"{}"})
        sha = repo.head()
        repo.commit("main", {"README.md": b"another"})
        assert source_card(f"hf://ada/m@{sha}") == source_card(f"hf://ada/m@{sha}/original") == SOURCE_CARD
        assert source_card("hf://ada/m") == "another" and source_card("hf://ada/bare") is None


@pytest.fixture(scope="module")
def small(mxfp4: dict[str, Any]) -> dict[str, Any]:
    """For what is done many times."""
    return {**mxfp4, "tensors": mxfp4["tensors"][:5]}


def test_one_reader_of_front_matter_is_enough() -> None:
    """What the Hub takes for front matter is what huggingface_hub takes for it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    from ckpttool.publishing import front_matter

    assert front_matter._BLOCK.pattern.replace("?:", "") == REGEX_YAML_BLOCK.pattern.replace("?:", "")
    assert cards.card is card and facts({**_EMPTY}).rows == ()


_EMPTY: Mapping[str, Any] = {"source": {"path": "x"}, "target": {"dialect": "hf"}, "files": [], "tensors": []}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card is made without asking anybody."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield
