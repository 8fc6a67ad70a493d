"""Damage that keeps a header from being believed, for --check: all of it, and as much of the checkpoint as can be seen.

The parsers refuse such a file at the first contradiction, and everything else goes by them. Here each row that is
sound by itself is taken, and where the rows lie is looked at as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.checkpoint import CONFIG, Checkpoint, SourceFile
from ckpttool.containers import gguf, safetensors
from ckpttool.containers.index import parse_index
from ckpttool.containers.source import LocalFile
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import CkptError, InputError, Problems
from ckpttool.inspection.findings import finding_of
from ckpttool.inspection.report import Finding, Severity
from ckpttool.locate import INDEX_SUFFIX, Located, companions, locate
from ckpttool.places import LocalFolder, place
from ckpttool.recognition import gguf_weights, recognise
from ckpttool.tensors import StoredTensor, Weight

DAMAGED = "the file is damaged, or was written by a faulty tool; fetch or make it again"
REFUSED = "llama.cpp refuses such a file; make it again"


@dataclass(frozen=True)
class Broken:
    """What can be seen of a checkpoint that cannot be opened, and what is wrong with it."""

    checkpoint: Checkpoint
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Lying:
    """A row as it lies: from `begin` to `end` of the data, `at` is the row's own byte in the file."""

    name: str
    begin: int
    end: int
    at: int


def broken(source: str | Path, error: InputError) -> Broken:
    """As much of the local checkpoint at `source` as its sound rows show; `error` is why it cannot be opened.

    Raises:
        InputError: `error` itself, where there is no checkpoint at all, or it is remote.
    """
    located = _located(source, error)
    files, stored, findings = [], list[StoredTensor](), list[Finding]()
    metadata: Mapping[str, Any] = {}
    for path in located.files:
        if not isinstance(path, Path):
            raise error
        file, tensors, values, found = _file(path, located.container)
        files.append(file)
        stored += tensors
        findings += found
        metadata = metadata or values
    config = _config(located)
    weights = _weights(stored, located.container, config)
    if not findings:  # the index, a link, a limit: whatever it was, it is one
        findings = [finding_of(e) for e in (error.problems if isinstance(error, Problems) else (error,))]
    assert isinstance(located.folder, LocalFolder)
    checkpoint = Checkpoint(
        Path(source), located.folder, located.container, tuple(files), weights, metadata, config,
        companions(located.folder.path), None, None, None, {}, {}, {},
    )  # fmt: skip
    return Broken(checkpoint, tuple(findings))


def _located(source: str | Path, error: InputError) -> Located:
    """The files; where the index names some that are missing, those that are there."""
    try:
        return locate(source, remote=False)
    except InputError:
        try:
            folder, name = place(source, remote=False)
        except InputError:
            raise error from None
        if not isinstance(folder, LocalFolder):
            raise error from None
        indexes = [name] if name else [n for n in folder.names() if n.endswith(INDEX_SUFFIX)]
        if len(indexes) != 1 or not indexes[0].endswith(INDEX_SUFFIX):
            raise error from None
        weight_map, total = parse_index(folder.side(indexes[0]), indexes[0])
        there = tuple(folder.file(n) for n in sorted(set(weight_map.values())) if folder.has(n))
        return Located("safetensors", folder, there, weight_map, total, indexes[0])


def _config(located: Located) -> Mapping[str, Any] | None:
    folder = located.folder
    if located.container == "gguf" or not folder.has(CONFIG):
        return None
    try:
        return read_object(folder.side(CONFIG), CONFIG)
    except CkptError:  # its own finding comes from whoever opens it
        return None


def _weights(stored: Sequence[StoredTensor], container: str, config: Mapping[str, Any] | None) -> tuple[Weight, ...]:
    if container == "gguf":
        return gguf_weights(stored)
    return recognise(sorted(stored, key=lambda t: t.name), config).weights


def _file(path: Path, container: str) -> tuple[SourceFile, Sequence[StoredTensor], Mapping[str, Any], list[Finding]]:
    """One file's sound rows, its key-values and what is wrong with it."""
    tensors: Sequence[StoredTensor] = ()
    values: Mapping[str, Any] = {}
    sha256, nbytes, findings = "", 0, list[Finding]()
    with LocalFile(path) as f:
        try:
            if container == "gguf":
                table = gguf.read_table(f, f.name)
                values, nbytes = table.metadata, table.nbytes
                rows = [Lying(i.name, i.offset, i.offset + i.nbytes, i.at) for i in table.infos]
                findings += _gguf_rows(rows, f, nbytes, table.alignment)
                tensors = [
                    StoredTensor(i.name, i.type.name, tuple(reversed(i.dims)), f.name, nbytes + i.offset, i.nbytes)
                    for i in table.infos
                ]
            else:
                head = safetensors.read_table(f, f.name)
                sha256, nbytes = head.sha256, head.nbytes
                rows = [Lying(e.name, e.begin, e.end, e.at) for e in head.entries]
                findings += _safetensors_rows(rows, f, nbytes)
                tensors = safetensors.stored(head.entries, f.name, nbytes)
        except CkptError as e:
            findings += [finding_of(e)]
        file = SourceFile(path.name, path, f.size, f.mtime_ns, f.identity, nbytes, sha256)
    return file, tensors, values, findings


def _error(check: str, row: Lying | None, file: str, at: int, message: str, hint: str) -> Finding:
    return Finding(Severity.error, check, row.name if row else None, f"{file} at byte {at}", message, hint)


def _between(rows: Sequence[Lying], file: str, alignment: int) -> Iterator[Finding]:
    """Holes and overlaps, in the order in which the rows lie; padding to the alignment is none."""
    reached, before = 0, "the header"
    for row in sorted(rows, key=lambda r: (r.begin, r.end)):
        expected = gguf.padded(reached, alignment)
        if row.begin > expected:
            what = f"leaves a hole of {row.begin - expected:,} bytes after {before}, which ends at byte {reached}"
            yield _error("hole", row, file, row.at, f"begins at byte {row.begin} of the data and {what}", DAMAGED)
        elif row.begin < reached and row.end > row.begin:
            what = f"begins at byte {row.begin} of the data and overlaps {before}, which ends at byte {reached}"
            yield _error("overlap", row, file, row.at, what, DAMAGED)
        if row.end >= reached:
            reached, before = row.end, row.name


def _end(rows: Sequence[Lying], f: LocalFile, start: int) -> Iterator[Finding]:
    """Tensors that end behind the file."""
    for row in rows:
        end = start + row.end
        if end > f.size:
            what = f"ends at byte {end:,}, the file at {f.size:,}: {end - f.size:,} bytes are missing"
            yield _error("truncated", row, f.name, row.at, what, "the file is cut short; fetch it again")


def _safetensors_rows(rows: Sequence[Lying], f: LocalFile, start: int) -> Iterator[Finding]:
    yield from _between(rows, f.name, 1)
    yield from _end(rows, f, start)
    last = start + max((r.end for r in rows), default=0)
    if last < f.size:
        what = f"{f.size - last:,} bytes after the last tensor belong to nothing"
        yield _error("hole", None, f.name, last, what, DAMAGED)


def _gguf_rows(rows: Sequence[Lying], f: LocalFile, start: int, alignment: int) -> Iterator[Finding]:
    """Rows in another order than their data lie, or off the alignment, are refused by llama.cpp, and so are holes."""
    before: Lying | None = None
    for row in rows:
        if row.begin % alignment:
            what = f"begins at byte {row.begin} of the data, no multiple of the alignment, {alignment}"
            yield _error("alignment", row, f.name, row.at, what, REFUSED)
        if before is not None and row.begin < before.begin:
            what = f"its data lie before those of {before.name}, which the table names first"
            yield _error("order", row, f.name, row.at, what, REFUSED)
        before = row
    yield from _between(rows, f.name, alignment)
    yield from _end(rows, f, start)
