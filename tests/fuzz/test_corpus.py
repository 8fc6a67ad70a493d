"""The corpus of the coverage-guided fuzzer: each input judged again, and in the nightly lane the fuzzer itself."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fuzz
import pytest
from judges import JUDGES, readable

from ckpttool.errors import CkptError

SECONDS = 120


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_corpus(target: str) -> None:
    """No defect, and both good and bad inputs."""
    verdicts = []
    for data in fuzz.corpus(target):
        assert len(data) <= fuzz.LARGEST
        verdicts.append(JUDGES[target](data))
        if isinstance(verdicts[-1], CkptError):
            readable(verdicts[-1])
    accepted = sum(not isinstance(v, CkptError) for v in verdicts)
    assert 0 < accepted < len(verdicts)


@pytest.mark.nightly
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_coverage_guided(target: str, tmp_path: Path) -> None:
    """Guided by coverage, from the corpus, no input shows a defect."""
    if find_spec("atheris") is None:
        assert not os.environ.get("CI"), "CI installs the extra `fuzz`"
        pytest.skip("no atheris here (pip install 'ckpttool[fuzz]'); CI has it")
    command = [sys.executable, fuzz.__file__, target, "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
