"""`hf ckpttool ...`: huggingface_hub's own command line finds this package as its extension, and runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.cli import extensions
from huggingface_hub.cli.extensions import ExtensionManifest

import ckpttool

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def script(folder: Path, name: str) -> Path:
    """The console script `name` of pyproject.toml, as pip writes it."""
    module, _, function = PROJECT["scripts"][name].partition(":")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of its own, in which nothing asks for a newer version of anything."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(ckpttool.__file__).parents[1]))
    yield tmp_path


@pytest.fixture
def installed(home: Path) -> Path:
    """The extension as `hf extensions install OWNER/hf-ckpttool` leaves it."""
    folder = home / ".local" / "share" / "hf" / "extensions" / "hf-ckpttool"
    place = script(folder / "venv" / "bin", "hf-ckpttool")
    ExtensionManifest(
        "OWNER", "hf-ckpttool", "OWNER/hf-ckpttool", "ckpttool", str(place), "python", datetime.now(UTC),
        PROJECT["description"],
    ).save(folder)  # fmt: skip
    return folder


def hf(*argv: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *argv]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.usefixtures("installed")
def test_hf_runs_it() -> None:
    done = hf("ckpttool", "inspect", str(ROOT / "fixtures" / "tiny-gpt-oss" / "hf"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "inspection.v1"
    assert ckpttool.__version__ in hf("hf-ckpttool", "--version").stdout


@pytest.mark.usefixtures("installed")
def test_exit_codes_and_the_name_go_through() -> None:
    done = hf("ckpttool", "verify", "nowhere")
    assert done.returncode == 3 and "no such file" in done.stderr
    done = hf("ckpttool", "convert", "--no-such-option")
    assert done.returncode == 2 and "hf ckpttool convert --help shows what there is" in done.stderr
    assert "Usage: hf ckpttool" in hf("ckpttool", "--help").stdout


@pytest.mark.usefixtures("installed")
def test_hf_lists_it() -> None:
    said = "".join(hf("--help").stdout.split())  # as it wraps lines, also at hyphens
    assert "[extensionOWNER/hf-ckpttool]" in said


@pytest.mark.usefixtures("home")
def test_hf_installs_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """What its installer asks of a repo on GitHub, answered with this one; pip is not run, but what it is told is."""
    said: dict[str, Any] = {"pip": []}

    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

        def json(self) -> Any:
            return json.loads(self.text)

    def github(method: str, url: str, **options: Any) -> Answer:
        if url.endswith("/HEAD/pyproject.toml"):
            return Answer((ROOT / "pyproject.toml").read_text("utf-8"))
        if url.endswith("/info/refs"):
            return Answer("0" * 40 + " HEAD\x00")
        if method == "HEAD":
            return Answer("")
        raise FileNotFoundError(url)  # no script of the repo's name, no manifest.json

    def pip(line: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        said["pip"].append(line)
        if line[-1].endswith(".zip"):
            for name in PROJECT["scripts"]:
                script(Path(line[0]).parent, name)
        return subprocess.CompletedProcess(line, 0)

    def environment(self: Any, folder: str) -> None:
        (Path(folder) / "bin").mkdir(parents=True)

    monkeypatch.setattr(extensions, "_github_request", github)
    monkeypatch.setattr(extensions.shutil, "which", lambda name: None)
    monkeypatch.setattr(extensions.venv.EnvBuilder, "create", environment)
    monkeypatch.setattr(extensions.subprocess, "run", pip)
    found = extensions._install_extension(owner="OWNER", repo_name="hf-ckpttool", short_name="ckpttool")
    assert said["pip"][-1][-1] == "https://github.com/OWNER/hf-ckpttool/archive/HEAD.zip"
    assert found.type == "python" and found.description == PROJECT["description"]
    monkeypatch.undo()
    environ = {**os.environ, "HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    environ["PYTHONPATH"] = str(Path(ckpttool.__file__).parents[1])
    monkeypatch.setattr(os, "environ", environ)
    assert hf("ckpttool", "--version").stdout.strip() == f"ckpttool, version {ckpttool.__version__}"
