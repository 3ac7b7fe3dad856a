"""Values of events and endpoints: too large, or of a wrong type; one sentence each, before the quota and any work."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from errors import PromptOrTuneError
from serve.engine.llm_engine import EngineLoader
from tasks.methods import parse_method
from tests import messages
from tests.fakes import FakeEngine
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.app import build_pages
from ui.compare.comparison import check_request
from ui.compare.decoding_form import read_sampling_params
from ui.compare.events import parse_browser_state
from ui.compare.steps import compare_endpoint
from ui.context import Context

WRONG_VALUES: list[Any] = [
    None, 7, -1.5, float("inf"), True, "x" * 30_000, "x" * 2_000_000, [], [[]], ["x"] * 5_000, {}, {"path": "/"},
    {"path": None}, [None], {"value": {}}, 10**400, "\ud800",
]  # fmt: skip
HOSTILE_METHODS = ["rag-" + "9" * 150, "icl-" + "9" * 100, "icl-8@" + "9" * 100, "rag-0", "rag-33", "x" * 5_000]


@pytest.fixture(scope="module")
def context() -> Any:
    engine = FakeEngine({"zero-shot": "1"})
    limited = VisitorRegistry(AccessPolicy(limits=VisitorLimits(rows_per_hour=2)))
    return Context(EngineLoader(lambda report: engine).start(), visitors=limited)


@pytest.fixture(scope="module")
def pages(context: Context) -> Iterator[Any]:
    built = build_pages(context.engine_loader, context=context)
    yield built
    built.close()


def test_every_event_survives_values_of_wrong_types(pages: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    checked, state, refused = 0, SessionState(pages), list[gr.Error]()
    with asyncio.Runner() as runner:
        for function in pages.fns.values():
            if function.fn is None or not function.inputs:
                continue
            for value in WRONG_VALUES:
                inputs = [None if component.stateful else value for component in function.inputs]
                try:
                    runner.run(pages.preprocess_data(function, inputs, state))
                except gr.Error as error:
                    refused.append(error)
                checked += 1
    assert checked > 500
    assert all(re.fullmatch(messages.ONE_SHORT_SENTENCE, error.message) for error in refused)
    assert not any(error.print_exception for error in refused)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("name", HOSTILE_METHODS)
def test_method_names_are_bounded(name: str) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.ONE_SHORT_SENTENCE):
        parse_method(name, ["lora-starter"])


@pytest.mark.parametrize(
    ("intent", "reference", "methods"),
    [
        ("a " * 1_000_000, None, ["zero-shot"]),
        ("a", "x" * 20_001, ["zero-shot"]),
        ("a", None, ["x" * 5_000]),
        ("a", None, ["zero-shot"] * 9),
        (None, None, ["zero-shot"]),
        (7, None, ["zero-shot"]),
        ("a", {}, ["zero-shot"]),
        ("a", None, "zero-shot"),
        ("a", None, [None]),
        ("a", None, {"zero-shot": 1}),
    ],
)
def test_requests_are_refused_before_the_quota(context: Context, intent: Any, reference: Any, methods: Any) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.ONE_SHORT_SENTENCE):
        check_request(intent, reference, methods)
    endpoint = compare_endpoint(context)
    for _ in range(3):  # more than the quota
        with pytest.raises(PromptOrTuneError, match=messages.ONE_SHORT_SENTENCE) as refused:
            endpoint(_request(), intent, methods, reference)
        assert "limit for one person" not in str(refused.value)


def test_the_quota_counts_before_tests_are_read(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(_fields: Any) -> Any:
        read.append(1)
        raise PromptOrTuneError("read")

    read: list[int] = []
    monkeypatch.setattr("ui.compare.steps.build_problem", count)
    endpoint = compare_endpoint(context)
    for _ in range(5):
        with pytest.raises(PromptOrTuneError):
            endpoint(_request(), "a", ["zero-shot"], None, "assert f(1) == 2")
    assert len(read) == 2


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), 10**30, [], {}])
def test_decoding_fields_are_checked(value: Any) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.ONE_SHORT_SENTENCE):
        read_sampling_params("sample", 2, value, 0.5, 0.9, 1)
    with pytest.raises(PromptOrTuneError, match=messages.ONE_SHORT_SENTENCE):
        read_sampling_params("sample", value, 64, 0.5, 0.9, 1)


def test_a_stored_problem_is_bounded() -> None:
    problem = {"id": "a", "intent": "x" * 30_000}
    assert parse_browser_state({"chosen": problem}).selected_problem is None


def _request() -> Any:
    class Stranger:
        """What a handler reads of a request."""

        session_hash = "s"
        username = None
        headers: dict[str, str] = {}  # noqa: RUF012
        cookies: dict[str, str] = {}  # noqa: RUF012
        client = None

    return Stranger()
