"""Visitor identity, access options, quotas and upload sizes."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from errors import BusyError, PromptOrTuneError
from serve.api.auth import add_web_options, read_web_access
from space.settings import SpaceSettings
from tests import messages
from ui.access.guard import COOKIE_NAME, OLD_COOKIE_NAME, VisitorRegistry
from ui.access.policy import AUTH_VARIABLE, AccessOptions, AccessPolicy, add_access_options, parse_access_options
from ui.access.quota import VisitorLimits, VisitorQuota, check_upload_size

TOKEN = "a" * 32


def request(cookie: str = "", username: str | None = None, host: str = "10.0.0.9", **scope: Any) -> Any:
    """Return a `gr.Request` with the parts that identify a visitor."""
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())] if cookie else []
    headers += scope.pop("headers", [])
    headers += [(b"x-forwarded-for", scope.pop("forwarded").encode())] if "forwarded" in scope else []
    inner = Request({"type": "http", "headers": headers, "client": (host, 1), **scope})
    return SimpleNamespace(request=inner, username=username)


def test_cookie_identifies_a_browser() -> None:
    visitors = VisitorRegistry()
    first = visitors.identify(request(TOKEN, host="10.0.0.1"))
    assert first == visitors.identify(request(TOKEN, host="10.0.0.2"))
    assert first.id != visitors.identify(request("b" * 32)).id
    assert TOKEN not in first.id


def test_login_takes_precedence_and_ignores_case() -> None:
    visitors = VisitorRegistry(AccessPolicy(owners=frozenset({"Ada"})))
    ada = visitors.identify(request(TOKEN, username="ada"))
    assert (ada.name, ada.owner) == ("ada", True)
    assert ada.id == visitors.identify(request("b" * 32, username="ADA")).id
    assert not visitors.identify(request(TOKEN, username="bob")).owner
    assert not visitors.identify(request(TOKEN)).owner


def test_hub_login_is_valid_until_it_expires() -> None:
    visitors = VisitorRegistry(AccessPolicy(owners=frozenset({"ada"})))
    info = {"userinfo": {"preferred_username": "ada"}, "expires_at": time.time() + 60}
    assert visitors.identify(request(session={"oauth_info": info})).name == "ada"
    ended = {**info, "expires_at": time.time() - 1}
    assert visitors.identify(request(TOKEN, session={"oauth_info": ended})).name == ""


def test_cookie_of_an_earlier_version_identifies_its_browser() -> None:
    old = request(headers=[(b"cookie", f"{OLD_COOKIE_NAME}={TOKEN}".encode())])
    assert VisitorRegistry().identify(old) == VisitorRegistry().identify(request(TOKEN))


def test_invalid_cookie_is_ignored() -> None:
    visitors = VisitorRegistry()
    for forged in ("short", "x" * 65, "../../etc/passwd" * 3, "a b" * 12):
        assert visitors.identify(request(forged)).id.startswith("address-")


def test_forwarded_address_is_trusted_on_spaces_only(monkeypatch: pytest.MonkeyPatch) -> None:
    visitors = VisitorRegistry()
    plain = visitors.identify(request(host="10.0.0.9", forwarded="1.1.1.1, 2.2.2.2"))
    assert plain == visitors.identify(request(host="10.0.0.9"))  # outside a Space a client could forge that header
    monkeypatch.setenv("SPACE_ID", "ada/arena")
    assert visitors.identify(request(forwarded="1.1.1.1, 2.2.2.2")) == visitors.identify(request(forwarded="2.2.2.2"))
    assert visitors.identify(request(forwarded="2.2.2.2")).id != plain.id


def test_policy_decides_who_may_train() -> None:
    anybody, ada = request(TOKEN), request(TOKEN, username="ada")
    everyone, owner, nobody = (
        VisitorRegistry(AccessPolicy(training=who, owners=frozenset({"ada"})))
        for who in ("everyone", "owner", "nobody")
    )
    assert everyone.policy.may(everyone.identify(anybody), "train")
    assert owner.policy.may(owner.identify(ada), "train")
    assert "Only ada may train" in str(owner.policy.denied_reason(owner.identify(anybody), "train"))
    assert "switched off" in str(nobody.policy.denied_reason(nobody.identify(ada), "train"))


def test_quota_limits_concurrent_answers() -> None:
    quota = VisitorQuota(VisitorLimits(rows_at_once=4))
    with quota.reserve("ada", 3):
        with pytest.raises(BusyError, match=messages.THREE_ANSWERS_RUN), quota.reserve("ada", 2):
            pass
        with quota.reserve("bob", 4):
            pass
    with quota.reserve("ada", 4):
        pass


def test_quota_limits_answers_per_hour() -> None:
    now = [0.0]
    quota = VisitorQuota(VisitorLimits(rows_at_once=0, rows_per_hour=10), clock=lambda: now[0])
    for minute in (0, 10):
        now[0] = 60.0 * minute
        with quota.reserve("ada", 5):
            pass
    with pytest.raises(BusyError, match=messages.RETRY_IN_50_MINUTES) as refused, quota.reserve("ada", 1):
        pass
    assert refused.value.seconds == pytest.approx(3000)
    now[0] = 3601.0
    with quota.reserve("ada", 5):
        pass


def test_zero_means_no_limit() -> None:
    quota = VisitorQuota(VisitorLimits(rows_at_once=0, rows_per_hour=0))
    with quota.reserve("ada", 10_000), quota.reserve("ada", 10_000):
        check_upload_size(10**12, 0)


def test_upload_size_error_names_file_and_limit() -> None:
    check_upload_size(100, 100)
    with pytest.raises(PromptOrTuneError, match=messages.MY_CSV_TOO_LARGE):
        check_upload_size(30_000_000, 20_000_000, "my.csv")


HERE, EVERYWHERE = "127.0.0.1", "0.0.0.0"


SPACE = SpaceSettings(id="ada/arena", owner="ada", owners=frozenset({"ada"}))


def access(*arguments: str, host: str = HERE, space: SpaceSettings | None = None) -> AccessOptions:
    parser = ArgumentParser()
    add_access_options(parser)
    add_web_options(parser)
    args = parser.parse_args(arguments)
    return parse_access_options(args, read_web_access(args, host), space)


@pytest.fixture
def logins(tmp_path: Path) -> Path:
    file = tmp_path / "logins"
    file.write_text("# who\nada:correct horse\n\nbob:battery:staple\n")
    return file


def test_local_host_allows_training_without_login() -> None:
    options = access()
    assert (options.policy.training, options.accounts, options.note) == ("everyone", (), "")


def test_public_host_denies_training_with_a_note() -> None:
    options = access(host=EVERYWHERE)
    assert options.policy.training == "nobody"
    assert "--auth" in options.note
    assert access("--train", "everyone", host=EVERYWHERE).policy.training == "everyone"


def test_logins_allow_training_and_the_first_one_is_owner(logins: Path) -> None:
    options = access("--auth", str(logins), host=EVERYWHERE)
    assert options.accounts == (("ada", "correct horse"), ("bob", "battery:staple"))
    assert options.policy.training == "everyone"
    assert options.policy.owners == {"ada"}
    assert access("--auth", str(logins), "--owner", "Bob").policy.owners == {"Bob"}


def test_space_allows_training_for_its_owner_except_on_zerogpu() -> None:
    policy = access(host=EVERYWHERE, space=SPACE).policy
    assert policy.training == "owner"
    assert policy.owners == {"ada"}
    zero_gpu_policy = replace(SPACE, zero_gpu=True)
    assert access("--train", "everyone", host=EVERYWHERE, space=zero_gpu_policy).policy.training == "nobody"


def test_logins_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH_VARIABLE, "ada:correct horse,bob:battery staple")
    assert [name for name, _ in access().accounts] == ["ada", "bob"]


def test_where_nobody_trains_no_upload_is_as_large_as_an_adapter() -> None:
    assert access("--train", "nobody", "--max-upload", "10").upload_limits().archive_bytes == 10 << 20
    assert access("--max-upload", "10").upload_limits().archive_bytes == 200 << 20


def test_limits_are_parsed_in_their_units() -> None:
    limits = access("--rows-per-hour", "0", "--max-upload", "5", "--jobs-at-once", "1").policy.limits
    assert (limits.rows_per_hour, limits.upload_bytes, limits.jobs_at_once) == (0, 5 << 20, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "owners"], "Unknown choice for --train 'owners': did you mean 'owner'?"),
        (["--train", "owner"], "--train owner needs an owner"),
        (["--rows-per-hour", "-3"], "--rows-per-hour '-3' is no whole number"),
        (["--max-upload", "9" * 30], "is no whole number"),
        (["--auth", "no/such"], "The logins in no/such cannot be read"),
    ],
)
def test_invalid_options_raise_a_clear_error(arguments: list[str], message: str) -> None:
    with pytest.raises(PromptOrTuneError) as refused:
        access(*arguments)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["ada", "ada:short", ":no name at all", "ada:correct horse\nADA:another one", ""])
def test_invalid_login_file_error_contains_no_password(tmp_path: Path, text: str) -> None:
    file = tmp_path / "logins"
    file.write_text(text)
    with pytest.raises(PromptOrTuneError) as refused:
        access("--auth", str(file))
    for secret in ("short", "correct horse", "another one"):
        assert secret not in str(refused.value)


def test_owner_without_login_is_refused(logins: Path) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.OWNER_WITHOUT_LOGIN):
        access("--auth", str(logins), "--owner", "eve")
