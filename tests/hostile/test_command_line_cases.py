"""The command line where it is not spoiled: pipes that close, terminals that can do little, other modes of Python, and
--json, which is one document whatever happens. Which number of the catalogue is which stands in
`test_filesystem_cases`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import builders
import pytest
from builders import Model, Sizes
from commandline import run
from front_ends import printable
from test_cli import MAIN
from test_schemas import check

ROOT = Path(__file__).parents[2]
MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write(MODEL, tmp_path_factory.mktemp("cli") / "source", "hf")


# FS24, FS39


@pytest.mark.parametrize("before", ["", "trap '' PIPE; "], ids=["SIGPIPE as the shell has it", "SIGPIPE ignored"])
def test_a_pipe_that_is_closed_early(before: str, source: Path) -> None:
    """`| head -1` ends quietly, and no check has failed: not with exit code 1."""
    for argv in (f'inspect "{source}" --scales', f'inspect "{source}" --json', "convert --help"):
        shell = f'{before}("{sys.executable}" -c "{MAIN}" {argv}; echo "code $?" >&2) | true'
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.stdout == ""
        assert done.stderr in ("code 0\n", "code 141\n"), (argv, done.stderr)


# FS40


def on_a_terminal(env: dict[str, str], *argv: str | Path) -> tuple[int, bytes]:
    """The command with all of its output on a terminal of 40 columns; its exit code and what is shown there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, argv)], stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT | env
    )
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 65_536):
            shown += data
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(master)
    return process.wait(timeout=60), shown


COLOURS = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3|4|9|10)[0-9](?:;[0-9;]*)?m")
STYLES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}], ids=str)
def test_terminals(env: dict[str, str], source: Path, tmp_path: Path) -> None:
    """No colours where they are not wanted, no styles where none can be; escapes from files reach no terminal."""
    folder = tmp_path / "named"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "\x1b]52;c;cm0K\x07\u202e"}))
    for argv, code in ((("inspect", folder), 0), (("convert", folder, tmp_path / "x.gguf"), 3)):
        ended, shown = on_a_terminal(env, *argv)
        assert ended == code, shown
        text = shown.decode().replace("\r\n", "\n")
        assert not COLOURS.search(text)
        assert printable(text if env["TERM"] == "dumb" else STYLES.sub("", text)), ascii(text)
        assert len(text) > 40


# FS41


def test_json_is_one_document_whatever_happens(source: Path, tmp_path: Path) -> None:
    """Of every command, for every exit code that it can end with: stdout is a JSON document, stderr is empty."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    made, bad, gone, empty = (tmp_path / n for n in ("made", "bad.gguf", "gone", "empty"))
    seen = set()
    for code, argv in (
        (0, ("convert", source, made, "--to", "mxfp4")),
        (0, ("convert", source, tmp_path / "dry", "--to", "bf16", "--dry-run")),
        (1, ("convert", made, tmp_path / "dry.gguf", "--outtype", "q8_0", "--lossless")),
        (2, ("convert", source, tmp_path / "dry", "--to", "nothing")),
        (2, ("convert", source, source, "--to", "bf16")),
        (2, ("convert", source)),
        (3, ("convert", bad, tmp_path / "dry", "--to", "bf16")),
        (4, ("convert", source, made, "--to", "bf16")),
        (6, ("convert", source, tmp_path / "dry", "--to", "bf16", "--max-memory", "1kB")),
        (0, ("inspect", source)),
        (1, ("inspect", bad, "--check")),
        (2, ("inspect", source, "--tensors", "none-of-this-name")),
        (3, ("inspect", bad)),
        (3, ("inspect", gone)),
        (3, ("inspect", empty)),
        (0, ("verify", made)),
        (3, ("verify", source)),
        (2, ("verify", made, "--samples", "3")),
        (0, ("estimate", source)),
        (2, ("estimate", source, "--gpu", "no such card")),
        (3, ("estimate", bad)),
        (0, ("doctor", source, "--gpu", "T4")),
        (3, ("doctor", bad)),
        (0, ("diff", source, source)),
        (3, ("diff", source, bad)),
        (2, ("upload", made)),
        (3, ("validate", source, bad)),
        (2, ("no-such-command",)),
    ):  # fmt: skip
        result = run(*argv, "--json")
        assert (result.code, result.err) == (code, ""), (argv, result)
        document = result.document  # which fails where there are two
        assert result.out.isascii() or printable(result.out)
        assert document["schema"].endswith(".v1"), argv
        if code > 1:
            check("error.v1", document)
            assert document["exit_code"] == code
        seen.add(code)
    assert seen == {0, 1, 2, 3, 4, 6}


# FS43, and what else Python may be set to


MODES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "-O": (("-O",), {}),
    "-X dev": (("-X", "dev", "-W", "error"), {}),
    "LC_ALL=C": ((), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
}


@pytest.mark.parametrize(("mode", "env"), MODES.values(), ids=MODES)
def test_other_modes_of_python(mode: tuple[str, ...], env: dict[str, str], source: Path, tmp_path: Path) -> None:
    """No check is an assertion, nothing is left open, no warning is raised: the same verdicts, words and bytes."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    os.truncate(shutil.copytree(source, tmp_path / "cut") / "model.safetensors", 4000)
    assert run("convert", source, tmp_path / "whole", "--to", "bf16").code == 0
    for argv, code in (
        (("convert", source, tmp_path / "out", "--to", "bf16"), 0),
        (("inspect", tmp_path / "bad.gguf"), 3),
        (("convert", tmp_path / "cut", tmp_path / "no", "--to", "bf16"), 3),
    ):
        command = [sys.executable, *mode, "-c", MAIN, *map(str, argv)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | env, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr == run(*argv).err if code else done.stderr == "", argv
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "no").exists()
