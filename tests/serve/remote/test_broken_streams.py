"""Streams that break, stall, never end or are invalid: each gives one message and affects no other row."""

from __future__ import annotations

import time
from typing import Any

import pytest

from serve.backends.remote.client import MAX_LINE_BYTES
from serve.backends.remote.stream import Timeouts
from serve.types import Row, SamplingParams
from tasks.prompt import STYLES
from tests.serve.remote.standin import DONE, VLLM_MODELS, StandIn, chunk, event, saying
from tests.serve.remote.test_client import one_message
from tests.serve.remote.test_stream import GREEDY, PLAIN, answer, finish


def by_prompt(**streams: Any) -> Any:
    """Return a stream that is chosen by the first word of the prompt."""
    return lambda body: streams[body["prompt"].split()[0]](body)


def test_lost_connection_is_retried_once(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x"), VLLM_MODELS))
    backend = connect(standin.url)
    standin.drops = 1
    assert answer(backend).candidates[0].code == "x"
    standin.drops = 2
    assert "broke off (RemoteProtocolError)" in one_message(answer(backend).error or "")
    assert standin.drops == 0


def test_data_after_a_finished_answer_is_not_awaited(serve: Any, connect: Any) -> None:
    def data_after_the_end(body: dict[str, Any]) -> Any:
        yield chunk("x", 0, "stop")
        for _ in range(200):
            time.sleep(0.05)
            yield b": the usage comes later\n\n"

    start = time.monotonic()
    end = answer(connect(serve(StandIn(data_after_the_end, VLLM_MODELS)).url))
    assert (end.candidates[0].code, end.error) == ("x", None)
    assert time.monotonic() - start < 3


def cut(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield chunk(" an")


def garbage(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield b"HTTP/1.1 nonsense\n\n"


def broken_json(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield b'data: {"choices": [\n\n'


def error_event(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield event({"error": {"message": "out of memory", "code": 500}})


def silent(body: dict[str, Any]) -> Any:
    yield chunk("half")
    for _ in range(100):
        time.sleep(0.05)
        yield b": still here\n\n"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (cut, "in the middle of the answer"),
        (garbage, "does not speak OpenAI's stream (it sent HTTP/1.1 nonsense)"),
        (broken_json, "does not speak OpenAI's stream"),
        (error_event, "(out of memory)"),
        (silent, "was silent for too long"),
    ],
)
def test_broken_stream_keeps_partial_text_and_reports_it(serve: Any, connect: Any, stream: Any, expected: str) -> None:
    standin = serve(StandIn(by_prompt(bad=stream, good=saying("x")), VLLM_MODELS))
    batch = connect(standin.url, timeouts=Timeouts(first_token=1, between_tokens=0.3)).open_batch("step")
    batch.add(0, Row("bad", PLAIN), GREEDY)
    batch.add(1, Row("good", PLAIN), GREEDY)
    ends, _ = finish(batch)
    message = one_message(ends[0].error or "")
    assert expected in message
    assert message.endswith("the text received before is kept as a partial answer.")
    assert ends[0].candidates[0].text.startswith("half")
    assert ends[1].error is None
    assert ends[1].candidates[0].code == "x"


def test_server_without_first_token_times_out(serve: Any, connect: Any) -> None:
    def never(body: dict[str, Any]) -> Any:
        for _ in range(100):
            time.sleep(0.05)
            yield b": wait\n\n"

    standin = serve(StandIn(never, VLLM_MODELS))
    start = time.monotonic()
    end = answer(connect(standin.url, timeouts=Timeouts(first_token=0.3)))
    assert "was silent for too long" in one_message(end.error or "")
    assert end.candidates == ()
    assert time.monotonic() - start < 3


def test_endless_stream_is_stopped_at_max_tokens(serve: Any, connect: Any) -> None:
    def endless(body: dict[str, Any]) -> Any:
        while True:
            yield chunk("x", logprob=-0.1)

    end = answer(connect(serve(StandIn(endless, VLLM_MODELS)).url), SamplingParams(max_new_tokens=20))
    assert (end.candidates[0].text, end.candidates[0].tokens, end.candidates[0].finish) == ("x" * 20, 20, "length")
    assert end.error is None


@pytest.mark.parametrize(
    "piece",
    [
        b"data: " + b"x" * (MAX_LINE_BYTES // 4),
        b": " + b"c" * 60_000 + b"\n\n",
        chunk("y" * 100_000),
        event({"choices": []}),
    ],
    ids=["one endless line", "comments", "huge tokens", "nothing but events"],
)
def test_floods_of_data_are_stopped(serve: Any, connect: Any, piece: bytes) -> None:
    def flood(body: dict[str, Any]) -> Any:
        while True:
            yield piece

    end = answer(
        connect(serve(StandIn(flood, VLLM_MODELS)).url, timeouts=Timeouts(first_token=5)),
        SamplingParams(max_new_tokens=4),
    )
    assert end.error is not None or end.candidates[0].finish == "length"
    assert len(end.candidates[0].text if end.candidates else "") < 1_000_000


@pytest.mark.parametrize(
    "choices",
    [None, 7, [7], [{"index": -1, "text": "x"}], [{"index": 99, "text": "x"}], [{"index": "0", "text": "x"}], [{}]],
)
def test_invalid_choices_are_skipped(serve: Any, connect: Any, choices: Any) -> None:
    def invalid_choices(body: dict[str, Any]) -> Any:
        yield event({"choices": choices, "usage": 7})
        yield event({"choices": [{"index": 0, "text": 5, "logprobs": {"tokens": 3, "token_logprobs": [None]}}]})
        yield chunk("x")
        yield chunk("", 0, "stop")
        yield DONE

    end = answer(connect(serve(StandIn(invalid_choices, VLLM_MODELS)).url))
    assert end.error is None
    assert end.candidates[0].code == "x"


def test_server_that_does_not_stream_gives_an_error(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("a"), VLLM_MODELS, content_type="application/json"))
    assert "does not stream" in one_message(answer(connect(standin.url)).error or "")


def test_split_characters_are_joined(serve: Any, connect: Any) -> None:
    whole = event({"choices": [{"index": 0, "text": "größe = '→'", "finish_reason": "stop"}]}).decode()
    raw = whole.encode().replace(b"\\u00f6", "ö".encode()).replace(b"\\u00df", "ß".encode())

    def bytewise(body: dict[str, Any]) -> Any:
        yield from (raw.replace(b"\n", b"\r\n")[index : index + 1] for index in range(len(raw) + 2))

    end = answer(connect(serve(StandIn(bytewise, VLLM_MODELS)).url), style=STYLES["plain"])
    assert end.candidates[0].code == "größe = '→'"
