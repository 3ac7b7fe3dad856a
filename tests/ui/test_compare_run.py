"""Comparison: streaming columns, errors, cancellation, and the problem built from the fields."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest

from errors import DataError, PromptOrTuneError
from serve.types import Candidate, PartialOutput, RequestOutput, SamplingParams
from tasks.problem import AssertTest, Outcome, Problem, ScriptTest, StdioTest, Step, Test
from tests import messages
from tests.fakes import FakeEngine
from ui.compare.comparison import QuestionFields, build_problem, compare, format_tests, make_comparison
from ui.compare.view import finished_column
from ui.test_bench import make_record

REFERENCE = "dict(zip(keys, values))"
PROBLEM = Problem("typed", "map two lists into a dictionary", REFERENCE)
ANSWERS = {
    "zero-shot": "def merge(keys, values): return None",
    "icl-8": "dict(zip(keys, value))",
    "rag-8": "dict(zip(values, keys))",
    "lora-starter": REFERENCE,
}


def last(engine: Any, comparison: Any, cancel: Any = None) -> Any:
    return list(compare(engine, comparison, cancel or Event(), interval=0))[-1]


def test_all_columns_stream_together() -> None:
    steps = list(
        compare(FakeEngine(ANSWERS, delay=0.002), make_comparison(PROBLEM, list(ANSWERS)), Event(), interval=0)
    )
    assert [column.state for column in steps[0]] == ["waiting"] * 4
    assert any(sum(column.state == "streaming" for column in step) >= 2 for step in steps)
    assert [column.answer and column.answer.code for column in steps[-1]] == list(ANSWERS.values())
    assert {score.metric: score.value for score in steps[-1][3].scores}["em"] == 1


class Samples(FakeEngine):
    """Streams three samples in turn, as an engine does that generates several samples."""

    def stream(self, requests: Any, sampling_params: Any, cancel: Any = None, owner: str = "") -> Any:
        for candidate, text in ((0, "first"), (2, "third"), (1, "second")):
            yield PartialOutput(0, text, 1, candidate)


def test_column_displays_only_its_first_sample_while_streaming() -> None:
    steps = list(compare(Samples(), make_comparison(PROBLEM, ["zero-shot"]), Event(), interval=0))
    assert {step[0].text for step in steps} == {"", "first"}


class Broken(FakeEngine):
    """Ends an answer with an error, as an engine does whose connection breaks."""

    def stream(self, requests: Any, sampling_params: Any, cancel: Any = None, owner: str = "") -> Any:
        candidate = Candidate("x = 1\ny =", "x = 1\ny =", 0.0, 5, finish="cancelled")
        yield RequestOutput(
            0, requests[0], (candidate,), error="The server ended in the middle; what it had said is kept."
        )


def test_failed_answer_is_displayed_with_its_error_and_has_no_score() -> None:
    comparison = make_comparison(PROBLEM, ["zero-shot"])
    engine = Broken()
    (column,) = last(engine, comparison)
    assert (column.state, column.scores) == ("failed", ())
    card = finished_column(make_record(column, comparison, engine.base, "2026-01-01T00:00:00+00:00"), is_best=False)
    assert "ended in the middle" in card["code"]
    assert "y" in card["code"].split("ended in the middle")[1]
    assert card["state"] == "failed"


def test_updates_are_throttled() -> None:
    comparison = make_comparison(PROBLEM, list(ANSWERS))
    assert len(list(compare(FakeEngine(ANSWERS), comparison, Event(), interval=60))) == 2


def test_one_failure_does_not_affect_other_columns() -> None:
    engine = FakeEngine(ANSWERS, errors={"lora-starter": "Adapter 'lora-starter' is broken: train it again."})
    columns = last(engine, make_comparison(PROBLEM, ["lora-starter", "nonsense", "icl-8", "icl-99"]))
    assert [column.state for column in columns] == ["failed", "failed", "done", "failed"]
    assert columns[0].error == "Adapter 'lora-starter' is broken: train it again."
    assert "nonsense" in columns[1].error
    assert "icl-99" in columns[3].error
    assert columns[2].answer.code == ANSWERS["icl-8"]


def test_unknown_methods_do_not_reach_the_engine() -> None:
    engine = FakeEngine()
    columns = last(engine, make_comparison(PROBLEM, ["nonsense"]))
    assert columns[0].state == "failed"
    assert engine.runs == 0


def test_cancelled_answer_has_no_score() -> None:
    engine = FakeEngine({"zero-shot": "word " * 1000}, delay=0.005)
    cancel = Event()
    steps = []
    for step in compare(engine, make_comparison(PROBLEM, ["zero-shot"]), cancel, interval=0):
        steps.append(step)
        if len(steps) == 5:
            cancel.set()
    assert len(steps) < 20
    assert steps[-1][0].state == "stopped"
    assert steps[-1][0].scores == ()
    assert engine.cancelled == 1


def test_closing_the_iterator_cancels_the_engine() -> None:
    engine = FakeEngine({"zero-shot": "word " * 1000}, delay=0.005)
    cancel = Event()
    steps = compare(engine, make_comparison(PROBLEM, ["zero-shot"]), cancel, interval=0)
    next(steps)
    next(steps)
    steps.close()
    assert engine.cancelled == 1
    assert not cancel.is_set(), "the tests after the answers use it too"


@pytest.mark.parametrize("intent", ["", "  \n\t"])
def test_empty_question_is_refused(intent: Any) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.EMPTY_QUESTION):
        make_comparison(Problem("typed", intent), ["zero-shot"])


def test_no_method_and_too_many_methods_are_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.METHOD_REQUIRED):
        make_comparison(PROBLEM, [])
    with pytest.raises(PromptOrTuneError, match=messages.TOO_MANY_METHODS):
        make_comparison(PROBLEM, [f"icl-{k}" for k in range(1, 10)])


def test_pool_and_decoding_reach_the_engine() -> None:
    engine = FakeEngine()
    comparison = make_comparison(PROBLEM, ["icl-2"], SamplingParams("beam", candidates=3), pool="conala")
    columns = last(engine, comparison)
    assert engine.received[0][0].pool == "conala"
    assert len(columns[0].answer.candidates) == 3


CHOSEN = Problem(
    "starter-test-1", "reverse a string", "s[::-1]", (AssertTest("assert f('ab') == 'ba'", setup="import re"),)
)
TESTS = "assert f('ab') == 'ba'"


def test_selected_problem_keeps_its_id_while_question_is_unchanged() -> None:
    problem = build_problem(QuestionFields(" reverse a string\n", "s[::-1]", TESTS, CHOSEN))
    assert problem.id == "starter-test-1"
    assert problem.tests == CHOSEN.tests, "the setup of its tests too, though the field does not show it"


def test_changed_question_drops_reference_and_tests() -> None:
    fields = QuestionFields("sort a list", "s[::-1]", TESTS, CHOSEN)
    problem = build_problem(fields)
    assert (problem.id, problem.reference, problem.tests) == ("typed", None, ())
    assert fields.stale_reference
    assert fields.stale_tests


def test_own_reference_and_tests_are_used_with_any_question() -> None:
    fields = QuestionFields("sort a list", "sorted(l)", "assert f([2, 1]) == [1, 2]", CHOSEN)
    problem = build_problem(fields)
    assert (problem.id, problem.reference) == ("typed", "sorted(l)")
    assert problem.tests == (ScriptTest("assert f([2, 1]) == [1, 2]"),)
    assert not fields.stale_reference
    assert not fields.stale_tests


def test_blank_fields_are_ignored() -> None:
    assert build_problem(QuestionFields("sort a list", "  ", "\n")) == Problem("typed", "sort a list")
    assert build_problem(QuestionFields("reverse a string", "", "", CHOSEN)).tests == ()


def test_invalid_tests_are_refused_with_their_line() -> None:
    with pytest.raises(DataError, match=r"^Line 2: .*\.$"):
        build_problem(QuestionFields("sort a list", None, f"{TESTS}\nassert f( ==\n"))


@pytest.mark.parametrize(
    "tests",
    [
        (StdioTest("1 2\n3\n", "6\n"), StdioTest("", "0\n")),
        (ScriptTest("assert f(x) == 1", (Step("x = [1]"),)), ScriptTest("assert f(2) == 2")),
        (ScriptTest("f(x)", (Step("x = [1]"),), outcome=Outcome("1\n2\n")),),
        (ScriptTest("f(1)", outcome=Outcome(error="ValueError", message="no")),),
    ],
)
def test_formatted_tests_parse_back(tests: tuple[Test, ...]) -> None:
    assert build_problem(QuestionFields("sum", None, format_tests(tests))).tests == tests
