"""How a repo would store files: as large ones, or as text in git, by its .gitattributes; or not at all."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from ckpttool.errors import UsageError
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS: Final = (".safetensors", ".gguf")
_BATCH: Final = 256
"""Files that the Hub answers for at once."""


@dataclass(frozen=True)
class Mode:
    """`large`: kept beside git, by its sha256. `ignored`: the repo's .gitignore leaves it out of a commit."""

    large: bool
    ignored: bool


def ask(calls: Calls, files: Mapping[str, tuple[int, bytes]]) -> dict[str, Mode]:
    """How each file would be stored, by its name, its bytes and the first 512 of them. NetworkError: no answer."""
    rows = [
        {"path": n, "size": size, "sample": base64.b64encode(sample[:512]).decode()}
        for n, (size, sample) in files.items()
    ]
    found: dict[str, Mode] = {}
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        found |= calls.ask(lambda api, batch=batch: _answered(api, calls.target, batch))  # type: ignore[misc]
    return found


def _answered(api: HfApi, target: RepoTarget, batch: list[dict[str, object]]) -> dict[str, Mode]:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().post(
        f"{target.hub}/api/models/{target.id}/preupload/{quote(target.branch, safe='')}",
        headers=build_hf_headers(library_name=api.library_name, library_version=api.library_version),
        json={"files": batch},
        params={"create_pr": "1"} if target.pr else None,
    )
    hf_raise_for_status(response)
    modes = {r["path"]: Mode(r["uploadMode"] == "lfs", bool(r.get("shouldIgnore"))) for r in response.json()["files"]}
    return {str(row["path"]): modes[str(row["path"])] for row in batch}


def refuse(mode: Mode, name: str, target: RepoTarget) -> None:
    """UsageError where the repo would leave a file out, or keep weights as text."""
    if mode.ignored:
        what = "the repo's .gitignore leaves it out"
        raise UsageError(what, file=name, hint=f"change {target.url}/blob/{target.branch}/.gitignore")
    if name.endswith(WEIGHTS) and not mode.large:
        what = "the repo would store it as text, since its .gitattributes does not track such files"
        raise UsageError(what, file=name, hint=tracking(name, target))


def tracking(name: str, target: RepoTarget) -> str:
    """What to do so that files like `name` are stored as large ones."""
    ending = name.rpartition(".")[2]
    line = f"*.{ending} filter=lfs diff=lfs merge=lfs -text"
    return f"add the line '{line}' to {target.url}/blob/{target.branch}/.gitattributes"
