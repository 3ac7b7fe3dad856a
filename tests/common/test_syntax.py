"""Parsing of Python source: concurrent threads, modes, errors and warnings."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.parsing import parse_python


def test_concurrent_threads_can_parse() -> None:
    nested = (
        "x = " + "(" * 60 + "1" + ")" * 60 + "\n" + "\n".join(f"def f{n}(a):\n    return [a, {n}]" for n in range(60))
    )
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(parse_python, [nested] * 200))
    assert {len(tree.body) for tree in trees} == {61}


def test_mode_is_passed_on_and_invalid_code_raises_a_syntax_error() -> None:
    assert isinstance(parse_python("1 + 1", "eval"), ast.Expression)
    with pytest.raises(SyntaxError):
        parse_python("x =")


@pytest.mark.filterwarnings("error")
def test_syntax_warnings_are_suppressed() -> None:
    assert parse_python("x = '\\d'").body
