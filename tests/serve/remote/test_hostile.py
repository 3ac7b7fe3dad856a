"""Servers that are down, slow, broken or hostile: one sentence each, and no row harms another."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from errors import BusyError, PeftArenaError
from serve.backends.openai.events import MAX_LINE
from serve.backends.openai.talk import Patience
from serve.backends.openai.wire import MAX_BODY, Wire
from serve.rows import Decoding, Row
from tasks.prompt import STYLES
from tests.serve.remote.standin import DONE, VLLM_MODELS, Reply, StandIn, chunk, event, saying
from tests.serve.remote.test_rows import GREEDY, PLAIN, answer, finish

KEY = "sk-very-secret-0123456789"


def one_sentence(text: str) -> str:
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    assert KEY not in text
    return text


def by_prompt(**streams: Any) -> Any:
    """A stream chosen by the first word of the prompt."""
    return lambda body: streams[body["prompt"].split()[0]](body)


def test_nobody_there_is_one_sentence(connect: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(PeftArenaError, match=rf"No server answers at http://127\.0\.0\.1:{port}/v1: start it"):
        connect(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000", "is no server's address"),
        ("ftp://x/v1", "is no server's address"),
        ("http://", "is no server's address"),
        ("http://host:99999/v1", "is no address"),
        (f"http://me:{KEY}@host/v1", "holds a name or password"),
    ],
)
def test_an_address_that_is_none_is_named(url: str, expected: str) -> None:
    with pytest.raises(PeftArenaError, match=expected) as caught:
        Wire(url)
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401), "refuses the key"),
        (Reply({"data": []}), "lists no model"),
        (Reply({"models": 1}), "is no list of models"),
        (Reply(b"<html>hello</html>"), "is no list of models"),
        (Reply(b"", 302, {"Location": "http://elsewhere.example/v1"}), "sends elsewhere"),
        (Reply({"error": {"message": f"boom {KEY}\nsecond"}}, 500), r"answered with status 500 \(boom … second\)"),
        (Reply(b"x" * (MAX_BODY + 1)), "with more than 4 MB"),
        (Reply(b"[" * 100_000), "is no list of models"),
    ],
)
def test_a_list_of_models_that_is_none_is_one_sentence(serve: Any, connect: Any, page: Reply, expected: str) -> None:
    standin = serve(StandIn(saying("a"), pages={"/v1/models": page}))
    with pytest.raises(PeftArenaError, match=expected) as caught:
        connect(standin.url, api_key=KEY)
    one_sentence(str(caught.value))


def test_the_key_goes_to_the_server_alone_and_is_shown_nowhere(serve: Any, connect: Any) -> None:
    other = serve(StandIn(saying("stolen"), VLLM_MODELS))
    standin = StandIn(saying("a"), VLLM_MODELS)

    def elsewhere(body: dict[str, Any]) -> Reply | None:
        moved = Reply(b"", 307, {"Location": f"{other.url}/completions"})
        return moved if body.get("stream") else standin._one_token(body)

    standin.pages["/v1/completions"] = elsewhere  # type: ignore[assignment]
    backend = connect(serve(standin).url, api_key=KEY)
    end = answer(backend)
    assert "sends elsewhere" in one_sentence(end.error or "")
    assert not other.asked
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, _, headers in standin.asked)
    assert KEY not in repr(backend._wire)


def test_a_key_that_no_header_takes_is_refused_without_showing_it() -> None:
    with pytest.raises(PeftArenaError, match="characters that no header takes") as caught:
        Wire("http://127.0.0.1:1/v1", f"{KEY}\r\nX-Evil: 1")
    one_sentence(str(caught.value))


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
def test_a_refused_row_says_why_and_the_others_go_on(serve: Any, connect: Any, reply: Reply, expected: str) -> None:
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
    assert re.search(expected, one_sentence(ends[1].error or ""))
    assert ends[1].candidates == ()
    assert [ends[key].candidates[0].code for key in (0, 2)] == ["x", "x"]


def test_a_busy_server_is_waited_for_and_then_named(serve: Any, connect: Any) -> None:
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
    assert one_sentence(end.error or "") == f"The server at {standin.host} is busy, about 90 s (full)."
    fault = Wire(standin.url).refusal(429, {"retry-after": "7"}, None)
    assert isinstance(fault, BusyError)
    assert fault.seconds == 7


def test_a_server_that_still_loads_is_waited_for(serve: Any, connect: Any) -> None:
    standin = StandIn(saying("x"), VLLM_MODELS)
    said: list[str] = []

    def loading(body: dict[str, Any]) -> Reply:
        pages = sum(path == "/v1/models" for path, _, _ in standin.asked)
        wait = Reply({"error": {"message": "the model is loading"}}, 503, {"Retry-After": "1"})
        return wait if pages < 2 else Reply({"data": VLLM_MODELS})

    standin.pages["/v1/models"] = loading
    serve(standin)
    assert connect(standin.url, report=said.append).base.id == "owner/base"
    assert f"The server at {standin.host} is busy, about 1 s (the model is loading). Waiting for it ..." in said
    standin.asked.clear()
    with pytest.raises(BusyError, match="the model is loading"):
        connect(standin.url, patience=Patience(start=0.5))


def test_a_key_that_others_could_read_is_told(serve: Any) -> None:
    assert Wire("http://models.example/v1", KEY).is_open
    assert not Wire("https://models.example/v1", KEY).is_open
    assert not Wire("http://127.0.0.1:1/v1", KEY).is_open
    assert not Wire("http://models.example/v1").is_open


def test_a_connection_that_was_gone_is_tried_once_more(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x"), VLLM_MODELS))
    backend = connect(standin.url)
    standin.drops = 1
    assert answer(backend).candidates[0].code == "x"
    standin.drops = 2
    assert "broke off (RemoteProtocolError)" in one_sentence(answer(backend).error or "")
    assert standin.drops == 0


def test_what_comes_behind_an_answer_is_not_waited_for(serve: Any, connect: Any) -> None:
    def lingering(body: dict[str, Any]) -> Any:
        yield chunk("x", 0, "stop")
        for _ in range(200):
            time.sleep(0.05)
            yield b": the usage comes later\n\n"

    began = time.monotonic()
    end = answer(connect(serve(StandIn(lingering, VLLM_MODELS)).url))
    assert (end.candidates[0].code, end.error) == ("x", None)
    assert time.monotonic() - began < 3


def cut(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield chunk(" an")


def garbage(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield b"HTTP/1.1 nonsense\n\n"


def broken_json(body: dict[str, Any]) -> Any:
    yield chunk("half")
    yield b'data: {"choices": [\n\n'


def says_error(body: dict[str, Any]) -> Any:
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
        (cut, "ended in the middle"),
        (garbage, "does not speak OpenAI's stream (it sent HTTP/1.1 nonsense)"),
        (broken_json, "does not speak OpenAI's stream"),
        (says_error, "(out of memory)"),
        (silent, "was silent for too long"),
    ],
)
def test_a_stream_that_breaks_keeps_what_was_said_and_says_so(
    serve: Any, connect: Any, stream: Any, expected: str
) -> None:
    standin = serve(StandIn(by_prompt(bad=stream, good=saying("x")), VLLM_MODELS))
    batch = connect(standin.url, patience=Patience(first=1, between=0.3)).open_batch("step")
    batch.add(0, Row("bad", PLAIN), GREEDY)
    batch.add(1, Row("good", PLAIN), GREEDY)
    ends, _ = finish(batch)
    sentence = one_sentence(ends[0].error or "")
    assert expected in sentence
    assert sentence.endswith("what it had said before is kept, half an answer.")
    assert ends[0].candidates[0].text.startswith("half")
    assert ends[1].error is None
    assert ends[1].candidates[0].code == "x"


def test_a_server_that_never_begins_is_given_up_on(serve: Any, connect: Any) -> None:
    def never(body: dict[str, Any]) -> Any:
        for _ in range(100):
            time.sleep(0.05)
            yield b": wait\n\n"

    standin = serve(StandIn(never, VLLM_MODELS))
    began = time.monotonic()
    end = answer(connect(standin.url, patience=Patience(first=0.3)))
    assert "was silent for too long" in one_sentence(end.error or "")
    assert end.candidates == ()
    assert time.monotonic() - began < 3


def test_a_server_that_goes_on_for_ever_is_cut_at_the_limit_of_tokens(serve: Any, connect: Any) -> None:
    def endless(body: dict[str, Any]) -> Any:
        while True:
            yield chunk("x", logprob=-0.1)

    end = answer(connect(serve(StandIn(endless, VLLM_MODELS)).url), Decoding(max_new_tokens=20))
    assert (end.candidates[0].text, end.candidates[0].tokens, end.candidates[0].finish) == ("x" * 20, 20, "length")
    assert end.error is None


@pytest.mark.parametrize(
    "piece",
    [b"data: " + b"x" * (MAX_LINE // 4), b": " + b"c" * 60_000 + b"\n\n", chunk("y" * 100_000), event({"choices": []})],
    ids=["one endless line", "comments", "huge tokens", "nothing but events"],
)
def test_floods_are_cut_off(serve: Any, connect: Any, piece: bytes) -> None:
    def flood(body: dict[str, Any]) -> Any:
        while True:
            yield piece

    end = answer(
        connect(serve(StandIn(flood, VLLM_MODELS)).url, patience=Patience(first=5)), Decoding(max_new_tokens=4)
    )
    assert end.error is not None or end.candidates[0].finish == "length"
    assert len(end.candidates[0].text if end.candidates else "") < 1_000_000


@pytest.mark.parametrize(
    "choices",
    [None, 7, [7], [{"index": -1, "text": "x"}], [{"index": 99, "text": "x"}], [{"index": "0", "text": "x"}], [{}]],
)
def test_choices_that_are_none_are_passed_over(serve: Any, connect: Any, choices: Any) -> None:
    def odd(body: dict[str, Any]) -> Any:
        yield event({"choices": choices, "usage": 7})
        yield event({"choices": [{"index": 0, "text": 5, "logprobs": {"tokens": 3, "token_logprobs": [None]}}]})
        yield chunk("x")
        yield chunk("", 0, "stop")
        yield DONE

    end = answer(connect(serve(StandIn(odd, VLLM_MODELS)).url))
    assert end.error is None
    assert end.candidates[0].code == "x"


def test_a_server_that_does_not_stream_is_named(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("a"), VLLM_MODELS, content_type="application/json"))
    assert "does not stream" in one_sentence(answer(connect(standin.url)).error or "")


def test_characters_that_come_in_pieces_are_put_together(serve: Any, connect: Any) -> None:
    whole = event({"choices": [{"index": 0, "text": "größe = '→'", "finish_reason": "stop"}]}).decode()
    raw = whole.encode().replace(b"\\u00f6", "ö".encode()).replace(b"\\u00df", "ß".encode())

    def bytewise(body: dict[str, Any]) -> Any:
        yield from (raw.replace(b"\n", b"\r\n")[place : place + 1] for place in range(len(raw) + 2))

    end = answer(connect(serve(StandIn(bytewise, VLLM_MODELS)).url), style=STYLES["plain"])
    assert end.candidates[0].code == "größe = '→'"
