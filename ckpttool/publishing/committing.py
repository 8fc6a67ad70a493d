"""The commit that shows a publication: made once, whatever becomes of its answer, and compared with what was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ckpttool.containers.answers import Again
from ckpttool.errors import NetworkError
from ckpttool.publishing import access, refusals
from ckpttool.publishing.access import Access, RemoteEntry
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    Operations = Sequence[CommitOperationAdd | CommitOperationDelete]


class Meant(Protocol):
    """A file as the commit shall hold it."""

    def is_in(self, entry: RemoteEntry | None) -> bool:
        """Whether the remote file is this one."""


def commit(
    calls: Calls,
    found: Access,
    meant: Mapping[str, Meant],
    operations: Operations,
    title: str,
    description: str,
) -> tuple[str, str | None]:
    """The commit on top of `found.head` that holds `meant`, and its pull request's address; the head where nothing is
    to be added. As `Sending.commit` raises."""
    if found.head is None:
        raise NetworkError("there is no branch to commit to", file=str(calls.target), hint="make it first")
    posting = _Posting(calls, found.head, meant, operations, title, description)
    sha, request = posting.run() if operations else (found.head, None)
    try:
        differing = calls.ask(lambda api: _differing(api, calls.target, sha, meant))
    except NetworkError as error:
        if isinstance(error, refusals.Refused) and error.status == 404:  # the answer named a commit that is none
            return posting.found()
        what = f"commit {sha[:12]} is there, but was not compared with what was sent: {error.message}"
        hint = f"compare it with: ckpttool verify {calls.target.id}@{sha}"
        raise NetworkError(what, file=str(calls.target), hint=hint) from error
    if differing:
        names = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        what = f"commit {sha[:12]} does not hold what was sent: {names}"
        raise NetworkError(what, file=str(calls.target), hint=f"do not use it; look at {calls.target.url}/tree/{sha}")
    return sha, request


class _Posting:
    """One commit: posted again only where the Hub shows that it did not happen."""

    def __init__(
        self,
        calls: Calls,
        parent: str,
        meant: Mapping[str, Meant],
        operations: Operations,
        title: str,
        description: str,
    ) -> None:
        self._calls = calls
        self._target = calls.target
        self._parent = parent
        self._meant = meant
        self._operations = operations
        self._title = title
        self._description = description
        contents = (getattr(o, "path_or_fileobj", None) for o in operations)
        self._nbytes = sum(len(c) for c in contents if isinstance(c, bytes))
        self._posted = False
        self._requests: dict[str, str] = {}

    def run(self) -> tuple[str, str | None]:
        if self._target.pr:
            self._requests = self._calls.ask(self._pull_requests)
        try:
            return self._calls.ask(self._post, nbytes=self._nbytes)
        except NetworkError as error:
            return self._after(error)

    def _post(self, api: HfApi) -> tuple[str, str | None]:
        from huggingface_hub.errors import HfHubHTTPError

        if self._posted and (landed := self._landed(api)):
            return landed
        self._posted = True
        try:
            info = api.create_commit(
                self._target.id,
                self._operations,
                commit_message=self._title,
                commit_description=self._description,
                revision=self._target.branch,
                parent_commit=self._parent,
                create_pr=self._target.pr,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):  # another's commit is under way, or was faster; or ours was
                raise Again(refusals.summary(error.response), tries=3, hint=refusals.LATER) from error
            raise
        if not access.COMMIT.fullmatch(info.oid):
            raise ValueError("it names no commit")
        return info.oid, info.pr_url

    def _after(self, error: NetworkError) -> tuple[str, str | None]:
        """What became of a commit that ended with `error`; raises where it did not happen, or nobody knows."""
        if isinstance(error, refusals.Refused | _Moved):
            raise error
        try:
            return self.found()
        except _Moved:
            raise
        except _NotThere:
            what = f"nothing was committed so far: {error.message}"
            raise NetworkError(what, file=error.file, hint=refusals.LATER) from error
        except NetworkError:
            what = f"whether the commit was made is not known: {error.message}"
            hint = f"look at {self._target.url}/commits/{self._target.branch}, or {refusals.LATER}"
            raise NetworkError(what, file=str(self._target), hint=hint) from error

    def found(self) -> tuple[str, str | None]:
        """The commit as the Hub shows it. NetworkError where there is none, or another in its place."""
        landed = self._calls.ask(self._landed)
        if landed is None:
            raise _NotThere("nothing was committed", file=str(self._target), hint=refusals.LATER)
        return landed

    def _landed(self, api: HfApi) -> tuple[str, str | None] | None:
        """The commit, if it happened after all. Raises where another stands in its place."""
        if self._target.pr:
            return self._opened(api)
        head, _, files = access.listed(api, self._target, self._target.branch)
        if head == self._parent:
            return None
        if all(m.is_in(files.get(n)) for n, m in self._meant.items()):
            return head, None
        what = f"nothing was committed: somebody else moved the branch from {self._parent[:12]} to {head[:12]}"
        raise _Moved(what, file=str(self._target), hint=refusals.LATER)

    def _opened(self, api: HfApi) -> tuple[str, str | None] | None:
        """The pull request that was opened since and holds what was meant."""
        for ref, sha in self._pull_requests(api).items():
            if ref not in self._requests and not _differing(api, self._target, sha, self._meant):
                return sha, f"{self._target.url}/discussions/{ref.rpartition('/')[2]}"
        return None

    def _pull_requests(self, api: HfApi) -> dict[str, str]:
        refs = api.list_repo_refs(self._target.id, include_pull_requests=True).pull_requests
        return {r.ref: r.target_commit for r in refs or ()}


class _NotThere(NetworkError):
    """The branch is where it was."""


class _Moved(NetworkError):
    """The branch is not where it was, and not where it should be."""


def _differing(api: HfApi, target: RepoTarget, sha: str, meant: Mapping[str, Meant]) -> list[str]:
    """The files that commit `sha` does not hold as they were meant."""
    from huggingface_hub.hf_api import RepoFile

    found: dict[str, RemoteEntry] = {}
    names = sorted(meant)
    for start in range(0, len(names), 500):
        for row in api.get_paths_info(target.id, names[start : start + 500], revision=sha):
            if isinstance(row, RepoFile):
                found[row.path] = RemoteEntry(row.size, row.lfs.sha256 if row.lfs else None, row.blob_id)
    return [n for n in names if not meant[n].is_in(found.get(n))]
