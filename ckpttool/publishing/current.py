"""Whether a repo's branch already holds what a conversion would make of its source: by receipt and listing alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from ckpttool.containers.remote import RemoteFolder
from ckpttool.errors import InputError
from ckpttool.planner import Plan
from ckpttool.publishing.access import Access
from ckpttool.publishing.branch_files import content
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.report import PublishedFile, State
from ckpttool.publishing.sending import Meant, git_sha1
from ckpttool.receipt_file import read_receipt
from ckpttool.sidecars import Sidecar

LARGEST: Final = 64 << 20
"""Bytes of a receipt that are read."""


def up_to_date(plan: Plan, access: Access, calls: Calls) -> tuple[PublishedFile, ...] | None:
    """The files of the branch where they are those that `plan` would make, None where they are not.

    A plan's digest stands for version, source, layout, side files and recipe. What lies on this machine is pinned by
    nothing that would be the same elsewhere, and is never up to date.

    Raises:
        NetworkError: the receipt is there and cannot be read.
    """
    name = plan.place.receipt_name
    found = receipt_of(access, calls, name) if _is_pinned(plan) else None
    if found is None or not _is_of(found[1], plan) or not _holds(access, found[1], plan):
        return None
    data, receipt = found
    files = [PublishedFile(row["name"], row["nbytes"], row["sha256"], State.unchanged) for row in receipt["files"]]
    return (*files, PublishedFile(name, len(data), hashlib.sha256(data).hexdigest(), State.unchanged))


def receipt_of(access: Access, calls: Calls, name: str) -> tuple[bytes, dict[str, Any]] | None:
    """The branch's receipt, as it lies there and as a document; None where there is none that is of use.

    Raises:
        NetworkError: it is there and cannot be read.
    """
    entry = access.files.get(name)
    if entry is None or entry.nbytes > LARGEST:
        return None
    data = content(access, calls, name)
    receipt = _receipt(data, name)
    return None if receipt is None else (data, receipt)


def _is_pinned(plan: Plan) -> bool:
    remote = isinstance(plan.source.folder, RemoteFolder)
    return remote and all(f.version is not None for f in plan.source.files)


def _receipt(data: bytes, name: str) -> dict[str, Any] | None:
    """The receipt; None for one of another version, or that somebody has edited: it is made anew."""
    try:
        return read_receipt(data, name)
    except InputError:
        return None


def _is_of(receipt: Mapping[str, Any], plan: Plan) -> bool:
    source = receipt.get("source")
    if not isinstance(source, dict):
        return False
    commit = plan.source.folder.commit if isinstance(plan.source.folder, RemoteFolder) else None
    found = (receipt.get("plan"), receipt.get("verified"), source.get("path"), source.get("commit"))
    return found == (plan.digest, True, str(plan.source.path), commit)


def _holds(access: Access, receipt: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the branch has the plan's files, each as the receipt says."""
    sidecars = {s.name: s for s in plan.sidecars}
    rows = {row["name"]: row for row in receipt["files"]}
    if set(rows) != {f.name for f in plan.files} | set(sidecars):
        return False
    for name, row in rows.items():
        entry = access.files.get(name)
        if entry is None or row["sha256"] is None:
            return False
        in_git = entry.sha256 is None
        git = _git_sha1(sidecars[name], row["sha256"]) if in_git and name in sidecars else None
        if not Meant(row["nbytes"], row["sha256"], git).is_in(entry):
            return False
    return True


def _git_sha1(sidecar: Sidecar, sha256: str) -> str | None:
    """What git calls the side file that would be made; None where that is not the one of the receipt."""
    data = b"".join(sidecar.chunks())
    return git_sha1(data) if hashlib.sha256(data).hexdigest() == sha256 else None
