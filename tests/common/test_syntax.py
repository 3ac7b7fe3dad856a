"""Python source is parsed by many threads at once."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.syntax import parse_python


def test_threads_parse_at_once() -> None:
    nested = (
        "x = " + "(" * 60 + "1" + ")" * 60 + "\n" + "\n".join(f"def f{n}(a):\n    return [a, {n}]" for n in range(60))
    )
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(parse_python, [nested] * 200))
    assert {len(tree.body) for tree in trees} == {61}


def test_a_mode_and_an_error() -> None:
    assert isinstance(parse_python("1 + 1", "eval"), ast.Expression)
    with pytest.raises(SyntaxError):
        parse_python("x =")


@pytest.mark.filterwarnings("error")
def test_syntax_warnings_are_silent() -> None:
    assert parse_python("x = '\\d'").body
