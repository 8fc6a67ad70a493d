"""The 44 cases about file systems, durability and the command line of the catalogue: which test is which.

Those about the command line are in `test_command_line_cases`, those that kill at every call, cut the power or fill up a
small disk in tests/crashes. Here are the others: what a system may refuse, change, or be set to, and a conversion that
meets it. It ends with one line and its exit code, leaves no file under a final name, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import Model, Sizes
from commandline import Result, run
from crash_runs import tree
from front_ends import printable
from test_cli import MAIN, SLOW, spawn

import ckpttool
from ckpttool import commit, planner
from ckpttool.containers import source as files
from ckpttool.journal import Entry, Journal

TESTS = Path(__file__).parents[1]
HERE = "hostile/test_filesystem_cases"
CLI = "hostile/test_command_line_cases"
PLACES = {
    "FS01": "test_execute::test_a_full_disk_is_found_before_the_work, "
    "crashes/test_small_tmpfs::test_it_is_when_we_look",
    "FS02 FS03 FS04 FS05 FS06 FS07 FS21 FS35": f"{HERE}::test_what_the_system_refuses",
    "FS08": "test_execute::test_a_limit_on_file_sizes_leaves_no_wreck",
    "FS09": f"{HERE}::test_a_file_system_that_is_read_only",
    "FS10": f"{HERE}::test_without_permission",
    "FS11": "test_cli::test_a_target_that_exists, test_cli::test_an_overwrite_keeps_the_old_until_the_new_is_complete",
    "FS12": "test_cli::test_an_overwrite_of_something_else_is_refused_before_the_work",
    "FS13": f"test_cli::test_source_and_target_must_differ, {HERE}::test_one_file_under_two_names, "
    f"{HERE}::test_one_folder_at_two_places",
    "FS14": "test_cli::test_a_target_inside_the_source_leaves_the_source_alone, "
    "test_cli::test_source_and_target_must_differ",
    "FS15": "test_cli::test_two_conversions_to_one_target",
    "FS16": f"{HERE}::test_a_source_that_changes",
    "FS17": "crashes/test_system_calls::test_a_disturbed_conversion, test_execute::test_killed_at_every_journal_line",
    "FS18": "crashes/test_power_cuts::test_power_cut_at_any_moment",
    "FS19": f"{HERE}::test_a_disk_that_cannot_be_read",
    "FS20": f"{HERE}::test_a_sync_that_fails_is_not_tried_again",
    "FS22": f"{HERE}::test_short_writes",
    "FS23": f"{HERE}::test_a_thousand_signals_a_second",
    "FS24": f"{HERE}::test_signals, {CLI}::test_a_pipe_that_is_closed_early",
    "FS25": "test_journal::test_torn_at_every_byte, test_execute::test_a_journal_torn_at_every_byte_of_its_last_line",
    "FS26": f"test_execute::test_another_plan_begins_anew, {HERE}::test_the_journal_of_another_version",
    "FS27": "test_execute::test_damage_to_unfinished_files_is_redone",
    "FS28": f"{HERE}::test_a_clock_that_is_set_back",
    "FS29": f"{HERE}::test_killed_for_its_memory",
    "FS30": "test_threads::test_the_first_failure_stops_all_and_is_raised",
    "FS31": f"{HERE}::test_modes",
    "FS32": f"test_cli::test_names, test_cli::test_names_that_are_not_utf8, {HERE}::test_names_of_255_bytes",
    "FS33": f"{HERE}::test_paths_longer_than_the_system_takes",
    "FS34": f"{HERE}::test_a_file_system_that_knows_no_case",
    "FS36": "test_source::test_a_file_system_that_cannot_reserve, test_source::test_a_system_without_the_call",
    "FS37": f"{HERE}::test_too_few_open_files",
    "FS38": f"{HERE}::test_a_home_that_is_read_only",
    "FS39": "test_cli::test_closed_streams, test_cli::test_a_full_stdout_is_local_io",
    "FS40": f"{CLI}::test_terminals",
    "FS41": f"{CLI}::test_json_is_one_document_whatever_happens",
    "FS42": "test_cli::test_locales",
    "FS43": f"{CLI}::test_other_modes_of_python",
    "FS44": "test_sparse_checkpoints::test_headers_are_read, test_sparse_checkpoints::test_sizes_are_verified",
}
MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
TO_BF16 = ("--to", "bf16", "--workers", "1")


def test_no_number_is_left_out() -> None:
    """FS01 to FS44, and each test that is named is there."""
    assert sorted(" ".join(PLACES).split()) == [f"FS{n:02d}" for n in range(1, 45)]
    for place in ", ".join(PLACES.values()).split(", "):
        module, _, test = place.partition("::")
        assert f"def {test}(" in (TESTS / f"{module}.py").read_text("utf-8"), place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return builders.write(MODEL, tmp_path / "source", "hf", shards=2)


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, str]:
    """What a conversion that nothing disturbs leaves."""
    ckpttool.convert(source, tmp_path / "whole", to="bf16")
    found = tree(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    return found


def refused(result: Result, code: int, *says: str) -> None:
    """One line, of the right kind, that says this."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("error: ")
    assert "; " in result.err, "no hint"
    assert printable(result.err)
    for words in says:
        assert words in result.err


def goes_on(source: Path, target: Path, whole: dict[str, str]) -> dict[str, Any]:
    """The same command, undisturbed: the bytes that there should be, and nothing else. What the receipt says of it."""
    result = run("convert", source, target, *TO_BF16, "--json")
    assert result.code == 0, result
    assert tree(target) == whole
    assert {p.name for p in target.parent.iterdir()} == {"source", target.name}
    made: dict[str, Any] = result.document["run"]
    return made


# What the system refuses


def failing_after(share: float, code: int) -> Callable[[pytest.MonkeyPatch, int], None]:
    """Writes fail when this share of the target's bytes is written."""

    def patch(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
        pwrite, written = os.pwrite, [0]

        def failing(fd: int, view: memoryview, at: int) -> int:
            if written[0] + len(view) > share * nbytes:
                raise OSError(code, os.strerror(code))
            written[0] += len(view)
            return pwrite(fd, view, at)

        monkeypatch.setattr(os, "pwrite", failing)

    return patch


def failing(owner: Any, name: str, code: int) -> Callable[[pytest.MonkeyPatch, int], None]:
    def patch(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(owner, name, fail)

    return patch


def opened(fd: int) -> str:
    """The path that a descriptor was opened at."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def failing_close(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Of files being made: a late error of a write, as of NFS. The descriptor is closed all the same."""
    close = os.close

    def failing(fd: int) -> None:
        written = os.fstat(fd).st_size > 10_000 and ".partial" in opened(fd)
        close(fd)
        if written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "close", failing)


REFUSALS: dict[str, tuple[Callable[[pytest.MonkeyPatch, int], None], str]] = {
    "FS02 no space at 1 %": (failing_after(0.01, errno.ENOSPC), "No space left on device; free some space"),
    "FS03 no space at 50 %": (failing_after(0.5, errno.ENOSPC), "No space left on device; free some space"),
    "FS04 no space at 99 %": (failing_after(0.99, errno.ENOSPC), "No space left on device"),
    "FS05 no space at the sync": (failing(os, "fsync", errno.ENOSPC), "No space left on device"),
    "FS06 no space at the rename": (failing(commit, "_renamed", errno.ENOSPC), "cannot be put in place: No space left"),
    "FS07 quota": (failing_after(0.5, errno.EDQUOT), "Disk quota exceeded; free some space"),
    "FS21 close": (failing_close, "cannot close: Input/output error; the disk or its connection fails"),
    "FS35 files too large": (
        failing(files, "_fallocate", errno.EFBIG), "bytes: File too large ("
    ),
}  # fmt: skip


@pytest.mark.parametrize(("patch", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_system_refuses(
    patch: Callable[[pytest.MonkeyPatch, int], None],
    says: str,
    source: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out"
    plan = run("convert", source, target, *TO_BF16, "--dry-run", "--json").document
    nbytes = sum(f["nbytes"] for f in plan["files"])
    with monkeypatch.context() as disturbed:
        patch(disturbed, nbytes)
        refused(run("convert", source, target, *TO_BF16), 4, says)
    assert not target.exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"source", "out.partial"}
    goes_on(source, target, whole)


def test_a_sync_that_fails_is_not_tried_again(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS20. Linux reports an error of a sync once, and a second try would succeed without the bytes on the disk."""
    tried: list[int] = []
    fsync = os.fsync

    def failing(fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < 10_000:
            return fsync(fd)
        tried.append(status.st_ino)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as disturbed:
        disturbed.setattr(os, "fsync", failing)
        refused(run("convert", source, tmp_path / "out", *TO_BF16), 4, "Input/output error; the disk or its connection")
    assert len(tried) == len(set(tried)) > 0
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_ino in tried and p.stat().st_size]
    assert not left, "its pages pass for written"
    goes_on(source, tmp_path / "out", whole)


def test_a_disk_that_cannot_be_read(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS19: EIO in the second half of the second shard, when the first is done."""
    name = "model-00002-of-00002.safetensors"
    half = (source / name).stat().st_size // 2

    def broken(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(fd: int, what: Any, at: int) -> Any:
            if at >= half and opened(fd).endswith(f"source/{name}"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(fd, what, at)

        return read

    monkeypatch.setattr(os, "preadv", broken(os.preadv))
    monkeypatch.setattr(os, "pread", broken(os.pread))
    result = run("convert", source, tmp_path / "out", *TO_BF16)
    refused(result, 4, f"{name} at byte ", "cannot read: Input/output error; the disk or its connection fails")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert goes_on(source, tmp_path / "out", whole)["slabs_resumed"] > 0


def test_short_writes(source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FS22: a system that takes a third of what it is given, and of a few bytes one. A line of the journal is one
    write or none: what takes a part of it is a full disk."""
    pwrite, write = os.pwrite, os.write
    with monkeypatch.context() as disturbed:
        disturbed.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[: len(view) // 3 or 1], at))
        goes_on(source, tmp_path / "out", whole)
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as disturbed:
        short = lambda fd, data: write(fd, data[:-1] if opened(fd).endswith("journal") else data)  # noqa: E731
        disturbed.setattr(os, "write", short)
        refused(run("convert", source, tmp_path / "out", *TO_BF16), 4, "No space left on device")
    goes_on(source, tmp_path / "out", whole)


def test_a_thousand_signals_a_second(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """FS23: whatever a system call is interrupted in, it goes on."""
    seen = [0]

    def count(*_: object) -> None:
        seen[0] += 1

    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        goes_on(source, tmp_path / "out", whole)
        while seen[0] < 20:
            time.sleep(0.001)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# What may not be written, and what is the same twice


@contextlib.contextmanager
def mounted(at: Path, *how: str) -> Iterator[Path]:
    """Something mounted there, where the system lets us."""
    done = subprocess.run(["mount", *how, str(at)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.decode().strip() or 'mount needs root'}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_file_system_that_is_read_only(source: Path, tmp_path: Path) -> None:
    """FS09."""
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro,size=64m", "tmpfs") as disk:
        refused(run("convert", source, disk / "out", *TO_BF16), 4, "Read-only file system; choose a place")
        assert not list(disk.iterdir())


def unprivileged() -> list[str]:
    """What goes before a command that shall be held to permissions: root is not, until it drops that right."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root is held to no permissions, and setpriv, which drops that right, is missing")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_without_permission(source: Path, tmp_path: Path) -> None:
    """FS10: TARGET's folder, a file of the source, its folder, an old target, what an earlier run has left."""
    before = [*unprivileged(), sys.executable, "-c", MAIN]

    def denied(path: Path, mode: int, argv: tuple[object, ...], *says: str) -> None:
        was = path.stat().st_mode
        path.chmod(mode)
        try:
            done = subprocess.run(
                [*before, *map(str, argv)], capture_output=True, text=True, env=ENVIRONMENT, check=False
            )
        finally:
            path.chmod(was)
        refused(Result(done.returncode, done.stdout, done.stderr), 4, "ermission denied; check the permissions", *says)

    (tmp_path / "shut").mkdir()
    out = tmp_path / "out"
    denied(tmp_path / "shut", 0o555, ("convert", source, tmp_path / "shut" / "out", *TO_BF16), "shut/out.partial")
    denied(source / "config.json", 0, ("convert", source, out, *TO_BF16), "config.json")
    weights = source / "model-00001-of-00002.safetensors"
    denied(weights, 0, ("inspect", source), "model-00001-of-00002.safetensors: cannot open")
    denied(source, 0, ("inspect", source), str(source))
    denied(source, 0, ("convert", source / weights.name, out, *TO_BF16), str(source))
    assert run("convert", source, tmp_path / "shut" / "old", "--to", "mxfp4").code == 0
    denied(tmp_path / "shut", 0o555, ("convert", source, tmp_path / "shut" / "old", *TO_BF16, "--overwrite"))
    assert run("verify", tmp_path / "shut" / "old").code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"source", "shut"}


def test_one_file_under_two_names(tmp_path: Path) -> None:
    """FS13: a hard link of the source is the source, though no path says so."""
    given = builders.write_gguf(MODEL, tmp_path / "a.gguf")
    (tmp_path / "b.gguf").hardlink_to(given)
    before = tree(tmp_path)
    for more in ((), ("--overwrite",)):
        refused(run("convert", given, tmp_path / "b.gguf", *more), 2, "TARGET is SOURCE")
    assert tree(tmp_path) == before


def test_one_folder_at_two_places(source: Path, tmp_path: Path) -> None:
    """FS13: mounted a second time."""
    (tmp_path / "again").mkdir()
    before = tree(source)
    with mounted(tmp_path / "again", "--bind", str(source)) as again:
        for target in (again, again / ".." / "again"):
            for more in ((), ("--overwrite",)):
                refused(run("convert", source, target, "--to", "bf16", *more), 2, "TARGET is SOURCE, or holds it")
    assert tree(source) == before


# What changes meanwhile


def deleted(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def appended(path: Path) -> None:
    with path.open("ab") as f:
        f.write(b"x")


@pytest.mark.parametrize("change", [deleted, truncated, appended])
def test_a_source_that_changes(
    change: Callable[[Path], None], source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS16: while the first slabs are converted. Once it is as it was, the conversion can be made."""
    shutil.copytree(source, tmp_path / "kept")
    path, original, done = source / "model-00002-of-00002.safetensors", Journal.add, []

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        if not done:
            done.append(change(path))

    with monkeypatch.context() as disturbed:
        disturbed.setattr(Journal, "add", add)
        result = run("convert", source, tmp_path / "out", *TO_BF16)
    refused(result, 3, path.name)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(source)
    (tmp_path / "kept").rename(source)
    goes_on(source, tmp_path / "out", whole)


class Stopped(Exception):
    """A conversion that a test ends."""


def stopped(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that dies after some slabs."""
    original, count = Journal.add, [0]

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        count[0] += 1
        if count[0] == 5:
            raise Stopped

    with monkeypatch.context() as disturbed:
        disturbed.setattr(Journal, "add", add)
        with pytest.raises(Stopped):
            ckpttool.convert(source, target, to="bf16", workers=1)


def test_the_journal_of_another_version(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS26: nothing of it is believed, since another version may write other bytes."""
    with monkeypatch.context() as older:
        older.setattr(planner, "__version__", "0.0.1")
        stopped(source, tmp_path / "out", monkeypatch)
    assert goes_on(source, tmp_path / "out", whole)["slabs_resumed"] == 0


def test_a_clock_that_is_set_back(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS28: what an earlier run has left is ten years younger than now; times of our own files decide nothing."""
    stopped(source, tmp_path / "out", monkeypatch)
    later = time.time() + 10 * 365 * 86_400
    for path in (tmp_path / "out.partial").rglob("*"):
        os.utime(path, (later, later))
    assert goes_on(source, tmp_path / "out", whole)["slabs_resumed"] == 5


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS.parent)}


@contextlib.contextmanager
def memory_group(nbytes: int) -> Iterator[Path]:
    """A control group of so much memory, where the system lets us make one; what to write a process' id into."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    limits = {old: ("memory.limit_in_bytes",), new: ("memory.max", "memory.swap.max")}
    at, names = next(((p, n) for p, n in limits.items() if p.is_dir()), (new, ()))
    group = at / f"ckpttool-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of memory can be made: {error}")
    try:
        for name in names:
            if not (group / name).exists():
                pytest.skip(f"control groups do not limit memory here: no {name}")
            (group / name).write_text(str(nbytes if name != "memory.swap.max" else 0))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


GREEDY = SLOW.replace("time.sleep(0.2)", "held = bytearray(1 << 30); held[:: 4096] = b'x' * (1 << 18)")


def test_killed_for_its_memory(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """FS29: the kernel ends the process after some slabs, when it takes more than its group may have."""
    assert "held" in GREEDY
    with memory_group(400 << 20) as members:
        done = subprocess.run(
            [sys.executable, "-c", GREEDY, "convert", str(source), str(tmp_path / "out"), *TO_BF16],
            preexec_fn=lambda: members.write_text(str(os.getpid())),
            capture_output=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    assert not (tmp_path / "out").exists()
    assert goes_on(source, tmp_path / "out", whole)["slabs_resumed"] >= 3


@pytest.mark.parametrize(
    ("signals", "codes"),
    [
        ((signal.SIGINT, signal.SIGINT), (130, -signal.SIGINT)),
        ((signal.SIGTERM, signal.SIGTERM), (143,)),
        ((signal.SIGHUP,), (-signal.SIGHUP,)),
    ],
    ids=["SIGINT twice", "SIGTERM twice", "SIGHUP"],
)
def test_signals(
    signals: tuple[signal.Signals, ...], codes: tuple[int, ...], source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """FS24: impatience changes nothing, and a terminal that is closed leaves a conversion that goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "convert", str(source), str(tmp_path / "out"), *TO_BF16],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stderr
    assert process.stderr.readline() == b"begun\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode in codes, err
    assert b"Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert goes_on(source, tmp_path / "out", whole)["slabs_resumed"] >= 3


# What the system is set to


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0, 0o666)], ids=oct)
def test_modes(mask: int, mode: int, source: Path, tmp_path: Path) -> None:
    """FS31: every file of a target has what the umask leaves, also where an old one of another mode was."""
    old = os.umask(mask)
    try:
        for more in ((), ("--overwrite",)):
            for target, options in ((tmp_path / "out", TO_BF16), (tmp_path / "x.gguf", ())):
                assert run("convert", source, target, *options, *more).code == 0
            written = [*(tmp_path / "out").iterdir(), *tmp_path.glob("x.gguf*")]
            assert len(written) > 5
            for path in written:
                assert oct(path.stat().st_mode & 0o777) == oct(mode), path
                path.chmod(0o640)
    finally:
        os.umask(old)


def test_names_of_255_bytes(source: Path, tmp_path: Path) -> None:
    """FS32: SOURCE may have one; TARGET leaves room for the files beside it, or is refused."""
    long = tmp_path / ("한" * 85)
    assert len(os.fsencode(long.name)) == 255
    source.rename(long)
    assert run("convert", long, tmp_path / "out", *TO_BF16).code == 0
    refused(run("convert", long, tmp_path / ("t" * 255), *TO_BF16), 2, "TARGET's name is too long", "shorter")
    refused(run("convert", long, tmp_path / ("t" * 256), *TO_BF16), 2, "TARGET's name is too long", "shorter")
    fits = tmp_path / ("t" * (255 - len(".partial")))
    assert run("convert", long, fits, *TO_BF16).code == 0
    assert run("verify", fits).code == 0


def test_paths_longer_than_the_system_takes(source: Path, tmp_path: Path) -> None:
    """FS33: as SOURCE and as TARGET, in a name and in all."""
    deep = tmp_path.joinpath(*["d" * 200] * 30)
    assert len(str(deep)) > 4096
    for argv in (("inspect", deep), ("verify", deep), ("convert", deep, tmp_path / "out", *TO_BF16)):
        result = run(*argv)
        assert result.code in (3, 4)
        refused(result, result.code)
    for target in (deep / "out", deep / "x.gguf"):
        result = run("convert", source, target, "--to", "gguf" if target.suffix else "bf16")
        assert result.code in (2, 4)
        refused(result, result.code)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_file_system_that_knows_no_case(source: Path, tmp_path: Path) -> None:
    """FS34: OUT is out, and Source is the source."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4, which makes file systems that know no case")
    with image.open("wb") as f:
        f.truncate(64 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", str(image)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system that knows no case: {made.stderr.decode().strip()}")
    with mounted(disk, "-o", "loop", str(image)):
        (disk / "dir").mkdir()
        if subprocess.run(["chattr", "+F", str(disk / "dir")], capture_output=True, check=False).returncode:
            pytest.skip("chattr +F is refused, so there is no folder that knows no case")
        folder = disk / "dir"
        shutil.copytree(source, folder / "source")
        before = tree(folder / "source")
        for more in ((), ("--overwrite",)):
            refused(run("convert", folder / "source", folder / "SOURCE", *TO_BF16, *more), 2, "TARGET is SOURCE")
        assert run("convert", folder / "source", folder / "out", *TO_BF16).code == 0
        refused(run("convert", folder / "source", folder / "OUT", *TO_BF16), 4, "already exists")
        assert run("convert", folder / "source", folder / "OUT", "--to", "mxfp4", "--overwrite").code == 0
        assert run("verify", folder / "Out").code == 0
        assert tree(folder / "source") == before


def test_too_few_open_files(tmp_path: Path) -> None:
    """FS37: a checkpoint of more shards than files may be open is converted, or refused with what to type."""
    sizes = Sizes(layers=8, experts=2, hidden=32, intermediate=32, vocab=300)
    given = builders.write(Model(sizes), tmp_path / "source", "hf", shards=60)
    allowed = (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    done = spawn(
        "convert", given, tmp_path / "out", *TO_BF16,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, allowed),
    )  # fmt: skip
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    if result.code == 0:
        assert run("verify", tmp_path / "out").code == 0
        return
    refused(result, 4, "Too many open files; raise the limit of open files: ulimit -n")
    assert not (tmp_path / "out").exists()
    assert run("convert", given, tmp_path / "out", *TO_BF16).code == 0


def test_a_home_that_is_read_only(source: Path, tmp_path: Path) -> None:
    """FS38: no home that may be written to, no folder for temporary files, no cache."""
    home = "/proc/self"
    for env in (
        {"HOME": home, "TMPDIR": str(tmp_path / "gone"), "XDG_CACHE_HOME": f"{home}/cache", "HF_HOME": f"{home}/hf"},
        {"HOME": "", "TMPDIR": "", "XDG_CACHE_HOME": "", "HF_HOME": ""},
    ):
        done = spawn("convert", source, tmp_path / "out", "--to", "mxfp4", env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        assert spawn("verify", tmp_path / "out", env=env).returncode == 0
        shutil.rmtree(tmp_path / "out")
