"""What a receipt says that a card tells: what was converted, what it became, and what that did to the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import PurePath
from typing import Any, Final

from ckpttool.archs import Arch, arches
from ckpttool.containers.stores import without_secrets
from ckpttool.steps import Fidelity

ROLES: Final = {
    "gate": "experts", "up": "experts", "down": "experts", "router": "routers",
    "q": "attention", "k": "attention", "v": "attention", "o": "attention", "sinks": "attention",
    "attn_norm": "norms", "mlp_norm": "norms", "norm": "norms", "embed": "embedding", "head": "output",
}  # fmt: skip
"""What a reader of a card calls the parts."""
BIASES: Final = "experts' biases"

_HUB: Final = re.compile(
    r"(?:hf://)?(?P<repo>(?!datasets/)[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<commit>[\w-][\w.-]*))?(?:/(?P<path>.+))?"
)
_CACHE: Final = re.compile(
    r"(?:.*[/\\])?models--(?P<repo>[\w.-]+?--[\w.-]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})(?:[/\\](?P<path>.+))?"
)
"""A snapshot in huggingface_hub's cache, whose name says the repo and the commit."""
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What was converted, as anybody can find it: a `repo` of the Hub at its `commit`, or an address; of what lay on
    somebody's disk the last part of its path."""

    text: str
    repo: str | None = None
    commit: str | None = None

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return self.repo or self.text

    @property
    def is_public_address(self) -> bool:
        """Whether others can give `text` to ckpttool and get the same."""
        return self.repo is not None or "://" in self.text


@dataclass(frozen=True)
class Row:
    """Weights of one role, stored alike, with the same fate. `changed` values of `narrow` alone are counted."""

    role: str
    stored: str
    kind: str
    fidelity: str
    weights: int = 0
    nbytes: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Facts:
    """A receipt, as its card tells it. `file` is the GGUF, or the first of its shards; None for a folder."""

    receipt: Mapping[str, Any]
    origin: Origin
    file: str | None
    rows: tuple[Row, ...]
    names: frozenset[str] = field(repr=False)

    @property
    def dialect(self) -> str:
        """The target's."""
        return str(self.receipt["target"]["dialect"])

    @property
    def artefact(self) -> str:
        """What sets this conversion apart from others in its repo: a GGUF's name without shard numbers, "" else."""
        return _SHARD.sub("", self.file or "")

    @property
    def content(self) -> str:
        """A hash of all files: the same where every byte is."""
        rows = sorted((f["name"], f["nbytes"], f["sha256"]) for f in self.receipt["files"])
        return sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def experts(self) -> str:
        """The format of the experts' matrices: the one with most bytes."""
        rows = [r for r in self.rows if r.role == "experts"] or list(self.rows)
        return max(rows, key=lambda r: r.nbytes).stored

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(r.nbytes for r in self.rows)

    @property
    def fidelity(self) -> Fidelity:
        """The lowest of all."""
        return max((Fidelity(r.fidelity) for r in self.rows), key=list(Fidelity).index)


def facts(receipt: Mapping[str, Any], source: str | None = None) -> Facts:
    """What `receipt` says; `source` is where its source is found, if somebody knows better than it."""
    names = frozenset(f["name"] for f in receipt["files"])
    gguf = sorted(n for n in names if n.lower().endswith(".gguf"))
    origin = origin_of(source if source is not None else receipt["source"]["path"], receipt["source"].get("commit"))
    return Facts(receipt, origin, gguf[0] if gguf else None, _rows(receipt), names)


def origin_of(path: str, commit: str | None = None) -> Origin:
    """What a SOURCE is to others; `commit` is the one that was read, where the receipt names it."""
    found = _CACHE.fullmatch(path)
    if found is None and (path.startswith("hf://") or commit is not None):
        found = _HUB.fullmatch(path)
    if found is not None:
        repo, at = found["repo"].replace("--", "/", 1), commit or found["commit"]
        pinned = f"{repo}@{at}" if at else repo
        return Origin(f"hf://{pinned}/{found['path']}" if found["path"] else pinned, repo, at)
    if "://" in path and not path.startswith("file://"):
        return Origin(without_secrets(path))
    return Origin(PurePath(path.replace("\\", "/").rstrip("/")).name or "the-source")


def _rows(receipt: Mapping[str, Any]) -> tuple[Row, ...]:
    """The table of fidelity: roles in the order of `ROLES`, in each the larger first."""
    found: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    arch, dialect = _arch(receipt), receipt["target"]["dialect"]
    for tensor in receipt["tensors"]:
        name, stored = _weight(tensor, arch, dialect)
        key = (_role(name, arch, dialect), stored, tensor["kind"], tensor["fidelity"])
        found.setdefault(key, []).append({**tensor, "name": name})
    rows = (
        Row(*key, len({t["name"] for t in ts}), sum(t["nbytes"] for t in ts), sum(t["changed"] for t in ts))
        for key, ts in found.items()
    )
    order = list(dict.fromkeys(("experts", BIASES, *ROLES.values(), "others")))
    return tuple(sorted(rows, key=lambda r: (order.index(r.role), -r.nbytes, r.stored, r.kind)))


def _arch(receipt: Mapping[str, Any]) -> Arch:
    """The architecture whose dialect names most tensors; there is no field for it in a receipt."""
    dialect = receipt["target"]["dialect"]
    known = [a for a in arches() if dialect in a.dialects]
    return max(known, key=lambda a: sum(_claimed(_weight(t, a, dialect)[0], a, dialect) for t in receipt["tensors"]))


def _claimed(name: str, arch: Arch, dialect: str) -> bool:
    return arch.dialects[dialect].claim(name) is not None


def _weight(tensor: Mapping[str, Any], arch: Arch, dialect: str) -> tuple[str, str]:
    """The weight that a stored tensor is of, and that weight's format."""
    name: str = tensor["name"]
    for suffix in arch.dialects[dialect].pair or ():
        if name.endswith(suffix):
            return name.removesuffix(suffix), "MXFP4"
    return name, tensor["dtype"]


@cache
def _kind(part: str) -> str:
    role = ROLES.get(part.removesuffix(".bias").rpartition(".")[2], "others")
    return BIASES if role == "experts" and part.endswith(".bias") else role


def _role(name: str, arch: Arch, dialect: str) -> str:
    claim = arch.dialects[dialect].claim(name)
    return "others" if claim is None else _kind(claim.join.parts[0])


def formats(rows: Iterable[Row]) -> str:
    """The formats of some rows in words, the one with most bytes first."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.stored] = sizes.get(row.stored, 0) + row.nbytes
    return " and ".join(sorted(sizes, key=lambda s: -sizes[s]))
