"""Kinds of wrong answers."""

from __future__ import annotations

from typing import Any

import pytest

from advise.answering import describe_answer
from evaluate.results import Result

EXACT: dict[str, Any] = {"em@1": 1.0}
EQUAL_TREE: dict[str, Any] = {"em_tree@1": 1.0}
PASSED: dict[str, Any] = {"pass@1": 1.0}
REFERENCE = "kit.where(rows, 'price', over=5)"


def answer(code: str | None, checks: list[dict[str, object]] | None = None, **scores: Any) -> Result:
    candidates = () if code is None else ({"code": code},)
    return Result("m", "p", {"em@1": 0.0, "parses": 1.0, **scores}, candidates, checks=[checks] if checks else ())


def check(status: str, reason: str) -> list[dict[str, object]]:
    return [{"passed": True, "status": "ok", "reason": ""}, {"passed": False, "status": status, "reason": reason}]


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (answer(REFERENCE, **EXACT), "right"),
        (answer(None), "has no code"),
        (answer("def f(:", parses=0.0), "is no valid Python"),
        (answer("kit.where( rows, 'price', over=5 )", **EQUAL_TREE), "differs in layout alone"),
        (answer("filter(None, rows)"), "calls other functions"),
        (answer("kit.where(rows, 'price', under=5)"), "has other arguments or steps"),
        (answer("x", check("ok", "gave 1 instead of 2")), "gives a wrong value"),
        (answer("x", check("error", "NameError: name 'kit' is not defined (line 1)")), "raises NameError"),
        (answer("x", check("timeout", "stopped after 10 s")), "takes too long"),
        (Result("m", "p", {}, error="The prompt is too long.", error_kind="prompt"), "has no answer"),
    ],
)
def test_kind(result: Result, kind: str) -> None:
    assert describe_answer(result, REFERENCE, "em@1")["kind"] == kind


def test_right_is_by_the_metric_that_leads() -> None:
    passed = answer("[row for row in rows]", **PASSED)
    assert describe_answer(passed, REFERENCE, "pass@1")["right"]
    assert not describe_answer(passed, REFERENCE, "em@1")["right"]
