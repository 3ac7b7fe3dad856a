"""Runs a candidate's code against a problem's tests in the sandbox. No expected value enters it, but where said.

- A program's run (StdioTest) gets a fresh process, and what it printed is compared here (outputs.py).
- An assert is taken apart (asserts.py): the child evaluates the calls, the host compares (calls.py, constants.py).
- An assert that cannot be taken apart runs whole in a child of its own, and its result says so (`protected`).

All asserts of a candidate that were taken apart share one process, in their order, as in MBPP's own harness: the code
runs once, a test's set-up before each test. Values are compared by Python's `==`: 1, 1.0 and True are equal, a list and
a tuple are not. The code runs as `__main__` for a program's run, and as a module for calls.
"""

from __future__ import annotations

import ast
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from evaluate.checking.asserts import BrokenTestError, Plan, plan_of
from evaluate.checking.calls import Call, Given, run_calls
from evaluate.checking.explain import explain, explain_whole
from evaluate.checking.outputs import first_difference, lines_of
from evaluate.checking.result import TestResult, in_words, shorten, stopped
from evaluate.sandbox import Limits, Outcome, Program, Sandbox
from tasks.datasets.apps_tests import CHECK, HEAD
from tasks.problem import AssertTest, StdioTest, Test

DEFAULT_LIMITS = Limits()
WAITING = 4  # units of work per worker that are handed out ahead

_Unit = tuple[int, list[int], Callable[[], list[TestResult]]]


def check(
    code: str, tests: Sequence[Test], sandbox: Sandbox, limits: Limits = DEFAULT_LIMITS, workers: int | None = None
) -> list[TestResult]:
    """The result of each test, in the order of `tests`. Never raises for any code.

    `limits` hold for each call and each program run. `workers` is how many processes run at a time, by default one a
    core.
    """
    return next(check_many([(code, tests)], sandbox, workers, limits))[1]


def check_many(
    jobs: Iterable[tuple[str, Sequence[Test]]],
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
            for job, places, work in _units(jobs, results, sandbox, limits):
                running[pool.submit(work)] = job, places
                if not places or len(running) >= WAITING * workers:
                    yield from _collect(running, results)
            while running:
                yield from _collect(running, results)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _units(
    jobs: Iterable[tuple[str, Sequence[Test]]],
    results: dict[int, list[TestResult | None]],
    sandbox: Sandbox,
    limits: Limits,
) -> Iterator[_Unit]:
    """What can run on its own: each program's run, and all asserts of one job. A job without tests is one unit too."""
    for job, (code, tests) in enumerate(jobs):
        results[job] = [None] * len(tests)
        broken = _syntax_fault(code)
        asserts = [(at, test) for at, test in enumerate(tests) if isinstance(test, AssertTest)]
        if asserts or not tests:
            listed = [test for _, test in asserts]
            yield job, [at for at, _ in asserts], partial(_asserts, code, listed, broken, sandbox, limits)
        for at, test in enumerate(tests):
            if isinstance(test, StdioTest):
                yield job, [at], partial(_stdio, code, test, broken, sandbox, limits)


def _collect(
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


def _syntax_fault(code: str) -> str:
    """Why `code` is no Python, '' where it is: then no process need be started for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as fault:
        return f"{type(fault).__name__}: {fault.msg}" + (f" (line {fault.lineno})" if fault.lineno else "")
    except (ValueError, MemoryError, RecursionError) as fault:
        return f"{type(fault).__name__}: {in_words(str(fault)) or 'nested too deeply'}"
    return ""


def _asserts(code: str, tests: Sequence[AssertTest], broken: str, sandbox: Sandbox, limits: Limits) -> list[TestResult]:
    plans = [_planned(test) for test in tests]
    found: dict[int, TestResult] = {}
    apart = [(at, plan) for at, plan in enumerate(plans) if isinstance(plan, Plan) and not plan.whole]
    calls = [
        Call(plan.setup if first else "", hole)
        for _, plan in apart
        for first, hole in zip([True] + [False] * len(plan.holes), plan.holes, strict=False)
    ]
    head = HEAD if any(test.setup == CHECK for test in tests) else ""
    given = iter(_given(code, calls, broken, sandbox, limits, head))
    for at, plan in apart:
        found[at] = explain(plan, [next(given) for _ in plan.holes])
    for at, each in enumerate(plans):
        if isinstance(each, TestResult):
            found[at] = each
        elif each.whole:
            call = Call(each.setup, each.whole, secrets.token_hex(16))
            found[at] = explain_whole(each, _given(code, [call], broken, sandbox, limits)[0])
    return [found[at] for at in range(len(tests))]


def _given(
    code: str, calls: Sequence[Call], broken: str, sandbox: Sandbox, limits: Limits, head: str = ""
) -> list[Given]:
    if broken:
        return [Given(fault=broken, status="error", alone=True)] * len(calls)
    return run_calls(code, calls, sandbox, limits, head) if calls else []


def _planned(test: AssertTest) -> Plan | TestResult:
    try:
        return plan_of(test)
    except BrokenTestError as fault:
        return TestResult(False, "assert", shorten(test.code), "no error", "", str(fault), "refused", protected=False)


def _stdio(code: str, test: StdioTest, broken: str, sandbox: Sandbox, limits: Limits) -> list[TestResult]:
    shown = TestResult(False, "stdio", shorten(test.stdin), shorten(test.expected), "", broken, "error")
    if broken:
        return [shown]
    outcome = sandbox.run(Program(code, test.stdin.encode(errors="replace").decode(), limits))
    shown = replace(shown, got=shorten(outcome.stdout), status=outcome.status, seconds=outcome.seconds)
    if outcome.status != "ok":
        return [replace(shown, reason=stopped(outcome, limits))]
    return [_compared(shown, test, outcome)]


def _compared(shown: TestResult, test: StdioTest, outcome: Outcome) -> TestResult:
    at = first_difference(test.expected, outcome.stdout)
    if at is None:
        return replace(shown, passed=True)
    wanted, printed = lines_of(test.expected), lines_of(outcome.stdout)
    expected = f"'{in_words(wanted[at - 1])}'" if at <= len(wanted) else "no such line"
    got = f"printed '{in_words(printed[at - 1])}'" if at <= len(printed) else "printed no such line"
    if not printed:
        return replace(shown, reason=f"printed nothing, expected {expected}")
    return replace(shown, reason=f"line {at}: {got}, expected {expected}")
