"""State of the browser: valid parts are restored, invalid ones are ignored."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from tasks.problem import AssertTest, Problem, ReferenceTest, ScriptTest, StdioTest, Step, Test
from ui.compare.events import BrowserState, parse_browser_state
from ui.compare.verdict import HISTORY_LENGTH, History
from ui.compare.view import FIRST_EXAMPLE_PATH
from ui.test_bench import record_problem

FIELDS: dict[str, Any] = {
    "intent": "reverse `s`", "reference": "s[::-1]", "tests": "", "chips": [{"name": "zero-shot"}, {"name": "rag-8"}],
    "data": "starter", "problem": "starter-test-0001", "pool": "conala", "mode": "sample", "candidates": 3,
    "max_new_tokens": 64, "temperature": 0.5, "top_p": 0.9, "seed": 7,
}  # fmt: skip


@pytest.fixture
def run() -> Any:
    """Return a recorded run as the browser stores it."""
    return json.loads(FIRST_EXAMPLE_PATH.read_text(encoding="utf-8"))["records"]


def test_stored_state_is_restored(run: Any) -> None:
    older = [{**record, "created": "2026-11-21T07:00:00.000+00:00"} for record in run]
    problem = Problem(
        "p",
        "reverse `s`",
        None,
        (AssertTest("assert f(1)"), StdioTest("1", "2"), ScriptTest("assert f(2)", (Step("x = 1"),))),
    )
    value = {"fields": FIELDS, "chosen": asdict(problem), "runs": [run, older], "shown": older[0]["created"]}
    state = parse_browser_state(json.loads(json.dumps(value)))
    assert state.fields == {**FIELDS, "chips": ["zero-shot", "rag-8"]}
    assert state.selected_problem == problem
    assert [records[0]["created"] for records in state.history.runs] == [run[0]["created"], older[0]["created"]]
    assert state.history.selected is state.history.runs[1]
    assert state.history.runs[0] == tuple(run)


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, {"fields": 1, "chosen": [], "runs": {}, "shown": 3}])
def test_invalid_state_is_empty(value: Any) -> None:
    assert parse_browser_state(value) == BrowserState({}, None, History())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("intent", 5),
        ("chips", [{"name": 3}]),
        ("chips", ["zero-shot"]),
        ("data", "../../etc"),
        ("pool", None),
        ("problem", {}),
    ],
)
def test_field_of_wrong_type_is_ignored(name: str, wrong: Any) -> None:
    fields = parse_browser_state({"fields": {**FIELDS, name: wrong}}).fields
    assert set(FIELDS) - set(fields) == {name}


@pytest.mark.parametrize(("name", "wrong"), [("mode", "loud"), ("temperature", "hot"), ("candidates", 10**9)])
def test_decoding_is_restored_completely_or_not_at_all(name: str, wrong: Any) -> None:
    fields = parse_browser_state({"fields": {**FIELDS, name: wrong}}).fields
    assert fields["intent"] == FIELDS["intent"]
    assert "mode" not in fields
    assert "seed" not in fields


def test_restored_methods_are_limited() -> None:
    chips = [{"name": f"icl-{n}"} for n in range(1, 20)]
    assert len(parse_browser_state({"fields": {"chips": chips}}).fields["chips"]) == 8


@pytest.mark.parametrize(
    "change",
    [{"tokens": "<b>7</b>"}, {"scores": {"em": "1"}}, {"created": 5}, {"method": None}, {"examples": [{"a": 1}]}],
)
def test_run_with_field_of_wrong_type_is_ignored(run: Any, change: dict[str, Any]) -> None:
    broken = [{**run[0], **change}, *run[1:]]
    state = parse_browser_state({"runs": [broken, run, [], "x", [{}]]})
    assert [records[0]["created"] for records in state.history.runs] == [run[0]["created"]]
    assert state.history.selected is state.history.runs[0]


def test_run_of_an_older_version_without_a_field_is_ignored(run: Any) -> None:
    without = [{name: value for name, value in record.items() if name != "sandbox"} for record in run]
    assert parse_browser_state({"runs": [without]}).history == History()


def test_restored_runs_are_limited(run: Any) -> None:
    assert len(parse_browser_state({"runs": [run] * 50}).history.runs) == HISTORY_LENGTH


@pytest.mark.parametrize(
    "test",
    [
        AssertTest("assert f(1)", tolerance=1e-4),
        ScriptTest("assert f(2)", (Step("x = 1"),)),
        ReferenceTest("f base", "f", ("1", "2"), "def f(x): return x"),
    ],
)
def test_run_with_tests_is_restored_with_its_problem(run: Any, test: Test) -> None:
    fields = {"entry_point": "f", "comparison": "evalplus", "prompt": "def f(x):\n"}
    stored = [{**record, "asked_tests": [asdict(test)], "problem_fields": fields} for record in run]
    (restored,) = parse_browser_state(json.loads(json.dumps({"runs": [stored]}))).history.runs
    expected = Problem(
        run[0]["problem_id"], run[0]["intent"], run[0]["reference"], (test,), "f", None, "evalplus", "def f(x):\n"
    )
    assert record_problem(restored[0]) == expected
    broken = [{**record, "asked_tests": [{"code": 1, "unknown": 2}]} for record in run]
    assert parse_browser_state({"runs": [broken]}).history.runs == ()
