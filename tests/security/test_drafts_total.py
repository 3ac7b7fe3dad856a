"""Drafts of all visitors together: a total that many cookies cannot pass, and expired drafts make room first."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from tests import messages
from ui.train import drafts as module
from ui.train.drafts import DraftStore


def _visitor(number: int) -> str:
    return f"browser-{number:016x}"


def _upload(folder: Path, size: int) -> Path:
    path = folder / "mine.csv"
    path.write_bytes(b"x" * size)
    return path


def test_many_cookies_do_not_pass_the_total(tmp_path: Path) -> None:
    drafts, saved, message = DraftStore(tmp_path / "home", total_bytes=10_000), 0, ""
    for number in range(20):
        try:
            drafts.save_upload(_visitor(number), _upload(tmp_path, 2_000), 5_000)
            saved += 1
        except PromptOrTuneError as error:
            message = str(error)
    assert saved in (4, 5)
    assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("*.csv")) <= 10_000
    assert re.match(messages.DRAFTS_ARE_FULL, message)


def test_one_address_does_not_take_all_room(tmp_path: Path) -> None:
    drafts, saved = DraftStore(tmp_path / "home", total_bytes=100_000), 0
    for number in range(20):
        try:
            drafts.save_upload(_visitor(number), _upload(tmp_path, 4_000), 5_000, "crowd")
            saved += 1
        except PromptOrTuneError as error:
            assert "at your address" in str(error)  # noqa: PT017
    assert saved in (5, 6)
    drafts.save_upload(_visitor(30), _upload(tmp_path, 4_000), 5_000, "home")
    drafts.save_upload(_visitor(31), _upload(tmp_path, 4_000), 5_000)
    drafts.save_upload(_visitor(0), _upload(tmp_path, 4_000), 5_000, "crowd")


def test_one_address_does_not_take_all_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DRAFTS", 8)
    drafts = DraftStore(tmp_path / "home")
    for number in range(2):
        drafts.select_dataset(_visitor(number), "conala", "crowd")
    with pytest.raises(PromptOrTuneError, match="one address"):
        drafts.select_dataset(_visitor(2), "conala", "crowd")
    drafts.select_dataset(_visitor(0), "starter", "crowd")
    drafts.select_dataset(_visitor(3), "conala", "home")


def test_an_upload_replaces_the_own_one_where_all_is_full(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home", total_bytes=10_000)
    drafts.save_upload(_visitor(1), _upload(tmp_path, 9_000), 0)
    assert drafts.save_upload(_visitor(1), _upload(tmp_path, 9_500), 0).size == 9_500


def test_expired_drafts_make_room(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home", total_bytes=10_000)
    drafts.save_upload(_visitor(1), _upload(tmp_path, 9_000), 0)
    old = time.time() - 31 * 24 * 3600
    os.utime(tmp_path / "home" / "uploads" / _visitor(1) / "draft.json", (old, old))
    assert drafts.save_upload(_visitor(2), _upload(tmp_path, 9_000), 0).size == 9_000
    assert drafts.get(_visitor(1)) is None


def test_drafts_without_a_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DRAFTS", 3)
    drafts = DraftStore(tmp_path / "home", total_bytes=10_000)
    for number in range(3):
        drafts.select_dataset(_visitor(number), "conala")
    with pytest.raises(PromptOrTuneError, match=messages.DRAFTS_ARE_MANY):
        drafts.select_dataset(_visitor(9), "conala")
    drafts.select_dataset(_visitor(1), "starter")
