"""Guesses at logins (case 10): who waits, who never does, and what is remembered."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from ui.access import logins
from ui.access.logins import FAILURES_OF_ADDRESS, FAILURES_OF_NAME, FREE_FAILURES, LoginGuard, login_address

HOME, SCHOOL = "10.0.0.1", "10.0.0.2"


class Door:
    """A LoginGuard with a clock of its own; `try_login` returns True, False or 'wait'."""

    def __init__(self) -> None:
        self.now = 0.0
        self.guard = LoginGuard([("ada", "correct horse"), ("bob", "battery staple")], clock=lambda: self.now)

    def try_login(self, name: str, password: str, address: str = HOME) -> bool | str:
        login_address.set(address)
        try:
            return self.guard(name, password)
        except HTTPException as error:
            self.status = error.status_code
            self.seconds = int((error.headers or {})["Retry-After"])
            return "wait"


@pytest.fixture
def door() -> Iterator[Door]:
    yield Door()
    login_address.set("")


def test_right_and_wrong_logins(door: Door) -> None:
    assert door.try_login("ada", "correct horse") is True
    for name, password in (
        ("ada", "battery staple"),
        ("Ada", "correct horse"),
        ("", ""),
        ("ada\ud800", "é"),
        ("eve", "x"),
    ):
        assert door.try_login(name, password) is False


def test_guesses_wait_longer_each_time(door: Door) -> None:
    waits, tried = [], 0
    while door.now < 3600:
        if door.try_login("ada", f"guess {tried}") == "wait":
            waits.append(door.seconds)
            door.now += door.seconds
        else:
            tried += 1
    assert door.status == 429
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) <= 900
    assert tried < 20


def test_an_address_has_a_number_of_failures_whatever_the_names(door: Door) -> None:
    results = [door.try_login(f"name {number}", "guess") for number in range(500)]
    assert results.count(False) == FAILURES_OF_ADDRESS
    assert door.try_login("ada", "correct horse") == "wait"
    assert door.try_login("ada", "correct horse", SCHOOL) is True


def test_guessing_a_name_does_not_lock_out_its_owner(door: Door) -> None:
    for number in range(2 * FAILURES_OF_NAME):
        door.try_login("ada", "guess", f"10.1.{number // 200}.{number % 200}")
    assert door.try_login("ada", "guess", SCHOOL) is False
    assert door.try_login("ada", "guess", SCHOOL) == "wait"  # one attempt instead of FREE_FAILURES
    assert door.try_login("ada", "correct horse", HOME) is True


def test_a_success_ends_the_wait_of_its_name_alone(door: Door) -> None:
    for _ in range(FREE_FAILURES - 1):
        door.try_login("ada", "guess")
    assert door.try_login("ada", "correct horse") is True
    assert [door.try_login("ada", "guess") for _ in range(FREE_FAILURES)] == [False] * FREE_FAILURES
    for number in range(FAILURES_OF_ADDRESS):
        door.try_login("bob", "battery staple")
        door.try_login(f"name {number}", "guess")
    assert door.try_login("bob", "battery staple") == "wait"


def test_memory_is_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "_MAX_ENTRIES", 50)
    for number in range(300):
        door.try_login("n" * 1000 + str(number), "guess", f"10.2.{number}.1")
    assert max(map(len, (door.guard._pairs, door.guard._addresses, door.guard._names))) <= 50


def test_every_account_is_compared(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(len(first))
        return real(first, second)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for name in ("ada", "eve", "b" * 9999):
        compared.clear()
        door.try_login(name, "guess", f"10.3.0.{len(name) % 250}")
        assert compared == [32] * 4
