"""Fixtures of the security tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from errors import PromptOrTuneError


@pytest.fixture(scope="session")
def cpu_ratio() -> Callable[[Callable[[Any], Any], Any, Any], float]:
    """Return a function that tells how much more of a core a function takes for a large value than for a small one."""

    def seconds(function: Callable[[Any], Any], value: Any) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()
            with suppress(PromptOrTuneError):
                function(value)
            best = min(best, time.thread_time() - start)
        return best

    def ratio(function: Callable[[Any], Any], small: Any, large: Any) -> float:
        # What takes less than this is lost in the noise.
        return seconds(function, large) / max(seconds(function, small), 0.005)

    return ratio
