"""What an upload would send, found without sending anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ckpttool.publishing import modes
from ckpttool.publishing.access import Access
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.report import PublishedFile, State, Traffic
from ckpttool.publishing.repos import RepoTarget
from ckpttool.publishing.sending import SMALL, Meant, Sending

MAKING: Final = 2
"""Requests that make a repo and look at it."""
PER_CONTENT: Final = 3
"""Requests that ask for one content: whether it is there, how it is stored, where it goes;"""
PER_PUT: Final = 2
"""and with its bytes and the question whether they have come."""
COMMITTING: Final = 3
"""Requests of a commit: the card is looked at, the commit posted, its files listed."""


def foreseen(
    target: RepoTarget, access: Access, calls: Calls, meant: Mapping[str, Meant]
) -> tuple[tuple[PublishedFile, ...], Traffic]:
    """What would become of each file, and the traffic of all of it: what has travelled, and about what would.

    Raises:
        UsageError: the repo's .gitattributes or .gitignore does not let a file in.
        NetworkError: the Hub cannot be asked.
    """
    sending = Sending(target, access, calls=calls)
    there = access.exists and access.head is not None
    if there:
        sending.expect({n: m.nbytes for n, m in meant.items()})
    files = tuple(PublishedFile(n, m.nbytes, m.sha256, _state(sending, n, m)) for n, m in sorted(meant.items()))
    up = sum(f.nbytes for f in files if f.state is State.uploaded)
    done = calls.traffic
    requests = 0 if there else MAKING + -(-len(files) // modes._BATCH)
    for f in files:
        large = f.nbytes >= SMALL or f.name.endswith(modes.WEIGHTS)
        requests += large * PER_CONTENT * (f.state is not State.unchanged) + large * PER_PUT * (
            f.state is State.uploaded
        )
    requests += COMMITTING
    return files, Traffic(done.down_nbytes, up, done.requests + requests)


def _state(sending: Sending, name: str, meant: Meant) -> State:
    if meant.is_in(sending.access.files.get(name)):
        return State.unchanged
    large = meant.nbytes >= SMALL or name.endswith(modes.WEIGHTS)
    return State.present if large and sending.has(meant.sha256, meant.nbytes) else State.uploaded
