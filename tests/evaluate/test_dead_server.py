"""`python -m evaluate` in front of a real HTTP server that dies, refuses, stalls or cannot serve a method."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from evaluate import __main__ as command
from evaluate.results import read_run
from serve.backends.remote.backend import OpenAIBackend
from serve.backends.remote.stream import Timeouts
from serve.engine.llm_engine import LLMEngine
from tasks.methods import ExamplePools
from tasks.problem import Example
from tests.adapters.folders import BASE, store
from tests.evaluate.fakes import write_conala
from tests.serve.remote.standin import Reply, StandIn, chunk, event, saying, served
from tests.serve.remote.test_adapters import SERVED, ia3, lora

pytestmark = pytest.mark.slow

MODELS = [{**SERVED[0], "max_model_len": 2048, "revision": BASE.revision, "quantization": "nf4"}]
QUICK = Timeouts(startup=0, first_token=1.0, between_tokens=0.3, busy=0.0)
POOL = [Example(f"e{at}", f"example {at}", f"e = {at}") for at in range(9)]


def no_index(*_: object) -> Any:
    raise NotImplementedError


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waits between tries, none of which is slept."""
    seconds: list[float] = []
    monkeypatch.setattr("evaluate.failures.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return a function that runs `python -m evaluate` on a stand-in: exit status, last line of stderr, and stdout."""
    engines: list[LLMEngine] = []
    urls: list[str] = []

    def connect(_: argparse.Namespace) -> LLMEngine:
        pools = ExamplePools(load=lambda _: list(POOL), index=no_index)
        adapters = store(tmp_path / "adapters")
        engines.append(LLMEngine(OpenAIBackend(urls[-1], timeouts=QUICK), adapters, pools))
        return engines[-1]

    monkeypatch.setattr(command, "build_engine_from_options", connect)
    data = write_conala(tmp_path / "data")

    def start(standin: StandIn, methods: str = "zero-shot,icl-2") -> tuple[int, str, str]:
        urls.append(standin.url)
        words = ["--data", "conala", "--data-dir", str(data), "--output", str(tmp_path / "run.jsonl"), "--batch", "4"]
        status = command.main([*words, "--mode", "greedy", "--methods", methods])
        printed = capsys.readouterr()
        return status, (printed.err.strip().splitlines() or [""])[-1], printed.out

    yield start
    for engine in engines:
        engine.close()


def counting(standin: StandIn) -> StandIn:
    """Return a stand-in that counts tokens as vLLM does."""
    standin.pages["/tokenize"] = lambda body: Reply({"count": len(body["prompt"].split())})
    return standin


def answered(tmp_path: Path) -> dict[str, int]:
    path = tmp_path / "run.jsonl"
    run = read_run(path) if path.exists() else None
    return {name: len(run.results(name)) for name in run.methods} if run else {}


def test_a_server_that_dies_in_the_middle_costs_no_answer(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], waits: list[float]
) -> None:
    asked: list[str] = []
    with ExitStack() as stack:

        def dying(body: dict[str, Any]) -> Iterator[bytes]:
            asked.append(body["prompt"])
            if len(asked) == 6:
                yield chunk("half an")
                Thread(target=stack.close).start()
                return
            yield from saying("x = 1")(body)

        standin = stack.enter_context(served(counting(StandIn(dying, MODELS))))
        status, sentence, out = run(standin)
    assert status == 2
    assert re.search(
        r"\(tried 4 times\); the answers so far \(5\) are kept in .*run\.jsonl, and the same command asks for", sentence
    )
    assert (out, waits) == ("", [1.0, 5.0, 20.0])
    assert answered(tmp_path) == {"zero-shot": 5, "icl-2": 0}
    assert "partial answer" not in sentence

    port = int(standin.host.rpartition(":")[2])
    with served(counting(StandIn(saying("x = 1"), MODELS)), port) as again:
        status, _, out = run(again)
        assert len(again.bodies()) == 7, "only what is missing is asked"
    assert status == 0
    assert answered(tmp_path) == {"zero-shot": 6, "icl-2": 6}
    assert "p (Holm)" in out
    assert not any(
        result.error for name in ("zero-shot", "icl-2") for result in read_run(tmp_path / "run.jsonl").results(name)
    )


def test_a_server_that_comes_back_is_tried_again(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], waits: list[float]
) -> None:
    tries: list[str] = []

    def flaky(body: dict[str, Any]) -> Reply | None:
        if not body.get("stream"):
            return standin._one_token(body)
        tries.append(body["prompt"])
        return Reply({"error": {"message": "upstream failed"}}, 502) if len(tries) % 3 == 0 else None

    standin = counting(StandIn(saying("x = 1"), MODELS))
    standin.pages["/v1/completions"] = flaky  # type: ignore[assignment]
    with served(standin):
        status, _, _ = run(standin)
    assert status == 0
    assert answered(tmp_path) == {"zero-shot": 6, "icl-2": 6}
    assert set(waits) == {1.0}


def broken(*pieces: bytes) -> Callable[[dict[str, Any]], Iterator[bytes]]:
    return lambda _: iter(pieces)


FAILURES: dict[str, tuple[Any, str]] = {
    "status 500": (Reply({"error": {"message": "boom"}}, 500), "answered with status 500 (boom) (tried 4 times)"),
    "status 502": (Reply(b"<html>", 502), "answered with status 502 (tried 4 times)"),
    "overloaded": (Reply({"error": {"message": "full"}}, 503), "is busy, about 1 s (full) (tried 4 times)"),
    "rate limit": (Reply(None, 429, {"Retry-After": "60"}), "is busy, about 60 s (tried 4 times)"),
    "daily limit": (Reply(None, 429, {"Retry-After": "3000"}), "is busy, about 3000 s; the answers so far (0)"),
    "key": (Reply(None, 401), "wants a key and none was given: name its variable with --api-key-env; the answers"),
    "no model": (Reply(None, 404), "does not have the model"),
    "bad field": (Reply({"error": {"message": "seed is not allowed"}}, 400), "status 400 (seed is not allowed); the"),
    "cut": (broken(chunk("half")), "ended the stream in the middle of the answer (tried 4 times)"),
    "garbage": (broken(b"HTTP/1.1 nonsense\n\n"), "does not speak OpenAI's stream"),
    "error event": (broken(event({"error": {"message": "out of memory"}})), "status 200 (out of memory) (tried 4"),
    "given up": (broken(chunk("half", 0, "abort")), "gave up an answer (finish_reason 'abort')"),
}


def page(standin: StandIn, reply: Reply) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: reply if body.get("stream") else standin._one_token(body)


@pytest.mark.parametrize("failing", FAILURES)
def test_no_failure_of_a_server_is_a_score(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], failing: str
) -> None:
    reply, expected = FAILURES[failing]
    standin = counting(StandIn(reply if callable(reply) else saying("x"), MODELS))
    if isinstance(reply, Reply):
        standin.pages["/v1/completions"] = page(standin, reply)
    with served(standin):
        status, sentence, out = run(standin)
    assert (status, out) == (2, "")
    assert expected in sentence
    assert sentence.endswith("asks for the rest.")
    assert sum(answered(tmp_path).values()) == 0
    assert not (tmp_path / "run.scores.jsonl").exists()


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"error": {"message": "This model's maximum context length is 8 tokens."}}, 400),
        Reply({"error": {"message": "the request exceeds the available context size"}}, 400),
        Reply({"error": {"message": "no", "code": "context_length_exceeded"}}, 400),
        Reply({"error": "Input validation error: `inputs` must have less than 8 tokens", "error_type": "x"}, 422),
        broken(event({"error": {"message": "maximum context length is 8 tokens", "code": 400}})),
    ],
    ids=["vLLM", "llama.cpp", "code", "LoRAX", "event"],
)  # fmt: skip
def test_a_prompt_that_is_too_long_for_the_server_scores_zero(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], waits: list[float], reply: Any
) -> None:
    standin = counting(StandIn(reply if callable(reply) else saying("x"), MODELS))
    if isinstance(reply, Reply):
        standin.pages["/v1/completions"] = page(standin, reply)
    with served(standin):
        status, _, out = run(standin, "zero-shot")
    assert (status, waits) == (0, [])
    assert "6 failed, scored 0 and counted." in out
    results = read_run(tmp_path / "run.jsonl").results("zero-shot")
    assert [(bool(result.error), result.scores["em@1"]) for result in results] == [(True, 0)] * 6


def test_an_empty_answer_scores_zero(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    with served(counting(StandIn(saying("", finish="stop"), MODELS))) as standin:
        assert run(standin, "zero-shot")[0] == 0
    results = read_run(tmp_path / "run.jsonl").results("zero-shot")
    assert [(result.error, result.scores["codebleu"]) for result in results] == [(None, 0)] * 6


def test_a_server_that_stops_counting_tokens_shortens_no_prompt(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """An estimate instead of the server's count is too high: examples would be left out, or the prompt refused."""
    standin = StandIn(saying("x"), MODELS)
    counts: list[int] = []

    def tokenize(body: dict[str, Any]) -> Reply:
        counts.append(1)
        return Reply({"count": 9}) if len(counts) < 4 else Reply({"error": {"message": "boom"}}, 500)

    standin.pages["/tokenize"] = tokenize
    with served(standin):
        status, sentence, _ = run(standin)
        assert standin.bodies() == []
    assert status == 2
    assert "answered with status 500 (boom)" in sentence


def test_ia3_behind_vllm_is_refused_before_anything_is_asked(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    ia3(tmp_path / "adapters")
    with served(counting(StandIn(saying("x"), MODELS))) as standin:
        status, sentence, _ = run(standin, "zero-shot,ia3-mine,ia3-mine+icl-2")
        assert standin.bodies() == []
    assert status == 2
    assert sentence.startswith("This engine serves LoRA adapters only; 'ia3-mine' is IA3:")
    assert answered(tmp_path) == {}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (None, "does not list 'lora-mine' among its models: start it with that adapter"),
        (Reply({"error": {"message": "No adapter found"}}, 404), "does not load 'lora-mine' (status 404: No adapter"),
    ],
    ids=["not listed", "not loaded"],
)
def test_an_adapter_that_the_server_does_not_have_is_refused_before_anything_is_asked(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], load: Reply | None, expected: str
) -> None:
    lora(tmp_path / "adapters")
    standin = counting(StandIn(saying("x"), MODELS))
    if load is not None:
        refusal = Reply({"error": {"message": "Both must be provided."}}, 400)
        standin.pages["/v1/load_lora_adapter"] = lambda body: load if body["lora_name"] else refusal
    with served(standin):
        status, sentence, _ = run(standin, "zero-shot,lora-mine")
        assert standin.bodies() == []
    assert (status, answered(tmp_path)) == (2, {})
    assert expected in sentence
