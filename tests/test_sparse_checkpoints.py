"""60 GiB of tensors in 512 MiB of address space: gpt-oss-120b's real headers over holes, as safetensors and as GGUF.

`inspect` and `convert --dry-run` read headers alone; `verify` reads sizes, then all, which takes minutes and runs by
night. Each is a process of its own under the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import header_checkpoints
import pytest

import ckpttool

ROOT = Path(__file__).parents[1]
CAPPED = """
import resource, shutil, types
resource.setrlimit(resource.RLIMIT_AS, (512 << 20,) * 2)
shutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 50)
from ckpttool.cli import main
main()
"""
"""Whatever the disk here holds: nothing is written."""


def capped(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """`ckpttool ARGV` in 512 MiB of address space."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", CAPPED, *map(str, argv)], capture_output=True, text=True, env=env, check=False
    )


@pytest.fixture(params=["safetensors", "gguf"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The checkpoint: more than 60 GiB that take no room."""
    source = header_checkpoints.write_headers(tmp_path / "120b", "120b", container=request.param)
    files = weights(source)
    assert sum(f.stat().st_size for f in files) > 60 << 30
    assert sum(f.stat().st_blocks * 512 for f in files) < 64 << 20
    return source


def weights(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.glob("*.safetensors"))


def test_headers_are_read(source: Path, tmp_path: Path) -> None:
    inspected = capped("inspect", source, "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["nbytes"] > 60 << 30
    target, to = ("out.gguf", "gguf") if source.is_file() else ("out", "bf16")
    planned = capped("convert", source, tmp_path / target, "--to", to, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stdout
    assert sum(f["nbytes"] for f in json.loads(planned.stdout)["files"]) > 60 << 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["120b"]


def write_receipt(source: Path, more: int) -> int:
    """A receipt that has every file `more` bytes longer, and a wrong CRC-32 for every tensor; how many there are."""
    tensors = [
        {"name": t.name, "file": t.file, "offset": t.offset, "nbytes": t.nbytes, "crc32": "00000001"}
        for w in ckpttool.open_checkpoint(source).weights
        for t in w.stored
    ]
    files = [
        {"name": f.name, "nbytes": f.stat().st_size + more, "crc32": "00000001", "sha256": None}
        for f in weights(source)
    ]
    path = source.with_name(f"{source.name}.receipt.json") if source.is_file() else source / "ckpttool.receipt.json"
    path.write_text(json.dumps({"schema": "conversion.v1", "files": files, "tensors": tensors}))
    return len(tensors)


def test_sizes_are_verified(source: Path) -> None:
    write_receipt(source, 1)
    done = capped("verify", source, "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert [f.split(":")[0] for f in findings if "the receipt says" in f] == [f.name for f in weights(source)]


@pytest.mark.nightly
def test_every_byte_is_verified(source: Path) -> None:
    tensors = write_receipt(source, 0)
    done = capped("verify", source, "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    assert sum(f.endswith("its bytes have changed") for f in found) == tensors
