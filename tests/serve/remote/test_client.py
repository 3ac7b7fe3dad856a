"""Servers that are down, refuse, redirect or are busy each give one message; the key is sent to the server only."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from errors import BusyError, EngineError, PromptOrTuneError, PromptTooLongError
from serve.backends.remote.client import MAX_BODY_BYTES, ServerClient
from serve.backends.remote.stream import Timeouts
from serve.types import Row
from tests import messages
from tests.serve.remote.standin import VLLM_MODELS, Reply, StandIn, chunk, saying
from tests.serve.remote.test_stream import GREEDY, PLAIN, answer, finish

KEY = "sk-very-secret-0123456789"


def one_message(text: str) -> str:
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    assert KEY not in text
    return text


def test_unreachable_server_gives_one_message(connect: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(PromptOrTuneError, match=messages.NO_SERVER_ANSWERS.format(port=port)):
        connect(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000", "is not the address of a server"),
        ("ftp://x/v1", "is not the address of a server"),
        ("http://", "is not the address of a server"),
        ("http://host:99999/v1", "is not an address"),
        (f"http://me:{KEY}@host/v1", "holds a name or password"),
    ],
)
def test_invalid_address_gives_an_error(url: str, expected: str) -> None:
    with pytest.raises(PromptOrTuneError, match=expected) as caught:
        ServerClient(url)
    one_message(str(caught.value))


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401), "refuses the key"),
        (Reply({"data": []}), "lists no model"),
        (Reply({"models": 1}), "is not a list of models"),
        (Reply(b"<html>hello</html>"), "is not a list of models"),
        (Reply(b"", 302, {"Location": "http://elsewhere.example/v1"}), "redirects"),
        (Reply({"error": {"message": f"boom {KEY}\nsecond"}}, 500), r"answered with status 500 \(boom … second\)"),
        (Reply(b"x" * (MAX_BODY_BYTES + 1)), "with more than 4.19 MB"),
        (Reply(b"[" * 100_000), "is not a list of models"),
    ],
)
def test_invalid_model_list_gives_one_message(serve: Any, connect: Any, page: Reply, expected: str) -> None:
    standin = serve(StandIn(saying("a"), pages={"/v1/models": page}))
    with pytest.raises(PromptOrTuneError, match=expected) as caught:
        connect(standin.url, api_key=KEY)
    one_message(str(caught.value))


def test_key_is_sent_to_the_server_only_and_never_displayed(serve: Any, connect: Any) -> None:
    other = serve(StandIn(saying("stolen"), VLLM_MODELS))
    standin = StandIn(saying("a"), VLLM_MODELS)

    def elsewhere(body: dict[str, Any]) -> Reply | None:
        moved = Reply(b"", 307, {"Location": f"{other.url}/completions"})
        return moved if body.get("stream") else standin._one_token(body)

    standin.pages["/v1/completions"] = elsewhere  # type: ignore[assignment]
    backend = connect(serve(standin).url, api_key=KEY)
    end = answer(backend)
    assert "redirects" in one_message(end.error or "")
    assert not other.asked
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, _, headers in standin.asked)
    assert KEY not in repr(backend._client)


def test_invalid_key_is_refused_without_showing_it() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.KEY_INVALID_IN_HEADER) as caught:
        ServerClient("http://127.0.0.1:1/v1", f"{KEY}\r\nX-Evil: 1")
    one_message(str(caught.value))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply({"error": {"message": "no"}}, 401), "wants a key and none was given"),
        (Reply({"message": "The model `x` does not exist."}, 404), r"does not have the model 'owner/base' \(The model"),
        (Reply({"detail": [{"msg": "field required"}]}, 422), r"status 422 \(field required\)"),
        (Reply({"error": "context too long"}, 400), r"status 400 \(context too long\)"),
        (Reply(b"<html>", 502), "answered with status 502"),
    ],
)
def test_refused_row_has_an_error_and_others_continue(serve: Any, connect: Any, reply: Reply, expected: str) -> None:
    import re

    standin = StandIn(saying("x"), VLLM_MODELS)

    def some(body: dict[str, Any]) -> Reply | None:
        if not body.get("stream"):
            return standin._one_token(body)
        return reply if body["prompt"] == "bad" else None

    standin.pages["/v1/completions"] = some  # type: ignore[assignment]
    batch = connect(serve(standin).url).open_batch("step")
    for key, prompt in enumerate(("good", "bad", "good")):
        batch.add(key, Row(prompt, PLAIN), GREEDY)
    ends, _ = finish(batch)
    assert re.search(expected, one_message(ends[1].error or ""))
    assert ends[1].candidates == ()
    assert [ends[key].candidates[0].code for key in (0, 2)] == ["x", "x"]


def test_busy_server_is_retried_and_then_reported(serve: Any, connect: Any) -> None:
    standin = StandIn(saying("x"), VLLM_MODELS)
    times: list[float] = []

    def busy(body: dict[str, Any]) -> Reply | None:
        if not body.get("stream"):
            return standin._one_token(body)
        times.append(time.monotonic())
        wait = "90" if body["prompt"] == "never" else "1"
        return None if len(times) == 2 else Reply({"error": {"message": "full"}}, 429, {"Retry-After": wait})

    standin.pages["/v1/completions"] = busy  # type: ignore[assignment]
    backend = connect(serve(standin).url)
    assert answer(backend).candidates[0].code == "x"
    assert times[1] - times[0] >= 1
    end = answer(backend, prompt="never")
    assert one_message(end.error or "") == f"The server at {standin.host} is busy, about 90 s (full)."
    error = ServerClient(standin.url).status_error(429, {"retry-after": "7"}, None)
    assert isinstance(error, BusyError)
    assert error.seconds == 7


def test_loading_server_is_awaited(serve: Any, connect: Any) -> None:
    standin = StandIn(saying("x"), VLLM_MODELS)
    output: list[str] = []

    def loading(body: dict[str, Any]) -> Reply:
        pages = sum(path == "/v1/models" for path, _, _ in standin.asked)
        wait = Reply({"error": {"message": "the model is loading"}}, 503, {"Retry-After": "1"})
        return wait if pages < 2 else Reply({"data": VLLM_MODELS})

    standin.pages["/v1/models"] = loading
    serve(standin)
    assert connect(standin.url, report=output.append).base.id == "owner/base"
    assert f"The server at {standin.host} is busy, about 1 s (the model is loading). Waiting for it ..." in output
    standin.asked.clear()
    with pytest.raises(BusyError, match=messages.MODEL_IS_LOADING):
        connect(standin.url, timeouts=Timeouts(startup=0.5))


def test_unencrypted_key_gives_a_warning(serve: Any) -> None:
    assert ServerClient("http://models.example/v1", KEY).sends_key_unencrypted
    assert not ServerClient("https://models.example/v1", KEY).sends_key_unencrypted
    assert not ServerClient("http://127.0.0.1:1/v1", KEY).sends_key_unencrypted
    assert not ServerClient("http://models.example/v1").sends_key_unencrypted


@pytest.mark.parametrize(
    ("status", "value", "kind"),
    [
        (400, {"error": {"message": "This model's maximum context length is 8 tokens"}}, PromptTooLongError),
        (413, {"message": "prompt is too long"}, PromptTooLongError),
        (422, {"error": "`inputs` must have less than 8 tokens"}, PromptTooLongError),
        (400, {"error": {"message": "no", "code": "context_length_exceeded"}}, PromptTooLongError),
        (200, {"error": {"message": "maximum model length of 8"}}, PromptTooLongError),
        (500, {"error": {"message": "maximum context length"}}, EngineError),
        (200, {"error": {"message": "out of memory"}}, EngineError),
        (408, None, EngineError),
        (500, None, EngineError),
        (502, None, EngineError),
        (504, None, EngineError),
        (429, None, BusyError),
        (503, None, BusyError),
        (400, {"error": {"message": "seed is not allowed"}}, PromptOrTuneError),
        (401, None, PromptOrTuneError),
        (404, None, PromptOrTuneError),
        (307, None, PromptOrTuneError),
    ],
)
def test_status_has_the_kind_of_error_that_says_whether_to_try_again(
    status: int, value: Any, kind: type[PromptOrTuneError]
) -> None:
    error = ServerClient("http://127.0.0.1:1/v1").status_error(status, {}, value, "m")
    assert type(error) is kind
    one_message(str(error))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(Reply(b"", 502), EngineError), (Reply({"error": {"message": "context too long"}}, 400), PromptTooLongError)],
)
def test_failed_row_has_its_exception(serve: Any, connect: Any, reply: Reply, kind: type[PromptOrTuneError]) -> None:
    standin = StandIn(saying("x"), VLLM_MODELS)
    standin.pages["/v1/completions"] = lambda body: reply if body.get("stream") else standin._one_token(body)
    end = answer(connect(serve(standin).url))
    assert type(end.exception) is kind
    assert str(end.exception) == end.error


def test_partial_text_is_mentioned_in_the_message_and_not_in_the_exception(serve: Any, connect: Any) -> None:
    end = answer(connect(serve(StandIn(lambda _: iter([chunk("half")]), VLLM_MODELS)).url))
    assert (end.error or "").endswith("; the text received before is kept as a partial answer.")
    assert isinstance(end.exception, EngineError)
    assert str(end.exception).endswith("ended the stream in the middle of the answer.")


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled"])
def test_answer_that_the_server_gave_up_is_an_error(serve: Any, connect: Any, reason: str) -> None:
    end = answer(connect(serve(StandIn(lambda _: iter([chunk("x = 1", 0, reason)]), VLLM_MODELS)).url))
    assert isinstance(end.exception, EngineError)
    assert f"gave up an answer (finish_reason '{reason}')" in one_message(end.error or "")
