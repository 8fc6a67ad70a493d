"""Documents and schemas say the same: each command's output validates, and nothing else does."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import builders
import pytest
from commandline import run
from jsonschema import Draft202012Validator
from referencing import Registry

from ckpttool import diff, reports
from ckpttool.codecs.formats import Recipe
from ckpttool.comparison import config as comparison_config
from ckpttool.comparison import parts as comparison
from ckpttool.comparison import tokens as comparison_tokens
from ckpttool.doctor import diagnosis, logs, ways
from ckpttool.doctor.facts import CheckpointFacts
from ckpttool.doctor.gpus import Gpu
from ckpttool.inspection import report as inspection
from ckpttool.inspection.document import LEFT_OUT
from ckpttool.publishing import report as publication
from ckpttool.serving import estimator
from ckpttool.validator import budgets, drift, failures, metrics, routing
from ckpttool.validator import report as validation

ROOT = Path(__file__).parents[1]
TINY = ROOT / "fixtures" / "tiny-gpt-oss"
SCHEMAS = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted((ROOT / "schemas").glob("*.json"))}
REGISTRY: Registry[Any] = Registry().with_contents((s["$id"], s) for s in SCHEMAS.values())
MODEL = builders.Model(builders.Sizes(layers=1))

FIELDS = {
    ("inspection.v1",): inspection.Inspection,
    ("inspection.v1", "$defs", "file"): inspection.FileReport,
    ("inspection.v1", "$defs", "weight"): inspection.WeightReport,
    ("inspection.v1", "$defs", "stored"): inspection.StoredReport,
    ("inspection.v1", "$defs", "finding"): inspection.Finding,
    ("inspection.v1", "$defs", "summary"): inspection.Summary,
    ("inspection.v1", "$defs", "format"): inspection.FormatShare,
    ("inspection.v1", "$defs", "layout"): inspection.LayoutReport,
    ("inspection.v1", "$defs", "attention"): inspection.AttentionReport,
    ("inspection.v1", "$defs", "rope"): inspection.RopeReport,
    ("inspection.v1", "$defs", "router"): inspection.RouterReport,
    ("inspection.v1", "$defs", "vocabulary"): inspection.VocabularyReport,
    ("inspection.v1", "$defs", "fingerprint"): inspection.FingerprintReport,
    ("inspection.v1", "$defs", "scales"): inspection.ScaleReport,
    ("inspection.v1", "$defs", "scale_counts"): inspection.ScaleCounts,
    ("inspection.v1", "$defs", "histogram"): inspection.Histogram,
    ("inspection.v1", "$defs", "codes"): inspection.CodeReport,
    ("inspection.v1", "$defs", "expert_layer"): inspection.ExpertLayerReport,
    ("inspection.v1", "$defs", "spread"): inspection.SpreadReport,
    ("inspection.v1", "$defs", "expert_spread"): inspection.ExpertSpread,
    ("plan.v1",): reports.PlanReport,
    ("plan.v1", "$defs", "file"): reports.PlannedFile,
    ("plan.v1", "properties", "steps", "items"): reports.StepCount,
    ("plan.v1", "properties", "recipe"): Recipe,
    ("conversion.v1",): reports.Conversion,
    ("conversion.v1", "$defs", "file"): reports.FileReceipt,
    ("conversion.v1", "$defs", "tensor"): reports.TensorReceipt,
    ("conversion.v1", "properties", "recipe"): Recipe,
    ("publication.v1",): publication.Publication,
    ("publication.v1", "$defs", "file"): publication.PublishedFile,
    ("publication.v1", "$defs", "traffic"): publication.Traffic,
    ("verification.v1",): reports.Verification,
    ("verification.v1", "$defs", "file"): reports.CheckedFile,
    ("verification.v1", "$defs", "derivation"): reports.Derivation,
    ("diff.v1",): diff.Diff,
    ("diff.v1", "$defs", "side"): diff.DiffSide,
    ("diff.v1", "$defs", "part"): comparison.PartComparison,
    ("diff.v1", "$defs", "part", "properties", "first"): comparison.Place,
    ("diff.v1", "$defs", "expert"): comparison.ExpertErrors,
    ("diff.v1", "$defs", "field"): comparison_config.FieldDifference,
    ("diff.v1", "$defs", "side_file"): comparison_tokens.SideFile,
    ("doctor.v1",): diagnosis.Diagnosis,
    ("doctor.v1", "$defs", "checkpoint"): CheckpointFacts,
    ("doctor.v1", "$defs", "gpu"): Gpu,
    ("doctor.v1", "$defs", "environment"): diagnosis.EnvironmentReport,
    ("doctor.v1", "$defs", "runtime"): diagnosis.RuntimeReport,
    ("doctor.v1", "$defs", "way"): ways.WayOut,
    ("doctor.v1", "$defs", "flag"): diagnosis.FlagEffect,
    ("doctor.v1", "$defs", "price"): diagnosis.Price,
    ("doctor.v1", "$defs", "message"): logs.Match,
    ("validation.v1",): validation.Validation,
    ("validation.v1", "$defs", "side"): validation.Side,
    ("validation.v1", "$defs", "failure"): failures.Failure,
    ("validation.v1", "$defs", "budget"): budgets.Budget,
    ("validation.v1", "$defs", "part"): validation.PartResult,
    ("validation.v1", "$defs", "comparison"): comparison.PartComparison,
    ("validation.v1", "$defs", "comparison", "properties", "first"): comparison.Place,
    ("validation.v1", "$defs", "expert"): comparison.ExpertErrors,
    ("validation.v1", "$defs", "metrics"): metrics.Metrics,
    ("validation.v1", "$defs", "spot"): metrics.Spot,
    ("validation.v1", "$defs", "first_difference"): metrics.FirstDifference,
    ("validation.v1", "$defs", "predictions"): validation.Predictions,
    ("validation.v1", "$defs", "histogram"): validation.Histogram,
    ("validation.v1", "$defs", "forward"): validation.Forward,
    ("validation.v1", "$defs", "drift"): drift.Drift,
    ("validation.v1", "$defs", "layer"): validation.LayerResult,
    ("validation.v1", "$defs", "expert_use"): routing.ExpertUse,
    ("estimate.v1",): estimator.Estimate,
    ("estimate.v1", "$defs", "gpu"): estimator.GpuEstimate,
    ("estimate.v1", "$defs", "form"): estimator.FormEstimate,
    ("estimate.v1", "$defs", "bytes_per_token"): estimator.BytesPerToken,
}


def valid(name: str, document: object) -> bool:
    return Draft202012Validator(SCHEMAS[name], registry=REGISTRY).is_valid(document)


def check(name: str, document: object) -> None:
    Draft202012Validator(SCHEMAS[name], registry=REGISTRY).validate(document)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One document of each kind and shape, as the command line prints it."""
    at = tmp_path_factory.mktemp("documents")
    hf = builders.write(MODEL, at / "hf", "hf", shards=2)
    bf16 = builders.write(MODEL, at / "bf16", "hf-bf16")
    gguf = builders.write_gguf(MODEL, at / "m.gguf")
    builders.save(at / "other.safetensors", {"a": builders.Tensor("F32", builders.widened(MODEL.plain["norm"]))})
    runs = {
        "inspection": ("inspect", hf),
        "inspection of a GGUF": ("inspect", gguf),
        "inspection of values": ("inspect", hf, "--scales", "--codes", "--experts", "--check"),
        "inspection of an unknown model": ("inspect", at / "other.safetensors"),
        "plan": ("convert", hf, at / "dry.gguf", "--dry-run"),
        "plan that quantizes": ("convert", bf16, at / "dry", "--to", "mxfp4", "--dry-run", "--recipe", "ocp"),
        "plan that assumes": ("convert", gguf, at / "dry", "--to", "bf16", "--dry-run"),
        "conversion": ("convert", bf16, at / "a", "--to", "mxfp4"),
        "conversion that assumes": ("convert", gguf, at / "b", "--to", "openai", "--no-verify"),
        "conversion to GGUF": ("convert", hf, at / "c.gguf", "--max-shard-size", "60kB", "--outtype", "q8_0"),
        "verification": ("verify", at / "a"),
        "verification with the source": ("verify", at / "a", "--source", bf16),
        "diff": ("diff", hf, gguf),
        "diff of headers": ("diff", bf16, gguf, "--headers-only"),
        "estimate": ("estimate", hf, "--gpu", "H100"),
        "validation": (
            "validate", TINY / "parent", TINY / "hf", "--tokens", "600", "--prompts", at / "prompts.jsonl",
            "--reasoning-effort", "low", "--min-top1", "0.5",
        ),
        "validation of values": ("validate", bf16, hf, "--level", "values"),
        "validation of structure": ("validate", hf, gguf, "--level", "structure"),
    }  # fmt: skip
    (at / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}], "answer": "good morning"}')
    out = {}
    for name, arguments in runs.items():
        result = run(*arguments, "--json")
        assert (result.code, result.err) == (0, ""), name
        out[name] = result.document
    out["diff that finds errors"] = run("diff", hf, next(at.glob("c-00001-*")), "--json").document
    (at / "a" / "config.json").write_text("{}")
    out["verification that fails"] = run("verify", at / "a", "--json").document
    shutil.copytree(TINY / "hf", at / "broken")
    (at / "broken" / "config.json").write_text((TINY / "hf" / "config.json").read_text().replace("150000", "7"))
    out["validation that fails"] = run("validate", TINY / "hf", at / "broken", "--tokens", "40", "--json").document
    for name in ("validation", "validation that fails"):  # of many parts and layers that are alike, the first and last
        for key in ("parts", "layers"):
            out[name][key] = out[name][key][:: len(out[name][key]) - 1]
    out["error"] = run("convert", at / "nothing", at / "d.gguf", "--json").document
    out["error of usage"] = run("convert", "--json").document
    return out


def test_every_schema_is_a_schema() -> None:
    named = {"arch.v1", "conversion.v1", "error.v1", "inspection.v1", "plan.v1", "verification.v1"}
    assert named <= set(SCHEMAS)
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:ckpttool:{name}"


def objects(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, wherever it stands."""
    if isinstance(schema, list):
        for i, item in enumerate(schema):
            yield from objects(item, f"{path}[{i}]")
    if isinstance(schema, dict):
        if "properties" in schema and isinstance(schema.get("type"), str | list):
            yield path, schema
        for key, item in schema.items():
            yield from objects(item, f"{path}.{key}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_objects_are_closed_and_described(name: str) -> None:
    found = list(objects(SCHEMAS[name], name))
    assert found
    for path, schema in found:
        assert schema["additionalProperties"] is False, path
        assert set(schema.get("required", [])) <= set(schema["properties"]), path
        for key, value in schema["properties"].items():
            assert value.get("description") or "$ref" in value or "const" in value, f"{path}.{key}"


@pytest.mark.parametrize(("path", "report"), FIELDS.items(), ids=["/".join(p) for p in FIELDS])
def test_fields_and_properties_agree(path: tuple[str, ...], report: type) -> None:
    schema: Any = SCHEMAS
    for step in path:
        schema = schema[step]
    names = [f.name for f in fields(report)]
    assert list(schema["properties"]) == names
    assert set(schema["required"]) == set(names) - set(LEFT_OUT.get(report, ()))


def test_every_report_has_its_schema() -> None:
    ours = {c for c in vars(reports).values() if isinstance(c, type) and is_dataclass(c)}
    assert ours <= set(FIELDS.values())


def test_what_commands_print_is_valid(documents: dict[str, dict[str, Any]]) -> None:
    for name, document in documents.items():
        check(document["schema"], document)
        assert document["schema"].split(".")[0] == name.split(" ")[0]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every object in a document; of a list, the first item's."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            if key != "value":  # an assumed value may be anything
                yield from places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


OPEN: dict[tuple[Any, ...], set[str]] = {
    ("run", "seconds"): {"total"},
    ("run", "versions"): {"python"},
    ("summary", "said"): set(),
    ("summary", "attention", "kinds"): set(),
    ("reference", "formats"): set(),
    ("candidate", "formats"): set(),
    ("asked",): set(),
    ("derivation", "steps"): set(),
}
"""Objects whose keys are not all fixed, and those that are."""


def may_lack(document: dict[str, Any], path: tuple[Any, ...], key: str) -> bool:
    """Whether this is a field of an inspection's rows that is left out of some of them."""
    rows = document["schema"] == "inspection.v1" and path[:1] in {("tensors",), ("scales",), ("experts",)}
    return rows and any(key in names for names in LEFT_OUT.values())


def test_a_field_more_or_less_is_invalid(documents: dict[str, dict[str, Any]]) -> None:
    tried = 0
    for name, document in documents.items():
        for path in places(document):
            for key in [*at(document, path), "surplus"]:
                if key not in OPEN.get(path, {key, "surplus"}) | {"surplus"} or may_lack(document, path, key):
                    continue
                changed = copy.deepcopy(document)
                inner = at(changed, path)
                if key == "surplus":
                    inner[key] = None
                else:
                    del inner[key]
                assert not valid(document["schema"], changed), f"{name}: {path} {key}"
                tried += 1
    assert tried > 150


def test_wrong_values_are_invalid(documents: dict[str, dict[str, Any]]) -> None:
    cases: list[tuple[str, tuple[Any, ...], Any]] = [
        ("inspection", ("nbytes",), -1),
        ("inspection", ("tensors", 0, "packing"), "other"),
        ("inspection", ("files", 0, "header_sha256"), "ab"),
        ("plan", ("steps", 0, "kind"), "shrink"),
        ("plan", ("files",), []),
        ("conversion", ("tensors", 0, "crc32"), "0123456"),
        ("conversion", ("options", "dtype"), "f16"),
        ("verification", ("ok",), "yes"),
        ("verification", ("checked", 0, "by"), "eye"),
        ("verification with the source", ("derivation", "compared"), -1),
        ("diff", ("identical",), "yes"),
        ("diff", ("parts", 0, "status"), "same"),
        ("diff that finds errors", ("side_files", 0, "sha256_a"), "ab"),
        ("validation", ("verdict",), "good"),
        ("validation", ("decided",), []),
        ("validation", ("parts", 0, "proof"), "hope"),
        ("validation", ("layers", 0, "flips"), -1),
        ("validation", ("metrics", "kl_mean"), "NaN"),
        ("validation", ("forward", "numbers"), "TF32"),
        ("validation", ("asked", "max_size"), 1.0),
        ("validation that fails", ("failures", 0, "level"), "headers"),
        ("error", ("exit_code",), 7),
        ("error", ("errors",), []),
    ]
    for name, path, value in cases:
        changed = copy.deepcopy(documents[name])
        at(changed, path[:-1])[path[-1]] = value
        assert not valid(changed["schema"], changed), (name, path)


TABLES = {p.stem: tomllib.loads(p.read_text("utf-8")) for p in sorted((ROOT / "ckpttool" / "archs").glob("*.toml"))}


@pytest.mark.parametrize("name", TABLES)
def test_arch_tables_are_valid(name: str) -> None:
    table = TABLES[name]
    check("arch.v1", table)
    converted = "dialect" in table
    family = "dialect" if converted else "layout"
    first = next(iter(table[family]))
    table[family][first].setdefault("weights", {"x": "embed"})  # a layout that only extends another has none
    for path in [("arch",), (family, first), ()] + [("tokenizer",), ("config",)] * converted:
        changed = copy.deepcopy(table)
        at(changed, path)["surplus"] = 1
        assert not valid("arch.v1", changed), path
    bad: list[tuple[tuple[str, ...], Any]] = [
        ((family, first, "weights", "x"), {"interleave": ["a"], "concat": ["a"]}),
        ((family, first, "container"), "pickle"),
    ]
    bad += [(("parts", "embed"), "v | h"), (("sizes", "LL"), "layers")] if converted else []
    for path, value in bad:
        changed = copy.deepcopy(table)
        at(changed, path[:-1])[path[-1]] = value
        assert not valid("arch.v1", changed), path


def test_an_arch_table_with_dialects_needs_all_that_conversion_needs() -> None:
    for key in TABLES["gpt_oss"].keys() - {"layout"}:
        assert not valid("arch.v1", {k: v for k, v in TABLES["gpt_oss"].items() if k != key}), key
    assert not valid("arch.v1", {"arch": TABLES["mixtral"]["arch"]})


def test_the_wheel_carries_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["schemas"] == "ckpttool/schemas"
