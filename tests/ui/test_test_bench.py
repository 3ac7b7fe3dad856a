"""Running tests of answers in a sandbox, and the admission queue."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from evaluate.failures import RetryPolicy
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError, open_sandbox
from evaluate.sandbox.spec import ExecutionResult, Program
from serve.engine.llm_engine import EngineLoader
from tasks.problem import AssertTest, Problem, ReferenceTest
from tests.fakes import FakeEngine
from tests.ui.test_compare_view import Reader
from ui.access.quota import AdmissionQueue
from ui.compare.comparison import make_comparison
from ui.compare.steps import collect_records, run_comparison
from ui.compare.view import finished_view
from ui.context import Context
from ui.test_bench import TestBench

TESTS = (AssertTest("assert double(2) == 4"), AssertTest("assert double('a') == 'aa'"))
RIGHT = "def double(x):\n    return x * 2"
WRONG = "def double(x):\n    return x * x"
ANSWERS = {"zero-shot": WRONG, "icl-2": RIGHT, "lora-starter": RIGHT, "lora-conala": "import os\nos._exit(0)"}
COMPARISON = make_comparison(Problem("typed", "double a value", None, TESTS), [*ANSWERS, "nonsense"])
NO_SANDBOX = "No sandbox works here: install bubblewrap."


@pytest.fixture
def bench(sandbox: None) -> TestBench:
    return TestBench()


def context_of(bench: Any, answers: Any = None) -> Context:
    return Context(EngineLoader(lambda report: FakeEngine(answers or ANSWERS)).start(), test_bench=bench)


def test_complete_answers_are_tested_in_the_sandbox(bench: TestBench) -> None:
    records = collect_records(context_of(bench), COMPARISON)
    wrong, right, same, leaves, failed = records
    assert [test["passed"] for test in wrong["tests"]] == [True, False]
    assert (wrong["scores"]["tests"], right["scores"]["tests"], same["scores"]["tests"]) == (0.5, 1, 1)
    assert leaves["scores"]["tests"] == 0
    assert (failed["tests"], failed["sandbox"]) == ([], None)
    assert right["sandbox"] == open_sandbox().layer
    assert wrong["tests"][1]["reason"]
    assert wrong["tests"][1]["expected"] == "'aa'"


def test_answers_are_displayed_before_their_tests(bench: TestBench) -> None:
    steps = list(run_comparison(context_of(bench), COMPARISON, Event()))
    testing = [step for step in steps if step.status.startswith("Running the tests")]
    assert testing[0].status == "Running the tests: 0 of 4 answers done."
    assert testing[0].make_view is not None
    assert "Running 2 tests" in Reader(testing[0].make_view()["cards"][0]["tests"]).text
    assert all(step.records == () for step in steps[:-1])
    assert "ICL 2 and lora-starter pass all 2 tests" in steps[-1].status
    assert steps[-1].make_view is not None
    assert [card["best"] for card in steps[-1].make_view()["cards"]] == [False, True, True, False, False]
    assert f"2 tests in the sandbox ({open_sandbox().layer})" in Reader(steps[-1].make_view()["head"]).text


def test_cancel_takes_effect_while_a_program_runs(bench: TestBench) -> None:
    cancel = Event()
    context = context_of(bench, dict.fromkeys(ANSWERS, "import time\ndef double(x):\n    time.sleep(30)"))
    began = time.monotonic()
    for step in run_comparison(context, COMPARISON, cancel):
        if step.status.startswith("Running the tests") and not cancel.is_set():
            Timer(0.3, cancel.set).start()
    assert time.monotonic() - began < 5
    assert "The tests were stopped" in step.records[0]["tests_note"]
    assert len(step.records) == 5


def test_no_code_runs_without_a_sandbox(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    def opener() -> Any:
        raise SandboxUnavailableError(NO_SANDBOX)

    context = context_of(TestBench(opener), dict.fromkeys(ANSWERS, f"open({str(trace)!r}, 'w')"))
    records = collect_records(context, COMPARISON)
    assert {record["tests_note"] for record in records[:-1]} == {NO_SANDBOX}
    assert all(record["tests"] == [] for record in records)
    assert NO_SANDBOX in Reader(finished_view(records)["head"]).text
    assert not trace.exists()


class BrokenSandbox(Sandbox):
    """A sandbox whose first programs cannot be started."""

    def __init__(self, inner: Sandbox, failures: int, working: str = "") -> None:
        super().__init__(inner.layer)
        self.failures = failures
        self._working = working

    def run(self, program: Program) -> ExecutionResult:
        if self.failures and not (self._working and self._working in program.code):
            self.failures -= 1
            reason = "The program was not started: [Errno 24] Too many open files."
            return ExecutionResult("refused", "", reason, self.layer, 0.0)
        return super().run(program)


def test_a_sandbox_that_fails_for_a_moment_is_tried_again(sandbox: Sandbox) -> None:
    waits: list[float] = []
    broken = BrokenSandbox(sandbox, 2)
    bench = TestBench(lambda: broken, retries=RetryPolicy((0.5, 2.0), sleep=waits.append))
    records = collect_records(context_of(bench), COMPARISON)
    assert 1 <= len(waits) <= 2
    assert [record["scores"]["tests"] for record in records[:4]] == [0.5, 1, 1, 0]
    assert {record["tests_note"] for record in records} == {""}


def test_answers_that_a_broken_sandbox_did_not_test_are_not_compared(sandbox: Sandbox) -> None:
    waits: list[float] = []
    broken = BrokenSandbox(sandbox, 10_000, working="return x * x")
    bench = TestBench(lambda: broken, retries=RetryPolicy((0.5, 2.0), sleep=waits.append))
    steps = list(run_comparison(context_of(bench), COMPARISON, Event()))
    records, view = steps[-1].records, steps[-1].make_view
    untested = [record for record in records[:4] if not record["tests"]]
    assert 3 <= len(untested) <= 4
    assert all("tests" not in record["scores"] for record in untested)
    notes = {record["tests_note"] for record in untested}
    assert len(notes) == 1
    assert notes.pop().startswith("The sandbox could not start a program ([Errno 24] Too many open files) (tried ")
    assert view is not None
    assert "Too many open files" in Reader(view()["head"]).text
    assert [card["best"] for card in view()["cards"]] == [False] * 5
    if len(untested) == 3:
        assert "The tests have not run on 3 of 4 answers, so these are not compared." in steps[-1].status
    assert waits[-2:] == [0.5, 2.0]


def test_queue_admits_runs_first_in_first_out() -> None:
    queue = AdmissionQueue()
    with queue.enqueue() as first, queue.enqueue() as second, queue.enqueue() as third:
        assert [ticket.wait(0) for ticket in (first, second, third)] == [0, 1, 2]


def test_leaving_admits_the_next_run() -> None:
    queue = AdmissionQueue()
    order: list[str] = []
    with queue.enqueue() as first:
        assert first.wait(0) == 0

        def run(name: Any) -> None:
            with queue.enqueue() as ticket:
                joined.set()
                while ticket.wait(5):
                    pass
                order.append(name)

        threads = []
        for name in "abc":
            joined = threading.Event()
            threads.append(threading.Thread(target=run, args=(name,)))
            threads[-1].start()
            assert joined.wait(5)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == ["a", "b", "c"]


def test_leaving_from_the_middle_decreases_later_positions() -> None:
    queue = AdmissionQueue()
    with queue.enqueue():
        middle = queue.enqueue()
        middle.__enter__()
        with queue.enqueue() as last:
            assert last.wait(0) == 2
            middle.__exit__(None, None, None)
            assert last.wait(0) == 1


def test_several_concurrent_runs_are_admitted_and_later_ones_wait() -> None:
    queue = AdmissionQueue(max_concurrent=2)
    with queue.enqueue() as first, queue.enqueue() as second, queue.enqueue() as third, queue.enqueue() as fourth:
        assert [ticket.wait(0) for ticket in (first, second, third, fourth)] == [0, 0, 1, 2]
    with queue.enqueue() as again:
        assert again.wait(0) == 0


def test_body_of_a_function_is_tested_by_the_rules_of_its_data_set(
    bench: TestBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    prompt = 'def third(x):\n    """Divide by three."""\n'
    tests = (ReferenceTest("third", "third", ("1", "2"), f"{prompt}    return x / 3\n"),)
    problem = Problem("p", "third", None, tests, "third", comparison="evalplus", prompt=prompt)
    answers = {"zero-shot": "    return x / 3 + 1e-8", "icl-2": "def third(x):\n    return x / 4"}
    right, wrong = collect_records(context_of(bench, answers), make_comparison(problem, list(answers)))
    assert (right["scores"]["tests"], wrong["scores"]["tests"]) == (1, 0)
    assert wrong["tests"][0]["reason"].startswith("third(1) gave 0.25, expected 0.333")
