"""Modes of files: what people made is closed to others, and files of secrets that others can change are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.command import read_secrets, run_command
from common.files import atomic_dir, atomic_write, make_dir, make_private_dir, protect_home
from errors import PromptOrTuneError
from evaluate.arena.votes import VoteStore
from tests import messages
from tests.jobs.service import ServiceWithoutWorker, submit_named
from ui.arena.matches import MATCH_FOLDER, MatchStore
from ui.train.drafts import DraftStore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes.")
VISITOR = "browser-0123456789abcdef"


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o077]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_uploads_and_drafts_are_private(tmp_path: Path) -> None:
    upload = tmp_path / "mine.csv"
    upload.write_text("intent,code\na,b\n")
    DraftStore(tmp_path / "home").save_upload(VISITOR, upload, 0)
    assert not _open_to_others(tmp_path / "home" / "uploads")


def test_jobs_are_private(tmp_path: Path) -> None:
    rows = tmp_path / "mine.csv"
    rows.write_text("intent,code\na,b\n")
    submit_named(ServiceWithoutWorker(tmp_path / "home"), "lora-x", data=rows, data_name="mine.csv")
    assert not _open_to_others(tmp_path / "home" / "jobs")


def test_duels_and_votes_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.arena.matches.asdict", lambda match: {})
    match: Any = None
    MatchStore(tmp_path / MATCH_FOLDER).save(VISITOR, match)
    assert not _open_to_others(tmp_path / MATCH_FOLDER)
    votes = VoteStore(tmp_path / "votes.sqlite")
    votes._with_connection(lambda database: None)
    assert _mode(tmp_path / "votes.sqlite") == 0o600


def test_what_is_made_in_a_private_folder_is_private(tmp_path: Path) -> None:
    private = make_private_dir(tmp_path / "home")
    make_dir(private / "a" / "b")
    atomic_write(private / "a" / "c" / "file.json", "{}")
    with atomic_dir(private / "adapters" / "x") as building:
        (building / "deep").mkdir()
        (building / "deep" / "weights").write_text("w")
    assert not _open_to_others(private)


def test_what_is_made_elsewhere_has_the_usual_modes(tmp_path: Path) -> None:
    make_dir(tmp_path / "open" / "out")
    (tmp_path / "open").chmod(0o755)
    atomic_write(tmp_path / "open" / "file.json", "{}")
    make_dir(tmp_path / "open" / "b")
    assert (_mode(tmp_path / "open" / "file.json"), _mode(tmp_path / "open" / "b")) == (0o644, 0o755)


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name in ("jobs/1", "uploads/x", "adapters/y", "arena", "bases/z"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text("a")
    (home / "votes.sqlite").write_text("")
    return home


def test_an_existing_home_is_closed_when_a_command_starts(old_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(old_home))
    assert run_command(lambda: 0) == 0
    assert _mode(old_home) == 0o700
    for name in ("jobs", "uploads", "adapters", "arena", "votes.sqlite"):
        assert not _open_to_others(old_home / name)
    assert _mode(old_home / "bases" / "z" / "file") == 0o644, "bases may be shared"


def test_a_folder_with_other_things_in_it_stays_open(old_home: Path) -> None:
    (old_home / "thesis").mkdir()
    protect_home(old_home)
    assert (_mode(old_home), _mode(old_home / "thesis"), _mode(old_home / "jobs")) == (0o755, 0o755, 0o700)


def test_links_and_shared_files_stay(old_home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "hub"
    outside.mkdir()
    for name in ("blob", "hard"):
        (outside / name).write_text("weights")
    (old_home / "adapters" / "link").symlink_to(outside / "blob")
    (old_home / "adapters" / "folder").symlink_to(outside)
    os.link(outside / "hard", old_home / "adapters" / "hard")
    protect_home(old_home)
    assert {_mode(outside), _mode(outside / "blob"), _mode(outside / "hard")} == {0o755, 0o644}


def test_another_users_home_stays(old_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    protect_home(old_home)
    assert _mode(old_home / "jobs") == 0o755


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
def test_secrets_that_others_can_change_are_refused(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "logins.txt"
    file.write_text("alice:a long secret\n")
    file.chmod(mode)
    with pytest.raises(PromptOrTuneError, match=messages.SECRETS_CAN_BE_CHANGED) as refused:
        read_secrets(file, "NO_SUCH_VARIABLE", "logins", "--auth")
    assert "a long secret" not in str(refused.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o644, True), (0o640, True)])
def test_secrets_that_others_can_read_are_one_warning(
    mode: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("a long secret\n")
    file.chmod(mode)
    assert ("line 1 of" in read_secrets(file, "NO_SUCH_VARIABLE", "keys", "--api-key-file")[0][0]) is True
    written = capsys.readouterr().err
    assert (written.count("\n"), "chmod 600" in written) == ((1, True) if warned else (0, False))
    assert "a long secret" not in written
