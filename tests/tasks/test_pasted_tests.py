"""Pasted tests: each of the three forms, and the errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import DataError
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, StdioTest
from tests.tasks.sets import run


def test_asserts_are_parsed_with_the_lines_before_them() -> None:
    tests = parse_pasted_tests("import math\nassert f(0) == 0\n\nxs = [1,\n  2]\nassert f(xs) == math.pi, 'why'\r\n")
    assert tests == (
        AssertTest("assert f(0) == 0", "import math"),
        AssertTest("assert f(xs) == math.pi, 'why'", "import math\nxs = [1,\n  2]"),
    )


def test_session_is_parsed() -> None:
    text = (
        "Some words.\n\n  >>> import math\n  >>> f(2)\n  4\n  >>> f('a')  # text\n  'aa'\n"
        "  >>> f([1,\n  ...    2])\n  [1, 2]\n"
    )
    assert parse_pasted_tests(text) == (
        AssertTest("assert f(2) == 4", "import math"),
        AssertTest("assert f('a') == 'aa'", "import math"),
        AssertTest("assert f([1,\n   2]) == [1, 2]", "import math"),
    )


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (">>> f(2)\n{'a': 1,\n 'b': 2}", "def f(x): return {'b': 2, 'a': 1}"),
        (">>> f(2)\nPoint(x=2)", "class Point:\n  def __repr__(self): return 'Point(x=2)'\ndef f(x): return Point()"),
        (">>> print(f(2))\na b", "def f(x): return 'a b'"),
        (">>> x = []\n>>> f(x)\n0\n>>> x.append(1)\n>>> f(x)\n1", "f = len"),
    ],
)
def test_session_is_converted_to_equivalent_asserts(session: str, code: str) -> None:
    tests = parse_pasted_tests(session)
    run(Problem("x", "x", tests=tests), code)
    with pytest.raises(AssertionError):
        run(Problem("x", "x", tests=tests), "def f(x): return 'something else'")


def test_program_runs_are_parsed_in_blocks_and_on_one_line() -> None:
    text = "\nInput:\n2 3\n\n4\n\nOutput:\n5\n\ninput: 1 1\noutput: 2\nINPUT :\noutput:\nnothing read\n  indented \n"
    assert parse_pasted_tests(text) == (
        StdioTest("2 3\n\n4\n", "5\n"),
        StdioTest("1 1\n", "2\n"),
        StdioTest("", "nothing read\n  indented \n"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "There is no test in this text: write lines like"),
        ("import math\n", "There is no test in this text"),
        ("f(2) == 4", r"Line 1: 'f\(2\) == 4' checks nothing: put 'assert' before it"),
        (
            "assert f(2) == 4\nassert f(3 == 9",
            r"Line 2: this is not Python, '\(' was never closed \('assert f\(3 == 9'\)",
        ),
        ("for x in a:\n    assert f(x)", "Line 1: write each assert on a separate line"),
        ("x = 1\0", "this cannot be read as Python|this is not Python"),
        ("assert f('\ud800') == 1", "this cannot be read as Python"),
        ("assert " + "(" * 5000, "Line 1: "),
        (">>>f(2)\n4", "lacks blank after >>>"),
        (">>> f(2", "Line 1: this is not Python"),
        (">>> f(2)", "Line 1: no call has an answer below it"),
        ("\n>>> x = 2\n3", "Line 2: this is not Python"),
        (">>> f(2)\nTraceback (most recent call last):\nValueError: no", "Line 1: an answer that is an error"),
        ("input:\n1\ninput:\n2\noutput:\n2", "Line 1: 'input:' has no 'output:' after it"),
        ("a\ninput: 1", "Line 1: 'a' is before the first 'input:'"),
        ("input: 1\noutput: 2\noutput: 3", "Line 3: 'output:' has no 'input:' before it"),
        ("input: 1", "Line 1: 'input:' has no 'output:' after it"),
        ("assert f(2) == 4\n" * 201, "There are 201 tests: paste at most 200"),
        ("#" * 100_001, "The tests have 100001 characters"),
    ],
)
def test_errors_are_one_line(text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        parse_pasted_tests(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="assert f(1)=>:.\n'\"input output\t#\0\ud800[]{}", max_size=120))
def test_any_text_gives_tests_or_an_error_of_one_line(text: str) -> None:
    message = ""
    try:
        tests = parse_pasted_tests(text)
    except DataError as error:
        message = str(error)
    else:
        assert tests
    assert "\n" not in message
