"""POST /v1/completions with the `openai` client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.serve.api.conftest import Served


def test_prompt_is_used_unchanged(client: OpenAI, served: Served) -> None:
    reply = client.completions.create(model="lora-a", prompt="  def f(x):\n", max_tokens=60)
    assert "  def f(x):\n" in served.backend.prompts
    assert reply.choices[0].text == "print('def f(x):') # lora-a*1"
    assert reply.object == "text_completion"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == 2


def test_stream_has_the_text_and_usage_of_the_response(client: OpenAI) -> None:
    request: Any = {"model": "zero-shot", "prompt": ["count 12", "count 4"], "max_tokens": 9}
    response = client.completions.create(**request)
    texts = {0: "", 1: ""}
    ends = {}
    *chunks, last = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in response.choices}
    assert ends == {0: "length", 1: "stop"}
    assert last.usage == response.usage


def test_continuous_usage_stats_are_streamed(client: OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = list(
        client.completions.create(model="zero-shot", prompt="count 9", stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[-1], last.usage.completion_tokens) == (9, 9)
    assert chunks[-1].usage == last.usage


def test_default_limit_is_16_tokens(client: OpenAI) -> None:
    reply = client.completions.create(model="zero-shot", prompt="count 40")
    assert reply.usage.completion_tokens == 16


def test_choices_are_in_the_order_of_the_prompts(client: OpenAI) -> None:
    reply = client.completions.create(
        model="zero-shot", prompt=["one", "two"], n=2, temperature=1, seed=5, max_tokens=60
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in reply.choices] == [
        f"print('{word}') # base*1 # sample {sample} of seed 5" for word in ("one", "two") for sample in (0, 1)
    ]


def test_logprobs_are_returned(client: OpenAI) -> None:
    reply = client.completions.create(model="zero-shot", prompt="count 3", logprobs=1)
    logprobs = reply.choices[0].logprobs
    assert logprobs.tokens == ["1", " 2", " 3"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs == [{"other0": -1.0}] * 3
    assert logprobs.text_offset == [0, 1, 3]


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"model": "icl-2"}, "model", "use /v1/chat/completions"),
        ({"prompt": [1, 2, 3]}, "prompt", "token numbers"),
        ({"prompt": [[1, 2], [3]]}, "prompt", "token numbers"),
        ({"prompt": ["x"] * 11}, "prompt", "at most 10"),
        ({"prompt": ""}, "prompt", "empty entry"),
        ({"prompt": " \n"}, "prompt", "missing or empty"),
        ({"prompt": []}, "prompt", "missing or empty"),
        ({"prompt": {"a": 1}}, "prompt", "give a text"),
        ({"echo": True}, "echo", "not repeated"),
        ({"suffix": "x"}, "suffix", "suffix"),
        ({"best_of": 5}, "best_of", "best of"),
        ({"logprobs": 50}, "logprobs", "from 0 to 20"),
    ],
)
def test_unsupported_parameters_are_refused(client: OpenAI, more: Any, param: str, words: str) -> None:
    request: Any = {"model": "zero-shot", "prompt": "x", **more}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**request)
    assert caught.value.param == param
    assert words in caught.value.body["message"]


def test_default_values_of_echo_and_best_of_are_accepted(client: OpenAI) -> None:
    assert client.completions.create(model="zero-shot", prompt="x", echo=False, best_of=1).choices[0].text
