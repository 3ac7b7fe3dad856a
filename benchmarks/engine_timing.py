"""What all questions of `python -m benchmarks.engine` do with a clock: sides in turn, medians, ratios."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from errors import PromptOrTuneError
from serve.types import PartialOutput, RowOutput

# Does its work once and says how many seconds that took.
TimedFn = Callable[[], float]
SideTimes = Mapping[str, Sequence[float]]


def make_timed(call: Callable[[], object], setup: Callable[[], object] = lambda: None) -> TimedFn:
    """A side that times `call` by the wall clock; `before` makes ready and does not count."""

    def side() -> float:
        setup()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return side


def time_interleaved(title: str, sides: Mapping[str, TimedFn], runs: int) -> dict[str, list[float]]:
    """Seconds of every side in `runs` rounds, after one that warms up and is not kept.

    In a round every side has one turn, so that a drift of the machine meets all alike; every second round goes
    backwards, so that no side always follows the same other one.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds = sides[name]()
            if number:
                times[name].append(seconds)
        print_progress(f"{title}: round {number} of {runs} done")
    return times


def time_ratios(times: SideTimes, ours: str, theirs: str) -> dict[str, Any]:
    """`ratio`: the median of one side's seconds divided by the other's; and the ratio of each round."""
    pairs = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    return {
        "ratio": round_significant(statistics.median(times[ours]) / statistics.median(times[theirs])),
        "pair_ratios": [round_significant(pair) for pair in pairs],
    }


def medians(times: SideTimes) -> dict[str, float]:
    """The median seconds of every side."""
    return {name: round_significant(statistics.median(values)) for name, values in times.items()}


def round_significant(value: float, number: int = 4) -> float:
    """`value` to that many significant digits."""
    return float(f"{value:.{number}g}")


class Stopwatch:
    """Notes when the events of a batch come, for what the sum of their seconds does not show."""

    def __init__(self, events: Iterable[PartialOutput | RowOutput]) -> None:
        self.begin = time.perf_counter()
        self.events = [(time.perf_counter() - self.begin, event) for event in events]

    def first_token_seconds(self) -> float:
        """Seconds until the first row spoke."""
        return self.events[0][0]

    def step_seconds(self) -> float:
        """Seconds of one step while every row is in flight: from when the last row began until the first one ended.

        Raises PromptOrTuneError where the rows were never in flight together.
        """
        rows = {event.index for _, event in self.events}
        said: dict[int, int] = {}
        began: tuple[float, dict[int, int]] | None = None
        for seconds, event in self.events:
            if isinstance(event, RowOutput):
                if began is None or event.candidates[0].tokens <= began[1][event.index]:
                    break
                return (seconds - began[0]) / (event.candidates[0].tokens - began[1][event.index])
            said[event.index] = event.tokens
            if began is None and said.keys() == rows:
                began = seconds, dict(said)
        raise PromptOrTuneError("The rows were not in flight together: ask for more tokens with --new-tokens.")


def print_progress(line: str) -> None:
    """A line of progress; standard output is for the result alone."""
    print(line, file=sys.stderr, flush=True)
