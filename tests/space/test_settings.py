"""Settings that the program reads from the environment of a Space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from space.settings import SpaceSettings, space_settings, sqlite_works

SPACE = {
    "SPACE_ID": "someone/prompt-or-tune",
    "SPACE_AUTHOR_NAME": "someone",
    "SPACE_HOST": "someone-prompt-or-tune.hf.space",
    "OAUTH_CLIENT_ID": "client",
}


def test_outside_a_space_all_settings_are_empty(tmp_path: Path) -> None:
    found = space_settings({"SPACE_AUTHOR_NAME": "someone", "SPACES_ZERO_GPU": "true"}, tmp_path)
    assert found == SpaceSettings()
    assert not found.is_space
    assert found.training_access == "everyone"


def test_only_the_author_owns_the_space_and_may_train(tmp_path: Path) -> None:
    found = space_settings(SPACE, tmp_path / "none")
    assert found.is_space
    assert (found.id, found.owner, set(found.owners)) == ("someone/prompt-or-tune", "someone", {"someone"})
    assert found.host == "someone-prompt-or-tune.hf.space"
    assert found.oauth
    assert found.training_access == "owner"


def test_owner_is_taken_from_the_id_without_an_author(tmp_path: Path) -> None:
    found = space_settings({"SPACE_ID": "lab/prompt-or-tune"}, tmp_path / "none")
    assert found.owner == "lab"
    assert not found.oauth


def test_variable_adds_owners(tmp_path: Path) -> None:
    found = space_settings(SPACE | {"PROMPT_OR_TUNE_OWNERS": "ada, grace ,"}, tmp_path / "none")
    assert set(found.owners) == {"someone", "ada", "grace"}


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_training_is_disabled_on_zero_gpu(value: str, expected: bool, tmp_path: Path) -> None:
    found = space_settings(SPACE | {"SPACES_ZERO_GPU": value}, tmp_path / "none")
    assert found.zero_gpu is expected
    assert found.training_access == ("nobody" if expected else "owner")


def test_mounted_storage_is_the_cache_folder(tmp_path: Path) -> None:
    assert space_settings(SPACE, tmp_path).persistent_cache_dir == tmp_path / "prompt-or-tune"
    assert list(tmp_path.iterdir()) == [], "the probe leaves no files"


def test_cache_folder_variable_has_precedence_over_storage(tmp_path: Path) -> None:
    assert space_settings(SPACE | {"PROMPT_OR_TUNE_HOME": "/elsewhere"}, tmp_path).persistent_cache_dir is None


def test_without_storage_there_is_no_persistent_folder(tmp_path: Path) -> None:
    assert space_settings(SPACE, tmp_path / "none").persistent_cache_dir is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_storage_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not sqlite_works(tmp_path)


def test_storage_without_support_for_a_database_is_not_used() -> None:
    # No file can be created in /proc.
    assert not sqlite_works(Path("/proc"))
