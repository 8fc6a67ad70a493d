"""What may be asked for together: the table of legal combinations, its defaults, recipes, and what the messages say."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ckpttool.codecs.formats import RECIPES, Recipe, ScaleRule, TieRule
from ckpttool.containers.shards import SAFETENSORS_SHARD
from ckpttool.errors import UsageError
from ckpttool.target import LEGAL, MAX_MEMORY, Target, chosen_recipe, target

TO = ("bf16", "mxfp4", "openai", "gguf")
EXPERTS = ("auto", "keep", "mxfp4", "bf16", "f16", "f32", "q8_0")
OUTTYPE = ("auto", "bf16", "f16", "f32", "q8_0", "mxfp4_moe")
DTYPE = ("bf16", "f32")

LEGAL_EXPERTS = {
    "bf16": {"auto", "keep", "bf16", "f32"},
    "mxfp4": {"auto", "keep", "mxfp4"},
    "openai": {"auto", "keep", "mxfp4"},
    "gguf": set(EXPERTS),
}


def is_legal(to: str, experts: str | None, outtype: str | None, dtype: str | None) -> bool:
    """The issue's rules, said again."""
    if experts is not None and experts not in LEGAL_EXPERTS[to]:
        return False
    if outtype is not None and to != "gguf":
        return False
    if dtype is not None and to not in ("bf16", "mxfp4"):
        return False
    return not (outtype == "mxfp4_moe" and experts not in (None, "auto", "keep", "mxfp4"))


COMBINATIONS = list(itertools.product(TO, (None, *EXPERTS), (None, *OUTTYPE), (None, *DTYPE)))


def test_every_combination_of_options() -> None:
    refused = 0
    for to, experts, outtype, dtype in COMBINATIONS:
        asked = {"to": to, "experts": experts, "outtype": outtype, "dtype": dtype}
        if is_legal(to, experts, outtype, dtype):
            made = target("out", **asked)  # type: ignore[arg-type]
            assert (made.to, made.experts, made.outtype) == (to, experts or "auto", outtype or "auto")
            assert made.dtype == (dtype or "bf16")
            continue
        refused += 1
        with pytest.raises(UsageError) as caught:
            target("out", **asked)  # type: ignore[arg-type]
        names_a_legal_choice(caught.value, to)
    assert refused == len(COMBINATIONS) - (15 + 12 + 4 + 52)


def names_a_legal_choice(error: UsageError, to: str) -> None:
    assert error.exit_code == 2
    assert error.hint
    words = {word for row in LEGAL[to].values() for word in row} | {f"--to {other}" for other in TO}
    assert any(word in error.hint for word in words), error


def test_the_table_lists_every_word_of_the_command_line() -> None:
    assert set(LEGAL) == set(TO)
    for option, words in (("experts", EXPERTS), ("outtype", OUTTYPE), ("dtype", DTYPE)):
        assert {word for row in LEGAL.values() for word in row[option]} == set(words)


def test_defaults() -> None:
    made = target("out", to="bf16")
    assert made == Target(Path("out"), "bf16", "auto", "auto", "bf16", RECIPES["best"], False, SAFETENSORS_SHARD, None)
    assert target("x.gguf").max_shard_size is None
    assert target("x.gguf", max_shard_size=7).max_shard_size == 7
    assert (SAFETENSORS_SHARD, MAX_MEMORY) == (5 * 10**9, 512 * 10**6)


def test_the_name_of_the_target_says_gguf() -> None:
    assert target("x.gguf").to == "gguf"
    for name in ("x.GGUF", "x.Gguf"):
        assert (target(name).to, target(name).is_file, target(name).path) == ("gguf", True, Path(name))
    assert target("out", to="gguf").dialect == "gguf"
    assert not target("out", to="gguf").is_file
    assert [target("out", to=to).dialect for to in TO] == ["hf-bf16", "hf", "openai", "gguf"]


@pytest.mark.parametrize(
    ("path", "asked", "says"),
    [
        ("out", {}, "TARGET does not say what to convert to; give --to {bf16,mxfp4,openai,gguf}"),
        ("out", {"to": "nvfp4"}, "--to nvfp4: unknown; choose one of bf16, mxfp4, openai, gguf"),
        ("x.gguf", {"to": "bf16"}, "--to bf16 writes a folder, but TARGET is x.gguf; leave out .gguf"),
        ("x.GGUF", {"to": "bf16"}, "--to bf16 writes a folder, but TARGET is x.GGUF; leave out .GGUF, or say"),
        ("out", {"to": "bf16", "outtype": "bf16"}, "leave it out; it goes with --to gguf"),
        ("x.gguf", {"dtype": "f32"}, "leave it out; it goes with --to bf16, --to mxfp4"),
        ("out", {"to": "mxfp4", "experts": "q8_0"}, "choose one of auto, keep, mxfp4"),
        ("x.gguf", {"outtype": "mxfp4_moe", "experts": "f16"}, "use --outtype q8_0 for the rest"),
        ("x.gguf", {"outtype": "mxfp4"}, "choose one of auto, bf16, f16, f32, q8_0, mxfp4_moe"),
        ("x.gguf", {"recipe": "worst"}, "--recipe worst: unknown; choose one of best, ocp"),
        ("x.gguf", {"scale_rule": "ceil"}, "--scale-rule ceil: unknown; choose one of floor, even, rceil, best"),
        ("x.gguf", {"model_name": "a\nb"}, "--model-name 'a\\nb': is no text of one line; give a name in UTF-8"),
        ("x.gguf", {"model_name": "\udcff"}, "--model-name '\\udcff': is no text of one line; give a name in UTF-8"),
        ("x.gguf", {"ties": "up"}, "--ties up: unknown; choose one of even, away, zero"),
    ],
)
def test_messages(path: str, asked: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        target(path, **asked)  # type: ignore[arg-type]
    assert says in str(caught.value)


K_QUANTS = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k", "q4_k_s", "q4_k_m", "Q4_K_M", "q5_k_s", "q5_k_m", "q6_k",
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_s", "iq4_xs", "tq1_0", "tq2_0",
)  # fmt: skip


@pytest.mark.parametrize("word", K_QUANTS)
@pytest.mark.parametrize("option", ["to", "outtype", "experts"])
def test_k_quants_are_explained(option: str, word: str) -> None:
    asked = {option: word}
    with pytest.raises(UsageError) as caught:
        target("x.gguf", **asked)  # type: ignore[arg-type]
    said = str(caught.value)
    assert f"--{option} {word} has blocks of 256 elements" in said
    assert "2880 are no multiple of 256" in said
    hint = caught.value.hint or ""
    typed = [w.strip("(,") for w in hint.split()]
    assert "mxfp4_moe" in typed or "mxfp4" in typed
    # What the hint says to type is accepted.
    instead = dict(itertools.pairwise(typed))
    options = {k.removeprefix("--"): v for k, v in instead.items() if k.startswith("--")}
    assert target("out", **{"to": "gguf", **options}).to == "gguf"  # type: ignore[arg-type]


def test_other_words_are_no_k_quants() -> None:
    for word in ("q4_0", "q8_0", "mxfp4", "nvfp4", "q4_k_m_x"):
        asked = {"outtype": word}
        if word == "q8_0":
            assert target("x.gguf", **asked).outtype == word  # type: ignore[arg-type]
            continue
        with pytest.raises(UsageError, match="does not go with"):
            target("x.gguf", **asked)  # type: ignore[arg-type]


def test_recipes() -> None:
    for name, recipe in RECIPES.items():
        assert chosen_recipe(name) is recipe
        assert chosen_recipe(recipe) is recipe
        # Rules that a named recipe has give that recipe's name.
        assert chosen_recipe(name, recipe.scale, recipe.ties).name == name
    assert chosen_recipe("best", "floor").name == "ocp"
    assert chosen_recipe("ocp", "rceil", "zero").name == "modelopt"
    assert chosen_recipe("best", None, "away") == Recipe("best/away", ScaleRule.best, TieRule.away)
    assert chosen_recipe("llama.cpp", None, "even") == Recipe("floor/even", ScaleRule.floor, TieRule.even, False)
