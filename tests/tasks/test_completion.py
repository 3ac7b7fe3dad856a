"""Programs from answers that repeat the prompt's signature, or are the body of its function."""

from __future__ import annotations

import pytest

from tasks.problem import complete_program

PROMPT = '''import math


def helper(x):
    return x + 1


def root(x: float) -> float:
    """ Compute.
    >>> root(3.0)
    2.0
    """
'''
BODY = "    if x < 0:\n        return 0.0\n    return math.sqrt(helper(x))\n"


def evaluated(answer: str) -> object:
    names: dict[str, object] = {}
    exec(complete_program(answer, PROMPT, "root"), names)
    return names["root"](3.0)  # type: ignore[operator]


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        BODY.strip(),  # without the indentation of its first line
        BODY.replace("\n    ", "\n").strip(),  # without the indentation of all lines
        BODY + "\n\ndef other():\n    return 1\n",  # a base model goes on
        PROMPT + BODY,
        "def root(x):\n" + BODY,  # the import and the helper are the prompt's
        "from math import sqrt\n\ndef root(x):\n    return sqrt(x + 1)\n",
        "def helper(x):\n    return x + 1\n\ndef root(x):\n    return math.sqrt(helper(x))",
        "    def inner(y):\n        return helper(y)\n    return math.sqrt(inner(x))",
        "def inner(y):\n        return helper(y)\n    return math.sqrt(inner(x))",
        "from __future__ import annotations\nimport math\ndef root(x: Any):\n    return math.sqrt(x + 1)\n",
    ],
)
def test_body_and_whole_program_are_the_same_answer(answer: str) -> None:
    assert evaluated(answer) == 2.0


@pytest.mark.parametrize("answer", ["", "   \n", "I do not know.", "def root(x:\n", "\0"])
def test_text_that_is_neither_is_returned_as_it_is(answer: str) -> None:
    assert complete_program(answer, PROMPT, "root") == answer


def test_without_a_prompt_the_code_is_the_program() -> None:
    assert complete_program(BODY, "", "root") == BODY
    assert complete_program(BODY, PROMPT, None) == BODY


def test_a_program_with_another_function_does_not_become_a_body() -> None:
    assert "def root" not in complete_program("def other(x):\n    return x\n", PROMPT, "root")
