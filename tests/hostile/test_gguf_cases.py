"""The 120 GGUF cases of the catalogue (GG001 to GG120) and 43 beside them, 197 files in all, through every front end:
140 broken headers, 23 that are odd but sound, 31 whole checkpoints that are odd or wrong in one place, 3 that are no
files. Six of them also as processes with 512 MiB of address space, all of them so in the nightly lane. Ten numbers are
tests of their own: sweeps, large files, values, and files that change."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import Model
from commandline import run
from front_ends import SHOWN, Codes, Hostile, alone, of_file, same_verdict
from gguf_cases import GGUF, GOOD
from gguf_checkpoints import MODEL, UNKNOWN, WHOLE
from hostile_files import Case
from numpy.typing import NDArray

from ckpttool.containers.gguf import parse
from ckpttool.containers.source import LocalFile
from ckpttool.journal import Entry, Journal

Tensors = dict[str, tuple[str, NDArray[Any]]]
Change = Callable[[Tensors], object]
TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    3: "hostile/test_headers::test_every_prefix_of_a_gguf_file_is_refused_but_for_the_last_padding",
    47: "hostile/test_headers::test_long_arrays_in_512_mib",
    108: "hostile/test_headers::test_a_hundred_thousand_tensors",
    109: "hostile/test_headers::test_too_many_tensors_is_a_limit",
    114: "hostile/test_gguf_cases::test_values_that_no_target_holds",
    115: "hostile/test_gguf_cases::test_values_that_no_target_holds",
    116: "hostile/test_gguf_cases::test_values_that_no_target_holds",
    118: "hostile/test_headers::test_a_file_that_shrinks_while_it_is_read",
    119: "hostile/test_gguf_cases::test_a_file_that_is_replaced_by_another_of_its_size_and_time",
    120: "test_sparse_checkpoints::test_headers_are_read",
}
"""Cases that are tests of their own."""


def numbered(name: str) -> str:
    found = re.search(r"GG\d{3}", name)
    return found.group() if found else "beside"


def header(name: str, case: Case) -> Hostile:
    return of_file(numbered(name), replace(case, id=case.id.removeprefix(f"{numbered(name)} ")), "x.gguf")


def sound(name: str, data: bytes) -> Hostile:
    """Nothing is wrong with it, but it is no model: where it says that it is gpt-oss, everything is missing."""
    made = header(name, Case(name, data, ""))
    what = f"{made.what}, its header alone"
    return replace(made, what=what, says=(), codes=SHOWN if b"gpt-oss" in data else UNKNOWN)


NOWHERE = Codes(3, 3, 3, 3)


def no_file(what: str, make: Callable[[Path], object], says: str) -> Hostile:
    def write(at: Path) -> Path:
        make(at / "x.gguf")
        return at / "x.gguf"

    return Hostile("GG112", what, write, (says,), NOWHERE, unsaid=("verify",))


NO_FILE = [
    no_file("a folder", Path.mkdir, "holds no safetensors and no GGUF"),
    no_file("a FIFO", os.mkfifo, "neither a file nor a folder"),
    no_file("a device", lambda path: path.symlink_to("/dev/zero"), "neither a file nor a folder"),
]
SAFETENSORS = "foreign: GG111 safetensors"
"""Its reader refuses it, but a SOURCE is known by its content: it is opened as what it is."""
HEADERS = [header(name, case) for name, case in GGUF.items() if name != SAFETENSORS]
SOUND = [*(sound(name, data) for name, data in GOOD.items()), sound(SAFETENSORS, GGUF[SAFETENSORS].data)]
CASES = [*HEADERS, *SOUND, *WHOLE, *NO_FILE]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_front_end_says_the_same(case: Hostile, tmp_path: Path) -> None:
    same_verdict(case, tmp_path)


SAMPLE = [CASES[n] for n in range(0, len(CASES), len(CASES) // 5)]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)
def test_as_processes_in_little_memory(case: Hostile, tmp_path: Path) -> None:
    """Six of them; all of them at night."""
    alone(case, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_all_as_processes_in_little_memory(case: Hostile, tmp_path: Path) -> None:
    alone(case, tmp_path)


def test_no_number_is_left_out() -> None:
    """GG001 to GG120, each a case or a test that is there; no two cases share number and name."""
    have = {int(case.number[2:]) for case in CASES if case.number != "beside"}
    assert have | ELSEWHERE.keys() == set(range(1, 121))
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))
    for place in ELSEWHERE.values():
        module, _, test = place.partition("::")
        assert f"def {test}(" in (TESTS / f"{module}.py").read_text("utf-8"), place


LLAMA_CPP = (
    "BAD_MAGIC", "BAD_VERSION_0", "BAD_VERSION_1", "BAD_VERSION_FUTURE", "BAD_N_KV", "BAD_N_TENSORS", "HEADER_EMPTY",
    "BAD_KEY_SIZE", "EMPTY_KEY", "BAD_TYPE", "DUPLICATE_KEY", "BAD_ALIGN", "WRONG_TYPE_ALIGN", "KV_SUCCESS",
    "BAD_NAME_SIZE", "BAD_N_DIMS", "BAD_SHAPE", "ZERO_DIM", "NE_TOO_BIG", "NBYTES_TOO_BIG", "BAD_OFFSET",
    "DUPLICATE_NAME", "INCONSISTENT_ALIGN", "TENSORS_SUCCESS", "CUSTOM_ALIGN", "NOT_ENOUGH_DATA", "MEM_SIZE_OVERFLOW",
)  # fmt: skip
"""The kinds of tests/test-gguf.cpp; what it makes of key-values, of tensors and of data is one here."""


def test_every_kind_of_llama_cpps_own_test_is_among_them() -> None:
    names = " ".join([*GGUF, *GOOD])
    assert not [kind for kind in LLAMA_CPP if kind not in names]


def scale_255(tensors: Tensors) -> None:
    tensors["blk.0.ffn_down_exps.weight"][1][1, 5, 2 * 17] = 255


def q8_0(scale: int) -> Change:
    """The head in Q8_0, with one scale of these bits."""

    def change(tensors: Tensors) -> None:
        rows, nbytes = tensors["output.weight"][1].shape
        blocks = np.ones((rows, nbytes // 64, 34), np.uint8)
        blocks[7, 1, :2] = scale & 0xFF, scale >> 8
        tensors["output.weight"] = ("Q8_0", blocks.reshape(rows, -1))

    return change


def f32_nan(tensors: Tensors) -> None:
    tensors["output_norm.weight"][1][3] = np.nan


def bf16_nan(tensors: Tensors) -> None:
    kind, array = tensors["token_embd.weight"]
    bits = array.view(np.uint16).copy()
    bits[3, 3] = 0x7FC0
    tensors["token_embd.weight"] = (kind, bits.view(np.uint8))


VALUES: dict[str, tuple[Change, tuple[str, ...], str, str]] = {
    "GG114 MXFP4 scale 255": (
        scale_255, ("--to", "bf16"), "blk.0.ffn_down_exps.weight: expert 1, row 5, block 2: holds a scale that is no",
        "1 of 576 scales are byte 255",
    ),
    "GG115 Q8_0 scale Inf": (
        q8_0(0x7C00), ("--to", "bf16"), "output.weight: row 7, block 1: holds a scale that is no number",
        "1 of 800 scales are NaN or infinite",
    ),
    "GG115 Q8_0 scale NaN": (
        q8_0(0x7E01), ("--to", "bf16"), "output.weight: row 7, block 1: holds a scale that is no number",
        "1 of 800 scales are NaN or infinite",
    ),
    "GG116 F32 NaN": (f32_nan, (), "", "output_norm.weight: 1 of 64 values are NaN or infinite, the first at [3]"),
    "GG116 BF16 NaN to Q8_0": (
        bf16_nan, ("--to", "gguf", "--outtype", "q8_0"), "token_embd.weight: row 3, block 0: holds a NaN",
        "token_embd.weight: 1 of 25,600 values are NaN or infinite, the first at [3, 3]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "options", "says", "finds"), VALUES.values(), ids=VALUES)
def test_values_that_no_target_holds(
    change: Change, options: tuple[str, ...], says: str, finds: str, tmp_path: Path
) -> None:
    """`inspect --check` finds each; `convert` refuses what the target cannot hold, and carries what it can."""
    source = builders.write_gguf(MODEL, tmp_path / "source.gguf", change=change)
    checked = run("inspect", source, "--check")
    assert (checked.code, finds in " ".join(checked.out.split())) == (1, True)
    if options:
        target = tmp_path / ("out.gguf" if "gguf" in options else "out")
        result = run("convert", source, target, *options)
        assert (result.code, result.err.count("\n"), says in result.err) == (3, 1, True), result.err
    assert run("convert", source, tmp_path / "same.gguf").code == 0
    with LocalFile(source) as a, LocalFile(tmp_path / "same.gguf") as b:
        for x, y in zip(parse(a).tensors, parse(b).tensors, strict=True):
            assert (x.name, a.read(x.offset, x.nbytes)) == (y.name, b.read(y.offset, y.nbytes))
    names = {"source.gguf", "same.gguf", "same.gguf.receipt.json"}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_file_that_is_replaced_by_another_of_its_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GG119: only its inode tells."""
    source = builders.write_gguf(MODEL, tmp_path / "source.gguf")
    before, original = source.stat(), Journal.add
    other = builders.write_gguf(Model(MODEL.sizes, seed=1), tmp_path / "other.gguf")
    assert other.stat().st_size == before.st_size

    def add(self: Journal, entry: Entry) -> None:
        original(self, entry)
        if other.exists():
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.replace(source)

    monkeypatch.setattr(Journal, "add", add)
    result = run("convert", source, tmp_path / "out", "--to", "bf16")
    assert (result.code, "has changed while it was converted" in result.err) == (3, True), result
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]
