"""What an interrupted commit has left: finished, or taken back and made again.

No target is taken for finished without its receipt, and nothing is touched that another run works on.
"""

from __future__ import annotations

import os
from pathlib import Path

from ckpttool import workplace
from ckpttool.commit import sync_folder
from ckpttool.errors import InputError
from ckpttool.journal import read_entries
from ckpttool.place import Place
from ckpttool.planner import Plan
from ckpttool.reports import Conversion, read_conversion


def settle(plan: Plan, *, verify: bool, overwrite: bool = False) -> Conversion | None:
    """What an interrupted commit of this very plan has left: finished, or taken back to be made again.

    Only where the journal is complete: before that, a target of the same plan is an older one that is being replaced.
    Where nothing but traces is left, with no journal that tells of what, they are cleared away; a target that is whole
    is what was made, unless it shall be overwritten: then it may be an older one.
    Returns the receipt where nothing but the traces was left to clear away, None where there is work to do.
    """
    place = plan.place
    _put_back(place)
    complete = is_complete(plan)
    if not complete and not _is_cleared(place):
        return None
    receipt = _receipt_of(place.receipt, plan.digest)
    if not complete:
        done = not overwrite and receipt is not None and (receipt.verified or not verify) and _is_whole(place)
        with workplace.locked(place):
            workplace.discard(place)
        return receipt if done else None
    if receipt is None:
        return None
    with workplace.locked(place):
        staged = [workplace.counterpart(place, path) for path in place.finals]
        made = [os.path.lexists(path) for path in staged]
        there = [os.path.lexists(path) for path in place.finals]
        if all(there) and not any(made) and (receipt.verified or not verify):
            sync_folder(place.path.parent)
            workplace.clear(place)
            return receipt
        if not place.is_folder:
            place.staged.mkdir(exist_ok=True)
            for final, path, is_there, is_made in zip(place.finals, staged, there, made, strict=True):
                if is_there and not is_made:
                    final.replace(path)
    return None


def is_left(plan: Plan) -> bool:
    """Whether what lies at the target is what an interrupted run of this very plan has left, which `settle` sees to.

    Nothing is touched.
    """
    of_this_plan = _receipt_of(plan.place.receipt, plan.digest) is not None
    return of_this_plan and (is_complete(plan) or _is_cleared(plan.place))


def is_complete(plan: Plan) -> bool:
    """Whether the journal has every slab."""
    entries = read_entries(plan.place.partial / "journal", plan.digest)
    return entries is not None and len({e.slab for e in entries}) == len(plan.slabs)


def _put_back(place: Place) -> None:
    """Give the old target its place again where a run that could not exchange two folders at once was stopped between
    their renames."""
    aside = place.partial / "files.old"
    if place.is_folder and aside.is_dir() and not os.path.lexists(place.path):
        with workplace.locked(place):
            aside.rename(place.path)


def _is_cleared(place: Place) -> bool:
    """Whether a run has put its target in place, and its folder holds no file any more that it has made. Its journal
    may be gone, or never have got to a disk that lost its power."""
    there = all(os.path.lexists(path) for path in place.finals)
    held = workplace.names(place.partial)
    ours = place.partial.is_dir() and held <= workplace.OURS and ("lock" in held or not held)
    return there and ours and not workplace.names(place.staged)


def _is_whole(place: Place) -> bool:
    """Whether the target is as its receipt says. What the system refuses is raised: then nobody knows."""
    from ckpttool.verifier import verify  # it opens checkpoints; only what was interrupted needs it here

    try:
        return verify(place.path).ok
    except InputError:
        return False


def _receipt_of(path: Path, digest: str) -> Conversion | None:
    """The receipt at `path` if it is of this plan."""
    try:
        receipt = read_conversion(path)
    except InputError:
        return None
    return receipt if receipt.plan == digest else None
