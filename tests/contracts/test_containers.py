"""The contract of every container: promised sizes are produced, parse undoes render, the official reader agrees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf as official_gguf
import pytest
import safetensors as official_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.containers import gguf, safetensors, shards
from ckpttool.containers.ggml_types import GGML_TYPES
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.containers.source import LocalFile, LocalTarget

Table = dict[str, tuple[str, tuple[int, ...], bytes]]


@dataclass(frozen=True)
class Container:
    """What a container module offers, under one roof for these tests."""

    suffix: str
    block: Mapping[str, tuple[int, int]]
    parse: Callable[[LocalFile], Any]
    render: Callable[[list[Row], str], FileLayout]
    official: Callable[[Path], Table]


def _read_safetensors(path: Path) -> Table:
    table = official_safetensors.deserialize(path.read_bytes())
    return {n: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for n, v in table}


def _read_gguf(path: Path) -> Table:
    return {
        t.name: (t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data.tobytes())
        for t in official_gguf.GGUFReader(path).tensors
    }


_KNOWN = {t.name for t in official_gguf.GGMLQuantizationType} - {"Q8_1"}
CONTAINERS = [
    Container(
        ".safetensors",
        {n: (8 if bits < 8 else 1, bits if bits < 8 else bits // 8) for n, bits in safetensors.DTYPE_BITS.items()},
        safetensors.parse,
        lambda rows, name: safetensors.render(rows, {"format": "pt"}, name=name),
        _read_safetensors,
    ),
    Container(
        ".gguf",
        {t.name: (t.elements, t.nbytes) for t in GGML_TYPES.values() if t.name in _KNOWN},
        gguf.parse,
        lambda rows, name: gguf.render(rows, {"general.architecture": gguf.string("gpt-oss")}, name=name),
        _read_gguf,
    ),
]


@st.composite
def tables(draw: st.DrawFn, block: Mapping[str, tuple[int, int]]) -> list[Row]:
    """Rows with distinct names, any dtype, dimensions from 0 and whole blocks."""
    names = draw(st.lists(st.text("abé한._0", min_size=1, max_size=12), unique=True, max_size=8))
    rows = []
    for name in names:
        dtype = draw(st.sampled_from(sorted(block)))
        elements, nbytes = block[dtype]
        lead = draw(st.lists(st.integers(0, 3), max_size=3))
        blocks = draw(st.integers(0, 3))
        n = nbytes * blocks
        for dim in lead:
            n *= dim
        rows.append(Row(name, dtype, (*lead, blocks * elements), n))
    return rows


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.suffix)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_render_parse_official(
    container: Container, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(tables(container.block))
    path = tmp_path_factory.getbasetemp() / f"x{container.suffix}"
    path.unlink(missing_ok=True)
    layout = container.render(rows, path.name)
    contents = {r.name: bytes(hashlib.shake_128(r.name.encode()).digest(r.nbytes)) for r in rows}
    with LocalTarget.create(path, layout.size) as target:
        target.writeall(0, layout.header)
        for t in reversed(layout.tensors):
            target.writeall(t.offset, contents[t.name])
        assert target.size == layout.size
    with LocalFile(path) as file:
        header = container.parse(file)
        assert header.tensors == layout.tensors
        assert header.nbytes == len(layout.header)
        assert header.sha256 == hashlib.sha256(layout.header).hexdigest()
        assert {t.name: file.read(t.offset, t.nbytes) for t in header.tensors} == contents
    expected = {r.name: (r.dtype, r.shape, contents[r.name]) for r in rows}
    assert container.official(path) == expected


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.suffix)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_layouts_do_not_overlap(container: Container, data: st.DataObject) -> None:
    rows = data.draw(tables(container.block))
    layout = container.render(rows, "x")
    reached = len(layout.header)
    for t in layout.tensors:
        assert t.offset >= reached
        assert t.file == "x"
        reached = t.offset + t.nbytes
    assert reached <= layout.size
    assert {t.name: t.nbytes for t in layout.tensors} == {r.name: r.nbytes for r in rows}
    assert container.render(rows, "x") == layout, "the same rows give the same file"


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.suffix)
def test_every_dtype(container: Container, tmp_path: Path) -> None:
    rows = [Row(f"t.{n}", n, (2, 3 * e), 6 * b) for n, (e, b) in container.block.items()]
    layout = container.render(rows, "x")
    path = tmp_path / "x"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    assert {(n, d, s) for n, (d, s, _) in container.official(path).items()} == {
        (r.name, r.dtype, r.shape) for r in rows
    }
    with LocalFile(path) as file:
        assert container.parse(file).tensors == layout.tensors


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30), st.integers(1, 10**12))
def test_a_set_has_a_name_for_each_shard(sizes: list[int], limit: int) -> None:
    count = len(shards.split_by_size(sizes, limit))
    for names in (shards.shard_names("m", count, suffix) for suffix in (".safetensors", ".gguf")):
        assert len(set(names)) == count
        assert names == sorted(names)


FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.gguf")), ids=lambda p: p.name)
def test_fixtures_gguf_again(path: Path) -> None:
    """Whoever wrote the file, llama.cpp's tools included: rendered from what was parsed, its header is the same."""
    with LocalFile(path) as file:
        header = gguf.parse(file)
        rows = [Row(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors]
        layout = gguf.render(rows, header.metadata, name=path.name, alignment=header.alignment)
        assert layout.header == file.read(0, header.nbytes)
        assert layout.tensors == header.tensors
        assert (layout.size, header.trailing) == (file.size, 0)


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.safetensors")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_fixtures_safetensors_again(path: Path) -> None:
    """The same for safetensors, where the reference wrote them."""
    with LocalFile(path) as file:
        header = safetensors.parse(file)
        rows = [Row(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors]
        layout = safetensors.render(rows, header.metadata, name=path.name)
        assert layout.header == file.read(0, header.nbytes)
        assert layout.tensors == header.tensors
        assert layout.size == file.size


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.index.json")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_fixtures_index_again(path: Path) -> None:
    index = safetensors.parse_index(path)
    found = {}
    total = 0
    for name in set(index.weight_map.values()):
        with LocalFile(path.with_name(name)) as file:
            for t in safetensors.parse(file).tensors:
                found[t.name] = name
                total += t.nbytes
    assert (found, total) == index


def test_there_are_fixtures() -> None:
    for suffix in ("*.gguf", "*.safetensors", "*.index.json"):
        assert list(FIXTURES.rglob(suffix)), f"no {suffix}"
