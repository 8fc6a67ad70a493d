"""What is wrong with a checkpoint, or worth knowing, by its headers and side files: one rule a function.

What values say (non-finite ones, a bias) is for `inspection.values` and `inspection.scales`; damage that keeps a header
from being read for `inspection.headers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ckpttool.containers.gguf_values import Array, Scalar
from ckpttool.containers.remote import RemoteFolder
from ckpttool.errors import CkptError, UnconvertibleError
from ckpttool.inspection.report import Finding, Severity
from ckpttool.inspection.summary import (
    FILE_TYPE_KEY,
    FILE_TYPES,
    TOKENIZER_CONFIG,
    TOKENS_KEY,
    beside,
    chat_template,
    file_type,
    tokenizer,
)
from ckpttool.locate import INDEX_SUFFIX

if TYPE_CHECKING:
    from ckpttool.archs.facts import ModelFacts
    from ckpttool.archs.purposes import Purposes
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.expert_layout import ExpertLayouts

ERROR, WARNING, INFO = Severity.error, Severity.warning, Severity.info
ORDER = {ERROR: 0, WARNING: 1, INFO: 2}
CONFIG = "config.json"


def header_findings(
    checkpoint: Checkpoint, facts: ModelFacts, purposes: Purposes, layouts: ExpertLayouts | None
) -> list[Finding]:
    """Everything that headers and side files tell, no tensor data read."""
    found = [*_problems(checkpoint)]
    found += [Finding(INFO, "note", None, None, note, None) for note in checkpoint.notes]
    found += _unknown(checkpoint)
    found += _dimensions(checkpoint)
    found += _layout(layouts)
    found += _gguf(checkpoint, purposes) if checkpoint.container == "gguf" else _side_files(checkpoint)
    found += _special_ids(facts)
    return found


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, as they were found otherwise; what is said twice alike is said once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda f: ORDER[Severity(f.severity)]))


KEYS = ("general.", "split.", "tokenizer.ggml.")
"""What key-values of a GGUF begin with, and no tensor's name."""


def finding_of(error: CkptError, check: str | None = None) -> Finding:
    """An error of the reader as a finding. Its field is the tensor, unless it is a field of a side file; the fields of
    an index are tensors too."""
    field, file = error.field, error.file
    side = bool(file) and str(file).endswith((".json", ".jinja", ".txt"))
    side = side or (field or "").startswith(KEYS)
    name = check or _check_of(error)
    indexed = str(file).endswith(INDEX_SUFFIX) and name in ("index", "missing")
    tensor = _indexed(field) if field and (indexed or not side) else None
    place = f"{file}: {field}" if field and tensor is None else file
    if error.offset is not None:
        place = f"{place or ''} at byte {error.offset}".strip()
    severity = WARNING if isinstance(error, UnconvertibleError) else ERROR
    return Finding(severity, name, tensor, place, error.message, error.hint)


def _indexed(field: str) -> str:
    """The tensor's name in "weight_map[NAME]"."""
    return field[11:-1] if field.startswith("weight_map[") else field


_CHECKS = (
    ("index", (", whose header lacks it", "holds it", "but not in the index", "names files that are not there")),
    ("duplicate", ("also in ", "stored twice", "duplicate name", "duplicate tensor", "duplicate key")),
    ("hole", ("leaves a hole", "that belong to nothing")),
    ("overlap", ("and overlaps",)),
    ("order", ("tensors lie one after the other",)),
    ("truncated", ("bytes are missing", "is cut short", "ends too early", "bytes follow")),
    ("unknown-name", ("not a name of the",)),
    ("missing", ("is missing",)),
    ("shape", ("has shape", "whose blocks have")),
    ("format", ("experts of the", "with scales", "has no scales", "has no codes", "stored as")),
    ("split", ("is one of", "in place")),
)
"""Which rule an error of the reader belongs to, by its words."""


def _check_of(error: CkptError) -> str:
    return next((name for name, words in _CHECKS if any(w in error.message for w in words)), "contradiction")


def _problems(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What conversion refuses it for. A name that nobody knows may be a misspelt one that is missing."""
    found = [finding_of(p) for p in checkpoint.problems]
    missing = [f.tensor for f in found if f.check == "missing" and f.tensor]
    for f in found:
        if f.check != "unknown-name" or f.tensor is None:
            yield f
            continue
        from difflib import get_close_matches

        near = get_close_matches(f.tensor, missing, 1, 0.8) if len(missing) <= _FEW else []
        hint = f"it is {near[0]}, misspelt, by all that is missing; " if near else ""
        yield Finding(ERROR, f.check, f.tensor, f.place, f.message + SKIPPED, hint + "rename it, or leave it out")


_FEW = 256
"""Missing names that a misspelt one is held against; with more, it is another model."""

SKIPPED = "; vLLM skips unknown names without a word"
"""And leaves the weight that is meant as it was made: garbage, no error. Source: gpt_oss.py's load_weights."""


def _unknown(checkpoint: Checkpoint) -> Iterator[Finding]:
    """An architecture that we convert is declared, and no dialect of it has most of these names."""
    if checkpoint.arch is not None and checkpoint.dialect is None:
        what = f"declared as {checkpoint.arch.name}, but no dialect of it knows half of these names and formats"
        known = ", ".join(checkpoint.arch.dialects)
        yield Finding(WARNING, "dialect", None, None, what, f"dialects are {known}; was it quantized by other means?")


MOST_DIMENSIONS = 8
"""No published weight has more than five."""


def _dimensions(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Weights of so many dimensions that readers part over them."""
    for w in checkpoint.weights:
        if len(w.shape) > MOST_DIMENSIONS:
            what = f"has {len(w.shape)} dimensions, more than {MOST_DIMENSIONS}"
            yield Finding(WARNING, "shape", w.name, w.stored[0].file, what, "ggml takes 4, numpy 64; is it a weight?")


def _layout(layouts: ExpertLayouts | None) -> Iterator[Finding]:
    for text in layouts.findings if layouts else ():
        said = text.partition(": ")[2]
        mixed = said.startswith("formats ") and ";" not in said  # as k-quants mix them on purpose
        yield Finding(INFO if mixed else WARNING, "expert-layout", None, None, text, "see --experts for every layer")


# Side files of safetensors


def _side_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Missing parts of the tokenizer, the template and the config; nothing where a remote folder is not listed."""
    folder = checkpoint.folder
    if isinstance(folder, RemoteFolder) and not folder.lists:
        return
    names = set(beside(checkpoint))
    openai = checkpoint.dialect is not None and checkpoint.dialect.name == "openai"
    if CONFIG not in names:
        yield _lacks("config", CONFIG, "nothing says what model it is", WARNING)
    if openai:  # its loader brings the tokenizer, o200k_harmony
        return
    if tokenizer(checkpoint) is None:
        yield _lacks("tokenizer", "tokenizer.json", "no loader can turn text into tokens", WARNING)
    elif "vocab.json" in names and not names & {"tokenizer.json", "merges.txt"}:
        yield _lacks("tokenizer", "merges.txt", "vocab.json alone is no tokenizer", WARNING)
    if TOKENIZER_CONFIG not in names:
        yield _lacks("tokenizer", TOKENIZER_CONFIG, "transformers cannot tell the tokenizer's class", WARNING)
    unread = isinstance(folder, RemoteFolder) and TOKENIZER_CONFIG in names  # which may hold one
    if chat_template(checkpoint) is None and not unread:
        yield _lacks("chat-template", "chat_template.jinja", "chat endpoints refuse to work without one", INFO)
    if "generation_config.json" not in names:
        yield _lacks("generation-config", "generation_config.json", "the ids that end a turn may be incomplete", INFO)


def _lacks(check: str, name: str, why: str, severity: Severity) -> Finding:
    return Finding(severity, check, None, name, f"is missing: {why}", "take it from the original model's repo")


def _special_ids(facts: ModelFacts) -> Iterator[Finding]:
    """Ids beyond the vocabulary: no token that a model gives ends its turn."""
    ids = {"bos": (facts.bos,), "eos": facts.eos or (), "pad": (facts.pad,)}
    for name, values in ids.items():
        for n in values:
            if n is not None and facts.vocab is not None and n >= facts.vocab:
                place = facts.said.get(name)
                what = f"{name} is token {n}, but the vocabulary has {facts.vocab:,}"
                yield Finding(ERROR, "special-ids", None, place, what, "is the tokenizer of another model?")


# GGUF


def _gguf(checkpoint: Checkpoint, purposes: Purposes) -> Iterator[Finding]:
    yield from _gguf_tokenizer(checkpoint, purposes)
    yield from _gguf_file_type(checkpoint)
    yield from _gguf_alignment(checkpoint)


def _gguf_alignment(checkpoint: Checkpoint) -> Iterator[Finding]:
    """An alignment that llama.cpp reads, and that GGUF's specification does not allow."""
    from ckpttool.containers.gguf import ALIGNMENT_KEY

    value = getattr(checkpoint.metadata.get(ALIGNMENT_KEY), "value", None)
    if isinstance(value, int) and value % 8:
        what = f"is {value}, no multiple of 8"
        hint = "GGUF's specification asks for one, and a reader may hold to it; make the file again with 32"
        yield Finding(WARNING, "alignment", None, ALIGNMENT_KEY, what, hint)


def _gguf_tokenizer(checkpoint: Checkpoint, purposes: Purposes) -> Iterator[Finding]:
    metadata = checkpoint.metadata
    take = "convert again with the model's tokenizer beside it"
    model = getattr(metadata.get("tokenizer.ggml.model"), "value", None)
    tokens = metadata.get(TOKENS_KEY)
    wanted = {"tokenizer.ggml.model": "llama.cpp cannot load it", TOKENS_KEY: "llama.cpp cannot load it"}
    if model == "gpt2":
        wanted["tokenizer.ggml.merges"] = "llama.cpp cannot load a gpt2 tokenizer without"
        wanted["tokenizer.ggml.pre"] = "llama.cpp guesses how text is split, and warns that output will be worse"
    wanted["tokenizer.ggml.token_type"] = "special tokens are taken for text"
    wanted["tokenizer.ggml.eos_token_id"] = "nothing ends a turn"
    for key, why in wanted.items():
        if key not in metadata:
            yield Finding(WARNING, "tokenizer", None, key, f"is missing: {why}", take)
    if chat_template(checkpoint) is None:
        why = "is missing: llama.cpp falls back to ChatML"
        yield Finding(INFO, "chat-template", None, "tokenizer.chat_template", why, take)
    if not isinstance(tokens, Array):
        return
    for w in checkpoint.weights:
        if purposes.by_name[w.name].kinds == ("embed",) and w.shape and w.shape[0] != len(tokens):
            what = f"has {w.shape[0]:,} rows, but there are {len(tokens):,} tokens"
            yield Finding(ERROR, "tokenizer", w.name, TOKENS_KEY, what, take)


_MIXED = {
    "MXFP4_MOE": ("MXFP4",), "ALL_F32": ("F32",), "MOSTLY_F16": ("F16",), "MOSTLY_BF16": ("BF16",),
    "IQ3_XS": ("IQ3_S", "IQ3_XXS"), "IQ3_M": ("IQ3_S",), "IQ2_S": ("IQ2_XS", "IQ2_S"), "IQ2_M": ("IQ2_S",),
    "Q2_K_S": ("Q2_K",),
}  # fmt: skip
"""File types whose name is not that of their main tensors' type."""


def _gguf_file_type(checkpoint: Checkpoint) -> Iterator[Finding]:
    """general.file_type against the matrices: the type that it promises must be among them, or be that of most."""
    number = file_type(checkpoint)
    if number is None:
        if isinstance(checkpoint.metadata.get(FILE_TYPE_KEY), Scalar | Array):
            what = "is no whole number"
            yield Finding(WARNING, "file-type", None, FILE_TYPE_KEY, what, "it should be a u32 of llama_ftype")
        return
    name = FILE_TYPES.get(number)
    have: dict[str, int] = {}
    for w in checkpoint.weights:
        if len(w.shape) > 1:
            have[w.codec.name] = have.get(w.codec.name, 0) + w.parameters
    if not have:
        return
    most = max(have, key=lambda x: have[x])
    said = f"is {number}" + (f", {name}" if name else ", which llama.cpp does not know")
    wanted = _promised(name)
    if not set(wanted) & have.keys() or (name in _PLAIN and have[most] > 2 * have[_MIXED[name][0]]):
        what = f"{said}, but most of the matrices' elements are {most}"
        fit = next((f"{n} ({x})" for n, x in FILE_TYPES.items() if most in _MIXED.get(x, (x,))), None)
        hint = f"readers show it and do not use it; {fit} would fit" if fit else "readers show it and do not use it"
        yield Finding(WARNING, "file-type", None, FILE_TYPE_KEY, what, hint)


def _promised(name: str | None) -> tuple[str, ...]:
    """The tensor types that a file type's name speaks of."""
    if name is None:
        return ()
    return _MIXED.get(name, (name.removesuffix("_S").removesuffix("_M").removesuffix("_L"), name))


_PLAIN = frozenset({"ALL_F32", "MOSTLY_F16", "MOSTLY_BF16"})
"""File types that promise no quantization: a type of a few matrices is not enough for them."""
