"""Shards: sizes in words, the greedy split, names, and gguf-py's own sets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.serialization._base import parse_size_to_int
from hypothesis import given
from hypothesis import strategies as st

from ckpttool.containers import shards
from ckpttool.containers.gguf import parse
from ckpttool.containers.source import LocalFile

SIZES = st.lists(st.integers(0, 50), max_size=40)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512 * 10**6),
        ("5GB", 5 * 10**9),
        ("160MB", 160 * 10**6),
        ("1GiB", 1 << 30),
        ("2G", 2 * 10**9),
        ("300M", 300 * 10**6),
        ("7k", 7000),
        ("7KiB", 7168),
        ("1TB", 10**12),
        ("1tib", 1 << 40),
        ("1.5GB", 1_500_000_000),
        ("0.1GB", 100_000_000),
        ("1234", 1234),
        ("1234B", 1234),
        (" 5 GB ", 5 * 10**9),
        ("5gb", 5 * 10**9),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert shards.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "5XB",
        "-5GB",
        "5 5GB",
        "1e9",
        "5,5GB",
        "0",
        "0MB",
        "0.1B",
        "5GBB",
        "5Gi",
        "5i",
        "5iB",
        "0x5",
        "٥GB",
        "5\nGB5",
        "inf",
    ],
)
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        shards.parse_size(text)


@pytest.mark.parametrize("text", ["1KB", "5MB", "5GB", "2TB", "1.5GB"])
def test_decimal_units_are_those_of_huggingface_hub(text: str) -> None:
    assert shards.parse_size(text) == parse_size_to_int(text)


@given(SIZES, st.integers(1, 60))
def test_split(sizes: list[int], limit: int) -> None:
    found = shards.split_by_size(sizes, limit)
    assert [i for shard in found for i in shard] == list(range(len(sizes)))
    for shard in found:
        assert len(shard) > 0
        assert sum(sizes[i] for i in shard) <= limit or len([i for i in shard if sizes[i]]) == 1
    for before, after in pairwise(found):
        assert sum(sizes[i] for i in before) + sizes[after[0]] > limit, "the next tensor would have fitted"


def test_split_by_nothing() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        shards.split_by_size([1], 0)


def test_split_as_huggingface_hub_where_no_tensor_is_over_the_limit() -> None:
    import torch

    sizes = [6, 6, 2, 6, 2, 2, 10, 1, 1, 9]
    theirs = split_torch_state_dict_into_shards(
        {f"{i}": torch.zeros(n, dtype=torch.uint8) for i, n in enumerate(sizes)}, max_shard_size=10
    )
    ours = shards.split_by_size(sizes, 10)
    names = shards.shard_names("model", len(ours), ".safetensors")
    assert theirs.filename_to_tensors == {n: [f"{i}" for i in s] for n, s in zip(names, ours, strict=True)}


def test_names() -> None:
    assert shards.shard_names("model", 1, ".safetensors") == ["model.safetensors"]
    assert shards.shard_names("x", 2, ".safetensors") == [
        "x-00001-of-00002.safetensors",
        "x-00002-of-00002.safetensors",
    ]
    assert shards.shard_names("m", 1, ".gguf") == ["m.gguf"]
    assert shards.shard_names("m.x", 2, ".gguf") == ["m.x-00001-of-00002.gguf", "m.x-00002-of-00002.gguf"]


@pytest.mark.parametrize("limit", [100, 250, 1000, 4096, 10**6])
def test_gguf_sets_are_those_of_gguf_py(limit: int, tmp_path: Path) -> None:
    lengths = [10, 50, 20, 3, 30, 62, 63, 100, 1, 1, 400, 7, 20, 5]
    writer = gguf.GGUFWriter(tmp_path / "m x.gguf", "gpt-oss", split_max_size=limit)
    for i, n in enumerate(lengths):
        writer.add_tensor(f"t{i}", np.zeros(n, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = shards.split_by_size([4 * n for n in lengths], limit)
    names = shards.shard_names("m x", len(ours), ".gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name, shard in zip(names, ours, strict=True):
        with LocalFile(tmp_path / name) as file:
            assert [t.name for t in parse(file).tensors] == [f"t{i}" for i in shard]
