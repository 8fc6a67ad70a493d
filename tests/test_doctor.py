"""The doctor: what its rules say, held against the runtimes' own code where that can run, and what it finds here.

The expected paths of `CASES` come from the code named in each rule's `source`, not from the rules; every rule decides
at least one of them.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import header_checkpoints
import llamacpp
import model_families
import numpy as np
import pytest
import range_server
from commandline import run
from jsonschema import Draft202012Validator
from packaging.version import Version as PackagingVersion

import ckpttool
from ckpttool.doctor import probe, tables
from ckpttool.doctor.facts import GPT_OSS_20B, GPT_OSS_120B, CheckpointFacts, checkpoint_facts
from ckpttool.doctor.gpus import GIB, Gpu, named, several
from ckpttool.doctor.judge import Verdict, judge, judge_runtime
from ckpttool.doctor.logs import matches, messages
from ckpttool.doctor.probe import Environment
from ckpttool.doctor.versions import Range, Version
from ckpttool.doctor.ways import fits_on, ways_out
from ckpttool.errors import InputError, UsageError
from ckpttool.gpus import gpu_models

ROOT = Path(__file__).parents[1]
TINY = ROOT / "fixtures" / "tiny-gpt-oss"
SCHEMA = json.loads((ROOT / "schemas" / "doctor.v1.json").read_text("utf-8"))


# ------------------------------------------------------------------------------------------------------------ versions


VERSIONS = [
    "3.4", "3.4.0", "3.4.0+git1234", "3.4.1", "3.10", "3.4.0.dev3", "3.4.0rc1", "3.4.0a2", "3.4.0b1", "3.4.0.post1",
    "2.13.0+cpu", "2026.10.9", "0.1.dev17670+gb2cfae777", "1", "1.0a1.dev2", "6291", "4.55.0", "4.55.0.dev0",
]  # fmt: skip


def test_versions_are_ordered_as_packaging_orders_them() -> None:
    for a in VERSIONS:
        for b in VERSIONS:
            x, y = PackagingVersion(a.split("+")[0]), PackagingVersion(b.split("+")[0])
            assert (Version(a) < Version(b), Version(a) == Version(b)) == (x < y, x == y), (a, b)
            assert Version(a) != Version(b) or hash(Version(a)) == hash(Version(b))


def test_ranges_are_as_packaging_reads_them() -> None:
    from packaging.specifiers import SpecifierSet

    for text in (">=3.4.0", "<3.4", "==4.55.0", ">=0.18.2,<0.19", ">5.4.0,<5.8.1", "<=5.4.0", ""):
        for v in ("3.3.1", "3.4.0", "3.4.1", "4.55.0", "0.18.2", "0.19.0", "5.4.0", "5.5.0", "5.8.1"):
            assert (Version(v) in Range(text)) == (v in SpecifierSet(text)), (text, v)


@pytest.mark.parametrize("text", ["", "abc", "1..2", "1.0 beta", "~=1.0", "?"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        Version(text)
    with pytest.raises(ValueError, match="no comparison"):
        Range("~=3.4")


# ---------------------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("name", "capability", "gib"),
    [("T4", "7.5", 15), ("V100", "7.0", 16), ("A10", "8.6", 22.5), ("A100", "8.0", 80), ("A100-40GB", "8.0", 40),
     ("L4", "8.9", 22.5), ("L40S", "8.9", 45), ("RTX 3090", "8.6", 24), ("rtx4090", "8.9", 24), ("5090", "12.0", 31.8),
     ("H100", "9.0", 79.6), ("NVIDIA H200", "9.0", 140.4), ("B200", "10.0", 179), ("GB200", "10.0", None),
     ("B300", "10.3", None), ("GB10", "12.1", None), ("sm_90", "9.0", None), ("sm_103", "10.3", None),
     ("sm_120a", "12.0", None), ("sm_75", "7.5", None)],
)  # fmt: skip
def test_nvidia_gpus_by_name(name: str, capability: str, gib: float | None) -> None:
    gpu = named(name)
    assert (gpu.device, gpu.capability) == ("cuda", capability)
    if gib is not None:
        assert gpu.memory is not None
        assert abs(gpu.memory / GIB - gib) < 0.6
    if name[0] in "s7":
        assert gpu.memory is None


def test_other_devices_by_name() -> None:
    assert (named("MI300X").gfx, named("gfx1100").gfx, named("RX 7900 XTX").gfx) == ("gfx942", "gfx1100", "gfx1100")
    assert {named(n).device for n in ("MI300X", "gfx90a", "MI355X")} == {"rocm"}
    assert named("cpu").device == "cpu"


@pytest.mark.parametrize("name", ["H1000", "sm_", "sm_999", "", "A100 33GB", "gfx"])
def test_unknown_gpus_are_refused_with_the_names_that_are_known(name: str) -> None:
    with pytest.raises(UsageError, match="not in the table") as e:
        named(name)
    assert "RTX 4090" in str(e.value)


def test_every_name_of_the_table_leads_to_its_row() -> None:
    for model in gpu_models():
        for name in model.names:
            assert named(name) == Gpu(name, named(name).device, model.capability, model.gfx, model.memory)


def test_a_size_is_a_gpu_of_which_no_more_is_known() -> None:
    assert named("80GB") == Gpu("80GB", "cuda", memory=named("H100").memory)
    assert named("79.6 GiB").memory == int(79.6 * GIB)


# --------------------------------------------------------------------------------------------------------------- rules


class Case(NamedTuple):
    """A case of which the runtime's code says what becomes."""

    rule: str
    path: str
    runtime: str
    packages: dict[str, str]
    gpu: str = "H100"
    form: str = "mxfp4"
    flags: tuple[str, ...] = ()
    amx: bool | None = None
    traits: Mapping[str, bool] = {}


def hf(transformers: str = "5.23.0", triton: str = "3.6.0", kernels: str = "0.18.2", **more: str) -> dict[str, str]:
    """An environment of transformers; "" leaves a package out."""
    rows = {
        "torch": "2.8.0",
        "accelerate": "1.10.0",
        "transformers": transformers,
        "triton": triton,
        "kernels": kernels,
    }
    return {name: version for name, version in (rows | more).items() if version}


def unsloth(zoo: str = "2026.10.9", **more: str) -> dict[str, str]:
    return hf(**more) | {"unsloth": zoo, "unsloth_zoo": zoo}


T, V, U, L, O = "transformers", "vllm", "unsloth", "llama.cpp", "gpt-oss"  # noqa: E741
MATMUL_OGS, HOPPER_ONLY = "triton_kernels:matmul_ogs", "triton_kernels:hopper-values-only"
REFUSES_BLACKWELL = {HOPPER_ONLY: True, MATMUL_OGS: True}
OPENAI = {"gpt_oss": "0.0.9", "triton": "3.5.1", "triton_kernels": "?"}

CASES = [
    Case("transformers-without-torch", "refused", T, hf(torch="")),
    Case("transformers-before-gpt-oss", "refused", T, hf("4.54.1")),
    Case("transformers-imports-kernels-of-0.15", "refused", T, hf("5.12.1", kernels="0.15.2")),
    Case("transformers-imports-kernels-of-0.15", "refused", T, hf("4.57.6", kernels="0.17.2"), "cpu"),
    Case("transformers-openai-names", "refused", T, hf(), form="openai"),
    Case("transformers-gguf-before", "refused", T, hf("5.4.0", kernels="0.14.1"), form="gguf-mxfp4"),
    Case("transformers-gguf-between", "unknown", T, hf("5.6.0", kernels="0.14.1"), form="gguf-mxfp4"),
    Case("transformers-gguf-numpy", "refused", T, hf(numpy="2.4.6"), form="gguf-mxfp4"),
    Case("transformers-gguf", "dequantized", T, hf(numpy="2.3.5"), form="gguf-mxfp4"),
    Case("transformers-bf16", "dequantized", T, hf(), form="bf16"),
    Case("transformers-load-in-4bit", "refused", T, hf(), flags=("load_in_4bit",)),
    Case("transformers-4.55.0-no-gpu", "refused", T, hf("4.55.0", kernels=""), "cpu"),
    Case("transformers-4.55.0-no-gpu", "refused", T, hf("4.55.0", kernels=""), "cpu", flags=("dequantize",)),
    Case("transformers-4.55.0-accelerate", "refused", T, hf("4.55.0", "3.3.1", "", accelerate="")),
    Case("transformers-4.55.0-dequantize", "dequantized", T, hf("4.55.0", kernels=""), flags=("dequantize",)),
    Case("transformers-4.55.0-kernels", "dequantized", T, hf("4.55.0", "3.3.1", kernels=""), "T4"),
    Case("transformers-4.55.0-triton-kernels", "dequantized", T, hf("4.55.0", kernels="0.9.0"), "T4"),
    Case("transformers-4.55.0-capability", "refused", T, hf("4.55.0", kernels="", triton_kernels="?"), "A100"),
    Case("transformers-native", "native", T, hf("4.55.0", kernels="", triton_kernels="?")),
    Case("transformers-dequantize", "dequantized", T, hf(), flags=("dequantize",)),
    Case("transformers-use-kernels-without", "refused", T, hf(kernels=""), flags=("use_kernels",)),
    Case("transformers-use-kernels-without", "refused", T, hf(kernels="0.17.2"), "cpu", flags=("use_kernels",)),
    Case("transformers-no-gpu-before-5.3", "dequantized", T, hf("5.2.0", kernels="0.10.2"), "cpu"),
    Case("transformers-no-gpu-before-5.3", "dequantized", T, hf("5.2.0", kernels="0.10.2", accelerate=""), "cpu"),
    Case("transformers-accelerate", "refused", T, hf(accelerate="")),
    Case("transformers-accelerate", "refused", T, hf(accelerate=""), "cpu"),
    Case("transformers-mps", "dequantized", T, hf(), "mps"),
    Case("transformers-capability", "dequantized", T, hf(), "V100"),
    Case("transformers-capability", "dequantized", T, hf("4.56.2", "3.3.1", ""), "P100"),
    Case("transformers-triton", "dequantized", T, hf("4.56.2", "3.3.1", "0.9.0"), "T4"),
    Case("transformers-triton", "dequantized", T, hf(triton="")),
    Case("transformers-triton", "dequantized", T, hf(triton="3.4.0rc1")),
    Case("transformers-triton-cpu", "dequantized", T, hf(triton="3.4.0"), "cpu", flags=("use_kernels",)),
    Case("transformers-kernels", "dequantized", T, hf("4.56.2", "3.4.0", "")),
    Case("transformers-kernels", "dequantized", T, hf(kernels="0.17.2")),
    Case("transformers-kernels", "dequantized", T, hf(kernels="0.19.0")),
    Case("transformers-kernels", "dequantized", T, hf("5.22.2", kernels="0.18.2")),
    Case("transformers-kernels", "dequantized", T, hf("5.0.0", kernels="0.8.1")),
    Case("transformers-kernels", "dequantized", T, hf("5.2.0", kernels="0.9.1")),
    Case("transformers-kernels", "dequantized", T, hf("5.14.0", kernels="0.16.0")),
    Case("transformers-kernels", "dequantized", T, hf("5.15.1", kernels="0.15.2")),
    Case("transformers-cpu-default", "dequantized", T, hf(), "cpu"),
    Case("transformers-cpu", "native", T, hf(), "cpu", flags=("use_kernels",)),
    Case("transformers-cpu", "native", T, hf("5.22.2", "3.5.0", "0.17.2"), "cpu", flags=("use_kernels",)),
    Case("transformers-use-kernels", "dequantized", T, hf(), flags=("use_kernels",)),
    Case("transformers-blackwell-consumer", "native", T, hf(), "RTX 5090"),
    Case("transformers-blackwell", "native", T, hf(), "B200"),
    Case("transformers-blackwell", "native", T, hf("4.57.6", "3.5.1", "0.10.5"), "B300"),
    Case("transformers-rocm", "native", T, hf(), "MI300X"),
    Case("transformers-native", "native", T, hf("4.55.4", "3.4.0", "0.9.0"), "T4"),
    Case("transformers-native", "native", T, hf("5.22.2", "3.4.0", "0.17.2"), "A100"),
    Case("transformers-native", "native", T, hf()),
    Case("vllm-before-gpt-oss", "refused", V, {"vllm": "0.10.0"}),
    Case("vllm-openai-names", "refused", V, {"vllm": "0.33.0"}, form="openai"),
    Case("vllm-gguf", "refused", V, {"vllm": "0.33.0"}, form="gguf-mxfp4"),
    Case("vllm-gguf-before", "unknown", V, {"vllm": "0.20.0"}, form="gguf-mxfp4"),
    Case("vllm-bf16", "dequantized", V, {"vllm": "0.33.0"}, form="bf16"),
    Case("vllm-mps", "unknown", V, {"vllm": "0.33.0"}, "mps"),
    Case("vllm-capability", "refused", V, {"vllm": "0.33.0"}, "T4"),
    Case("vllm-capability", "refused", V, {"vllm": "0.10.2"}, "V100"),
    Case("vllm-sm12-before-0.13", "unknown", V, {"vllm": "0.11.0", "triton_kernels": "?"}, "RTX 5090"),
    Case("vllm-blackwell", "native", V, {"vllm": "0.33.0"}, "B200"),
    Case("vllm-consumer-blackwell", "native", V, {"vllm": "0.11.0"}, "RTX 5090"),
    Case("vllm-consumer-blackwell", "native", V, {"vllm": "0.33.0"}, "GB10"),
    Case("vllm-hopper", "native", V, {"vllm": "0.10.1"}, "H200"),
    Case("vllm-ampere", "native", V, {"vllm": "0.17.0"}, "L4"),
    Case("vllm-cpu-before", "refused", V, {"vllm": "0.17.0"}, "cpu", amx=True),
    Case("vllm-cpu-between", "unknown", V, {"vllm": "0.22.0"}, "cpu", amx=True),
    Case("vllm-cpu-unchecked", "unknown", V, {"vllm": "0.26.0"}, "cpu", amx=False),
    Case("vllm-cpu-amx", "refused", V, {"vllm": "0.33.0"}, "cpu", amx=False),
    Case("vllm-cpu", "native", V, {"vllm": "0.33.0"}, "cpu", amx=True),
    Case("vllm-rocm-0.10.1", "unknown", V, {"vllm": "0.10.1"}, "MI300X"),
    Case("vllm-rocm-without-triton-kernels", "refused", V, {"vllm": "0.11.0"}, "MI300X"),
    Case("vllm-rocm-cdna", "native", V, {"vllm": "0.33.0"}, "MI300X"),
    Case("vllm-rocm-cdna", "native", V, {"vllm": "0.20.0"}, "gfx950"),
    Case("vllm-rocm-rdna", "native", V, {"vllm": "0.26.0"}, "RX 7900 XTX"),
    Case("vllm-rocm-rdna-0.20", "emulated", V, {"vllm": "0.20.0"}, "RX 7900 XTX"),
    Case("vllm-rocm-emulation", "emulated", V, {"vllm": "0.33.0", "amd_quark": "0.13"}, "MI100"),
    Case("vllm-rocm-without-quark", "refused", V, {"vllm": "0.33.0"}, "RX 6800"),
    Case("vllm-rocm-other", "unknown", V, {"vllm": "0.17.0"}, "gfx1100"),
    Case("unsloth-no-gpu", "refused", U, unsloth(), "cpu"),
    Case("unsloth-mps", "unknown", U, unsloth(), "mps"),
    Case("unsloth-hopper-only-swizzle", "refused", U, unsloth("2026.9.4", triton_kernels="?"), "B200",
         traits=REFUSES_BLACKWELL),
    Case("unsloth-like-transformers", "native", U, unsloth("2026.9.5", triton_kernels="?"), "B200",
         traits=REFUSES_BLACKWELL),
    Case("unsloth-like-transformers", "native", U, unsloth("2026.9.4", triton_kernels="?"), "H100",
         traits=REFUSES_BLACKWELL),
    Case("unsloth-load-in-4bit", "native", U, unsloth(), flags=("load_in_4bit",)),
    Case("unsloth-packed", "emulated", U, unsloth(kernels=""), "A100"),
    Case("unsloth-like-transformers", "dequantized", U, unsloth("2026.9.8", kernels=""), "A100"),
    Case("unsloth-like-transformers", "dequantized", U, unsloth(), "A100", flags=("dequantize",)),
    Case("unsloth-like-transformers", "native", U, unsloth(), "T4"),
    Case("llama.cpp-safetensors", "refused", L, {"llama.cpp": "11549"}),
    Case("llama.cpp-binding-before", "refused", L, {"llama.cpp": "?", "llama_cpp_python": "0.3.14"}, form="gguf-mxfp4"),
    Case("llama.cpp-int8-cores", "native", L, {"llama.cpp": "?", "llama_cpp_python": "0.3.16"}, form="gguf-mxfp4"),
    Case("llama.cpp-old-build", "unknown", L, {"llama.cpp": "6000"}, form="gguf-mxfp4"),
    Case("llama.cpp-gguf-bf16", "dequantized", L, {"llama.cpp": "11549"}, form="gguf-bf16"),
    Case("llama.cpp-gguf-other", "native", L, {"llama.cpp": "11549"}, form="gguf-other"),
    Case("llama.cpp-cpu", "native", L, {"llama.cpp": "11549"}, "cpu", form="gguf-mxfp4"),
    Case("llama.cpp-metal", "native", L, {"llama.cpp": "11549"}, "mps", form="gguf-mxfp4"),
    Case("llama.cpp-fp4-cores", "native", L, {"llama.cpp": "11549"}, "RTX 5090", form="gguf-mxfp4"),
    Case("llama.cpp-int8-cores", "native", L, {"llama.cpp": "11549"}, "B200", form="gguf-mxfp4"),
    Case("llama.cpp-dp4a", "native", L, {"llama.cpp": "11549"}, "V100", form="gguf-mxfp4"),
    Case("llama.cpp-old-cuda", "emulated", L, {"llama.cpp": "11549"}, "P100", form="gguf-mxfp4"),
    Case("llama.cpp-rocm", "native", L, {"llama.cpp": "11549"}, "MI300X", form="gguf-mxfp4"),
    Case("llama.cpp-rocm-old", "unknown", L, {"llama.cpp": "11549"}, "gfx900", form="gguf-mxfp4"),
    Case("gpt-oss-names", "refused", O, OPENAI),
    Case("gpt-oss-device", "refused", O, OPENAI, "cpu", form="openai"),
    Case("gpt-oss-triton", "refused", O, OPENAI | {"triton": "3.3.1"}, form="openai"),
    Case("gpt-oss-without-triton-kernels", "refused", O, {"gpt_oss": "0.0.9", "triton": "3.5.1"}, form="openai"),
    Case("gpt-oss-new-triton-kernels", "refused", O, OPENAI, form="openai", traits={MATMUL_OGS: False}),
    Case("gpt-oss-hopper", "native", O, OPENAI, form="openai", traits={MATMUL_OGS: True}),
    Case("gpt-oss-blackwell", "unknown", O, OPENAI, "B200", "openai", traits={MATMUL_OGS: True}),
    Case("gpt-oss-other", "unknown", O, OPENAI, "A100", "openai", traits={MATMUL_OGS: True}),
]  # fmt: skip


def device(name: str) -> Gpu:
    return Gpu("Apple GPU", "mps") if name == "mps" else named(name)


def facts(form: str) -> CheckpointFacts:
    return replace(GPT_OSS_20B, form=form)


def decided(case: Case) -> Verdict:
    environment = Environment(device(case.gpu), packages=case.packages, traits=case.traits, amx=case.amx, assumed=True)
    return judge_runtime(case.runtime, environment, facts(case.form), case.flags)


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.rule}-{c.gpu}" for i, c in enumerate(CASES)])
def test_what_becomes_of_it(case: Case) -> None:
    verdict = decided(case)
    assert (verdict.path, verdict.rule) == (case.path, case.rule), verdict
    assert verdict.installed
    assert verdict.because
    assert "{" not in verdict.because


def test_every_rule_decides_a_case() -> None:
    assert {c.rule for c in CASES} == {r.id for r in tables.tables().rules}


def test_every_way_is_offered_by_a_rule() -> None:
    rows = tables.tables()
    assert {w for r in rows.rules for w in r.ways} == set(rows.ways)


def test_every_rule_names_what_was_read() -> None:
    for rule in tables.tables().rules:
        assert rule.source == "none" or any(word in rule.source for word in (
            "transformers", "vllm", "unsloth", "llama", "gpt-oss", "run:", "no quantization_config", "own types",
        )), rule.id  # fmt: skip
        assert rule.path == "unknown" or rule.source != "none", rule.id


@pytest.mark.parametrize(
    "change",
    [{"path": "slow"}, {"runtime": "ollama"}, {"ways": ["pray"]}, {"when": {"moon": "full"}}, {"source": ""},
     {"path": "like"}, {"when": {"package": {"cuda": ">=12"}}}, {"versions": "about 4"}, {"id": "transformers-native"}],
)  # fmt: skip
def test_a_row_that_the_format_does_not_allow_is_refused(change: dict[str, Any]) -> None:
    import tomllib

    document = tomllib.loads((ROOT / "ckpttool" / "doctor" / "rules.toml").read_text("utf-8"))
    tables.parse(document)
    document["rules"][0] |= change
    with pytest.raises(ValueError):
        tables.parse(document)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    packages = {"vllm": "0.33.0"}
    assert judge_runtime(V, Environment(Gpu("some GPU", "cuda"), packages=packages), facts("mxfp4")).path == "unknown"
    no_amx = judge_runtime(V, Environment(named("cpu"), packages=packages), facts("mxfp4"))
    assert (no_amx.path, "AMX" in no_amx.because) == ("unknown", True)
    odd = hf() | {"transformers": "?"}
    assert judge_runtime(T, Environment(named("H100"), packages=odd), facts("mxfp4")).path == "unknown"
    untagged = judge_runtime(V, Environment(named("T4"), packages={"vllm": "0.1.dev17670+gb2cfae777"}), facts("mxfp4"))
    assert (untagged.path, untagged.version) == ("refused", "0.1.dev17670+gb2cfae777")  # by its capability alone
    assert untagged.rule == "vllm-capability"
    assert "no version known" in untagged.basis
    other = judge(Environment(named("H100"), packages=hf()), facts("other"))
    assert {v.path for v in other} == {"unknown"}


def test_an_unknown_fact_that_changes_nothing_does_not_matter() -> None:
    gpu = Gpu("some GPU", "cuda")  # of unknown capability
    verdict = judge_runtime(T, Environment(gpu, packages=hf()), facts("mxfp4"), {"dequantize"})
    assert (verdict.path, verdict.rule) == ("dequantized", "transformers-dequantize")


def test_how_far_the_rules_were_read_is_said() -> None:
    def basis(version: str) -> str:
        return judge_runtime(T, Environment(named("H100"), packages=hf(version)), facts("mxfp4")).basis

    assert basis("5.23.0") == "read"
    assert "5.8.1" in basis("5.10.1")
    assert "5.12.1" in basis("5.10.1")
    assert "newer than 5.23.0" in basis("6.0.0")
    assert "older than 4.54.1" in basis("4.40.0")


def test_a_torch_that_is_not_built_for_the_gpu_does_not_see_it() -> None:
    here = Environment(named("H100"), packages=hf() | {"torch": "2.13.0+cpu"}, amx=False)
    assert judge_runtime(T, here, facts("mxfp4")).rule == "transformers-cpu-default"
    assert "does not see it" in judge_runtime(T, here, facts("mxfp4")).doubts[0]
    assert judge_runtime(L, here, facts("gguf-mxfp4")).rule == "llama.cpp-int8-cores"
    asked = replace(here, assumed=True)  # another machine's GPU comes with another machine's torch
    assert judge_runtime(T, asked, facts("mxfp4")).rule == "transformers-native"


def test_what_is_not_installed_is_judged_as_if_it_were() -> None:
    for verdict in judge(Environment(named("H100")), None):
        assert not verdict.installed
        assert (verdict.path, verdict.basis.startswith("read")) == ("native", True), verdict
    half = judge_runtime(T, Environment(named("H100"), packages={"triton": "3.3.1"}), None)
    assert (half.installed, half.path, half.rule) == (False, "dequantized", "transformers-triton")


# ------------------------------------------------------------------------------------------------- transformers itself


class Probes(NamedTuple):
    """What transformers' own code asks of its environment."""

    device: str
    capability: tuple[int, int]
    triton: str
    kernels: str
    accelerate: bool
    use_kernels: bool


def asked_of_transformers(p: Probes) -> str:
    """The path that the installed transformers takes: its own quantizer, with its probes answered by `p`."""
    import torch
    import transformers.integrations
    from transformers import Mxfp4Config
    from transformers.quantizers import quantizer_mxfp4
    from transformers.utils import import_utils

    assert callable(transformers.integrations.replace_with_mxfp4_linear)  # loaded before its probes are replaced
    real = import_utils._is_package_available
    found = {"triton": p.triton, "kernels": p.kernels, "accelerate": "1.10.0" if p.accelerate else ""}

    def available(name: str, return_version: bool = False) -> tuple[bool, Any]:
        return (bool(found[name]), found[name] or "N/A") if name in found else real(name, return_version)

    class Replaced(Exception):
        pass

    def replacing(model: object, quantization_config: Any, **kwargs: object) -> None:
        if not quantization_config.dequantize:
            raise Replaced  # what the native path does next is to fetch its kernels

    quantizer = quantizer_mxfp4.Mxfp4HfQuantizer(Mxfp4Config(), pre_quantized=True)
    cuda = p.device == "cuda"
    with ExitStack() as stack:
        patched = [
            mock.patch.object(torch.cuda, "is_available", lambda: cuda),
            mock.patch.object(torch.cuda, "get_device_capability", lambda *a: p.capability),
            mock.patch.object(torch.xpu, "is_available", lambda: False),
            mock.patch.object(quantizer_mxfp4, "get_current_accelerator", lambda: torch.device(p.device)),
            mock.patch.object(import_utils, "_is_package_available", available),
            mock.patch("transformers.integrations.replace_with_mxfp4_linear", replacing),
            mock.patch.object(quantizer, "get_modules_to_not_convert", lambda *a: []),
        ]
        for item in patched:
            stack.enter_context(item)
        cached = [
            import_utils.is_kernels_available,
            import_utils.is_triton_available,
            import_utils.is_accelerate_available,
        ]
        for function in cached:
            function.cache_clear()
        try:
            quantizer.validate_environment(device_map=None)
            quantizer._process_model_before_weight_loading(mock.Mock(), use_kernels=p.use_kernels)
        except Replaced:
            return "native"
        except (ImportError, RuntimeError, ValueError):
            return "refused"
        finally:
            for function in cached:
                function.cache_clear()
    assert quantizer.quantization_config.dequantize
    return "dequantized"


def probes() -> Iterator[Probes]:
    rng = random.Random(4)
    capabilities = [(6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    tritons = ["", "3.3.1", "3.4.0rc1", "3.4.0", "3.5.0", "3.6.0"]
    kernels = ["", "0.9.0", "0.14.1", "0.15.2", "0.16.0", "0.17.0", "0.17.2", "0.18.1", "0.18.2", "0.18.9", "0.19.0"]
    for _ in range(600):
        yield Probes(
            rng.choice(["cuda", "cuda", "cpu", "mps"]), rng.choice(capabilities), rng.choice(tritons),
            rng.choice(kernels), rng.random() < 0.8, rng.random() < 0.3,
        )  # fmt: skip


def test_the_installed_transformers_does_what_the_rules_say() -> None:
    """600 environments through transformers' own quantizer; the rules name the same path for each."""
    import transformers

    seen = set()
    for p in probes():
        packages = hf(transformers.__version__, p.triton, p.kernels, accelerate="1.10.0" if p.accelerate else "")
        capability = f"{p.capability[0]}.{p.capability[1]}" if p.device == "cuda" else None
        environment = Environment(Gpu("x", p.device, capability), packages=packages, assumed=True)
        flags = {"use_kernels"} if p.use_kernels else set[str]()
        verdict = judge_runtime(T, environment, facts("mxfp4"), flags)
        if verdict.rule == "transformers-use-kernels-without":
            continue  # from_pretrained refuses that after its quantizer has spoken: tested below, by loading
        assert verdict.path == asked_of_transformers(p), (p, verdict)
        seen.add((verdict.path, verdict.rule))
    assert {path for path, _ in seen} == {"native", "dequantized", "refused"}
    assert len(seen) >= 8


LOADS = {
    "plain": ("hf", "{}"),
    "use_kernels": ("hf", "{'use_kernels': True}"),
    "dequantize": ("hf", "{'quantization_config': Mxfp4Config(dequantize=True)}"),
    "load_in_4bit": ("hf", "{'quantization_config': BitsAndBytesConfig(load_in_4bit=True)}"),
    "openai": ("openai", "{}"),
    "bf16": ("hf-bf16", "{}"),
}

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Mxfp4Config
from transformers.utils import logging
for name, (path, options) in json.loads(sys.argv[1]).items():
    logging.warning_once.cache_clear()
    print("CASE", name, flush=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **eval(options))
        experts = model.model.layers[0].mlp.experts
        print("LOADED", type(experts).__name__, {str(p.dtype) for p in experts.parameters()}, flush=True)
    except Exception as e:
        print("REFUSED", type(e).__name__, e, flush=True)
"""


@pytest.fixture(scope="module")
def loads() -> dict[str, list[str]]:
    """What transformers really does with the fixtures on this CPU, and every line that it says."""
    cases = {name: (str(TINY / folder), options) for name, (folder, options) in LOADS.items()}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(cases)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, check=True,
    )  # fmt: skip
    parts = done.stdout.split("CASE ")[1:]
    return {part.split("\n", 1)[0]: part.splitlines()[1:] for part in parts}


@pytest.mark.parametrize("name", LOADS)
def test_transformers_on_this_cpu_does_what_the_doctor_says(name: str, loads: dict[str, list[str]]) -> None:
    form = {"openai": "openai", "bf16": "bf16"}.get(name, "mxfp4")
    flags = {name} & {"use_kernels", "dequantize", "load_in_4bit"}
    here = probe.probe("cpu")
    verdict = judge_runtime(T, here, facts(form), flags)
    said = next(line for line in loads[name] if line.startswith(("LOADED", "REFUSED")))
    if verdict.path == "native":  # with the right `kernels` here: they come from the Hub, which a test does not ask
        assert "gpt-oss-triton-kernels" in said or "LOADED Mxfp4GptOssExperts" in said
    else:
        assert said.startswith("REFUSED") == (verdict.path == "refused"), (said, verdict)
        assert said.startswith("REFUSED") or "LOADED GptOssExperts {'torch.bfloat16'}" in said


@pytest.mark.parametrize("name", ["plain", "use_kernels", "load_in_4bit", "openai"])
def test_what_transformers_really_says_is_known(name: str, loads: dict[str, list[str]]) -> None:
    found = matches(loads[name], probe.probe("cpu").packages)
    assert found, loads[name]
    assert {m.runtime for m in found} == {"transformers"}
    assert all(m.installed_affected is not False for m in found)


def test_llama_cpp_on_this_cpu_does_what_the_doctor_says() -> None:
    gguf = TINY / "gguf" / "tiny-gpt-oss-mxfp4_moe.gguf"
    here = probe.probe("cpu")
    report = {v.runtime: v for v in judge(here, checkpoint_facts(ckpttool.open_checkpoint(gguf)))}
    assert (report[L].installed, report[L].path) == (True, "native")
    assert np.isfinite(llamacpp.logits(gguf, [1, 2, 3])).all()
    assert judge_runtime(L, here, facts("mxfp4")).path == "refused"
    with pytest.raises(llamacpp.LlamaCppError):
        llamacpp.logits(TINY / "hf" / "model-00001-of-00002.safetensors", [1, 2, 3])


# ---------------------------------------------------------------------------------------------------------------- ways


def ways(environment: Environment, checkpoint: CheckpointFacts, runtime: str) -> tuple[list[Any], list[Any]]:
    verdict = judge_runtime(runtime, environment, checkpoint)
    proposed, left_out = ways_out(verdict, environment, checkpoint)
    return list(proposed), list(left_out)


def test_installs_are_chained_until_they_suffice() -> None:
    here = Environment(named("H100"), packages=hf("4.56.2", "3.3.1", ""))
    (way,), _ = ways(here, facts("mxfp4"), T)
    assert way.command == "pip install 'triton>=3.4.0' 'kernels<0.15'"
    assert (way.path, way.runtime, way.fits) == ("native", T, True)
    old = Environment(named("H100"), packages=hf("4.50.0", "3.3.1", ""))
    (way,), _ = ways(old, facts("mxfp4"), T)
    assert "transformers[kernels]" in way.command
    assert way.path == "native"
    assert "triton>=3.4.0" in way.command


def test_every_way_leads_where_it_says() -> None:
    """What is proposed is better than the verdict, by the same rules, in every case of the table."""
    rank = tables.PATHS.index
    offered = 0
    for case in CASES:
        environment = Environment(device(case.gpu), packages=case.packages, traits=case.traits, amx=case.amx)
        verdict = judge_runtime(case.runtime, environment, facts(case.form), case.flags)
        for way in ways_out(verdict, environment, facts(case.form), case.flags)[0]:
            offered += 1
            better = rank(way.path) < rank(verdict.path)
            assert better or "--n-cpu-moe" in way.command or "--tensor-parallel" in way.command, (case, way)
            assert "{" not in way.command
            assert way.fits is not False
    assert offered > 60


def test_what_does_not_fit_is_left_out_and_priced() -> None:
    t4 = Environment(named("T4"), packages={"vllm": "0.33.0"})
    proposed, left_out = ways(t4, GPT_OSS_120B, V)
    (dequantized,) = [w for w in left_out if w.path == "dequantized"]
    assert round(dequantized.weights_bytes / GIB, 1) == 217.6
    (llama,) = proposed
    layers = int(llama.command.rsplit("--n-cpu-moe ", 1)[1])
    assert llama.weights_bytes <= named("T4").memory - GIB  # type: ignore[operator]
    expert = GPT_OSS_120B.expert_nbytes[0]
    assert llama.weights_bytes == GPT_OSS_120B.nbytes - layers * expert
    assert llama.weights_bytes + expert > named("T4").memory - GIB  # type: ignore[operator]


def test_more_gpus_are_proposed_where_one_is_too_small() -> None:
    one = Environment(named("RTX 4090"), (named("RTX 4090"),), packages={"vllm": "0.33.0"})
    (way,), _ = ways(one, GPT_OSS_120B, V)
    assert "--tensor-parallel-size 4" in way.command
    four = replace(one, gpus=(named("RTX 4090"),) * 4)
    (way,), _ = ways(four, GPT_OSS_120B, V)  # which are here: together they hold it, by a flag
    assert (way.fits, way.note) == (True, "on 4 of the 4 GPUs here, together")
    assert "--tensor-parallel-size 4" in way.command
    two = replace(one, gpus=(named("RTX 4090"),) * 2)
    (way,), _ = ways(two, GPT_OSS_120B, V)
    assert (way.fits, way.note) == (None, "on 4 GPUs like the first of the 2 here")


def test_whose_memory_holds_the_weights() -> None:
    """No RTX 4090 has 120b's 60.8 GiB, four do together; vLLM splits by powers of two, OpenAI's code uses one."""
    four = Environment(named("RTX 4090"), (named("RTX 4090"),) * 4)
    counts = {r: fits_on(GPT_OSS_120B.nbytes, four, GPT_OSS_120B, r) for r in (T, V, U, L, O)}
    assert counts == {T: 3, V: 4, U: 3, L: 3, O: 0}
    six = replace(four, gpus=(named("RTX 4090"),) * 6)
    assert fits_on(GPT_OSS_120B.bf16_nbytes // 2, six, GPT_OSS_120B, V) == 0  # 108.8 GiB: eight would do
    assert fits_on(GPT_OSS_120B.bf16_nbytes // 2, six, GPT_OSS_120B, T) == 5
    mixed = Environment(named("H100"), (named("H100"), named("RTX 4090")))
    assert fits_on(100 * GIB, mixed, None, T) == 2
    assert fits_on(45 * GIB, mixed, None, V) == 1
    assert fits_on(75 * GIB, mixed, None, V) == 0  # each would take half, which the smaller has no room for
    assert fits_on(1, Environment(named("sm_90"), (named("sm_90"),) * 2), None, T) is None


def test_several_gpus_by_name() -> None:
    assert several("4 x H100") == (named("H100"),) * 4
    assert several("2xl4") == (named("l4"),) * 2
    assert several("H100") == (named("H100"),)
    assert several("RX 7900 XTX") == (named("RX 7900 XTX"),)
    assert [g.memory for g in several("2 x 80GB")] == [named("H100").memory] * 2
    with pytest.raises(UsageError):
        several("0 x H100")


NUMBERS = [("96", "sm_96", "96GB"), ("9.0", "sm_90", "9.0GB"), ("120", "sm_120", "120GB")]


@pytest.mark.parametrize(("text", "sm", "size"), NUMBERS)
def test_a_number_alone_is_neither_a_capability_nor_a_size(text: str, sm: str, size: str) -> None:
    result = run("doctor", "--gpu", text, "--json")
    (error,) = result.document["errors"]
    assert (result.code, error["kind"]) == (2, "usage")
    assert sm in error["hint"] and size in error["hint"]
    assert named("4090") == replace(named("RTX 4090"), name="4090")  # a name


def test_a_bf16_checkpoint_weighs_what_mxfp4_weighs_once_it_is_converted() -> None:
    wide = CheckpointFacts(
        "x", "bf16", "gpt-oss", 20_914_757_184, 41_829_514_368, 41_829_514_368, (1_592_524_800,) * 24
    )
    (way, more), _ = ways(Environment(named("RTX 4090"), packages={"vllm": "0.33.0"}), wide, V)
    assert (more.path, "--tensor-parallel-size 2" in more.command) == ("dequantized", True)
    assert way.command == "ckpttool convert x x-mxfp4 --to mxfp4"
    assert abs(way.weights_bytes - GPT_OSS_20B.nbytes) < 1_000
    assert way.fits


def test_names_are_quoted() -> None:
    odd = replace(GPT_OSS_20B, source="my models/it's")
    proposed, _ = ways(Environment(named("T4"), packages={"vllm": "0.33.0"}), odd, V)
    command = next(w.command for w in proposed if w.runtime == L)
    shown = subprocess.run(
        ["bash", "-c", f"ckpttool() {{ printf '%s\\n' \"$@\"; }}; llama-server() {{ ckpttool \"$@\"; }}; {command}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split("\n")[:4] == ["convert", "my models/it's", "it's.gguf", "-m"]


# --------------------------------------------------------------------------------------------------------------- probe


def program(folder: Path, name: str, text: str, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but a shell and cat; programs can be added."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_nvidia_smi_names_gpu_capability_memory_and_driver(path: Path) -> None:
    rows = "NVIDIA H100 80GB HBM3, 9.0, 81559, 550.54.15\nNVIDIA H100 80GB HBM3, 9.0, 81559, 550.54.15"
    program(path, "nvidia-smi", rows)
    here = probe.probe()
    assert here.gpu == Gpu("NVIDIA H100 80GB HBM3", "cuda", "9.0", memory=81559 << 20)
    assert (len(here.gpus), here.driver, here.assumed, here.notes) == (2, "550.54.15", False, ())


SEEN: dict[str | None, tuple[list[int], bool]] = {
    None: ([80, 24, 48], False), "1": ([24], True), "2,0": ([48, 80], True), "0,1,2": ([80, 24, 48], False),
    "": ([], True), "-1": ([], True), "0,7,1": ([80], True), "GPU-8f2c": ([80, 24, 48], True),
}  # fmt: skip


@pytest.mark.parametrize("variable", SEEN)
def test_cuda_visible_devices(variable: str | None) -> None:
    sizes, noted = SEEN[variable]
    gpus = tuple(Gpu(f"{n}", "cuda", "9.0", memory=n) for n in (80, 24, 48))
    seen, note = probe._visible(gpus, variable)
    assert ([g.memory for g in seen], note is not None) == (sizes, noted)


def test_several_gpus_here_and_whose_memory_is_meant(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    source = header_checkpoints.write_headers(tmp_path / "gpt-oss-120b", "120b")
    program(path, "nvidia-smi", "\n".join(["NVIDIA L40S, 8.9, 46068, 570.0"] * 4))
    asked = (source, "--with", "vllm=0.33.0", "--with", "torch=2.9.0+cu128")
    report = document(*asked)
    where = report["environment"]
    assert (where["gpus"], len(where["cards"])) == (4, 4)
    assert (where["memory_bytes"], where["memory_bytes_together"]) == (46068 << 20, 4 * 46068 << 20)
    rows = {r["runtime"]: r for r in report["runtimes"]}
    assert (rows[V]["fits"], rows[V]["fits_on"]) == (True, 2)
    assert "--tensor-parallel-size 2" in rows[V]["ways"][0]["command"]
    assert [(p["fits"], p["fits_on"]) for p in report["prices"]] == [(True, 2), (False, 0)]
    out = run("doctor", *asked).out
    assert "on 4 x NVIDIA L40S, compute capability 8.9, 45.0 GiB each, 180.0 GiB together" in out
    assert "60.8 GiB as stored (fits 2 GPUs together), 217.6 GiB bf16 (does not fit 4 GPUs)" in out
    program(path, "nvidia-smi", "NVIDIA L40S, 8.9, 46068, 570.0\nNVIDIA L4, 8.9, 23034, 570.0")
    out = run("doctor", *asked).out
    assert "on 2 GPUs of 67.5 GiB together, the first NVIDIA L40S" in out
    assert "the verdicts are about NVIDIA L40S; other GPUs here: NVIDIA L4" in out


def test_an_old_nvidia_smi_without_capabilities(path: Path) -> None:
    program(path, "nvidia-smi", "Tesla V100-SXM2-32GB, [N/A], 32768, 418.0\n")
    assert probe.probe().gpu.capability == "7.0"
    program(path, "nvidia-smi", "Graphics Device, [N/A], 32768, 418.0\n")
    assert probe.probe().gpu.capability is None


@pytest.mark.parametrize(("text", "code"), [("NVIDIA-SMI has failed", 9), ("No devices were found", 0), ("", 0)])
def test_an_nvidia_smi_that_fails_is_told(path: Path, text: str, code: int) -> None:
    program(path, "nvidia-smi", text, code)
    here = probe.probe()
    assert here.gpu.device in ("cpu", "mps")
    assert "is the driver loaded" in here.notes[0]


def test_no_gpu_is_a_processor(path: Path) -> None:
    here = probe.probe()
    assert here.gpu.device in ("cpu", "mps")
    assert (here.gpus, here.driver) == ((), None)


def test_amd_gpus_are_in_the_kernels_list(tmp_path: Path) -> None:
    for n, version in enumerate((0, 90402, 90010, 110000)):
        node = tmp_path / str(n)
        (node / "mem_banks" / "0").mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
        (node / "mem_banks" / "0" / "properties").write_text(f"size_in_bytes {192 * GIB}\n")
    assert [g.gfx for g in probe._amd(tmp_path)] == ["gfx942", "gfx90a", "gfx1100"]
    assert {g.memory for g in probe._amd(tmp_path)} == {192 * GIB}
    assert probe._amd(tmp_path / "nothing") == ()


def test_llama_cpp_says_its_build(path: Path) -> None:
    assert "llama.cpp" not in probe._llama_cpp({})
    program(path, "llama-cli", "version: 6291 (44b1efa4)\nbuilt with cc for x86_64-linux-gnu")
    assert probe._llama_cpp({}) == {"llama.cpp": "6291"}
    program(path, "llama-cli", "nothing of use")
    assert probe._llama_cpp({"xllamacpp": "2026.10.11549"}) == {"llama.cpp": "11549"}
    assert probe._llama_cpp({"llama_cpp_python": "0.3.16"}) == {"llama.cpp": "?"}


def install(folder: Path, **packages: str) -> Path:
    """Packages in a site-packages folder, each of which ends the process that imports it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        module = folder / name
        module.mkdir(exist_ok=True)
        (module / "__init__.py").write_text("raise SystemExit('imported')\n")
    return folder


def environment(root: Path, **packages: str) -> Path:
    """A venv whose interpreter is a link to one that ends whoever runs it."""
    install(root / "lib" / "python3.12" / "site-packages", **packages)
    (root / "pyvenv.cfg").write_text("home = /nowhere/bin\ninclude-system-site-packages = false\n")
    program(root.parent / "base", "python3", "this must not run", 1)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(root.parent / "base" / "python3")
    return root


@pytest.mark.parametrize("place", ["bin/python", "", "lib/python3.12/site-packages"])
def test_another_environment_is_read_and_never_run(tmp_path: Path, path: Path, place: str) -> None:
    root = environment(tmp_path / "venv", torch="2.8.0", pytorch_triton="3.3.0", transformers="4.56.2", kernels="0.9.0")
    before = set(sys.modules)
    here = probe.probe("H100", root / place)
    assert here.packages == {"torch": "2.8.0", "triton": "3.3.0", "transformers": "4.56.2", "kernels": "0.9.0"}
    assert not {m.split(".")[0] for m in set(sys.modules) - before} & {"torch", "triton", "transformers", "kernels"}


def test_a_venv_that_lets_its_base_through(tmp_path: Path, path: Path) -> None:
    install(tmp_path / "usr" / "lib" / "python3.12" / "site-packages", vllm="0.33.0", torch="2.8.0")
    root = environment(tmp_path / "venv", torch="2.9.0")
    (root / "pyvenv.cfg").write_text(f"home = {tmp_path}/usr/bin\ninclude-system-site-packages = true\n")
    assert probe.probe("H100", root).packages == {"torch": "2.9.0", "vllm": "0.33.0"}


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"site-packages|does not exist"):
            probe.site_packages(place)
    odd = tmp_path / "odd" / "lib" / "python3.12" / "site-packages" / "torch-2.8.0.dist-info"
    odd.mkdir(parents=True)  # without METADATA, as a broken install leaves it
    assert probe.versions(probe.site_packages(tmp_path / "odd")) == {"torch": "?"}


def test_triton_kernels_is_told_by_its_files(tmp_path: Path) -> None:
    def found() -> tuple[dict[str, str], dict[str, bool]]:
        packages = probe.versions([tmp_path])
        return packages, probe._traits([tmp_path], packages)

    install(tmp_path, triton_kernels="0.1.0")  # PyPI's, which is another
    assert found()[0] == {}
    root = tmp_path / "triton_kernels"
    layouts = root / "tensor_details" / "layout_details"
    layouts.mkdir(parents=True)
    (root / "matmul_ogs_details").mkdir()
    (root / "matmul_ogs.py").touch()
    kernel = root / "matmul_ogs_details" / "_matmul_ogs.py"
    kernel.write_text("tl.static_assert(x, 'Only Hopper swizzling is supported for values')")
    assert found() == (
        {"triton_kernels": "?"},
        {"triton_kernels:matmul_ogs": True, "triton_kernels:hopper-values-only": False},
    )
    (layouts / "blackwell_value.py").touch()
    assert found()[1]["triton_kernels:hopper-values-only"]
    kernel.write_text("pass")
    assert not found()[1]["triton_kernels:hopper-values-only"]
    (root / "matmul_ogs.py").unlink()
    assert not found()[1]["triton_kernels:matmul_ogs"]


def test_what_if(path: Path) -> None:
    here = probe.probe("H100")
    asked = probe.probe("H100", extra=["triton=3.3", "Unsloth-Zoo==2026.9.4", "kernels=none", "llama.cpp=6291"])
    assert asked.packages["triton"] == "3.3"
    assert asked.packages["unsloth_zoo"] == "2026.9.4"
    assert asked.packages["llama.cpp"] == "6291"
    assert "kernels" not in asked.packages
    assert asked.packages.get("torch") == here.packages.get("torch")
    for bad in ("cuda=12", "triton", "triton=new", "=3"):
        with pytest.raises(UsageError, match="--with"):
            probe.probe("H100", extra=[bad])


# ----------------------------------------------------------------------------------------------------------------- log


LOG = [
    ("triton.compiler.errors.CompileTimeAssertionFailure: at 38:8: Only Hopper swizzling is supported for values",
     "hopper-only-swizzle"),
    ("MXFP4 quantization requires triton >= 3.4.0 and kernels installed, we will default to dequantizing the model to "
     "bf16", "triton-and-kernels"),
    ("MXFP4 quantization requires triton >= 3.4.0 and triton_kernels installed, we will default", "triton-and-kernels"),
    ("MXFP4 quantization requires Triton and kernels installed: CUDA requires Triton >= 3.4.0, XPU requires Triton >= "
     "3.5.0, we will default to dequantizing the model to bf16", "triton-and-kernels-4.57"),
    ("MXFP4 quantization requires Triton: CUDA requires Triton >= 3.4.0, XPU/CPU requires", "triton"),
    ("MXFP4 quantization requires the `kernels` package: `pip install kernels>=0.12.0`.", "kernels"),
    ("MXFP4 quantization is only supported on GPUs with compute capability >= 7.5 (e.g T4, A100", "capability-7.5"),
    ("MXFP4 quantized models is only supported on GPUs with compute capability >= 9.0 (e.g H100, or B100)",
     "capability-9.0"),
    ("Using MXFP4 quantized models requires a GPU, we will default to dequantizing", "requires-a-gpu"),
    ("You are using full precision kernels, we will dequantize the model to bf16.", "use-kernels"),
    ("MXFP4 inference on CPU requires use_kernels=True, but use_kernels is disabled.", "cpu-use-kernels"),
    ("ValueError: Either a revision or a version must be specified.", "kernels-0.15-import"),
    ("ValueError: Kernels are not available. Please install", "kernels-not-available"),
    ("ValueError: Version 1 of 'kernels-community/gpt-oss-triton-kernels' is not available in the local cache",
     "kernel-offline"),
    ("ValueError: The model is quantized with Mxfp4Config but you are passing a BitsAndBytesConfig config.",
     "other-quantization-config"),
    ("The checkpoint you are trying to load has model type `gpt_oss` but Transformers does not recognize this "
     "architecture.", "no-gpt-oss"),
    ("KeyError: 'gpt_oss'", "no-gpt-oss"),
    ("ValueError: Unrecognized model in gpt-oss-20b/original. Should have a `model_type` key in its config.json.",
     "no-model-type"),
    ("ImportError: Using mxfp4 requires Accelerate: `pip install accelerate`", "accelerate"),
    ("MXFP4 quantization don't support training, please consider dequantizing", "no-training"),
    ("TypeError: only 0-dimensional arrays can be converted to Python scalars", "gguf-numpy"),
    ("KeyError: 'F8_E8M0'", "safetensors-dtype"),
    ("ValueError: The quantization method gpt_oss_mxfp4 is not supported for the current GPU. Minimum capability: 80. "
     "Current capability: 75.", "vllm-capability"),
    ("ValueError: The quantization method mxfp4 is not supported for the current GPU.", "vllm-capability"),
    ("NotImplementedError: No MXFP4 MoE backend supports the deployment configuration.", "vllm-no-backend"),
    ("AssertionError: get_mxfp4_backend(...) foundno compatible MXFP4 MoE backend", "vllm-no-backend"),
    ("KeyError: 'layers.0.mlp.experts.w2_weight'", "vllm-bf16-keyerror"),
    ("KeyError: 'layers.0.mlp.experts.gate_up_proj_blocks'", "experts-keyerror"),
    ("KeyError: 'model.layers.3.mlp.experts.down_projs.0.weight'", "experts-keyerror"),
    ("Mxfp4 on hopper is running on torch < 2.8.1, this cause swizling to be disabled", "vllm-old-torch-on-hopper"),
    ("MXFP4 MoE is enabled on Hopper/Blackwell but FlashInfer is not available.", "vllm-no-flashinfer"),
    ("RuntimeError: Failed to infer device type", "vllm-no-device"),
    ("NotImplementedError: Must use persistent kernel and be TMA-compliant for native MXFP", "persistent-kernel"),
    ("InapplicableConstraint: cannot enforce `is_persistent=True` constraint", "persistent-kernel"),
    ("ptxas a.ptx, line 606; error : Feature '.tile::gather4 with destination state space as .shared::cluster' not "
     "supported on .target sm_120a", "gather4-on-sm120"),
    ("ModuleNotFoundError: No module named 'triton_kernels.matmul_ogs'", "no-triton-kernels"),
    ("NotImplementedError: Unsloth cannot find any torch accelerator? You need a GPU.", "unsloth-no-gpu"),
    ("llama_model_load: error loading model architecture: unknown model architecture: 'gpt-oss'",
     "llama.cpp-unknown-architecture"),
    ("gguf_init_from_file_impl: tensor 'blk.0.ffn_down_exps.weight' of type 4 (DEPRECATED) has 2880 elements per row, "
     "not a multiple of block size (0)", "ollama-gguf"),
    ("NotImplementedError: Quant method is not yet supported: 'mxfp4'", "convert-hf-mxfp4"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.98 GiB.", "out-of-memory"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name"), LOG)
def test_a_known_message_is_known(line: str, name: str) -> None:
    noise = ["INFO 11-22 loading", "Traceback (most recent call last):"]
    (match,) = matches([*noise, f"(Worker pid=7) ERROR {line}", *noise], {})
    assert (match.id, match.lines, match.count) == (name, (3,), 1)
    assert match.cause
    assert match.ways


def test_every_message_has_a_sample() -> None:
    assert {name for _, name in LOG} == {m.id for m in messages()}


def test_messages_are_counted_in_their_order_and_filled() -> None:
    lines = [LOG[-1][0], "", LOG[1][0], LOG[1][0], "x" * 200_000 + LOG[1][0]] + [LOG[-1][0]] * 9
    values = {"source": "a b", "stem": "a", "kernels": ">=0.18.2,<0.19"}
    first, second = matches(lines, {"transformers": "4.57.6"}, values)
    assert (first.id, first.count, first.lines) == ("out-of-memory", 10, (1, 6, 7, 8, 9))
    assert (second.id, second.lines, second.installed_affected) == ("triton-and-kernels", (3, 4), False)
    assert first.ways == ("ckpttool doctor a b", "ckpttool estimate a b")
    (kernels,) = matches([LOG[5][0]], {"transformers": "5.23.0"}, values)
    assert kernels.installed_affected
    assert kernels.ways == ("pip install 'kernels>=0.18.2,<0.19'",)
    assert matches(["all is well"], {}) == ()


# ------------------------------------------------------------------------------------------------------------- command


def document(*argv: str | Path, code: int = 0) -> dict[str, Any]:
    result = run("doctor", *argv, "--json")
    assert (result.code, result.err) == (code, "")
    Draft202012Validator(SCHEMA).validate(result.document)
    return result.document


def paths(report: dict[str, Any]) -> dict[str, str]:
    return {r["runtime"]: r["path"] for r in report["runtimes"]}


H100 = ("--gpu", "H100", "--with", "transformers=5.22.2", "--with", "kernels=0.17.2", "--with", "triton=3.6.0",
        "--with", "accelerate=1.10", "--with", "torch=2.8.0")  # fmt: skip


def test_the_command_in_every_form_of_the_checkpoint() -> None:
    report = document(TINY / "hf", *H100, "--with", "vllm=0.33.0")
    assert report["checkpoint"]["form"] == "mxfp4"
    assert paths(report) == {T: "native", V: "native", U: "native", L: "refused", O: "refused"}
    assert [r["runtime"] for r in report["runtimes"] if not r["reads_form"]] == [L, O]
    forms = {"parent": "bf16", "hf-bf16": "bf16", "unsloth": "bf16", "openai": "openai",
             "gguf/tiny-gpt-oss-mxfp4_moe.gguf": "gguf-mxfp4", "gguf/tiny-gpt-oss-bf16.gguf": "gguf-bf16",
             "gguf/tiny-gpt-oss-q4_k_m.gguf": "gguf-other"}  # fmt: skip
    for name, form in forms.items():
        other = document(TINY / name, *H100)
        assert other["checkpoint"]["form"] == form, name
        assert (paths(other)[O] == "native") == (form == "openai")
        assert (paths(other)[L] in ("native", "dequantized")) == form.startswith("gguf")


def test_the_command_without_a_checkpoint() -> None:
    packages = ("triton=3.3", "transformers=4.56.2", "kernels=0.9.0", "accelerate=1.0", "torch=2.7")
    report = document("--gpu", "B200", *(word for p in packages for word in ("--with", p)))
    assert (report["source"], report["checkpoint"], report["messages"]) == (None, None, None)
    assert paths(report)[T] == "dequantized"
    assert "triton >= 3.4.0" in report["runtimes"][0]["because"]
    prices = {(p["model"], p["form"]): round(p["nbytes"] / GIB, 1) for p in report["prices"]}
    assert list(prices.values()) == [12.8, 39.0, 60.8, 217.6]
    assert [p["fits"] for p in report["prices"]] == [True, True, True, False]


def test_another_model_is_not_spoken_of(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [("model.layers.0.block_sparse_moe.gate.weight", "BF16", (8, 64))]
    header_checkpoints.write_safetensors(tmp_path / "model.safetensors", rows)
    report = document(tmp_path, *H100)
    assert report["checkpoint"]["form"] == "other"
    assert set(paths(report).values()) == {"unknown"}
    assert all(r["ways"] == [] for r in report["runtimes"])


def test_layers_of_speculation_are_in_no_price(tmp_path: Path) -> None:
    config = model_families.DEEPSEEK_V3
    prices = {}
    for name, speculation in (("whole", True), ("main", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        rows = list(model_families.deepseek_v3_tensors(config, speculation=speculation))
        header_checkpoints.write_safetensors(tmp_path / name / "model.safetensors", rows)
        report = document(tmp_path / name, *H100)
        prices[name] = [p["nbytes"] for p in report["prices"]]
        assert (report["checkpoint"]["speculation_nbytes"] > 20 * GIB) == speculation
    assert prices["whole"] == prices["main"]
    assert "21.4 GiB of layers that only guess tokens ahead (MTP)" in run("doctor", tmp_path / "whole", *H100).out


def test_flags_that_change_the_path() -> None:
    flags = {f["flag"]: f["path"] for f in document(TINY / "hf", *H100)["runtimes"][0]["flags"]}
    assert flags == {"dequantize": "dequantized", "use_kernels": "dequantized", "load_in_4bit": "refused"}


def test_require_native() -> None:
    fine = document(TINY / "hf", *H100, "--with", "llama.cpp=11549", "--require", "native")  # which reads GGUF only
    assert (fine["ok"], fine["failing"], fine["required"]) == (True, [], "native")
    old = document(
        TINY / "hf", *H100, "--with", "triton=3.3", "--with", "llama.cpp=none", "--require", "native", code=1
    )
    assert (old["ok"], old["failing"]) == (False, [T])
    assert document(TINY / "hf", *H100, "--with", "triton=3.3", "--with", "llama.cpp=none")["ok"]
    printed = run("doctor", TINY / "hf", *H100, "--with", "kernels=none", "--require", "native")
    assert printed.code == 1
    assert "required native: no (transformers" in printed.out


def test_full_size_models_are_priced(tmp_path: Path) -> None:
    source = header_checkpoints.write_headers(tmp_path / "gpt-oss-120b", "120b")
    report = document(source, "--gpu", "RTX 4090", "--with", "vllm=0.33.0")
    rows = {r["runtime"]: r for r in report["runtimes"]}
    assert (rows[V]["path"], rows[V]["fits"], rows[V]["weights_bytes"]) == ("native", False, 65_248_815_744)
    assert "--n-cpu-moe" in rows[L]["ways"][0]["command"]
    proposed = [w for r in report["runtimes"] for w in r["ways"]]
    assert all(w["path"] != "dequantized" for w in proposed)
    assert report["checkpoint"]["expert_nbytes"] == [report["checkpoint"]["expert_nbytes"][0]] * 36
    assert sum(report["checkpoint"]["expert_nbytes"]) == 114_661_785_600 * 17 // 32
    h100 = document(source, "--gpu", "H100", "--with", "vllm=0.33.0")
    assert next(r for r in h100["runtimes"] if r["runtime"] == V)["fits"]


def test_it_ends_with_the_lines_of_estimate() -> None:
    from ckpttool.serving.estimator import estimate

    asked = estimate(TINY / "hf", gpu="H100")
    out = run("doctor", TINY / "hf", "--gpu", "H100").out.rstrip("\n").split("\n")
    assert out[-2] == asked.advice
    assert out[-1].strip() == asked.commands[-1]
    assert "vllm serve" in out[-1]
    assert "vLLM refuses this GPU" in run("doctor", TINY / "hf", "--gpu", "T4").out.rstrip("\n").split("\n")[-1]


@pytest.mark.parametrize(("gpu", "count"), [("L4", 4), ("RTX 4090", 4), ("RTX 5090", 4), ("L40S", 2)])
def test_doctor_and_estimate_ask_for_as_many_gpus(tmp_path: Path, gpu: str, count: int) -> None:
    source = header_checkpoints.write_headers(tmp_path / "gpt-oss-120b", "120b")
    report = document(source, "--gpu", gpu, "--with", "vllm=0.33.0")
    said = f"--tensor-parallel-size {count}"
    assert said in next(r for r in report["runtimes"] if r["runtime"] == V)["ways"][0]["command"]
    assert said in report["estimate"][-1]


def test_a_remote_checkpoint_is_opened_once(tmp_path: Path) -> None:
    source = header_checkpoints.write_headers(tmp_path / "20b", "20b", "gguf")
    with range_server.serving({"/m/x.gguf": source}) as server:
        report = document(server.url("/m/x.gguf"), "--gpu", "H100")
        asked = len(server.asked("/m/x.gguf"))
    assert report["estimate"][0].startswith("one H100 GPU holds it") and asked <= 3


def test_the_text_has_a_line_a_runtime_then_why_then_what_to_type() -> None:
    out = run("doctor", TINY / "hf", "--gpu", "T4", "--with", "transformers=5.22.2", "--with", "kernels=none").out
    assert "on T4, compute capability 7.5, 15.0 GiB" in out
    for title in ("transformers", "vLLM", "Unsloth", "llama.cpp", "OpenAI's Triton code"):
        assert f"\n{title}: " in out
    assert "  type: pip install 'kernels>=0.17.2,<0.18'\n        -> native MXFP4 in transformers" in out
    assert "  type: ckpttool convert" in out
    assert "as above" in out


def test_logs(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_bytes(b"\xff\xfe odd bytes\n" + LOG[0][0].encode() + b"\n")
    report = document(TINY / "hf", *H100, "--with", "unsloth_zoo=2026.9.1", "--log", log)
    (found,) = report["messages"]
    assert (found["id"], found["lines"], found["installed_affected"]) == ("hopper-only-swizzle", [2], True)
    with mock.patch.object(sys, "stdin", io.StringIO(f"{LOG[1][0]}\n")):
        (found,) = document("--log", "-")["messages"]
    assert found["id"] == "triton-and-kernels"
    log.write_text("all is well\n")
    assert document("--log", log)["messages"] == []
    assert "no message that is known" in run("doctor", "--log", log).out
    shown = run("doctor", TINY / "hf", "--log", log).out
    log.write_text(LOG[0][0])
    assert "cause: on Blackwell" in run("doctor", "--log", log).out
    assert "cause:" not in shown


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [(("--gpu", "H1000"), 2, "not in the table"), (("--with", "cuda=12"), 2, "no rule asks"),
     (("--require", "speed"), 2, "can only be native"), (("--python", "/nowhere"), 3, "does not exist"),
     (("--log", "/nowhere/x.log"), 4, "No such file"), (("/nowhere/model",), 3, "nowhere")],
)  # fmt: skip
def test_mistakes_are_told(argv: tuple[str, ...], code: int, words: str) -> None:
    result = run("doctor", *argv)
    assert (result.code, words in result.err) == (code, True), result.err
    assert run("doctor", *argv, "--json").document["exit_code"] == code


def test_python_and_gpu_from_the_command(tmp_path: Path, path: Path) -> None:
    root = environment(tmp_path / "venv", torch="2.8.0+cu128", triton="3.4.0", transformers="4.56.2", kernels="0.9.0",
                       accelerate="1.10.0")  # fmt: skip
    program(path, "nvidia-smi", "NVIDIA L4, 8.9, 23034, 570.0")
    report = document(TINY / "hf", "--python", root / "bin" / "python", "--require", "native")
    assert (report["environment"]["driver"], report["environment"]["assumed"]) == ("570.0", False)
    assert report["environment"]["packages"]["transformers"] == "4.56.2"
    assert paths(report)[T] == "native"
    shutil.rmtree(root / "lib" / "python3.12" / "site-packages" / "kernels-0.9.0.dist-info")
    assert document(TINY / "hf", "--python", root, "--require", "native", code=1)["failing"] == [T]


def test_nothing_that_it_speaks_of_is_imported() -> None:
    code = """
import sys
from ckpttool import cli
try:
    cli.main()
except SystemExit:
    pass
print(*sorted({m.split(".")[0] for m in sys.modules}), file=sys.stderr)
"""
    argv = [sys.executable, "-c", code, "doctor", str(TINY / "hf"), "--gpu", "H100", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "triton", "transformers", "kernels", "vllm", "numba", "gguf", "huggingface_hub", "safetensors"}
    assert not heavy & set(done.stderr.split())


def test_the_function() -> None:
    report = ckpttool.diagnose(TINY / "hf", gpu="H100", extra=["vllm=0.33.0"])
    assert {r.runtime: r.path for r in report.runtimes}[V] == "native"
    assert report.estimate[-1].startswith("vllm serve")
