"""The command line: its names, its exit codes, what it prints where, and what it does to TARGET."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import Model, Sizes, Tensor
from commandline import run
from test_schemas import check
from test_target import DTYPE, EXPERTS, OUTTYPE, TO, is_legal

import ckpttool
from ckpttool import api, cli, cli_process, errors, render
from ckpttool.render import bars
from ckpttool.verifier import verify

ROOT = Path(__file__).parents[1]
MODEL = Model(Sizes(layers=1))
MAIN = "from ckpttool.cli import main; main()"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write(MODEL, tmp_path_factory.mktemp("cli") / "hf", "hf", shards=2)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write(MODEL, tmp_path_factory.mktemp("cli") / "wide", "hf-bf16")


def spawn(*argv: str | Path, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    command = [sys.executable, "-c", MAIN, *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output="stdout" not in how, check=False, **how)


def listed(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


# Names


OPTIONS = {
    "convert": {
        "--to", "--experts", "--outtype", "--dtype", "--recipe", "--scale-rule", "--ties", "--lossless", "--device",
        "--workers", "--max-memory", "--max-gpu-memory", "--max-shard-size", "--reference", "--model-name",
        "--dry-run", "--json", "--overwrite", "--no-verify", "--debug", "--free-disk", "--workdir", "--force",
        "--private", "--public", "--revision", "--pr", "--validation", "--quantized-by", "--allow-endpoint",
    },
    "inspect": {"--tensors", "--scales", "--codes", "--experts", "--check", "--html", "--json", "--debug"},
    "upload": {
        "--private", "--public", "--revision", "--pr", "--dry-run", "--card-only", "--validation", "--quantized-by",
        "--message", "--allow-endpoint", "--json", "--debug",
    },
    "verify": {"--source", "--samples", "--reference", "--json", "--debug"},
    "estimate": {
        "--context", "--batch", "--kv-cache-dtype", "--tp", "--gpu-memory-utilization", "--gpu", "--as", "--json",
        "--debug",
    },
    "doctor": {"--gpu", "--python", "--with", "--log", "--require", "--json", "--debug"},
    "diff": {"--headers-only", "--json", "--debug"},
    "validate": {
        "--level", "--text", "--tokens", "--prompts", "--reasoning-effort", "--device", "--max-kl", "--min-top1",
        "--max-ppl-ratio", "--min-sqnr", "--html", "--via", "--then", "--csv", "--json", "--debug",
    },
}  # fmt: skip


def test_commands_and_options_have_their_names() -> None:
    assert set(OPTIONS) <= set(cli.cli.commands)
    for name, options in OPTIONS.items():
        params = cli.cli.commands[name].params
        assert {o for p in params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")} == options


@pytest.mark.parametrize("argv", [("--help",), ("-h",), *((c, "--help") for c in OPTIONS)], ids=" ".join)
def test_help(argv: tuple[str, ...]) -> None:
    result = run(*argv)
    assert (result.code, result.err) == (0, "")
    assert "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad input, 4 local I/O, 5" in result.out
    assert max(map(len, result.out.splitlines())) <= 130


def test_help_has_the_table_of_legal_combinations() -> None:
    lines = run("convert", "--help").out.splitlines()
    begin = next(i for i, line in enumerate(lines) if "--to " in line and "--experts" in line and "--outtype" in line)
    for line, to in zip(lines[begin + 1 :], TO, strict=False):
        words = line.split()
        assert words[0] == to
        legal = {w for w in EXPERTS if is_legal(to, w, None, None)}
        legal |= {w for w in OUTTYPE if is_legal(to, None, w, None)}
        legal |= {w for w in DTYPE if is_legal(to, None, None, w)}
        assert set(words[1:]) - {"-"} == legal
    assert any("mxfp4_moe goes with --experts auto, keep or mxfp4" in line for line in lines)


def test_no_arguments_show_the_help_and_are_a_usage_error() -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: ckpttool")
    assert "error" not in result.err.lower().split("exit codes")[0]


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "ckpttool", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"ckpttool, version {ckpttool.__version__}\n"


def test_version() -> None:
    assert run("--version") == (0, f"ckpttool, version {ckpttool.__version__}\n", "")


# What may be combined


def test_every_legal_combination_plans(wide: Path, tmp_path: Path) -> None:
    planned = 0
    for to, experts, outtype, dtype in itertools.product(TO, (None, *EXPERTS), (None, *OUTTYPE), (None, *DTYPE)):
        if not is_legal(to, experts, outtype, dtype):
            continue
        given = {"--to": to, "--experts": experts, "--outtype": outtype, "--dtype": dtype}
        options = [word for option, value in given.items() if value for word in (option, value)]
        result = run("convert", wide, tmp_path / "out", *options, "--dry-run", "--json")
        planned += 1
        if experts == "keep" and to in ("mxfp4", "openai"):
            assert result.code == 2
            assert "cannot hold BF16 experts" in result.document["errors"][0]["message"]
            continue
        assert result.code == 0, (options, result.out)
        plan = ckpttool.plan(wide, tmp_path / "out", to=to, experts=experts, outtype=outtype, dtype=dtype)
        assert plan.digest == result.document["digest"]
        formats = {s.target.codec.name for s in plan.steps if s.parts[0] in MODEL.packed}
        assert formats == {wanted_experts(to, experts, outtype)}, options
        others = {s.target.codec.name for s in plan.steps if s.parts[0] in ("embed", "layer.0.q", "head")}
        assert others == {wanted_others(outtype, dtype)}, options
    assert planned == 83
    assert not list(tmp_path.iterdir())


def wanted_experts(to: str, experts: str | None, outtype: str | None) -> str:
    """The issue's rules for a BF16 source, said again."""
    if experts in ("mxfp4", "bf16", "f16", "f32", "q8_0"):
        return experts.upper()
    if to != "gguf":
        return "BF16" if to == "bf16" else "MXFP4"
    if outtype == "mxfp4_moe":
        return "BF16" if experts == "keep" else "MXFP4"
    return "BF16" if outtype in (None, "auto") or experts == "keep" else str(outtype).upper()


def wanted_others(outtype: str | None, dtype: str | None) -> str:
    """The format of the other matrices."""
    return (
        {"auto": "BF16", "mxfp4_moe": "Q8_0"}.get(outtype or "auto", str(outtype).upper())
        if not dtype
        else dtype.upper()
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--to", "bf16", "--outtype", "bf16"), "leave it out; it goes with --to gguf"),
        (("--to", "openai", "--dtype", "bf16"), "leave it out; it goes with --to bf16, --to mxfp4"),
        (("--to", "mxfp4", "--experts", "bf16"), "choose one of auto, keep, mxfp4"),
        (("--to", "gguf", "--outtype", "q4_k_m"), "type --outtype mxfp4_moe"),
        (("--to", "gguf", "--experts", "Q4_K_M"), "type --experts mxfp4"),
        (("--to", "q4_k_m"), "type --to gguf --outtype mxfp4_moe"),
        ((), "give --to {bf16,mxfp4,openai,gguf}, or a TARGET that ends in .gguf"),
        (("--to", "bf16", "--recipe", "nice"), "choose one of best, ocp, even, rceil, transformers, modelopt, llama"),
        (("--to", "bf16", "--device", "cuda:0,cuda:0"), "name each once"),
        (("--to", "bf16", "--device", "tpu"), "use auto, cpu, cuda, cuda:1 or cuda:0,cuda:1"),
        (("--to", "bf16", "--max-gpu-memory", "some"), "write for example 512MB, 5GB"),
        (("--to", "bf16", "--workers", "0"), "ckpttool convert --help shows what there is"),
        (("--to", "bf16", "--workers", "two"), "ckpttool convert --help shows what there is"),
        (("--to", "bf16", "--max-memory", "lots"), "write for example 512MB, 5GB"),
        (("--to", "bf16", "--max-memory", "0"), "it must be at least one byte"),
        (("--to", "bf16", "--max-shard-size", "-1"), "write for example 512MB, 5GB"),
        (("--to", "bf16", "--frobnicate"), "ckpttool convert --help shows what there is"),
    ],
)
def test_usage_errors(hf: Path, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    result = run("convert", hf, tmp_path / "out", *options)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    document = run("convert", hf, tmp_path / "out", *options, "--json")
    assert (document.code, document.err, document.document["exit_code"]) == (2, "", 2)
    check("error.v1", document.document)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv", [("what",), ("convert",), ("convert", "a"), ("inspect",), ("inspect", "a", "b"), ("verify", "--to", "x")]
)
def test_usage_errors_of_click_are_documents_too(argv: tuple[str, ...]) -> None:
    plain = run(*argv)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.startswith("error: ")
    assert plain.err.endswith("--help shows what there is\n")
    result = run(*argv, "--json")
    assert (result.code, result.err) == (2, "")
    check("error.v1", result.document)


def test_lossless_refuses_what_must_lose(wide: Path, hf: Path, tmp_path: Path) -> None:
    result = run("convert", wide, tmp_path / "a", "--to", "mxfp4", "--lossless")
    assert (result.code, "--lossless, but 2 steps quantize" in result.err) == (1, True)
    assert run("convert", hf, tmp_path / "b", "--to", "bf16", "--lossless").code == 0
    assert not (tmp_path / "a").exists()


# Exit codes


def test_verify_fails_with_1(hf: Path, tmp_path: Path) -> None:
    assert run("convert", hf, tmp_path / "out", "--to", "mxfp4").code == 0
    assert run("verify", tmp_path / "out").code == 0
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", tmp_path / "out")
    assert (result.code, result.err) == (1, "")
    assert "its bytes have changed" in result.out
    document = run("verify", tmp_path / "out", "--json")
    assert (document.code, document.document["ok"]) == (1, False)
    check("verification.v1", document.document)


def test_lossless_that_only_data_can_tell_fails_with_1(tmp_path: Path) -> None:
    name = "model.norm.weight"
    odd = Tensor("F32", builders.widened(MODEL.plain["norm"]) + 1e-7)
    for i, change in enumerate([lambda t: None, lambda t: t.update({name: odd})]):
        source = builders.write(MODEL, tmp_path / f"source{i}", "hf", dtype="F32", change=change)
        result = run("convert", source, tmp_path / f"out{i}", "--to", "mxfp4", "--lossless")
        assert result.code == i, result.err
    assert f"{name}: " in result.err
    assert "values would change as BF16; leave out --lossless" in result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out0", "source0", "source1"]


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (errors.CheckFailed("x", hint="y"), 1, "check"),
        (errors.UsageError("x", hint="y"), 2, "usage"),
        (errors.InputError("x", hint="y"), 3, "input"),
        (errors.LocalIOError("x", hint="y"), 4, "io"),
        (OSError(28, "No space left on device"), 4, "io"),
        (PermissionError(13, "Permission denied", "/a"), 4, "io"),
        (errors.NetworkError("x", hint="y"), 5, "network"),
        (errors.LimitError("x", hint="y"), 6, "limit"),
        (MemoryError(), 6, "limit"),
        (RuntimeError("\x1b[31mx"), 70, "internal"),
        (RecursionError("x"), 70, "internal"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (cli_process.Terminated(), 143, "interrupted"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else str(x),
)
def test_every_error_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, kind: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(api, "plan", fail)
    result = run("convert", "a", "b.gguf")
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    assert "\x1b" not in result.err
    assert ("please report it with the output of --debug" in result.err) == (code == 70)
    document = run("convert", "a", "b.gguf", "--json")
    assert (document.code, document.err.strip()) == (code, "")
    check("error.v1", document.document)
    assert document.document["errors"][0]["kind"] == kind
    debug = run("convert", "a", "b.gguf", "--debug")
    assert debug.code == code
    assert "Traceback" in debug.err


def test_too_little_memory_is_a_limit(hf: Path, tmp_path: Path) -> None:
    result = run("convert", hf, tmp_path / "out", "--to", "bf16", "--max-memory", "1MB")
    assert result.code == 6
    need = re.search(r"give --max-memory (\d+MB) or more", result.err)
    assert need
    assert run("convert", hf, tmp_path / "out", "--to", "bf16", "--max-memory", need[1]).code == 0


def test_debug_shows_a_traceback_and_json_stays_one_document(tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "gone", "--json", "--debug")
    assert result.code == 3
    assert result.err.startswith("Traceback")
    check("error.v1", result.document)


SLOW = """
import sys, time
from ckpttool import slabwork
work = slabwork.Worker.work
def slow(self, index, slab, step):
    entry = work(self, index, slab, step)
    if index == 3:
        print("begun", file=sys.stderr, flush=True)
    if index >= 3:
        time.sleep(0.2)
    return entry
slabwork.Worker.work = slow
from ckpttool.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("as_json", [False, True])
def test_signals_stop_and_the_same_command_goes_on(
    hf: Path, tmp_path: Path, number: signal.Signals, code: int, as_json: bool
) -> None:
    target = tmp_path / "out"
    argv = ["convert", str(hf), str(target), "--to", "bf16", "--workers", "1", *(["--json"] if as_json else [])]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr
    assert process.stderr.readline() == b"begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err
    if as_json:
        check("error.v1", json.loads(out))
    else:
        assert b"the same command goes on where this one stopped" in err
    assert not target.exists()
    result = run(*argv)
    assert result.code == 0
    receipt = json.loads((target / "ckpttool.receipt.json").read_text())
    assert receipt["run"]["slabs_resumed"] >= 3
    assert verify(target).ok
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_a_finalizer_is_not_lost(number: str, code: int, tmp_path: Path) -> None:
    """Python swallows what is raised there. Only what goes on where it stopped says so."""
    program = f"""
import signal, time
from ckpttool import inspector
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.{number})
        time.sleep(0)
def inspector_of(*_, **__):
    Finalized()
    time.sleep(60)
inspector.Inspector = inspector_of
from ckpttool.cli import main
main()
"""
    command = [sys.executable, "-c", program, "inspect", str(tmp_path)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (code, "", "interrupted")


def test_two_conversions_to_one_target(hf: Path, tmp_path: Path) -> None:
    argv = ["convert", str(hf), str(tmp_path / "out"), "--to", "bf16", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *argv], stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stderr
    assert process.stderr.readline() == b"begun\n"
    result = run(*argv)
    assert result.code == 4
    assert "another conversion is writing here; wait for it, or choose another TARGET" in result.err
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert verify(tmp_path / "out").ok


# Where output goes


@pytest.mark.parametrize("argv", [("inspect",), ("inspect", "--json")], ids=" ".join)
def test_a_reader_that_leaves_early_is_no_error(hf: Path, argv: tuple[str, ...], tmp_path: Path) -> None:
    model = Model(Sizes(layers=30, hidden=32, intermediate=32, vocab=300))
    source = builders.write(model, tmp_path / "long", "hf")  # more output than a pipe holds
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, argv[0], str(source), *argv[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_full_stdout_is_local_io(hf: Path, more: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = spawn("inspect", hf, *more, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: standard output: cannot be written: No space left on device; ")
    with open("/dev/full", "wb") as full:
        done = spawn("inspect", hf / "gone", *more, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1)


def test_closed_streams(hf: Path, tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -c "{MAIN}" "$@"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for i, (redirect, argv, code) in enumerate(
        [
            (">&-", ["inspect", hf], 0),
            ("2>&-", ["inspect", hf / "gone"], 3),
            (">&- 2>&-", ["convert", hf, tmp_path / "0", "--to", "bf16"], 0),
            ("<&-", ["convert", hf, tmp_path / "1", "--to", "bf16"], 0),
        ]
    ):
        shell = ["sh", "-c", f"{command} {redirect}", "sh", *map(str, argv)]
        done = subprocess.run(shell, capture_output=True, env=environment, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), i
    assert verify(tmp_path / "0").ok
    assert verify(tmp_path / "1").ok


NAMES = ("with space", "한국어", "模型 目錄", "-rf", "new\nline", "quote'\"", "a" * 200, "%s{}")


@pytest.mark.parametrize("name", NAMES)
def test_names(tmp_path: Path, hf: Path, name: str) -> None:
    source = tmp_path / name
    shutil.copytree(hf, source)
    result = run("convert", source, tmp_path / "out" / name, "--to", "mxfp4")
    assert result.code == 0, result.err
    inspected = run("inspect", tmp_path / "out" / name)
    assert inspected.code == 0
    if name.isprintable():
        assert name in result.out
        assert name in inspected.out
    assert run("verify", tmp_path / "out" / name, "--json").document["ok"]
    file = tmp_path / "out" / f"{name}.gguf"
    assert run("convert", source, file).code == 0
    assert run("verify", file).code == 0


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1", "NO_COLOR": "1", "TERM": "dumb"},
    ],
    ids=lambda e: " ".join(f"{k}={v}" for k, v in e.items()),
)
def test_locales(tmp_path: Path, hf: Path, env: dict[str, str]) -> None:
    name = "模型 한국어"
    shutil.copytree(hf, tmp_path / name)
    done = spawn("convert", name, "出力 출력", "--to", "mxfp4", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    document = spawn("inspect", name, "--json", cwd=tmp_path, env=env)
    source = json.loads(document.stdout)["source"]
    assert source == (name if env.get("PYTHONUTF8") != "0" else os.fsencode(name).decode("ascii", "surrogateescape")
                      .encode("ascii", "backslashreplace").decode())  # fmt: skip
    gone = spawn("inspect", "없다", cwd=tmp_path, env=env)
    assert gone.returncode == 3
    assert b"no such file or folder" in gone.stderr
    assert b"Traceback" not in gone.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_names_that_are_not_utf8(tmp_path: Path, hf: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xffdel"))
    shutil.copytree(hf, source)
    target = Path(f"{source}-out")
    for more in ((), ("--json", "--overwrite")):
        done = spawn("convert", source, target, "--to", "mxfp4", *more)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"]["path"] == str(source).replace("\udcff", r"\udcff")
    assert spawn("verify", target).returncode == 0
    assert spawn("convert", source, tmp_path / "x", "--to", "gguf").returncode == 0
    assert len(list((tmp_path / "x").glob("*.gguf"))) == 1
    assert b"\\u{dcff}" in spawn("inspect", source / "gone").stderr


# Progress


def test_without_a_terminal_there_is_a_line_at_times(monkeypatch: pytest.MonkeyPatch, hf: Path, tmp_path: Path) -> None:
    quiet = run("convert", hf, tmp_path / "a", "--to", "bf16")
    assert quiet.err == ""  # half a minute has not passed
    assert bars.LINE_SECONDS == 30
    monkeypatch.setattr(bars, "LINE_SECONDS", 0)
    result = run("convert", hf, tmp_path / "b", "--to", "bf16")
    lines = result.err.splitlines()
    assert len(lines) > 3
    for line in lines:
        assert re.fullmatch(r"converting: [\d.]+ k?B of [\d.]+ kB \(\d+ %\), [\d.]+ [kM]?B/s, [\d.]+ min left", line), (
            line
        )
    assert "(100 %)" in lines[-1]
    verified = run("verify", tmp_path / "b")
    assert "verifying: " in verified.err
    for argv in (("convert", hf, tmp_path / "c", "--to", "bf16"), ("verify", tmp_path / "b")):
        assert run(*argv, "--json").err == ""


def on_a_terminal(*argv: str | Path) -> tuple[int, str]:
    """Run the command with stderr on a terminal; what it showed there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, argv)],
            stdout=subprocess.DEVNULL,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        os.close(slave)
        shown = b"".join(_until_closed(master, process))
    finally:
        os.close(master)
    return process.wait(timeout=60), shown.decode()


def _until_closed(master: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        assert ready, "the process says nothing and does not end"
        try:
            data = os.read(master, 4096)
        except OSError:  # Linux: the other end is closed
            return
        if not data:
            return
        yield data


def test_on_a_terminal_there_is_one_bar(hf: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal("convert", hf, tmp_path / "a", "--to", "bf16")
    assert code == 0
    assert "converting: 100%" in shown
    assert re.search(r"\d+[kM]/\d+[kM]", shown)
    assert shown.count("\n") == 1
    assert on_a_terminal("convert", hf, tmp_path / "b", "--to", "bf16", "--json") == (0, "")


def test_the_summary(hf: Path, tmp_path: Path) -> None:
    result = run("convert", hf, tmp_path / "out", "--to", "bf16")
    assert result.code == 0
    for said in (
        r"^read [\d.]+ kB, wrote [\d.]+ kB in 6 files, [\d.]+ s ",
        r"^fidelity: \d+ tensors bytes, 2 tensors values$",
        r"^read back and compared: yes$",
        rf"^receipt: {re.escape(str(tmp_path / 'out' / 'ckpttool.receipt.json'))}$",
    ):
        assert re.search(said, result.out, re.MULTILINE), said
    without = run("convert", hf, tmp_path / "x.gguf", "--no-verify")
    assert "read back and compared: no (--no-verify)" in without.out
    assert without.out.splitlines()[-1] == f"receipt: {tmp_path / 'x.gguf.receipt.json'}"


# Dry runs


DRY: dict[str, tuple[str, ...]] = {
    "bf16": ("--to", "bf16", "--max-shard-size", "100kB"),
    "mxfp4": ("--to", "mxfp4"),
    "openai": ("--to", "openai", "--max-shard-size", "60kB"),
    "x.gguf": (),
    "split.gguf": ("--max-shard-size", "60kB", "--outtype", "q8_0"),
    "folder": ("--to", "gguf", "--model-name", "Tiny Test"),
}


@pytest.mark.parametrize("source", ["hf", "gguf"])
@pytest.mark.parametrize(("name", "options"), DRY.items(), ids=DRY)
def test_a_dry_run_writes_nothing_and_is_exact(
    hf: Path, tmp_path: Path, source: str, name: str, options: tuple[str, ...]
) -> None:
    given = hf if source == "hf" else builders.write_gguf(MODEL, tmp_path / "source.gguf")
    target = tmp_path / "out" / name
    before = listed(tmp_path)
    text = run("convert", given, target, *options, "--dry-run")
    assert (text.code, text.err) == (0, "")
    plan = run("convert", given, target, *options, "--dry-run", "--json").document
    assert listed(tmp_path) == before
    assert not target.parent.exists()
    assert run("convert", given, target, *options).code == 0
    files = {f["name"]: f["nbytes"] for f in (*plan["files"], *plan["sidecars"])}
    folder = target if target.is_dir() else target.parent
    written = {n: size for n, size in listed(folder).items() if not n.endswith("receipt.json")}
    assert files == written
    assert plan["nbytes"] == sum(written.values())
    for file, nbytes in files.items():
        assert re.search(rf"^{re.escape(file)} .* {nbytes:,}$", text.out, re.MULTILINE)
    assert "nothing written yet" in text.out


def test_a_dry_run_says_what_would_stop_the_run(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert run("convert", hf, tmp_path / "x.gguf", "--dry-run").code == 4
    assert run("convert", hf, tmp_path / "x.gguf", "--dry-run", "--overwrite").code == 0
    assert run("convert", hf, tmp_path / "y.gguf", "--dry-run", "--max-memory", "1kB").code == 6


def test_a_bf16_gguf_hints_at_mxfp4(wide: Path, hf: Path, tmp_path: Path) -> None:
    assert "--experts mxfp4 makes them" in run("convert", wide, tmp_path / "x.gguf", "--dry-run").out
    assert "--experts mxfp4" not in run("convert", wide, tmp_path / "x.gguf", "--dry-run", "--experts", "mxfp4").out
    assert "--experts mxfp4" not in run("convert", hf, tmp_path / "x.gguf", "--dry-run").out


# TARGET


def test_a_target_that_exists(hf: Path, tmp_path: Path) -> None:
    for make in (lambda p: p.write_text("mine"), lambda p: (p.mkdir(), (p / "a").write_text("mine")),
                 lambda p: p.symlink_to(tmp_path / "gone")):  # fmt: skip
        for name, options in (("out", ("--to", "bf16")), ("out.gguf", ())):
            target = tmp_path / name
            make(target)
            result = run("convert", hf, target, *options)
            assert result.code == 4
            assert result.err == f"error: {target}: already exists; choose another TARGET, or add --overwrite\n"
            assert os.path.lexists(target)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_a_target(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("convert", hf, tmp_path / "out", "--to", "bf16").code == 0
    assert verify(tmp_path / "out").ok
    (tmp_path / "x.gguf").mkdir()
    assert run("convert", hf, tmp_path / "x.gguf").code == 4


def test_missing_parents_are_made(hf: Path, tmp_path: Path) -> None:
    assert run("convert", hf, tmp_path / "a" / "b" / "out", "--to", "bf16").code == 0
    assert run("convert", hf, tmp_path / "c" / "d" / "x.gguf").code == 0
    (tmp_path / "file").write_text("")
    result = run("convert", hf, tmp_path / "file" / "out", "--to", "bf16")
    assert (result.code, "is a file, and TARGET would lie in it" in result.err) == (4, True)


def test_a_folder_for_a_gguf_gets_the_default_name(hf: Path, tmp_path: Path) -> None:
    assert run("convert", hf, tmp_path / "out", "--to", "gguf", "--model-name", "Tiny Test").code == 0
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.name.startswith("Tiny-Test-")
    assert run("verify", tmp_path / "out").code == 0
    again = run("convert", hf, tmp_path / "out", "--to", "gguf", "--model-name", "Tiny Test")
    assert (again.code, str(file) in again.err) == (4, True)


@pytest.mark.parametrize("options", [("--to", "bf16"), ("--to", "gguf")], ids=["folder", "file"])
def test_an_overwrite_keeps_the_old_until_the_new_is_complete(
    hf: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / ("out" if "bf16" in options else "out.gguf")
    assert run("convert", hf, target, "--to", "mxfp4" if target.suffix == "" else "gguf", "--no-verify").code == 0
    old = (
        (target if target.is_dir() else tmp_path)
        .joinpath("model.safetensors" if target.is_dir() else target.name)
        .read_bytes()
    )
    seen: list[bool] = []

    @contextlib.contextmanager
    def watched(total: int, verb: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
        path = target / "model.safetensors" if target.is_dir() else target
        yield lambda nbytes: seen.append(path.read_bytes() == old)

    monkeypatch.setattr(render, "progress", watched)
    result = run("convert", hf, target, *options, "--overwrite", *(["--outtype", "f32"] if "gguf" in options else []))
    assert result.code == 0, result.err
    assert len(seen) > 3
    assert all(seen)
    assert verify(target).ok
    new = target / "model.safetensors" if target.is_dir() else target
    assert new.read_bytes() != old
    assert {p.name for p in tmp_path.iterdir()} <= {target.name, f"{target.name}.receipt.json"}


def test_an_overwrite_of_something_else_is_refused_before_the_work(hf: Path, tmp_path: Path) -> None:
    def folder(path: Path, *names: str) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_text("mine")

    cases: list[tuple[str, tuple[str, ...], Callable[[Path], object], str]] = [
        ("out", ("--to", "bf16"), lambda p: folder(p, "thesis.tex"), "no part of a checkpoint"),
        ("out", ("--to", "bf16"), lambda p: folder(p, "config.json"), "is not a checkpoint's folder"),
        ("out", ("--to", "bf16"), lambda p: folder(p, "model.safetensors", ".git"), "no part of a checkpoint"),
        ("out", ("--to", "bf16"), lambda p: p.write_text("mine"), "is a file; a folder does not replace it"),
        ("out", ("--to", "bf16"), lambda p: p.symlink_to(hf), "TARGET is SOURCE"),
        ("out", ("--to", "bf16"), lambda p: p.symlink_to(tmp_path), "is a link; a folder does not replace it"),
        ("x.gguf", (), lambda p: folder(p, "a"), "is a folder; a GGUF does not replace it"),
        ("x.gguf", (), lambda p: p.symlink_to(tmp_path / "gone"), "is no file; a GGUF does not replace it"),
    ]
    for name, options, make, says in cases:
        target = tmp_path / "there" / name
        target.parent.mkdir()
        make(target)
        before = listed(tmp_path)
        result = run("convert", hf, target, *options, "--overwrite")
        assert result.code in (2, 4)
        assert says in result.err
        assert listed(tmp_path) == before
        assert [p.name for p in target.parent.iterdir()] == [name]
        shutil.rmtree(target.parent)


def test_an_overwrite_takes_any_checkpoint(hf: Path, wide: Path, tmp_path: Path) -> None:
    shutil.copytree(wide, tmp_path / "out")  # not made by this tool
    assert run("convert", hf, tmp_path / "out", "--to", "mxfp4", "--overwrite").code == 0
    assert verify(tmp_path / "out").ok
    (tmp_path / "empty").mkdir()
    assert run("convert", hf, tmp_path / "empty", "--to", "mxfp4", "--overwrite").code == 0


def test_source_and_target_must_differ(hf: Path, tmp_path: Path) -> None:
    source = tmp_path / "a" / "source"
    shutil.copytree(hf, source)
    file = builders.write_gguf(MODEL, tmp_path / "a" / "m.gguf")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "link.gguf").symlink_to(file)
    before = listed(tmp_path)
    reference = ("--reference", str(source))
    for given, target, options in [
        (source, source, ("--to", "bf16")),
        (source, tmp_path / "a", ("--to", "bf16")),
        (source, tmp_path / "link", ("--to", "bf16")),
        (tmp_path / "link", source, ("--to", "bf16")),
        (source, source / ".." / "source", ("--to", "bf16")),
        (file, file, ()),
        (file, tmp_path / "link.gguf", ()),
        (tmp_path / "link.gguf", file, ()),
        (file, tmp_path / "a", ("--to", "mxfp4")),
        (file, source, ("--to", "mxfp4", *reference)),
    ]:
        for more in ((), ("--overwrite",)):
            result = run("convert", given, target, *options, *more)
            assert result.code == 2, (given, target, result)
            assert re.match(r"error: .*: TARGET is (SOURCE|--reference)(, or holds it)?; choose another", result.err)
    assert listed(tmp_path) == before


def test_a_target_inside_the_source_leaves_the_source_alone(hf: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter does by default, and `original/` lies in published folders."""
    source = tmp_path / "source"
    shutil.copytree(hf, source)
    before = {n: (source / n).read_bytes() for n in listed(source)}
    assert run("convert", source, source / "original", "--to", "openai").code == 0
    assert run("convert", source, source / "model.gguf").code == 0
    assert {n: (source / n).read_bytes() for n in before} == before
    assert run("inspect", source, "--json").document["dialect"] == "hf"
    assert run("inspect", source / "original", "--json").document["dialect"] == "openai"


# The rest


def test_verify_without_a_receipt(hf: Path, tmp_path: Path) -> None:
    for target, says in ((hf, "has no receipt"), (tmp_path / "gone", "no such file or folder")):
        result = run("verify", target)
        assert result.code == 3
        assert says in result.err


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": "plan.v1"}', '{"schema": "conversion.v1"}',
     '{"schema": "conversion.v1", "files": 1, "tensors": []}',
     '{"schema": "conversion.v1", "files": [{"name": "../x", "nbytes": 1, "crc32": "", "sha256": ""}], "tensors": []}',
     '{"schema": "conversion.v1", "files": [{"name": "x", "nbytes": "1", "crc32": "", "sha256": ""}], "tensors": []}',
     '{"schema": "conversion.v1", "files": [7], "tensors": []}'],
)  # fmt: skip
def test_verify_with_a_damaged_receipt(tmp_path: Path, text: str) -> None:
    (tmp_path / "ckpttool.receipt.json").write_text(text)
    result = run("verify", tmp_path)
    assert result.code == 3, result
    assert result.err.startswith("error: ")
    assert "; " in result.err


def test_the_api_keeps_its_names_after_use(hf: Path, tmp_path: Path) -> None:
    receipt = ckpttool.convert(hf, tmp_path / "x.gguf", max_memory="100MB", workers=1)
    assert receipt.schema == "conversion.v1"
    for name in ("convert", "plan", "inspect", "verify", "open_checkpoint", "quantize", "dequantize"):
        assert callable(getattr(ckpttool, name)), name
    assert ckpttool.plan(hf, tmp_path / "y.gguf").nbytes == (tmp_path / "x.gguf").stat().st_size
    assert not hasattr(ckpttool, "no_such_name")


def test_completion_is_there() -> None:
    done = spawn(env={"_CKPTTOOL_COMPLETE": "bash_source"})
    assert done.returncode == 0
    assert b"complete -o nosort -F _ckpttool_completion ckpttool" in done.stdout
    done = spawn(env={"_CKPTTOOL_COMPLETE": "bash_complete", "COMP_WORDS": "ckpttool conv", "COMP_CWORD": "1"})
    assert done.stdout.strip() == b"plain,convert"
