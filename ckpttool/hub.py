"""Repos of the Hugging Face Hub: which files they hold at one commit, and where each lies.

One request lists a repo with sizes and hashes and pins the commit; whatever is read later is of that commit. Endpoint,
token, offline mode and cache folders are huggingface_hub's own business: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ckpttool.containers import answers
from ckpttool.containers.http import HttpRanges, session
from ckpttool.containers.patience import retried
from ckpttool.containers.remote import RemoteFolder, RemotePath
from ckpttool.containers.stores import without_secrets
from ckpttool.errors import InputError, NetworkError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfUri
    from huggingface_hub.hf_api import RepoSibling

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 30
"""Seconds for the list of a repo's files."""


def is_hub_url(url: str) -> bool:
    """Whether an http(s) URL is of the Hub: of huggingface.co, hf.co, or beneath HF_ENDPOINT."""
    from huggingface_hub import constants

    return f"{url}/".startswith(f"{constants.ENDPOINT}/") or (urlsplit(url).hostname in ("huggingface.co", "hf.co"))


def hub_folder(source: str) -> tuple[RemoteFolder, str | None]:
    """The folder of a repo that `source` names (hf://org/repo@rev/path, or a page's URL), and the file, if it is one.

    Raises:
        UsageError: no such address.
        NetworkError: no such repo or revision, no access, or the Hub cannot be reached.
    """
    uri, source = _parsed(source), without_secrets(source)
    info = _listed(uri, source)
    sha = info.sha
    if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
        raise NetworkError("the Hub names no commit", file=source, hint=answers.LATER)
    where = f"hf://{_plural(uri)}{uri.id}@{sha}"
    files = {s.rfilename: s for s in info.siblings or ()}
    path = uri.path_in_repo.strip("/")
    if path in files:
        folder, _, name = path.rpartition("/")
        return _folder(uri, sha, f"{where}/{folder}".rstrip("/"), files, folder), name
    if path and not any(n.startswith(f"{path}/") for n in files):
        raise InputError("the repo has no such file or folder", file=f"{where}/{path}", hint=_some(files))
    return _folder(uri, sha, f"{where}/{path}".rstrip("/"), files, path), None


def _parsed(source: str) -> HfUri:
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        uri = parse_hf_uri(source, endpoint=constants.ENDPOINT)
    except HfUriError as error:
        hint = "hf://org/repo, hf://org/repo@revision/path, or the address of a repo's page"
        shown = without_secrets(source)
        why = str(error) if shown == source else "it holds a password"  # which the error might quote
        what = f"is no address of a repo: {why}"
        raise UsageError(what, file=shown, hint=hint) from error
    if uri.type not in ("model", "dataset"):
        raise UsageError(f"is a {uri.type}, which holds no checkpoint", file=source, hint="give a model's repo")
    return uri


def _listed(uri: HfUri, source: str) -> Any:
    """The repo's files with sizes and hashes at its newest commit, or that of the revision: one request."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from ckpttool import __version__

    api = HfApi(library_name="ckpttool", library_version=__version__)
    library, _ = session()

    def ask(gone: threading.Event) -> Any:
        with answers.translated(library, source):
            try:
                return api.repo_info(
                    uri.id, revision=uri.revision, repo_type=uri.type, files_metadata=True, timeout=_TIMEOUT
                )
            except HfHubHTTPError as error:
                raise _refused(error, uri, source) from error
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"the Hub's answer is not what its API promises: {type(error).__name__}: {error}"
                raise NetworkError(what, file=source, hint="is HF_ENDPOINT a Hub?") from error

    return retried(ask, source)


def _refused(error: Any, uri: HfUri, source: str) -> Exception:
    """The Hub's refusal to list a repo, as ours."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    page = _page(uri)
    if isinstance(error, RevisionNotFoundError):
        return answers.NotThere(f"the repo has no revision {uri.revision}", file=source, hint=f"see {page}")
    status, headers = error.response.status_code, error.response.headers
    gated = headers.get("x-error-code") == "GatedRepo"
    if status == 404 or (isinstance(error, RepositoryNotFoundError) and not gated):
        hint = f"check the name; for a private repo, {'may your token read it?' if get_token() else answers.LOG_IN}"
        return answers.NotThere(f"no such repo at {_host()}, or none for you", file=source, hint=hint)
    return answers.refusal(status, headers, source, repo_url=page, logged_in=get_token() is not None)


def _folder(uri: HfUri, sha: str, label: str, siblings: dict[str, RepoSibling], path: str) -> RemoteFolder:
    """The files beneath `path`, by their names relative to it."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    from ckpttool import __version__

    headers = build_hf_headers(library_name="ckpttool", library_version=__version__)
    page = _page(uri)
    prefix = f"{path}/" if path else ""
    files = {}
    for full, sibling in siblings.items():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix)
        url = hf_hub_url(uri.id, full, repo_type=uri.type, revision=sha, endpoint=constants.ENDPOINT)
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        ranges = HttpRanges(url, name, headers, size=sibling.size, sha256=sha256, commit=sha, repo_url=page)
        files[name] = RemotePath(name.rpartition("/")[2], f"{label}/{name}", ranges)
    return RemoteFolder(label, files, name=uri.id.rpartition("/")[2], revision=uri.revision, commit=sha)


def _some(files: dict[str, Any]) -> str:
    names = sorted(n for n in files if n.endswith((".safetensors", ".gguf", ".json")))
    return f"it has {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it holds no checkpoint"


def _page(uri: HfUri) -> str:
    """The repo's page, where terms are accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{_plural(uri)}{uri.id}"


def _plural(uri: HfUri) -> str:
    return "datasets/" if uri.type == "dataset" else ""


def _host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc
