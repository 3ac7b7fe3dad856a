"""The rate of requests of an address, and limits of requests that take no place in the queue."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from ui.access import quota as quota_module
from ui.access.bodies import BodyError
from ui.access.quota import BURST_SECONDS, MAX_AT_ONCE, MAX_DELAY_SECONDS, MAX_PER_MINUTE, RequestPace, RequestQuota


def use(quota: RequestQuota, who: str, count: int = 1) -> None:
    for _ in range(count):
        with quota.reserve(who):
            pass


def test_requests_at_once_are_limited_for_each_visitor() -> None:
    quota = RequestQuota()
    with ExitStack() as stack:
        for _ in range(MAX_AT_ONCE):
            stack.enter_context(quota.reserve("mallory"))
        with pytest.raises(BodyError) as refused:
            use(quota, "mallory")
        assert refused.value.status == 429
        use(quota, "ada")
    use(quota, "mallory")


def test_requests_within_a_minute_are_limited() -> None:
    now = [0.0]
    quota = RequestQuota(lambda: now[0])
    use(quota, "mallory", MAX_PER_MINUTE)
    with pytest.raises(BodyError):
        use(quota, "mallory")
    use(quota, "ada")
    now[0] = 60.0
    use(quota, "mallory")


def test_visitors_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "_MAX_TRACKED", 10)
    quota = RequestQuota()
    for number in range(50):
        use(quota, f"cookie {number}")
    assert len(quota._recent) == 10
    assert not quota._running


def delays(pace: RequestPace, slept: list[float], address: str, costs: list[float]) -> list[float | None]:
    """Return how long each request of these costs is delayed; None for one that is refused."""

    async def ask(cost: float) -> float | None:
        slept.append(0.0)
        try:
            await pace.wait(address, cost)
        except BodyError:
            return None
        return slept[-1]

    async def ask_all() -> list[float | None]:
        return [await ask(cost) for cost in costs]

    return asyncio.run(ask_all())


def test_requests_beyond_a_rate_are_delayed_then_refused() -> None:
    now, slept = [0.0], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = RequestPace(10.0, lambda: now[0], sleep)
    burst, waiting = int(10 * BURST_SECONDS), int(10 * MAX_DELAY_SECONDS)
    got = delays(pace, slept, "crowd", [1.0] * (burst + waiting + 3))
    assert got[:burst] == [0.0] * burst
    assert got[burst : burst + 3] == pytest.approx([0.1, 0.2, 0.3])
    assert got[burst + waiting - 1] == pytest.approx(MAX_DELAY_SECONDS)
    assert got[-3:] == [None] * 3
    assert delays(pace, slept, "home", [10.0, 1.0]) == [0.0, 0.0]
    now[0] = BURST_SECONDS + MAX_DELAY_SECONDS
    assert delays(pace, slept, "crowd", [1.0]) == [0.0]


def test_rate_of_zero_is_no_limit() -> None:
    assert delays(RequestPace(0), [], "crowd", [1.0] * 1000) == [0.0] * 1000


def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "_MAX_TRACKED", 10)
    pace = RequestPace(1.0)
    for number in range(50):
        delays(pace, [], str(number), [1.0])
    assert len(pace._rested) == 10
