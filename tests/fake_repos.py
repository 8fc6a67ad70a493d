"""Who uses the Hub of the tests, and its repos: every commit's whole tree, and the objects that LFS holds."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

LARGE = (".safetensors", ".gguf", ".bin", ".pt", ".onnx")
"""What a new repo's .gitattributes gives to LFS; and whatever has this many bytes:"""
LARGE_NBYTES = 10_000_000
ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()


@dataclass(frozen=True)
class User:
    """`role`: "write" or "read"; a fine-grained token writes to the repos in `only`."""

    name: str
    role: str = "write"
    only: tuple[str, ...] | None = None

    def may_write(self, repo: str) -> bool:
        return self.role == "write" and (self.only is None or repo in self.only) and repo.split("/")[0] == self.name


@dataclass
class Repo:
    """`commits` by sha: each a whole tree of contents by path; `refs` by name; `pulls` are pull requests by number,
    each with its title and author."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    pulls: dict[int, tuple[str, str]] = field(default_factory=dict)

    def head(self, ref: str = "main") -> str:
        return self.refs[ref]

    def files(self, ref: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(ref, ref)]

    def commit(self, ref: str, files: dict[str, bytes], title: str = "a commit") -> str:
        """A new head of `ref`, with these files and no others."""
        said = f"{self.name} {len(self.commits)} {ref} {self.refs.get(ref)}".encode()
        sha = hashlib.sha1(said).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        self.log.append((ref, title))
        for path, data in files.items():
            if is_large(path, len(data), files):
                self.objects[sha256(data)] = data
        return sha

    def sweep(self) -> None:
        """Forget the objects that no commit holds, as the Hub does after a while."""
        held = {sha256(data) for files in self.commits.values() for data in files.values()}
        self.objects = {oid: data for oid, data in self.objects.items() if oid in held}

    def pull(self, head: str, title: str, author: str) -> int:
        """A new pull request that begins at `head`; its number."""
        number = len(self.pulls) + 1
        self.pulls[number] = (title, author)
        self.refs[f"refs/pr/{number}"] = head
        return number

    def trees(self, ref: str = "main") -> list[dict[str, bytes]]:
        """Every tree that `ref` ever had, the newest last."""
        return [files for (r, _), files in zip(self.log, self.commits.values(), strict=True) if r == ref]


def is_large(path: str, nbytes: int, files: Mapping[str, bytes]) -> bool:
    """Whether LFS holds a file, by the .gitattributes among `files`."""
    rows = (line.split() for line in files.get(".gitattributes", b"").decode().splitlines())
    patterns = [row[0] for row in rows if "filter=lfs" in row]
    return nbytes >= LARGE_NBYTES or any(fnmatch.fnmatch(path.rpartition("/")[2], p) for p in patterns)


@functools.lru_cache(maxsize=1024)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1024)
def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
