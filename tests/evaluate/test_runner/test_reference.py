"""Tests that are compared with a reference: results, limits, the cache, and the scores of a run."""

from __future__ import annotations

import gzip
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.files import cache_dir
from errors import DataError, PromptOrTuneError
from evaluate.generate import ProgressBar
from evaluate.results import Result, Run, problem_record, read_run
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import Limits
from evaluate.scoring import score_run
from evaluate.test_runner import reference
from evaluate.test_runner.reference import ReferenceLimits, compute_answers, missing_answers
from evaluate.test_runner.result import EVALPLUS, EXACT, ComparisonRules, TestResult
from evaluate.test_runner.runner import run_tests
from tasks.datasets.registry import load_problems
from tasks.problem import Problem, ReferenceTest
from tests import messages
from tests.tasks.sets import HUMANEVAL_ROW, HUMANEVALPLUS_ROW, LEETCODE_ROW, MBPPPLUS_ROW, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))


def made_test(function: str, *inputs: str, code: str = "", tolerance: float = 0.0) -> ReferenceTest:
    code = code or f"def {function}(x):\n    return x * 2\n"
    return ReferenceTest(function, function, inputs, code, tolerance)


def run(
    sandbox: Sandbox,
    code: str,
    test: ReferenceTest,
    rules: ComparisonRules = EVALPLUS,
    limits: ReferenceLimits | None = None,
) -> TestResult:
    (result,) = run_tests(code, [test], sandbox, rules=rules, reference_limits=limits or ReferenceLimits(0.3, 4.0))
    return result


def test_right_answer_passes_and_the_first_wrong_call_is_the_result(sandbox: Sandbox) -> None:
    test = made_test("twice", "1", "[2]", "'ab'")
    result = run(sandbox, "def twice(x):\n    return x + x", test)
    assert result.passed
    assert result.protected
    assert result.given == "twice: 3 calls of twice"
    wrong = run(sandbox, "def twice(x):\n    return x if isinstance(x, str) else x + x", test)
    assert (wrong.passed, wrong.given, wrong.got, wrong.expected) == (False, "twice('ab')", "'ab'", "'abab'")
    assert wrong.reason == "twice('ab') gave 'ab', expected 'abab' (call 3 of 3 of twice)"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = 1", "twice(1) raised NameError: name 'twice' is not defined (call 1 of 2 of twice)"),
        ("def twice(x:", "SyntaxError: '(' was never closed (line 1)"),
        ("raise ValueError('no')", "ValueError: no (line 1)"),
        (
            "import sys\ndef twice(x): sys.exit()",
            "twice(1) ended itself (exit status 0) before it answered (call 1 of 2 of twice)",
        ),
        ("import os\ndef twice(x): os._exit(0)", "twice(1) ended before it answered (call 1 of 2 of twice)"),
        ("def twice(x): return x / 0", "twice(1) raised ZeroDivisionError: division by zero (line 1) (call 1 of 2"),
        ("def twice(x): return [0] * 10**10", "twice(1) needs more than 4 GB (call 1 of 2 of twice)"),
        ("def twice(x): return lambda: 1", "twice(1) gave an object of type function, expected 2 (call 1 of 2"),
    ],
)
def test_failures_are_explained(sandbox: Sandbox, code: str, reason: str) -> None:
    result = run(sandbox, code, made_test("twice", "1", "2"))
    assert not result.passed
    assert result.reason.startswith(reason)


def test_call_ends_after_its_processor_time_and_the_rest_is_not_run(sandbox: Sandbox) -> None:
    test = made_test("twice", *map(str, range(500)))
    started = time.monotonic()
    result = run(sandbox, "def twice(x):\n    while x == 3: pass\n    return x * 2", test)
    assert time.monotonic() - started < 8
    assert result.status == "timeout"
    assert result.reason == ("twice(3) stopped after 0.3 s of processor time (time limit) (call 4 of 500 of twice)")
    swallowed = "def twice(x):\n    while True:\n        try:\n            while True: pass\n        except: pass"
    assert run(sandbox, swallowed, test).status == "timeout"


def test_sleep_is_not_processor_time_and_ends_at_the_limit_of_all_calls(sandbox: Sandbox) -> None:
    test = made_test("twice", "1")
    slow = "import time\ndef twice(x):\n    time.sleep({})\n    return x * 2"
    assert run(sandbox, slow.format(0.6), test).passed
    result = run(sandbox, slow.format(30), test)
    assert result.status == "timeout"
    assert "stopped after 1.3 s" in result.reason


def test_time_limit_grows_with_the_time_of_the_reference(sandbox: Sandbox) -> None:
    work = "def twice(x):\n    for _ in range({} * 10**6): pass\n    return x * 2"
    test = made_test("twice", "1", code=work.format(20))
    assert run(sandbox, work.format(30), test, limits=ReferenceLimits(0.01, 50)).passed
    assert run(sandbox, work.format(200), test, limits=ReferenceLimits(0.01, 0.5)).status == "timeout"
    assert ReferenceLimits(1, 4).seconds(0.1) == 1
    assert ReferenceLimits(1, 4).seconds(2) == 8


def test_without_reference_limits_those_of_the_sandbox_hold(sandbox: Sandbox) -> None:
    hanging = "def twice(x):\n    while True: pass"
    (result,) = run_tests(hanging, [made_test("twice", "1")], sandbox, Limits(wall_seconds=1, cpu_seconds=1))
    assert result.reason == "twice(1) stopped after 1 s of processor time (time limit) (call 1 of 1 of twice)"


@pytest.mark.parametrize("bad", [{"min_seconds": 0}, {"factor": -1}, {"factor": float("nan")}])
def test_limits_that_are_no_positive_number_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.REFERENCE_LIMIT_INVALID):
        ReferenceLimits(**bad)


@pytest.mark.parametrize(
    ("function", "inputs", "reference_code", "answer", "tolerance", "rules", "passes"),
    [
        ("f", ("1",), "return x / 3", "return x / 3 + 1e-7", 0, EVALPLUS, True),
        ("f", ("1",), "return x / 3", "return x / 3 + 1e-7", 0, EXACT, False),
        ("f", ("1",), "return x", "return x + 1e-5", 1e-4, EVALPLUS, False),  # the types differ
        ("f", ("1.0",), "return x", "return x + 1e-5", 1e-4, EVALPLUS, True),
        ("similar_elements", ("[1, 2]",), "return tuple(x)", "return tuple(x[::-1])", 0, EVALPLUS, True),
        ("similar_elements", ("[1, 2]",), "return tuple(x)", "return 3", 0, EVALPLUS, False),
        ("check_str", ("'a'",), "import re; return re.match('a', x)", "return True", 0, EVALPLUS, True),
        ("check_str", ("'a'",), "import re; return re.match('a', x)", "return x", 0, EVALPLUS, True),
        ("check_str", ("'b'",), "import re; return re.match('a', x)", "return 1", 0, EVALPLUS, False),
        ("are_equivalent", ("1",), "return True", "return False", 0, EVALPLUS, True),
        ("find_zero", ("[-1, 1]",), "return 1.0", "return 1.00005", 1e-4, EVALPLUS, True),
        ("find_zero", ("[-1, 1]",), "return 1.0", "return 1.1", 1e-4, EVALPLUS, False),
        ("f", ("1",), "return float('nan')", "return float('nan')", 0, EVALPLUS, False),
        ("f", ("1000001",), "return list(range(x))", "return [*range(x)]", 0, EVALPLUS, True),
        ("f", ("1000001",), "return list(range(x))", "return [*range(x - 1), 0]", 0, EVALPLUS, False),
        ("f", ("77",), "return ['a', 'b'] * 9**5", "return ['a', 'b'] * 9**5", 0, EVALPLUS, True),
    ],
)
def test_rules_of_comparison_hold_for_values_of_the_reference(
    sandbox: Sandbox,
    function: str,
    inputs: tuple[str, ...],
    reference_code: str,
    answer: str,
    tolerance: float,
    rules: ComparisonRules,
    passes: bool,
) -> None:
    head = f"def {function}(x):\n    "
    test = made_test(function, *inputs, code=head + reference_code, tolerance=tolerance)
    assert run(sandbox, head + answer, test, rules, ReferenceLimits()).passed == passes


def test_each_input_is_a_new_value(sandbox: Sandbox) -> None:
    code = "def grow(x):\n    x.append(1)\n    return x\n"
    test = made_test("grow", "[]", "[]", code=code)
    assert run(sandbox, code, test).passed


def test_many_large_values_need_several_children(sandbox: Sandbox) -> None:
    test = made_test("text", *map(str, range(30)), code="def text(x):\n    return 'é' * 30_000 + str(x)\n")
    assert run(sandbox, test.reference, test).passed


def test_answers_are_computed_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [made_test("twice", "1", "2"), made_test("twice", "3")]
    assert missing_answers(tests) == tests
    assert len(list(compute_answers(tests, sandbox))) == 2
    assert missing_answers(tests) == []
    assert missing_answers([replace(tests[0], inputs=("1", "4"))])
    assert len(list((cache_dir() / "reference-answers").iterdir())) == 2
    monkeypatch.setattr(reference, "_compute_answers", lambda *_: pytest.fail("computed again"))
    assert run(sandbox, "def twice(x): return 2 * x", tests[0]).passed


def test_unreadable_answers_are_an_error_with_the_file(sandbox: Sandbox) -> None:
    test = made_test("twice", "11")
    list(compute_answers([test], sandbox))
    (file,) = (cache_dir() / "reference-answers").iterdir()
    for content in (b"x", gzip.compress(b"[[1]"), gzip.compress(b'[[{"x":1}],[0]]')):
        file.write_bytes(content)
        with pytest.raises(DataError, match=messages.REFERENCE_ANSWERS_UNREADABLE):
            run(sandbox, "def twice(x): return 2 * x", test)


def test_reference_that_fails_is_an_error_with_its_name(sandbox: Sandbox) -> None:
    test = made_test("twice", "1", "'x'", code="def twice(x):\n    return x + 1\n")
    with pytest.raises(DataError, match=messages.REFERENCE_FAILS):
        list(compute_answers([test], sandbox))
    with pytest.raises(DataError, match=messages.REFERENCE_FAILS):
        run(sandbox, "def twice(x): return 2", test)
    assert missing_answers([test])


@pytest.mark.parametrize(
    ("name", "file", "row"),
    [
        ("humaneval", "HumanEval.jsonl", HUMANEVAL_ROW),
        ("humanevalplus", "HumanEvalPlus.jsonl", HUMANEVALPLUS_ROW),
        ("mbppplus", "MbppPlus.jsonl", MBPPPLUS_ROW),
        ("leetcode", "LeetCodeDataset-test.jsonl", LEETCODE_ROW),
    ],
)
def test_run_of_a_data_set_is_scored(
    sandbox: Sandbox, tmp_path: Path, name: str, file: str, row: dict[str, Any]
) -> None:
    (problem,) = load_problems(name, "test", write_rows(tmp_path / file, row).parent)
    assert problem.reference is not None
    body = problem.reference[len(problem.prompt) :] if name.startswith("humaneval") else problem.reference
    wrong = problem.reference.replace("return ", "return None and ")
    run = made_run(tmp_path / "run.jsonl", problem, [problem.reference, body, wrong])
    score_run(run, lambda total: ProgressBar(total, io.StringIO()), sandbox)
    (result,) = read_run(run.path).results("zero-shot")
    assert [all(check["passed"] for check in checks) for checks in result.checks] == [True, True, False]
    assert result.scores["pass@1"] == pytest.approx(2 / 3)
    assert all(check["protected"] for checks in result.checks for check in checks)
    key = read_run(run.path).scored_with["tests"]
    plus = name in {"humanevalplus", "mbppplus"}
    assert ("reference_limits" in key, key.get("comparison") == "evalplus") == (plus, plus)


def test_scores_are_computed_again_with_other_limits(sandbox: Sandbox, tmp_path: Path) -> None:
    (problem,) = load_problems("mbppplus", "test", write_rows(tmp_path / "MbppPlus.jsonl", MBPPPLUS_ROW).parent)
    totals: list[int] = []

    def begin(total: int) -> ProgressBar:
        totals.append(total)
        return ProgressBar(total, io.StringIO())

    run = made_run(tmp_path / "run.jsonl", problem, [problem.reference or ""])
    score_run(run, begin, sandbox)
    assert totals == [1, 2, 1]  # texts, expected values of two tests, tests
    score_run(read_run(run.path), begin, sandbox)
    assert len(totals) == 3
    score_run(read_run(run.path), begin, sandbox, reference_limits=ReferenceLimits(1.0, 2.0))
    assert totals[3:] == [1]
    again = read_run(run.path)
    assert again.scored_with["tests"]["reference_limits"]["min_seconds"] == 1.0


def made_run(path: Path, problem: Problem, codes: list[str]) -> Run:
    settings = {"decoding": {"mode": "sample", "candidates": len(codes), "max_new_tokens": 64}, "seed": 42}
    run = Run(path, settings, [problem_record(problem)], {"versions": {}})
    run.update_method("zero-shot", {"adapter": None})
    candidates = [{"text": code, "code": code, "logprob": -1.0, "tokens": 5, "times": 1} for code in codes]
    run.add([Result("zero-shot", problem.id, candidates=candidates)])
    run.save()
    run.close()
    return read_run(path)
