"""Request bodies: any JSON is either a valid request within the limits or refused with one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.api.app import parse_body
from serve.api.errors import ApiError
from serve.api.protocol import ChatCompletionRequest, CompletionRequest, OpenAIRequest, parse_request

pytestmark = pytest.mark.slow

NAMES = [
    "model", "messages", "prompt", "n", "stop", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens",
    "logprobs", "top_logprobs", "stream", "stream_options", "response_format", "modalities", "tools", "logit_bias",
    "presence_penalty", "best_of", "echo", "suffix", "user", "nonsense",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.integers(1, 9)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": VALUES})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | VALUES, "content": VALUES | st.lists(PARTS)}
    ),
    max_size=4,
)
VALID: dict[str, Any] = {
    "model": st.just("zero-shot"), "messages": MESSAGES, "prompt": st.text(min_size=1) | st.lists(st.text(), max_size=3)
}  # fmt: skip
BODIES = st.builds(
    lambda valid, random: {**valid, **random},
    st.fixed_dictionaries({}, optional=VALID),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
)


def result_or_error(read: Callable[[Any], Any], body: Any) -> Any:
    """Return the result of reading, or the error."""
    try:
        return read(body)
    except ApiError as error:
        return error


@settings(max_examples=150)
@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest])
@given(body=BODIES)
def test_any_body_is_valid_or_refused(model: type[OpenAIRequest], body: dict[str, Any]) -> None:
    result = result_or_error(partial(parse_request, model), body)
    if isinstance(result, ApiError):
        assert result.status == 400
        assert "\n" not in result.message
        assert json.loads(result.encoded()) == result.body()
    else:
        assert 1 <= result.n <= 10
        assert 1 <= result.num_seqs <= 100
        assert result.model
        assert result.prompts or result.conversation


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0123456789eE+-.truefalsn\\u', max_size=40).map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    result = result_or_error(parse_body, body)
    assert isinstance(result, dict) or (result.status, result.code) == (400, "invalid_json")


def test_seeds_of_any_size_are_mapped_to_the_range_of_the_sampler() -> None:
    for seed in (-(2**63), -1, 0, 7, 2**63, 2**64 - 1):
        body = {"model": "m", "prompt": "x", "temperature": 1, "seed": seed}
        assert 0 <= parse_request(CompletionRequest, body).sampling_params.seed < 2**31
    body = {"model": "m", "prompt": "x", "temperature": 1, "seed": 7}
    assert parse_request(CompletionRequest, body).sampling_params.seed == 7
