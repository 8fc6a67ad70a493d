"""Hostile headers: every refusal is a good error in little memory, and what we accept the official reader reads too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf as official_gguf
import numpy as np
import pytest
import safetensors as official_safetensors
from gguf_cases import GGUF
from gguf_cases import GOOD as GOOD_GGUF
from hostile_files import MIB, Case, arr, gguf, gstr, info, kv, refuses, st
from index_cases import INDEXES
from safetensors_cases import GOOD as GOOD_SAFETENSORS
from safetensors_cases import SAFETENSORS

from ckpttool.containers import gguf as our_gguf
from ckpttool.containers import safetensors as our_safetensors
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError, LimitError, shown
from ckpttool.tensors import StoredTensor


def parse_safetensors(path: Path) -> our_safetensors.Header:
    with LocalFile(path) as file:
        return our_safetensors.parse(file)


def parse_gguf(path: Path) -> our_gguf.Header:
    with LocalFile(path) as file:
        return our_gguf.parse(file)


@pytest.mark.parametrize("case", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors_is_refused(case: Case, tmp_path: Path) -> None:
    error = refuses(case, tmp_path / "model.safetensors", parse_safetensors)
    assert error.offset is not None


@pytest.mark.parametrize("case", INDEXES.values(), ids=INDEXES)
def test_index_is_refused(case: Case, tmp_path: Path) -> None:
    refuses(case, tmp_path / "m.safetensors.index.json", our_safetensors.parse_index)


@pytest.mark.parametrize("case", GGUF.values(), ids=GGUF)
def test_gguf_is_refused(case: Case, tmp_path: Path) -> None:
    refuses(case, tmp_path / "model.gguf", parse_gguf)


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(SAFETENSORS) >= 110
    assert len(INDEXES) >= 50
    assert len(GGUF) >= 100


# What the official readers say of what we accept


def agrees_safetensors(path: Path, data: bytes) -> None:
    """safetensors itself accepts the file, and reads the same names, dtypes, shapes and bytes."""
    ours = {
        t.name: (t.dtype, list(t.shape), data[t.offset : t.offset + t.nbytes]) for t in parse_safetensors(path).tensors
    }
    theirs = {n: (v["dtype"], v["shape"], bytes(v["data"])) for n, v in official_safetensors.deserialize(data)}
    assert ours == theirs


@pytest.mark.parametrize("data", GOOD_SAFETENSORS.values(), ids=GOOD_SAFETENSORS)
def test_safetensors_is_accepted(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    agrees_safetensors(path, data)


def _plain(field: official_gguf.ReaderField) -> object:
    """A field of gguf-py's reader as Python objects."""
    if field.types[0] is official_gguf.GGUFValueType.ARRAY and len(field.types) == 1:
        return []
    return field.contents()


def agrees_gguf(path: Path) -> None:
    """gguf-py accepts the file, and reads the same values and the same table."""
    ours = parse_gguf(path)
    theirs = official_gguf.GGUFReader(path)
    values = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert values.keys() == ours.metadata.keys()
    for key, value in ours.metadata.items():
        try:
            mine = list(value) if isinstance(value, our_gguf.Array) else value.value
        except InputError as error:
            # Both decode the strings of an array when they are asked for.
            assert f"{path.name}: {shown(key)}: string" in str(error)
            with pytest.raises(UnicodeDecodeError):
                _plain(values[key])
        else:
            np.testing.assert_equal(mine, _plain(values[key]))
    assert theirs.alignment == ours.alignment
    for mine, their in zip(ours.tensors, theirs.tensors, strict=True):
        assert _row(mine) == (
            their.name,
            their.tensor_type.name,
            tuple(reversed(their.shape.tolist())),
            int(their.data_offset),
            int(their.n_bytes),
        )


def _row(t: StoredTensor) -> tuple[object, ...]:
    return t.name, t.dtype, t.shape, t.offset, t.nbytes


@pytest.mark.parametrize("data", GOOD_GGUF.values(), ids=GOOD_GGUF)
def test_gguf_is_accepted(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    agrees_gguf(path)


# Sweeps


def test_every_prefix_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    data = GOOD_SAFETENSORS["metadata"]
    path = tmp_path / "model.safetensors"
    for n in range(len(data)):
        refuses(Case(f"{n}", data[:n], ""), path, parse_safetensors)


def test_every_prefix_of_a_gguf_file_is_refused_but_for_the_last_padding(tmp_path: Path) -> None:
    data = GOOD_GGUF["TENSORS_SUCCESS"]
    path = tmp_path / "model.gguf"
    for n in range(len(data) - 16):
        refuses(Case(f"{n}", data[:n], ""), path, parse_gguf)
    for n in range(len(data) - 16, len(data)):
        path.write_bytes(data[:n])
        assert len(parse_gguf(path).tensors) == 2


# Budgets: in a process of their own that may not take more


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (512 << 20,) * 2)
from ckpttool.containers import gguf, safetensors
from ckpttool.containers.source import LocalFile
from ckpttool.errors import CkptError
try:
    with LocalFile(sys.argv[2]) as file:
        header = {"st": safetensors, "gguf": gguf}[sys.argv[1]].parse(file)
    print("accepted", len(header.tensors))
except CkptError as error:
    print(type(error).__name__, error)
"""


def limited(container: str, path: Path) -> str:
    """What a process with 512 MiB of address space says of the file."""
    root = str(Path(our_gguf.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, container, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    return done.stdout.strip()


N = 99_999_992
HUGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "shape": (
        lambda: b'{"a":{"dtype":"U8","shape":[' + b"1," * 47_000_000 + b'1],"data_offsets":[0,1]}}',
        "too long an entry",
    ),
    "lists": (lambda: b'{"a":[' + b"[]," * 31_000_000 + b"1]}", "too long an entry"),
    "one string": (lambda: b'{"__metadata__":{"a":"' + b"x" * 95_000_000 + b'"}}', "accepted 0"),
    "spaces": (lambda: b"{}".ljust(N), "accepted 0"),
    "a name": (lambda: b'{"' + b"x" * 95_000_000 + b'":{}}', "a name longer than 4096 bytes"),
    "metadata": (lambda: b'{"__metadata__":{' + b'"":"",' * 13_000_000 + b'"a":""}}', "duplicate name"),
}


@pytest.mark.parametrize(("header", "says"), HUGE.values(), ids=HUGE)
def test_95_mb_of_header(header: Callable[[], bytes], says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(st(header()))
    assert says in limited("st", path)


def test_a_sparse_header_of_100_mb(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000_000).to_bytes(8, "little"))
    os.truncate(path, 8 + 100_000_000)
    assert "must be a JSON object" in limited("st", path)


def test_60_gib_of_tensors_in_512_mib(tmp_path: Path) -> None:
    n = 60 << 30
    path = tmp_path / "x.safetensors"
    path.write_bytes(st({"a": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}))
    os.truncate(path, path.stat().st_size + n)
    assert limited("st", path) == "accepted 1"
    other = tmp_path / "x.gguf"
    other.write_bytes(gguf((), (info("a", (n,), 24),)))
    os.truncate(other, other.stat().st_size + n)
    assert limited("gguf", other) == "accepted 1"


def test_long_arrays_in_512_mib(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf((arr("u8", 0, 16 * MIB, bytes(16 * MIB)), arr("s", 8, 10**6, gstr("") * 10**6))))
    assert limited("gguf", path) == "accepted 0"


def test_key_values_over_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + gguf((arr("a", 0, 300 * MIB),))[4:])
    os.truncate(path, 301 * MIB)
    assert limited("gguf", path).startswith("LimitError x.gguf: a at byte")
    path.write_bytes(gguf((kv("a", 8, gstr("", 300 * MIB)),)))
    os.truncate(path, 301 * MIB)
    assert limited("gguf", path).startswith("LimitError x.gguf: a at byte")


def test_too_many_tensors_is_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + gguf(n_tensors=1_000_001)[4:])
    os.truncate(path, 30 * MIB)
    with pytest.raises(LimitError, match="1000001 tensors"):
        parse_gguf(path)


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    """Nothing is quadratic: many names with one long prefix in common."""
    names = [f"model.layers.0.mlp.experts.long.prefix.{i}" for i in range(100_000)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf((), tuple(info(n, (0,)) for n in names)))
    assert [t.name for t in parse_gguf(path).tensors] == names
    other = tmp_path / "x.safetensors"
    other.write_bytes(st({n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in names}))
    assert [t.name for t in parse_safetensors(other).tensors] == names


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    for container, data in (("safetensors", GOOD_SAFETENSORS["metadata"]), ("gguf", GOOD_GGUF["TENSORS_SUCCESS"])):
        path = tmp_path / f"x.{container}"
        path.write_bytes(data)
        with LocalFile(path) as file:
            os.truncate(path, 30)
            with pytest.raises(InputError, match="it shrank or is truncated"):
                {"safetensors": our_safetensors, "gguf": our_gguf}[container].parse(file)
