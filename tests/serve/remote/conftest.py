"""Stand-ins for servers, and backends on them that are closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from serve.backends.remote.backend import OpenAIBackend
from tests.serve.remote.standin import StandIn, served


@pytest.fixture
def serve() -> Iterator[Callable[[StandIn], StandIn]]:
    """Serves a stand-in until the test ends."""
    with ExitStack() as stack:
        yield lambda standin: stack.enter_context(served(standin))


@pytest.fixture
def connect() -> Iterator[Callable[..., OpenAIBackend]]:
    """A backend on an address, closed at the end."""
    opened: list[OpenAIBackend] = []

    def make(url: str, **options: Any) -> OpenAIBackend:
        opened.append(OpenAIBackend(url, **options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
