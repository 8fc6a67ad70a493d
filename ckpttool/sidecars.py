"""The files beside the tensors: copied, changed where they must be, or rebuilt from what the source says elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckpttool.archs import config as configs
from ckpttool.archs.companions import from_gguf
from ckpttool.archs.general import GENERATION
from ckpttool.archs.gguf_metadata import parameter_counts, to_gguf
from ckpttool.checkpoint import Checkpoint
from ckpttool.choice import chosen_outtype
from ckpttool.containers import gguf, limits
from ckpttool.containers.index import render_index
from ckpttool.containers.layout import FileLayout
from ckpttool.containers.remote import RemoteFolder
from ckpttool.containers.strict_json import Source, read_bytes, read_object
from ckpttool.crc import crc32
from ckpttool.errors import CkptError, InputError, LocalIOError, os_errors, raise_all
from ckpttool.layouts import Draft
from ckpttool.locate import LICENCE_PREFIXES
from ckpttool.readback import DIFFERS, DIFFERS_HINT
from ckpttool.target import Target

CHUNK = 1 << 20
CONFIG = "config.json"
LEFT = (CONFIG, "README.md")
"""What a folder target does not take as it is: config.json is made; a model card speaks of its own files."""

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
    """One side file to write: its bytes, a file to copy, or a stream that is made as it is written.

    `nbytes` is what it will have; `sha256` is known where it is there already.
    """

    name: str
    content: Content
    nbytes: int
    sha256: str | None

    def chunks(self) -> Iterable[bytes]:
        """The bytes, piece by piece."""
        if isinstance(self.content, Path):
            with os_errors(self.content), self.content.open("rb") as f:
                while piece := f.read(CHUNK):
                    yield piece
        elif isinstance(self.content, bytes):
            yield self.content
        else:
            yield from self.content


def sidecar(name: str, content: Content) -> Sidecar:
    """A side file; one that is copied is read here, so that a change before it is written does not go unnoticed."""
    if isinstance(content, bytes):
        return Sidecar(name, content, len(content), hashlib.sha256(content).hexdigest())
    if isinstance(content, Path):
        with content.open("rb") as f:
            return Sidecar(name, content, content.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())
    return Sidecar(name, content, content.nbytes, None)


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


def write_sidecar(sidecar: Sidecar, folder: Path, *, verify: bool) -> Written:
    """Write the file, read it back if asked to, and say what it came to.

    Raises:
        InputError: the file that is copied is not what it was when the conversion was planned.
        LocalIOError: what was read back differs.
    """
    digest, crc, nbytes = hashlib.sha256(), 0, 0
    path = folder / sidecar.name
    path.parent.mkdir(exist_ok=True)
    with os_errors(path), path.open("wb") as f:
        for piece in sidecar.chunks():
            f.write(piece)
            digest.update(piece)
            crc = crc32(piece, crc)
            nbytes += len(piece)
    written = Written(nbytes, crc, digest.hexdigest())
    if nbytes != sidecar.nbytes or sidecar.sha256 not in (None, written.sha256):
        raise InputError("has changed while it was converted", file=sidecar.name, hint="give the same command again")
    if verify:
        with os_errors(path), path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != written.sha256:
                raise LocalIOError(DIFFERS, file=sidecar.name, hint=DIFFERS_HINT)
    return written


def sidecars(
    source: Checkpoint, target: Target, files: tuple[FileLayout, ...], mxfp4: bool
) -> tuple[Sequence[Sidecar], Sequence[Assumed], Sequence[str]]:
    """The side files of a folder target, what was assumed in them, and notes on what is missing.

    Raises:
        InputError: no config.json, and none in `--reference`.
    """
    found = canonical_companions(source, target)
    config = found.config
    out = [sidecar(n, found.files[n]) for n in found.files if n not in LEFT]
    if target.to == "openai":
        out.append(sidecar(CONFIG, configs.hf_to_openai(_table(source), json.loads(config))))
        out.append(sidecar("dtypes.json", configs.dtypes(_table(source), [t for f in files for t in f.tensors])))
    else:
        experts = "mxfp4" if mxfp4 else None
        out.append(sidecar(CONFIG, configs.with_quantization(config, _table(source), experts, target.dtype)))
    if len(files) > 1:
        weight_map = {t.name: f.name for f in files for t in f.tensors}
        total = sum(t.nbytes for f in files for t in f.tensors)
        out.append(sidecar("model.safetensors.index.json", render_index(weight_map, total)))
    return sorted(out, key=lambda s: s.name), found.assumed, (*found.notes, *_missing({s.name for s in out}))


@dataclass(frozen=True)
class Canonical:
    """The side files in Hugging Face's form, whatever the source's is; `files` are the others by name."""

    config: bytes
    files: Mapping[str, Content]
    assumed: tuple[Assumed, ...] = ()
    notes: tuple[str, ...] = ()


def canonical_companions(source: Checkpoint, target: Target) -> Canonical:
    """config.json in Hugging Face's shape, the other side files, and what was assumed to make them.

    Raises:
        InputError: no config.json; one that cannot be turned into Hugging Face's; a reference of another model.
    """
    table = _table(source)
    if source.container == "gguf":
        made = from_gguf(table, source.metadata, reference=source.lent)
        licences = {n: source.lent[n] for n in source.lent if n.startswith(LICENCE_PREFIXES)}
        assumed = tuple(Assumed(*row) for row in made.assumed)
        return Canonical(made.config_text, {**licences, **made.files}, assumed, tuple(made.warnings))
    path = source.companions.get(CONFIG)
    if path is None or source.config is None:
        hint = "give a folder that has one with --reference DIR"
        raise InputError("config.json is missing", file=str(source.root), hint=hint)
    if "model_type" in source.config:
        return Canonical(read_bytes(path, CONFIG, limits.SIDE_FILE), source.companions)
    config_text, assumed, notes = _from_openai(table, source.config, source.companions, source.lent)
    return Canonical(config_text, source.companions, assumed, notes)


def _from_openai(
    table: Mapping[str, Any], openai: Mapping[str, Any], beside: Mapping[str, Source], lent: Mapping[str, Source]
) -> tuple[bytes, tuple[Assumed, ...], tuple[str, ...]]:
    """config.json for an original/config.json: the reference's where it has one, else with what is assumed; and notes.

    Special ids come from generation_config.json where there is one.

    Raises:
        InputError: the reference contradicts what original/config.json states.
    """
    path = lent.get(CONFIG)
    theirs = read_object(path, CONFIG) if path else {}
    if path is None or "model_type" not in theirs:
        made, rows, notes = configs.openai_to_hf(table, openai, _special_ids(table, beside))
        return configs.render(made), tuple(Assumed(*row) for row in rows), tuple(notes)
    made, _, _ = configs.openai_to_hf(table, openai)
    problems: list[CkptError] = []
    for row in table["openai"]["keys"]:
        ours, other = configs.get(made, row["config"]), configs.get(theirs, row["config"])
        if other not in (ours, configs.MISSING):
            text = f"is {other!r} in the reference, but original/config.json says {ours!r}"
            where, hint = configs.field(theirs, row["config"]), "is the reference this model's own folder?"
            problems.append(InputError(text, file=CONFIG, field=where, hint=hint))
    raise_all(problems)
    return read_bytes(path, CONFIG, limits.SIDE_FILE), (), ()


def _special_ids(table: Mapping[str, Any], beside: Mapping[str, Source]) -> dict[str, int]:
    """config.json's special ids as generation_config.json has them; of several end tokens the first."""
    path = beside.get(GENERATION)
    generation = read_object(path, GENERATION) if path else {}
    out = {}
    for key in table["config"]["tokens"]:
        value = generation.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if type(first) is int:
            out[key] = first
    return out


FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
MXFP4_MOE = 38
"""general.file_type, as llama.cpp numbers it."""


def gguf_keys(
    source: Checkpoint, target: Target, ordered: Sequence[Draft]
) -> tuple[Mapping[str, gguf.Value], Sequence[Assumed], Sequence[str]]:
    """The key-values of a GGUF target, what was assumed in them, and notes.

    Raises:
        InputError: config.json or the tokenizer lacks what a GGUF must say.
    """
    file_type = _file_type(source, target, ordered)
    if source.container == "gguf":
        kept = {k: v for k, v in source.metadata.items() if not k.startswith("split.")}
        stated = gguf.u32(file_type) if file_type is not None else None
        named = gguf.string(target.model_name) if target.model_name else None
        changes = {"general.file_type": stated, "general.name": named}
        return kept | {k: v for k, v in changes.items() if v}, (), ()
    found = canonical_companions(source, target)
    counts = parameter_counts((d.claim.name, d.shape) for d in ordered)
    metadata, notes = to_gguf(
        _table(source),
        json.loads(found.config),
        source.companions,
        model_name=target.model_name,
        source_dir=named_after(source),
        counts=counts,
        file_type=file_type if file_type is not None else MXFP4_MOE,
    )
    return metadata, found.assumed, (*found.notes, *notes)


def named_after(source: Checkpoint) -> Path:
    """The folder whose name is the model's where nothing else says it."""
    if source.name is not None:
        return Path(source.name)
    if isinstance(source.folder, RemoteFolder):
        return Path(source.folder.name)
    real = source.root.resolve()
    return real.parent if real.name == "original" else source.root


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
