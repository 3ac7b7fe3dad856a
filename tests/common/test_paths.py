"""The cache folder, and the migration of the cache and variables with the product's old name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.command import run_command
from common.files import adopt_old_variables, cache_dir, take_over_old_cache
from errors import PromptOrTuneError


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a temporary home folder, and remove all variables of the product."""
    for name in [name for name in os.environ if name.startswith(("PROMPT_OR_TUNE_", "PEFT_ARENA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache").mkdir()
    return tmp_path / ".cache"


def make_old_cache(parent: Path) -> Path:
    old = parent / "peft-arena"
    for name in ("adapters/mine/manifest.json", "jobs/20260101-000000-000000-abcdef/job.json", "votes.sqlite"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(name)
    return old


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_cache_folder_is_set_by_the_variable_or_the_default(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == user_home / "prompt-or-tune"
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", "~/elsewhere")
    assert cache_dir() == user_home.parent / "elsewhere"


def test_old_cache_is_moved_once_and_reported_in_one_line(user_home: Path) -> None:
    old, lines = make_old_cache(user_home), list[str]()
    before = files_below(old)
    take_over_old_cache(lines.append)
    assert files_below(cache_dir()) == before
    assert not cache_dir().is_symlink()
    assert old.resolve() == cache_dir().resolve(), "absolute paths in job files are still valid"
    take_over_old_cache(lines.append)
    assert len(lines) == 1
    assert str(cache_dir()) in lines[0]


def test_nothing_is_reported_without_an_old_cache(user_home: Path) -> None:
    lines = list[str]()
    take_over_old_cache(lines.append)
    assert lines == []
    assert list(user_home.iterdir()) == []


def test_old_cache_is_merged_into_the_new_one_without_overwriting(user_home: Path) -> None:
    old, lines = make_old_cache(user_home), list[str]()
    new = cache_dir()
    (new / "adapters" / "other").mkdir(parents=True)
    (new / "votes.sqlite").write_text("newer votes")
    take_over_old_cache(lines.append)
    assert (new / "adapters" / "mine" / "manifest.json").is_file()
    assert (new / "jobs" / "20260101-000000-000000-abcdef" / "job.json").is_file()
    assert (new / "votes.sqlite").read_text() == "newer votes"
    assert (old / "votes.sqlite").read_text() == "votes.sqlite"
    take_over_old_cache(lines.append)
    assert len(lines) == 1


def test_old_cache_that_cannot_be_moved_is_linked(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, lines = make_old_cache(user_home), list[str]()

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    take_over_old_cache(lines.append)
    assert cache_dir().is_symlink()
    assert files_below(cache_dir().resolve()) == files_below(old)
    assert len(lines) == 1


def test_old_cache_is_not_moved_if_the_user_sets_a_folder(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_old_cache(user_home)
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(user_home / "mine"))
    take_over_old_cache(lambda _: None)
    assert not old.is_symlink()
    assert not (user_home / "mine").exists()


def test_old_variables_are_read_unless_the_new_ones_are_set(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_ARENA_HOME", str(user_home / "old"))
    monkeypatch.setenv("PEFT_ARENA_BASE", "owner/old")
    monkeypatch.setenv("PROMPT_OR_TUNE_BASE", "owner/new")
    monkeypatch.delenv("PROMPT_OR_TUNE_HOME", raising=False)
    lines = list[str]()
    adopt_old_variables(lines.append)
    try:
        assert cache_dir() == user_home / "old"
        assert os.environ["PROMPT_OR_TUNE_BASE"] == "owner/new"
        assert len(lines) == 1
        assert "PEFT_ARENA_HOME" in lines[0]
    finally:
        os.environ.pop("PROMPT_OR_TUNE_HOME", None)


@pytest.mark.usefixtures("user_home")
def test_run_command_returns_the_status_and_prints_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise PromptOrTuneError("Something is wrong: fix it.")

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run_command(lambda: None) == 0
    assert run_command(lambda: 7) == 7
    assert run_command(fail, "train") == 2
    assert capsys.readouterr().err == "train: Something is wrong: fix it.\n"
    assert run_command(interrupt, stopped="Stopped early.") == 130
    assert capsys.readouterr().err == "Stopped early.\n"
