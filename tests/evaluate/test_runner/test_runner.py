"""Test results of candidates in the real sandbox, and the comparison of outputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import SandboxClosedError
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import ExecutionResult, Limits, Program
from evaluate.test_runner.result import TestResult
from evaluate.test_runner.runner import comparable_lines, first_difference, run_tests, run_tests_many
from tasks.problem import AssertTest, StdioTest, Test, parse_tests
from tests import messages
from tests.evaluate.hostile import HOSTILE
from tests.evaluate.test_runner.cheats import CHEATS

pytestmark = pytest.mark.slow

QUICK = Limits(wall_seconds=1, cpu_seconds=2)
ECHO = StdioTest("2 3\n", "5\n")


def asserts(*codes: str, setup: str = "") -> list[Test]:
    return [AssertTest(f"assert {code}", setup) for code in codes]


def run(sandbox: Sandbox, code: str, tests: Sequence[Test], limits: Limits = QUICK) -> list[TestResult]:
    results = run_tests(code, tests, sandbox, limits)
    assert len(results) == len(tests)
    assert all(result.passed == (not result.reason) for result in results)
    assert all("\n" not in result.reason and len(result.reason) < 700 for result in results)
    return results


class Spy(Sandbox):
    """A sandbox that records its programs."""

    def __init__(self, inner: Sandbox) -> None:
        super().__init__(inner.layer)
        self.programs: list[Program] = []

    def run(self, program: Program) -> ExecutionResult:
        self.programs.append(program)
        return super().run(program)


def test_correct_code_passes_in_one_process(sandbox: Sandbox) -> None:
    spy = Spy(sandbox)
    tests = asserts("f(2) == 4", "f(-1) == -2", "f('a') == 'aa'", "f([1]) != [1]", "f(0.5) is not None", "f(1)")
    results = run(spy, "def f(x):\n    print(x)\n    return x * 2", tests)
    assert all(result.passed and result.protected and result.kind == "call" for result in results)
    assert (results[0].given, results[0].expected, results[0].got) == ("f(2)", "4", "4")
    assert len(spy.programs) == 1


def test_no_expected_value_enters_the_child(sandbox: Sandbox) -> None:
    spy = Spy(sandbox)
    secret = 271828182845
    tests = [
        *asserts(
            f"f(1) == {secret}",
            f"abs(f(1) - {secret}.5) < 1",
            f"f(1) in [{secret}]",
            f"all(f(x) == {secret} for x in [1])",
        ),
        StdioTest("1", str(secret)),
    ]
    results = run(
        spy, "def f(x):\n    return x\nif __name__ == '__main__':\n    print(f(input()))", tests[:3] + tests[4:]
    )
    assert not any(result.passed for result in results)
    assert all(str(secret) not in program.code + program.stdin for program in spy.programs)
    whole = run(spy, "def f(x): return x", tests[3:4])[0]
    assert not whole.protected
    assert str(secret) in spy.programs[-1].code


@pytest.mark.parametrize(
    ("code", "test", "reason"),
    [
        ("def f(x): return 3", "f([1, 2]) == 4", "f([1, 2]) gave 3, expected 4"),
        ("def f(x): return (1, 2)", "f(1) == [1, 2]", "f(1) gave (1, 2), expected [1, 2]"),
        ("def f(x): return '1'", "f(1) == 1", "f(1) gave '1', expected 1"),
        ("def f(x): return 1", "f(1) is True", "f(1) gave 1, expected True"),
        ("def f(x): pass", "f(1) == 1", "f(1) gave None, expected 1"),
        ("def f(x): return 0", "f(1)", "f(1) gave False, expected a true value"),
        ("def f(x): return 5", "f(1) in [4]", "f(1) gave 5, expected 4"),
        ("def f(x): return 5", "f(1) in (1, 2)", "f(1) gave 5, expected one of (1, 2)"),
        ("def f(x): return 5", "f(1) < 5", "f(1) gave 5, expected less than 5"),
        ("def f(x): return 5.0", "abs(f(1) - 4.0) < .1", "abs(f(1) - 4.0) < .1 does not hold: f(1) gave 5.0"),
        ("def f(x): return object()", "f(1) == 1", "f(1) gave an object of type object, expected 1"),
        ("def f(x): return 'a'", "f(1) < 5", "f(1) gave 'a', expected less than 5 (TypeError: "),
        ("def f(x):\n  y = 1\n  return z", "f(1) == 1", "f(1) raised NameError: name 'z' is not defined (line 3)"),
        ("def g(x): return 1", "f(1) == 1", "f(1) raised NameError: name 'f' is not defined"),
        ("def f(x): return x\nboom", "f(1) == 1", "NameError: name 'boom' is not defined (line 2)"),
        ("def f(x): return f(x)", "f(1) == 1", "f(1) raised RecursionError: maximum recursion depth exceeded (line 1)"),
        ("def f(x) return 1", "f(1) == 1", "SyntaxError: expected ':' (line 1)"),
        ("return 1", "f(1) == 1", "SyntaxError: 'return' outside function (line 1)"),
        ("def f(x):\n  while True: pass", "f(1) == 1", "f(1) stopped after 1 s ("),
        ("while True: pass", "f(1) == 1", "stopped after 1 s ("),
        ("def f(x): return 'a' * 10**9", "f(1) == 1", "f(1) needs more than 512 MB"),
        ("def f(x): return [0] * 10**6", "f(1) == 1", "f(1) returned more than 200000 characters"),
        ("def f(x):\n  while True: print('x' * 10**5)", "f(1) == 1", "f(1) printed more than 1 MB"),
        ("def f(x):\n  import os\n  os._exit(0)", "f(1) == 1", "f(1) ended before it answered"),
        ("def f(x):\n  raise SystemExit(3)", "f(1) == 1", "f(1) ended itself (exit status 3) before it answered"),
        ("def f(x):\n  import ctypes\n  ctypes.string_at(0)", "f(1) == 1", "f(1) ended by a signal"),
        (
            "def f(x): return 1",
            "all(f(x) == x for x in [1, 2])",
            "does not hold (the whole assert ran in the sandbox, unpr",
        ),
        ("def f(x): return 1", "f(1) ==", "the test is not Python (invalid syntax)"),
    ],
)
def test_failed_test_has_a_reason(sandbox: Sandbox, code: str, test: str, reason: str) -> None:
    (result,) = run(sandbox, code, asserts(test))
    assert not result.passed
    assert reason in result.reason
    assert result.reason.startswith(reason) or "whole assert" in reason


def test_call_that_hangs_or_crashes_does_not_affect_other_tests(sandbox: Sandbox) -> None:
    code = (
        "import os\n"
        "def f(x):\n"
        "    if x == 1:\n        os._exit(3)\n"
        "    if x == 3:\n        while True: pass\n"
        "    if x == 4:\n        raise KeyboardInterrupt\n"
        "    if x == 5:\n        print('x' * 3_000_000)\n"
        "    return x\n"
    )
    results = run(sandbox, code, asserts(*(f"f({x}) == {x}" for x in range(7))))
    assert [result.passed for result in results] == [True, False, True, False, False, False, True]
    assert [result.status for result in results] == ["ok", "error", "ok", "timeout", "error", "output", "ok"]


def test_each_call_has_its_own_time_limit(sandbox: Sandbox) -> None:
    code = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x"
    assert all(result.passed for result in run(sandbox, code, asserts("f(1) == 1", "f(2) == 2", "f(3) == 3")))


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_hostile_code_passes_no_test(sandbox: Sandbox, code: str) -> None:
    tests = asserts(
        "f(2) == 8675309421",
        "8675309421 == f(2)",
        "abs(f(2) - 8675309421.0) < 1e-6",
        "f(2) - 8675309421 == 0",
        "f(2) in [8675309421]",
        "math.isclose(f(2), 8675309421)",
        "f(2) == 4710 + 1",
    )
    results = run(sandbox, code, tests)
    assert not [result for result in results if result.passed]
    assert all(result.protected for result in results)


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "raise SystemExit(0)", "print('held')", "assert_ = 1"])
def test_early_exit_does_not_pass_an_unprotected_assert(sandbox: Sandbox, code: str) -> None:
    (result,) = run(sandbox, code, asserts("all(f(x) == x for x in [1])"))
    assert (result.passed, result.protected, result.kind) == (False, False, "assert")
    assert "unprotected" in result.reason


def test_unprotected_assert_that_holds_passes(sandbox: Sandbox) -> None:
    (result,) = run(sandbox, "def f(x): return x", asserts("all(f(x) == x for x in [1])"))
    assert (result.passed, result.protected, result.kind) == (True, False, "assert")


def test_set_up_runs_before_each_test_and_can_use_the_code(sandbox: Sandbox) -> None:
    tests = asserts("f(xs) == 1", "len(xs) == 3", "f(xs) == 1", setup="xs = [1, 2, 3]\nassert callable(f)")
    assert all(result.passed for result in run(sandbox, "def f(x): return x.pop(0)", tests))


def test_errors_that_python_would_not_raise_are_ignored(sandbox: Sandbox) -> None:
    tests = asserts("f(1) is None or f(1)[0] == 3", "f(1) == 4 or f(1)[0] == 3")
    first, second = run(sandbox, "def f(x): return None", tests)
    assert first.passed
    assert second.reason.endswith("gave None, None (TypeError: 'NoneType' object is not subscriptable)")


def test_code_can_find_its_own_module_in_sys_modules(sandbox: Sandbox) -> None:
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import NamedTuple\n"
        "@dataclass\nclass P:\n    x: int\n    y: list[int]\nclass N(NamedTuple):\n    a: int\n"
        "def f(x): return [P(x, []).x, N(3)]\nif __name__ == '__main__':\n    input()\n"
    )
    assert run(sandbox, code, asserts("f(1) == [1, (3,)]"))[0].passed


def test_calls_of_apps_are_compared_as_by_its_checker(sandbox: Sandbox) -> None:
    tests = parse_tests('{"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1, 1]], [9]]}', "here").tests
    code = "class Solution:\n    def f(self, x: List[int]):\n        return (x, x)"
    first, second = run(sandbox, code, tests)
    assert first.passed
    assert second.reason == "f(2) gave [2, 2], expected [9] or 9"


@pytest.mark.parametrize(
    "code",
    [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        "print(sum(map(int, open(0).read().split())))\nexit()",
        "import sys\nprint(5)\nsys.exit(0)",
        "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())), flush=True)",
        "import sys\nsys.stdout.write('5')",
    ],
)
def test_correct_programs_pass(sandbox: Sandbox, code: str) -> None:
    (result,) = run(sandbox, code, [ECHO])
    assert result.passed
    assert (result.kind, result.given, result.got.strip()) == ("stdio", "2 3\n", "5")


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("print(6)", "line 1: printed '6', expected '5'", "ok"),
        ("print('5\\n6')", "line 2: printed '6', expected no such line", "ok"),
        ("pass", "printed nothing, expected '5'", "ok"),
        ("print(5); exit(1)", "ended with an error status", "error"),
        ("print(5); x", "NameError: name 'x' is not defined (line 1)", "error"),
        ("print(5", "SyntaxError: '(' was never closed (line 1)", "error"),
        ("print(5, flush=True)\nwhile True: pass", "stopped after 1 s (", "timeout"),
        ("x = [0] * 10**9", "needs more than 512 MB", "memory"),
        ("while True: print('x' * 10**5)", "printed more than 1 MB", "output"),
        ("import os\nos.abort()", "ended by a signal (", "killed"),
        ("x = '\ud800'", "UnicodeEncodeError: ", "error"),
    ],
)
def test_wrong_programs_fail(sandbox: Sandbox, code: str, reason: str, status: str) -> None:
    (result,) = run(sandbox, code, [ECHO])
    assert not result.passed
    assert result.reason.startswith(reason)
    assert result.status == status


def test_parallel_candidates_are_each_completed_once(sandbox: Sandbox) -> None:
    jobs: list[tuple[str, list[Test]]] = [
        (f"def f(x): return x + {index % 2}\nprint(5)", [*asserts("f(1) == 1"), ECHO, *asserts("f(2) == 2")])
        for index in range(12)
    ]
    jobs[5] = ("def f(x): pass", [])
    jobs[7] = ("import os\nos._exit(0)", jobs[7][1])
    found = dict(run_tests_many(iter(jobs), sandbox, workers=3, limits=QUICK))
    assert sorted(found) == list(range(12))
    assert found[5] == []
    assert [result.passed for result in found[4]] == [True, True, True]
    assert [result.passed for result in found[3]] == [False, True, False]
    assert [result.kind for result in found[7]] == ["call", "stdio", "call"]


def test_candidates_are_read_lazily(sandbox: Sandbox) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[tuple[str, Sequence[Test]]]:
        for index in range(1000):
            taken.append(index)
            yield "def f(x): return x", asserts("f(1) == 1")

    results = run_tests_many(jobs(), sandbox, workers=1, limits=QUICK)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(taken) < 20


@pytest.mark.parametrize("tests", [asserts("f(1) == 1"), [ECHO]], ids=["calls", "stdio"])
def test_closed_sandbox_raises_and_no_test_fails(sandbox: Sandbox, tests: list[Test]) -> None:
    closed = Sandbox(sandbox.layer)
    closed.close()
    with pytest.raises(SandboxClosedError, match=messages.SANDBOX_WAS_CLOSED):
        run(closed, "def f(x): return 1", tests)


def test_hostile_text_never_raises(sandbox: Sandbox) -> None:
    jobs = [(text, [*asserts("f(1) == 1"), ECHO]) for text in HOSTILE.values()]
    for _, results in run_tests_many(jobs, sandbox, limits=QUICK):
        assert [result.passed for result in results] == [False, False]
        assert all(result.reason for result in results)


def test_reason_does_not_contain_the_path_of_python(sandbox: Sandbox) -> None:
    code = "def f():\n    from math import no_such_name"
    result = run_tests(code, [AssertTest("assert f() == 1")], sandbox)[0]
    assert "cannot import name 'no_such_name' from 'math'" in result.reason
    assert sys.base_prefix not in result.reason


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ("1 2 3", "1 2 3\n\n"),
        ("1 2 3 \n", "1 2 3"),
        ("a\r\nb", "a\nb\n"),
        ("", "\n \n"),
        ("a\n\nb\n", "a  \n\nb"),
        ("0.333333", "0.3333333333333333"),
        ("1000000.0", "1000000.9"),
        ("3.0", "3"),
        ("1e3 x", "1000.0 x"),
        ("-0.0", "0"),
    ],
)
def test_matching_output_has_no_difference(expected: str, got: str) -> None:
    assert first_difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "line"),
    [
        ("1 2 3", "3 2 1", 1),
        ("a\nb", "b\na", 1),
        ("a\nb", "a", 2),
        ("a", "a\nb", 2),
        ("a\nb", "a\n\nb", 2),
        ("a b", "a  b", 1),
        ("  a", "a", 1),
        ("a b", "ab", 1),
        ("Yes", "yes", 1),
        ("3", "3.0", 1),
        ("3", "3.0000001", 1),
        ("10", "1e1", 1),
        ("007", "7", 1),
        ("0.333", "0.3331", 1),
        ("1.0", "1.0x", 1),
        ("nan", "NaN", 1),
        ("1e999", "1e998", 1),
        ("1.0", "inf", 1),
        ("1.5", "١.5", 1),
        ("x", "", 1),
    ],
)
def test_first_different_line_is_reported(expected: str, got: str, line: int) -> None:
    assert first_difference(expected, got) == line


@given(st.text(max_size=200))
def test_trailing_blanks_are_ignored_in_any_text(text: str) -> None:
    assert first_difference(text, text) is None
    assert first_difference(text, text + " \n\n") is None
    assert all(line == line.rstrip() for line in comparable_lines(text))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9))
def test_permuted_words_and_lines_do_not_match(numbers: list[int]) -> None:
    other = sorted(numbers)
    for blank in (" ", "\n"):
        same = first_difference(blank.join(map(str, numbers)), blank.join(map(str, other))) is None
        assert same == (numbers == other)


@given(st.floats(-1e9, 1e9), st.floats(-1e-5, 1e-5))
def test_decimals_match_within_a_millionth(value: float, off: float) -> None:
    near = first_difference(repr(value), repr(value + off)) is None
    if abs(off) < 0.9e-6 * max(1, abs(value)):
        assert near
    if abs(off) > 1.1e-6 * max(1, abs(value)):
        assert not near
