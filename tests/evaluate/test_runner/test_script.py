"""Pasted tests run as Python runs them: what right and wrong programs get for each form, in the real sandbox."""

# ruff: noqa: E501, ISC004 - the tables have a case a line

from __future__ import annotations

import pytest

from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import Limits
from evaluate.test_runner.result import TestResult
from evaluate.test_runner.runner import run_tests
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, StdioTest

pytestmark = pytest.mark.slow

QUICK = Limits(wall_seconds=2, cpu_seconds=3)
STACK = (
    "class Stack(list):\n    def push(self, x):\n        self.append(x)\n        return x\n"
    "    def size(self): return len(self)\n"
)
SQUARE = "def square(x):\n    if not isinstance(x, int): raise TypeError('no number')\n    return x * x\n"
COUNTER = "n = 0\ndef make():\n    global n\n    n += 1\n    return n\n"


def run(sandbox: Sandbox, code: str, text: str, limits: Limits = QUICK) -> list[TestResult]:
    results = run_tests(code, parse_pasted_tests(text), sandbox, limits, workers=1)
    assert all(result.passed == (not result.reason) for result in results)
    assert all("\n" not in result.reason for result in results)
    return results


# Code, text, and for each test P for passed and protected, U for passed and unprotected, F for failed.
CASES = {
    "a stack": (STACK, "s = Stack()\nassert s.push(1) == 1\nassert s.push(2) == 2\nassert s.size() == 2", "PPP"),
    "a wrong stack": (
        STACK.replace("len(self)", "1"),
        "s = Stack()\nassert s.push(1) == 1\nassert s.push(2) == 2\nassert s.size() == 2",
        "PPF",
    ),
    "a generator": (
        "def gen():\n    yield 1\n    yield 2",
        "g = gen()\nassert next(g) == 1\nassert next(g) == 2",
        "PP",
    ),
    "a counter": (COUNTER, "a = make()\nassert a == 1\nb = make()\nassert b == 2", "PP"),
    "a memo": (
        "def f(x, seen=[]):\n    seen.append(x)\n    return len(seen)",
        "assert f(1) == 1\nassert f(1) == 1",
        "PF",
    ),
    "a seeded random": (
        "import random\ndef f(): return random.random()",
        "import random\nrandom.seed(1)\nassert f() == 0.13436424411240122\nassert f() == 0.8474337369372327",
        "PP",
    ),
    "a list that is changed": (
        "def drop(xs):\n    xs.pop()",
        "xs = [1, 2, 3]\ndrop(xs)\nassert xs == [1, 2]\ndrop(xs)\nassert xs == [1]",
        "PP",
    ),
    "a loop with state": (COUNTER, "for i in [1, 2, 3]:\n    assert make() == i\nassert make() == 4", "PPPP"),
    "state after an unprotected test": (COUNTER, "assert all(make() == i for i in [1, 2])\nassert make() == 3", "UU"),
    "no state after an unprotected test": (
        SQUARE,
        "assert all(square(i) == i for i in [1])\nassert square(3) == 9",
        "UP",
    ),
    "a while loop": (
        SQUARE,
        "i = 0\nwhile i < 3:\n    assert square(i) == i * i\n    i += 1\nassert square(5) == 25",
        "UP",
    ),
    "an assigned call that fails": (
        SQUARE,
        "assert square(2) == 4\nr = square('a')\nassert r == 4\nassert r != 5",
        "PFF",
    ),
    "no local name leaks": (
        "def text(x): return str(x)",
        "def test_a():\n    str = text(1)\n    assert str == '1'\ndef test_b():\n    assert text(2) == '2'",
        "UP",
    ),
    "a local helper": (
        SQUARE,
        "def test_a():\n    base = [2]\n    def twice(): return [square(x) for x in base] * 2\n    assert twice() == [4, 4]",
        "U",
    ),
    "each test function anew": (
        STACK,
        "def test_a():\n    s = Stack()\n    assert s.push(1) == 1\ndef test_b():\n    s = Stack()\n    assert s.size() == 0",
        "PP",
    ),
    "a printed result": ('def hello(x): print("Hello", x)', '>>> hello("a")\nHello a', "P"),
    "a wrong printed result": ('def hello(x): print("Hallo", x)', '>>> hello("a")\nHello a', "F"),
    "print and value": ("def f(x):\n    print(x)\n    return 2", ">>> f(1)\n1\n2", "P"),
    "a blank line": ('def f(x): return "a\\n\\nb"', ">>> print(f(2))\na\n<BLANKLINE>\nb", "P"),
    "print of two": ("x = 1", ">>> print(1, 2)\n1 2", "P"),
    "an ellipsis": (
        "import math\ndef area(r): return math.pi * r * r",
        ">>> area(1)  # doctest: +ELLIPSIS\n3.14...\n>>> area(2)  # doctest: +ELLIPSIS\n3.14...\n>>> area(1)\n3.1415...",
        "PFP",
    ),
    "normalized blanks": ("def f(): return [1, 2]", ">>> f()  # doctest: +NORMALIZE_WHITESPACE\n[1,\n   2]", "P"),
    "the order of a dict": ("def f(): return {'b': 2, 'a': 1}", ">>> f()\n{'a': 1,\n 'b': 2}", "P"),
    "the type of a value": ("def f(): return 4.0", ">>> f()\n4", "F"),
    "an object": ("class A:\n    def __repr__(self): return 'A(2)'\ndef f(): return A()", ">>> f()\nA(2)", "P"),
    "no value": ("def f(): return None", ">>> f()\n>>> f()\nNone\n>>> print(f())\nNone", "FP"),
    "an expected error": (
        SQUARE,
        ">>> square('a')\nTraceback (most recent call last):\n    ...\nTypeError: no number\n"
        ">>> square('a')\nTraceback (most recent call last):\nTypeError: other\n"
        ">>> square(2)\nTraceback (most recent call last):\nTypeError: no number",
        "PFF",
    ),
    "a session with state": (STACK, ">>> s = Stack()\n>>> s.push(1)\n1\n>>> s\n[1]\n>>> assert s.size() == 1", "PPP"),
    "IPython": (SQUARE, "In [1]: square(2)\nOut[1]: 4\n\nIn [2]: x = square(3)\n\nIn [3]: x\nOut[3]: 9", "PP"),
    "pytest.raises": (
        SQUARE,
        "import pytest\ndef test_a():\n    with pytest.raises(TypeError):\n        square('a')\n"
        "    with pytest.raises(TypeError, match='number'):\n        square('a')\n"
        "    with pytest.raises(ValueError):\n        square('a')\n"
        "    with pytest.raises(Exception):\n        square(2)\n"
        "    with pytest.raises((KeyError, TypeError)) as info:\n        square('a')\n"
        "    assert 'number' in str(info.value)",
        "PPFFPP",
    ),
    "a pattern of a message": (
        SQUARE,
        "import pytest\ndef test_a():\n    with pytest.raises(TypeError, match='no .*r$'):\n        square('a')\n"
        "    with pytest.raises(TypeError, match='^number'):\n        square('a')",
        "UF",
    ),
    "pytest.approx": (
        "def area(r): return 3.14159265 * r * r",
        "from pytest import approx\ndef test_a():\n    assert area(1) == approx(3.141592)\n"
        "    assert area(1) == approx(3.1415, abs=1e-3)\n    assert area(1) == approx(3)\n"
        "    assert [area(1), area(2)] == approx([3.14159265, 12.5663706])\n    assert area(1) != approx(3)",
        "PPFPP",
    ),
    "unittest": (
        SQUARE,
        "import unittest\nfrom solution import square\nclass T(unittest.TestCase):\n"
        "    def setUp(self):\n        self.x = 3\n        self.log = []\n"
        "    def test_b(self):\n        self.assertEqual(square(self.x), 9)\n        self.assertNotEqual(square(2), 5)\n"
        "        self.assertTrue(square(1))\n        self.assertFalse(square(0))\n        self.assertIsNone(square(1))\n"
        "        self.assertIsInstance(square(1), int)\n        self.assertIn(square(2), [3, 4])\n"
        "        self.assertAlmostEqual(square(2), 4.00000001)\n        self.assertGreater(square(2), 3)\n"
        "        self.assertListEqual([square(2)], [4])\n        self.assertCountEqual([square(2), 1], [1, 4])\n"
        "    def test_a(self):\n        with self.assertRaises(TypeError):\n            square('a')\n"
        "        self.assertRaises(TypeError, square, 'b')\n"
        "        for x, y in [(1, 1), (2, 5)]:\n            with self.subTest(x=x):\n                self.assertEqual(square(x), y)\n"
        "if __name__ == '__main__':\n    unittest.main()",
        "UUUF" + "UUUUFUUUUUU",
    ),
    "a TestCase with helpers": (
        SQUARE,
        "import unittest\nclass T(unittest.TestCase):\n    def verify(self, x, y):\n        self.assertEqual(square(x), y)\n"
        "    def test_a(self):\n        self.verify(2, 4)\n        self.assertEqual(square(3), 9)\n",
        "U",
    ),
    "LeetCode": (
        "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        return [0, 1]",
        "Example 1:\n\nInput: nums = [2,7,11,15], target = 9\nOutput: [0,1]\nExplanation: nums[0] + nums[1] == 9\n\n"
        "Example 2:\n\nInput: nums = [3,2,4], target = 6\nOutput: [1,2]\n\nConstraints:\n\n2 <= nums.length",
        "PF",
    ),
    "LeetCode's function": (
        "def twoSum(nums, target):\n    return [0, 1]",
        "Input: nums = [2,7], target = 9\nOutput: [0,1]",
        "P",
    ),
    "other names of the parameters": (
        "def twoSum(a, b):\n    return [b]",
        "Input: nums = [2,7], target = 9\nOutput: [9]",
        "P",
    ),
    "helpers beside the function": (
        "def helper(x, y):\n    return 0\ndef main_one(x, y):\n    return helper(x, y) + 1\ndef other(x): return 5\n",
        "Input: x = 1, y = 2\nOutput: 1",
        "P",
    ),
    "no function that fits": (
        "def twoSum(b):\n    return [0, 1]",
        "Input: nums = [2,7], target = 9\nOutput: [0,1]",
        "F",
    ),
    "LeetCode's names": (
        "class Solution:\n    @cache\n    def f(self, n: int) -> int:\n"
        "        return pow(2, n, 7) + len(Counter('aa')) + gcd(4, 6) + (inf > n)",
        "Input: n = 2\nOutput: 8",
        "P",
    ),
    "a linked list": (
        "class Solution:\n    def rev(self, head: Optional[ListNode]) -> Optional[ListNode]:\n        p = None\n"
        "        while head: head.next, p, head = p, head, head.next\n        return p",
        "Input: head = [1,2,3]\nOutput: [3,2,1]\nInput: head = []\nOutput: []",
        "UU",
    ),
    "a tree": (
        "class Solution:\n    def depth(self, root: Optional[TreeNode]) -> int:\n"
        "        return 1 + max(self.depth(root.left), self.depth(root.right)) if root else 0",
        "Input: root = [3,9,20,null,null,15,7]\nOutput: 3",
        "P",
    ),
    "an argument that is changed": (
        "class Solution:\n    def f(self, nums: List[int]) -> None:\n        nums.sort()",
        "Input: nums = [3,1]\nOutput: [1,3]\nInput: nums = [2,1]\nOutput: [2,1]",
        "PF",
    ),
    "a class of LeetCode": (
        "class MinStack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n"
        "    def getMin(self): return min(self.a)",
        'Input\n["MinStack","push","push","getMin"]\n[[],[-2],[0],[]]\n\nOutput\n[null,null,null,-2]\n',
        "PPP",
    ),
    "check without its call": (
        "def help_me(x): return x\ndef f(x): return help_me(x) + 1",
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 4",
        "PF",
    ),
    "check of a method": (
        "class Solution:\n    def f(self, n): return n + 1",
        "def check(candidate):\n    assert candidate(n = 1) == 2\ncheck(Solution().f)",
        "P",
    ),
    "arrows": (SQUARE, "square(2) -> 4\nsquare(3) => 9\nsquare(4) → 17", "PPF"),
    "a redefined built-in": ("def sum(a, b): return a * b", "assert sum(2, 3) == 6", "P"),
}


@pytest.mark.parametrize(("code", "text", "expected"), CASES.values(), ids=CASES)
def test_results(sandbox: Sandbox, code: str, text: str, expected: str) -> None:
    results = run(sandbox, code, text)
    found = "".join(("P" if each.protected else "U") if each.passed else "F" for each in results)
    assert found == expected, [each.reason for each in results]


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (SQUARE, ">>> square(2)\n5", "square(2) displayed 4, expected 5"),
        (SQUARE, ">>> square('a')\n5", "square('a') raised TypeError: no number (line 2), expected 5"),
        (
            SQUARE,
            "import pytest\ndef test_a():\n    with pytest.raises(ValueError) as e:\n        square(2)\n    assert e.value",
            "square(2) raised nothing, expected ValueError",
        ),
        (SQUARE, "x = square('a')\nassert x == 1", "x = square('a') raised TypeError: no number (line 2)"),
        ("x = 1", "Input: n = 1\nOutput: 2", "the program defines no function that the test can call"),
        ("def f(a): return 1", "Input: n = 1, m = 2\nOutput: 2", "no function of the program takes the arguments n, m"),
        ("def f(:", "assert f(1) == 2", "SyntaxError: "),
        ("boom", ">>> f(1)\n2", "NameError: name 'boom' is not defined"),
    ],
)
def test_reasons(sandbox: Sandbox, code: str, text: str, reason: str) -> None:
    assert run(sandbox, code, text)[0].reason.startswith(reason)


def test_a_child_that_ends_early_is_continued_with_the_state_before(sandbox: Sandbox) -> None:
    code = f"import os\n{COUNTER}def end(): os._exit(3)\ndef hang():\n    while True: pass\n"
    text = "assert make() == 1\nassert end() == 1\nassert make() == 2\nassert hang() == 1\nassert make() == 3"
    results = run(sandbox, code, text)
    assert [result.passed for result in results] == [True, False, True, False, True]
    assert [result.status for result in results] == ["ok", "error", "ok", "timeout", "ok"]


def test_slow_tests_have_their_own_time(sandbox: Sandbox) -> None:
    code = "import time\nn = 0\ndef f():\n    global n\n    n += 1\n    time.sleep(0.35)\n    return n\n"
    text = "\n".join(f"assert f() == {number}" for number in range(1, 6))
    assert all(result.passed for result in run(sandbox, code, text, Limits(wall_seconds=1, cpu_seconds=3)))


def test_endless_repetition_is_limited(sandbox: Sandbox) -> None:
    code = "import time\ndef f():\n    time.sleep(0.35)\n    return 1\n"
    results = run(sandbox, code, "assert f() == 1\n" * 20, Limits(wall_seconds=0.5, cpu_seconds=1))
    assert results[0].passed
    assert results[-1].status == "timeout"
    assert "took too long" in results[-1].reason


def test_leetcode_names_are_there_for_other_tests_too(sandbox: Sandbox) -> None:
    code = "class Solution:\n    def f(self, x: List[int]) -> Optional[int]:\n        return defaultdict(int)[0]"
    (result,) = run_tests(code, [AssertTest("assert Solution().f([1]) == 0")], sandbox, QUICK)
    assert result.passed
    (result,) = run_tests("def f(x: List[int]): return 0", [AssertTest("assert f([1]) == 0")], sandbox, QUICK)
    assert "name 'List' is not defined" in result.reason


def test_mixed_with_program_runs(sandbox: Sandbox) -> None:
    code = "def f(x): return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))"
    tests = parse_pasted_tests("assert f(1) == 2\nInput:\n3\nOutput:\n4\n")
    assert isinstance(tests[1], StdioTest)
    assert [result.passed for result in run_tests(code, tests, sandbox, QUICK)] == [True, True]
