"""Real files of HumanEval, HumanEval+, MBPP+ and LeetCodeDataset: reference solutions pass, wrong answers do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from errors import DataError
from evaluate.sandbox.sandbox import Sandbox
from evaluate.test_runner.reference import ReferenceLimits
from evaluate.test_runner.result import TestResult, comparison_rules
from evaluate.test_runner.runner import run_tests_many
from tasks.datasets.registry import load_problems
from tasks.problem import Problem, complete_program

pytestmark = pytest.mark.slow

NAMES = ("humaneval", "humanevalplus", "mbppplus", "leetcode")
# EvalPlus accepts every answer to these.
ANY_ANSWER_PASSES = {"mbpp-164"}


@pytest.fixture(scope="module", params=NAMES)
def problems(request: pytest.FixtureRequest, data_dir: Path) -> list[Problem]:
    try:
        return load_problems(request.param, "test", data_dir)
    except DataError as error:
        if "is not in" not in str(error):
            raise
        pytest.skip(str(error))


def passed(sandbox: Sandbox, problems: list[Problem], answer: Callable[[Problem], str]) -> dict[str, list[TestResult]]:
    programs = [
        (complete_program(answer(problem), problem.prompt, problem.entry_point), problem.tests) for problem in problems
    ]
    rules = comparison_rules(problems[0].comparison)
    found = run_tests_many(programs, sandbox, rules=rules, reference_limits=ReferenceLimits())
    return {problems[at].id: results for at, results in found}


def test_reference_solutions_pass(sandbox: Sandbox, problems: list[Problem]) -> None:
    found = passed(sandbox, problems, lambda problem: problem.reference or "")
    assert [result.reason for results in found.values() for result in results if not result.passed] == []


def test_bodies_pass(sandbox: Sandbox, problems: list[Problem]) -> None:
    completed = [problem for problem in problems if problem.intent.startswith("Complete this function")][::4]
    if not completed:
        pytest.skip("The answers to this data set are whole programs.")
    found = passed(sandbox, completed, lambda problem: (problem.reference or "")[len(problem.prompt) :].strip())
    assert [result.reason for results in found.values() for result in results if not result.passed] == []


def test_none_passes_no_problem(sandbox: Sandbox, problems: list[Problem]) -> None:
    some = problems[::4]
    found = passed(sandbox, some, lambda problem: f"def {problem.entry_point}(*_):\n    return None\n")
    passing = {name for name, results in found.items() if all(result.passed for result in results)}
    assert passing <= ANY_ANSWER_PASSES
