"""What is mutated: good tables drawn at random, and the files by hand of tests/hostile, good and bad."""

from __future__ import annotations

import json
import struct
import sys
from functools import cache
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[1] / "hostile"))

import gguf_cases
import index_cases
import safetensors_cases
from hostile_files import STRUCTS, arr, gguf, gstr, info, kv, st

from ckpttool.containers.ggml_types import GGML_TYPES
from ckpttool.containers.safetensors import DTYPE_BITS

LARGEST = 1500
"""Bytes of a seed: larger ones are parsed too slowly to be many."""

DRAWN = 600

_NAMES = (
    "a",
    "b",
    "model.embed_tokens.weight",
    "blk.0.attn_q.weight",
    "x" * 63,
    "한국어",
    "é",
    "e\u0301",
    "\u202e",
    " ",
)


@cache
def safetensors_seeds() -> list[bytes]:
    """Good and bad files of at most LARGEST bytes."""
    random = Random(1)
    hostile = [*safetensors_cases.GOOD.values(), *(c.data for c in safetensors_cases.SAFETENSORS.values())]
    return [_safetensors(random) for _ in range(DRAWN)] + [d for d in hostile if len(d) <= LARGEST]


def _safetensors(random: Random) -> bytes:
    """A good file: up to three tensors, in any order and any spelling."""
    entries, at = [], 0
    for name in random.sample(_NAMES, random.randrange(4)):
        dtype = random.choice(list(DTYPE_BITS))
        shape = [random.choice((0, 1, 2, 8)) for _ in range(random.randrange(4))]
        bits = DTYPE_BITS[dtype]
        if bits % 8:
            shape.append(8)
        for dim in shape:
            bits *= dim
        fields = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + bits // 8]}
        if random.random() < 0.2:
            fields = dict(random.sample(list(fields.items()), 3))
        entries.append((name, fields))
        at += bits // 8
    if random.random() < 0.3:
        entries.append(("__metadata__", random.choice(({}, {"format": "pt"}, {"a": "}", "b": '"', "": "한"}))))
    random.shuffle(entries)
    spacing = random.choice(((",", ":"), (", ", ": "), (" , ", " :\n")))
    text = json.dumps(dict(entries), separators=spacing, ensure_ascii=random.random() < 0.3).encode()
    return st(text + b" " * random.choice((0, -len(text) % 8)), bytes(at))


@cache
def gguf_seeds() -> list[bytes]:
    """Good and bad files of at most LARGEST bytes."""
    random = Random(2)
    hostile = [*gguf_cases.GOOD.values(), *(c.data for c in gguf_cases.GGUF.values())]
    return [_gguf(random) for _ in range(DRAWN)] + [d for d in hostile if len(d) <= LARGEST]


def _gguf(random: Random) -> bytes:
    """A good file: up to three key-values of any type, and up to three tensors of any type."""
    kvs, alignment = [], 32
    for key in random.sample(
        ("general.architecture", "k", "tokenizer.ggml.tokens", "n" * 40, "값"), random.randrange(4)
    ):
        kvs.append(_key_value(random, key))
    if random.random() < 0.3:
        alignment = random.choice((1, 8, 16, 64))
        kvs.append(kv("general.alignment", 4, alignment))
    infos, at = [], 0
    for name in random.sample([n for n in _NAMES if n], random.randrange(4)):
        kind = random.choice(list(GGML_TYPES.values()))
        dims = [kind.elements * random.choice((0, 1, 1, 2)), *random.choices((0, 1, 2, 3), k=random.randrange(3))]
        if kind.elements == 1 and random.random() < 0.2:
            dims = []
        nbytes = kind.nbytes
        for i, dim in enumerate(dims):
            nbytes *= dim // kind.elements if i == 0 else dim
        infos.append(info(name, tuple(dims), kind.id, at))
        at += -(-nbytes // alignment) * alignment
    data = bytes(at + random.choice((0, 0, 0, 5)))
    return gguf(tuple(kvs), tuple(infos), data, alignment=alignment, version=random.choice((2, 3, 3, 3)))


def _key_value(random: Random, key: str) -> bytes:
    kind = random.choice([*STRUCTS, 8])
    if random.random() < 0.5:
        return kv(key, kind, "text" if kind == 8 else random.randrange(2))
    n = random.randrange(5)
    if kind == 8:
        return arr(key, 8, n, b"".join(gstr(random.choice(("", "x", "한", "y" * 30))) for _ in range(n)))
    return arr(key, kind, n, struct.pack(f"<{n}{STRUCTS[kind]}", *(random.randrange(2) for _ in range(n))))


@cache
def index_seeds() -> list[bytes]:
    """Good and bad indexes."""
    good = {
        "metadata": {"total_size": 1024, "total_parameters": 12},
        "weight_map": {f"model.layers.{i}.w": f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)},
    }
    bad = [case.data for case in index_cases.INDEXES.values()]
    return [json.dumps(good, indent=n).encode() for n in (None, 2)] * 20 + [d for d in bad if len(d) <= LARGEST]


@cache
def json_seeds() -> list[bytes]:
    """Side files as they are, in small."""
    documents = (
        {"model_type": "gpt_oss", "num_hidden_layers": 2, "rope_theta": 150000.0, "layer_types": ["a", "b"]},
        {"eos_token_id": [200002, 199999], "temperature": 1.0, "x": None, "y": [True, False], "z": {"a": {"b": -1}}},
        {"max": 1000000000000000019884624838656, "e": 1e-5, "text": 'é\\u00e9 \n "quoted" \U0001f600'},
    )
    return [
        json.dumps(d, indent=i, ensure_ascii=a).encode() for d in documents for i in (None, 2) for a in (True, False)
    ]


@cache
def tokenizer_seeds() -> list[bytes]:
    """tokenizer.json in small, with both kinds of merges."""
    vocab = {t: i for i, t in enumerate(("a", "b", "ab", "Ġ", '"', "\\", "{", "é", "한"))}
    pairs = [["a", "b"], ["Ġ", "a b"], ["é", "한"]]
    found = []
    for merges in (pairs, ["a b", "é 한"], []):
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
        for document in (
            {"version": "1.0", "model": model, "added_tokens": []},
            {"model": dict(reversed(model.items()))},
        ):
            found += [json.dumps(document, indent=i, ensure_ascii=a).encode() for i in (None, 2) for a in (True, False)]
    return found


SEEDS = {
    "safetensors": safetensors_seeds,
    "gguf": gguf_seeds,
    "index": index_seeds,
    "json": json_seeds,
    "tokenizer": tokenizer_seeds,
}
