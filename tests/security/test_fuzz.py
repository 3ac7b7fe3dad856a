"""Every event of the pages with values of wrong types, huge values and foreign ids: one sentence, never a traceback."""

from __future__ import annotations

import json
import logging
import random
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser.fake_app import make_engine, serve

pytestmark = pytest.mark.slow

SEED, ROUNDS = 15, 1
HEADERS = {"content-type": "application/json"}
VALUES: list[Any] = [
    None, True, -1, 0, 3, 10**30, 1e308, "", "x", "../../etc/passwd", "rag-" + "9" * 5000, "\udc80\x00\x1b[2J",
    "x" * 100_000, [], [None], [["x"] * 50], {}, {"path": "/etc/passwd"}, {"path": "/tmp"}, {"id": "../.."},
    {"value": {"value": {}}}, {"__type__": "update", "value": 1}, [{"name": {"name": "x"}}],
    {"do": "delete", "name": 7},
]  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = make_engine()
    engine.delay = 0.0
    with serve(lambda report: engine) as address:
        yield address


@pytest.fixture(scope="module")
def events(url: str) -> list[dict[str, Any]]:
    dependencies = httpx.get(f"{url}config").json()["dependencies"]
    return [event for event in dependencies if event["backend_fn"]]


def run_event(client: httpx.Client, event: dict[str, Any], data: list[Any], event_data: Any) -> dict[str, Any]:
    """Send an event as a page does; return its output, or {"error": message}."""
    session = secrets.token_hex(5)
    body = {"fn_index": event["id"], "data": data, "event_data": event_data, "session_hash": session, "trigger_id": 1}
    path = "gradio_api/queue/join" if event["queue"] else "gradio_api/run/predict"
    response = client.post(path, content=json.dumps(body), headers=HEADERS)
    assert response.status_code in (200, 400, 413, 422), response.text
    if response.status_code != 200 or not event["queue"]:
        return dict(response.json())
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return dict(message["output"])
    raise AssertionError(f"{event['api_name']} was not completed")


def test_every_event_answers_wrong_values_with_a_sentence(
    url: str, events: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    chooser = random.Random(SEED)
    refused = 0
    with caplog.at_level(logging.WARNING), httpx.Client(base_url=url, timeout=30) as client:
        client.get("/")
        for event in events:
            for _ in range(ROUNDS):
                count = max(0, len(event["inputs"]) + chooser.choice([0, 0, 0, 0, -1, 1]))
                data = [chooser.choice(VALUES) for _ in range(count)]
                output = run_event(client, event, data, chooser.choice(VALUES))
                if "data" not in output:
                    refused += 1
                    message = output.get("error") or output.get("detail")
                    assert message, (event["api_name"], data, output)
                    assert "Traceback" not in str(message)
    assert refused > len(events) // 4
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in capfd.readouterr().err
