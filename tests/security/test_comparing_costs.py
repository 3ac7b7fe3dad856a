"""Differences and scores of huge or strange codes: bounded before they are computed, and never an error."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from evaluate.scoring import score_code
from tests.security.measure import count_calls
from ui.components import MAX_DIFFED_CHARS, difference

_RANDOM = random.Random(1)


def _lines(count: int, width: int, letters: str = "ab ") -> str:
    return "\n".join("".join(_RANDOM.choice(letters) for _ in range(width)) for _ in range(count))


SIMILAR_TEXTS: dict[str, Callable[[int], tuple[str, str]]] = {
    "similar lines": lambda n: ("\n".join(["ab c" * 30] * n), "\n".join(["ba c" * 30] * n)),
    "random lines": lambda n: (_lines(n, 100), _lines(n, 100)),
    "short lines": lambda n: (_lines(n, 1), _lines(n, 1)),
    "turned lines": lambda n: ("\n".join(str(i % 19) for i in range(n)), "\n".join(str(i * 7 % 19) for i in range(n))),
}


def _compare(pair: tuple[str, str]) -> str:
    return difference({"mine": pair[0], "theirs": pair[1]})


@pytest.mark.parametrize("kind", SIMILAR_TEXTS)
def test_a_difference_of_long_texts_is_not_cubic(kind: str) -> None:
    assert count_calls(_compare, SIMILAR_TEXTS[kind](200)) < 100_000


def test_a_difference_is_refused_by_its_length() -> None:
    for pair in (("a\n" * 2_000, "b"), ("a" * MAX_DIFFED_CHARS, "b")):
        assert "Too long to compare" in difference(dict(zip(("mine", "theirs"), pair, strict=True)))


@pytest.mark.parametrize("value", [None, 7, [], "x", {}, {"mine": 7}, {"mine": None, "theirs": ["a"]}, {"mine": {}}])
def test_a_difference_of_other_values_is_html(value: Any) -> None:
    assert difference(value).startswith("<")


STRANGE_CODES = {
    "a long number": "x = 0x" + "f" * 9_000,
    "many digits": "9" * 9_000,
    "deep brackets": "(" * 9_000,
    "a chain of attributes": "a" + ".a" * 3_000,
    "a chain of calls": "a" + "()" * 900,
    "a chain of operators": "a" + "+a" * 2_000,
    "nested loops": "".join(" " * depth + "for a in a:\n" for depth in range(90)) + " " * 90 + "a = a",
    "surrogates": "\ud800" * 100,
    "NUL": "\0" * 100,
}


@pytest.mark.parametrize("kind", STRANGE_CODES)
def test_scores_of_strange_codes_are_numbers(kind: str) -> None:
    code = STRANGE_CODES[kind]
    for reference in (code, code + "\nb", "a = b"):
        for score in score_code(code, reference):
            assert score.value is None or 0 <= score.value <= 1
