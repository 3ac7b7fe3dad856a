"""What the environment of a Space means for the program."""

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


def test_at_home_nothing_is_set_and_no_storage_is_looked_at(tmp_path: Path) -> None:
    found = space_settings({"SPACE_AUTHOR_NAME": "someone", "SPACES_ZERO_GPU": "true"}, tmp_path)
    assert found == SpaceSettings()
    assert not found.is_space
    assert found.training_access == "everyone"


def test_a_space_belongs_to_its_author_who_alone_may_train(tmp_path: Path) -> None:
    found = space_settings(SPACE, tmp_path / "none")
    assert found.is_space
    assert (found.id, found.owner, set(found.owners)) == ("someone/prompt-or-tune", "someone", {"someone"})
    assert found.host == "someone-prompt-or-tune.hf.space"
    assert found.oauth
    assert found.training_access == "owner"


def test_without_the_authors_name_the_id_says_it(tmp_path: Path) -> None:
    found = space_settings({"SPACE_ID": "lab/prompt-or-tune"}, tmp_path / "none")
    assert found.owner == "lab"
    assert not found.oauth


def test_an_organisation_names_its_people(tmp_path: Path) -> None:
    found = space_settings(SPACE | {"PROMPT_OR_TUNE_OWNERS": "ada, grace ,"}, tmp_path / "none")
    assert set(found.owners) == {"someone", "ada", "grace"}


@pytest.mark.parametrize(("said", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_nobody_trains_on_zero_gpu(said: str, expected: bool, tmp_path: Path) -> None:
    found = space_settings(SPACE | {"SPACES_ZERO_GPU": said}, tmp_path / "none")
    assert found.zero_gpu is expected
    assert found.training_access == ("nobody" if expected else "owner")


def test_storage_that_is_mounted_keeps_what_people_make(tmp_path: Path) -> None:
    assert space_settings(SPACE, tmp_path).persistent_cache_dir == tmp_path / "prompt-or-tune"
    assert list(tmp_path.iterdir()) == [], "the probe leaves nothing behind"


def test_a_home_that_is_set_stays(tmp_path: Path) -> None:
    assert space_settings(SPACE | {"PROMPT_OR_TUNE_HOME": "/elsewhere"}, tmp_path).persistent_cache_dir is None


def test_without_storage_nothing_is_promised(tmp_path: Path) -> None:
    assert space_settings(SPACE, tmp_path / "none").persistent_cache_dir is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_storage_that_may_only_be_read_is_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not sqlite_works(tmp_path)


def test_storage_without_room_for_a_database_is_none() -> None:
    # The kernel's own folder takes no files from anybody.
    assert not sqlite_works(Path("/proc"))
