"""Every finding has a file that provokes it; a checkpoint that is whole has none, and the exit code follows errors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import builders
import numpy as np
import pytest
import range_server as web
from builders import Model, Sizes, Tensor, Tensors
from commandline import run
from hostile.hostile_files import entry, st
from test_schemas import check as valid

import ckpttool
from ckpttool.inspection.report import Finding

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
SIZES = Sizes(layers=2, experts=3, hidden=64, intermediate=96)
EXPERTS = "model.layers.1.mlp.experts."


class Case(NamedTuple):
    """A source that `make` writes into a folder, and the finding that it must have."""

    make: Callable[[Path], Path]
    severity: str
    check: str
    tensor: str | None
    says: str
    place: str = ""


def hf(change: Callable[[Tensors], object] = lambda t: None, **more: Any) -> Callable[[Path], Path]:
    return lambda at: builders.write(Model(SIZES), at / "a", "hf", change=change, **more)


def gguf(**more: Any) -> Callable[[Path], Path]:
    return lambda at: builders.write_gguf(Model(SIZES), at / "a.gguf", **more)


def without(name: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        folder = hf()(at)
        (folder / name).unlink()
        return folder

    return make


def edited(name: str, edit: Callable[[dict[str, Any]], object], **more: Any) -> Callable[[Path], Path]:
    """A folder one of whose JSON files is changed."""

    def make(at: Path) -> Path:
        folder = hf(**more)(at)
        value = json.loads((folder / name).read_text("utf-8"))
        edit(value)
        (folder / name).write_text(json.dumps(value), "utf-8")
        return folder

    return make


def renamed(old: str, new: str) -> Callable[[Tensors], object]:
    return lambda t: t.update({new: t.pop(old)})


def raw(data: bytes, name: str = "x.safetensors") -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        (at / name).write_bytes(data)
        return at / name

    return make


def moved(offsets: dict[str, int]) -> Callable[[Path], Path]:
    """A GGUF of which some tensors' offsets are other ones."""

    def make(at: Path) -> Path:
        path = gguf()(at)
        data = bytearray(path.read_bytes())
        for name, by in offsets.items():
            key = struct.pack("<Q", len(name)) + name.encode()
            start = data.index(key) + len(key)
            (dims,) = struct.unpack_from("<I", data, start)
            at_offset = start + 4 + 8 * dims + 4
            (old,) = struct.unpack_from("<Q", data, at_offset)
            struct.pack_into("<Q", data, at_offset, old + by)
        path.write_bytes(bytes(data))
        return path

    return make


def two_files_of_one_name(at: Path) -> Path:
    """The norm lies in both shards."""
    folder = hf(shards=2)(at)
    files = {path: builders.read(path) for path in sorted(folder.glob("*.safetensors"))}
    norm = next(tensors[NORM] for tensors in files.values() if NORM in tensors)
    for path, tensors in files.items():
        builders.save(path, {**tensors, NORM: norm})
    return folder


def short(at: Path) -> Path:
    path = raw(st({"a": entry(), "b": entry(offsets=(4, 8))}, bytes(8)))(at)
    path.write_bytes(path.read_bytes()[:-3])
    return path


def index_without(tensor: str) -> Callable[[Path], Path]:
    return edited("model.safetensors.index.json", lambda i: i["weight_map"].pop(tensor), shards=2)


def shard_gone(at: Path) -> Path:
    folder = hf(shards=3)(at)
    (folder / "model-00002-of-00003.safetensors").unlink()
    return folder


def other_way(t: Tensors) -> None:
    """One layer's experts are BF16, the others' MXFP4."""
    t.pop(EXPERTS + "down_proj_scales")
    blocks = t.pop(EXPERTS + "down_proj_blocks").array
    shape = (SIZES.experts, SIZES.intermediate, SIZES.hidden)
    t[EXPERTS + "down_proj"] = Tensor("BF16", np.zeros(shape, np.uint16))
    assert blocks.size


NORM = "model.norm.weight"
OUTPUT = "output_norm.weight"
CASES = {
    "a missing tensor": Case(hf(lambda t: t.pop(NORM)), "error", "missing", NORM, "is missing"),
    "a misspelt tensor": Case(
        hf(renamed(EXPERTS + "down_proj_bias", EXPERTS + "down_proj.bias")), "error", "unknown-name",
        EXPERTS + "down_proj.bias", "vLLM skips unknown names without a word",
    ),
    "codes whose scales are misspelt": Case(
        hf(renamed(EXPERTS + "down_proj_scales", EXPERTS + "down_proj_scale")), "error", "format",
        EXPERTS + "down_proj_blocks", "has no scales",
    ),
    "a wrong shape": Case(
        hf(lambda t: t.update({NORM: Tensor("BF16", np.zeros(3, np.uint16))})), "error", "shape", NORM, "has shape [3]",
    ),
    "not in the index": Case(index_without(NORM), "error", "index", NORM, "but not in the index", "index.json"),
    "in the index alone": Case(
        edited("model.safetensors.index.json", lambda i: i["weight_map"].update(x="model-00001-of-00002.safetensors"),
               shards=2),
        "error", "index", "x", "whose header lacks it",
    ),
    "a shard is gone": Case(shard_gone, "error", "index", None, "names files that are not there"),
    "a name in two files": Case(two_files_of_one_name, "error", "duplicate", NORM, "also in"),
    "a name twice in a header": Case(
        raw(st(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],'
               b'"data_offsets":[4,8]}}', bytes(8))),
        "error", "duplicate", "a", "duplicate name",
    ),
    "a total that is not theirs": Case(
        edited("model.safetensors.index.json", lambda i: i["metadata"].update(total_size=5), shards=2), "info", "note",
        None, "says total_size 5",
    ),
    "a hole": Case(
        raw(st({"a": entry(), "b": entry(offsets=(12, 16))}, bytes(16))), "error", "hole", "b",
        "leaves a hole of 8 bytes after a", "x.safetensors at byte",
    ),
    "bytes behind the last": Case(raw(st({"a": entry()}, bytes(9))), "error", "hole", None, "5 bytes after the last"),
    "an overlap": Case(
        raw(st({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6))), "error", "overlap", "b", "overlaps a",
    ),
    "a file cut short": Case(short, "error", "truncated", "b", "3 bytes are missing"),
    "a header that is no JSON": Case(raw(st(b'{"a":{"dtype"', bytes(4))), "error", "contradiction", "a", "not JSON"),
    "a GGUF with a hole": Case(moved({OUTPUT: 64}), "error", "hole", OUTPUT, "leaves a hole of 64"),
    "a GGUF with an overlap": Case(
        moved({OUTPUT: -32}), "error", "overlap", OUTPUT, "overlaps token_embd.weight",
    ),
    "a GGUF off its alignment": Case(
        moved({OUTPUT: 7}), "error", "alignment", OUTPUT, "no multiple of the alignment, 32",
    ),
    "a GGUF in another order": Case(
        moved({"token_embd.weight": 256, OUTPUT: -400 * 128}), "error", "order", OUTPUT,
        "lie before those of token_embd.weight",
    ),
    "no tokenizer": Case(without("tokenizer.json"), "warning", "tokenizer", None, "no loader can turn text"),
    "no tokenizer_config": Case(without("tokenizer_config.json"), "warning", "tokenizer", None, "tell the tokenizer's"),
    "no config": Case(without("config.json"), "warning", "config", None, "nothing says what model it is"),
    "no template": Case(without("chat_template.jinja"), "info", "chat-template", None, "chat endpoints"),
    "no generation_config": Case(without("generation_config.json"), "info", "generation-config", None, "incomplete"),
    "ids beyond the vocabulary": Case(
        edited("generation_config.json", lambda c: c.update(eos_token_id=[271, 99999])), "error", "special-ids", None,
        "eos is token 99999, but the vocabulary has 400",
    ),
    "a generation_config that is none": Case(
        lambda at: (f := hf()(at), (f / "generation_config.json").write_text("{"))[0], "error", "side-file", None,
        "is not valid JSON", "generation_config.json at byte 1",
    ),
    "a GGUF without tokens": Case(
        gguf(keys={"tokenizer.ggml.model": None}), "warning", "tokenizer", None, "llama.cpp cannot load it",
        "tokenizer.ggml.model",
    ),
    "a GGUF without template": Case(
        gguf(keys={"tokenizer.chat_template": None}), "info", "chat-template", None, "falls back to ChatML"
    ),
    "a GGUF without an end": Case(
        gguf(keys={"tokenizer.ggml.eos_token_id": None}), "warning", "tokenizer", None, "nothing ends a turn"
    ),
    "more rows than tokens": Case(
        gguf(change=lambda r: r.update({"token_embd.weight": ("F32", np.zeros((401, 64), np.float32))})), "error",
        "tokenizer", "token_embd.weight", "has 401 rows, but there are 400 tokens",
    ),
    "a file_type of another": Case(
        gguf(keys={"general.file_type": 7}), "warning", "file-type", None, "is 7, Q8_0, but most", "general.file_type"
    ),
    "a file_type of nothing": Case(
        gguf(keys={"general.file_type": 99}), "warning", "file-type", None, "99, which llama.cpp does not know"
    ),
    "a plain file_type": Case(
        gguf(keys={"general.file_type": 0}), "warning", "file-type", None, "is 0, ALL_F32, but most"
    ),
    "one layer's experts otherwise": Case(
        hf(other_way), "warning", "expert-layout", None, "formats BF16, MXFP4, elsewhere MXFP4",
    ),
    "bytes after a GGUF's data": Case(
        lambda at: (p := gguf()(at), p.write_bytes(p.read_bytes() + bytes(5000)))[0], "info", "note", None,
        "5,000 bytes after its data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_finding_has_a_file_that_provokes_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.make(tmp_path)
    result = run("inspect", source, "--check", "--json")
    document = result.document
    valid("inspection.v1", document)
    found = [
        f for f in document["findings"]
        if (f["severity"], f["check"], f["tensor"]) == (case.severity, case.check, case.tensor)
        and case.says in f["message"] and case.place in (f["place"] or "")
    ]  # fmt: skip
    assert len(found) == 1, json.dumps(document["findings"], indent=1)
    errors = [f for f in document["findings"] if f["severity"] == "error"]
    assert result.code == (1 if errors else 0)
    assert document["ok"] == (not errors)
    assert all(f["hint"] for f in document["findings"] if f["check"] != "note")
    severities = [f["severity"] for f in document["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    text = run("inspect", source, "--check")
    assert text.code == result.code
    assert case.says.split("; ")[0] in " ".join(text.out.split())


REFUSED = [n for n, c in CASES.items() if c.check in ("hole", "overlap", "truncated", "order", "alignment")]


@pytest.mark.parametrize("name", REFUSED)
def test_without_check_a_header_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    assert run("inspect", CASES[name].make(tmp_path)).code == 3


def test_all_of_the_damage_is_found(tmp_path: Path) -> None:
    rows = {"a": entry(), "b": entry(offsets=(2, 6)), "c": entry(offsets=(20, 24)), "d": entry(offsets=(30, 34))}
    report = ckpttool.inspect(raw(st(rows, bytes(26)))(tmp_path), check=True)
    errors = [(f.check, f.tensor) for f in report.findings if f.severity == "error"]
    assert errors == [("overlap", "b"), ("hole", "c"), ("hole", "d"), ("truncated", "d")]
    assert [t.name for t in report.tensors] == ["a", "b", "c", "d"]
    assert report.data_nbytes_read == 0


def test_a_misspelt_name_is_recognised(tmp_path: Path) -> None:
    old, new = "model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.biass"
    report = ckpttool.inspect(hf(renamed(old, new))(tmp_path))
    (found,) = (f for f in report.findings if f.check == "unknown-name")
    assert found.hint == f"it is {old}, misspelt, by all that is missing; rename it, or leave it out"


@pytest.mark.parametrize("name", ["hf", "hf-bf16", "parent", "unsloth", "openai"])
def test_a_whole_checkpoint_has_no_findings(name: str) -> None:
    report = ckpttool.inspect(FIXTURES / name, check=True)
    assert (report.findings, report.ok, report.checked) == ((), True, True)
    assert run("inspect", FIXTURES / name, "--check").out.endswith("nothing is wrong\n")


@pytest.mark.parametrize("path", sorted((FIXTURES / "gguf").glob("*.gguf")), ids=lambda p: p.stem)
def test_ggufs_of_llama_cpp_have_no_findings(path: Path) -> None:
    """But for what k-quants mix on purpose."""
    report = ckpttool.inspect(path, check=True)
    assert [f.check for f in report.findings] == (["expert-layout"] if "q4_k" in path.stem else [])
    assert report.ok


def test_what_is_no_checkpoint_stays_refused(tmp_path: Path) -> None:
    """--check reports damage; where nothing is, there is nothing to report."""
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "gone", tmp_path / "empty"):
        assert run("inspect", source, "--check").code == 3


def test_a_remote_header_that_contradicts_itself_is_refused() -> None:
    with web.serving({"/x.safetensors": st({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9))}) as server:
        assert run("inspect", server.url("/x.safetensors"), "--check").code == 3


def test_a_finding_is_told_once(tmp_path: Path) -> None:
    report = ckpttool.inspect(hf(lambda t: t.pop(NORM))(tmp_path), check=True)
    assert len(set(report.findings)) == len(report.findings)
    assert isinstance(report.findings[0], Finding)


def test_what_an_index_lacks_is_said_once_for_all_tensors(tmp_path: Path) -> None:
    """The tensor is named once, and tensors of one shard are one line."""
    folder = builders.write(Model(SIZES), tmp_path / "source", "hf", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    gone = [name for name, file in sorted(index["weight_map"].items()) if file.startswith("model-00001")][:5]
    path.write_text(json.dumps(index | {"weight_map": {k: v for k, v in index["weight_map"].items() if k not in gone}}))
    (line,) = [x for x in run("inspect", folder).out.splitlines() if x.startswith("error: ")]
    assert line.startswith(f"error: {path.name}: {gone[0]} and 4 more (--json lists them): in model-00001-of-00002")
