"""Every truncation and every flipped bit of the headers of eight good files, which others have written.

No bit of a header is without meaning but those of a GGUF's padding: a flip is refused, or it shows in what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from disagreements import table, unlike
from gguf_peers import verdicts
from judges import JUDGES, readable
from test_gguf import every_tensor, every_thing, written

from ckpttool.errors import CkptError

FIXTURES = Path(__file__).parents[2] / "fixtures"


def fixture(*names: str) -> Callable[[Path], bytes]:
    return lambda folder: FIXTURES.joinpath(*names).read_bytes()


def aligned(folder: Path) -> bytes:
    """As GGUFWriter writes it with an alignment of its own."""

    def fill(writer: Any) -> None:
        writer.add_custom_alignment(64)
        every_tensor(writer)

    return written(folder / "aligned.gguf", fill)


GOOD: dict[str, Callable[[Path], bytes]] = {
    "gptq.safetensors": fixture("formats", "gptq-4", "model.safetensors"),
    "hqq.safetensors": fixture("formats", "hqq-4", "model.safetensors"),
    "modelopt.safetensors": fixture("formats", "modelopt-nvfp4", "model.safetensors"),
    "bitsandbytes.safetensors": fixture("formats", "bitsandbytes-nf4-nested", "model.safetensors"),
    "tensors.gguf": lambda folder: written(folder / "tensors.gguf", every_tensor),
    "everything.gguf": lambda folder: written(folder / "everything.gguf", every_thing),
    "aligned.gguf": aligned,
    "llama.cpp.gguf": fixture("tiny-gpt-oss", "gguf", "split", "tiny-gpt-oss-auto-00002-of-00003.gguf"),
}

LARGE = {
    "openai.safetensors": fixture("tiny-gpt-oss", "openai", "model.safetensors"),
    "unsloth.safetensors": fixture("tiny-gpt-oss", "unsloth", "model.safetensors"),
    "vocabulary.gguf": fixture("tiny-gpt-oss", "gguf", "tiny-gpt-oss-auto.gguf"),
}
SLICES = 8


def content(header: Any) -> Any:
    """What a header says, whatever its bytes."""
    return table(header) if hasattr(header, "version") else (header.tensors, header.metadata)


def flipped(name: str, data: bytes, bits: Iterable[int]) -> list[tuple[bytes, Any]]:
    """Flip each of these bits: refused, or to be seen; the files that are accepted, and what is read of them."""
    judge = JUDGES[name.rpartition(".")[2]]
    whole = bytearray(data)
    before = content(judge(whole))
    accepted = []
    for bit in bits:
        whole[bit // 8] ^= 1 << bit % 8
        verdict = judge(whole)
        if isinstance(verdict, CkptError):
            if bit % 16 == 0:
                readable(verdict)
        else:
            after = content(verdict)
            if after == before:
                assert name.endswith(".gguf"), f"bit {bit} has no meaning"
                assert whole[bit // 8] == 1 << bit % 8, f"bit {bit} has no meaning"
                assert verdict.tensors[0].offset - bit // 8 <= verdict.alignment
                assert not any(data[bit // 8 : verdict.tensors[0].offset])
            accepted.append((bytes(whole) if len(data) < 1 << 16 else b"", verdict))
        whole[bit // 8] ^= 1 << bit % 8
    assert whole == data
    return accepted


@pytest.mark.parametrize("name", GOOD)
def test_every_bit_of_a_header(name: str, tmp_path: Path) -> None:
    """And the format's own reader reads what we read of each file that we accept."""
    data = GOOD[name](tmp_path)
    header = JUDGES[name.rpartition(".")[2]](data)
    accepted = flipped(name, data, range(8 * header.nbytes))
    assert len(accepted) > header.nbytes / 10, "names and values may be others"
    files = [file for file, _ in accepted]
    if name == "llama.cpp.gguf":  # a megabyte each
        return
    if name.endswith(".safetensors"):
        for file, mine in accepted:
            theirs = {n: (v["dtype"], v["shape"], len(v["data"])) for n, v in safetensors.deserialize(file)}
            assert theirs == {t.name: (t.dtype, list(t.shape), t.nbytes) for t in mine.tensors}
        return
    for (_, mine), theirs in zip(accepted, verdicts("llama.cpp", files), strict=True):
        assert not isinstance(theirs, str), theirs
        assert unlike(mine, theirs) in ("", "text with a NUL")


@pytest.mark.parametrize("name", GOOD)
def test_every_truncation(name: str, tmp_path: Path) -> None:
    """Of the header at every byte, of the data at every 64th of it; only a GGUF's last padding may be missing."""
    data = GOOD[name](tmp_path)
    judge = JUDGES[name.rpartition(".")[2]]
    header = judge(data)
    step = max((len(data) - header.nbytes) // 64, 1)
    for n in (*range(header.nbytes + 1), *range(header.nbytes, len(data), step), len(data) - 1):
        verdict = judge(data[:n])
        if isinstance(verdict, CkptError):
            readable(verdict)
        else:
            end = header.tensors[-1].offset + header.tensors[-1].nbytes
            assert end <= n, f"the first {n} bytes are accepted"
            assert name.endswith(".gguf")


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", LARGE)
def test_every_bit_of_a_large_header(name: str, part: int, tmp_path: Path) -> None:
    data = LARGE[name](tmp_path)
    n = 8 * JUDGES[name.rpartition(".")[2]](data).nbytes
    assert flipped(name, data, range(part * n // SLICES, (part + 1) * n // SLICES))
