"""Run tests from the page, admission queue.

Tests of the answers once these stand: beside the engine's thread, and never outside a sandbox.

The line in front of the engine: first come, first served, and everybody can see their place.

Gradio's own queue starts as many runs as its limit allows, in any order as soon as they wait for the engine. This
line keeps their order, and lets a run that still waits be stopped at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from queue import Empty, SimpleQueue
from threading import Event

from errors import PromptOrTuneError
from evaluate.sandbox.sandbox import Sandbox, open_sandbox
from evaluate.sandbox.types import Limits
from evaluate.test_runner.result import TestResult
from evaluate.test_runner.runner import run_tests_many
from tasks.problem import Test
from ui.records import Record, add_test_results


class AdmissionQueue:
    """A first-in, first-out line of runs; the first `at_once` of them have the engine, which answers them together."""

    def __init__(self, max_concurrent: int = 1) -> None:
        self._max_concurrent = max_concurrent
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []

    @contextmanager
    def enqueue(self) -> Iterator[Ticket]:
        """A place at the end of the line, given back on leaving the block."""
        place = Ticket(self)
        with self._changed:
            self._tickets.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._tickets.remove(place)
                self._changed.notify_all()

    def count_ahead(self, ticket: Ticket, timeout: float) -> int:
        """How many must end before `place` has its turn; returns at once when none, else after at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: ticket in self._tickets[: self._max_concurrent], timeout=timeout)
            return max(0, self._tickets.index(ticket) + 1 - self._max_concurrent)


class Ticket:
    """One run's place in the line."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue

    def wait(self, timeout: float) -> int:
        """Waits for its turn for at most `seconds`; the number of runs that are still before it."""
        return self._queue.count_ahead(self, timeout)


# A person waits for these: less time than a run of `python -m evaluate` gives, still a thousand times what most need.
SANDBOX_LIMITS = Limits(wall_seconds=4, cpu_seconds=4)
_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class TestBench:
    """How a comparison gets a sandbox of its own, and the line in front of the cores: one comparison at a time."""

    __test__ = False  # nothing for pytest to collect

    open: Callable[[], Sandbox] = open_sandbox
    queue: AdmissionQueue = field(default_factory=AdmissionQueue)


@dataclass(frozen=True)
class TestProgress:
    """How far the tests are. `pending` are the places of records whose tests have not run yet."""

    __test__ = False

    status: str
    records: tuple[Record, ...]
    pending: frozenset[int]


def run_tests(
    bench: TestBench, records: Sequence[Record], tests: Sequence[Test], cancel: Event
) -> Iterator[TestProgress]:
    """Each whole answer's tests, several answers at a time; the last value has nothing pending.

    Without a sandbox no code runs, and every record says so in `tests_note`. Setting `cancel` ends it; what has not
    run then is noted too.
    """
    places = [place for place, record in enumerate(records) if record["error"] is None and not record["cancelled"]]
    if not places:
        yield TestProgress("", tuple(records), frozenset())
        return
    try:
        sandbox = bench.open()
    except PromptOrTuneError as error:
        yield TestProgress("", add_tests_note(records, places, str(error)), frozenset())
        return
    done, pending = list(records), set(places)
    # Leaving the block ends at once what still runs.
    with bench.queue.enqueue() as place, sandbox:
        while (before := place.wait(_WAIT_SECONDS)) and not cancel.is_set():
            line = f"Waiting to test: {before} before yours."
            yield TestProgress(line, tuple(done), frozenset(pending))
        # Equal answers are run once.
        codes = {code: [p for p in places if records[p]["code"] == code] for code in _distinct_codes(records, places)}
        yield _progress_update(done, pending, len(places))
        for number, results in _check_in_thread([(code, tests) for code in codes], sandbox, cancel):
            for found in list(codes.values())[number]:
                done[found] = add_test_results(done[found], [asdict(result) for result in results], sandbox.layer)
                pending.discard(found)
            yield _progress_update(done, pending, len(places))
    if pending:
        done = list(
            add_tests_note(done, sorted(pending), "The tests were stopped before they had run on every answer.")
        )
    yield TestProgress("", tuple(done), frozenset())


def add_tests_note(records: Sequence[Record], indices: Sequence[int], message: str) -> tuple[Record, ...]:
    """The records, those at `places` with the sentence why their tests did not run."""
    return tuple(
        {**record, "tests_note": message} if place in indices else record for place, record in enumerate(records)
    )


def _distinct_codes(records: Sequence[Record], indices: Sequence[int]) -> dict[str, None]:
    return dict.fromkeys(records[place]["code"] for place in indices)


def _progress_update(done: Sequence[Record], pending: set[int], total: int) -> TestProgress:
    count = total - len(pending)
    return TestProgress(f"Running the tests: {count} of {total} answers done.", tuple(done), frozenset(pending))


def _check_in_thread(
    jobs: Sequence[tuple[str, Sequence[Test]]], sandbox: Sandbox, cancel: Event
) -> Iterator[tuple[int, list[TestResult]]]:
    """`check_many` in a thread of its own, so that `cancel` is heard while a program still runs to its limit."""
    events: SimpleQueue[tuple[int, list[TestResult]] | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            for result in run_tests_many(jobs, sandbox, limits=SANDBOX_LIMITS):
                events.put(result)
        except BaseException as error:  # noqa: BLE001 - it is raised where the results are awaited
            events.put(error)
        finally:
            events.put(None)

    threading.Thread(target=work, name="tests", daemon=True).start()
    while not cancel.is_set():
        try:
            event = events.get(timeout=_WAIT_SECONDS)
        except Empty:
            continue
        if event is None:
            return
        if isinstance(event, BaseException):
            raise event
        yield event
