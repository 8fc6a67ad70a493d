"""`validate` catches what is wrong: each thing named by its part or its field, its layer, and nothing else named.

Every candidate passes while it is whole, in this same run: the fixture `whole` sees to it before anything is spoilt.
"""

from __future__ import annotations

from pathlib import Path

import commandline
import pytest
from forward_runs import FIXTURES, heldout
from mutations import ALL, BASES, BROKEN, FULL, SIDE, TINY, WEIGHTS, WINDOWED, Mutation, spoilt
from spoils import config

import ckpttool
from ckpttool.checkpoint import open_checkpoint
from ckpttool.validator.budgets import EXACT, FAILED, WITHIN
from ckpttool.validator.failures import Failure
from ckpttool.validator.lockstep import lockstep
from ckpttool.validator.report import Validation

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = 96
"""Three windows of the fixture."""


def validated(reference: str | Path, candidate: Path, level: str) -> Validation:
    text = FIXTURES / "heldout.txt"
    return ckpttool.validate(TINY / reference, candidate, level=level, text=text, tokens=TOKENS, device="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each base's candidate, which is right."""
    folder = tmp_path_factory.mktemp("whole")
    out = {}
    for name, base in BASES.items():
        out[name] = TINY / base.candidate
        if base.made is not None:
            out[name] = folder / base.candidate
            ckpttool.convert(TINY / base.reference, out[name], workers=1, **dict(base.made))
        report = validated(base.reference, out[name], "forward")
        assert report.failures == (), name
        assert report.ok
        assert (report.verdict, report.fidelity) == (WITHIN if base.claim == "lossy" else EXACT, base.claim)
        assert report.forward is not None
        assert (report.forward.first_diverging is None) == (base.claim != "lossy")
    return out


def layer_of(part: str) -> int | None:
    return int(part.split(".")[1]) if part.startswith("layer.") else None


def names(mutations: tuple[Mutation, ...]) -> list[str]:
    assert len({m.name for m in mutations}) == len(mutations)
    return [m.name for m in mutations]


@pytest.mark.parametrize("mutation", WEIGHTS, ids=names(WEIGHTS))
def test_a_part_that_is_wrong(mutation: Mutation, whole: dict[str, Path], tmp_path: Path) -> None:
    """At every level in one go: the part and its layer are named, no other part is, and the walk leaves where it is."""
    candidate = spoilt(mutation, whole[mutation.base], tmp_path)
    report = validated(BASES[mutation.base].reference, candidate, "forward")
    assert (report.verdict, report.ok) == (FAILED, False)
    named = {f.part for f in report.failures if f.part}
    assert named == set(mutation.parts)
    assert {f.part for f in report.failures if f.level == mutation.level} >= named
    assert all(f.layer == layer_of(f.part) for f in report.failures if f.part)
    assert any(mutation.what in f.what for f in report.failures if f.part)
    assert [f for f in report.failures if f.part is None and not about_predictions(f, mutation)] == []
    assert any(part in line for part in mutation.parts for line in report.decided)
    if mutation.diverges is not None:
        assert report.forward is not None
        assert report.forward.first_diverging == (mutation.diverges or None)


def about_predictions(failure: Failure, mutation: Mutation) -> bool:
    """What follows from the one thing: a layer's divergence, a budget of predictions, logits that are not finite."""
    layers = {None, layer_of(mutation.diverges or ""), *map(layer_of, mutation.parts)}
    return failure.level in ("forward", "verdict") and failure.layer in layers


@pytest.mark.parametrize("mutation", SIDE, ids=names(SIDE))
def test_a_side_file_that_is_wrong(mutation: Mutation, whole: dict[str, Path], tmp_path: Path) -> None:
    """The field is named, no part is; and with that aside, the walk leaves in the first layer that it matters to."""
    reference = BASES[mutation.base].reference
    candidate = spoilt(mutation, whole[mutation.base], tmp_path)
    report = validated(reference, candidate, "forward")
    assert (report.verdict, report.ok) == (FAILED, False)
    (failure,) = (f for f in report.failures if f.level in ("structure", "values"))
    assert failure.what.startswith(mutation.what)
    assert (failure.part, failure.layer, failure.level) == (None, None, "structure")
    assert all(f.part is None and about_predictions(f, mutation) for f in report.failures if f is not failure)
    assert report.forward is not None
    assert (report.forward.first_diverging or "") == mutation.diverges


def test_a_window_matters_where_there_is_one(tmp_path: Path) -> None:
    """A model whose first layer sees everything leaves behind its second."""
    pattern = [FULL, WINDOWED, FULL, WINDOWED]
    reference = spoilt(Mutation("", "hf", config(layer_types=pattern)), TINY / "hf", tmp_path / "a")
    candidate = spoilt(Mutation("", "hf", config(sliding_window=16)), reference, tmp_path / "b")
    walked = lockstep(open_checkpoint(reference), open_checkpoint(candidate), [heldout(TOKENS)], lambda c: None)
    assert walked.first_diverging == "layer.1"
    (failure,) = validated(reference, candidate, "structure").failures
    assert failure.what == "config: sliding_window is 16 in the candidate, 32 in the reference"


def test_several_things_at_once(whole: dict[str, Path], tmp_path: Path) -> None:
    """Nothing hides behind another: all parts of all, and each once."""
    some = [m for m in WEIGHTS if m.base == "hf" and m.level == "values"]
    path = whole["hf"]
    for n, mutation in enumerate(some):
        path = spoilt(mutation, path, tmp_path / str(n))
    report = validated("hf-bf16", path, "values")
    named = [f.part for f in report.failures]
    assert sorted(named, key=str) == sorted({part for m in some for part in m.parts})


IN_COMMAND = ("the first scale, one more", "a bias is missing in a GGUF", "lossy: two experts", "rope's theta")


@pytest.mark.parametrize("name", IN_COMMAND)
def test_the_command_fails(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    mutation = next(m for m in ALL if m.name == name)
    reference = TINY / BASES[mutation.base].reference
    candidate = spoilt(mutation, whole[mutation.base], tmp_path)
    result = commandline.run("validate", reference, candidate, "--level", "values", "--json")
    assert (result.code, result.document["verdict"]) == (1, FAILED)
    assert {f["part"] for f in result.document["failures"]} == set(mutation.parts or [None])
    shown = commandline.run("validate", reference, candidate, "--level", "values")
    assert shown.code == 1
    assert all(text in shown.out for text in mutation.parts or [mutation.what])
    assert commandline.run("validate", reference, whole[mutation.base], "--level", "values").code == 0


def test_a_shard_that_is_missing_is_bad_input(whole: dict[str, Path], tmp_path: Path) -> None:
    """There is no model to judge: not a failed validation, but a candidate that cannot be read."""
    candidate = spoilt(BROKEN, whole["hf"], tmp_path)
    result = commandline.run("validate", TINY / "hf-bf16", candidate)
    assert result.code == 3
    assert "model-00001-of-00002.safetensors" in result.err
    with pytest.raises(ckpttool.CkptError, match="model-00001-of-00002"):
        validated("hf-bf16", candidate, "structure")


def test_every_mutation_spoils_something_of_its_own() -> None:
    """The table itself: no two are the same, bases exist, and what is to be named is said."""
    for mutation in ALL:
        assert mutation.parts or mutation.what, mutation.name
        assert mutation.base in BASES
    assert {m.base for m in WEIGHTS} == set(BASES)
    fields = [(m.name, m.base) for m in ALL]
    assert len(set(fields)) == len(ALL)
