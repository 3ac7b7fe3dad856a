"""The rule that chooses the recorded example and the suggestions of the Compare page."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.datasets.registry import load_problems
from ui.compare.record_example import find_examples, only_adapters_pass
from ui.compare.view import load_first_example


def record(adapter: str | None, *passed: bool) -> Any:
    return {"adapter": adapter, "tests": [{"passed": value} for value in passed]}


@pytest.mark.parametrize(
    ("records", "chosen"),
    [
        ([record(None, True, False), record(None, False, False), record("mine", True, True)], True),
        ([record(None, True, True), record(None, False, False), record("mine", True, True)], False),
        ([record(None, False), record("mine", True), record("yours", False)], False),
        ([record(None, False), record("mine")], False),
        ([record(None, False)], False),
        ([record("mine", True)], False),
    ],
)
def test_rows_are_chosen_on_which_only_the_adapters_pass(records: list[Any], chosen: bool) -> None:
    assert only_adapters_pass(records) is chosen


def test_rows_are_found_in_their_order() -> None:
    problems = load_problems("house", "validation", limit=4)
    solved = {problems[1].id, problems[3].id}
    found = find_examples(problems, lambda problem: [record(None, False), record("mine", problem.id in solved)])
    assert [problem.id for problem, _ in found] == [problems[1].id, problems[3].id]


def test_recorded_example_keeps_the_rule() -> None:
    example = load_first_example()
    assert example is not None
    assert only_adapters_pass(example.records)
    assert [record["method"] for record in example.records] == ["zero-shot", "icl-8", "rag-8", "qlora-4bit-house"]
    rows = {problem.id: number for number, problem in enumerate(load_problems("house", "validation"))}
    assert example.records[0]["problem_id"] == example.suggestions[0]
    assert [rows[id] for id in example.suggestions] == sorted(rows[id] for id in example.suggestions)
