"""Tests of the answers of a comparison, in a sandbox and in a thread beside that of the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Event

from errors import PromptOrTuneError, SandboxError
from evaluate.failures import Retries, RetryPolicy
from evaluate.sandbox.sandbox import Sandbox, open_sandbox
from evaluate.sandbox.spec import Limits
from evaluate.scoring import sandbox_errors
from evaluate.test_runner.result import TestResult, comparison_rules
from evaluate.test_runner.runner import run_tests_many
from tasks.problem import Problem, complete_program
from ui.admission_queue import AdmissionQueue
from ui.records import Record, add_test_results

# Shorter than the limits of `python -m evaluate`, because a visitor waits; still a thousand times what most tests need.
SANDBOX_LIMITS = Limits(wall_seconds=4, cpu_seconds=4)
_WAIT_SECONDS = 0.25
STOPPED_NOTE = "The tests were stopped before they had run on every answer."


@dataclass(frozen=True)
class TestBench:
    """Opens a sandbox for each comparison; `queue` admits one comparison at a time to the CPU cores.

    A sandbox that fails is tried again after the waits of `retries`.
    """

    __test__ = False  # not a test class of pytest

    open: Callable[[], Sandbox] = open_sandbox
    queue: AdmissionQueue = field(default_factory=AdmissionQueue)
    retries: RetryPolicy = field(default_factory=lambda: RetryPolicy((0.5, 2.0)))


@dataclass(frozen=True)
class TestProgress:
    """Progress of the tests. `pending` are the indices of records whose tests have not run yet."""

    __test__ = False

    status: str
    records: tuple[Record, ...]
    pending: frozenset[int]


def test_answers(
    bench: TestBench, records: Sequence[Record], problem: Problem, cancel: Event
) -> Iterator[TestProgress]:
    """Run the problem's tests of every complete answer; the last value has no pending records.

    Without a sandbox no code runs, and `tests_note` of every record gives the reason. Where the sandbox fails, or
    `cancel` is set, the records without results get a note.
    """
    indices = [i for i, record in enumerate(records) if record["error"] is None and not record["cancelled"]]
    if not indices:
        yield TestProgress("", tuple(records), frozenset())
        return
    try:
        sandbox = bench.open()
    except PromptOrTuneError as error:
        yield TestProgress("", add_tests_note(records, indices, str(error)), frozenset())
        return
    done, pending = list(records), set(indices)
    # Leaving the block kills programs that still run.
    with bench.queue.enqueue() as ticket, sandbox:
        while (ahead := ticket.wait(_WAIT_SECONDS)) and not cancel.is_set():
            yield TestProgress(f"Waiting to test: {ahead} before yours.", tuple(done), frozenset(pending))
        yield _progress_update(done, pending, len(indices))
        attempts, note = Retries(replace(bench.retries, sleep=bench.retries.sleep or cancel.wait)), STOPPED_NOTE
        while pending and not cancel.is_set():
            # Equal answers are run once.
            by_code: dict[str, list[int]] = {}
            for i in sorted(pending):
                by_code.setdefault(records[i]["code"], []).append(i)
            same_code = list(by_code.values())
            try:
                for number, results in _run_in_thread(list(by_code), problem, sandbox, cancel):
                    for i in same_code[number]:
                        done[i] = add_test_results(done[i], [asdict(result) for result in results], sandbox.layer)
                        pending.discard(i)
                    attempts.reset()
                    yield _progress_update(done, pending, len(indices))
            except SandboxError as error:
                if not attempts.wait(error):
                    note = f"{attempts.describe(error)}: the tests have not run on every answer, so try again."
                    break
    if pending:
        done = list(add_tests_note(done, sorted(pending), note))
    yield TestProgress("", tuple(done), frozenset())


def add_tests_note(records: Sequence[Record], indices: Sequence[int], message: str) -> tuple[Record, ...]:
    """Return the records; those at `indices` get `message`, the reason why their tests did not run."""
    return tuple({**record, "tests_note": message} if i in indices else record for i, record in enumerate(records))


def _progress_update(done: Sequence[Record], pending: set[int], total: int) -> TestProgress:
    count = total - len(pending)
    return TestProgress(f"Running the tests: {count} of {total} answers done.", tuple(done), frozenset(pending))


def _run_in_thread(
    codes: Sequence[str], problem: Problem, sandbox: Sandbox, cancel: Event
) -> Iterator[tuple[int, list[TestResult]]]:
    """Run `run_tests_many` in a thread, so that `cancel` takes effect while a program runs up to its limit."""
    events: SimpleQueue[tuple[int, list[TestResult]] | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            programs = [complete_program(code, problem.prompt, problem.entry_point) for code in codes]
            jobs = [(program, problem.tests) for program in programs]
            rules = comparison_rules(problem.comparison)
            for result in sandbox_errors(run_tests_many(jobs, sandbox, limits=SANDBOX_LIMITS, rules=rules)):
                events.put(result)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads the results
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
