"""Owners of sessions and stored uploads: limits, expiry and memory."""

from __future__ import annotations

import pytest

from ui.access import logins
from ui.access.bodies import StoredUploads
from ui.access.logins import SessionOwners


def test_a_session_is_its_first_visitors() -> None:
    owners = SessionOwners()
    assert not owners.may_use("one", "ada")
    assert owners.may_use("one", "ada", claim=True)
    assert owners.may_use("one", "ada")
    assert not owners.may_use("one", "bob")
    assert not owners.may_use("one", "bob", claim=True)


@pytest.mark.parametrize("name", [None, 1, ["a"], "", "a" * 65, "a b", "../x", "é"])
def test_a_name_that_is_none_is_nobodys(name: object) -> None:
    assert not SessionOwners().may_use(name, "ada", claim=True)


def test_sessions_expire_a_day_after_their_last_use() -> None:
    now = [0.0]
    owners = SessionOwners(clock=lambda: now[0])
    owners.may_use("one", "ada", claim=True)
    now[0] = 80_000.0
    assert owners.may_use("one", "ada")
    now[0] = 160_000.0
    assert not owners.may_use("one", "bob", claim=True)
    now[0] = 250_000.0
    assert owners.may_use("one", "bob", claim=True)


def test_one_visitor_cannot_push_out_the_sessions_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MAX_SESSIONS_OF_ONE", 5)
    monkeypatch.setattr(logins, "MAX_SESSIONS", 20)
    owners = SessionOwners()
    owners.may_use("adas", "ada", claim=True)
    for number in range(100):
        owners.may_use(f"s{number}", "eve", claim=True)
    assert len(owners) == 6
    assert owners.may_use("adas", "ada")
    for number in range(100):
        owners.may_use(f"t{number}", f"visitor{number}", claim=True)
    assert len(owners) == 20


def test_stored_uploads_have_limits_and_are_forgotten_with_the_files() -> None:
    now = [0.0]
    stored = StoredUploads(100, 150, clock=lambda: now[0])
    stored.add("ada", 90)
    assert "limit for one person" in str(stored.refusal("ada", 20))
    assert stored.refusal("bob", 60) is None
    stored.add("bob", 60)
    assert "limit here" in str(stored.refusal("eve", 1))
    stored.add("bob", -60)
    assert stored.refusal("eve", 1) is None
    now[0] = 26 * 3600.0
    assert stored.refusal("ada", 100) is None
    assert stored.refusal("ada", 30, "crowd") is None
    stored.add("eve", 30, "crowd")
    assert "limit for one address" in str(stored.refusal("ada", 10, "crowd"))
    assert stored.refusal("ada", 10, "home") is None
    stored.add("eve", -30, "crowd")
    assert stored.refusal("ada", 30, "crowd") is None
    unlimited = StoredUploads(0, 0)
    unlimited.add("ada", 1 << 50)
    assert unlimited.refusal("ada", 1 << 50, "crowd") is None
