"""Fixtures for stand-in servers and backends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from serve.backends.remote.backend import OpenAIBackend
from tests.serve.remote.standin import StandIn, served


@pytest.fixture
def serve() -> Iterator[Callable[[StandIn], StandIn]]:
    """Return a function that serves a stand-in until the test ends."""
    with ExitStack() as stack:
        yield lambda standin: stack.enter_context(served(standin))


@pytest.fixture
def connect() -> Iterator[Callable[..., OpenAIBackend]]:
    """Return a function that makes a backend for an address; the backends are closed at the end of the test."""
    opened: list[OpenAIBackend] = []

    def make(url: str, **options: Any) -> OpenAIBackend:
        opened.append(OpenAIBackend(url, **options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
