"""The sandbox in which these tests run candidates: the best layer that works here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from evaluate.sandbox import Sandbox, SandboxUnavailableError, open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox for all tests."""
    try:
        opened = open_sandbox()
    except SandboxUnavailableError as fault:
        if os.environ.get("CI"):
            pytest.fail(str(fault))
        pytest.skip(str(fault))
    with opened:
        yield opened
