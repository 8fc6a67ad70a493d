"""A finished conversion to the Hub: looked at and held against its receipt first, then sent, then shown by one commit.

Where anything is wrong nothing is sent: the options, the receipt, who may write, every file, the card, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ckpttool import __version__, threads
from ckpttool.containers.strict_json import read_text
from ckpttool.errors import CkptError, InputError, Problems, UsageError, os_errors, raise_all
from ckpttool.place import RECEIPT_NAME
from ckpttool.publishing import card, describing, manifest, secrets
from ckpttool.publishing.access import Access, check_access, made
from ckpttool.publishing.foresight import foreseen
from ckpttool.publishing.held import WEIGHTS
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.manifest import CARD, Item
from ckpttool.publishing.outdated import outdated
from ckpttool.publishing.report import Publication
from ckpttool.publishing.repos import repo_target
from ckpttool.publishing.sending import SMALL, Meant, Sending, git_sha1

Progress = Callable[[int], None]

PARALLEL: Final = 4
"""Files that are hashed, or sent, at once."""


@dataclass(frozen=True)
class Asked:
    """What is wanted; None is "not given". `private` is of a repo that is made now.

    `validation` is a file that `validate --json` wrote.
    """

    private: bool | None = None
    revision: str | None = None
    pr: bool = False
    dry_run: bool = False
    card_only: bool = False
    validation: str | Path | None = None
    quantized_by: str | None = None
    message: str | None = None
    allow_endpoint: bool = False


@os_errors()
def upload(folder: str | Path, repo: str, *, progress: Progress = lambda nbytes: None, **options: Any) -> Publication:
    """Publish the finished conversion `folder`, a folder or a GGUF, in the repo `repo` of the Hugging Face Hub.

    `options` are those of `Asked`. `progress` is called with bytes that were held against the receipt, and again with
    those that are up, from any thread.

    Raises:
        UsageError: options that contradict each other or the repo.
        InputError: no receipt, files that are not what it says, what looks like a secret.
        NetworkError: the Hub refuses, breaks off, or the branch has moved. Nothing is visible then, unless it says so.
        LocalIOError, LimitError: a file cannot be read, or is too large for the Hub.
    """
    uploader = Uploader(folder, repo, Asked(**options))
    uploader.check(progress)
    return uploader.run(progress)


class Uploader:
    """One upload. Made, it has looked at the receipt and at the repo."""

    def __init__(self, folder: str | Path, repo: str, asked: Asked) -> None:
        self._asked = asked
        self._target = repo_target(repo, revision=asked.revision, pr=asked.pr, allow_endpoint=asked.allow_endpoint)
        if self._target.path:
            raise UsageError("names a file in the repo", file=repo, hint=f"give {self._target.id}")
        if asked.message is not None and not asked.message.strip():
            raise UsageError("--message is empty", hint="leave it out for a title that says what was converted")
        self._manifest = manifest.read(folder)
        self._validation = None if asked.validation is None else card.read_report(asked.validation)
        self._items: tuple[Item, ...] = () if asked.card_only else self._manifest.items
        describing.refuse_large({str(i.path): i.nbytes for i in self._items})
        self._calls = Calls(self._target)
        self._access = check_access(self._target, private=asked.private, calls=self._calls)
        receipt_name = self._manifest.receipt_path.name
        names = [*(i.name for i in self._manifest.items), receipt_name]
        self._outdated = () if asked.card_only else outdated(self._access, self._calls, receipt_name, names)
        self._notes: list[str] = list(_notes(self._manifest, self._access, asked, self._outdated))
        self.card = ""

    @property
    def nbytes(self) -> int:
        """Bytes to check; once that is done, to have on the Hub."""
        return sum(i.nbytes for i in self._items) + len(self.card.encode())

    def check(self, progress: Progress = lambda nbytes: None) -> None:
        """Hold every file against the receipt, look for secrets, and write the card. Raises as `upload` does."""
        self._items = _all_checked(self._items, progress)
        if self._asked.card_only:
            self._require_files()
        self.card = self._written_card()

    def run(self, progress: Progress = lambda nbytes: None) -> Publication:
        """Send what is missing and commit; in a dry run say what would be. Raises as `upload` does."""
        card, left_out = self.card.encode(), self._manifest.left_out
        if self._asked.dry_run:
            meant = {i.name: _meant(i) for i in self._items} | {CARD: _meant_bytes(card)}
            files, traffic = foreseen(self._target, self._access, self._calls, meant, outdated=self._outdated)
            return describing.publication(
                self._target, self._access, files, traffic, created=not self._access.exists, dry_run=True,
                left_out=left_out, notes=self._notes,
            )  # fmt: skip
        access = made(self._target, self._access, self._asked.private, self._calls)
        sending = Sending(self._target, access, progress=progress, calls=self._calls)
        sending.expect({i.name: i.nbytes for i in self._items} | {CARD: len(card)})
        threads.share(self._items, [lambda item: _put(sending, item)] * PARALLEL)
        sending.put(CARD, card, sha256(card).hexdigest(), len(card))
        for name in self._outdated:
            sending.remove(name)
        commit, request = sending.commit(*self._message())
        return describing.publication(
            self._target, access, sending.files, sending.traffic, commit=commit, request=request,
            created=not self._access.exists, left_out=left_out, notes=self._notes,
        )  # fmt: skip

    def _message(self) -> tuple[str, str]:
        """The commit's title and what is below it."""
        if self._asked.message is not None:
            title, _, rest = self._asked.message.strip().partition("\n")
            return title, rest.strip()
        if self._asked.card_only:
            return "Model card", f"Written by ckpttool {__version__}."
        return describing.message(self._manifest.receipt, self._manifest.receipt_path.name)

    def _written_card(self) -> str:
        receipt, own, source = self._manifest.receipt, self._own_card(), self._source_card()
        text = card.card(
            receipt, repo=self._target.id, source_card=source, own=own, quantized_by=self._asked.quantized_by,
            validation=self._validation,
        )  # fmt: skip
        self._notes += card.remarks(receipt, source_card=source, own=own)
        secrets.refuse(CARD, text.encode(), "revoke it, and take it out; nothing was uploaded")
        return text

    def _own_card(self) -> str | None:
        """The card that is there: the user's own in the folder, else the one that the branch has."""
        path = self._manifest.own_card
        if path is not None:
            text = read_text(path, CARD)
            secrets.refuse(str(path), text.encode(), "revoke it, and take it out; nothing was uploaded")
            return text
        return describing.branch_card(self._access, self._calls)

    def _source_card(self) -> str | None:
        """The card of what was converted. A path that is gone is not looked for as a repo, which would be another's."""
        source = self._manifest.receipt["source"]
        path = str(source["path"])
        if "://" not in path and "commit" not in source and not Path(path).exists():
            self._notes.append("the source is not here any more, so licence and language are not copied from its card")
            return None
        return describing.source_card(path, self._notes)

    def _require_files(self) -> None:
        """The card speaks of files that must be there. InputError where they are not; in a dry run a note."""
        missing = [i.name for i in self._manifest.items if i.name.endswith(WEIGHTS) and not _is_there(i, self._access)]
        if not missing:
            return
        what = f"{self._target} does not hold the weights that the receipt names, such as {missing[0]}"
        if not self._asked.dry_run:
            raise InputError(what, file=str(self._manifest.receipt_path), hint="upload all of it: without --card-only")
        self._notes.append(what)


def _notes(found: manifest.Manifest, access: Access, asked: Asked, outdated: Sequence[str]) -> Iterator[str]:
    path = str(found.receipt["source"]["path"])
    if "://" not in path and Path(path).is_absolute() and not asked.card_only:
        yield f"the receipt, which is published, says where the source lay on your disk: {path}"
    if found.own_card is not None:
        yield f"{CARD}: your own text is kept"
    if found.receipt_path.name == RECEIPT_NAME and not asked.card_only:
        yield from describing.others(access, [*(i.name for i in found.items), *outdated])
    if asked.dry_run and asked.pr:
        yield "a pull request would be opened; the branch stays as it is"


def _all_checked(items: tuple[Item, ...], progress: Progress) -> tuple[Item, ...]:
    """All of them checked; what is wrong with any of them is raised together, a failure of the system at once."""
    found: dict[str, Item] = {}
    problems: dict[str, Sequence[CkptError]] = {}

    def check(item: Item) -> None:
        try:
            found[item.name] = manifest.checked(item, progress)
        except Problems as error:
            problems[item.name] = error.problems
        except InputError as error:
            problems[item.name] = [error]

    threads.share(items, [check] * PARALLEL)
    raise_all([p for i in items for p in problems.get(i.name, ())])
    return tuple(found[i.name] for i in items)


def _put(sending: Sending, item: Item) -> None:
    """A small file by its bytes, which the commit holds; a large one by its open descriptor."""
    if item.nbytes < SMALL:
        sending.put(item.name, manifest.content(item), item.sha256, item.nbytes)
        return
    with manifest.opened(item) as path:
        sending.put(item.name, path, item.sha256, item.nbytes)


def _meant(item: Item) -> Meant:
    small = item.nbytes < SMALL
    return Meant(item.nbytes, item.sha256, git_sha1(manifest.content(item)) if small else None)


def _meant_bytes(data: bytes) -> Meant:
    return Meant(len(data), sha256(data).hexdigest(), git_sha1(data))


def _is_there(item: Item, access: Access) -> bool:
    return Meant(item.nbytes, item.sha256, None).is_in(access.files.get(item.name))
