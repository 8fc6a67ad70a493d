"""Mutants through `inspect`: its verdict is the parser's, and `--check` reports on every one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from judges import JUDGES
from memory_file import NAME
from seeds import SEEDS
from test_mutants import CONTAINERS

from ckpttool import inspect
from ckpttool.errors import CkptError, LimitError


@pytest.mark.parametrize("container", CONTAINERS)
def test_inspected(container: str, tmp_path: Path) -> None:
    inspected(container, 2_000, 0, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("container", CONTAINERS)
def test_more_inspected(container: str, seed: int, tmp_path: Path) -> None:
    inspected(container, 50_000, seed, tmp_path)


def inspected(container: str, count: int, seed: int, folder: Path) -> None:
    path = folder / f"{NAME}.{container}"
    for n, data in enumerate(CONTAINERS[container][0](SEEDS[container](), count, seed)):
        path.write_bytes(data)
        named = container == "gguf" and data[8:9] != b"{"  # a name counts where the content says nothing
        read_as = "gguf" if data.startswith(b"GGUF") or named else "safetensors"
        verdict = JUDGES[read_as](data)
        try:
            report = None if isinstance(verdict, LimitError) else inspect(path, check=True)
            if not isinstance(verdict, CkptError):
                assert report is not None
                assert report.container == read_as
                assert len(report.tensors) <= len(verdict.tensors)  # codes and scales are one row
                continue
            with pytest.raises(type(verdict)) as caught:
                inspect(path)
            assert caught.value.message == verdict.message
            assert report is None or not report.ok
        except Exception as defect:
            raise AssertionError(f"mutant {n} of seed {seed}: {data!r}") from defect
