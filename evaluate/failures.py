"""Failures of engines, servers and sandboxes: retries with growing waits, and the rows that are still missing.

Missing rows of a run: which methods lack answers or scores, which command fills them, and refusal to compare. A mean
over the problems that happen to be answered is not the method's mean, and two methods that were answered on different
problems cannot be compared. A method therefore has a row in a table only when every problem has a scored result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from errors import BusyError, EngineError, PromptOrTuneError, SandboxClosedError, SandboxError
from evaluate.results import Run

_TRANSIENT = (EngineError, BusyError, SandboxError)
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """The waits in seconds between tries. `sleep` replaces time.sleep in tests.

    A server that asks for a wait gets that one if it is longer, but none beyond `max_wait`: then there is no retry.
    """

    waits: tuple[float, ...] = (1.0, 5.0, 20.0)
    max_wait: float = 120.0
    sleep: Callable[[float], object] | None = None


DEFAULT_RETRIES = RetryPolicy()


class Retries:
    """Counts the failures of one piece of work; `count` is the number of tries so far that failed in a row."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.count = 0

    def reset(self) -> None:
        """Start to count again, because some of the work was done."""
        self.count = 0

    def wait(self, error: PromptOrTuneError) -> bool:
        """Wait for the next try after a failure; return False, at once, if another try is of no use or none is left."""
        self.count += 1
        transient = isinstance(error, _TRANSIENT) and not isinstance(error, SandboxClosedError)
        if not transient or self.count > len(self._policy.waits):
            return False
        seconds = self._policy.waits[self.count - 1]
        if isinstance(error, BusyError):
            seconds = max(seconds, error.seconds)
        if seconds > self._policy.max_wait:
            return False
        _log.info("%s Trying again in %g s.", error, seconds)
        (self._policy.sleep or time.sleep)(seconds)
        return True

    def describe(self, error: PromptOrTuneError) -> str:
        """Return the error's message as the beginning of a sentence, with the number of tries if there were several."""
        return str(error).rstrip(".") + (f" (tried {self.count} times)" if self.count > 1 else "")


def call_with_retries(function: Callable[[], T], policy: RetryPolicy) -> T:
    """Return the function's result; call it again after errors that may pass, and raise the last one at the end."""
    retries = Retries(policy)
    while True:
        try:
            return function()
        except PromptOrTuneError as error:
            if not retries.wait(error):
                raise


def missing_counts(run: Run) -> dict[str, int]:
    """Return the number of problems without a result for each method that lacks some, in the run's order."""
    counts = {method: len(run.problems) - len(run.results(method)) for method in run.methods}
    return {method: count for method, count in counts.items() if count}


def unscored_counts(run: Run) -> dict[str, int]:
    """Return the number of results without scores for each method that has some.

    A result also counts if its tests have not run while those of another result of the run have.
    """
    tested = {problem["id"] for problem in run.problems if problem.get("tests")}
    results = {method: run.results(method) for method in run.methods}
    tests_scored = any("tests" in result.scores for each in results.values() for result in each)
    counts = {
        method: sum(
            not result.scores or (tests_scored and result.problem in tested and "tests" not in result.scores)
            for result in each
        )
        for method, each in results.items()
    }
    return {method: count for method, count in counts.items() if count}


def count_unscored(run: Run) -> int:
    """Return the number of results of all methods that `unscored_counts` counts."""
    return sum(unscored_counts(run).values())


def complete_methods(run: Run) -> list[str]:
    """Return the methods that have a scored result for every problem, in the run's order."""
    incomplete = missing_counts(run).keys() | unscored_counts(run).keys()
    return [method for method in run.methods if method not in incomplete and run.problems]


def require_scored(runs: Iterable[Run]) -> None:
    """Raise PromptOrTuneError if any result of the runs is not scored."""
    for run in runs:
        if count := count_unscored(run):
            failed = len(run.sandbox_failures)
            because = f" ({failed} of them because the sandbox failed when an earlier version ran them)"
            raise PromptOrTuneError(
                f"{run.path} holds {count} answers without scores{because if failed else ''}: "
                f"run `python -m evaluate score {run.path}` first."
            )


def require_complete(run: Run, methods: Iterable[str]) -> None:
    """Raise PromptOrTuneError if one of the methods lacks answers or scores: it cannot be compared then."""
    missing, names = missing_counts(run), list(methods)
    for method in names:
        if method in missing:
            total = len(run.problems)
            raise PromptOrTuneError(
                f"'{method}' has {total - missing[method]} of {total} answers in {run.path}, so its scores are over "
                f"different problems than those of other methods and are not compared: {_command(run)} asks for the "
                f"{missing[method]} that are missing."
            )
    if unscored_counts(run).keys() & set(names):
        require_scored([run])


def require_any_complete(runs: Iterable[Run]) -> None:
    """Raise PromptOrTuneError if a run has methods and none of them has a scored result for every problem."""
    for run in runs:
        if not complete_methods(run):
            require_complete(run, run.methods)


def missing_note(run: Run) -> str:
    """Return which methods are not finished, how many answers are missing and which command asks for them; or ''."""
    missing = missing_counts(run)
    if not missing:
        return ""
    total, count = len(run.problems), sum(missing.values())
    parts = ", ".join(f"{method} {total - lacking}" for method, lacking in missing.items())
    answers = "1 answer is" if count == 1 else f"{count} answers are"
    return (
        f"Not finished, of {total} problems: {parts}. {answers} missing, so nothing is compared: {_command(run)} asks "
        "for the rest."
    )


def engine_failures_note(run: Run) -> str:
    """Return the note about stored failures of the engine, which an earlier version scored 0; or ''."""
    if not run.engine_failures:
        return ""
    count = len(run.engine_failures)
    (method, problem), error = next(iter(run.engine_failures.items()))
    stored = "1 stored result is a failure" if count == 1 else f"{count} stored results are failures"
    return (
        f"{stored} of the engine, which an earlier version scored 0: not counted, and asked again by the same command. "
        f"The first: {method}, problem {problem}: {error}"
    )


def _command(run: Run) -> str:
    """Return the command that made the run, as Markdown; an --overwrite in it would start anew and is left out."""
    provenance: Mapping[str, object] = run.provenance
    command = str(provenance.get("command") or "").replace(" --overwrite", "")
    return f"`{command}`" if command else "the command that made the file"
