"""The journal: what was added comes back; a torn or foreign one is not believed."""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path

import pytest

from ckpttool.errors import LocalIOError
from ckpttool.journal import Entry, Freed, Journal, read_entries, read_freed

ENTRIES = [Entry(3, (0, 0xFFFFFFFF), (0,)), Entry(0, (17,), (5, 0)), Entry(12, (1, 2, 3, 4), (0,))]


def written(path: Path, entries: list[Entry], digest: str = "plan") -> Path:
    journal = Journal(path, digest, [])
    for entry in entries:
        journal.add(entry)
    journal.close()
    return path


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", ENTRIES)
    assert read_entries(path, "plan") == ENTRIES
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())


def test_another_plan_or_none(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", ENTRIES)
    assert read_entries(path, "another") is None
    assert read_entries(tmp_path / "none", "plan") is None
    for data in (b"", b"\n", b"{", b'{"plan": 5}\n', b'["plan"]\n', b"\xff\xfe\n", b'{"plan": "pla\n'):
        path.write_bytes(data)
        assert read_entries(path, "plan") is None


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """Whole lines before the tear are kept; a last line is whole without its newline, for its bracket is there."""
    path = written(tmp_path / "journal", ENTRIES)
    data = path.read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    for n in range(len(data) + 1):
        path.write_bytes(data[:n])
        whole = sum(end <= n for end in ends)
        assert read_entries(path, "plan") == (ENTRIES[: whole - 1] if whole else None)


def checked(text: str) -> str:
    """The line with its CRC, as a journal would have it."""
    return f'{text[:-1]}, "check": {zlib.crc32(text.encode())}}}'


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "5",
        '{"slab": 1}',
        '{"slab": 1, "crcs": [2], "changed": [0]}',
        '{"slab": 1, "crcs": [2], "changed": [0], "check": 0}',
        *map(
            checked,
            [
                '{"slab": 1, "crcs": 5, "changed": [0]}',
                '{"slab": 1, "crcs": [], "changed": 0}',
                '{"slab": "0", "crcs": [1], "changed": [0]}',
                '{"slab": null, "crcs": [1], "changed": [0]}',
                '{"slab": 1.0, "crcs": [1], "changed": [0]}',
                '{"slab": true, "crcs": [1], "changed": [0]}',
                '{"slab": 1, "crcs": ["1"], "changed": [0]}',
                '{"slab": 1, "crcs": [1], "changed": [null]}',
                '{"slab": 1, "crcs": [1], "changed": "0"}',
                '{"slab": 1, "crcs": {"1": 2}, "changed": [0]}',
                '{"slab": 1, "crcs": [1], "changed": [-1]}',
                '{"slab": -1, "crcs": [1], "changed": [0]}',
            ],
        ),
    ],
)
def test_a_line_of_another_shape_ends_the_journal(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "journal", ENTRIES[:1])
    more = written(tmp_path / "more", ENTRIES[1:]).read_text().splitlines()[1:]
    path.write_text(path.read_text() + "\n".join([line, *more]) + "\n")
    assert read_entries(path, "plan") == ENTRIES[:1]


FREED = Freed("m-1.gguf", 70, "ab" * 32)


def test_files_that_are_freed_come_back_beside_slabs(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "plan", [ENTRIES[0], FREED])
    journal.add(Freed("m-2.gguf", 0, ""))
    journal.add(ENTRIES[1])
    journal.close()
    assert read_freed(tmp_path / "journal", "plan") == [FREED, Freed("m-2.gguf", 0, "")]
    assert read_entries(tmp_path / "journal", "plan") == ENTRIES[:2]
    assert read_freed(tmp_path / "journal", "another") == read_freed(tmp_path / "none", "plan") == []


@pytest.mark.parametrize(
    "line",
    [
        '{"file": 5, "nbytes": 1, "sha256": "ab"}',
        '{"file": null, "nbytes": 1, "sha256": "ab"}',
        '{"file": "x", "nbytes": 1, "sha256": null}',
        '{"file": "x", "nbytes": 1, "sha256": 7}',
        '{"file": "x", "nbytes": true, "sha256": "ab"}',
        '{"file": "x", "nbytes": 1.0, "sha256": "ab"}',
        '{"file": "x", "nbytes": -1, "sha256": "ab"}',
        '{"file": "x", "sha256": "ab"}',
        '{"file": "x", "nbytes": 1}',
    ],
)
def test_a_freed_file_of_another_shape_ends_the_journal(line: str, tmp_path: Path) -> None:
    """Though its CRC is right; one that is as it should be is read."""
    path = written(tmp_path / "journal", ENTRIES[:1])
    text = path.read_text()
    path.write_text(text + checked('{"file": "x", "nbytes": 1, "sha256": "ab"}') + "\n")
    assert read_freed(path, "plan") == [Freed("x", 1, "ab")]
    path.write_text(text + checked(line) + "\n" + checked('{"file": "x", "nbytes": 1, "sha256": "ab"}') + "\n")
    assert read_freed(path, "plan") == []


def test_a_line_of_ours_passes_that_check(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", [])
    path.write_text(path.read_text() + checked('{"slab": 1, "crcs": [2, 3], "changed": [0]}') + "\n")
    assert read_entries(path, "plan") == [Entry(1, (2, 3), (0,))]


def test_one_changed_byte_anywhere_ends_the_journal_there(tmp_path: Path) -> None:
    """Nothing of a damaged line is believed, though it may be good JSON: `changed` is checked by nothing else."""
    path = written(tmp_path / "journal", ENTRIES)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for at in range(first, len(data)):
        line = data[first:at].count(b"\n")
        for byte in (data[at] ^ 1, ord("0"), ord(" ")):
            if byte != data[at]:
                path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
                found = read_entries(path, "plan")
                assert found == ENTRIES[:line], (at, chr(byte))


def test_what_can_be_of_a_slab() -> None:
    """One count is of all parts together; else there is one of each."""
    assert all(Entry(0, (1, 2), changed).fits(2, 2) for changed in ((0,), (3, 4)))
    assert Entry(0, (1,), (5,)).fits(1, 1)
    assert not Entry(0, (1, 2), (0, 0, 0)).fits(2, 2)
    assert not Entry(0, (1, 2), ()).fits(2, 2)
    assert not Entry(0, (1,), (0,)).fits(2, 2)


def test_a_late_thread_cannot_write_into_another_file(tmp_path: Path) -> None:
    """The system gives the journal's number to whatever is opened next."""
    journal = Journal(tmp_path / "journal", "plan", [])
    journal.close()
    with (tmp_path / "other").open("wb"):
        with pytest.raises(ValueError, match="the journal is closed"):
            journal.add(ENTRIES[0])
        journal.close()
    assert (tmp_path / "other").read_bytes() == b""
    assert read_entries(tmp_path / "journal", "plan") == []


def test_a_disk_that_takes_a_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal", "plan", [])
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(LocalIOError, match="No space left"):
        journal.add(ENTRIES[0])
    journal.close()


def test_beginning_anew_keeps_what_is_believed_and_drops_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", ENTRIES)
    path.write_bytes(path.read_bytes()[:-4])
    journal = Journal(path, "plan", ENTRIES[:2])
    journal.add(ENTRIES[2])
    journal.close()
    assert read_entries(path, "plan") == ENTRIES
    assert [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "plan", [])

    def add(first: int) -> None:
        for i in range(first, first + 200):
            journal.add(Entry(i, (i, i + 1), (0,)))

    threads = [threading.Thread(target=add, args=(1000 * n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    journal.close()
    found = read_entries(tmp_path / "journal", "plan")
    assert found is not None
    assert len(found) == 1600
    assert {e.slab for e in found} == {1000 * n + i for n in range(8) for i in range(200)}
    assert all(e.crcs == (e.slab, e.slab + 1) for e in found)
