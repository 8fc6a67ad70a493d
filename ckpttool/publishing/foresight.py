"""What an upload would send, found without sending anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ckpttool.publishing.access import Access
from ckpttool.publishing.held import WEIGHTS
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.report import PublishedFile, State, Traffic
from ckpttool.publishing.repos import RepoTarget
from ckpttool.publishing.sending import SMALL, Meant, Sending

MODES: Final = 256
"""Files that the Hub is asked about at once: how it would store them;"""
NONE: Final[Mapping[str, int]] = {}
LISTED: Final = 500
"""and what it holds of them."""


def foreseen(
    target: RepoTarget,
    access: Access,
    calls: Calls,
    meant: Mapping[str, Meant],
    unmade: Mapping[str, int] = NONE,
    outdated: Iterable[str] = (),
) -> tuple[tuple[PublishedFile, ...], Traffic]:
    """What would become of each file, and all of the traffic: what has travelled, and what would.

    `unmade` are names and bytes of files that are yet to be made; `outdated` ones are to go. Bytes are those of
    files; requests are exact but for content that goes up in parts.

    Raises:
        UsageError: the repo's .gitattributes or .gitignore does not let a file in.
        NetworkError: the Hub cannot be asked.
    """
    sending = Sending(target, access, calls=calls)
    there = access.head is not None
    if there:
        sending.expect({n: m.nbytes for n, m in meant.items()} | dict(unmade))
    known = [PublishedFile(n, m.nbytes, m.sha256, _state(sending, n, m)) for n, m in meant.items()]
    new = [PublishedFile(n, nbytes, None, State.uploaded) for n, nbytes in unmade.items()]
    files = tuple(sorted((*known, *new), key=lambda f: f.name))
    gone = [PublishedFile(n, access.files[n].nbytes, access.files[n].sha256, State.removed) for n in outdated]
    up = sum(f.nbytes for f in files if f.state is State.uploaded)
    done = calls.traffic
    unasked = len(new) if there else 0
    return tuple(sorted((*files, *gone), key=lambda f: f.name)), Traffic(
        done.down_nbytes, up, done.requests + unasked + _requests(files, there)
    )


def _state(sending: Sending, name: str, meant: Meant) -> State:
    if meant.is_in(sending.access.files.get(name)):
        return State.unchanged
    there = (
        _is_large(name, meant.nbytes) and sending.access.head is not None and sending.has(meant.sha256, meant.nbytes)
    )
    return State.present if there else State.uploaded


def _is_large(name: str, nbytes: int) -> bool:
    return nbytes >= SMALL or name.endswith(WEIGHTS)


def _requests(files: Sequence[PublishedFile], there: bool) -> int:
    """Those to come: `there` says that repo and branch are, and were asked."""
    moved = [f for f in files if f.state is not State.unchanged]
    large = [f for f in moved if _is_large(f.name, f.nbytes)]
    making = 0 if there else 2 + _batches(len(files), MODES) + len(large)
    sent = [f for f in large if f.state is State.uploaded]
    asking_and_putting = 4 * len(sent)
    held = len(large) - len(sent)
    committing = 2 + _batches(len(moved) - len(sent), MODES) + _batches(held, MODES) if moved else 0
    return making + asking_and_putting + committing + _batches(len(files), LISTED)


def _batches(n: int, most: int) -> int:
    return -(-n // most)
