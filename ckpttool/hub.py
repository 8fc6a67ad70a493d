"""Repos of the Hugging Face Hub: which files they hold at one commit, and where each lies.

One request lists a repo with sizes and hashes and pins the commit; whatever is read later is of that commit. Endpoint,
token, offline mode and cache folders are huggingface_hub's own business: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from ckpttool.containers import answers, exchange, limits
from ckpttool.containers.http import HttpRanges
from ckpttool.containers.remote import RemoteFolder, RemotePath
from ckpttool.containers.stores import without_secrets
from ckpttool.errors import InputError, NetworkError, UsageError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfUri

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Listed(NamedTuple):
    """What the Hub's list says of one file: its bytes, and the sha256 of a large one, or git's hash of another."""

    nbytes: int | None
    sha256: str | None
    git_sha1: str | None


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
    sha, files = _listed(uri, source)
    where = f"hf://{_plural(uri)}{uri.id}@{sha}"
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


def _listed(uri: HfUri, source: str) -> tuple[str, dict[str, Listed]]:
    """The newest commit of a repo, or that of the revision, and its files: one request."""
    from huggingface_hub import constants

    revision = "" if uri.revision is None else f"/revision/{quote(uri.revision, safe='')}"
    url = f"{constants.ENDPOINT}/api/{uri.type}s/{uri.id}{revision}?blobs=true"
    headers = _headers()
    logged_in = "authorization" in headers

    def refused(response: httpx2.Response) -> Exception:
        return _refused(response.status_code, response.headers, uri, source, logged_in=logged_in)

    text = exchange.document(url, headers, source, limits.HUB_LIST, refused)
    try:
        said = json.loads(text)
        return _commit(said["sha"]), dict(_file(row) for row in said["siblings"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"the Hub's answer is not what its API promises: {type(error).__name__}: {error}"
        raise NetworkError(what, file=source, hint="is HF_ENDPOINT a Hub?") from error


def _commit(sha: Any) -> str:
    if not isinstance(sha, str) or not _SHA1.fullmatch(sha):
        raise ValueError("it names no commit")
    return sha


def _file(row: Any) -> tuple[str, Listed]:
    """A file's path in the repo, and what the list says of it."""
    name, nbytes, sha256 = row["rfilename"], row.get("size"), (row.get("lfs") or {}).get("sha256")
    if type(name) is not str or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{name!r:.200} is no path in a repo")
    if nbytes is not None and (type(nbytes) is not int or not 0 <= nbytes <= limits.INT64_MAX):
        raise ValueError(f"{name!r:.200} has {nbytes!r:.40} bytes")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name!r:.200} has the sha256 {sha256!r:.80}")
    git_sha1 = row.get("blobId") if sha256 is None else None
    if git_sha1 is not None and not _SHA1.fullmatch(git_sha1):
        raise ValueError(f"{name!r:.200} has the blobId {git_sha1!r:.80}")
    return name, Listed(nbytes, sha256, git_sha1)


def _headers() -> dict[str, str]:
    """Who asks, with the token if there is one."""
    from huggingface_hub.utils import build_hf_headers

    from ckpttool import __version__

    return build_hf_headers(library_name="ckpttool", library_version=__version__)


_BAD_TOKEN = "Invalid credentials in Authorization header"


def _refused(status: int, headers: Mapping[str, str], uri: HfUri, source: str, *, logged_in: bool) -> Exception:
    """The Hub's refusal to list a repo, as ours; without a token, 401 may mean that there is no such repo."""
    page, code = _page(uri), headers.get("x-error-code")
    if code == "RevisionNotFound":
        return answers.NotThere(f"the repo has no revision {uri.revision}", file=source, hint=f"see {page}")
    unknown = status == 404 or (status == 401 and headers.get("x-error-message") != _BAD_TOKEN)
    if code == "RepoNotFound" or (unknown and code != "GatedRepo"):
        hint = f"check the name; for a private repo, {'may your token read it?' if logged_in else answers.LOG_IN}"
        return answers.NotThere(f"no such repo at {_host()}, or none for you", file=source, hint=hint)
    return answers.refusal(status, headers, source, repo_url=page, logged_in=logged_in)


def _folder(uri: HfUri, sha: str, label: str, listed: dict[str, Listed], path: str) -> RemoteFolder:
    """The files beneath `path`, by their names relative to it."""
    from huggingface_hub import constants, hf_hub_url

    headers = _headers()
    page = _page(uri)
    prefix = f"{path}/" if path else ""
    files = {}
    for full, file in listed.items():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix)
        url = hf_hub_url(uri.id, full, repo_type=uri.type, revision=sha, endpoint=constants.ENDPOINT)
        ranges = HttpRanges(url, name, headers, size=file.nbytes, sha256=file.sha256, commit=sha, repo_url=page)
        files[name] = RemotePath(name.rpartition("/")[2], f"{label}/{name}", ranges, file.git_sha1)
    return RemoteFolder(label, files, name=uri.id.rpartition("/")[2], revision=uri.revision, commit=sha)


def _some(files: dict[str, Any]) -> str:
    names = sorted(n for n in files if n.endswith((".safetensors", ".gguf", ".json")))
    return f"it has {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it holds no checkpoint"


def _page(uri: HfUri) -> str:
    """The repo's page, where terms are accepted."""
    from huggingface_hub import constants

    return f"{without_secrets(constants.ENDPOINT)}/{_plural(uri)}{uri.id}"


def _plural(uri: HfUri) -> str:
    return "datasets/" if uri.type == "dataset" else ""


def _host() -> str:
    from huggingface_hub import constants

    return urlsplit(without_secrets(constants.ENDPOINT)).netloc
