"""What a checkpoint's headers, its index and its sizes contradict: every damage found, none of it raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from ckpttool.archs import Claim, Dialect, Sizes
from ckpttool.archs.joins import PartShape
from ckpttool.codecs.formats import READ_PACKINGS, Packing
from ckpttool.containers.gguf_values import Array, Value, ValueType
from ckpttool.errors import CkptError, InputError, UnconvertibleError
from ckpttool.locate import Located
from ckpttool.tensors import StoredTensor, Weight

ARCHITECTURE = "general.architecture"
TOKENS = "tokenizer.ggml.tokens"
"""The one key-value whose length, and not its value, is a size."""
PER_TOKEN = {"tokenizer.ggml.scores": ValueType.f32, "tokenizer.ggml.token_type": ValueType.i32}
VOCABULARY = {TOKENS: ValueType.string, "tokenizer.ggml.merges": ValueType.string, **PER_TOKEN}
"""The lists of a GGUF's vocabulary, and of what."""


def against_index(stored: Sequence[StoredTensor], located: Located) -> Iterable[CkptError]:
    """Tensors that the index says and no header has, or the other way round."""
    if located.weight_map is None:
        return
    name = located.index_name
    hint = "the index belongs to other files; write it anew or download the folder again"
    have = {t.name: t.file for t in stored}
    for tensor, file in located.weight_map.items():
        if tensor not in have:
            yield InputError(f"says {file}, whose header lacks it", file=name, field=f"weight_map[{tensor}]", hint=hint)
        elif have[tensor] != file:
            yield InputError(f"says {file}, but {have[tensor]} holds it", file=name, field=tensor, hint=hint)
    for tensor in sorted(have.keys() - located.weight_map.keys()):
        yield InputError(f"in {have[tensor]}, but not in the index", file=name, field=tensor, hint=hint)


def notes(located: Located, weights: Sequence[Weight]) -> Iterable[str]:
    """What is odd and harms nothing: an index whose total is not the tensors'."""
    nbytes = sum(w.nbytes for w in weights)
    if located.total_size not in (None, nbytes):
        yield f"{located.index_name} says total_size {located.total_size}, the tensors have {nbytes} bytes"


def against_split(headers: Sequence[Any], files: Sequence[str]) -> Iterable[CkptError]:
    """A GGUF split set must be whole, in order and of one model; `split.count` 0 is what merging leaves behind."""
    said = [{key: getattr(v, "value", None) for key, v in getattr(h, "metadata", {}).items()} for h in headers]
    total = sum(len(h.tensors) for h in headers)
    for i, (keys, file) in enumerate(zip(said, files, strict=True)):
        arch, first = keys.get(ARCHITECTURE), said[0].get(ARCHITECTURE)
        if ARCHITECTURE in keys and arch != first:
            text = f"is {arch!r}, but that of {files[0]} is {first!r}"
            yield InputError(text, file=file, field=ARCHITECTURE, hint="its files are of two models")
        count, no, tensors = (keys.get(f"split.{key}") for key in ("count", "no", "tensors.count"))
        if not isinstance(count, int) or count < 2:
            continue
        if count != len(files):
            hint = "keep the set together under its own names, name-00001-of-NNNNN.gguf, and give the first"
            yield InputError(f"is one of {count}, but {len(files)} found", file=file, field="split.count", hint=hint)
        elif no != i:
            hint = "the files were renamed; give them their own names back"
            yield InputError(f"is {no}, in place {i}", file=file, field="split.no", hint=hint)
        elif isinstance(tensors, int) and tensors != total:
            text, hint = f"is {tensors}, but the set holds {total} tensors", "its files are of two sets; fetch it again"
            yield InputError(text, file=file, field="split.tensors.count", hint=hint)


def against_vocabulary(metadata: Mapping[str, Value], file: str) -> Iterable[CkptError]:
    """Lists that llama.cpp takes for one entry of this type for each token, unseen: it would read beyond their end."""
    tokens = metadata.get(TOKENS)
    for key, kind in VOCABULARY.items():
        found = metadata.get(key)
        if found is None:
            continue
        if not isinstance(found, Array):
            text = f"is no array, but one {found.type.name}"
        elif found.type is not kind:
            text = f"is an array of {found.type.name}, not of {kind.name}"
        elif key in PER_TOKEN and isinstance(tokens, Array) and len(found) != len(tokens):
            text = f"has {len(found):,} entries, but there are {len(tokens):,} tokens"
        else:
            continue
        yield InputError(text, file=file, field=key, hint="convert again with the model's tokenizer beside it")


def doubled(stored: Sequence[StoredTensor]) -> Iterable[CkptError]:
    """Tensors that two files hold."""
    seen: dict[str, StoredTensor] = {}
    for t in stored:
        if (first := seen.setdefault(t.name, t)) is not t:
            yield InputError(f"also in {first.file}", file=t.file, field=t.name, hint="each tensor may be stored once")


def merged(weights: Sequence[Weight]) -> Iterable[CkptError]:
    """Weights that come to the same name from tensors of different names: only one of them could be meant."""
    seen: dict[str, tuple[str, ...]] = {}
    for w in weights:
        names = tuple(t.name for t in w.stored)
        if (first := seen.setdefault(w.name, names)) != names:
            text = f"stored twice, as {first[0]} and as {names[0]}"
            yield InputError(text, file=w.stored[0].file, field=w.name, hint="leave out the one that is not meant")


def absurd(dialect: Dialect, sizes: Sizes, count: int, where: str) -> list[CkptError]:
    """More layers or experts than there are tensors: said at once, rather than by naming each that is missing."""
    letters = {"L": "layers"} | ({"E": "experts"} if any("{e}" in row for row in dialect.rows) else {})
    hint = "sizes and weights are of different models"
    return [
        InputError(f"says {sizes[x]} {word}, but there are {count} tensors in all", file=where, hint=hint)
        for x, word in letters.items()
        if sizes[x] > count
    ]


def misfits(
    is_expert: Callable[[str], bool],
    dialect: Dialect,
    sizes: Sizes,
    shapes: Mapping[str, PartShape],
    weights: Sequence[Weight],
    claims: Mapping[str, Claim],
) -> Iterable[CkptError]:
    """Weights that are unknown, of a format that the dialect does not have, or of another shape than the sizes say."""
    expected = {c.name: c for c in dialect.expand(sizes)}
    said = "config.json says" if dialect.container == "safetensors" else "the key-values say"
    for w in weights:
        if w.name not in expected:
            layer = "" if w.name not in claims else f"; {said} {sizes['L']} layers, {sizes['E']} experts"
            text = f"not a name of the {dialect.name} dialect{layer}"
            hint = "every tensor must be known, or it would be lost; is it an adapter or another architecture?"
        else:
            join = expected[w.name].join
            if is_expert(join.parts[0]) and _is_foreign(w, dialect):
                text = f"is {w.codec.name}; experts of the {dialect.name} dialect are {' or '.join(dialect.experts)}"
                hint = "take the checkpoint that it was made from: BF16 or MXFP4"
                yield UnconvertibleError(text, file=w.stored[0].file, field=w.name, hint=hint)
                continue
            found = _pair_misfit(w, dialect)
            found = found or _shape_misfit(w, join.stored_shape(shapes), said, dialect.container)
            found = found or _block_misfit(w, shapes[join.parts[0]].row_length)
            if found is None:
                continue
            text, hint = found
        yield InputError(text, file=w.stored[0].file, field=w.name, hint=hint)


def _is_foreign(w: Weight, dialect: Dialect) -> bool:
    """Whether an expert weight has a format that this dialect does not know: quantized by some other library."""
    return dialect.container == "safetensors" and w.codec.name not in dialect.experts


def _pair_misfit(w: Weight, dialect: Dialect) -> tuple[str, str] | None:
    ends = tuple(t.name.removeprefix(w.name) for t in w.stored)
    if w.codec.packing is Packing.pair and ends != dialect.pair:
        pair = f"has {' and '.join(dialect.pair)}" if dialect.pair else "has no such pairs"
        return f"stored as {' and '.join(ends)}; the {dialect.name} dialect {pair}", "is it of another checkpoint?"
    return None


def _shape_misfit(w: Weight, shape: tuple[int, ...], said: str, container: str) -> tuple[str, str] | None:
    same = w.shape == shape if container == "safetensors" else _squeezed(w.shape) == _squeezed(shape)
    if same:
        return None
    text = f"has shape {list(w.shape)}, but {said} {list(shape)}"
    swapped = (*w.shape[:-2], *reversed(w.shape[-2:]))
    if len(shape) == 3 and swapped == shape:
        hint = "the experts look un-transposed: HF BF16 experts are [experts, in, out]; transpose the last two axes"
    else:
        hint = "sizes and weights are of different models"
    return text, hint


def _block_misfit(w: Weight, row_length: int) -> tuple[str, str] | None:
    block = w.codec.format.block
    if w.codec.packing not in READ_PACKINGS or row_length % block == 0:
        return None
    row = f"rows of {row_length} elements" if row_length > 1 else "a vector"
    text = f"is {w.codec.name}, whose blocks have {block} elements, but this is {row}"
    return text, "take a checkpoint that keeps it in F32 or BF16, as llama.cpp and transformers do"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1, which ggml's C writer drops."""
    return tuple(n for n in shape if n != 1)


def missing(dialect: Dialect, sizes: Sizes, seen: Set[str], where: str) -> Iterable[CkptError]:
    """Weights of which nothing is `seen`; one that lacks its other half has been reported."""
    hint = f"it is no whole checkpoint, or not one of {sizes['L']} layers and {sizes['E']} experts"
    for claim in dialect.expand(sizes):
        if claim.name not in seen:
            yield InputError("is missing", file=where, field=claim.name, hint=hint)
