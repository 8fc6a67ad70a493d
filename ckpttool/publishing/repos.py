"""Which repo of the Hub is published to: its id, its branch, and whether a pull request is opened instead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ckpttool.containers.stores import without_secrets
from ckpttool.errors import UsageError

MAIN = "main"
_GIVE = "give org/repo, hf://org/repo@branch, or the address of a repo's page"
_BRANCH = re.compile(r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9][\w./-]*(?<![./])")
_PORT = re.compile(r".*(?<!:)(?::\d{1,4}|:[1-5]\d{4})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RepoTarget:
    """A model's repo to publish to. `pr`: nothing appears on `branch`, a pull request to it is opened.

    `path` is what a URL names in it, "" for the repo itself. `endpoint` is another Hub than huggingface_hub's own,
    where the user allowed one.
    """

    id: str
    branch: str = MAIN
    pr: bool = False
    path: str = ""
    endpoint: str | None = None

    @property
    def name(self) -> str:
        """What the model is called there: the id's last part."""
        return self.id.rpartition("/")[2]

    @property
    def hub(self) -> str:
        """The Hub's address, without a slash at its end."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @property
    def url(self) -> str:
        """The repo's page."""
        return f"{without_secrets(self.hub)}/{self.id}"

    def __str__(self) -> str:
        return self.id if self.branch == MAIN else f"{self.id}@{self.branch}"


def is_repo_url(text: str) -> bool:
    """Whether a target is meant as a repo: by its scheme, since a path of two parts looks like a repo's id."""
    return text.startswith(("hf://", "https://", "http://"))


def repo_target(
    text: str, *, revision: str | None = None, pr: bool = False, allow_endpoint: bool = False
) -> RepoTarget:
    """The repo that a user means by `text`: org/repo[@branch], hf://org/repo[@branch][/path], or a page's address.

    Raises:
        UsageError: no such address, two branches, a dataset, a Hub that the token must not be sent to.
    """
    shown = without_secrets(text)
    if any(not c.isprintable() or c.isspace() for c in text):
        raise UsageError("is no repo: it holds a space or a control character", file=shown, hint=_GIVE)
    endpoint = _endpoint(text, shown, allow_endpoint)
    id, branch, path = _parts(text, shown, endpoint)
    _checked_id(id, shown)
    if branch and revision and branch != revision:
        raise UsageError(f"names the branch {branch}, --revision {revision}", file=shown, hint="give one of them")
    branch = (revision or MAIN) if branch is None else branch
    if _COMMIT.fullmatch(branch) or not _BRANCH.fullmatch(branch) or branch.endswith(".lock"):
        raise UsageError(f"{branch!r} is no branch that can be written to", file=shown, hint="give a branch's name")
    if pr and branch != MAIN:
        what = f"a pull request goes to {MAIN}, not to {branch}"
        raise UsageError(what, file=shown, hint="leave out the branch, or --pr")
    return RepoTarget(id, branch, pr, path, endpoint)


def _parts(text: str, shown: str, endpoint: str | None) -> tuple[str, str | None, str]:
    """Id, branch and path. Without a scheme all behind the @ is the branch."""
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    if "://" not in text:
        id, _, branch = text.partition("@")
        return id, branch if "@" in text else None, ""
    try:
        uri = parse_hf_uri(text, endpoint=endpoint or constants.ENDPOINT)
    except HfUriError as error:
        why = str(error).rstrip(".") if shown == text else "it holds a password"  # which the error might quote
        raise UsageError(f"is no repo: {why}", file=shown, hint=_GIVE) from error
    if uri.type != "model":
        raise UsageError(f"is a {uri.type}; checkpoints are published as models", file=shown, hint=_GIVE)
    path = uri.path_in_repo.strip("/")
    if ".." in path.split("/") or "\\" in path:
        raise UsageError("its path leads out of the repo", file=shown, hint=_GIVE)
    return uri.id, uri.revision, path


def _checked_id(id: str, shown: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(id)
    except HFValidationError as error:
        raise UsageError(f"is no repo: {str(error).rstrip('.')}", file=shown, hint=_GIVE) from error
    if "/" not in id:
        raise UsageError("names no account or organisation", file=shown, hint=f"give you/{id}, or org/{id}")


def _endpoint(text: str, shown: str, allowed: bool) -> str | None:
    """The Hub that a page's address is of, where that is not huggingface_hub's own.

    Raises:
        UsageError: it is another host, or the token would travel in the clear, and that was not allowed.
    """
    from huggingface_hub import constants

    from ckpttool.hub import is_hub_url

    other = None
    if "://" in text and not text.startswith("hf://") and not is_hub_url(text):
        parts = urlsplit(text)
        other = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if parts.scheme not in ("http", "https") or not parts.hostname or not _PORT.fullmatch(other):
            raise UsageError("is no repo of a Hub", file=shown, hint=_GIVE)
        if not allowed:
            what = f"is not of {urlsplit(constants.ENDPOINT).netloc}, and your token would be sent there"
            raise UsageError(what, file=shown, hint="set HF_ENDPOINT, or give --allow-endpoint")
    hub = urlsplit(other or constants.ENDPOINT)
    if hub.scheme != "https" and not _is_here(hub.hostname) and not allowed:
        what = f"your token would be sent to {hub.netloc} without encryption"
        raise UsageError(what, file=shown, hint="give its https address, or --allow-endpoint")
    return other


def _is_here(host: str | None) -> bool:
    """Whether `host` is this machine, by its name: nobody is asked."""
    import ipaddress

    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost" or (host or "").endswith(".localhost")
