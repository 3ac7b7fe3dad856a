"""Append-only files: crashes, concurrent writers, a full disk, and compressed files."""

from __future__ import annotations

import gzip
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError
from evaluate.journal import Journal, read_records
from tests import messages

RECORDS: list[dict[str, Any]] = [{"kind": "a", "n": index, "text": "é\ud800\n" * index} for index in range(4)]


def written(path: Path) -> bytes:
    journal = Journal.open(path)
    journal.append(RECORDS)
    journal.close()
    return path.read_bytes()


def test_appended_records_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    content = written(path)
    assert read_records(path) == (RECORDS, len(content))
    journal = Journal.open(path)
    journal.append([{"more": True}])
    journal.close()
    assert read_records(path)[0] == [*RECORDS, {"more": True}]


def test_truncated_file_loses_only_its_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    content = written(path)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        records, end = read_records(path)
        assert records == RECORDS[:whole]
        journal = Journal.open(path)
        journal.truncate(end)
        journal.append([{"next": size}])
        journal.close()
        assert read_records(path)[0] == [*RECORDS[:whole], {"next": size}]


def test_zero_bytes_after_a_power_cut_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    content = written(path)
    path.write_bytes(content + b"\0\0\0\n\0\0")
    assert read_records(path) == (RECORDS, len(content))


@pytest.mark.parametrize("line", [b"{broken\n", b"[1]\n", b"\n", b"7\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_incomplete_line_before_a_complete_one_raises(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    content = written(path)
    path.write_bytes(content + line + b"{}\n")
    with pytest.raises(ValueError, match=messages.INCOMPLETE_LINE):
        read_records(path)


def test_second_writer_gets_an_error_until_the_first_closes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first = Journal.open(path)
    first.append(RECORDS)
    with pytest.raises(PromptOrTuneError, match=messages.FILE_IS_BEING_WRITTEN):
        Journal.open(path)
    first.replace(RECORDS[:1])
    with pytest.raises(PromptOrTuneError, match=messages.FILE_IN_USE):
        Journal.open(path)
    first.close()
    Journal.open(path).close()
    assert read_records(path)[0] == RECORDS[:1]


def test_replace_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    before = written(path)
    journal = Journal.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(PromptOrTuneError, match=messages.NO_SPACE_LEFT):
            journal.replace([{"new": True}])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]
    journal.append([{"still": "ours"}])
    journal.close()
    assert read_records(path)[0] == [*RECORDS, {"still": "ours"}]


def test_failed_append_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    before = written(path)
    journal = Journal.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(PromptOrTuneError, match=messages.NO_SPACE_LEFT):
            journal.append([{"lost": True}])
    journal.close()
    assert path.read_bytes() == before


def test_empty_file_is_removed_on_close(tmp_path: Path) -> None:
    Journal.open(tmp_path / "x.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_gzip_files_are_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    path.write_bytes(gzip.compress(lines))
    assert read_records(path) == (RECORDS, len(lines))
    with pytest.raises(PromptOrTuneError, match=messages.GUNZIP_FIRST):
        Journal.open(path)
    for damaged in (path.read_bytes()[:-9], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)):
            read_records(path)


def test_folder_and_unwritable_path_raise_before_any_write(tmp_path: Path) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.IS_A_FOLDER):
        Journal.open(tmp_path)
    with pytest.raises(PromptOrTuneError, match=messages.CANNOT_WRITE):
        Journal.open(Path("/proc/x.jsonl"))


@pytest.mark.skipif(os.geteuid() == 0, reason="Root may write everything.")
def test_read_only_file_raises_before_any_write(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    written(path)
    path.chmod(stat.S_IRUSR)
    with pytest.raises(PromptOrTuneError, match=messages.CANNOT_WRITE):
        Journal.open(path)


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")
