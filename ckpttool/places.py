"""Which folder a SOURCE names, and which file in it: on this machine, on the Hub, behind a URL, in an object store.

What exists here always wins: `org/repo` is looked for on the Hub only where no such path exists, and not where `org`
is a folder here, since then a path was meant.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ckpttool.containers.remote import FilePath, RemoteFolder
from ckpttool.containers.strict_json import Source
from ckpttool.errors import InputError, NetworkError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=::|://)")
HUB_REPO = re.compile(r"(?P<repo>[\w-][\w.-]*/(?P<name>[\w-][\w.-]*))(?:@(?P<revision>[\w-][\w./-]*))?")


class Folder(Protocol):
    """A folder of files, here or at a remote end."""

    def names(self) -> list[str]:
        """What lies directly in it, sorted; nothing where that is not known."""

    def has(self, name: str) -> bool:
        """Whether there is a file of this name; yes where that is not known."""

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name."""

    def file(self, name: str) -> FilePath:
        """The file of this name. InputError for a link that leads out of the folder."""

    def side(self, name: str) -> Source:
        """A side file: its path, or its bytes."""

    def at(self, name: str) -> str:
        """What a user would give for the file or folder `name` in it."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """What lies directly in it, sorted."""
        return sorted(p.name for p in self.path.iterdir())

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return (self.path / name).exists()

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name."""
        return (self.path / name).is_dir()

    def file(self, name: str) -> Path:
        """The path of `name`, if it does not lead out of the folder; a Hub cache's links into its own blobs are fine.

        Raises:
            InputError: a link that leads elsewhere.
        """
        path, given = self.path / name, Path(name)
        # Without a link on the way there is nothing to resolve, which takes several times as long.
        plain = os.name == "posix" and not given.is_absolute() and ".." not in given.parts
        if plain and not any(p.is_symlink() for p in (path, *path.parents[: len(given.parts) - 1])):
            return path
        home, end = Path(os.path.realpath(self.path)), Path(os.path.realpath(path))  # Path.resolve fails on loops
        blobs = home.parent.parent / "blobs"
        if end.is_relative_to(home) or (home.parent.name == "snapshots" and end.parent == blobs):
            return path
        what = f"a link that leaves the folder, to {end}"
        raise InputError(what, file=str(path), hint="put the file itself in its place")

    def side(self, name: str) -> Path:
        """The path of a side file."""
        return self.path / name

    def at(self, name: str) -> str:
        """Its path, or that of `name` in it."""
        return str(self.path / name)


def is_url(source: str) -> bool:
    """Whether `source` is a URL rather than a path."""
    return URL.match(source) is not None


def place(source: str | Path, *, remote: bool = True) -> tuple[LocalFolder | RemoteFolder, str | None]:
    """The folder that `source` names, or the folder of a file and its name; without `remote` only what is here.

    Raises:
        InputError: nothing there.
        NetworkError, UsageError: a remote end refuses, or is of no kind that is known.
    """
    text = str(source)
    if is_url(text) and text.startswith("file://"):
        from urllib.request import url2pathname  # it brings HTTP, mail and TLS with it

        source = Path(url2pathname(urlsplit(text).path))
    elif is_url(text):
        return _remote(text, remote)
    path = Path(source)
    if text and path.exists():  # an empty variable of a shell is no folder
        return (LocalFolder(path), None) if path.is_dir() else (LocalFolder(path.parent), path.name)
    repo = HUB_REPO.fullmatch(text)
    if repo is None or (remote and Path(text.partition("/")[0]).exists()):
        hint = "check the path" + (f", or give hf://{text} if a repo of the Hub is meant" if repo else "")
        raise InputError("no such file or folder", file=text, hint=hint)
    if not remote:
        hint = f"download it first: hf download {_download(repo)} --local-dir {repo['name']}"
        raise InputError("no such file or folder", file=text, hint=hint)
    return _repo(text)


def _repo(source: str) -> tuple[RemoteFolder, str | None]:
    from ckpttool.hub import hub_folder

    try:
        return hub_folder(f"hf://{source}")
    except NetworkError as error:
        what = f"no such file or folder here; as a repo of the Hub: {error.message}"
        raise type(error)(what, file=source, hint=error.hint) from error


def _download(repo: re.Match[str]) -> str:
    return repo["repo"] + (f" --revision {repo['revision']}" if repo["revision"] else "")


def _remote(url: str, allowed: bool) -> tuple[RemoteFolder, str | None]:
    from ckpttool import hub
    from ckpttool.containers.stores import store_folder, url_folder, without_secrets

    shown, scheme = without_secrets(url), url.partition("://")[0].lower()
    on_hub = scheme == "hf" or (scheme in ("http", "https") and hub.is_hub_url(url))
    if not allowed:
        fetch = "hf download ORG/REPO --local-dir FOLDER" if on_hub else "with curl, or the store's own tool"
        raise InputError("is remote; what is converted must lie here", file=shown, hint=f"download it first: {fetch}")
    if on_hub:
        return hub.hub_folder(url)
    return url_folder(url) if scheme in ("http", "https") else store_folder(url)
