"""README.md is true: its commands run as pasted, its tables are the code's tables."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from fake_hub import FakeHub, running
from fake_repos import User
from header_checkpoints import write_headers
from huggingface_hub import ModelCard
from range_server import Repo, folder_files, serving

import ckpttool
import ckpttool.errors
from ckpttool import cli
from ckpttool.codecs.formats import RECIPES
from ckpttool.target import LEGAL, MOE_EXPERTS
from ckpttool.validator.budgets import BUDGETS, OTHER
from ckpttool.validator.inputs import LENGTH, TOKENS
from ckpttool.validator.report import LEVELS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FIXTURE = ROOT / "fixtures" / "tiny-gpt-oss"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
STAND_INS = {"gpt-oss-20b": "hf", "my-finetune": "hf-bf16"}
"""The folders that README's examples speak of, and the fixture that is each here."""


def blocks(language: str) -> list[str]:
    return [text for tag, text in BLOCKS if tag == language]


def marked(name: str) -> str:
    """The command after a marker, which says what it is for."""
    found = re.findall(rf"^<!-- {name} -->\n```bash\n(.*)\n```$", README, re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, without backticks."""
    text = README[README.index(f"| {head}") :].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row] for row in rows[2:]]


HUB_BLOCKS = [b for b in blocks("bash") if "my-org/" in b]
"""Those that publish; they need a Hub that takes uploads."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which `ckpttool` is this interpreter's, whether or not its folder is on the PATH."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "ckpttool"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from ckpttool.cli import main; main()" "$@"\n', "utf-8")
    script.chmod(0o755)
    package = str(Path(ckpttool.__file__).resolve().parents[1])
    yield {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": package}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples begin with; they run in README's order."""
    folder = tmp_path_factory.mktemp("readme")
    for name, dialect in STAND_INS.items():
        shutil.copytree(FIXTURE / dialect, folder / name)
    shutil.copytree(FIXTURE / "hf", folder / "fixtures" / "tiny-gpt-oss" / "hf")
    return folder


def bash(command: str, cwd: Path, environment: dict[str, str]) -> str:
    line = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_example_runs(workplace: Path, shell: dict[str, str]) -> None:
    install, convert = marked("convert").split(" && ckpttool ")
    assert install == "python3 -m venv .venv && . .venv/bin/activate && pip install ."
    bash(f"ckpttool {convert}", workplace, shell)
    assert (workplace / "tiny.gguf").is_file()
    others = [b for b in blocks("bash") if ".venv" not in b and "_COMPLETE" not in b and b not in HUB_BLOCKS]
    assert len(others) == 5
    commands = [line for block in others for line in block.strip().splitlines() if not line.startswith("pip install")]
    assert len(commands) == 19
    with serving({}) as server:
        for size in ("20b", "120b"):
            write_headers(workplace / size, size)
            Repo(server, f"openai/gpt-oss-{size}", folder_files(workplace / size)).publish()
        for command in commands:
            if not torch.cuda.is_available():  # Triton's interpreter would take a minute and a half
                command = command.replace("--device cuda", "--device auto")
            bash(command, workplace, {**shell, "HF_ENDPOINT": server.root})
    made = (
        "gpt-oss-20b-bf16",
        "my-finetune-mxfp4",
        "my-finetune.gguf",
        "back-again",
        "exact",
        "inspection.json",
        "my-finetune.html",
        "recipes.csv",
    )
    assert all((workplace / name).exists() for name in (*made, "20b-bf16"))
    assert not (workplace / "smaller.gguf").exists()


@pytest.fixture
def hub(shell: dict[str, str], tmp_path: Path) -> Iterator[tuple[FakeHub, dict[str, str]]]:
    """A Hub with the repo that README's pipelines convert, and the environment of who may publish there."""
    token = "hf_" + "w" * 34
    with running() as hub:
        hub.users[token] = User("my-org")
        hub.add("my-org/my-finetune", {n: p.read_bytes() for n, p in folder_files(FIXTURE / "parent").items()})
        said = {"HF_TOKEN": token, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path)}
        said |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        yield hub, {**shell, **said}


def test_the_hub_examples_run(hub: tuple[FakeHub, dict[str, str]], tmp_path: Path) -> None:
    there, environment = hub
    convert, upload, jobs = HUB_BLOCKS
    for command in (convert + upload).strip().splitlines():
        before = there.repos["my-org/my-finetune-mxfp4"].head() if "my-org/my-finetune-mxfp4" in there.repos else None
        bash(command, tmp_path, environment)
        if "--dry-run" in command:
            assert before == (there.repos["my-org/my-finetune-mxfp4"].head() if before else None)
    made = there.repos["my-org/my-finetune-mxfp4"].files()
    assert {"model.safetensors", "config.json", "ckpttool.receipt.json", "README.md"} <= made.keys()
    assert "my-finetune.gguf" in there.repos["my-org/my-finetune-GGUF"].files()
    assert not (tmp_path / "my-finetune-mxfp4").exists()
    card = ModelCard(made["README.md"].decode()).data
    assert (card.base_model, card.quantized_by) == ("my-org/my-finetune", "my-org") and card.eval_results
    for command in jobs.replace("\\\n", "").strip().splitlines():
        dry = re.sub(r"^hf jobs (scheduled )?run ", r"\g<0>--dry-run ", command)
        assert dry != command
        said = bash(dry.replace("hf ", f"{sys.executable} -c 'from huggingface_hub.cli.hf import main; main()' ", 1),
                    tmp_path, environment)  # fmt: skip
        assert "Job not submitted" in said and "HF_TOKEN=***" in said
        install, _, inner = shlex.split(command)[-1].partition(" && ")
        assert install == "pip install ckpttool"
        assert "up to date" in bash(inner, tmp_path, environment)


def test_the_workflow_runs(hub: tuple[FakeHub, dict[str, str]], tmp_path: Path) -> None:
    there, environment = hub
    (workflow,) = (yaml.safe_load(b) for b in blocks("yaml"))
    (job,) = workflow["jobs"].values()
    assert job["env"] == {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"} and workflow[True]["schedule"]  # YAML's `on`
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs.pop(0) == "pip install ckpttool"
    assert runs.pop().startswith("jq '{repo, commit, up_to_date}' publication.json") and len(runs) == 2
    for night in range(2):
        for command in runs:
            bash(command, tmp_path, environment)
        publication = json.loads((tmp_path / "publication.json").read_text("utf-8"))
        assert publication["up_to_date"] is bool(night) and publication["repo"] == "my-org/my-finetune-mxfp4"
        assert json.loads((tmp_path / "verification.json").read_text("utf-8"))["ok"]
    assert len(there.repos["my-org/my-finetune-mxfp4"].log) == 2  # its first, and one of ours


def test_the_python_example_runs(workplace: Path, shell: dict[str, str]) -> None:
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], cwd=workplace, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 4.25


def test_ci_runs_the_test_command_to_the_letter() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert marked("test").startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")
    (extraction,) = re.findall(r"^test_command=\$\((.*)\)$", ci, re.MULTILINE)
    assert bash(extraction, ROOT, dict(os.environ)).strip() == marked("test")
    assert ci.rstrip().endswith('-c "$test_command"')
    (install,) = re.findall(r"pip install .*?(?= &&)", marked("test"))
    assert install.removeprefix("pip install ") in ci


def test_the_legal_combinations_are_the_codes() -> None:
    rows = {row[0]: [tuple(cell.split()) for cell in row[1:]] for row in table("`--to` | `--experts`")}
    assert rows == {to: [row["experts"], row["outtype"], row["dtype"]] for to, row in LEGAL.items()}
    assert f"It goes with `--experts` `{MOE_EXPERTS[0]}`, `{MOE_EXPERTS[1]}` or `{MOE_EXPERTS[2]}`" in README


def test_the_recipes_are_the_codes() -> None:
    rows = [(row[0].removesuffix(" (default)"), row[1], row[2], "-0" not in row[3]) for row in table("recipe")]
    assert rows == [(r.name, r.scale, r.ties, r.keeps_negative_zero) for r in RECIPES.values()]


SOURCES = {
    "HF MXFP4": "hf",
    "OpenAI original/": "openai",
    "HF BF16": "hf-bf16",
    "Unsloth BF16": "unsloth",
    "GGUF, MXFP4 experts": "gguf/tiny-gpt-oss-auto.gguf",
    "GGUF, BF16 experts": "gguf/tiny-gpt-oss-bf16.gguf",
    "GGUF, Q8_0 or k-quants": "gguf/tiny-gpt-oss-q4_k_m.gguf",
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_fidelities_are_the_plans(source: str, tmp_path: Path) -> None:
    (row,) = (r for r in table("from ") if r[0] == source)
    sources = [FIXTURE / SOURCES[source]]
    if "Q8_0" in source:
        sources.append(FIXTURE / "gguf" / "tiny-gpt-oss-q8_0.gguf")
    for path in sources:
        assert [_fidelity(path, tmp_path, to) for to in _COLUMNS] == row[1:]


_COLUMNS = ("mxfp4", "bf16", "openai", "gguf", "gguf --experts mxfp4")


def _fidelity(source: Path, folder: Path, column: str) -> str:
    to, _, experts = column.partition(" --experts ")
    try:
        plan = ckpttool.plan(source, folder / "out", to=to, experts=experts or None, reference=FIXTURE / "hf")
    except ckpttool.CkptError as e:
        assert re.search(r"quantized? .*\bagain\b", str(e))
        return "refused"
    arch = plan.source.arch
    assert arch is not None
    (fidelity,) = {s.fidelity for s in plan.steps if arch.is_expert(s.parts[0])}
    return str(fidelity)


def test_the_table_of_fidelities_has_these_columns() -> None:
    assert table("from ") and f"| from \\ `--to` | {' | '.join(f'`{c}`' for c in _COLUMNS)} |" in README
    assert [row[0] for row in table("from ")] == list(SOURCES)


def test_the_budgets_are_the_codes() -> None:
    named = [("others" if b is OTHER else b.name, b) for b in (*BUDGETS, OTHER)]
    rows = [[name, *(f"{x:g}" for x in (b.max_kl, b.min_top1, b.max_ppl_ratio, b.min_sqnr))] for name, b in named]
    assert table("went to") == rows


def test_the_levels_are_the_codes() -> None:
    assert tuple(row[0] for row in table("level")) == LEVELS
    assert f"sequences of {LENGTH}: {TOKENS['cpu']:,} on a CPU, {TOKENS['cuda']:,} on a GPU" in README.replace(
        "\n", " "
    )


def test_the_exit_codes_are_the_errors() -> None:
    codes = {n for row in table("exit code") for n in re.findall(r"\d+", row[0])}
    errors = [e for e in vars(ckpttool.errors).values() if isinstance(e, type) and issubclass(e, ckpttool.CkptError)]
    assert codes == {"0", "130", "143", *(str(e.exit_code) for e in errors)}
    assert set(re.findall(r"\d+", cli.EXITS)) | {"130", "143"} == codes


def test_every_option_named_is_an_option() -> None:
    ours = re.sub(r"pip install [^&]*|^hf jobs .*", "", README, flags=re.MULTILINE)
    named = set(re.findall(r"--[a-z][a-z-]+", ours))
    said = "".join(CliRunner().invoke(cli.cli, [c, "--help"]).output for c in cli.cli.commands)
    assert named <= set(re.findall(r"--[a-z][a-z-]+", said))


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_is_what_click_offers(name: str, shell: dict[str, str]) -> None:
    (line,) = (b for b in blocks(name) if f"_CKPTTOOL_COMPLETE={name}_source" in b)
    script = bash(f"_CKPTTOOL_COMPLETE={name}_source ckpttool", ROOT, shell)
    assert "ckpttool" in line and f"_CKPTTOOL_COMPLETE={name}_complete" in script
    words = {"COMP_WORDS": "ckpttool convert a b --lo", "COMP_CWORD": "4" if name != "fish" else "--lo"}
    asked = {**shell, **words, "_CKPTTOOL_COMPLETE": f"{name}_complete"}
    assert "--lossless" in bash("ckpttool", ROOT, asked)


def test_bash_completes(shell: dict[str, str]) -> None:
    (line,) = (b for b in blocks("bash") if "_COMPLETE" in b)
    ask = 'COMP_WORDS=(ckpttool ver); COMP_CWORD=1; _ckpttool_completion ckpttool; echo "${COMPREPLY[@]}"'
    assert bash(f"{line}\n{ask}", ROOT, shell).split() == ["verify"]


def test_the_tests_named_are_there() -> None:
    named = re.findall(r"(?<![\w/])(?:tests|\.ci)/[\w./]*\w", README)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all((ROOT / link).is_file() for link in links)
