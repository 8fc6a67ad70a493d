"""The catalogue of hostile safetensors, indexes and side files through every front end: 110 + 40 + 26 numbers.

Each number has one case or more, and none is left out: 154 + 71 + 54 cases, and 58 beside the catalogue. In this
process all but headers of a hundred megabytes; as processes, with 512 MiB of address space, every 30th in CI and all of
them in the nightly lane.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from front_ends import Hostile, alone, of_file, same_verdict
from index_cases import INDEXES
from index_checkpoints import CHECKPOINTS as FOLDERS
from index_checkpoints import of_index
from safetensors_cases import SAFETENSORS
from safetensors_checkpoints import CHECKPOINTS, LARGE
from side_file_cases import SIDE_FILES

HEADERS = [of_file("", case, "x.safetensors") for case in SAFETENSORS.values() if case.id != "GGUF"]
"""Alone, a GGUF of any name is one."""
ALL: list[Hostile] = [*HEADERS, *CHECKPOINTS, *map(of_index, INDEXES.values()), *FOLDERS, *SIDE_FILES]
NUMBER = re.compile(r"(ST\d{3}|IX\d\d|CF\d\d) .")
CATALOGUE = {"ST": ("03", 110), "IX": ("02", 40), "CF": ("02", 26)}


def ids(case: Hostile) -> str:
    return case.id


@pytest.mark.parametrize("case", ALL, ids=ids)
def test_every_front_end_says_the_same(case: Hostile, tmp_path: Path) -> None:
    same_verdict(case, tmp_path)


@pytest.mark.parametrize("case", ALL[::30], ids=ids)
def test_some_as_processes_in_512_mib(case: Hostile, tmp_path: Path) -> None:
    alone(case, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*ALL, *LARGE], ids=ids)
def test_all_as_processes_in_512_mib(case: Hostile, tmp_path: Path) -> None:
    alone(case, tmp_path)


def test_the_catalogue_is_complete() -> None:
    """Every number has a case, and no two cases have one name."""
    found = {m[1] for case in [*ALL, *LARGE] if (m := NUMBER.match(case.id))}
    assert found == {f"{kind}{i:{width}}" for kind, (width, count) in CATALOGUE.items() for i in range(1, count + 1)}
    names = [case.id for case in [*ALL, *LARGE] if NUMBER.match(case.id)]
    assert len(names) >= 154 + 71 + 54
    assert len(names) == len(set(names))
