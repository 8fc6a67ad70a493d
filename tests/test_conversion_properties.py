"""P17 to P22: whole conversions of random models, from every dialect to every other, however they are cut up.

An example is a model of random sizes and numbers, written by others' libraries, and what is asked of it. It is planned,
converted twice, read back by others' libraries, and inspected. Deaths by SIGKILL are in test_execute.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import builders
import pytest
from builders import Model, Sizes
from crash_runs import tree
from hypothesis import given
from hypothesis import strategies as st
from independent import Mxfp4, Part, parts
from test_properties import every_example
from test_steps import assert_tiles

import ckpttool
from ckpttool import api, steps
from ckpttool.planner import Plan
from ckpttool.steps import target_ranges
from ckpttool.verifier import find_receipt

DIALECTS = ("hf", "hf-bf16", "unsloth", "openai", "gguf", "gguf-bf16")
TARGETS = ("bf16", "mxfp4", "openai", "gguf")


@dataclass(frozen=True)
class Example:
    """A model in a dialect, what it shall become, and how that is cut up."""

    sizes: Sizes
    seed: int
    dialect: str
    shards: int
    to: str
    slab_nbytes: int
    workers: int
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    heads = draw(st.integers(1, 2))
    sizes = Sizes(
        layers=draw(st.sampled_from([1, 1, 1, 2])),
        experts=draw(st.integers(1, 3)),
        hidden=draw(st.sampled_from([32, 64])),
        intermediate=draw(st.sampled_from([32, 64, 96])),
        heads=heads * draw(st.integers(1, 2)),
        kv_heads=heads,
        head_dim=draw(st.sampled_from([32, 64])),
        vocab=draw(st.integers(290, 310)),
    )
    to = draw(st.sampled_from(TARGETS))
    options: dict[str, Any] = {"model_name": "x"} if to == "gguf" else {}
    if draw(st.booleans()):
        options["max_shard_size"] = draw(st.integers(40_000, 200_000))
    if to == "mxfp4":
        options["recipe"] = draw(st.sampled_from(sorted(ckpttool.RECIPES)))
    seed, dialect, shards = draw(st.integers(0, 99)), draw(st.sampled_from(DIALECTS)), draw(st.integers(1, 3))
    slab = draw(st.sampled_from([5_000, 30_000, 8 << 20]))
    return Example(sizes, seed, dialect, shards, to, slab, draw(st.integers(1, 2)), options)


def written(example: Example, folder: Path) -> Path:
    model = Model(example.sizes, example.seed)
    if example.dialect.startswith("gguf"):
        experts = "BF16" if example.dialect == "gguf-bf16" else "MXFP4"
        folder.mkdir()
        return builders.write_gguf(model, folder / "in.gguf", experts=experts)
    return builders.write(model, folder / "in", example.dialect, shards=example.shards)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """In memory if possible: a conversion waits for the disk several times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@every_example
@given(examples())
def test_conversions(scratch: Path, example: Example) -> None:
    work = scratch / "example"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source, options = written(example, work / "source"), dict(example.options)
    if (example.dialect, example.to) == ("openai", "gguf"):  # the tokenizer must come from somewhere
        options["reference"] = builders.write(Model(example.sizes, example.seed), work / "reference", "hf")
    name = "out.gguf" if example.to == "gguf" else "out"
    with mock.patch.object(steps, "SLAB_NBYTES", example.slab_nbytes):
        for run in ("once", "again"):
            (work / run).mkdir()
            ckpttool.convert(
                source, work / run / name, to=example.to, workers=example.workers, verify=run == "once", **options
            )
        everything_once(api.plan(source, work / "planned" / name, to=example.to, **options))
    made = first_file(work / "once", name)
    config = example.sizes.config
    counts_stay(parts(source, config), parts(made, config))
    hashes_are_the_files(made)
    same_parts(source, made)
    assert tree(work / "once") == tree(work / "again"), "P21"


def first_file(folder: Path, name: str) -> Path:
    """The target, or the first file of a split set."""
    return folder / name if (folder / name).exists() else min(folder.glob("*-00001-of-*.gguf"))


def everything_once(plan: Plan) -> None:
    """P17. Every byte of every source tensor is read once, and every target byte written once."""
    slabs = [(plan.steps[s.step], s) for s in plan.slabs]
    read = [r for step, s in slabs for rs in step.source.ranges(s.start, s.stop, step.row_length) for r in rs]
    assert_tiles(read, {(t.file, t.name): (t.offset, t.nbytes) for w in plan.source.weights for t in w.stored})
    made = [r for step, s in slabs for r in target_ranges(step, s)]
    assert_tiles(made, {(t.file, t.name): (t.offset, t.nbytes) for f in plan.files for t in f.tensors})


def counts_stay(before: dict[str, Part], after: dict[str, Part]) -> None:
    """P18. By header readers that are not ours: the same parts, and each of the same shape."""

    def shapes(found: dict[str, Part]) -> dict[str, tuple[int, ...]]:
        return {name: (part.codes if isinstance(part, Mxfp4) else part).shape for name, part in found.items()}

    assert shapes(after) == shapes(before)
    assert sum(map(prod, shapes(after).values())) > 1000


def hashes_are_the_files(made: Path) -> None:
    """P19. Every file that lies there is in the receipt, with its size and sha256."""
    receipt = find_receipt(made)
    rows = {row["name"]: (row["nbytes"], row["sha256"]) for row in json.loads(receipt.read_text())["files"]}
    files = [p for p in receipt.parent.iterdir() if p != receipt]
    found = {p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}
    assert rows == found


def same_parts(source: Path, made: Path) -> None:
    """P20. `inspect` lists the same parts and parameters, and axes as long where a weight is one part on both sides.

    In any order, for Hugging Face stores BF16 experts transposed; which way they lie is P18's.
    """
    before, after = ckpttool.inspect(source), ckpttool.inspect(made)
    assert after.parameters == before.parameters
    named = [{n for t in r.tensors for n in t.part.split("+")} for r in (before, after)]
    whole = [{n.partition("[")[0] for n in names} for names in named]
    assert whole[0] == whole[1]
    shapes = [{t.part: sorted(t.shape) for t in r.tensors} for r in (before, after)]
    both = shapes[0].keys() & shapes[1].keys()
    assert {p: shapes[0][p] for p in both} == {p: shapes[1][p] for p in both}
    assert {"embed", "head", "norm"} <= both
