"""What is said of a publication: its cards, the commit's title, notes, and the report at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ckpttool.containers import limits
from ckpttool.containers.strict_json import read_text
from ckpttool.errors import CkptError, LimitError
from ckpttool.publishing import card
from ckpttool.publishing.access import Access
from ckpttool.publishing.branch_files import content
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.manifest import CARD
from ckpttool.publishing.report import Publication, PublishedFile, State, Traffic
from ckpttool.publishing.repos import RepoTarget
from ckpttool.reports import Conversion
from ckpttool.strangers import is_loaded, strangers

LARGEST: Final = 50_000_000_000
"""Bytes of a file that the Hub takes without hf_xet."""


def publication(
    target: RepoTarget,
    access: Access,
    files: Iterable[PublishedFile],
    traffic: Traffic,
    *,
    commit: str | None = None,
    request: str | None = None,
    created: bool = False,
    dry_run: bool = False,
    up_to_date: bool | None = None,
    left_out: Sequence[str] = (),
    peak_disk: int = 0,
    notes: Sequence[str] = (),
    conversion: Conversion | None = None,
) -> Publication:
    """The report; it is up to date where every file was on the branch, unless that is known otherwise."""
    files = tuple(files)
    revision = target.branch if request is None else f"refs/pr/{request.rpartition('/')[2]}"
    same = all(f.state is State.unchanged for f in files)
    return Publication(
        schema="publication.v1",
        repo=target.id,
        revision=revision,
        url=target.url + (f"/tree/{commit}" if commit else ""),
        commit=commit,
        pull_request=request,
        created=created,
        private=access.private,
        up_to_date=same if up_to_date is None else up_to_date,
        dry_run=dry_run,
        files=files,
        left_out=tuple(left_out),
        traffic=traffic,
        peak_disk=peak_disk,
        notes=tuple(notes),
        conversion=conversion,
    )


def message(receipt: Mapping[str, Any], receipt_name: str) -> tuple[str, str]:
    """The commit's title and what is below it."""
    name = str(receipt["source"]["path"]).rstrip("/").rpartition("/")[2] or "a checkpoint"
    what = f"{name} converted to {receipt['options']['to']} by ckpttool {receipt['tool']['version']}"
    return what, f"The receipt is {receipt_name}; plan {receipt['plan']}."


def branch_card(access: Access, calls: Calls) -> str | None:
    """The card that the branch has.

    Raises:
        InputError: it is not UTF-8.
        LimitError: it is larger than a card may be.
        NetworkError: it cannot be read.
    """
    if CARD not in access.files:
        return None
    if access.files[CARD].nbytes > limits.SIDE_FILE:
        what = f"is {access.files[CARD].nbytes:,} bytes, more than the {limits.SIDE_FILE:,} that a card may have"
        more = limits.hint(limits.SIDE_FILE, "is it really a card?")
        raise LimitError(what, file=f"{calls.target.url}/blob/{access.head}/{CARD}", hint=more)
    return read_text(content(access, calls, CARD), CARD)


def source_card(path: str, notes: list[str]) -> str | None:
    """The card of what was converted, where it can be had; a note where not."""
    try:
        return card.source_card(path)
    except CkptError as error:
        notes.append(f"the source's card cannot be read, so licence and language are not copied: {error.message}")
        return None


def others(access: Access, names: Iterable[str]) -> Iterator[str]:
    """A note on files of the branch that are none of `names`, and that a loader may read."""
    found = [n for n in strangers(access.files, {*names, CARD}) if is_loaded(n)]
    if found:
        some = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        yield f"the branch also holds what is not of this conversion, and loaders may take for it: {some}"


def refuse_large(sizes: Mapping[str, int]) -> None:
    """LimitError for a file that the Hub takes by hf_xet alone, where that is not there."""
    large = next((n for n in sizes if sizes[n] > LARGEST), None)
    if large is not None and not _has_xet():
        what = f"has {sizes[large]:,} bytes; without hf_xet the Hub takes {LARGEST:,}"
        hint = "pip install hf_xet (and leave HF_HUB_DISABLE_XET unset), or convert with --max-shard-size 5GB"
        raise LimitError(what, file=large, hint=hint)


def _has_xet() -> bool:
    from importlib.util import find_spec

    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
