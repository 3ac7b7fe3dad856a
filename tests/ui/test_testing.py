"""Tests of the answers: in the real sandbox, once they stand; a sentence where there is none, and no code runs."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from evaluate.sandbox.sandbox import SandboxUnavailableError, open_sandbox
from serve.engine.llm_engine import EngineLoader
from tasks.problem import AssertTest, Problem
from tests.fakes import FakeEngine
from tests.ui.test_columns import Reader, assert_harmless
from ui.compare.run import make_comparison
from ui.compare.steps import collect_records, run_comparison
from ui.compare.test_results import pass_count_text, results_panel_html
from ui.compare.view import finished_view
from ui.context import Context
from ui.test_bench import TestBench

pytestmark = pytest.mark.usefixtures("sandbox")

TESTS = (AssertTest("assert double(2) == 4"), AssertTest("assert double('a') == 'aa'"))
RIGHT = "def double(x):\n    return x * 2"
WRONG = "def double(x):\n    return x * x"
SAYS = {"zero-shot": WRONG, "icl-2": RIGHT, "lora-starter": RIGHT, "lora-conala": "import os\nos._exit(0)"}
ASK = make_comparison(Problem("typed", "double a value", None, TESTS), [*SAYS, "nonsense"])
NO_SANDBOX = "No sandbox works here: install bubblewrap."


@pytest.fixture
def bench() -> TestBench:
    return TestBench()


def context_of(bench: Any, says: Any = None) -> Context:
    return Context(EngineLoader(lambda report: FakeEngine(says or SAYS)).start(), test_bench=bench)


def test_every_whole_answer_is_tested_in_the_sandbox(bench: TestBench) -> None:
    records = collect_records(context_of(bench), ASK)
    wrong, right, same, leaves, failed = records
    assert [test["passed"] for test in wrong["tests"]] == [True, False]
    assert (wrong["scores"]["tests"], right["scores"]["tests"], same["scores"]["tests"]) == (0.5, 1, 1)
    assert leaves["scores"]["tests"] == 0
    assert (failed["tests"], failed["sandbox"]) == ([], None)
    assert right["sandbox"] == open_sandbox().layer
    assert wrong["tests"][1]["reason"]
    assert wrong["tests"][1]["expected"] == "'aa'"


def test_the_page_sees_the_answers_before_the_tests(bench: TestBench) -> None:
    steps = list(run_comparison(context_of(bench), ASK, Event()))
    testing = [step for step in steps if step.status.startswith("Running the tests")]
    assert testing[0].status == "Running the tests: 0 of 4 answers done."
    assert testing[0].make_view is not None
    assert "Running 2 tests" in Reader(testing[0].make_view()["cards"][0]["tests"]).text
    assert all(step.records == () for step in steps[:-1])
    assert "ICL 2 and lora-starter pass all 2 tests" in steps[-1].status
    assert steps[-1].make_view is not None
    assert [card["best"] for card in steps[-1].make_view()["cards"]] == [False, True, True, False, False]
    assert f"2 tests in the sandbox ({open_sandbox().layer})" in Reader(steps[-1].make_view()["head"]).text


def test_a_stop_is_heard_while_a_program_runs(bench: TestBench) -> None:
    cancel = Event()
    context = context_of(bench, dict.fromkeys(SAYS, "import time\ndef double(x):\n    time.sleep(30)"))
    began = time.monotonic()
    for step in run_comparison(context, ASK, cancel):
        if step.status.startswith("Running the tests") and not cancel.is_set():
            Timer(0.3, cancel.set).start()
    assert time.monotonic() - began < 5
    assert "The tests were stopped" in step.records[0]["tests_note"]
    assert len(step.records) == 5


def test_without_a_sandbox_no_code_runs(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    def opener() -> Any:
        raise SandboxUnavailableError(NO_SANDBOX)

    context = context_of(TestBench(opener), dict.fromkeys(SAYS, f"open({str(trace)!r}, 'w')"))
    records = collect_records(context, ASK)
    assert {record["tests_note"] for record in records[:-1]} == {NO_SANDBOX}
    assert all(record["tests"] == [] for record in records)
    assert NO_SANDBOX in Reader(finished_view(records)["head"]).text
    assert not trace.exists()


def result(*, passed: bool = False, protected: bool = True, reason: str = "wrong") -> dict[str, Any]:
    return {
        "passed": passed, "kind": "call", "given": "f(1)", "expected": "2", "got": "3", "reason": reason,
        "status": "ok", "protected": protected, "seconds": 0.1,
    }  # fmt: skip


def test_the_panel_says_how_many_pass_and_why_the_others_fail() -> None:
    text = assert_harmless(results_panel_html([result(passed=True), *[result(reason=f"reason {n}") for n in range(4)]]))
    assert text.startswith("1 of 5 tests passes")
    assert text.index("reason 1") < text.index("and 2 more below") < text.index("reason 3")
    assert "unprotected" not in text
    assert results_panel_html([]) == ""


def test_a_reason_names_what_was_given() -> None:
    printed = result(reason="printed nothing, expected '4'") | {"kind": "stdio", "given": "2\n3\n"}
    assert "input '2 3': printed nothing, expected '4'" in Reader(results_panel_html([printed])).text
    assert (
        "f(1): ended before it answered" in Reader(results_panel_html([result(reason="ended before it answered")])).text
    )
    assert Reader(results_panel_html([result(reason="f(1) gave 3, expected 2")])).text.count("f(1) gave 3") == 2


def test_the_panel_says_what_ran_unprotected() -> None:
    assert "1 test ran unprotected" in Reader(results_panel_html([result(), result(protected=False)])).text
    assert "The tests ran unprotected" in Reader(results_panel_html([result(protected=False)] * 2)).text


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ([True], "The test passes"),
        ([False], "The test fails"),
        ([True] * 3, "All 3 tests pass"),
        ([False] * 3, "0 of 3 tests pass"),
        ([True, False], "1 of 2 tests passes"),
    ],
)
def test_the_tally(passed: list[bool], words: str) -> None:
    assert pass_count_text([result(passed=value) for value in passed]) == words
