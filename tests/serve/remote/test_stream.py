"""Rows as streams of a remote server: text, end, samples, log-probabilities, concurrency and cancel."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from errors import PromptOrTuneError
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests import messages
from tests.serve.remote.standin import VLLM_MODELS, Reply, StandIn, chunk, saying
from tests.serve.remote.standin import event as sse

PLAIN = STYLES["plain"]
OPEN = STYLES["chat-python-open"]
GREEDY = SamplingParams(max_new_tokens=32)


def finish(batch: Any, seconds: float = 10.0) -> tuple[dict[int, RowOutput], list[PartialOutput]]:
    """Step until every row has ended."""
    ends: dict[int, RowOutput] = {}
    partial_outputs: list[PartialOutput] = []
    deadline = time.monotonic() + seconds
    while len(batch):
        assert time.monotonic() < deadline, "rows do not end"
        for event in batch.step():
            if isinstance(event, RowOutput):
                ends[event.index] = event
            else:
                partial_outputs.append(event)
    return ends, partial_outputs


def answer(backend: Any, decoding: SamplingParams = GREEDY, style: Any = PLAIN, prompt: str = "p") -> RowOutput:
    batch = backend.open_batch("step")
    batch.add(0, Row(prompt, style), decoding)
    return finish(batch)[0][0]


def test_row_is_streamed_to_its_end(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x", " = ", "1", delay=0.15, logprob=-0.25), VLLM_MODELS))
    batch = connect(standin.url).open_batch("step")
    batch.add(7, Row("### Instruction:\nadd", PLAIN), GREEDY)
    assert len(batch) == 1
    ends, partial_outputs = finish(batch)
    (output,) = ends[7].candidates
    assert (output.text, output.code, output.tokens, output.finish, output.logprob) == (
        "x = 1",
        "x = 1",
        3,
        "stop",
        -0.75,
    )
    assert [part.text for part in partial_outputs][-1] in ("x", "x = ", "x = 1")
    assert {part.index for part in partial_outputs} == {7}
    assert ends[7].error is None
    assert ends[7].seconds > 0


def test_greedy_request_switches_off_server_samplers(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("1"), VLLM_MODELS))
    answer(connect(standin.url), SamplingParams(max_new_tokens=9, stop=("\n\n",)), prompt="exactly\nthis ")
    (body,) = standin.bodies()
    expected = {"model": "owner/base", "prompt": "exactly\nthis ", "max_tokens": 9, "stream": True, "temperature": 0}
    assert expected.items() <= body.items()
    assert {"top_k": -1, "repetition_penalty": 1.0, "stop": ["\n\n"], "logprobs": 1}.items() <= body.items()
    assert "n" not in body
    assert "seed" not in body


def test_answer_end_closes_the_stream(serve: Any, connect: Any) -> None:
    def fenced(body: dict[str, Any]) -> Any:
        yield from (chunk(piece) for piece in ("x = 1", "\n", "```", "\n", "Now"))
        for _ in range(1000):
            time.sleep(0.01)
            yield chunk(" chatter")

    standin = serve(StandIn(fenced, VLLM_MODELS))
    end = answer(connect(standin.url), SamplingParams(max_new_tokens=5000), OPEN)
    assert end.candidates[0].code == "x = 1"
    assert end.candidates[0].finish == "stop"
    assert "Now" not in end.candidates[0].text
    deadline = time.monotonic() + 5
    while standin.open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert standin.cut == 1, "the stream was not closed"


def test_token_count_is_that_of_the_server_also_when_cut(serve: Any, connect: Any) -> None:
    def merged(body: dict[str, Any]) -> Any:
        for tokens, piece in ((4, "x = 1"), (7, "\n```\nNow"), (9, " chatter")):
            choice = {"index": 0, "text": piece, "finish_reason": None}
            yield sse({"choices": [choice], "usage": {"completion_tokens": tokens}})

    standin = serve(StandIn(merged, VLLM_MODELS))
    end = answer(connect(standin.url), style=OPEN)
    assert (end.candidates[0].code, end.candidates[0].tokens) == ("x = 1", 7)
    assert standin.bodies()[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_stop_string_ends_raw_text_without_server_support(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("one", " tw", "o STOP", " three"), VLLM_MODELS))
    end = answer(connect(standin.url), SamplingParams(stop=("STOP",)), style=None)
    assert (end.candidates[0].text, end.candidates[0].code) == ("one two ", "one two ")


def test_samples_use_one_call_with_n(serve: Any, connect: Any) -> None:
    def stream(body: dict[str, Any]) -> Any:
        for index in range(body["n"]):
            yield chunk(f"x = {index % 2}", index, logprob=-1.0)
            yield chunk("", index, "stop")

    standin = serve(StandIn(stream, VLLM_MODELS))
    batch = connect(standin.url).open_batch("step")
    batch.add(0, Row("p", PLAIN), SamplingParams("sample", candidates=3, temperature=0.7, top_p=0.9, seed=11))
    assert len(batch) == 3
    ends, partial_outputs = finish(batch)
    assert [sample.code for sample in ends[0].samples] == ["x = 0", "x = 1", "x = 0"]
    assert [(candidate.code, candidate.count) for candidate in ends[0].candidates] == [("x = 0", 2), ("x = 1", 1)]
    assert {part.candidate for part in partial_outputs} <= {0, 1, 2}
    (body,) = standin.bodies()
    assert {"n": 3, "temperature": 0.7, "top_p": 0.9, "seed": 11}.items() <= body.items()


def test_unknown_server_gets_one_call_per_sample(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("a"), [{"id": "m"}]))
    end = answer(connect(standin.url), SamplingParams("sample", candidates=3, seed=5))
    assert sorted(body["seed"] for body in standin.bodies()) == [5, 6, 7]
    assert len(end.samples) == 3
    assert all(body["n"] == 1 for body in standin.bodies())


def test_beam_search_is_refused_in_one_message(serve: Any, connect: Any) -> None:
    batch = connect(serve(StandIn(saying("a"), VLLM_MODELS)).url).open_batch("beam")
    with pytest.raises(PromptOrTuneError, match=messages.SERVER_WITHOUT_BEAM_SEARCH):
        batch.add(0, Row("p", PLAIN), SamplingParams("beam", candidates=4))
    assert len(batch) == 0


def test_rows_run_concurrently_and_can_join_at_any_time(serve: Any, connect: Any) -> None:
    def stream(body: dict[str, Any]) -> Any:
        for piece in body["prompt"]:
            time.sleep(0.01)
            yield chunk(piece)
        yield chunk("", 0, "stop")

    standin = serve(StandIn(stream, VLLM_MODELS))
    batch = connect(standin.url).open_batch("step")
    assert batch.supports_continuous_batching
    prompts = [f"row {number} says so" for number in range(12)]
    for key, prompt in enumerate(prompts[:6]):
        batch.add(key, Row(prompt, None), GREEDY)
    batch.step()
    for key, prompt in enumerate(prompts[6:], 6):
        batch.add(key, Row(prompt, None), GREEDY)
    ends, _ = finish(batch)
    assert [ends[key].candidates[0].text for key in range(12)] == prompts
    assert standin.most_open > 6


def test_llama_cpp_python_is_sent_one_row_at_a_time(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x", " = 1", delay=0.01), [{"id": "base.gguf", "owned_by": "me"}]))
    batch = connect(standin.url).open_batch("step")
    for key in range(4):
        batch.add(key, Row("p", PLAIN), GREEDY)
    ends, _ = finish(batch)
    assert [ends[key].candidates[0].code for key in range(4)] == ["x = 1"] * 4
    assert standin.most_open == 1


def test_cancel_closes_the_stream_and_returns_the_partial_text(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying(*["word "] * 1000, delay=0.01), VLLM_MODELS))
    batch = connect(standin.url).open_batch("step")
    batch.add(0, Row("p", None), SamplingParams(max_new_tokens=2000))
    batch.add(1, Row("p", None), SamplingParams(max_new_tokens=2000))
    while not any(isinstance(event, PartialOutput) and event.index == 0 for event in batch.step()):
        pass
    end = batch.cancel(0)
    assert end.cancelled
    assert end.candidates[0].text.startswith("word")
    assert end.candidates[0].finish == "cancelled"
    assert len(batch) == 1
    assert all(event.index == 1 for _ in range(5) for event in batch.step())
    batch.cancel(1)
    assert batch.step() == []
    deadline = time.monotonic() + 5
    while standin.cut < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert standin.cut == 2


def test_generate_runs_to_the_end_and_can_be_cancelled(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying(*["word "] * 500, delay=0.01), VLLM_MODELS))
    cancel = threading.Event()
    ends = []
    for event in connect(standin.url).generate([Row("p", None), Row("q", None)], SamplingParams(), cancel):
        if isinstance(event, RowOutput):
            ends.append(event)
        else:
            cancel.set()
    assert sorted(end.index for end in ends) == [0, 1]
    assert all(end.cancelled for end in ends)


def test_top_logprobs_are_parsed(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("a", "b", logprob=-0.5), VLLM_MODELS))
    end = answer(connect(standin.url), SamplingParams(top_logprobs=2), style=None)
    assert [(token.token, token.logprob, token.top) for token in end.candidates[0].token_logprobs] == [
        ("a", -0.5, (("a", -0.5),)),
        ("b", -0.5, (("b", -0.5),)),
    ]
    assert standin.bodies()[0]["logprobs"] == 2


def test_server_refusing_logprobs_is_used_without(serve: Any, connect: Any) -> None:
    standin = StandIn(saying("a"), VLLM_MODELS)

    def whole(body: dict[str, Any]) -> Reply | None:
        if body.get("logprobs"):
            return Reply({"error": {"message": "logprobs are not supported"}}, 500)
        return None if body.get("stream") else Reply({"choices": [{"text": "y"}]})

    standin.pages["/v1/completions"] = whole  # type: ignore[assignment]
    end = answer(connect(serve(standin).url), SamplingParams("sample", candidates=2))
    assert end.error is None
    assert end.notes[-1] == "This engine did not send all log-probabilities: the missing ones count as 0."
    assert "logprobs" not in standin.bodies()[-1]
