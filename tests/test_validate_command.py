"""`ckpttool validate`: what it prints, what it exits with, and which options go together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from commandline import run
from forward_runs import TINY
from test_schemas import check
from tokenizers import Tokenizer

from ckpttool import cli, render
from ckpttool.validator import report as validation_report
from ckpttool.validator.budgets import BUDGETS, OTHER
from ckpttool.validator.inputs import LENGTH, TOKENS
from ckpttool.validator.prompts import EFFORTS

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
FEW = ("--tokens", "40")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXFP4 of which one scale byte is off by one."""
    folder = tmp_path_factory.mktemp("validate") / "spoilt"
    tensors = {name: builders.Tensor(t.dtype, t.array.copy()) for name, t in builders.read(TINY / "hf").items()}
    tensors["model.layers.2.mlp.experts.down_proj_scales"].array[1, 77, 3] += 1
    shutil.copytree(TINY / "hf", folder, ignore=shutil.ignore_patterns("model*"))
    builders.save(folder / "model.safetensors", tensors)
    return folder


# --- exit codes ---


def test_exact() -> None:
    result = run("validate", TINY / "hf-bf16", TINY / "hf", *FEW)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "exact: every value is equal, and predictions differ by no more than rounding does"
    assert "79 parts compared: 67 equal bytes, 12 equal values" in lines
    assert "no drift in any of 4 layers, and no flips" in lines
    assert "lossy parts" not in result.out
    assert "failures:" not in lines


def test_within_budget() -> None:
    result = run("validate", TINY / "parent", TINY / "hf", "--tokens", "600")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "within budget: every lossy part keeps its SQNR (MXFP4: 15 dB)"
    assert lines[1].strip().startswith("mean KL 0.0")
    assert "79 parts compared: 67 equal bytes, 12 made by recipe ocp, equal in every block" in lines
    assert "lossy parts, the 6 worst of 12:" in lines
    (kl,) = (line for line in lines if line.startswith("KL mean"))
    assert re.fullmatch(r"KL mean +0\.0\d+( ± [\d.e-]+)? +[\d.]+e-1[23]( ± [\d.e-]+)? +0\.0\d+( ± [\d.e-]+)?", kl)
    (other,) = (line for line in lines if line.startswith("first other token"))
    tokens = re.findall(r'(".*?") \((\d+)\)', other)
    tokenizer = Tokenizer.from_file(str(TINY / "hf" / "tokenizer.json"))
    assert [json.loads(text) for text, _ in tokens] == [tokenizer.decode([int(number)]) for _, number in tokens]
    assert len({number for _, number in tokens}) == 2
    assert "first beyond the noise: layer.0" in lines
    assert [line.split()[0] for line in lines[lines.index("first beyond the noise: layer.0") + 3 :][:4]] == list("0123")


def test_failed(spoilt: Path) -> None:
    result = run("validate", TINY / "hf", spoilt, "--tokens", "300")
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0].startswith("failed: layer.2.down: ")
    at = lines.index("failures:")
    assert re.match(r"  values +layer\.2\.down +\S", lines[at + 1])
    assert "79 parts compared: 78 equal bytes, 1 not proven" in lines
    assert "first beyond the noise: layer.2" in lines
    assert not result.err


def test_a_limit_of_ones_own_decides() -> None:
    result = run("validate", TINY / "parent", TINY / "hf", *FEW, "--max-kl", "1e-9", "--json")
    assert result.code == 1
    assert result.document["asked"] == {"max_kl": 1e-9}
    assert [f["level"] for f in result.document["failures"]] == ["verdict"]
    kept = run("validate", TINY / "parent", TINY / "hf", *FEW, "--max-kl", "9", "--min-top1", "0", "--json")
    assert kept.code == 0


def test_bad_input_on_either_side(tmp_path: Path) -> None:
    shutil.copytree(TINY / "hf", tmp_path / "x")
    (tmp_path / "x" / "model-00000-of-00002.safetensors").write_bytes(b"\xff" * 64)
    for pair in ((TINY / "hf", tmp_path / "x"), (tmp_path / "x", TINY / "hf"), (tmp_path / "no", TINY / "hf")):
        for level in ("structure", "forward"):
            result = run("validate", *pair, "--level", level)
            assert (result.code, result.out) == (3, "")
            assert "Traceback" not in result.err


def test_a_missing_tensor_and_other_sizes_are_failures(tmp_path: Path) -> None:
    tensors = builders.read(TINY / "hf")
    shutil.copytree(TINY / "hf", tmp_path / "x", ignore=shutil.ignore_patterns("model*"))
    builders.save(tmp_path / "x" / "model.safetensors", {k: v for k, v in tensors.items() if "1.self_attn.q" not in k})
    result = run("validate", TINY / "hf", tmp_path / "x")
    assert result.code == 1
    assert re.search(r"^  structure +layer\.1\.q +is missing in the candidate$", result.out, re.MULTILINE)
    assert "\nnote: the forward pass was not run: " in result.out
    small = {
        k: builders.Tensor(t.dtype, t.array[:1000]) if "embed" in k or "head" in k else t for k, t in tensors.items()
    }
    builders.save(tmp_path / "x" / "model.safetensors", small)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    result = run("validate", TINY / "hf", tmp_path / "x", "--json")
    assert result.code == 1
    assert {f["part"] for f in result.document["failures"]} == {"embed", "head", None}
    assert result.document["metrics"] is None
    assert result.document["notes"][0].startswith("the forward pass was not run: ")
    check("validation.v1", result.document)


def test_a_nan_is_a_failure_of_both_levels(tmp_path: Path) -> None:
    tensors = {name: builders.Tensor(t.dtype, t.array.copy()) for name, t in builders.read(TINY / "hf-bf16").items()}
    tensors["model.layers.1.self_attn.k_proj.weight"].array[5, 6] = 0x7FC0
    shutil.copytree(TINY / "hf-bf16", tmp_path / "x", ignore=shutil.ignore_patterns("model*"))
    builders.save(tmp_path / "x" / "model.safetensors", tensors)
    result = run("validate", TINY / "hf-bf16", tmp_path / "x", *FEW, "--json")
    assert result.code == 1
    check("validation.v1", result.document)
    found = {(f["level"], f["part"], f["layer"]) for f in result.document["failures"]}
    assert {("values", "layer.1.k", 1), ("forward", None, 1), ("forward", None, None)} <= found
    assert result.document["metrics"]["tokens"] == 0
    text = run("validate", TINY / "hf-bf16", tmp_path / "x", *FEW)
    assert text.code == 1
    assert "not finite" in text.out


USAGE: list[tuple[tuple[str, ...], str]] = [
    ((), "CANDIDATE is missing; give it, or --via mxfp4"),
    (("B", "--via", "mxfp4"), "CANDIDATE goes without --via"),
    (("--via", "mxfp4", "--html", "x.html"), "--html goes without --via"),
    (("B", "--then", "bf16"), "--then goes with --via"),
    (("B", "--csv", "x.csv"), "--csv goes with --via"),
    (("--via", "mxfp5"), "--via mxfp5: unknown"),
    (("--via", "mxfp4", "--then", "fp8"), "--then fp8: unknown"),
    (("B", "--level", "bytes"), "--level bytes: unknown"),
    (("B", "--tokens", "1"), "1 token leaves nothing to predict"),
    (("B", "--tokens", "many"), "not a valid integer"),
    (("B", "--max-kl", "nan"), "--max-kl nan is no limit"),
    (("B", "--device", "tpu"), "--device tpu: unknown"),
    (("B", "--reasoning-effort", "low"), "says nothing without --prompts"),
]


@pytest.mark.parametrize(("given", "what"), USAGE, ids=[" ".join(g) or "nothing" for g, _ in USAGE])
def test_usage(given: tuple[str, ...], what: str) -> None:
    argv = [str(TINY / "hf-bf16") if word == "B" else word for word in given]
    result = run("validate", TINY / "hf", *argv)
    assert (result.code, result.out) == (2, "")
    assert what in result.err


# --- what is printed ---


def test_json_is_one_document_and_nothing_else() -> None:
    result = run("validate", TINY / "parent", TINY / "hf", *FEW, "--json")
    assert (result.code, result.err) == (0, "")
    check("validation.v1", result.document)
    for key in ("kl_mean", "kl_p99", "kl_max", "top1", "ppl_reference", "ppl_candidate", "ppl_ratio"):
        assert isinstance(result.document["metrics"][key], float)
    assert [(x["layer"], type(x["drift"]), type(x["flips"])) for x in result.document["layers"]] == [
        (n, float, int) for n in range(4)
    ]


def test_failures_that_are_alike_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from ckpttool.validator.failures import part_failure
    from ckpttool.validator.validation import validate

    report = validate(TINY / "hf", TINY / "hf", level="structure")
    alike = [part_failure(f"layer.{n}.q", "is missing in the candidate", "structure") for n in range(36)]
    others = [part_failure(f"layer.{n}.k", f"lacks {n} \x1b[31mvalues", "values") for n in range(20)]
    told = tuple(f.what for f in (*alike, *others))
    changed = {**vars(report), "verdict": "failed", "decided": told, "failures": (*alike, *others)}
    render.show_validation(validation_report.Validation(**changed), as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("failed: is missing in the candidate (and 55 more)\n")
    assert "  structure  layer.{0-35}.q  is missing in the candidate\n" in out
    assert "and 9 more failures (--json lists them all)" in out
    assert "\x1b" not in out


def test_of_many_layers_the_telling_ones(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from ckpttool.validator.validation import validate

    report = validate(TINY / "parent", TINY / "hf", tokens=20)
    layers = tuple(replace(report.layers[0], layer=n, own=0.5 if n in (9, 17) else 0.01) for n in range(36))
    render.show_validation(replace(report, layers=layers), as_json=False)
    out = capsys.readouterr().out
    rows = re.findall(r"^ +(\d+) ", out.split("tokens whose experts differ:")[1], re.MULTILINE)
    assert {"0", "3", "9", "17", "35"} <= set(rows)
    assert len(rows) == 12
    assert "and 24 layers between that add less (--json lists them all)" in out


def test_prompts_have_their_own_figures(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hello"}], "answer": "good morning"}\n')
    argv = ("validate", TINY / "parent", TINY / "hf", *FEW, "--prompts", prompts, "--reasoning-effort", "low")
    result = run(*argv)
    assert result.code == 0
    assert "on the answers of 1 prompt, reasoning effort low, " in result.out
    document = run(*argv, "--json").document
    assert document["forward"]["reasoning_effort"] == "low"
    assert document["forward"]["on_prompts"]["metrics"]["tokens"] > 2


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "fixtures" / "heldout.txt").read_text()[:2000])
    result = run("validate", TINY / "parent", TINY / "hf", "--text", text, "--json")
    assert result.document["forward"]["text"] == str(text)
    assert result.document["metrics"]["ppl_reference"] < 40  # the packaged text's is a thousand
    text.write_bytes(b"\xff\xfe")
    assert run("validate", TINY / "parent", TINY / "hf", "--text", text).code == 3


def test_html(tmp_path: Path, spoilt: Path) -> None:
    page = tmp_path / "page.html"
    result = run("validate", TINY / "hf", spoilt, *FEW, "--html", page)
    assert result.code == 1
    assert result.out.endswith(f"\npage: {page}\n")
    assert "layer.2.down" in page.read_text("utf-8")
    document = run("validate", TINY / "hf", spoilt, *FEW, "--html", page, "--json").document
    check("validation.v1", document)
    (tmp_path / "mine.txt").write_text("mine")
    result = run("validate", TINY / "hf", spoilt, "--html", tmp_path / "mine.txt")
    assert (result.code, result.out) == (4, "")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_round_trips(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    argv = ("validate", TINY / "hf-bf16", "--via", "mxfp4", "--via", "gguf", "--level", "values")
    result = run(*argv, "--csv", table)
    assert result.code == 0
    assert result.out.splitlines()[0].startswith("exact: 2 round trips")
    assert result.out.endswith(f"\ntable: {table}\n")
    assert "mxfp4: converting there and back" in result.err
    assert len(table.read_text().splitlines()) == 3
    quiet = run(*argv, "--json")
    assert (quiet.code, quiet.err) == (0, "")
    check("round_trips.v1", quiet.document)
    assert [t["via"] for t in quiet.document["trips"]] == ["mxfp4", "gguf"]


def test_round_trips_that_lose_too_much() -> None:
    result = run("validate", TINY / "parent", "--via", "mxfp4", *FEW, "--min-sqnr", "60", "--json")
    assert result.code == 1
    assert result.document["verdict"] == "failed"


# --- help ---


def help_of(option: str) -> Any:
    return next(p for p in cli.cli.commands["validate"].params if option in p.opts)


def test_help_has_the_budgets() -> None:
    out = run("validate", "--help").out
    lines = out.splitlines()
    at = next(
        i for i, line in enumerate(lines) if line.split() == ["--max-kl", "--min-top1", "--max-ppl-ratio", "--min-sqnr"]
    )
    for line, b in zip(lines[at + 1 :], (*BUDGETS, OTHER), strict=False):
        name, *limits = line.split()
        assert name == ("others" if b is OTHER else b.name)
        assert limits == [f"{x:g}" for x in (b.max_kl, b.min_top1, b.max_ppl_ratio, b.min_sqnr)]
    for level in validation_report.LEVELS:
        assert re.search(rf"^ +{level} ", out, re.MULTILINE)


def test_options_say_what_the_package_knows() -> None:
    assert help_of("--level").metavar == "{" + ",".join(validation_report.LEVELS) + "}"
    assert help_of("--reasoning-effort").metavar == "{" + ",".join(EFFORTS) + "}"
    told = help_of("--tokens").help
    assert f"sequences of {LENGTH}" in told
    assert f"{TOKENS['cpu']}; on a GPU {TOKENS['cuda']}" in told


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "triton", "tokenizers", "jinja2"}:
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
from ckpttool.cli import main
main()
"""


def test_without_the_extra_values_can_be_validated() -> None:
    def spawn(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKED, "validate", str(TINY / "hf"), str(TINY / "openai"), *argv]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = spawn("--level", "values")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("exact: every byte is equal\n")
    done = spawn()
    assert (done.returncode, done.stdout) == (2, "")
    assert "--level forward needs torch" in done.stderr
    assert "pip install 'ckpttool[torch]'" in done.stderr
    assert "--level values" in done.stderr


def test_figures_of_single_tokens_do_not_break_the_table() -> None:
    result = run("validate", TINY / "parent", TINY / "hf", "--tokens", "2")
    assert result.code in (0, 1)
    assert "1 token" in result.out
    assert np.isfinite(float(re.search(r"^KL mean +(\S+)", result.out, re.MULTILINE)[1]))  # type: ignore[index]
