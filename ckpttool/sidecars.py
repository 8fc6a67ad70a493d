"""The files beside the tensors: copied, changed where they must be, or rebuilt from what the source says elsewhere."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckpttool.archs import config as configs
from ckpttool.archs.gguf_metadata import parameter_counts, to_gguf
from ckpttool.checkpoint import Checkpoint
from ckpttool.choice import chosen_outtype
from ckpttool.containers import gguf
from ckpttool.containers.index import render_index
from ckpttool.containers.layout import FileLayout
from ckpttool.errors import InputError
from ckpttool.layouts import Draft
from ckpttool.locate import LICENCE_PREFIXES, companions
from ckpttool.target import Target

CHUNK = 1 << 20
CONFIG = "config.json"
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
WORTH_A_WARNING = {
    "tokenizer.json": "text cannot be encoded",
    "generation_config.json": "generation falls back to greedy defaults and may not stop at every end token",
}
TEMPLATES = ("chat_template.jinja", "chat_template.json")


class Stream(Protocol):
    """A file's bytes, made as they are written; their number is known before."""

    @property
    def nbytes(self) -> int:
        """Bytes in all."""

    def __iter__(self) -> Iterator[bytes]: ...


Content = bytes | Path | Stream


@dataclass(frozen=True)
class Sidecar:
    """One side file to write: its bytes, a file to copy, or a stream that is made as it is written."""

    name: str
    content: Content

    @property
    def nbytes(self) -> int:
        """Bytes the file will have."""
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes

    def chunks(self) -> Iterable[bytes]:
        """The bytes, piece by piece."""
        if isinstance(self.content, Path):
            with self.content.open("rb") as f:
                while piece := f.read(CHUNK):
                    yield piece
        elif isinstance(self.content, bytes):
            yield self.content
        else:
            yield from self.content


@dataclass(frozen=True, slots=True)
class Assumed:
    """A value that the source does not carry, and that was filled in from what is known of the architecture."""

    file: str
    key: str
    value: object


@dataclass(frozen=True, slots=True)
class Written:
    """What a side file came to."""

    nbytes: int
    crc32: int
    sha256: str


def write_sidecar(sidecar: Sidecar, folder: Path) -> Written:
    """Write the file and say what it came to."""
    digest, crc, nbytes = hashlib.sha256(), 0, 0
    with (folder / sidecar.name).open("wb") as f:
        for piece in sidecar.chunks():
            f.write(piece)
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            nbytes += len(piece)
    return Written(nbytes, crc, digest.hexdigest())


def sidecars(
    source: Checkpoint, target: Target, files: tuple[FileLayout, ...], mxfp4: bool
) -> tuple[list[Sidecar], list[Assumed], list[str]]:
    """The side files of a folder target, what was assumed in them, and notes on what is missing.

    Raises:
        InputError: no config.json, and none in `--reference`.
    """
    config, found, assumed = canonical_companions(source, target)
    out = [Sidecar(n, c) for n, c in found.items() if n in COPIED or n.startswith(LICENCE_PREFIXES)]
    if target.to == "openai":
        out.append(Sidecar(CONFIG, configs.hf_to_openai(_table(source), json.loads(config))))
        out.append(Sidecar("dtypes.json", configs.dtypes(_table(source), [t for f in files for t in f.tensors])))
    else:
        experts = "mxfp4" if mxfp4 else None
        out.append(Sidecar(CONFIG, configs.with_quantization(config, _table(source), experts, target.dtype)))
    if len(files) > 1:
        weight_map = {t.name: f.name for f in files for t in f.tensors}
        total = sum(t.nbytes for f in files for t in f.tensors)
        out.append(Sidecar("model.safetensors.index.json", render_index(weight_map, total)))
    return sorted(out, key=lambda s: s.name), assumed, _missing({s.name for s in out})


def canonical_companions(source: Checkpoint, target: Target) -> tuple[bytes, dict[str, Content], list[Assumed]]:
    """config.json in Hugging Face's shape, the other side files by name, and what was assumed to make them."""
    table = _table(source)
    reference = companions(target.reference) if target.reference else None
    if source.container == "gguf":
        from ckpttool.archs.companions import from_gguf

        made = from_gguf(table, source.metadata, reference=reference)
        files: dict[str, Content] = {**(reference or {}), **made.files}
        config = configs.render(made.config)
        return config, files, [Assumed(*row) for row in made.assumed]
    files = dict(source.companions)
    path = files.get(CONFIG)
    if not isinstance(path, Path):
        hint = "give a folder that has one with --reference DIR"
        raise InputError("config.json is missing", file=str(source.root), hint=hint)
    if source.config is not None and "model_type" not in source.config:
        config_dict, rows = configs.openai_to_hf(table, source.config)
        return configs.render(config_dict), files, [Assumed(*row) for row in rows]
    return path.read_bytes(), files, []


FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
MXFP4_MOE = 38
"""general.file_type, as llama.cpp numbers it."""


def gguf_keys(
    source: Checkpoint, target: Target, ordered: Sequence[Draft]
) -> tuple[Mapping[str, gguf.Value], list[Assumed], list[str]]:
    """The key-values of a GGUF target, what was assumed in them, and notes.

    Raises:
        InputError: config.json or the tokenizer lacks what a GGUF must say.
    """
    file_type = _file_type(source, target, ordered)
    if source.container == "gguf":
        kept = {k: v for k, v in source.metadata.items() if not k.startswith("split.")}
        stated = gguf.u32(file_type) if file_type is not None else None
        return kept | ({"general.file_type": stated} if stated else {}), [], []
    config, files, assumed = canonical_companions(source, target)
    counts = parameter_counts((d.claim.name, d.shape) for d in ordered)
    root = source.root.resolve()
    metadata, notes = to_gguf(
        _table(source),
        json.loads(config),
        {n: c for n, c in files.items() if isinstance(c, bytes | Path)},
        model_name=target.model_name,
        source_dir=root.parent if root.name == "original" else root,
        counts=counts,
        file_type=file_type if file_type is not None else MXFP4_MOE,
    )
    return metadata, assumed, notes


def _file_type(source: Checkpoint, target: Target, ordered: Sequence[Draft]) -> int | None:
    """What llama.cpp calls this mixture; None where a GGUF's own label stays."""
    assert source.arch is not None
    rest = chosen_outtype(source, target).upper()
    experts = {d.codec.name for d in ordered if source.arch.is_expert(d.claim.join.parts[0])}
    if rest == "KEEP":
        had = {source.extents[d.claim.join.parts[0]][0].weight.codec.name for d in ordered}
        return MXFP4_MOE if "MXFP4" in experts - had else None
    if target.outtype == "mxfp4_moe" or ("MXFP4" in experts and rest != "Q8_0"):
        return MXFP4_MOE
    return FILE_TYPES[rest]


def _table(source: Checkpoint) -> Mapping[str, Any]:
    assert source.arch is not None
    return source.arch.table


def _missing(names: set[str]) -> list[str]:
    notes = [f"{n} is missing: {why}" for n, why in WORTH_A_WARNING.items() if n not in names]
    if not names & set(TEMPLATES):
        notes.append("no chat template: chat prompts cannot be rendered")
    return [f"{n}; --reference DIR takes it from there" for n in notes]
