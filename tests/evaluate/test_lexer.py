"""Tokens of code: in order, without layout and comments, of any text and in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.codebleu import python_tokens
from tests.evaluate.hostile import HOSTILE

TEXTS = st.text(max_size=80) | st.text(alphabet="()[]{}'\"\\\n :=xf#1.", max_size=80)


@given(TEXTS)
def test_tokens_are_pieces_of_the_text_in_their_order(code: str) -> None:
    at = 0
    for token in python_tokens(code):
        assert token
        # Python's lexer ends a line that has no end, and reads \r\n as \n; the letters themselves stay.
        found = code.find(token.split("\n")[0].rstrip("\r"), at)
        assert found >= 0
        at = found


@given(TEXTS)
def test_the_same_text_has_the_same_tokens(code: str) -> None:
    assert python_tokens(code) == python_tokens(code)


@given(st.lists(st.sampled_from(["x", "+", "1", "'a b'", "f(", ")", "for", "**", '"""a"""']), max_size=8))
def test_blanks_and_comments_say_nothing(tokens: list[str]) -> None:
    assert python_tokens(" ".join(tokens)) == python_tokens("  ".join(tokens) + "  # a comment")


@pytest.mark.parametrize(
    ("code", "tokens"),
    [
        ("print(sum(x))", ("print", "(", "sum", "(", "x", ")", ")")),
        ("x **= 0x1F  # c", ("x", "**=", "0x1F")),
        ("f'{a} b' + rb'\\n'", ("f'{a} b'", "+", "rb'\\n'")),
        ("if a:\n    b\n", ("if", "a", ":", "b")),
        ("x = 'open", ("x", "=", "'open")),
        ("f(1 # c\n", ("f", "(", "1")),
        ("# only\n", ()),
        ("", ()),
    ],
)
def test_tokens(code: str, tokens: tuple[str, ...]) -> None:
    assert python_tokens(code) == tokens


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_neither_raises_nor_takes_long(text: str) -> None:
    start = time.perf_counter()
    python_tokens(text[:20_000])
    assert time.perf_counter() - start < 5
