"""The options that say who may come in, who may train, and how much one person may have."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from space.settings import SpaceSettings
from ui.visitors import AUTH_VARIABLE, AccessOptions, add_access_options, parse_access_options

HERE, EVERYWHERE = "127.0.0.1", "0.0.0.0"


SPACE = SpaceSettings(id="ada/arena", owner="ada", owners=frozenset({"ada"}))


def access(*arguments: str, host: str = HERE, space: SpaceSettings | None = None) -> AccessOptions:
    parser = ArgumentParser()
    add_access_options(parser)
    return parse_access_options(parser.parse_args(arguments), host, space)


@pytest.fixture
def logins(tmp_path: Path) -> Path:
    file = tmp_path / "logins"
    file.write_text("# who\nada:correct horse\n\nbob:battery:staple\n")
    return file


def test_on_this_machine_everyone_may_train_and_nobody_logs_in() -> None:
    found = access()
    assert (found.policy.training, found.accounts, found.note) == ("everyone", (), "")


def test_where_strangers_come_in_nobody_may_train_and_a_line_says_so() -> None:
    found = access(host=EVERYWHERE)
    assert found.policy.training == "nobody"
    assert "--auth" in found.note
    assert access("--train", "everyone", host=EVERYWHERE).policy.training == "everyone"


def test_logins_open_training_and_the_first_one_owns(logins: Path) -> None:
    found = access("--auth", str(logins), host=EVERYWHERE)
    assert found.accounts == (("ada", "correct horse"), ("bob", "battery:staple"))
    assert found.policy.training == "everyone"
    assert found.policy.owners == {"ada"}
    assert access("--auth", str(logins), "--owner", "Bob").policy.owners == {"Bob"}


def test_a_space_is_trained_on_by_its_owner_and_zerogpu_by_nobody() -> None:
    policy = access(host=EVERYWHERE, space=SPACE).policy
    assert policy.training == "owner"
    assert policy.owners == {"ada"}
    lent = replace(SPACE, zero_gpu=True)
    assert access("--train", "everyone", host=EVERYWHERE, space=lent).policy.training == "nobody"


def test_logins_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH_VARIABLE, "ada:correct horse,bob:battery staple")
    assert [name for name, _ in access().accounts] == ["ada", "bob"]


def test_limits_are_whole_numbers_of_their_units() -> None:
    limits = access("--rows-per-hour", "0", "--max-upload", "5", "--jobs-at-once", "1").policy.limits
    assert (limits.rows_per_hour, limits.upload_bytes, limits.jobs_at_once) == (0, 5 << 20, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train", "owners"], "Unknown choice for --train 'owners': did you mean 'owner'?"),
        (["--train", "owner"], "--train owner needs an owner"),
        (["--rows-per-hour", "-3"], "--rows-per-hour '-3' is no whole number"),
        (["--max-upload", "9" * 30], "is no whole number"),
        (["--auth", "no/such"], "The logins in no/such cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(PromptOrTuneError) as refused:
        access(*arguments)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("text", ["ada", "ada:short", ":no name at all", "ada:correct horse\nADA:another one", ""])
def test_a_faulty_file_of_logins_is_refused_without_its_passwords(tmp_path: Path, text: str) -> None:
    file = tmp_path / "logins"
    file.write_text(text)
    with pytest.raises(PromptOrTuneError) as refused:
        access("--auth", str(file))
    for secret in ("short", "correct horse", "another one"):
        assert secret not in str(refused.value)


def test_an_owner_without_a_login_is_refused(logins: Path) -> None:
    with pytest.raises(PromptOrTuneError, match="--owner 'eve' has no login"):
        access("--auth", str(logins), "--owner", "eve")
