"""Code extraction from completions, the end of an answer, and the syntax check."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.extract import answer_end, extract_code, is_valid_python
from tasks.prompt import STYLES, format_answer, format_completion
from tests.evaluate.hostile import HOSTILE

PLAIN, CHAT, OPEN = STYLES["plain"], STYLES["chat"], STYLES["chat-python-open"]
CODE = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x.sort()", "x.sort()"),
        ("x.sort()\n\n### Instruction:\nnext\n### Response:\ny", "x.sort()"),
        ("### Instruction:\nsort x\n### Response:\nx.sort()\n", "x.sort()"),
        (f"\n```\n{CODE}\n```\nThis code returns x.", CODE),
        (f"```python\n{CODE}", CODE),
        (f"Sure! Here it is:\n\n```python\n{CODE}\n```\nand another\n```python\ny\n```", CODE),
        (f"Sure, here it is:\n{CODE}\n\nThis returns x.", CODE),
        ("Here is the code:\nx = 1\nprint(x)\nHope this helps!", "x = 1\nprint(x)"),
        ("    a = 1\n    b = 2\n", "a = 1\nb = 2"),
        ("x = 1\n<|im_start|>user\nmore", "x = 1"),
        ("def f(:", "def f(:"),
        ("Sure", "Sure"),
        ("I cannot do that.", "I cannot do that."),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_code_of_plain_answers_is_extracted(text: str, code: str) -> None:
    assert extract_code(text, PLAIN) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{CODE}\n```\nThis returns x.", CODE),
        (f"```python\n{CODE}\n```", CODE),
        (CODE, CODE),
        ("print(x)```", "print(x)"),
        ('s = "```"\nprint(s)\n```', 's = "```"\nprint(s)'),
    ],
)
def test_code_of_answers_to_an_open_fence_is_extracted(text: str, code: str) -> None:
    assert extract_code(text, OPEN) == code


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
@pytest.mark.parametrize(
    "code", [CODE, "x", "x = [1,\n     2]", "# only a comment\npass", "for i in x:\n    pass\n\nprint(i)"]
)
def test_code_of_a_formatted_answer_is_extracted(style: object, code: str) -> None:
    chosen = next(item for item in STYLES.values() if item is style)
    assert extract_code(format_completion(code, chosen), chosen) == code
    assert extract_code(format_answer(code, chosen), chosen) == code


def test_answer_ends_at_the_closing_fence() -> None:
    text = f"```python\n{CODE}\n```\n"
    assert answer_end(text, CHAT) == len(text) - 1
    assert answer_end(f"{CODE}\n```", OPEN) == len(CODE) + 4


def test_answer_ends_where_a_further_example_begins() -> None:
    assert answer_end("x.sort()\n\n### Instruction:", PLAIN) == len("x.sort()\n\n")


@pytest.mark.parametrize(
    "text", ["", "x", "```python", "```python\n", "### Instruction:\nsort x\n### Response:\nx", "\n"]
)
def test_incomplete_answer_has_no_end(text: str) -> None:
    assert answer_end(text, PLAIN) is None


@given(st.text(alphabet="`#\n xI:<|>def()=_python", max_size=80), st.sampled_from(list(STYLES.values())))
def test_extraction_of_any_text_raises_no_error(text: str, style: object) -> None:
    chosen = next(item for item in STYLES.values() if item is style)
    end = answer_end(text, chosen)
    assert end is None or 0 <= end <= len(text)
    extract_code(text, chosen)


@pytest.mark.parametrize("code", ["x", "print(x)", "def f():\n    return 1", "  x = 1\n"])
def test_valid_programs_parse(code: str) -> None:
    assert is_valid_python(code)


@pytest.mark.parametrize("code", ["", "  \n", "# nothing", "x =", "print x", "x\0", "'\ud800' +", "```python\nx\n```"])
def test_invalid_programs_do_not_parse(code: str) -> None:
    assert not is_valid_python(code)


def test_invalid_escapes_and_literal_comparisons_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_valid_python("x = '\\d'; x is 1")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_never_raises(text: str) -> None:
    assert is_valid_python(text) in (True, False)
