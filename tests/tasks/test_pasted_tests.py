"""Pasted tests: what each form becomes, and the errors. tests/evaluate/test_runner/test_script.py runs them."""

# ruff: noqa: E501, ISC004 - the tables have a case a line

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import DataError
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import ENTRY_POINT, Outcome, ScriptTest, StdioTest, Step, Test, parse_test


def codes(text: str) -> list[str]:
    """Return the code of each test in a text of ScriptTests."""
    tests = parse_pasted_tests(text)
    assert all(isinstance(test, ScriptTest) for test in tests)
    return [test.code for test in tests if isinstance(test, ScriptTest)]


def test_asserts_with_the_lines_before_them() -> None:
    tests = parse_pasted_tests("import math\nassert f(0) == 0\n\nxs = [1,\n  2]\nassert f(xs) == math.pi, 'why'\r\n")
    assert tests == (
        ScriptTest("assert f(0) == 0", (Step("import math"),)),
        ScriptTest("assert f(xs) == math.pi, 'why'", (Step("xs = [1,\n  2]"),)),
    )


def test_a_session() -> None:
    text = (
        "Some words.\n\n  >>> import math\n  >>> f(2)\n  4\n  >>> f('a')  # text\n  'aa'\n"
        "  >>> f([1,\n  ...    2])\n  [1, 2]\n\nMore words.\n"
    )
    assert parse_pasted_tests(text) == (
        ScriptTest("f(2)", (Step("import math"),), outcome=Outcome("4\n")),
        ScriptTest("f('a')  # text", outcome=Outcome("'aa'\n")),
        ScriptTest("f([1,\n   2])", outcome=Outcome("[1, 2]\n")),
    )


def test_directives_and_errors_of_a_session() -> None:
    text = ">>> f(1)  # doctest: +ELLIPSIS\n3.14...\n>>> f(0)\nTraceback (most recent call last):\n  ...\na.B: no\n"
    first, second = parse_pasted_tests(text)
    assert isinstance(first, ScriptTest)
    assert first.outcome == Outcome("3.14...\n", options=("ELLIPSIS",))
    assert isinstance(second, ScriptTest)
    assert second.outcome == Outcome(error="B", message="no")


def test_program_runs_in_blocks_and_on_one_line() -> None:
    text = "\nInput:\n2 3\n\n4\n\nOutput:\n5\n\ninput: 1 1\noutput: 2\nINPUT :\noutput:\nnothing read\n  indented \n"
    assert parse_pasted_tests(text) == (
        StdioTest("2 3\n\n4\n", "5\n"),
        StdioTest("1 1\n", "2\n"),
        StdioTest("", "nothing read\n  indented \n"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "Input:\n3\nExpected output:\n4",
        "Input\n3\nOutput\n4",
        "Input\n3\n\nExpected Output\n4\n",
        "Sample Input 1:\n3\nSample Output 1:\n4",
        "Sample Input 1\n\n3\n\nSample Output 1\n\n4",
        "**Input:** 3\n**Output:** 4",
        "### Input\n3\n### Output\n4",
        "Example 1:\nInput: 3\nOutput: 4\nExplanation: 3 + 1\nis 4.",
        "Example 1\nInput\n3\nOutput\n4\nNote: none",
        "stdin:\n3\nstdout:\n4",
        "input: 3\nexpected: 4",
        "```\nInput:\n3\nOutput:\n4\n```",
        '[{"input": "3\\n", "output": "4\\n"}]',
        '{"inputs": ["3\\n"], "outputs": ["4\\n"]}',
    ],
)
def test_labels_of_program_runs(text: str) -> None:
    (test,) = parse_pasted_tests(text)
    assert isinstance(test, StdioTest)
    assert (test.stdin.strip(), test.expected.strip()) == ("3", "4")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Input: nums = [2,7], target = 9\nOutput: [0,1]", f"{ENTRY_POINT}(nums=[2, 7], target=9) == [0, 1]"),
        ("Input:\nnums = [2,7]\ntarget = 9\nOutput:\n[0,1]", f"{ENTRY_POINT}(nums=[2, 7], target=9) == [0, 1]"),
        ("Input: s = 'a, b', t = null\nOutput: true", f"{ENTRY_POINT}(s='a, b', t=None) == True"),
        ("Example 1:\n\nInput: n = 3\nOutput: null\nExplanation: x = 2", f"{ENTRY_POINT}(n=3) is None"),
        ("Input: x = -2.5\nOutput: 0.25", f"abs({ENTRY_POINT}(x=-2.5) - 0.25) <= 1e-05"),
        ("Input: f(2)\nOutput: 4", "f(2) == 4"),
        ("f(2) -> 4", "f(2) == 4"),
        ("f('a') => 'aa'", "f('a') == 'aa'"),
        ("- f([1, 2]) → [2, 4]", "f([1, 2]) == [2, 4]"),
        ("1. f(x=2) ➞ true", "f(x=2) == True"),
        ("f(2) returns 4", "f(2) == 4"),
    ],
)
def test_examples_of_functions(text: str, code: str) -> None:
    assert codes(text) == [f"assert {code}"]


def test_a_class_of_leetcode_is_a_sequence_of_calls() -> None:
    text = 'Input\n["Stack", "push", "top"]\n[[], [1], []]\nOutput\n[null, null, 1]'
    assert parse_pasted_tests(text) == (
        ScriptTest("assert obj.push(1) is None", (Step("obj = Stack()", "example"),), "example"),
        ScriptTest("assert obj.top() == 1", (), "example"),
    )


ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\ndef helper(x):\n    return x\n\ndef f(x):\n    """ Doubles.\n    >>> f(1)\n    2\n    """\n',
    "entry_point": "f",
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {'author': 'jt'}\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert True, 'x'\n",
}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROW),
        f"{ROW['test']}\ncheck(f)",
        f"{ROW['prompt']}\n{ROW['test']}\ncheck(f)",
        f"{ROW['prompt']}{ROW['canonical_solution']}\n{ROW['test']}\ncheck(f)",
        f"```python\n{ROW['test']}\ncheck(f)\n```",
        "def check(g):\n    assert g(2) == 4\ncheck(f)",
        "def test_f():\n    assert f(2) == 4",
        "from solution import f\n\nclass TestF:\n    def test_f(self):\n        assert f(2) == 4",
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(2), 4)\n"
        "if __name__ == '__main__':\n    unittest.main()",
        "import pytest\n@pytest.mark.parametrize('x, y', [(2, 4)])\ndef test_f(x, y):\n    assert f(x) == y",
        "import pytest\nCASES = [(2, 4)]\n@pytest.mark.parametrize(['x', 'y'], CASES)\ndef test_f(x, y):\n"
        "    assert f(x) == y",
        "for x, y in [(2, 4)]:\n    assert f(x) == y",
        "for x, y in zip([2], [4]):\n    assert f(x) == y",
        "for x, y in {2: 4}.items():\n    assert f(x) == y",
        "cases = [(2, 4)]\nfor x, y in cases:\n    assert f(x) == y",
        "expected = 4\nassert f(2) == expected",
        "def test_f():\n    x, expected = 2, 4\n    assert f(2) == 4",
        "def test_f():\n    value = 2\n    expected = 4\n    assert f(value) == expected",
        "def verify(x, y):\n    assert f(x) == y\nverify(2, 4)",
        '["assert f(2) == 4"]',
        "['assert f(2) == 4']",
        '{"task_id": 2, "test_list": ["assert f(2) == 4"], "test_setup_code": ""}',
        "    assert f(2) == 4\n",
        "~~~\nassert f(2) == 4\n~~~",
        "assert f(2) == 4\nprint('all passed')",
        "assert\u00a0f(2) == 4",
    ],
)
def test_forms_of_one_assert(text: str) -> None:
    found = [code.replace("candidate", "f").replace("g(", "f(") for code in codes(text)]
    assert found == ["assert f(2) == 4"]


def test_no_expected_value_is_a_step() -> None:
    """Steps run in the sandbox, so what asserts compare with must not be in them."""
    texts = (
        "import pytest\n@pytest.mark.parametrize('x, y', [(2, 4711)])\ndef test_f(x, y):\n    assert f(x) == y",
        "import unittest\nclass T(unittest.TestCase):\n    def setUp(self):\n        self.x = 2\n"
        "    def test_f(self):\n        expected = [4711]\n        self.assertEqual(f(self.x), expected)",
        "cases = [(2, 4711)]\nfor x, y in cases:\n    assert f(x) == y",
        "def check(candidate):\n    assert candidate(2) == 4711\ncheck(f)",
    )
    for text in texts:
        for test in parse_pasted_tests(text):
            assert isinstance(test, ScriptTest)
            assert "4711" in test.code
            assert not any("4711" in step.source for step in test.steps)


def test_a_record_of_each_test_is_parsed_back() -> None:
    tests = parse_pasted_tests("x = 1\nassert f(x) == 1\n>>> f(2)  # doctest: +ELLIPSIS\n3\nInput:\n3\nOutput:\n4")
    records = json.loads(json.dumps([asdict(test) for test in tests]))
    assert tuple(map(parse_test, records)) == tests


def test_several_forms_in_one_text() -> None:
    text = "assert f(2) == 4\n\n>>> f(3)\n9\n\nf(4) -> 16\n\nInput:\n5\nOutput:\n25\n"
    kinds = [(type(test), getattr(test, "code", "")) for test in parse_pasted_tests(text)]
    assert kinds == [
        (ScriptTest, "assert f(2) == 4"),
        (ScriptTest, "f(3)"),
        (ScriptTest, "assert f(4) == 16"),
        (StdioTest, ""),
    ]


@pytest.mark.parametrize(
    "condition",
    [
        '(f(2) == 5, "message")', "True", "1", '"x"', "1 == 1", "2 + 2 == 4", "not False", "f", "not f", "f is not None",
        "f is None", "lambda: f(2)", "[f(2) == 4]", "{f(2)}", "{1: f(2)}", "(f(x) for x in [1])", "f(2) == 4 or 5",
        "True or f(2) == 4", "f(2) and False", "False", "None", "()", 'f"value {f(2)}"', 'len("abc") == 3',
        "isinstance(3, int)", "sum([1, 2]) == 3", "1 if f(2) else 2", "print", "1 in [1]", "max(1, 2) == 2",
    ],
)  # fmt: skip
def test_an_assert_that_tests_nothing_is_refused(condition: str) -> None:
    with pytest.raises(DataError, match=r"Line 2: .* tests nothing"):
        parse_pasted_tests(f"assert f(1) == 1\nassert {condition}")


@pytest.mark.parametrize(
    "condition",
    [
        "f(2)", "not f(2)", "f(2) == f(2)", "f(2) is None", "f(2) or f(3)", "sum(10, 15) == 6", "result", "x.value",
        "f(2) == 4 and True", "len(f(2)) == 3", "all(f(x) for x in [1])", "isinstance(f(2), int)", "callable(f)",
    ],
)  # fmt: skip
def test_an_assert_about_the_answer_is_taken(condition: str) -> None:
    assert codes(f"result = f(3)\nassert {condition}") == [f"assert {condition}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no test in this text: write lines like"),
        ("import math\n", "There is no test in this text"),
        ("f(2) == 4", r"Line 1: 'f\(2\) == 4' checks nothing: put 'assert' before it"),
        (
            "assert f(2) == 4\nassert f(3 == 9",
            r"Line 2: this is not Python, '\(' was never closed \('assert f\(3 == 9'\)",
        ),
        ("Please run these.\nassert f(2) == 4", "Line 1: this is not Python"),
        ("x = 1\0", "this cannot be read as Python|this is not Python"),
        ("assert f('\ud800') == 1", "this cannot be read as Python"),
        ("assert " + "(" * 5000, "Line 1: "),
        (">>>f(2)\n4", "lacks blank after >>>"),
        (">>> f(2", "Line 1: this is not Python"),
        (">>> f(2)", "Line 1: no call has an answer below it"),
        ("\n>>> x = 2\n3", "Line 2: 'x = 2' displays nothing, so '3' below it cannot be right"),
        ("input:\n1\ninput:\n2\noutput:\n2", "Line 1: 'input:' has no 'output:' after it"),
        ("a\ninput: 1", "Line 1: 'a' is before the first 'input:'"),
        ("input: 1\noutput: 2\noutput: 3", "Line 3: 'output:' has no 'input:' before it"),
        ("input: 1", "Line 1: 'input:' has no 'output:' after it"),
        ("Input: nums = [1, x]\nOutput: 2", r"Line 1: 'nums = \[1, x\]' looks like the arguments of a function"),
        ("Input: n = 1\nOutput: abc", "Line 2: 'abc' is no value that can be compared"),
        ("f(2) -> four", "Line 1: 'four' is no value"),
        ("assert f(2) == 4\nf(3)", r"Line 2: 'f\(3\)' comes after the last test and checks nothing"),
        ("x = 1\ndef square(x):\n    return x\nassert square(2) == 4", "Line 4: .* define 'square' themselves"),
        ("def test_a():\n    f(2)", "Line 1: 'test_a' asserts nothing"),
        ("def run():\n    assert f(2) == 4", "Line 1: 'run' has tests but nothing calls it"),
        ("import pytest\ndef test_a(tmp_path):\n    assert f(2)", "Line 2: 'test_a' takes the fixture 'tmp_path'"),
        ("import pytest\n@pytest.mark.skip\ndef test_a():\n    assert f(2)", "has the decorator 'pytest.mark.skip'"),
        ("async def test_a():\n    assert f(2) == 4", "Line 1: 'test_a' is asynchronous"),
        ("for x in []:\n    assert f(x)", "Line 1: this loop has no items"),
        ("[1, 2]", "Line 1: a list of values does not name what is called"),
        ('{"a": 1}', "Line 1: this object has no tests"),
        ("assert f(2) == 4\n" * 201, "There are 201 tests: paste at most 200"),
        ("#" * 20_001, "The tests have 20,001 characters"),
    ],
)
def test_errors_are_one_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_pasted_tests(text)
    assert "\n" not in str(caught.value)


def read(text: str) -> tuple[tuple[Test, ...], str]:
    try:
        return parse_pasted_tests(text), ""
    except DataError as error:
        return (), str(error)


@given(st.text(alphabet="assert f(1)=>:.\n'\"input output\t#\0\ud800[]{}", max_size=120))
def test_any_text_gives_tests_or_an_error_of_one_line(text: str) -> None:
    tests, message = read(text)
    assert bool(tests) != bool(message)
    assert "\n" not in message


LINES = [
    "assert f(1) == 2", ">>> f(1)", "2", "Input: n = 1", "Output: 2", "def test_a():", "    assert f(1)", "class T:", "",
    "    def test_b(self):", "        self.assertEqual(f(1), 2)", "check(f)", "def check(c):", "for x in [1, 2]:", "```",
    "with pytest.raises(ValueError):", "    f(1)", "In [1]: f(1)", "Out[1]: 2", "Example 1:", "import pytest", '"""',
    "f(1) -> 2", "@pytest.mark.parametrize('x', [1])", "def test_c(x):", "    x = 1", "    return", "...", "Traceback",
    "if __name__ == '__main__':", "    unittest.main()", "x = y = 1", "del x", "lambda: 1", "async def test_d(): assert 1",
]  # fmt: skip


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_any_lines_give_tests_or_an_error_of_one_line(lines: list[str]) -> None:
    tests, message = read("\n".join(lines))
    assert bool(tests) != bool(message)
    assert "\n" not in message
