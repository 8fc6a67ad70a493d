"""What a repo is before anything is sent: who we are, whether we may write, what its branch holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckpttool.containers import answers
from ckpttool.containers.stores import without_secrets
from ckpttool.errors import NetworkError, UsageError
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.refusals import Refused
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteEntry:
    """A file of a repo. `sha256` is that of its content, known where it is stored as a large file; `git_sha1` is git's
    hash of what git holds: the content, or the pointer of a large file."""

    nbytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class Access:
    """What was found: `head` is the commit of the branch, None where there is no branch or no repo yet."""

    user: str
    exists: bool
    private: bool | None
    head: str | None
    files: Mapping[str, RemoteEntry] = field(repr=False)


def check_access(target: RepoTarget, *, private: bool | None, calls: Calls | None = None) -> Access:
    """Who we are, whether we may write to `target`, and what it holds. Makes nothing.

    Raises:
        UsageError: the repo has another visibility or name than was given, or is needed and not there.
        NetworkError: no token, not a right one, or the Hub cannot be reached.
    """
    from huggingface_hub import get_token

    calls = calls or Calls(target)
    if get_token() is None:
        raise NetworkError("you are not logged in", file=str(target), hint=answers.LOG_IN)
    me = calls.ask(lambda api: api.whoami())
    access = _found(calls, target, str(me["name"]))
    if access.exists:
        if private is not None and private != access.private:
            what = f"the repo is {_visibility(access.private)}"
            hint = f"leave out --{_visibility(private)}, or change it first: {target.url}/settings"
            raise UsageError(what, file=str(target), hint=hint)
        calls.ask(lambda api: api.auth_check(target.id, write=not target.pr))
        return access
    _may_make(target, me)
    return Access(access.user, False, private, None, {})


def made(target: RepoTarget, access: Access, private: bool | None, calls: Calls | None = None) -> Access:
    """`access` once the repo and its branch are made, where they were missing.

    Raises:
        NetworkError: the Hub refuses to make them.
    """
    if access.exists and access.head is not None:
        return access
    calls = calls or Calls(target)
    if not access.exists:
        calls.ask(lambda api: api.create_repo(target.id, private=private, exist_ok=True))
    found = _found(calls, target, access.user)
    if private is not None and found.private not in (None, private):
        what = f"the repo was made {_visibility(found.private)} meanwhile"
        raise UsageError(what, file=str(target), hint=f"see {target.url}/settings")
    if found.head is None:
        calls.ask(lambda api: api.create_branch(target.id, branch=target.branch, exist_ok=True))
        found = _found(calls, target, access.user)
    if found.head is None:
        raise NetworkError("the branch was made, and is not there", file=str(target), hint=answers.LATER)
    return found


def listed(api: HfApi, target: RepoTarget, revision: str) -> tuple[str, bool, dict[str, RemoteEntry]]:
    """The commit of `revision`, whether the repo is private, and its files."""
    info = api.model_info(target.id, revision=revision, files_metadata=True)
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise ValueError("it names no commit")
    if info.id != target.id:
        what = f"the repo is called {info.id}"
        raise UsageError(what, file=str(target), hint="give that name")
    files = {}
    for row in info.siblings or ():
        lfs = row.lfs
        if row.size is None or row.blob_id is None:
            raise ValueError(f"{row.rfilename} has no size or no hash")
        files[row.rfilename] = RemoteEntry(row.size, lfs.sha256 if lfs else None, row.blob_id)
    return info.sha, bool(info.private), files


def _found(calls: Calls, target: RepoTarget, user: str) -> Access:
    """What is there, to `user`; of a repo without the branch, whether it is private."""
    try:
        head, private, files = calls.ask(lambda api: listed(api, target, target.branch))
    except Refused as error:
        if error.status not in (401, 404):
            raise
    else:
        return Access(user, True, private, head, files)
    try:
        info = calls.ask(lambda api: api.model_info(target.id))
    except Refused as error:
        if error.status not in (401, 404):
            raise
        return Access(user, False, None, None, {})
    return Access(user, True, bool(info.private), None, {})


def _may_make(target: RepoTarget, me: Mapping[str, Any]) -> None:
    """Raise where the repo cannot be made by this account and token, as far as they tell."""
    if target.pr:
        hint = "check the name, or publish without --pr to make it"
        raise UsageError(
            "there is no such repo, or none for you, to open a pull request in", file=str(target), hint=hint
        )
    owner = target.id.partition("/")[0]
    roles = {str(org.get("name")): str(org.get("roleInOrg") or "write") for org in me.get("orgs") or ()}
    roles[str(me["name"])] = "admin"
    token = (me.get("auth") or {}).get("accessToken") or {}
    if owner not in roles:
        what = f"there is no such repo, and {owner} is neither you ({me['name']}) nor an organisation of yours"
        raise NetworkError(what, file=str(target), hint="check the name, and which token is used: hf auth whoami")
    if roles[owner] == "read" or token.get("role") == "read":
        whose = "token" if token.get("role") == "read" else f"role in {owner}"
        what = f"the repo is to be made, and your {whose} may only read"
        raise NetworkError(
            what, file=str(target), hint=f"make a token that may write: {without_secrets(target.hub)}/settings/tokens"
        )


def _visibility(private: bool | None) -> str:
    return "private" if private else "public"
