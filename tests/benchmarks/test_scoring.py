"""Tests of benchmarks/scoring.py: reproducible programs and pairs, and the timing of both sides of CodeBLEU."""

from __future__ import annotations

import ast
import random

import pytest

from benchmarks.scoring import ANSWERS_PER_REFERENCE, _bench_codebleu, _mutate_name, _pairs, _reference_programs
from tasks.problem import AssertTest, Problem, StdioTest

REFERENCES = ["x = sorted(d)", "print(sum(x))", " ", "a b c", "df.groupby(k).sum()"]


def test_pairs_depend_on_the_seed_only() -> None:
    pairs = _pairs(REFERENCES, 3, random.Random(1))
    assert pairs == _pairs(REFERENCES, 3, random.Random(1))
    assert len(pairs) == 3 * ANSWERS_PER_REFERENCE
    assert {reference for reference, _ in pairs} == {"x = sorted(d)", "print(sum(x))", "a b c"}


@pytest.mark.parametrize("code", REFERENCES)
def test_mutate_name_changes_the_text(code: str) -> None:
    assert _mutate_name(code, random.Random(1)) != code


def test_programs_print_the_result_of_the_first_tests_call() -> None:
    problems = [
        Problem("a", "a", "def f(x): return x", (AssertTest("assert f(2) == 2"),)),
        Problem("b", "b", "def f(x): return x", (AssertTest("assert all(f(x) == x for x in [1])"),)),
        Problem("c", "c", "print(1)", (StdioTest("", "1"),)),
    ]
    (program,) = _reference_programs(problems, 9)
    assert ast.unparse(ast.parse(program.code)) == "def f(x):\n    return x\nprint(f(2))"


def test_both_sides_of_codebleu_are_timed() -> None:
    result = _bench_codebleu(_pairs(REFERENCES[:2], 2, random.Random(1)), runs=1)
    assert result["pairs"] == 2 * ANSWERS_PER_REFERENCE
    assert result["codebleu_ratio"] > 0
    assert set(result["codebleu_pairs_per_second"]) == {"ours", "cold", "package"}
