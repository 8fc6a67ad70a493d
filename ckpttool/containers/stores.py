"""Object stores and other file systems through fsspec (s3://, gs://, az://, memory:// ...), and files at plain URLs."""

from __future__ import annotations

import posixpath
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from ckpttool.containers.answers import CHANGED, NotThere
from ckpttool.containers.http import HttpRanges
from ckpttool.containers.patience import retried
from ckpttool.containers.remote import RemoteFolder, RemotePath
from ckpttool.errors import CkptError, InputError, NetworkError, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class StoreRanges:
    """Ranges of one file of an fsspec file system; `info` is what its listing says of it.

    fsspec gives no etag with the bytes. So behind each range from the second one on the file is looked up again: what
    is then as it was at first has not changed in between, and parts of two files are no header. To try again is the
    driver's business; how long it may take is ours.
    """

    def __init__(self, system: AbstractFileSystem, path: str, label: str, info: dict[str, Any]) -> None:
        self.label = label
        self.size: int | None = info.get("size")
        self.etag = _version(info)
        self.sha256: str | None = None
        self._asked = False
        self._system = system
        self._path = path

    def fetch(self, start: int, stop: int, onto: bytearray | None = None) -> bytearray:
        """The bytes from `start` to `stop`, or to the file's end; behind those of `onto`, where it is given.

        Raises:
            NetworkError: the store refuses or breaks off, is too slow, or the file is another than before.
        """
        got = bytearray() if onto is None else onto
        got += self._range(start, stop)
        return got

    def fill(self, start: int, view: memoryview) -> int:
        """The bytes from `start` on into `view`; how many there are. NetworkError as `fetch` raises it."""
        data = self._range(start, start + len(view))
        view[: len(data)] = data
        return len(data)

    def _range(self, start: int, stop: int) -> bytes:
        stop = stop if self.size is None else min(stop, self.size)
        return retried(lambda _: self._read(start, stop), self.label, stop - start) if start < stop else b""

    def _read(self, start: int, stop: int) -> bytes:
        try:
            data: bytes = self._system.cat_file(self._path, start=start, end=stop)
            if self._asked and self.etag is not None:
                self._system.invalidate_cache(self._system._parent(self._path))
                if (now := _version(self._system.info(self._path))) != self.etag:
                    what = f"the remote file changed: its etag is {now}, at first it was {self.etag}"
                    raise NetworkError(what, file=self.label, hint=CHANGED)
            if len(data) > stop - start:
                what = f"sends {len(data):,} bytes where {stop - start:,} were asked for"
                raise NetworkError(what, file=self.label, hint="download the file and give it")
            self._asked = True
        except CkptError:
            raise
        except Exception as error:  # each driver raises errors of its own kind
            raise _refused(error, self.label) from error
        return data


def _version(info: dict[str, Any]) -> str | None:
    """What a store calls a file's content: its etag, a hash, or when it was written."""
    keys = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "modified", "created")
    found = next((info[k] for k in keys if info.get(k) is not None), None)
    if isinstance(found, datetime):  # some drivers say in a list of files as a number what they say of one as a date
        found = found.timestamp()
    return None if found is None else str(found)


def _refused(error: Exception, label: str) -> CkptError:
    if isinstance(error, FileNotFoundError):
        return NotThere("there is no such file or folder", file=label, hint="check the name")
    if isinstance(error, ImportError):
        return UsageError(f"its driver is not installed: {error}", file=label, hint="install it with pip")
    hint = "are the store's credentials set, as its driver expects them?"
    return NetworkError(f"the store refuses: {type(error).__name__}: {error}", file=label, hint=hint)


def store_folder(url: str) -> tuple[RemoteFolder, str | None]:
    """The folder that an fsspec URL names, listed; for a file's URL its folder, with only it in, and its name.

    Raises:
        UsageError: a scheme that fsspec does not know, or whose driver is not installed.
        NetworkError: the store refuses, or has no such thing.
    """
    import fsspec

    scheme = url.partition("://")[0]
    shown = without_secrets(url).rstrip("/")
    try:
        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise UsageError(f"{scheme}:// needs a driver: {error}", file=shown, hint=_driver(scheme)) from error
    except ValueError as error:
        hint = "SOURCE is a path, org/repo, hf://, https://, s3:// or another scheme of fsspec"
        raise UsageError(f"{scheme}:// is not known: {error}", file=shown, hint=hint) from error
    except Exception as error:  # a driver that connects as it is made
        raise _refused(error, shown) from error
    try:
        info = system.info(path)
        rows = system.find(path, withdirs=False, detail=True, maxdepth=2) if info["type"] == "directory" else {}
    except Exception as error:
        raise _refused(error, shown) from error
    if info["type"] != "directory":
        above, _, name = shown.rpartition("/")
        return _with_siblings(system, path, above, name, info), name
    root = path.rstrip("/") + "/"
    files = {}
    for full, row in rows.items():
        name = full.removeprefix(root) if full.startswith(root) else full.lstrip("/").removeprefix(root.lstrip("/"))
        files[name] = RemotePath(posixpath.basename(name), f"{shown}/{name}", StoreRanges(system, full, name, row))
    return RemoteFolder(shown, files), None


def _with_siblings(system: AbstractFileSystem, path: str, above: str, name: str, info: dict[str, Any]) -> RemoteFolder:
    """The folder of one file: its siblings are looked for when they are asked for."""
    folder = path.rpartition("/")[0]

    def sibling(other: str) -> RemotePath:
        return RemotePath(other, f"{above}/{other}", StoreRanges(system, f"{folder}/{other}", other, _info(other)))

    def _info(other: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = system.info(f"{folder}/{other}")
        except Exception as error:
            raise _refused(error, f"{above}/{other}") from error
        return found

    here = RemotePath(name, f"{above}/{name}", StoreRanges(system, path, name, info))
    return RemoteFolder(above, {name: here}, sibling)


def _driver(scheme: str) -> str:
    """What to install for a scheme."""
    packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
    packages |= {"abfss": "adlfs", "oci": "ocifs", "oss": "ossfs", "r2": "s3fs"}
    return f"pip install {packages[scheme]}" if scheme in packages else "install the package that it names"


def url_folder(url: str) -> tuple[RemoteFolder, str]:
    """Where the file at a plain http(s) URL lies, and its name. Its siblings are not listed, but may be there.

    Raises:
        InputError: a URL that names no file.
    """
    parts = urlsplit(url)
    name = parts.path.rpartition("/")[2]
    if not name or "." not in name:
        hint = "give a file: .../model.safetensors.index.json, .../x.safetensors or .../x.gguf"
        raise InputError("names no file", file=without_secrets(url), hint=hint)

    def sibling(other: str) -> RemotePath:
        here = url if other == name else urljoin(url, other) + (f"?{parts.query}" if parts.query else "")
        return RemotePath(other, without_secrets(here), HttpRanges(here, other))

    return RemoteFolder(without_secrets(url).rpartition("/")[0], {}, sibling), name


_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")


def without_secrets(url: str) -> str:
    """`url` as it may be shown: without a password, and of http(s) without user and query, which may hold a token.

    UsageError where it is none, as `https://[x` is.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"is no URL: {error}", file=_PASSWORD.sub("", url), hint="check its host") from error
    if parts.scheme in ("http", "https"):
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return url if parts.scheme in ("git", "github") else _PASSWORD.sub(r"\1@", url)  # whose colon is before a name
