"""Who gets the files of a conversion as they are made, where they do not only lie here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ckpttool.reports import Conversion

if TYPE_CHECKING:
    from ckpttool.containers.source import LocalTarget


class Delivery(Protocol):
    """`frees`: what was delivered is deleted here, and in the end nothing lies here."""

    frees: bool

    def begin(self) -> None:
        """Get ready; called before anything is read or written."""

    def holds(self, name: str, sha256: str, nbytes: int) -> bool:
        """Whether a file that an earlier run has delivered and deleted is still there."""

    def deliver(self, name: str, file: LocalTarget, sha256: str) -> None:
        """Bring one file there, which was read back; from any thread, several at once."""

    def finish(self, conversion: Conversion, folder: Path, worked: Sequence[int]) -> None:
        """All files are there; `folder` has the receipt and the side files. `worked` are the slabs of this run."""
