"""Our parsers against the formats' own: safetensors (Rust), llama.cpp's gguf.cpp (C++) and gguf-py."""

from __future__ import annotations

import json

import pytest
import safetensors
from disagreements import GGUF_PY, LLAMA_CPP, SAFETENSORS, TWICE, Comparison, Known, unlike
from gguf_mutants import gguf_mutants
from gguf_peers import verdicts
from judges import of_gguf, of_safetensors
from seeds import gguf_seeds, safetensors_seeds
from text_mutants import safetensors_mutants

from ckpttool.errors import CkptError


def with_safetensors(count: int, seed: int) -> None:
    found = Comparison(SAFETENSORS)
    for data in safetensors_mutants(safetensors_seeds(), count, seed):
        verdict, theirs = of_safetensors(data), ""
        try:
            table = safetensors.deserialize(data)
        except safetensors.SafetensorError as error:
            theirs = str(error)
        ours = verdict.message if isinstance(verdict, CkptError) else ""
        if not ours and not theirs:
            mine = {t.name: (t.dtype, list(t.shape), data[t.offset : t.offset + t.nbytes]) for t in verdict.tensors}
            assert mine == {name: (v["dtype"], v["shape"], bytes(v["data"])) for name, v in table}, data
        if ours and not theirs and "duplicate name" not in ours and _repeats(data):
            ours = TWICE
        found.add(data, ours, theirs)
    found.done()


def _repeats(data: bytes) -> bool:
    """Whether the header's object has a name twice."""
    pairs = json.JSONDecoder(object_pairs_hook=list).decode(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    names = [name for name, _ in pairs]
    return len(set(names)) < len(names)


def with_gguf(peer: str, known: tuple[Known, ...], count: int, seed: int) -> None:
    found, files = Comparison(known), list(gguf_mutants(gguf_seeds(), count, seed))
    for data, theirs in zip(files, verdicts(peer, files), strict=True):
        verdict = of_gguf(data)
        if isinstance(verdict, CkptError):
            found.add(data, verdict.message, theirs if isinstance(theirs, str) else "")
        else:
            found.add(data, "", theirs if isinstance(theirs, str) else unlike(verdict, theirs))
    found.done()


def test_safetensors() -> None:
    with_safetensors(200_000, 1)


def test_llama_cpp() -> None:
    with_gguf("llama.cpp", LLAMA_CPP, 50_000, 1)


def test_gguf_py() -> None:
    with_gguf("gguf-py", GGUF_PY, 4_000, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_more_of_safetensors(seed: int) -> None:
    with_safetensors(200_000, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_more_of_llama_cpp(seed: int) -> None:
    with_gguf("llama.cpp", LLAMA_CPP, 200_000, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_more_of_gguf_py(seed: int) -> None:
    with_gguf("gguf-py", GGUF_PY, 20_000, seed)
