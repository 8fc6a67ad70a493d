"""What lies between the tensors of a GGUF: zeros, unless something was left or hidden there that no reader shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from ckpttool.containers.gguf import ALIGNMENT, ALIGNMENT_KEY, padded
from ckpttool.containers.source import LocalFile
from ckpttool.inspection.report import Finding, Severity

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint, SourceFile
    from ckpttool.tensors import StoredTensor


def padding_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """One for each file of a local GGUF whose padding behind tensors is not zero.

    Raises:
        InputError, LocalIOError: a file has changed, or cannot be read.
    """
    alignment = getattr(checkpoint.metadata.get(ALIGNMENT_KEY), "value", ALIGNMENT)
    for file in checkpoint.files:
        stored = [t for w in checkpoint.weights for t in w.stored if t.file == file.name]
        yield from _of_file(file, sorted(stored, key=lambda t: t.offset), alignment)


def _of_file(file: SourceFile, stored: list[StoredTensor], alignment: int) -> Iterator[Finding]:
    count, first = 0, None
    with LocalFile(file.path, file.name) as f:
        starts = [*(t.offset for t in stored), None]
        for t, (_, following) in zip(stored, pairwise(starts), strict=True):
            end = t.offset + t.nbytes
            stop = min(f.size, padded(end, alignment)) if following is None else following
            left = f.read(end, stop - end).lstrip(b"\0")
            if left and first is None:
                first = stop - len(left)
            count += len(left) - left.count(0)
    if first is None:
        return
    place, what = f"{file.name} at byte {first}", f"{count:,} bytes of padding behind tensors are not zero"
    hint = "no reader shows them, and a conversion leaves them out; a faulty tool left them, or they were put there"
    yield Finding(Severity.warning, "padding", None, place, what, hint)
