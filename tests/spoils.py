"""Edits that make a checkpoint wrong in one thing: of tensors in place, of files written anew, of side files.

Bytes and JSON are edited by hand, or by the official libraries; nothing of ckpttool takes part. Each edit is a function
of the checkpoint's path (a folder, or a GGUF), which must be a copy: it asserts that it changes something.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import builders
import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Spoil = Callable[[Path], object]

H = "model.layers.{}.{}".format
X = "model.layers.{}.mlp.experts.{}".format
B = "block.{}.{}".format
G = "blk.{}.{}".format
"""Stored names of a layer's tensors: Hugging Face's, those of its experts, OpenAI's, GGUF's."""

# --- tensors in place ---


@contextmanager
def hf_tensors(folder: Path) -> Iterator[dict[str, Array]]:
    """Every tensor of a folder's safetensors, mapped for writing: BF16 as uint16 of its bits."""
    out: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(size))
        for name, row in header.items():
            if name != "__metadata__":
                begin, kind = 8 + size + row["data_offsets"][0], builders.NUMPY[row["dtype"]]
                out[name] = np.memmap(file, kind, "r+", begin, tuple(row["shape"]))
    yield out
    for array in out.values():
        array.flush()


@contextmanager
def gguf_tensors(file: Path) -> Iterator[dict[str, Array]]:
    """Every tensor of a GGUF, mapped for writing: F32 as float32, all others as bytes of their rows."""
    found = {t.name: t.data for t in gguf.GGUFReader(file, "r+").tensors}
    yield found
    next(iter(found.values())).base.flush()


Edit = Callable[[dict[str, Array]], object]


def tensors(edit: Edit) -> Spoil:
    """An edit of tensors in place, which must change a byte."""

    def spoil(path: Path) -> None:
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        before = [f.read_bytes() for f in files]
        with gguf_tensors(path) if path.is_file() else hf_tensors(path) as found:
            edit(found)
        assert [f.read_bytes() for f in files] != before

    return spoil


def swap(a: Array, b: Array) -> None:
    a[...], b[...] = b.copy(), a.copy()


def of(names: str, change: Callable[[Array], Any]) -> Spoil:
    """Each of these tensors becomes what `change` returns of a copy of it."""

    def edit(t: dict[str, Array]) -> None:
        for name in names.split():
            t[name][...] = change(t[name].copy())

    return tensors(edit)


def at(name: str, index: Any, value: Any) -> Spoil:
    """Elements of one tensor become `value`."""

    def edit(t: dict[str, Array]) -> None:
        t[name][index] = value

    return tensors(edit)


def off_by(name: str, index: Any, step: int) -> Spoil:
    """One byte more or less."""

    def edit(t: dict[str, Array]) -> None:
        t[name][index] = int(t[name][index]) + step

    return tensors(edit)


def exchange(*names: tuple[str, Any, str, Any]) -> Spoil:
    """Places (tensor, index, tensor, index) whose contents take each other's place."""

    def edit(t: dict[str, Array]) -> None:
        for a, i, b, j in names:
            t[a][i], t[b][j] = t[b][j].copy(), t[a][i].copy()

    return tensors(edit)


def among(names: str, i: Any, j: Any) -> Spoil:
    """Two indices of each of these tensors change places."""
    return exchange(*((name, i, name, j) for name in names.split()))


def nibbles(x: Array) -> Array:
    """Low and high halves of bytes, the other way round."""
    return x << 4 | x >> 4


def rolled(x: Array) -> Array:
    return np.roll(x, 1, -1)


def in_halves(x: Array) -> Array:
    """Rows that take turns, as two halves: gate and up concatenated."""
    return np.concatenate([x[:, 0::2], x[:, 1::2]], 1)


def in_pairs(heads: int) -> Callable[[Array], Array]:
    """Rows of each head's two halves taking turns, as other engines rotate them."""
    return lambda x: x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


def as_pairs_lie(structs: Array) -> Array:
    """ggml's MXFP4 structs [..., 17 G] with the codes in safetensors' order."""
    s = structs.reshape(-1, 17)
    codes = np.concatenate([s[:, 1:] & 15, s[:, 1:] >> 4], 1)
    return np.concatenate([s[:, :1], codes[:, 0::2] | codes[:, 1::2] << 4], 1).reshape(structs.shape)


# --- what has happened to checkpoints ---


def expert_swap(n: int, a: int, b: int) -> Spoil:
    """All that two experts are made of, without the router's rows."""
    kinds = [f"{w}_{kind}" for w in ("gate_up_proj", "down_proj") for kind in ("blocks", "scales", "bias")]
    return among(" ".join(X(n, kind) for kind in kinds), a, b)


def turned(n: int, *kinds: str) -> Spoil:
    """Rows of gate where those of up belong."""
    even, odd = np.s_[:, 0::2], np.s_[:, 1::2]
    return exchange(*((X(n, k), even, X(n, k), odd) for k in kinds))


def flat(name: str) -> Spoil:
    """[E, R, K] numbers where [E, K, R] belong, under a header that says [E, K, R]."""
    return of(name, lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape))


def whole_layers(a: int, b: int) -> Spoil:
    """Every tensor of two layers of an HF folder."""

    def edit(t: dict[str, Array]) -> None:
        for name in [n for n in t if n.startswith(f"model.layers.{a}.")]:
            swap(t[name], t[name.replace(f".{a}.", f".{b}.", 1)])

    return tensors(edit)


def head_is_embed(t: dict[str, Array]) -> None:
    t["lm_head.weight"][...] = t["model.embed_tokens.weight"]


def positive_zero(t: dict[str, Array]) -> None:
    """One code 8 (-0) of a GGUF's MXFP4 becomes 0."""
    rows = t["blk.2.ffn_up_exps.weight"]
    structs = rows.reshape(-1, 17)
    i, j = np.argwhere((structs[:, 1:] & 15) == 8)[0]
    structs[i, 1 + j] &= 0xF0
    t["blk.2.ffn_up_exps.weight"][...] = structs.reshape(rows.shape)


# --- files written anew ---


def without(names: str) -> Spoil:
    """Tensors are missing in their shard and in the index, as if a converter had never heard of them."""

    def spoil(folder: Path) -> None:
        gone = set(names.split())
        for file in folder.glob("*.safetensors"):
            found = builders.read(file)
            if found.keys() & gone:
                builders.save(file, {n: t for n, t in found.items() if n not in gone})
        index = folder / "model.safetensors.index.json"
        if index.exists():
            document = json.loads(index.read_text())
            document["weight_map"] = {n: f for n, f in document["weight_map"].items() if n not in gone}
            index.write_text(json.dumps(document))

    return spoil


def reshaped(name: str) -> Spoil:
    """The matrices of a BF16 tensor [E, K, R] are stored [E, R, K], and its header says so."""

    def spoil(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            found = builders.read(file)
            if name in found:
                found[name] = found[name]._replace(array=found[name].array.swapaxes(1, 2))
                builders.save(file, found)

    return spoil


def gguf_without(name: str) -> Spoil:
    """A GGUF written by gguf-py, but for one tensor."""

    def spoil(file: Path) -> None:
        reader = gguf.GGUFReader(file)
        writer = gguf.GGUFWriter(made := file.with_suffix(".made"), "gpt-oss")
        for key, field in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                sub = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        for t in reader.tensors:
            if t.name != name:
                raw = None if t.data.dtype == np.float32 else t.tensor_type
                writer.add_tensor(t.name, t.data, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.replace(file)

    return spoil


# --- side files ---


def document(name: str, edit: Callable[[Any], object]) -> Spoil:
    """An edit of a JSON file, which must change it."""

    def spoil(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8"))
        before = json.dumps(value)
        edit(value)
        assert json.dumps(value) != before
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")

    return spoil


def config(**values: Any) -> Spoil:
    """config.json's fields; those of `rope_scaling` as `rope_scaling={...}`."""

    def edit(stated: dict[str, Any]) -> None:
        for key, value in values.items():
            stated[key] = stated[key] | value if isinstance(value, dict) else value

    return document("config.json", edit)


def rope(**values: Any) -> Spoil:
    """Fields of `rope_scaling`, or of transformers 5's `rope_parameters`."""

    def edit(stated: dict[str, Any]) -> None:
        (stated.get("rope_scaling") or stated["rope_parameters"]).update(values)

    return document("config.json", edit)


def key_value(key: str, value: Any) -> Spoil:
    """A number among a GGUF's key-values, in place."""

    def spoil(file: Path) -> None:
        field = gguf.GGUFReader(file, "r+").fields[key]
        part = field.parts[field.data[0]]
        assert part[0] != value
        part[0] = value
        part.base.flush()

    return spoil


def text(name: str, old: str, new: str) -> Spoil:
    """A text file with one word replaced."""

    def spoil(folder: Path) -> None:
        found = (folder / name).read_text("utf-8")
        assert old in found
        (folder / name).write_text(found.replace(old, new), "utf-8")

    return spoil


def two_ids(vocabulary: dict[str, Any]) -> None:
    """Entries 300 and 301 of a tokenizer.json change places."""
    vocab = vocabulary["model"]["vocab"]
    a, b = (next(word for word, i in vocab.items() if i == n) for n in (300, 301))
    vocab[a], vocab[b] = vocab[b], vocab[a]


def two_tokens(file: Path) -> None:
    """Two tokens of one length in a GGUF's list change places; the first such pair from entry 300 on."""
    field = gguf.GGUFReader(file, "r+").fields["tokenizer.ggml.tokens"]
    words = [field.parts[i] for i in field.data]
    a, b = next((n, m) for n in range(300, 400) for m in range(n + 1, 400) if len(words[n]) == len(words[m]))
    swap(words[a], words[b])
    words[a].base.flush()


def lost(name: str) -> Spoil:
    """A file that is not there any more."""
    return lambda folder: (folder / name).unlink()
