"""Errors of the API: OpenAI's error object with a one-line message that names the parameter."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from errors import BaseModelError
from serve.api.app import Api
from serve.api.auth import ApiKeys
from serve.engine.llm_engine import EngineLoader
from tests import messages
from tests.serve.api.conftest import Served, running, serving, wait_for
from tests.serve.api.scripted_backend import ScriptedBackend

CHAT = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "zero-shot", "messages": [{"role": "user", "content": "x"}]}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check the form of an error response and return its error object."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    message = body["error"]["message"]
    assert message.endswith(".")
    assert "\n" not in message
    assert answer.headers["x-request-id"].startswith("req_")
    return dict(body["error"])


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": None}, "model", "'model' is missing"),
        ({"model": 3}, "model", "'model' is 3: give a text"),
        ({"model": "icl-99"}, "model", "choose 1 to 32"),
        ({"model": "lora-a+lora-b"}, "model", "two adapters"),
        ({"messages": None}, "messages", "missing"),
        ({"messages": "x"}, "messages", "list"),
        ({"messages": [3]}, "messages[0]", "object"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "user or assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "Tools"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "messages", "take turns"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages[0].content[0]",
            "images",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "half a character"),
        ({"n": 0}, "n", "from 1 to 10"),
        ({"n": 11}, "n", "from 1 to 10"),
        ({"n": "2"}, "n", "'n' is a text"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "'temperature' is true"),
        ({"top_p": -1}, "top_p", "from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens", "'max_tokens' is 0"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "1.5"),
        ({"max_tokens": 10**400}, "max_tokens", "a huge number"),
        ({"seed": 1e999}, None, "JSON"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": 4}, "stop", "give a text"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logprobs": 1}, "logprobs", "true or false"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs 'stream'"),
        ({"stream": True, "stream_options": 3}, "stream_options", "object"),
        ({"tools": [{"type": "function"}]}, "tools", "Tools"),
        ({"functions": [{}]}, "functions", "Functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "JSON"),
        ({"modalities": ["text", "audio"]}, "modalities", "text alone"),
        ({"presence_penalty": 0.5}, "presence_penalty", "Penalties"),
        ({"logit_bias": {"3": 5}}, "logit_bias", "bias"),
        ({"beam_width": 4}, "beam_width", "Unknown parameter 'beam_width'"),
    ],
)
def test_error_names_the_invalid_parameter(served: Served, change: Any, param: str | None, words: str) -> None:
    with served.http() as client:
        body = json.dumps({**REQUEST, **change})
        answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = error_of(answer, 400)
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "line 1"),
        (b"[]", "object"),
        (b"\xff{}", "UTF-8"),
        (b"[" * 100_000, "deeply"),
        (b'{"n": NaN}', "no number"),
        (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
        (b"", "line 1"),
    ],
)
def test_invalid_json_body_is_refused(served: Served, body: bytes, words: str) -> None:
    with served.http() as client:
        error = error_of(client.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)
    assert error["code"] == "invalid_json"
    assert words in error["message"]


def test_unknown_model_is_404_with_the_most_similar_name(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="lora-c", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "did you mean 'lora-" in caught.value.message
    for name in ("lora-c", "lora-a*9"):
        with pytest.raises(openai.APIStatusError) as error:
            client.models.retrieve(name)
        assert error.value.status_code in (400, 404)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_too_long_is_refused_before_a_stream_begins(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="zero-shot", messages=[{"role": "user", "content": "x " * 3000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert "shorten the intent" in caught.value.message


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/embeddings", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_are_refused(served: Served, method: str, path: str, status: int, code: str) -> None:
    with served.http() as client:
        answer = client.request(method, path)
    assert error_of(answer, status)["code"] == code
    assert status != 405 or answer.headers["allow"]


def test_content_type_must_be_json(served: Served) -> None:
    with served.http() as client:
        error_of(client.post(CHAT, content=json.dumps(REQUEST), headers={"content-type": "text/plain"}), 415)


def test_unexpected_exception_reveals_no_details(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(tmp_path, ScriptedBackend(fails=True)) as served, served.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(
                    model="zero-shot", messages=[{"role": "user", "content": "my secret"}], stream=stream
                )
            assert caught.value.code == "internal_error"
            assert "secret" not in caught.value.message
        served.backend.fails = False
        reply = client.chat.completions.create(model="zero-shot", messages=[{"role": "user", "content": "x"}])
        assert reply.choices[0].message.content == "print('x') # base*1"
    assert "A request failed with RuntimeError" in caplog.text
    assert "my secret" not in caplog.text


def test_exception_during_a_stream_is_sent_as_its_last_event(tmp_path: Path) -> None:
    with serving(tmp_path, ScriptedBackend(delay=0.01)) as served, served.client() as client:
        stream = client.chat.completions.create(
            model="zero-shot", messages=[{"role": "user", "content": "count 200"}], stream=True
        )
        chunks = iter(stream)
        assert [next(chunks) for _ in range(4)]
        served.backend.fails = True
        with pytest.raises(openai.APIError, match=messages.INTERNAL_ERROR):
            list(chunks)


def test_requests_get_503_while_the_model_loads_and_after_it_failed() -> None:
    import threading

    may_end = threading.Event()

    def build(report: Any) -> Any:
        report("Converting weights 40 %")
        may_end.wait(10)
        raise BaseModelError("There is no base 'x': check --base.")

    loader = EngineLoader(build).start()
    with running(Api(loader, ApiKeys())) as (url, _):
        wait_for(lambda: "40" in httpx.get(f"{url}/health").json()["message"])
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        for answer in (
            httpx.post(url + CHAT, json=REQUEST),
            httpx.get(f"{url}/v1/models"),
            httpx.get(f"{url}/metrics"),
        ):
            assert error_of(answer, 503)["code"] == "model_loading"
            assert int(answer.headers["retry-after"]) > 0
        may_end.set()
        wait_for(lambda: httpx.get(f"{url}/health").json()["status"] == "failed")
        error = error_of(httpx.post(url + CHAT, json=REQUEST), 503)
        assert (error["code"], error["message"]) == ("model_failed", "There is no base 'x': check --base.")
