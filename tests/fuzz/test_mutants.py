"""Two million mutants of each container's files, by fixed seeds: no defect, and every refusal of the parsers is met.

A mutant that shows a defect is printed; add it to tests/hostile once it is understood.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import pytest
from gguf_mutants import fields, gguf_mutants
from judges import JUDGES, look_closer, place, readable
from seeds import DRAWN, SEEDS
from text_mutants import json_mutants, safetensors_mutants, tokens

from ckpttool.containers import gguf, gguf_reader, safetensors, safetensors_table
from ckpttool.errors import CkptError

Mutants = Callable[[Sequence[bytes], int, int], Iterator[bytes]]

PORTIONS = 8
PORTION = 250_000
NIGHTLY_PORTIONS = 80
CLOSER = 512
"""One of so many is looked at closer."""

CONTAINERS: dict[str, tuple[Mutants, tuple[ModuleType, ...]]] = {
    "safetensors": (safetensors_mutants, (safetensors, safetensors_table)),
    "gguf": (gguf_mutants, (gguf, gguf_reader)),
}

UNMET = (
    "SAFETENSORS_NAME",  # 4,096 bytes; larger than any seed
    "SAFETENSORS_ENTRY",  # 64 KiB of JSON about one tensor
    "{what} in one header",  # 250,000 tensors, or 100,000 of metadata
    "file=self.label, field=key, offset=self.at",  # 256 MiB of key-values
    "{what}, over the limit of",  # 250,000 tensors, or 100,000 of keys
)
"""What small files cannot be refused for; tests/hostile has a large one for each."""


@pytest.mark.parametrize("portion", range(PORTIONS))
@pytest.mark.parametrize("container", CONTAINERS)
def test_mutants(container: str, portion: int) -> None:
    judged(container, portion)


@pytest.mark.nightly
@pytest.mark.parametrize("portion", range(PORTIONS, PORTIONS + NIGHTLY_PORTIONS))
@pytest.mark.parametrize("container", CONTAINERS)
def test_more_mutants(container: str, portion: int) -> None:
    judged(container, portion)


def judged(container: str, portion: int) -> None:
    """The judge's verdict of PORTION mutants, and of some of them by others; enough are good, and enough are bad."""
    mutants, modules = CONTAINERS[container]
    judge, accepted, met = JUDGES[container], 0, set()
    for n, data in enumerate(mutants(SEEDS[container](), PORTION, portion)):
        try:
            verdict = judge(data)
            if n % CLOSER == 0:
                look_closer(container, data, verdict)
        except Exception as defect:
            raise AssertionError(f"mutant {n} of portion {portion}: {data!r}") from defect
        if isinstance(verdict, CkptError):
            met.add(place(verdict))
        else:
            accepted += 1
    assert 0.1 < accepted / PORTION < 0.5
    unmet = {text for module in modules for lines, text in raises(module) if not met & lines}
    assert not {text for text in unmet if not any(known in text for known in UNMET)}


def raises(module: ModuleType) -> Iterator[tuple[set[tuple[str, int]], str]]:
    """Every `raise` of a module's readers: where it stands, and its source."""
    tree = ast.parse(inspect.getsource(module))
    writers = {id(n) for f in ast.walk(tree) if getattr(f, "name", "") in ("render", "_info") for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and id(node) not in writers:
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            yield {(module.__file__ or "", n) for n in lines}, ast.unparse(node)


# Splitters of seeds, and the text formats beside the containers


@pytest.mark.parametrize("name", SEEDS)
def test_split_seeds_are_whole(name: str) -> None:
    """A seed's pieces are its bytes, also of one that is damaged, and most drawn ones are good files."""
    for data in SEEDS[name]():
        assert b"".join(fields(data).fields if name == "gguf" else tokens(data)) == data
    good = [not isinstance(JUDGES[name](data), CkptError) for data in SEEDS[name]()]
    assert sum(good) > len(good) / 3
    if name in CONTAINERS:
        assert all(good[:DRAWN])


@pytest.mark.parametrize("name", ["index", "json", "tokenizer"])
def test_mutated_documents(name: str) -> None:
    documents(name, 50_000, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["index", "json", "tokenizer"])
def test_more_mutated_documents(name: str) -> None:
    documents(name, 2_000_000, 1)


def documents(name: str, count: int, seed: int) -> None:
    """Of these the judges are what Python's own reader says of the same text."""
    judge, accepted = JUDGES[name], 0
    for n, data in enumerate(json_mutants(SEEDS[name](), count, seed)):
        try:
            verdict = judge(data)
            if n % CLOSER == 0 and isinstance(verdict, CkptError):
                readable(verdict)
        except Exception as defect:
            raise AssertionError(f"mutant {n} of seed {seed}: {data!r}") from defect
        accepted += not isinstance(verdict, CkptError)
    assert 0.02 < accepted / count < 0.6
