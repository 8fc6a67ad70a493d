"""A conversion that goes to a repo of the Hub as it is made: each file once it is read back, all shown by one commit.

Nothing of it is visible before the commit. An interrupted run goes on from its journal, and without one from what the
Hub has: the same source and options give the same bytes, and content that is up is not put again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ckpttool import workplace
from ckpttool.checkpoint import open_checkpoint
from ckpttool.commit import exists_error, is_empty_folder
from ckpttool.errors import InputError, os_errors
from ckpttool.execute import execute
from ckpttool.journal import read_entries
from ckpttool.place import Place
from ckpttool.planner import Plan, make_plan
from ckpttool.preflight import disk_nbytes
from ckpttool.preview import preview
from ckpttool.publishing import card, current, describing, destination, secrets, upload
from ckpttool.publishing.access import check_access, made
from ckpttool.publishing.foresight import foreseen
from ckpttool.publishing.front_matter import parse
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.hub_delivery import HubDelivery
from ckpttool.publishing.manifest import CARD
from ckpttool.publishing.outdated import outdated
from ckpttool.publishing.report import Publication, Traffic
from ckpttool.publishing.repos import RepoTarget
from ckpttool.publishing.sending import Meant, Sending, git_sha1
from ckpttool.reports import Conversion, PlanReport, document, read_conversion
from ckpttool.resources import Limits
from ckpttool.settling import is_complete, is_left, settle
from ckpttool.target import Target

Progress = Callable[[int], None]

LEAKED: Final = "revoke it, and take it out of the source; nothing was converted or sent"
CARD_STAYS: Final = "the card stays as it is, without what was given for it; --force writes it anew"


@dataclass(frozen=True)
class Asked:
    """How it is published; None is "not given". `private` is of a repo that is made now.

    `frees`: files are deleted here once the Hub has them. `force`: though the repo is up to date. `overwrite`: replace
    what an earlier conversion has left here. `validation` is a file that `validate --json` wrote.
    """

    private: bool | None = None
    frees: bool = False
    force: bool = False
    overwrite: bool = False
    validation: str | Path | None = None
    quantized_by: str | None = None


class HubConversion:
    """One conversion to a repo. Made, it has looked at the repo and planned; no tensor is read yet, and nothing made.

    Raises:
        UsageError: options that contradict each other, the source or the repo.
        InputError: whatever the source's headers and side files show to be wrong; what looks like a secret in them.
        NetworkError: a remote end refuses: no access, no right to write.
    """

    def __init__(
        self,
        source: str | Path,
        where: RepoTarget,
        wanted: Target,
        limits: Limits,
        asked: Asked,
        reference: str | Path | None = None,
    ) -> None:
        self.where = where
        self._limits = limits
        self._asked = asked
        self._validation = None if asked.validation is None else card.read_report(asked.validation)
        self._calls = Calls(where)
        self._access = check_access(where, private=asked.private, calls=self._calls)
        found = open_checkpoint(source, reference=reference)
        destination.refuse_itself(found, where, wanted)
        self.plan = make_plan(found, wanted)
        self._own_card: str | None = None
        self._current = None if asked.force else current.up_to_date(self.plan, self._access, self._calls)
        self._outdated: tuple[str, ...] = ()
        if self._current is None:
            self._outdated = outdated(self._access, self._calls, self.plan.place.receipt_name, self._names)
            self._own_card = describing.branch_card(self._access, self._calls)
            parse(self._own_card or "")  # what cannot be read is better said now
            describing.refuse_large({f.name: f.size for f in self.plan.files})
            _refuse_secrets(self.plan)

    @property
    def _names(self) -> list[str]:
        """The files of the conversion, receipt included."""
        plan = self.plan
        return [*(f.name for f in plan.files), *(s.name for s in plan.sidecars), plan.place.receipt_name]

    @property
    def is_current(self) -> bool:
        """Whether the branch already holds what would be made."""
        return self._current is not None

    @os_errors()
    def run(self, progress: Progress = lambda n: None, sent: Progress = lambda n: None) -> Publication:
        """Convert and publish; `progress` hears of bytes written here, `sent` of those that the Hub has.

        Raises:
            InputError, LimitError: as `execute` raises them.
            LocalIOError: as `execute` does; what an earlier conversion has left here is in the way.
            NetworkError: a remote end refuses or breaks off. Nothing is visible then, unless it says so.
        """
        if self._current is not None and not self._is_to_be_put_in_place():
            return self._found_current()
        if not self._asked.force:
            settle(self.plan, verify=True)
        if self._is_made():
            return self._uploaded(progress, sent)
        self._require_vacant()
        delivery = HubDelivery(self, sent)
        conversion = execute(
            self.plan, self._limits, overwrite=self._asked.overwrite, progress=progress, delivery=delivery
        )
        sending = delivery.sending
        down, requests = _read_of_source(self.plan, delivery.worked)
        t = sending.traffic
        return describing.publication(
            self.where,
            sending.access,
            sending.files,
            Traffic(t.down_nbytes + down, t.up_nbytes, t.requests + requests),
            commit=delivery.commit,
            request=delivery.request,
            created=not self._access.exists,
            peak_disk=self._peak_disk(),
            notes=[*self._notes(), *delivery.notes],
            conversion=conversion,
        )

    @os_errors()
    def preview(self) -> tuple[PlanReport | None, Publication]:
        """The plan, unless there is nothing to convert, and what would be sent. Raises what would stop it."""
        if self._current is not None:
            return None, self._found_current(dry_run=True)
        if self._is_made():
            return None, self._uploaded(dry_run=True)
        if not is_left(self.plan):
            self._require_vacant()
        plan = preview(self.plan, self._limits, overwrite=self._asked.overwrite, frees=self._asked.frees)
        sides = {s.name: b"".join(s.chunks()) for s in self.plan.sidecars}
        meant = {n: Meant(len(d), sha256(d).hexdigest(), git_sha1(d)) for n, d in sides.items()}
        unmade = {f.name: f.size for f in self.plan.files}
        files, traffic = foreseen(self.where, self._access, self._calls, meant, unmade, self._outdated)
        down, requests = _read_of_source(self.plan, range(len(self.plan.slabs)))
        requests += 2 + self.frees * len(unmade)  # for card and receipt, and whether what is freed has come
        traffic = Traffic(traffic.down_nbytes + down, traffic.up_nbytes, traffic.requests + requests)
        return plan, describing.publication(
            self.where, self._access, files, traffic, created=not self._access.exists, dry_run=True, up_to_date=False,
            peak_disk=self._peak_disk(), notes=self._notes(),
        )  # fmt: skip

    def _peak_disk(self) -> int:
        return disk_nbytes(self.plan, frees=self._asked.frees)

    def _notes(self) -> list[str]:
        notes = list(describing.others(self._access, [*self._names, *self._outdated]))
        path = str(self.plan.source.path)
        if "://" not in path and Path(path).is_absolute():
            notes.append(f"the receipt, which is published, says where the source lay on your disk: {path}")
        return notes

    def _found_current(self, *, dry_run: bool = False) -> Publication:
        assert self._current is not None
        return describing.publication(
            self.where, self._access, self._current, self._calls.traffic, commit=self._access.head, dry_run=dry_run,
            up_to_date=True, peak_disk=0, notes=[CARD_STAYS] if self._asks_of_card() else [],
        )  # fmt: skip

    def _asks_of_card(self) -> bool:
        return self._asked.validation is not None or self._asked.quantized_by is not None

    # What an earlier run has left here

    def _is_to_be_put_in_place(self) -> bool:
        """Whether a run that was killed after its commit has left all of it under another name. What it was to delete
        is deleted."""
        place = self.plan.place
        if not self.frees:
            return is_complete(self.plan)
        if read_entries(place.partial / "journal", self.plan.digest) is not None:
            with workplace.locked(place):
                workplace.discard(place)
        return False

    def _is_made(self) -> bool:
        """Whether this very conversion is complete here already."""
        place = self.plan.place
        if self._asked.force or not _all_there(place):
            return False
        try:
            found = read_conversion(place.receipt)
        except InputError:
            return False
        return found.plan == self.plan.digest and found.verified

    def _uploaded(
        self, progress: Progress = lambda n: None, sent: Progress = lambda n: None, *, dry_run: bool = False
    ) -> Publication:
        """What is made already, published as `upload` does."""
        asked, place = self._asked, self.plan.place
        options = upload.Asked(
            private=asked.private, revision=self.where.branch, pr=self.where.pr, dry_run=dry_run,
            validation=asked.validation, quantized_by=asked.quantized_by, allow_endpoint=True,
        )  # fmt: skip
        repo = f"{self.where.endpoint}/{self.where.id}" if self.where.endpoint else self.where.id
        uploader = upload.Uploader(place.path if place.is_folder else place.receipt, repo, options)
        uploader.check(progress)
        done = uploader.run(sent)
        note = f"{place.path} is this conversion, made by an earlier run; it is published as it is"
        return replace(done, notes=(note, *done.notes))

    def _require_vacant(self) -> None:
        """LocalIOError where something lies in the way of what is to stay here."""
        place = self.plan.place
        if self._asked.frees or self._asked.overwrite:
            return
        found = next((p for p in (*place.finals, place.path) if os.path.lexists(p) and not is_empty_folder(p)), None)
        if found is not None:
            error = exists_error(found)
            error.hint = "give --workdir, or --free-disk to keep nothing here, or --overwrite to replace it"
            raise error

    # What the delivery needs

    def sending(self, sent: Progress) -> Sending:
        """The repo and branch made, where they are missing, and asked how they would store the files."""
        access = made(self.where, self._access, self._asked.private, self._calls)
        sending = Sending(self.where, access, progress=sent, calls=self._calls)
        sending.expect({f.name: f.size for f in self.plan.files} | {s.name: s.nbytes for s in self.plan.sidecars})
        for name in self._outdated:
            sending.remove(name)
        return sending

    def card(self, receipt: dict[str, Any], notes: list[str]) -> bytes:
        """The model card; what it lacks goes to `notes`."""
        source = describing.source_card(str(self.plan.source.path), notes)
        text = card.card(
            receipt, repo=self.where.id, source_card=source, own=self._own_card,
            quantized_by=self._asked.quantized_by, validation=self._validation,
        )  # fmt: skip
        notes += card.remarks(receipt, source_card=source, own=self._own_card)
        secrets.refuse(CARD, text.encode(), "take it out, and revoke it; nothing is visible yet")
        return text.encode()

    def receipt(self, conversion: Conversion, made: bytes) -> bytes:
        """The receipt to publish: the one that the branch has, where ours says nothing else but of its run."""
        found = current.receipt_of(self._access, self._calls, self.plan.place.receipt_name)
        return found[0] if found and _but_run(found[1]) == _but_run(document(conversion)) else made

    @property
    def frees(self) -> bool:
        """Whether files are deleted here once the Hub has them."""
        return self._asked.frees


def _but_run(receipt: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in receipt.items() if k != "run"}


def _all_there(place: Place) -> bool:
    return all(os.path.lexists(p) for p in (*place.finals, place.receipt))


def _refuse_secrets(plan: Plan) -> None:
    """InputError for what looks like a secret in whatever of the files is text."""
    for s in plan.sidecars:
        secrets.refuse(s.name, b"".join(s.chunks()), LEAKED)
    for f in plan.files:
        secrets.refuse(f.name, f.header, LEAKED, is_text=False)


def _read_of_source(plan: Plan, slabs: Sequence[int]) -> tuple[int, int]:
    """Bytes and requests that working these slabs takes of a remote source."""
    remote = {f.name for f in plan.source.files if not isinstance(f.place, Path)}
    ranges = [at.nbytes for i in slabs for at in _source_ranges(plan, i) if at.file in remote]
    return sum(ranges), len(ranges)


def _source_ranges(plan: Plan, index: int) -> Iterator[Any]:
    slab = plan.slabs[index]
    step = plan.steps[slab.step]
    for found in step.source.ranges(slab.start, slab.stop, step.row_length):
        yield from found
