from __future__ import annotations

import warnings

import pytest

from tasks.extract import is_valid_python
from tests.evaluate.hostile import HOSTILE


@pytest.mark.parametrize("code", ["x", "print(x)", "def f():\n    return 1", "  x = 1\n"])
def test_programs_parse(code: str) -> None:
    assert is_valid_python(code)


@pytest.mark.parametrize("code", ["", "  \n", "# nothing", "x =", "print x", "x\0", "'\ud800' +", "```python\nx\n```"])
def test_other_texts_do_not(code: str) -> None:
    assert not is_valid_python(code)


def test_doubtful_escapes_and_comparisons_warn_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_valid_python("x = '\\d'; x is 1")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_never_raises(text: str) -> None:
    assert is_valid_python(text) in (True, False)
