"""Every hostile header through `inspect --check`: reported, and never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import run
from gguf_cases import GGUF
from hostile_files import Case
from safetensors_cases import SAFETENSORS
from test_schemas import check


@pytest.mark.parametrize(("name", "cases"), [("x.safetensors", SAFETENSORS), ("x.gguf", GGUF)])
def test_no_hostile_header_gets_by(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    """What the parsers refuse is an error finding, or too large, or another container's sound file; never a bug."""
    for case in cases.values():
        (tmp_path / name).write_bytes(case.data)
        result = run("inspect", tmp_path / name, "--check", "--json")
        document = result.document
        if result.code == 6:
            assert document["errors"][0]["kind"] == "limit", case.id
            continue
        check("inspection.v1", document)
        errors = [f for f in document["findings"] if f["severity"] == "error"]
        assert result.code == bool(errors), case.id
        assert errors or document["container"] not in name, case.id
