"""Answers of the model families: the code that was meant, the end of generation, and streaming."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.types import stable_prefix
from tasks.datasets.registry import load_problems
from tasks.extract import answer_end, extract_code, extract_code_with_reason, may_have_ended, prompt_opens_thinking
from tasks.prompt import STYLES
from tests.tasks.answers import ANSWERS, FENCED, OPEN, Answer, F

CHAT = STYLES["chat"]
# Generation ends at the first program, or at a mark: what these answers write later is not generated.
ENDS_EARLIER = {
    "several blocks: helper first",
    "several blocks: correction",
    "several blocks: complete program last",
    "thinking: opened by the template",
    "thinking: gpt-oss without special tokens",
    "thinking: twice",
    "turns: repeated prompt",
    "cut: a block with an error, then the function",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_code_that_was_meant_is_extracted(answer: Answer) -> None:
    assert extract_code(answer.text, STYLES[answer.style]) == answer.code


def generate(answer: Answer) -> tuple[str, str]:
    """Return the text that is generated when each token is a character, and the longest text that was streamed."""
    style, streamed = STYLES[answer.style], ""
    for length in range(1, len(answer.text) + 1):
        text = answer.text[:length]
        end = answer_end(text, style)
        if end is not None:
            assert may_have_ended(text, length - 1)
            return text[:end], streamed
        streamed = max(streamed, stable_prefix(text), key=len)
    return answer.text, streamed


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_streamed_text_is_part_of_the_generated_text(answer: Answer) -> None:
    generated, streamed = generate(answer)
    assert generated.startswith(streamed)


@pytest.mark.parametrize("name", ANSWERS)
def test_generation_ends_behind_the_code(name: str) -> None:
    answer = ANSWERS[name]
    code = extract_code(generate(answer)[0], STYLES[answer.style])
    assert (code == answer.code) is (name not in ENDS_EARLIER)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\npip install numpy\n```\n",
        "<think>\n```python\nx = f(1)\n```\n",
        "```python\nimport math\n```\nThen\n",
        "```python\ndef f(x):\n```\nwith\n",
        "```\n[1, 2]\n```\n",
        '```python\ns = """\n```\n',
        "```python\n```\n",
        'x = """\n<|im_end|>\n',
        "x = '<|im_end|>",
    ],
)
def test_generation_goes_on(text: str) -> None:
    assert answer_end(text, CHAT) is None


@pytest.mark.parametrize(
    ("generated", "further"),
    [
        (FENCED, "\nThis adds"),
        (f"```bash\nls\n```\n{FENCED}", "\n"),
        (f"<think>\n{FENCED}\n</think>\n{FENCED}", "\n"),
        ("x = 1", "<|im_end|>"),
        ("x = 1\n", "### Instruction:\n"),
        (f"[PYTHON]\n{F}\n[/PYTHON]", "\n[TESTS]"),
    ],
)
def test_generation_ends(generated: str, further: str) -> None:
    assert answer_end(generated + further, CHAT) == len(generated)


def test_thinking_that_the_template_opens_does_not_end_the_answer() -> None:
    style = replace(CHAT, opens_thinking=True)
    draft = "Maybe\n```python\nwrong()\n```\nno.\n"
    assert answer_end(draft, CHAT) is not None
    assert answer_end(draft, style) is None
    assert extract_code_with_reason(draft, style) == ("", "nothing: the answer was cut inside of its thinking")
    assert extract_code(f"{draft}</think>\n\n{FENCED}", style) == F
    assert style.fingerprint == CHAT.fingerprint


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|assistant|>\n[THINK]", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_prompts_that_open_thinking_are_known(prompt: str, opens: bool) -> None:
    assert prompt_opens_thinking(prompt) is opens


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"```python\n{F}", "the first Python code block of the answer, which is not closed"),
        (f"```python\nimport os\n```\n{FENCED}", "the second Python code block of the answer, joined with the first"),
        (f"<think>\nhm\n</think>\n{FENCED}", "thinking, and marks before the answer, are left out"),
        ('{"code": "x = f(1)"}', "the code in a JSON object of the answer"),
        ("Use `sorted(x)`.", "the code between backticks: the answer has no code block"),
        ("```text\nx\n```", "the first 'text' code block of the answer"),
    ],
)
def test_the_reason_names_the_rule(text: str, reason: str) -> None:
    assert reason in extract_code_with_reason(text, CHAT).reason


def starter_codes() -> list[str]:
    return [problem.reference for problem in load_problems("starter", "train") if problem.reference]


WRAPPINGS = [
    "```python\n{}\n```",
    "```\n{}\n```",
    "Sure! Here's how:\n\n```py\n{}\n```\n\nThis isn't \"hard\".",
    "~~~python\n{}\n~~~",
    "`````python\n{}\n`````",
    "<think>\nIt's odd.\n</think>\n\n```python\n{}\n```<|im_end|>",
    "<answer>\n```python\n{}\n```\n</answer>",
    "[PYTHON]\n{}\n[/PYTHON]",
    "<|im_start|>assistant\n{}<|im_end|>",
    "First:\n```bash\npip install x\n```\nThen:\n```python\n{}\n```\nIt prints\n```\n1\n```",
    "{}",
]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_programs_are_returned_whole(wrapping: str) -> None:
    codes = starter_codes()
    assert len(codes) > 100
    for code in codes:
        text = wrapping.format(code) if "{}" not in code else wrapping.replace("{}", code)
        assert extract_code(text, CHAT) == code, text


PIECES = [
    *(
        "```",
        "```python\n",
        "```\n",
        "\n",
        "~~~\n",
        "x = f(1)\n",
        "def f(x):\n    return x\n",
        "Some prose here.\n",
        "'",
        '"',
    ),
    *(
        '"""',
        "<think>\n",
        "</think>\n",
        "<|im_end|>",
        "### Instruction:\n",
        "<answer>",
        "</answer>",
        "[PYTHON]\n",
        "# it's\n",
    ),
    *(
        "import x\n",
        "`x`",
        "> ",
        "```bash\n",
        "{",
        "}",
        "\\",
        "[/PYTHON]",
        "    ",
        "\r\n",
        "<code>",
        "</code>",
        ">>> x\n",
    ),
]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from(["plain", "chat", OPEN]))
def test_any_answer_is_read_and_streamed(text: str, style_name: str) -> None:
    style = STYLES[style_name]
    extract_code(text, style)
    generated, streamed = generate(Answer("", text, "", style_name))
    assert generated.startswith(streamed)
    extract_code(generated, style)


LONG_UNITS = [
    "(((\n",
    "'",
    '"""',
    "\\'",
    "```",
    "```\n",
    "```python\n",
    " ",
    "> ",
    "<think>",
    "</think>",
    "<code>",
    "[",
]


@pytest.mark.parametrize("unit", LONG_UNITS)
def test_long_answers_are_read_in_linear_time(unit: str) -> None:
    text = unit * (60_000 // len(unit))  # minutes, where the time grows with the square of the length
    for style in (CHAT, STYLES[OPEN]):
        assert isinstance(extract_code(text, style), str)
        end = answer_end(text, style)
        assert end is None or end <= len(text)
