"""What the address asks of the Results page; it comes from outside."""

from __future__ import annotations

from typing import Any

import pytest

from ui.results.address import Asked, read_asked
from ui.results.view import View

KNOWN = ["runs/a.jsonl", "runs/b.jsonl"]


def test_runs_and_filters_are_read() -> None:
    value = {
        "run": ["runs/b.jsonl", "runs/b.jsonl", "runs/a.jsonl"], "method": ["runs/b.jsonl|zero-shot"],
        "show": ["failures"], "words": ["a list"], "problem": ["p1"],
    }  # fmt: skip
    asked = Asked(("runs/b.jsonl", "runs/a.jsonl"), "runs/b.jsonl|zero-shot", "failures", "a list", "p1")
    assert read_asked(value, KNOWN) == asked


@pytest.mark.parametrize(
    "value", [None, "run", {}, {"run": "runs/a.jsonl"}, {"run": [5]}, {"run": ["../x"], "show": ["failures"]}]
)
def test_without_a_run_that_is_there_nothing_is_asked(value: Any) -> None:
    assert read_asked(value, KNOWN) == Asked()


def test_a_filter_that_is_none_is_left_out() -> None:
    value = {"run": ["runs/a.jsonl"], "show": ["<script>"], "words": [None], "method": 3}
    assert read_asked(value, KNOWN) == Asked(("runs/a.jsonl",))
    assert len(read_asked({"run": ["runs/a.jsonl"], "words": ["x" * 10_000]}, KNOWN).words) == 500


def test_what_these_runs_do_not_have_is_left_out() -> None:
    asked = Asked(("runs/a.jsonl",), "runs/a.jsonl|zero-shot", "some", "list", "p1")
    assert asked.fitting(View()) == Asked(("runs/a.jsonl",), "", "some", "list", "")
    assert asked.fitting(View(by_id={"p1": 0})).problem == "p1"
