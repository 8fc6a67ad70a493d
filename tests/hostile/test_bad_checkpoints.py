"""Checkpoints that are wrong somewhere: each is refused with its exit code, a line for each problem, and no trace left.

Every case goes through the command line, its --json, its --dry-run and the Python API; none may touch TARGET, leave a
partial folder, change the source, or print a control character.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builders
import ml_dtypes
import numpy as np
import pytest
from builders import Model, Sizes, Tensor, Tensors
from commandline import run

import ckpttool
from ckpttool.errors import CkptError, Problems

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures" / "tiny-gpt-oss"
MODEL = Model()
EXPERTS = "model.layers.1.mlp.experts."
NORM = "model.norm.weight"
Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """`make` writes a source in a folder; `says` are what the lines must hold, one each, in any order."""

    make: Make
    says: tuple[str, ...]
    options: tuple[str, ...] = ("--to", "mxfp4")
    code: int = 3


def hf(*says: str, options: tuple[str, ...] = ("--to", "bf16"), dialect: str = "hf", **how: Any) -> Case:
    """A case that `builders.write` makes."""
    return Case(lambda at: builders.write(MODEL, at / "source", dialect, **how), says, options)


def edited(
    *says: str,
    edit: Callable[[Path], object],
    shards: int = 1,
    options: tuple[str, ...] = ("--to", "bf16"),
    code: int = 3,
) -> Case:
    """A good HF folder, edited after it was written."""

    def make(at: Path) -> Path:
        folder = builders.write(MODEL, at / "source", "hf", shards=shards)
        edit(folder)
        return folder

    return Case(make, says, options, code)


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def gone(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / n).unlink() for n in names]


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


def gguf(*says: str, options: tuple[str, ...] = ("--to", "mxfp4"), **how: Any) -> Case:
    return Case(lambda at: builders.write_gguf(MODEL, at / "source.gguf", **how), says, options)


def drop(*names: str) -> builders.Change:
    return lambda t: [t.pop(n) for n in names]


def add(name: str, like: str) -> builders.Change:
    return lambda t: t.update({name: t[like]})


def replace(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> builders.Change:
    return lambda t: t.update({name: Tensor(t[name].dtype, change(t[name].array))})


def paired(name: str, codes: str, scales: str) -> builders.Change:
    """`name` once more, in MXFP4, in two tensors of names that end so; random bytes of the right shape."""

    def change(t: Tensors) -> None:
        like = t.get(name, t.get(f"{name}_blocks"))
        assert like is not None
        rows = like.array.shape[: 2 if name.startswith(EXPERTS) else -1]
        groups = like.array.shape[2] if name.startswith(EXPERTS) else like.array.shape[-1] // 32
        t[name + codes] = Tensor("U8", np.ones((*rows, groups, 16), np.uint8))
        t[name + scales] = Tensor("U8", np.full((*rows, groups), 120, np.uint8))

    return change


def scalar_scales(folder: Path) -> None:
    """One block with a scale of no dimension, which numpy's serializer does not write."""
    path = folder / "model.safetensors"
    one = {"x_blocks": Tensor("U8", np.zeros(16, np.uint8)), "x_scales": Tensor("U8", np.zeros(1, np.uint8))}
    builders.save(path, builders.read(path) | one)
    data = path.read_bytes()
    assert data.count(b'"shape":[1]') == 1
    path.write_bytes(data.replace(b'"shape":[1]', b'"shape":[] '))


def only_paired(name: str) -> builders.Change:
    """`name` in MXFP4, in place of what it was."""

    def change(t: Tensors) -> None:
        paired(name, "_blocks", "_scales")(t)
        t.pop(name)

    return change


def as_q8_0(name: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], object]:
    """A GGUF's tensor of this shape, in Q8_0."""
    nbytes = (*shape[:-1], shape[-1] // 32 * 34)
    return lambda t: t.update({name: ("Q8_0", np.zeros(nbytes, np.uint8))})


def narrow(t: Tensors) -> None:
    """Intermediate 80 instead of 96: no multiple of 32."""
    for name, tensor in list(t.items()):
        if name.endswith("down_proj"):
            t[name] = Tensor("BF16", tensor.array[:, :80])
        elif "gate_up_proj" in name:
            t[name] = Tensor("BF16", tensor.array[..., :160])


def doubled(folder: Path) -> None:
    """The second file also holds a tensor of the first; no index says which counts."""
    (folder / "model.safetensors.index.json").unlink()
    first, second = sorted(folder.glob("*.safetensors"))
    builders.save(second, builders.read(second) | {NORM: builders.read(first)[NORM]})


def linked_elsewhere(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def fifo(name: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return edit


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def adapter(at: Path) -> Path:
    folder = at / "source"
    folder.mkdir()
    weight = Tensor("F32", np.zeros((2, 2), np.float32))
    builders.save(folder / "adapter_model.safetensors", {"base_model.model.lm_head.lora_A.weight": weight})
    config = {"base_model_name_or_path": "openai/gpt-oss-20b", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def patched(fixture: str, change: Callable[[bytearray], object]) -> Make:
    """A copy of a fixture's GGUF with some bytes changed."""

    def make(at: Path) -> Path:
        data = bytearray((FIXTURES / "gguf" / fixture).read_bytes())
        change(data)
        (at / "source.gguf").write_bytes(data)
        return at / "source.gguf"

    return make


def big_endian(data: bytearray) -> None:
    data[4:24] = struct.pack(">IQQ", *struct.unpack("<IQQ", data[4:24]))


def ollama(at: Path) -> Path:
    """Ollama's dialect by what a header shows: its architecture, its key prefix, its tensor names."""
    import gguf as official

    writer = official.GGUFWriter(at / "source.gguf", "gptoss")
    writer.add_uint32("gptoss.block_count", 1)
    for name in ("token_embd.weight", "blk.0.attn_out.weight", "blk.0.ffn_norm.weight", "blk.0.attn_sinks"):
        writer.add_tensor(name, np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return at / "source.gguf"


def ollama_type_4(at: Path) -> Path:
    """Its first files gave MXFP4 the number 4, which ggml once gave up."""
    path = ollama(at)
    data = bytearray(path.read_bytes())
    at_name = data.index(b"blk.0.attn_out.weight") + len("blk.0.attn_out.weight") + 4 + 16
    data[at_name : at_name + 4] = struct.pack("<I", 4)
    path.write_bytes(data)
    return path


def requantized(at: Path) -> Path:
    source = builders.write_gguf(MODEL, at / "wide.gguf", experts="BF16")
    ckpttool.convert(source, at / "source.gguf", experts="q8_0")
    return at / "source.gguf"


GGUF_OUT = ("--to", "gguf")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13761264768\n"

CASES: dict[str, Case] = {
    # Names
    "an unknown tensor": hf(
        "model.safetensors: model.extra: not a name of the hf dialect", change=add("model.extra", NORM)
    ),
    "a layer too many": hf(
        "model.layers.2.self_attn.sinks: not a name of the hf dialect; config.json says 2 layers",
        change=add("model.layers.2.self_attn.sinks", "model.layers.1.self_attn.sinks"),
    ),
    "a layer number with a zero before it": hf(
        "model.layers.01.self_attn.sinks: not a name", change=add("model.layers.01.self_attn.sinks", NORM)
    ),
    "a missing tensor": hf(f"model.safetensors: {NORM}: is missing", change=drop(NORM)),
    "a missing layer": hf(
        "model.layers.2.input_layernorm.weight and 16 more (--json lists them): is missing",
        config={"num_hidden_layers": 3},
    ),
    "a missing expert": hf(
        f"{EXPERTS}down_projs.2.weight: is missing", dialect="unsloth", change=drop(f"{EXPERTS}down_projs.2.weight")
    ),
    "a tensor in two files": edited(
        f"model-00002-of-00002.safetensors: {NORM}: also in model-00001-of-00002.safetensors", edit=doubled, shards=2
    ),
    # Shapes
    "a wrong shape": hf(f"{NORM}: has shape [3], but config.json says [64]", change=replace(NORM, lambda a: a[:3])),
    "experts that are not transposed": hf(
        f"{EXPERTS}gate_up_proj: has shape [3, 192, 64], but config.json says [3, 64, 192]; the experts look",
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        change=replace(f"{EXPERTS}gate_up_proj", lambda a: a.swapaxes(1, 2)),
    ),
    "rows that do not divide": hf(
        "model.layers.0.mlp.experts.down_proj: rows of 80 elements do not divide into MXFP4 blocks of 32",
        "model.layers.1.mlp.experts.down_proj: rows of 80 elements",
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        change=narrow,
        config={"intermediate_size": 80},
    ),
    # Formats
    "weights of F64": hf(
        f"model.safetensors: {NORM}: is F64, which cannot be decoded; take the checkpoint that it was made from",
        change=lambda t: t.update({NORM: Tensor("F64", np.ones(64))}),
    ),
    "weights of whole numbers": hf(
        "lm_head.weight: is I32, which cannot be decoded",
        change=lambda t: t.update({"lm_head.weight": Tensor("I32", np.ones((400, 64), np.int32))}),
        options=("--to", "gguf"),
    ),
    "experts of FP8": hf(
        f"{EXPERTS}gate_up_proj: is F8_E4M3; experts of the hf-bf16 dialect are BF16 or F16 or F32",
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        change=lambda t: t.update(
            {f"{EXPERTS}gate_up_proj": Tensor("F8_E4M3", np.ones((3, 64, 192), ml_dtypes.float8_e4m3fn))}
        ),
    ),
    "experts of FP8 alone": hf(
        "down_proj and 3 more (--json lists them): is F8_E4M3; experts of the hf dialect are MXFP4",
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        change=lambda t: t.update(
            {
                name: Tensor("F8_E4M3", np.ones(t[name].array.shape, ml_dtypes.float8_e4m3fn))
                for name in list(t)
                if name.endswith("_proj")
            }
        ),
    ),
    # Pairs
    "blocks without scales": hf(f"{EXPERTS}down_proj_blocks: has no scales", change=drop(f"{EXPERTS}down_proj_scales")),
    "scales without blocks": hf(
        f"{EXPERTS}down_proj_scales: has no {EXPERTS}down_proj_blocks", change=drop(f"{EXPERTS}down_proj_blocks")
    ),
    "openai's blocks without scales": hf(
        "block.0.mlp.mlp1_weight.blocks: has no scales",
        dialect="openai",
        change=drop("block.0.mlp.mlp1_weight.scales"),
    ),
    "blocks and scales of two shapes": hf(
        f"{EXPERTS}down_proj_blocks: U8 [3, 64, 3, 8] with scales U8 [3, 64, 3]",
        change=replace(f"{EXPERTS}down_proj_blocks", lambda a: a[..., :8]),
    ),
    "blocks of another type": hf(
        f"{EXPERTS}down_proj_blocks: BF16 [3, 64, 3, 16] with scales U8",
        change=lambda t: t.update(
            {f"{EXPERTS}down_proj_blocks": Tensor("BF16", t[f"{EXPERTS}down_proj_blocks"].array.astype(np.uint16))}
        ),
    ),
    "scales without an axis": edited(
        "model.safetensors: x_blocks: U8 [16] with scales U8 []; MXFP4 is U8", edit=scalar_scales
    ),
    "a pair under the names of two dialects": hf(
        f"{EXPERTS}down_proj: stored twice, as {EXPERTS}down_proj.blocks and as {EXPERTS}down_proj_blocks; leave out",
        f"{EXPERTS}down_proj: stored as .blocks and .scales; the hf dialect has _blocks and _scales",
        change=paired(f"{EXPERTS}down_proj", ".blocks", ".scales"),
    ),
    "a pair under another dialect's names": hf(
        f"{EXPERTS}down_proj: stored as .blocks and .scales; the hf dialect has _blocks and _scales",
        change=lambda t: [
            paired(f"{EXPERTS}down_proj", ".blocks", ".scales")(t),
            drop(f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales")(t),
        ],
    ),
    "a weight that is plain and a pair": hf(
        "lm_head.weight: stored twice, as lm_head.weight and as lm_head.weight_blocks; leave out",
        change=paired("lm_head.weight", "_blocks", "_scales"),
    ),
    "a pair in a dialect that has none": hf(
        "lm_head.weight: stored as _blocks and _scales; the hf-bf16 dialect has no such pairs",
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        change=only_paired("lm_head.weight"),
    ),
    "a vector in MXFP4": hf(
        f"{NORM}: is MXFP4, whose blocks have 32 elements, but this is a vector; take a checkpoint that",
        change=only_paired(NORM),
    ),
    "an axis of one too many": hf(
        f"{NORM}: has shape [1, 64], but config.json says [64]", change=replace(NORM, lambda a: a[None])
    ),
    # Index and files
    "an index that names more": edited(
        "weight_map[ghost]: says model-00001-of-00002.safetensors, whose header lacks it",
        edit=index(lambda i: i["weight_map"].update(ghost="model-00001-of-00002.safetensors")),
        shards=2,
    ),
    "an index that names less": edited(
        f"{NORM}: in model-00001-of-00002.safetensors, but not in the index",
        edit=index(lambda i: i["weight_map"].pop(NORM)),
        shards=2,
    ),
    "an index that names another file": edited(
        f"{NORM}: says model-00002-of-00002.safetensors, but model-00001-of-00002.safetensors holds it",
        edit=index(lambda i: i["weight_map"].update({NORM: "model-00002-of-00002.safetensors"})),
        shards=2,
    ),
    "an index that leaves the folder": edited(
        'weight_map["model.norm.weight"]: leaves the folder',
        edit=index(lambda i: i["weight_map"].update({NORM: "../../etc/passwd.safetensors"})),
        shards=2,
    ),
    "a file that is gone": edited(
        "names files that are not there: model-00002-of-00002.safetensors",
        edit=gone("model-00002-of-00002.safetensors"),
        shards=2,
    ),
    "a link elsewhere": edited("a link that leaves the folder", edit=linked_elsewhere),
    "a FIFO for weights": edited("is a FIFO, not a regular file", edit=fifo("model.safetensors")),
    "pointers of git-lfs": edited(
        "model-00001-of-00002.safetensors at byte 0: this is a git-lfs pointer to a file of 13761264768 bytes",
        "model-00002-of-00002.safetensors at byte 0: this is a git-lfs pointer",
        edit=lambda f: [text(f"model-0000{i}-of-00002.safetensors", LFS)(f) for i in (1, 2)],
        shards=2,
    ),
    "a web page": edited("this is a web page", edit=text("model.safetensors", "<!DOCTYPE html>" + " " * 99)),
    "a file cut short": edited("1 bytes are missing", edit=cut_short),
    "an empty folder": edited("holds no safetensors and no GGUF", edit=gone("model.safetensors")),
    "an adapter": Case(adapter, ("an adapter of openai/gpt-oss-20b; merge it first",)),
    # config.json
    "no config": edited("config.json is missing, so shapes cannot be checked", edit=gone("config.json")),
    "a config that is no JSON": edited("config.json at byte 1: is not valid JSON", edit=text("config.json", "{")),
    "a config that is a list": edited("config.json: is not a JSON object", edit=text("config.json", "[]")),
    "a config in UTF-16": edited(
        "config.json at byte 0: is not valid UTF-8", edit=text("config.json", "{}".encode("utf-16"))
    ),
    "a config with a byte order mark": edited("config.json", edit=text("config.json", b"\xef\xbb\xbf{}")),
    "a config of 17 MiB": edited(
        "config.json: is 17,825,792 bytes, more than", edit=lambda f: os.truncate(f / "config.json", 17 << 20), code=6
    ),
    "a config of lists": edited(
        "config.json: holds 11,000,004 commas and brackets, more than the 262,144",
        edit=text("config.json", '{"model_type": "gpt_oss", "z": [' + "[]," * 5_500_000 + "{}]}"),
        code=6,
    ),
    "a config nested deeply": edited("config.json: is nested deeper than 64", edit=text("config.json", "[" * 10**5)),
    "a config with a key twice": edited("config.json: a: duplicate key", edit=text("config.json", '{"a": 1, "a": 2}')),
    "a config with NaN": edited("config.json: NaN is no JSON", edit=text("config.json", '{"a": NaN}')),
    "a config with a huge number": edited(
        "a number of 5000 characters is too large", edit=text("config.json", '{"a": ' + "9" * 5000 + "}")
    ),
    "sizes that are none": hf(
        "config.json: num_hidden_layers: is -1, which is no size",
        "config.json: hidden_size: is missing",
        "config.json: vocab_size: is '12', which is no size",
        "config.json: num_local_experts: is True, which is no size",
        config={"num_hidden_layers": -1, "hidden_size": None, "vocab_size": "12", "num_local_experts": True},
    ),
    "sixteen million layers": hf(
        "config.json: says 16777215 layers, but there are 37 tensors", config={"num_hidden_layers": (1 << 24) - 1}
    ),
    "sixteen million experts": hf(
        "config.json: says 16777215 experts, but there are",
        dialect="unsloth",
        config={"num_local_experts": (1 << 24) - 1},
    ),
    "another architecture": hf("is of architecture 'llama', which is not known", config={"model_type": "llama"}),
    "an architecture that is no word": hf("is of architecture ['x'], which is not known", config={"model_type": ["x"]}),
    "no architecture": hf('config.json: model_type: is missing; it should say "gpt_oss"', config={"model_type": None}),
    "a key that a GGUF needs": hf(
        "config.json: sliding_window: is missing", options=GGUF_OUT, config={"sliding_window": None}
    ),
    # Tokenizer
    "an unknown pre-tokenizer": edited(
        "tokenizer.json: pre_tokenizer: llama.cpp has no name for the split regex",
        edit=lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json").read_text("utf-8").replace("{1,3}", "{1,4}"), "utf-8"
        ),
        options=GGUF_OUT,
    ),
    "no tokenizer for a GGUF": edited("tokenizer.json: is missing", edit=gone("tokenizer.json"), options=GGUF_OUT),
    "a tokenizer that is no JSON": edited("tokenizer.json: ", edit=text("tokenizer.json", "{]"), options=GGUF_OUT),
    "a FIFO for a tokenizer": edited("tokenizer.json: is missing", edit=fifo("tokenizer.json"), options=GGUF_OUT),
    # GGUF
    "Ollama's dialect": Case(ollama, ("source.gguf: gptoss: Ollama's own dialect of gpt-oss",)),
    "Ollama's first dialect": Case(ollama_type_4, ("Ollama",)),
    "a big-endian GGUF": Case(
        patched("tiny-gpt-oss-auto.gguf", big_endian), ("is big-endian; swap a copy of it", "gguf-convert-endian")
    ),
    "a GGUF of version 1": Case(
        patched("tiny-gpt-oss-auto.gguf", lambda d: d.__setitem__(slice(4, 8), b"\1\0\0\0")), ("version 1",)
    ),
    "a GGUF cut short": Case(
        patched("tiny-gpt-oss-auto.gguf", lambda d: d.__delitem__(slice(-4096, None))), ("source.gguf",)
    ),
    "a GGUF that lacks keys": gguf("source.gguf: gpt-oss.block_count: is missing", keys={"gpt-oss.block_count": None}),
    "a GGUF with a vector in Q8_0": gguf(
        "source.gguf: output_norm.weight: is Q8_0, whose blocks have 32 elements, but this is a vector",
        change=as_q8_0("output_norm.weight", (64,)),
    ),
    "a GGUF with biases in Q8_0": gguf(
        "source.gguf: blk.1.ffn_up_exps.bias: is Q8_0, whose blocks have 32 elements, but this is a vector",
        change=as_q8_0("blk.1.ffn_up_exps.bias", (3, 96)),
        options=("--to", "openai"),
    ),
    "a GGUF with sizes that are arrays": gguf(
        "source.gguf: gpt-oss.attention.head_count: is an array of 2, not a number",
        "source.gguf: gpt-oss.embedding_length: is an array of 64, not a number",
        keys={"gpt-oss.attention.head_count": [4, 4], "gpt-oss.embedding_length": [1] * 64},
    ),
    "a GGUF with a size that is text": gguf(
        "source.gguf: gpt-oss.block_count: is '2', which is no size", keys={"gpt-oss.block_count": "2"}
    ),
    "a GGUF that lacks a tensor": gguf(
        "source.gguf: output.weight: is missing", change=lambda t: t.pop("output.weight")
    ),
    "a GGUF of another architecture": gguf(
        "is of architecture 'qwen3moe', which is not known", keys={"general.architecture": "qwen3moe"}
    ),
    "a GGUF with another tokenizer": gguf("tokenizer.ggml.pre: is 'qwen2'", keys={"tokenizer.ggml.pre": "qwen2"}),
    "one of a split set, renamed": gguf(
        "source.gguf: split.count: is one of 3, but 1 found", keys={"split.count": 3, "split.no": 0}
    ),
    "experts that are Q8_0 already": Case(
        requantized,
        ("blk.0.ffn_gate_exps.weight and 5 more (--json lists them): is Q8_0; to quantize it again, to MXFP4",),
    ),
    "experts that are Q4_K already": Case(
        lambda at: FIXTURES / "gguf" / "tiny-gpt-oss-q4_k_m.gguf", ("to quantize it again, to MXFP4",)
    ),
}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder, by size and time of change; devices and FIFOs are not opened."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if not p.is_dir()
    }


def lines(stderr: str) -> list[str]:
    assert stderr.endswith("\n")
    assert "Traceback" not in stderr
    found = stderr.splitlines()
    for line in found:
        assert line.startswith("error: "), line
        assert len(line.encode()) <= 2500
        assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert "; " in line, f"no hint: {line}"
    return [line.removeprefix("error: ") for line in found]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused(tmp_path: Path, case: Case) -> None:
    source = case.make(tmp_path)
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    before = state(tmp_path)
    result = run("convert", source, target, *case.options)
    assert (result.code, result.out) == (case.code, "")
    found = lines(result.err)
    for said in case.says:
        assert any(said in line for line in found), result.err
    assert state(tmp_path) == before
    assert not list(target.parent.iterdir())
    refused_alike(source, target, case, found)


def refused_alike(source: Path, target: Path, case: Case, found: list[str]) -> None:
    """The dry run, the document and the API say the same."""
    dry = run("convert", source, target, *case.options, "--dry-run")
    assert (dry.code, dry.out, lines(dry.err)) == (case.code, "", found)
    result = run("convert", source, target, *case.options, "--json")
    assert (result.code, result.err) == (case.code, "")
    document = result.document
    assert (document["schema"], document["exit_code"]) == ("error.v1", case.code)
    assert len(document["errors"]) >= len(found)
    assert all(e["hint"] for e in document["errors"])
    names = [o.removeprefix("--").replace("-", "_") for o in case.options[::2]]
    with pytest.raises(CkptError) as caught:
        ckpttool.plan(source, target, **dict(zip(names, case.options[1::2], strict=True)))  # type: ignore[arg-type]
    problems = caught.value.problems if isinstance(caught.value, Problems) else (caught.value,)
    assert [p.message for p in problems] == [e["message"] for e in document["errors"]]
    assert not list(target.parent.iterdir())


def test_five_defects_at_once(tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        drop(NORM, f"{EXPERTS}down_proj_scales")(t)
        add("model.extra", "lm_head.weight")(t)
        replace("model.layers.0.self_attn.sinks", lambda a: a[:1])(t)

    folder = builders.write(MODEL, tmp_path / "source", "hf", shards=2, change=change, config={"sliding_window": None})
    index(lambda i: i["weight_map"].update(ghost="model-00001-of-00002.safetensors"))(folder)
    tokenizer = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.replace("{1,3}", "{1,4}"), "utf-8")
    result = run("convert", folder, folder / "model-00001-of-00002.safetensors", "--to", "gguf")
    found = lines(result.err)
    assert result.code == 3
    for said in (
        f"{NORM}: is missing",
        "model.extra: not a name",
        f"{EXPERTS}down_proj_blocks: has no scales",
        "model.layers.0.self_attn.sinks: has shape [1], but config.json says [4]",
        "weight_map[ghost]",
        "sliding_window: is missing",
        "llama.cpp has no name for the split regex",
    ):
        assert sum(said in line for line in found) == 1, (said, found)
    assert len(found) == 7


def test_many_alike_are_one_line_and_hide_nothing(tmp_path: Path) -> None:
    """A wrong size makes every tensor wrong; what else is wrong must be seen."""
    model = Model(Sizes(layers=12, hidden=32, intermediate=64))
    folder = builders.write(
        model, tmp_path / "source", "hf", change=add("model.extra", NORM), config={"num_local_experts": 2}
    )
    found = lines(run("convert", folder, tmp_path / "out", "--to", "bf16").err)
    assert len(found) < 12
    assert any("model.extra" in line for line in found)
    assert any("and 11 more (--json lists them): has shape [3], but config.json says [2]" in line for line in found)
    document = run("convert", folder, tmp_path / "out", "--to", "bf16", "--json").document
    assert len(document["errors"]) == 12 * 6 + 1


def test_more_problems_than_lines(tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        for i in range(30):
            t[f"extra{i}"] = Tensor("F32", np.zeros(i + 1, np.float32))
            t[f"model.layers.{i + 2}.self_attn.sinks"] = t[NORM]

    folder = builders.write(MODEL, tmp_path / "source", "hf", change=change)
    assert len(run("convert", folder, tmp_path / "out", "--to", "bf16").err.splitlines()) <= 21
    inspected = run("inspect", folder)
    assert inspected.code == 0
    assert "extra0 and 29 more (--json lists them): not a name of the hf dialect" in inspected.out
    assert "model.layers.10.self_attn.sinks and 29 more (--json lists them)" in inspected.out


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    evil = "\x1b]52;c;cm0K\x07\u202etxt\u2028model"
    config = {"model_type": evil}
    folder = builders.write(MODEL, tmp_path / "a", "hf", change=add(evil, NORM))
    other = builders.write(MODEL, tmp_path / "b", "hf", shards=2)
    entries = {evil: "model-00001-of-00002.safetensors", "x": evil + ".safetensors"}
    index(lambda i: i["weight_map"].update(entries))(other)
    declared = builders.write(MODEL, tmp_path / "c", "hf", config=config)
    for source in (folder, other, declared):
        for command in (["convert", source, tmp_path / "out", "--to", "bf16"], ["inspect", source]):
            result = run(*command)
            shown = result.out + result.err
            assert not [c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]
    said = run("convert", folder, tmp_path / "out", "--to", "bf16").err
    assert r"\u{1b}]52;c;cm0K\u{7}\u{202e}txt\u{2028}model" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.finetune", "../../../evil"),
        ("general.name", "/etc/\x00\x1bcron.d"),
        ("general.name", ".."),
        ("general.name", "a" * 5000),
        ("general.version", "..\\..\\x"),
        ("general.size_label", "/tmp/x"),
        ("general.file_type", "x"),
        ("general.file_type", None),
    ],
)
def test_a_default_name_stays_in_its_folder(tmp_path: Path, key: str, value: str | None) -> None:
    """The name comes from key-values, and they from strangers."""
    source = builders.write_gguf(MODEL, tmp_path / "source.gguf", keys={key: value})
    result = run("convert", source, tmp_path / "a" / "b" / "out", "--to", "gguf")
    assert result.code == 0, result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "source.gguf"]
    assert [p.name for p in (tmp_path / "a").rglob("*") if p.is_dir()] == ["b", "out"]
    (made,) = (tmp_path / "a" / "b" / "out").glob("*.gguf")
    assert made.name.isprintable()
    assert len(made.name) < 200
    assert run("verify", made).code == 0


# Values, which only their slab shows


def spoiled(name: str, at: tuple[int, ...], bits: int) -> builders.Change:
    def change(t: Tensors) -> None:
        array = t[name].array.copy()
        array[at] = bits
        t[name] = Tensor(t[name].dtype, array)

    return change


NAN, INF, HUGE = 0x7FC0, 0xFF80, 0x7F7F
SCALES = f"{EXPERTS}gate_up_proj_scales"
Q = "model.layers.0.self_attn.q_proj.weight"

VALUES: dict[str, tuple[str, builders.Change, tuple[str, ...], str]] = {
    "NaN to MXFP4": (
        "hf-bf16",
        spoiled(f"{EXPERTS}gate_up_proj", (1, 37, 7), NAN),
        ("--to", "mxfp4"),
        f"model.safetensors: {EXPERTS}gate_up_proj: layer.1.up, expert 1, row 3, block 1: holds a NaN",
    ),
    "Inf to MXFP4": (
        "hf-bf16",
        spoiled(f"{EXPERTS}down_proj", (2, 64, 5), INF),
        ("--to", "openai"),
        f"model.safetensors: {EXPERTS}down_proj: expert 2, row 5, block 2: holds an infinite value",
    ),
    "Inf to MXFP4 in a GGUF": (
        "hf-bf16",
        spoiled(f"{EXPERTS}gate_up_proj", (0, 0, 8), INF),
        ("--to", "gguf", "--experts", "mxfp4"),
        f"{EXPERTS}gate_up_proj: layer.1.gate, expert 0, row 4, block 0: holds an infinite value",
    ),
    "NaN from linear experts": (
        "unsloth",
        spoiled(f"{EXPERTS}down_projs.2.weight", (9, 0), NAN),
        ("--to", "mxfp4"),
        f"{EXPERTS}down_projs.2.weight: expert 2, row 9, block 0: holds a NaN",
    ),
    "NaN to Q8_0": (
        "hf-bf16",
        spoiled(f"{EXPERTS}down_proj", (0, 0, 5), NAN),
        ("--to", "gguf", "--experts", "q8_0"),
        f"{EXPERTS}down_proj: expert 0, row 5, block 0: holds",
    ),
    "scale 255 to BF16": (
        "hf",
        spoiled(SCALES, (1, 5, 1), 255),
        ("--to", "bf16"),
        f"{EXPERTS}gate_up_proj: layer.1.up, expert 1, row 2, block 1: holds a scale that is no number",
    ),
    "scale 254 to BF16": (
        "hf",
        spoiled(SCALES, (2, 6, 0), 254),
        ("--to", "bf16"),
        "layer.1.gate, expert 2, row 3, block 0: holds a value too large",
    ),
    "scale 253 to BF16": (
        "hf",
        spoiled(SCALES, (2, 6, 0), 253),
        ("--to", "bf16"),
        "layer.1.gate, expert 2, row 3, block 0: holds a value too large",
    ),
    "scale 255 of openai's to F32": (
        "openai",
        spoiled("block.1.mlp.mlp2_weight.scales", (0, 63, 2), 255),
        ("--to", "bf16", "--experts", "f32"),
        "block.1.mlp.mlp2_weight: expert 0, row 63, block 2: holds a scale that is no number",
    ),
    "a value too large for F16": (
        "hf",
        spoiled(Q, (5, 7), HUGE),
        ("--to", "gguf", "--outtype", "f16"),
        f"{Q}: ",
    ),
    "a maximum that the rule makes infinite": (
        "hf-bf16",
        spoiled(f"{EXPERTS}down_proj", (2, 64, 5), HUGE),
        ("--to", "mxfp4", "--recipe", "rceil"),
        f"{EXPERTS}down_proj: expert 2, row 5, block 2: holds a value too large",
    ),
}


@pytest.fixture
def occupied(tmp_path: Path) -> Iterator[Path]:
    """A finished conversion in the target's place, which must survive a run that fails."""
    folder = tmp_path / "target"
    ckpttool.convert(builders.write(MODEL, tmp_path / "old", "hf"), folder, to="mxfp4")
    before = state(folder)
    yield folder
    assert state(folder) == before


@pytest.mark.parametrize(("dialect", "change", "options", "says"), VALUES.values(), ids=VALUES)
def test_values_stop_the_run_at_their_slab(
    tmp_path: Path, dialect: str, change: builders.Change, options: tuple[str, ...], says: str, occupied: Path
) -> None:
    source = builders.write(MODEL, tmp_path / "source", dialect, change=change)
    if dialect == "openai":
        builders.write_side_files(source)
    for target, more in ((tmp_path / "fresh", ()), (occupied, ("--overwrite",))):
        path = target if "gguf" not in options else target.with_suffix(".gguf")
        result = run("convert", source, path, *options, *more)
        assert (result.code, result.out) == (3, "")
        (line,) = lines(result.err)
        assert says in line
        assert not path.with_name(path.name + ".partial").exists()
    assert not (tmp_path / "fresh").exists()
    assert not (tmp_path / "fresh.gguf").exists()


@pytest.mark.parametrize("scale", [255, 254, 253])
def test_a_repack_carries_every_scale(tmp_path: Path, scale: int) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf", change=spoiled(SCALES, (1, 5, 1), scale))
    assert run("convert", source, tmp_path / "x.gguf").code == 0
    assert run("convert", tmp_path / "x.gguf", tmp_path / "back", "--to", "mxfp4").code == 0
    assert builders.read(tmp_path / "back")[SCALES].array[1, 5, 1] == scale


# What is missing, but does not stop a conversion


def test_missing_companions_are_warnings(tmp_path: Path) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf", side_files=False)
    result = run("convert", source, tmp_path / "out", "--to", "bf16")
    assert result.code == 0
    notes = [line for line in result.out.splitlines() if line.startswith("note: ")]
    assert [n.split(":")[1].strip() for n in notes] == [
        "tokenizer.json is missing",
        "generation_config.json is missing",
        "no chat template",
    ]
    assert all("--reference DIR" in n for n in notes)
    receipt = json.loads((tmp_path / "out" / "ckpttool.receipt.json").read_text())
    assert len(receipt["notes"]) == 3
    with_reference = builders.write(MODEL, tmp_path / "reference", "hf-bf16")
    result = run("convert", source, tmp_path / "out2", "--to", "bf16", "--reference", with_reference)
    assert (result.code, "note: " in result.out) == (0, False)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out2" / name).read_bytes() == (with_reference / name).read_bytes()


def test_a_reference_brings_a_missing_config(tmp_path: Path) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf", side_files=False)
    reference = builders.write(MODEL, tmp_path / "reference", "hf-bf16")
    (source / "config.json").unlink()
    assert run("convert", source, tmp_path / "x.gguf").code == 3
    assert run("convert", source, tmp_path / "x.gguf", "--reference", reference).code == 0


def test_a_wrong_total_size_is_a_note(tmp_path: Path) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf", shards=2)
    index(lambda i: i["metadata"].update(total_size=5))(source)
    result = run("convert", source, tmp_path / "out", "--to", "bf16", "--dry-run")
    assert result.code == 0
    assert "note: model.safetensors.index.json says total_size 5, the tensors have" in result.out


def test_bytes_after_a_ggufs_data_are_a_note(tmp_path: Path) -> None:
    """llama.cpp skips them; they are no part of the target."""
    source = builders.write_gguf(MODEL, tmp_path / "source.gguf")
    assert run("convert", source, tmp_path / "clean", "--to", "bf16").code == 0
    with source.open("ab") as f:
        f.write(bytes(5000))
    note = "source.gguf has 5,000 bytes after its data"
    assert note in run("inspect", source).out
    result = run("convert", source, tmp_path / "out", "--to", "bf16")
    assert (result.code, f"note: {note}" in result.out) == (0, True)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


# TARGET and the disk


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    for more in ((), ("--dry-run",)):
        result = run("convert", source, tmp_path / "deep" / "out", "--to", "bf16", *more)
        assert result.code == 4
        (line,) = lines(result.err)
        assert re.search(r"needs \d{3} kB more, .* has 1 kB", line)
        assert line.endswith("free some space, or choose another disk")
        assert not (tmp_path / "deep").exists()


def test_the_source_is_not_opened_for_writing(tmp_path: Path) -> None:
    source = builders.write(MODEL, tmp_path / "source", "hf", shards=2)
    before = state(source)
    for target, options in ((tmp_path / "a", ("--to", "bf16")), (tmp_path / "b.gguf", ())):
        assert run("convert", source, target, *options).code == 0
    assert state(source) == before


# Sweeps: side files whose values are of any kind


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1 << 31, 10**30, 1.5, 1e308, "", "12", "\x1b[31m", [], ["x"], [[]], {}, {"a": 1}, [None],
)  # fmt: skip
SIDE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document; of a list, of the first few."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated(rng: random.Random, document: Any) -> Any:
    """A copy with one value replaced or removed."""
    out = json.loads(json.dumps(document))
    path = rng.choice([p for p in places(out) if p])
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    if rng.random() < 0.25:
        del inner[path[-1]]
    else:
        inner[path[-1]] = rng.choice(ODD)
    return out


@pytest.mark.parametrize("dialect", ["hf", "openai"])
def test_mutated_side_files(tmp_path: Path, dialect: str) -> None:
    """Converted or refused, with a hint; never a fault of the program."""
    source = builders.write(Model(Sizes(layers=1)), tmp_path / "source", dialect, shards=2)
    rng = random.Random(20)
    codes = []
    for _ in range(150):
        name = rng.choice([n for n in SIDE_FILES if (source / n).exists()])
        before = (source / name).read_bytes()
        (source / name).write_text(json.dumps(mutated(rng, json.loads(before))))
        options = rng.choice([("--to", "bf16"), ("--to", "mxfp4"), ("--to", "openai"), ("--to", "gguf")])
        result = run("convert", source, tmp_path / "out", *options, "--dry-run")
        assert result.code in (0, 2, 3), result.err
        if result.code:
            lines(result.err)
        assert run("inspect", source).code in (0, 3)
        codes.append(result.code)
        (source / name).write_bytes(before)
    assert 20 < codes.count(3) < 145
