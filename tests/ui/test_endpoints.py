"""The endpoints of a launched app with a real client, and the config of the page."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from serve.engine.llm_engine import EngineLoader
from tests import messages
from tests.fakes import FakeEngine
from ui.access.guard import COOKIE_NAME, VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.slow

FIELDS = {"method", "text", "code", "prompt", "examples", "tokens", "seconds", "scores", "error"}
ANSWERS = {"zero-shot": "list(reversed(s))", "lora-starter": "s[::-1]"}


@pytest.fixture(scope="module")
def engine() -> Any:
    return FakeEngine(ANSWERS, errors={"lora-conala": "Adapter 'lora-conala' is broken: train it again."}, delay=0.01)


@pytest.fixture(scope="module")
def url(engine: Any) -> Any:
    pages = build_pages(EngineLoader(lambda report: engine).start())
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield address
    pages.close()


@pytest.fixture(scope="module")
def client(url: Any) -> Any:
    return Client(url, verbose=False)


def test_compare_returns_one_record_per_method(client: Any) -> None:
    methods = ["zero-shot", "icl-2", "lora-starter", "lora-conala", "lora-stater"]
    records = client.predict("reverse the string `s`", methods, "s[::-1]", api_name="/compare")
    assert [record["method"] for record in records] == methods
    assert all(set(record) >= FIELDS for record in records)
    assert [record["error"] is None for record in records] == [True, True, True, False, False]
    assert records[2]["code"] == "s[::-1]"
    assert (records[0]["scores"]["em"], records[2]["scores"]["em"]) == (0, 1)
    assert len(records[1]["examples"]) == 2
    assert "did you mean 'lora-starter'" in records[4]["error"]


def test_compare_works_without_a_reference(client: Any) -> None:
    (record,) = client.predict("reverse the string `s`", ["zero-shot"], api_name="/compare")
    assert record["scores"]["codebleu"] is None
    assert record["score_reasons"]["codebleu"]
    assert record["scores"]["parses"] == 1


def test_tests_run_in_the_sandbox(client: Any) -> None:
    tests = "assert f(1) == 2\nassert f('x') == 2"
    (record,) = client.predict("reverse the string `s`", ["lora-starter"], None, tests, api_name="/compare")
    assert record["tests_note"] == ""
    assert len(record["tests"]) == 2
    assert record["sandbox"] in ("bubblewrap", "landlock")
    assert not any(test["passed"] for test in record["tests"]), "the answer needs an undefined name"
    assert "NameError" in record["tests"][0]["reason"]
    assert record["scores"]["tests"] == 0


def test_invalid_tests_are_refused(client: Any) -> None:
    with pytest.raises(AppError, match=r"^Line 2: this is not Python"):
        client.predict("reverse", ["zero-shot"], None, "assert f(1) == 2\nassert (", api_name="/compare")


@pytest.mark.parametrize(
    ("intent", "methods", "message"),
    [
        ("  ", ["zero-shot"], "Say first what the Python should do: one sentence is enough."),
        ("reverse", [], "Add at least one method"),
        ("reverse", ["zero-shot"] * 9, "9 methods asked for: compare at most 8 at once."),
    ],
)
def test_invalid_request_is_one_error_message(client: Any, intent: Any, methods: Any, message: Any) -> None:
    with pytest.raises(AppError, match=message):
        client.predict(intent, methods, api_name="/compare")


def test_too_long_question_fails_in_its_columns(client: Any) -> None:
    records = client.predict("x" * 20_000, ["zero-shot", "icl-2"], api_name="/compare")
    assert all("shorten the intent" in record["error"] for record in records)


def test_concurrent_clients_get_their_own_answers(client: Any, engine: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client.predict, f"intent {n}", ["zero-shot"], api_name="/compare") for n in range(4)]
        assert [job.result()[0]["intent"] for job in jobs] == [f"intent {n}" for n in range(4)]


def test_stream_yields_progress_and_ends_with_records(client: Any) -> None:
    job = client.submit("reverse the string `s`", ["lora-starter", "lora-conala"], "s[::-1]", api_name="/stream")
    changes = list(job)
    assert changes[0]["records"] == []
    seen = [column for change in changes for column in change["columns"] if column["method"] == "lora-starter"]
    assert {"waiting", "done"} <= {column["state"] for column in seen}
    assert [len(column["text"]) for column in seen] == sorted(len(column["text"]) for column in seen)
    first, second = changes[-1]["records"]
    assert (first["code"], first["scores"]["em"]) == ("s[::-1]", 1)
    assert second["error"] == "Adapter 'lora-conala' is broken: train it again."
    assert [column["state"] for column in changes[-1]["columns"]] == ["done", "failed"]


def test_invalid_stream_request_is_one_error_message(client: Any) -> None:
    with pytest.raises(AppError, match=messages.METHOD_REQUIRED):
        client.predict("reverse", [], api_name="/stream")


def test_endpoint_enforces_visitor_limits(url: Any) -> None:
    with contextlib.ExitStack() as held:
        engine = FakeEngine({"zero-shot": "word " * 400}, delay=0.02)
        source = EngineLoader(lambda report: engine).start()
        limited = VisitorRegistry(AccessPolicy(limits=VisitorLimits(rows_at_once=2)))
        pages = build_pages(source, context=Context(source, visitors=limited))
        _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
        held.callback(pages.close)
        one, other = (
            Client(address, verbose=False, headers={"cookie": f"{COOKIE_NAME}={letter * 32}"}) for letter in "ab"
        )
        job = one.submit("talk", ["zero-shot", "zero-shot"], api_name="/stream")
        next(iter(job))
        with pytest.raises(AppError, match=messages.TWO_ANSWERS_ARE_THE_LIMIT):
            one.predict("talk", ["zero-shot"], api_name="/compare")
        assert other.submit("talk", ["zero-shot"], api_name="/stream").__next__()["records"] == []
        job.cancel()


def test_only_these_endpoints_are_public(client: Any) -> None:
    named = {"/compare", "/stream", "/advise", "/advice"}
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == named
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_page_loads_nothing_from_other_hosts(url: Any) -> None:
    with urllib.request.urlopen(url + "config", timeout=10) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    with urllib.request.urlopen(url + "theme.css", timeout=10) as answer:
        assert b"fonts.googleapis" not in answer.read()
