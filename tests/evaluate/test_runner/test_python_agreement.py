"""Scripts of tests have the results that Python itself gives, whatever their lines change."""

from __future__ import annotations

import random
from typing import Any

import pytest

from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import Limits
from evaluate.test_runner.runner import run_tests
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest

pytestmark = pytest.mark.slow

IDENTITY = "def f(x): return x"
SQUARE = "def f(x): return x * x"
COUNTER = "n = 0\ndef make():\n    global n\n    n += 1\n    return n"
STACK = "class Stack(list):\n    def push(self, x):\n        self.append(x)\n        return x"
SCRIPTS = [
    ("def f(x):\n    x.append(2)", "x = [1]\nf(x)\nassert x == [1, 2]"),
    (
        "def f(x):\n    x.append(2)\n    return len(x)",
        "x = [1]\nassert f(x) == 2\nassert x == [1, 2]\nassert f(x) == 3",
    ),
    (SQUARE, "x = 1\nx += 2\nassert f(x) == 9\nx = 4\nassert f(x) == 16"),
    (SQUARE, "expected = [1, 4]\nexpected.append(9)\nassert [f(1), f(2), f(3)] == expected"),
    (SQUARE, "cases = [(1, 1)]\ncases.append((3, 9))\nassert len(cases) == len([f(1)] * 2)"),
    (SQUARE, "e = [4, 9]\nassert f(3) == e.pop()\nassert f(2) == e.pop()"),
    (SQUARE, "e = [[1]]\nfor part in e:\n    part.append(4)\nassert [f(1), f(2)] == e[0]"),
    (SQUARE, "e = [4]\nd = e\nd.append(9)\nassert [f(2), f(3)] == e"),
    (SQUARE, "e = [4]\ndef add():\n    e.append(9)\nadd()\nassert [f(2), f(3)] == e"),
    (SQUARE, "e = 4\ndef change():\n    global e\n    e = 9\nchange()\nassert f(3) == e"),
    (IDENTITY, "x = 5\ndef g(y=x):\n    return f(y)\nx = 6\nassert g() == 5"),
    (IDENTITY, "def g(y=[]):\n    return f(y.append(1) or len(y))\nassert g() == 1\nassert g() == 2"),
    (IDENTITY, "seen = []\ndef add(v):\n    seen.append(v)\n    return v\nassert f(add(1)) == 1\nassert seen == [1]"),
    (IDENTITY, "r = f([3])\nq = r\nq.append(4)\nassert r == [3, 4]"),
    (COUNTER, "assert make() == 9 or make() == 2\nassert make() == 3"),
    (COUNTER, "assert make() == 1 or make() == 2\nassert make() == 2"),
    (
        COUNTER,
        "assert all(make() == i for i in (1, 2))\nassert [make() for _ in range(2)] == [3, 4]\nassert make() == 5",
    ),
    (STACK, "s = Stack()\nassert s.push(1) == 1\nassert s.push(2) == 2\nassert s == [1, 2]\nassert len(s) == 2"),
]


def run_in_python(code: str, text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "answer"}
    exec(code, names)
    exec(text, names)
    return names


@pytest.mark.parametrize(
    ("code", "text"), SCRIPTS, ids=[text.partition("\n")[0] + f" {at}" for at, (_, text) in enumerate(SCRIPTS)]
)
def test_right_answer_passes_where_lines_change_values(sandbox: Sandbox, code: str, text: str) -> None:
    run_in_python(code, text)  # raises AssertionError if the case itself is wrong
    results = run_tests(code, parse_pasted_tests(text), sandbox)
    assert [result.reason for result in results if not result.passed] == []


@pytest.mark.parametrize(
    ("setup", "statement"),
    [
        ("expected = [1, 4]\nexpected.append(9)", "assert [f(1), f(2), f(3)] == expected"),
        ("e = [9, 4]\ne.sort()", "assert [f(2), f(3)] == e"),
        ("x = 5\ndef g(y=x):\n    return f(y)\nx = 6", "assert g() == 25"),
        ("e = [4]\nfor i in [3]:\n    e.append(i * i)", "assert [f(2), f(3)] == e"),
        ("e = {}\ne[2] = 4", "assert f(2) == e[2]"),
    ],
)
def test_set_up_that_changes_its_constants_is_not_taken_at_its_first_value(
    sandbox: Sandbox, setup: str, statement: str
) -> None:
    run_in_python(SQUARE, f"{setup}\n{statement}")
    (result,) = run_tests(SQUARE, [AssertTest(statement, setup)], sandbox)
    assert result.passed, result.reason


ANSWER = """
n = 0
def total(values): return sum(values)
def push(values, x):
    values.append(x)
    return len(values)
def tick():
    global n
    n += 1
    return n
class Box:
    def __init__(self): self.items = []
    def put(self, x):
        self.items.append(x)
        return self
    def size(self): return len(self.items)
"""
START = (
    "xs = [3, 1]\nys = [2]\nk = 1\nd = {'a': 1}\nbox = Box()\nt = tick()\ndef more():\n    xs.append(7)\n    return xs"
)
STATEMENTS = [
    "xs = [{k}, 2]", "xs.append({k})", "push(xs, {k})", "xs.sort()", "ys = xs", "ys = list(xs)", "ys = [xs, k]",
    "k = {k}", "k += {k}", "d = {{'a': {k}}}", "d['b'] = total(xs)", "d.update(c=k)", "d['x'] = xs",
    "box = Box()", "box.put(k)", "box.put(xs)", "t = tick()", "more()",
    "for i in range(2):\n    push(xs, i)", "ys = [x for x in xs]", "del xs[0:1]",
    "k, t = t, k", "if total(xs) > 9:\n    k = 0", "xs[0:0] = [k]", "ys = sorted(xs)", "box.items.append(k)",
]  # fmt: skip
EXPRESSIONS = [
    "xs", "ys", "k", "d", "t", "len(xs)", "total(xs) + k", "box.size()", "box.items", "tick()", "push(xs, k)",
    "[total(xs), k]", "sorted(xs)", "more()", "xs == ys", "max(xs + [0])", "box.put(t).size()",
    "[tick() for _ in range(2)]",
    "sum(tick() for _ in xs)", "{'k': k, **d}", "xs and tick()", "d.get('b')", "str(ys)", "k if xs else tick()",
]  # fmt: skip


def make_script(seed: int) -> tuple[list[str], list[str]]:
    """Make random lines and, after some of them, asserts with the values that Python gives; return both."""
    chance = random.Random(seed)
    names = run_in_python(ANSWER, START)
    lines = [START]
    asserts: list[str] = []
    for _ in range(10):
        line = chance.choice(STATEMENTS).format(k=chance.randrange(5))
        exec(line, names)
        lines.append(line)
        if chance.random() < 0.6 or not asserts:
            expression = f"({chance.choice(EXPRESSIONS)}, total([]))"
            asserts.append(f"assert {expression} == {eval(expression, names)!r}")
            lines.append(asserts[-1])
    while lines[-1:] != asserts[-1:]:  # lines after the last test are refused
        lines.pop()
    return lines, asserts


@pytest.mark.parametrize("seed", range(60))
def test_random_script_has_the_results_of_python(sandbox: Sandbox, seed: int) -> None:
    lines, asserts = make_script(seed)
    limits = Limits(wall_seconds=8)
    results = run_tests(ANSWER, parse_pasted_tests("\n".join(lines)), sandbox, limits=limits)
    assert [result.reason for result in results if not result.passed] == []
    at = seed % len(asserts)
    wrong = asserts[at].replace(" == ", " == ('wrong', ", 1) + ")"
    text = "\n".join(wrong if line is asserts[at] else line for line in lines)
    results = run_tests(ANSWER, parse_pasted_tests(text), sandbox, limits=limits)
    assert [result.passed for result in results] == [number != at for number in range(len(asserts))]
