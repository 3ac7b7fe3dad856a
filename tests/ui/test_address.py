"""What the address asks of the Results page; it comes from outside."""

from __future__ import annotations

from typing import Any

import pytest

from ui.results.page import UrlState, parse_url_state
from ui.results.runs import ProblemTable

KNOWN = ["runs/a.jsonl", "runs/b.jsonl"]


def test_runs_and_filters_are_read() -> None:
    value = {
        "run": ["runs/b.jsonl", "runs/b.jsonl", "runs/a.jsonl"], "method": ["runs/b.jsonl|zero-shot"],
        "show": ["failures"], "words": ["a list"], "problem": ["p1"],
    }  # fmt: skip
    asked = UrlState(("runs/b.jsonl", "runs/a.jsonl"), "runs/b.jsonl|zero-shot", "failures", "a list", "p1")
    assert parse_url_state(value, KNOWN) == asked


@pytest.mark.parametrize(
    "value", [None, "run", {}, {"run": "runs/a.jsonl"}, {"run": [5]}, {"run": ["../x"], "show": ["failures"]}]
)
def test_without_a_run_that_is_there_nothing_is_asked(value: Any) -> None:
    assert parse_url_state(value, KNOWN) == UrlState()


def test_a_filter_that_is_none_is_left_out() -> None:
    value = {"run": ["runs/a.jsonl"], "show": ["<script>"], "words": [None], "method": 3}
    assert parse_url_state(value, KNOWN) == UrlState(("runs/a.jsonl",))
    assert len(parse_url_state({"run": ["runs/a.jsonl"], "words": ["x" * 10_000]}, KNOWN).query) == 500


def test_what_these_runs_do_not_have_is_left_out() -> None:
    asked = UrlState(("runs/a.jsonl",), "runs/a.jsonl|zero-shot", "some", "list", "p1")
    assert asked.restrict_to(ProblemTable()) == UrlState(("runs/a.jsonl",), "", "some", "list", "")
    assert asked.restrict_to(ProblemTable(row_index={"p1": 0})).problem == "p1"
