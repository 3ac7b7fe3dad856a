"""Test runner: runs candidates' code against tests in the sandbox and compares the results on the host.

No expected value enters the sandbox, with the one exception named below:

- A program run (StdioTest) gets a fresh process; its output is compared here.
- An assert is split (asserts.py): the child evaluates the calls, the host compares their values (calls.py).
- An assert that cannot be split runs as a whole in a child of its own; its result has `protected` False.
- ScriptTests are one script, which runs in order and keeps its state (script.py).
- The calls of a ReferenceTest run in one process; their values are compared here with the reference's (reference.py).

All split asserts of a candidate share one process, in order, as in MBPP's own harness: the code runs once, a test's
set-up before each test. Values are compared by Python's `==` (1, 1.0, True are equal, a list and a tuple are not) or
by the rules in result.py.
The code runs as `__main__` in a program run, and as a module for calls. LeetCode's `class Solution` finds the names
that LeetCode imports for it, and code that names house's library finds the library (entry_point.py).

Output is compared line by line. Blanks at the end of a line and empty lines at the end are ignored; the order of
lines and the blanks before and between words are not. Words must be equal, except decimals: if the expected word is a
number with a point or an exponent, |got - expected| <= 1e-6 * max(1, |expected|) suffices.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from common.parsing import parse_python
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import ExecutionResult, Limits, Program, require_run
from evaluate.test_runner.asserts import AssertPlan, BrokenTestError, plan_assert
from evaluate.test_runner.calls import CallResult, ChildCall, run_calls
from evaluate.test_runner.entry_point import NoEntryPointError, code_prelude, resolve_entry_point
from evaluate.test_runner.explain import explain_assert, explain_whole_assert, run_split_asserts
from evaluate.test_runner.reference import ReferenceLimits, run_reference_test
from evaluate.test_runner.result import EXACT, ComparisonRules, TestResult, contrast, end_reason, one_line, shorten
from evaluate.test_runner.script import run_script
from tasks.problem import CALL_HELPERS, CODE_PRELUDE, AssertTest, ReferenceTest, ScriptTest, StdioTest, Test

FLOAT_TOLERANCE = 1e-6
_NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER_PATTERN = re.compile(r"[+-]?\d+", re.ASCII)
_WORD_SEPARATOR = re.compile(r"(\s+)")


def comparable_lines(text: str) -> list[str]:
    """Split output into lines, without blanks at their ends and without empty lines at the end of the text."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def first_difference(expected: str, got: str) -> int | None:
    """Return the number (from 1) of the first line of `got` that differs from `expected`, or None."""
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
MAX_QUEUED_PER_WORKER = 4  # units of work submitted ahead, per worker

_WorkUnit = tuple[int, list[int], Callable[[], list[TestResult]]]


def run_tests(
    code: str,
    tests: Sequence[Test],
    sandbox: Sandbox,
    limits: Limits = DEFAULT_LIMITS,
    workers: int | None = None,
    rules: ComparisonRules = EXACT,
    reference_limits: ReferenceLimits | None = None,
) -> list[TestResult]:
    """Run `tests` on `code` and return their results in order. Never raises for any code, only SandboxError.

    `limits` apply to each call and each program run. `workers` processes run at a time (default: one per core).
    `rules` decide which values of calls are equal to those expected. `reference_limits` are those of ReferenceTests;
    DataError is raised for a reference that fails.
    """
    return next(run_tests_many([(code, tests)], sandbox, workers, limits, rules, reference_limits))[1]


def run_tests_many(
    candidates: Iterable[tuple[str, Sequence[Test]]],
    sandbox: Sandbox,
    workers: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    rules: ComparisonRules = EXACT,
    reference_limits: ReferenceLimits | None = None,
) -> Iterator[tuple[int, list[TestResult]]]:
    """Run tests of many candidates in parallel; yield each candidate's index and its results when they are complete.

    `candidates` is read only as far as the workers need. Closing the iterator early waits for running programs.
    """
    workers = workers or len(os.sched_getaffinity(0))
    results: dict[int, list[TestResult | None]] = {}
    running: dict[Future[list[TestResult]], tuple[int, list[int]]] = {}
    with ThreadPoolExecutor(workers, "check") as pool:
        try:
            for candidate, indices, work in _work_units(candidates, results, sandbox, limits, rules, reference_limits):
                running[pool.submit(work)] = candidate, indices
                if not indices or len(running) >= MAX_QUEUED_PER_WORKER * workers:
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
    rules: ComparisonRules,
    reference_limits: ReferenceLimits | None,
) -> Iterator[_WorkUnit]:
    """Yield what can run independently: each program run and reference test, all asserts of a candidate, its script.

    A candidate without tests is one unit too, so that its (empty) results are yielded.
    """
    for candidate, (code, tests) in enumerate(candidates):
        results[candidate] = [None] * len(tests)
        error = _syntax_error(code)
        asserts = {index: test for index, test in enumerate(tests) if isinstance(test, AssertTest)}
        if asserts or not tests:
            run = partial(_run_asserts, code, list(asserts.values()), error, sandbox, limits, rules)
            yield candidate, list(asserts), run
        script = {index: test for index, test in enumerate(tests) if isinstance(test, ScriptTest)}
        if script:
            yield (
                candidate,
                list(script),
                partial(_run_script, code, list(script.values()), error, sandbox, limits, rules),
            )
        for index, test in enumerate(tests):
            if isinstance(test, StdioTest):
                yield candidate, [index], partial(_run_stdio, code, test, error, sandbox, limits)
            elif isinstance(test, ReferenceTest):
                run = partial(_run_reference, code, test, error, sandbox, limits, rules, reference_limits)
                yield candidate, [index], run


def _collect_finished(
    running: dict[Future[list[TestResult]], tuple[int, list[int]]], results: dict[int, list[TestResult | None]]
) -> Iterator[tuple[int, list[TestResult]]]:
    """Wait for at least one unit; yield the candidates whose results are then complete.

    Raises the SandboxError of a unit after the results of all others that have ended.
    """
    ended = wait(running, return_when=FIRST_COMPLETED).done
    for done in sorted(ended, key=lambda future: future.exception() is not None):
        candidate, indices = running.pop(done)
        for index, result in zip(indices, done.result(), strict=True):
            results[candidate][index] = result
        complete = [result for result in results[candidate] if result is not None]
        if len(complete) == len(results[candidate]):
            del results[candidate]
            yield candidate, complete


def _syntax_error(code: str) -> str:
    """Return why `code` is not Python, so that no process is started for it; '' if it is."""
    try:
        parse_python(code)
    except SyntaxError as error:
        return f"{type(error).__name__}: {error.msg}" + (f" (line {error.lineno})" if error.lineno else "")
    except (ValueError, MemoryError, RecursionError) as error:
        return f"{type(error).__name__}: {one_line(str(error)) or 'nested too deeply'}"
    return ""


def _run_asserts(
    code: str,
    tests: Sequence[AssertTest],
    syntax_error: str,
    sandbox: Sandbox,
    limits: Limits,
    rules: ComparisonRules,
) -> list[TestResult]:
    plans = [_plan_or_error(test) for test in tests]
    split = [plan for plan in plans if isinstance(plan, AssertPlan) and not plan.unprotected_reason]
    preamble = code_prelude(code) or (CODE_PRELUDE if any(test.setup == CALL_HELPERS for test in tests) else "")

    def run(calls: Sequence[ChildCall], preamble: str = "") -> list[CallResult]:
        if syntax_error:
            return [CallResult(error=syntax_error, status="error", is_load_error=True)] * len(calls)
        return run_calls(code, calls, sandbox, limits, preamble) if calls else []

    outcomes = iter(run_split_asserts(split, partial(run, preamble=preamble), rules))
    results: list[TestResult] = []
    for plan in plans:
        if isinstance(plan, TestResult):
            results.append(plan)
            continue
        reason = plan.unprotected_reason
        if not reason:
            call_results, outcome = next(outcomes)
            if not outcome.is_unknown:
                results.append(explain_assert(plan, call_results, outcome))
                continue
            reason = "it uses a value of which only the sandbox knows all"
        call = ChildCall(plan.whole_setup, plan.statement, secrets.token_hex(16))
        results.append(explain_whole_assert(plan, run([call], preamble)[0], reason))
    return results


def _run_script(
    code: str, tests: Sequence[ScriptTest], syntax_error: str, sandbox: Sandbox, limits: Limits, rules: ComparisonRules
) -> list[TestResult]:
    reason = syntax_error
    if not reason:
        try:
            return run_script(code, resolve_entry_point(code, tests), sandbox, limits, code_prelude(code), rules)
        except NoEntryPointError as error:
            reason = str(error)
    return [TestResult(False, "call", shorten(test.code), "", "", reason, "error") for test in tests]


def _run_reference(
    code: str,
    test: ReferenceTest,
    syntax_error: str,
    sandbox: Sandbox,
    limits: Limits,
    rules: ComparisonRules,
    reference_limits: ReferenceLimits | None,
) -> list[TestResult]:
    if syntax_error:
        return [TestResult(False, "call", f"{test.name}: {test.function}", "", "", syntax_error, "error")]
    return [run_reference_test(code, test, sandbox, limits, code_prelude(code), rules, reference_limits)]


def _plan_or_error(test: AssertTest) -> AssertPlan | TestResult:
    try:
        return plan_assert(test)
    except BrokenTestError as error:
        return TestResult(False, "assert", shorten(test.code), "no error", "", str(error), "refused", protected=False)


def _run_stdio(code: str, test: StdioTest, syntax_error: str, sandbox: Sandbox, limits: Limits) -> list[TestResult]:
    result = TestResult(False, "stdio", shorten(test.stdin), shorten(test.expected), "", syntax_error, "error")
    if syntax_error:
        return [result]
    execution = require_run(sandbox.run(Program(code, test.stdin.encode(errors="replace").decode(), limits)))
    result = replace(result, got=shorten(execution.stdout), status=execution.status, seconds=execution.seconds)
    if execution.status != "ok":
        return [replace(result, reason=end_reason(execution, limits))]
    return [_compare_output(result, test, execution)]


def _compare_output(result: TestResult, test: StdioTest, execution: ExecutionResult) -> TestResult:
    number = first_difference(test.expected, execution.stdout)
    if number is None:
        return replace(result, passed=True)
    wanted, printed = comparable_lines(test.expected), comparable_lines(execution.stdout)
    line = printed[number - 1] if number <= len(printed) else ""
    got, expected = (f"'{text}'" for text in contrast(line, wanted[number - 1] if number <= len(wanted) else ""))
    expected = expected if number <= len(wanted) else "no such line"
    got = f"printed {got}" if number <= len(printed) else "printed no such line"
    if not printed:
        return replace(result, reason=f"printed nothing, expected {expected}")
    return replace(result, reason=f"line {number}: {got}, expected {expected}")


__all__ = ["DEFAULT_LIMITS", "TestResult", "run_tests", "run_tests_many"]
