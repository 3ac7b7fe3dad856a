"""The house data set: its rows, its splits, and its tests, which only the references pass, in the sandbox."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from evaluate.sandbox.sandbox import Sandbox
from evaluate.test_runner.entry_point import code_prelude
from evaluate.test_runner.runner import run_tests
from tasks.datasets.registry import BUNDLED, HOUSE, library_prelude, load_examples, load_problems
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, format_test

MIN_ROWS = {"train": 400, "validation": 45, "test": 120}
KEYS = ["id", "topic", "intent", "code", "tests"]
TOPICS = {"rows", "groups", "texts", "money", "days"}
MIN_USES_IN_TRAIN = 14  # of each function
MIN_SHAPES_IN_TRAIN = 3  # rows with the code of each test row but for names and constants
BUILTINS = frozenset(["len"])
# Keywords that must not be taken for each other.
SIMILAR = {
    "over": "least",
    "least": "over",
    "under": "most",
    "most": "under",
    "days": "weeks",
    "weeks": "months",
    "months": "days",
}


def rows(split: str) -> list[dict[str, Any]]:
    text = (BUNDLED[HOUSE] / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def name_of(code: str) -> str:
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    return function.name


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def used_functions(code: str) -> list[str]:
    return re.findall(r"\bkit\.(\w+)", code)


class _Shape(ast.NodeTransformer):
    """Replaces what two rows of the same kind may differ in: names and constants."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = "f"
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg("a")

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return node if node.id == "kit" or node.id in BUILTINS else ast.Name("v", node.ctx)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func) == "kit.fill":  # its keywords are names of columns
            node.keywords = [ast.keyword("column", keyword.value) for keyword in node.keywords]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(0)


def shape(code: str) -> str:
    return ast.dump(_Shape().visit(ast.parse(code)))


def passed_rows(problems: list[Problem], codes: list[str], sandbox: Sandbox) -> set[str]:
    """Run the tests of all problems on one program of `codes`; return the ids of the problems that pass all of them."""
    tests = [test for problem in problems for test in problem.tests]
    found = run_tests("\n\n".join(codes), tests, sandbox, workers=1)
    assert all(result.protected for result in found)
    results = iter(found)
    passed = {problem.id: [next(results).passed for _ in problem.tests] for problem in problems}
    return {id for id, values in passed.items() if all(values)}


def passes(code: str, tests: list[str]) -> bool:
    names: dict[str, Any] = {}
    try:
        exec(library_prelude() + code + "\n" + "\n".join(tests), names)
    except Exception:  # noqa: BLE001 - any exception is a failure
        return False
    return True


@pytest.mark.parametrize("split", MIN_ROWS)
def test_rows_have_the_expected_keys_and_unique_ids(split: str) -> None:
    found = rows(split)
    assert len(found) >= MIN_ROWS[split]
    assert [row["id"] for row in found if list(row) != KEYS] == []
    assert len({row["id"] for row in found}) == len(found)
    assert {row["topic"] for row in found} == TOPICS


@pytest.mark.parametrize("split", MIN_ROWS)
def test_each_row_is_one_function_that_its_intent_names_and_two_tests_call(split: str) -> None:
    for row in rows(split):
        (function,) = ast.parse(row["code"]).body
        assert isinstance(function, ast.FunctionDef)
        assert f"`{function.name}({', '.join(arg.arg for arg in function.args.args)})`" in row["intent"], row["id"]
        assert used_functions(row["code"]), row["id"]
        assert len(set(row["tests"])) == len(row["tests"]) >= 2, row["id"]
        assert all(test.startswith(f"assert {function.name}(") for test in row["tests"]), row["id"]


def test_splits_have_no_common_intents_names_and_code() -> None:
    found = {split: rows(split) for split in MIN_ROWS}
    for one, other in combinations(MIN_ROWS, 2):
        for key in (
            lambda row: words(row["intent"]),
            lambda row: name_of(row["code"]),
            lambda row: row["code"].partition("\n")[2],
        ):
            assert {key(row) for row in found[one]} & {key(row) for row in found[other]} == set(), (one, other)


def test_patterns_of_validation_and_test_are_in_train() -> None:
    known = Counter(shape(row["code"]) for row in rows("train"))
    for split in ("validation", "test"):
        assert [row["id"] for row in rows(split) if known[shape(row["code"])] < MIN_SHAPES_IN_TRAIN] == []


def test_each_function_of_test_is_in_several_train_rows() -> None:
    taught = Counter(name for row in rows("train") for name in set(used_functions(row["code"])))
    asked = {name for split in ("validation", "test") for row in rows(split) for name in used_functions(row["code"])}
    assert {name: taught[name] for name in asked if taught[name] < MIN_USES_IN_TRAIN} == {}


def test_all_public_functions_are_used() -> None:
    tree = ast.parse((BUNDLED[HOUSE] / "kit.py").read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert {name for row in rows("train") for name in used_functions(row["code"])} == public
    assert {name for row in rows("test") for name in used_functions(row["code"])} == public


@pytest.mark.parametrize("split", MIN_ROWS)
def test_only_references_pass_in_the_sandbox(split: str, sandbox: Sandbox) -> None:
    problems = load_problems(HOUSE, split)
    codes = [problem.reference or "" for problem in problems]
    names = [name_of(code) for code in codes]
    assert passed_rows(problems, codes, sandbox) == {problem.id for problem in problems}

    empty = ["import kit", *(f"def {name}(*args, **kwargs):\n    return None" for name in names)]
    assert passed_rows(problems, empty, sandbox) == set()

    # Each function does what the next row asks for.
    shifted = [
        f"{name} = lambda *args, f={other}: f(*args)" for name, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    assert passed_rows(problems, [*codes, *shifted], sandbox) == set()


def changed_codes(code: str) -> set[str]:
    """Return the code with one constant changed, or one keyword left out or taken for a similar one."""
    sites = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant | ast.Call)]
    found = set()
    for site, node in enumerate(sites):
        for at in range(len(node.keywords) if isinstance(node, ast.Call) else 1):
            for change in range(2):
                tree = ast.parse(code)
                copy = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.Call)][site]
                if isinstance(copy, ast.Call):
                    keyword = copy.keywords[at]
                    if change and keyword.arg in SIMILAR:
                        keyword.arg = SIMILAR[keyword.arg]
                    else:
                        del copy.keywords[at]
                elif isinstance(copy.value, str):
                    copy.value = f"{copy.value}x" if change else copy.value[:-1]
                elif isinstance(copy.value, bool):
                    copy.value = not copy.value
                else:
                    assert isinstance(copy.value, int)
                    copy.value += 1 if change else -1
                found.add(ast.unparse(tree))
    return found


@pytest.mark.parametrize("split", MIN_ROWS)
def test_references_with_a_changed_constant_or_keyword_fail(split: str) -> None:
    changed = [(row, code) for row in rows(split) for code in changed_codes(row["code"])]
    assert len(changed) > 2 * len(rows(split))
    assert [code for row, code in changed if passes(code, row["tests"])] == []


@pytest.mark.parametrize(
    "answer",
    [
        "def big(rows):\n    return kit.where(rows, 'n', over=5)",
        "import kit\n\ndef big(rows):\n    return kit.where(rows, 'n', over=5)",
        "from kit import where\n\ndef big(rows):\n    return where(rows, 'n', over=5)",
        "import kit as k\n\ndef big(rows):\n    return k.order(k.where(rows, 'n', over=5), 'id')",
        "def big(rows):\n    return [row for row in rows if (row.get('n') or 0) > 5]",
    ],
)
def test_right_answers_may_be_written_in_any_way(answer: str, sandbox: Sandbox) -> None:
    tests = [
        AssertTest("assert big([{'id': 1, 'n': 6}, {'id': 2, 'n': 5}, {'id': 3}]) == [{'id': 1, 'n': 6}]"),
        AssertTest("assert big([]) == []"),
    ]
    assert [result.reason for result in run_tests(answer, tests, sandbox, workers=1)] == ["", ""]


def test_pasted_tests_find_the_library(sandbox: Sandbox) -> None:
    (problem,) = load_problems(HOUSE, "test", limit=1)
    text = "\n".join(format_test(test) for test in problem.tests)
    results = run_tests(problem.reference or "", parse_pasted_tests(text), sandbox, workers=1)
    assert [result.reason for result in results] == [""] * len(problem.tests)


def test_errors_name_the_line_of_the_answer(sandbox: Sandbox) -> None:
    answer = "def big(rows):\n    return kit.wherever(rows, 'n')"
    (result,) = run_tests(answer, [AssertTest("assert big([]) == []")], sandbox, workers=1)
    assert result.reason == "big([]) raised AttributeError: module 'kit' has no attribute 'wherever' (line 2)"


@pytest.mark.parametrize(
    "code", ["", "x = 1", "kitchen = 2", "print('kit')", "from kit.other import x", "import os", "def f("]
)
def test_other_code_gets_no_library(code: str) -> None:
    assert code_prelude(code) == ""


def test_code_of_leetcode_may_use_the_library() -> None:
    names: dict[str, Any] = {}
    code = "class Solution:\n    def run(self, rows):\n        return kit.column(rows, 'n'), sys.maxsize > 0"
    exec(code_prelude(code) + code, names)
    assert names["Solution"]().run([{"n": 1}]) == ([1], True)


def test_examples_come_from_train() -> None:
    examples = load_examples(HOUSE)
    assert len(examples) == len(rows("train"))
    assert examples[0].intent == rows("train")[0]["intent"]
