"""Whether what a receipt names is a checkpoint that opens, with the tensors of the receipt.

Bytes that a receipt knows may still be no checkpoint: the receipt may have been made for them, or edited. What
`inspect` and `convert` say of a file, `verify` says too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.errors import InputError, Problems
from ckpttool.place import RECEIPT_NAME


def faults(folder: Path, receipt_name: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the files of a receipt in `folder` from being the checkpoint that it describes.

    Raises:
        LimitError, LocalIOError: a file asks for more than it may, or the system refuses.
    """
    try:
        checkpoint = open_checkpoint(_place(folder, receipt_name, receipt), remote=False)
    except InputError as error:
        yield from map(str, error.problems if isinstance(error, Problems) else (error,))
        return
    if checkpoint.problems:
        yield from map(str, checkpoint.problems)
    elif checkpoint.dialect is None or checkpoint.sizes is None:
        yield f"{checkpoint.files[0].name}: no architecture that convert writes has these tensors, or none is named"
    else:
        yield from _otherwise(checkpoint, receipt)


def _place(folder: Path, receipt_name: str, receipt: Mapping[str, Any]) -> Path:
    """The folder, or the GGUF that the receipt lies beside; of a split set its first file."""
    if receipt_name == RECEIPT_NAME:
        return folder
    names: list[str] = sorted(row["name"] for row in receipt["files"])
    return folder / next((n for n in names if n.lower().endswith(".gguf")), names[0])


def _otherwise(checkpoint: Checkpoint, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Tensors that lie elsewhere than the receipt says, or that only one of the two has."""
    said = {t["name"]: (t["file"], t["offset"], t["nbytes"]) for t in receipt["tensors"]}
    there = {t.name: (t.file, t.offset, t.nbytes) for w in checkpoint.weights for t in w.stored}
    for name in sorted(said.keys() | there.keys()):
        if name not in said:
            yield f"{there[name][0]}: {name}: not among the tensors of the receipt"
        elif name not in there:
            yield f"{said[name][0]}: {name}: not in the file's header, but in the receipt"
        elif said[name] != there[name]:
            file, offset, nbytes = there[name]
            what = f"lies at byte {offset} of {file}, {nbytes} bytes; the receipt says {list(said[name])}"
            yield f"{file}: {name}: {what}"
