"""SSEStream: the streamed text equals the answer for any sequence of partial outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.api.protocol import ChatCompletionRequest, CompletionRequest, OpenAIRequest, parse_request
from serve.api.responses import ResponseBuilder, SSEStream
from serve.types import Candidate, PartialOutput, Request, RequestOutput, stable_prefix
from tasks.extract import answer_end
from tasks.methods import parse_method
from tasks.problem import Problem
from tasks.prompt import INSTRUCTION, RESPONSE, STYLES

PIECES = ["x = 1", "\n", " ", "```", "```python\n", INSTRUCTION, "### Re", RESPONSE, "<|im_end|>", "#", "é", "# ok\n"]
REQUEST = Request(Problem("p", "x"), parse_method("zero-shot", ()))
MESSAGES = [{"role": "user", "content": "x"}]


def streamed(request: OpenAIRequest, events: list[PartialOutput | RequestOutput]) -> dict[int, str]:
    """Return the text of each choice, as a client assembles it."""
    sse = SSEStream(ResponseBuilder.create(request, "fp"))
    sent = b"".join(piece for event in events for piece in sse.encode(event)) + b"".join(sse.encode_end())
    lines = sent.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    texts: dict[int, str] = {}
    for line in lines[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            text = choice.get("text", choice.get("delta", {}).get("content", "")) or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


@given(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.sampled_from(["plain", "chat", "chat-python-open"]),
    st.integers(1, 5),
)
@example("x = 1\n```\n", "chat-python-open", 1)
@example(f"x = 1\n{INSTRUCTION}\nmore", "plain", 3)
def test_streamed_text_equals_the_answer(text: str, style: str, size: int) -> None:
    events: list[PartialOutput | RequestOutput] = []
    final = text
    for length in [*range(size, len(text), size), len(text)]:
        end = answer_end(text[:length], STYLES[style])
        if end is not None:
            final = text[:end]
            break
        events.append(PartialOutput(0, text[:length], length))
    events.append(RequestOutput(0, REQUEST, (Candidate(final, "", 0.0, 3),)))
    assert streamed(parse_request(ChatCompletionRequest, {"model": "zero-shot", "messages": MESSAGES}), events) == {
        0: final
    }


@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.data())
def test_each_choice_receives_its_own_text(texts: list[str], data: st.DataObject) -> None:
    n = len(texts)
    request = parse_request(CompletionRequest, {"model": "m", "prompt": ["a", "b"], "n": n, "temperature": 1})
    events: list[PartialOutput | RequestOutput] = []
    for _ in range(data.draw(st.integers(0, 8))):
        row, sample = data.draw(st.integers(0, 1)), data.draw(st.integers(0, n - 1))
        partial = texts[sample][: data.draw(st.integers(0, len(texts[sample])))]
        events.append(PartialOutput(row, partial, 1, sample))
    for row in (1, 0):
        samples = tuple(Candidate(text, "", 0.0, 1) for text in texts)
        events.append(RequestOutput(row, REQUEST, samples[:1], samples=samples))
    assert streamed(request, events) == {row * n + sample: text for row in (0, 1) for sample, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "x = 1"),
        ("x = 1\n", "x = 1"),
        ("x = 1\n#", "x = 1"),
        ("x = 1\n### In", "x = 1"),
        ("x = 1\n### Intro", "x = 1\n### Intro"),
        ("x = 1\n  <|im_", "x = 1"),
        ("a < b", "a < b"),
    ],
)
def test_stable_prefix_excludes_a_possible_marker(text: str, expected: str) -> None:
    assert stable_prefix(text).rstrip() == expected


def test_merged_samples_are_returned_as_n_choices() -> None:
    request = parse_request(ChatCompletionRequest, {"model": "m", "messages": MESSAGES, "n": 3, "temperature": 1})
    merged = (Candidate("a", "a", 0.0, 1, count=2), Candidate("b", "b", 0.0, 1))
    response: Any = ResponseBuilder.create(request, "fp").full_response(
        [RequestOutput(0, REQUEST, merged, prompt_tokens=4)]
    )
    assert [choice["message"]["content"] for choice in response["choices"]] == ["a", "a", "b"]
    assert response["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
