"""Measurements of the security tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from errors import PromptOrTuneError


def cpu_ratio(function: Callable[[Any], Any], small: Any, large: Any) -> float:
    """Return how much more of a core the function takes for the large value than for the small one."""
    # What takes less than this is lost in the noise.
    return cpu_seconds(function, large) / max(cpu_seconds(function, small), 0.005)


def cpu_seconds(function: Callable[[Any], Any], value: Any) -> float:
    """Return the least CPU time of three calls in seconds; an error for the user counts as an answer."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        with suppress(PromptOrTuneError):
            function(value)
        best = min(best, time.thread_time() - start)
    return best


def count_calls(function: Callable[[Any], Any], value: Any) -> int:
    """Return how many functions of Python and C one call runs; an error for the user counts as an answer."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        with suppress(PromptOrTuneError):
            function(value)
    finally:
        sys.setprofile(None)
    return calls
