"""A published conversion held against its receipt, without downloading it: the Hub lists the sha256 of large files.

Of a small file it lists git's hash alone, which no receipt has: that file is read, and hashed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpttool.containers import limits
from ckpttool.containers.remote import RemoteFile, RemoteFolder
from ckpttool.crc import crc32
from ckpttool.errors import InputError
from ckpttool.place import RECEIPT_NAME, RECEIPT_SUFFIX
from ckpttool.places import place
from ckpttool.receipt_file import RECEIPT_LIMIT, WRITTEN, names_beside, read_receipt
from ckpttool.reports import CheckedFile
from ckpttool.threads import share
from ckpttool.verifier import Progress

READ = limits.TOKENIZER_FILE
"""The most bytes of a file that is read because the Hub lists no sha256 of it; it takes none of over 10 MB so."""

Found = tuple[CheckedFile, Sequence[str]]


class Published:
    """A conversion in a repo of the Hub, at the commit that its branch has now.

    Raises:
        InputError: it has no receipt, several, or none that can be believed; or the place is no repo of the Hub.
        NetworkError: no such repo, no access, or the Hub cannot be reached.
    """

    def __init__(self, target: str) -> None:
        folder, self._asked = place(target)
        if not isinstance(folder, RemoteFolder) or folder.commit is None:
            hint = "download it and verify the folder; org/repo and hf://org/repo are held against the Hub's hashes"
            raise InputError("is no repo of the Hub, so nothing says what its files hash to", file=target, hint=hint)
        self._folder = folder
        self.commit: str | None = folder.commit
        self._names = frozenset(folder.listed())
        self.receipt_name = self._found()
        self.label = folder.label if self._asked is None else folder.at(self._asked)
        data = folder.file(self.receipt_name).read_bytes(RECEIPT_LIMIT)
        self.receipt: Mapping[str, Any] = read_receipt(data, folder.at(self.receipt_name))
        self.nbytes = sum(row["nbytes"] for row in self.receipt["files"] if self._is_read(row))

    def _found(self) -> str:
        """The name of the receipt of what was asked for."""
        folder, asked = self._folder, self._asked
        beside = [] if asked is None else list(names_beside(asked))
        for name in (*beside, RECEIPT_NAME):
            if name in self._names:
                return name
        others = [n for n in folder.names() if n.endswith(RECEIPT_SUFFIX)]
        if asked is None and len(others) == 1:
            return others[0]
        if asked is None and others:
            hint = f"name one: {', '.join(folder.at(n.removesuffix(RECEIPT_SUFFIX)) for n in others[:5])}"
            raise InputError(f"has {len(others)} receipts", file=folder.label, hint=hint)
        text = "has no receipt, so ckpttool upload did not publish it" if asked is None else "no receipt names it"
        raise InputError(text, file=folder.label if asked is None else folder.at(asked), hint=WRITTEN)

    def names(self) -> list[str]:
        """All files beneath the receipt's folder."""
        return sorted(self._names)

    def unasked(self) -> Iterator[str]:
        """A finding where the receipt says nothing of the file that was asked for."""
        if self._asked not in (None, self.receipt_name, *(row["name"] for row in self.receipt["files"])):
            yield f"{self._asked}: not among the files of {self.receipt_name}"

    def check(self, progress: Progress) -> Iterator[Found]:
        """Each file by its hash at the Hub, or read where that has none; several at once."""
        rows = self.receipt["files"]
        found: dict[str, Found] = {}

        def work(row: Mapping[str, Any]) -> None:
            found[row["name"]] = self._read(row, progress)

        todo = [row for row in rows if self._is_read(row)]
        if todo:
            share(todo, [work] * min(limits.REMOTE_PARALLEL, len(todo)))
        for row in rows:
            yield found[row["name"]] if row["name"] in found else self._listed(row)

    def _is_read(self, row: Mapping[str, Any]) -> bool:
        """Whether the file is there, has its size, and is one of which the Hub lists no sha256."""
        if row["name"] not in self._names:
            return False
        ranges = self._folder.file(row["name"]).ranges
        return ranges.sha256 is None and ranges.size == row["nbytes"] <= READ

    def _listed(self, row: Mapping[str, Any]) -> Found:
        """What the Hub's list says of a file."""
        name, nbytes = row["name"], row["nbytes"]
        if name not in self._names:
            return CheckedFile(name, nbytes, None, False), [f"{name}: missing"]
        ranges = self._folder.file(name).ranges
        if ranges.size != nbytes:
            return CheckedFile(name, nbytes, None, False), [f"{name}: {ranges.size} bytes, the receipt says {nbytes}"]
        if ranges.sha256 is None:
            text = f"{name}: the Hub lists no sha256 of it, and {nbytes:,} bytes are too many to read"
            return CheckedFile(name, nbytes, None, False), [text]
        if row["sha256"] is None:
            text = f"{name}: the receipt has no sha256 to hold against the Hub's (convert --no-verify)"
            return CheckedFile(name, nbytes, None, False), [text]
        ok = ranges.sha256 == row["sha256"]
        return CheckedFile(name, nbytes, "hub", ok), [] if ok else [f"{name}: {self._differs(ranges.sha256)}"]

    def _differs(self, sha256: str) -> str:
        """What a hash that is not the receipt's says."""
        owner = next((row["name"] for row in self.receipt["files"] if row["sha256"] == sha256), None)
        if owner is not None:
            return f"has the bytes of {owner}"
        return f"the Hub's sha256 is {sha256[:12]}..., not the receipt's"

    def _read(self, row: Mapping[str, Any], progress: Progress) -> Found:
        """Read a small file whole; its size is that of the receipt."""
        name, nbytes = row["name"], row["nbytes"]
        data = self._folder.file(name).read_bytes(READ)
        progress(len(data))
        by = "crc32" if row["sha256"] is None else "sha256"
        ok = (
            f"{crc32(data):08x}" == row["crc32"] if by == "crc32" else hashlib.sha256(data).hexdigest() == row["sha256"]
        )
        word = "CRC-32" if by == "crc32" else "sha256"
        return CheckedFile(name, nbytes, by, ok), [] if ok else [f"{name}: {word} differs"]

    def faults(self) -> Iterator[str]:
        """None: what the Hub lists says nothing of headers, and they are as the receipt's hashes say."""
        return iter(())

    def require_its_receipt(self) -> None:
        """All of it is of one commit."""

    def open(self, name: str) -> RemoteFile:
        """A file of the receipt, read by ranges."""
        return self._folder.file(name).open()
