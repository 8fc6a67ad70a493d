"""What a checkpoint holds, by its headers alone: format, packing and logical shape of every weight."""

from __future__ import annotations

from pathlib import Path

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.reports import FileReport, Inspection, StoredReport, WeightReport
from ckpttool.tensors import Weight


def inspect(source: str | Path) -> Inspection:
    """Inspect the checkpoint at `source`: an HF folder, OpenAI's original/, a .safetensors file or a GGUF.

    Raises:
        InputError: nothing recognisable there, or a header that cannot be trusted.
    """
    return inspection(open_checkpoint(source))


def inspection(checkpoint: Checkpoint) -> Inspection:
    """The report on an opened checkpoint."""
    parameters, nbytes = checkpoint.parameters, checkpoint.nbytes
    return Inspection(
        "inspection.v1",
        str(checkpoint.path),
        checkpoint.arch.name if checkpoint.arch else None,
        checkpoint.dialect.name if checkpoint.dialect else None,
        checkpoint.container,
        parameters,
        nbytes,
        round(nbytes * 8 / parameters, 4) if parameters else 0.0,
        tuple(FileReport(f.name, f.size, f.header_sha256) for f in checkpoint.files),
        tuple(_weight(checkpoint, w) for w in checkpoint.weights),
        tuple(str(p) for p in checkpoint.problems),
        checkpoint.notes,
    )


def _weight(checkpoint: Checkpoint, w: Weight) -> WeightReport:
    claim = checkpoint.claims.get(w.name)
    part = None
    if claim is not None:
        expert = "" if claim.expert is None else f"[{claim.expert}]"
        part = "+".join(p + expert for p in claim.join.parts)
    stored = tuple(StoredReport(t.name, t.dtype, t.shape, t.file, t.offset, t.nbytes) for t in w.stored)
    return WeightReport(w.name, part, w.codec.name, w.codec.packing, w.shape, w.parameters, w.nbytes, stored)
