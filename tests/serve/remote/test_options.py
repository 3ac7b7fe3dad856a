"""Command-line options for remote servers, and an engine started with them."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import app
from errors import PromptOrTuneError
from evaluate.options import run_parser, sampling_params_from_options
from serve.backends.remote.backend import RemoteOptions, parse_remote_options
from serve.engine.build import build_engine
from serve.options import ModelOptions
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import parse_method
from tasks.problem import Problem
from tests import messages
from tests.serve.remote.standin import VLLM_MODELS, StandIn, chunk, saying

URL = "http://127.0.0.1:8000/v1"


def test_url_model_and_key_variable_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", " secret ")
    options = app.parse_options(
        ["--backend", "openai", "--url", URL, "--model", "owner/base", "--api-key-env", "SERVER_KEY"]
    )
    assert options.model.remote == RemoteOptions(URL, "owner/base", "secret")
    assert "secret" not in repr(options)


def test_base_defaults_to_that_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPT_OR_TUNE_BASE", raising=False)
    remote = ["--backend", "openai", "--url", URL]
    assert app.parse_options(remote).model.base is None
    assert app.parse_options([*remote, "--base", "embedded"]).model.base == "embedded"
    assert app.parse_options([]).model.base == "embedded"
    assert app.parse_options([]).model.remote is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backend", "opnai"], "Unknown backend 'opnai': did you mean 'openai'"),
        (["--backend", "openai"], "needs the server's address: add --url"),
        (["--url", URL], "--url belongs to --backend openai"),
        (["--api-key-env", "X"], "--api-key-env belongs to --backend openai"),
        (["--backend", "openai", "--url", URL, "--api-key-env", "NO_SUCH_VARIABLE"], "is not set, or empty"),
    ],
)
def test_contradicting_options_give_one_message(arguments: list[str], expected: str) -> None:
    with pytest.raises(PromptOrTuneError, match=expected):
        app.parse_options(arguments)


def test_study_command_accepts_the_same_options() -> None:
    given = run_parser("").parse_args(
        ["--data", "starter", "--methods", "rag-8", "--output", "x.jsonl", "--backend", "openai", "--url", URL]
    )
    assert parse_remote_options(given) == RemoteOptions(URL)
    assert given.base is None
    with pytest.raises(PromptOrTuneError, match=messages.CANDIDATES_NEED_SAMPLING):
        sampling_params_from_options(given)
    given.beams = 1
    assert sampling_params_from_options(given).mode == "greedy"


def test_forty_callers_get_their_own_answers(serve: Any) -> None:
    def echo(body: dict[str, Any]) -> Any:
        output = re.findall(r"number (\d+)", body["prompt"])[-1]
        for piece in ("x", " = ", output, " "):
            time.sleep(0.005)
            yield chunk(piece)
        yield chunk("", 0, "stop")

    engine = build_engine(ModelOptions(remote=RemoteOptions(serve(StandIn(echo, VLLM_MODELS)).url)))

    def ask(number: int) -> str:
        request = Request(Problem("typed", f"number {number}"), parse_method("zero-shot", ()))
        cancel = threading.Event()
        stream = engine.stream([request], SamplingParams(max_new_tokens=16), cancel, owner=f"owner {number % 8}")
        for event in stream:
            if isinstance(event, PartialOutput) and number % 5 == 0:
                cancel.set()
            if isinstance(event, RequestOutput):
                return "gone" if event.cancelled else event.error or event.code
        raise AssertionError("no answer")

    try:
        with ThreadPoolExecutor(40) as callers:
            output = list(callers.map(ask, range(120)))
    finally:
        engine.close()
    for number, answer in enumerate(output):
        assert answer in (f"x = {number}", "gone" if number % 5 == 0 else "")


def test_engine_on_a_server_answers_with_examples(serve: Any) -> None:
    standin = serve(StandIn(saying("s[::-1]", logprob=-0.5), VLLM_MODELS))
    output: list[str] = []
    engine = build_engine(ModelOptions(remote=RemoteOptions(standin.url)), output.append)
    try:
        request = Request(Problem("typed", "reverse the string `s`"), parse_method("icl-2", ()))
        (answer,) = engine.answer([request], SamplingParams(max_new_tokens=16))
        assert answer.error is None
        assert answer.code == "s[::-1]"
        assert len(answer.examples) == 2
        assert (engine.base.id, engine.base.device) == ("owner/base", f"vLLM at {standin.host}")
        assert answer.prompt == standin.bodies()[-1]["prompt"]
        assert any("Prompts are plain ones" in line for line in output)
    finally:
        engine.close()
