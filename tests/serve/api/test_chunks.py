"""What has been streamed is never more than the answer, whatever an answer looks like while it grows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.api.protocol import CompletionRequest, ResponseBuilder, parse_chat_request, parse_completion_request
from serve.api.streaming import SSEStream
from serve.generated_text import stable_prefix
from serve.types import Candidate, PartialOutput, Request, RequestOutput
from tasks.extract import answer_end
from tasks.methods import parse_method
from tasks.problem import Problem
from tasks.prompt import INSTRUCTION, RESPONSE, STYLES

PIECES = ["x = 1", "\n", " ", "```", "```python\n", INSTRUCTION, "### Re", RESPONSE, "<|im_end|>", "#", "é", "# ok\n"]
REQUEST = Request(Problem("p", "x"), parse_method("zero-shot", ()))
MESSAGES = [{"role": "user", "content": "x"}]


def streamed(ask: CompletionRequest, events: list[PartialOutput | RequestOutput]) -> dict[int, str]:
    """What a client puts together, choice by choice."""
    chunks = SSEStream(ResponseBuilder.create(ask, "fp"))
    sent = b"".join(piece for event in events for piece in chunks.encode(event)) + b"".join(chunks.encode_end())
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
def test_a_stream_is_the_answer_and_no_more(said: str, style: str, size: int) -> None:
    events: list[PartialOutput | RequestOutput] = []
    final = said
    for length in [*range(size, len(said), size), len(said)]:
        end = answer_end(said[:length], STYLES[style])
        if end is not None:
            final = said[:end]
            break
        events.append(PartialOutput(0, said[:length], length))
    events.append(RequestOutput(0, REQUEST, (Candidate(final, "", 0.0, 3),)))
    assert streamed(parse_chat_request({"model": "zero-shot", "messages": MESSAGES}), events) == {0: final}


@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.data())
def test_every_choice_gets_its_own_text(texts: list[str], data: st.DataObject) -> None:
    n = len(texts)
    ask = parse_completion_request({"model": "m", "prompt": ["a", "b"], "n": n, "temperature": 1})
    events: list[PartialOutput | RequestOutput] = []
    for _ in range(data.draw(st.integers(0, 8))):
        row, place = data.draw(st.integers(0, 1)), data.draw(st.integers(0, n - 1))
        grown = texts[place][: data.draw(st.integers(0, len(texts[place])))]
        events.append(PartialOutput(row, grown, 1, place))
    for row in (1, 0):
        samples = tuple(Candidate(text, "", 0.0, 1) for text in texts)
        events.append(RequestOutput(row, REQUEST, samples[:1], samples=samples))
    assert streamed(ask, events) == {row * n + place: text for row in (0, 1) for place, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("text", "certain"),
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
def test_what_may_be_cut_off_waits(text: str, certain: str) -> None:
    assert stable_prefix(text).rstrip() == certain


def test_an_engine_that_merges_samples_still_gives_n_choices() -> None:
    ask = parse_chat_request({"model": "m", "messages": MESSAGES, "n": 3, "temperature": 1})
    merged = (Candidate("a", "a", 0.0, 1, count=2), Candidate("b", "b", 0.0, 1))
    whole: Any = ResponseBuilder.create(ask, "fp").full_response([RequestOutput(0, REQUEST, merged, prompt_tokens=4)])
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a", "a", "b"]
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
