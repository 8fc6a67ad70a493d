"""The checkpoints of full size that other tests stand on: what is published about them holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from header_checkpoints import write_headers

from ckpttool.checkpoint import open_checkpoint

PUBLISHED = {"20b": (459, 3, 13_761_264_768, 20_914_757_184), "120b": (687, 15, 65_248_815_744, 116_829_156_672)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_safetensors_are_as_published(size: str, tmp_path: Path) -> None:
    found = open_checkpoint(write_headers(tmp_path / size, size))
    tensors, shards, nbytes, parameters = PUBLISHED[size]
    assert (found.arch and found.arch.name, found.dialect and found.dialect.name) == ("gpt-oss", "hf")
    assert (sum(len(w.stored) for w in found.weights), len(found.files)) == (tensors, shards)
    assert (found.nbytes, found.parameters, found.problems) == (nbytes, parameters, ())
    assert sum(p.stat().st_blocks * 512 for p in (tmp_path / size).iterdir()) < 2_000_000


@pytest.mark.parametrize(("size", "nbytes"), [("20b", 41_829_514_368), ("120b", 233_658_313_344)])
def test_bf16_is_as_published(size: str, nbytes: int, tmp_path: Path) -> None:
    found = open_checkpoint(write_headers(tmp_path / size, size, format="bf16"))
    assert found.dialect is not None and found.dialect.name == "hf-bf16"
    assert (found.nbytes, found.parameters, found.problems) == (nbytes, PUBLISHED[size][3], ())


@pytest.mark.parametrize("format", ["mxfp4", "bf16"])
def test_a_gguf_has_the_same_parameters(format: str, tmp_path: Path) -> None:
    found = open_checkpoint(write_headers(tmp_path / "g", "20b", "gguf", format))
    assert found.dialect is not None and found.dialect.name == "gguf"
    assert (len(found.weights), found.parameters, found.problems) == (459, PUBLISHED["20b"][3], ())
