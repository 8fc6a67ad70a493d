"""What publishing gives: every file with its hash, what travelled, and the commit that made it visible."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ckpttool.reports import Conversion


class State(StrEnum):
    """What became of a file, or in a dry run what would."""

    uploaded = "uploaded"
    """Its content went up."""
    present = "present"
    """The Hub had its content, from an earlier run or another commit."""
    unchanged = "unchanged"
    """The branch has this very file."""
    removed = "removed"
    """It is of the conversion that the branch held before, and of this one no more."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of the commit; `sha256` is None in a dry run of what is yet to be made."""

    name: str
    nbytes: int
    sha256: str | None
    state: State


@dataclass(frozen=True)
class Traffic:
    """What weights read from the Hub and publishing take: bytes of bodies, and requests; in a dry run those that are
    foreseen. To open a source (its list, headers and side files) comes beside, as `inspect` does it."""

    down_nbytes: int = 0
    up_nbytes: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Publication:
    """What was published, or what would be.

    `commit` is None in a dry run; `commit` and `revision` are those of the pull request where there is one.
    `private` is the repo's visibility, None where it is left to the account's default and nothing is made yet.
    `left_out` are files of the folder that are not uploaded, since the receipt does not name them. `peak_disk` is in
    bytes, beside the source.
    """

    schema: str
    repo: str
    revision: str
    url: str
    commit: str | None
    pull_request: str | None
    created: bool
    private: bool | None
    up_to_date: bool
    dry_run: bool
    files: tuple[PublishedFile, ...]
    left_out: tuple[str, ...]
    traffic: Traffic
    peak_disk: int
    notes: tuple[str, ...] = ()
    conversion: Conversion | None = field(default=None, repr=False)
