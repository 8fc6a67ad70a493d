"""A finished conversion held against its receipt: sizes, sha256 or CRC-32 of every file, CRC-32 of every tensor; and
whether it opens as the checkpoint that the receipt describes.

What lies on this machine is read; what was published is held against the hashes by which the Hub lists it. Where the
source is given, also that the conversion is what the source gives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ckpttool.containers.remote import RemoteFile
from ckpttool.containers.source import LocalFile
from ckpttool.crc import crc32
from ckpttool.errors import InputError, UsageError, os_errors
from ckpttool.locate import SHARD
from ckpttool.place import RECEIPT_NAME
from ckpttool.places import HUB_REPO, LocalFolder, is_url
from ckpttool.receipt_file import RECEIPT_LIMIT, find_receipt, found_receipt, read_receipt, receipt_nbytes
from ckpttool.reports import CheckedFile, Derivation, Verification
from ckpttool.strangers import is_loaded, strangers

if TYPE_CHECKING:
    from ckpttool.derivation import Derived

__all__ = ["RECEIPT_LIMIT", "Verifier", "find_receipt", "read_receipt", "receipt_nbytes", "verify"]

CHUNK = 4 << 20

Progress = Callable[[int], None]


class Finished(Protocol):
    """A finished conversion with its receipt, here or published. `nbytes` is what `check` reads."""

    label: str
    receipt: Mapping[str, Any]
    receipt_name: str
    commit: str | None
    nbytes: int

    def names(self) -> list[str]:
        """Paths of the files in the receipt's folder."""

    def unasked(self) -> Iterator[str]:
        """A finding where the receipt says nothing of the file that was asked for."""

    def check(self, progress: Progress) -> Iterator[tuple[CheckedFile, Sequence[str]]]:
        """Each file of the receipt, and what is wrong with it."""

    def faults(self) -> Iterator[str]:
        """What keeps the files, as they are, from being the checkpoint that the receipt describes."""

    def require_its_receipt(self) -> None:
        """InputError where another receipt has come in its place: what was read may be of two conversions."""

    def open(self, name: str) -> LocalFile | RemoteFile:
        """A file that is there."""


@os_errors()
def verify(
    target: str | Path,
    *,
    source: str | Path | None = None,
    samples: int | None = None,
    reference: str | Path | None = None,
    progress: Progress = lambda nbytes: None,
) -> Verification:
    """Compare the conversion at `target` with the receipt beside it and, where it is given, with its `source`.

    `target` is the folder, the GGUF (of a split set, any shard, or the name it would have unsplit), a link to one of
    them, or the receipt: all of it is read. Or it is a repo of the Hub (org/repo, org/repo@revision, hf://org/repo/file)
    whose large files are held against the hashes that the Hub lists; only small files are read.

    With `source` the conversion is planned again as the receipt says: the layout and header of every file and all side
    files are compared, and so are `samples` slabs (32 or more where not given), which are converted again in memory.
    `reference` stands in for the one of the receipt.

    Raises:
        InputError: there is no receipt, it is none of ours, or `source` is not what the receipt says was read.
        LocalIOError: what the system refuses.
        NetworkError: the Hub refuses, or breaks off too often.
        UsageError: `samples` or `reference` without `source`.
    """
    return Verifier(target, source=source, samples=samples, reference=reference).run(progress)


class Verifier:
    """One verification: all that can be refused is refused as it is made. `nbytes` is what will be compared."""

    def __init__(
        self,
        target: str | Path,
        *,
        source: str | Path | None = None,
        samples: int | None = None,
        reference: str | Path | None = None,
    ) -> None:
        """As `verify` takes and raises them."""
        if source is None and (samples is not None or reference is not None):
            what = "--samples" if samples is not None else "--reference"
            raise UsageError(f"{what} goes with --source", hint="give the checkpoint that was converted: --source DIR")
        self._made = finished(target)
        self._derived: Derived | None = None
        self.nbytes = self._made.nbytes
        if source is not None:
            from ckpttool.derivation import Derived

            self._derived = Derived(self._made.receipt, self._made.receipt_name, source, samples, reference)
            self.nbytes += self._derived.nbytes

    def run(self, progress: Progress = lambda nbytes: None) -> Verification:
        """Compare; `progress` is called with the bytes just compared, from any thread."""
        made, receipt = self._made, self._made.receipt
        findings = list(made.unasked())
        checked = []
        for row, found in made.check(progress):
            checked.append(row)
            findings += found
        others = strangers(made.names(), [made.receipt_name, *(r.name for r in checked)])
        loaded = [n for n in others if made.receipt_name == RECEIPT_NAME and is_loaded(n)]
        findings += [f"{n}: not among the files of {made.receipt_name}, and loaders may read it" for n in loaded]
        if not findings:
            findings += made.faults()
        notes: list[str] = []
        derivation: Derivation | None = None
        if self._derived is not None and findings:
            notes.append("not held against its source, since it is not as its receipt says")
        elif self._derived is not None:
            derivation, found = self._derived.compare(made.open, progress)
            findings += found
            notes += self._derived.notes
        if findings:  # what another conversion put there meanwhile is no damage
            made.require_its_receipt()
        return Verification(
            "verification.v1", made.label, not findings, len(checked), len(receipt["tensors"]),
            sum(row.nbytes for row in checked), tuple(findings), made.commit, tuple(checked),
            tuple(n for n in others if n not in loaded), derivation, tuple(notes),
        )  # fmt: skip


def finished(target: str | Path) -> Finished:
    """What `target` names, as `verify` takes it: here, or where nothing of that name is, published."""
    text = str(target)
    if not is_url(text):
        try:
            return Here(Path(target))
        except InputError:
            if not _may_be_a_repo(text):
                raise
    from ckpttool.publishing.remote_verify import Published

    return Published(text)


def _may_be_a_repo(text: str) -> bool:
    """As `places.place` takes it: a path was meant where something of it is here."""
    return bool(HUB_REPO.fullmatch(text)) and not any(os.path.lexists(p) for p in (text, text.partition("/")[0]))


class Here:
    """A finished conversion on this machine. InputError where there is none, or its receipt cannot be believed."""

    commit: str | None = None

    def __init__(self, target: Path) -> None:
        self._asked, path = found_receipt(target)
        self._path, self._folder = path, path.parent
        self.label = str(target)
        self.receipt: Mapping[str, Any] = read_receipt(path)
        self.receipt_name = path.name
        self.nbytes = sum(row["nbytes"] for row in self.receipt["files"])

    def names(self) -> list[str]:
        """The files in the receipt's folder, and in the one beneath that loaders read; nothing beside a GGUF."""
        if self.receipt_name != RECEIPT_NAME:
            return []
        found = [*self._folder.iterdir(), *self._folder.glob("additional_chat_templates/*")]
        return [p.relative_to(self._folder).as_posix() for p in found if not p.is_dir()]

    def unasked(self) -> Iterator[str]:
        """A finding where the receipt says nothing of the file `asked`: a split set may have a receipt of its name."""
        asked, names = self._asked, [row["name"] for row in self.receipt["files"]]
        if asked.name in (self.receipt_name, *names) or asked.is_dir():
            return
        is_set = not os.path.lexists(asked) and not SHARD.fullmatch(asked.name) and any(map(SHARD.fullmatch, names))
        if not is_set:
            yield f"{asked.name}: not among the files of {self.receipt_name}"

    def check(self, progress: Progress) -> Iterator[tuple[CheckedFile, Sequence[str]]]:
        """Read each file of the receipt, and say what is wrong with it."""
        tensors: dict[str, list[Mapping[str, Any]]] = {}
        for t in self.receipt["tensors"]:
            tensors.setdefault(t["file"], []).append(t)
        for row in self.receipt["files"]:
            yield self._check(row, tensors.get(row["name"], []), progress)

    def _check(
        self, row: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], progress: Progress
    ) -> tuple[CheckedFile, Sequence[str]]:
        name, nbytes = row["name"], row["nbytes"]
        if self.receipt_name == RECEIPT_NAME:  # a GGUF that is named may be a link to anywhere, as for convert
            try:
                LocalFolder(self._folder).file(name)
            except InputError as error:
                return CheckedFile(name, nbytes, None, False), [str(error)]
        if not (self._folder / name).is_file():
            return CheckedFile(name, nbytes, None, False), [f"{name}: missing"]
        with self.open(name) as f:
            if f.size != nbytes:
                text = f"{name}: {f.size} bytes, the receipt says {nbytes}"
                return CheckedFile(name, nbytes, None, False), [text]
            sha256, crc, crcs = _hashes(f, tensors, progress)
            f.require_unchanged()
        bad = [t["name"] for t, found in zip(tensors, crcs, strict=True) if t["crc32"] != f"{found:08x}"]
        findings = [f"{name}: {tensor}: its bytes have changed" for tensor in bad]
        by = "crc32" if row["sha256"] is None else "sha256"
        if by == "sha256" and row["sha256"] != sha256 and not bad:
            findings.append(f"{name}: sha256 differs, outside the tensors")
        elif by == "crc32" and row["crc32"] != f"{crc:08x}" and not bad:
            findings.append(f"{name}: CRC-32 differs, outside the tensors")
        return CheckedFile(name, nbytes, by, not findings), findings

    def faults(self) -> Iterator[str]:
        """What keeps the files from opening as the checkpoint that the receipt describes."""
        from ckpttool import opened

        return opened.faults(self._folder, self.receipt_name, self.receipt)

    def require_its_receipt(self) -> None:
        """InputError where another conversion has been put in place meanwhile."""
        if read_receipt(self._path) != self.receipt:
            raise InputError("has changed while it was read", file=self.label, hint="give the same command again")

    def open(self, name: str) -> LocalFile:
        """A file of the receipt."""
        return LocalFile(self._folder / name, name)


def _hashes(file: LocalFile, tensors: Sequence[Mapping[str, Any]], progress: Progress) -> tuple[str, int, list[int]]:
    """The file's sha256 and CRC-32, and the CRC-32 of each tensor, in one pass; no tensor overlaps another."""
    digest, whole = hashlib.sha256(), 0
    crcs = [0] * len(tensors)
    buffer = np.empty(CHUNK, np.uint8)
    ordered = sorted(range(len(tensors)), key=lambda i: tensors[i]["offset"])
    at = 0
    for i in [*ordered, None]:
        stop = file.size if i is None else tensors[i]["offset"] + tensors[i]["nbytes"]
        start = stop if i is None else tensors[i]["offset"]
        while at < stop:
            edge = start if at < start else stop
            view = buffer[: min(CHUNK, edge - at)].data
            file.readinto(at, view)
            digest.update(view)
            whole = crc32(view, whole)
            if i is not None and at >= start:
                crcs[i] = crc32(view, crcs[i])
            at += view.nbytes
            progress(view.nbytes)
    return digest.hexdigest(), whole, crcs
