"""What a program printed against what it should have printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.test_runner.runner import comparable_lines, first_difference


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ("1 2 3", "1 2 3\n\n"),
        ("1 2 3 \n", "1 2 3"),
        ("a\r\nb", "a\nb\n"),
        ("", "\n \n"),
        ("a\n\nb\n", "a  \n\nb"),
        ("0.333333", "0.3333333333333333"),
        ("1000000.0", "1000000.9"),
        ("3.0", "3"),
        ("1e3 x", "1000.0 x"),
        ("-0.0", "0"),
    ],
)
def test_right_output(expected: str, got: str) -> None:
    assert first_difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "line"),
    [
        ("1 2 3", "3 2 1", 1),
        ("a\nb", "b\na", 1),
        ("a\nb", "a", 2),
        ("a", "a\nb", 2),
        ("a\nb", "a\n\nb", 2),
        ("a b", "a  b", 1),
        ("  a", "a", 1),
        ("a b", "ab", 1),
        ("Yes", "yes", 1),
        ("3", "3.0", 1),
        ("3", "3.0000001", 1),
        ("10", "1e1", 1),
        ("007", "7", 1),
        ("0.333", "0.3331", 1),
        ("1.0", "1.0x", 1),
        ("nan", "NaN", 1),
        ("1e999", "1e998", 1),
        ("1.0", "inf", 1),
        ("1.5", "١.5", 1),
        ("x", "", 1),
    ],
)
def test_wrong_output_is_found_at_its_line(expected: str, got: str, line: int) -> None:
    assert first_difference(expected, got) == line


@given(st.text(max_size=200))
def test_any_text_is_its_own_output_but_for_what_ends_it(text: str) -> None:
    assert first_difference(text, text) is None
    assert first_difference(text, text + " \n\n") is None
    assert all(line == line.rstrip() for line in comparable_lines(text))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9))
def test_permuted_words_and_lines_are_wrong(numbers: list[int]) -> None:
    other = sorted(numbers)
    for blank in (" ", "\n"):
        same = first_difference(blank.join(map(str, numbers)), blank.join(map(str, other))) is None
        assert same == (numbers == other)


@given(st.floats(-1e9, 1e9), st.floats(-1e-5, 1e-5))
def test_decimals_are_right_within_a_millionth(value: float, off: float) -> None:
    near = first_difference(repr(value), repr(value + off)) is None
    if abs(off) < 0.9e-6 * max(1, abs(value)):
        assert near
    if abs(off) > 1.1e-6 * max(1, abs(value)):
        assert not near
