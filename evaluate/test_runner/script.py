"""Scripts of pasted tests: run each line once, in its order, with the state that the lines before it left.

All steps and calls of a script run in one child. Its unprotected tests would bring expected values into that child, so
they are left out there and a second child runs the whole script. A protected test then passes if it holds in both,
and without protection if it holds in the second alone, because it depends on what an unprotected test did.

As in Python, an error of a step ends the script, or the test function whose step it is; a failed assert does not, so
that each test has a result.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.types import Limits
from evaluate.test_runner.asserts import AssertPlan, BrokenTestError, plan_assert
from evaluate.test_runner.calls import (
    CallResult,
    ChildCall,
    explain_assert,
    explain_whole_assert,
    joined_error,
    run_calls,
)
from evaluate.test_runner.outcomes import explain_outcome, is_protected_outcome
from evaluate.test_runner.result import TestResult, one_line, shorten
from tasks.problem import AssertTest, ScriptTest, Step


@dataclass(frozen=True)
class _PlannedTest:
    """A test with its plan; without one it has an outcome."""

    test: ScriptTest
    plan: AssertPlan | None

    @property
    def protected(self) -> bool:
        if self.plan is not None:
            return not self.plan.whole_statement
        return is_protected_outcome(self.test)

    def calls(self) -> Iterator[ChildCall]:
        """Yield the calls of the test itself, after those of its steps."""
        if self.plan is None:
            yield ChildCall("", self.test.code, scope=self.test.scope, mode="outcome")
        elif self.plan.whole_statement:
            yield ChildCall("", self.plan.whole_statement, secrets.token_hex(16), self.test.scope)
        else:
            for expression in self.plan.child_expressions:
                yield ChildCall("", expression, scope=self.test.scope)


def run_script(
    code: str, tests: Sequence[ScriptTest], sandbox: Sandbox, limits: Limits, preamble: str = ""
) -> list[TestResult]:
    """Run the tests as one script after `code` and return their results in order. Never raises for any code."""
    planned: list[_PlannedTest] = []
    broken: dict[int, str] = {}
    for at, test in enumerate(tests):
        try:
            planned.append(_PlannedTest(test, _plan(test)))
        except BrokenTestError as error:
            broken[at] = str(error)
            planned.append(_PlannedTest(replace(test, code="pass"), None))
    run = _ScriptRun(code, planned, sandbox, limits, preamble)
    results = run.results(include_unprotected=False)
    if not all(each.protected for each in planned):
        whole = run.results(include_unprotected=True)
        results = [_combine(*pair, protected=p.protected) for *pair, p in zip(results, whole, planned, strict=True)]
    for at, reason in broken.items():
        given = shorten(tests[at].code)
        results[at] = TestResult(False, "assert", given, "no error", "", reason, "refused", protected=False)
    return results


def _plan(test: ScriptTest) -> AssertPlan | None:
    return plan_assert(AssertTest(test.code)) if test.outcome is None else None


def _combine(first: TestResult, second: TestResult, *, protected: bool) -> TestResult:
    """Return the result of a test in the whole script, protected if it is the same without unprotected tests."""
    if not protected:
        return second
    return first if first.passed == second.passed else replace(second, protected=False)


@dataclass(frozen=True)
class _ScriptRun:
    """A script with what runs it."""

    code: str
    planned: Sequence[_PlannedTest]
    sandbox: Sandbox
    limits: Limits
    preamble: str

    def results(self, *, include_unprotected: bool) -> list[TestResult]:
        """Run the script in a child; an unprotected test has a meaningless result where it is not included."""
        calls: list[ChildCall] = []
        ends: list[tuple[int, int]] = []  # of each test: the number of calls up to its steps' end, and to its own end
        for each in self.planned:
            calls += [ChildCall("", step.source, scope=step.scope, mode="step") for step in each.test.steps]
            steps_end = len(calls)
            if include_unprotected or each.protected:
                calls += each.calls()
            ends.append((steps_end, len(calls)))
        results = run_calls(self.code, calls, self.sandbox, self.limits, self.preamble, stateful=True)
        reported: list[TestResult] = []
        ended: dict[str, str] = {}  # scopes that an error of a step ended, with the message
        start = 0
        for each, (steps_end, end) in zip(self.planned, ends, strict=True):
            failed = next(
                (
                    (step, result)
                    for step, result in zip(each.test.steps, results[start:steps_end], strict=True)
                    if result.error
                ),
                None,
            )
            own = results[steps_end:end]
            start = end
            reported.append(_explain(each, own, failed, ended) if own else _not_run(each, "", "ok"))
        return reported


def _explain(
    each: _PlannedTest, own: Sequence[CallResult], failed: tuple[Step, CallResult] | None, ended: dict[str, str]
) -> TestResult:
    test = each.test
    earlier = ended.get("") or ended.get(test.scope)
    if earlier and test.outcome is None:
        return _not_run(each, earlier, "error")
    if failed is not None:
        step, error = failed
        if error.is_load_error:
            return _not_run(each, error.error, error.status)
        message = f"{one_line(step.source)} {joined_error(error)}"
        ended[step.scope] = f"was not reached, because {message}"
        return _not_run(each, message, error.status)
    if each.plan is None:
        return explain_outcome(test, own[0])
    if each.plan.whole_statement:
        return explain_whole_assert(each.plan, own[0])
    return explain_assert(each.plan, own)


def _not_run(each: _PlannedTest, reason: str, status: str) -> TestResult:
    given = shorten(each.plan.source if each.plan is not None else each.test.code)
    return TestResult(False, "call", given, "", "", reason, status, protected=each.protected)
