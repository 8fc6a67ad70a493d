"""The files of one publication: large ones go up as they come, small ones wait for the commit that shows all of them.

Nothing is put that the Hub says it has, and nothing is seen before the commit. The commit names the branch's head that
was found at the start, so that of two that are posted only one can count.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from ckpttool.containers.remote import git_sha1 as git_sha1
from ckpttool.errors import InputError, LocalIOError, NetworkError, UsageError
from ckpttool.publishing import committing, hub_calls, modes
from ckpttool.publishing.access import Access, RemoteEntry
from ckpttool.publishing.refusals import redacted
from ckpttool.publishing.report import PublishedFile, State, Traffic
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

SMALL: Final = 10_000_000
"""Bytes of a regular file that are kept in memory for the commit; the Hub takes no larger ones."""


@dataclass(frozen=True)
class Meant:
    """A file as the branch shall hold it. `git_sha1` is git's hash of its content, where that is small."""

    nbytes: int
    sha256: str
    git_sha1: str | None

    def is_in(self, entry: RemoteEntry | None) -> bool:
        """Whether the remote file is this one."""
        if entry is None or entry.nbytes != self.nbytes:
            return False
        return entry.sha256 == self.sha256 if entry.sha256 else entry.git_sha1 == self.git_sha1


class _Gone:
    """What the branch shall hold no more."""

    def is_in(self, entry: RemoteEntry | None) -> bool:
        """Whether it is gone."""
        return entry is None


class Sending:
    """One publication's files on their way to `target`, whose repo and branch are made. Threads may share it.

    `progress` hears of bytes that are up, the Hub's own among them.
    """

    def __init__(
        self,
        target: RepoTarget,
        access: Access,
        *,
        progress: Callable[[int], None] = lambda _: None,
        calls: hub_calls.Calls | None = None,
    ) -> None:
        self.target = target
        self.access = access
        self._progress = progress
        self._calls = calls or hub_calls.Calls(target)
        self._lock = threading.Lock()
        self._contents: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._modes: dict[str, modes.Mode] = {}
        self._told: set[str] = set()
        self._files: dict[str, PublishedFile] = {}
        self._meant: dict[str, Meant] = {}
        self._additions: dict[str, CommitOperationAdd] = {}
        self._removed: dict[str, PublishedFile] = {}

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """What was put so far, by name."""
        with self._lock:
            return tuple(f for _, f in sorted((self._files | self._removed).items()))

    @property
    def traffic(self) -> Traffic:
        """What travelled so far."""
        return self._calls.traffic

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Ask how files of these names and bytes would be stored, in one request instead of one for each.

        Raises:
            UsageError: the repo's .gitattributes or .gitignore does not let one of them in.
        """
        found = modes.ask(self._calls, {n: (s, b"") for n, s in sizes.items()})
        for name in sizes:
            modes.refuse(found[name], name, self.target)
        with self._lock:
            self._modes |= found

    def has(self, sha256: str, nbytes: int) -> bool:
        """Whether the Hub has this content for the repo, from whatever commit or earlier run."""
        return self.access.exists and not self._instruction(sha256, nbytes)

    def put(self, name: str, content: Path | str | bytes, sha256: str, nbytes: int, *, by_lfs: bool = False) -> State:
        """Have a file in the commit to come; large content goes up now, unless the Hub has it.

        `content` is its path, or its bytes; nothing of it is needed once this returns. It goes by Xet where the library
        can, `by_lfs` by LFS whatever it can.

        Raises:
            InputError: a name that no repo can hold, or content that is not of `sha256`.
            UsageError: the repo would store weights as text.
            NetworkError, LocalIOError: it did not get there.
        """
        _checked_name(name)
        small = nbytes < SMALL
        data = (content if isinstance(content, bytes) else _read(content, name)) if small else None
        if data is not None and (len(data), hashlib.sha256(data).hexdigest()) != (nbytes, sha256):
            raise InputError("changed while it was published", file=name, hint="run the command again")
        meant = Meant(nbytes, sha256, None if data is None else git_sha1(data))
        if meant.is_in(self.access.files.get(name)):
            return self._keep(name, meant, State.unchanged, None)
        if self._mode(name, nbytes, data).large and nbytes:
            with self._lock:
                content_lock = self._contents[sha256]
            with content_lock:  # two names may have one content
                return self._put_large(name, content if data is None else data, meant, by_lfs=by_lfs)
        if data is None:
            what = f"the Hub would store its {nbytes:,} bytes as text"
            raise UsageError(what, file=name, hint=modes.tracking(name, self.target))
        state = self._keep(name, meant, State.uploaded, _addition(name, data, meant))
        self._progress(nbytes)
        return state

    def claim(self, name: str, sha256: str, nbytes: int) -> State:
        """Have a file in the commit to come whose large content the Hub has, as `has` says; nothing of it lies here."""
        _checked_name(name)
        meant = Meant(nbytes, sha256, None)
        if meant.is_in(self.access.files.get(name)):
            return self._keep(name, meant, State.unchanged, None)
        return self._keep(name, meant, State.present, _there(name, meant))

    def remove(self, name: str) -> None:
        """Have the commit to come take away a file of the branch."""
        entry = self.access.files[name]
        with self._lock:
            self._removed[name] = PublishedFile(name, entry.nbytes, entry.sha256, State.removed)

    def commit(self, title: str, description: str = "") -> tuple[str, str | None]:
        """Make everything visible at once; the commit, and the address of the pull request where one is opened.

        What the Hub then lists is compared with what was put.

        Raises:
            NetworkError: the branch has moved, the commit was refused, or holds something else; or nobody knows.
        """
        from huggingface_hub import CommitOperationDelete

        with self._lock:
            meant: dict[str, committing.Meant] = {**self._meant, **dict.fromkeys(self._removed, _Gone())}
            additions = [self._additions[n] for n in sorted(self._additions)]
            removals = [CommitOperationDelete(n) for n in sorted(self._removed)]
        return committing.commit(self._calls, self.access, meant, [*additions, *removals], title, description)

    def _mode(self, name: str, nbytes: int, data: bytes | None) -> modes.Mode:
        with self._lock:
            known = self._modes.get(name)
        if known is None:
            known = modes.ask(self._calls, {name: (nbytes, (data or b"")[:512])})[name]
            modes.refuse(known, name, self.target)
            with self._lock:
                self._modes[name] = known
        return known

    def _put_large(self, name: str, content: Path | str | bytes, meant: Meant, *, by_lfs: bool) -> State:
        """Content that git does not hold: asked for, sent where it is missing, and asked for again if that fails."""
        instruction = self._instruction(meant.sha256, meant.nbytes)
        if not instruction:
            return self._keep(name, meant, State.present, _there(name, meant))
        addition, reported = _addition(name, content, meant), 0
        progress = self._progress if meant.sha256 not in self._told else (lambda _: None)

        def sent(n: int) -> None:
            nonlocal reported
            step = min(n, meant.nbytes - reported)
            reported += step
            progress(step)

        in_parts = "chunk_size" in (instruction.get("upload", {}).get("header") or {})
        with hub_calls.quiet(), _stream(content) if by_lfs else contextlib.nullcontext() as stream:
            if stream is not None:
                addition.path_or_fileobj = stream  # which the library does not give to Xet
            self._calls.ask(
                lambda api: api.preupload_lfs_files(
                    self.target.id, [addition], revision=self.target.branch, create_pr=self.target.pr
                ),
                name, nbytes=meant.nbytes, in_parts=in_parts, sent=sent,
            )  # fmt: skip
        if not reported:  # it went by Xet, which does not tell how much it left out
            self._calls.count(up=meant.nbytes)
        progress(meant.nbytes - reported)
        self._told.add(meant.sha256)
        return self._keep(name, meant, State.uploaded, addition)

    def _instruction(self, sha256: str, nbytes: int) -> dict[str, Any]:
        """How the Hub would have this content put; {} where it has it."""
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

        info = UploadInfo(size=nbytes, sample=b"", sha256=bytes.fromhex(sha256))
        rows, errors, *_ = self._calls.ask(
            lambda api: post_lfs_batch_info(
                [info], token=None, repo_type="model", repo_id=self.target.id, endpoint=self.target.hub
            )
        )
        if errors:
            what = f"the Hub does not take the content: {redacted(str(errors[0]['error']['message']))}"
            raise NetworkError(what, file=str(self.target), hint="see its words; is there room in your storage?")
        if [r["oid"] for r in rows] != [sha256]:
            raise NetworkError("the Hub answers for other content", file=str(self.target), hint="is HF_ENDPOINT a Hub?")
        return dict(rows[0].get("actions") or {})

    def _keep(self, name: str, meant: Meant, state: State, addition: CommitOperationAdd | None) -> State:
        with self._lock:
            self._files[name] = PublishedFile(name, meant.nbytes, meant.sha256, state)
            self._meant[name] = meant
            self._additions.pop(name, None)
            if addition is not None:
                self._additions[name] = addition
        if state is not State.uploaded:
            self._progress(meant.nbytes)
        return state


def _addition(name: str, content: Path | str | bytes, meant: Meant) -> CommitOperationAdd:
    """The library's word for it, with the hash that is known."""
    from huggingface_hub import CommitOperationAdd

    try:
        addition = CommitOperationAdd(name, content)
    except ValueError as error:
        raise LocalIOError(redacted(str(error)), file=name, hint="was it moved meanwhile?") from error
    if addition.upload_info.size != meant.nbytes:
        what = f"has {addition.upload_info.size:,} bytes, not {meant.nbytes:,}"
        raise InputError(what, file=name, hint="it changed while it was published; run the command again")
    addition.upload_info.sha256 = bytes.fromhex(meant.sha256)
    return addition


def _there(name: str, meant: Meant) -> CommitOperationAdd:
    """The same for content that is up: the library asks once more whether it is there, and has nothing to send.

    An empty stream stands for it, and not an empty path or empty bytes, which the library would give to Xet unasked.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    addition = CommitOperationAdd(name, io.BytesIO())
    addition.upload_info = UploadInfo(sha256=bytes.fromhex(meant.sha256), size=meant.nbytes, sample=b"")
    return addition


def _stream(content: Path | str | bytes) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb")


def _read(path: Path | str, name: str) -> bytes:
    from ckpttool.errors import os_error

    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise os_error(error) from error


def _checked_name(name: str) -> None:
    """InputError for a name that leads out of the repo, or that git keeps for itself."""
    parts = name.split("/")
    bad = any(p in ("", ".", "..", ".git", ".cache") for p in parts) or "\\" in name
    if bad or not name.isprintable():
        raise InputError("is no name of a file in a repo", file=name, hint="was the receipt changed by hand?")
