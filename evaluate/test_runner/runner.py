"""Candidate x tests -> results.

From a candidate's code and a problem's tests to results: what ran, what it gave, and why it failed.

Runs a candidate's code against a problem's tests in the sandbox. No expected value enters it, but where said.

- A program's run (StdioTest) gets a fresh process, and what it printed is compared here (outputs.py).
- An assert is taken apart (asserts.py): the child evaluates the calls, the host compares (calls.py, constants.py).
- An assert that cannot be taken apart runs whole in a child of its own, and its result says so (`protected`).

All asserts of a candidate that were taken apart share one process, in their order, as in MBPP's own harness: the code
runs once, a test's set-up before each test. Values are compared by Python's `==`: 1, 1.0 and True are equal, a list and
a tuple are not. The code runs as `__main__` for a program's run, and as a module for calls.

Whether a program printed what it should.

Both texts are compared line by line. Blanks at the end of a line and empty lines at the end are forgiven; nothing else
is: the order of lines, and the blanks before and between the words of a line, count. Words (what stands between blanks)
must be the same letter by letter, but for decimals: where the expected word is a number with a point or an exponent,
any number within 1e-6 of it is right, absolute or, beyond 1, relative: |got - expected| <= 1e-6 * max(1, |expected|).
"""

from __future__ import annotations

import ast
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.types import ExecutionResult, Limits, Program
from evaluate.test_runner.asserts import AssertPlan, BrokenTestError, plan_assert
from evaluate.test_runner.calls import CallResult, ChildCall, explain_assert, explain_whole_assert, run_calls
from evaluate.test_runner.result import TestResult, end_reason, one_line, shorten
from tasks.datasets.apps import CALL_HELPERS, CODE_PRELUDE
from tasks.problem import AssertTest, StdioTest, Test

FLOAT_TOLERANCE = 1e-6
_NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER_PATTERN = re.compile(r"[+-]?\d+", re.ASCII)
_WORD_SEPARATOR = re.compile(r"(\s+)")


def comparable_lines(text: str) -> list[str]:
    """The lines that are compared: without blanks at their ends, and without empty lines at the end of the text."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def first_difference(expected: str, got: str) -> int | None:
    """The number (from 1) of the first line that is not what it should be, or None where both are the same."""
    wanted, printed = comparable_lines(expected), comparable_lines(got)
    for number, (left, right) in enumerate(zip(wanted, printed, strict=False), start=1):
        if left != right and not _lines_match(left, right):
            return number
    return None if len(wanted) == len(printed) else min(len(wanted), len(printed)) + 1


def _lines_match(expected: str, got: str) -> bool:
    left, right = _WORD_SEPARATOR.split(expected), _WORD_SEPARATOR.split(got)
    return len(left) == len(right) and all(a == b or _words_match(a, b) for a, b in zip(left, right, strict=True))


def _words_match(expected: str, got: str) -> bool:
    if _INTEGER_PATTERN.fullmatch(expected) or not (
        _NUMBER_PATTERN.fullmatch(expected) and _NUMBER_PATTERN.fullmatch(got)
    ):
        return False
    wanted, printed = float(expected), float(got)
    return math.isfinite(wanted) and abs(printed - wanted) <= FLOAT_TOLERANCE * max(1.0, abs(wanted))


DEFAULT_LIMITS = Limits()
MAX_QUEUED_PER_WORKER = 4  # units of work per worker that are handed out ahead

_WorkUnit = tuple[int, list[int], Callable[[], list[TestResult]]]


def run_tests(
    code: str, tests: Sequence[Test], sandbox: Sandbox, limits: Limits = DEFAULT_LIMITS, workers: int | None = None
) -> list[TestResult]:
    """The result of each test, in the order of `tests`. Never raises for any code.

    `limits` hold for each call and each program run. `workers` is how many processes run at a time, by default one a
    core.
    """
    return next(run_tests_many([(code, tests)], sandbox, workers, limits))[1]


def run_tests_many(
    candidates: Iterable[tuple[str, Sequence[Test]]],
    sandbox: Sandbox,
    workers: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[tuple[int, list[TestResult]]]:
    """`check` for many candidates, in parallel: the index of each job and its results, as they are done.

    `jobs` is read as far as there is work for the workers. Closing the iterator early waits for what runs.
    """
    workers = workers or len(os.sched_getaffinity(0))
    results: dict[int, list[TestResult | None]] = {}
    running: dict[Future[list[TestResult]], tuple[int, list[int]]] = {}
    with ThreadPoolExecutor(workers, "check") as pool:
        try:
            for job, places, work in _work_units(candidates, results, sandbox, limits):
                running[pool.submit(work)] = job, places
                if not places or len(running) >= MAX_QUEUED_PER_WORKER * workers:
                    yield from _collect_finished(running, results)
            while running:
                yield from _collect_finished(running, results)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _work_units(
    candidates: Iterable[tuple[str, Sequence[Test]]],
    results: dict[int, list[TestResult | None]],
    sandbox: Sandbox,
    limits: Limits,
) -> Iterator[_WorkUnit]:
    """What can run on its own: each program's run, and all asserts of one job. A job without tests is one unit too."""
    for job, (code, tests) in enumerate(candidates):
        results[job] = [None] * len(tests)
        broken = _syntax_error(code)
        asserts = [(at, test) for at, test in enumerate(tests) if isinstance(test, AssertTest)]
        if asserts or not tests:
            listed = [test for _, test in asserts]
            yield job, [at for at, _ in asserts], partial(_run_asserts, code, listed, broken, sandbox, limits)
        for at, test in enumerate(tests):
            if isinstance(test, StdioTest):
                yield job, [at], partial(_run_stdio, code, test, broken, sandbox, limits)


def _collect_finished(
    running: dict[Future[list[TestResult]], tuple[int, list[int]]], results: dict[int, list[TestResult | None]]
) -> Iterator[tuple[int, list[TestResult]]]:
    """Waits for a unit at least; the jobs that are complete with it."""
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        job, places = running.pop(done)
        for at, result in zip(places, done.result(), strict=True):
            results[job][at] = result
        complete = [result for result in results[job] if result is not None]
        if len(complete) == len(results[job]):
            del results[job]
            yield job, complete


def _syntax_error(code: str) -> str:
    """Why `code` is no Python, '' where it is: then no process need be started for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        return f"{type(error).__name__}: {error.msg}" + (f" (line {error.lineno})" if error.lineno else "")
    except (ValueError, MemoryError, RecursionError) as error:
        return f"{type(error).__name__}: {one_line(str(error)) or 'nested too deeply'}"
    return ""


def _run_asserts(
    code: str, tests: Sequence[AssertTest], syntax_error: str, sandbox: Sandbox, limits: Limits
) -> list[TestResult]:
    plans = [_plan_or_error(test) for test in tests]
    found: dict[int, TestResult] = {}
    apart = [(at, plan) for at, plan in enumerate(plans) if isinstance(plan, AssertPlan) and not plan.whole_statement]
    calls = [
        ChildCall(plan.setup if first else "", hole)
        for _, plan in apart
        for first, hole in zip([True] + [False] * len(plan.child_expressions), plan.child_expressions, strict=False)
    ]
    head = CODE_PRELUDE if any(test.setup == CALL_HELPERS for test in tests) else ""
    given = iter(_run_calls_checked(code, calls, syntax_error, sandbox, limits, head))
    for at, plan in apart:
        found[at] = explain_assert(plan, [next(given) for _ in plan.child_expressions])
    for at, each in enumerate(plans):
        if isinstance(each, TestResult):
            found[at] = each
        elif each.whole_statement:
            call = ChildCall(each.setup, each.whole_statement, secrets.token_hex(16))
            found[at] = explain_whole_assert(each, _run_calls_checked(code, [call], syntax_error, sandbox, limits)[0])
    return [found[at] for at in range(len(tests))]


def _run_calls_checked(
    code: str, calls: Sequence[ChildCall], syntax_error: str, sandbox: Sandbox, limits: Limits, preamble: str = ""
) -> list[CallResult]:
    if syntax_error:
        return [CallResult(error=syntax_error, status="error", is_load_error=True)] * len(calls)
    return run_calls(code, calls, sandbox, limits, preamble) if calls else []


def _plan_or_error(test: AssertTest) -> AssertPlan | TestResult:
    try:
        return plan_assert(test)
    except BrokenTestError as error:
        return TestResult(False, "assert", shorten(test.code), "no error", "", str(error), "refused", protected=False)


def _run_stdio(code: str, test: StdioTest, syntax_error: str, sandbox: Sandbox, limits: Limits) -> list[TestResult]:
    shown = TestResult(False, "stdio", shorten(test.stdin), shorten(test.expected), "", syntax_error, "error")
    if syntax_error:
        return [shown]
    outcome = sandbox.run(Program(code, test.stdin.encode(errors="replace").decode(), limits))
    shown = replace(shown, got=shorten(outcome.stdout), status=outcome.status, seconds=outcome.seconds)
    if outcome.status != "ok":
        return [replace(shown, reason=end_reason(outcome, limits))]
    return [_compare_output(shown, test, outcome)]


def _compare_output(result: TestResult, test: StdioTest, execution: ExecutionResult) -> TestResult:
    at = first_difference(test.expected, execution.stdout)
    if at is None:
        return replace(result, passed=True)
    wanted, printed = comparable_lines(test.expected), comparable_lines(execution.stdout)
    expected = f"'{one_line(wanted[at - 1])}'" if at <= len(wanted) else "no such line"
    got = f"printed '{one_line(printed[at - 1])}'" if at <= len(printed) else "printed no such line"
    if not printed:
        return replace(result, reason=f"printed nothing, expected {expected}")
    return replace(result, reason=f"line {at}: {got}, expected {expected}")


__all__ = ["DEFAULT_LIMITS", "TestResult", "run_tests", "run_tests_many"]
