"""What inspect says of a checkpoint: every weight once, logical shapes and totals, damage shown and not refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from math import prod
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import Model, Sizes
from commandline import run
from header_checkpoints import write_headers, write_safetensors
from model_families import DEEPSEEK_V3, deepseek_v3_tensors

import ckpttool
from ckpttool.archs import arches
from ckpttool.checkpoint import digest
from ckpttool.codecs.formats import ggml_codec
from ckpttool.containers.ggml_types import GGML_TYPES
from ckpttool.inspection.report import Inspection, WeightReport
from ckpttool.reports import document

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
MODEL = Model(Sizes(layers=11, hidden=32, intermediate=64, vocab=300))
DIALECTS = ("hf", "hf-bf16", "unsloth", "openai")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    """The same model in every dialect; eleven layers, so that names do not sort as numbers do."""
    at = tmp_path_factory.mktemp("inspected")
    found = {d: ckpttool.inspect(builders.write(MODEL, at / d, d, shards=3)) for d in DIALECTS}
    found["gguf"] = ckpttool.inspect(builders.write_gguf(MODEL, at / "model.gguf"))
    return found


def by_name(report: Inspection) -> dict[str, WeightReport]:
    return {t.name: t for t in report.tensors}


def parameters(sizes: Sizes) -> int:
    """gpt-oss' parameters, by its definition."""
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    h, i, e = sizes.hidden, sizes.intermediate, sizes.experts
    attention = q * h + q + 2 * (kv * h + kv) + h * q + h + sizes.heads
    experts = e * (2 * i * h + 2 * i + h * i + h)
    layer = 2 * h + attention + e * h + e + experts
    return 2 * sizes.vocab * h + h + sizes.layers * layer


def test_every_dialect_of_a_model_has_its_parameters(reports: dict[str, Inspection]) -> None:
    for dialect, report in reports.items():
        assert (report.schema, report.arch, report.dialect) == ("inspection.v1", "gpt-oss", dialect)
        assert report.parameters == parameters(MODEL.sizes)
        assert (report.problems, report.notes) == ((), ())
        assert report.bits_per_weight == round(8 * report.nbytes / report.parameters, 4)


def test_every_part_is_named_once(reports: dict[str, Inspection]) -> None:
    wanted = {*MODEL.plain, *MODEL.packed}
    for dialect, report in reports.items():
        found: list[str] = []
        for t in report.tensors:
            assert t.part is not None
            found += t.part.split("+")
        if dialect == "unsloth":
            experts = {p for p in wanted if p.removesuffix(".bias") in MODEL.packed}
            numbered = {f"{p}[{e}]" for p in experts for e in range(MODEL.sizes.experts)}
            assert sorted(found) == sorted(numbered | (wanted - experts))
        else:
            assert sorted(found) == sorted(wanted)


def test_totals_are_the_sums_of_rows(reports: dict[str, Inspection]) -> None:
    for report in reports.values():
        assert report.nbytes == sum(t.nbytes for t in report.tensors)
        assert report.parameters == sum(t.parameters for t in report.tensors)
        for t in report.tensors:
            assert t.parameters == prod(t.shape)
            assert t.nbytes == sum(s.nbytes for s in t.stored)
        stored = [s for t in report.tensors for s in t.stored]
        assert len({(s.file, s.offset) for s in stored}) == len(stored)
        sizes = {f.name: f.nbytes for f in report.files}
        for s in stored:
            assert 0 < s.offset < s.offset + s.nbytes <= sizes[s.file]


def test_one_weight_in_each_dialect(reports: dict[str, Inspection]) -> None:
    experts, rows, k = MODEL.sizes.experts, 2 * MODEL.sizes.intermediate, MODEL.sizes.hidden
    hf = by_name(reports["hf"])["model.layers.10.mlp.experts.gate_up_proj"]
    assert (hf.part, hf.format, hf.packing) == ("layer.10.gate+layer.10.up", "MXFP4", "pair")
    assert (hf.shape, hf.parameters) == ((experts, rows, k), experts * rows * k)
    assert hf.nbytes == experts * rows * k // 32 * 17
    assert [(s.name.rsplit("_", 1)[1], s.dtype, s.shape) for s in hf.stored] == [
        ("blocks", "U8", (experts, rows, k // 32, 16)),
        ("scales", "U8", (experts, rows, k // 32)),
    ]
    assert len({s.file for s in hf.stored}) == 2  # the shards part blocks from scales
    wide = by_name(reports["hf-bf16"])["model.layers.10.mlp.experts.gate_up_proj"]
    assert (wide.part, wide.format, wide.packing, wide.shape) == (hf.part, "BF16", "flat", (experts, k, rows))
    one = by_name(reports["unsloth"])["model.layers.10.mlp.experts.gate_up_projs.2.weight"]
    assert (one.part, one.shape) == ("layer.10.gate[2]+layer.10.up[2]", (rows, k))
    theirs = by_name(reports["openai"])["block.10.mlp.mlp1_weight"]
    assert (theirs.part, theirs.shape, theirs.packing) == (hf.part, hf.shape, "pair")
    qkv = by_name(reports["openai"])["block.10.attn.qkv.weight"]
    assert qkv.part == "layer.10.q+layer.10.k+layer.10.v"
    up = by_name(reports["gguf"])["blk.10.ffn_up_exps.weight"]
    assert (up.part, up.format, up.packing, up.shape) == ("layer.10.up", "MXFP4", "ggml", (experts, rows // 2, k))


def test_headers_are_hashed(reports: dict[str, Inspection]) -> None:
    for report in reports.values():
        assert len({f.header_sha256 for f in report.files}) == len(report.files)


FIXTURE_FORMATS = {
    "hf": {"MXFP4", "BF16"},
    "hf-bf16": {"BF16"},
    "unsloth": {"BF16"},
    "openai": {"MXFP4", "BF16"},
    "gguf/tiny-gpt-oss-auto.gguf": {"MXFP4", "BF16", "F32"},
    "gguf/tiny-gpt-oss-bf16.gguf": {"BF16", "F32"},
    "gguf/tiny-gpt-oss-q8_0.gguf": {"Q8_0", "F32"},
    "gguf/tiny-gpt-oss-mxfp4_moe.gguf": {"MXFP4", "Q8_0", "F32"},
    "gguf/split/tiny-gpt-oss-auto-00001-of-00003.gguf": {"MXFP4", "BF16", "F32"},
}


@pytest.mark.parametrize(("name", "formats"), FIXTURE_FORMATS.items(), ids=FIXTURE_FORMATS)
def test_fixtures(name: str, formats: set[str]) -> None:
    report = ckpttool.inspect(FIXTURES / name)
    assert {t.format for t in report.tensors} == formats
    assert report.parameters == 3_689_760
    assert report.problems == ()
    assert len(report.files) == (3 if "split" in name or name == "hf" else 2 if name == "hf-bf16" else 1)


def test_k_quants_are_shown() -> None:
    report = ckpttool.inspect(FIXTURES / "gguf" / "tiny-gpt-oss-q4_k_m.gguf")
    assert report.parameters == 3_689_760
    assert any(t.format.startswith("Q") and t.format.endswith("_K") and t.packing == "ggml" for t in report.tensors)


def test_an_unknown_model_is_shown_without_parts(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"encoder.weight": builders.Tensor("BF16", MODEL.plain["embed"])}
    builders.save(tmp_path / "x.safetensors", tensors)
    report = ckpttool.inspect(tmp_path / "x.safetensors")
    assert (report.arch, report.dialect, [t.part for t in report.tensors]) == (None, None, [None])
    assert report.parameters == MODEL.plain["embed"].size
    shown = run("inspect", tmp_path / "x.safetensors")
    assert (shown.code, "unknown architecture" in shown.out) == (0, True)


def test_a_declared_architecture_is_not_mistaken_for_another(tmp_path: Path) -> None:
    folder = builders.write(MODEL, tmp_path / "a", "hf", config={"model_type": "gpt_oss_fork"})
    assert ckpttool.inspect(folder).arch is None


def test_damage_is_shown_and_does_not_stop(tmp_path: Path) -> None:
    folder = builders.write(MODEL, tmp_path / "a", "hf", change=lambda t: t.pop("model.norm.weight"))
    result = run("inspect", folder)
    assert result.code == 0
    assert "error: model.safetensors: model.norm.weight: is missing" in result.out
    document = run("inspect", folder, "--json").document
    assert len(document["problems"]) == 1
    (folder / "config.json").write_text("{")
    assert "error: config.json at byte 1: is not valid JSON" in run("inspect", folder).out
    (folder / "config.json").unlink()
    report = ckpttool.inspect(folder)
    assert (report.arch, report.dialect, report.problems) == ("gpt-oss", "hf", ())


def test_a_header_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 8)
    result = run("inspect", tmp_path / "x.safetensors")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: x.safetensors")


def test_axes_of_one_are_nothing_in_a_gguf_alone(tmp_path: Path) -> None:
    """ggml's C writer drops them; safetensors keeps every shape as it is."""

    def longer(rows: dict[str, tuple[str, Any]]) -> None:
        kind, array = rows["output_norm.weight"]
        rows["output_norm.weight"] = kind, array[None]

    source = builders.write_gguf(MODEL, tmp_path / "x.gguf", change=longer)
    assert ckpttool.inspect(source).problems == ()
    assert ckpttool.open_checkpoint(source).part("norm").shape == (32,)
    shape = MODEL.plain["norm"][None]
    folder = builders.write(
        MODEL, tmp_path / "a", "hf", change=lambda t: t.update({"model.norm.weight": builders.Tensor("BF16", shape)})
    )
    (problem,) = ckpttool.inspect(folder).problems
    assert "model.norm.weight: has shape [1, 32], but config.json says [32]" in problem


def test_a_file_is_known_by_more_than_its_name_and_times(tmp_path: Path) -> None:
    """Another file of the same name, size, time and header is told apart; a copy has the same digest all the same."""
    folder = builders.write(MODEL, tmp_path / "a", "hf", shards=2)
    before = ckpttool.open_checkpoint(folder).files
    shutil.copytree(folder, tmp_path / "b", copy_function=shutil.copy2)
    for f in before:
        status = f.path.stat()
        assert f.identity == (status.st_dev, status.st_ino)
        (tmp_path / "b" / f.name).replace(f.path)
    after = ckpttool.open_checkpoint(folder).files
    for x, y in zip(before, after, strict=True):
        assert x.identity != y.identity
        assert dataclasses.replace(x, identity=y.identity) == y
    assert digest(before) == digest(after)


def test_the_document_is_the_report(tmp_path: Path) -> None:
    folder = builders.write(MODEL, tmp_path / "한국어 模型", "hf")
    result = run("inspect", folder, "--json")
    report = ckpttool.inspect(folder)
    assert result.document["source"] == str(folder)
    assert "한국어 模型" in result.out
    assert [r["name"] for r in result.document["tensors"]] == [t.name for t in report.tensors]


SOURCES = ("hf", "hf-bf16", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-q4_k_m.gguf")
VALUES = ("scales", "experts", "check")


@pytest.mark.parametrize("name", [*SOURCES, "a model that no table knows"])
def test_what_is_left_out_follows_from_what_is_there(name: str, tmp_path: Path) -> None:
    source = FIXTURES / name
    if name not in SOURCES:
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
        rows = [
            ("model.embed_tokens.weight", "BF16", (8, 4)),
            ("model.layers.1.x.weight", "U8", ()),
            ("b", "F32", (3,)),
        ]
        write_safetensors(tmp_path / "model.safetensors", rows)
        source = tmp_path
    found = run("inspect", source, "--json", *(f"--{v}" for v in VALUES)).document
    wanted = document(ckpttool.inspect(source, **dict.fromkeys(VALUES, True)))
    assert {k for k in found if found[k] != wanted[k]} <= {"tensors", "scales", "experts"}
    assert [restored(row) for row in found["tensors"]] == wanted["tensors"]
    for row in found["scales"]:
        for counts in row["experts"]:
            e8m0 = row["element"] == "E8M0"
            counts.setdefault("bytes_0", counts["zero_blocks"] if e8m0 else None)
            counts.setdefault("nonfinite", 0)
            for key in ("bytes_254", "bytes_255"):
                counts.setdefault(key, 0 if e8m0 else None)
    assert found["scales"] == wanted["scales"]
    groups = found["summary"]["expert_layout"]
    for layer in found["experts"]:
        group = next(g for g in groups if layer["layer"] in g["layers"])
        layer["layout"] |= {"layers": group["layers"], "words": group["words"]}
        for expert in (e for s in layer["spread"] for e in s["experts"]):
            expert.setdefault("odd", None)
    assert found["experts"] == wanted["experts"]


def restored(row: dict[str, Any]) -> dict[str, Any]:
    """A weight's row with all its fields, by what the schema says of those that are left out."""
    part = row.get("part")
    kinds = [re.sub(r"^layer\.\d+\.|\[\d+\]$", "", p) for p in part.split("+")] if part else []
    out = {
        "part": None,
        "purpose": "+".join(kinds) or None,
        "layer": None,
        "expert": None,
        "global_scale": "none",
    } | row
    out["stored"] = [{"name": row["name"], "shape": row["shape"], "role": "codes"} | s for s in row["stored"]]
    return out | {"parameters": prod(row["shape"]), "nbytes": sum(s["nbytes"] for s in row["stored"])}


def test_json_of_the_biggest_model_is_short(tmp_path: Path) -> None:
    """A row a line; 687 tensors took 396 kB when every field of each was written."""
    out = run("inspect", write_headers(tmp_path / "120b", "120b"), "--json").out
    assert len(out) < 200_000
    assert sum(line.startswith('  {"name":"') for line in out.splitlines()) == 615 + 15


def test_the_tables_agree_with_the_builders() -> None:
    """The names in `builders` were written by hand."""
    (arch,) = (a for a in arches() if a.name == "gpt-oss")
    sizes = {"L": 11, "E": 3, "H": 32, "I": 64, "V": 300, "N": 4, "K": 2, "D": 32}
    for name in DIALECTS:
        ours = {c.name for c in arch.dialects[name].expand(sizes)}
        pairs = [e for e in ("_blocks", "_weight.blocks") for n in builders.tensors(MODEL, name) if n.endswith(e)]
        stored = {n for n in builders.tensors(MODEL, name) if not n.endswith(("_scales", "_weight.scales"))}
        assert ours == {n.removesuffix("_blocks").removesuffix(".blocks") for n in stored}
        assert len(pairs) == (22 if name in ("hf", "openai") else 0)


def test_formats_that_are_readable_are_those_that_the_gguf_package_decodes() -> None:
    """But for NVFP4, whose second scale lies in a tensor of its own."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    def decodes(name: str, nbytes: int) -> bool:
        try:
            dequantize(np.zeros((1, nbytes), np.uint8), GGMLQuantizationType[name])
        except (NotImplementedError, KeyError):
            return False
        return True

    found = {t.name for t in GGML_TYPES.values() if decodes(t.name, t.nbytes)}
    assert found - {"NVFP4"} == {name for name in GGML_TYPES if ggml_codec(name).readable}


def test_experts_in_a_form_that_convert_does_not_know_are_no_damage(tmp_path: Path) -> None:
    """Quantized by some other library, say: a warning each, and convert refuses them by the same words."""

    def change(tensors: builders.Tensors) -> None:
        for name, t in tensors.items():
            if ".experts." in name and name.endswith(".weight"):
                tensors[name] = builders.Tensor("U8", np.zeros(t.array.shape, np.uint8))

    source = builders.write(Model(Sizes(layers=1)), tmp_path / "in", "unsloth", change=change)
    report = ckpttool.inspect(source)
    words = "is U8; experts of the unsloth dialect are BF16 or F16 or F32"
    said = [f for f in report.findings if f.message == words]
    experts = [t for t in report.tensors if ".experts." in t.name and t.name.endswith(".weight")]
    assert len(said) == len(experts) > 0
    assert {f.severity for f in said} == {"warning"}
    assert not [f for f in report.findings if f.severity == "error"]
    assert run("inspect", source, "--check").code == 0
    refused = run("convert", source, tmp_path / "out", "--to", "bf16")
    assert (refused.code, words in refused.err) == (3, True)
    assert not ckpttool.compare(source, source).notes


PUBLISHED: dict[str, dict[str, Any]] = {
    "20b": {"parameters": 20_914_757_184, "active_parameters": 3_608_307_264, "nbytes": 13_761_264_768, "share": 0.914},
    "120b": {
        "parameters": 116_829_156_672, "active_parameters": 5_132_849_472, "nbytes": 65_248_815_744, "share": 0.981,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_figures_are_as_published(size: str, tmp_path: Path) -> None:
    source = write_headers(tmp_path / size, size)
    document = run("inspect", source, "--json").document
    wanted = PUBLISHED[size]
    for name in ("parameters", "active_parameters", "nbytes"):
        assert document[name] == wanted[name], name
    summary = document["summary"]
    assert round(summary["expert_share"], 3) == wanted["share"]
    assert summary["bf16_nbytes"] == 2 * wanted["parameters"]
    assert summary["formats"][0]["format"] == "MXFP4" and round(summary["formats"][0]["share"], 3) == wanted["share"]
    (layout,) = summary["expert_layout"]
    assert (layout["experts"], layout["gate_up"], layout["order"], layout["storage"], layout["orientation"]) == (
        32 if size == "20b" else 128, "fused", "interleaved", "stacked", "[out, in]",
    )  # fmt: skip
    assert summary["attention"] | {"kinds": None} == {
        "heads": 64, "kv_heads": 8, "head_dim": 64, "value_head_dim": None, "window": 128, "kv_lora_rank": None,
        "kinds": None,
    }  # fmt: skip
    layers = 24 if size == "20b" else 36
    assert summary["attention"]["kinds"] == {
        "sliding": list(range(0, layers, 2)), "full": list(range(1, layers, 2)),
    }  # fmt: skip
    assert summary["rope"] == {
        "theta": 150000.0, "type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_context": 4096, "truncate": False, "layers_without": None,
    }  # fmt: skip
    assert summary["router"] == {"experts": layout["experts"], "top_k": 4, "shared": None, "layers": layers}
    assert (summary["swiglu_limit"], summary["context"], summary["declared"]) == (7.0, 131072, "mxfp4")
    assert summary["vocabulary"] == {
        "size": 201_088, "bos": 199998, "eos": [200002, 199999, 200012], "pad": 199999, "tied_embeddings": False,
        "tokenizer": None,
    }  # fmt: skip
    assert (summary["shards"], summary["stored_tensors"]) == ((3, 459) if size == "20b" else (15, 687))
    assert document["data_nbytes_read"] == 0 and document["problems"] == []


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_gguf_of_full_size_says_the_same(size: str, tmp_path: Path) -> None:
    document = run("inspect", write_headers(tmp_path / size, size, "gguf"), "--json").document
    wanted = PUBLISHED[size]
    assert (document["parameters"], document["active_parameters"]) == (
        wanted["parameters"],
        wanted["active_parameters"],
    )
    summary = document["summary"]
    assert (summary["file_type"], summary["vocabulary"]["size"], summary["context"]) == (
        "38 MXFP4_MOE",
        201_088,
        131072,
    )
    assert summary["vocabulary"]["tokenizer"] == "tokenizer.ggml.tokens (gpt2, gpt-4o)"
    (layout,) = summary["expert_layout"]
    assert (layout["gate_up"], layout["order"], layout["bias"]) == ("separate", None, True)


def test_another_family_is_counted_and_laid_out(tmp_path: Path) -> None:
    """DeepSeek-V3 at full size: no dialect converts it, its table knows its experts."""
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    write_safetensors(tmp_path / "model.safetensors", deepseek_v3_tensors(DEEPSEEK_V3))
    report = ckpttool.inspect(tmp_path, experts=True)
    assert (report.arch, report.dialect, report.summary.family) == (None, None, "DeepSeek-V3")
    assert report.active_parameters == 36_625_618_432  # 36.6 B by its README
    assert report.experts is not None and [x.layer for x in report.experts] == list(range(3, 61))
    (layout,) = report.summary.expert_layout
    assert (layout.experts, layout.shared, layout.storage, layout.gate_up) == (256, 1, "per-expert", "separate")
    assert report.summary.attention.kv_lora_rank == 512
    rows = {t.name: (t.purpose, t.layer, t.expert) for t in report.tensors}
    assert rows["model.layers.7.mlp.experts.31.up_proj.weight"] == ("up", 7, 31)
    assert rows["model.layers.7.mlp.shared_experts.up_proj.weight"] == ("shared.up", 7, None)
    text = run("inspect", tmp_path).out
    assert "formats        BF16 > 99.9 %, F32 < 0.1 %" in text
    assert "model.layers.{3-61}.mlp.experts.{0-255}.down_proj.weight  x15,104" in text
    assert len(text.splitlines()) < 50
