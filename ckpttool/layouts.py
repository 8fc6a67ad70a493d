"""Where every target weight goes: order, shards, file names, offsets. Pure arithmetic on names and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ckpttool.archs import Claim, Dialect
from ckpttool.archs.joins import PartShape
from ckpttool.checkpoint import Checkpoint
from ckpttool.codecs.formats import MXFP4, Codec
from ckpttool.containers import gguf, safetensors, shards
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.tensors import StoredTensor, Weight


@dataclass(frozen=True, slots=True)
class Draft:
    """A target weight before it has a place."""

    claim: Claim
    codec: Codec
    shape: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its stored tensors."""
        return sum(r.nbytes for r in self.rows)


def drafts(
    claims: Sequence[Claim], codecs: Mapping[str, Codec], shapes: Mapping[str, PartShape], dialect: Dialect
) -> list[Draft]:
    """What each claimed weight stores: names, dtypes, shapes, sizes."""
    return [_draft(c, codecs[c.name], c.join.stored_shape(shapes), shapes, dialect) for c in claims]


def _draft(
    claim: Claim, codec: Codec, shape: tuple[int, ...], shapes: Mapping[str, PartShape], dialect: Dialect
) -> Draft:
    paired = len(codec.block_nbytes) > 1
    suffixes: Sequence[str] = dialect.pair if paired and dialect.pair else ("",)
    part = shapes[claim.join.parts[0]]
    count = 1
    for n in shape:
        count *= n
    rows = count // part.row_length
    nbytes = codec.row_nbytes(part.row_length)
    stored = tuple(
        Row(claim.name + suffix, "U8" if paired else codec.name, s, rows * n)
        for suffix, s, n in zip(suffixes, codec.stored_shapes(shape), nbytes, strict=True)
    )
    return Draft(claim, codec, shape, stored)


def placed(drafted: Sequence[Draft], files: Sequence[FileLayout]) -> list[Weight]:
    """The drafts as weights, their stored tensors where the files have them."""
    at = {t.name: t for f in files for t in f.tensors}
    return [Weight(d.claim.name, d.codec, d.shape, tuple(at[r.name] for r in d.rows)) for d in drafted]


def safetensors_files(drafted: Sequence[Draft], limit: int, dialect: Dialect) -> tuple[FileLayout, ...]:
    """Weights in the order of their names, in files of at most `limit` bytes of tensors; a pair stays together."""
    ordered = sorted(drafted, key=lambda d: d.claim.name)
    groups = shards.split_by_size([d.nbytes for d in ordered], limit)
    stem = "model-" if dialect.name == "openai" else "model"
    names = shards.shard_names(stem, len(groups), ".safetensors")
    return tuple(
        safetensors.render([r for i in group for r in ordered[i].rows], {"format": "pt"}, name=name)
        for group, name in zip(groups, names, strict=True)
    )


def gguf_order(source: Checkpoint, drafted: Sequence[Draft]) -> list[Draft]:
    """The order in which llama.cpp's converter writes: MXFP4 weights first, then the rest, both in source order.

    It walks an HF folder's tensors file by file, by name. Other dialects are ordered as if they were one HF file; a
    GGUF keeps its own order.
    """
    assert source.arch is not None
    assert source.dialect is not None
    by_part = {d.claim.join.parts[0]: d for d in drafted}
    if source.container == "gguf":
        return [by_part[source.claims[w.name].join.parts[0]] for w in source.weights]
    hf = source.arch.dialects["hf"]
    if set(source.dialect.rows) == set(hf.rows):
        walk = [(_emitted_at(w), source.claims[w.name]) for w in source.weights]
    else:
        assert source.sizes is not None
        walk = [(("", c.name), c) for c in hf.expand(source.sizes)]
    walk.sort(key=lambda x: x[0])
    ordered = [by_part[p] for _, claim in walk for p in claim.join.parts]
    return sorted(ordered, key=lambda d: d.codec.format != MXFP4)


def _emitted_at(w: Weight) -> tuple[str, str]:
    """A pair is written when its scales come by."""
    last: StoredTensor = w.stored[-1]
    return last.file, last.name


def gguf_files(
    ordered: Sequence[Draft], metadata: Mapping[str, gguf.Value], name: str, limit: int | None
) -> tuple[FileLayout, ...]:
    """One file, or a split set by the converter's own rule: all metadata in the first, `split.*` in each."""
    rows = [d.rows[0] for d in ordered]
    groups = [range(len(rows))] if limit is None else shards.split_by_size([r.nbytes for r in rows], limit)
    if len(groups) == 1:
        return (_gguf_file(rows, metadata, name),)
    names = shards.shard_names(PurePath(name).stem, len(groups), ".gguf")
    out = []
    for no, (group, shard) in enumerate(zip(groups, names, strict=True)):
        split = {
            "split.no": gguf.u16(no),
            "split.count": gguf.u16(len(groups)),
            "split.tensors.count": gguf.i32(len(rows)),
        }
        keys = {**metadata, **split} if no == 0 else split
        out.append(_gguf_file([rows[i] for i in group], keys, shard))
    return tuple(out)


def _gguf_file(rows: Sequence[Row], metadata: Mapping[str, gguf.Value], name: str) -> FileLayout:
    """A file with the alignment that its own key-values state, as a GGUF made from another one may have."""
    stated = metadata.get(gguf.ALIGNMENT_KEY)
    alignment = stated.value if isinstance(stated, gguf.Scalar) and isinstance(stated.value, int) else gguf.ALIGNMENT
    return gguf.render(rows, metadata, name=name, alignment=alignment)
