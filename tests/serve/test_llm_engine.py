"""LLMEngine with a CountingBackend: prompts, errors, order, cancellation, adapters; EngineLoader."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event, Thread
from typing import Any, cast

import pytest

from adapters.store import Store
from errors import (
    AdapterError,
    BaseModelError,
    EngineError,
    PromptOrTuneError,
    PromptTooLongError,
    UnknownNameError,
)
from serve.engine.llm_engine import EngineConfig, EngineLoader, LLMEngine, ProgressFn
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import ExamplePools, parse_method
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from tests import messages
from tests.fakes import FakeEngine
from tests.serve.counting_backend import BASE, POOL, CountingBackend, FakeStore, FirstExamples


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture
def engine(backend: CountingBackend) -> Iterator[LLMEngine]:
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: FirstExamples())
    engine = LLMEngine(cast("Any", backend), cast("Store", FakeStore()), pools)
    yield engine
    engine.close()


def _request(method: str, intent: str = "sort a list", problem_id: str = "p") -> Request:
    return Request(Problem(problem_id, intent), parse_method(method, [*FakeStore().names(), "gone"]))


def test_all_requests_of_a_call_are_one_batch(engine: LLMEngine, backend: CountingBackend) -> None:
    answers = engine.answer([_request(name) for name in ("zero-shot", "icl-3", "rag-3", "lora-1")], SamplingParams())
    assert len(backend.batches) == 1
    assert set(backend.batches[0].sizes) == {4}, "all are running from the first step to the last"
    assert [row.adapter for row in backend.rows] == [None, None, None, "lora-1"]
    assert [len(answer.examples) for answer in answers] == [0, 3, 3, 0]
    assert [answer.error for answer in answers] == [None] * 4
    assert all(answer.style == STYLES["plain"] for answer in answers)


def test_note_names_a_quantization_other_than_in_training(engine: LLMEngine) -> None:
    answers = engine.answer([_request("lora-8"), _request("lora-1")], SamplingParams())
    assert answers[0].notes == (
        "'lora-8' was trained on the NF4 base and answers on the unquantized one here: its answers may be worse.",
    )
    assert answers[1].notes == ()


def test_fine_tuned_base_gets_the_prompt_style_of_its_training(
    engine: LLMEngine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "base", replace(BASE, has_chat_template=True, prompt_style="plain"))
    assert engine.answer([_request("zero-shot")], SamplingParams())[0].style == STYLES["plain"]
    monkeypatch.setattr(backend, "base", replace(BASE, prompt_style="plain-short"))
    assert engine.answer([_request("zero-shot")], SamplingParams())[0].style == STYLES["plain-short"]


def test_rows_know_whether_their_prompt_opens_thinking(
    engine: LLMEngine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(_request("zero-shot"), style=STYLES["chat"])
    for prompt, opens in (("<|assistant|>\n<think>\n", True), ("<|assistant|>\n", False)):
        monkeypatch.setattr(backend, "apply_chat_template", lambda _, prompt=prompt: prompt)
        (answer,) = engine.answer([request], SamplingParams())
        style = backend.rows[-1].style
        assert style is not None
        assert style.opens_thinking is opens
        assert answer.style == style
        assert style.fingerprint == STYLES["chat"].fingerprint


def test_failing_request_does_not_affect_the_others(engine: LLMEngine) -> None:
    answers = engine.answer([_request(name) for name in ("broken", "zero-shot", "gone", "rag-2")], SamplingParams())
    assert [answer.index for answer in answers] == [0, 1, 2, 3]
    assert answers[0].error == "Adapter 'broken' is broken: train it again."
    assert isinstance(answers[0].exception, AdapterError)
    assert answers[2].error is not None
    assert "Unknown adapter 'gone'" in answers[2].error
    assert answers[1].code
    assert answers[3].code


def test_only_errors_of_the_prompt_are_answers_of_the_method(engine: LLMEngine) -> None:
    requests = [_request("broken"), _request("zero-shot", " "), _request("gone"), _request("zero-shot", "x" * 1000)]
    answers = engine.answer(requests, SamplingParams(max_new_tokens=100))
    assert [type(answer.failure) for answer in answers] == [AdapterError, type(None), UnknownNameError, type(None)]
    assert all(answer.error for answer in answers)
    untyped = [
        RequestOutput(0, requests[0], error=text) for text in ("It broke.", "The prompt has 9 tokens and 8 fit.")
    ]
    assert [type(answer.failure) for answer in untyped] == [EngineError, type(None)]


def test_a_method_is_required_with_its_adapter_loaded(engine: LLMEngine, backend: CountingBackend) -> None:
    methods = {name: parse_method(name, [*FakeStore().names(), "gone"]) for name in ("zero-shot", "lora-1", "broken")}
    engine.require_method(methods["zero-shot"])
    engine.require_method(methods["lora-1"])
    assert [entry.name for entry in engine.adapter_cache.status().adapters] == ["lora-1"]
    with pytest.raises(AdapterError, match=messages.ADAPTER_BROKEN_IS_BROKEN):
        engine.require_method(methods["broken"])
    assert backend.batches == []


def test_prompt_tokens_of_a_server_that_fails_are_not_zero(
    engine: LLMEngine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> int:
        raise EngineError("No server answers.")

    monkeypatch.setattr(backend, "count_tokens", fail)
    with pytest.raises(EngineError, match=messages.SERVER_DOES_NOT_ANSWER):
        engine.count_prompt_tokens([_request("zero-shot")], SamplingParams())
    assert isinstance(engine.answer([_request("zero-shot")], SamplingParams())[0].failure, EngineError)


def test_a_prompt_whose_length_is_a_guess_is_left_to_the_server(
    engine: LLMEngine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "has_exact_limits", False, raising=False)
    answer = engine.answer([_request("icl-2", "x" * 1000)], SamplingParams(max_new_tokens=100))[0]
    assert (answer.error, answer.examples) == (None, ())


def test_empty_intent_is_refused(engine: LLMEngine) -> None:
    answer = engine.answer([_request("zero-shot", " \n ")], SamplingParams())[0]
    assert answer.error == "The intent is empty: describe in a sentence what the Python should do."


def test_examples_are_dropped_from_a_prompt_that_is_too_long(engine: LLMEngine) -> None:
    answer = engine.answer([_request("rag-8")], SamplingParams(max_new_tokens=300))[0]
    assert 0 < len(answer.examples) < 8
    assert answer.examples == tuple(POOL[: len(answer.examples)]), "the nearest examples are used"
    assert answer.notes == (
        f"{8 - len(answer.examples)} of 8 examples were left out: the prompt would not fit the context.",
    )
    assert answer.prompt_tokens + 300 <= BASE.context_length


def test_prompt_that_is_too_long_without_examples_is_refused(engine: LLMEngine) -> None:
    answer = engine.answer([_request("icl-2", "x" * 1000)], SamplingParams(max_new_tokens=100))[0]
    assert answer.error == (
        "The prompt has 1032 tokens and 500 fit (context 600, 100 kept for the answer): shorten the intent."
    )


def test_prompt_tokens_are_counted_without_generation(engine: LLMEngine, backend: CountingBackend) -> None:
    requests = [_request(name) for name in ("zero-shot", "rag-3", "rag-8", "broken", "lora-1")]
    decoding = SamplingParams(max_new_tokens=300)
    counts = engine.count_prompt_tokens(requests, decoding)
    assert backend.batches == []
    assert counts == [answer.prompt_tokens for answer in engine.answer(requests, decoding)]
    assert counts[3] == 0
    assert counts[0] < counts[1] < counts[2] <= BASE.context_length - 300


def test_virtual_tokens_reduce_the_context(engine: LLMEngine) -> None:
    num_template = len("### Instruction:\n\n### Response:\n")
    for method, fits in (("lora-1", 500), ("lora-7", 440)):
        decoding = SamplingParams(max_new_tokens=100)
        assert engine.answer([_request(method, "x" * (fits - num_template))], decoding)[0].error is None
        error = engine.answer([_request(method, "x" * (fits - num_template + 1))], decoding)[0].error
        assert error is not None
        assert f"The prompt has {fits + 1} tokens and {fits} fit" in error


def test_problem_is_never_its_own_example(engine: LLMEngine) -> None:
    by_id = engine.answer([_request("rag-3", problem_id="e1")], SamplingParams())[0]
    assert [example.id for example in by_id.examples] == ["e0", "e2", "e3"]
    by_intent = engine.answer([_request("rag-3", "Intent  number 0")], SamplingParams())[0]
    assert [example.id for example in by_intent.examples] == ["e1", "e2", "e3"]
    examples = engine.answer([_request("icl-3")], SamplingParams())[0].examples
    again = engine.answer([_request("icl-3", examples[0].intent)], SamplingParams())[0].examples
    assert examples[0] not in again
    assert again[:2] == examples[1:]


def test_note_reports_a_pool_with_too_few_examples(backend: CountingBackend) -> None:
    few = LLMEngine(
        cast("Any", backend), cast("Store", FakeStore()), ExamplePools(lambda _: POOL[:2], lambda *_: FirstExamples())
    )
    answer = few.answer([_request("icl-4")], SamplingParams())[0]
    assert answer.notes == ("The pool has only 2 of the 4 examples asked for.",)


def test_raw_prompt_is_used_unchanged(engine: LLMEngine, backend: CountingBackend) -> None:
    raw = "def fibonacci(n):\n"
    answers = engine.answer(
        [
            Request(Problem("p", ""), parse_method(name, FakeStore().names()), raw=text)
            for name, text in (("zero-shot", raw), ("lora-1*0.5", raw), ("icl-2", raw), ("zero-shot", ""))
        ],
        SamplingParams(max_new_tokens=2),
    )
    assert [(row.prompt, row.style, row.adapter, row.scale) for row in backend.rows] == [
        (raw, None, None, 1.0),
        (raw, None, "lora-1", 0.5),
    ]
    assert [answer.prompt for answer in answers] == [raw, raw, "", ""]
    assert answers[2].error == (
        "Method 'icl-2' shows examples, and a raw prompt is read as it is: choose a method without examples, or give "
        "an intent instead of a prompt."
    )
    assert answers[3].error == "The prompt is empty: give at least one character to go on from."
    long = Request(Problem("p", ""), parse_method("zero-shot", ()), raw="x" * 601)
    refused = engine.answer([long], SamplingParams(max_new_tokens=100))[0]
    assert isinstance(refused.exception, PromptTooLongError)
    assert str(refused.exception).endswith("shorten the prompt.")


def test_earlier_turns_follow_the_examples_and_the_oldest_is_dropped_first(
    engine: LLMEngine, backend: CountingBackend
) -> None:
    turns = tuple(Example(f"t{number}", f"turn number {number}", f"y = {number}") for number in range(3))
    asked_request = Request(Problem("p", "and now sorted"), parse_method("icl-2", ()), turns=turns)
    output = engine.answer([asked_request], SamplingParams(max_new_tokens=2))[0]
    assert len(output.examples) == 2, "turns are not examples"
    offsets = [output.prompt.index(example.intent) for example in (*output.examples, *turns)]
    assert offsets == sorted(offsets)
    max_new_tokens = 600 - output.prompt_tokens
    short = engine.answer([asked_request], SamplingParams(max_new_tokens=max_new_tokens + 1))[0]
    assert turns[0].intent not in short.prompt
    assert turns[1].intent in short.prompt
    assert len(short.examples) == 2
    assert short.notes == ("1 of 3 earlier turns were left out: the prompt would not fit the context.",)
    raw = Request(Problem("p", ""), parse_method("zero-shot", ()), raw="x", turns=turns)
    assert str(engine.answer([raw], SamplingParams())[0].error).startswith("A raw prompt is read as it is")


def test_unsupported_methods_have_a_reason(engine: LLMEngine, backend: CountingBackend) -> None:
    names = ("zero-shot", "lora-1", "lora-2*0.5", "broken")
    methods = [parse_method(name, FakeStore().names()) for name in names]
    assert [engine.unsupported_reason(method) for method in methods] == [
        None,
        None,
        None,
        "Adapter 'broken' is broken: train it again.",
    ]
    backend.unsupported_reason = lambda folder, scale: "Not here." if folder and scale != 1 else None  # type: ignore[attr-defined]
    assert [engine.unsupported_reason(method) for method in methods[:3]] == [None, None, "Not here."]


def test_closing_the_stream_cancels_the_batch(engine: LLMEngine, backend: CountingBackend) -> None:
    cancel = Event()
    stream = engine.stream([_request("zero-shot")], SamplingParams(max_new_tokens=500), cancel)
    assert isinstance(next(stream), PartialOutput)
    stream.close()  # type: ignore[attr-defined]
    assert cancel.is_set()
    engine.answer([_request("zero-shot")], SamplingParams(max_new_tokens=1))
    assert backend.steps < 500, "the engine continued a cancelled batch"


def test_cancelled_rows_return_their_text_so_far(engine: LLMEngine) -> None:
    cancel = Event()
    answers = []
    for event in engine.stream([_request("zero-shot"), _request("icl-1")], SamplingParams(max_new_tokens=400), cancel):
        cancel.set()
        if isinstance(event, RequestOutput):
            answers.append(event)
    assert [answer.cancelled for answer in answers] == [True, True]
    assert all(0 < answer.tokens < 400 for answer in answers), "the text so far"


def test_callers_in_several_threads_get_their_own_outputs(engine: LLMEngine) -> None:
    texts: dict[int, str] = {}

    def ask(length: int) -> None:
        texts[length] = engine.answer([_request("zero-shot", "y" * length)], SamplingParams(max_new_tokens=3))[0].text

    threads = [Thread(target=ask, args=(length,)) for length in range(1, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    empty = len("### Instruction:\n\n### Response:\n")
    assert {length: int(text.split("|")[0]) for length, text in texts.items()} == {
        length: empty + length for length in range(1, 20)
    }


def test_adapter_limit_is_not_exceeded_within_one_call(backend: CountingBackend) -> None:
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: FirstExamples())
    small = LLMEngine(
        cast("Any", backend), cast("Store", FakeStore()), pools, config=EngineConfig(max_loaded_adapters=2)
    )
    answers = small.answer([_request(f"lora-{number}") for number in (1, 2, 3)], SamplingParams(max_new_tokens=4))
    assert [answer.text.split("|")[2] for answer in answers] == ["lora-1", "lora-2", "lora-3"]
    assert len(backend.loaded) == 2
    assert "lora-3" in backend.loaded
    assert small.adapter_cache.status().evictions == 1


def test_exception_in_a_step_reaches_the_caller(engine: LLMEngine, backend: CountingBackend) -> None:
    backend.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match=messages.STEP_DEFECT):
        engine.answer([_request("zero-shot")], SamplingParams())
    assert engine.answer([_request("zero-shot")], SamplingParams())[0].code


def test_exception_in_preparation_reaches_only_its_caller(engine: LLMEngine, backend: CountingBackend) -> None:
    def fail(folder: object) -> None:
        raise RuntimeError("a defect")

    stream = engine.stream([_request("zero-shot")], SamplingParams(max_new_tokens=100))
    assert isinstance(next(stream), PartialOutput)
    backend.loading = fail
    with pytest.raises(RuntimeError, match=messages.STEP_DEFECT):
        engine.answer([_request("zero-shot"), _request("lora-1")], SamplingParams(max_new_tokens=300))
    answer = list(stream)[-1]
    assert isinstance(answer, RequestOutput)
    assert answer.tokens == 100


def test_loader_reports_progress_and_loads_once() -> None:
    may_end = threading.Event()
    built: list[FakeEngine] = []

    def build(report: ProgressFn) -> FakeEngine:
        report("Converting the base: 40%")
        may_end.wait(5)
        built.append(FakeEngine())
        return built[0]

    loader = EngineLoader(build).start()
    loader.start()
    deadline = time.monotonic() + 5
    while loader.state().fraction is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (loader.state().phase, loader.state().message) == ("loading", "Converting the base: 40%")
    assert loader.state().fraction == pytest.approx(0.4)
    assert loader.wait(0.01) is None
    may_end.set()
    assert loader.engine() is built[0]
    assert loader.state().phase == "ready"
    assert len(built) == 1


def test_loader_raises_the_error_of_a_failed_load() -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise BaseModelError("No base 'x': check the name.")

    loader = EngineLoader(build)
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_BASE_X_ADVICE):
        loader.engine()
    assert loader.state().phase == "failed"


def test_loader_reports_an_unexpected_exception(caplog: pytest.LogCaptureFixture) -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise ZeroDivisionError("oh")

    with pytest.raises(PromptOrTuneError, match=messages.LOADING_FAILED):
        EngineLoader(build).engine()
    assert "Traceback" in caplog.text
