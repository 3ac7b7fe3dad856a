"""Limits of requests that take no place in the queue."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ui.access import request_quota
from ui.access.bodies import BodyError
from ui.access.request_quota import MAX_AT_ONCE, MAX_PER_MINUTE, RequestQuota


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
    monkeypatch.setattr(request_quota, "_MAX_TRACKED", 10)
    quota = RequestQuota()
    for number in range(50):
        use(quota, f"cookie {number}")
    assert len(quota._recent) == 10
    assert not quota._running
