"""GGUFs against llama.cpp: its converter byte for byte, its quantizer, its forward pass; and GGUF to GGUF."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import builders
import converter_runs
import gguf
import llamacpp
import numpy as np
import pytest
import torch
from builders import Model, Sizes, Tensor, Tensors
from independent import Array, Mxfp4, floats, parts, same, stored
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ckpttool
from ckpttool.errors import CkptError
from ckpttool.reports import Conversion

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROOT = FIXTURES / "tiny-gpt-oss"
GGUF = ROOT / "gguf"
sys.path.insert(0, str(FIXTURES / "make"))

import oddities  # noqa: E402

README = """---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
language:
- en
- ko
tags:
- vllm
- kjv
base_model:
- openai/gpt-oss-20b
datasets:
- somebody/some-text
---

# A model card
"""
SAMPLING = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "eos_token_id": [271], "do_sample": True}


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return ckpttool.convert(source, target, workers=2, **options)


# --- the converter, byte for byte ---

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """One folder, made by `make` under a given folder, and options that both converters get."""

    make: Make
    outtype: str = "auto"
    split: str | None = None
    model_name: str | None = None
    default_name: bool = False
    their_outtype: str | None = None


def fixture(name: str) -> Make:
    return lambda _: ROOT / name


def folder(
    dialect: str,
    *,
    name: str = "in",
    sizes: Sizes = Sizes(),  # noqa: B008
    dtype: str = "BF16",
    change: Callable[[Tensors], None] = lambda t: None,
    cuts: tuple[int, ...] = (),
    first: int = 1,
    index: bool = True,
    more: dict[str, str] | None = None,
) -> Make:
    """A random folder called `name`, its tensors in order of name cut into shards at `cuts` hundredths."""

    def make(at: Path) -> Path:
        path = builders.write(Model(sizes), at / name, dialect, dtype=dtype, change=change)
        if cuts:
            resharded(path, cuts, first, index)
        for file, text in (more or {}).items():
            (path / file).write_text(text, "utf-8")
        return path

    return make


def resharded(path: Path, cuts: tuple[int, ...], first: int, index: bool) -> None:
    """In order of name, so that llama.cpp's converter pairs `_scales` rightly; from shard number `first` on."""
    made = builders.read(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(made)
    edges = [0, *(len(names) * c // 100 for c in cuts), len(names)]
    last = len(cuts) + first
    weight_map = {}
    for i, (start, stop) in enumerate(pairwise(edges)):
        file = f"model-{i + first:05d}-of-{last:05d}.safetensors"
        builders.save(path / file, {n: made[n] for n in names[start:stop]})
        weight_map |= dict.fromkeys(names[start:stop], file)
    if index:
        builders.write_index(path, weight_map, sum(t.array.nbytes for t in made.values()))


def fine(made: Tensors) -> None:
    """F32 and F16 values that BF16 does not hold."""
    rng = np.random.default_rng(11)
    for name, t in made.items():
        if t.dtype in ("F32", "F16"):
            made[name] = Tensor(t.dtype, rng.normal(0, 0.1, t.array.shape).astype(t.array.dtype))


CASES = {
    **{f"hf {t}": Case(fixture("hf"), t, model_name="tiny") for t in ("auto", "bf16", "f16", "f32", "q8_0")},
    **{f"hf-bf16 {t}": Case(fixture("hf-bf16"), t) for t in ("auto", "bf16", "f16", "f32", "q8_0")},
    "parent q8_0": Case(fixture("parent"), "q8_0"),
    "parent f16": Case(fixture("parent"), "f16"),
    **{f"F32 {t}": Case(folder("hf-bf16", dtype="F32", change=fine), t) for t in ("bf16", "f16", "f32", "q8_0")},
    **{f"F16 {t}": Case(folder("hf-bf16", dtype="F16", change=fine), t) for t in ("auto", "bf16", "f32", "q8_0")},
    # The converter's auto knows BF16 and F16 alone, and makes F16 of F32; ours is the first tensor's dtype.
    "F32 auto": Case(folder("hf-bf16", dtype="F32", change=fine), their_outtype="f32"),
    "MXFP4 with F32": Case(folder("hf", dtype="F32", change=fine), their_outtype="f32"),
    "MXFP4 with F16": Case(folder("hf", dtype="F16", change=fine), "auto"),
    "twelve layers": Case(folder("hf", sizes=Sizes(layers=12, experts=2))),
    "twelve layers, BF16, shards": Case(folder("hf-bf16", sizes=Sizes(layers=12, experts=2), cuts=(30, 60))),
    "three shards": Case(folder("hf", cuts=(25, 70))),
    "three shards from zero": Case(folder("hf", cuts=(25, 70), first=0)),
    "no index": Case(folder("hf", cuts=(40,), index=False)),
    "card and sampling": Case(
        folder("hf", name="Some-Body-20b-v1.2-chat", more={
            "README.md": README, "generation_config.json": json.dumps(SAMPLING)}),
    ),
    "bare name": Case(folder("hf-bf16", name="모델 名")),
    "split MXFP4": Case(fixture("hf"), split="1500K", model_name="tiny"),
    "split BF16": Case(fixture("hf-bf16"), split="2M"),
    "split F32": Case(folder("hf-bf16", dtype="F32"), "f32", split="100K"),
    "split that needs one file": Case(folder("hf"), split="1G"),
    "default name": Case(folder("hf", name="tiny-gpt-oss-20b-instruct"), default_name=True),
    "default name, BF16": Case(folder("hf-bf16", name="mine"), "q8_0", default_name=True),
}  # fmt: skip


TRAP = "scales apart"


def scales_apart(at: Path) -> Path:
    """Square experts, and all `_scales` in the last shard."""
    whole = builders.write(Model(Sizes(hidden=64, intermediate=64, experts=2)), at / "whole", "hf")
    oddities.scales_apart(whole, at / "in")
    return at / "in"


RUNS = {**CASES, TRAP: Case(scales_apart)}


@dataclass(frozen=True)
class Run:
    """A case's source and what the converter wrote, by file name."""

    case: Case
    source: Path
    written: dict[str, bytes]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Run]:
    """One run of the converter over all cases, whichever worker of pytest-xdist comes first."""
    base = tmp_path_factory.getbasetemp()
    base = (base if worker_id == "master" else base.parent) / "converter"
    base.mkdir(exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "sources.json").exists():
            (base / "sources.json").write_text(json.dumps(run_converter(base)))
    sources = json.loads((base / "sources.json").read_text())
    return {
        name: Run(case, Path(sources[name]), {p.name: p.read_bytes() for p in (base / str(i) / "theirs").iterdir()})
        for i, (name, case) in enumerate(RUNS.items())
    }


def run_converter(base: Path) -> dict[str, str]:
    """Make every case's source and convert it; where the sources are."""
    rows, sources = [], {}
    for i, (name, case) in enumerate(RUNS.items()):
        here = base / str(i)
        (here / "theirs").mkdir(parents=True)
        source = case.make(here)
        out = here / "theirs" if case.default_name else here / "theirs" / "out.gguf"
        rows.append({"source": source, "out": out, "outtype": case.their_outtype or case.outtype, "split": case.split,
                     "model_name": case.model_name})  # fmt: skip
        sources[name] = str(source)
    converter_runs.run_all(rows)
    return sources


@pytest.mark.parametrize("name", CASES)
def test_every_byte_is_the_converters(name: str, converted: dict[str, Run], tmp_path: Path) -> None:
    run = converted[name]
    target = tmp_path if run.case.default_name else tmp_path / "out.gguf"
    convert(
        run.source,
        target,
        to="gguf",
        outtype=run.case.outtype,
        max_shard_size=run.case.split,
        model_name=run.case.model_name,
    )
    ours = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".gguf"}
    assert sorted(ours) == sorted(run.written)
    for file, data in run.written.items():
        assert ours[file] == data, first_difference(ours[file], data)
    assert len(ours) > 1 or run.case.split in (None, "1G")


def first_difference(ours: bytes, theirs: bytes) -> str:
    size = min(len(ours), len(theirs))
    at = next((i for i in range(size) if ours[i] != theirs[i]), size)
    near = slice(max(0, at - 60), at + 60)
    return f"{len(ours)} and {len(theirs)} bytes; from {at} on {ours[near]!r} is not {theirs[near]!r}"


@pytest.mark.parametrize(("dialect", "like"), [("openai", "hf"), ("unsloth", "hf-bf16")])
def test_other_dialects_are_ordered_as_one_hf_file(dialect: str, like: str, tmp_path: Path) -> None:
    model = Model(Sizes(layers=11, experts=2))
    builders.write(model, tmp_path / "like", like)
    source = builders.write(model, tmp_path / dialect, dialect, shards=2)
    for name, path in (("a", source), ("b", tmp_path / "like")):
        convert(path, tmp_path / f"{name}.gguf", model_name="x", reference=tmp_path / "like")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_scales_in_a_later_shard_are_paired_by_name(converted: dict[str, Run], tmp_path: Path) -> None:
    """llama.cpp's converter takes the last blocks it saw; with square experts it goes wrong without a word."""
    run = converted[TRAP]
    (tmp_path / "theirs.gguf").write_bytes(run.written["out.gguf"])
    convert(run.source, tmp_path / "ours.gguf")
    truth, ours, theirs = parts(run.source), parts(tmp_path / "ours.gguf"), parts(tmp_path / "theirs.gguf")
    assert all(same(ours[p], x) for p, x in truth.items())
    wrong = [p for p, x in truth.items() if not same(theirs[p], x)]
    assert "layer.0.down" in wrong, "llama.cpp has mended its converter: say so in the README"


# --- the quantizer ---


@pytest.fixture(scope="module")
def requantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent, whose values lie on no grid: BF16 by us, MXFP4_MOE by llama-quantize."""
    base = tmp_path_factory.mktemp("quantizer")
    convert(ROOT / "parent", base / "bf16.gguf", outtype="bf16", model_name="x")
    llamacpp.quantize(base / "bf16.gguf", base / "moe.gguf", "MXFP4_MOE")
    return base


def test_experts_by_the_recipe_of_llama_cpp_are_the_quantizers(requantized: Path, tmp_path: Path) -> None:
    theirs = stored(requantized / "moe.gguf")
    for source in (ROOT / "parent", requantized / "bf16.gguf"):
        path = tmp_path / f"{source.stem}.gguf"
        report = convert(source, path, experts="mxfp4", recipe="llama.cpp", model_name="x")
        ours = stored(path)
        experts = [n for n in ours if n.endswith("_exps.weight")]
        assert len(experts) == 12
        assert all(ours[n] == theirs[n] for n in experts)
        assert Counter(t.dtype for t in ours.values()) == {"F32": 49, "BF16": 18, "MXFP4": 12}
        assert report.recipe is not None
        assert report.recipe["name"] == "llama.cpp"
        assert gguf.GGUFReader(path).fields["general.file_type"].contents() == 38


@pytest.mark.parametrize("source", ["parent", "bf16.gguf"])
def test_mxfp4_moe_is_what_the_quantizer_writes(source: str, requantized: Path, tmp_path: Path) -> None:
    """Every tensor's type, shape and bytes; llama-quantize orders the file in its own way."""
    path = ROOT / source if source == "parent" else requantized / source
    convert(path, tmp_path / "out.gguf", outtype="mxfp4_moe", recipe="llama.cpp", model_name="x")
    assert stored(tmp_path / "out.gguf") == stored(requantized / "moe.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    theirs = gguf.GGUFReader(requantized / "moe.gguf").fields
    known = {k: v.contents() for k, v in theirs.items() if not k.startswith("GGUF.")}
    assert {k: v.contents() for k, v in fields.items() if not k.startswith("GGUF.")} == known


def test_mxfp4_moe_keeps_mxfp4_experts(tmp_path: Path) -> None:
    """llama-quantize copies what is MXFP4 already."""
    convert(ROOT / "hf", tmp_path / "out.gguf", outtype="mxfp4_moe")
    llamacpp.quantize(GGUF / "tiny-gpt-oss-auto.gguf", tmp_path / "theirs.gguf", "MXFP4_MOE")
    assert stored(tmp_path / "out.gguf") == stored(tmp_path / "theirs.gguf")


# --- the forward pass ---


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    text = (FIXTURES / "heldout.txt").read_text(encoding="utf-8")
    ids: list[int] = AutoTokenizer.from_pretrained(ROOT / "hf")(text, add_special_tokens=False)["input_ids"]
    return ids[:64]


@pytest.fixture(scope="module")
def expected(tokens: list[int]) -> Array:
    """Logits of transformers in FP32; YaRN's corners rounded outward, as llama.cpp always does (a GGUF cannot say)."""
    config = AutoConfig.from_pretrained(ROOT / "hf-bf16")
    config.rope_parameters["truncate"] = True
    model = AutoModelForCausalLM.from_pretrained(
        ROOT / "hf-bf16", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        out: Array = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    return out


@pytest.mark.parametrize("source", ["hf", "openai", "unsloth"])
def test_llama_cpp_computes_the_logits_of_transformers(
    source: str, expected: Array, tokens: list[int], tmp_path: Path
) -> None:
    """All in F32, so that only the order of summation differs: 1.4e-5 measured on logits up to 18, whose last bit is
    2e-6; 5e-4 leaves room for other machines, a wrong layout gives 4."""
    convert(ROOT / source, tmp_path / "f32.gguf", experts="f32", outtype="f32", reference=ROOT / "hf")
    assert {t.dtype for t in stored(tmp_path / "f32.gguf").values()} == {"F32"}
    np.testing.assert_allclose(llamacpp.logits(tmp_path / "f32.gguf", tokens), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("options", [
    {}, {"outtype": "mxfp4_moe"}, {"outtype": "q8_0"}, {"experts": "bf16"}, {"experts": "f16", "outtype": "f16"},
    {"max_shard_size": "1500KB"},
], ids=str)  # fmt: skip
def test_llama_cpp_runs_what_we_write(
    options: dict[str, str], expected: Array, tokens: list[int], tmp_path: Path
) -> None:
    """ggml rounds activations to the weights' format, Q8_0's by 1/254 of a block's maximum: 0.025 to 0.035 of error
    were measured with fixtures that llama.cpp wrote; three times that is allowed, on logits of deviation 4."""
    convert(ROOT / "hf", tmp_path / "out.gguf", **options)
    first = next(p for p in sorted(tmp_path.glob("*.gguf")))
    error = llamacpp.logits(first, tokens) - expected
    assert np.sqrt((error**2).mean()) < 0.1
    assert expected.std() > 3


# --- GGUF to GGUF ---


@pytest.mark.parametrize("name", ["auto", "bf16", "q8_0", "mxfp4_moe", "q4_k_m"])
def test_a_copy_is_the_same_file(name: str, tmp_path: Path) -> None:
    source = GGUF / f"tiny-gpt-oss-{name}.gguf"
    report = convert(source, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()
    assert report.fidelity["bytes"] == len(report.tensors)


def test_splitting_and_joining(tmp_path: Path) -> None:
    """Split as the converter splits; a split set becomes one file again."""
    source = GGUF / "tiny-gpt-oss-auto.gguf"
    convert(source, tmp_path / "tiny-gpt-oss-auto.gguf", max_shard_size="1500K")
    made = sorted(tmp_path.glob("*.gguf"))
    assert [p.name for p in made] == sorted(p.name for p in (GGUF / "split").iterdir())
    for p in made:
        assert p.read_bytes() == (GGUF / "split" / p.name).read_bytes()
    convert(made[0], tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == source.read_bytes()


def test_experts_of_a_gguf_to_mxfp4(tmp_path: Path) -> None:
    source = GGUF / "tiny-gpt-oss-bf16.gguf"
    report = convert(source, tmp_path / "out.gguf", experts="mxfp4", recipe="ocp")
    before, after = stored(source), stored(tmp_path / "out.gguf")
    assert {n: t for n, t in after.items() if "_exps.weight" not in n} == {
        n: t for n, t in before.items() if "_exps.weight" not in n
    }
    originals = parts(source)
    for part, x in parts(tmp_path / "out.gguf").items():
        if part.split(".")[-1] in ("gate", "up", "down"):
            assert isinstance(x, Mxfp4)
            assert np.array_equal(floats(x), floats(originals[part]))
    assert report.fidelity == {"bytes": 67, "values": 0, "lossy": 12}
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents() == 38


@pytest.mark.parametrize("make", [oddities.version2, oddities.aligned], ids=["version 2", "alignment 64"])
def test_odd_gguf_to_gguf_keeps_what_it_says(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    make(GGUF / "tiny-gpt-oss-auto.gguf", tmp_path / "odd.gguf")
    convert(tmp_path / "odd.gguf", tmp_path / "out.gguf")
    assert stored(tmp_path / "out.gguf") == stored(GGUF / "tiny-gpt-oss-auto.gguf")
    odd, out = (gguf.GGUFReader(tmp_path / f"{n}.gguf") for n in ("odd", "out"))
    for key in odd.fields:
        if not key.startswith("GGUF."):
            assert out.fields[key].contents() == odd.fields[key].contents()
    assert out.alignment == odd.alignment
    assert out.fields["GGUF.version"].contents() == 3


def test_leftover_split_keys_are_dropped(tmp_path: Path) -> None:
    oddities.merged(GGUF / "split" / "tiny-gpt-oss-auto-00001-of-00003.gguf", tmp_path / "merged.gguf")
    convert(tmp_path / "merged.gguf", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (GGUF / "tiny-gpt-oss-auto.gguf").read_bytes()


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("experts", ["mxfp4", "q8_0"])
def test_quantized_experts_are_not_quantized_again(name: str, experts: str, tmp_path: Path) -> None:
    source = GGUF / f"tiny-gpt-oss-{name}.gguf"
    if name == experts:
        assert convert(source, tmp_path / "out.gguf", experts=experts).fidelity["bytes"] == 79
        return
    with pytest.raises(CkptError, match=r"quantized? (it )?again") as caught:
        convert(source, tmp_path / "out.gguf", experts=experts)
    assert caught.value.exit_code == 3
    assert not any(tmp_path.iterdir())


def test_a_folder_with_one_gguf_is_that_gguf(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copyfile(GGUF / "tiny-gpt-oss-auto.gguf", tmp_path / "in" / "any name.bin.gguf")
    convert(tmp_path / "in", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (GGUF / "tiny-gpt-oss-auto.gguf").read_bytes()
