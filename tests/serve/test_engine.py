"""The engine with a backend that only counts: planning, failures, order, cancelling, residence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import pytest

from adapters.manifest import BaseIdentity, Manifest
from adapters.store import AdapterFolder, Store
from errors import AdapterError, unknown
from serve import engine as engine_module
from serve.engine import Engine
from serve.examples import Pools
from serve.method import parse_method
from serve.rows import Answer, Candidate, Decoding, Finished, Partial, Request, Row
from tasks.problem import Example, Problem
from tasks.prompt import STYLES, Message

POOL = [Example(f"e{place}", f"intent number {place}", f"x = {place}") for place in range(20)]
BASE = BaseIdentity("tiny", "sha256:0", "Tiny", "none", "cpu", context_length=600, has_chat_template=False)


class CountingBackend:
    """Says its prompt's number of characters, one digit a step."""

    base = BASE

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.batches: list[list[Row]] = []
        self.steps = 0

    def chat(self, messages: Sequence[Message]) -> str:
        raise AssertionError("a base without a chat template gets plain prompts")

    def count_tokens(self, text: str) -> int:
        return len(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        self.loaded.append(folder.name)

    def unload_adapter(self, name: str) -> None:
        self.loaded.remove(name)

    def generate(self, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
        self.batches.append(list(rows))
        for step in range(1, decoding.max_new_tokens + 1):
            for index, row in enumerate(rows):
                if cancel.is_set():
                    yield Finished(index, (), 0.1, cancelled=True)
                    continue
                yield Partial(index, f"{len(row.prompt)}"[:step], step)
            if cancel.is_set():
                return
            self.steps += 1
            time.sleep(0.001)
        for index, row in enumerate(rows):
            text = str(len(row.prompt))
            yield Finished(index, (Candidate(text, text, -1.0, decoding.max_new_tokens),), 0.2)


class OneStore:
    """A store in which every name but 'broken' opens."""

    def names(self) -> list[str]:
        return ["broken", *(f"lora-{place}" for place in range(20))]

    def open(self, name: str, base: BaseIdentity) -> AdapterFolder:
        if name == "broken":
            raise AdapterError("Adapter 'broken' is broken: train it again.")
        if name not in self.names():
            raise unknown("adapter", name, self.names())
        trained = "nf4" if name == "lora-8" else "none"
        manifest = Manifest(
            name, "lora", base.id, base.revision, trained, "plain", STYLES["plain"].fingerprint, "starter", "", 0, ""
        )
        config = {"num_virtual_tokens": 60} if name == "lora-7" else {}
        return AdapterFolder(name, Path(name), manifest, config, f"digest of {name}")


class ByLength:
    """Retrieves the examples in their order."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        return POOL[:k]


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture
def engine(backend: CountingBackend) -> Engine:
    pools = Pools(load=lambda _: POOL, index=lambda *_: ByLength())
    return Engine(cast("Any", backend), cast("Store", OneStore()), pools)


def _request(method: str, intent: str = "sort a list", problem_id: str = "p") -> Request:
    return Request(Problem(problem_id, intent), parse_method(method, [*OneStore().names(), "gone"]))


def test_all_requests_of_a_call_are_one_batch(engine: Engine, backend: CountingBackend) -> None:
    answers = engine.answer([_request(name) for name in ("zero-shot", "icl-3", "rag-3", "lora-1")], Decoding())
    assert len(backend.batches) == 1
    assert [row.adapter for row in backend.batches[0]] == [None, None, None, "lora-1"]
    assert [len(answer.examples) for answer in answers] == [0, 3, 3, 0]
    assert [answer.error for answer in answers] == [None] * 4
    assert all(answer.style == STYLES["plain"] for answer in answers)


def test_an_adapter_of_other_weights_says_so(engine: Engine) -> None:
    answers = engine.answer([_request("lora-8"), _request("lora-1")], Decoding())
    assert answers[0].notes == (
        "'lora-8' was trained on the NF4 base and answers on the unquantized one here: it may lose by that.",
    )
    assert answers[1].notes == ()


def test_a_base_of_our_own_fine_tuning_is_asked_as_it_was_trained(
    engine: Engine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "base", replace(BASE, has_chat_template=True, prompt_style="plain"))
    assert engine.answer([_request("zero-shot")], Decoding())[0].style == STYLES["plain"]
    monkeypatch.setattr(backend, "base", replace(BASE, prompt_style="plain-short"))
    assert engine.answer([_request("zero-shot")], Decoding())[0].style == STYLES["plain-short"]


def test_what_fails_leaves_the_others_alone(engine: Engine) -> None:
    answers = engine.answer([_request(name) for name in ("broken", "zero-shot", "gone", "rag-2")], Decoding())
    assert [answer.index for answer in answers] == [0, 1, 2, 3]
    assert answers[0].error == "Adapter 'broken' is broken: train it again."
    assert answers[2].error is not None
    assert "Unknown adapter 'gone'" in answers[2].error
    assert answers[1].code
    assert answers[3].code


def test_an_empty_intent_is_one_sentence(engine: Engine) -> None:
    answer = engine.answer([_request("zero-shot", " \n ")], Decoding())[0]
    assert answer.error == "The intent is empty: say in a sentence what the Python should do."


def test_a_prompt_that_is_too_long_loses_examples_first_and_says_so(engine: Engine) -> None:
    answer = engine.answer([_request("rag-8")], Decoding(max_new_tokens=300))[0]
    assert 0 < len(answer.examples) < 8
    assert answer.examples == tuple(POOL[: len(answer.examples)]), "the nearest stay"
    assert answer.notes == (
        f"{8 - len(answer.examples)} of 8 examples were left out: the prompt would not fit the context.",
    )
    assert answer.prompt_tokens + 300 <= BASE.context_length


def test_a_prompt_that_never_fits_is_refused_with_the_count(engine: Engine) -> None:
    answer = engine.answer([_request("icl-2", "x" * 1000)], Decoding(max_new_tokens=100))[0]
    assert answer.error == (
        "The prompt has 1032 tokens and 500 fit (context 600, 100 kept for the answer): shorten the intent."
    )


def test_prompts_are_measured_without_answering(engine: Engine, backend: CountingBackend) -> None:
    requests = [_request(name) for name in ("zero-shot", "rag-3", "rag-8", "broken", "lora-1")]
    decoding = Decoding(max_new_tokens=300)
    measured = engine.prompt_tokens(requests, decoding)
    assert backend.batches == []
    assert measured == [answer.prompt_tokens for answer in engine.answer(requests, decoding)]
    assert measured[3] == 0
    assert measured[0] < measured[1] < measured[2] <= BASE.context_length - 300


def test_virtual_tokens_take_places_of_the_context(engine: Engine) -> None:
    around = len("### Instruction:\n\n### Response:\n")
    for method, fits in (("lora-1", 500), ("lora-7", 440)):
        decoding = Decoding(max_new_tokens=100)
        assert engine.answer([_request(method, "x" * (fits - around))], decoding)[0].error is None
        error = engine.answer([_request(method, "x" * (fits - around + 1))], decoding)[0].error
        assert error is not None
        assert f"The prompt has {fits + 1} tokens and {fits} fit" in error


def test_a_problem_is_never_its_own_example(engine: Engine) -> None:
    by_id = engine.answer([_request("rag-3", problem_id="e1")], Decoding())[0]
    assert [example.id for example in by_id.examples] == ["e0", "e2", "e3"]
    by_intent = engine.answer([_request("rag-3", "Intent  number 0")], Decoding())[0]
    assert [example.id for example in by_intent.examples] == ["e1", "e2", "e3"]
    shown = engine.answer([_request("icl-3")], Decoding())[0].examples
    again = engine.answer([_request("icl-3", shown[0].intent)], Decoding())[0].examples
    assert shown[0] not in again
    assert again[:2] == shown[1:]


def test_a_pool_with_too_few_examples_says_so(backend: CountingBackend) -> None:
    few = Engine(cast("Any", backend), cast("Store", OneStore()), Pools(lambda _: POOL[:2], lambda *_: ByLength()))
    answer = few.answer([_request("icl-4")], Decoding())[0]
    assert answer.notes == ("The pool has only 2 of the 4 examples asked for.",)


def test_closing_the_stream_cancels_the_batch(engine: Engine, backend: CountingBackend) -> None:
    cancel = Event()
    stream = engine.stream([_request("zero-shot")], Decoding(max_new_tokens=500), cancel)
    assert isinstance(next(stream), Partial)
    stream.close()  # type: ignore[attr-defined]
    assert cancel.is_set()
    engine.answer([_request("zero-shot")], Decoding(max_new_tokens=1))
    assert backend.steps < 500, "the worker went on with a batch that nobody reads"


def test_cancelled_rows_answer(engine: Engine) -> None:
    cancel = Event()
    answers = []
    for event in engine.stream([_request("zero-shot"), _request("icl-1")], Decoding(max_new_tokens=400), cancel):
        cancel.set()
        if isinstance(event, Answer):
            answers.append(event)
    assert [answer.cancelled for answer in answers] == [True, True]


def test_callers_in_several_threads_each_get_their_own(engine: Engine) -> None:
    found: dict[int, str] = {}

    def ask(place: int) -> None:
        found[place] = engine.answer([_request("zero-shot", "y" * place)], Decoding(max_new_tokens=3))[0].text

    threads = [Thread(target=ask, args=(place,)) for place in range(1, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    empty = len("### Instruction:\n\n### Response:\n")
    assert found == {place: str(empty + place) for place in range(1, 20)}


def test_residence_is_bounded_but_never_below_one_batch(
    engine: Engine, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_RESIDENT", 2)
    engine.answer([_request("lora-1"), _request("lora-2"), _request("lora-3")], Decoding())
    assert sorted(backend.loaded) == ["lora-1", "lora-2", "lora-3"]
    engine.answer([_request("lora-3")], Decoding())
    assert "lora-3" in backend.loaded
    assert len(backend.loaded) == 2


def test_a_fault_of_ours_reaches_the_caller(engine: Engine, backend: CountingBackend) -> None:
    def fail(*_: object) -> Iterator[Partial | Finished]:
        raise RuntimeError("a defect")

    backend.generate = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError, match="a defect"):
        engine.answer([_request("zero-shot")], Decoding())
