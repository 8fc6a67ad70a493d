"""What serving takes: the published figures to three digits, every kind of cache by hand, and who holds what."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import model_families
import pytest
import range_server
from commandline import Result, run
from header_checkpoints import write_headers, write_safetensors
from jsonschema import Draft202012Validator

import ckpttool
from ckpttool import gpus
from ckpttool.archs.facts import facts_of, facts_of_config
from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.doctor.gpus import named
from ckpttool.errors import InputError, UsageError
from ckpttool.expert_layout import expert_layouts
from ckpttool.recognition import recognise
from ckpttool.serving import commands as serving
from ckpttool.serving import kvcache, overhead
from ckpttool.serving.cards import SIZES, card, usual_cards
from ckpttool.serving.estimator import Asked, estimate_opened, summary_lines

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "schemas" / "estimate.v1.json").read_text("utf-8"))
GB, GIB = 10**9, 2**30


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("estimated")
    made = {size: write_headers(at / size, size) for size in ("20b", "120b")}
    made["20b-bf16"] = write_headers(at / "20b-bf16", "20b", format="bf16")
    made["20b.gguf"] = write_headers(at / "gguf", "20b", "gguf")
    return made


def document(source: Path | str, *options: str | int) -> dict[str, Any]:
    result = run("estimate", source, *map(str, options), "--json")
    assert (result.code, result.err) == (0, "")
    Draft202012Validator(SCHEMA).validate(result.document)
    return result.document


def digits(x: float, n: int = 3) -> float:
    return float(f"{x:.{n}g}")


@pytest.mark.parametrize(("context", "gib"), [(8192, 0.5625), (32768, 2.25), (131072, 9.0)])
@pytest.mark.parametrize(("dtype", "factor"), [("fp16", 1.0), ("fp8", 0.5)])
def test_naive_cache_as_published(
    sources: dict[str, Path], context: int, gib: float, dtype: str, factor: float
) -> None:
    found = document(sources["120b"], "--context", context, "--kv-cache-dtype", dtype)
    assert found["kv_cache_bytes_naive"] == gib * factor * GIB


def test_weights_as_published(sources: dict[str, Path]) -> None:
    found = {size: document(sources[size]) for size in ("20b", "120b")}
    assert [round(found[s]["weights_bytes"] / GIB, 1) for s in found] == [12.8, 60.8]
    assert [found[s]["weights_bytes"] for s in found] == [13_761_264_768, 65_248_815_744]
    assert [found[s]["scales_within_bytes"] for s in found] == [597_196_800, 3_583_180_800]
    wide = {size: document(sources[size], "--as", "bf16") for size in found}
    assert [round(wide[s]["weights_bytes"] / GIB, 1) for s in wide] == [39.0, 217.6]
    assert [f["weights_bytes"] for f in found["120b"]["forms"]] == [65_248_815_744] * 2 + [233_658_313_344]


@pytest.mark.parametrize(("form", "gb"), [("int4", 58.4), ("fp8", 116.8), ("bf16", 233.7)])
def test_what_ifs_as_published(sources: dict[str, Path], form: str, gb: float) -> None:
    found = document(sources["120b"], "--as", form)
    assert round(found["weights_bytes"] / GB, 1) == gb
    matrices = 116_829_156_672 - 36 * (2 * 2880 + 4096 + 2 * 512 + 2880 + 64 + 128) - 2880
    assert (
        found["scales_bytes"]
        == {"int4": matrices * 2 // 128, "fp8": pytest.approx(matrices * 4 / 16384), "bf16": 0}[form]
    )
    assert found["scales_within_bytes"] == 0


def test_120b_with_all_of_its_context(sources: dict[str, Path]) -> None:
    found = document(sources["120b"], "--context", 131072)
    assert round((found["weights_bytes"] + found["kv_cache_bytes_naive"]) / GB, 1) == 74.9
    token = 2 * 8 * 64 * 2
    assert found["kv_cache_bytes"] == 18 * token * 131072 + 18 * token * 128


def test_totals_are_sums(sources: dict[str, Path]) -> None:
    for options in ((), ("--as", "int4"), ("--tp", 2), ("--batch", 8, "--kv-cache-dtype", "fp8")):
        found = document(sources["20b"], *options)
        parts = ("weights_bytes", "scales_bytes", "kv_cache_bytes", "overhead_bytes")
        assert found["total_bytes"] == sum(found[k] for k in parts)
        assert found["per_gpu_bytes"] == pytest.approx(found["total_bytes"] / found["tp"], abs=2)
        for row in found["gpus"]:
            assert row["usable_bytes"] == int(0.9 * row["memory_bytes"])
            assert row["fits"] == found["fits"][row["gpu"]] == (found["per_gpu_bytes"] <= row["usable_bytes"])


def test_mxfp4_and_bf16_price_each_other(sources: dict[str, Path]) -> None:
    narrow, wide = document(sources["20b"]), document(sources["20b-bf16"])
    assert document(sources["20b-bf16"], "--as", "mxfp4")["weights_bytes"] == narrow["weights_bytes"]
    assert document(sources["20b"], "--as", "mxfp4")["weights_bytes"] == narrow["weights_bytes"]
    assert document(sources["20b"], "--as", "bf16")["weights_bytes"] == wide["weights_bytes"]
    nv = document(sources["20b"], "--as", "nvfp4")
    assert nv["weights_bytes"] == 19_110_297_600 * 9 // 16 + 3_608_919_168
    assert nv["scales_within_bytes"] == 19_110_297_600 // 16


def test_bytes_read_for_a_token(sources: dict[str, Path]) -> None:
    """Active experts at 4.25 bits and everything else in BF16, against all of it in BF16: about twice."""
    for size, experts in (("20b", 19_110_297_600 // 8), ("120b", 114_661_785_600 // 32)):
        found = document(sources[size])
        read = found["bytes_per_token"]
        assert read["weights"] == experts * 17 // 32 + 2 * (found["active_parameters"] - experts)
        assert read["weights_bf16"] == 2 * found["active_parameters"]
        assert 1.9 < read["weights_bf16"] / read["weights"] < 2.1
        h100 = document(sources[size], "--gpu", "H100")["gpus"][0]
        assert h100["tokens_per_second"] == round(3350e9 / read["weights"], 1)
        assert h100["tokens_per_second_bf16"] == round(3350e9 / read["weights_bf16"], 1)


def test_which_gpus_hold_120b(sources: dict[str, Path]) -> None:
    found = document(sources["120b"])
    assert found["fits"] == {str(n): n >= 80 for n in SIZES}
    small = {f"{f['form']}, {f['runtime']}": f["smallest_gpu"] for f in found["forms"]}
    assert small == {"native, vLLM": "80", "native, llama.cpp": "80", "bf16, dequantized": None}
    twenty = {f["runtime"]: f["smallest_gpu"] for f in document(sources["20b"])["forms"]}
    assert twenty == {"vLLM": "24", "llama.cpp": "16", "dequantized": "80"}


def test_the_largest_context_is_the_largest(sources: dict[str, Path]) -> None:
    for options in ((), ("--batch", 4), ("--tp", 2), ("--kv-cache-dtype", "fp8")):
        (row,) = document(sources["120b"], "--gpu", "80", "--gpu-memory-utilization", 0.88, *options)["gpus"]
        most = row["largest_context"]
        shared = ("--gpu", "80", "--gpu-memory-utilization", 0.88, *options)
        assert most > 0 and document(sources["120b"], *shared, "--context", most)["fits"] == {"80": True}
        if most < 131072:
            assert document(sources["120b"], *shared, "--context", most + 1)["fits"] == {"80": False}
    assert document(sources["120b"], "--gpu", "48")["gpus"][0]["largest_context"] == 0


def test_the_overhead_is_as_vllm_reports_it(sources: dict[str, Path]) -> None:
    """vllm-project/vllm issues 23278 and 27508: loaded weights, and what was left for the cache of 79.2 GiB."""
    facts = facts_of(open_checkpoint(sources["120b"]))
    experts = 114_661_785_600 * 17 // 32
    padded = 65_248_815_744 + overhead.padding(facts, experts)
    assert padded / GIB == pytest.approx(65.9651, abs=0.1)
    beside = overhead.nbytes(facts, 0, 1024, 1) / GIB
    assert beside == pytest.approx(0.9 * 79.2 - 65.9651 + 2.14, abs=0.5)
    assert overhead.padding(facts, 0) == 0


def test_the_rule_is_stated_term_by_term(sources: dict[str, Path]) -> None:
    native = document(sources["120b"])
    facts = facts_of(open_checkpoint(sources["120b"]))
    experts = 114_661_785_600 * 17 // 32
    terms = (
        overhead.RUNTIME,
        overhead.activations(facts),
        overhead.sampler(facts, 1),
        overhead.padding(facts, experts),
    )
    assert native["overhead_bytes"] == sum(terms)
    assert [line.split(" a GPU")[0].split(" for")[0] for line in native["overhead_rule"]] == [
        "2.68 GB", "755 MB", "4.83 MB", "5.5 GB",
    ]  # fmt: skip
    assert len(document(sources["120b"], "--as", "bf16")["overhead_rule"]) == 3
    assert document(sources["120b"], "--tp", 2)["overhead_bytes"] == 2 * sum(terms[:3]) + terms[3]


CACHES: dict[str, tuple[dict[str, Any], int]] = {
    "grouped heads": ({"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16}, 3 * 2 * 2 * 16 * 1000),
    "all heads": ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}, 3 * 2 * 4 * 16 * 1000),
    "a window": (
        {"model_type": "mistral", "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16,
         "sliding_window": 100},
        3 * 2 * 2 * 16 * 100,
    ),
    "windows and full layers": (
        {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 100,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        2 * 2 * 16 * (1000 + 2 * 100),
    ),
    "a window that no layer is named to have": (
        {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 100},
        3 * 2 * 2 * 16 * 1000,
    ),
    "a window that the context does not fill": (
        {"model_type": "mistral", "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 16,
         "sliding_window": 4096},
        2 * 2 * 16 * 1000,
    ),
    "chunks": (
        {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_chunk_size": 300,
         "no_rope_layers": [1, 1, 1, 0]},
        2 * 2 * 16 * (3 * 300 + 1000),
    ),
    "every third layer full": (
        {"num_hidden_layers": 7, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 100,
         "sliding_window_pattern": 3},
        2 * 2 * 16 * (2 * 1000 + 5 * 100),
    ),
    "MLA": (
        {"num_hidden_layers": 61, "num_key_value_heads": 128, "num_attention_heads": 128, "hidden_size": 7168,
         "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        61 * 576 * 1000,
    ),
    "DeepSeek-V4": (
        {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 512, "sliding_window": 128,
         "compress_ratios": [0, 4, 128], "index_head_dim": 128},
        3 * 128 * 512 + 250 * (512 + 128) + 7 * 512,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "elements"), CACHES.values(), ids=CACHES)
def test_caches_by_architecture(config: dict[str, Any], elements: int) -> None:
    facts = facts_of_config(config)
    kvcache.require(facts, "x")
    assert kvcache.kv_bytes(facts, 1000, "fp16") == 2 * elements
    assert kvcache.kv_bytes(facts, 1000, "fp8") == elements


def test_deepseek_v3_takes_70_kb_a_token() -> None:
    """DeepSeek-V3's technical talk: 70 KB of BF16 cache a token, all layers."""
    facts = facts_of_config(model_families.DEEPSEEK_V3)
    assert digits(kvcache.kv_bytes(facts, 1, "fp16") / 1000) == 70.3


def test_layers_of_speculation_are_not_loaded(tmp_path: Path) -> None:
    """DeepSeek-V3 at full size, with and without its 11.5 B of multi-token prediction behind the last layer."""
    found = {}
    for name, speculation in (("whole", True), ("main", False)):
        rows = list(model_families.deepseek_v3_tensors(model_families.DEEPSEEK_V3, speculation=speculation))
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(model_families.DEEPSEEK_V3))
        write_safetensors(tmp_path / name / "model.safetensors", rows)
        found[name] = [document(tmp_path / name, *options) for options in ((), ("--as", "fp8"), ("--as", "mxfp4"))]
    stored = [open_checkpoint(tmp_path / name).nbytes for name in found]
    for whole, main in zip(*found.values(), strict=True):
        assert main["speculation_bytes"] == 0 < whole["speculation_bytes"]
        assert round((whole["parameters"] - main["parameters"]) / 1e9, 1) == 11.5
        counted = {"speculation_bytes", "parameters", "source", "commands", "notes"}
        assert {k: v for k, v in whole.items() if k not in counted} == {
            k: v for k, v in main.items() if k not in counted
        }
    assert found["whole"][0]["speculation_bytes"] == stored[0] - stored[1]
    assert "not loaded" in run("estimate", tmp_path / "whole").out
    assert "not loaded" not in run("estimate", tmp_path / "main").out


def test_tensor_parallelism_splits_heads_and_no_latents(sources: dict[str, Path], tmp_path: Path) -> None:
    one, four = document(sources["120b"]), document(sources["120b"], "--tp", 4)
    assert four["kv_cache_bytes"] == one["kv_cache_bytes"]
    assert four["total_bytes"] - one["total_bytes"] == four["overhead_bytes"] - one["overhead_bytes"]
    wide = document(sources["120b"], "--tp", 16)  # 8 KV heads: two GPUs keep the same head
    assert wide["total_bytes"] - wide["overhead_bytes"] == one["weights_bytes"] + 2 * one["kv_cache_bytes"]
    model_families.save("deepseek_v3", tmp_path / "mla")
    latent, split = document(tmp_path / "mla"), document(tmp_path / "mla", "--tp", 2)
    assert split["total_bytes"] - split["overhead_bytes"] == latent["weights_bytes"] + 2 * latent["kv_cache_bytes"]


def command(found: dict[str, Any]) -> dict[str, str]:
    """The last command's options."""
    words = shlex.split(found["commands"][-1])
    assert words[:2] == ["vllm", "serve"]
    return {"model": words[2], **dict(zip(words[3::2], words[4::2], strict=True))}


def test_it_ends_with_a_command(sources: dict[str, Path]) -> None:
    found = document(sources["120b"], "--context", 65536, "--batch", 2, "--kv-cache-dtype", "fp8", "--gpu", "H200")
    assert len(found["commands"]) == 1
    assert command(found) == {
        "model": str(sources["120b"]), "--max-model-len": "65536", "--max-num-seqs": "2",
        "--gpu-memory-utilization": "0.9", "--kv-cache-dtype": "fp8",
    }  # fmt: skip
    assert found["advice"].startswith("one H200 GPU holds it with 2 x 65,536 tokens")
    text = run("estimate", sources["120b"]).out.rstrip().splitlines()
    assert text[-1].strip().startswith("vllm serve ")


def test_more_gpus_are_proposed_where_one_does_not_do(sources: dict[str, Path]) -> None:
    found = document(sources["120b"], "--gpu", "rtx4090")
    assert command(found)["--tensor-parallel-size"] == "4" and found["fits"] == {"RTX 4090": False}
    assert found["advice"].startswith("4 x RTX 4090 together hold it")
    none = document(sources["120b"], "--gpu", "8GB")
    assert none["advice"].startswith("not even 8 x 8 GB hold it")


def test_a_smaller_context_is_proposed_where_nothing_else_does(sources: dict[str, Path]) -> None:
    found = document(sources["120b"], "--gpu", "80", "--batch", 2048, "--context", 131072, "--tp", 8)
    assert "cannot hold 2,048 x 131,072 tokens, but 2,048 x " in found["advice"]
    context = int(command(found)["--max-model-len"])
    assert 0 < context == found["gpus"][0]["largest_context"] < 131072


def test_what_vllm_cannot_load_is_converted_first(sources: dict[str, Path], tmp_path: Path) -> None:
    gguf = document(sources["20b.gguf"])["commands"]
    assert [c.split()[0] for c in gguf] == ["llama-server", "ckpttool", "vllm"]
    assert gguf[1].endswith("gpt-oss-20b.gguf gpt-oss-20b-mxfp4 --to mxfp4") and " gpt-oss-20b-mxfp4 " in gguf[2]
    priced = document(sources["20b-bf16"], "--as", "mxfp4")["commands"]
    assert priced[0] == f"ckpttool convert {sources['20b-bf16']} 20b-bf16-mxfp4 --to mxfp4" and len(priced) == 2
    assert len(document(sources["20b"], "--as", "mxfp4")["commands"]) == 1
    made = {}
    for dialect in ("openai", "unsloth"):
        path = builders.write(builders.Model(builders.Sizes()), tmp_path / dialect, dialect)
        made[dialect] = document(path)["commands"][0].split()[-1]
    assert made == {"openai": "mxfp4", "unsloth": "bf16"}


def test_no_command_serves_a_checkpoint_in_a_format_that_it_is_not_in(sources: dict[str, Path], tmp_path: Path) -> None:
    for form in ("int4", "fp8", "nvfp4"):
        found = document(sources["20b-bf16"], "--as", form, "--gpu", "24GB")
        assert len(found["commands"]) == 1 and command(found)["model"] == f"20b-bf16-{form}"
        assert any(f"does not make {form} of this" in note for note in found["notes"])
    model_families.save("mixtral", tmp_path / "m")
    assert command(document(tmp_path / "m", "--as", "mxfp4"))["model"] == "m-mxfp4"
    as_it_is = document(tmp_path / "m", "--as", "bf16")
    assert command(as_it_is)["model"] == str(tmp_path / "m") and as_it_is["notes"] == []
    assert document(sources["20b"], "--as", "mxfp4")["notes"] == []


HUBS = {
    "openai/gpt-oss-20b": ("openai/gpt-oss-20b", None),
    "hf://openai/gpt-oss-20b@v1": ("openai/gpt-oss-20b", "v1"),
    "https://huggingface.co/openai/gpt-oss-20b": ("openai/gpt-oss-20b", None),
}


def commands(checkpoint: Checkpoint, source: str, form: str = "native") -> list[str]:
    cards = usual_cards()
    asked = Asked(8192, form=form)
    return list(serving.plan(checkpoint, source, cards, lambda c, n: True, lambda c, n: 9, asked).commands)


@pytest.mark.parametrize("source", HUBS)
def test_a_repo_of_the_hub_is_served_by_its_name(sources: dict[str, Path], source: str) -> None:
    repo, revision = HUBS[source]
    (line,) = commands(open_checkpoint(sources["20b"]), source)
    more = ["--revision", revision] if revision else ["--max-model-len", "8192"]
    assert shlex.split(line)[2:5] == [repo, *more]
    fetch, convert, serve = commands(open_checkpoint(sources["20b"]), source, "bf16")
    assert fetch.startswith(f"hf download {repo} ") and fetch.endswith("--local-dir gpt-oss-20b")
    assert convert == "ckpttool convert gpt-oss-20b gpt-oss-20b-bf16 --to bf16"
    assert serve.startswith("vllm serve gpt-oss-20b-bf16 ")


def test_a_url_is_fetched_first(sources: dict[str, Path]) -> None:
    found = commands(open_checkpoint(sources["20b.gguf"]), "https://example.org/m/x.gguf")
    assert [c.split()[0] for c in found] == ["curl", "llama-server", "ckpttool", "vllm"]
    assert found[0] == "curl -LO https://example.org/m/x.gguf" and found[2].startswith(
        "ckpttool convert x.gguf x-mxfp4"
    )


def test_a_remote_checkpoint_is_estimated_by_its_header(sources: dict[str, Path]) -> None:
    with range_server.serving({"/m/x.gguf": sources["20b.gguf"]}) as server:
        found, here = document(server.url("/m/x.gguf")), document(sources["20b.gguf"])
        assert len(server.asked("/m/x.gguf")) <= 3
    same = found.keys() - {"source", "commands"}
    assert {k: found[k] for k in same} == {k: here[k] for k in same}


def test_a_shape_that_may_not_be_read_costs_the_same(tmp_path: Path) -> None:
    """bitsandbytes keeps shapes in tensors, which are not read of a remote file."""
    model = builders.Model(builders.Sizes())
    here = open_checkpoint(builders.write(model, tmp_path / "m", "unsloth", change=builders.as_nf4))
    known = recognise([t for w in here.weights for t in w.stored], here.config)
    there = replace(here, weights=known.weights)
    assert {w.shape for w in there.weights} != {w.shape for w in here.weights}
    facts = facts_of(here)
    for form in ("native", "mxfp4", "int4"):
        asked = Asked(128, form=form)
        reports = [replace(estimate_opened(c, "m", facts, asked, usual_cards()), commands=()) for c in (here, there)]
        assert reports[0] == reports[1]
    layouts = expert_layouts(there, facts)
    assert layouts is not None and layouts.findings == ()


def test_cards_and_sizes() -> None:
    assert [c.label for c in usual_cards()] == ["16", "24", "32", "48", "80", "96", "141", "192"]
    for c, sold in zip(usual_cards(), SIZES, strict=True):
        assert sold * GB <= c.memory <= sold * GIB
    assert card("h100").label == card("NVIDIA H100").label == card("H100 SXM").label == "H100"
    assert card("80") == card("80GB") == card("80 gb") and card("80").memory == 81559 << 20
    assert card("40GB").memory == 40960 << 20
    assert (card("50GB").memory, card("50GiB").memory, card("50").bandwidth) == (50 * GB, 50 * GIB, None)
    assert card("79.6GiB").memory == int(79.6 * GIB)


def test_a_gpu_is_told_by_each_of_its_names() -> None:
    names = gpus.gpu_names()
    assert len(names) == len(set(names))
    for model in gpus.gpu_models():
        assert model.sold * GB <= model.memory <= model.sold * GIB, model
        assert (model.capability is None) != (model.gfx is None), model
        assert [gpus.gpu_model(name) for name in model.names] == [model] * len(model.names)


FORMS = {
    "4090": "RTX 4090", "rtx_4090": "RTX 4090", "H100 80GB": "H100", "NVIDIA H100 80GB HBM3": "H100",
    "H100 SXM5": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "Tesla T4": "T4", "NVIDIA A100-SXM4-80GB": "A100",
    "A100-PCIE-40GB": "A100 40GB", "Tesla V100-SXM2-32GB": "V100 32GB", "V100 16GB": "V100",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada", "NVIDIA GH200 480GB": "GH200",
    "NVIDIA GH200 144G HBM3e": "GH200 144GB", "AMD Instinct MI300X OAM": "MI300X",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_drivers_and_people_call_a_gpu_so(text: str) -> None:
    found = card(text)
    assert (found.label, named(text).memory) == (FORMS[text], found.memory)
    assert found.bandwidth is not None


@pytest.mark.parametrize("text", ["RTX 4090 Laptop GPU", "RTX 4070 Ti", "A100 33GB", "H1000"])
def test_a_gpu_that_is_almost_of_that_name_is_not_taken_for_it(text: str) -> None:
    assert gpus.gpu_model(text) is None


@pytest.mark.parametrize("text", ["Z9000", "", "-80", "0", "80TB", "9" * 40])
def test_what_is_no_gpu(text: str) -> None:
    with pytest.raises(UsageError) as error:
        card(text)
    assert error.value.hint is not None and "80GB" in error.value.hint


BAD: dict[str, tuple[str, ...]] = {
    "context": ("--context", "131073"),
    "heads": ("--tp", "3"),
    "utilization": ("--gpu-memory-utilization", "0"),
    "batch": ("--batch", "0"),
    "gpu": ("--gpu", "abacus"),
    "form": ("--as", "pickle"),
    "dtype": ("--kv-cache-dtype", "fp4"),
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_options_that_contradict(sources: dict[str, Path], options: tuple[str, ...]) -> None:
    result: Result = run("estimate", sources["20b"], *options, "--json")
    assert (result.code, result.document["errors"][0]["kind"]) == (2, "usage")
    assert result.document["errors"][0]["hint"]


def test_the_same_in_python(sources: dict[str, Path]) -> None:
    report = ckpttool.estimate(sources["20b"], context=8192, form="int4", gpu="24GB")
    assert report.form == "int4" and report.fits == {"24": True}
    assert summary_lines(report)[1] == "held by: 24 GB"
    assert "8,192 tokens" in summary_lines(report)[0]
    for wrong in ({"form": "int3"}, {"kv_cache_dtype": "fp4"}, {"tp": 0}, {"gpu_memory_utilization": 1.5}):
        with pytest.raises(UsageError):
            ckpttool.estimate(sources["20b"], **wrong)  # type: ignore[arg-type]


def test_a_checkpoint_that_does_not_say_is_an_error(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", [("a", "BF16", (2, 2))])
    with pytest.raises(InputError, match="does not say layers, kv heads, head dim"):
        ckpttool.estimate(tmp_path / "x.safetensors")


def test_an_unknown_dense_model_is_estimated(tmp_path: Path) -> None:
    config = {"model_type": "unheard_of", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    rows = [("model.embed_tokens.weight", "BF16", (10, 64)), ("lm_head.weight", "BF16", (10, 64))]
    rows += [(f"model.layers.{n}.mlp.up_proj.weight", "BF16", (96, 64)) for n in range(2)]
    write_safetensors(tmp_path / "model.safetensors", rows)
    found = document(tmp_path)
    assert (found["family"], found["context"], found["model_context"]) == ("unheard_of", 8192, None)
    assert found["active_parameters"] == 10 * 64 + 2 * 96 * 64
    assert found["kv_cache_bytes"] == found["kv_cache_bytes_naive"] == 2 * 2 * 64 * 2 * 8192
    narrow = document(tmp_path, "--as", "mxfp4")  # no experts are known: its matrices, but embedding and head
    assert narrow["weights_bytes"] == 2 * 96 * 64 * 17 // 32 + 2 * 2 * 10 * 64


def test_what_is_uncertain_is_said(tmp_path: Path) -> None:
    config = {"model_type": "unheard_of", "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16}
    config |= {"num_experts": 8, "layer_types": ["linear_attention", "full_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", [("model.layers.0.bank", "BF16", (8, 4, 4))])
    found = document(tmp_path)
    assert found["bytes_per_token"]["weights"] is None and found["gpus"][0]["tokens_per_second"] is None
    assert [n.split()[0] for n in found["notes"]] == ["linear_attention", "which"]


def test_a_window_of_no_layer_that_is_named_is_said(tmp_path: Path) -> None:
    config = {"model_type": "unheard_of", "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    rows = [("model.embed_tokens.weight", "BF16", (8, 4)), ("lm_head.weight", "BF16", (8, 4))]
    write_safetensors(tmp_path / "model.safetensors", rows)
    notes = {}
    for name, more in (("named", {"layer_types": ["sliding_attention"] * 2}), ("unnamed", {})):
        (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 64} | more))
        found = document(tmp_path)
        notes[name] = (found["notes"], found["kv_cache_bytes"])
    window = 2 * 2 * 2 * 2 * 16
    assert notes["named"] == ([], window * 64)
    assert notes["unnamed"][1] == window * 8192
    assert notes["unnamed"][0][0].startswith("a window of 64 tokens is stated, but not which layers have it")


def test_gb_and_gib_stand_apart(sources: dict[str, Path]) -> None:
    lines = run("estimate", sources["120b"], "--as", "int4").out.splitlines()
    assert next(x for x in lines if x.startswith("memory")).split() == ["memory", "GB", "GiB"]
    weights = next(x for x in lines if x.startswith("weights")).split()
    assert weights == ["weights", f"{58.414578336:.2f}", f"{58.414578336 * GB / GIB:.2f}"]
    assert any(x.startswith("scales") for x in lines)
