"""What the branch holds of an earlier conversion and this one does not have: other shards, another index.

A loader may take them for this conversion's, so the commit that shows the new files takes them away. They are known by
the receipt that made them; what somebody has put in their place since, and whatever else the branch holds, stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ckpttool.publishing.access import Access
from ckpttool.publishing.branch_files import content
from ckpttool.publishing.current import receipt_of
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.manifest import CARD
from ckpttool.publishing.sending import SMALL, Meant, git_sha1


def outdated(access: Access, calls: Calls, receipt_name: str, names: Collection[str]) -> tuple[str, ...]:
    """Files that the branch's receipt names, that are as it says, and are none of `names`, the new conversion's.

    Raises:
        NetworkError: the receipt, or a small file, cannot be read.
    """
    found = receipt_of(access, calls, receipt_name)
    return () if found is None else tuple(_of(found[1], access, calls, {*names, CARD, receipt_name}))


def _of(receipt: Mapping[str, Any], access: Access, calls: Calls, kept: Collection[str]) -> Iterator[str]:
    for row in receipt["files"]:
        name, entry = row["name"], access.files.get(row["name"])
        if name in kept or entry is None or row["sha256"] is None or entry.nbytes != row["nbytes"]:
            continue
        git = None
        if entry.sha256 is None and entry.nbytes < SMALL:
            data = content(access, calls, name)
            git = git_sha1(data) if hashlib.sha256(data).hexdigest() == row["sha256"] else None
        if Meant(row["nbytes"], row["sha256"], git).is_in(entry):
            yield name
