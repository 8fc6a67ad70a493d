"""Weights by way of a GPU's buffers, with the CPU in its place: who may overwrite what, and when."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from forward_runs import TINY

from ckpttool.checkpoint import open_checkpoint
from ckpttool.errors import InputError
from ckpttool.validator import weights
from ckpttool.validator.weights import HEAD, Feed, ModelSource, _slots

CPU = torch.device("cpu")


def test_each_source_has_two_buffers_in_turns() -> None:
    a, b = object(), object()
    assert _slots([a, b, a, b, a, b, a]) == [0, 1, 2, 3, 0, 1, 2]
    assert _slots([None] * 4) == [0, 1, 0, 1]
    assert _slots([a]) == [0]


@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_two_checkpoints_in_turns(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of every take is there when it is taken, and until the next is."""
    monkeypatch.setattr(weights, "PIECE_NBYTES", piece)
    with ModelSource(open_checkpoint(TINY / "hf")) as a, ModelSource(open_checkpoint(TINY / "hf-bf16")) as b:
        order = [*((s, n) for n in range(4) for s in (a, b)), (a, HEAD), (b, HEAD)]
        with Feed(order, CPU, staged=True) as feed:
            assert len(feed._buffers) == 4
            for n, (source, take) in enumerate(order):
                (feed.head(source) if isinstance(take, str) else feed.layer(source, take))
                buffer = feed._buffers[feed._slots[n]]
                for stored, at in feed._placed[n].rows:
                    held = buffer[at : at + stored.nbytes].numpy().tobytes()
                    assert held == source.files[stored.file].read(stored.offset, stored.nbytes)


def test_leaving_early_stops_the_readers() -> None:
    with ModelSource(open_checkpoint(TINY / "hf")) as source:
        with Feed([(source, n) for n in range(4)], CPU, staged=True) as feed:
            feed.layer(source, 0)
        assert all(read.done() for reads in feed._reads for read in reads)


@pytest.mark.parametrize("staged", [False, True])
def test_a_file_that_ends_early_is_said_when_it_is_needed(staged: bool, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(TINY / "hf", folder)
    checkpoint = open_checkpoint(folder)
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as f:
            f.truncate(file.stat().st_size // 2)
    with (
        ModelSource(checkpoint) as source,
        pytest.raises(InputError, match="early"),
        Feed([(source, n) for n in range(4)], CPU, staged=staged) as feed,
    ):
        for n in range(4):
            feed.layer(source, n)
