"""config.json, tokenizer and the other companions of a sound checkpoint, wrong or hostile, by their numbers in the
catalogue."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
from builders import Model, Sizes
from front_ends import ACCEPTED, FOREIGN, NOTHING, SHOWN, Codes, Hostile

MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
CONFIG = "config.json"
Edit = Callable[[Path], object]
TOO_LARGE = Codes(0, 1, 6, 1)
"""A side file over a limit: inspect shows what the headers say without it."""
CONVERTS = Codes(0, 0, 3, 0)
"""What one target alone needs."""


def edited(
    what: str,
    edit: Edit,
    *says: str,
    codes: Codes = SHOWN,
    dialect: str = "hf",
    options: tuple[str, ...] = ("--to", "bf16"),
    unsaid: str = "",
) -> Hostile:
    """A sound folder, edited after it was written."""

    def make(at: Path) -> Path:
        folder = builders.write(MODEL, at / "source", dialect)
        edit(folder)
        return folder

    return Hostile("", what, make, says, codes, options, ("check", *unsaid.split()))


def text(content: str | bytes, name: str = CONFIG) -> Edit:
    """This file holds this."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes: Any) -> Edit:
    """config.json's keys replaced, or (None) removed."""

    def edit(folder: Path) -> None:
        value = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return edit


def inserted(raw: str) -> Edit:
    """A key-value before the others of config.json, as it is."""
    return lambda folder: (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("{", "{" + raw + ",", 1))


def quantized(**changes: Any) -> Edit:
    """quantization_config's keys replaced."""

    def edit(folder: Path) -> None:
        value = json.loads((folder / CONFIG).read_text())
        value["quantization_config"] = value.get("quantization_config", {}) | changes
        (folder / CONFIG).write_text(json.dumps(value))

    return edit


def sparse(name: str, nbytes: int) -> Edit:
    return lambda folder: os.truncate(folder / name, nbytes)


def fifo(name: str) -> Edit:
    return lambda folder: [(folder / name).unlink(), os.mkfifo(folder / name)]


def linked_outside(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to("../elsewhere")

    return edit


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        value = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(value["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(value), "utf-8")

    return edit


def without_head(folder: Path) -> None:
    path = folder / "model.safetensors"
    builders.save(path, {k: v for k, v in builders.read(path).items() if k != "lm_head.weight"})


RUNS = "open(__file__ + '.ran', 'w')\n"
"""A module that shows when it is run."""
GGUF = ("--to", "gguf")

SIDE_FILES = [
    edited("CF01 no config", lambda f: (f / CONFIG).unlink(), "config.json", codes=FOREIGN, unsaid="verify"),
    edited("CF02 no JSON", text("{"), "config.json at byte 1: is not valid JSON"),
    edited("CF03 a list", text("[]"), "config.json: is not a JSON object"),
    edited("CF03 null", text("null"), "config.json: is not a JSON object"),
    edited("CF04 UTF-16", text("{}".encode("utf-16")), "config.json at byte 0: is not valid UTF-8"),
    edited("CF04 a byte order mark", text(b"\xef\xbb\xbf{}"), "config.json at byte 0: begins with a byte order mark"),
    edited("CF05 17 MiB", sparse(CONFIG, 17 << 20), "config.json: is 17,825,792 bytes, more than", codes=TOO_LARGE),
    edited("CF06 10^5 lists", text("[" * 10**5), "config.json: is nested deeper than 64"),
    edited("CF07 a key twice", inserted('"model_type":"x"'), "config.json: model_type: duplicate key"),
    edited("CF07 a key twice inside", inserted('"quantization_config":{"a":1,"a":2}'), "config.json: a: duplicate key"),
    edited(
        "CF07 quantization_config twice", inserted('"quantization_config":{}'), "quantization_config: duplicate key"
    ),
    edited("CF08 NaN", inserted('"a":NaN'), "config.json: NaN is no JSON"),
    edited("CF08 Infinity", inserted('"a":-Infinity'), "config.json: -Infinity is no JSON"),
    edited("CF09 5,000 digits", inserted('"a":' + "9" * 5000), "a number of 5000 characters is too large"),
    *(
        edited(
            f"CF10 quantization_config {x!r}",
            config(quantization_config=x),
            "config.json: quantization_config: must be an object",
        )
        for x in (5, [], "mxfp4", False)
    ),
    *(
        edited(
            f"CF11 quant_method {x!r}",
            quantized(quant_method=x),
            "config.json: quantization_config.quant_method: must be a word",
        )
        for x in (5, [], True)
    ),
    edited(
        "CF11 quant_method of another",
        quantized(quant_method="gptq"),
        "config.json says quant_method 'gptq', but weights are MXFP4",
        codes=ACCEPTED,
        unsaid="verify",
    ),
    edited(
        "CF11 quant_method of escapes",
        quantized(quant_method="\x1b[2J"),
        r"says quant_method '\x1b[2j', but",
        codes=ACCEPTED,
        unsaid="verify",
    ),
    edited(
        "CF11 no quant_method",
        quantized(quant_method=None),
        "has no quantization_config with a quant_method, but",
        codes=ACCEPTED,
        unsaid="verify",
    ),
    edited(
        "CF12 modules_to_not_convert a string", quantized(modules_to_not_convert="lm_head"), "modules_to_not_convert"
    ),
    edited("CF12 modules_to_not_convert of 10^6", quantized(modules_to_not_convert=["x"] * 10**6), codes=TOO_LARGE),
    edited("CF12 a regex bomb", quantized(modules_to_not_convert=["(a+)+$" * 50, "re:(a+)+$"]), codes=ACCEPTED),
    *(
        edited(f"CF13 num_hidden_layers {x!r}", config(num_hidden_layers=x), "config.json: num_hidden_layers: is ")
        for x in (-1, 10**12, "12", True, 1.0, [1])
    ),
    edited("CF14 another hidden_size", config(hidden_size=64), "has shape [32], but config.json says [64]"),
    edited(
        "CF15 mxfp4, but BF16 experts",
        quantized(quant_method="mxfp4"),
        "says quant_method 'mxfp4', but no weight is MXFP4",
        codes=ACCEPTED,
        dialect="hf-bf16",
        options=("--to", "mxfp4"),
        unsaid="verify",
    ),
    edited(
        "CF15 MXFP4 experts, but not said",
        config(quantization_config=None),
        "has no quantization_config with a quant_method, but weights are MXFP4",
        codes=ACCEPTED,
        unsaid="verify",
    ),
    *(
        edited(f"CF16 group_size {x}", quantized(quant_method="mxfp4", group_size=x), "group_size")
        for x in (0, 33, -32)
    ),
    edited("CF16 another method's", quantized(quant_method="x", group_size=[128, 128]), codes=ACCEPTED),
    edited("CF17 auto_map", config(auto_map={"AutoModel": "evil--evil.Evil"}, trust_remote_code=True), codes=ACCEPTED),
    edited("CF18 code of another repo", config(_attn_implementation_internal="evil/repo"), codes=ACCEPTED),
    edited("CF19 a name that is a path", config(_name_or_path="../../"), codes=ACCEPTED),
    edited(
        "CF20 a template that runs code",
        text(
            "{{ ().__class__.__base__.__subclasses__() }}{% for i in range(10**9) %}{% endfor %}", "chat_template.jinja"
        ),
        codes=ACCEPTED,
    ),
    edited(
        "CF21 modules beside it",
        lambda f: [text(RUNS, n)(f) for n in ("torch.py", "json.py", "__init__.py")],
        codes=ACCEPTED,
    ),
    edited(
        "CF22 a tokenizer of 257 MiB",
        sparse("tokenizer.json", 257 << 20),
        "tokenizer.json: is ",
        codes=Codes(0, 0, 6, 0),
        options=GGUF,
        unsaid="inspect verify",
    ),
    edited(
        "CF23 holes in the vocabulary",
        tokenizer(lambda v: v.update(hole=10**6)),
        "tokenizer.json",
        codes=CONVERTS,
        options=GGUF,
        unsaid="inspect verify",
    ),
    edited(
        "CF23 an id of 2^40",
        tokenizer(lambda v: v.update(hole=2**40)),
        "tokenizer.json",
        codes=CONVERTS,
        options=GGUF,
        unsaid="inspect verify",
    ),
    edited(
        "CF23 one id twice",
        tokenizer(lambda v: v.update(twin=7)),
        "tokenizer.json",
        codes=CONVERTS,
        options=GGUF,
        unsaid="inspect verify",
    ),
    edited(
        "CF24 a link out of the folder",
        linked_outside(CONFIG),
        "config.json: a link that leaves the folder",
        codes=NOTHING,
    ),
    edited("CF24 a FIFO", fifo(CONFIG), codes=FOREIGN),
    edited(
        "CF25 an unknown architecture",
        config(model_type="llama"),
        "is of architecture 'llama', which is not known",
        codes=FOREIGN,
        unsaid="inspect verify",
    ),
    edited(
        "CF25 escapes for an architecture",
        config(model_type="\x1b[2J"),
        r"\x1b[2J",
        codes=FOREIGN,
        unsaid="inspect verify",
    ),
    edited(
        "CF26 tied, with a head",
        config(tie_word_embeddings=True),
        "says tie_word_embeddings, but lm_head.weight is stored",
        codes=ACCEPTED,
        unsaid="verify",
    ),
    edited("CF26 no head, and not tied", without_head, "lm_head.weight: is missing"),
]
