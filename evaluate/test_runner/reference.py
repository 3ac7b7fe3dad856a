"""Tests whose expected values are what a reference returns (tasks.problem.ReferenceTest), as EvalPlus's are.

The reference runs once for a test, in the sandbox; its values and the processor time of each call are kept in the
folder `reference-answers` of the cache. A candidate's calls of one test run in one child, and their values are compared
on the host, so that no expected value enters the sandbox. The first call that fails is the test's result.

A call may take `ReferenceLimits.seconds` of processor time, after which the kernel ends its child. All calls of a test
together may take the sum of their limits, but at most MAX_TEST_TIMES the sandbox's limit of time (60 s by default, as
in EvalPlus), and 1 s.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import math
import os
import platform
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from common.files import atomic_write, cache_dir, make_dir
from errors import DataError, PromptOrTuneError
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import MEBIBYTE, Limits
from evaluate.test_runner.calls import CallResult, ChildCall, run_calls
from evaluate.test_runner.child import ValueWriter
from evaluate.test_runner.explain import joined_error
from evaluate.test_runner.result import ComparisonRules, TestResult, contrast, format_value, one_line, shorten
from evaluate.test_runner.values import InvalidValueError, LargeValue, OpaqueValue, decode_value
from tasks.problem import ReferenceTest, Test

MAX_TEST_TIMES = 6  # the sandbox's limit of time, for all calls of a test
_REFERENCE_RUN_LIMITS = Limits(wall_seconds=120, cpu_seconds=120, memory_bytes=4096 * MEBIBYTE)
# Increase when the answers of the same reference can change: they are then computed again.
ANSWERS_VERSION = 1
_MAX_ANSWERS_IN_MEMORY = 32  # tests; those of one problem are used one after the other
_LOCKS_LOCK = Lock()
_LOCKS: dict[str, Lock] = {}


@dataclass(frozen=True)
class ReferenceLimits:
    """What a call that is compared with a reference may take.

    Its processor seconds are `factor` times those of the reference, at least `min_seconds`; its program has
    `memory_bytes` of memory. The defaults are those of EvalPlus's repository since April 2025 (its release 0.3.1 has
    1 s for 4 s). Raises PromptOrTuneError for a limit that is not a positive number.
    """

    min_seconds: float = 4.0
    factor: float = 4.0
    memory_bytes: int = 4096 * MEBIBYTE

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise PromptOrTuneError(f"The limit {name} out of the reference is {value:g}: give a number above 0.")

    def seconds(self, reference_seconds: float) -> float:
        """Return the limit of a call for which the reference took `reference_seconds`."""
        return max(self.min_seconds, self.factor * reference_seconds)


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the reference returned for each input of a test, and the processor seconds that it took."""

    values: tuple[Any, ...]
    seconds: tuple[float, ...]


def missing_answers(tests: Iterable[Test]) -> list[ReferenceTest]:
    """Return the tests with a reference whose answers are not in the cache."""
    return [test for test in tests if isinstance(test, ReferenceTest) and not _path(test).is_file()]


def compute_answers(tests: Sequence[ReferenceTest], sandbox: Sandbox, workers: int | None = None) -> Iterator[None]:
    """Compute the answers that are not in the cache, `workers` tests at a time (default: one per core).

    Yields after each test. Raises DataError, with the name of the test, for a reference that fails, and SandboxError.
    """
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "reference") as pool:
        futures = [pool.submit(_ensure_cached, test, sandbox) for test in tests]
        try:
            for future in futures:
                future.result()
                yield
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_reference_test(
    code: str,
    test: ReferenceTest,
    sandbox: Sandbox,
    limits: Limits,
    preamble: str,
    rules: ComparisonRules,
    reference_limits: ReferenceLimits | None,
) -> TestResult:
    """Run all calls of the test on `code`; the result is that of the first call that fails.

    Without `reference_limits` a call may take the processor time of `limits`. Raises DataError for a reference that
    fails.
    """
    answers = _answers(test, sandbox)
    seconds = [reference_limits.seconds(each) if reference_limits else limits.cpu_seconds for each in answers.seconds]
    calls = [
        ChildCall("", _called(test, at), cpu_seconds=min(allowed, MAX_TEST_TIMES * limits.wall_seconds))
        for at, allowed in enumerate(seconds)
    ]
    together = min(MAX_TEST_TIMES * limits.wall_seconds, sum(seconds)) + 1
    memory = reference_limits.memory_bytes if reference_limits else limits.memory_bytes
    shared = replace(limits, wall_seconds=together, cpu_seconds=together, memory_bytes=memory)
    results = run_calls(code, calls, sandbox, shared, preamble, until_ended=True)
    taken = sum(result.seconds for result in results)
    for at, (result, answer) in enumerate(zip(results, answers.values, strict=True)):
        reason = _failure(test, at, result, answer, rules)
        if reason:
            got = "" if result.error else format_value(result.value)
            given, expected = _called(test, at), format_value(rules.expected_value(test.function, answer))
            status = result.status if result.error else "ok"
            return TestResult(
                False, "call", shorten(given), shorten(expected), shorten(got), reason, status, seconds=taken
            )
    summary = f"{test.name}: {len(calls):,} calls of {test.function}"
    return TestResult(True, "call", summary, "what the reference returns", "the same", "", "ok", seconds=taken)


def _failure(test: ReferenceTest, at: int, result: CallResult, answer: Any, rules: ComparisonRules) -> str:
    """Return why a call fails, '' if its value is right."""
    if result.is_load_error:
        return result.error
    expected, note = rules.expected_value(test.function, answer), ""
    try:
        arguments = _arguments(test.inputs[at]) if rules.uses_arguments(test.function) else []
        if not result.error and rules.are_equal(result.value, expected, test.function, arguments, test.tolerance):
            return ""
    except Exception as error:  # noqa: BLE001 - values that cannot be compared
        note = f" ({type(error).__name__}: {one_line(str(error))})"
    called = one_line(_called(test, at))
    position = f"(call {at + 1:,} of {len(test.inputs):,} of {test.name})"
    if result.error:
        return f"{called} {joined_error(result)} {position}"
    got, wanted = contrast(format_value(result.value), format_value(expected))
    if got == wanted:
        got += f" ({type(result.value).__name__})"
    return f"{called} gave {got}, expected {wanted}{note} {position}"


def _called(test: ReferenceTest, at: int) -> str:
    return f"{test.function}({test.inputs[at]})"


def _arguments(source: str) -> list[Any]:
    """Return the values of the positional arguments; [] where they are no literals."""
    try:
        return list(ast.literal_eval(f"[{source}]"))
    except (ValueError, SyntaxError):
        return []


def _answers(test: ReferenceTest, sandbox: Sandbox) -> ReferenceAnswers:
    path = _ensure_cached(test, sandbox)
    return _read_answers(path, test.name)


def _ensure_cached(test: ReferenceTest, sandbox: Sandbox) -> Path:
    """Return the file of the test's answers, which are computed if there is none."""
    path = _path(test)
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(path.name, Lock())
    with lock:
        if not path.is_file():
            content = _compute_answers(test, sandbox)
            make_dir(path.parent)
            atomic_write(path, gzip.compress(content.encode(), mtime=0))
    return path


def _path(test: ReferenceTest) -> Path:
    """Return the file of the test's answers, which depend on the code, the inputs and Python."""
    python = ".".join(platform.python_version_tuple()[:2])
    parts = [ANSWERS_VERSION, python, test.function, test.reference, test.inputs]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return cache_dir() / "reference-answers" / f"{digest}.json.gz"


def _compute_answers(test: ReferenceTest, sandbox: Sandbox) -> str:
    allowed = _REFERENCE_RUN_LIMITS.cpu_seconds
    calls = [ChildCall("", _called(test, at), cpu_seconds=allowed) for at in range(len(test.inputs))]
    results = run_calls(test.reference, calls, sandbox, _REFERENCE_RUN_LIMITS, until_ended=True)
    for at, result in enumerate(results):
        if result.error:
            failed = result.error if result.is_load_error else f"{one_line(_called(test, at))} {joined_error(result)}"
            raise DataError(
                f"{test.name}: the reference solution fails ({failed}), so that no answer can be compared with it: "
                "correct its row, or take another edition of the data set."
            )
    values = ",".join(_encode(result.value) for result in results)
    seconds = ",".join(f"{result.seconds:.6f}" for result in results)
    return f"[[{values}],[{seconds}]]"


def _encode(value: Any) -> str:
    """Return the JSON of a value as `decode_value` reads it; an object of which only the type is known stays one."""
    if isinstance(value, LargeValue):
        return json.dumps({"large": [value.type_name, value.length, value.digest]})
    if isinstance(value, OpaqueValue):
        return json.dumps({"other": value.type_name})
    return ValueWriter().write(value)


@lru_cache(maxsize=_MAX_ANSWERS_IN_MEMORY)
def _read_answers(path: Path, name: str) -> ReferenceAnswers:
    try:
        values, seconds = json.loads(gzip.decompress(path.read_bytes()))
        return ReferenceAnswers(tuple(map(decode_value, values)), tuple(map(float, seconds)))
    except (OSError, EOFError, zlib.error, ValueError, TypeError, InvalidValueError) as error:
        raise DataError(
            f"{path}, the expected values of {name}, cannot be read ({type(error).__name__}): delete the file, and "
            "they are computed again."
        ) from error
