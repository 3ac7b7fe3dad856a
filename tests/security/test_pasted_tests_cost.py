"""Reading pasted tests: the work is linear in the length, bounded where the text unfolds, and ends in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from errors import DataError
from tasks.pasted_tests import MAX_CHARACTERS, parse_pasted_tests, text
from tasks.problem import Test
from tests import messages
from tests.security.measure import count_calls, cpu_ratio


def numbered(line: str, count: int, end: str = "") -> str:
    """Return `count` lines with their numbers in place of {i}, then `end`."""
    return "".join(line.replace("{i}", str(at)) for at in range(count)) + end


# Each gives a text whose length is proportional to the number.
LONG_TEXTS: dict[str, Callable[[int], str]] = {
    "one name assigned again": lambda n: numbered("a=1\n", n, "assert a\n"),
    "names assigned": lambda n: numbered("a{i}=1\n", n, "assert f() == a0\n"),
    "lists assigned": lambda n: numbered("a{i}=[1]\n", n, "assert f() == 1\n"),
    "names assigned on one line": lambda n: numbered("a{i}=1;", n, "\nassert f() == a0\n"),
    "names of one statement": lambda n: numbered("a{i}=b\n", n) + numbered("a{i},", n, "=b\nassert f(b) == 1\n"),
    "names of a long call": lambda n: numbered("a{i}=1\nx=a{i}" + "()" * 20 + "\n", n // 4, "assert f() == 1"),
    "names in a test function": lambda n: "def test_a():\n" + numbered(" x{i}=1\n", n, " assert f() == 1\n"),
    "names in check": lambda n: "def check(candidate):\n" + numbered(" x{i}=1\n", n, " assert candidate() == 1\n"),
    "loops": lambda n: numbered("for a in (1,):assert f(a)\n", min(n // 8, 190)),
    "expected exceptions": lambda n: "import pytest\n" + numbered("with pytest.raises(E) as e:f()\n", min(n // 8, 190)),
    "functions": lambda n: numbered("def g{i}():0\n", n, "assert f() == 1\n"),
    "functions of the answer": lambda n: numbered("def g{i}():return f()\n", n, "assert g1() == 1\n"),
    "a session": lambda n: numbered(">>> a{i}=f()\n", n, ">>> f()\n1\n"),
    "labels without colon": lambda n: "input:\noutput:\nassert f() == 1\n" + numbered("Input\n", n),
    "one JSON row": lambda n: json.dumps([numbered("a=1\n", n, "assert f(a)")]),
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_twice_the_text_takes_twice_the_work(kind: str) -> None:
    short, long = (count_calls(parse_pasted_tests, LONG_TEXTS[kind](count)) for count in (60, 240))
    assert long < 6 * short, f"{short} calls became {long}"


UNFOLDING_TEXTS = {
    "a long body": "for i in range(100):\n" + numbered(" b{i}=f(i)\n", 300, " assert f(i) == i\n"),
    "a long value": "for i in range(100):\n x=[" + "i," * 2000 + "]\n assert f(x) == i\n",
    "parameters": "@pytest.mark.parametrize('a',["
    + "1," * 190
    + "])\ndef test_a(a):\n"
    + " x=f(a)\n" * 400
    + " assert x",
    "calls of a long function": "def g():\n" + " pass\n" * 1500 + " assert f() == 1\n" + "g()\n" * 190,
    "methods": "class T(unittest.TestCase):\n def g(self):\n"
    + "  x=1\n" * 1000
    + numbered(" def test_{i}(self):\n  assert f()\n  return 1\n", 190),
}


@pytest.mark.parametrize("kind", UNFOLDING_TEXTS)
def test_texts_that_unfold_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_WORK", 150_000)  # a tenth, which is reached sooner
    with pytest.raises(DataError, match=messages.TESTS_TAKE_TOO_LONG):
        parse_pasted_tests(UNFOLDING_TEXTS[kind])


def test_the_product_of_parameters_is_not_built() -> None:
    decorators = numbered("@pytest.mark.parametrize('a{i}', [1, 2])\n", 60)
    arguments = ", ".join(f"a{at}" for at in range(60))
    with pytest.raises(DataError, match=messages.TEST_HAS_TOO_MANY_CASES):
        parse_pasted_tests(f"{decorators}def test_a({arguments}):\n assert f() == 1\n")


DEEP_TEXTS = {
    "calls": "assert f" + "()" * 900 + " == 1",
    "sums": "x = 1" + "+1" * 900 + "\nassert f(x) == 1",
    "lambdas": "assert f(" + "lambda:" * 900 + "1)",
    "branches": "if f():\n assert f() == 1\n" + "elif f():\n assert f() == 2\n" * 600,
    "attributes": "assert f() == a" + ".b" * 900,
    "brackets": "assert f() == " + "[" * 5000 + "]" * 5000,
    "signs": "assert f() == " + "-" * 9000 + "1",
    "JSON": '{"a":' * 4000,
    "arguments": "Input: a = " + "[" * 5000 + "\nOutput: 1\n",
}


@pytest.mark.parametrize("kind", DEEP_TEXTS)
def test_deep_nesting_is_one_sentence_or_read(kind: str) -> None:
    message, tests = "", tuple[Test, ...]()
    try:
        tests = parse_pasted_tests(DEEP_TEXTS[kind])
    except DataError as error:
        message = str(error)
    assert len(tests) == 1 or re.fullmatch(r"[^\n]{10,400}\.", message)


@pytest.mark.parametrize("value", ["0x" + "f" * 9000, "pytest.approx(0x" + "f" * 2000 + ")", "9" * 9000])
def test_huge_numbers_are_one_sentence(value: str) -> None:
    with pytest.raises(DataError, match=r"^[^\n]{10,400}\.$"):
        parse_pasted_tests(f"import pytest\nx = {value}\nassert f(x) == {value}")


LONG_LINES = {
    "spaces after an arrow": lambda n: "f() -> 1" + " " * n + "x",
    "tildes": lambda n: "~" * n + "`",
    "spaces before a label": lambda n: " " * n + "x",
    "spaces after a label": lambda n: "Input" + " " * n + "x",
    "marks around a label": lambda n: "*" * n + "Input" + "*" * n + "x",
}


@pytest.mark.parametrize("kind", LONG_LINES)
def test_long_lines_are_matched_without_trying_again(kind: str) -> None:
    assert cpu_ratio(parse_pasted_tests, LONG_LINES[kind](2_000), LONG_LINES[kind](8_000)) < 10


def test_length_is_checked_first() -> None:
    with pytest.raises(DataError, match=messages.TESTS_TOO_LONG):
        parse_pasted_tests("(" * (MAX_CHARACTERS + 1))
