"""Results of asserts in words: what was called, what it gave, what was expected."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.checking.asserts import Plan
from evaluate.checking.calls import Given
from evaluate.checking.constants import Hole, is_constant, work_out
from evaluate.checking.result import TestResult, in_words, shorten
from evaluate.checking.values import show

# APPS's calls go through a function of the test's set-up (tasks/datasets/apps_tests.py); a person need not see it.
_APPS = re.compile(r"\b_apps_call\('(\w+)'(?:, )?")
_WORDS: dict[type[ast.cmpop], str] = {
    ast.Eq: "{}",
    ast.Is: "{}",
    ast.NotEq: "anything but {}",
    ast.IsNot: "anything but {}",
    ast.Lt: "less than {}",
    ast.LtE: "at most {}",
    ast.Gt: "more than {}",
    ast.GtE: "at least {}",
    ast.In: "one of {}",
    ast.NotIn: "none of {}",
}


def explain(plan: Plan, given: Sequence[Given]) -> TestResult:
    """The result of a test that was taken apart, from what its holes gave."""
    seconds = sum(each.seconds for each in given)
    called = ", ".join(readable(source) for source in plan.shown)
    expected = _expected(plan.template)
    got = ", ".join(show(each.value) for each in given if not each.fault)
    fault = _fault(plan, given)
    reason, status = "", "ok"
    if fault is not None:
        first = next((each for each in given if each.fault), None)
        if first is not None:
            status = first.status
            reason = first.fault if first.alone else f"{in_words(called)} {_joined(first)}"
        elif expected:
            reason = f"{in_words(called)} gave {in_words(got)}, expected {in_words(expected)}"
        else:
            reason = f"{in_words(readable(plan.source))} does not hold: {in_words(called)} gave {in_words(got)}"
        reason += fault
    return TestResult(
        passed=fault is None,
        kind="call",
        given=shorten(called),
        expected=shorten(expected or readable(plan.source)),
        got=shorten(got),
        reason=reason,
        status=status,
        seconds=seconds,
    )


def explain_whole(plan: Plan, given: Given) -> TestResult:
    """The result of a test that ran whole inside of the child."""
    note = f"the whole assert ran in the sandbox, unprotected, because {plan.why}"
    statement = in_words(readable(plan.whole))
    failed = given.fault if given.alone else f"{statement} {_joined(given)}"
    if given.fault.startswith("AssertionError"):
        failed = f"{statement} does not hold"
    return TestResult(
        passed=not given.fault,
        kind="assert",
        given=shorten(readable(plan.whole)),
        expected="no error",
        got="" if given.fault else "no error",
        reason=f"{failed} ({note})" if given.fault else "",
        status=given.status if not given.fault.startswith("AssertionError") else "ok",
        protected=False,
        seconds=given.seconds,
    )


def readable(source: str) -> str:
    """A test's source as a person would write it."""
    return _APPS.sub(r"\1(", source)


def _fault(plan: Plan, given: Sequence[Given]) -> str | None:
    """None where the assert holds; else what to add to the sentence about it."""
    holes: Mapping[str, Any] = {str(at): each.value for at, each in enumerate(given) if not each.fault}
    try:
        return None if work_out(plan.template, holes) else ""
    except Exception as fault:  # noqa: BLE001 - a hole without a value, or values that cannot be compared
        return "" if len(holes) < len(given) else f" ({type(fault).__name__}: {in_words(str(fault))})"


def _joined(given: Given) -> str:
    """The fault of a call behind the call: 'f(2) raised NameError: ...', 'f(2) stopped after 5 s (time limit)'."""
    if given.status == "error" and re.match(r"[A-Za-z_]\w*(?::| \(line|$)", given.fault):
        return f"raised {given.fault}"
    return given.fault


def _expected(template: ast.expr) -> str:
    """What a plain comparison or question wants, '' for asserts that say more than that."""
    match template:
        case Hole():
            return "a true value"
        case ast.UnaryOp(op=ast.Not(), operand=Hole()):
            return "a false value"
        case ast.Compare(left=Hole(), ops=[op], comparators=[constant]) if is_constant(constant):
            return _of_constant(op, constant)
        case ast.Compare(left=constant, ops=[ast.Eq() | ast.Is() | ast.NotEq() as op], comparators=[Hole()]):
            return _of_constant(op, constant) if is_constant(constant) else ""
    return ""


def _of_constant(op: ast.cmpop, constant: ast.expr) -> str:
    value = work_out(constant)
    if isinstance(op, ast.In) and isinstance(value, list) and 1 <= len(value) <= 2:
        return " or ".join(show(each) for each in value)
    return _WORDS[type(op)].format(show(value))
