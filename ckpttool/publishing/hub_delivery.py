"""Files of a conversion on their way to a repo, as `execute` has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.errors import NetworkError
from ckpttool.publishing import describing, held, secrets
from ckpttool.publishing.manifest import CARD, Item
from ckpttool.publishing.sending import SMALL, Sending
from ckpttool.reports import Conversion, document

if TYPE_CHECKING:
    from ckpttool.containers.source import LocalTarget
    from ckpttool.publishing.streaming import HubConversion


class HubDelivery:
    """The `Delivery` of one conversion; `commit` and `request` are known at its end."""

    def __init__(self, of: HubConversion, sent: Callable[[int], None]) -> None:
        self._of = of
        self._sent = sent
        self.frees = of.frees
        self._by_lfs = False
        self.notes: list[str] = []
        self.worked: Sequence[int] = ()
        self.commit: str | None = None
        self.request: str | None = None

    def begin(self) -> None:
        """Make the repo, before the first slab is read."""
        self.sending = self._of.sending(self._sent)

    def holds(self, name: str, sha256: str, nbytes: int) -> bool:
        """Whether the Hub still has a file of an earlier run; what no commit shows it may forget."""
        there = self.sending.has(sha256, nbytes)
        if there:
            self.sending.claim(name, sha256, nbytes)
        return there

    def deliver(self, name: str, file: LocalTarget, sha256: str) -> None:
        """Send what was read back: by its descriptor, so that no change of names leads to another file.

        Raises:
            NetworkError: it did not get there.
        """
        nbytes = file.size
        fd = file.duplicate()
        held = Path(f"/proc/self/fd/{fd}")
        path = held if held.exists() else file.path
        self.sending.put(name, path, sha256, nbytes, by_lfs=self._by_lfs)
        if self.frees and not self.sending.has(sha256, nbytes):
            self._by_lfs = True  # Xet has it by other hashes than this one; so it will be with the next files
            self.sending.put(name, path, sha256, nbytes, by_lfs=True)
            if not self.sending.has(sha256, nbytes):
                raise NetworkError("the Hub does not have what was sent", file=name, hint="give the same command again")
        os.close(fd)  # not where that failed: whoever still reads it must not meet another file under its number

    def finish(self, conversion: Conversion, folder: Path, worked: Sequence[int]) -> None:
        """Send side files, card and receipt, and show all of it."""
        self.worked = worked
        sides = {s.name for s in self._of.plan.sidecars}
        for row in conversion.files:
            if row.name in sides:
                assert row.sha256 is not None
                _put(self.sending, Item(row.name, folder / row.name, row.nbytes, row.sha256, row.nbytes))
        receipt = document(conversion)
        name = self._of.plan.place.receipt_name
        self._put_bytes(CARD, self._of.card(receipt, self.notes))
        self._put_bytes(name, self._of.receipt(conversion, (folder / name).read_bytes()))
        self.commit, self.request = self.sending.commit(*describing.message(receipt, name))

    def _put_bytes(self, name: str, data: bytes) -> None:
        secrets.refuse(name, data, "take it out, and revoke it; nothing is visible yet")
        self.sending.put(name, data, sha256(data).hexdigest(), len(data))


def _put(sending: Sending, item: Item) -> None:
    found = held.checked(item)
    if found.nbytes < SMALL:
        sending.put(found.name, held.content(found), found.sha256, found.nbytes)
        return
    with held.opened(found) as path:
        sending.put(found.name, path, found.sha256, found.nbytes)
