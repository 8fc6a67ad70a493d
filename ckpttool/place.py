"""Where a conversion's files are made, and under which names they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpttool.errors import UsageError

RECEIPT_NAME = "ckpttool.receipt.json"
RECEIPT_SUFFIX = ".receipt.json"
NAME_LIMIT = 255
"""Bytes of a file name, on every file system in use."""


@dataclass(frozen=True)
class Place:
    """A target folder, or GGUF files in a folder that may hold others.

    All is made in `partial`; the commit renames `partial/files` to the folder, or each file to its name.
    """

    path: Path
    is_folder: bool
    names: tuple[str, ...]

    @property
    def partial(self) -> Path:
        """The folder of the unfinished conversion, beside the target."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def staged(self) -> Path:
        """Where the files are made."""
        return self.partial / "files"

    @property
    def receipt_name(self) -> str:
        """The receipt's file name."""
        return RECEIPT_NAME if self.is_folder else self.path.name + RECEIPT_SUFFIX

    @property
    def receipt(self) -> Path:
        """Where the receipt ends."""
        return (self.path if self.is_folder else self.path.parent) / self.receipt_name

    @property
    def finals(self) -> tuple[Path, ...]:
        """What the commit puts in place, in its order: a split set's first shard, which makes it loadable, last."""
        if self.is_folder:
            return (self.path,)
        return tuple(self.path.with_name(n) for n in reversed(self.names))


def place(path: Path, is_folder: bool, names: Sequence[str]) -> Place:
    """The place of a target; `path` is made absolute, so that a later change of directory does not matter.

    Raises:
        UsageError: a file there would have a longer name than file systems take.
    """
    made = Place(path.absolute(), is_folder, tuple(names))
    longest = max((made.partial.name, made.receipt_name, *names), key=lambda n: len(os.fsencode(n)))
    if len(os.fsencode(longest)) > NAME_LIMIT:
        raise UsageError("TARGET's name is too long for the files beside it", file=longest, hint="give a shorter one")
    return made
