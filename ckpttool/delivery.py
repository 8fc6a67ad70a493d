"""Who gets the files of a conversion as they are made, where they do not only lie here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ckpttool.containers.source import LocalTarget
from ckpttool.reports import Conversion


class Delivery(Protocol):
    """`frees`: what was delivered is deleted here, and in the end nothing lies here."""

    frees: bool

    def has(self, sha256: str, nbytes: int) -> bool:
        """Whether this content is there, from an earlier run."""

    def deliver(self, name: str, file: LocalTarget, sha256: str) -> None:
        """Bring one file there, which was read back; from any thread, several at once."""

    def finish(self, conversion: Conversion, folder: Path) -> None:
        """All files are there; `folder` has the receipt and the side files."""
